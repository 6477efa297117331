//! The receive buffer of a driver.
//!
//! | type | memory | data |
//! |---|---|---|
//! | [`Inbox`] | the caller's: `[u8; N]`, `&mut [u8]`, `Vec<u8>` | borrowed from it |
//! | `BytesInbox` (feature `alloc`) | `BytesMut`, which grows | owned: `Bytes` that share its memory |
//!
//! ```
//! use nbd_codec::client::{Config, ConnectEvent, Connector};
//! use nbd_codec::inbox::Inbox;
//! use nbd_codec::{Negotiated, SessionError, Step};
//! use std::io::{Read, Write};
//!
//! fn connect(
//!     stream: &mut (impl Read + Write),
//!     inbox: &mut Inbox<Vec<u8>>,
//! ) -> Result<Negotiated, Box<dyn std::error::Error>> {
//!     let mut connector = Connector::new(Config::new("disk"))?;
//!     let mut out = Vec::new();
//!     loop {
//!         match inbox.receive(&mut connector)? {
//!             Step::Event(ConnectEvent::Ready) => break,
//!             Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
//!             Step::Event(_) => {}
//!             Step::Transmit => {
//!                 out.clear();
//!                 connector.transmit(&mut out)?;
//!                 stream.write_all(&out)?;
//!             }
//!             Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
//!             other => return Err(other.unexpected().into()),
//!         }
//!     }
//!     Ok(connector.into_negotiated().map_err(SessionError::from)?)
//! }
//! ```

use core::cell::Cell;
use core::num::NonZeroUsize;

use crate::error::{Error, Misuse};
use crate::step::{Receive, Step};

#[cfg(feature = "alloc")]
pub use self::owned::{BytesInbox, Payloads, ReceiveOwned, receive_owned};

/// A receive buffer in the caller's memory.
///
/// Read into [`space`](Self::space), report how much arrived with
/// [`filled`](Self::filled) ([`fill`](Self::fill) does both for blocking
/// readers), and call [`receive`](Self::receive). It drops what was consumed,
/// and knows when it is too small.
///
/// Events borrow the inbox, not the state machine: a command can be submitted
/// while an event is held.
#[derive(Debug)]
pub struct Inbox<B> {
    buffer: B,
    /// The bytes from `start` to `end` have arrived and are not consumed.
    start: Cell<usize>,
    end: usize,
    /// The peer closed the connection.
    closed: bool,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Inbox<B> {
    /// An empty inbox. How large `buffer` has to be,
    /// [`Limits::buffer`](crate::Limits::buffer) says, and
    /// [`Limits::for_buffer`](crate::Limits::for_buffer) what fits.
    pub const fn new(buffer: B) -> Self {
        Self {
            buffer,
            start: Cell::new(0),
            end: 0,
            closed: false,
        }
    }

    /// Takes the next step of `machine` with what has arrived.
    ///
    /// After the end of the input has been reported it calls `end_of_input`
    /// where the state machine asks for more.
    ///
    /// # Errors
    ///
    /// [`Error`]: of the state machine, or [`Error::BufferFull`] where the
    /// message under way is longer than the buffer.
    #[inline]
    pub fn receive<'i, M: Receive>(
        &'i self,
        machine: &mut M,
    ) -> Result<Step<M::Event<'i>, &'i [u8]>, Error> {
        let mut input = self.held();
        let result = machine.receive(&mut input);
        let held = input.len();
        self.start.set(self.end.saturating_sub(held));
        match result {
            Ok(Step::Read(_) | Step::ReadPayload { .. }) if self.closed => {
                machine.end_of_input().map(|()| Step::Finished)
            }
            Ok(Step::Read(n)) if held >= self.buffer.as_ref().len() => {
                let needed = held.saturating_add(n.get());
                Err(Error::BufferFull { needed })
            }
            result => result,
        }
    }

    /// What has arrived and is not consumed.
    #[must_use]
    #[inline]
    pub fn held(&self) -> &[u8] {
        let held = self.buffer.as_ref().get(self.start.get()..self.end);
        held.unwrap_or_default()
    }

