//! The straight way of most replies: the data of a read that comes in order,
//! the success of a read or a write.
//!
//! What is taken here the long way (`reply`) would take too, with the same
//! outcome. Of anything else nothing is taken, nothing has changed, and the
//! long way judges it. So there is no error here, and nothing to look up twice.

use super::chunk::Header;
use super::slots::Slot;
use super::state::{Part, State};
use super::{Event, Transmission};
use crate::error::Error;
use crate::negotiated::Framing;
use crate::wire::bytes::{front, take};
use crate::wire::flags::CommandFlags;
use crate::wire::number::{ChunkType, Command, Cookie, ErrorValue};
use crate::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Takes a header. Whether there is something to deliver, the failure of
    /// the session included: the state says what.
    #[inline(never)]
    pub(super) fn header(&mut self, input: &mut &[u8]) -> bool {
        let mut rest = *input;
        let taken = match self.state {
            State::Header => self.straight(&mut rest),
            _ => None,
        };
        let Some((part, offset)) = taken else {
            return self.any_header(input);
        };
        *input = rest;
        self.want = 0;
        self.state = State::Data { part, offset };
        !rest.is_empty()
    }

    /// The data that a header announces, and where it belongs.
    #[inline]
    fn straight(&mut self, input: &mut &[u8]) -> Option<(Part, u64)> {
        let (header, offset) = match self.export.framing {
            Framing::Simple => return self.straight_simple(input),
            Framing::Structured => front(input, structured)?,
            Framing::Extended => front(input, extended)?,
        };
        if header.chunk != ChunkType::OFFSET_DATA {
            return None;
        }
        let slot = self.slots.find(header.cookie)?;
        let other = header.offset.is_some_and(|offset| offset != slot.offset);
        if slot.command != Command::READ || other || slot.flags.contains(CommandFlags::DF) {
            return None;
        }
        let length = header.length.checked_sub(8)?;
        // An end behind 2^64 lies within no export.
        let _ = offset.checked_add(length)?;
        let from = offset.wrapping_sub(slot.offset);
        let follows = slot.coverage.follow(from, length, slot.length);
        follows.then(|| (header.part(length), offset))
    }

    #[inline]
    fn straight_simple(&mut self, input: &mut &[u8]) -> Option<(Part, u64)> {
        let SimpleReply { error, cookie } = front(input, SimpleReply::parse)?;
        let slot = self.slots.find(cookie)?;
        let part = Part {
            cookie,
            left: slot.length,
            last: true,
        };
        let data = slot.command == Command::READ && !error.is_error() && slot.length > 0;
        data.then_some((part, slot.offset))
    }

    /// Ends a command.
    #[inline]
    pub(super) fn complete<'i>(&mut self, cookie: Cookie) -> Result<Option<Event<'i>>, Error> {
        let simple = self.export.framing == Framing::Simple;
        let earned = |slot: &Slot| match slot.command {
            Command::READ => simple || slot.coverage.is_straight(slot.length),
            Command::WRITE => true,
            _ => false,
        };
        match self.slots.find(cookie) {
            Some(slot) if slot.error == ErrorValue::NONE && earned(slot) => {
                self.slots.remove(cookie);
                self.state = State::Header;
                let result = Ok(());
                Ok(Some(Event::Done { cookie, result }))
            }
            _ => self.complete_any(cookie),
        }
    }
}

/// A header, and the offset behind it.
#[inline]
fn structured(bytes: &[u8; StructuredHeader::SIZE + 8]) -> Option<(Header, u64)> {
    let mut bytes = bytes.as_slice();
    let header = StructuredHeader::parse(take(&mut bytes)?)?;
    Some((header.into(), u64::from_be_bytes(*take(&mut bytes)?)))
}

/// As [`structured`].
#[inline]
fn extended(bytes: &[u8; ExtendedHeader::SIZE + 8]) -> Option<(Header, u64)> {
    let mut bytes = bytes.as_slice();
    let header = ExtendedHeader::parse(take(&mut bytes)?)?;
    Some((header.into(), u64::from_be_bytes(*take(&mut bytes)?)))
}
