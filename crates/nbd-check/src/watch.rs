//! The monitor on a connection of the tester, and the bytes that it holds back.

use nbd_codec::monitor::{Monitor, Side, Slot, Step};

pub(crate) struct Watch {
    pub(crate) monitor: Monitor<Vec<Slot>>,
    client: Vec<u8>,
    server: Vec<u8>,
}

impl Watch {
    /// Before the greeting.
    pub(crate) fn new() -> Self {
        Self {
            monitor: Monitor::new(vec![Slot::EMPTY; 16]),
            client: Vec::new(),
            server: Vec::new(),
        }
    }

    /// Offers what a side has sent. `tell` takes each step, but for those that ask for more.
    pub(crate) fn see(
        &mut self,
        side: Side,
        bytes: &[u8],
        tell: &mut impl FnMut(&Monitor<Vec<Slot>>, Step<'_>),
    ) {
        self.held(side).extend(bytes);
        // Each side may wait for the other.
        while self.drain(side, tell) | self.drain(side.peer(), tell) {}
    }

    fn held(&mut self, side: Side) -> &mut Vec<u8> {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Takes the steps of one side; whether there were any.
    fn drain(&mut self, side: Side, tell: &mut impl FnMut(&Monitor<Vec<Slot>>, Step<'_>)) -> bool {
        let mut held = std::mem::take(self.held(side));
        let mut input = held.as_slice();
        let mut any = false;
        loop {
            match self.monitor.receive(side, &mut input) {
                Step::Read(_) | Step::Wait => break,
                Step::Full => {
                    let slots = self.monitor.slots_mut();
                    slots.resize(slots.len() * 2, Slot::EMPTY);
                }
                step => tell(&self.monitor, step),
            }
            any = true;
        }
        let left = input.len();
        held.drain(..held.len() - left);
        *self.held(side) = held;
        any
    }
}
