//! Writing commands and reading replies, by the threads that call.
//!
//! Two things are taken out of the state by the thread that uses them: the batch that is
//! being written, and the reader. The thread that has the reader waits in the system call for
//! all others; it gives the reader back, and wakes another thread, when its own reply has
//! come. A thread that waits is always within a call, so none of these is ever kept by a
//! thread that does not run.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use super::super::Error;
use super::super::core::batch::{Batch, SLICES};
use super::super::core::link::{Engine, Link, State};
use super::super::core::reader::Reader;
use super::super::core::table::{Failure, Index, Reply};
use super::super::core::wake;
use crate::threads::Stream;

/// The part of threads in a connection's state.
pub(crate) struct Blocking {
    stream: Arc<dyn Stream>,
    /// `None` while a thread writes.
    batch: Option<Batch>,
    /// `None` while a thread reads.
    reader: Option<Reader>,
}

impl Blocking {
    pub(super) fn new(stream: Arc<dyn Stream>, reader: Reader) -> Self {
        Self {
            stream,
            batch: Some(Batch::default()),
            reader: Some(reader),
        }
    }
}

type Guard<'l> = MutexGuard<'l, State<Blocking>>;

impl Engine for Blocking {
    fn poll_reply(
        link: &Link<Self>,
        index: Index,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reply, Failure>> {
        let mut state = link.lock();
        loop {
            state = write(link, state);
            // The lock was released: the reply may have come. From here to the end of the
            // loop, or to the registration of the waker, it is held.
            if let Some(result) = state.table.take(index) {
                let next = match state.engine.reader {
                    Some(_) => state.table.any_waker(),
                    None => None,
                };
                drop(state);
                if let Some(waker) = next {
                    waker.wake();
                }
                return Poll::Ready(result);
            }
            match state.engine.reader.take() {
                Some(reader) => state = read(link, state, reader),
                // The thread that reads wakes this one: for its reply, or to read.
                None if state.table.failed().is_none() => {
                    state.table.wait(index, cx);
                    return Poll::Pending;
                }
                None => {}
            }
        }
    }

    fn close(link: &Link<Self>, reason: Error) {
        let mut state = link.lock();
        if state.table.failed().is_none()
            && let Ok(header) = state.table.session().disconnect()
        {
            state.table.out.push(header.as_bytes());
            state = write(link, state);
        }
        fail(state, reason);
    }

    async fn sleep(duration: Duration) {
        thread::sleep(duration);
    }
}

/// Writes what is queued, unless another thread is writing: it writes that, too.
fn write<'l>(link: &'l Link<Blocking>, mut state: Guard<'l>) -> Guard<'l> {
    while !state.table.out.is_empty() {
        let Some(mut batch) = state.engine.batch.take() else {
            return state;
        };
        std::mem::swap(&mut batch, &mut state.table.out);
        let stream = state.engine.stream.clone();
        drop(state);
        let written = write_all(link, &*stream, &mut batch);
        state = link.lock();
        state.engine.batch = Some(batch);
        if let Err(error) = written {
            fail(state, error);
            state = link.lock();
        }
    }
    state
}

fn write_all(link: &Link<Blocking>, stream: &dyn Stream, batch: &mut Batch) -> Result<(), Error> {
    while !batch.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = batch.slices(&mut slices);
        match stream.write_vectored(slices.get(..count).unwrap_or_default()) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Ok(n) => batch.advance(n),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    let mut woken = Vec::new();
                    let late = link.lock().table.expire(Instant::now(), &mut woken);
                    wake(&mut woken);
                    if late {
                        return Err(Error::TimedOut);
                    }
                }
                _ => return Err(error.into()),
            },
        }
    }
    Ok(())
}

/// Reads once, and handles what has arrived.
fn read<'l>(link: &'l Link<Blocking>, state: Guard<'l>, mut reader: Reader) -> Guard<'l> {
    let stream = state.engine.stream.clone();
    drop(state);
    let result = stream.read(reader.space());
    let mut state = link.lock();
    let outcome = match result {
        Ok(n) => {
            let result = reader.receive(n, &mut state.table);
            result.map(drop).map_err(Error::from)
        }
        Err(error) => match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                if state.table.expire(Instant::now(), &mut reader.woken) {
                    Err(Error::TimedOut)
                } else {
                    Ok(())
                }
            }
            _ => Err(error.into()),
        },
    };
    let mut woken = std::mem::take(&mut reader.woken);
    state.engine.reader = Some(reader);
    if let Err(error) = outcome {
        fail(state, error);
    } else {
        drop(state);
    }
    wake(&mut woken);
    link.lock()
}

/// The connection is over: calls learn why, and threads that wait for the socket return.
fn fail(mut state: Guard<'_>, error: Error) {
    let mut woken = Vec::new();
    state.table.fail(error, &mut woken);
    let stream = state.engine.stream.clone();
    drop(state);
    let _ = stream.shut_down(Shutdown::Both);
    wake(&mut woken);
}
