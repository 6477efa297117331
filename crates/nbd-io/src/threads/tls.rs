//! TLS for threads: one reads while another one writes.
//!
//! rustls encrypts and decrypts in memory, under a lock that is not held while a thread waits
//! for the socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::Connection;

use super::Stream;
use crate::lock;

/// How much is received at a time: a record and its header.
const RECEIVE: usize = (16 << 10) + 512;

pub(crate) struct TlsStream {
    plain: Arc<dyn Stream>,
    session: Mutex<Connection>,
    received: Mutex<Received>,
    /// Held while records are written, in their order.
    sending: Mutex<()>,
}

/// Received, and not yet decrypted: rustls takes no more while it holds data that was not
/// read.
struct Received {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl TlsStream {
    /// After the TLS handshake.
    pub(crate) fn new(plain: Arc<dyn Stream>, session: Connection) -> Self {
        Self {
            plain,
            session: Mutex::new(session),
            received: Mutex::new(Received {
                buffer: vec![0; RECEIVE],
                start: 0,
                end: 0,
            }),
            sending: Mutex::default(),
        }
    }

    /// Writes what the session has to send, in the turn of the caller.
    fn send(&self, _turn: MutexGuard<'_, ()>) -> io::Result<()> {
        let mut records = Vec::new();
        {
            let mut session = lock(&self.session);
            while session.wants_write() {
                session.write_tls(&mut records)?;
            }
        }
        let mut left = records.as_slice();
        while !left.is_empty() {
            match self.plain.write_vectored(&[IoSlice::new(left)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => left = left.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is decrypted, or decrypts what has arrived; `None` if more has to arrive.
    fn decrypted(&self, received: &mut Received, space: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let mut session = lock(&self.session);
            match session.reader().read(space) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(Some),
            }
            let rest = received.buffer.get(received.start..received.end);
            let mut rest = rest.unwrap_or_default();
            if rest.is_empty() {
                return Ok(None);
            }
            let n = session.read_tls(&mut rest)?;
            received.start = received.start.saturating_add(n);
            session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let answer = session.wants_write();
            drop(session);
            // An update of keys. If a thread is writing, its next records take it along: to
            // wait for it here would stop reading, which the peer may be waiting for.
            if answer && let Ok(turn) = self.sending.try_lock() {
                self.send(turn)?;
            }
        }
    }
}

impl Stream for TlsStream {
    fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        let mut received = lock(&self.received);
        loop {
            if let Some(n) = self.decrypted(&mut received, space)? {
                return Ok(n);
            }
            let n = self.plain.read(&mut received.buffer)?;
            (received.start, received.end) = (0, n);
            if n == 0 {
                // Without close_notify this is an error.
                let mut session = lock(&self.session);
                session.read_tls(&mut io::empty())?;
                return session.reader().read(space);
            }
        }
    }

    fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let turn = lock(&self.sending);
        let n = lock(&self.session).writer().write_vectored(slices)?;
        self.send(turn)?;
        Ok(n)
    }

    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.plain.set_timeouts(read, write)
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        // A thread that is writing is not waited for: shutting down ends its write.
        if how != Shutdown::Read
            && let Ok(turn) = self.sending.try_lock()
        {
            lock(&self.session).send_close_notify();
            let _ = self.send(turn);
        }
        self.plain.shut_down(how)
    }
}
