//! The extents of a status chunk: checked, and delivered.

use super::recv::{ClientStep, find};
use super::slots::Slot;
use super::state::{Extents, State};
use super::{Transmission, TransmissionEvent};
use crate::error::{Error, Violation};
use crate::features;
use crate::negotiated::StatusWidth;
use crate::step::Step;
use crate::wire::DecodeError;
use crate::wire::bytes::{take, take_slice};
use crate::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use crate::wire::flags::CommandFlags;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Delivers as many whole descriptors as the input holds; `None` if what is left
    /// of the chunk is to be discarded: a reply may cover less than the request.
    pub(super) fn extents<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<ClientStep<'i>>, Error> {
        let State::Extents(extents) = &mut self.state else {
            return Ok(None);
        };
        let (cookie, context, width) = (extents.cookie, extents.context, extents.width);
        let size = extents.size();
        let left = usize::try_from(extents.left).unwrap_or(usize::MAX);
        let count = left.min(input.len().checked_div(size).unwrap_or(0));
        let all = input.get(..count.saturating_mul(size)).unwrap_or_default();
        if all.is_empty() {
            // Whole descriptors, as many as the buffer holds.
            let most = self.limits.buffer().max(size);
            let needed = left.saturating_mul(size).min(most);
            return Ok(Some(Step::read(needed.saturating_sub(input.len()))));
        }
        let slot = find(&mut self.slots, cookie)?;
        let strict = self.strict;
        let begins = extents.at;
        let count = match extents.take_valid(all, slot, strict) {
            Ok(count) => count,
            Err(error) if strict => return Err(error),
            Err(error) => {
                let part = extents.part();
                if begins == 0 {
                    return Ok(Some(self.fault(part, error, input)));
                }
                self.state = State::Discard(part);
                return Ok(None);
            }
        };
        let offset = slot.offset.saturating_add(begins);
        let (left, last) = (extents.left, extents.last);
        if left == 0 {
            self.state = if last {
                slot.end(cookie)
            } else {
                State::Header
            };
        }
        let bytes = take_slice(input, count.saturating_mul(size)).unwrap_or_default();
        Ok(Some(Step::Event(if width == StatusWidth::Wide {
            let (extents, _) = Extents64::split(bytes);
            TransmissionEvent::Extents64 {
                cookie,
                context,
                offset,
                extents,
            }
        } else {
            let (extents, _) = Extents32::split(bytes);
            TransmissionEvent::Extents32 {
                cookie,
                context,
                offset,
                extents,
            }
        })))
    }
}

impl Extents {
    /// Takes the descriptors in `bytes`, the next ones of the chunk: those before the
    /// first that has a fault. So the events and the fault are the same however the
    /// chunk is fragmented. Returns how many.
    ///
    /// # Errors
    ///
    /// The fault of the first descriptor, if it has one; nothing has changed.
    fn take_valid(&mut self, bytes: &[u8], slot: &Slot, strict: bool) -> Result<usize, Error> {
        let count = if !features::SMALL
            && let Some(total) = self.all_valid(bytes, slot, strict)
        {
            self.at = self.at.saturating_add(total);
            bytes.len().checked_div(self.size()).unwrap_or(0)
        } else {
            self.take_each(bytes, slot, strict)?
        };
        let taken = u32::try_from(count).unwrap_or(u32::MAX);
        self.left = self.left.saturating_sub(taken);
        Ok(count)
    }

    /// Fast path: how many bytes of the export all the descriptors in `bytes`
    /// describe, if [`check`](Self::check) accepts each.
    fn all_valid(&self, bytes: &[u8], slot: &Slot, strict: bool) -> Option<u64> {
        let reach = if self.width == StatusWidth::Wide {
            let (extents, _) = Extents64::split(bytes);
            if self.status == StatusWidth::Narrow && extents.has_wide_flags() {
                return None;
            }
            extents.reach()
        } else {
            let (extents, _) = Extents32::split(bytes);
            extents.reach()
        }
        .ok()?;
        let several = self.at > 0 || bytes.len() > self.size();
        let not_one = several || strict && reach.total > slot.length;
        if slot.flags.contains(CommandFlags::REQ_ONE) && not_one {
            return None;
        }
        let begins = self.at.saturating_add(reach.last);
        (begins < slot.length || slot.length == 0).then_some(reach.total)
    }

    /// Slow path of [`take_valid`](Self::take_valid), the only one in firmware.
    #[cold]
    fn take_each(&mut self, mut bytes: &[u8], slot: &Slot, strict: bool) -> Result<usize, Error> {
        let mut count = 0_usize;
        while let Some(extent) = self.decode(&mut bytes) {
            match self.check(extent, slot, strict) {
                Ok(()) => {}
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            }
            count = count.saturating_add(1);
            self.at = self.at.saturating_add(extent.length);
        }
        Ok(count)
    }

    /// Takes a descriptor of the width of the chunk from `bytes`.
    pub(crate) fn decode(&self, bytes: &mut &[u8]) -> Option<Extent64> {
        match self.width {
            StatusWidth::Wide => take(bytes).map(Extent64::decode),
            StatusWidth::Narrow => take(bytes).map(Extent32::decode).map(Extent64::from),
        }
    }

    /// Checks the next descriptor of the chunk.
    pub(crate) fn check(&self, extent: Extent64, slot: &Slot, strict: bool) -> Result<(), Error> {
        if self.status == StatusWidth::Narrow && extent.flags > u64::from(u32::MAX) {
            return Err(Violation::StatusTooWide(self.context).into());
        }
        if extent.length == 0 {
            return Err(DecodeError::EmptyExtent.into());
        }
        // A longer one ends past the request, as the last of several may.
        let not_one = self.at > 0 || strict && extent.length > slot.length;
        if slot.flags.contains(CommandFlags::REQ_ONE) && not_one {
            return Err(Violation::NotOne(self.cookie).into());
        }
        // The last extent may reach past the end of the request, none may begin
        // there.
        if self.at >= slot.length && slot.length > 0 {
            return Err(Violation::ExtentBeyond(self.cookie).into());
        }
        Ok(())
    }
}
