//! What the server accepts, worked out once from what it advertised; and what
//! is refused for it before a byte is made.

use crate::client::request::Request;
use crate::error::Misuse;
use crate::negotiated::{Framing, Negotiated};
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::Command;

/// The rules for every command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accepted {
    rules: [Rule; 9],
    /// The minimum block size less one; it is a power of two.
    unaligned: u32,
    /// The maximum payload in bytes.
    maximum: u32,
    /// The end of what is accepted without a second look: the export's size,
    /// or zero while there is more to look at than the rules.
    pub(super) reach: u64,
}

/// The rules for one command.
#[derive(Debug, Clone, Copy)]
struct Rule {
    verdict: Verdict,
    /// The flags it may carry.
    flags: CommandFlags,
}

impl Rule {
    const NONE: Self = Self {
        verdict: Verdict::NotAdvertised,
        flags: CommandFlags::NONE,
    };
}

#[derive(Debug, Clone, Copy)]
enum Verdict {
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

impl Accepted {
    pub(super) fn new(export: &Negotiated) -> Self {
        let sizes = export.constraints();
        let mut rules = [Rule::NONE; 9];
        for (rule, number) in rules.iter_mut().zip(0..) {
            let command = Command(number);
            rule.verdict = verdict(command, export);
            rule.flags = flags(command, export);
        }
        Self {
            rules,
            unaligned: sizes.minimum.saturating_sub(1),
            maximum: sizes.maximum,
            reach: export.size,
        }
    }

    /// Whether a command is one of the many that carry data and that nothing
    /// is wrong with: [`check`](Self::check) accepts it, every framing has
    /// fields for it, and it lies within [`reach`](Self::reach).
    #[inline]
    pub(super) fn data(&self, request: &Request) -> bool {
        let Some(rule) = self.rules.get(usize::from(request.command.0)) else {
            return false;
        };
        let Request { offset, length, .. } = *request;
        let payload = matches!(rule.verdict, Verdict::Payload);
        let sized = length > 0 && length <= u64::from(self.maximum);
        let inside = length <= self.reach && offset <= self.reach.saturating_sub(length);
        let aligned = (offset | length) & u64::from(self.unaligned) == 0;
        payload && sized && inside && aligned && request.flags.difference(rule.flags).is_empty()
    }

    /// Judges a command on an export of `size` bytes.
    pub(super) fn check(&self, request: &Request, size: u64) -> Result<(), Misuse> {
        let command = request.command;
        let Some(rule) = self.rules.get(usize::from(command.0)) else {
            return Err(Misuse::NotAdvertised(command));
        };
        match rule.verdict {
            Verdict::Payload | Verdict::Range | Verdict::Whole => {}
            Verdict::NotAdvertised => return Err(Misuse::NotAdvertised(command)),
            Verdict::ReadOnly => return Err(Misuse::ReadOnly),
            Verdict::NoContext => return Err(Misuse::NoContext),
        }
        if !request.flags.difference(rule.flags).is_empty() {
            return Err(Misuse::Flag);
        }
        let Request { offset, length, .. } = *request;
        if matches!(rule.verdict, Verdict::Whole) {
            // The new size of a resize stands in the place of the offset.
            return match length == 0 && (offset == 0 || command == Command::RESIZE) {
                true => Ok(()),
                false => Err(Misuse::NoRange(command)),
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
        if matches!(rule.verdict, Verdict::Payload) && length > u64::from(maximum) {
            return Err(Misuse::TooLarge { maximum });
        }
        Ok(())
    }
}

fn verdict(command: Command, export: &Negotiated) -> Verdict {
    use TransmissionFlags as T;
    let (needs, verdict) = match command {
        Command::READ | Command::WRITE => (T::NONE, Verdict::Payload),
        Command::FLUSH => (T::SEND_FLUSH, Verdict::Whole),
        Command::TRIM => (T::SEND_TRIM, Verdict::Range),
        Command::CACHE => (T::SEND_CACHE, Verdict::Range),
        Command::WRITE_ZEROES => (T::SEND_WRITE_ZEROES, Verdict::Range),
        // Its answer is made of chunks.
        Command::BLOCK_STATUS if export.contexts.is_empty() || !chunks(export) => {
            return Verdict::NoContext;
        }
        Command::BLOCK_STATUS => (T::NONE, Verdict::Range),
        Command::RESIZE => (T::SEND_RESIZE, Verdict::Whole),
        _ => return Verdict::NotAdvertised,
    };
    let writes = matches!(
        command,
        Command::WRITE | Command::TRIM | Command::WRITE_ZEROES | Command::RESIZE
    );
    if !export.flags.contains(needs) {
        Verdict::NotAdvertised
    } else if writes && export.flags.contains(T::READ_ONLY) {
        Verdict::ReadOnly
    } else {
        verdict
    }
}

fn chunks(export: &Negotiated) -> bool {
    export.framing >= Framing::Structured
}

fn flags(command: Command, export: &Negotiated) -> CommandFlags {
    use TransmissionFlags as T;
    let when = |advertised, flag| match advertised {
        true => flag,
        false => CommandFlags::NONE,
    };
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
