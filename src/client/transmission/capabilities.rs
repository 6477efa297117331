//! What the server accepts: computed once from what it advertised. Every
//! command is checked against it before a byte is made.

use crate::client::request::Request;
use crate::error::Misuse;
use crate::negotiated::{Framing, Negotiated};
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::Command;

/// The rules for every command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    rules: [Rule; 9],
    /// The minimum block size less one; it is a power of two.
    unaligned: u32,
    /// The maximum payload in bytes.
    maximum: u32,
    /// The end of the range that the fast path accepts: the export's size, or
    /// zero while more than the rules has to be checked.
    pub(super) fast_end: u64,
}

/// The rules for one command.
#[derive(Debug, Clone, Copy)]
struct Rule {
    kind: Kind,
    /// The flags that it may not carry.
    refused: CommandFlags,
}

impl Rule {
    const NONE: Self = Self {
        kind: Kind::NotAdvertised,
        refused: CommandFlags::NONE,
    };
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Accepted, and has no range.
    Whole,
    /// Accepted within the export.
    Range,
    /// Accepted within the export, and its length is that of a payload.
    Payload,
    NotAdvertised,
    ReadOnly,
    NoContext,
}

impl Capabilities {
    #[inline]
    pub(super) fn new(export: &Negotiated) -> Self {
        let sizes = export.constraints();
        let mut rules = [Rule::NONE; 9];
        for (rule, number) in rules.iter_mut().zip(0..) {
            let command = Command(number);
            rule.kind = kind(command, export);
            rule.refused = CommandFlags(!flags(command, export).0);
        }
        Self {
            rules,
            unaligned: sizes.minimum.saturating_sub(1),
            maximum: sizes.maximum,
            fast_end: export.size,
        }
    }

    /// Fast path: whether this is a read or a write that
    /// [`check`](Self::check) accepts, that every framing has fields for, and
    /// that ends before [`fast_end`](Self::fast_end).
    #[inline]
    pub(super) fn accept_data(&self, request: &Request) -> bool {
        let Some(rule) = self.rules.get(usize::from(request.command.0)) else {
            return false;
        };
        let Request { offset, length, .. } = *request;
        let payload = matches!(rule.kind, Kind::Payload);
        let sized = length > 0 && length <= u64::from(self.maximum);
        let inside = length <= self.fast_end && offset <= self.fast_end.saturating_sub(length);
        let aligned = (offset | length) & u64::from(self.unaligned) == 0;
        payload && sized && inside && aligned && request.flags.intersection(rule.refused).is_empty()
    }

    /// Checks a command for an export of `size` bytes.
    pub(super) fn check(&self, request: &Request, size: u64) -> Result<(), Misuse> {
        let command = request.command;
        let Some(rule) = self.rules.get(usize::from(command.0)) else {
            return Err(Misuse::NotAdvertised(command));
        };
        match rule.kind {
            Kind::Payload | Kind::Range | Kind::Whole => {}
            Kind::NotAdvertised => return Err(Misuse::NotAdvertised(command)),
            Kind::ReadOnly => return Err(Misuse::ReadOnly),
            Kind::NoContext => return Err(Misuse::NoContext),
        }
        if !request.flags.intersection(rule.refused).is_empty() {
            return Err(Misuse::Flag);
        }
        let Request { offset, length, .. } = *request;
        if matches!(rule.kind, Kind::Whole) {
            // The new size of a resize is in the field of the offset.
            return if length == 0 && (offset == 0 || command == Command::RESIZE) {
                Ok(())
            } else {
                Err(Misuse::NoRange(command))
            };
        }
        if length == 0 {
            return Err(Misuse::ZeroLength);
        }
        if (offset | length) & u64::from(self.unaligned) != 0 {
            let minimum = self.unaligned.saturating_add(1);
            return Err(Misuse::Misaligned { minimum });
        }
        if length > size || offset > size.saturating_sub(length) {
            return Err(Misuse::OutOfBounds { size });
        }
        let maximum = self.maximum;
        if matches!(rule.kind, Kind::Payload) && length > u64::from(maximum) {
            return Err(Misuse::TooLarge { maximum });
        }
        Ok(())
    }
}

