//! Sending one command and receiving its reply. What a dropped call leaves, the next one
//! completes.

use embedded_io_async::{Read, Write};
use nbd_codec::client::{
    Config, ConnectEvent, Connector, Request, RequestHeader, Slot, Transmission, TransmissionEvent,
};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::extent::{Extents32, Extents64};
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Content, Limits, Negotiated, SelectedContexts, SessionError, Step};

use super::Error;

/// Fewest bytes of the buffer: a handshake with short names.
pub const MINIMUM_BUFFER: usize = 256;

/// Extents of a block status reply, in the width that was negotiated.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Extents<'i> {
    /// With structured replies.
    Narrow {
        /// The metadata context.
        context: ContextId,
        /// Where the first extent begins, in bytes from the start of the export.
        offset: u64,
        /// The extents.
        extents: Extents32<'i>,
    },
    /// With extended headers.
    Wide {
        /// The metadata context.
        context: ContextId,
        /// Where the first extent begins, in bytes from the start of the export.
        offset: u64,
        /// The extents.
        extents: Extents64<'i>,
    },
}

/// Where the content of a reply goes.
pub(super) enum Reply<'r, 'e> {
    /// There is none, or it is discarded.
    None,
    /// Into memory for the data from an offset of the export. What is outside of it is
    /// discarded.
    Data(u64, &'r mut [u8]),
    /// Extents.
    Extents(&'e mut dyn FnMut(Extents<'_>)),
}

/// What is under way.
#[derive(Debug, Clone, Copy)]
enum State {
    Idle,
    /// A message, and how many bytes of it were written.
    Sending(RequestHeader, usize),
    /// A reply is due.
    Receiving,
}

pub(super) struct Session<'b, L> {
    link: L,
    inbox: Inbox<&'b mut [u8]>,
    transmission: Transmission<[Slot; 1]>,
    state: State,
    /// For each selected context, which of the wanted ones it is.
    wanted: [u8; SelectedContexts::CAPACITY],
}

impl<'b, L: Read + Write> Session<'b, L> {
    pub(super) async fn connect(
        mut link: L,
        config: Config<'_>,
        buffer: &'b mut [u8],
    ) -> Result<Self, Error<L::Error>> {
        let limits = Limits::for_buffer(u32::try_from(buffer.len()).unwrap_or(u32::MAX));
        let mut inbox = Inbox::new(buffer);
        let mut connector = Connector::new(config.limits(limits))?;
        let mut wanted = [u8::MAX; SelectedContexts::CAPACITY];
        let mut granted = wanted.iter_mut();
        let mut failed = None;
        loop {
            match inbox.receive(&mut connector)? {
                Step::Event(ConnectEvent::Ready) => break,
                Step::Event(ConnectEvent::Failed { reason, .. }) => failed = Some(reason),
                Step::Event(ConnectEvent::Context { wanted, .. }) => {
                    if let (Some(place), Some(index)) = (granted.next(), wanted) {
                        *place = u8::try_from(index).unwrap_or(u8::MAX);
                    }
                }
                Step::Event(_) => {}
                Step::Transmit => {
                    // The free part of the buffer holds the message.
                    let space = inbox.space();
                    let n = connector.transmit(&mut &mut *space)?;
                    let message = space.get(..n).unwrap_or_default();
                    link.write_all(message).await.map_err(Error::Link)?;
                    link.flush().await.map_err(Error::Link)?;
                    if let Some(reason) = failed {
                        return Err(reason.into());
                    }
                }
                Step::Read(_) => {
                    let n = link.read(inbox.space()).await.map_err(Error::Link)?;
                    inbox.filled(n)?;
                }
                Step::Finished => {
                    let reason = failed.map(SessionError::from);
                    return Err(reason.unwrap_or(SessionError::NotReady).into());
                }
                other => return Err(other.unexpected().into()),
            }
        }
        let negotiated = connector.into_negotiated();
        let negotiated = negotiated.map_err(|_| SessionError::NotReady)?;
        Ok(Self {
            link,
            inbox,
            transmission: Transmission::new(negotiated, [Slot::EMPTY], limits),
            state: State::Idle,
            wanted,
        })
    }

    pub(super) fn negotiated(&self) -> &Negotiated {
        self.transmission.negotiated()
    }

    pub(super) fn context(&self, id: ContextId) -> Option<usize> {
        let position = self.negotiated().contexts.position(id)?;
        let wanted = *self.wanted.get(position)?;
        (wanted != u8::MAX).then_some(wanted.into())
    }

    /// Runs a command.
    pub(super) async fn run(
        &mut self,
        request: Request,
        payload: &[u8],
        reply: &mut Reply<'_, '_>,
    ) -> Result<(), Error<L::Error>> {
        self.settle().await?;
        let header = self.transmission.submit(request)?;
        self.send(header, 0, payload).await?;
        self.receive(reply).await
    }

