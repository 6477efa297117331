//! The caller's replies, and what the client must understand of them.

use nbd_codec::Framing;
use nbd_codec::Misuse;
use nbd_codec::server::{ChunkedRead, ReadRequest, Reply, ReplyHeader, Request};
use nbd_codec::server::{Rejected, ResizeRequest};
use nbd_codec::wire::number::ErrorValue;

use super::script::{Answer, MAX_PAYLOAD};
use super::{Harness, Pending, RequestFields, Token};
use crate::reference::requests::Change;
use crate::reply_event::{ReplyEvent, push};
use crate::script::Length;
use crate::script::name;

/// The token if it was not consumed.
pub(super) type Left = Option<Token>;

impl Harness {
    /// Removes a pending request.
    fn take(&mut self, which: u8) -> Option<Pending> {
        let place = usize::from(which).checked_rem(self.pending.len())?;
        Some(self.pending.remove(place))
    }

    fn put_back(&mut self, which: u8, token: Left, fields: RequestFields, error: u32) {
        if let Some(token) = token {
            let place = usize::from(which) % (self.pending.len() + 1);
            self.pending.insert(
                place,
                Pending {
                    token,
                    fields,
                    error,
                },
            );
        }
    }

    /// Replies validly, in a number of messages that depends on `pieces`.
    pub(super) fn finish(&mut self, which: u8, pieces: u8, fail: bool) {
        if fail {
            return self.fail(which, ErrorValue(5), "failed");
        }
        let Some(place) = usize::from(which).checked_rem(self.pending.len()) else {
            return;
        };
        let pending = &self.pending[place];
        let simple = self.setup.common.framing() == Framing::Simple;
        let (read, length) = (pending.fields.kind == 0, pending.fields.length);
        if !read || simple || pieces == 0 && length <= MAX_PAYLOAD {
            return self.answer(which, &Answer::Succeed {});
        }
        // In reverse order.
        self.answer(which, &Answer::IntoChunks {});
        let pieces = u64::from(pieces % 5) + 1;
        let size = length.div_ceil(pieces).max(1);
        for piece in (0..pieces).rev() {
            let skip = piece * size;
            let Some(length) = length.checked_sub(skip).filter(|left| *left > 0) else {
                continue;
            };
            let length = length.min(size);
            let last = piece == 0;
            let (skip, n) = (Length::Bytes { n: skip }, Length::Bytes { n: length });
            let fill = piece as u8;
            let answer = if length > MAX_PAYLOAD || piece % 2 == 1 {
                Answer::Hole {
                    skip,
                    length: n,
                    last,
                }
            } else {
                Answer::Data {
                    skip,
                    length: n,
                    last,
                    fill,
                }
            };
            self.answer(which, &answer);
        }
    }

    pub(super) fn fail(&mut self, which: u8, error: ErrorValue, text: &str) {
        let Some(Pending {
            token,
            fields,
            error: before,
        }) = self.take(which)
        else {
            return;
        };
        let reply = match token {
            Token::Request(request) => request.fail(error, text),
            Token::ChunkedRead(chunks) => chunks.fail(error, text),
        };
        self.expect_error(&fields, before, error, None, text, true);
        self.write(&reply);
    }

    pub(super) fn answer(&mut self, which: u8, answer: &Answer) {
        if let Answer::Fail { error, text } = answer {
            return self.fail(which, error_value(*error), name(*text));
        }
        let Some(Pending {
            token,
            fields,
            mut error,
        }) = self.take(which)
        else {
            return;
        };
        let left = match token {
            Token::Request(request) => self.answer_request(request, &fields, answer),
            Token::ChunkedRead(chunks) => self.answer_chunks(chunks, &fields, &mut error, answer),
        };
        self.put_back(which, left, fields, error);
    }

    fn answer_request(
        &mut self,
        request: Request,
        fields: &RequestFields,
        answer: &Answer,
    ) -> Left {
        if let Answer::FailAt { error, skip, text } = answer {
            let (error, text) = (error_value(*error), name(*text));
            let offset = fields.place(skip);
            return self.fail_at(request, fields, error, offset, text);
        }
        match (request, answer) {
            (Request::Read(read), Answer::Succeed {}) => self.read(read, fields),
            (Request::Read(read), Answer::IntoChunks {}) => match read.into_chunks() {
                Ok(chunks) => Some(Token::ChunkedRead(chunks)),
                Err(read) => {
                    let framing = self.setup.common.framing();
                    assert_eq!(framing, Framing::Simple, "no chunks");
                    Some(Token::Request(Request::Read(read)))
                }
            },
            (Request::Resize(resize), Answer::Succeed {}) => self.resize(resize, fields),
            (Request::BlockStatus32(status), answer) => self.status32(status, fields, answer),
            (Request::BlockStatus64(status), answer) => self.status64(status, fields, answer),
            (request, Answer::Succeed {}) => {
                let reply = match request {
                    Request::Write(token) => token.succeed(),
                    Request::Flush(token) => token.succeed(),
                    Request::Trim(token) => token.succeed(),
                    Request::Cache(token) => token.succeed(),
                    Request::WriteZeroes(token) => token.succeed(),
                    _ => panic!("unknown request"),
                };
                self.expect_done(fields, 0);
                self.write(&reply);
                None
            }
            (request, _) => Some(Token::Request(request)),
        }
    }

