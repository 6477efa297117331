//! The commands of a connection: from submission to the result that its caller takes.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::{Content, Framing, Limits, Misuse, Negotiated};

use super::batch::Batch;
use super::ranges::Guard;
use super::wait::Queue;
use crate::client::status::Extents;
use crate::client::{Error, Payload};

/// A command to submit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Submission<'a> {
    pub(crate) request: Request,
    /// The data of a write.
    pub(crate) payload: &'a Payload<'a>,
    /// The contexts of a block status, if not all.
    pub(crate) contexts: Option<&'a [ContextId]>,
    /// What the command holds until it is answered.
    pub(crate) guard: Option<&'a Arc<Guard>>,
}

/// Why a command has no reply.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call has failed.
    Call(Error),
    /// The connection is over, for this reason; the command may be sent again.
    Lost(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Call(error.into())
    }
}

/// What a command was answered with.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// The data of a read.
    pub(crate) data: Vec<u8>,
    /// The extents of a block status.
    pub(crate) extents: Option<Extents>,
}

/// Longest read in bytes whose memory is not zeroed before its data arrives.
const LONG: usize = 64 << 10;

/// The number of a command in the table.
pub(crate) type Index = usize;

/// A command in flight, or one whose caller has not taken the result.
#[derive(Debug)]
struct Entry {
    request: Request,
    reply: Reply,
    /// What the server said in the first error chunk.
    message: Option<Arc<str>>,
    /// What was wrong with a reply that keeps the connection in use.
    fault: Option<nbd_codec::Error>,
    outcome: Option<Result<(), Error>>,
    waker: Option<Waker>,
    /// The future of the call was dropped.
    abandoned: bool,
    /// Held until the reply.
    guard: Option<Arc<Guard>>,
    since: Option<Instant>,
}

/// The commands of a connection.
pub(crate) struct Table {
    session: Transmission<Vec<Slot>>,
    /// More than there are slots: a slot is free when the reply has come, an entry when its
    /// caller has taken it.
    entries: Vec<Option<Entry>>,
    free: Vec<Index>,
    /// The entry of each slot in flight.
    by_slot: Vec<Index>,
    pub(crate) out: Batch,
    /// Calls that wait for a slot.
    queue: Queue,
    /// Calls that wait for the end of the connection.
    watchers: Vec<Waker>,
    /// Why the connection is over.
    failed: Option<Error>,
    timeout: Option<Duration>,
    wide: bool,
}

impl Table {
    pub(crate) fn new(negotiated: Negotiated, slots: usize, timeout: Option<Duration>) -> Self {
        let session = Transmission::new(negotiated, vec![Slot::EMPTY; slots], Limits::DEFAULT);
        Self {
            session: session.with_seed(super::random()),
            entries: Vec::new(),
            free: Vec::new(),
            by_slot: vec![Index::MAX; slots],
            out: Batch::default(),
            queue: Queue::default(),
            watchers: Vec::new(),
            failed: None,
            timeout,
            wide: negotiated.framing == Framing::Extended,
        }
    }

    pub(crate) fn session(&mut self) -> &mut Transmission<Vec<Slot>> {
        &mut self.session
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.session.in_flight()
    }

    /// Whether the connection is over; if not, the waker is called when it is.
    pub(crate) fn poll_failed(&mut self, cx: &Context<'_>) -> bool {
        if self.failed.is_none() {
            self.watchers.push(cx.waker().clone());
        }
        self.failed.is_some()
    }

    pub(crate) fn failed(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Queues a command; `None` if every slot is in flight.
    pub(crate) fn submit(&mut self, submission: &Submission<'_>) -> Result<Option<Index>, Failure> {
        if let Some(error) = &self.failed {
            return Err(Failure::Lost(error.clone()));
        }
        let request = submission.request;
        let Request { offset, length, .. } = request;
        let mut names = Vec::new();
        let header = match submission.contexts {
            None => self.session.submit(request),
            Some(contexts) => {
                self.session
                    .block_status_of(contexts, offset, length, request.flags, &mut names)
            }
        };
        let header = match header {
            Err(Misuse::Full) => return Ok(None),
            header => header?,
        };
        self.out.push(header.as_bytes());
        self.out.push(&names);
        if request.command == Command::WRITE {
            self.out.push_payload(submission.payload);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len().saturating_sub(1)
        });
        let status = request.command == Command::BLOCK_STATUS;
        let entry = Entry {
            request,
            reply: Reply {
                data: Vec::new(),
                extents: status.then(|| Extents::new(self.wide)),
            },
            message: None,
            fault: None,
            outcome: None,
            waker: None,
            abandoned: false,
            guard: submission.guard.cloned(),
            since: self.timeout.map(|_| Instant::now()),
        };
        if let Some(place) = self.entries.get_mut(index) {
            *place = Some(entry);
        }
        if let Some(place) = self.by_slot.get_mut(slot_index(header.cookie())) {
            *place = index;
        }
        Ok(Some(index))
    }

