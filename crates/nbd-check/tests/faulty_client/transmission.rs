//! The transmission phase of the faulty client.

use nbd_codec::Framing;
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags as Flag, ReplyFlags, TransmissionFlags as Has};
use nbd_codec::wire::number::{ChunkType, Command, Cookie};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};

use super::fault::{Fault, Mode};
use super::handshake::Session;
use super::{Client, Failure, Outcome, violation};

/// A request in flight, and what has come of its reply.
struct Request {
    command: Command,
    offset: u64,
    length: u64,
    cookie: Cookie,
    data: Vec<u8>,
    /// Which bytes came.
    covered: Vec<bool>,
    received: u64,
    extents: Option<Vec<(u64, u64)>>,
    error: Option<String>,
}

/// How much is requested at once, in bytes.
const PIECE: u64 = 1 << 16;

impl Client {
    /// Does what the client is for; what it prints.
    pub fn transmission(&mut self, session: Session, mode: Mode) -> Outcome<Vec<u8>> {
        let done = self.work(&session, mode);
        let refused = matches!(done, Err(Failure::Refused(_)));
        let shutdown = match &done {
            Err(Failure::Refused(text)) => text.contains("SHUTDOWN"),
            _ => false,
        };
        let leaves = done.is_ok() || refused;
        if leaves && !(shutdown && self.has(Fault::ClosesOnShutdown)) {
            self.disc(&session)?;
        }
        done
    }

    fn disc(&mut self, session: &Session) -> Outcome {
        if self.has(Fault::DiscNotSent) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if self.has(Fault::DiscInFlight) {
            bytes.extend(self.request(session, Command::READ, Flag::NONE, 0, PIECE, 99));
        }
        let offset = u64::from(self.has(Fault::DiscWithOffset));
        bytes.extend(self.request(session, Command::DISC, Flag::NONE, offset, 0, 100));
        if self.has(Fault::SendsAfterDisc) {
            bytes.extend(self.request(session, Command::READ, Flag::NONE, 0, PIECE, 101));
        }
        self.put(&bytes)
    }

    fn work(&mut self, session: &Session, mode: Mode) -> Outcome<Vec<u8>> {
        self.misbehave(session)?;
        match mode {
            Mode::Read => self.read_all(session),
            Mode::Map => self.map(session),
            Mode::Write => self.write_all(session),
        }
    }