    fn read(&mut self, read: ReadRequest, fields: &RequestFields) -> Left {
        if fields.length > MAX_PAYLOAD {
            return Some(Token::Request(Request::Read(read)));
        }
        let header = read.data();
        self.write_data(&header, fields, fields.offset, fields.length, 0xdd);
        self.expect_done(fields, 0);
        None
    }

    fn resize(&mut self, resize: ResizeRequest, fields: &RequestFields) -> Left {
        let size = resize.size();
        let reply = self.machine.resized(resize);
        assert_eq!(self.terms().size, size);
        let change = Change::Resized(size);
        self.changes.push((self.received.len(), change));
        self.expect_done(fields, 0);
        self.write(&reply);
        None
    }

    fn fail_at(
        &mut self,
        request: Request,
        fields: &RequestFields,
        error: ErrorValue,
        offset: u64,
        text: &str,
    ) -> Left {
        macro_rules! fail_at {
            ($($kind:ident)*) => {
                match request {
                    $(Request::$kind(token) => {
                        let before = format!("{token:?}");
                        match token.fail_at(error, offset, text) {
                            Ok(reply) => Ok(reply),
                            Err(rejected) => {
                                let token = self.rejected(&before, rejected);
                                Err(Request::$kind(token))
                            }
                        }
                    })*
                    request => return Some(Token::Request(request)),
                }
            };
        }
        match fail_at!(Read Write Trim Cache WriteZeroes BlockStatus32 BlockStatus64) {
            Ok(reply) => {
                assert!(fields.holds(offset, 1), "an error outside the request");
                self.expect_error(fields, 0, error, Some(offset), text, true);
                self.write(&reply);
                None
            }
            Err(request) => {
                assert!(!fields.holds(offset, 1), "an error inside the request");
                Some(Token::Request(request))
            }
        }
    }

    fn answer_chunks(
        &mut self,
        mut chunks: ChunkedRead,
        fields: &RequestFields,
        first: &mut u32,
        answer: &Answer,
    ) -> Left {
        let before = format!("{chunks:?}");
        match answer {
            Answer::Succeed {} => match chunks.finish() {
                Ok(reply) => {
                    self.expect_done(fields, *first);
                    self.write(&reply);
                    return None;
                }
                Err(rejected) => chunks = self.rejected(&before, rejected),
            },
            Answer::Data {
                skip,
                length,
                last,
                fill,
            } => {
                let (offset, length) = (fields.place(skip), length.of(fields.length) as u32);
                // Data longer than `MAX_PAYLOAD` is sent as a hole.
                if u64::from(length) > MAX_PAYLOAD {
                    return self.hole(chunks, fields, *first, offset, length, *last);
                }
                if *last {
                    return match chunks.finish_with_data(offset, length) {
                        Ok(header) => {
                            self.write_data(&header, fields, offset, length.into(), *fill);
                            self.expect_done(fields, *first);
                            None
                        }
                        Err(rejected) => Some(Token::ChunkedRead(self.rejected(&before, rejected))),
                    };
                }
                match chunks.data(offset, length) {
                    Ok(header) => self.write_data(&header, fields, offset, length.into(), *fill),
                    Err(misuse) => return self.refused(&before, chunks, misuse),
                }
            }
            Answer::Hole { skip, length, last } => {
                let (offset, length) = (fields.place(skip), length.of(fields.length) as u32);
                return self.hole(chunks, fields, *first, offset, length, *last);
            }
            Answer::ErrorAt { error, skip, text } => {
                let (error, offset, text) = (error_value(*error), fields.place(skip), name(*text));
                match chunks.error_at(error, offset, text) {
                    Ok(reply) => {
                        self.write(&reply);
                        let events =
                            self.expect_error(fields, *first, error, Some(offset), text, false);
                        *first = events;
                    }
                    Err(misuse) => return self.refused(&before, chunks, misuse),
                }
            }
            _ => {}
        }
        Some(Token::ChunkedRead(chunks))
    }

