//! Reading and writing big-endian fields, without a panic branch.

use nom::IResult;

use super::DecodeError;

/// Takes the first `N` bytes from `input`, or nothing if it is shorter.
#[inline]
pub(crate) fn take<'i, const N: usize>(input: &mut &'i [u8]) -> Option<&'i [u8; N]> {
    let (bytes, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(bytes)
}

/// Takes the first `n` bytes from `input`, or nothing if it is shorter.
#[inline]
pub(crate) fn take_slice<'i>(input: &mut &'i [u8], n: usize) -> Option<&'i [u8]> {
    let (bytes, rest) = input.split_at_checked(n)?;
    *input = rest;
    Some(bytes)
}

/// Takes as much as `input` holds, at most `most` bytes.
#[inline]
pub(crate) fn take_up_to<'i>(input: &mut &'i [u8], most: u64) -> &'i [u8] {
    let n = clip(most).min(input.len());
    take_slice(input, n).unwrap_or_default()
}

/// Takes a header of `N` bytes from `input`. Takes nothing if `input` is
/// shorter, or if `parse` rejects the magic number.
#[inline]
pub(crate) fn take_header<const N: usize, T>(
    input: &mut &[u8],
    parse: impl FnOnce(&[u8; N]) -> Option<T>,
) -> Option<T> {
    let (bytes, rest) = input.split_first_chunk()?;
    let header = parse(bytes)?;
    *input = rest;
    Some(header)
}

/// Decodes a header of `N` bytes that begins with `magic`; `Ok(None)` if
/// `input` ends before the header does.
///
/// # Errors
///
/// [`DecodeError::Magic`] at the first wrong byte.
#[inline]
pub(crate) fn decode_header<const N: usize, T>(
    input: &mut &[u8],
    parse: impl FnOnce(&[u8; N]) -> Option<T>,
    magic: impl Magic,
    message: &'static str,
) -> Result<Option<T>, DecodeError> {
    match take_header(input, parse) {
        Some(header) => Ok(Some(header)),
        None => magic.check(input, message).map(|()| None),
    }
}

/// A magic number: 32 bits in requests and replies, 64 bits in the handshake.
pub(crate) trait Magic: Field {
    fn to_bytes(self) -> impl AsRef<[u8]>;

    /// [`find_magic`] with one candidate. A function without generics is
    /// compiled in this crate and never inlined into a fast path.
    fn check(self, input: &[u8], message: &'static str) -> Result<(), DecodeError>;
}

macro_rules! magic {
    ($($integer:ty)*) => {$(
        impl Magic for $integer {
            #[inline]
            fn to_bytes(self) -> impl AsRef<[u8]> {
                self.to_be_bytes()
            }

            #[cold]
            fn check(self, input: &[u8], message: &'static str) -> Result<(), DecodeError> {
                if agrees(input, &self.to_be_bytes()) {
                    Ok(())
                } else {
                    Err(DecodeError::Magic { message })
                }
            }
        }
    )*};
}

magic! { u32 u64 }

/// Which of the `candidates` is the magic number at the beginning of `input`.
/// `Ok(None)` if `input` ends before that is certain: more bytes can complete
/// one of them.
///
/// # Errors
///
/// [`DecodeError::Magic`] with `message` at the first byte that rules all of
/// them out.
#[cold]
pub(crate) fn find_magic<M: Magic>(
    input: &[u8],
    candidates: &[M],
    message: &'static str,
) -> Result<Option<M>, DecodeError> {
    let mut candidates = candidates.iter().copied();
    match candidates.find(|magic| agrees(input, magic.to_bytes().as_ref())) {
        Some(magic) if input.len() >= size_of::<M>() => Ok(Some(magic)),
        Some(_) => Ok(None),
        None => Err(DecodeError::Magic { message }),
    }
}

/// Whether one of the two begins with the other.
#[inline(never)]
fn agrees(input: &[u8], magic: &[u8]) -> bool {
    input.iter().zip(magic).all(|(a, b)| a == b)
}

// Parsers for nom to combine. The parsers that nom brings index the slice,
// which leaves a panic branch in images that are built for size.

/// A field: an integer, or a newtype of an integer.
pub(crate) fn field<F: Field>(mut input: &[u8]) -> IResult<&[u8], F, ()> {
    match take_slice(&mut input, size_of::<F>()) {
        Some(bytes) => Ok((input, Fields::new(bytes).get())),
        None => Err(nom::Err::Error(())),
    }
}

/// `n` bytes.
pub(crate) fn bytes<'i>(n: u32) -> impl FnMut(&'i [u8]) -> IResult<&'i [u8], &'i [u8], ()> {
    move |mut input| match take_slice(&mut input, clip(n.into())) {
        Some(bytes) => Ok((input, bytes)),
        None => Err(nom::Err::Error(())),
    }
}

/// All remaining bytes.
pub(crate) fn rest(input: &[u8]) -> IResult<&[u8], &[u8], ()> {
    Ok((&[], input))
}