    /// Requests that a good client does not send.
    fn misbehave(&mut self, session: &Session) -> Outcome {
        let has = |flag| session.flags.contains(flag);
        let (command, flags, offset, length) = match self.fault {
            Fault::StatusWithoutContext if session.context.is_none() => {
                (Command::BLOCK_STATUS, Flag::NONE, 0, PIECE)
            }
            Fault::PayloadLenInCompact if session.framing != Framing::Extended => {
                (Command::READ, Flag::PAYLOAD_LEN, 0, PIECE)
            }
            Fault::FuaNotAdvertised if !has(Has::SEND_FUA) => (Command::READ, Flag::FUA, 0, PIECE),
            Fault::DfNotAdvertised if !has(Has::SEND_DF) => (Command::READ, Flag::DF, 0, PIECE),
            Fault::FlushNotAdvertised if !has(Has::SEND_FLUSH) => {
                (Command::FLUSH, Flag::NONE, 0, 0)
            }
            Fault::FlushWithOffset if has(Has::SEND_FLUSH) => {
                (Command::FLUSH, Flag::NONE, 512, 512)
            }
            Fault::ReadsPastEnd => (Command::READ, Flag::NONE, session.size - 512, 1024),
            Fault::ReadsUnaligned => (Command::READ, Flag::NONE, 512, 512),
            Fault::ReadsTooMuch => (Command::READ, Flag::NONE, 0, PIECE * 2),
            Fault::ReadsNothing => (Command::READ, Flag::NONE, 0, 0),
            Fault::WritesToReadOnly if has(Has::READ_ONLY) => {
                (Command::WRITE, Flag::NONE, 0, PIECE)
            }
            _ => return Ok(()),
        };
        let payload = match command {
            Command::WRITE => vec![0; length as usize],
            _ => Vec::new(),
        };
        // Whatever the answer is.
        match self.perform(session, &[(command, flags, offset, length)], &payload) {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn read_all(&mut self, session: &Session) -> Outcome<Vec<u8>> {
        let mut data = Vec::new();
        let mut offset = 0;
        while offset < session.size {
            // Two requests in flight.
            let mut pair = Vec::new();
            while pair.len() < 2 && offset < session.size {
                let length = PIECE.min(session.size - offset);
                pair.push((Command::READ, Flag::NONE, offset, length));
                offset += length;
            }
            for request in self.perform(session, &pair, &[])? {
                data.extend(request.data);
            }
        }
        Ok(data)
    }

    fn map(&mut self, session: &Session) -> Outcome<Vec<u8>> {
        let mut text = String::new();
        let mut offset = 0;
        while offset < session.size {
            let left = session.size - offset;
            let request = (Command::BLOCK_STATUS, Flag::NONE, offset, left);
            let replies = self.perform(session, &[request], &[])?;
            let extents = replies.into_iter().filter_map(|one| one.extents).flatten();
            let mut extents: Vec<_> = extents.collect();
            if extents.is_empty() {
                extents.push((left, 0));
            }
            for (length, flags) in extents {
                text.push_str(&format!("{offset} {length} {flags}\n"));
                offset += length;
            }
        }
        Ok(text.into_bytes())
    }

    fn write_all(&mut self, session: &Session) -> Outcome<Vec<u8>> {
        if session.flags.contains(Has::READ_ONLY) {
            return Err(Failure::Refused("read-only".into()));
        }
        let data = vec![0x5a; PIECE as usize];
        for offset in (0..session.size).step_by(PIECE as usize) {
            let request = (Command::WRITE, Flag::NONE, offset, PIECE);
            self.perform(session, &[request], &data)?;
        }
        Ok(Vec::new())
    }

    fn request(
        &self,
        session: &Session,
        command: Command,
        mut flags: Flag,
        offset: u64,
        length: u64,
        cookie: u64,
    ) -> Vec<u8> {
        let cookie = Cookie(cookie);
        if session.framing == Framing::Extended && !self.has(Fault::CompactInExtended) {
            if command == Command::WRITE && !self.has(Fault::PayloadLenMissing) {
                flags |= Flag::PAYLOAD_LEN;
            }
            let header = ExtendedRequest {
                flags,
                command,
                cookie,
                offset,
                length,
            };
            return header.encode().to_vec();
        }
        let length = length as u32;
        let header = CompactRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        header.encode().to_vec()
    }

    /// Sends requests, and takes their replies.
    fn perform(
        &mut self,
        session: &Session,
        requests: &[(Command, Flag, u64, u64)],
        payload: &[u8],
    ) -> Outcome<Vec<Request>> {
        let mut bytes = Vec::new();
        let mut all = Vec::new();
        for (index, (command, flags, offset, length)) in requests.iter().copied().enumerate() {
            let read = command == Command::READ;
            let cookie = if self.has(Fault::CookieReused) {
                7
            } else {
                index as u64 + offset
            };
            bytes.extend(self.request(session, command, flags, offset, length, cookie));
            bytes.extend(payload);
            let content = if read { length as usize } else { 0 };
            all.push(Request {
                command,
                offset,
                length,
                cookie: Cookie(cookie),
                data: vec![0; content],
                covered: vec![false; content],
                received: 0,
                extents: None,
                error: None,
            });
        }
        self.put(&bytes)?;
        let mut done = vec![false; all.len()];
        while done.contains(&false) {
            let (cookie, last) = self.reply(session, &mut all, &done)?;
            if last {
                done[cookie] = true;
            }
        }
        for request in &all {
            self.check(session, request)?;
        }
        Ok(all)
    }

    /// A simple reply or a chunk: of which request, and whether it is the last one.
    fn reply(
        &mut self,
        session: &Session,
        all: &mut [Request],
        done: &[bool],
    ) -> Outcome<(usize, bool)> {
        let find = |client: &Self, cookie: Cookie, all: &[Request]| {
            let open = |index: &usize| !done[*index];
            let own = (0..all.len())
                .filter(open)
                .find(|index| all[*index].cookie == cookie);
            match own {
                Some(index) => Ok(index),
                None if client.has(Fault::CookieUnchecked) => {
                    Ok(done.iter().position(|done| !done).expect("one is open"))
                }
                None => violation("a reply to no request"),
            }
        };
        let mut start = self.take(4)?;
        if self.has(Fault::MagicUnchecked) {
            let magic = match session.framing {
                Framing::Simple => 0x6744_6698_u32,
                Framing::Structured => 0x668e_33ef,
                _ => 0x6e8a_278c,
            };
            start = magic.to_be_bytes().to_vec();
        }
        let simple = start == 0x6744_6698_u32.to_be_bytes();
        if simple && session.framing != Framing::Extended {
            start.extend(self.take(SimpleReply::SIZE - 4)?);
            let Ok(Some(reply)) = SimpleReply::decode(&mut start.as_slice()) else {
                return violation("no reply");
            };
            let index = find(self, reply.cookie, all)?;
            let request = &mut all[index];
            if session.framing == Framing::Structured
                && matches!(request.command, Command::READ | Command::BLOCK_STATUS)
            {
                return violation("a simple reply");
            }
            if reply.error.is_error() {
                request.error = Some(reply.error.to_string());
            } else if request.command == Command::READ {
                let length = request.data.len();
                request.data = self.take(length)?;
                request.covered.fill(true);
                request.received = request.length;
            }
            return Ok((index, true));
        }
        let (flags, chunk, cookie, length) = self.header(session, start)?;
        if length > 1 << 25 {
            return violation("a long chunk");
        }
        let payload = self.take(length as usize)?;
        let index = find(self, cookie, all)?;
        self.chunk(session, &mut all[index], chunk, &payload)?;
        Ok((index, flags.contains(ReplyFlags::DONE)))
    }

    fn header(
        &mut self,
        session: &Session,
        mut start: Vec<u8>,
    ) -> Outcome<(ReplyFlags, ChunkType, Cookie, u64)> {
        if session.framing == Framing::Extended {
            start.extend(self.take(ExtendedHeader::SIZE - 4)?);
            if let Ok(Some(one)) = ExtendedHeader::decode(&mut start.as_slice()) {
                return Ok((one.flags, one.chunk, one.cookie, one.length));
            }
        } else if session.framing == Framing::Structured {
            start.extend(self.take(StructuredHeader::SIZE - 4)?);
            if let Ok(Some(one)) = StructuredHeader::decode(&mut start.as_slice()) {
                return Ok((one.flags, one.chunk, one.cookie, one.length.into()));
            }
        }
        violation("no reply")
    }

    fn chunk(
        &mut self,
        session: &Session,
        request: &mut Request,
        chunk: ChunkType,
        payload: &[u8],
    ) -> Outcome {
        let accepted = match chunk {
            ChunkType::NONE => self.has(Fault::NoneWithPayloadAccepted),
            ChunkType::OFFSET_DATA => self.has(Fault::EmptyDataAccepted),
            ChunkType::OFFSET_HOLE if payload.len() == 12 => self.has(Fault::EmptyHoleAccepted),
            ChunkType::OFFSET_HOLE => self.has(Fault::HoleLengthUnchecked),
            ChunkType::BLOCK_STATUS => self.has(Fault::StatusLengthUnchecked),
            ChunkType::BLOCK_STATUS_EXT => self.has(Fault::StatusCountUnchecked),
            _ => false,
        };
        let decoded = match Chunk::decode(chunk, payload) {
            Ok(decoded) => decoded,
            Err(_) if accepted => return Ok(()),
            Err(error) if chunk.is_error() => {
                request.error = Some(error.to_string());
                return Ok(());
            }
            Err(error) => return violation(error.to_string()),
        };
        let read = request.command == Command::READ;
        let extended = session.framing == Framing::Extended;
        let width = |client: &Self, wide: bool| {
            let fits = wide == extended && request.command == Command::BLOCK_STATUS;
            fits || client.has(Fault::OtherWidthAccepted)
        };
        match decoded {
            Chunk::None => Ok(()),
            Chunk::OffsetData { offset, data } if read => self.content(request, offset, data),
            Chunk::OffsetHole { offset, length } if read => {
                if u64::from(length) > request.length {
                    return violation("a long hole");
                }
                self.content(request, offset, &vec![0; length as usize])
            }
            Chunk::BlockStatus { context, extents } if width(self, false) => {
                let extents = extents.map(Extent64::from);
                let extents = extents.map(|one| (one.length, one.flags)).collect();
                store(session, request, context, extents)
            }
            Chunk::BlockStatusExt { context, extents } if width(self, true) => {
                let extents = extents.map(|one| (one.length, one.flags)).collect();
                store(session, request, context, extents)
            }
            Chunk::Error { chunk, error, .. } => {
                let unknown = chunk != ChunkType::ERROR;
                let after_data = request.received == request.length && read;
                let skipped = unknown && self.has(Fault::UnknownErrorSkipped)
                    || after_data && self.has(Fault::ErrorAfterDataIgnored);
                if !skipped {
                    request.error = Some(error.to_string());
                }
                Ok(())
            }
            Chunk::ErrorOffset { error, .. } => {
                request.error = Some(error.to_string());
                Ok(())
            }
            _ if self.has(Fault::UnknownChunkSkipped) => Ok(()),
            _ => violation(format!("{chunk}")),
        }
    }

    fn content(&self, request: &mut Request, offset: u64, data: &[u8]) -> Outcome {
        let start = offset
            .checked_sub(request.offset)
            .map(|start| start as usize);
        let range = start.and_then(|start| Some(start..start.checked_add(data.len())?));
        let Some(covered) = range
            .clone()
            .and_then(|range| request.covered.get_mut(range))
        else {
            return violation("data outside of the request");
        };
        if covered.contains(&true) && !self.has(Fault::OverlapUnnoticed) {
            return violation("overlap");
        }
        covered.fill(true);
        request.data[range.expect("it was there")].copy_from_slice(data);
        request.received += data.len() as u64;
        Ok(())
    }

    /// Whether the reply is a success.
    fn check(&self, session: &Session, request: &Request) -> Outcome {
        if let Some(error) = &request.error {
            let write = request.command == Command::WRITE;
            let ignored =
                self.has(Fault::ErrorIgnored) || write && self.has(Fault::WriteErrorIgnored);
            return if ignored {
                Ok(())
            } else {
                Err(Failure::Refused(error.clone()))
            };
        }
        if request.command == Command::BLOCK_STATUS
            && request.extents.is_none()
            && session.context.is_some()
            && !self.has(Fault::StatusMissingAccepted)
        {
            return violation("status is missing");
        }
        let whole = if self.has(Fault::OverlapUnnoticed) {
            request.received >= request.length || request.data.is_empty()
        } else {
            !request.covered.contains(&false)
        };
        if !whole && !self.has(Fault::GapAccepted) {
            return violation("data is missing");
        }
        Ok(())
    }
}

fn store(
    session: &Session,
    request: &mut Request,
    context: nbd_codec::wire::number::ContextId,
    extents: Vec<(u64, u64)>,
) -> Outcome {
    if session.context != Some(context) || request.extents.is_some() {
        return violation("status of another context, or twice");
    }
    if extents.iter().any(|(length, _)| *length == 0) {
        return violation("an empty extent");
    }
    request.extents = Some(extents);
    Ok(())
}