    pub(super) async fn disconnect(mut self) -> Result<(), Error<L::Error>> {
        self.settle().await?;
        let header = self.transmission.disconnect()?;
        let result = self.send(header, 0, &[]).await;
        // It has no reply.
        self.state = State::Idle;
        result
    }

    /// Completes what a dropped call has left.
    async fn settle(&mut self) -> Result<(), Error<L::Error>> {
        match self.state {
            State::Idle => return Ok(()),
            State::Sending(header, 0) => {
                self.transmission.retract(header)?;
                self.state = State::Idle;
                return Ok(());
            }
            State::Sending(header, sent) if header.payload_length() == 0 => {
                self.send(header, sent, &[]).await?;
            }
            State::Sending(..) => return Err(Error::Interrupted),
            State::Receiving => {}
        }
        match self.receive(&mut Reply::None).await {
            // The error of the dropped command.
            Err(Error::Session(SessionError::Command(_))) => Ok(()),
            result => result,
        }
    }

    /// Writes a message of which `sent` bytes were written.
    async fn send(
        &mut self,
        header: RequestHeader,
        mut sent: usize,
        payload: &[u8],
    ) -> Result<(), Error<L::Error>> {
        self.state = State::Sending(header, sent);
        loop {
            let bytes = header.as_bytes();
            let rest = match sent.checked_sub(bytes.len()) {
                None => bytes.get(sent..),
                Some(sent) => payload.get(sent..),
            };
            let rest = rest.unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let n = self.link.write(rest).await.map_err(Error::Link)?;
            if n == 0 {
                return Err(nbd_codec::Error::Closed.into());
            }
            sent = sent.saturating_add(n);
            self.state = State::Sending(header, sent);
        }
        self.state = State::Receiving;
        self.link.flush().await.map_err(Error::Link)
    }

    /// Receives until the command is done.
    async fn receive(&mut self, reply: &mut Reply<'_, '_>) -> Result<(), Error<L::Error>> {
        loop {
            match self.inbox.receive(&mut self.transmission)? {
                Step::Event(TransmissionEvent::Done { result, .. }) => {
                    self.state = State::Idle;
                    return Ok(result?);
                }
                Step::Event(event) => reply.event(event),
                Step::Content(content) => reply.content(&content),
                Step::ReadPayload { offset, length, .. } => match reply.place(offset, length) {
                    Some(place) => {
                        let n = self.link.read(place).await.map_err(Error::Link)?;
                        match n {
                            0 => self.transmission.end_of_input()?,
                            n => self.transmission.advance(super::wide(n))?,
                        }
                    }
                    None => self.read().await?,
                },
                Step::Read(_) => self.read().await?,
                Step::Finished => return Err(nbd_codec::Error::Closed.into()),
                other => return Err(other.unexpected().into()),
            }
        }
    }
    /// Reads what has arrived, ahead of the message under way.
    async fn read(&mut self) -> Result<(), Error<L::Error>> {
        let n = self.link.read(self.inbox.space()).await;
        self.inbox.filled(n.map_err(Error::Link)?)?;
        Ok(())
    }
}

impl Reply<'_, '_> {
    fn event(&mut self, event: TransmissionEvent<'_>) {
        let Self::Extents(take) = self else {
            return;
        };
        match event {
            TransmissionEvent::Extents32 {
                context,
                offset,
                extents,
                ..
            } => take(Extents::Narrow {
                context,
                offset,
                extents,
            }),
            TransmissionEvent::Extents64 {
                context,
                offset,
                extents,
                ..
            } => take(Extents::Wide {
                context,
                offset,
                extents,
            }),
            _ => {}
        }
    }

    /// Puts in place what is inside of the memory.
    fn content(&mut self, content: &Content<&[u8]>) {
        let Self::Data(start, memory) = self else {
            return;
        };
        let before = super::clip(start.saturating_sub(content.offset()));
        let at = super::clip(content.offset().saturating_sub(*start));
        let place = memory.get_mut(at..).unwrap_or_default();
        match content {
            Content::Data { data, .. } => {
                let data = data.get(before..).unwrap_or_default();
                let n = data.len().min(place.len());
                if let (Some(place), Some(data)) = (place.get_mut(..n), data.get(..n)) {
                    place.copy_from_slice(data);
                }
            }
            Content::Hole { length, .. } => {
                let length = super::clip(u64::from(*length)).saturating_sub(before);
                let n = length.min(place.len());
                place.get_mut(..n).unwrap_or_default().fill(0);
            }
        }
    }

    /// The memory for a part of the data, if all of it has a place.
    fn place(&mut self, offset: u64, length: u64) -> Option<&mut [u8]> {
        let Self::Data(start, memory) = self else {
            return None;
        };
        let from = super::clip(offset.checked_sub(*start)?);
        let to = from.checked_add(super::clip(length))?;
        memory.get_mut(from..to)
    }
}
