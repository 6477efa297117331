//! Ways to deliver the peer's bytes to a state machine, and the invariants of
//! its steps that hold for every state machine:
//!
//! - The number of steps is bounded by the number of bytes.
//! - After `Read`, no step is due without further bytes: a repeated `receive`
//!   returns the same `Read`.
//! - `Read` asks for bytes of one message only, and never for more than the peer
//!   has to send or than fits the documented buffer.
//! - `ReadPayload` comes only when no payload is buffered.

use nbd_codec::inbox::Inbox;
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Error, Receive, Step};

use crate::format::List;
use crate::{enums, structs};

structs! {
    /// Chosen by the fuzzer.
    pub struct Delivery {
        reading: Reading,
        /// Sizes of the pieces, repeated; zero for all that is left.
        sizes: List<u8>,
        /// Whether payloads are read directly and reported by `advance`.
        direct: bool,
        /// The size of the receive buffer, in addition to the documented
        /// minimum. The sum is at most 64 KiB, unless the minimum is more.
        extra_buffer: u16,
    }
}

enums! {
    pub enum Reading {
        /// Pieces of the given sizes, as far as the buffer has space.
        ReadAhead {},
        /// At most as many bytes as `Read` says.
        Exact {},
        /// The same, and `advance` is called twice without a `receive` between.
        ExactTwice {},
    }
}

impl Delivery {
    /// Everything at once into a large buffer, and no direct payloads.
    pub fn whole() -> Self {
        Self {
            reading: Reading::ReadAhead {},
            sizes: List(vec![]),
            direct: false,
            extra_buffer: u16::MAX,
        }
    }

    /// The size of the receive buffer.
    pub fn buffer(&self, least: usize) -> usize {
        let size = least.saturating_add(self.extra_buffer.into());
        size.min(1 << 16).max(least)
    }

    /// The size of piece number `index`, of the `left` bytes.
    fn size(&self, index: usize, left: usize) -> usize {
        let sizes = &self.sizes.0;
        match index.checked_rem(sizes.len()).map(|index| sizes[index]) {
            None | Some(0) => left,
            Some(size) => left.min(usize::from(size)),
        }
    }
}

/// What the state machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: another step is due.
    Step,
    /// At least one and at most this many bytes.
    Read(usize),
    Payload {
        cookie: Cookie,
        offset: u64,
        length: u64,
    },
    /// A call: to start TLS, to reply to a query, to send an option.
    Caller,
    /// Nothing: the state machine has finished.
    Finished,
}

impl Next {
    /// What a step asks for. Events and content are for the caller.
    pub fn after<E, D>(step: &Step<E, D>) -> Self {
        match *step {
            Step::Event(_) | Step::Content(_) | Step::Transmit => Self::Step,
            Step::Read(n) => Self::Read(n.get()),
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => Self::Payload {
                cookie,
                offset,
                length,
            },
            Step::StartTls => Self::Caller,
            Step::Finished => Self::Finished,
        }
    }
}

/// A state machine and its caller.
pub trait Driver {
    /// The bytes of the peer. Not used during a step.
    fn incoming(&mut self) -> &mut Incoming;

    /// The documented size of the receive buffer.
    fn least_buffer(&self) -> usize;

    /// Takes one step and records it.
    fn step(&mut self, inbox: &Buffer) -> Result<Next, Error>;

    /// Reports payload that was read directly, and records it.
    fn read_directly(&mut self, cookie: Cookie, offset: u64, payload: &[u8]);

    /// Records the error that ends the session.
    fn fail(&mut self, error: Error);

    /// The number of replies or requests that have ended.
    fn ended(&self) -> usize;

    /// Delivers bytes of the peer, and takes all steps that they permit.
    fn deliver(&mut self, bytes: &[u8])
    where
        Self: Sized,
    {
        let mut incoming = std::mem::take(self.incoming());
        incoming.queue.extend(bytes);
        incoming.run(self);
        *self.incoming() = incoming;
    }

    /// Takes all steps that a call of the caller permits.
    fn resume(&mut self)
    where
        Self: Sized,
    {
        self.incoming().reading = false;
        self.deliver(&[]);
    }
}

/// The receive buffer.
#[derive(Debug)]
pub struct Buffer(Inbox<Vec<u8>>);

impl Default for Buffer {
    fn default() -> Self {
        Self(Inbox::new(Vec::new()))
    }
}

impl Buffer {
    /// The bytes that are not consumed.
    pub fn held(&self) -> &[u8] {
        self.0.held()
    }

    /// Calls `receive`, and checks what it does to the buffer.
    pub fn receive<'i, M: Receive>(
        &'i self,
        machine: &mut M,
    ) -> Result<Step<M::Event<'i>, &'i [u8]>, Error> {
        let before = self.0.held();
        let step = self.0.receive(machine)?;
        let after = self.0.held();
        assert!(before.ends_with(after), "input advances");
        if let Step::Content(nbd_codec::Content::Data { data, .. }) = &step {
            let consumed = &before[..before.len() - after.len()];
            let (data, consumed) = (data.as_ptr_range(), consumed.as_ptr_range());
            let inside = consumed.start <= data.start && data.end <= consumed.end;
            assert!(inside, "content is consumed input");
        }
        Ok(step)
    }
}

