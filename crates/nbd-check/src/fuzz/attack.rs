//! A client that follows a script, and checks what the server answers.

use std::time::{Duration, Instant};

use nbd_codec::wire::number::Command;

use super::link::Link;
use super::messages::{Mutation, OptionScript};
use super::options::{Options, greet};
use super::requests::Transmission;
use super::script::{Action, ServerScript};
use crate::connection::{Connection, Shared};
use crate::outcome::{Checked, Finding};
use crate::request::Request;
use crate::stream::Stream;

/// A client that follows a script.
pub(super) struct Attack<'a> {
    script: &'a ServerScript,
    export: &'a str,
    phase: Phase,
    /// The number of actions that were taken.
    taken: usize,
    /// `None`: a stream whose reads wait.
    link: Option<Link>,
    pub(super) record: Shared,
}

pub(super) enum Phase {
    Greeting(Connection),
    Options(Box<Options>),
    Transmission(Box<Transmission>),
    /// The script has no more, or nothing can follow.
    Over,
}

/// How many options and requests a script has at most.
const MOST: usize = 40;
/// How long a server that runs elsewhere may take for one script.
const LONGEST: Duration = Duration::from_secs(600);

impl<'a> Attack<'a> {
    pub(super) fn new(
        script: &'a ServerScript,
        export: &'a str,
        stream: Stream,
        link: Option<Link>,
    ) -> Self {
        let record = Shared::default();
        let deadline = Instant::now() + LONGEST;
        let connection = Connection::over(stream, &record, LONGEST, deadline);
        Self {
            script,
            export,
            phase: Phase::Greeting(connection),
            taken: 0,
            link,
            record,
        }
    }

    /// Checks what the server has sent, and sends the next message; false if there is
    /// none.
    pub(super) fn advance(&mut self) -> Checked<bool> {
        self.settle()?;
        self.send()
    }

    /// The server has closed the connection: checks what it sent before.
    pub(super) fn finish(&mut self) -> Checked {
        loop {
            self.settle()?;
            match &self.phase {
                Phase::Over => return Ok(()),
                Phase::Transmission(one) if one.ended || one.disconnected => return Ok(()),
                Phase::Transmission(one) => {
                    let actual = "the server ended the connection".to_owned();
                    return Err(one.session.closed(actual).into());
                }
                Phase::Options(one) if one.sent.is_none() => {
                    let handshake = &one.handshake;
                    let actual = "the server ended the connection";
                    return Err(Finding::new("H17", actual).at(handshake.closing).into());
                }
                _ => {}
            }
        }
    }

    /// Checks what the server has sent.
    fn settle(&mut self) -> Checked {
        let exhausted = self.taken >= self.script.actions.0.len().min(MOST);
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Greeting(connection) => greet(connection, self.script.client_flags)?,
            Phase::Options(mut options) => match options.sent.take() {
                Some(sent) => options.settle(sent, &self.record)?,
                None => Phase::Options(options),
            },
            Phase::Transmission(mut transmission) => {
                let wait = self.link.is_none() || exhausted;
                transmission.settle(self.link.as_ref(), wait)?;
                if transmission.ended {
                    Phase::Over
                } else {
                    Phase::Transmission(transmission)
                }
            }
            Phase::Over => Phase::Over,
        };
        Ok(())
    }

    fn send(&mut self) -> Checked<bool> {
        let script = self.script;
        loop {
            let action = script
                .actions
                .0
                .get(self.taken)
                .filter(|_| self.taken < MOST);
            let over = match &mut self.phase {
                Phase::Greeting(_) => false,
                Phase::Over => return Ok(false),
                Phase::Options(options) => match action.and_then(option_of) {
                    Some(bytes) if options.closing == 0 => {
                        self.taken += 1;
                        match action {
                            Some(Action::Broken {
                                after, bytes: rest, ..
                            }) => options.handshake.connection.send_part(bytes, *after, rest),
                            _ => options.send(&bytes),
                        }
                    }
                    _ => options.conclude(script, self.export),
                },
                Phase::Transmission(transmission) if transmission.probe => {
                    transmission.probe();
                    false
                }
                Phase::Transmission(transmission) => match action {
                    Some(action) => {
                        self.taken += 1;
                        match transmission.act(action) {
                            Some(over) => over,
                            // An option.
                            None => continue,
                        }
                    }
                    None if transmission.disconnected => return Ok(false),
                    None => {
                        transmission.disconnected = true;
                        let disc = Request::new(Command::DISC, 0, 0);
                        transmission.session.send(disc);
                        false
                    }
                },
            };
            if over {
                // The connection stays until the server has returned.
                self.phase = Phase::Over;
            }
            return Ok(true);
        }
    }
}

/// The bytes of an option.
fn option_of(action: &Action) -> Option<Vec<u8>> {
    match action {
        Action::Option { option } | Action::Broken { option, .. } => Some(option.bytes()),
        Action::MutatedOption { option, mutation } => {
            Some(mutated(option.bytes(), mutation, size_of::<u64>()))
        }
        Action::OptionWithData { option, data } => {
            let option = (u64::from(*option) % 11).saturating_add(1);
            let data = data.clone();
            Some(OptionScript::Other { option, data }.bytes())
        }
        _ => None,
    }
    .filter(|bytes| !bytes.is_empty())
}

/// A message of which anything but the first `kept` bytes is changed.
pub(super) fn mutated(mut bytes: Vec<u8>, mutation: &Mutation, kept: usize) -> Vec<u8> {
    let magic = bytes.get(..kept).unwrap_or_default().to_vec();
    mutation.apply(&mut bytes);
    bytes.splice(..kept.min(bytes.len()), magic);
    bytes
}

impl Connection {
    /// Sends the first bytes of a message and other bytes. Nothing can follow: true.
    pub(super) fn send_part(&mut self, mut message: Vec<u8>, after: u8, bytes: &[u8]) -> bool {
        message.truncate(usize::from(after));
        message.extend(bytes);
        self.send(&message, "a part of a message, and other bytes");
        true
    }
}
