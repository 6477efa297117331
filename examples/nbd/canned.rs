//! A server in memory: just enough of one to show the client something. It is
//! made of the wire layer alone and believes whatever it hears.

use nbd_codec::Framing;
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{AllocationFlags, ClientFlags, HandshakeFlags};
use nbd_codec::wire::flags::{ReplyFlags, TransmissionFlags};
use nbd_codec::wire::greeting::NewstyleGreeting;
use nbd_codec::wire::number::{Command, ContextId, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::wire::text::Text;

const ALLOCATION: ContextId = ContextId(1);

/// One message, for the record.
pub struct Said {
    pub client: bool,
    pub what: String,
    pub bytes: usize,
}

pub struct Canned {
    best: Framing,
    /// Lengths in bytes, and flags of `base:allocation`.
    disk: &'static [(u64, AllocationFlags)],
    framing: Framing,
    phase: Phase,
    pub said: Vec<Said>,
}

#[derive(Clone, Copy)]
enum Phase {
    ClientFlags,
    Options,
    Transmission,
    Over,
}

impl Canned {
    /// A server that speaks `best` and everything below, and its greeting.
    pub fn new(best: Framing, disk: &'static [(u64, AllocationFlags)], out: &mut Vec<u8>) -> Self {
        let mut this = Self {
            best,
            disk,
            framing: Framing::Simple,
            phase: Phase::ClientFlags,
            said: Vec::new(),
        };
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        this.say("greeting", &NewstyleGreeting { flags }.encode(), out);
        this
    }

    /// Answers whole messages of the client.
    pub fn hear(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        let mut going = true;
        while going && !input.is_empty() {
            going = match self.phase {
                Phase::ClientFlags => {
                    self.phase = Phase::Options;
                    self.note("client flags", ClientFlags::SIZE);
                    ClientFlags::decode(&mut input).is_some()
                }
                Phase::Options => self.option(&mut input, out).is_some(),
                Phase::Transmission => self.request(&mut input, out).is_some(),
                Phase::Over => false,
            };
        }
    }

    /// Hears an option, and answers it.
    fn option(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
        let OptionHeader { option, length } = OptionHeader::decode(input).ok()??;
        input.split_off(..length as usize)?;
        self.note(&option.to_string(), OptionHeader::SIZE + length as usize);
        let mut answer = OptionReply::Ack;
        match option {
            OptionType::EXTENDED_HEADERS if self.best == Framing::Extended => {
                self.framing = Framing::Extended;
            }
            OptionType::STRUCTURED_REPLY if self.best >= Framing::Structured => {
                self.framing = Framing::Structured;
            }
            OptionType::EXTENDED_HEADERS | OptionType::STRUCTURED_REPLY => {
                answer = OptionReply::Error {
                    error: OptionReplyType::ERR_UNSUP,
                    message: Text::EMPTY,
                };
            }
            OptionType::SET_META_CONTEXT => {
                let granted = OptionReply::MetaContext {
                    id: ALLOCATION,
                    name: "base:allocation".into(),
                };
                self.reply(option, granted, out);
            }
            OptionType::GO => {
                let size = self.disk.iter().map(|(length, _)| length).sum();
                let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
                self.reply(option, OptionReply::Info(Info::Export { size, flags }), out);
                let sizes = Info::BlockSize(BlockSizes::DEFAULT);
                self.reply(option, OptionReply::Info(sizes), out);
                self.phase = Phase::Transmission;
            }
            _ => {}
        }
        self.reply(option, answer, out);
        Some(())
    }

    fn reply(&mut self, option: OptionType, reply: OptionReply<'_>, out: &mut Vec<u8>) {
        let mut message = Vec::new();
        // Only a text of 4 GiB has no encoding.
        let _ = reply.encode(option, &mut message);
        self.say(&reply.reply().to_string(), &message, out);
    }

    /// Hears a request, and answers it.
    fn request(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (request, size) = match self.framing {
            Framing::Extended => {
                let request = ExtendedRequest::decode(input).ok()??;
                (request, ExtendedRequest::SIZE)
            }
            Framing::Simple | Framing::Structured => {
                let compact = CompactRequest::decode(input).ok()??;
                let request = ExtendedRequest {
                    flags: compact.flags,
                    command: compact.command,
                    cookie: compact.cookie,
                    offset: compact.offset,
                    length: compact.length.into(),
                };
                (request, CompactRequest::SIZE)
            }
        };
        self.note(&request.command.to_string(), size);
        match request.command {
            Command::READ => self.read(&request, out),
            Command::BLOCK_STATUS => self.block_status(&request, out),
            _ => self.phase = Phase::Over,
        }
        Some(())
    }

    fn read(&mut self, request: &ExtendedRequest, out: &mut Vec<u8>) {
        let &ExtendedRequest {
            cookie,
            mut offset,
            length,
            ..
        } = request;
        if self.framing == Framing::Simple {
            let error = ErrorValue::NONE;
            let mut message = SimpleReply { error, cookie }.encode().to_vec();
            message.resize(message.len() + length as usize, 0);
            return self.say("simple reply with data", &message, out);
        }
        let mut extents = self.extents(offset, length).into_iter().peekable();
        while let Some(extent) = extents.next() {
            let data = vec![0x5a; extent.length as usize];
            let length = extent.length as u32;
            let chunk = match extent.flags {
                0 => Chunk::OffsetData {
                    offset,
                    data: &data,
                },
                _ => Chunk::OffsetHole { offset, length },
            };
            let last = extents.peek().is_none();
            self.chunk(request, chunk, last, out);
            offset += extent.length;
        }
    }

    fn block_status(&mut self, request: &ExtendedRequest, out: &mut Vec<u8>) {
        let context = ALLOCATION;
        let extents = self.extents(request.offset, request.length);
        if self.framing == Framing::Extended {
            let bytes: Vec<u8> = extents.iter().flat_map(|extent| extent.encode()).collect();
            let (extents, _) = Extents64::split(&bytes);
            let chunk = Chunk::BlockStatusExt { context, extents };
            return self.chunk(request, chunk, true, out);
        }
        // A compact request covers less than 4 GiB, and so does each extent.
        let narrow = extents
            .into_iter()
            .filter_map(|extent| Extent32::try_from(extent).ok());
        let bytes: Vec<u8> = narrow.flat_map(Extent32::encode).collect();
        let (extents, _) = Extents32::split(&bytes);
        self.chunk(request, Chunk::BlockStatus { context, extents }, true, out);
    }

    fn chunk(
        &mut self,
        request: &ExtendedRequest,
        chunk: Chunk<'_>,
        last: bool,
        out: &mut Vec<u8>,
    ) {
        let mut payload = Vec::new();
        let _ = chunk.encode(&mut payload);
        let flags = match last {
            true => ReplyFlags::DONE,
            false => ReplyFlags::NONE,
        };
        let mut message = match self.framing {
            Framing::Extended => ExtendedHeader {
                flags,
                chunk: chunk.chunk(),
                cookie: request.cookie,
                offset: request.offset,
                length: payload.len() as u64,
            }
            .encode()
            .to_vec(),
            Framing::Simple | Framing::Structured => StructuredHeader {
                flags,
                chunk: chunk.chunk(),
                cookie: request.cookie,
                length: payload.len() as u32,
            }
            .encode()
            .to_vec(),
        };
        message.append(&mut payload);
        self.say(&chunk.chunk().to_string(), &message, out);
    }

    /// The extents of a part of the disk.
    fn extents(&self, offset: u64, length: u64) -> Vec<Extent64> {
        let end = offset + length;
        let mut at = 0;
        let mut extents = Vec::new();
        for (length, flags) in self.disk {
            let (start, stop) = (offset.max(at), end.min(at + length));
            if start < stop {
                extents.push(Extent64 {
                    length: stop - start,
                    flags: flags.0.into(),
                });
            }
            at += length;
        }
        extents
    }

    fn note(&mut self, what: &str, bytes: usize) {
        self.said.push(Said {
            client: true,
            what: what.into(),
            bytes,
        });
    }

    fn say(&mut self, what: &str, message: &[u8], out: &mut Vec<u8>) {
        out.extend(message);
        self.said.push(Said {
            client: false,
            what: what.into(),
            bytes: message.len(),
        });
    }
}
