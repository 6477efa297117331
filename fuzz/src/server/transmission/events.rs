//! The checks of all events.

use nbd_codec::Framing;
use nbd_codec::server::{Reply, Request, TransmissionEvent};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};

use super::{Event, Harness, Pending, RequestFields, Token};
use crate::reply_event::{ReplyEvent, push};

const FUA: u64 = 1;
const NO_HOLE: u64 = 1 << 1;
const DF: u64 = 1 << 2;
const REQ_ONE: u64 = 1 << 3;
const FAST_ZERO: u64 = 1 << 4;

impl Harness {
    pub(super) fn record(&mut self, event: TransmissionEvent) {
        match event {
            TransmissionEvent::Request(request) => self.record_request(request),
            TransmissionEvent::WritePayload {
                cookie,
                offset,
                length,
            } => {
                assert!(length > 0, "a write of nothing");
                self.outcome.events.push(Event::Payload {
                    cookie: cookie.0,
                    offset,
                    length: length.into(),
                    bytes: Vec::new(),
                    reported: 0,
                });
            }
            TransmissionEvent::Answered {
                command,
                result,
                reply,
            } => {
                assert!(result.is_ok() || result.is_err_and(ErrorValue::is_error));
                let error = result.err().map_or(0, |error| error.0);
                self.outcome.events.push(Event::Answered {
                    kind: command.0.into(),
                    error: error.into(),
                });
                self.written_at.push(self.outcome.written.len());
                self.record_answer(error, &reply);
            }
            TransmissionEvent::Disconnect => self.outcome.events.push(Event::Disconnect),
            _ => panic!("unknown event"),
        }
        let whole = !matches!(self.outcome.events.last(), Some(Event::Payload { .. }));
        self.ended += usize::from(whole);
    }

    /// The reply to a request that the state machine answered.
    fn record_answer(&mut self, error: u32, reply: &Reply) {
        let [header, text, _] = reply.parts();
        let message = Some(text.to_vec());
        let simple = self.setup.common.framing() == Framing::Simple;
        // The cookie is at the same offset in all headers.
        let cookie = header[8..16].try_into().expect("eight bytes");
        let cookie = u64::from_be_bytes(cookie);
        if !simple && error != 0 {
            let offset = None;
            push(
                &mut self.expected,
                ReplyEvent::Error {
                    cookie,
                    error,
                    offset,
                    message,
                },
            );
        }
        push(&mut self.expected, ReplyEvent::Done { cookie, error });
        self.write(reply);
    }

    pub(super) fn record_data(&mut self, cookie: Cookie, offset: u64, data: &[u8]) {
        assert!(!data.is_empty(), "empty data");
        let left = self.outcome.events.last().and_then(Event::left);
        let (of, at, left) = left.expect("data of a payload");
        assert_eq!((cookie.0, offset), (of, at), "data in order");
        assert!(data.len() as u64 <= left, "more data than a payload");
        if let Some(Event::Payload { bytes, .. }) = self.outcome.events.last_mut() {
            bytes.extend(data);
        }
    }

    fn record_request(&mut self, request: Request) {
        let fields = fields(&request);
        assert_eq!(fields.kind, u64::from(request.command().0));
        assert_eq!(fields.cookie, request.cookie().0);
        self.check(&fields);
        if let Request::Write(_) = request {
            let Some(Event::Payload {
                cookie,
                offset,
                length,
                bytes,
                reported,
            }) = self.outcome.events.last()
            else {
                panic!("a write without its payload");
            };
            assert_eq!(bytes.len() as u64 + reported, *length, "incomplete payload");
            let payload = (*cookie, *offset, *length);
            assert_eq!(payload, (fields.cookie, fields.offset, fields.length));
        }
        self.outcome.events.push(Event::Request(fields.clone()));
        self.written_at.push(self.outcome.written.len());
        let token = Token::Request(request);
        let error = 0;
        self.pending.push(Pending {
            token,
            fields,
            error,
        });
    }

    /// A request that is handed to the caller is valid.
    fn check(&self, fields: &RequestFields) {
        let terms = self.terms();
        let constraints = terms.constraints();
        let command = Command(fields.kind as u16);
        if matches!(command, Command::FLUSH | Command::RESIZE) {
            return;
        }
        assert!(fields.length > 0, "a request of no length");
        let end = fields.offset.checked_add(fields.length);
        assert!(end.is_some_and(|end| end <= terms.size), "out of range");
        if constraints.minimum.is_power_of_two() {
            let minimum = u64::from(constraints.minimum);
            assert_eq!((fields.offset % minimum, fields.length % minimum), (0, 0));
        }
        match command {
            Command::READ | Command::WRITE => {
                assert!(fields.length <= constraints.maximum.into(), "too long");
            }
            Command::BLOCK_STATUS => {
                assert!(!fields.contexts.is_empty(), "status without contexts");
                let selected = |id: &u64| terms.contexts.position(ContextId(*id as u32)).is_some();
                assert!(fields.contexts.iter().all(selected));
            }
            _ => assert!(
                fields.length <= self.setup.limits().max_effect_length
                    || fields.flags & FAST_ZERO != 0
            ),
        }
    }
}

/// All fields of a request.
fn fields(request: &Request) -> RequestFields {
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
            let flags = flags | flag(zero.fast_zero(), FAST_ZERO);
            (zero.offset(), zero.length(), flags)
        }
        Request::BlockStatus32(status) => {
            contexts.extend(status.contexts().map(|id| u64::from(id.0)));
            let one = flag(status.req_one(), REQ_ONE);
            (status.offset(), status.length(), one)
        }
        Request::BlockStatus64(status) => {
            contexts.extend(status.contexts().map(|id| u64::from(id.0)));
            let one = flag(status.req_one(), REQ_ONE);
            (status.offset(), status.length(), one)
        }
        Request::Resize(resize) => (resize.size(), 0, 0),
        Request::Flush(_) => (0, 0, 0),
        _ => panic!("unknown request"),
    };
    RequestFields {
        kind: request.command().0.into(),
        cookie: request.cookie().0,
        offset,
        length,
        flags,
        contexts,
    }
}
