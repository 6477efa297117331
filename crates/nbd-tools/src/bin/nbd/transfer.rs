//! `nbd read` and `nbd write`.

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
use crate::session::{check_last_block, whole_blocks};
use crate::writer::Writer;
use crate::{address, args, connection, reader, stdout};

pub fn read(args: &args::Read, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let place = || uri.to_string();
    let connection = connection::open(&uri, common.framing(), &[], &common.settings());
    let mut session = connection.with_context(place)?.session;
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
    let mut file = match &args.output {
        None => None,
        Some(path) => Some((
            path,
            File::create(path).with_context(|| path.display().to_string())?,
        )),
    };
    let progress = Progress::new("read", length, args.output.is_some());
    reader::read(&mut session, args.offset..end, &mut |piece| {
        match &mut file {
            None => stdout::write(&piece.data)?,
            Some((path, file)) => file
                .write_all(&piece.data)
                .with_context(|| path.display().to_string())?,
        }
        progress.add(piece.data.len() as u64);
        Ok(piece.data)
    })
    .with_context(place)?;
    if end < args.offset.saturating_add(length) {
        check_last_block(session.negotiated()).with_context(place)?;
    }
    session.close().with_context(place)
}

pub fn write(args: &args::Write, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let place = || uri.to_string();
    let (mut input, length): (Box<dyn Read>, Option<u64>) = match &args.input {
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
    let mut writer = Writer::new(connection.session).with_context(place)?;
    let space = writer.size().saturating_sub(args.offset);
    if length.is_some_and(|length| length > space) {
        bail!(
            "{uri}: the input has {} bytes, but the export has only {space} after offset {}",
            length.unwrap_or_default(),
            args.offset
        );
    }
    let progress = Progress::new("write", length.unwrap_or(space), args.input.is_some());
    let mut at = args.offset;
    loop {
        let mut data = writer.spare();
        data.clear();
        let chunk = writer.chunk() as u64;
        input
            .by_ref()
            .take(chunk)
            .read_to_end(&mut data)
            .context("cannot read the input")?;
        if data.is_empty() {
            break;
        }
        let length = data.len() as u64;
        writer.data(at, data).with_context(place)?;
        at += length;
        progress.add(length);
    }
    writer.finish().with_context(place)
}
