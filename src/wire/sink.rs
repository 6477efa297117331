//! Where handshake messages are written.

/// Why a message was not written. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The sink has too little room; offer one with at least this much.
    #[error("no room: the message needs {needed} bytes; offer a larger buffer")]
    NoRoom {
        /// Size of the whole message, in bytes.
        needed: usize,
    },
    /// A part is longer than the field that gives its length can say.
    #[error("a part of the message is longer than its length field can say")]
    TooLong,
}

/// A place to write bytes to: `&mut [u8]`, which then begins behind what was
/// written, and with feature `alloc` `Vec<u8>` and `bytes::BytesMut`.
///
/// ```
/// use nbd_codec::wire::Sink;
///
/// let mut buffer = [0; 16];
/// let mut rest = &mut buffer[..];
/// rest.put(b"NBDMAGIC");
/// assert_eq!(rest.room(), 8);
/// assert_eq!(&buffer[..8], b"NBDMAGIC");
/// ```
pub trait Sink {
    /// How many more bytes it takes.
    fn room(&self) -> usize;

    /// Appends `bytes`. Callers ask [`room`](Self::room) first; what does not
    /// fit is left out.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for &mut [u8] {
    fn room(&self) -> usize {
        self.len()
    }

    fn put(&mut self, bytes: &[u8]) {
        let whole = core::mem::take(self);
        match whole.split_at_mut_checked(bytes.len()) {
            Some((head, rest)) => {
                head.copy_from_slice(bytes);
                *self = rest;
            }
            None => *self = &mut [],
        }
    }
}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn room(&self) -> usize {
        (**self).room()
    }

    fn put(&mut self, bytes: &[u8]) {
        (**self).put(bytes);
    }
}

#[cfg(feature = "alloc")]
impl Sink for std::vec::Vec<u8> {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(feature = "alloc")]
impl Sink for ::bytes::BytesMut {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts what a message takes.
#[derive(Debug, Default)]
struct Count(usize);

impl Sink for Count {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0 = self.0.saturating_add(bytes.len());
    }
}

/// The size of what `write` writes, in bytes.
pub(crate) fn measure(write: &dyn Fn(&mut dyn Sink)) -> usize {
    let mut count = Count::default();
    write(&mut count);
    count.0
}

/// Runs `write` only if all of what it writes fits; returns the bytes written.
pub(crate) fn all_or_nothing(
    sink: &mut dyn Sink,
    write: &dyn Fn(&mut dyn Sink),
) -> Result<usize, EncodeError> {
    let needed = measure(write);
    if needed > sink.room() {
        return Err(EncodeError::NoRoom { needed });
    }
    write(sink);
    Ok(needed)
}
