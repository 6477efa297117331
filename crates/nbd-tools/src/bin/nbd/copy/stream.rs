//! Copies from and to standard input and output, pipes and character devices: in
//! order, with one connection.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::side::Side;
use crate::output::Output;
use crate::reader::{self, Part};
use crate::session::check_last_block;
use crate::transfer;
use crate::writer::Writer;
use crate::{args, connection};

/// How much is read of a file at a time, in bytes.
const BUFFER: usize = 1 << 16;

pub fn run(from: &Side, to: &Side, common: &args::Common) -> Result<()> {
    match from {
        Side::Export(uri) => {
            let place = || from.to_string();
            let contexts = [connection::ALLOCATION];
            let settings = common.settings();
            let connection = connection::open(uri, common.framing(), &contexts, &settings);
            let connection = connection.with_context(place)?;
            let allocation = connection.allocation();
            let mut session = connection.session;
            check_last_block(session.negotiated()).with_context(place)?;
            let size = session.negotiated().size;
            let mut output = output(to)?;
            reader::read(&mut session, allocation, 0..size, &mut |part| match part {
                Part::Data(piece) => output.data(&piece.data).map(|()| piece.data),
                Part::Zeroes(length) => output.zeroes(length).map(|()| Vec::new()),
            })
            .with_context(place)?;
            output.finish()?;
            session.close().with_context(place)
        }
        Side::Stdio => upload(&mut io::stdin().lock(), from, to, common),
        Side::File(path) => {
            let file = File::open(path);
            let mut file = file.with_context(|| from.to_string())?;
            upload(&mut file, from, to, common)
        }
        Side::Null => bail!("{from}: it cannot be read"),
    }
}

fn output(to: &Side) -> Result<Output> {
    match to {
        Side::Stdio => Ok(Output::Stdout),
        Side::File(path) => Output::create(path),
        Side::Null => Output::create(Path::new("/dev/null")),
        Side::Export(_) => bail!("{to} is an export"),
    }
}

fn upload(input: &mut dyn Read, from: &Side, to: &Side, common: &args::Common) -> Result<()> {
    if let Side::Export(uri) = to {
        let place = || to.to_string();
        let connection = connection::open(uri, common.framing(), &[], &common.settings());
        let writer = Writer::new(connection.with_context(place)?.session);
        let writer = writer.with_context(place)?;
        return transfer::pour(input, writer, 0, false, &|_| {}).with_context(place);
    }
    let mut output = output(to)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => return output.finish(),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| from.to_string()),
        };
        output.data(&buffer[..n])?;
    }
}
