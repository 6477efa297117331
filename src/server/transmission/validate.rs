//! Requests checked against what was advertised, before they are handed out.

use crate::error::{Error, Violation};
use crate::features;
use crate::limits::Limits;
use crate::negotiated::{Framing, Negotiated};
use crate::server::request::ContextSet;
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::{Command, ContextId, Cookie, ErrorValue};
use crate::wire::option_reply::BlockSizes;
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

impl Header {
    /// Whether the command has a range.
    fn has_range(&self) -> bool {
        !matches!(self.command, Command::FLUSH | Command::RESIZE)
    }

    /// Whether the command has a range, and that is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0 && self.has_range()
    }
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
            // QEMU's client does not set PAYLOAD_LEN, and a write without its
            // data has no meaning.
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

/// What requests are checked against.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) export: Negotiated,
    /// The size constraints in force.
    pub(super) sizes: BlockSizes,
    pub(super) limits: Limits,
    /// The largest size the export ever had on this connection.
    pub(super) largest: u64,
    pub(super) shutting_down: bool,
    /// What the specification forbids a client is not accepted.
    pub(super) strict: bool,
}

impl Rules {
    pub(super) fn new(export: Negotiated, limits: Limits) -> Self {
        Self {
            largest: export.size,
            sizes: export.constraints(),
            export,
            limits,
            shutting_down: false,
            strict: false,
        }
    }

    /// The contexts selected.
    pub(super) fn contexts(&self) -> ContextSet {
        let contexts = self.export.contexts.iter();
        contexts.fold(ContextSet::NONE, |set, context| set.with(context.id))
    }

    /// Fast path: whether a read without flags is one that
    /// [`check_form`](Self::check_form) and [`check_range`](Self::check_range)
    /// accept, and is not empty.
    #[inline]
    pub(super) fn accepts_read(&self, header: &Header) -> bool {
        let Header { offset, length, .. } = *header;
        let mask = self.mask();
        let (most, _) = self.longest_read();
        let sized = length > 0 && length <= most && (offset | length) & mask == 0;
        let size = self.export.size;
        let inside = length <= size && offset <= size.saturating_sub(length);
        sized && inside && !self.shutting_down
    }

    /// The bits that no offset and no length has: the minimum block size is a
    /// power of two.
    #[inline]
    fn mask(&self) -> u64 {
        u64::from(self.sizes.minimum).saturating_sub(1)
    }

    /// Refuses a payload of implausible length.
    #[inline]
    pub(super) fn bound_payload(&self, header: &Header) -> Result<(), Error> {
        let maximum = u64::from(self.sizes.maximum);
        // The specification wants a hard disconnect if PAYLOAD_LEN announces it.
        let announced = self.strict || header.flags.contains(CommandFlags::PAYLOAD_LEN);
        let bound = match self.export.framing.compiled() {
            Framing::Extended if announced => maximum,
            _ => maximum.max(u64::from(self.limits.payload)),
        };
        if header.payload > bound {
            Err(Violation::PayloadTooLong {
                command: header.command,
                length: header.payload,
            }
            .into())
        } else {
            Ok(())
        }
    }

