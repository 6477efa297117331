//! `nbd map`.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use nbd_codec::uri::Uri;
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::text::Text;
use nbd_codec::{Framing, Negotiated};
use nbd_tools::size;
use serde_json::Value;

use crate::connection::{self, Connection};
use crate::draw::{self, Palette};
use crate::extents::{self, Placed};
use crate::name::Name;
use crate::session::{check_last_block, whole_blocks};
use crate::stdout;
use crate::{address, args};

/// One context and its extents.
struct Mapped {
    context: Name,
    extents: Vec<Placed>,
}

pub fn run(args: &args::Map, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let place = || uri.to_string();
    if common.framing() == Framing::Simple {
        if common.settings().export_name {
            bail!("--no-go implies simple framing, which has no block status; leave it out");
        }
        bail!("simple framing has no block status; use --framing structured or extended");
    }
    let names: Vec<&str> = args.contexts.iter().map(String::as_str).collect();
    let Connection {
        mut session,
        contexts,
    } = open(&uri, &names, common).with_context(place)?;
    let negotiated = *session.negotiated();
    let (ids, names): (Vec<_>, Vec<_>) = contexts
        .into_iter()
        .map(|(id, name)| {
            let allocation = name.as_bytes() == connection::ALLOCATION.as_bytes();
            (extents::Context { id, allocation }, name)
        })
        .unzip();
    let range = 0..whole_blocks(&negotiated);
    let mut walk = |each: &mut extents::Each<'_>| {
        extents::walk(&mut session, &ids, range.clone(), each).with_context(place)
    };
    if let ([name], true) = (&names[..], args.json) {
        // Written as it is received: a map may have millions of extents.
        let mut output = stdout::buffered();
        let mut array = Array::new(name, args.raw, "");
        walk(&mut |_, extents| {
            array.write(&mut output, extents)?;
            stdout::check(output.flush())
        })?;
        array.finish(&mut output)?;
        stdout::check(writeln!(output).and_then(|()| output.flush()))?;
    } else {
        let mut maps: Vec<_> = names
            .into_iter()
            .map(|context| Mapped {
                context,
                extents: Vec::new(),
            })
            .collect();
        walk(&mut |index, extents| {
            maps[index].extents.extend_from_slice(extents);
            Ok(())
        })?;
        if args.json {
            print_json(&maps, args.raw)?;
        } else {
            print_text(&uri, &negotiated, &maps)?;
        }
    }
    session.close().with_context(place)?;
    check_last_block(&negotiated).with_context(place)
}

fn open(uri: &Uri, names: &[&str], common: &args::Common) -> Result<Connection> {
    let connection = connection::open(uri, common.framing(), names, &common.settings())?;
    if connection.session.negotiated().framing == Framing::Simple {
        bail!("the server has only simple framing, without block status");
    }
    for name in names {
        let mut granted = connection.contexts.iter();
        if !granted.any(|(_, granted)| granted.as_bytes() == name.as_bytes()) {
            bail!(
                "the export has no metadata context {:?}; `nbd info` shows its contexts",
                Text::from(*name)
            );
        }
    }
    Ok(connection)
}

/// The maps of several contexts: an object with an array for each.
fn print_json(maps: &[Mapped], raw: bool) -> Result<()> {
    let mut output = stdout::buffered();
    stdout::check(output.write_all(b"{"))?;
    for (index, map) in maps.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let name = Value::from(map.context.for_json());
        stdout::check(write!(output, "{comma}\n  {name}: "))?;
        let mut array = Array::new(&map.context, raw, "  ");
        array.write(&mut output, &map.extents)?;
        array.finish(&mut output)?;
    }
    stdout::check(writeln!(output, "\n}}").and_then(|()| output.flush()))
}

fn print_text(uri: &Uri, negotiated: &Negotiated, maps: &[Mapped]) -> Result<()> {
    let mut output = stdout::buffered();
    let palette = Palette::of_stdout();
    let size = negotiated.size;
    let first = writeln!(
        output,
        "{uri}: {} ({size} bytes), {} framing",
        size::rounded(size),
        negotiated.framing
    );
    stdout::check(first)?;
    for map in maps {
        let bar = draw::bar(&map.context, &map.extents, size, &palette);
        stdout::check(write!(output, "\n{}\n{bar}", map.context))?;
        stdout::check(table(&mut output, map, &palette))?;
    }
    stdout::check(output.flush())
}

