//! A correct server and a correct client, to try the kit: on `nbd-codec`, over any
//! stream, for one export in memory.

use std::io::{Read, Result, Write};

use nbd_codec::inbox::Inbox;
use nbd_codec::server::{Handshake, HandshakeEvent};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::TransmissionFlags as Has;
use nbd_codec::wire::number::{ErrorValue, OptionReplyType};
use nbd_codec::{Limits, Negotiated, SessionError, Step, client, server};

/// Serves one client the default export, whose content is `disk`.
///
/// # Errors
///
/// Those of the stream, and of a client that breaks the protocol.
pub fn serve(stream: &mut (impl Read + Write), disk: &mut [u8]) -> Result<()> {
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let Some(negotiated) = negotiate(stream, &mut inbox, disk.len() as u64)? else {
        return Ok(());
    };
    let mut session = server::Transmission::new(negotiated, Limits::DEFAULT)?;
    let (mut start, mut payload, mut out) = (0, Vec::new(), Vec::new());
    loop {
        let place = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
        match inbox.receive(&mut session)? {
            Step::Event(server::TransmissionEvent::WritePayload { offset, length, .. }) => {
                (start, payload) = (offset, vec![0; length as usize]);
            }
            Step::Content(data) => assert!(data.copy_to(start, &mut payload)),
            Step::ReadPayload { offset, length, .. } => {
                stream.read_exact(&mut payload[place(offset - start, length)])?;
                session.advance(length)?;
            }
            Step::Event(server::TransmissionEvent::Request(request)) => {
                answer(request, disk, &payload, &mut out)?;
            }
            Step::Event(server::TransmissionEvent::Answered { reply, .. }) => {
                reply.encode(&mut out)?;
            }
            Step::Event(_) => {}
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::Finished => return Ok(()),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
}

fn negotiate(
    stream: &mut (impl Read + Write),
    inbox: &mut Inbox<Vec<u8>>,
    size: u64,
) -> Result<Option<Negotiated>> {
    let mut handshake = Handshake::new(server::Config::new())?;
    let mut out = Vec::new();
    let contexts = [server::MetaContext::narrow("base:allocation")];
    let flags = Has::SEND_FLUSH
        | Has::SEND_FUA
        | Has::SEND_TRIM
        | Has::SEND_WRITE_ZEROES
        | Has::SEND_CACHE
        | Has::SEND_DF;
    let mut export = server::Export::new("", size, flags);
    export.contexts = &contexts;
    loop {
        match inbox.receive(&mut handshake)? {
            Step::Event(HandshakeEvent::List) => {
                handshake.list(&export, &mut out)?;
                handshake.finish_list(&mut out)?;
            }
            Step::Event(HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query)) => {
                if query.export().is_empty() {
                    handshake.grant(&query, &export, &mut out)?;
                } else {
                    handshake.refuse(OptionReplyType::ERR_UNKNOWN, "", &mut out)?;
                }
            }
            Step::Event(HandshakeEvent::Ready { .. }) => break,
            Step::Event(_) => {}
            Step::Transmit => drop(handshake.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::Finished => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
    Ok(Some(
        handshake.into_negotiated().map_err(SessionError::from)?,
    ))
}

fn answer(
    request: server::Request,
    disk: &mut [u8],
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<()> {
    use server::Request;
    let place = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
    let extents = |length| [Extent64 { length, flags: 0 }];
    let reply = match request {
        Request::Read(read) => {
            let data = &disk[place(read.offset(), read.length().into())];
            out.extend(read.data().as_bytes());
            out.extend(data);
            return Ok(());
        }
        Request::Write(write) => {
            disk[place(write.offset(), write.length())].copy_from_slice(payload);
            write.succeed()
        }
        Request::WriteZeroes(zeroes) => {
            disk[place(zeroes.offset(), zeroes.length())].fill(0);
            zeroes.succeed()
        }
        Request::Trim(trim) => trim.succeed(),
        Request::Cache(cache) => cache.succeed(),
        Request::Flush(flush) => flush.succeed(),
        Request::BlockStatus32(mut status) => {
            while let Some(id) = status.contexts().next() {
                let extents = extents(status.length());
                match status.reply_wide(id, extents, out) {
                    Ok(Some(rest)) => status = rest,
                    Ok(None) => break,
                    Err(rejected) => return Err(rejected.reason.into()),
                }
            }
            return Ok(());
        }
        Request::BlockStatus64(mut status) => {
            while let Some(id) = status.contexts().next() {
                let extents = extents(status.length());
                match status.reply_wide(id, extents, out) {
                    Ok(Some(rest)) => status = rest,
                    Ok(None) => break,
                    Err(rejected) => return Err(rejected.reason.into()),
                }
            }
            return Ok(());
        }
        other => other.fail(ErrorValue::EINVAL, ""),
    };
    reply.encode(out)?;
    Ok(())
}

/// A client with one command in flight.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    inbox: Inbox<Vec<u8>>,
    session: client::Transmission<[client::Slot; 1]>,
}

impl<S: Read + Write> Client<S> {
    /// Connects to the default export.
    ///
    /// # Errors
    ///
    /// Those of the stream, of a server that breaks the protocol, and of the command.
    pub fn connect(mut stream: S) -> Result<Self> {
        let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
        let mut connector = client::Connector::new(client::Config::new(""))?;
        let mut out = Vec::new();
        loop {
            match inbox.receive(&mut connector)? {
                Step::Event(_) => {}
                Step::Transmit => drop(connector.transmit(&mut out)?),
                Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
                Step::Finished => break,
                other => return Err(other.unexpected().into()),
            }
            stream.write_all(&out)?;
            out.clear();
        }
        let negotiated = connector
            .into_negotiated()
            .map_err(|_| SessionError::NotReady)?;
        Ok(Self {
            session: client::Transmission::new(negotiated, [client::Slot::EMPTY], Limits::DEFAULT),
            stream,
            inbox,
        })
    }

    /// Reads from `offset`.
    ///
    /// # Errors
    ///
    /// Those of the stream, of a server that breaks the protocol, and of the command.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        let request = client::Request::read(offset, data.len() as u64);
        self.command(request, &[], data)
    }

    /// Writes at `offset`.
    ///
    /// # Errors
    ///
    /// Those of the stream, of a server that breaks the protocol, and of the command.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let request = client::Request::write(offset, data.len() as u64);
        self.command(request, data, &mut [])
    }

    /// Disconnects.
    ///
    /// # Errors
    ///
    /// Those of the stream, of a server that breaks the protocol, and of the command.
    pub fn disconnect(mut self) -> Result<()> {
        let header = self.session.disconnect()?;
        self.stream.write_all(header.as_bytes())
    }

    fn command(&mut self, request: client::Request, payload: &[u8], data: &mut [u8]) -> Result<()> {
        let header = self.session.submit(request)?;
        self.stream.write_all(header.as_bytes())?;
        self.stream.write_all(payload)?;
        loop {
            match self.inbox.receive(&mut self.session)? {
                Step::Event(client::TransmissionEvent::Done { result, .. }) => {
                    return Ok(result.map_err(SessionError::from)?);
                }
                Step::Event(_) => {}
                Step::Content(content) => assert!(content.copy_to(request.offset, data)),
                Step::Read(n) => drop(self.inbox.fill(n, |space| self.stream.read(space))?),
                Step::ReadPayload { offset, length, .. } => {
                    let start = (offset - request.offset) as usize;
                    self.stream
                        .read_exact(&mut data[start..][..length as usize])?;
                    self.session.advance(length)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
    }
}

/// Connects, writes, reads, and compares what is known. `disk` is what the server has.
///
/// # Errors
///
/// Those of [`Client`].
///
/// # Panics
///
/// If what is read is not what the server has.
pub fn write_and_read(stream: &mut (impl Read + Write), disk: &[u8]) -> Result<()> {
    let mut client = Client::connect(stream)?;
    let mut data = [0; 4096];
    client.read(512, &mut data)?;
    assert_eq!(data, disk[512..][..4096]);
    let written = client.write(1024, &[9; 1024]);
    client.read(0, &mut data)?;
    assert_eq!(data[..1024], disk[..1024]);
    if written.is_ok() {
        assert_eq!(data[1024..2048], [9; 1024]);
    }
    client.disconnect()
}
