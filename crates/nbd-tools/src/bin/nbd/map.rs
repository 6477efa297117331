//! `nbd map`.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use nbd_codec::uri::Uri;
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::text::Text;
use nbd_codec::{Framing, Negotiated};
use nbd_tools::size;
use serde_json::{Map, Value, json};

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
    if common.framing() == Framing::Simple {
        bail!("simple framing has no block status; use --framing structured or extended");
    }
    let names: Vec<&str> = args.contexts.iter().map(String::as_str).collect();
    let (maps, negotiated) = map(&uri, &names, common).with_context(|| uri.to_string())?;
    if args.json {
        print_json(&maps, args.raw)?;
        return check_last_block(&negotiated).with_context(|| uri.to_string());
    }
    let mut text = format!(
        "{uri}: {} ({} bytes), {} framing\n",
        size::rounded(negotiated.size),
        negotiated.size,
        negotiated.framing
    );
    let palette = Palette::of_stdout();
    for map in &maps {
        writeln!(text, "\n{}", map.context)?;
        text += &draw::bar(&map.context, &map.extents, negotiated.size, &palette);
        text += &table(map, &palette);
    }
    stdout::write(text.as_bytes())?;
    check_last_block(&negotiated).with_context(|| uri.to_string())
}

fn map(uri: &Uri, names: &[&str], common: &args::Common) -> Result<(Vec<Mapped>, Negotiated)> {
    let Connection {
        mut session,
        contexts,
    } = connection::open(uri, common.framing(), names, &common.settings())?;
    let negotiated = *session.negotiated();
    if negotiated.framing == Framing::Simple {
        bail!("the server has only simple framing, without block status");
    }
    for name in names {
        if !contexts
            .iter()
            .any(|(_, granted)| granted.as_bytes() == name.as_bytes())
        {
            bail!(
                "the export has no metadata context {:?}; `nbd info` shows its contexts",
                Text::from(*name)
            );
        }
    }
    let ids: Vec<_> = contexts
        .iter()
        .map(|(id, name)| extents::Context {
            id: *id,
            allocation: name.as_bytes() == connection::ALLOCATION.as_bytes(),
        })
        .collect();
    let range = 0..whole_blocks(&negotiated);
    let extents = extents::walk(&mut session, &ids, range)?;
    session.close()?;
    let named = contexts.into_iter().map(|(_, name)| name).zip(extents);
    let maps = named.map(|(context, extents)| Mapped { context, extents });
    Ok((maps.collect(), negotiated))
}

fn print_json(maps: &[Mapped], raw: bool) -> Result<()> {
    let array = |map: &Mapped| {
        let extents = if raw {
            map.extents.clone()
        } else {
            extents::joined(&map.extents)
        };
        extents
            .iter()
            .map(|extent| {
                let mut object = json!({
                    "offset": extent.offset,
                    "length": extent.length,
                    "type": extent.flags,
                });
                if let Some(description) = describe(&map.context, extent.flags) {
                    object["description"] = description.into();
                }
                object
            })
            .collect::<Value>()
    };
    let value = match maps {
        [map] => array(map),
        maps => maps
            .iter()
            .map(|map| (map.context.for_json().into_owned(), array(map)))
            .collect::<Map<_, _>>()
            .into(),
    };
    stdout::write(format!("{value:#}\n").as_bytes())
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
fn table(map: &Mapped, palette: &Palette) -> String {
    let width = |header: &str, numbers: &dyn Fn(&Placed) -> u64| {
        let longest = map.extents.iter().map(numbers).max().unwrap_or(0);
        longest.to_string().len().max(header.len())
    };
    let offset = width("offset", &|extent| extent.offset);
    let length = width("length", &|extent| extent.length);
    let mut text = palette.dim(&format!(
        "  {:>offset$}  {:>length$}  {:>10}  type",
        "offset", "length", ""
    )) + "\n";
    for extent in &map.extents {
        let kind = match describe(&map.context, extent.flags) {
            Some(description) => format!("{}  {description}", extent.flags),
            None => format!("{:#x}", extent.flags),
        };
        text += &format!(
            "  {:>offset$}  {:>length$}  {:>10}  {kind}\n",
            extent.offset,
            extent.length,
            size::rounded(extent.length)
        );
    }
    text
}
