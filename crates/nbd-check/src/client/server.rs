//! A connection of the scripted server.

use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nbd_codec::Framing;
use nbd_codec::wire::number::{Command, OptionType};

use super::message::{Message, wide};
use super::script::{Asked, FLOOD, PATIENCE, Script};
use crate::connection::{Connection, Record, Shared};
use crate::outcome::{End, Finding};
use crate::stream::Stream;
use crate::tls::Acceptor;

/// How the client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// By `ABORT`.
    Abort,
    /// By `DISC`.
    Disc,
    /// It closed the connection without either.
    Closed,
    /// It did not: the server closed.
    Not,
}

/// What a connection was about.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) record: Record,
    /// The options and requests of the client.
    pub(crate) options: Vec<OptionType>,
    pub(crate) commands: Vec<Command>,
    /// The framing of the transmission phase, if it was entered.
    pub(crate) framing: Option<Framing>,
    /// How many bytes were requested by `READ`.
    pub(crate) read: u64,
    /// How many bytes the server sent, and how many of them in the handshake.
    pub(crate) sent: u64,
    pub(crate) handshake: u64,
    /// The server broke a rule, or closed.
    pub(crate) twisted: bool,
    /// The server replied with an error.
    pub(crate) refused: bool,
    pub(crate) left: Left,
    /// When the transmission phase began and ended.
    pub(crate) span: Option<(Instant, Instant)>,
}

/// Why a connection is over.
pub(crate) struct Gone;

/// A connection of the scripted server.
pub(crate) struct Server<'a> {
    pub(crate) connection: Connection,
    pub(crate) script: &'a Script,
    pub(crate) disk: &'a Mutex<Vec<u8>>,
    /// The export is served within TLS only.
    pub(crate) tls: Option<&'a Acceptor>,
    pub(crate) served: Served,
    /// The last request, and how often it came again.
    pub(super) last: Option<(Command, u64, u64)>,
    pub(super) again: usize,
    record: Shared,
}

impl<'a> Server<'a> {
    /// Serves a client.
    pub(crate) fn serve(
        stream: Stream,
        script: &'a Script,
        disk: &'a Mutex<Vec<u8>>,
        tls: Option<&'a Acceptor>,
        timeout: Duration,
        deadline: Instant,
    ) -> Served {
        let record = Shared::default();
        let connection = Connection::accepted(stream, &record, timeout, deadline);
        let mut server = Self {
            connection,
            script,
            disk,
            tls,
            served: Served {
                record: Record::default(),
                options: Vec::new(),
                commands: Vec::new(),
                framing: None,
                read: 0,
                sent: 0,
                handshake: 0,
                twisted: false,
                refused: false,
                left: Left::Not,
                span: None,
            },
            last: None,
            again: 0,
            record,
        };
        let _ = server.run();
        let Self {
            connection,
            mut served,
            record,
            ..
        } = server;
        drop(connection);
        if let Ok(record) = Rc::try_unwrap(record) {
            served.record = record.into_inner();
        }
        let closed = served.record.end == Some(End::Client);
        if served.left == Left::Not && closed {
            served.left = Left::Closed;
        }
        served
    }

    fn run(&mut self) -> Result<(), Gone> {
        if let Some(session) = self.handshake()? {
            self.served.handshake = self.served.sent;
            self.served.framing = Some(session.framing);
            if !session.trusted {
                // What the server has said cannot be relied on.
                self.connection.stop_observing();
            }
            let start = Instant::now();
            let ended = self.transmission(session);
            self.served.span = Some((start, Instant::now()));
            return ended;
        }
        Ok(())
    }

    /// Records that the client broke a duty.
    pub(crate) fn found(&self, id: &str, actual: impl Into<String>) {
        let finding = Finding::new(id, actual);
        self.record.borrow_mut().findings.push(finding);
    }

    /// Takes `n` bytes of the client.
    pub(crate) fn take(
        &mut self,
        n: usize,
        meaning: impl FnOnce(&[u8]) -> String,
    ) -> Result<Vec<u8>, Gone> {
        self.connection.take(n, meaning).map_err(|_| Gone)
    }

    /// Sends the answer, with what is wrong in it.
    pub(crate) fn answer(
        &mut self,
        asked: Asked<'_>,
        mut messages: Vec<Message>,
    ) -> Result<(), Gone> {
        self.twist(asked, &mut messages);
        self.send_all(messages)
    }

    /// Puts into the answer what is wrong in it.
    pub(crate) fn twist(&mut self, asked: Asked<'_>, messages: &mut Vec<Message>) {
        if let Some(twist) = &self.script.twist
            && twist(asked, messages)
        {
            self.served.twisted = true;
            self.connection.set_timeout(PATIENCE);
        }
    }

    pub(crate) fn send_all(&mut self, messages: Vec<Message>) -> Result<(), Gone> {
        for message in messages {
            match &message {
                Message::Silence => {
                    // The client may leave, or wait; what it sends is not read.
                    let _ = self.connection.expect_end_within(PATIENCE);
                    return Err(Gone);
                }
                Message::Close => return Err(Gone),
                Message::Flood(_) => {
                    let bytes = message.encode();
                    let part = bytes.repeat((1 << 16) / bytes.len().max(1) + 1);
                    self.send(&bytes, message.describe())?;
                    for _ in 0..FLOOD / part.len() {
                        self.connection.send_more(&part).map_err(|_| Gone)?;
                    }
                    return Err(Gone);
                }
                Message::Option { reply, .. } if reply.is_error() => self.served.refused = true,
                _ => {}
            }
            let bytes = message.encode();
            self.send(&bytes, message.describe())?;
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8], meaning: String) -> Result<(), Gone> {
        let whole = wide(bytes.len());
        let left = self
            .script
            .cut
            .map(|cut| cut.saturating_sub(self.served.sent));
        let rest = left.filter(|left| *left < whole);
        let part = rest.and_then(|left| bytes.get(..usize::try_from(left).ok()?));
        let bytes = part.unwrap_or(bytes);
        self.served.sent += wide(bytes.len());
        if self.script.dialect.byte_by_byte && bytes.len() <= ONE_BY_ONE {
            for byte in bytes.chunks(1) {
                self.connection.send(byte, "");
            }
        } else {
            self.connection.send(bytes, meaning);
        }
        if rest.is_some() {
            self.served.twisted = true;
            return Err(Gone);
        }
        Ok(())
    }
}

/// Longer messages are not sent byte by byte.
const ONE_BY_ONE: usize = 4096;
