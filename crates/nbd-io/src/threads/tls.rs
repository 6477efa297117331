//! TLS for threads: one reads while another one writes.
//!
//! rustls encrypts and decrypts in memory, under a lock that is not held while a thread waits
//! for the socket.

use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
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
    /// The thread that has it writes records.
    sending: Mutex<Sending>,
}

/// Records that are not written yet: after an error, as a timeout, the next write
/// continues where the last one ended.
#[derive(Default)]
struct Sending {
    records: Vec<u8>,
    written: usize,
    /// How much data of the write that failed is in them. It is called again with that.
    accepted: usize,
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

    /// Writes what the session has to send.
    fn send(&self, sending: &mut Sending) -> io::Result<()> {
        {
            let mut session = lock(&self.session);
            while session.wants_write() {
                session.write_tls(&mut sending.records)?;
            }
        }
        while let Some(left @ [_, ..]) = sending.records.get(sending.written..) {
            match self.plain.write_vectored(&[IoSlice::new(left)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => sending.written = sending.written.saturating_add(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Long records take no memory in a connection that waits.
        (sending.records, sending.written) = (Vec::new(), 0);
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
            if answer && let Ok(mut sending) = self.sending.try_lock() {
                self.send(&mut sending)?;
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
        let mut sending = lock(&self.sending);
        if sending.accepted == 0 {
            sending.accepted = lock(&self.session).writer().write_vectored(slices)?;
        }
        self.send(&mut sending)?;
        Ok(mem::take(&mut sending.accepted))
    }

    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.plain.set_timeouts(read, write)
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        // A thread that is writing is not waited for: shutting down ends its write. Nor is a
        // peer to which the last write has failed.
        if how != Shutdown::Read
            && let Ok(mut sending) = self.sending.try_lock()
            && sending.records.is_empty()
        {
            lock(&self.session).send_close_notify();
            let _ = self.send(&mut sending);
        }
        self.plain.shut_down(how)
    }
}
