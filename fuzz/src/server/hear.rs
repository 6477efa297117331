//! What every event is checked against.

use nbd_codec::Framing;
use nbd_codec::server::{Event, Reply, Request};
use nbd_codec::wire::number::{Command, ContextId, Cookie};

use super::{Ask, Held, Server, Token, Told};
use crate::facts::{Fact, push};

const FUA: u64 = 1;
const NO_HOLE: u64 = 1 << 1;
const DF: u64 = 1 << 2;
const REQ_ONE: u64 = 1 << 3;
const FAST_ZERO: u64 = 1 << 4;

impl Server {
    pub(super) fn note(&mut self, event: Event) {
        match event {
            Event::Request(request) => self.note_request(request),
            Event::Payload {
                cookie,
                offset,
                length,
            } => {
                assert!(length > 0, "a write of nothing");
                self.outcome.told.push(Told::Payload {
                    cookie: cookie.0,
                    offset,
                    length: length.into(),
                    bytes: Vec::new(),
                    reported: 0,
                });
            }
            Event::Data {
                cookie,
                offset,
                data,
            } => self.note_data(cookie, offset, data),
            Event::Rejected {
                command,
                error,
                reply,
            } => {
                assert!(error.is_error());
                self.outcome.told.push(Told::Refused {
                    kind: command.0.into(),
                    error: error.0.into(),
                });
                self.places.push(self.outcome.written.len());
                self.note_rejection(error.0, &reply);
            }
            Event::Disconnect => self.outcome.told.push(Told::Bye),
            _ => panic!("an event that this driver does not know"),
        }
        let whole = !matches!(self.outcome.told.last(), Some(Told::Payload { .. }));
        self.heard += usize::from(whole);
    }

    /// What is said to a client whose request was not handed out.
    fn note_rejection(&mut self, error: u32, reply: &Reply) {
        let [head, text, _] = reply.parts();
        let message = Some(text.to_vec());
        let simple = self.setup.common.framing() == Framing::Simple;
        // In the same place in every header.
        let cookie = head[8..16].try_into().expect("eight bytes");
        let cookie = u64::from_be_bytes(cookie);
        if !simple {
            let offset = None;
            push(
                &mut self.answers,
                Fact::Error {
                    cookie,
                    error,
                    offset,
                    message,
                },
            );
        }
        push(&mut self.answers, Fact::Done { cookie, error });
        self.write(reply);
    }

    pub(super) fn note_data(&mut self, cookie: Cookie, offset: u64, data: &[u8]) {
        assert!(!data.is_empty(), "data of no bytes");
        let left = self.outcome.told.last().and_then(Told::left);
        let (of, at, left) = left.expect("data of a payload");
        assert_eq!((cookie.0, offset), (of, at), "data in order");
        assert!(data.len() as u64 <= left, "more data than a payload");
        if let Some(Told::Payload { bytes, .. }) = self.outcome.told.last_mut() {
            bytes.extend(data);
        }
    }

    fn note_request(&mut self, request: Request) {
        let ask = ask(&request);
        assert_eq!(ask.kind, u64::from(request.command().0));
        assert_eq!(ask.cookie, request.cookie().0);
        self.check(&ask);
        if let Request::Write(_) = request {
            let Some(Told::Payload {
                cookie,
                offset,
                length,
                bytes,
                reported,
            }) = self.outcome.told.last()
            else {
                panic!("a write without its payload");
            };
            assert_eq!(bytes.len() as u64 + reported, *length, "not all of it");
            let payload = (*cookie, *offset, *length);
            assert_eq!(payload, (ask.cookie, ask.offset, ask.length));
        }
        self.outcome.told.push(Told::Request(ask.clone()));
        self.places.push(self.outcome.written.len());
        let token = Token::Request(request);
        let error = 0;
        self.held.push(Held { token, ask, error });
    }

    /// A request that is handed out is one that can be done.
    fn check(&self, ask: &Ask) {
        let terms = self.terms();
        let constraints = terms.constraints();
        let command = Command(ask.kind as u16);
        if matches!(command, Command::FLUSH | Command::RESIZE) {
            return;
        }
        assert!(ask.length > 0, "a request of no length");
        let end = ask.offset.checked_add(ask.length);
        assert!(end.is_some_and(|end| end <= terms.size), "out of range");
        if constraints.minimum.is_power_of_two() {
            let minimum = u64::from(constraints.minimum);
            assert_eq!((ask.offset % minimum, ask.length % minimum), (0, 0));
        }
        match command {
            Command::READ | Command::WRITE => {
                assert!(ask.length <= constraints.maximum.into(), "too long");
            }
            Command::BLOCK_STATUS => {
                assert!(!ask.contexts.is_empty(), "status of no context");
                let selected = |id: &u64| terms.contexts.position(ContextId(*id as u32)).is_some();
                assert!(ask.contexts.iter().all(selected));
            }
            _ => assert!(ask.length <= self.setup.limits().effect || ask.flags & FAST_ZERO != 0),
        }
    }
}

/// All that a token tells its caller.
fn ask(request: &Request) -> Ask {
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    let mut contexts = Vec::new();
    let (offset, length, flags) = match request {
        Request::Read(read) => {
            let flags = flag(read.dont_fragment(), DF);
            (read.offset(), read.length().into(), flags)
        }
        Request::Write(write) => (write.offset(), write.length(), flag(write.fua(), FUA)),
        Request::Trim(trim) => (trim.offset(), trim.length(), flag(trim.fua(), FUA)),
        Request::Cache(cache) => (cache.offset(), cache.length(), 0),
        Request::WriteZeroes(zero) => {
            let flags = flag(zero.fua(), FUA) | flag(zero.no_hole(), NO_HOLE);
            let flags = flags | flag(zero.fast(), FAST_ZERO);
            (zero.offset(), zero.length(), flags)
        }
        Request::BlockStatus32(status) => {
            contexts.extend(status.contexts().map(|id| u64::from(id.0)));
            let one = flag(status.one(), REQ_ONE);
            (status.offset(), status.length(), one)
        }
        Request::BlockStatus64(status) => {
            contexts.extend(status.contexts().map(|id| u64::from(id.0)));
            let one = flag(status.one(), REQ_ONE);
            (status.offset(), status.length(), one)
        }
        Request::Resize(resize) => (resize.size(), 0, 0),
        Request::Flush(_) => (0, 0, 0),
        _ => panic!("a request that this driver does not know"),
    };
    Ask {
        kind: request.command().0.into(),
        cookie: request.cookie().0,
        offset,
        length,
        flags,
        contexts,
    }
}
