//! A server in memory, connected to a client by two queues of bytes. Both sides use
//! the real state machines; only the disk is a model.

use anyhow::{Result, anyhow, bail};
use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, MetaContext, ReadRequest, Request, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::greeting::NewstyleGreeting;
use nbd_codec::wire::number::{ChunkType, ContextId};
use nbd_codec::wire::option_reply::{BlockSizes, OptionReplyHeader};
use nbd_codec::{Content, Framing, Limits, Step};

use super::model::{BLOCK, Disk};

/// The only metadata context, and its number: its index in the list.
const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];
const ALLOCATION: ContextId = ContextId(0);

/// A message, to be shown.
pub struct Message {
    pub client: bool,
    pub what: String,
    pub bytes: usize,
}

/// The connection, which replaces a socket.
#[derive(Default)]
pub struct Link {
    /// From the client to the server.
    pub to_server: Vec<u8>,
    /// From the server to the client.
    pub to_client: Vec<u8>,
    pub messages: Vec<Message>,
}

impl Link {
    /// The client sends a message.
    pub fn send(&mut self, what: impl ToString, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.to_server.extend(parts.iter().copied().flatten());
        self.record(true, what, bytes);
    }

    /// The server sends a message.
    fn reply(&mut self, what: impl ToString, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.to_client.extend(parts.iter().copied().flatten());
        self.record(false, what, bytes);
    }

    fn record(&mut self, client: bool, what: impl ToString, bytes: usize) {
        let what = what.to_string();
        self.messages.push(Message {
            client,
            what,
            bytes,
        });
    }
}

pub struct Server<'d> {
    disk: &'d mut Disk,
    phase: Phase,
    /// The payload of the write that is being received.
    payload: Vec<u8>,
}

enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
    Ended,
}

impl<'d> Server<'d> {
    /// A server that supports `best` and all framings below.
    pub fn new(best: Framing, disk: &'d mut Disk) -> Result<Self> {
        Ok(Self {
            disk,
            phase: Phase::Handshake(Handshake::new(Config::new().framing(best))?),
            payload: Vec::new(),
        })
    }

