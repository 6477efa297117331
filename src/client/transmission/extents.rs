//! The extents of a status chunk: checked, and delivered.

use super::recv::{ClientStep, find};
use super::slots::Slot;
use super::state::{Extents, State};
use super::{Transmission, TransmissionEvent};
use crate::error::{Error, Violation};
use crate::negotiated::StatusWidth;
use crate::step::Step;
use crate::wire::bytes::take_slice;
use crate::wire::extent::{Extents32, Extents64};
use crate::wire::flags::CommandFlags;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Delivers as many whole descriptors as the input holds; `None` if what is left
    /// of the chunk is to be discarded: a reply may cover less than the request.
    pub(super) fn extents<'i>(
        &mut self,
        mut extents: Extents,
        input: &mut &'i [u8],
    ) -> Result<Option<ClientStep<'i>>, Error> {
        let (cookie, context) = (extents.cookie, extents.context);
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
        let offset = slot.offset.saturating_add(extents.at);
        let end = slot.end(cookie);
        let (count, total) = match extents.check(all, slot, self.strict) {
            Ok(total) => (count, total),
            Err(_) => match extents.check_each(all, slot, self.strict) {
                Err(_) if !self.strict && extents.at > 0 => {
                    self.state = State::Discard(extents.part());
                    return Ok(None);
                }
                Err(error) if !self.strict => {
                    return Ok(Some(self.fault(extents.part(), error, input)));
                }
                checked => checked?,
            },
        };
        let bytes = take_slice(input, count.saturating_mul(size)).unwrap_or_default();
        let event = if extents.width == StatusWidth::Wide {
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
        };
        extents.at = extents.at.saturating_add(total);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        extents.left = extents.left.saturating_sub(count);
        self.state = match extents.left {
            0 if extents.last => end,
            0 => State::Header,
            _ => State::Extents(extents),
        };
        Ok(Some(Step::Event(event)))
    }
}

impl Extents {
    /// Checks the descriptors in `bytes`, the next ones of the chunk. Returns how
    /// many bytes of the export they describe.
    pub(crate) fn check(&self, bytes: &[u8], slot: &Slot, strict: bool) -> Result<u64, Error> {
        let reach = if self.width == StatusWidth::Wide {
            let (extents, _) = Extents64::split(bytes);
            if self.status == StatusWidth::Narrow && extents.has_wide_flags() {
                return Err(Violation::StatusTooWide(self.context).into());
            }
            extents.reach()?
        } else {
            let (extents, _) = Extents32::split(bytes);
            extents.reach()?
        };
        // A longer one ends past the request, as the last of several may.
        let several = self.at > 0 || bytes.len() > self.size();
        let not_one = several || strict && reach.total > slot.length;
        if slot.flags.contains(CommandFlags::REQ_ONE) && not_one {
            return Err(Violation::NotOne(self.cookie).into());
        }
        // The last extent may reach past the end of the request, none may begin
        // there.
        let begins = self.at.saturating_add(reach.last);
        if begins >= slot.length && slot.length > 0 {
            return Err(Violation::ExtentBeyond(self.cookie).into());
        }
        Ok(reach.total)
    }

    /// Slow path, where one of the descriptors has a fault: how many come before
    /// it, and how many bytes they describe. They are delivered first, so that the
    /// events and the fault are the same however the chunk is fragmented.
    #[cold]
    fn check_each(
        mut self,
        bytes: &[u8],
        slot: &Slot,
        strict: bool,
    ) -> Result<(usize, u64), Error> {
        let (mut count, mut total) = (0_usize, 0_u64);
        for one in bytes.chunks_exact(self.size()) {
            match self.check(one, slot, strict) {
                Ok(length) => {
                    count = count.saturating_add(1);
                    total = total.saturating_add(length);
                    self.at = self.at.saturating_add(length);
                }
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok((count, total))
    }
}
