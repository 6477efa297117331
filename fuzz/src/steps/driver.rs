//! A driver that ignores all events. It is generic over the state machine, and
//! depends on nothing but the crate.

use std::fmt::Debug;

use nbd_codec::inbox::{BytesInbox, Inbox, Payloads, ReceiveOwned};
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Content, Error, Receive, Step};

/// How the driver reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As many bytes as the buffer has space for.
    ReadAhead,
    /// At most as many bytes as `Read` says.
    Exact,
    /// The same, and payloads are read directly.
    Direct,
}

/// A step of which the driver takes care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Transmit,
    StartTls,
    /// An event was ignored that needs a reply, or an option is due.
    Unanswered,
}

/// What the driver has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Content in order; adjacent data is joined.
    pub content: Vec<Piece>,
    /// `Debug` output of the events that do not depend on how the input is
    /// split.
    pub events: Vec<String>,
    pub end: End,
}

/// How a session ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    #[default]
    Finished,
    /// The driver does not make this call.
    Call(Call),
    Failed(Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Data {
        cookie: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Hole {
        cookie: u64,
        offset: u64,
        length: u64,
    },
}

/// Runs a session with the bytes of `stream`, followed by the end of the input.
///
/// `sizes` limits the size of each read, repeated; zero is no limit. `call`
/// makes a call, or returns false to end the session.
///
/// # Panics
///
/// If the number of steps is not bounded by the number of bytes, if a step asks
/// for more than `buffer` bytes, or if payload is due while bytes are buffered.
pub fn run<M>(
    machine: &mut M,
    stream: &[u8],
    buffer: usize,
    reading: Reading,
    sizes: &[u8],
    mut call: impl FnMut(&mut M, Call) -> bool,
) -> Summary
where
    M: Receive,
    for<'i> M::Event<'i>: Debug,
{
    let mut source = Source::new(stream, sizes);
    let mut inbox = Inbox::new(vec![0; buffer]);
    let mut summary = Summary::default();
    let mut budget = Budget::new(stream);
    loop {
        budget.step();
        // The step borrows the inbox until here.
        let next = match inbox.receive(machine) {
            Ok(Step::Event(event)) => {
                summary.event(&event);
                continue;
            }
            Ok(Step::Content(content)) => {
                summary.content(&content);
                continue;
            }
            Ok(Step::Read(n)) => Next::Read(n.get()),
            Ok(Step::ReadPayload {
                cookie,
                offset,
                length,
            }) => Next::Payload(cookie, offset, length),
            Ok(Step::Transmit) => Next::Call(Call::Transmit),
            Ok(Step::StartTls) => Next::Call(Call::StartTls),
            Err(Error::Unanswered) => Next::Call(Call::Unanswered),
            Ok(Step::Finished) => Next::End(End::Finished),
            Err(error) => {
                assert!(error.is_fatal(), "the buffer is too small: {error}");
                Next::End(End::Failed(error))
            }
        };
        match next {
            Next::Read(n) => {
                let buffered = inbox.held().len();
                assert!(buffered + n <= buffer, "exceeds the buffer");
                let n = match reading {
                    Reading::ReadAhead => usize::MAX,
                    Reading::Exact | Reading::Direct => n,
                };
                source.fill(&mut inbox, n);
            }
            Next::Payload(cookie, offset, length) => {
                assert!(inbox.held().is_empty(), "the payload is buffered");
                assert!(length > 0, "empty payload");
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                match reading {
                    Reading::ReadAhead => source.fill(&mut inbox, usize::MAX),
                    Reading::Exact => source.fill(&mut inbox, length),
                    Reading::Direct => match source.take(length) {
                        [] => source.fill(&mut inbox, 1),
                        data => {
                            machine.advance(data.len() as u64).expect("payload");
                            summary.content(&Content::Data {
                                cookie,
                                offset,
                                data,
                            });
                        }
                    },
                }
            }
            Next::Call(due) => {
                budget.call();
                if !call(machine, due) {
                    summary.end = End::Call(due);
                    return summary;
                }
            }
            Next::End(end) => {
                summary.end = end;
                return summary;
            }
        }
    }
}

/// A step without what borrows the inbox.
enum Next {
    Read(usize),
    Payload(Cookie, u64, u64),
    Call(Call),
    End(End),
}

/// As [`run`], with events and content that own their bytes.
pub fn run_owned<M>(machine: &mut M, stream: &[u8], payloads: Payloads, sizes: &[u8]) -> Summary
where
    M: ReceiveOwned,
    M::Owned: Debug,
{
    let mut source = Source::new(stream, sizes);
    let mut inbox = BytesInbox::new(payloads);
    let mut summary = Summary::default();
    let mut budget = Budget::new(stream);
    loop {
        budget.step();
        match inbox.receive(machine) {
            Ok(Step::Event(event)) => summary.event(&event),
            Ok(Step::Content(content)) => summary.content(&content),
            Ok(Step::Read(_) | Step::ReadPayload { .. }) => match source.take(usize::MAX) {
                [] => inbox.close(),
                bytes => inbox.buffer().extend_from_slice(bytes),
            },
            Ok(Step::Transmit | Step::StartTls) => panic!("a step of the handshake"),
            Ok(Step::Finished) => {
                summary.end = End::Finished;
                return summary;
            }
            Err(error) => {
                summary.end = End::Failed(error);
                return summary;
            }
        }
    }
}

impl Summary {
    fn event(&mut self, event: &impl Debug) {
        let event = format!("{event:?}");
        // Extents arrive in pieces, and messages have different types.
        if !event.starts_with("Extents") && !event.starts_with("Error") {
            self.events.push(event);
        }
    }

    fn content<D: AsRef<[u8]>>(&mut self, content: &Content<D>) {
        assert!(content.length() > 0, "empty content");
        let (cookie, offset) = (content.cookie().0, content.offset());
        match (content, self.content.last_mut()) {
            (
                Content::Data { data, .. },
                Some(Piece::Data {
                    cookie: last,
                    offset: start,
                    bytes,
                }),
            ) if *last == cookie && start.saturating_add(bytes.len() as u64) == offset => {
                bytes.extend(data.as_ref());
            }
            (Content::Data { data, .. }, _) => self.content.push(Piece::Data {
                cookie,
                offset,
                bytes: data.as_ref().to_vec(),
            }),
            (Content::Hole { length, .. }, _) => self.content.push(Piece::Hole {
                cookie,
                offset,
                length: (*length).into(),
            }),
        }
    }
}

/// The steps that are left.
struct Budget {
    steps: usize,
    calls: usize,
}

impl Budget {
    fn new(stream: &[u8]) -> Self {
        Self {
            steps: 4 * stream.len() + 16,
            calls: 1000,
        }
    }

    fn step(&mut self) {
        self.steps = self.steps.checked_sub(1).expect("a busy loop");
    }

    /// Further steps are due after a call.
    fn call(&mut self) {
        self.calls = self.calls.checked_sub(1).expect("a busy loop of calls");
        self.steps += 4;
    }
}

/// A connection.
struct Source<'a> {
    left: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl<'a> Source<'a> {
    fn new(stream: &'a [u8], sizes: &'a [u8]) -> Self {
        Self {
            left: stream,
            sizes: sizes.iter().cycle(),
        }
    }

    /// Reads up to `n` bytes; none at the end of the input.
    fn take(&mut self, n: usize) -> &'a [u8] {
        let limit = match self.sizes.next() {
            None | Some(0) => usize::MAX,
            Some(size) => usize::from(*size),
        };
        let (taken, left) = self.left.split_at(n.min(limit).min(self.left.len()));
        self.left = left;
        taken
    }

    fn fill(&mut self, inbox: &mut Inbox<Vec<u8>>, n: usize) {
        let space = inbox.space();
        assert!(!space.is_empty(), "a read of zero bytes");
        let bytes = self.take(n.min(space.len()));
        space[..bytes.len()].copy_from_slice(bytes);
        inbox.filled(bytes.len()).expect("space");
    }
}
