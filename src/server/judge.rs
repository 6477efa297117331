//! Requests on their way in: judged by what was advertised, before they become
//! tokens.

use super::status::ContextSet;
use crate::error::{Error, Violation};
use crate::limits::Limits;
use crate::negotiated::{Framing, Negotiated};
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::{Command, ContextId, Cookie, ErrorValue};
use crate::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};

/// A request's header, of either framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: CommandFlags,
    pub(super) command: Command,
    pub(super) cookie: Cookie,
    pub(super) offset: u64,
    /// Effect length in bytes; the payload of block status has its own.
    pub(super) length: u64,
    /// Bytes that follow the header.
    pub(super) payload: u64,
}

impl From<CompactRequest> for Header {
    #[inline]
    fn from(request: CompactRequest) -> Self {
        Self {
            flags: request.flags,
            command: request.command,
            cookie: request.cookie,
            offset: request.offset,
            length: u64::from(request.length),
            payload: u64::from(request.payload_length()),
        }
    }
}

impl From<ExtendedRequest> for Header {
    #[inline]
    fn from(request: ExtendedRequest) -> Self {
        let payload = match request.command {
            // It must say so with PAYLOAD_LEN. QEMU's client does not, and a
            // write without its data has no meaning.
            Command::WRITE => request.length,
            _ => request.payload_length(),
        };
        Self {
            flags: request.flags,
            command: request.command,
            cookie: request.cookie,
            offset: request.offset,
            length: request.length,
            payload,
        }
    }
}

/// What a client did wrong, and the error that the specification names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) error: ErrorValue,
    pub(super) text: &'static str,
}

impl Fault {
    pub(super) const STATUS_PAYLOAD: Self = invalid("block status payload of impossible length");
}

const fn fault(error: ErrorValue, text: &'static str) -> Fault {
    Fault { error, text }
}

const fn invalid(text: &'static str) -> Fault {
    fault(ErrorValue::EINVAL, text)
}

/// What requests are judged by.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) export: Negotiated,
    pub(super) limits: Limits,
    /// The largest size the export ever had on this connection.
    pub(super) largest: u64,
    pub(super) shutting_down: bool,
}

impl Rules {
    /// The contexts selected.
    pub(super) fn contexts(&self) -> ContextSet {
        let contexts = self.export.contexts.iter();
        contexts.fold(ContextSet::NONE, |set, context| set.with(context.id))
    }

    /// Whether the payload is one that nobody can mean.
    #[inline]
    pub(super) fn bound_payload(&self, header: &Header) -> Result<(), Error> {
        let maximum = u64::from(self.export.constraints().maximum);
        let bound = match self.export.framing {
            Framing::Extended => maximum,
            _ => maximum.max(u64::from(self.limits.payload)),
        };
        match header.payload > bound {
            true => Err(Violation::PayloadTooLong {
                command: header.command,
                length: header.payload,
            }
            .into()),
            false => Ok(()),
        }
    }

    /// Everything but the range of the effect.
    #[inline(never)]
    pub(super) fn check_form(&self, header: &Header) -> Result<(), Fault> {
        if self.shutting_down {
            return Err(fault(ErrorValue::ESHUTDOWN, "the server is shutting down"));
        }
        self.check_command(header.command)?;
        self.check_flags(header)?;
        self.check_payload(header)
    }

    fn check_command(&self, command: Command) -> Result<(), Fault> {
        let has = |flag| self.export.flags.contains(flag);
        let writes = matches!(
            command,
            Command::WRITE | Command::TRIM | Command::WRITE_ZEROES | Command::RESIZE
        );
        if writes && has(TransmissionFlags::READ_ONLY) {
            return Err(fault(ErrorValue::EPERM, "the export is read-only"));
        }
        let advertised = match command {
            Command::READ | Command::WRITE => true,
            Command::FLUSH => has(TransmissionFlags::SEND_FLUSH),
            Command::TRIM => has(TransmissionFlags::SEND_TRIM),
            Command::CACHE => has(TransmissionFlags::SEND_CACHE),
            Command::WRITE_ZEROES => has(TransmissionFlags::SEND_WRITE_ZEROES),
            Command::RESIZE => has(TransmissionFlags::SEND_RESIZE),
            Command::BLOCK_STATUS => {
                self.export.framing != Framing::Simple && !self.export.contexts.is_empty()
            }
            _ => return Err(invalid("unknown command")),
        };
        match (advertised, command) {
            (true, _) => Ok(()),
            (false, Command::BLOCK_STATUS) => Err(invalid("no metadata context was selected")),
            (false, _) => Err(invalid("the command was not advertised")),
        }
    }