    /// The room to read into, after what is held: all of it, for drivers that
    /// read ahead.
    #[must_use]
    pub fn space(&mut self) -> &mut [u8] {
        let start = self.start.take();
        let buffer = self.buffer.as_mut();
        if start > 0 {
            let held = self.end.saturating_sub(start);
            move_to_front(buffer, start, held);
            self.end = held;
        }
        buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The room for the `n` bytes of a [`Step::Read`], or less where there is
    /// less: for drivers that read exactly.
    #[must_use]
    pub fn space_for(&mut self, n: NonZeroUsize) -> &mut [u8] {
        let space = self.space();
        let n = n.get().min(space.len());
        space.get_mut(..n).unwrap_or_default()
    }

    /// Reports that `n` bytes were read into [`space`](Self::space). Zero
    /// means that the peer closed the connection (where there was space).
    ///
    /// # Errors
    ///
    /// [`Misuse::Overfilled`] if there was no space for as much; nothing has
    /// changed.
    pub fn filled(&mut self, n: usize) -> Result<(), Misuse> {
        let space = self.space().len();
        if n > space {
            return Err(Misuse::Overfilled { space });
        }
        if space > 0 {
            self.read(n);
        }
        Ok(())
    }

    /// Reads at most `n` bytes by `read`, which returns how many they were, as
    /// `std::io::Read::read` does. Zero means that the peer closed the
    /// connection, and the next [`receive`](Self::receive) says what that
    /// means. Where there is no space, nothing is read.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub fn fill<E>(
        &mut self,
        n: NonZeroUsize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let space = self.space_for(n);
        let room = space.len();
        if room == 0 {
            return Ok(0);
        }
        let n = read(space)?.min(room);
        self.read(n);
        Ok(n)
    }

    /// As [`fill`](Self::fill), for readers that are awaited. If the future is
    /// dropped, nothing was read as far as the inbox knows.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub async fn fill_async<E>(
        &mut self,
        n: NonZeroUsize,
        read: impl AsyncFnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let space = self.space_for(n);
        let room = space.len();
        if room == 0 {
            return Ok(0);
        }
        let n = read(space).await?.min(room);
        self.read(n);
        Ok(n)
    }

    /// `n` bytes were read where there was space.
    fn read(&mut self, n: usize) {
        self.closed |= n == 0;
        self.end = self.end.saturating_add(n);
    }
}

/// Moves `n` bytes from `start` to the front: a part of one message.
#[cfg(target_pointer_width = "64")]
fn move_to_front(buffer: &mut [u8], start: usize, n: usize) {
    let end = start.saturating_add(n);
    if n > 0 && end <= buffer.len() {
        buffer.copy_within(start..end, 0);
    }
}

/// As above, byte by byte: `memmove` would be 658 bytes of flash.
#[cfg(not(target_pointer_width = "64"))]
fn move_to_front(buffer: &mut [u8], start: usize, n: usize) {
    let cells = core::cell::Cell::from_mut(buffer).as_slice_of_cells();
    let (to, from) = (cells.iter(), cells.iter().skip(start));
    for (to, from) in to.zip(from).take(n) {
        to.set(from.get());
    }
}

#[cfg(feature = "alloc")]
mod owned {
    use ::bytes::{Bytes, BytesMut};

    use crate::error::Error;
    use crate::step::{Content, Receive, Step};

    /// Most bytes that are reserved at once: the default maximum payload.
    const MOST_RESERVED: usize = 1 << 25;

