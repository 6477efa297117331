//! Incoming replies.

use std::task::Waker;

use nbd_codec::inbox::Inbox;
use nbd_codec::{Misuse, SessionError, Step};

use super::table::{Direct, Table};

/// Room for replies in bytes: 15 replies with 4 KiB of data each.
pub(crate) const BUFFER: usize = 64 << 10;

/// Payloads of which at least this much has not arrived are read directly into their place.
/// Shorter ones are read together with the replies after them.
const DIRECT: u64 = 32 << 10;

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    inbox: Inbox<Vec<u8>>,
    direct: Option<Direct>,
    pub(crate) woken: Vec<Waker>,
}

impl Reader {
    /// With what has arrived after the handshake.
    pub(crate) fn new(inbox: Inbox<Vec<u8>>) -> Self {
        Self {
            inbox,
            direct: None,
            woken: Vec::new(),
        }
    }

    /// Where the next bytes go.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        match &mut self.direct {
            Some(Direct { data, at, end, .. }) => data.get_mut(*at..*end).unwrap_or_default(),
            None => self.inbox.space(),
        }
    }

    /// `n` bytes were read into `space`; zero is the end of the stream. Handles what has
    /// arrived. Returns how many commands are done by it.
    pub(crate) fn receive(&mut self, n: usize, table: &mut Table) -> Result<usize, SessionError> {
        let Some(direct) = &mut self.direct else {
            self.inbox.filled(n)?;
            return self.handle(table);
        };
        if n == 0 {
            table.session().end_of_input()?;
        }
        direct.at = direct.at.saturating_add(n);
        if direct.at > direct.end {
            return Err(Misuse::Overfilled { space: direct.end }.into());
        }
        table.session().advance(wide(n))?;
        if direct.at < direct.end {
            return Ok(0);
        }
        if let Some(direct) = self.direct.take() {
            table.return_data(direct);
        }
        self.handle(table)
    }

    fn handle(&mut self, table: &mut Table) -> Result<usize, SessionError> {
        let before = table.in_flight();
        loop {
            match self.inbox.receive(table.session())? {
                Step::Event(event) => table.event(event, &mut self.woken),
                Step::Content(content) => table.content(&content),
                Step::ReadPayload {
                    cookie,
                    offset,
                    length,
                } if length >= DIRECT => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    self.direct = Some(table.take_data(cookie, offset, length));
                    break;
                }
                Step::Read(_) | Step::ReadPayload { .. } => break,
                Step::Finished => return Err(nbd_codec::Error::Closed.into()),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(before.saturating_sub(table.in_flight()))
    }
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
