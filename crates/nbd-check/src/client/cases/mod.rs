//! The table of cases for clients.

mod conduct;
mod correct;
mod delivery;
mod headers;
mod options;
mod reads;
mod refusals;
mod status;

use nbd_codec::Framing;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::Command;

use super::message::{Chunk, Message};
use super::reply::Reply;
use super::script::{Asked, Dialect, Pieces, Script, Twist};
use super::trial::{Expect, Spoils, Trial};
use crate::case::{Case, Cases};
use crate::outcome::{Checked, Stop};
use crate::profile::framing_name;

/// All cases, in the order of the specification as far as there is one.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    conduct::add(&mut cases);
    correct::add(&mut cases);
    refusals::add(&mut cases);
    options::add(&mut cases);
    headers::add(&mut cases);
    reads::add(&mut cases);
    status::add(&mut cases);
    delivery::add(&mut cases);
    cases.into_vec()
}

/// The framings with chunks.
const CHUNKS: [Framing; 2] = [Framing::Structured, Framing::Extended];

impl Expect {
    /// The words in reports.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "exit status 0, and the right data",
            Self::Optional => "exit status 0, and the right data; or it is not implemented",
            Self::Failure => "another exit status than 0, if the command depends on it",
            Self::Disconnect => {
                "the client closes the connection; another exit status than 0, if the command \
                 depends on it"
            }
            Self::Survival => "no crash, no hang",
            Self::Either | Self::Cut => "exit status 0 with the right data, or another exit status",
        }
    }
}

/// Something that goes otherwise than in a plain session.
struct Turn {
    duty: &'static str,
    name: String,
    sends: String,
    expect: Expect,
    spoils: Spoils,
    dialect: Dialect,
    twist: Option<Twist>,
}

impl Turn {
    /// A correct server of this dialect.
    fn correct(
        duty: &'static str,
        name: impl Into<String>,
        sends: impl Into<String>,
        dialect: Dialect,
    ) -> Self {
        Self {
            duty,
            name: name.into(),
            sends: sends.into(),
            expect: Expect::Success,
            spoils: Spoils::Session,
            dialect,
            twist: None,
        }
    }

    fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }

    /// The server changes its answers.
    fn twist(
        self,
        spoils: Spoils,
        twist: impl Fn(Asked<'_>, &mut Vec<Message>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            spoils,
            twist: Some(std::sync::Arc::new(twist)),
            ..self
        }
    }

    /// The server changes its answers to a command, in the framing of the dialect.
    fn answer(
        self,
        command: Command,
        twist: impl Fn(&Reply<'_>, &mut Vec<Message>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let wanted = self.dialect.framing;
        self.twist(
            Spoils::Command(command),
            move |asked, messages| match asked {
                Asked::Request(request, framing) if framing == wanted => {
                    request.command == command && twist(&Reply { framing, request }, messages)
                }
                _ => false,
            },
        )
    }

    /// The server answers reads of some length with these chunks.
    fn read(self, twist: impl Fn(&Reply<'_>, &[u8]) -> Vec<Chunk> + Send + Sync + 'static) -> Self {
        let dialect = Dialect {
            pieces: Pieces::One,
            ..self.dialect.clone()
        };
        Self { dialect, ..self }.answer(Command::READ, move |reply, messages| {
            let Some(Message::Chunk(whole)) = messages.first() else {
                return false;
            };
            let Some(data) = whole.payload.get(8..).filter(|data| data.len() >= 512) else {
                return false;
            };
            let chunks = twist(reply, data);
            *messages = chunks.into_iter().map(Message::Chunk).collect();
            true
        })
    }

    /// Only where the client sent `DF`.
    fn only_df(self) -> Self {
        let twist = self.twist.map(|twist| -> Twist {
            std::sync::Arc::new(move |asked: Asked<'_>, messages: &mut Vec<Message>| {
                let Asked::Request(request, _) = asked else {
                    return false;
                };
                request.flags.contains(CommandFlags::DF) && twist(asked, messages)
            })
        });
        Self { twist, ..self }
    }

    fn add(self, cases: &mut Cases) {
        let Self {
            duty,
            name,
            sends,
            expect,
            spoils,
            dialect,
            twist,
        } = self;
        let case = cases.add(duty, name, sends, expect.as_str());
        case.run_client(move |trial| {
            let script = Script {
                twist: twist.clone(),
                ..Script::correct(dialect.clone())
            };
            if let Spoils::Command(command) = spoils {
                needs_framing(trial, dialect.framing)?;
                needs_command(trial, command)?;
            }
            trial.expect(duty, &script, spoils, expect).map(drop)
        });
    }
}

/// The case is about this framing.
fn needs_framing(trial: &Trial<'_>, framing: Framing) -> Checked {
    if trial.profile.framings.contains(&framing) {
        return Ok(());
    }
    let reason = format!("the client has no {} framing", framing_name(framing));
    Err(Stop::Unimplemented(reason))
}

/// The case is about answers to this command.
fn needs_command(trial: &Trial<'_>, command: Command) -> Checked {
    if trial.profile.commands.contains(&command) {
        return Ok(());
    }
    let reason = format!("the client sends no {command}");
    Err(Stop::Unimplemented(reason))
}

/// Calls `add` for each framing with chunks: its name, and a server that has all.
fn for_chunks(mut add: impl FnMut(&'static str, Dialect)) {
    for framing in CHUNKS {
        add(framing_name(framing), Dialect::maximal(framing));
    }
}

/// The same data in two halves.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    data.split_at(data.len() / 2)
}
