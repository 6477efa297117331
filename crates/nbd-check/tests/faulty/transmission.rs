//! The transmission phase of the faulty server.

use std::io::Result;

use nbd_codec::Framing;
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{CommandFlags as Flag, ReplyFlags};
use nbd_codec::wire::number::{ChunkType, Command, ContextId, Cookie, ErrorValue as Error};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};

use super::handshake::{CONTEXTS, Session};
use super::{BLOCK, Disk, Fault, SIZE, Server, Wire};

/// The maximum payload in bytes.
const MAXIMUM: u64 = 1 << 25;

/// A request with its payload.
struct Request {
    flags: Flag,
    command: Command,
    cookie: Cookie,
    offset: u64,
    length: u64,
    payload: Vec<u8>,
}

/// Serves requests until the client disconnects.
pub fn run(wire: &mut Wire, server: &Server, session: Session) -> Result<()> {
    // A cache that no other connection sees through.
    let cache = server.with(|disk| disk.clone());
    let mut handler = Handler {
        server,
        session,
        cache,
        deferred: None,
    };
    loop {
        let request = handler.request(wire)?;
        if request.command == Command::DISC {
            // A write that was answered and not yet done is lost.
            if server.has(Fault::DiscIgnored) {
                continue;
            }
            return Ok(());
        }
        if let Some(write) = handler.deferred.take() {
            handler.store(&write);
        }
        handler.answer(wire, &request)?;
        if request.command == Command::WRITE && handler.has(Fault::DiscLosesWrites) {
            handler.deferred = Some(request);
        }
    }
}

struct Handler<'a> {
    server: &'a Server,
    session: Session,
    cache: Disk,
    deferred: Option<Request>,
}

