//! Ways to deliver the peer's bytes to a state machine, and the invariants that
//! hold for every state machine meanwhile.

use nbd_codec::{Error, Need};

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
    }
}

enums! {
    pub enum Reading {
        /// Pieces of the given sizes.
        Pieces {},
        /// Exactly as many bytes as `need` says.
        Exact {},
        /// The same, and `need` is asked after `advance` without a `receive`
        /// between.
        Eager {},
    }
}

impl Delivery {
    /// Everything at once, and no direct payloads.
    pub fn whole() -> Self {
        Self {
            reading: Reading::Pieces {},
            sizes: List(vec![]),
            direct: false,
        }
    }

    /// The size of piece number `index`, of the `left` bytes.
    pub fn size(&self, index: usize, left: usize) -> usize {
        let sizes = &self.sizes.0;
        match index.checked_rem(sizes.len()).map(|index| sizes[index]) {
            None | Some(0) => left,
            Some(size) => left.min(usize::from(size)),
        }
    }
}

/// A state machine and its caller.
pub trait Driver {
    /// Calls `receive` and records the event; false without an event.
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error>;

    fn need(&self) -> Need;

    /// Checks `need` while `buffered` bytes are not consumed.
    fn check_need(&self, need: Need, buffered: usize);

    /// Reports payload that was read directly.
    fn read_directly(&mut self, payload: &[u8]);

    /// The number of replies or requests that have ended.
    fn ended(&self) -> usize;
}

/// The bytes that have arrived and are not consumed.
#[derive(Default)]
pub struct Incoming {
    delivery: Option<Delivery>,
    pieces: usize,
    buffer: Vec<u8>,
    pub error: Option<Error>,
}

impl Incoming {
    pub fn new(delivery: &Delivery) -> Self {
        Self {
            delivery: Some(delivery.clone()),
            ..Self::default()
        }
    }

    /// The number of bytes that are not consumed.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Delivers all bytes, unless the state machine fails.
    pub fn deliver(&mut self, driver: &mut impl Driver, bytes: &[u8]) {
        let delivery = self.delivery.clone().unwrap_or_else(Delivery::whole);
        let mut left = bytes;
        while !left.is_empty() && self.error.is_none() {
            let size = delivery.size(self.pieces, left.len());
            self.pieces += 1;
            match driver.need() {
                Need::Payload { length, .. } if delivery.direct => {
                    assert!(self.buffer.is_empty(), "payload after buffered bytes");
                    let size = size.min(usize::try_from(length).unwrap_or(usize::MAX));
                    driver.read_directly(take(&mut left, size));
                    if delivery.reading != (Reading::Eager {}) {
                        self.receive_all(driver);
                    }
                }
                Need::Header(n) if delivery.reading != (Reading::Pieces {}) => {
                    self.deliver_exactly(driver, n, &mut left);
                }
                _ => {
                    self.buffer.extend(take(&mut left, size));
                    self.receive_all(driver);
                }
            }
        }
        self.receive_all(driver);
    }

    /// Delivers the bytes that are needed, and checks that they were not too
    /// many.
    fn deliver_exactly(&mut self, driver: &mut impl Driver, need: usize, left: &mut &[u8]) {
        // After a direct read an event may be due, which needs no bytes.
        let missing = need.saturating_sub(self.buffer.len());
        let size = missing.min(left.len());
        let ended = driver.ended();
        self.buffer.extend(take(left, size));
        let consumed = self.receive_all(driver);
        if self.error.is_none() && missing > 0 {
            let one_message = size < missing || consumed == 0 || self.buffer.is_empty();
            assert!(one_message, "asks for more than one message");
            // A caller that waits for all bytes needed would block.
            let early = missing > size && driver.ended() > ended;
            assert!(!early, "asks for more than the peer has to send");
        }
    }

    /// Receives all events. Returns the number of bytes consumed.
    pub fn receive_all(&mut self, driver: &mut impl Driver) -> usize {
        let buffer = std::mem::take(&mut self.buffer);
        let mut input = &buffer[..];
        // An event consumes input, or ends a message that consumed input.
        let mut budget = 2 * buffer.len() + 4;
        while self.error.is_none() {
            budget = budget
                .checked_sub(1)
                .expect("steps are bounded by the input");
            let before = input;
            let result = driver.receive(&mut input);
            assert!(before.ends_with(input), "input advances");
            assert_eq!(input.as_ptr_range().end, buffer.as_ptr_range().end);
            match result {
                Ok(true) => {}
                Ok(false) => {
                    driver.check_need(driver.need(), input.len());
                    break;
                }
                Err(error) => self.error = Some(error),
            }
        }
        self.buffer = input.to_vec();
        buffer.len() - self.buffer.len()
    }
}

fn take<'a>(left: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = left.split_at(n);
    *left = rest;
    taken
}
