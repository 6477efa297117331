//! "Transmission phase": what a server must make of the requests of a client.

use super::transmission::Framing;
use super::{Read, Stream, Verdict, must};

#[derive(Debug, Clone)]
pub struct Terms {
    pub framing: Framing,
    pub size: u64,
    /// The transmission flags.
    pub flags: u64,
    pub minimum: u64,
    pub maximum: u64,
    /// The contexts selected.
    pub contexts: Vec<u64>,
    /// Policy: the longest payload that is read in order to refuse it.
    pub longest_payload: u64,
    /// Policy: the longest effect of a command without data.
    pub longest_effect: u64,
}

/// What the server does meanwhile; known to a request that was not all there
/// when so much of the stream was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    ShutDown,
    Resized(u64),
}

/// A request as it stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub kind: u64,
    pub flags: u64,
    pub cookie: u64,
    pub offset: u64,
    /// Of the effect.
    pub length: u64,
    /// The contexts that it asks for.
    pub contexts: Vec<u64>,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The payload of a write that will be done, as far as it is there.
    Payload {
        request: Request,
        bytes: Vec<u8>,
    },
    /// To be done.
    Request(Request),
    /// To be refused, for one of these errors.
    Refused {
        request: Request,
        errors: Vec<u64>,
    },
    Bye,
}

const READ: u64 = 0;
const WRITE: u64 = 1;
const DISC: u64 = 2;
const FLUSH: u64 = 3;
const TRIM: u64 = 4;
const CACHE: u64 = 5;
const WRITE_ZEROES: u64 = 6;
const BLOCK_STATUS: u64 = 7;
const RESIZE: u64 = 8;

const FUA: u64 = 1;
const NO_HOLE: u64 = 1 << 1;
const DF: u64 = 1 << 2;
const REQ_ONE: u64 = 1 << 3;
const FAST_ZERO: u64 = 1 << 4;
const PAYLOAD_LEN: u64 = 1 << 5;

const READ_ONLY: u64 = 1 << 1;
const SEND_FLUSH: u64 = 1 << 2;
const SEND_FUA: u64 = 1 << 3;
const SEND_TRIM: u64 = 1 << 5;
const SEND_WRITE_ZEROES: u64 = 1 << 6;
const SEND_DF: u64 = 1 << 7;
const SEND_RESIZE: u64 = 1 << 9;
const SEND_CACHE: u64 = 1 << 10;
const SEND_FAST_ZERO: u64 = 1 << 11;
const BLOCK_STATUS_PAYLOAD: u64 = 1 << 12;

const EPERM: u64 = 1;
const EINVAL: u64 = 22;
const ENOSPC: u64 = 28;
const EOVERFLOW: u64 = 75;
const ESHUTDOWN: u64 = 108;

struct Reader<'a> {
    terms: &'a Terms,
    stream: Stream<'a>,
    changes: &'a [(usize, Change)],
    size: u64,
    /// The largest size there ever was.
    largest: u64,
    shutting_down: bool,
    heard: Vec<Heard>,
}

/// Reads everything a client has said during transmission.
pub fn read(terms: &Terms, changes: &[(usize, Change)], bytes: &[u8]) -> (Vec<Heard>, Verdict) {
    let mut reader = Reader {
        terms,
        stream: Stream { bytes, at: 0 },
        changes,
        size: terms.size,
        largest: terms.size,
        shutting_down: false,
        heard: Vec::new(),
    };
    // What stands behind the goodbye is not read.
    while reader.stream.left() > 0 && reader.heard.last() != Some(&Heard::Bye) {
        if let Err(verdict) = reader.request() {
            return (reader.heard, verdict);
        }
    }
    (reader.heard, Verdict::Good)
}

