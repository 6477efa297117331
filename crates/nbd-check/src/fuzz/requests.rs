//! The transmission phase of a client that follows a script.

use nbd_codec::Framing;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};

use super::attack::mutated;
use super::expect::{Expected, flags_of};
use super::link::Link;
use super::messages::{MAX_PAYLOAD, RequestScript, block_status_of, header};
use super::model::Model;
use super::script::Action;
use crate::duty::Level;
use crate::outcome::{Checked, Finding, found};
use crate::reply::{Reply, wide};
use crate::request::{self, Request};
use crate::session::Session;

/// The transmission phase.
pub(super) struct Transmission {
    pub(super) session: Session,
    model: Model,
    expected: Vec<(Cookie, Expected)>,
    /// A command that must succeed is due: the last one was refused.
    pub(super) probe: bool,
    /// `DISC` was sent.
    pub(super) disconnected: bool,
    pub(super) ended: bool,
}

/// Valid requests have these commands.
const VALID: [Command; 8] = [
    Command::READ,
    Command::WRITE,
    Command::FLUSH,
    Command::TRIM,
    Command::CACHE,
    Command::WRITE_ZEROES,
    Command::BLOCK_STATUS,
    Command::READ,
];

impl Transmission {
    pub(super) fn new(session: Session) -> Self {
        Self {
            session,
            model: Model::default(),
            expected: Vec::new(),
            probe: true,
            disconnected: false,
            ended: false,
        }
    }

    /// Receives what the server has sent; everything that is due if `wait`.
    pub(super) fn settle(&mut self, link: Option<&Link>, wait: bool) -> Checked {
        loop {
            let session = &mut self.session;
            let has_input = session.connection.has_input() || link.is_some_and(Link::has_input);
            let is_due = wait && session.in_flight() > 0;
            if !has_input && !is_due {
                return Ok(());
            }
            if let Err(end) = session.receive()? {
                return match session.oldest() {
                    Some(cookie) if !end.is_by_server() => {
                        Err(session.no_reply(cookie, end).into())
                    }
                    _ => Err(session.closed(format!("the connection was {end}")).into()),
                };
            }
            for reply in session.take_done() {
                self.validate(&reply)?;
            }
        }
    }

    fn validate(&mut self, reply: &Reply) -> Checked {
        let index = self
            .expected
            .iter()
            .position(|(cookie, _)| *cookie == reply.cookie);
        let expected = index.map_or(Expected::Any, |index| self.expected.swap_remove(index).1);
        let framing = self.session.rules.framing;
        match (expected, reply.is_success()) {
            (Expected::Success(id), false) => {
                return found(self.session.breaks.unwrap_or(id), reply.describe());
            }
            // Whatever the error: success cannot be true.
            (Expected::Error(id), true) => {
                let level = Level::Must;
                let finding = Finding::new(id, reply.describe());
                return Err(Finding { level, ..finding }.into());
            }
            _ => {}
        }
        self.session.breaks = match (reply.is_success(), framing) {
            (true, _) => None,
            _ if reply.request.payload.is_empty() => None,
            (_, Framing::Extended) => Some("T14"),
            _ => Some("T10"),
        };
        // The size of the export may be another one.
        self.ended |= reply.request.command == Command::RESIZE && reply.is_success();
        self.model.complete(reply)
    }

    /// Sends a request; true if nothing can follow.
    fn put(&mut self, mut request: Request, announced: u64) -> bool {
        if announced > MAX_PAYLOAD {
            let framing = self.session.rules.framing;
            request.payload = request::trap(framing, 64);
            let bytes = request.encode(framing, Cookie(0));
            let text = request.describe();
            self.session.connection.send(&bytes, format!("{text}, cut"));
            return true;
        }
        let expected = Expected::of(&request, &self.session);
        let length = usize::try_from(announced).unwrap_or(usize::MAX);
        if expected.may_disconnect() {
            self.session.closing = self.session.closing.max(Level::Should);
            self.probe = true;
            if request.command != Command::BLOCK_STATUS {
                request.payload = request::trap(self.session.rules.framing, length);
            }
        }
        request.payload.resize(length, 0);
        let disconnect = request.command == Command::DISC;
        let (bytes, reply) = self.session.encode(request);
        self.session
            .connection
            .send(&bytes, reply.request.describe());
        if disconnect {
            self.disconnected = true;
            return self.session.in_flight() == 0;
        }
        self.expected.push((reply.cookie, expected));
        if !expected.may_disconnect() {
            self.model.submit(&reply);
        }
        self.session.expect(reply);
        false
    }

