//! `nbd read` and `nbd write`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::align::{round_down, to_usize};
use crate::output::{Output, STDIO};
use crate::progress::Progress;
use crate::reader::Part;
use crate::session::{check_last_block, whole_blocks};
use crate::writer::Writer;
use crate::{address, args, connection, reader};

pub fn read(args: &args::Read, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let place = || uri.to_string();
    let contexts = [connection::ALLOCATION];
    let connection = connection::open(&uri, common.framing(), &contexts, &common.settings());
    let connection = connection.with_context(place)?;
    let allocation = connection.allocation();
    let mut session = connection.session;
    let size = session.negotiated().size;
    let left = size.checked_sub(args.offset);
    let length = args.length.or(left).unwrap_or_default();
    if left.is_none_or(|left| length > left) {
        bail!(
            "{uri}: {length} bytes at offset {} exceed the export, which has {size} bytes",
            args.offset
        );
    }
    let mut end = args.offset.saturating_add(length);
    if args.length.is_none() {
        end = end.min(whole_blocks(session.negotiated()));
    }
    let path = args.output.as_deref().unwrap_or(Path::new(STDIO));
    let mut output = Output::create(path)?;
    let shown = !matches!(output, Output::Stdout);
    let progress = Progress::new("read", length, shown);
    let range = args.offset..end;
    reader::read(&mut session, allocation, range, &mut |part| match part {
        Part::Data(piece) => {
            output.data(&piece.data)?;
            progress.add(piece.data.len() as u64);
            Ok(piece.data)
        }
        Part::Zeroes(length) => {
            output.zeroes(length)?;
            progress.add(length);
            Ok(Vec::new())
        }
    })
    .with_context(place)?;
    output.finish()?;
    if end < args.offset.saturating_add(length) {
        check_last_block(session.negotiated()).with_context(place)?;
    }
    session.close().with_context(place)
}

pub fn write(args: &args::Write, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let place = || uri.to_string();
    let path = args.input.as_ref().filter(|path| path.as_os_str() != STDIO);
    let (mut input, length): (Box<dyn Read>, Option<u64>) = match path {
        None => (Box::new(io::stdin()), None),
        Some(path) => {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            let metadata = file.metadata()?;
            let length = metadata.is_file().then_some(metadata.len());
            (Box::new(file), length)
        }
    };
    let settings = common.settings();
    let connection =
        connection::open(&uri, common.framing(), &[], &settings).with_context(place)?;
    let writer = Writer::new(connection.session).with_context(place)?;
    let space = writer.size().saturating_sub(args.offset);
    if length.is_some_and(|length| length > space) {
        bail!(
            "{uri}: the input has {} bytes, but the export has only {space} after offset {}",
            length.unwrap_or_default(),
            args.offset
        );
    }
    let block = writer.alignment();
    let whole = |bytes: u64| bytes.is_multiple_of(block);
    let aligned = whole(args.offset) && length.is_none_or(whole);
    if !aligned && !args.pad {
        let length = length.map_or("the input".into(), |length| format!("{length} bytes"));
        bail!(
            "{uri}: {length} at offset {}, but the export accepts only multiples of {block}; --pad completes the first and the last block",
            args.offset
        );
    }
    let progress = Progress::new("write", length.unwrap_or(space), path.is_some());
    let add = |bytes| progress.add(bytes);
    pour(&mut input, writer, args.offset, args.pad, &add).with_context(place)
}

/// Writes everything that `input` has, from `offset` on. With `pad`, the first and
/// the last block may be parts of a block: the export has the remainder.
pub fn pour(
    input: &mut dyn Read,
    mut writer: Writer,
    offset: u64,
    pad: bool,
    progress: &dyn Fn(u64),
) -> Result<()> {
    let block = writer.alignment();
    let mut at = round_down(offset, block);
    let within = offset.saturating_sub(at);
    let mut before = match within {
        0 => Vec::new(),
        _ => writer.read(at, block)?,
    };
    before.truncate(to_usize(within));
    let mut input = before.as_slice().chain(input);
    loop {
        let mut data = writer.spare();
        data.clear();
        // A multiple of the block: only the end of the input can be within one.
        let chunk = writer.chunk() as u64;
        let read = input.by_ref().take(chunk).read_to_end(&mut data);
        read.context("cannot read the input")?;
        if data.is_empty() {
            return writer.finish();
        }
        let end = at.saturating_add(data.len() as u64);
        let last = round_down(end, block);
        let within = end.saturating_sub(last);
        if within > 0 {
            if !pad {
                bail!(
                    "the input ends within a block, {within} bytes after offset {last}, but the export accepts only multiples of {block}; `nbd write --pad` completes the block"
                );
            }
            let last = writer.read(last, block)?;
            data.extend(last.iter().skip(to_usize(within)));
        }
        let length = data.len() as u64;
        writer.data(at, data)?;
        at = at.saturating_add(length);
        progress(length);
    }
}
