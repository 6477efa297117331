//! Commands: every one, in every framing; unknown ones; length zero; read-only exports.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, TransmissionFlags as Has};
use nbd_codec::wire::number::{Command, ErrorValue as Error};

use crate::case::{Cases, Need, for_each_framing};
use crate::duty::Level;
use crate::outcome::{Checked, Finding, Stop, found};
use crate::request::{Request, trap};
use crate::session::{Answer, Session};
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        unknown(cases, framing, short);
        zero_length(cases, framing, short);
        read_only(cases, framing, short);
        cookies(cases, framing, short);
    });
    error_style(cases);
}

/// A command of this kind, its transmission flag, and what it needs besides.
pub(super) struct Kind {
    pub(super) command: Command,
    pub(super) name: &'static str,
    pub(super) flag: Option<Has>,
    pub(super) writes: bool,
}

/// The commands that have replies.
pub(super) const KINDS: [Kind; 7] = [
    Kind {
        command: Command::READ,
        name: "read",
        flag: None,
        writes: false,
    },
    Kind {
        command: Command::WRITE,
        name: "write",
        flag: None,
        writes: true,
    },
    Kind {
        command: Command::FLUSH,
        name: "flush",
        flag: Some(Has::SEND_FLUSH),
        writes: false,
    },
    Kind {
        command: Command::TRIM,
        name: "trim",
        flag: Some(Has::SEND_TRIM),
        writes: true,
    },
    Kind {
        command: Command::CACHE,
        name: "cache",
        flag: Some(Has::SEND_CACHE),
        writes: false,
    },
    Kind {
        command: Command::WRITE_ZEROES,
        name: "write-zeroes",
        flag: Some(Has::SEND_WRITE_ZEROES),
        writes: true,
    },
    Kind {
        command: Command::BLOCK_STATUS,
        name: "block-status",
        flag: None,
        writes: false,
    },
];

impl Kind {
    /// What a case with this command needs.
    pub(super) fn needs(&self, framing: Framing) -> Vec<Need> {
        let mut needs = vec![Need::Framing(framing), Need::Size(1 << 16)];
        needs.extend(self.flag.map(Need::Flag));
        if self.writes {
            needs.push(Need::Writes);
        }
        if self.command == Command::BLOCK_STATUS {
            needs.push(Need::Contexts);
        }
        needs
    }

    /// Whether the command exists in this framing.
    pub(super) fn is_in(&self, framing: Framing) -> bool {
        self.command != Command::BLOCK_STATUS || framing != Framing::Simple
    }

    /// A good request of one unit, after the first block.
    pub(super) fn request(&self, t: &Trial<'_>) -> Request {
        let unit = t.profile.unit();
        match self.command {
            Command::WRITE => Request::write(unit, vec![0x5a; as_size(unit)]),
            Command::FLUSH => Request::new(Command::FLUSH, 0, 0),
            command => Request::new(command, unit, unit),
        }
    }

    /// The session that the command needs.
    pub(super) fn session(&self, t: &Trial<'_>, framing: Framing) -> Checked<Session> {
        if self.command == Command::BLOCK_STATUS {
            return t.status_session(framing);
        }
        t.session(framing)
    }

    /// The flags that the specification has for the command.
    pub(super) fn flags(&self) -> Flag {
        match self.command {
            Command::READ => Flag::DF,
            Command::WRITE => Flag::PAYLOAD_LEN,
            Command::WRITE_ZEROES => Flag::NO_HOLE | Flag::FAST_ZERO,
            Command::BLOCK_STATUS => Flag::REQ_ONE | Flag::PAYLOAD_LEN,
            _ => Flag::NONE,
        }
    }
}

pub(super) fn as_size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn unknown(cases: &mut Cases, framing: Framing, short: &str) {
    for command in [9u16, 10, 0x7fff, 0xffff] {
        for length in [0u64, 512] {
            cases
                .add(
                    "E8",
                    format!("{short}-command-{command:#x}-length-{length}"),
                    format!("command {command:#x} with length {length}"),
                    "EINVAL; then READ succeeds",
                )
                .needs(&[Need::Framing(framing)])
                .run(move |t| {
                    let mut session = t.session(framing)?;
                    let request = Request::new(Command(command), 0, length);
                    t.refuses(&mut session, request, "E8", &[Error::EINVAL])
                });
        }
    }
    for kind in &KINDS {
        let Some(flag) = kind.flag else { continue };
        let (command, name) = (kind.command, kind.name);
        let mut needs = vec![Need::Framing(framing), Need::NoFlag(flag, framing)];
        if kind.writes {
            needs.push(Need::WritesRefused);
        }
        cases
            .add(
                "E8",
                format!("{short}-{name}-not-advertised"),
                format!("{command} without {flag}"),
                "EINVAL; then READ succeeds",
            )
            .needs(&needs)
            .run(move |t| {
                let mut session = t.session(framing)?;
                let unit = t.profile.unit();
                let length = if command == Command::FLUSH { 0 } else { unit };
                let offset = if command == Command::FLUSH { 0 } else { unit };
                let answer = session.answer(Request::new(command, offset, length))?;
                // The server knows the command: what it does then, the text does not say.
                // Known servers support CACHE without the flag.
                if let Answer::Reply(reply) = answer {
                    let read_only = session.export.flags.contains(Has::READ_ONLY);
                    match reply.error() {
                        Some(Error::EINVAL) => {}
                        Some(Error::EPERM) if read_only => {}
                        _ => t.note(Finding::new("E8", reply.describe()).for_information()),
                    }
                    session.still_good()?;
                }
                Ok(())
            });
    }
}