    /// `DISC` has no reply, so a fault in it can only end the session.
    pub(super) fn check_disconnect(&self, header: &Header) -> Result<(), Error> {
        let used = (header.offset | header.length) != 0;
        if self.strict && used {
            Err(Violation::NoRange(Command::DISC).into())
        } else {
            Ok(())
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
            Command::RESIZE => features::RESIZE && has(TransmissionFlags::SEND_RESIZE),
            Command::BLOCK_STATUS => {
                self.export.framing.has_chunks() && !self.export.contexts.is_empty()
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
        if self.export.framing.is_extended() {
            // Which commands may have it is checked with the payload.
            allowed |= CommandFlags::PAYLOAD_LEN;
        }
        if header.flags.difference(allowed).is_empty() {
            Ok(())
        } else {
            Err(invalid(
                "command flag not advertised, or not of this command",
            ))
        }
    }

    fn check_payload(&self, header: &Header) -> Result<(), Fault> {
        let with = header.flags.contains(CommandFlags::PAYLOAD_LEN);
        let maximum = u64::from(self.sizes.maximum);
        match header.command {
            Command::WRITE if header.payload > maximum => {
                Err(invalid("longer than the maximum payload"))
            }
            Command::WRITE if self.strict && !with && self.export.framing.is_extended() => {
                Err(invalid("a write without NBD_CMD_FLAG_PAYLOAD_LEN"))
            }
            Command::WRITE => Ok(()),
            Command::BLOCK_STATUS if features::EXTENDED && with => {
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

    /// A payload with more ids than there are contexts has an unknown or a
    /// repeated one, whatever it holds.
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
                if selected.holds(id) && !asked.holds(id) {
                    Ok(asked.with(id))
                } else {
                    Err(invalid("metadata context unknown, or named twice"))
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
        if !header.has_range() {
            let used = length != 0 || (offset != 0 && command != Command::RESIZE);
            return if self.strict && used {
                Err(invalid("the command has no range"))
            } else {
                Ok(())
            };
        }
        // No chunk reports the status of nothing: an extent has a length.
        if length == 0 && (self.strict || command == Command::BLOCK_STATUS) {
            return Err(invalid("a length of zero has no defined meaning"));
        }
        if (offset | length) & self.mask() != 0 {
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
                (self.limits.max_effect_length, ErrorValue::EOVERFLOW)
            }
            _ => return Ok(()),
        };
        if length > most {
            Err(fault(error, "the request is too long; split it"))
        } else {
            Ok(())
        }
    }

    fn beyond(&self, command: Command, end: Option<u64>) -> Fault {
        let was_inside = end.is_some_and(|end| end <= self.largest);
        let error = match command {
            Command::WRITE | Command::WRITE_ZEROES => ErrorValue::ENOSPC,
            // What a resize took away (resize extension).
            _ if features::RESIZE && was_inside => ErrorValue::ENOSPC,
            _ => ErrorValue::EINVAL,
        };
        fault(error, "the range ends past the end of the export")
    }

    /// The longest read in bytes, and the error of a longer one.
    #[inline]
    fn longest_read(&self) -> (u64, ErrorValue) {
        let maximum = self.sizes.maximum;
        match self.export.framing.compiled() {
            Framing::Simple => (u64::from(maximum), ErrorValue::EINVAL),
            // The offset of a data chunk counts in its 32 bits of length.
            _ => (u64::from(maximum.min(u32::MAX - 8)), ErrorValue::EOVERFLOW),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 28;

    /// Numbers at every edge there is, and the powers of two around them.
    fn edges() -> impl Iterator<Item = u64> + Clone {
        let powers = (0..64).map(|bit| 1u64.wrapping_shl(bit));
        let edges = powers.chain([0, SIZE, u64::from(u32::MAX), u64::MAX]);
        edges.flat_map(|n| [n.wrapping_sub(1), n, n.wrapping_add(1)])
    }

    fn read(offset: u64, length: u64) -> Header {
        Header {
            flags: CommandFlags::NONE,
            command: Command::READ,
            cookie: Cookie(7),
            offset,
            length,
            payload: 0,
        }
    }

    /// The fast path takes the reads without flags that the slow path hands out,
    /// and no others.
    #[test]
    fn fast_path_accepts_what_slow_path_accepts() {
        for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
            for (minimum, size) in [(1, SIZE), (512, SIZE), (1, u64::MAX), (1, 0)] {
                for shutting_down in [false, true] {
                    let flags = TransmissionFlags::HAS_FLAGS;
                    let mut export = Negotiated::new(framing, size, flags);
                    let mut sizes = export.constraints();
                    sizes.minimum = minimum;
                    export.block_sizes = Some(sizes);
                    let mut rules = Rules::new(export, Limits::DEFAULT);
                    rules.shutting_down = shutting_down;
                    for offset in edges() {
                        for length in edges() {
                            let header = read(offset, length);
                            let form = rules.check_form(&header);
                            let checked = form.and_then(|()| rules.check_range(&header));
                            // A read of nothing is answered without the caller.
                            let handed_out = checked.is_ok() && length > 0;
                            assert_eq!(rules.accepts_read(&header), handed_out, "{header:?}");
                        }
                    }
                }
            }
        }
    }

    /// Anything else takes the slow path.
    #[test]
    fn other_commands_and_flags_take_the_slow_path() {
        let header = |command: u16, flags: u16| {
            let (flags, command, cookie) = (CommandFlags(flags), Command(command), Cookie(7));
            let compact = CompactRequest {
                flags,
                command,
                cookie,
                offset: 0,
                length: 512,
            };
            let extended = ExtendedRequest {
                flags,
                command,
                cookie,
                offset: 0,
                length: 512,
            };
            let compact = CompactRequest::parse_plain_read(&compact.encode()).map(Header::from);
            let extended = ExtendedRequest::parse_plain_read(&extended.encode()).map(Header::from);
            assert_eq!(compact, extended);
            compact
        };
        assert_eq!(header(0, 0), Some(read(0, 512)));
        for bit in 0..16 {
            let bit = 1u16.wrapping_shl(bit);
            assert_eq!(header(bit, 0), None);
            assert_eq!(header(0, bit), None);
        }
    }
}