    /// Waits for a slot.
    pub(crate) fn wait_for_slot(&mut self, place: &mut Option<u64>, cx: &Context<'_>) {
        self.queue.wait(place, cx);
    }

    /// Ends waiting for a slot. Returns the next task if there is a slot for it.
    pub(crate) fn stop_waiting_for_slot(&mut self, place: Option<u64>) -> Option<Waker> {
        self.queue.leave(place);
        let free = self.session.in_flight() < self.by_slot.len();
        if free { self.queue.pop() } else { None }
    }

    /// Takes the result of a command, or `None` if it has not come. After the connection is
    /// over, the error is its reason.
    pub(crate) fn take(&mut self, index: Index) -> Option<Result<Reply, Failure>> {
        let entry = self.entries.get_mut(index)?;
        let outcome = match entry.as_mut()?.outcome.take() {
            Some(outcome) => outcome.map_err(Failure::Call),
            None => Err(Failure::Lost(self.failed.clone()?)),
        };
        let entry = entry.take()?;
        self.free.push(index);
        Some(outcome.map(|()| entry.reply))
    }

    /// Registers the waker of the caller of a command.
    pub(crate) fn wait(&mut self, index: Index, cx: &Context<'_>) {
        if let Some(Some(entry)) = self.entries.get_mut(index) {
            match &mut entry.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => entry.waker = Some(cx.waker().clone()),
            }
        }
    }

    /// The future that waits for a command was dropped. The command stays in flight.
    pub(crate) fn abandon(&mut self, index: Index) {
        if self.failed.is_some() {
            drop(self.take(index));
            return;
        }
        let Some(place) = self.entries.get_mut(index) else {
            return;
        };
        match place {
            Some(entry) if entry.outcome.is_none() => {
                entry.abandoned = true;
                entry.waker = None;
                entry.reply = Reply::default();
            }
            Some(_) => {
                *place = None;
                self.free.push(index);
            }
            None => {}
        }
    }

    /// The waker of any caller that waits for a reply.
    #[cfg(feature = "blocking")]
    pub(crate) fn any_waker(&self) -> Option<Waker> {
        let mut entries = self.entries.iter().flatten();
        entries.find_map(|entry| match entry.outcome {
            None => entry.waker.clone(),
            Some(_) => None,
        })
    }

    /// Puts content in its place.
    pub(crate) fn content(&mut self, content: &Content<&[u8]>) {
        let Some(entry) = self.find(content.cookie()) else {
            return;
        };
        if entry.abandoned {
            return;
        }
        let (start, length) = (entry.request.offset, clip(entry.request.length));
        let data = &mut entry.reply.data;
        let at = clip(content.offset().saturating_sub(start));
        if data.is_empty() {
            // Zeroed memory of this length comes from the operating system: it costs nothing.
            *data = if length <= LONG {
                Vec::with_capacity(length)
            } else {
                vec![0; length]
            };
        }
        match content {
            Content::Data { data: part, .. } if at == data.len() => data.extend_from_slice(part),
            content => {
                data.resize(length, 0);
                // The session has checked that it is within the request.
                let _ = content.copy_to(start, data);
            }
        }
    }

    /// Takes out the memory for the data of a read, of which `length` bytes at `offset` of the
    /// export come next. Returns it with the position of the first of them.
    pub(crate) fn take_data(&mut self, cookie: Cookie, offset: u64, length: usize) -> Direct {
        let mut direct = Direct {
            cookie,
            data: Vec::new(),
            at: 0,
            end: length,
        };
        if let Some(entry) = self.find(cookie).filter(|entry| !entry.abandoned) {
            direct.at = clip(offset.saturating_sub(entry.request.offset));
            direct.end = direct.at.saturating_add(length);
            direct.data = std::mem::take(&mut entry.reply.data);
        }
        if direct.data.is_empty() {
            direct.data = vec![0; direct.end];
        } else if direct.data.len() < direct.end {
            direct.data.resize(direct.end, 0);
        }
        direct
    }

    /// Puts back what `take_data` has taken.
    pub(crate) fn return_data(&mut self, direct: Direct) {
        if let Some(entry) = self.find(direct.cookie).filter(|entry| !entry.abandoned) {
            entry.reply.data = direct.data;
        }
    }

    /// Handles an event. Wakers of callers are added to `woken`.
    pub(crate) fn event(&mut self, event: TransmissionEvent<'_>, woken: &mut Vec<Waker>) {
        match event {
            TransmissionEvent::Done { cookie, result } => self.done(cookie, result, woken),
            TransmissionEvent::Extents32 {
                cookie,
                context,
                extents,
                ..
            } => {
                if let Some(all) = self.find(cookie).and_then(|e| e.reply.extents.as_mut()) {
                    all.narrow(context, extents);
                }
            }
            TransmissionEvent::Extents64 {
                cookie,
                context,
                extents,
                ..
            } => {
                if let Some(all) = self.find(cookie).and_then(|e| e.reply.extents.as_mut()) {
                    all.wide(context, extents);
                }
            }
            TransmissionEvent::Error {
                cookie, message, ..
            } => {
                let text = message.unwrap_or_default();
                if let Some(entry) = self.find(cookie).filter(|e| e.message.is_none()) {
                    entry.message = Some(text.to_string().into());
                }
            }
            TransmissionEvent::Fault { cookie, error } => {
                if let Some(entry) = self.find(cookie).filter(|e| e.message.is_none()) {
                    entry.fault.get_or_insert(error);
                }
            }
            _ => {}
        }
    }

    fn done(&mut self, cookie: Cookie, result: Result<(), ErrorValue>, woken: &mut Vec<Waker>) {
        woken.extend(self.queue.pop());
        let Some(index) = self.by_slot.get(slot_index(cookie)).copied() else {
            return;
        };
        let Some(place) = self.entries.get_mut(index) else {
            return;
        };
        let Some(entry) = place else {
            return;
        };
        if entry.abandoned {
            *place = None;
            self.free.push(index);
            return;
        }
        let message = entry.message.take();
        entry.outcome = Some(result.map_err(|error| match entry.fault {
            Some(fault) => Error::Reply(fault),
            None => Error::Command { error, message },
        }));
        entry.guard = None;
        woken.extend(entry.waker.take());
    }

    fn find(&mut self, cookie: Cookie) -> Option<&mut Entry> {
        let index = *self.by_slot.get(slot_index(cookie))?;
        self.entries.get_mut(index)?.as_mut()
    }

    /// The connection is over. Calls that wait learn the reason, and what commands hold is
    /// released.
    pub(crate) fn fail(&mut self, error: Error, woken: &mut Vec<Waker>) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(error);
        self.out = Batch::default();
        woken.extend(self.queue.drain());
        woken.append(&mut self.watchers);
        for (index, place) in self.entries.iter_mut().enumerate() {
            if let Some(entry) = place {
                entry.guard = None;
                woken.extend(entry.waker.take());
                if entry.abandoned {
                    *place = None;
                    self.free.push(index);
                }
            }
        }
    }

    /// When the oldest command in flight is late.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        let entries = self.entries.iter().flatten();
        let in_flight = entries.filter(|entry| entry.outcome.is_none());
        let oldest = in_flight.filter_map(|entry| entry.since).min()?;
        oldest.checked_add(timeout)
    }

    /// Fails the commands that are late, and with them the connection. Returns whether there
    /// were any.
    pub(crate) fn expire(&mut self, now: Instant, woken: &mut Vec<Waker>) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        let timeout = self.timeout.unwrap_or_default();
        for entry in self.entries.iter_mut().flatten() {
            let late = entry.since.and_then(|since| since.checked_add(timeout));
            if late.is_some_and(|late| now >= late) && entry.outcome.is_none() {
                entry.outcome = Some(Err(Error::TimedOut));
            }
        }
        self.fail(Error::TimedOut, woken);
        true
    }
}

/// Memory that the data of a read goes to directly from the socket.
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) cookie: Cookie,
    pub(crate) data: Vec<u8>,
    /// Where the next byte goes.
    pub(crate) at: usize,
    /// Where the last byte goes, and one.
    pub(crate) end: usize,
}

fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
