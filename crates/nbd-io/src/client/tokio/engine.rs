//! Writing commands, and the task that reads replies.
//!
//! A call writes its command at once, in its own task, unless another task is writing or the
//! driver is about to run: then it is written together with theirs. A task of the client, the
//! driver, reads replies and continues messages that the socket did not accept whole.
//!
//! No call reads. If the call that reads were dropped, another one could; but a future that
//! is kept and not polled, as in a `select!` whose other branch calls the client, would block
//! all of them.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::time::{Instant, Sleep};

use super::super::Error;
use super::super::core::batch::{Batch, SLICES};
use super::super::core::link::{Engine, Link, State};
use super::super::core::reader::Reader;
use super::super::core::table::{Failure, Index, Reply};
use super::super::core::wake;

/// How long the replies to abandoned commands are waited for at the end of a connection.
const LINGER: Duration = Duration::from_secs(5);

/// The part of tokio in a connection's state.
pub(crate) struct Tokio {
    /// `None` while a task writes.
    writer: Option<Writer>,
    /// The driver runs soon, and writes what is queued.
    scheduled: bool,
    closing: Closing,
}

/// Whether the driver shall end the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// It has to be woken, to begin.
    Wanted,
    /// It has begun, and continues whenever something was written.
    Begun,
}

/// The sending half of a connection.
struct Writer {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    batch: Batch,
    /// Written, and not flushed.
    unflushed: bool,
    /// Of the driver. `None` before it has run.
    driver: Option<Waker>,
}

impl Tokio {
    pub(super) fn new(io: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self {
            writer: Some(Writer {
                io,
                batch: Batch::default(),
                unflushed: false,
                driver: None,
            }),
            scheduled: true,
            closing: Closing::No,
        }
    }
}

impl Engine for Tokio {
    fn poll_reply(
        link: &Link<Self>,
        index: Index,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reply, Failure>> {
        let mut state = link.lock();
        if let Some(result) = state.table.take(index) {
            return Poll::Ready(result);
        }
        state.table.wait(index, cx);
        if !state.engine.scheduled {
            write(link, state);
        }
        Poll::Pending
    }

    fn close(link: &Link<Self>, reason: Error) {
        let mut woken = Vec::new();
        let mut state = link.lock();
        let quiet = matches!(reason, Error::Disconnected);
        if !quiet && let Ok(header) = state.table.session().disconnect() {
            // The driver ends the connection once it is written, if it can be.
            state.table.out.push(header.as_bytes());
            write(link, state);
            state = link.lock();
            state.table.fail(reason, &mut woken);
        }
        state.engine.closing = Closing::Wanted;
        let writer = state.engine.writer.as_ref();
        woken.extend(writer.and_then(|writer| writer.driver.clone()));
        drop(state);
        wake(&mut woken);
    }

    async fn sleep(duration: Duration) {
        if !duration.is_zero() {
            ::tokio::time::sleep(duration).await;
        }
    }
}

/// Writes what is queued, as far as the socket accepts it; the driver is woken for the rest.
fn write<'l>(link: &'l Link<Tokio>, mut state: MutexGuard<'l, State<Tokio>>) {
    loop {
        let State { table, engine } = &mut *state;
        let Some(writer) = &mut engine.writer else {
            // The task that writes looks again when it is done.
            return;
        };
        if writer.batch.is_empty() {
            if table.out.is_empty() && !writer.unflushed {
                return;
            }
            std::mem::swap(&mut writer.batch, &mut table.out);
        }
        if writer.driver.is_none() {
            return;
        }
        let Some(mut writer) = engine.writer.take() else {
            return;
        };
        drop(state);
        let written = writer.poll_write();
        state = link.lock();
        let wake_driver = match state.engine.closing {
            Closing::No => matches!(written, Poll::Ready(Err(_))),
            Closing::Wanted => true,
            Closing::Begun => written.is_ready(),
        };
        if let Some(driver) = writer.driver.as_ref().filter(|_| wake_driver) {
            driver.wake_by_ref();
        }
        state.engine.writer = Some(writer);
        match written {
            Poll::Ready(Ok(())) => {}
            Poll::Pending => return,
            Poll::Ready(Err(error)) => {
                let mut woken = Vec::new();
                state.table.fail(error.into(), &mut woken);
                drop(state);
                return wake(&mut woken);
            }
        }
    }
}