impl Reader<'_> {
    /// "Request message"
    fn request(&mut self) -> Read<()> {
        let extended = self.terms.framing == Framing::Extended;
        let magic = if extended { 0x21e41c71 } else { 0x25609513 };
        must(self.stream.number(4)? == magic, "magic")?;
        self.stream.expect(if extended { 28 } else { 24 })?;
        let flags = self.stream.number(2)?;
        let kind = self.stream.number(2)?;
        let cookie = self.stream.number(8)?;
        let offset = self.stream.number(8)?;
        let length = self.stream.number(if extended { 8 } else { 4 })?;
        self.catch_up();
        let mut request = Request {
            kind,
            flags,
            cookie,
            offset,
            length,
            contexts: Vec::new(),
        };
        if kind == DISC {
            self.heard.push(Heard::Bye);
            return Ok(());
        }
        // Policy: a write has its data, even if it does not say so.
        let payload = match kind == WRITE || extended && flags & PAYLOAD_LEN != 0 {
            true => length,
            false => 0,
        };
        // "A server SHOULD initiate hard disconnect if a client sets the
        // NBD_CMD_FLAG_PAYLOAD_LEN flag and uses a length larger than a
        // server's advertised or default maximum payload length". Policy: with
        // compact headers more may be read.
        let bound = match extended {
            true => self.terms.maximum,
            false => self.terms.maximum.max(self.terms.longest_payload),
        };
        must(payload <= bound, "a payload that nobody can mean")?;
        let mut errors = self.form(&request, payload);
        if kind == BLOCK_STATUS {
            request.contexts = self.terms.contexts.clone();
        }
        if kind == BLOCK_STATUS && payload > 0 && errors.is_empty() {
            // "NBD_CMD_BLOCK_STATUS": effect length, then ids.
            self.stream.expect(payload)?;
            request.length = self.stream.number(8)?;
            request.contexts.clear();
            for _ in 0..(payload - 8) / 4 {
                request.contexts.push(self.stream.number(4)?);
            }
            self.catch_up();
            if self.shutting_down {
                errors.push(ESHUTDOWN);
            }
            let ids = &request.contexts;
            let selected = |id| self.terms.contexts.contains(id);
            let twice = |n: usize| ids[..n].contains(&ids[n]);
            if !ids.iter().all(selected) || (0..ids.len()).any(twice) {
                errors.push(EINVAL);
            }
            errors.extend(self.range(&request));
            self.judged(request, errors);
            return Ok(());
        }
        errors.extend(self.range(&request));
        if errors.is_empty() && kind == WRITE {
            let bytes = self.stream.bytes(payload.min(self.stream.left()))?.to_vec();
            let torn = (bytes.len() as u64) < payload;
            let payload = request.clone();
            self.heard.push(Heard::Payload {
                request: payload,
                bytes,
            });
            if torn {
                return Err(Verdict::Torn);
            }
        } else {
            self.stream.bytes(payload)?;
        }
        self.judged(request, errors);
        Ok(())
    }

    fn judged(&mut self, request: Request, errors: Vec<u64>) {
        self.heard.push(match errors.is_empty() {
            true => Heard::Request(request),
            false => Heard::Refused { request, errors },
        });
    }

    /// What the server has done before it had all of what was read by now.
    fn catch_up(&mut self) {
        while let Some(((at, change), rest)) = self.changes.split_first() {
            if *at >= self.stream.at {
                break;
            }
            self.changes = rest;
            match change {
                Change::ShutDown => self.shutting_down = true,
                Change::Resized(size) => {
                    self.size = *size;
                    self.largest = self.largest.max(*size);
                }
            }
        }
    }

    /// Everything that is wrong with a request, but for its range.
    fn form(&self, request: &Request, payload: u64) -> Vec<u64> {
        let mut errors = Vec::new();
        let mut fault = |wrong: bool, error| {
            if wrong {
                errors.push(error);
            }
        };
        let kind = request.kind;
        let has = |flag| self.terms.flags & flag != 0;
        fault(self.shutting_down, ESHUTDOWN);
        // "The server MUST return NBD_EPERM for writes on a read-only export."
        let writes = [WRITE, TRIM, WRITE_ZEROES, RESIZE].contains(&kind);
        fault(writes && has(READ_ONLY), EPERM);
        let chunks = self.terms.framing != Framing::Simple;
        let known = match kind {
            READ | WRITE => true,
            FLUSH => has(SEND_FLUSH),
            TRIM => has(SEND_TRIM),
            CACHE => has(SEND_CACHE),
            WRITE_ZEROES => has(SEND_WRITE_ZEROES),
            BLOCK_STATUS => chunks && !self.terms.contexts.is_empty(),
            RESIZE => has(SEND_RESIZE),
            _ => false,
        };
        fault(!known, EINVAL);
        // "Command flags". Policy: FUA does no harm where it means nothing.
        for flag in (0..16).map(|bit| 1 << bit) {
            let allowed = match flag {
                FUA => has(SEND_FUA),
                NO_HOLE => kind == WRITE_ZEROES,
                DF => kind == READ && has(SEND_DF),
                REQ_ONE => kind == BLOCK_STATUS,
                FAST_ZERO => kind == WRITE_ZEROES && has(SEND_FAST_ZERO),
                PAYLOAD_LEN => {
                    let taken = match kind {
                        WRITE => true,
                        BLOCK_STATUS => has(BLOCK_STATUS_PAYLOAD),
                        _ => false,
                    };
                    self.terms.framing == Framing::Extended && taken
                }
                _ => false,
            };
            fault(request.flags & flag != 0 && !allowed, EINVAL);
        }
        fault(kind == WRITE && payload > self.terms.maximum, EINVAL);
        if kind == BLOCK_STATUS && request.flags & PAYLOAD_LEN != 0 {
            // Policy: more ids than contexts are one of them twice.
            let ids = payload.saturating_sub(8) / 4;
            let many = self.terms.contexts.len() as u64;
            let whole = payload == 8 + 4 * ids;
            fault(!whole || ids == 0 || ids > many, EINVAL);
        }
        errors
    }

    /// "Size constraints"
    fn range(&self, request: &Request) -> Vec<u64> {
        let Request {
            kind,
            flags,
            offset,
            length,
            ..
        } = *request;
        let mut errors = Vec::new();
        if kind == FLUSH || kind == RESIZE {
            return errors;
        }
        let minimum = self.terms.minimum;
        let maximum = self.terms.maximum;
        // Policy: what nobody has defined is refused.
        if length == 0 || offset % minimum != 0 || length % minimum != 0 {
            errors.push(EINVAL);
        }
        let end = u128::from(offset) + u128::from(length);
        if end > u128::from(self.size) {
            let gone = end <= u128::from(self.largest);
            let space = kind == WRITE || kind == WRITE_ZEROES || gone;
            errors.push(if space { ENOSPC } else { EINVAL });
        }
        let simple = self.terms.framing == Framing::Simple;
        let fast = kind == WRITE_ZEROES && flags & FAST_ZERO != 0;
        let too_long = match kind {
            READ if simple => (length > maximum).then_some(EINVAL),
            // A chunk of data says its length in 32 bits, offset included.
            READ => (length > maximum.min((1 << 32) - 9)).then_some(EOVERFLOW),
            TRIM | CACHE | WRITE_ZEROES if !fast => {
                (length > self.terms.longest_effect).then_some(EOVERFLOW)
            }
            _ => None,
        };
        errors.extend(too_long);
        errors
    }
}