/// The bytes that have arrived and are not consumed.
#[derive(Default)]
pub struct Incoming {
    delivery: Option<Delivery>,
    pieces: usize,
    /// Bytes that the caller has not read.
    queue: Vec<u8>,
    inbox: Buffer,
    next: Option<Next>,
    /// The last step was to read, and since then nothing has happened.
    reading: bool,
    error: Option<Error>,
}

impl Incoming {
    pub fn new(delivery: &Delivery, least_buffer: usize) -> Self {
        let size = delivery.buffer(least_buffer);
        Self {
            delivery: Some(delivery.clone()),
            inbox: Buffer(Inbox::new(vec![0; size])),
            ..Self::default()
        }
    }

    /// The number of bytes that are not consumed.
    pub fn buffered(&self) -> usize {
        self.queue.len() + self.inbox.0.held().len()
    }

    pub fn next(&self) -> Option<Next> {
        self.next
    }

    /// Takes steps and reads, until the state machine waits for bytes that have
    /// not arrived.
    fn run(&mut self, driver: &mut impl Driver) {
        let delivery = self.delivery.clone().unwrap_or_else(Delivery::whole);
        if !self.reading {
            self.steps(driver);
        }
        while !self.queue.is_empty() && self.error.is_none() {
            let size = delivery.size(self.pieces, self.queue.len());
            self.pieces += 1;
            let read = match self.next {
                Some(Next::Payload {
                    cookie,
                    offset,
                    length,
                }) if delivery.direct => {
                    let size = size.min(usize::try_from(length).unwrap_or(usize::MAX));
                    let payload: Vec<u8> = self.queue.drain(..size).collect();
                    let first = match delivery.reading {
                        Reading::ExactTwice {} => size / 2,
                        _ => size,
                    };
                    let (first, second) = payload.split_at(first);
                    for (offset, part) in [
                        (offset, first),
                        (offset.saturating_add(first.len() as u64), second),
                    ] {
                        if !part.is_empty() {
                            driver.read_directly(cookie, offset, part);
                        }
                    }
                    self.reading = false;
                    self.steps(driver);
                    size
                }
                Some(Next::Read(n)) if delivery.reading != Reading::ReadAhead {} => {
                    self.read_exactly(driver, n)
                }
                _ => self.read(driver, size),
            };
            if read == 0 {
                // The caller has to make a call first.
                break;
            }
        }
    }

    /// Reads the bytes that are asked for, and checks that they are not too
    /// many.
    fn read_exactly(&mut self, driver: &mut impl Driver, n: usize) -> usize {
        let size = n.min(self.queue.len());
        let ended = driver.ended();
        let before = self.buffered();
        self.read(driver, size);
        if self.error.is_none() {
            let consumed = before - self.buffered();
            let rest = self.inbox.0.held().len();
            let one_message = size < n || consumed == 0 || rest == 0;
            assert!(one_message, "asks for more than one message");
            // A caller that waits for all these bytes would block.
            let early = size < n && driver.ended() > ended;
            assert!(!early, "asks for more than the peer has to send");
        }
        size
    }

    /// Reads up to `size` bytes. Zero if the buffer is full.
    fn read(&mut self, driver: &mut impl Driver, size: usize) -> usize {
        let space = self.inbox.0.space();
        let size = size.min(space.len());
        if size == 0 {
            let waits = matches!(self.next, Some(Next::Caller | Next::Finished));
            assert!(waits, "the buffer is full: {:?}", self.next);
            return 0;
        }
        space[..size].copy_from_slice(&self.queue[..size]);
        self.queue.drain(..size);
        self.inbox.0.filled(size).expect("space");
        self.steps(driver);
        size
    }

    /// Takes all steps that the buffered bytes permit.
    fn steps(&mut self, driver: &mut impl Driver) {
        // A step consumes input, or ends a message that consumed input.
        let mut budget = 2 * self.inbox.0.held().len() + 4;
        while self.step(driver) == Some(Next::Step) {
            budget = budget
                .checked_sub(1)
                .expect("steps are bounded by the input");
        }
        let next = self.next;
        if next.is_some() {
            let repeated = self.step(driver);
            assert_eq!(repeated, next, "a step that was not taken");
        }
    }

    fn step(&mut self, driver: &mut impl Driver) -> Option<Next> {
        let before = self.inbox.0.held().len();
        self.next = match driver.step(&self.inbox) {
            Ok(next) => Some(next),
            Err(Error::Unanswered) => Some(Next::Caller),
            Err(error) => {
                assert!(error.is_fatal(), "the buffer is too small: {error}");
                self.error = Some(error);
                driver.fail(error);
                None
            }
        };
        let buffered = self.inbox.0.held().len();
        let was_due = self.next == Some(Next::Step) && before == buffered;
        assert!(!(self.reading && was_due), "a step was due before the read");
        self.reading = false;
        match self.next {
            Some(Next::Read(n)) => {
                self.reading = true;
                let fits = buffered + n <= driver.least_buffer();
                assert!(fits, "{n} bytes after {buffered} exceed the buffer");
            }
            Some(Next::Payload { length, .. }) => {
                self.reading = true;
                assert_eq!(buffered, 0, "payload is buffered");
                assert!(length > 0, "empty payload");
            }
            _ => {}
        }
        self.next
    }
}
