//! Commands: checked against what the server accepts, and made.

use super::Transmission;
use super::slots::Slot;
use super::state::State;
use crate::client::request::{Request, RequestHeader};
use crate::error::{Error, Misuse};
use crate::features;
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::{Command, ContextId, Cookie};
use crate::wire::request::BlockStatusPayload;
use crate::wire::{EncodeError, Sink};

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Makes a command.
    ///
    /// Write [`RequestHeader::as_bytes`], followed by
    /// [`RequestHeader::payload_length`] bytes of payload. A header that will
    /// not be written goes to [`retract`](Self::retract).
    ///
    /// # Errors
    ///
    /// The first [`Misuse`] of these that applies; nothing has changed. With
    /// [`lenient`](Self::lenient) only the first three and the last two do.
    ///
    /// | misuse | when |
    /// |---|---|
    /// | [`Failed`](Misuse::Failed) | the session is over |
    /// | [`State`](Misuse::State) | `DISC` was sent, or is the command: it has its own [method](Self::disconnect) |
    /// | [`NotCompiled`](Misuse::NotCompiled) | `RESIZE` without the feature `resize` |
    /// | [`NotAdvertised`](Misuse::NotAdvertised), [`ReadOnly`](Misuse::ReadOnly), [`NoContext`](Misuse::NoContext) | the server does not accept the command |
    /// | [`Flag`](Misuse::Flag) | the server does not accept one of its flags |
    /// | [`NoRange`](Misuse::NoRange) | `FLUSH` has an offset or a length, or `RESIZE` a length |
    /// | [`ZeroLength`](Misuse::ZeroLength), [`Misaligned`](Misuse::Misaligned), [`OutOfBounds`](Misuse::OutOfBounds) | the range is impossible |
    /// | [`TooLarge`](Misuse::TooLarge) | the payload is above the maximum; that of a read too, with every framing |
    /// | [`Resizing`](Misuse::Resizing) | a `RESIZE` in flight may take the range away; for `RESIZE`: another one is in flight, or a command past the new end |
    /// | [`NotExpressible`](Misuse::NotExpressible) | the framing has no field for the length |
    /// | [`Full`](Misuse::Full) | every slot is in flight |
    // Inlined, the header is made where the caller keeps it, and not copied.
    #[cfg_attr(target_pointer_width = "64", inline(always))]
    pub fn submit(&mut self, request: Request) -> Result<RequestHeader, Misuse> {
        let cookie = match self.start_data(&request) {
            Some(cookie) => cookie,
            None => self.start_slow(&request)?,
        };
        let framing = self.export.framing.compiled();
        Ok(request.encode(framing, request.payload(), cookie))
    }

    /// Fast path: checks a read or a write, and fills a slot for it. Of anything
    /// else nothing has changed.
    #[cfg_attr(target_pointer_width = "64", inline(always))]
    fn start_data(&mut self, request: &Request) -> Option<Cookie> {
        let accepted = !features::SMALL && self.capabilities.accept_data(request);
        let slot = Slot::new(request, 0);
        accepted.then(|| self.slots.insert(slot)).flatten()
    }

    /// Slow path of [`start_data`](Self::start_data): commands without payload,
    /// and those to be refused.
    #[inline(never)]
    fn start_slow(&mut self, request: &Request) -> Result<Cookie, Misuse> {
        let asked = self.accept(request)?;
        self.start(request, asked)
    }

    /// Checks a command. Returns one bit for each context that is to be
    /// answered.
    fn accept(&mut self, request: &Request) -> Result<u32, Misuse> {
        self.check(request)?;
        request.check_fields(self.export.framing)?;
        match request.command {
            Command::BLOCK_STATUS if features::STRUCTURED => {
                return Ok(self.export.contexts.mask());
            }
            Command::RESIZE if features::RESIZE => {
                if self.slots.is_full() {
                    return Err(Misuse::Full);
                }
                self.resizing = Some(request.offset);
                self.capabilities.fast_end = 0;
            }
            _ => {}
        }
        Ok(0)
    }

    /// Fills a slot for a command that was checked, with one bit for each
    /// context that is to be answered.
    fn start(&mut self, request: &Request, asked: u32) -> Result<Cookie, Misuse> {
        let slot = Slot::new(request, asked);
        self.slots.insert(slot).ok_or(Misuse::Full)
    }

    /// Makes a block status command for some of the selected contexts, whose
    /// payload is written into `payload`.
    ///
    /// Needs extended headers and a server with `BLOCK_STATUS_PAYLOAD`. Flags:
    /// `REQ_ONE`.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit), and [`Misuse::Context`] for contexts that
    /// were not selected or are named twice, [`Misuse::NoContext`] for none.
    pub fn block_status_of(
        &mut self,
        contexts: &[ContextId],
        offset: u64,
        length: u64,
        flags: CommandFlags,
        payload: &mut dyn Sink,
    ) -> Result<RequestHeader, Misuse> {
        let request = Request::block_status(offset, length).with_flags(flags);
        self.check(&request)?;
        let supported = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        if !self.lenient && !self.export.flags.contains(supported) {
            return Err(Misuse::Flag);
        }
        let asked = self.contexts_mask(contexts)?;
        if self.slots.is_full() {
            return Err(Misuse::Full);
        }
        let bytes = u32::try_from(contexts.len())
            .ok()
            .and_then(|n| n.checked_mul(4)?.checked_add(8))
            .ok_or(EncodeError::TooLong)?;
        let framing = self.export.framing;
        if !framing.is_extended() {
            return Err(Misuse::NotExpressible { framing });
        }
        BlockStatusPayload {
            effect_length: length,
            contexts: contexts.into(),
        }
        .encode(payload)?;
        let cookie = self.start(&request, asked)?;
        Ok(request.encode(framing, Some(bytes), cookie))
    }

    /// Takes back a command of which no byte was written, as after a failure
    /// to write anything before it: its slot is free again.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] if the command is not in flight, or has been answered
    /// in part; nothing has changed.
    pub fn retract(&mut self, header: RequestHeader) -> Result<(), Misuse> {
        let cookie = header.cookie();
        let disc = header.command() == Command::DISC;
        let answering = self.state.cookie() == Some(cookie);
        let Some(slot) = self.slots.find(cookie).filter(|_| !disc && !answering) else {
            return Err(Misuse::State("the command is not in flight"));
        };
        if !slot.is_untouched() {
            return Err(Misuse::State("the command is being answered"));
        }
        let resize = slot.command == Command::RESIZE;
        self.slots.remove(cookie);
        if resize {
            self.resized(None);
        }
        Ok(())
    }

    /// Makes `DISC`, which ends the session. It has no reply; nothing can be
    /// sent after it. It is better to wait first until nothing is in flight.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if it was sent already, or the session is over.
    pub fn disconnect(&mut self) -> Result<RequestHeader, Misuse> {
        self.check_open()?;
        let request = Request {
            command: Command::DISC,
            flags: CommandFlags::NONE,
            offset: 0,
            length: 0,
        };
        self.disconnected = true;
        self.capabilities.fast_end = 0;
        Ok(request.encode(self.export.framing, None, Cookie(0)))
    }

    fn check_open(&self) -> Result<(), Misuse> {
        match self.state {
            State::Failed(error) => Err(Misuse::Failed(error)),
            State::Ended => Err(Misuse::Failed(Error::Closed)),
            _ if self.disconnected => Err(Misuse::State("DISC was sent already")),
            _ => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Misuse> {
        self.check_open()?;
        if request.command == Command::DISC {
            return Err(Misuse::State("use disconnect to end the session"));
        }
        if request.command == Command::RESIZE {
            features::require(features::RESIZE, "resize")?;
        }
        if self.lenient {
            return Ok(());
        }
        // While a resize is in flight: neither what it takes away nor what it
        // adds.
        let size = self.export.size;
        let resizing = self.resizing.filter(|_| features::RESIZE);
        let left = resizing.map_or(size, |new| new.min(size));
        match self.capabilities.check(request, left) {
            Err(Misuse::OutOfBounds { .. }) if left < size => {
                self.capabilities.check(request, size)?;
                return Err(Misuse::Resizing);
            }
            checked => checked?,
        }
        match request.command {
            Command::RESIZE if features::RESIZE => self.check_resize(request.offset),
            _ => Ok(()),
        }
    }

    /// A resize excludes another one, and commands past the new end.
    fn check_resize(&self, size: u64) -> Result<(), Misuse> {
        let cut = self.slots.iter().any(|(_, slot)| slot.range_end() > size);
        if cut || self.resizing.is_some() {
            return Err(Misuse::Resizing);
        }
        Ok(())
    }

    /// One bit for each of these contexts.
    fn contexts_mask(&self, contexts: &[ContextId]) -> Result<u32, Misuse> {
        let mut asked = 0;
        for id in contexts {
            match self.export.contexts.bit(*id) {
                Some((bit, _)) if asked & bit == 0 => asked |= bit,
                Some((bit, _)) if self.lenient => asked |= bit,
                None if self.lenient => {}
                _ => return Err(Misuse::Context(*id)),
            }
        }
        if contexts.is_empty() && !self.lenient {
            return Err(Misuse::NoContext);
        }
        Ok(asked)
    }
}
