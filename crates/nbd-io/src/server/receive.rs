//! Requests of a connection: received, admitted, and handed out with their data.

use std::mem;

use bytes::{Bytes, BytesMut};
use nbd_codec::server::{Reply, Request, ResizeRequest, Transmission, TransmissionEvent};
use nbd_codec::{Content, Limits, Misuse, Negotiated, SessionError, Step};

use super::Extents;

/// What a request costs beside its data: its future, and a reply without data.
const OVERHEAD: usize = 512;

/// A request to do.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) request: Request,
    /// The data of a write.
    pub(super) data: Bytes,
    /// What it was admitted with, in bytes of memory.
    pub(super) cost: usize,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Work(Work),
    /// A request needs no work: this is its reply.
    Answered(Reply<'static>),
    /// There is no memory for the next request yet.
    Wait,
    /// More input is needed.
    Read,
    /// This many bytes of the data of a write are missing: more input, or read
    /// them into [`Receiver::data`].
    ReadData(usize),
    /// The client has sent `DISC`.
    End,
}

/// A request that waits for memory.
#[derive(Debug)]
enum Due {
    Request(Request),
    Data { length: usize },
}

/// The state of a connection in transmission, without its socket.
#[derive(Debug)]
pub(super) struct Receiver {
    session: Transmission,
    due: Option<Due>,
    /// Of the write that arrives.
    data: BytesMut,
    data_cost: usize,
}

impl Receiver {
    pub(super) fn new(negotiated: Negotiated) -> Result<Self, Misuse> {
        Ok(Self {
            session: Transmission::new(negotiated, Limits::DEFAULT)?,
            due: None,
            data: BytesMut::new(),
            data_cost: 0,
        })
    }

    pub(super) fn shut_down(&mut self) {
        self.session.shut_down();
    }

    pub(super) fn resized(&mut self, request: ResizeRequest) -> Reply<'static> {
        self.session.resized(request)
    }

    /// The client has closed the connection.
    pub(super) fn end_of_input(&mut self) -> Result<(), SessionError> {
        Ok(self.session.end_of_input()?)
    }

    /// Takes the next request from `input`, which advances past what was consumed.
    /// `admit` takes memory for it, and returns whether there was as much.
    pub(super) fn next(
        &mut self,
        input: &mut &[u8],
        mut admit: impl FnMut(usize) -> bool,
    ) -> Result<Next, SessionError> {
        loop {
            if let Some(due) = self.due.take() {
                let cost = due.cost();
                if !admit(cost) {
                    self.due = Some(due);
                    return Ok(Next::Wait);
                }
                match due {
                    Due::Request(request) => {
                        let data = Bytes::new();
                        return Ok(Next::Work(Work {
                            request,
                            data,
                            cost,
                        }));
                    }
                    Due::Data { length } => {
                        self.data = BytesMut::with_capacity(length);
                        self.data_cost = cost;
                    }
                }
            }
            match self.session.receive(input)? {
                Step::Event(TransmissionEvent::Request(request)) => match request {
                    Request::Write(_) => {
                        let data = mem::take(&mut self.data).freeze();
                        let cost = mem::take(&mut self.data_cost);
                        return Ok(Next::Work(Work {
                            request,
                            data,
                            cost,
                        }));
                    }
                    request => self.due = Some(Due::Request(request)),
                },
                Step::Event(TransmissionEvent::WritePayload { length, .. }) => {
                    let length = clip(length);
                    self.due = Some(Due::Data { length });
                }
                Step::Content(Content::Data { data, .. }) => self.data.extend_from_slice(data),
                Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                    return Ok(Next::Answered(reply));
                }
                Step::Event(_) => {} // Disconnect: `Finished` follows.
                Step::Read(_) => return Ok(Next::Read),
                Step::ReadPayload { length, .. } => {
                    return Ok(Next::ReadData(
                        usize::try_from(length).unwrap_or(usize::MAX),
                    ));
                }
                Step::Finished => return Ok(Next::End),
                other => return Err(other.unexpected().into()),
            }
        }
    }

    /// Where the data of [`Next::ReadData`] may be appended; report it with
    /// [`filled`](Self::filled).
    pub(super) fn data(&mut self) -> &mut BytesMut {
        &mut self.data
    }

    /// `n` bytes were appended to [`data`](Self::data), at most those that were
    /// missing.
    pub(super) fn filled(&mut self, n: usize) -> Result<(), SessionError> {
        let n = u64::try_from(n).unwrap_or(u64::MAX);
        Ok(self.session.advance(n)?)
    }
}

impl Due {
    /// The memory that the request needs until its reply is written.
    fn cost(&self) -> usize {
        let data = match self {
            Self::Data { length } => *length,
            Self::Request(Request::Read(read)) => clip(read.length()),
            Self::Request(Request::BlockStatus32(status)) => {
                status.contexts().count().saturating_mul(STATUS)
            }
            Self::Request(Request::BlockStatus64(status)) => {
                status.contexts().count().saturating_mul(STATUS)
            }
            Self::Request(_) => 0,
        };
        data.saturating_add(OVERHEAD)
    }
}

/// The longest list of extents, and its encoding.
const STATUS: usize = 2 * 16 * Extents::MOST;

fn clip(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
