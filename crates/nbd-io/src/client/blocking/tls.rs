//! TLS on a stream that two threads use.
//!
//! rustls encrypts and decrypts in memory, under a lock that is not held while a thread waits
//! for the socket. So one thread can read while another one writes.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ClientConnection;

use super::super::core::lock;
use super::super::tls::Session;
use super::stream::Timed;
use crate::server::blocking::Stream;

/// Encrypted bytes that are read at a time: a TLS record and its header.
const RECORD: usize = (16 << 10) + 512;

pub(super) struct TlsStream {
    stream: Arc<dyn Stream>,
    connection: Mutex<ClientConnection>,
    /// Held while records are made and written: they are written in the order of their
    /// numbers.
    writing: Mutex<()>,
    /// Encrypted bytes, for the thread that reads.
    incoming: Mutex<Incoming>,
}

/// Encrypted bytes, those from `start` to `end` not yet decrypted.
struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

impl TlsStream {
    /// The TLS handshake.
    pub(super) fn connect(
        stream: Arc<dyn Stream>,
        session: Session,
        wire: &mut Timed<'_>,
    ) -> io::Result<Self> {
        let connection = ClientConnection::new(session.config, session.name);
        let mut connection = connection.map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(wire)?;
        }
        Ok(Self {
            stream,
            connection: Mutex::new(connection),
            writing: Mutex::new(()),
            incoming: Mutex::new(Incoming {
                buffer: vec![0; RECORD],
                start: 0,
                end: 0,
            }),
        })
    }

    /// Writes the records that are due. The caller has the lock `writing`.
    fn write_records(&self) -> io::Result<()> {
        let mut records = Vec::new();
        {
            let mut connection = lock(&self.connection);
            while connection.wants_write() {
                connection.write_tls(&mut records)?;
            }
        }
        let mut records = records.as_slice();
        while !records.is_empty() {
            match self.stream.write_vectored(&[IoSlice::new(records)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => records = records.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Stream for TlsStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            let wants_write = {
                let mut connection = lock(&self.connection);
                loop {
                    match connection.reader().read(buffer) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return result,
                    }
                    // As much as rustls takes before its plain text is read.
                    let mut rest = incoming.rest();
                    if rest.is_empty() {
                        break;
                    }
                    incoming.start += connection.read_tls(&mut rest)?;
                    connection
                        .process_new_packets()
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
                connection.wants_write()
            };
            // An update of keys. A thread that is writing sends it, too.
            if wants_write && let Ok(_writing) = self.writing.try_lock() {
                self.write_records()?;
            }
            let n = self.stream.read(&mut incoming.buffer)?;
            (incoming.start, incoming.end) = (0, n);
            if n == 0 {
                // rustls knows whether the end is one that the server meant.
                lock(&self.connection).read_tls(&mut io::empty())?;
                let read = lock(&self.connection).reader().read(buffer);
                return read;
            }
        }
    }

    fn write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let _writing = lock(&self.writing);
        let n = {
            let mut connection = lock(&self.connection);
            connection.writer().write_vectored(buffers)?
        };
        self.write_records()?;
        Ok(n)
    }

    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.stream.set_timeouts(read, write)
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        {
            lock(&self.connection).send_close_notify();
        }
        if let Ok(_writing) = self.writing.try_lock() {
            let _ = self.write_records();
        }
        self.stream.shut_down(how)
    }
}