impl Writer {
    fn poll_write(&mut self) -> Poll<io::Result<()>> {
        let Some(driver) = &self.driver else {
            return Poll::Pending;
        };
        let cx = &mut Context::from_waker(driver);
        while !self.batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.batch.slices(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            let io = Pin::new(&mut self.io);
            let n = match slices {
                [one] => ready!(io.poll_write(cx, one))?,
                _ => ready!(io.poll_write_vectored(cx, slices))?,
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.batch.advance(n);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// The task of a connection: reads replies, continues writing, and watches the time.
pub(super) struct Driver<R> {
    link: Arc<Link<Tokio>>,
    io: R,
    reader: Reader,
    timeout: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// DISC was queued.
    disconnecting: bool,
}

impl<R: AsyncRead + Unpin> Driver<R> {
    pub(super) fn new(
        link: Arc<Link<Tokio>>,
        io: R,
        reader: Reader,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            link,
            io,
            reader,
            timeout,
            timer: None,
            disconnecting: false,
        }
    }

    /// One round. Returns whether the driver shall run again soon.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut state = self.link.lock();
        if let Some(error) = state.table.failed() {
            return Err(error.clone());
        }
        state.engine.scheduled = false;
        let closing = state.engine.closing != Closing::No;
        if closing {
            state.engine.closing = Closing::Begun;
            if state.table.in_flight() == 0 && !self.disconnecting {
                self.disconnecting = true;
                if let Ok(header) = state.table.session().disconnect() {
                    state.table.out.push(header.as_bytes());
                }
            }
            let queued = !state.table.out.is_empty();
            let writer = state.engine.writer.as_ref();
            let written = writer.is_some_and(|it| it.batch.is_empty() && !it.unflushed);
            if self.disconnecting && written && !queued {
                return Err(Error::Disconnected);
            }
        }
        if let Some(writer) = &mut state.engine.writer {
            match &mut writer.driver {
                Some(waker) => waker.clone_from(cx.waker()),
                None => writer.driver = Some(cx.waker().clone()),
            }
        }
        write(&self.link, state);
        self.watch(closing, cx)?;
        let mut done = 0_usize;
        while done < 2 {
            let mut space = ReadBuf::new(self.reader.space());
            let Poll::Ready(result) = Pin::new(&mut self.io).poll_read(cx, &mut space) else {
                // What closing waits for may have come.
                let state = self.link.lock();
                let idle = closing && state.table.in_flight() == 0;
                return Ok(idle && !self.disconnecting);
            };
            result?;
            let n = space.filled().len();
            let mut state = self.link.lock();
            let result = self.reader.receive(n, &mut state.table);
            if let Ok(n) = result {
                done = done.saturating_add(n);
                // Several callers continue: the driver runs after them, and writes their
                // next commands together.
                state.engine.scheduled = done >= 2;
            }
            drop(state);
            wake(&mut self.reader.woken);
            result?;
        }
        Ok(true)
    }

    /// Fails commands that are late.
    fn watch(&mut self, closing: bool, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(timeout) = self.timeout.or(closing.then_some(LINGER)) else {
            return Ok(());
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(::tokio::time::sleep(timeout)));
        while timer.as_mut().poll(cx).is_ready() {
            if closing {
                return Err(Error::Disconnected);
            }
            let mut state = self.link.lock();
            let now = Instant::now();
            let late = state.table.expire(now.into_std(), &mut self.reader.woken);
            // A command that is submitted later is late later.
            let next = state.table.deadline().map(Instant::from_std);
            drop(state);
            wake(&mut self.reader.woken);
            if late {
                return Err(Error::TimedOut);
            }
            timer.as_mut().reset(next.unwrap_or_else(|| now + timeout));
        }
        Ok(())
    }
}

impl<R: AsyncRead + Unpin> Future for Driver<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        match driver.round(cx) {
            Ok(false) => Poll::Pending,
            Ok(true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => {
                driver.end(error);
                Poll::Ready(())
            }
        }
    }
}

impl<R> Driver<R> {
    /// The connection is over: calls learn why, and the socket is closed.
    fn end(&mut self, error: Error) {
        let mut state = self.link.lock();
        state.table.fail(error, &mut self.reader.woken);
        let writer = state.engine.writer.take();
        drop(state);
        wake(&mut self.reader.woken);
        if let Some(mut writer) = writer {
            // As far as it goes without waiting: a TLS connection says that it is closed.
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut writer.io).poll_shutdown(cx);
        }
    }
}

impl<R> Drop for Driver<R> {
    fn drop(&mut self) {
        // The runtime shuts down.
        let over = self.link.lock().table.failed().is_some();
        if !over {
            self.end(Error::Disconnected);
        }
    }
}
