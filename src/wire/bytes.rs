//! Taking big-endian fields off the front of a slice, without a panic branch.

use nom::IResult;

use super::DecodeError;

/// Takes `N` bytes off the front, or nothing.
#[inline]
pub(crate) fn take<'i, const N: usize>(input: &mut &'i [u8]) -> Option<&'i [u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(head)
}

/// Takes `n` bytes off the front, or nothing.
#[inline]
pub(crate) fn take_slice<'i>(input: &mut &'i [u8], n: usize) -> Option<&'i [u8]> {
    let (head, rest) = input.split_at_checked(n)?;
    *input = rest;
    Some(head)
}

/// Takes a header of `N` bytes off the front, if all of it is there and
/// `parse` knows it.
#[inline]
pub(crate) fn front<const N: usize, T>(
    input: &mut &[u8],
    parse: impl FnOnce(&[u8; N]) -> Option<T>,
) -> Option<T> {
    let (bytes, rest) = input.split_first_chunk()?;
    let header = parse(bytes)?;
    *input = rest;
    Some(header)
}

/// What a header that is not there is, by its magic number: still to come, or
/// another message. Judged as soon as the first byte is there.
#[cold]
pub(crate) fn judge_magic(
    input: &[u8],
    magic: u32,
    message: &'static str,
) -> Result<(), DecodeError> {
    match starts_like(input, &magic.to_be_bytes()) {
        true => Ok(()),
        false => Err(DecodeError::Magic { message }),
    }
}

// Parsers for nom to combine. Its own index the slice, which leaves a panic
// branch in images that are built for size.

fn field<const N: usize>(mut input: &[u8]) -> IResult<&[u8], &[u8; N], ()> {
    match take(&mut input) {
        Some(bytes) => Ok((input, bytes)),
        None => Err(nom::Err::Error(())),
    }
}

pub(crate) fn be_u16(input: &[u8]) -> IResult<&[u8], u16, ()> {
    field(input).map(|(rest, bytes)| (rest, u16::from_be_bytes(*bytes)))
}

pub(crate) fn be_u32(input: &[u8]) -> IResult<&[u8], u32, ()> {
    field(input).map(|(rest, bytes)| (rest, u32::from_be_bytes(*bytes)))
}

pub(crate) fn be_u64(input: &[u8]) -> IResult<&[u8], u64, ()> {
    field(input).map(|(rest, bytes)| (rest, u64::from_be_bytes(*bytes)))
}

/// `n` bytes.
pub(crate) fn bytes<'i>(n: u32) -> impl FnMut(&'i [u8]) -> IResult<&'i [u8], &'i [u8], ()> {
    move |mut input| match take_slice(&mut input, clip(n.into())) {
        Some(bytes) => Ok((input, bytes)),
        None => Err(nom::Err::Error(())),
    }
}

/// All that is left.
pub(crate) fn rest(input: &[u8]) -> IResult<&[u8], &[u8], ()> {
    Ok((&[], input))
}

/// Whether the front of `input` is, as far as it goes, the front of `magic`.
#[inline]
pub(crate) fn starts_like(input: &[u8], magic: &[u8]) -> bool {
    input.iter().zip(magic).all(|(a, b)| a == b)
}

/// Splits an array of known size into fields of known sizes.
///
/// The sizes are checked by the compiler only through use: the fields are read
/// in order from a slice that is long enough by construction, so a missing
/// field reads as zero instead of carrying a panic branch into every image.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> [u8; N] {
        match take::<N>(&mut self.0) {
            Some(bytes) => *bytes,
            None => [0; N],
        }
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }
}

/// Writes fields one behind the other into an array of known size.
pub(crate) struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; N],
            at: 0,
        }
    }

    #[inline]
    pub(crate) fn put<const M: usize>(mut self, field: [u8; M]) -> Self {
        if let Some(room) = self
            .bytes
            .get_mut(self.at..)
            .and_then(|rest| rest.first_chunk_mut::<M>())
        {
            *room = field;
            self.at = self.at.saturating_add(M);
        }
        self
    }

    #[inline]
    pub(crate) fn u16(self, value: u16) -> Self {
        self.put(value.to_be_bytes())
    }

    #[inline]
    pub(crate) fn u32(self, value: u32) -> Self {
        self.put(value.to_be_bytes())
    }

    #[inline]
    pub(crate) fn u64(self, value: u64) -> Self {
        self.put(value.to_be_bytes())
    }

    #[inline]
    pub(crate) fn done(self) -> [u8; N] {
        self.bytes
    }
}

/// A length in memory as a length on the wire: `usize` is never wider than 64
/// bits on any target of Rust.
#[inline]
pub(crate) fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A length on the wire as a length in memory, cut to what this machine can
/// address; only for "how much of it is here" questions.
#[inline]
pub(crate) fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
