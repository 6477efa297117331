//! The server of a script, which executes requests on a disk.

use std::collections::BTreeMap;

use nbd_codec::server::{
    ChunkedRead, ReadRequest, Request, Transmission, TransmissionEvent, narrow,
};
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue};
use nbd_codec::{Content, Error, Limits, Negotiated, StatusWidth, Step};

use super::disk::Disk;
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};

const EIO: ErrorValue = ErrorValue::EIO;

pub(super) struct Server {
    pub(super) machine: Transmission,
    pub(super) disk: Disk,
    /// Requests, and the payloads of writes.
    pub(super) pending: Vec<(Request, Vec<u8>)>,
    /// The outcome of requests that the state machine answered, by cookie.
    pub(super) answered: BTreeMap<u64, Option<u32>>,
    pub(super) out: Vec<u8>,
    pub(super) disconnected: bool,
    wide: Vec<u32>,
    /// The payload of the current write.
    payload: Vec<u8>,
    pub(super) incoming: Incoming,
    pub(super) error: Option<Error>,
    ended: usize,
}

impl Server {
    pub(super) fn new(
        negotiated: Negotiated,
        strict: bool,
        disk: Disk,
        delivery: &Delivery,
    ) -> Self {
        let machine = Transmission::new(negotiated, Limits::DEFAULT).expect("what was negotiated");
        let contexts = negotiated.contexts.iter();
        let wide = contexts.filter(|context| context.width == StatusWidth::Wide);
        let wide = wide.map(|context| context.id.0).collect();
        Self {
            machine: if strict { machine.strict() } else { machine },
            disk,
            pending: Vec::new(),
            answered: BTreeMap::new(),
            out: Vec::new(),
            disconnected: false,
            wide,
            payload: Vec::new(),
            incoming: Incoming::new(delivery, Limits::DEFAULT.buffer()),
            error: None,
            ended: 0,
        }
    }

    pub(super) fn shut_down_is(&self, error: u32) -> bool {
        error == ErrorValue::ESHUTDOWN.0
    }

    /// Executes a request and replies to it. Returns its cookie, and the error.
    pub(super) fn answer(
        &mut self,
        which: u8,
        how: u8,
        at: u8,
        out: &mut Vec<u8>,
    ) -> Option<(u64, Option<u32>)> {
        let place = usize::from(which).checked_rem(self.pending.len())?;
        let (request, payload) = self.pending.remove(place);
        let cookie = request.cookie().0;
        let error = self.serve(request, &payload, how, at, out);
        Some((cookie, error.map(|error| error.0)))
    }

    fn serve(
        &mut self,
        request: Request,
        payload: &[u8],
        how: u8,
        at: u8,
        out: &mut Vec<u8>,
    ) -> Option<ErrorValue> {
        if how % 8 == 7 {
            let reply = request.fail(EIO, "it fails");
            reply.encode(out).expect("room");
            return Some(EIO);
        }
        if how % 8 == 6 {
            return fail_at(request, at, out);
        }
        let reply = match request {
            Request::Read(read) => return self.read(read, how, at, out),
            Request::Write(write) => {
                assert_eq!(write.length(), payload.len() as u64);
                self.disk.write(write.offset(), payload);
                write.succeed()
            }
            Request::Trim(trim) => {
                self.disk.zero(trim.offset(), trim.length());
                trim.succeed()
            }
            Request::WriteZeroes(zeroes) if zeroes.fast_zero() && how % 8 == 5 => {
                zeroes
                    .fail(ErrorValue::ENOTSUP, "no faster")
                    .encode(out)
                    .expect("room");
                return Some(ErrorValue::ENOTSUP);
            }
            Request::WriteZeroes(zeroes) => {
                self.disk.zero(zeroes.offset(), zeroes.length());
                zeroes.succeed()
            }
            Request::Cache(cache) => cache.succeed(),
            Request::Flush(flush) => flush.succeed(),
            Request::Resize(resize) => {
                self.disk.resize(resize.size());
                self.machine.resized(resize)
            }
            Request::BlockStatus32(mut status) => loop {
                let id = pick(status.contexts(), at);
                let map = self.disk.map(status.offset(), false).into_iter();
                let map = map.flat_map(|extent| narrow::split(extent).expect("32 bits"));
                match status.reply_truncated(id, map, out).expect("an answer") {
                    Some(rest) => status = rest,
                    None => return None,
                }
            },
            Request::BlockStatus64(mut status) => loop {
                let id = pick(status.contexts(), at);
                let map = self.disk.map(status.offset(), self.wide.contains(&id.0));
                match status.reply_truncated(id, map, out).expect("an answer") {
                    Some(rest) => status = rest,
                    None => return None,
                }
            },
            _ => panic!("unknown request"),
        };
        reply.encode(out).expect("room");
        None
    }

    fn record(&mut self, event: TransmissionEvent) {
        assert!(!self.disconnected, "an event after DISC");
        match event {
            TransmissionEvent::WritePayload { .. } => {
                assert!(self.payload.is_empty(), "overlapping payloads");
                return;
            }
            TransmissionEvent::Request(request) => {
                let payload = match request {
                    Request::Write(_) => std::mem::take(&mut self.payload),
                    _ => Vec::new(),
                };
                self.pending.push((request, payload));
            }
            TransmissionEvent::Answered { result, reply, .. } => {
                let header = reply.parts()[0];
                // The cookie is at the same offset in all headers.
                let cookie = header[8..16].try_into().expect("eight bytes");
                let error = result.err().map(|error| error.0);
                self.answered.insert(u64::from_be_bytes(cookie), error);
                reply.encode(&mut self.out).expect("room");
            }
            TransmissionEvent::Disconnect => self.disconnected = true,
            _ => panic!("unknown event"),
        }
        self.ended += 1;
    }

