//! The requests in flight, by the cookies that the client chose.

use crate::client::Slot as Command;
use crate::wire::number::{self as wire, Cookie};

/// Room for one request in flight. Opaque; 80 bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slot(Option<InFlight>);

impl Slot {
    /// A free slot.
    pub const EMPTY: Self = Self(None);
}

/// A request that has no complete reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    pub(super) cookie: Cookie,
    /// What the client's state machine knows of it.
    pub(super) command: Command,
    /// The reply broke a rule: it is not checked to its end.
    pub(super) faulty: bool,
}

/// The table. Cookies are any numbers, so lookup is a search.
#[derive(Debug)]
pub(super) struct Slots<S>(S);

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Slots<S> {
    pub(super) fn new(mut storage: S) -> Self {
        storage.as_mut().fill(Slot::EMPTY);
        Self(storage)
    }

    pub(super) fn storage(&mut self) -> &mut S {
        &mut self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().iter().all(|slot| slot.0.is_none())
    }

    pub(super) fn find(&mut self, cookie: Cookie) -> Option<&mut InFlight> {
        let slots = self.0.as_mut().iter_mut();
        let mut found = slots.filter_map(|slot| slot.0.as_mut());
        found.find(|request| request.cookie == cookie)
    }

    /// Whether a request with this command is in flight.
    pub(super) fn any(&self, command: wire::Command) -> bool {
        let mut slots = self.0.as_ref().iter();
        let named = |request: InFlight| request.command.command == command;
        slots.any(|slot| slot.0.is_some_and(named))
    }

    pub(super) fn has_room(&self) -> bool {
        self.0.as_ref().iter().any(|slot| slot.0.is_none())
    }

    /// Adds a request; there is room.
    pub(super) fn insert(&mut self, request: InFlight) {
        let free = self.0.as_mut().iter_mut().find(|slot| slot.0.is_none());
        if let Some(slot) = free {
            slot.0 = Some(request);
        }
    }

    pub(super) fn remove(&mut self, cookie: Cookie) {
        let mut slots = self.0.as_mut().iter_mut();
        let named = |slot: &&mut Slot| slot.0.is_some_and(|request| request.cookie == cookie);
        if let Some(slot) = slots.find(named) {
            slot.0 = None;
        }
    }
}