    /// A command that must succeed.
    pub(super) fn probe(&mut self) {
        self.probe = false;
        let length = self.session.rules.minimum.max(512);
        if length <= self.session.rules.size {
            self.put(Request::read(0, length), 0);
        }
    }

    /// Takes an action; `None` if it is none of this phase.
    pub(super) fn act(&mut self, action: &Action) -> Option<bool> {
        let size = self.session.rules.size;
        let framing = self.session.rules.framing;
        let request = |command: u8, flags, offset, length, fill| RequestScript {
            command,
            flags,
            offset,
            length,
            fill,
        };
        let bytes = |request: &RequestScript| request.bytes(framing, Cookie(0));
        let message = match action {
            Action::Valid {
                command,
                flags,
                at,
                blocks,
                fill,
            } => {
                let unit = self.session.rules.minimum.max(512);
                let units = size / unit;
                // Close together, so that commands concern the same blocks.
                let at = match *at {
                    near @ 0..=239 => u64::from(near % 8).min(units.saturating_sub(1)),
                    far => units
                        .saturating_sub((u8::MAX - far).into())
                        .saturating_sub(1),
                };
                let blocks = (u64::from(*blocks) % 5 + 1).min(units.saturating_sub(at));
                let command = VALID.get(usize::from(*command) % VALID.len())?;
                let possible = flags_of(*command, &self.session);
                let command = command.0.to_be_bytes()[1];
                // A flush concerns all of the export.
                let unit = if command == 3 { 0 } else { unit };
                let flags = match flags {
                    0..=127 => 0,
                    _ => u16::from(*flags) & possible.0,
                };
                bytes(&request(command, flags, at * unit, blocks * unit, *fill))
            }
            Action::Edge {
                command,
                edge,
                before,
                length,
                fill,
            } => {
                let edge = match edge % 4 {
                    0 => size,
                    1 => 1 << 32,
                    2 => 1 << 63,
                    _ => u64::MAX,
                };
                let offset = edge.saturating_sub((*before).into());
                bytes(&request(command % 8, 0, offset, *length, *fill))
            }
            Action::Request { request } => bytes(request),
            Action::MutatedRequest { request, mutation } => {
                mutated(bytes(request), mutation, size_of::<u32>())
            }
            Action::BlockStatusOf {
                contexts,
                flags,
                offset,
                length,
            } if framing == Framing::Extended => {
                let ids: Vec<_> = contexts
                    .0
                    .iter()
                    .map(|id| ContextId((*id).into()))
                    .collect();
                block_status_of(&ids, CommandFlags(*flags), Cookie(0), *offset, *length)
            }
            Action::Broken { after, bytes, .. } => {
                let (part, _) = header(
                    framing,
                    CommandFlags::NONE,
                    Command::READ,
                    Cookie(0),
                    0,
                    512,
                );
                return Some(self.session.connection.send_part(part, *after, bytes));
            }
            _ => return None,
        };
        match decode(framing, &message) {
            Some((mut request, announced)) => {
                // Short enough for many executions in a second.
                let inside = request.offset.checked_add(request.length);
                let read = request.command == Command::READ;
                if read && inside.is_some_and(|end| end <= size) {
                    request.length = request.length.min(1 << 16);
                }
                if request.command == Command::DISC && self.session.in_flight() > 0 {
                    return Some(false);
                }
                Some(self.put(request, announced))
            }
            None => {
                self.session
                    .connection
                    .send(&message, "a part of a request");
                Some(true)
            }
        }
    }
}

/// A request and the length of its payload.
fn decode(framing: Framing, bytes: &[u8]) -> Option<(Request, u64)> {
    let mut rest = bytes;
    let (request, announced) = if framing == Framing::Extended {
        let header = ExtendedRequest::decode(&mut rest).ok()??;
        let request = Request::new(header.command, header.offset, header.length);
        // A write gets PAYLOAD_LEN when it is sent.
        let announced = match header.command {
            Command::WRITE => header.length,
            _ => header.payload_length(),
        };
        (request.flags(header.flags), announced)
    } else {
        let header = CompactRequest::decode(&mut rest).ok()??;
        let request = Request::new(header.command, header.offset, header.length.into());
        (request.flags(header.flags), header.payload_length().into())
    };
    let count = usize::try_from(announced.min(wide(rest.len()))).unwrap_or(0);
    let payload = rest.get(..count).unwrap_or_default().to_vec();
    Some((request.payload(payload), announced))
}
