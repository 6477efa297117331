//! A server in memory, and the two queues of bytes that join it to a client.
//! Both sides are the real machines; only the disk is a model.

use anyhow::{Result, anyhow, bail};
use nbd_codec::server::handshake::{Event as Wish, Handshake};
use nbd_codec::server::{Event, Export, MetaContext, Offer, Read, Request, Transmission, narrow};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::greeting::NewstyleGreeting;
use nbd_codec::wire::number::{ChunkType, ContextId};
use nbd_codec::wire::option_reply::{BlockSizes, OptionReplyHeader};
use nbd_codec::{Framing, Limits, Need};

use crate::model::{BLOCK, Disk};

/// The only metadata context, and its number: its place in the list.
const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];
const ALLOCATION: ContextId = ContextId(0);

/// One message, for the record.
pub struct Said {
    pub client: bool,
    pub what: String,
    pub bytes: usize,
}

/// What would be a socket.
#[derive(Default)]
pub struct Link {
    /// From the client to the server.
    pub up: Vec<u8>,
    /// From the server to the client.
    pub down: Vec<u8>,
    pub said: Vec<Said>,
}

impl Link {
    /// The client sends a message.
    pub fn ask(&mut self, what: impl ToString, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.up.extend(parts.iter().copied().flatten());
        self.note(true, what, bytes);
    }

    /// The server sends a message.
    fn answer(&mut self, what: impl ToString, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.down.extend(parts.iter().copied().flatten());
        self.note(false, what, bytes);
    }

    fn note(&mut self, client: bool, what: impl ToString, bytes: usize) {
        let what = what.to_string();
        self.said.push(Said {
            client,
            what,
            bytes,
        });
    }
}

pub struct Server<'d> {
    disk: &'d mut Disk,
    phase: Phase,
    /// The data of the write that arrives.
    payload: Vec<u8>,
}

enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
    Over,
}

impl<'d> Server<'d> {
    /// A server that speaks `best` and everything below.
    pub fn new(best: Framing, disk: &'d mut Disk) -> Result<Self> {
        let mut offer = Offer::default();
        offer.framing = best;
        Ok(Self {
            disk,
            phase: Phase::Handshake(Handshake::new(offer)?),
            payload: Vec::new(),
        })
    }

    /// The server's turn: it takes what has arrived and answers.
    pub fn serve(&mut self, link: &mut Link) -> Result<()> {
        loop {
            let going = match std::mem::replace(&mut self.phase, Phase::Over) {
                Phase::Handshake(machine) => self.negotiate(machine, link)?,
                Phase::Transmission(machine) => self.transmit(machine, link)?,
                Phase::Over => false,
            };
            if !going {
                return Ok(());
            }
        }
    }

    /// One step of the handshake; false when it is the client's turn.
    fn negotiate(&mut self, mut machine: Handshake, link: &mut Link) -> Result<bool> {
        let mut out = Vec::new();
        machine.transmit(&mut out)?;
        let input = std::mem::take(&mut link.up);
        let mut rest = input.as_slice();
        let event = machine.receive(&mut rest)?;
        let waiting = event.is_none() && machine.need() != Need::Nothing;
        let mut export = Export::new("pretend", self.disk.size(), TransmissionFlags::SEND_DF);
        export.contexts = CONTEXTS;
        export.block_sizes = BlockSizes {
            minimum: BLOCK as u32,
            preferred: 1 << 16,
            maximum: 1 << 25,
        };
        match event {
            Some(Wish::Export(inquiry) | Wish::MetaContexts(inquiry)) => {
                machine.grant(&inquiry, &export, &mut out)?;
            }
            Some(Wish::Ready) => {
                link.up = rest.to_vec();
                let negotiated = machine
                    .into_negotiated()
                    .map_err(|_| anyhow!("not ready"))?;
                self.phase = Phase::Transmission(Transmission::new(negotiated, Limits::DEFAULT)?);
                return Ok(true);
            }
            Some(other) => bail!("this client does not say {other:?}"),
            None => {}
        }
        link.up = rest.to_vec();
        tell(&out, link)?;
        self.phase = Phase::Handshake(machine);
        Ok(!waiting)
    }

    /// One step of transmission; false when it is the client's turn.
    fn transmit(&mut self, mut machine: Transmission, link: &mut Link) -> Result<bool> {
        let input = std::mem::take(&mut link.up);
        let mut rest = input.as_slice();
        let event = machine.receive(&mut rest)?;
        link.up = rest.to_vec();
        let going = event.is_some();
        match event {
            Some(Event::Payload { .. }) => self.payload.clear(),
            Some(Event::Data { data, .. }) => self.payload.extend(data),
            Some(Event::Request(request)) => {
                self.answer(request, machine.negotiated().framing, link)?
            }
            Some(Event::Disconnect) => return Ok(false),
            Some(other) => bail!("this client does not send {other:?}"),
            None => {}
        }
        self.phase = Phase::Transmission(machine);
        Ok(going)
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
                link.answer(what, &write.succeed().parts());
            }
            Request::BlockStatus32(status) => {
                // The model is in 64 bits: how it becomes narrow is said here.
                let pieces = |extent: Extent64| narrow::split(extent).into_iter().flatten();
                let map = self.disk.extents(status.offset()).flat_map(pieces);
                let mut reply = Vec::new();
                status.answer_from(ALLOCATION, map, &mut reply)?;
                link.answer(ChunkType::BLOCK_STATUS, &[&reply]);
            }
            Request::BlockStatus64(status) => {
                let map = self.disk.extents(status.offset());
                let mut reply = Vec::new();
                status.answer_from(ALLOCATION, map, &mut reply)?;
                link.answer(ChunkType::BLOCK_STATUS_EXT, &[&reply]);
            }
            other => bail!("{other:?} was not advertised"),
        }
        Ok(())
    }

    fn read(&self, read: Read, link: &mut Link) -> Result<()> {
        let (mut at, length) = (read.offset(), read.length().into());
        let end = at + length;
        let mut chunks = match read.into_chunks() {
            Ok(chunks) => chunks,
            // Simple replies have no chunks.
            Err(read) => {
                let data = self.disk.read(at, length);
                link.answer("simple reply with data", &[read.data().as_bytes(), &data]);
                return Ok(());
            }
        };
        for extent in self.disk.extents(at) {
            let length = extent.length.min(end - at);
            if length == 0 {
                break;
            }
            if extent.flags == 0 {
                let head = chunks.data(at, length as u32)?;
                let data = self.disk.read(at, length);
                link.answer(ChunkType::OFFSET_DATA, &[head.as_bytes(), &data]);
            } else {
                let hole = chunks.hole(at, length as u32)?;
                link.answer(ChunkType::OFFSET_HOLE, &hole.parts());
            }
            at += length;
        }
        link.answer(ChunkType::NONE, &chunks.finish()?.parts());
        Ok(())
    }
}

/// Sends what the handshake has to say, message by message.
fn tell(mut out: &[u8], link: &mut Link) -> Result<()> {
    if out.starts_with(b"NBDMAGIC") {
        link.answer(
            "greeting",
            &[out.split_off(..NewstyleGreeting::SIZE).unwrap_or_default()],
        );
    }
    while !out.is_empty() {
        let mut rest = out;
        let header = OptionReplyHeader::decode(&mut rest)?;
        let header = header.ok_or_else(|| anyhow!("half a reply"))?;
        let length = OptionReplyHeader::SIZE + header.length as usize;
        let (message, behind) = out.split_at(length);
        link.answer(header.reply, &[message]);
        out = behind;
    }
    Ok(())
}
