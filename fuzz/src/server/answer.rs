//! What the caller does with a request, and what the client must make of it.

use nbd_codec::Framing;
use nbd_codec::Misuse;
use nbd_codec::server::{Chunks, Head, Read, Reply, Request};
use nbd_codec::server::{Resize, Returned};
use nbd_codec::wire::number::ErrorValue;

use super::script::{Answer, LONGEST};
use super::{Ask, Held, Server, Token};
use crate::facts::{Fact, push};
use crate::reader::requests::Change;
use crate::script::Measure;
use crate::talk::name;

/// What became of a token: it was consumed, or it is still there; `None` where
/// there is no such call.
pub(super) type Left = Option<Token>;

impl Server {
    /// Takes out a request that waits.
    fn take(&mut self, which: u8) -> Option<Held> {
        let place = usize::from(which).checked_rem(self.held.len())?;
        Some(self.held.remove(place))
    }

    fn put_back(&mut self, which: u8, token: Left, ask: Ask, error: u32) {
        if let Some(token) = token {
            let place = usize::from(which) % (self.held.len() + 1);
            self.held.insert(place, Held { token, ask, error });
        }
    }

    /// Answers without a fault, in so many pieces.
    pub(super) fn finish(&mut self, which: u8, pieces: u8, fail: bool) {
        if fail {
            return self.fail(which, ErrorValue(5), "failed");
        }
        let Some(place) = usize::from(which).checked_rem(self.held.len()) else {
            return;
        };
        let held = &self.held[place];
        let simple = self.setup.common.framing() == Framing::Simple;
        let (read, length) = (held.ask.kind == 0, held.ask.length);
        if !read || simple || pieces == 0 && length <= LONGEST {
            return self.answer(which, &Answer::Succeed {});
        }
        // The last piece first.
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
            let (skip, n) = (Measure::Bytes { n: skip }, Measure::Bytes { n: length });
            let fill = piece as u8;
            let answer = match length > LONGEST || piece % 2 == 1 {
                true => Answer::Hole {
                    skip,
                    length: n,
                    last,
                },
                false => Answer::Data {
                    skip,
                    length: n,
                    last,
                    fill,
                },
            };
            self.answer(which, &answer);
        }
    }

    pub(super) fn fail(&mut self, which: u8, error: ErrorValue, text: &str) {
        let Some(Held {
            token,
            ask,
            error: before,
        }) = self.take(which)
        else {
            return;
        };
        let reply = match token {
            Token::Request(request) => request.fail(error, text),
            Token::Chunks(chunks) => chunks.fail(error, text),
        };
        self.say_error(&ask, before, error, None, text, true);
        self.write(&reply);
    }

    pub(super) fn answer(&mut self, which: u8, answer: &Answer) {
        if let Answer::Fail { error, text } = answer {
            return self.fail(which, error_value(*error), name(*text));
        }
        let Some(Held {
            token,
            ask,
            mut error,
        }) = self.take(which)
        else {
            return;
        };
        let left = match token {
            Token::Request(request) => self.answer_request(request, &ask, answer),
            Token::Chunks(chunks) => self.answer_chunks(chunks, &ask, &mut error, answer),
        };
        self.put_back(which, left, ask, error);
    }

    fn answer_request(&mut self, request: Request, ask: &Ask, answer: &Answer) -> Left {
        if let Answer::FailAt { error, skip, text } = answer {
            let (error, text) = (error_value(*error), name(*text));
            let offset = ask.place(skip);
            return self.fail_at(request, ask, error, offset, text);
        }
        match (request, answer) {
            (Request::Read(read), Answer::Succeed {}) => self.read(read, ask),
            (Request::Read(read), Answer::IntoChunks {}) => match read.into_chunks() {
                Ok(chunks) => Some(Token::Chunks(chunks)),
                Err(read) => {
                    let framing = self.setup.common.framing();
                    assert_eq!(framing, Framing::Simple, "there are chunks");
                    Some(Token::Request(Request::Read(read)))
                }
            },
            (Request::Resize(resize), Answer::Succeed {}) => self.resize(resize, ask),
            (Request::BlockStatus32(status), answer) => self.status32(status, ask, answer),
            (Request::BlockStatus64(status), answer) => self.status64(status, ask, answer),
            (request, Answer::Succeed {}) => {
                let reply = match request {
                    Request::Write(token) => token.succeed(),
                    Request::Flush(token) => token.succeed(),
                    Request::Trim(token) => token.succeed(),
                    Request::Cache(token) => token.succeed(),
                    Request::WriteZeroes(token) => token.succeed(),
                    _ => panic!("a request that this driver does not know"),
                };
                self.say_done(ask, 0);
                self.write(&reply);
                None
            }
            (request, _) => Some(Token::Request(request)),
        }
    }

    fn read(&mut self, read: Read, ask: &Ask) -> Left {
        if ask.length > LONGEST {
            return Some(Token::Request(Request::Read(read)));
        }
        let head = read.data();
        self.write_data(&head, ask, ask.offset, ask.length, 0xdd);
        self.say_done(ask, 0);
        None
    }

    fn resize(&mut self, resize: Resize, ask: &Ask) -> Left {
        let size = resize.size();
        let reply = self.machine.resized(resize);
        assert_eq!(self.terms().size, size);
        let change = Change::Resized(size);
        self.changes.push((self.stream.len(), change));
        self.say_done(ask, 0);
        self.write(&reply);
        None
    }

    fn fail_at(
        &mut self,
        request: Request,
        ask: &Ask,
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
                            Err(returned) => {
                                let token = self.returned(&before, returned);
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
                assert!(ask.holds(offset, 1), "an error outside the request");
                self.say_error(ask, 0, error, Some(offset), text, true);
                self.write(&reply);
                None
            }
            Err(request) => {
                assert!(!ask.holds(offset, 1), "an error inside the request");
                Some(Token::Request(request))
            }
        }
    }

    fn answer_chunks(
        &mut self,
        mut chunks: Chunks,
        ask: &Ask,
        first: &mut u32,
        answer: &Answer,
    ) -> Left {
        let before = format!("{chunks:?}");
        match answer {
            Answer::Succeed {} => match chunks.finish() {
                Ok(reply) => {
                    self.say_done(ask, *first);
                    self.write(&reply);
                    return None;
                }
                Err(returned) => chunks = self.returned(&before, returned),
            },
            Answer::Data {
                skip,
                length,
                last,
                fill,
            } => {
                let (offset, length) = (ask.place(skip), length.of(ask.length) as u32);
                // What is not made is a hole.
                if u64::from(length) > LONGEST {
                    return self.hole(chunks, ask, *first, offset, length, *last);
                }
                if *last {
                    return match chunks.finish_with_data(offset, length) {
                        Ok(head) => {
                            self.write_data(&head, ask, offset, length.into(), *fill);
                            self.say_done(ask, *first);
                            None
                        }
                        Err(returned) => Some(Token::Chunks(self.returned(&before, returned))),
                    };
                }
                match chunks.data(offset, length) {
                    Ok(head) => self.write_data(&head, ask, offset, length.into(), *fill),
                    Err(misuse) => return self.refused(&before, chunks, misuse),
                }
            }
            Answer::Hole { skip, length, last } => {
                let (offset, length) = (ask.place(skip), length.of(ask.length) as u32);
                return self.hole(chunks, ask, *first, offset, length, *last);
            }
            Answer::ErrorAt { error, skip, text } => {
                let (error, offset, text) = (error_value(*error), ask.place(skip), name(*text));
                match chunks.error_at(error, offset, text) {
                    Ok(reply) => {
                        self.write(&reply);
                        let told = self.say_error(ask, *first, error, Some(offset), text, false);
                        *first = told;
                    }
                    Err(misuse) => return self.refused(&before, chunks, misuse),
                }
            }
            _ => {}
        }
        Some(Token::Chunks(chunks))
    }

    fn hole(
        &mut self,
        mut chunks: Chunks,
        ask: &Ask,
        first: u32,
        offset: u64,
        length: u32,
        last: bool,
    ) -> Left {
        let before = format!("{chunks:?}");
        let fact = Fact::Hole {
            cookie: ask.cookie,
            offset,
            length: length.into(),
        };
        if last {
            return match chunks.finish_with_hole(offset, length) {
                Ok(reply) => {
                    push(&mut self.answers, fact);
                    self.say_done(ask, first);
                    self.write(&reply);
                    None
                }
                Err(returned) => Some(Token::Chunks(self.returned(&before, returned))),
            };
        }
        match chunks.hole(offset, length) {
            Ok(reply) => {
                push(&mut self.answers, fact);
                self.write(&reply);
                Some(Token::Chunks(chunks))
            }
            Err(misuse) => self.refused(&before, chunks, misuse),
        }
    }

    fn refused(&mut self, before: &str, chunks: Chunks, misuse: Misuse) -> Left {
        self.outcome.calls.push(format!("{misuse:?}"));
        assert_eq!(format!("{chunks:?}"), before, "in spite of {misuse:?}");
        Some(Token::Chunks(chunks))
    }

    /// A token that was refused is as it was.
    pub(super) fn returned<T: std::fmt::Debug>(
        &mut self,
        before: &str,
        returned: Returned<T>,
    ) -> T {
        let Returned { misuse, token } = returned;
        self.outcome.calls.push(format!("{misuse:?}"));
        assert_eq!(format!("{token:?}"), before, "in spite of {misuse:?}");
        token
    }

    pub(super) fn say_done(&mut self, ask: &Ask, error: u32) {
        let cookie = ask.cookie;
        push(&mut self.answers, Fact::Done { cookie, error });
    }

    /// What the client is told of an error; returns the first of the reply.
    fn say_error(
        &mut self,
        ask: &Ask,
        first: u32,
        error: ErrorValue,
        offset: Option<u64>,
        text: &str,
        last: bool,
    ) -> u32 {
        // No error would be none.
        let error = if error.0 == 0 { 5 } else { error.0 };
        let first = if first == 0 { error } else { first };
        if self.setup.common.framing() != Framing::Simple {
            let maximum = self.terms().constraints().maximum;
            let fact = Fact::Error {
                cookie: ask.cookie,
                error,
                offset,
                message: Some(front(text, maximum as usize)),
            };
            push(&mut self.answers, fact);
        }
        if last {
            self.say_done(ask, first);
        }
        first
    }

    /// A whole message; one byte too little room is too little.
    pub(super) fn write(&mut self, reply: &Reply) {
        let size = reply.size();
        assert_eq!(reply.parts().concat().len(), size);
        let mut room = vec![0xee; size - 1];
        let mut sink = &mut room[..];
        assert!(reply.encode(&mut sink).is_err());
        assert_eq!(sink.len(), size - 1, "written and refused");
        let at = self.outcome.written.len();
        assert_eq!(reply.encode(&mut self.outcome.written), Ok(size));
        assert_eq!(self.outcome.written[at..], reply.parts().concat());
    }

    fn write_data(&mut self, head: &Head, ask: &Ask, offset: u64, length: u64, fill: u8) {
        assert_eq!(u64::from(head.payload_length()), length);
        let bytes = vec![fill; length as usize];
        self.outcome.written.extend(head.as_bytes());
        self.outcome.written.extend(&bytes);
        let cookie = ask.cookie;
        push(
            &mut self.answers,
            Fact::Data {
                cookie,
                offset,
                bytes,
            },
        );
    }
}

impl Ask {
    fn place(&self, skip: &Measure) -> u64 {
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

/// The front of a text that is sent: whole characters, no `NUL`.
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

/// Errors of all kinds.
fn error_value(byte: u8) -> ErrorValue {
    match byte {
        0xff => ErrorValue(u32::MAX),
        _ => ErrorValue(byte.into()),
    }
}
