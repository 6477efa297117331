//! The checks that every vector passes.

use std::fmt::Debug;

use nbd_codec::wire::{DecodeError, EncodeError, Sink};

/// Reads a transcript.
///
/// Words are hexadecimal bytes (`0000_0001`), text (`"NBDMAGIC"`, without
/// spaces), or a repeated byte (`00*124`). `C:` and `S:` name the sender, and
/// `#` begins a comment.
pub(crate) fn bytes(transcript: &str) -> Vec<u8> {
    transcript.lines().flat_map(line).collect()
}

fn line(line: &str) -> Vec<u8> {
    let bytes = line.split('#').next().unwrap();
    let words = bytes.split_whitespace();
    words
        .filter(|w| !["C:", "S:"].contains(w))
        .flat_map(word)
        .collect()
}

fn word(word: &str) -> Vec<u8> {
    if let Some(text) = word.strip_prefix('"') {
        return text.strip_suffix('"').expect(word).into();
    }
    if let Some((byte, times)) = word.split_once('*') {
        return hex(byte).repeat(times.parse().expect(word));
    }
    hex(word)
}

fn hex(word: &str) -> Vec<u8> {
    let digits: Vec<u32> = word
        .chars()
        .filter(|c| *c != '_')
        .map(|c| {
            c.to_digit(16)
                .unwrap_or_else(|| panic!("{c:?} in {word:?}"))
        })
        .collect();
    assert_eq!(digits.len() % 2, 0, "half a byte in {word:?}");
    digits
        .chunks(2)
        .map(|d| u8::try_from(d[0] << 4 | d[1]).unwrap())
        .collect()
}

#[test]
fn transcripts_are_read() {
    assert_eq!(
        bytes("C: 00_ff \"ab\"  7f*3 # 99\nS: 01"),
        b"\x00\xffab\x7f\x7f\x7f\x01"
    );
}

/// A kind of message that arrives from a stream.
pub(crate) struct Stream<T> {
    /// The decoder.
    pub(crate) decode: fn(&mut &[u8]) -> Result<Option<T>, DecodeError>,
    /// The encoder.
    pub(crate) encode: fn(&T) -> Vec<u8>,
    /// How many bytes at its beginning are magic numbers.
    pub(crate) magic: usize,
    /// The message that the error of a wrong magic number names.
    pub(crate) message: &'static str,
}

impl<T: PartialEq + Debug> Stream<T> {
    /// Runs every check over vectors of name, transcript and value.
    pub(crate) fn check(&self, vectors: &[(&str, &str, T)]) {
        assert!(!vectors.is_empty());
        for (name, transcript, value) in vectors {
            let bytes = bytes(transcript);
            assert!(self.all(&bytes).iter().eq([value]), "{name}: decode");
            assert_eq!((self.encode)(value), bytes, "{name}: encode");
            self.check_prefixes(name, &bytes);
            self.check_trailing(name, &bytes, value);
            self.check_magic(name, &bytes);
            self.check_splits(name, &bytes, value);
        }
    }

    /// Decodes once; also says what is left in the input.
    fn once<'a>(&self, bytes: &'a [u8]) -> (Result<Option<T>, DecodeError>, &'a [u8]) {
        let mut input = bytes;
        let result = (self.decode)(&mut input);
        (result, input)
    }

    /// Decodes until nothing is left.
    fn all(&self, mut input: &[u8]) -> Vec<T> {
        let mut all = Vec::new();
        while !input.is_empty() {
            all.push((self.decode)(&mut input).unwrap().expect("a whole message"));
        }
        all
    }

    fn check_prefixes(&self, name: &str, bytes: &[u8]) {
        for n in 0..bytes.len() {
            let prefix = &bytes[..n];
            assert_eq!(self.once(prefix), (Ok(None), prefix), "{name}: {n} bytes");
        }
    }

    fn check_trailing(&self, name: &str, bytes: &[u8], value: &T) {
        for trailing in [&[0][..], &[0xff; 3], bytes] {
            let stream = [bytes, trailing].concat();
            let (result, rest) = self.once(&stream);
            assert_eq!(
                result.unwrap().as_ref(),
                Some(value),
                "{name}: bytes after it"
            );
            assert_eq!(rest, trailing, "{name}: bytes after it");
        }
    }

    /// A wrong byte is an error as soon as it arrives, and not before.
    fn check_magic(&self, name: &str, bytes: &[u8]) {
        let wrong = DecodeError::Magic {
            message: self.message,
        };
        for at in 0..self.magic {
            for bit in 0..8 {
                let mut bytes = bytes.to_vec();
                bytes[at] ^= 1 << bit;
                for n in 0..=bytes.len() {
                    let expected = if n > at { Err(wrong) } else { Ok(None) };
                    let prefix = &bytes[..n];
                    let what = format!("{name}: byte {at} wrong, {n} bytes");
                    assert_eq!(self.once(prefix), (expected, prefix), "{what}");
                }
            }
        }
    }

    /// Two messages that arrive in two pieces, cut anywhere.
    fn check_splits(&self, name: &str, bytes: &[u8], value: &T) {
        let stream = [bytes, bytes].concat();
        for split in 0..=stream.len() {
            let mut arrived = Vec::new();
            let mut messages = Vec::new();
            for piece in [&stream[..split], &stream[split..]] {
                arrived.extend_from_slice(piece);
                let mut input = &arrived[..];
                while let Some(message) = (self.decode)(&mut input).unwrap() {
                    messages.push(message);
                }
                arrived = input.to_vec();
            }
            assert!(
                messages.iter().eq([value, value]),
                "{name}: split at {split}"
            );
            assert!(arrived.is_empty(), "{name}: split at {split}");
        }
    }
}

