//! TLS for threads: one reads while others write.

use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};

use super::{Stream, Timed, lock};

/// How much is received at a time.
const RECEIVE: usize = 16 << 10;

type Accepted = (Arc<dyn Stream>, Vec<CertificateDer<'static>>);

/// The TLS handshake. Returns the stream, and the certificates of the client.
pub(super) fn accept(link: &mut Timed, config: Arc<ServerConfig>) -> io::Result<Accepted> {
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    session.set_buffer_limit(None);
    while session.is_handshaking() {
        session.complete_io(link)?;
    }
    let certificates = session.peer_certificates().unwrap_or_default().to_vec();
    let stream = TlsStream {
        plain: Arc::clone(&link.stream),
        session: Mutex::new(session),
        received: Mutex::default(),
        sending: Mutex::default(),
    };
    Ok((Arc::new(stream), certificates))
}

struct TlsStream {
    plain: Arc<dyn Stream>,
    session: Mutex<ServerConnection>,
    /// Received, and not yet decrypted: rustls takes no more while it holds data
    /// that was not read.
    received: Mutex<Vec<u8>>,
    /// Held while records are written, in their order.
    sending: Mutex<()>,
}

impl TlsStream {
    /// Writes what the session has to send.
    fn send(&self, put: impl FnOnce(&mut ServerConnection) -> io::Result<()>) -> io::Result<()> {
        let _in_order = lock(&self.sending);
        let mut records = Vec::new();
        let mut session = lock(&self.session);
        put(&mut session)?;
        while session.wants_write() {
            session.write_tls(&mut records)?;
        }
        drop(session);
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
}

impl Stream for TlsStream {
    fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        let mut received = lock(&self.received);
        loop {
            let mut session = lock(&self.session);
            match session.reader().read(space) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if !received.is_empty() {
                let mut rest = received.as_slice();
                session.read_tls(&mut rest)?;
                let used = received.len().saturating_sub(rest.len());
                received.drain(..used);
                session.process_new_packets().map_err(io::Error::other)?;
                let answer = session.wants_write();
                drop(session);
                if answer {
                    self.send(|_| Ok(()))?;
                }
                continue;
            }
            drop(session);
            let mut buffer = mem::take(&mut *received);
            buffer.resize(RECEIVE, 0);
            let result = self.plain.read(&mut buffer);
            buffer.truncate(*result.as_ref().unwrap_or(&0));
            *received = buffer;
            if result? == 0 {
                // Without close_notify this is an error.
                let mut session = lock(&self.session);
                session.read_tls(&mut io::empty())?;
                return session.reader().read(space);
            }
        }
    }

    fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut n = 0;
        self.send(|session| {
            n = session.writer().write_vectored(slices)?;
            Ok(())
        })?;
        Ok(n)
    }

    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.plain.set_timeouts(read, write)
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.send(|session| {
                session.send_close_notify();
                Ok(())
            })?;
        }
        self.plain.shut_down(how)
    }
}
