//! Writes to an export, several requests in flight.

use std::collections::HashMap;

use anyhow::{Result, bail};
use nbd_codec::Framing;
use nbd_codec::client::{Request, TransmissionEvent};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{Command, Cookie, ErrorValue};

use crate::align::to_usize;
use crate::reads::{Reads, chunk};
use crate::session::{Replies, Session, WINDOW, describe, detail, explain};

/// The most bytes that one `WRITE_ZEROES` covers without extended headers: the
/// largest power of two that fits 32 bits.
const ZEROES: u64 = 1 << 31;

pub struct Writer {
    session: Session,
    pending: Pending,
    /// Whether the server has `WRITE_ZEROES`.
    zeroes: bool,
}

impl Writer {
    pub fn new(session: Session) -> Result<Self> {
        let flags = session.negotiated().flags;
        if flags.contains(TransmissionFlags::READ_ONLY) {
            bail!("the export is read-only");
        }
        Ok(Self {
            session,
            pending: Pending::default(),
            zeroes: flags.contains(TransmissionFlags::SEND_WRITE_ZEROES),
        })
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.session.negotiated().size
    }

    /// Offsets and lengths must be multiples of this, in bytes.
    pub fn alignment(&self) -> u64 {
        self.session.negotiated().constraints().minimum.into()
    }

    /// The longest data for [`data`](Self::data), in bytes.
    pub fn chunk(&self) -> usize {
        to_usize(chunk(&self.session))
    }

    /// A buffer for data.
    pub fn spare(&mut self) -> Vec<u8> {
        self.session.spare()
    }

    /// Reads a range, after everything is written.
    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.wait_below(1)?;
        let mut reads = Reads::new();
        reads.submit(&mut self.session, offset..offset.saturating_add(length))?;
        loop {
            self.session.step(&mut reads)?;
            if let Some(piece) = reads.next_ended() {
                return Ok(piece?.data);
            }
        }
    }

    /// Writes data.
    pub fn data(&mut self, offset: u64, data: Vec<u8>) -> Result<()> {
        self.submit(Request::write(offset, data.len() as u64), data)
    }

    /// Writes zeroes: with `WRITE_ZEROES` if the server supports it, otherwise as
    /// data.
    pub fn zeroes(&mut self, mut offset: u64, mut length: u64) -> Result<()> {
        while length > 0 {
            let most = match (self.zeroes, self.session.negotiated().framing) {
                (true, Framing::Extended) => u64::MAX,
                (true, _) => ZEROES,
                (false, _) => chunk(&self.session),
            };
            let part = length.min(most);
            if self.zeroes {
                self.submit(Request::write_zeroes(offset, part), Vec::new())?
            } else {
                let mut data = self.spare();
                data.clear();
                data.resize(to_usize(part), 0);
                self.data(offset, data)?;
            }
            offset = offset.saturating_add(part);
            length = length.saturating_sub(part);
        }
        Ok(())
    }

    /// Waits until everything is written, flushes if the server supports it, and
    /// ends the session.
    pub fn finish(mut self) -> Result<()> {
        self.wait_below(1)?;
        let flags = self.session.negotiated().flags;
        if flags.contains(TransmissionFlags::SEND_FLUSH) {
            self.submit(Request::flush(), Vec::new())?;
            self.wait_below(1)?;
        }
        self.session.close()
    }

    fn submit(&mut self, request: Request, payload: Vec<u8>) -> Result<()> {
        self.wait_below(WINDOW)?;
        let cookie = self.session.submit(request, payload)?;
        self.pending.running.insert(cookie, request);
        // After that, the buffer of the payload can be reused while it is in the
        // processor's cache.
        self.session.send_all(&mut self.pending)
    }

    /// Waits until fewer than `n` commands are in flight.
    fn wait_below(&mut self, n: usize) -> Result<()> {
        loop {
            self.pending.check()?;
            while let Some(refused) = self.pending.refused.pop() {
                // Some servers advertise the command and reject it, such as nbdkit
                // with oldstyle.
                self.zeroes = false;
                self.zeroes(refused.offset, refused.length)?;
            }
            if self.session.in_flight() < n {
                return Ok(());
            }
            self.session.step(&mut self.pending)?;
        }
    }
}

/// The commands in flight, and the failures of others.
#[derive(Default)]
struct Pending {
    running: HashMap<Cookie, Request>,
    messages: HashMap<Cookie, String>,
    /// `WRITE_ZEROES` commands that the server rejected.
    refused: Vec<Request>,
    failed: Option<String>,
}

impl Pending {
    fn check(&mut self) -> Result<()> {
        match self.failed.take() {
            Some(failed) => bail!(failed),
            None => Ok(()),
        }
    }
}

impl Replies for Pending {
    fn place(&mut self, _: Cookie, _: u64, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()> {
        if let Some((cookie, text)) = detail(&event) {
            *self.messages.entry(cookie).or_default() += &text;
        }
        if let TransmissionEvent::Done { cookie, result } = event {
            let request = self.running.remove(&cookie);
            let message = self.messages.remove(&cookie).unwrap_or_default();
            let (Err(error), Some(request)) = (result, request) else {
                return Ok(());
            };
            let unable = matches!(error, ErrorValue::EINVAL | ErrorValue::ENOTSUP);
            if unable && request.command == Command::WRITE_ZEROES {
                self.refused.push(request);
            } else if self.failed.is_none() {
                let what = describe(&request);
                self.failed = Some(format!("{what} failed: {}{message}", explain(error)));
            }
        }
        Ok(())
    }
}