    fn read(&self, read: ReadRequest, how: u8, at: u8, out: &mut Vec<u8>) -> Option<ErrorValue> {
        let chunks = match how % 8 {
            0 => Err(read),
            _ => read.into_chunks(),
        };
        let chunks = match chunks {
            Ok(chunks) => chunks,
            Err(read) => {
                let data = self.disk.read(read.offset(), read.length().into());
                out.extend(read.data().as_bytes());
                out.extend(data);
                return None;
            }
        };
        self.read_in_pieces(chunks, how, at, out)
    }

    /// In pieces, in reverse order, with zeroes as holes.
    fn read_in_pieces(
        &self,
        mut chunks: ChunkedRead,
        how: u8,
        at: u8,
        out: &mut Vec<u8>,
    ) -> Option<ErrorValue> {
        let (offset, length) = (chunks.offset(), u64::from(chunks.length()));
        let pieces = if chunks.dont_fragment() {
            1
        } else {
            u64::from(at % 7) + 1
        };
        let size = length.div_ceil(pieces);
        let mut failed = None;
        for piece in (0..pieces).rev() {
            let begin = offset + (piece * size).min(length);
            let end = (begin + size).min(offset + length);
            if begin == end {
                continue;
            }
            let data = self.disk.read(begin, end - begin);
            if how % 8 == 3 && piece == u64::from(at) % pieces {
                // This piece fails.
                let reply = chunks.error_at(EIO, begin, "unreadable").expect("a place");
                reply.encode(out).expect("room");
                failed = Some(EIO);
                continue;
            }
            let last = piece == 0 && how.is_multiple_of(2) && failed.is_none();
            let n = (end - begin) as u32;
            let hole = data.iter().all(|byte| *byte == 0);
            match (hole, last) {
                (true, true) => {
                    let reply = chunks.finish_with_hole(begin, n).expect("the last");
                    reply.encode(out).expect("room");
                    return None;
                }
                (true, false) => {
                    let reply = chunks.hole(begin, n).expect("a piece");
                    reply.encode(out).expect("room");
                }
                (false, true) => {
                    let header = chunks.finish_with_data(begin, n).expect("the last");
                    out.extend(header.as_bytes());
                    out.extend(data);
                    return None;
                }
                (false, false) => {
                    let header = chunks.data(begin, n).expect("a piece");
                    out.extend(header.as_bytes());
                    out.extend(data);
                }
            }
        }
        if how % 8 == 5 {
            let error = ErrorValue::ENOMEM;
            let reply = chunks.fail(error, "after all");
            reply.encode(out).expect("room");
            return failed.or(Some(error));
        }
        let reply = chunks.finish().expect("all of it");
        reply.encode(out).expect("room");
        failed
    }
}

fn pick(mut contexts: impl Iterator<Item = ContextId> + Clone, at: u8) -> ContextId {
    let n = contexts.clone().count();
    contexts.nth(usize::from(at) % n).expect("a context")
}

/// Fails with an offset, if the request has a range.
fn fail_at(request: Request, at: u8, out: &mut Vec<u8>) -> Option<ErrorValue> {
    macro_rules! fail_at {
        ($($kind:ident)*) => {
            match request {
                $(Request::$kind(token) => {
                    let offset = token.offset() + u64::from(at) % u64::from(token.length());
                    let reply = token.fail_at(EIO, offset, "bad block").expect("inside");
                    reply.encode(out).expect("room");
                })*
                request => {
                    request.fail(EIO, "bad block").encode(out).expect("room");
                }
            }
        };
    }
    fail_at!(Read Write Trim Cache WriteZeroes BlockStatus32 BlockStatus64);
    Some(EIO)
}

impl Driver for Server {
    fn incoming(&mut self) -> &mut Incoming {
        &mut self.incoming
    }

    fn least_buffer(&self) -> usize {
        Limits::DEFAULT.buffer()
    }

    fn step(&mut self, buffer: &Buffer) -> Result<Next, Error> {
        let step = buffer.receive(&mut self.machine)?;
        let next = Next::after(&step);
        match step {
            Step::Event(event) => self.record(event),
            Step::Content(Content::Data { data, .. }) => self.payload.extend(data),
            Step::Content(Content::Hole { .. }) => panic!("a hole in a write"),
            Step::ReadPayload { offset, length, .. } => {
                assert!(offset + length <= self.disk.bytes.len() as u64);
            }
            Step::Finished => assert!(self.disconnected),
            Step::Read(_) => {}
            Step::Transmit | Step::StartTls => panic!("a step of the handshake"),
        }
        Ok(next)
    }

    fn read_directly(&mut self, _: Cookie, _: u64, payload: &[u8]) {
        self.machine.advance(payload.len() as u64).expect("payload");
        self.payload.extend(payload);
    }

    fn fail(&mut self, error: Error) {
        self.error = Some(error);
    }

    fn ended(&self) -> usize {
        self.ended
    }
}
