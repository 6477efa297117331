//! Where encoders write.

/// Why a message was not encoded. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The message does not fit: use a sink whose [`room`](Sink::room) is at
    /// least `needed`.
    #[error("the buffer is too small: the message needs {needed} bytes")]
    NoRoom {
        /// Size of the whole message, in bytes.
        needed: usize,
    },
    /// A part of the message is longer than its length field can express.
    #[error("a part of the message is longer than its length field can express")]
    TooLong,
}

/// A buffer to append bytes to: `&mut [u8]`, which shrinks to the part that is
/// not yet written, and with feature `alloc` also `Vec<u8>` and
/// `bytes::BytesMut`.
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
    /// How many more bytes fit.
    fn room(&self) -> usize;

    /// Appends `bytes`. The caller checks [`room`](Self::room) first: bytes that
    /// do not fit are discarded.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for &mut [u8] {
    fn room(&self) -> usize {
        self.len()
    }

    fn put(&mut self, bytes: &[u8]) {
        let whole = core::mem::take(self);
        match whole.split_at_mut_checked(bytes.len()) {
            Some((written, rest)) => {
                written.copy_from_slice(bytes);
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

/// Counts bytes instead of writing them.
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

/// How many bytes `write` writes.
pub(crate) fn measure(write: &dyn Fn(&mut dyn Sink)) -> usize {
    let mut count = Count::default();
    write(&mut count);
    count.0
}

/// Whether `needed` bytes fit.
#[inline]
pub(crate) fn check_room(sink: &dyn Sink, needed: usize) -> Result<(), EncodeError> {
    if needed > sink.room() {
        return Err(EncodeError::NoRoom { needed });
    }
    Ok(())
}

/// Writes all of `bytes` or nothing; returns how many bytes were written.
pub(crate) fn put_whole(bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, EncodeError> {
    check_room(sink, bytes.len())?;
    sink.put(bytes);
    Ok(bytes.len())
}

/// Runs `write` only if everything it writes fits; returns how many bytes were
/// written.
pub(crate) fn all_or_nothing(
    sink: &mut dyn Sink,
    write: &dyn Fn(&mut dyn Sink),
) -> Result<usize, EncodeError> {
    let needed = measure(write);
    check_room(sink, needed)?;
    write(sink);
    Ok(needed)
}
