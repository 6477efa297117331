//! `nbd decode`: the transcript of a recorded session, or of the NBD connections in a
//! capture of packets.

mod capture;
mod fields;
mod stream;
pub mod transcript;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use nbd_codec::monitor::Side;

use self::transcript::{Transcript, colours, outcome};
use crate::args::Decode;
use crate::socket::CONNECTION;
use crate::stdout;

pub fn run(args: &Decode) -> Result<()> {
    let name = args.file.display();
    let file = File::open(&args.file).with_context(|| name.to_string())?;
    let mut file = BufReader::new(file);
    let begin = file.fill_buf().with_context(|| name.to_string())?;
    let broken = if capture::is_capture(begin) {
        capture::decode(file, args.style)
    } else {
        recorded(file, args)
    };
    outcome(broken.with_context(|| name.to_string())?)
}

/// Sessions that `--record` wrote: `C: 0102..` and `S: 0304..`, with a line before each
/// connection.
fn recorded(mut file: impl Read, args: &Decode) -> Result<u64> {
    let mut text = String::new();
    file.read_to_string(&mut text)
        .context("not a recorded session, and not a capture (pcap, pcapng)")?;
    let session = |number| Transcript::new(number, args.style, colours());
    let (mut transcript, mut sessions, mut broken) = (session(1), 1_u64, 0_u64);
    let mut any = false;
    for (number, line) in text.lines().enumerate() {
        let side = match line.get(..2) {
            _ if line == CONNECTION && any => {
                broken = broken.saturating_add(transcript.broken());
                sessions = sessions.saturating_add(1);
                transcript = session(sessions);
                continue;
            }
            Some("C:") => Side::Client,
            Some("S:") => Side::Server,
            _ => continue,
        };
        let digits = line.get(2..).unwrap_or_default().trim();
        let Some(bytes) = bytes(digits) else {
            bail!("line {}: not hexadecimal", number.saturating_add(1));
        };
        any = true;
        transcript.offer(side, &bytes);
        stdout::write(transcript.take().as_bytes())?;
    }
    if !any {
        bail!("no lines of a recorded session, C: or S:");
    }
    Ok(broken.saturating_add(transcript.broken()))
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(byte).collect()
}