/// A JSON array of extents, written a part at a time.
struct Array<'c> {
    context: &'c Name,
    /// Not to join adjacent extents of one type.
    raw: bool,
    /// What the lines begin with.
    indent: &'static str,
    /// The last extent, which the next one may extend.
    last: Option<Placed>,
    /// How many extents were written.
    written: u64,
}

impl<'c> Array<'c> {
    fn new(context: &'c Name, raw: bool, indent: &'static str) -> Self {
        Self {
            context,
            raw,
            indent,
            last: None,
            written: 0,
        }
    }

    fn write(&mut self, output: &mut impl Write, extents: &[Placed]) -> Result<()> {
        for extent in extents {
            match &mut self.last {
                Some(last) if !self.raw && last.flags == extent.flags => {
                    last.length = last.length.saturating_add(extent.length);
                }
                last => {
                    if let Some(whole) = last.replace(*extent) {
                        self.write_one(output, whole)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_one(&mut self, output: &mut impl Write, extent: Placed) -> Result<()> {
        let Placed {
            offset,
            length,
            flags,
        } = extent;
        let indent = self.indent;
        let before = if self.written == 0 { "[" } else { "," };
        self.written = self.written.saturating_add(1);
        let description = describe(self.context, flags).map_or(String::new(), |text| {
            format!(",\n{indent}    \"description\": {}", Value::from(text))
        });
        stdout::check(write!(
            output,
            "{before}\n{indent}  {{\n{indent}    \"offset\": {offset},\n{indent}    \"length\": {length},\n{indent}    \"type\": {flags}{description}\n{indent}  }}"
        ))
    }

    fn finish(mut self, output: &mut impl Write) -> Result<()> {
        if let Some(last) = self.last.take() {
            self.write_one(output, last)?;
        }
        let indent = self.indent;
        stdout::check(match self.written {
            0 => write!(output, "[]"),
            _ => write!(output, "\n{indent}]"),
        })
    }
}

/// What the names of QEMU's dirty bitmaps begin with.
pub const DIRTY_BITMAP: &[u8] = b"qemu:dirty-bitmap:";

/// The meaning of a type in a known context.
pub fn describe(context: &Name, flags: u64) -> Option<String> {
    const HOLE: u64 = AllocationFlags::HOLE.0 as u64;
    const ZERO: u64 = AllocationFlags::ZERO.0 as u64;
    const BOTH: u64 = HOLE | ZERO;
    let text = match (context.as_bytes(), flags) {
        (b"base:allocation", 0) => "data",
        (b"base:allocation", HOLE) => "hole",
        (b"base:allocation", ZERO) => "zero",
        (b"base:allocation", BOTH) => "hole,zero",
        (b"qemu:allocation-depth", 0) => "absent",
        (b"qemu:allocation-depth", 1) => "local",
        (b"qemu:allocation-depth", depth) => return Some(format!("backing depth {depth}")),
        (bitmap, 0) if bitmap.starts_with(DIRTY_BITMAP) => "clean",
        (bitmap, 1) if bitmap.starts_with(DIRTY_BITMAP) => "dirty",
        _ => return None,
    };
    Some(text.into())
}

/// A table with a line for each extent.
fn table(output: &mut impl Write, map: &Mapped, palette: &Palette) -> io::Result<()> {
    let width = |header: &str, numbers: &dyn Fn(&Placed) -> u64| {
        let longest = map.extents.iter().map(numbers).max().unwrap_or(0);
        longest.to_string().len().max(header.len())
    };
    let offset = width("offset", &|extent| extent.offset);
    let length = width("length", &|extent| extent.length);
    let header = format!(
        "  {:>offset$}  {:>length$}  {:>10}  type",
        "offset", "length", ""
    );
    writeln!(output, "{}", palette.dim(&header))?;
    for extent in &map.extents {
        let kind = match describe(&map.context, extent.flags) {
            Some(description) => format!("{}  {description}", extent.flags),
            None => format!("{:#x}", extent.flags),
        };
        writeln!(
            output,
            "  {:>offset$}  {:>length$}  {:>10}  {kind}",
            extent.offset,
            extent.length,
            size::rounded(extent.length)
        )?;
    }
    Ok(())
}
