//! What a client does with correct servers: found out once, before the cases.

use std::time::Instant;

use anyhow::{Result, bail};
use nbd_codec::Framing;
use nbd_codec::wire::flags::TransmissionFlags as Has;
use nbd_codec::wire::number::{Command, OptionType};
use nbd_codec::wire::option_reply::BlockSizes;

use super::message::wide;
use super::program::Ended;
use super::run::Stages;
use super::script::{Dialect, SIZE, Script};
use super::server::Left;
use super::stage::{Performance, Stage};
use super::trial::{Spoils, said};
use crate::outcome::Finding;
use crate::profile::{FRAMINGS, framing_name};
use crate::transcript::Entry;

/// What a client is and does.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    /// The framings that the client can do.
    pub(crate) framings: Vec<Framing>,
    pub(crate) options: Vec<OptionType>,
    pub(crate) commands: Vec<Command>,
    /// What it writes to standard output with a correct server, if that depends on the
    /// content of the export.
    pub(crate) reference: Option<Vec<u8>>,
    /// Whether what it reports depends on what it reads.
    pub(crate) reads: bool,
    /// Whether it asks for block status, and reads nothing.
    pub(crate) maps: bool,
    /// How many connections are in transmission at a time.
    pub(crate) at_a_time: usize,
    /// The bytes that the server sends on the first one: all, and in the handshake.
    pub(crate) sent: [(u64, u64); 3],
    /// What it must not send, and sent to correct servers, with the transcripts.
    pub(crate) conduct: Vec<(Finding, Vec<Entry>)>,
}

/// Correct servers that show how a client behaves.
fn dialects() -> Vec<(String, Dialect)> {
    let mut dialects = Vec::new();
    for framing in FRAMINGS {
        let name = framing_name(framing);
        dialects.push((format!("{name}, maximal"), Dialect::maximal(framing)));
        dialects.push((format!("{name}, minimal"), Dialect::minimal(framing)));
    }
    let read_only = Has::HAS_FLAGS | Has::READ_ONLY;
    let read_only = Dialect {
        flags: read_only,
        ..Dialect::maximal(Framing::Structured)
    };
    dialects.push(("read-only".into(), read_only));
    for framing in [Framing::Simple, Framing::Extended] {
        let sizes = BlockSizes {
            minimum: 4096,
            preferred: 4096,
            maximum: 1 << 16,
        };
        let coarse = Dialect {
            sizes: Some(sizes),
            ..Dialect::maximal(framing)
        };
        dialects.push((format!("{}, coarse", framing_name(framing)), coarse));
    }
    dialects
}

impl Profile {
    /// Runs the command against correct servers.
    ///
    /// # Errors
    ///
    /// It succeeds with none of them, or negotiates with none.
    pub(crate) fn probe(stages: &Stages) -> Result<Self> {
        let mut profile = Self::default();
        let mut failure = None;
        let dialects = dialects();
        let performances = stages.each(&dialects, |stage, (_, dialect)| {
            stage.perform(&Script::correct(dialect.clone()))
        });
        for ((name, dialect), performance) in dialects.iter().zip(performances) {
            let performance = performance?;
            if performance.output.ended == Ended::Success {
                profile.learn(dialect, &performance);
            } else {
                failure = Some(format!(
                    "with a correct server ({name}): {}{}",
                    performance.output.ended,
                    said(&performance)
                ));
            }
            profile.observe(performance);
        }
        if let (true, Some(failure)) = (profile.framings.is_empty(), failure) {
            bail!("the client cannot be tested: {failure}");
        }
        if profile.framings.is_empty() && profile.options.is_empty() {
            bail!(
                "the client cannot be tested: {} negotiates nothing with a correct server",
                stages.first().program()
            );
        }
        profile.find_reference(stages)?;
        let has = |command| profile.commands.contains(&command);
        profile.maps = has(Command::BLOCK_STATUS) && !has(Command::READ);
        Ok(profile)
    }

