//! `nbd copy`: one thread reads the source, the other writes the destination,
//! each with several requests in flight.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::uri::Uri;

use crate::args;
use crate::connection;
use crate::progress::Progress;
use crate::source::{Part, Source};
use crate::target::Target;
use crate::writer::Writer;

/// How many parts the source may be ahead of the destination.
const AHEAD: usize = 16;

/// One side of a copy.
enum Side {
    Export(Box<Uri>),
    File(PathBuf),
    /// Nowhere, to see how fast the other side is.
    Null,
}

impl Side {
    /// What looks like a URI is one.
    fn parse(text: &str) -> Result<Self> {
        if text == "null:" {
            return Ok(Self::Null);
        }
        match text.contains("://") {
            true => Ok(Self::Export(Box::new(connection::parse_uri(text)?))),
            false => Ok(Self::File(text.into())),
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Export(uri) => uri.fmt(f),
            Self::File(path) => path.display().fmt(f),
            Self::Null => f.write_str("null:"),
        }
    }
}

pub fn run(args: &args::Copy, common: &args::Common) -> Result<()> {
    let from = Side::parse(&args.source)?;
    let to = Side::parse(&args.destination)?;
    if let (Side::Export(_), Side::Export(_), Some(_)) = (&from, &to, common.settings().record) {
        bail!("--record writes down one session, and this copy has two");
    }
    let source = open_source(&from, common).with_context(|| from.to_string())?;
    let size = source.size().with_context(|| from.to_string())?;
    let target = open_target(&to, &source, size, common).with_context(|| to.to_string())?;
    copy(source, target, size, &from, &to)
}

fn open_source(side: &Side, common: &args::Common) -> Result<Source> {
    match side {
        Side::Export(uri) => {
            let contexts = ["base:allocation"];
            connection::open(uri, common.framing(), &contexts, &common.settings())
                .map(Source::export)
        }
        Side::File(path) => Ok(Source::File(File::open(path)?)),
        Side::Null => bail!("nothing can be read from it"),
    }
}

fn open_target(side: &Side, source: &Source, size: u64, common: &args::Common) -> Result<Target> {
    match side {
        Side::Export(uri) => {
            let connection = connection::open(uri, common.framing(), &[], &common.settings())?;
            Target::export(Writer::new(connection.session)?, size)
        }
        Side::Null => Ok(Target::Null),
        Side::File(path) => Target::file(Path::new(path), source, size),
    }
}

fn copy(source: Source, mut target: Target, size: u64, from: &Side, to: &Side) -> Result<()> {
    let progress = Progress::new("copy", size, true);
    let alignment = source.alignment().max(target.alignment());
    let (sender, receiver) = sync_channel(AHEAD);
    // Memory goes back to the source: fresh memory costs more than what is
    // read into it.
    let (give_back, free) = channel();
    // Not joined where the destination fails: the source may be waiting for a
    // server that says nothing, and the program ends anyway.
    let reading = thread::spawn(move || {
        source.run(alignment, &mut |part| {
            sender
                .send(part)
                .map_err(|_| anyhow!("the destination failed"))?;
            Ok(free.try_recv().unwrap_or_default())
        })
    });
    let mut copied = 0;
    for part in receiver {
        let length = match &part {
            Part::Data { data, .. } => data.len() as u64,
            Part::Zeroes { length, .. } => *length,
        };
        let memory = write(&mut target, part).with_context(|| to.to_string())?;
        if memory.capacity() > 0 {
            // The source may have ended.
            let _ = give_back.send(memory);
        }
        copied += length;
        progress.add(length);
    }
    // The parts have ended: because there are no more, or because the source
    // failed.
    match reading.join() {
        Ok(result) => result.with_context(|| from.to_string())?,
        Err(_) => bail!("{from}: reading ended unexpectedly"),
    }
    if copied != size {
        bail!("{from}: only {copied} of {size} bytes were read");
    }
    target.finish().with_context(|| to.to_string())
}

/// Writes a part in as many pieces as the destination needs.
fn write(target: &mut Target, part: Part) -> Result<Vec<u8>> {
    let chunk = target.chunk();
    match part {
        Part::Data { offset, data } if data.len() > chunk => {
            for (index, piece) in data.chunks(chunk).enumerate() {
                target.write(Part::Data {
                    offset: offset + (index * chunk) as u64,
                    data: piece.to_vec(),
                })?;
            }
            Ok(data)
        }
        part => target.write(part),
    }
}
