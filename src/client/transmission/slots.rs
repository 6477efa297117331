//! Cookies, and the table of commands in flight.
//!
//! The table is the caller's memory. A cookie is the number of a slot and how
//! often the slot was used: lookup is O(1), and the cookie of a completed
//! command is not found again.

use super::state::State;
use crate::client::request::Request;
use crate::coverage::{Coverage, Outcome, Seed};
use crate::error::{Error, Violation};
use crate::features;
use crate::wire::flags::CommandFlags;
use crate::wire::number::{Command, Cookie, ErrorValue};

/// Room for one command in flight. Opaque; make as many as commands shall be
/// in flight at once, 64 bytes each.
///
/// ```
/// use nbd_codec::client::Slot;
///
/// let fixed = [Slot::EMPTY; 8];
/// # let _ = fixed;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// While a command is in flight, its cookie. While none is, it has the
    /// number of the next free slot instead of this slot's, so it equals no
    /// cookie that names this slot: one comparison tells both.
    key: Cookie,
    pub(crate) command: Command,
    pub(crate) flags: CommandFlags,
    /// The first error reported.
    pub(crate) error: ErrorValue,
    pub(crate) offset: u64,
    /// Effect length in bytes.
    pub(crate) length: u64,
    pub(super) coverage: Coverage,
    /// One bit for each context that is still to be answered.
    pub(super) missing: u32,
    /// One bit for each context that was asked for.
    pub(super) asked: u32,
}

impl Slot {
    /// A free slot.
    pub const EMPTY: Self = Self {
        key: Cookie(0),
        command: Command(0),
        flags: CommandFlags::NONE,
        error: ErrorValue::NONE,
        offset: 0,
        length: 0,
        coverage: Coverage::NONE,
        missing: 0,
        asked: 0,
    };

    /// A command about to be in flight.
    #[inline]
    pub(crate) const fn new(request: &Request, asked: u32) -> Self {
        Self {
            command: request.command,
            flags: request.flags,
            offset: request.offset,
            length: request.length,
            missing: asked,
            asked,
            ..Self::EMPTY
        }
    }

    /// Of a command in flight.
    #[inline]
    pub(super) fn cookie(&self) -> Cookie {
        self.key
    }

    /// Whether this is a read, and neither content nor an error has arrived.
    #[inline]
    pub(super) fn is_unread(&self) -> bool {
        let read = self.command == Command::READ && !self.error.is_error();
        read && self.coverage.is_empty()
    }

    /// The state after the last chunk of a reply.
    #[inline]
    pub(super) fn end(&self, cookie: Cookie) -> State {
        // Reads are checked for coverage; a resize changes the size.
        let more = matches!(self.command, Command::READ | Command::RESIZE);
        if more || self.error.is_error() || self.missing != 0 {
            State::Done(cookie)
        } else {
            State::Success(cookie)
        }
    }

    /// Whether no part of a reply has arrived.
    pub(super) fn is_untouched(&self) -> bool {
        let untouched = self.coverage == Coverage::NONE && self.missing == self.asked;
        untouched && !self.error.is_error()
    }

    /// Whether an error can be where an error chunk says it is.
    pub(crate) fn has_error_at(&self, offset: Option<u64>) -> bool {
        // Commands without a range have nothing that an offset could be in;
        // for them the chunk is an unexpected error, and an error all the same.
        let ranged = !matches!(self.command, Command::FLUSH | Command::RESIZE) && self.length > 0;
        let inside = |offset| offset >= self.offset && offset < self.range_end();
        !ranged || offset.is_none_or(inside)
    }

    /// The result of the command after the last chunk of its reply. Success is
    /// only reported where the reply was complete.
    #[inline]
    pub(crate) fn outcome(
        &self,
        cookie: Cookie,
        simple: bool,
        seed: &mut Seed,
    ) -> Result<Result<(), ErrorValue>, Error> {
        if self.error != ErrorValue::NONE {
            return Ok(Err(self.error));
        }
        match self.command {
            // A simple reply is whole by its form.
            Command::READ if !simple => match self.coverage.outcome(self.length, seed) {
                Outcome::Complete => {}
                Outcome::Incomplete => return Err(Violation::Incomplete(cookie).into()),
                Outcome::Overlap => return Err(Violation::Overlap(cookie).into()),
            },
            Command::BLOCK_STATUS if features::STRUCTURED && self.missing != 0 => {
                return Err(Violation::MissingContext(cookie).into());
            }
            _ => {}
        }
        Ok(Ok(()))
    }

