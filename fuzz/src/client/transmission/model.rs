//! The caller's view of its commands; all events are checked against it.

use nbd_codec::Framing;
use nbd_codec::client::{Request, TransmissionEvent};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};

use super::Harness;
use super::peer::Target;
use crate::reference::requests::Change;
use crate::reply_event::{ReplyEvent, push};

/// A command in flight.
pub(super) struct InFlight {
    pub(super) target: Target,
    /// The ranges of the content received.
    content: Vec<(u64, u64)>,
    described: Vec<ContextId>,
    error: Option<ErrorValue>,
}

/// What a command ends with after a fault that costs it alone.
const FAULT: ErrorValue = ErrorValue::EIO;

impl InFlight {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            content: Vec::new(),
            described: Vec::new(),
            error: None,
        }
    }
}

impl Harness {
    pub(super) fn index(&self, cookie: Cookie) -> usize {
        let found = |in_flight: &InFlight| in_flight.target.cookie == cookie;
        self.model
            .iter()
            .position(found)
            .expect("a command in flight")
    }

    pub(super) fn record_data(&mut self, cookie: Cookie, offset: u64, data: &[u8]) {
        assert!(!data.is_empty(), "empty data");
        self.record_content(cookie, offset, data.len() as u64);
        let (cookie, bytes) = (cookie.0, data.to_vec());
        push(
            &mut self.outcome.events,
            ReplyEvent::Data {
                cookie,
                offset,
                bytes,
            },
        );
    }

    pub(super) fn record_content(&mut self, cookie: Cookie, offset: u64, length: u64) {
        let index = self.index(cookie);
        let in_flight = &mut self.model[index];
        assert_eq!(in_flight.target.request.command, Command::READ);
        assert!(within(&in_flight.target.request, offset, length));
        in_flight
            .content
            .push((offset, offset.saturating_add(length)));
    }

    pub(super) fn record_hole(&mut self, cookie: Cookie, offset: u64, length: u64) {
        assert!(length > 0, "an empty hole");
        self.record_content(cookie, offset, length);
        let cookie = cookie.0;
        push(
            &mut self.outcome.events,
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            },
        );
    }

    pub(super) fn record(&mut self, event: TransmissionEvent) {
        let events = &mut self.outcome.events;
        match event {
            TransmissionEvent::Extents32 {
                cookie,
                context,
                offset,
                extents,
            } => {
                assert_eq!(self.setup.framing(), Framing::Structured);
                let extents = extents.map(|extent| (extent.length.into(), extent.flags.into()));
                self.record_status(cookie, context, false, offset, extents.collect());
            }
            TransmissionEvent::Extents64 {
                cookie,
                context,
                offset,
                extents,
            } => {
                assert_eq!(self.setup.framing(), Framing::Extended);
                let extents = extents.map(|extent| (extent.length, extent.flags));
                self.record_status(cookie, context, true, offset, extents.collect());
            }
            TransmissionEvent::Error {
                cookie,
                error,
                offset,
                message,
            } => {
                assert!(error.is_error());
                push(
                    events,
                    ReplyEvent::Error {
                        cookie: cookie.0,
                        error: error.0,
                        offset,
                        message: message.map(|text| text.as_bytes().to_vec()),
                    },
                );
                let index = self.index(cookie);
                self.model[index].error.get_or_insert(error);
            }
            TransmissionEvent::Fault { cookie, .. } => {
                assert!(!self.setup.strict, "a tolerated fault");
                push(events, ReplyEvent::Fault { cookie: cookie.0 });
                let index = self.index(cookie);
                self.model[index].error.get_or_insert(FAULT);
            }
            TransmissionEvent::Done { cookie, result } => {
                let error = result.err().map_or(0, |error| error.0);
                let cookie_number = cookie.0;
                push(
                    events,
                    ReplyEvent::Done {
                        cookie: cookie_number,
                        error,
                    },
                );
                self.record_done(cookie, result);
            }
            _ => panic!("unknown event"),
        }
    }

    fn record_status(
        &mut self,
        cookie: Cookie,
        context: ContextId,
        wide: bool,
        offset: u64,
        extents: Vec<(u64, u64)>,
    ) {
        assert!(!extents.is_empty(), "status without extents");
        assert!(extents.iter().all(|extent| extent.0 > 0), "an empty extent");
        let index = self.index(cookie);
        let in_flight = &mut self.model[index];
        assert_eq!(in_flight.target.request.command, Command::BLOCK_STATUS);
        assert!(in_flight.target.contexts.contains(&context));
        if !in_flight.described.contains(&context) {
            assert_eq!(offset, in_flight.target.request.offset);
            in_flight.described.push(context);
        }
        let (cookie, context) = (cookie.0, context.0);
        push(
            &mut self.outcome.events,
            ReplyEvent::Status {
                cookie,
                context,
                wide,
                offset,
                extents,
            },
        );
    }

    /// A command that succeeded has received all of its reply.
    fn record_done(&mut self, cookie: Cookie, result: Result<(), ErrorValue>) {
        let index = self.index(cookie);
        let in_flight = self.model.remove(index);
        let request = in_flight.target.request;
        match (result, in_flight.error) {
            (result, Some(error)) => assert_eq!(result, Err(error), "the first error counts"),
            (Err(error), None) => assert!(error.is_error()),
            (Ok(()), None) => match request.command {
                Command::READ => assert!(covers(&request, in_flight.content)),
                Command::BLOCK_STATUS => {
                    assert_eq!(in_flight.described.len(), in_flight.target.contexts.len());
                }
                Command::RESIZE => {
                    assert_eq!(self.machine.negotiated().size, request.offset);
                    let change = Change::Resized(request.offset);
                    self.changes.push((self.written.len(), change));
                }
                _ => {}
            },
        }
        self.completed.push(in_flight.target);
    }
}

/// Whether a range is inside the request. Unknown if the request ends past the
/// largest number, which `lenient` permits.
pub(super) fn within(request: &Request, offset: u64, length: u64) -> bool {
    let Some(end) = request.offset.checked_add(request.length) else {
        return true;
    };
    offset >= request.offset && offset.checked_add(length).is_some_and(|part| part <= end)
}

/// Whether the ranges cover the request, each byte once.
fn covers(request: &Request, mut content: Vec<(u64, u64)>) -> bool {
    let Some(end) = request.offset.checked_add(request.length) else {
        return true;
    };
    content.sort();
    let mut at = request.offset;
    for (begin, end) in content {
        if begin != at {
            return false;
        }
        at = end;
    }
    at == end
}