    /// How payloads arrive.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub enum Payloads {
        /// As much as is in the buffer: the buffer stays small.
        #[default]
        Fragments,
        /// Each content chunk of a read, and the data of each write, in one
        /// piece. The buffer then grows to the maximum payload.
        Whole,
    }

    /// A state machine of the transmission phase, whose events can be owned.
    pub trait ReceiveOwned: Receive {
        /// The event, with `Bytes` in the place of slices.
        type Owned;

        /// The event with the one slice it carries taken out into `bytes`.
        #[doc(hidden)]
        fn detach<'i>(event: Self::Event<'i>, bytes: &mut &'i [u8]) -> Self::Owned;

        /// Puts what was taken out back in.
        #[doc(hidden)]
        fn attach(event: &mut Self::Owned, bytes: Bytes);
    }

    /// Takes the next step of `machine` with the bytes in `buffer`, and takes
    /// what it consumes out of it. What the step carries shares the buffer's
    /// memory: no payload is copied.
    ///
    /// This is the body of a `Decoder` for `tokio_util::codec::Framed`:
    /// [`Step::Read`] and [`Step::ReadPayload`] become `Ok(None)`.
    ///
    /// # Errors
    ///
    /// [`Error`] of the state machine.
    pub fn receive_owned<M: ReceiveOwned>(
        machine: &mut M,
        buffer: &mut BytesMut,
        payloads: Payloads,
    ) -> Result<Step<M::Owned, Bytes>, Error> {
        let before = buffer.len();
        let start = buffer.as_ptr().addr();
        let mut consumed = 0_usize;
        // The end of what is offered. For whole payloads: what each step asks
        // for, which is never a header together with its payload.
        let mut end = match payloads {
            Payloads::Fragments => before,
            Payloads::Whole => 0,
        };
        let step = loop {
            let mut input = buffer.get(consumed..end).unwrap_or_default();
            let step = machine.receive(&mut input)?;
            consumed = end.saturating_sub(input.len());
            let asked = match step {
                Step::Read(n) => n.get(),
                Step::ReadPayload { length, .. } => {
                    let length = crate::wire::bytes::clip(length);
                    let missing = length.saturating_sub(before.saturating_sub(consumed));
                    if payloads == Payloads::Whole && missing > 0 {
                        break Step::read(missing);
                    }
                    length
                }
                step => break step,
            };
            if end == before {
                break step;
            }
            end = end.saturating_add(asked).min(before);
        };
        let mut place = (0, 0);
        let mut step = owned::<M>(step, &mut |bytes| {
            place = (bytes.as_ptr().addr().saturating_sub(start), bytes.len());
            Bytes::new()
        });
        let mut taken = buffer.split_to(consumed).freeze();
        let (from, length) = place;
        let whole = taken.len();
        let bytes = {
            let mut bytes = taken.split_off(from.min(whole));
            bytes.truncate(length);
            bytes
        };
        match &mut step {
            Step::Event(event) if length > 0 => M::attach(event, bytes),
            Step::Content(Content::Data { data, .. }) => *data = bytes,
            // A lenient client may have asked for more than there is memory.
            Step::Read(n) if payloads == Payloads::Whole => {
                buffer.reserve(n.get().min(MOST_RESERVED));
            }
            _ => {}
        }
        Ok(step)
    }

    /// The step with what `keep` makes of its slice.
    fn owned<'i, M: ReceiveOwned>(
        step: Step<M::Event<'i>, &'i [u8]>,
        keep: &mut dyn FnMut(&'i [u8]) -> Bytes,
    ) -> Step<M::Owned, Bytes> {
        match step {
            Step::Event(event) => {
                let mut bytes: &[u8] = &[];
                let event = M::detach(event, &mut bytes);
                let _ = keep(bytes);
                Step::Event(event)
            }
            Step::Content(Content::Data {
                cookie,
                offset,
                data,
            }) => Step::Content(Content::Data {
                cookie,
                offset,
                data: keep(data),
            }),
            Step::Content(Content::Hole {
                cookie,
                offset,
                length,
            }) => Step::Content(Content::Hole {
                cookie,
                offset,
                length,
            }),
            Step::Transmit => Step::Transmit,
            Step::Read(n) => Step::Read(n),
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => Step::ReadPayload {
                cookie,
                offset,
                length,
            },
            Step::StartTls => Step::StartTls,
            Step::Finished => Step::Finished,
        }
    }

    /// A receive buffer that grows, and whose events own what they carry.
    ///
    /// Read into [`buffer`](Self::buffer) (as with `read_buf`), and call
    /// [`receive`](Self::receive).
    #[derive(Debug, Default)]
    pub struct BytesInbox {
        buffer: BytesMut,
        payloads: Payloads,
        closed: bool,
    }

    impl BytesInbox {
        /// An empty inbox.
        #[must_use]
        pub fn new(payloads: Payloads) -> Self {
            Self {
                payloads,
                ..Self::default()
            }
        }

        /// The buffer. Append to it what arrives.
        #[must_use]
        pub fn buffer(&mut self) -> &mut BytesMut {
            &mut self.buffer
        }

        /// Reports that the peer closed the connection: the next
        /// [`receive`](Self::receive) that needs more says what that means.
        pub fn close(&mut self) {
            self.closed = true;
        }

        /// Takes the next step, as [`receive_owned`].
        ///
        /// # Errors
        ///
        /// [`Error`] of the state machine.
        pub fn receive<M: ReceiveOwned>(
            &mut self,
            machine: &mut M,
        ) -> Result<Step<M::Owned, Bytes>, Error> {
            match receive_owned(machine, &mut self.buffer, self.payloads)? {
                Step::Read(_) | Step::ReadPayload { .. } if self.closed => {
                    machine.end_of_input().map(|()| Step::Finished)
                }
                step => Ok(step),
            }
        }
    }
}