    /// The first byte after the command's range. (The sum was checked, or
    /// the caller is lenient and the range ends with the address space.)
    #[inline]
    pub(super) fn range_end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Slots<S> {
    storage: S,
    /// The first free slot, or a number past the last.
    free: u32,
    in_flight: u32,
}

/// The number of the slot that a cookie names: below the number of slots, and
/// no two commands in flight share it. Callers keep what they know of a command
/// (where its data goes, who waits for it) in an array of their own by it.
#[must_use]
#[inline]
pub fn slot_index(cookie: Cookie) -> usize {
    position(number(cookie))
}

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Slots<S> {
    pub(super) fn new(mut storage: S) -> Self {
        for (slot, next) in storage.as_mut().iter_mut().zip(1u32..) {
            // Slots may come from an earlier session: what was in flight there
            // is not in flight here, and its cookie stays unknown.
            let uses = uses(slot.key);
            slot.key = key(uses.wrapping_add(uses & 1), next);
        }
        Self {
            storage,
            free: 0,
            in_flight: 0,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        usize::try_from(self.in_flight).unwrap_or(usize::MAX)
    }

    pub(super) fn is_full(&self) -> bool {
        self.storage.as_ref().get(position(self.free)).is_none()
    }

    /// Fills a free slot; `None` if there is none.
    #[inline]
    pub(super) fn insert(&mut self, command: Slot) -> Option<Cookie> {
        let slot = self.storage.as_mut().get_mut(position(self.free))?;
        let cookie = key(uses(slot.key).wrapping_add(1), self.free);
        self.free = number(slot.key);
        *slot = Slot {
            key: cookie,
            ..command
        };
        // Never more than there are slots.
        self.in_flight = self.in_flight.wrapping_add(1);
        Some(cookie)
    }

    /// The command in flight with this cookie.
    #[inline]
    pub(super) fn find(&mut self, cookie: Cookie) -> Option<&mut Slot> {
        self.storage
            .as_mut()
            .get_mut(slot_index(cookie))
            .filter(|slot| slot.key == cookie)
    }

    /// Ends the command with this cookie, which is in flight.
    #[inline]
    pub(super) fn remove(&mut self, cookie: Cookie) {
        let free = self.free;
        if let Some(slot) = self.find(cookie) {
            // The next generation, with the number of the next free slot.
            let other = u64::from(free).wrapping_sub(u64::from(number(cookie)));
            slot.key = Cookie(cookie.0.wrapping_add(1 << 32).wrapping_add(other));
            self.free = number(cookie);
            self.in_flight = self.in_flight.wrapping_sub(1);
        }
    }

    /// The commands in flight.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Cookie, &Slot)> {
        let slots = self.storage.as_ref().iter().zip(0u32..);
        slots
            .filter(|(slot, index)| number(slot.key) == *index)
            .map(|(slot, _)| (slot.key, slot))
    }
}

/// How often the slot was used, odd while it is in use; and a number.
#[inline]
fn key(uses: u32, number: u32) -> Cookie {
    Cookie(u64::from(uses).wrapping_shl(32) | u64::from(number))
}

#[inline]
fn uses(cookie: Cookie) -> u32 {
    u32::try_from(cookie.0.wrapping_shr(32)).unwrap_or(0)
}

#[inline]
fn number(cookie: Cookie) -> u32 {
    u32::try_from(cookie.0 & 0xffff_ffff).unwrap_or(u32::MAX)
}

#[inline]
fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generation of a cookie starts over after 2^32 uses; cookies of the
    /// last round are not found in the next.
    #[test]
    fn generations_start_over() {
        let mut slot = Slot::EMPTY;
        slot.key = Cookie(0xffff_fffe_0000_0000);
        let mut slots = Slots::new([slot]);
        let command = Slot::new(&Request::flush(), 0);
        let last = slots.insert(command);
        assert_eq!(last, Some(Cookie(0xffff_ffff_0000_0000)));
        let last = last.unwrap_or_default();
        assert!(slots.find(last).is_some());
        slots.remove(last);
        slots.remove(last);
        assert!(slots.find(last).is_none());
        assert_eq!(slots.in_flight(), 0);
        let first = slots.insert(command);
        assert_eq!(first, Some(Cookie(0x0000_0001_0000_0000)));
        assert!(slots.find(last).is_none() && slots.is_full());
        // A free slot is found by no cookie, not by one of an even generation
        // either.
        slots.remove(Cookie(1 << 32));
        for generation in 0..4u64 {
            assert!(slots.find(Cookie(generation << 32)).is_none());
        }
    }
}
