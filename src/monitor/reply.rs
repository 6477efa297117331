//! Replies, each checked as the client's state machine checks it.

use super::slots::InFlight;
use super::{ChunkContent, Fault, Message, Monitor, Side, Slot, Step, read};
use crate::client::transmission::chunk::{self, Header, Rules, Taken};
use crate::client::transmission::recv::check_simple;
use crate::client::transmission::state::{ErrorMessage, Extents, State};
use crate::error::{Error, Violation};
use crate::negotiated::{Framing, StatusWidth};
use crate::wire::bytes::{clip, find_magic, take, take_slice};
use crate::wire::extent::Extent32;
use crate::wire::flags::ReplyFlags;
use crate::wire::number::{ChunkType, Command, Cookie};
use crate::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};
use crate::wire::text::{MAX_TEXT, Text, TextError};

/// Where in the stream of replies the server is, besides its payload.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reply {
    /// Extents that are still to come.
    extents: Option<Extents>,
    /// The reply to this request ends with the payload and the extents.
    done: Option<Cookie>,
}

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Monitor<S> {
    pub(super) fn reply<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        if let Some(extents) = self.reply.extents {
            return self.extent(extents, input);
        }
        let candidates = [
            SIMPLE_REPLY_MAGIC,
            STRUCTURED_REPLY_MAGIC,
            EXTENDED_REPLY_MAGIC,
        ];
        let mut rest = *input;
        let found = find_magic(input, &candidates, "reply");
        // The magic number was found.
        let (size, header) = match found {
            Err(error) => return self.lose(Side::Server, Fault::Magic(error)),
            Ok(Some(SIMPLE_REPLY_MAGIC)) => {
                return match SimpleReply::decode(&mut rest) {
                    Ok(Some(reply)) => self.simple_reply(reply, rest, input),
                    _ => read(SimpleReply::SIZE.saturating_sub(input.len())),
                };
            }
            Ok(Some(STRUCTURED_REPLY_MAGIC)) => (
                StructuredHeader::SIZE,
                StructuredHeader::decode(&mut rest).map(|header| {
                    header.map(|header| (header.flags, Framing::Structured, header.into()))
                }),
            ),
            Ok(Some(_)) => (
                ExtendedHeader::SIZE,
                ExtendedHeader::decode(&mut rest).map(|header| {
                    header.map(|header| (header.flags, Framing::Extended, header.into()))
                }),
            ),
            Ok(None) => (SimpleReply::SIZE, Ok(None)),
        };
        match header {
            Ok(Some((flags, framing, header))) => self.chunk(flags, framing, &header, rest, input),
            _ => read(size.saturating_sub(input.len())),
        }
    }

    /// The step for a reply to a cookie that is not in flight, if the request
    /// may come yet.
    fn unknown_cookie<'i>(&self) -> Option<Step<'i>> {
        match (self.may_follow(Side::Client), self.slots.has_room()) {
            (false, _) => None,
            (true, true) => Some(Step::Wait),
            (true, false) => Some(Step::Full),
        }
    }

    fn simple_reply<'i>(
        &mut self,
        reply: SimpleReply,
        rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> Step<'i> {
        let SimpleReply { error, cookie } = reply;
        let negotiated = self.agreed.framing;
        let mut payload = 0;
        if let Some(request) = self.slots.find(cookie) {
            let command = &mut request.command;
            let broken = match negotiated {
                Framing::Simple => Ok(()),
                Framing::Structured => check_simple(command, error, true),
                Framing::Extended => Err(Violation::OtherFraming { negotiated }.into()),
            };
            // The first error counts, also where it came in a chunk.
            if !command.error.is_error() {
                command.error = error;
            }
            if command.command == Command::READ && !error.is_error() {
                payload = command.length;
            }
            request.faulty |= broken.is_err();
            self.reply.done = Some(cookie);
            if let Err(error) = broken {
                self.find_error(Side::Server, error, Fault::Magic);
            }
        } else if let Some(step) = self.unknown_cookie() {
            return step;
        } else {
            let violation = match negotiated {
                Framing::Extended => Violation::OtherFraming { negotiated },
                _ => Violation::UnknownCookie(cookie),
            };
            self.find(Side::Server, violation.into());
        }
        *input = rest;
        self.server.payload = payload;
        Step::Message(Message::SimpleReply {
            error,
            cookie,
            payload,
        })
    }

    fn chunk<'i>(
        &mut self,
        flags: ReplyFlags,
        framing: Framing,
        header: &Header,
        rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> Step<'i> {
        let mut body = rest;
        let prefix = self.prefix(header, body);
        if body.len() < prefix {
            return read(prefix.saturating_sub(body.len()));
        }
        let (cookie, negotiated) = (header.cookie, self.agreed.framing);
        let misplaced = if framing != negotiated {
            Some(Violation::OtherFraming { negotiated })
        } else if !chunk::width_agrees(header.chunk, framing) {
            let chunk = header.chunk;
            Some(Violation::OtherWidth { chunk, framing })
        } else {
            None
        };
        let mut content = ChunkContent::Opaque;
        if let Some(request) = self.slots.find(cookie) {
            let repeated = header.offset.unwrap_or(request.command.offset);
            let other = repeated != request.command.offset;
            let checked = match misplaced {
                Some(violation) => Err(violation.into()),
                None if other => Err(Violation::OtherOffset(cookie).into()),
                None => {
                    let (mut state, command) = (State::Header, &mut request.command);
                    let rules = Rules {
                        export: &self.agreed,
                        limits: &self.limits,
                        seed: &mut self.seed,
                        strict: true,
                    };
                    chunk::check(command, rules, header, &mut body, &mut state)
                        .map(|taken| (taken, state))
                }
            };
            match checked {
                // The prefix is there.
                Ok((Taken::Short(_), _)) => return read(1),
                Ok((Taken::Yes, state)) => content = self.content(header, state, &mut body),
                Err(Error::Violation(Violation::UnknownContext(id)))
                    if self.unknown_contexts && self.agreed.contexts.bit(id).is_none() => {}
                Err(error) => {
                    request.faulty = true;
                    let kind = header.chunk;
                    self.find_error(Side::Server, error, |error| Fault::Chunk(kind, error));
                }
            }
            self.reply.done = header.last.then_some(cookie);
        } else if let Some(step) = self.unknown_cookie() {
            return step;
        } else {
            let violation = misplaced.unwrap_or(Violation::UnknownCookie(cookie));
            self.find(Side::Server, violation.into());
        }
        if content == ChunkContent::Opaque {
            body = rest;
            self.server.payload = header.length;
        }
        let unknown = flags.difference(ReplyFlags::DONE);
        if !unknown.is_empty() {
            self.find(Side::Server, Fault::ReplyFlags(unknown.0));
        }
        *input = body;
        Step::Message(Message::Chunk {
            chunk: header.chunk,
            flags,
            cookie,
            offset: header.offset,
            length: header.length,
            content,
        })
    }

    /// How much of a chunk's payload is told with its header, in bytes, as far as
    /// `body` says.
    fn prefix(&self, header: &Header, body: &[u8]) -> usize {
        let prefix = match header.chunk {
            ChunkType::OFFSET_DATA | ChunkType::BLOCK_STATUS_EXT => 8,
            ChunkType::OFFSET_HOLE => 12,
            ChunkType::BLOCK_STATUS => 4,
            error if error.is_error() => self.error_prefix(error, body),
            _ => 0,
        };
        clip(header.length.min(prefix))
    }

    /// `error:32 message_length:16 message [offset:64]`, unless the message is too
    /// long to be told.
    fn error_prefix(&self, chunk: ChunkType, body: &[u8]) -> u64 {
        let field = body.get(4..).and_then(|body| body.first_chunk());
        let message = field.map_or(0, |field| u16::from_be_bytes(*field));
        let offset = match chunk {
            ChunkType::ERROR_OFFSET => 8,
            _ => 0,
        };
        if u32::from(message) > self.limits.error_message {
            6
        } else {
            u64::from(message).saturating_add(6).saturating_add(offset)
        }
    }

    /// The fields after the header of a chunk that was checked.
    fn content<'i>(
        &mut self,
        header: &Header,
        state: State,
        body: &mut &'i [u8],
    ) -> ChunkContent<'i> {
        match state {
            State::Data { part, offset } => {
                self.server.payload = part.left;
                let length = part.left;
                ChunkContent::Data { offset, length }
            }
            State::Hole { offset, length, .. } => ChunkContent::Hole { offset, length },
            State::Extents(extents) => {
                self.reply.extents = Some(extents);
                ChunkContent::Extents {
                    context: extents.context,
                    count: extents.left,
                }
            }
            State::Error(error) => self.error(header, error, body),
            _ => ChunkContent::None,
        }
    }

    fn error<'i>(
        &mut self,
        header: &Header,
        error: ErrorMessage,
        body: &mut &'i [u8],
    ) -> ChunkContent<'i> {
        let whole = !error.discard;
        let (mut message, mut offset) = (Text::EMPTY, None);
        if whole {
            message = Text::new(take_slice(body, clip(error.part.left)).unwrap_or_default());
            if error.offset {
                offset = take(body).map(|bytes| u64::from_be_bytes(*bytes));
            }
            // What follows has no meaning.
            self.server.payload = error.trailing;
        }
        let cookie = header.cookie;
        if let Some(request) = self.slots.find(cookie) {
            let command = &mut request.command;
            if !command.error.is_error() {
                command.error = error.error;
            }
            if !command.has_error_at(offset) {
                request.faulty = true;
                self.find(Side::Server, Violation::OutOfBounds(cookie).into());
            }
        }
        let text = if clip(error.part.left) > MAX_TEXT {
            Err(TextError::TooLong)
        } else {
            message.to_str().map(|_| ())
        };
        if let Err(error) = text {
            self.find(Side::Server, Fault::Text(error));
        }
        if whole {
            ChunkContent::Error {
                error: error.error,
                message,
                offset,
            }
        } else {
            ChunkContent::Opaque
        }
    }

    fn extent<'i>(&mut self, mut extents: Extents, input: &mut &'i [u8]) -> Step<'i> {
        let Some(extent) = extents.decode(input) else {
            return read(extents.size().saturating_sub(input.len()));
        };
        let (cookie, context) = (extents.cookie, extents.context);
        let mut offset = extents.at;
        let mut broken = None;
        if let Some(request) = self.slots.find(cookie) {
            offset = request.command.offset.saturating_add(extents.at);
            if !request.faulty {
                broken = extents.check(extent, &request.command, true).err();
                request.faulty = broken.is_some();
            }
        }
        let (chunk, message) = match (extents.width, Extent32::try_from(extent)) {
            (StatusWidth::Narrow, Ok(extent)) => (
                ChunkType::BLOCK_STATUS,
                Message::Extent32 {
                    cookie,
                    context,
                    offset,
                    extent,
                },
            ),
            _ => (
                ChunkType::BLOCK_STATUS_EXT,
                Message::Extent64 {
                    cookie,
                    context,
                    offset,
                    extent,
                },
            ),
        };
        if let Some(error) = broken {
            self.find_error(Side::Server, error, |error| Fault::Chunk(chunk, error));
        }
        extents.at = extents.at.saturating_add(extent.length);
        extents.left = extents.left.saturating_sub(1);
        self.reply.extents = (extents.left > 0).then_some(extents);
        Step::Message(message)
    }

    /// Ends a reply whose last byte was consumed.
    pub(super) fn settle(&mut self) {
        if self.reply.extents.is_some() {
            return;
        }
        let Some(cookie) = self.reply.done.take() else {
            return;
        };
        let Some(&mut InFlight {
            command, faulty, ..
        }) = self.slots.find(cookie)
        else {
            return;
        };
        self.slots.remove(cookie);
        if command.command == Command::RESIZE && !command.error.is_error() {
            self.agreed.size = command.offset;
        }
        let simple = self.agreed.framing == Framing::Simple;
        if !faulty && let Err(error) = command.outcome(cookie, simple, &mut self.seed) {
            self.find_error(Side::Server, error, Fault::Magic);
        }
    }
}