    /// Handles all that has arrived, and answers it.
    pub fn serve(&mut self, link: &mut Link) -> Result<()> {
        loop {
            let more = match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Handshake(machine) => self.negotiate(machine, link)?,
                Phase::Transmission(machine) => self.transmit(machine, link)?,
                Phase::Ended => false,
            };
            if !more {
                return Ok(());
            }
        }
    }

    /// Handles one event of the handshake; returns false if more input is needed.
    fn negotiate(&mut self, mut machine: Handshake, link: &mut Link) -> Result<bool> {
        let mut out = Vec::new();
        let mut more = true;
        let input = std::mem::take(&mut link.to_server);
        let mut rest = input.as_slice();
        let step = machine.receive(&mut rest)?;
        let mut export = Export::new("disk", self.disk.size(), TransmissionFlags::SEND_DF);
        export.contexts = CONTEXTS;
        export.block_sizes = BlockSizes {
            minimum: BLOCK as u32,
            preferred: 1 << 16,
            maximum: 1 << 25,
        };
        match step {
            Step::Transmit => {
                machine.transmit(&mut out)?;
            }
            Step::Event(HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query)) => {
                machine.grant(&query, &export, &mut out)?;
            }
            Step::Event(HandshakeEvent::Ready { .. }) => {
                link.to_server = rest.to_vec();
                let negotiated = machine
                    .into_negotiated()
                    .map_err(|_| anyhow!("not ready"))?;
                self.phase = Phase::Transmission(Transmission::new(negotiated, Limits::DEFAULT)?);
                return Ok(true);
            }
            Step::Read(_) => more = false,
            other => bail!("unexpected step {other:?}"),
        }
        link.to_server = rest.to_vec();
        send(&out, link)?;
        self.phase = Phase::Handshake(machine);
        Ok(more)
    }

    /// Handles one event of transmission; returns false if more input is needed.
    fn transmit(&mut self, mut machine: Transmission, link: &mut Link) -> Result<bool> {
        let input = std::mem::take(&mut link.to_server);
        let mut rest = input.as_slice();
        let step = machine.receive(&mut rest)?;
        link.to_server = rest.to_vec();
        let mut more = true;
        match step {
            Step::Event(TransmissionEvent::WritePayload { .. }) => self.payload.clear(),
            Step::Content(Content::Data { data, .. }) => self.payload.extend(data),
            Step::Event(TransmissionEvent::Request(request)) => {
                self.answer(request, machine.negotiated().framing, link)?
            }
            Step::Event(TransmissionEvent::Disconnect) => return Ok(false),
            Step::Read(_) | Step::ReadPayload { .. } => more = false,
            other => bail!("unexpected step {other:?}"),
        }
        self.phase = Phase::Transmission(machine);
        Ok(more)
    }

    fn answer(&mut self, request: Request, framing: Framing, link: &mut Link) -> Result<()> {
        match request {
            Request::Read(read) => self.read(read, link)?,
            Request::Write(write) => {
                self.disk.write(write.offset(), &self.payload);
                let what = match framing {
                    Framing::Simple => "simple reply".to_owned(),
                    _ => ChunkType::NONE.to_string(),
                };
                link.reply(what, &write.succeed().parts());
            }
            Request::BlockStatus32(status) => {
                let map = self.disk.extents(status.offset());
                let mut reply = Vec::new();
                status.reply_wide(ALLOCATION, map, &mut reply)?;
                link.reply(ChunkType::BLOCK_STATUS, &[&reply]);
            }
            Request::BlockStatus64(status) => {
                let map = self.disk.extents(status.offset());
                let mut reply = Vec::new();
                status.reply_wide(ALLOCATION, map, &mut reply)?;
                link.reply(ChunkType::BLOCK_STATUS_EXT, &[&reply]);
            }
            other => bail!("{other:?} was not advertised"),
        }
        Ok(())
    }

    fn read(&self, read: ReadRequest, link: &mut Link) -> Result<()> {
        let (mut at, length) = (read.offset(), read.length().into());
        let end = at + length;
        let mut chunks = match read.into_chunks() {
            Ok(chunks) => chunks,
            // Simple replies have no chunks.
            Err(read) => {
                let data = self.disk.read(at, length);
                link.reply("simple reply with data", &[read.data().as_bytes(), &data]);
                return Ok(());
            }
        };
        for extent in self.disk.extents(at) {
            let length = extent.length.min(end - at);
            if length == 0 {
                break;
            }
            if extent.flags == 0 {
                let header = chunks.data(at, length as u32)?;
                let data = self.disk.read(at, length);
                link.reply(ChunkType::OFFSET_DATA, &[header.as_bytes(), &data]);
            } else {
                let hole = chunks.hole(at, length as u32)?;
                link.reply(ChunkType::OFFSET_HOLE, &hole.parts());
            }
            at += length;
        }
        link.reply(ChunkType::NONE, &chunks.finish()?.parts());
        Ok(())
    }
}

/// Sends the output of the handshake, one message at a time.
fn send(mut out: &[u8], link: &mut Link) -> Result<()> {
    if out.starts_with(b"NBDMAGIC") {
        link.reply(
            "greeting",
            &[out.split_off(..NewstyleGreeting::SIZE).unwrap_or_default()],
        );
    }
    while !out.is_empty() {
        let mut rest = out;
        let header = OptionReplyHeader::decode(&mut rest)?;
        let header = header.ok_or_else(|| anyhow!("an incomplete reply"))?;
        let length = OptionReplyHeader::SIZE + header.length as usize;
        let (message, after) = out.split_at(length);
        link.reply(header.reply, &[message]);
        out = after;
    }
    Ok(())
}
