//! A second opinion: what a client must make of the bytes of a server.
//!
//! Written from the text of the specification and from nothing else; it shares
//! no code and no idea with the crate. It sees the whole stream, reads it from
//! front to back, copies what it likes, and is meant to be compared with the
//! text by eye. What the text leaves to a client, and the crate has decided,
//! is marked "policy".
//!
//! Commands and options stand at places in the stream: one that was sent when
//! the server had said `at` bytes is known to what lies behind them.

pub mod data;
pub mod handshake;
pub mod options;
pub mod requests;
pub mod transmission;

/// What is to be said about a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong, and nothing is missing.
    Good,
    /// Nothing is wrong so far; it ends within a message.
    Torn,
    /// The client must, or may, hang up.
    Bad(&'static str),
}

type Read<T> = Result<T, Verdict>;

/// Reads a stream from its front.
struct Stream<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Stream<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn bytes(&mut self, n: u64) -> Read<&'a [u8]> {
        if n > self.left() {
            return Err(Verdict::Torn);
        }
        let taken = &self.bytes[self.at..][..n as usize];
        self.at += taken.len();
        Ok(taken)
    }

    /// A number of so many bytes, the first one the most significant.
    fn number(&mut self, n: u64) -> Read<u64> {
        let bytes = self.bytes(n)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The fields of a header are judged when all of them are there.
    fn expect(&self, n: u64) -> Read<()> {
        match n > self.left() {
            true => Err(Verdict::Torn),
            false => Ok(()),
        }
    }
}

fn bad<T>(why: &'static str) -> Read<T> {
    Err(Verdict::Bad(why))
}

fn must(holds: bool, why: &'static str) -> Read<()> {
    match holds {
        true => Ok(()),
        false => bad(why),
    }
}
