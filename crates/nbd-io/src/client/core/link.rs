//! One connection, and waiting for replies.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use nbd_codec::Negotiated;
use nbd_codec::client::Request;

use super::table::{Failure, Index, Reply, Submission, Table};
use crate::client::{Context as MetaContext, Error};
use crate::lock;

/// The I/O of a runtime, and its part of a connection's state.
pub(crate) trait Engine: Send + Sized + 'static {
    /// Polls for the reply to a command, and sees to it that what is queued is written and
    /// that replies are read.
    fn poll_reply(
        link: &Link<Self>,
        index: Index,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reply, Failure>>;

    /// Ends the connection: `DISC` if it can be sent, then the socket is closed.
    fn close(link: &Link<Self>, reason: Error);

    /// Waits.
    fn sleep(duration: Duration) -> impl Future<Output = ()> + Send;
}

/// One connection.
pub(crate) struct Link<E> {
    state: Mutex<State<E>>,
    /// What was negotiated. The size may have changed since.
    pub(crate) negotiated: Negotiated,
    pub(crate) contexts: Vec<MetaContext>,
}

pub(crate) struct State<E> {
    pub(crate) table: Table,
    pub(crate) engine: E,
}

/// Most commands of one call in flight.
const WINDOW: usize = 8;

impl<E: Engine> Link<E> {
    pub(crate) fn new(
        table: Table,
        engine: E,
        negotiated: Negotiated,
        contexts: Vec<MetaContext>,
    ) -> Self {
        Self {
            state: Mutex::new(State { table, engine }),
            negotiated,
            contexts,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State<E>> {
        lock(&self.state)
    }

    /// Runs a command.
    pub(crate) async fn run(&self, submission: Submission<'_>) -> Result<Reply, Failure> {
        let result = self.submit(submission).await?.await;
        self.check_shutdown(&result);
        result
    }

    /// Runs a command as pieces that the server accepts. `rest` is what was not answered yet;
    /// each reply goes to `take`, in order.
    pub(crate) async fn run_split(
        &self,
        submission: Submission<'_>,
        rest: &mut Request,
        take: &mut (dyn FnMut(Reply) + Send),
    ) -> Result<(), Failure> {
        let start = submission.request.offset;
        let mut pieces = self.negotiated.split(*rest).peekable();
        let mut window = VecDeque::new();
        loop {
            while let Some(request) = pieces.peek().copied()
                && window.len() < WINDOW
            {
                let payload = submission.payload.part(
                    clip(request.offset.saturating_sub(start)),
                    clip(request.length),
                );
                let piece = Submission {
                    request,
                    payload: &payload,
                    ..submission
                };
                let command = match self.try_submit(&piece)? {
                    Some(command) => command,
                    None if window.is_empty() => self.submit(piece).await?,
                    // Its own commands are among those that have the slots.
                    None => break,
                };
                window.push_back((request, command));
                pieces.next();
            }
            let Some((request, command)) = window.pop_front() else {
                return Ok(());
            };
            let result = command.await;
            self.check_shutdown(&result);
            take(result?);
            rest.offset = rest.offset.saturating_add(request.length);
            rest.length = rest.length.saturating_sub(request.length);
        }
    }

    /// Submits a command when there is a slot for it.
    async fn submit(&self, submission: Submission<'_>) -> Result<InFlight<'_, E>, Failure> {
        let mut waiting = Waiting {
            link: self,
            place: None,
        };
        poll_fn(|cx| {
            let mut state = self.lock();
            match state.table.submit(&submission) {
                Ok(None) => {
                    state.table.wait_for_slot(&mut waiting.place, cx);
                    Poll::Pending
                }
                Ok(Some(index)) => Poll::Ready(Ok(InFlight {
                    link: self,
                    index: Some(index),
                })),
                Err(failure) => Poll::Ready(Err(failure)),
            }
        })
        .await
    }

    /// Waits until the connection is over.
    pub(crate) async fn closed(&self) {
        poll_fn(|cx| {
            if self.lock().table.poll_failed(cx) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn try_submit(&self, submission: &Submission<'_>) -> Result<Option<InFlight<'_, E>>, Failure> {
        let index = self.lock().table.submit(submission)?;
        Ok(index.map(|index| InFlight {
            link: self,
            index: Some(index),
        }))
    }

    /// A client that gets ESHUTDOWN has to end the session. The command was not done.
    fn check_shutdown(&self, result: &Result<Reply, Failure>) {
        if let Err(Failure::Call(error)) = result
            && error.is_shutdown()
        {
            E::close(self, error.clone());
        }
    }
}

/// A call that waits for a slot.
struct Waiting<'l, E: Engine> {
    link: &'l Link<E>,
    place: Option<u64>,
}

impl<E: Engine> Drop for Waiting<'_, E> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let next = self.link.lock().table.stop_waiting_for_slot(self.place);
            if let Some(waker) = next {
                waker.wake();
            }
        }
    }
}

/// A command in flight: a future of its reply. Dropped before, it leaves the command in
/// flight, and its reply is discarded.
struct InFlight<'l, E: Engine> {
    link: &'l Link<E>,
    index: Option<Index>,
}

impl<E: Engine> Future for InFlight<'_, E> {
    type Output = Result<Reply, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(index) = self.index else {
            return Poll::Pending;
        };
        let reply = E::poll_reply(self.link, index, cx);
        if reply.is_ready() {
            self.index = None;
        }
        reply
    }
}

impl<E: Engine> Drop for InFlight<'_, E> {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.link.lock().table.abandon(index);
        }
    }
}

fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