    fn learn(&mut self, dialect: &Dialect, performance: &Performance) {
        let Some(served) = performance
            .connections
            .iter()
            .find(|one| one.framing.is_some())
        else {
            return;
        };
        let Some(framing) = served.framing else {
            return;
        };
        if !self.framings.contains(&framing) {
            self.framings.push(framing);
        }
        let index = FRAMINGS.iter().position(|one| *one == framing);
        if let Some(place) = index.and_then(|index| self.sent.get_mut(index))
            && dialect.contexts
            && place.0 == 0
        {
            *place = (served.sent, served.handshake);
        }
        let read: u64 = performance.connections.iter().map(|one| one.read).sum();
        self.reads |= performance.out.is_some() || read >= SIZE / 2;
        let spans: Vec<_> = performance
            .connections
            .iter()
            .filter_map(|one| one.span)
            .collect();
        let open = |at: Instant| {
            let open = spans
                .iter()
                .filter(|(start, end)| (*start..*end).contains(&at));
            open.count()
        };
        let most = spans.iter().map(|(start, _)| open(*start)).max();
        self.at_a_time = self.at_a_time.max(most.unwrap_or(0));
    }

    /// Takes what the client sent, and what it must not send.
    fn observe(&mut self, performance: Performance) {
        let clean = !matches!(performance.output.ended, Ended::Signal(_) | Ended::Hang);
        for served in performance.connections {
            let mut findings = served.record.findings;
            if clean && served.left == Left::Closed {
                findings.push(match served.framing {
                    Some(_) => Finding::new("T38", "it closes the connection without DISC"),
                    None => Finding::new("H15", "it closes the connection without ABORT"),
                });
            }
            for finding in findings {
                if !self.breaks(finding.duty.id) {
                    self.conduct.push((finding, served.record.entries.clone()));
                }
            }
            for option in served.options {
                if !self.options.contains(&option) {
                    self.options.push(option);
                }
            }
            for command in served.commands {
                if !self.commands.contains(&command) {
                    self.commands.push(command);
                }
            }
        }
    }

    /// Finds out whether standard output depends on the content of the export, and on
    /// nothing else.
    fn find_reference(&mut self, stages: &Stages) -> Result<()> {
        let framing = self.framings.last().copied().unwrap_or(Framing::Simple);
        let script = Script::correct(Dialect::maximal(framing));
        let run = |stage: &Stage, script: &Script| -> Result<(Vec<u8>, u64)> {
            let performance = stage.perform(script)?;
            let read = performance.connections.iter().map(|one| one.read).sum();
            Ok((performance.output.stdout, read))
        };
        // What a program prints of the address differs between stages.
        let (first, read) = run(stages.first(), &script)?;
        let (second, _) = run(stages.last(), &script)?;
        let inverted = Script {
            inverted: true,
            ..script
        };
        let (other, _) = run(stages.first(), &inverted)?;
        // A program that only looks at the content, to say what it may be, prints less.
        if first == second && first != other && wide(first.len()) >= read {
            self.reference = Some(first);
            self.reads = true;
        }
        Ok(())
    }

    /// Whether the client breaks this duty with correct servers.
    pub(crate) fn breaks(&self, duty: &str) -> bool {
        self.conduct
            .iter()
            .any(|(finding, _)| finding.duty.id == duty)
    }

    /// Whether what the client reports depends on it.
    pub(crate) fn depends_on(&self, spoils: Spoils) -> bool {
        match spoils {
            Spoils::Session => true,
            Spoils::Command(Command::READ) => self.reads,
            Spoils::Command(Command::BLOCK_STATUS) => self.maps,
            Spoils::Command(Command::FLUSH) => self.commands.contains(&Command::WRITE),
            Spoils::Command(command) => command == Command::WRITE,
        }
    }

    /// The server's bytes on a connection in this framing: all, and in the handshake.
    pub(crate) fn sent(&self, framing: Framing) -> Option<(u64, u64)> {
        let index = FRAMINGS.iter().position(|one| *one == framing)?;
        self.sent.get(index).copied().filter(|(sent, _)| *sent > 0)
    }

    /// A few lines for reports.
    pub(crate) fn describe(&self) -> Vec<(String, String)> {
        let line = |what: &str, texts: Vec<String>| (what.to_owned(), texts.join(", "));
        let framings = self.framings.iter().map(|one| framing_name(*one).into());
        let mut data = Vec::new();
        if let Some(reference) = &self.reference {
            data.push(format!(
                "{} bytes on standard output",
                wide(reference.len())
            ));
        }
        if self.reads {
            data.push("what it reads".to_owned());
        }
        if self.maps {
            data.push("block status".to_owned());
        }
        vec![
            line("framings", framings.collect()),
            line(
                "options",
                self.options.iter().map(ToString::to_string).collect(),
            ),
            line(
                "commands",
                self.commands.iter().map(ToString::to_string).collect(),
            ),
            line("connections at a time", vec![self.at_a_time.to_string()]),
            line("reports", data),
        ]
    }
}