impl Handler<'_> {
    fn has(&self, fault: Fault) -> bool {
        self.server.has(fault)
    }

    fn extended(&self) -> bool {
        self.session.framing == Framing::Extended
    }

    fn request(&self, wire: &mut Wire) -> Result<Request> {
        let closed = || std::io::Error::other("no request");
        let mut request = if self.extended() {
            let bytes = wire.take(ExtendedRequest::SIZE)?;
            let header = ExtendedRequest::decode(&mut bytes.as_slice());
            let header = header.ok().flatten().ok_or_else(closed)?;
            Request {
                flags: header.flags,
                command: header.command,
                cookie: header.cookie,
                offset: header.offset,
                length: header.length,
                payload: Vec::new(),
            }
        } else {
            let bytes = wire.take(CompactRequest::SIZE)?;
            let header = CompactRequest::decode(&mut bytes.as_slice());
            let header = header.ok().flatten().ok_or_else(closed)?;
            Request {
                flags: header.flags,
                command: header.command,
                cookie: header.cookie,
                offset: header.offset,
                length: header.length.into(),
                payload: Vec::new(),
            }
        };
        let write = request.command == Command::WRITE;
        let announced = self.extended() && request.flags.contains(Flag::PAYLOAD_LEN);
        if write || announced {
            if request.length > MAXIMUM {
                return Err(closed());
            }
            let refused = write && !self.in_bounds(&request);
            let undrained = refused && self.has(Fault::PayloadNotDrained)
                || !write
                    && request.command != Command::BLOCK_STATUS
                    && self.has(Fault::CommandPayloadNotDrained);
            if !undrained {
                request.payload = wire.take(request.length as usize)?;
            }
        }
        Ok(request)
    }

    fn in_bounds(&self, request: &Request) -> bool {
        let end = if self.has(Fault::OffsetWraps) {
            Some(request.offset.wrapping_add(request.length))
        } else {
            request.offset.checked_add(request.length)
        };
        end.is_some_and(|end| end <= SIZE)
    }

    fn answer(&mut self, wire: &mut Wire, request: &Request) -> Result<()> {
        if let Err(error) = self.validate(request) {
            if request.command.0 > 8 && self.has(Fault::UnknownCommandCloses) {
                return Err(std::io::Error::other("an unknown command"));
            }
            return self.fail(wire, request, error);
        }
        match request.command {
            Command::READ => return self.read(wire, request),
            Command::BLOCK_STATUS => return self.block_status(wire, request),
            Command::CACHE if self.has(Fault::CacheChangesData) => {
                self.server.with(|disk| disk.bytes[5000] ^= 1);
            }
            Command::WRITE => self.write(request),
            Command::TRIM if self.has(Fault::TrimsTooMuch) => {
                let from = request.offset.saturating_sub(1) as usize;
                self.server.with(|disk| disk.bytes[from] = 0);
            }
            Command::WRITE_ZEROES => {
                let fast = request.flags.contains(Flag::FAST_ZERO);
                if fast {
                    if self.has(Fault::FastZeroWrites) {
                        self.zero(request);
                    }
                    return self.fail(wire, request, Error::ENOTSUP);
                }
                self.zero(request);
            }
            _ => {}
        }
        self.succeed(wire, request)
    }

    /// Which error a request gets before anything is done.
    fn validate(&self, request: &Request) -> std::result::Result<(), Error> {
        let writes = matches!(
            request.command,
            Command::WRITE | Command::TRIM | Command::WRITE_ZEROES
        );
        let mut known = match request.command {
            Command::READ if self.session.framing != Framing::Simple => Flag::DF,
            Command::WRITE_ZEROES => Flag::NO_HOLE | Flag::FAST_ZERO,
            Command::BLOCK_STATUS => Flag::REQ_ONE | Flag::PAYLOAD_LEN,
            Command::WRITE if self.extended() => Flag::PAYLOAD_LEN,
            Command::CACHE if self.has(Fault::CacheFlagsAccepted) => Flag(!0),
            _ => Flag::NONE,
        } | Flag::FUA;
        if self.has(Fault::UnknownFlagAccepted) {
            known |= !Flag::KNOWN;
        }
        if request.command == Command::READ && self.has(Fault::DfRefused) {
            known.remove(Flag::DF);
        }
        if request.command == Command::READ && self.has(Fault::FuaRefused) {
            known.remove(Flag::FUA);
        }
        if self.has(Fault::NoHoleRefused) {
            known.remove(Flag::NO_HOLE);
        }
        if request.command.0 > 7 || !known.contains(request.flags) {
            return Err(Error::EINVAL);
        }
        if request.command == Command::FLUSH && self.has(Fault::FlushRefused) {
            return Err(Error::EINVAL);
        }
        if writes && self.server.read_only() && !self.has(Fault::ReadOnlyWrites) {
            return Err(Error::EPERM);
        }
        if request.command == Command::WRITE_ZEROES && self.has(Fault::ZeroesRefusedAsSlow) {
            return Err(Error::ENOTSUP);
        }
        if request.command == Command::FLUSH || request.flags.contains(Flag::PAYLOAD_LEN) && !writes
        {
            return Ok(());
        }
        if !self.in_bounds(request) {
            return Err(match request.command {
                Command::WRITE | Command::WRITE_ZEROES => Error::ENOSPC,
                _ => Error::EINVAL,
            });
        }
        Ok(())
    }

    fn write(&mut self, request: &Request) {
        if !self.has(Fault::WritesLost) && !self.has(Fault::DiscLosesWrites) {
            self.store(request);
        }
    }

    fn store(&mut self, request: &Request) {
        let set = |disk: &mut Disk| {
            let from = request.offset as usize;
            disk.bytes[from..][..request.payload.len()].copy_from_slice(&request.payload);
            for block in blocks(request) {
                disk.allocated[block] = true;
            }
        };
        self.server.with(set);
        if self.has(Fault::ConnectionsHaveCaches) {
            set(&mut self.cache);
        }
    }

    fn zero(&self, request: &Request) {
        if self.has(Fault::ZeroesDoNothing) {
            return;
        }
        self.server.with(|disk| {
            let from = request.offset as usize;
            disk.bytes[from..][..request.length as usize].fill(0);
            for block in blocks(request) {
                let start = block as u64 * BLOCK;
                let end = request.offset + request.length;
                if start >= request.offset && start + BLOCK <= end {
                    disk.allocated[block] = false;
                }
            }
        });
    }

    fn read(&self, wire: &mut Wire, request: &Request) -> Result<()> {
        let end = request.offset.wrapping_add(request.length);
        let range = request.offset as usize..end as usize;
        let data = if request.offset > SIZE {
            // Fault::OffsetWraps let it through.
            vec![0; request.length as usize]
        } else if self.has(Fault::ConnectionsHaveCaches) {
            self.cache.bytes[range].to_vec()
        } else {
            self.server.with(|disk| disk.bytes[range].to_vec())
        };
        let simple = self.session.framing == Framing::Simple;
        if simple && !self.has(Fault::StructuredNotNegotiated)
            || self.session.framing == Framing::Structured
                && self.has(Fault::SimpleReadInStructured)
        {
            self.simple(wire, request, Error::NONE)?;
            return wire.put(&data);
        }
        let mut offset = request.offset;
        let half = data.len() / 2;
        let (first, second) = data.split_at(half);
        let content = |offset, data| Chunk::OffsetData { offset, data };
        let fragments = !request.flags.contains(Flag::DF) || self.has(Fault::DfFragments);
        if self.has(Fault::DataOutsideRequest) {
            offset += 1;
        }
        if data.len() < 2 || !fragments {
            if data.is_empty() {
                return self.chunk(wire, request, Chunk::None, true);
            }
            return self.chunk(wire, request, content(offset, &data), true);
        }
        if self.has(Fault::HoleEmpty) {
            let hole = [offset.to_be_bytes().as_slice(), &[0; 4]].concat();
            let chunk = ChunkType::OFFSET_HOLE;
            self.chunk(wire, request, Chunk::Other { chunk, data: &hole }, false)?;
        }
        self.chunk(wire, request, content(offset, first), false)?;
        let next = if self.has(Fault::DataOverlaps) {
            offset + half as u64 - 1
        } else {
            offset + half as u64
        };
        let second = if self.has(Fault::DataShort) {
            &second[..second.len() - 1]
        } else {
            second
        };
        if !second.is_empty() {
            self.chunk(wire, request, content(next, second), false)?;
        }
        self.chunk(
            wire,
            request,
            Chunk::None,
            !self.has(Fault::NoneWithoutDone),
        )
    }

    fn block_status(&self, wire: &mut Wire, request: &Request) -> Result<()> {
        let mut contexts = self.session.contexts.clone();
        let mut length = request.length;
        if request.flags.contains(Flag::PAYLOAD_LEN) {
            let Ok(payload) = BlockStatusPayload::decode(&request.payload) else {
                return self.fail(wire, request, Error::EINVAL);
            };
            length = payload.effect_length;
            let ids: Vec<_> = payload.contexts.iter().map(|id| id.0 as usize).collect();
            let known = |id: &usize| *id > 0 && contexts.contains(&(id - 1));
            let unique = (1..ids.len()).all(|at| !ids[..at].contains(&ids[at]));
            let unchecked = self.has(Fault::FilterIdsUnchecked);
            if !unchecked && (!ids.iter().all(known) || !unique) {
                return self.fail(wire, request, Error::EINVAL);
            }
            contexts = ids.iter().map(|id| id.saturating_sub(1)).collect();
            if request.offset + length > SIZE {
                return self.fail(wire, request, Error::EINVAL);
            }
        }
        if contexts.is_empty() && self.has(Fault::StatusWithoutContext) {
            contexts.push(0);
        }
        if contexts.is_empty() {
            return self.fail(wire, request, Error::EINVAL);
        }
        if length == 0 {
            return self.fail(wire, request, Error::EINVAL);
        }
        if self.has(Fault::StatusOneContextMissing) && contexts.len() > 1 {
            contexts.pop();
        }
        let count = contexts.len();
        for (index, context) in contexts.into_iter().enumerate() {
            let extents = self.extents(request, length, context);
            let id = ContextId(context as u32 + 1);
            self.status(wire, request, id, &extents, index + 1 == count)?;
        }
        Ok(())
    }

    /// The extents of a context over a range.
    fn extents(&self, request: &Request, length: u64, context: usize) -> Vec<Extent64> {
        let mut extents: Vec<Extent64> = Vec::new();
        let (mut at, end) = (request.offset, request.offset + length);
        while at < end {
            let block = at / BLOCK;
            let next = ((block + 1) * BLOCK).min(end);
            let allocated = self.server.with(|disk| disk.allocated[block as usize]);
            let mut flags = match (CONTEXTS[context % CONTEXTS.len()], allocated) {
                ("base:allocation", true) => 0,
                ("base:allocation", false) => 3,
                _ => block % 2,
            };
            if context == 0 && self.has(Fault::DataReportedAsZero) {
                flags = 3;
            }
            if context == 0 && self.has(Fault::StatusUpperBits) && self.extended() {
                flags |= 1 << 40;
            }
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.length += next - at,
                _ => extents.push(Extent64 {
                    length: next - at,
                    flags,
                }),
            }
            at = next;
        }
        if request.flags.contains(Flag::REQ_ONE) && !self.has(Fault::StatusRequestOneIgnored) {
            extents.truncate(1);
        }
        if self.has(Fault::StatusEmptyExtent) {
            extents.insert(
                0,
                Extent64 {
                    length: 0,
                    flags: 0,
                },
            );
        }
        if self.has(Fault::StatusTooManyExtents) {
            extents.push(Extent64 {
                length: BLOCK,
                flags: 0,
            });
        }
        extents
    }

    fn status(
        &self,
        wire: &mut Wire,
        request: &Request,
        context: ContextId,
        extents: &[Extent64],
        done: bool,
    ) -> Result<()> {
        let swapped = if self.extended() {
            self.has(Fault::StatusNarrowInExtended)
        } else {
            self.has(Fault::StatusWideInStructured)
        };
        if self.extended() != swapped {
            let mut bytes: Vec<_> = extents.iter().flat_map(|one| one.encode()).collect();
            if self.has(Fault::StatusCountWrong) {
                let count = extents.len() as u32 + 1;
                let mut data = context.0.to_be_bytes().to_vec();
                data.extend(count.to_be_bytes());
                data.append(&mut bytes);
                let chunk = ChunkType::BLOCK_STATUS_EXT;
                return self.chunk(wire, request, Chunk::Other { chunk, data: &data }, done);
            }
            let (extents, _) = Extents64::split(&bytes);
            return self.chunk(
                wire,
                request,
                Chunk::BlockStatusExt { context, extents },
                done,
            );
        }
        let narrow = extents
            .iter()
            .map(|one| Extent32::try_from(*one).expect("small"));
        let bytes: Vec<_> = narrow.flat_map(|one| one.encode()).collect();
        let (extents, _) = Extents32::split(&bytes);
        self.chunk(wire, request, Chunk::BlockStatus { context, extents }, done)
    }

    fn cookie(&self, request: &Request) -> Cookie {
        if self.has(Fault::WrongCookie) {
            Cookie(request.cookie.0.swap_bytes())
        } else {
            request.cookie
        }
    }

    fn succeed(&self, wire: &mut Wire, request: &Request) -> Result<()> {
        match self.session.framing {
            Framing::Simple => self.simple(wire, request, Error::NONE),
            _ => self.chunk(wire, request, Chunk::None, true),
        }
    }

    fn fail(&self, wire: &mut Wire, request: &Request, error: Error) -> Result<()> {
        if self.session.framing == Framing::Simple {
            self.simple(wire, request, error)?;
            if request.command == Command::READ && self.has(Fault::ErrorWithData) {
                return wire.put(&vec![0; request.length.min(4096) as usize]);
            }
            return Ok(());
        }
        let long = "x".repeat(4097);
        let message = if self.has(Fault::ErrorMessageTooLong) {
            long.as_str()
        } else {
            "refused"
        };
        let error = if self.has(Fault::ErrorZero) {
            Error::NONE
        } else {
            error
        };
        let chunk = Chunk::Error {
            chunk: ChunkType::ERROR,
            error,
            message: message.into(),
            rest: &[],
        };
        self.chunk(wire, request, chunk, true)
    }

    fn simple(&self, wire: &mut Wire, request: &Request, error: Error) -> Result<()> {
        let cookie = self.cookie(request);
        wire.put(&SimpleReply { error, cookie }.encode())
    }

    fn chunk(
        &self,
        wire: &mut Wire,
        request: &Request,
        chunk: Chunk<'_>,
        done: bool,
    ) -> Result<()> {
        let mut payload = Vec::new();
        chunk.encode(&mut payload).expect("short enough");
        let cookie = self.cookie(request);
        let mut flags = if done {
            ReplyFlags::DONE
        } else {
            ReplyFlags::NONE
        };
        if self.has(Fault::UndefinedReplyFlag) {
            flags |= ReplyFlags(1 << 4);
        }
        let chunk = chunk.chunk();
        if self.extended() {
            let offset = if self.has(Fault::ExtendedOffsetWrong) {
                request.offset ^ BLOCK
            } else {
                request.offset
            };
            let length = payload.len() as u64;
            let header = ExtendedHeader {
                flags,
                chunk,
                cookie,
                offset,
                length,
            };
            wire.put(&header.encode())?;
        } else {
            let length = payload.len() as u32;
            let header = StructuredHeader {
                flags,
                chunk,
                cookie,
                length,
            };
            wire.put(&header.encode())?;
        }
        wire.put(&payload)
    }
}

/// The blocks that a request touches.
fn blocks(request: &Request) -> std::ops::Range<usize> {
    let end = (request.offset + request.length).div_ceil(BLOCK);
    (request.offset / BLOCK) as usize..end as usize
}
