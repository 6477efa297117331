//! What a server owes a request.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, TransmissionFlags as Has};
use nbd_codec::wire::number::Command;

use crate::request::Request;
use crate::session::Session;

/// The flags that a command may have, without what is reserved and without those that
/// announce a payload.
pub(super) fn flags_of(command: Command, session: &Session) -> Flag {
    let has = |flag| session.export.flags.contains(flag);
    let mut flags = match command {
        Command::READ if has(Has::SEND_DF) => Flag::DF,
        Command::WRITE if session.rules.framing == Framing::Extended => Flag::PAYLOAD_LEN,
        Command::WRITE_ZEROES => Flag::NO_HOLE,
        Command::BLOCK_STATUS => Flag::REQ_ONE,
        _ => Flag::NONE,
    };
    if has(Has::SEND_FUA) {
        flags |= Flag::FUA;
    }
    flags
}

/// The outcome of a request that the specification demands, with the duty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Success(&'static str),
    /// An error; the server may disconnect instead.
    Error(&'static str),
    /// Success or an error.
    Any,
    /// The same, and the server may disconnect: the client broke a rule.
    AnyOrEnd,
}

impl Expected {
    pub(super) fn of(request: &Request, session: &Session) -> Self {
        use Expected::{Any, AnyOrEnd, Error, Success};
        let has = |flag| session.export.flags.contains(flag);
        let rules = &session.rules;
        let command = request.command;
        let writes = [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES].contains(&command);
        let advertised = match command {
            Command::READ | Command::WRITE | Command::DISC => true,
            Command::FLUSH => has(Has::SEND_FLUSH),
            Command::TRIM => has(Has::SEND_TRIM),
            Command::CACHE => has(Has::SEND_CACHE),
            Command::WRITE_ZEROES => has(Has::SEND_WRITE_ZEROES),
            Command::BLOCK_STATUS => !rules.contexts.is_empty(),
            _ => false,
        };
        if !advertised || !flags_of(command, session).contains(request.flags) {
            return AnyOrEnd;
        }
        if command == Command::FLUSH {
            let reserved = request.offset != 0 || request.length != 0;
            return if reserved { AnyOrEnd } else { Success("R115") };
        }
        if has(Has::READ_ONLY) && writes {
            return Error("O15");
        }
        if request.length == 0 {
            return Any;
        }
        let end = request.offset.checked_add(request.length);
        if end.is_none_or(|end| end > rules.size) {
            return match command {
                Command::WRITE => Error("E1"),
                Command::WRITE_ZEROES => Error("R139"),
                Command::BLOCK_STATUS => Error("R159"),
                Command::READ | Command::TRIM => Error("E3"),
                _ => AnyOrEnd,
            };
        }
        let aligned = (request.offset | request.length).is_multiple_of(rules.minimum);
        let payload = [Command::READ, Command::WRITE].contains(&command);
        let long = request.length > rules.maximum.unwrap_or(1 << 25);
        if !aligned || payload && long {
            return AnyOrEnd;
        }
        match command {
            Command::READ => Success("R81"),
            Command::WRITE => Success("B8"),
            Command::WRITE_ZEROES => Success("R130"),
            Command::BLOCK_STATUS => Success("R144"),
            _ => Any,
        }
    }

    pub(super) fn may_disconnect(self) -> bool {
        matches!(self, Self::Error(_) | Self::AnyOrEnd)
    }
}
