//! What a caller knows of its commands, and what every event is checked
//! against.

use nbd_codec::Framing;
use nbd_codec::client::{Event, Request};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};

use super::Client;
use crate::facts::{Fact, push};
use crate::peer::Target;
use crate::reader::requests::Change;

/// A command in flight, as the caller sees it.
pub(super) struct InFlight {
    pub(super) target: Target,
    /// Content that arrived, as ranges.
    content: Vec<(u64, u64)>,
    answered: Vec<ContextId>,
    error: Option<ErrorValue>,
}

impl InFlight {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            content: Vec::new(),
            answered: Vec::new(),
            error: None,
        }
    }
}

impl Client {
    pub(super) fn index(&self, cookie: Cookie) -> usize {
        let found = |live: &InFlight| live.target.cookie == cookie;
        self.model
            .iter()
            .position(found)
            .expect("a command in flight")
    }

    pub(super) fn note_data(&mut self, cookie: Cookie, offset: u64, data: &[u8]) {
        assert!(!data.is_empty(), "data of no bytes");
        self.note_content(cookie, offset, data.len() as u64);
        let (cookie, bytes) = (cookie.0, data.to_vec());
        push(
            &mut self.outcome.facts,
            Fact::Data {
                cookie,
                offset,
                bytes,
            },
        );
    }

    pub(super) fn note_content(&mut self, cookie: Cookie, offset: u64, length: u64) {
        let index = self.index(cookie);
        let live = &mut self.model[index];
        assert_eq!(live.target.request.command, Command::READ);
        assert!(within(&live.target.request, offset, length));
        live.content.push((offset, offset.saturating_add(length)));
    }

    pub(super) fn note(&mut self, event: &Event) {
        let facts = &mut self.outcome.facts;
        match *event {
            Event::Data {
                cookie,
                offset,
                data,
            } => self.note_data(cookie, offset, data),
            Event::Hole {
                cookie,
                offset,
                length,
            } => {
                let length = u64::from(length);
                assert!(length > 0, "an empty hole");
                push(
                    facts,
                    Fact::Hole {
                        cookie: cookie.0,
                        offset,
                        length,
                    },
                );
                self.note_content(cookie, offset, length);
            }
            Event::Extents32 {
                cookie,
                context,
                offset,
                extents,
            } => {
                assert_eq!(self.setup.framing(), Framing::Structured);
                let extents = extents.map(|extent| (extent.length.into(), extent.flags.into()));
                self.note_status(cookie, context, false, offset, extents.collect());
            }
            Event::Extents64 {
                cookie,
                context,
                offset,
                extents,
            } => {
                assert_eq!(self.setup.framing(), Framing::Extended);
                let extents = extents.map(|extent| (extent.length, extent.flags));
                self.note_status(cookie, context, true, offset, extents.collect());
            }
            Event::Error {
                cookie,
                error,
                offset,
                message,
            } => {
                assert!(error.is_error());
                push(
                    facts,
                    Fact::Error {
                        cookie: cookie.0,
                        error: error.0,
                        offset,
                        message: message.map(|text| text.as_bytes().to_vec()),
                    },
                );
                let index = self.index(cookie);
                self.model[index].error.get_or_insert(error);
            }
            Event::Done { cookie, result } => {
                let error = result.err().map_or(0, |error| error.0);
                let cookie_number = cookie.0;
                push(
                    facts,
                    Fact::Done {
                        cookie: cookie_number,
                        error,
                    },
                );
                self.note_done(cookie, result);
            }
            _ => panic!("an event that this driver does not know"),
        }
    }

    fn note_status(
        &mut self,
        cookie: Cookie,
        context: ContextId,
        wide: bool,
        offset: u64,
        extents: Vec<(u64, u64)>,
    ) {
        assert!(!extents.is_empty(), "status of nothing");
        assert!(extents.iter().all(|extent| extent.0 > 0), "an empty extent");
        let index = self.index(cookie);
        let live = &mut self.model[index];
        assert_eq!(live.target.request.command, Command::BLOCK_STATUS);
        assert!(live.target.contexts.contains(&context));
        if !live.answered.contains(&context) {
            assert_eq!(offset, live.target.request.offset);
            live.answered.push(context);
        }
        let (cookie, context) = (cookie.0, context.0);
        push(
            &mut self.outcome.facts,
            Fact::Status {
                cookie,
                context,
                wide,
                offset,
                extents,
            },
        );
    }

    /// A command that claims to have succeeded has.
    fn note_done(&mut self, cookie: Cookie, result: Result<(), ErrorValue>) {
        let index = self.index(cookie);
        let live = self.model.remove(index);
        let request = live.target.request;
        match (result, live.error) {
            (result, Some(error)) => assert_eq!(result, Err(error), "the first error counts"),
            (Err(error), None) => assert!(error.is_error()),
            (Ok(()), None) => match request.command {
                Command::READ => assert!(covers(&request, live.content)),
                Command::BLOCK_STATUS => {
                    assert_eq!(live.answered.len(), live.target.contexts.len());
                }
                Command::RESIZE => {
                    assert_eq!(self.machine.negotiated().size, request.offset);
                    let change = Change::Resized(request.offset);
                    self.changes.push((self.upstream.len(), change));
                }
                _ => {}
            },
        }
        self.completed.push(live.target);
    }
}

/// Whether a part lies within what was asked for. (What a lenient caller asks
/// for can end behind the end of numbers; then there is no telling.)
pub(super) fn within(request: &Request, offset: u64, length: u64) -> bool {
    let Some(end) = request.offset.checked_add(request.length) else {
        return true;
    };
    offset >= request.offset && offset.checked_add(length).is_some_and(|part| part <= end)
}

/// Whether ranges make up what was asked for, each byte once.
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