fn kind(command: Command, export: &Negotiated) -> Kind {
    use TransmissionFlags as T;
    let (needs, kind) = match command {
        Command::READ | Command::WRITE => (T::NONE, Kind::Payload),
        Command::FLUSH => (T::SEND_FLUSH, Kind::Whole),
        Command::TRIM => (T::SEND_TRIM, Kind::Range),
        Command::CACHE => (T::SEND_CACHE, Kind::Range),
        Command::WRITE_ZEROES => (T::SEND_WRITE_ZEROES, Kind::Range),
        // Its answer is made of chunks.
        Command::BLOCK_STATUS if export.contexts.is_empty() || !chunks(export) => {
            return Kind::NoContext;
        }
        Command::BLOCK_STATUS => (T::NONE, Kind::Range),
        Command::RESIZE => (T::SEND_RESIZE, Kind::Whole),
        _ => return Kind::NotAdvertised,
    };
    let writes = matches!(
        command,
        Command::WRITE | Command::TRIM | Command::WRITE_ZEROES | Command::RESIZE
    );
    if !export.flags.contains(needs) {
        Kind::NotAdvertised
    } else if writes && export.flags.contains(T::READ_ONLY) {
        Kind::ReadOnly
    } else {
        kind
    }
}

impl Negotiated {
    /// Whether the server accepts a command: what
    /// [`Transmission::submit`](crate::client::Transmission::submit) would
    /// answer before anything is in flight, without sending it.
    ///
    /// # Errors
    ///
    /// [`Misuse`], as `submit`.
    pub fn check(&self, request: &Request) -> Result<(), Misuse> {
        Capabilities::new(self).check(request, self.size)?;
        request.check_fields(self.framing)
    }

    /// Splits a request into ones that the server accepts: none longer than
    /// the maximum payload (`READ`, `WRITE`) or than the framing can express
    /// (all others), each a multiple of the minimum block size but for the
    /// last. They cover the range of the request in order, without gaps.
    ///
    /// The range itself is not checked: see [`check`](Self::check).
    #[must_use = "the requests are to be submitted"]
    pub fn split(&self, request: Request) -> Split {
        let sizes = self.constraints();
        let payload = matches!(request.command, Command::READ | Command::WRITE);
        let most = match (payload, self.framing.compiled()) {
            (true, _) => u64::from(sizes.maximum),
            (false, Framing::Extended) => u64::MAX,
            (false, _) => u64::from(u32::MAX),
        };
        // The minimum is a power of two.
        let unaligned = u64::from(sizes.minimum).saturating_sub(1);
        Split {
            piece: (most & !unaligned).max(1),
            request,
            done: false,
        }
    }
}

/// The requests that [`Negotiated::split`] makes of one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Split {
    /// What is left.
    request: Request,
    /// Longest request in bytes.
    piece: u64,
    done: bool,
}

impl Iterator for Split {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if self.done {
            return None;
        }
        let Request { offset, length, .. } = self.request;
        let taken = length.min(self.piece);
        // An end past 2^64 is within no export, and the server's to refuse.
        self.request.offset = offset.saturating_add(taken);
        self.request.length = length.saturating_sub(taken);
        self.done = self.request.length == 0;
        Some(Request {
            offset,
            length: taken,
            ..self.request
        })
    }
}

fn chunks(export: &Negotiated) -> bool {
    export.framing.has_chunks()
}

fn flags(command: Command, export: &Negotiated) -> CommandFlags {
    use TransmissionFlags as T;
    let when = |advertised, flag| if advertised { flag } else { CommandFlags::NONE };
    let has = |flag| export.flags.contains(flag);
    let own = match command {
        Command::READ => when(chunks(export) && has(T::SEND_DF), CommandFlags::DF),
        Command::WRITE_ZEROES => {
            CommandFlags::NO_HOLE | when(has(T::SEND_FAST_ZERO), CommandFlags::FAST_ZERO)
        }
        Command::BLOCK_STATUS => CommandFlags::REQ_ONE,
        _ => CommandFlags::NONE,
    };
    own | when(has(T::SEND_FUA), CommandFlags::FUA)
}
