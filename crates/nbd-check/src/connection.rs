//! A blocking connection that records every byte, and waits for none of them longer
//! than a limit.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nbd_codec::monitor;

use crate::client::Observer;
use crate::outcome::{End, Finding};
use crate::stream::{Address, Stream};
use crate::tls;
use crate::transcript::{Entry, Event};

/// What a case leaves: the messages of all of its connections, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) entries: Vec<Entry>,
    pub(crate) findings: Vec<Finding>,
    connections: usize,
    /// How the last connection ended.
    pub(crate) end: Option<End>,
}

pub(crate) type Shared = Rc<RefCell<Record>>;

/// The side that the tester is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// A connection to the program that is tested.
pub(crate) struct Connection {
    side: Side,
    stream: Stream,
    record: Shared,
    number: usize,
    /// Received and not yet taken.
    buffer: Vec<u8>,
    /// Finds what a client must not send.
    observer: Option<Box<Observer>>,
    end: End,
    /// How long a reply may take.
    timeout: Duration,
    /// When the case has to end.
    deadline: Instant,
}

/// How much is read at once, in bytes.
const READ: usize = 1 << 16;
/// How much of a message of the scripted server is kept, in bytes.
const KEPT: usize = 4096;

impl Connection {
    pub(crate) fn open(
        address: &Address,
        record: &Shared,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Self> {
        let stream = address.connect(timeout)?;
        Ok(Self::over(stream, record, timeout, deadline))
    }

    /// A connection to a server over a stream that is connected.
    pub(crate) fn over(
        stream: Stream,
        record: &Shared,
        timeout: Duration,
        deadline: Instant,
    ) -> Self {
        Self::new(Side::Client, stream, record, timeout, deadline)
    }

    /// A connection that a client opened.
    pub(crate) fn accepted(
        stream: Stream,
        record: &Shared,
        timeout: Duration,
        deadline: Instant,
    ) -> Self {
        Self::new(Side::Server, stream, record, timeout, deadline)
    }

    fn new(
        side: Side,
        stream: Stream,
        record: &Shared,
        timeout: Duration,
        deadline: Instant,
    ) -> Self {
        let number = {
            let mut record = record.borrow_mut();
            record.connections += 1;
            record.end = Some(End::Open);
            record.connections
        };
        Self {
            side,
            stream,
            record: Rc::clone(record),
            number,
            buffer: Vec::new(),
            observer: (side == Side::Server).then(|| Box::new(Observer::new())),
            end: End::Open,
            timeout,
            deadline,
        }
    }

    /// Whether bytes were received and not taken.
    pub(crate) fn has_input(&self) -> bool {
        !self.buffer.is_empty()
    }

    fn log(&self, event: Event, meaning: String) {
        self.record.borrow_mut().entries.push(Entry {
            connection: self.number,
            event,
            meaning,
        });
    }

    fn ended(&mut self, end: End) -> End {
        if self.end != End::Open {
            return self.end;
        }
        // What a stream reports is of the peer.
        let end = match (self.side, end) {
            (Side::Server, End::Closed | End::Reset) => End::Client,
            (Side::Server, End::Client) => End::Closed,
            _ => end,
        };
        // A client may take its time.
        if self.side == Side::Client || end != End::Silent {
            self.end = end;
            self.record.borrow_mut().end = Some(end);
            self.log(Event::Ended(end), String::new());
        }
        end
    }

    /// What this side sent; of very many bytes the first.
    fn sent(&self, bytes: &[u8]) -> Event {
        match self.side {
            Side::Client => Event::Sent(bytes.to_vec()),
            Side::Server => {
                let kept = bytes.get(..KEPT).unwrap_or(bytes);
                Event::Received(kept.to_vec(), bytes.len() - kept.len())
            }
        }
    }

    /// What the client sends from now on is not checked.
    pub(crate) fn stop_observing(&mut self) {
        self.observer = None;
    }

    /// Sends bytes. A server that closed the connection, or does not read, is
    /// noticed when the next reply is due: it may have replied before.
    pub(crate) fn send(&mut self, bytes: &[u8], meaning: impl Into<String>) {
        if let Some(observer) = &mut self.observer {
            // What the client sent before its turn is found now.
            let findings = observer.see(monitor::Side::Server, bytes);
            self.record.borrow_mut().findings.extend(findings);
        }
        self.log(self.sent(bytes), meaning.into());
        let sent = self.stream.write_all(bytes);
        let _ = sent.and_then(|()| self.stream.flush());
    }

    /// Sends bytes that are not recorded.
    ///
    /// # Errors
    ///
    /// The peer closed the connection, or does not read.
    pub(crate) fn send_more(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Whether something of the peer has arrived, or arrives within this time.
    pub(crate) fn has_more(&mut self, time: Duration) -> bool {
        !self.buffer.is_empty() || self.read(Instant::now() + time).is_ok()
    }

    /// The next `n` bytes; not yet recorded.
    pub(crate) fn peek(&mut self, n: usize) -> Result<&[u8], End> {
        self.fill(n, self.timeout)?;
        Ok(self.buffer.get(..n).unwrap_or_default())
    }

    /// Takes `n` bytes and records them.
    pub(crate) fn take(
        &mut self,
        n: usize,
        meaning: impl FnOnce(&[u8]) -> String,
    ) -> Result<Vec<u8>, End> {
        self.fill(n, self.timeout)?;
        let after = self.buffer.split_off(n);
        let taken = std::mem::replace(&mut self.buffer, after);
        self.received(taken.clone(), meaning(&taken));
        Ok(taken)
    }

    /// Records bytes that the peer sent.
    fn received(&mut self, bytes: Vec<u8>, meaning: String) {
        let event = match self.side {
            Side::Client => Event::Received(bytes, 0),
            Side::Server => Event::Sent(bytes),
        };
        self.log(event, meaning);
    }

    /// How long the peer may take from now on.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Reads until the buffer has `n` bytes. `timeout` is for each read: a slow server
    /// is not a silent one.
    fn fill(&mut self, n: usize, timeout: Duration) -> Result<(), End> {
        while self.buffer.len() < n {
            let until = self.deadline.min(Instant::now() + timeout);
            if let Err(end) = self.read(until) {
                // What arrived of an incomplete message belongs into the transcript.
                let rest = std::mem::take(&mut self.buffer);
                if !rest.is_empty() {
                    let meaning = format!("{} of {n} bytes", rest.len());
                    self.received(rest, meaning);
                }
                return Err(self.ended(end));
            }
        }
        Ok(())
    }

    /// Reads once.
    fn read(&mut self, until: Instant) -> Result<(), End> {
        if self.end != End::Open {
            return Err(self.end);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || self.stream.set_read_timeout(left).is_err() {
            return Err(End::Silent);
        }
        let start = self.buffer.len();
        self.buffer.resize(start + READ, 0);
        let read = loop {
            let space = self.buffer.get_mut(start..).unwrap_or_default();
            match self.stream.read(space) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        if let Some(observer) = &mut self.observer {
            let new = self.buffer.get(start..).unwrap_or_default();
            let findings = observer.see(monitor::Side::Client, new);
            self.record.borrow_mut().findings.extend(findings);
        }
        match read {
            Ok(0) => Err(End::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Silent,
                ErrorKind::UnexpectedEof => End::Closed,
                _ => End::Reset,
            }),
        }
    }

    /// Waits until the server ends the connection.
    ///
    /// # Errors
    ///
    /// The bytes that came instead; none if nothing came within the time limit.
    pub(crate) fn expect_end(&mut self) -> Result<End, Vec<u8>> {
        self.expect_end_within(self.timeout)
    }

    /// The same, for this long.
    pub(crate) fn expect_end_within(&mut self, time: Duration) -> Result<End, Vec<u8>> {
        match self.fill(1, time.min(self.timeout)) {
            Ok(()) => Err(self.rest()),
            Err(end) if end.is_by_server() => Ok(end),
            Err(_) => Err(Vec::new()),
        }
    }

    /// Takes what has arrived.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.buffer);
        self.received(rest.clone(), format!("{} bytes, not expected", rest.len()));
        rest
    }

    /// Sends nothing more; replies can still be read.
    pub(crate) fn shutdown(&mut self) {
        self.log(Event::Shutdown, String::new());
        let _ = self.stream.shutdown_write();
    }

    /// Closes the connection.
    pub(crate) fn close(&mut self) {
        self.ended(End::Client);
        self.stream = Stream::Gone;
    }

    /// Continues within TLS, which a client starts.
    pub(crate) fn accept_tls(&mut self, acceptor: &tls::Acceptor) -> Result<()> {
        self.log(Event::Tls, String::new());
        self.stream.set_read_timeout(self.timeout)?;
        let plain = std::mem::replace(&mut self.stream, Stream::Gone);
        self.stream = tls::accept(plain, acceptor)?;
        if let Some(observer) = &mut self.observer {
            observer.tls_established();
        }
        Ok(())
    }

    /// Continues within TLS.
    pub(crate) fn start_tls(&mut self, config: &tls::Config, name: &str) -> Result<()> {
        self.log(Event::Tls, String::new());
        self.stream.set_read_timeout(self.timeout)?;
        let plain = std::mem::replace(&mut self.stream, Stream::Gone);
        self.stream = tls::start(plain, config, name)?;
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ended(End::Client);
        // Some clients take a connection that ends without this for an attack.
        #[cfg(feature = "tls")]
        if let Stream::Tls(stream) = &mut self.stream {
            let _ = stream.close();
        }
    }
}