/// Reads the fields of a message in order.
///
/// Callers check the size of the message first. A field past the end reads as
/// zero, which costs no panic branch.
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
    pub(crate) fn get<F: Field>(&mut self) -> F {
        F::get(self)
    }

    /// Takes the next field; whether it is `magic`.
    #[inline]
    pub(crate) fn next_is<F: Field + PartialEq>(&mut self, magic: F) -> bool {
        self.get::<F>() == magic
    }

    /// The bytes after the fields that were taken.
    #[inline]
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> u16 {
        self.get()
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> u32 {
        self.get()
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> u64 {
        self.get()
    }
}

/// A field of a message: an integer, or a newtype of an integer.
pub(crate) trait Field: Copy {
    /// Takes the next field.
    fn get(fields: &mut Fields<'_>) -> Self;

    /// Appends the field.
    fn put<const N: usize>(self, buffer: HeaderBuffer<N>) -> HeaderBuffer<N>;
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Field for $integer {
            #[inline]
            fn get(fields: &mut Fields<'_>) -> Self {
                Self::from_be_bytes(fields.array())
            }

            #[inline]
            fn put<const N: usize>(self, buffer: HeaderBuffer<N>) -> HeaderBuffer<N> {
                buffer.put(self.to_be_bytes())
            }
        }
    )*};
}

integers! { u16 u32 u64 }

/// Newtypes are fields like the integer that they contain.
macro_rules! newtype_fields {
    ($($newtype:ident)*) => {$(
        impl $crate::wire::bytes::Field for $newtype {
            #[inline]
            fn get(fields: &mut $crate::wire::bytes::Fields<'_>) -> Self {
                Self(fields.get())
            }

            #[inline]
            fn put<const N: usize>(
                self,
                buffer: $crate::wire::bytes::HeaderBuffer<N>,
            ) -> $crate::wire::bytes::HeaderBuffer<N> {
                buffer.field(self.0)
            }
        }
    )*};
}
pub(super) use newtype_fields;

/// A header under construction: at most `N` bytes, on the stack, `N <= 255`.
/// Fields are appended in order; a field that does not fit is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderBuffer<const N: usize> {
    bytes: [u8; N],
    length: u8,
}

impl<const N: usize> HeaderBuffer<N> {
    #[inline]
    pub(crate) const fn new() -> Self {
        const { assert!(N <= 255) };
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    #[inline]
    pub(crate) fn put<const M: usize>(mut self, field: [u8; M]) -> Self {
        let at = usize::from(self.length);
        let free = self.bytes.get_mut(at..).unwrap_or_default();
        if let Some(place) = free.first_chunk_mut::<M>() {
            *place = field;
            let end = at.saturating_add(M);
            self.length = u8::try_from(end).unwrap_or(u8::MAX);
        }
        self
    }

    #[inline]
    pub(crate) fn field(self, field: impl Field) -> Self {
        field.put(self)
    }

    /// How many bytes were appended.
    #[inline]
    pub(crate) const fn length(&self) -> u8 {
        self.length
    }

    /// The bytes that were appended.
    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }

    /// All `N` bytes; those that were not appended are zero.
    #[inline]
    pub(crate) const fn into_array(self) -> [u8; N] {
        self.bytes
    }
}

/// A length in memory as a length on the wire: `usize` has at most 64 bits on
/// every target of Rust.
#[inline]
pub(crate) fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A length on the wire as a length in memory, `usize::MAX` if it exceeds the
/// address space. For comparison with the length of a buffer only.
#[inline]
pub(crate) fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: Result<Option<u32>, DecodeError> = Err(DecodeError::Magic { message: "test" });

    #[test]
    fn find_magic_tells_complete_from_incomplete_from_wrong() {
        let candidates = [0x1122_3344, 0x1122_5566];
        for (input, expected) in [
            (&b""[..], Ok(None)),
            (b"\x11", Ok(None)),
            (b"\x11\x22", Ok(None)),
            (b"\x11\x22\x33", Ok(None)),
            (b"\x11\x22\x55", Ok(None)),
            (b"\x11\x22\x33\x44", Ok(Some(0x1122_3344))),
            (b"\x11\x22\x55\x66", Ok(Some(0x1122_5566))),
            (b"\x11\x22\x55\x66\xff", Ok(Some(0x1122_5566))),
            (b"\x12", WRONG),
            (b"\x11\x22\x44", WRONG),
            (b"\x11\x22\x33\x66", WRONG),
            (b"\x11\x22\x33\x45\xff", WRONG),
        ] {
            assert_eq!(find_magic(input, &candidates, "test"), expected);
        }
        let none: [u32; 0] = [];
        assert_eq!(find_magic(b"", &none, "test"), WRONG);
    }

    #[test]
    fn header_buffer_leaves_out_what_does_not_fit() {
        let buffer = HeaderBuffer::<7>::new()
            .field(0x0102_u16)
            .field(0x0304_0506_u32);
        assert_eq!(
            (buffer.length(), buffer.as_bytes()),
            (6, &[1, 2, 3, 4, 5, 6][..])
        );
        assert_eq!(buffer.field(0xffff_u16), buffer);
        assert_eq!(buffer.into_array(), [1, 2, 3, 4, 5, 6, 0]);
        assert_eq!(buffer.put([7]).as_bytes(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(HeaderBuffer::<255>::new().put([1; 255]).length(), 255);
    }
}
