//! A reference parser for each direction and phase, written from the text of
//! the specification only. It shares no code with the crate, has the is_complete
//! stream, and copies freely; it is meant to be compared with the text. Where
//! the text leaves a choice, the crate's choice is marked "policy".

pub mod option_data;
pub mod option_replies;
pub mod options;
pub mod replies;
pub mod requests;

/// The validity of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// All messages are valid and complete.
    Valid,
    /// All messages are valid, and the last one is incomplete.
    Incomplete,
    /// The receiver must, or may, disconnect.
    Invalid(&'static str),
}

type Parse<T> = Result<T, Validity>;

/// A stream that is parsed from the front.
struct Stream<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Stream<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn bytes(&mut self, n: u64) -> Parse<&'a [u8]> {
        if n > self.left() {
            return Err(Validity::Incomplete);
        }
        let taken = &self.bytes[self.at..][..n as usize];
        self.at += taken.len();
        Ok(taken)
    }

    /// A big-endian number of `n` bytes.
    fn number(&mut self, n: u64) -> Parse<u64> {
        let bytes = self.bytes(n)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Fields of a header are validated once the header is complete.
    fn require(&self, n: u64) -> Parse<()> {
        if n > self.left() {
            Err(Validity::Incomplete)
        } else {
            Ok(())
        }
    }
}

fn invalid<T>(why: &'static str) -> Parse<T> {
    Err(Validity::Invalid(why))
}

fn ensure(holds: bool, why: &'static str) -> Parse<()> {
    if holds { Ok(()) } else { invalid(why) }
}