/// The outcome of decoding a body that is cut short or has bytes after it.
#[derive(Debug)]
pub(crate) enum Cut {
    /// Another body, which encodes to its own bytes.
    Body,
    /// The same value: the bytes are ignored.
    Ignored,
    /// An error.
    Error(DecodeError),
}

/// A body whose length is in a header.
pub(crate) struct Body<'n> {
    name: &'n str,
    whole: Vec<u8>,
    longer: Vec<u8>,
    header: usize,
}

impl<'n> Body<'n> {
    /// Reads a transcript whose first `header` bytes are its header.
    pub(crate) fn new(name: &'n str, transcript: &str, header: usize) -> Self {
        let whole = bytes(transcript);
        let longer = [&whole[..], &[0xa5]].concat();
        Self {
            name,
            whole,
            longer,
            header,
        }
    }

    /// The header.
    pub(crate) fn header(&self) -> &[u8] {
        &self.whole[..self.header]
    }

    /// The bytes after the header.
    pub(crate) fn body(&self) -> &[u8] {
        &self.whole[self.header..]
    }

    /// Runs every check. `cut` is the expected outcome for a body of `n` bytes:
    /// the first `n` of this body, or all of them and one more.
    pub(crate) fn check<'a, T: PartialEq + Debug>(
        &'a self,
        value: &T,
        decode: impl Fn(&'a [u8]) -> Result<T, DecodeError>,
        encode: impl Fn(&T, &mut dyn Sink) -> Result<usize, EncodeError>,
        cut: impl Fn(usize) -> Cut,
    ) {
        let name = self.name;
        assert_eq!(decode(self.body()).as_ref(), Ok(value), "{name}: decode");
        assert_eq!(
            encoded(|sink| encode(value, sink)),
            self.whole,
            "{name}: encode"
        );
        let longer = &self.longer[self.header..];
        for n in (0..=longer.len()).filter(|n| *n != self.body().len()) {
            let bytes = &longer[..n];
            match (cut(n), decode(bytes)) {
                (Cut::Body, Ok(other)) => {
                    assert_ne!(other, *value, "{name}: {n} bytes");
                    let again = encoded(|sink| encode(&other, sink));
                    assert_eq!(&again[self.header..], bytes, "{name}: {n} bytes");
                }
                (Cut::Ignored, other) => {
                    assert_eq!(other.as_ref(), Ok(value), "{name}: {n} bytes");
                }
                (Cut::Error(error), other) => {
                    assert_eq!(other, Err(error), "{name}: {n} bytes");
                }
                (cut, other) => panic!("{name}: {n} bytes: {cut:?} expected, got {other:?}"),
            }
        }
    }
}

/// What an encoder writes, which is the same into every kind of sink.
pub(crate) fn encoded(encode: impl Fn(&mut dyn Sink) -> Result<usize, EncodeError>) -> Vec<u8> {
    const UNTOUCHED: u8 = 0xc3;

    let size = match encode(&mut &mut [][..]) {
        Ok(size) => size,
        Err(EncodeError::NoRoom { needed }) => needed,
        Err(error) => panic!("{error}"),
    };
    let mut exact = vec![UNTOUCHED; size];
    let mut room = &mut exact[..];
    assert_eq!(encode(&mut room), Ok(size));
    assert!(room.is_empty(), "wrote fewer bytes than returned");

    let mut ample = vec![UNTOUCHED; size + 2];
    let mut room = &mut ample[..];
    assert_eq!(encode(&mut room), Ok(size));
    assert_eq!(room, [UNTOUCHED; 2], "wrote more bytes than returned");
    assert_eq!(ample[..size], exact);

    if let Some(less) = size.checked_sub(1) {
        let mut short = vec![UNTOUCHED; less];
        let mut room = &mut short[..];
        assert_eq!(encode(&mut room), Err(EncodeError::NoRoom { needed: size }));
        assert_eq!(room.len(), less, "a failed encoder used room");
        assert_eq!(short, vec![UNTOUCHED; less], "a failed encoder wrote bytes");
    }

    #[cfg(feature = "alloc")]
    {
        let appended = [&[UNTOUCHED], &exact[..]].concat();
        let mut vec = vec![UNTOUCHED];
        assert_eq!(encode(&mut vec), Ok(size));
        assert_eq!(vec, appended);
        let mut buffer = ::bytes::BytesMut::from(&[UNTOUCHED][..]);
        assert_eq!(encode(&mut buffer), Ok(size));
        assert_eq!(buffer[..], appended[..]);
    }
    exact
}

/// The body ends before its fields.
pub(crate) fn overrun(message: &'static str) -> Cut {
    Cut::Error(DecodeError::Overrun { message })
}

/// The body is longer than its fields.
pub(crate) fn trailing(message: &'static str) -> Cut {
    Cut::Error(DecodeError::Trailing { message })
}

/// A body of `length` bytes has an invalid length.
pub(crate) fn length(message: &'static str, length: usize) -> Cut {
    let length = length.try_into().unwrap();
    Cut::Error(DecodeError::Length { message, length })
}