    fn check_flags(&self, header: &Header) -> Result<(), Fault> {
        let has = |flag| self.export.flags.contains(flag);
        let mut allowed = CommandFlags::NONE;
        if has(TransmissionFlags::SEND_FUA) {
            // On any command: clients are known to set it on reads.
            allowed |= CommandFlags::FUA;
        }
        match header.command {
            Command::READ if has(TransmissionFlags::SEND_DF) => allowed |= CommandFlags::DF,
            Command::WRITE_ZEROES => {
                allowed |= CommandFlags::NO_HOLE;
                if has(TransmissionFlags::SEND_FAST_ZERO) {
                    allowed |= CommandFlags::FAST_ZERO;
                }
            }
            Command::BLOCK_STATUS => allowed |= CommandFlags::REQ_ONE,
            _ => {}
        }
        if self.export.framing == Framing::Extended {
            // What may carry a payload is judged with the payload.
            allowed |= CommandFlags::PAYLOAD_LEN;
        }
        match header.flags.difference(allowed).is_empty() {
            true => Ok(()),
            false => Err(invalid(
                "command flag not advertised, or not of this command",
            )),
        }
    }

    fn check_payload(&self, header: &Header) -> Result<(), Fault> {
        let with = header.flags.contains(CommandFlags::PAYLOAD_LEN);
        let maximum = u64::from(self.export.constraints().maximum);
        match header.command {
            Command::WRITE if header.payload > maximum => {
                Err(invalid("longer than the maximum payload"))
            }
            Command::WRITE => Ok(()),
            Command::BLOCK_STATUS if with => {
                let supported = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
                if !self.export.flags.contains(supported) {
                    return Err(invalid("block status takes no payload"));
                }
                self.check_status_payload(header.payload)
            }
            _ if with => Err(invalid("the command takes no payload")),
            _ => Ok(()),
        }
    }

    /// A payload with more ids than there are contexts has one that is unknown
    /// or twice, whatever it holds.
    fn check_status_payload(&self, length: u64) -> Result<(), Fault> {
        let selected = u64::try_from(self.export.contexts.len()).unwrap_or(u64::MAX);
        match BlockStatusPayload::count(length) {
            Ok(count) if (1..=selected).contains(&count) => Ok(()),
            _ => Err(Fault::STATUS_PAYLOAD),
        }
    }

    /// The contexts a block status payload asks about.
    pub(super) fn asked(&self, payload: &BlockStatusPayload<'_>) -> Result<ContextSet, Fault> {
        let selected = self.contexts();
        payload
            .contexts
            .iter()
            .try_fold(ContextSet::NONE, |asked, id: ContextId| {
                match selected.holds(id) && !asked.holds(id) {
                    true => Ok(asked.with(id)),
                    false => Err(invalid("metadata context unknown, or named twice")),
                }
            })
    }

    /// The range of the effect.
    #[inline(never)]
    pub(super) fn check_range(&self, header: &Header) -> Result<(), Fault> {
        let Header {
            command,
            offset,
            length,
            ..
        } = *header;
        if matches!(command, Command::FLUSH | Command::RESIZE) {
            return Ok(());
        }
        if length == 0 {
            return Err(invalid("a length of zero has no defined meaning"));
        }
        let constraints = self.export.constraints();
        // The minimum is a power of two: one test for both.
        let mask = u64::from(constraints.minimum).saturating_sub(1);
        if (offset | length) & mask != 0 {
            return Err(invalid("offset or length is not aligned"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.export.size => {}
            end => return Err(self.beyond(command, end)),
        }
        let (most, error) = match command {
            Command::READ => self.longest_read(),
            Command::WRITE_ZEROES if header.flags.contains(CommandFlags::FAST_ZERO) => {
                return Ok(());
            }
            Command::TRIM | Command::CACHE | Command::WRITE_ZEROES => {
                (self.limits.effect, ErrorValue::EOVERFLOW)
            }
            _ => return Ok(()),
        };
        match length > most {
            true => Err(fault(error, "the request is too long; split it")),
            false => Ok(()),
        }
    }

    fn beyond(&self, command: Command, end: Option<u64>) -> Fault {
        let was_inside = end.is_some_and(|end| end <= self.largest);
        let error = match command {
            Command::WRITE | Command::WRITE_ZEROES => ErrorValue::ENOSPC,
            // What a resize took away (resize extension).
            _ if was_inside => ErrorValue::ENOSPC,
            _ => ErrorValue::EINVAL,
        };
        fault(error, "the range ends behind the export")
    }

    /// The longest read in bytes, and the error of a longer one.
    fn longest_read(&self) -> (u64, ErrorValue) {
        let maximum = self.export.constraints().maximum;
        match self.export.framing {
            Framing::Simple => (u64::from(maximum), ErrorValue::EINVAL),
            // The offset of a data chunk counts in its 32 bits of length.
            _ => (u64::from(maximum.min(u32::MAX - 8)), ErrorValue::EOVERFLOW),
        }
    }
}