    fn hole(
        &mut self,
        mut chunks: ChunkedRead,
        fields: &RequestFields,
        first: u32,
        offset: u64,
        length: u32,
        last: bool,
    ) -> Left {
        let before = format!("{chunks:?}");
        let fact = ReplyEvent::Hole {
            cookie: fields.cookie,
            offset,
            length: length.into(),
        };
        if last {
            return match chunks.finish_with_hole(offset, length) {
                Ok(reply) => {
                    push(&mut self.expected, fact);
                    self.expect_done(fields, first);
                    self.write(&reply);
                    None
                }
                Err(rejected) => Some(Token::ChunkedRead(self.rejected(&before, rejected))),
            };
        }
        match chunks.hole(offset, length) {
            Ok(reply) => {
                push(&mut self.expected, fact);
                self.write(&reply);
                Some(Token::ChunkedRead(chunks))
            }
            Err(misuse) => self.refused(&before, chunks, misuse),
        }
    }

    fn refused(&mut self, before: &str, chunks: ChunkedRead, misuse: Misuse) -> Left {
        self.outcome.calls.push(format!("{misuse:?}"));
        assert_eq!(
            format!("{chunks:?}"),
            before,
            "changed by a failed call: {misuse:?}"
        );
        Some(Token::ChunkedRead(chunks))
    }

    /// A rejected request is unchanged.
    pub(super) fn rejected<T: std::fmt::Debug>(
        &mut self,
        before: &str,
        rejected: Rejected<T>,
    ) -> T {
        let Rejected { reason, request } = rejected;
        self.outcome.calls.push(format!("{reason:?}"));
        assert_eq!(
            format!("{request:?}"),
            before,
            "changed by a failed call: {reason:?}"
        );
        request
    }

    pub(super) fn expect_done(&mut self, fields: &RequestFields, error: u32) {
        let cookie = fields.cookie;
        push(&mut self.expected, ReplyEvent::Done { cookie, error });
    }

    /// Expects an error at the client. Returns the first error of the reply.
    fn expect_error(
        &mut self,
        fields: &RequestFields,
        first: u32,
        error: ErrorValue,
        offset: Option<u64>,
        text: &str,
        last: bool,
    ) -> u32 {
        // An error of zero is replaced.
        let error = if error.0 == 0 { 5 } else { error.0 };
        let first = if first == 0 { error } else { first };
        if self.setup.common.framing() != Framing::Simple {
            let maximum = self.terms().constraints().maximum;
            let fact = ReplyEvent::Error {
                cookie: fields.cookie,
                error,
                offset,
                message: Some(front(text, maximum as usize)),
            };
            push(&mut self.expected, fact);
        }
        if last {
            self.expect_done(fields, first);
        }
        first
    }

    /// Writes a reply. A buffer that is one byte too small is left unchanged.
    pub(super) fn write(&mut self, reply: &Reply) {
        let size = reply.size();
        assert_eq!(reply.parts().concat().len(), size);
        let mut space = vec![0xee; size - 1];
        let mut sink = &mut space[..];
        assert!(reply.encode(&mut sink).is_err());
        assert_eq!(sink.len(), size - 1, "a failed call wrote");
        let at = self.outcome.written.len();
        assert_eq!(reply.encode(&mut self.outcome.written), Ok(size));
        assert_eq!(self.outcome.written[at..], reply.parts().concat());
    }

    fn write_data(
        &mut self,
        header: &ReplyHeader,
        fields: &RequestFields,
        offset: u64,
        length: u64,
        fill: u8,
    ) {
        assert_eq!(u64::from(header.payload_length()), length);
        let bytes = vec![fill; length as usize];
        self.outcome.written.extend(header.as_bytes());
        self.outcome.written.extend(&bytes);
        let cookie = fields.cookie;
        push(
            &mut self.expected,
            ReplyEvent::Data {
                cookie,
                offset,
                bytes,
            },
        );
    }
}

impl RequestFields {
    fn place(&self, skip: &Length) -> u64 {
        self.offset.wrapping_add(skip.of(self.length))
    }

    fn holds(&self, offset: u64, length: u64) -> bool {
        let (begin, end) = (
            u128::from(self.offset),
            u128::from(offset) + u128::from(length),
        );
        u128::from(offset) >= begin && end <= begin + u128::from(self.length)
    }
}

/// The part of a text that is sent: whole characters, up to a NUL.
fn front(text: &str, maximum: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for character in text.chars() {
        let end = bytes.len() + character.len_utf8();
        if character == '\0' || end > maximum.min(4096) {
            break;
        }
        bytes.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
    bytes
}

/// Error values, defined and undefined.
fn error_value(byte: u8) -> ErrorValue {
    match byte {
        0xff => ErrorValue(u32::MAX),
        _ => ErrorValue(byte.into()),
    }
}