/// Length zero has no meaning, and is no reason to disconnect.
fn zero_length(cases: &mut Cases, framing: Framing, short: &str) {
    for kind in KINDS.iter().filter(|kind| kind.is_in(framing)) {
        let id = match kind.command {
            Command::READ => "R80",
            Command::WRITE => "R109",
            Command::TRIM => "R119",
            Command::WRITE_ZEROES => "R126",
            Command::BLOCK_STATUS => "R142",
            _ => continue,
        };
        cases
            .add(
                id,
                format!("{short}-{}-zero", kind.name),
                format!("{} of length 0", kind.command),
                "any reply; then READ succeeds",
            )
            .needs(&kind.needs(framing))
            .run(move |t| {
                let mut session = kind.session(t, framing)?;
                // The behaviour is unspecified: whatever it is, no MUST is broken.
                match session.answer(Request::new(kind.command, 0, 0)) {
                    Ok(Answer::Reply(_)) => {}
                    Ok(Answer::Closed(end)) => {
                        return found(id, format!("the connection was {end}"));
                    }
                    Err(Stop::Found(one)) => return Err(one.advised().into()),
                    Err(stop) => return Err(stop),
                }
                session.closing = Level::Should;
                session.still_good()?;
                session.disconnect()
            });
    }
}

/// Commands that write, on a read-only export.
fn read_only(cases: &mut Cases, framing: Framing, short: &str) {
    for kind in KINDS.iter().filter(|kind| kind.writes) {
        let mut needs = vec![
            Need::Framing(framing),
            Need::ReadOnly,
            Need::WritesRefused,
            Need::Size(1 << 16),
        ];
        needs.extend(kind.flag.map(Need::Flag));
        cases
            .add(
                "O15",
                format!("{short}-{}", kind.name),
                format!("{} on a read-only export", kind.command),
                "EPERM; then READ succeeds",
            )
            .needs(&needs)
            .run(move |t| {
                let mut session = t.session(framing)?;
                let unit = t.profile.unit();
                let request = match kind.command {
                    Command::WRITE => Request::write(unit, trap(framing, as_size(unit))),
                    command => Request::new(command, unit, unit),
                };
                let zeroes = kind.command == Command::WRITE_ZEROES;
                let advice = if zeroes { "R140" } else { "E5" };
                match session.answer(request)? {
                    Answer::Reply(reply) if reply.is_success() => {
                        return found("O15", reply.describe());
                    }
                    Answer::Reply(reply) => t.expect_error(&reply, advice, &[Error::EPERM]),
                    Answer::Closed(end) => {
                        t.note(Finding::new(advice, format!("the connection was {end}")));
                        return Ok(());
                    }
                }
                session.breaks = Some(if framing == Framing::Extended {
                    "T14"
                } else {
                    "T10"
                });
                session.still_good()?;
                session.breaks = None;
                session.disconnect()
            });
    }
}

fn cookies(cases: &mut Cases, framing: Framing, short: &str) {
    for (name, cookie) in [
        ("zero", 0u64),
        ("all-ones", u64::MAX),
        ("asymmetric", 0x0102_0304_0506_0708),
    ] {
        cases
            .add(
                "T4",
                format!("{short}-cookie-{name}"),
                format!("READ with cookie {cookie:#x}"),
                "a reply with the same cookie",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                session.breaks = Some("T4");
                let request = Request::read(0, t.profile.unit()).cookie(cookie);
                let reply = session.ask(request)?;
                session.breaks = None;
                t.expect_success(&reply, "R81")?;
                session.disconnect()
            });
    }
    cases
        .add(
            "T4",
            format!("{short}-cookie-reused"),
            "two READs, one after the other, with the same cookie",
            "a reply to each",
        )
        .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
        .run(move |t| {
            let mut session = t.session(framing)?;
            for _ in 0..2 {
                let request = Request::read(0, t.profile.unit()).cookie(7);
                let reply = session.ask(request)?;
                t.expect_success(&reply, "R81")?;
            }
            session.disconnect()
        });
}

/// One case reports for all how errors are sent.
fn error_style(cases: &mut Cases) {
    cases
        .add(
            "T24",
            "structured-error",
            "an unknown command with structured replies",
            "an error in a chunk",
        )
        .needs(&[Need::Framing(Framing::Structured)])
        .run(|t| {
            let mut session = t.session(Framing::Structured)?;
            session.notes_simple_errors = true;
            // Whether it is answered, E8 says.
            session.answer(Request::new(Command(0x7fff), 0, 0))?;
            Ok(())
        });
}
