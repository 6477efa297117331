//! How the bytes of the peer reach a machine, and what must be true of every
//! machine while they do.

use nbd_codec::{Error, Need};

use crate::tape::List;
use crate::{choices, structures};

structures! {
    /// Chosen by the fuzzer.
    pub struct Delivery {
        how: How,
        /// Sizes of the pieces, over and over; zero is all that is there.
        sizes: List<u8>,
        /// Whether payload is read past the machine, and reported.
        direct: bool,
    }
}

choices! {
    pub enum How {
        /// Pieces of the sizes given.
        Pieces {},
        /// What `need` asks for, and not a byte more.
        Exact {},
        /// The same, and `need` is asked right behind `advance`, before
        /// `receive` has had a chance to look.
        Eager {},
    }
}

impl Delivery {
    /// Everything at once, and nothing past the machine.
    pub fn whole() -> Self {
        Self {
            how: How::Pieces {},
            sizes: List(vec![]),
            direct: false,
        }
    }

    /// The size of piece number `index`, of what is left.
    pub fn size(&self, index: usize, left: usize) -> usize {
        let sizes = &self.sizes.0;
        match index.checked_rem(sizes.len()).map(|index| sizes[index]) {
            None | Some(0) => left,
            Some(size) => left.min(usize::from(size)),
        }
    }
}

/// A machine and its caller.
pub trait Machine {
    /// Calls `receive`, and takes note of the event; false if there was none.
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error>;

    fn need(&self) -> Need;

    /// Judges what is needed where so many bytes were not consumed.
    fn check_need(&self, need: Need, held: usize);

    /// Reports payload that was read past the machine.
    fn read_past(&mut self, payload: &[u8]);

    /// How many replies have ended.
    fn ended(&self) -> usize;
}

/// What has arrived, and was not consumed.
#[derive(Default)]
pub struct Feed {
    delivery: Option<Delivery>,
    pieces: usize,
    held: Vec<u8>,
    pub error: Option<Error>,
}

impl Feed {
    pub fn new(delivery: &Delivery) -> Self {
        Self {
            delivery: Some(delivery.clone()),
            ..Self::default()
        }
    }

    /// How much was not consumed.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Delivers bytes to the last one, unless the machine fails.
    pub fn deliver(&mut self, machine: &mut impl Machine, bytes: &[u8]) {
        let delivery = self.delivery.clone().unwrap_or_else(Delivery::whole);
        let mut left = bytes;
        while !left.is_empty() && self.error.is_none() {
            let size = delivery.size(self.pieces, left.len());
            self.pieces += 1;
            match machine.need() {
                Need::Payload { length, .. } if delivery.direct => {
                    assert!(self.held.is_empty(), "payload behind what is held");
                    let size = size.min(usize::try_from(length).unwrap_or(usize::MAX));
                    machine.read_past(take(&mut left, size));
                    if delivery.how != (How::Eager {}) {
                        self.pump(machine);
                    }
                }
                Need::Header(n) if delivery.how != (How::Pieces {}) => {
                    self.deliver_exactly(machine, n, &mut left);
                }
                _ => {
                    self.held.extend(take(&mut left, size));
                    self.pump(machine);
                }
            }
        }
        self.pump(machine);
    }

    /// Delivers what is needed, and judges whether that was too much.
    fn deliver_exactly(&mut self, machine: &mut impl Machine, need: usize, left: &mut &[u8]) {
        // An event that is due behind a direct read needs nothing.
        let missing = need.saturating_sub(self.held.len());
        let size = missing.min(left.len());
        let ended = machine.ended();
        self.held.extend(take(left, size));
        let consumed = self.pump(machine);
        if self.error.is_none() && missing > 0 {
            let together = size < missing || consumed == 0 || self.held.is_empty();
            assert!(together, "more was asked for than belongs together");
            // Whoever waits for all that is needed would wait for ever.
            let early = missing > size && machine.ended() > ended;
            assert!(!early, "more was asked for than there was to come");
        }
    }

    /// Takes every event there is; returns how many bytes were consumed.
    pub fn pump(&mut self, machine: &mut impl Machine) -> usize {
        let held = std::mem::take(&mut self.held);
        let mut input = &held[..];
        // Bounded work: an event takes input, or is the end of something that
        // took input.
        let mut budget = 2 * held.len() + 4;
        while self.error.is_none() {
            budget = budget.checked_sub(1).expect("work bounded by the input");
            let before = input;
            let result = machine.receive(&mut input);
            assert!(before.ends_with(input), "input that only advances");
            assert_eq!(input.as_ptr_range().end, held.as_ptr_range().end);
            match result {
                Ok(true) => {}
                Ok(false) => {
                    machine.check_need(machine.need(), input.len());
                    break;
                }
                Err(error) => self.error = Some(error),
            }
        }
        self.held = input.to_vec();
        held.len() - self.held.len()
    }
}

fn take<'a>(left: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = left.split_at(n);
    *left = rest;
    taken
}
