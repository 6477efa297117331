//! "Transmission phase": the client's requests.

use super::replies::Framing;
use super::{Parse, Stream, Validity, ensure};

#[derive(Debug, Clone)]
pub struct Config {
    pub framing: Framing,
    pub size: u64,
    /// The transmission flags.
    pub flags: u64,
    pub minimum: u64,
    pub maximum: u64,
    /// The selected contexts.
    pub contexts: Vec<u64>,
    /// Policy: the longest payload to discard.
    pub max_payload: u64,
    /// Policy: the longest effect of a command without data.
    pub max_effect: u64,
    /// What a client MUST NOT or SHOULD NOT send is an error.
    pub strict: bool,
}

/// A change at the server. It applies to requests that were incomplete when
/// this many bytes had arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    ShutDown,
    Resized(u64),
}

/// The fields of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub kind: u64,
    pub flags: u64,
    pub cookie: u64,
    pub offset: u64,
    /// The length of the effect.
    pub length: u64,
    /// The contexts it asks for.
    pub contexts: Vec<u64>,
}

/// One request, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The payload of a valid write, as much as has arrived.
    Payload {
        request: Request,
        bytes: Vec<u8>,
    },
    /// A valid request.
    Request(Request),
    /// A request that the server answers itself: the errors that apply, none if
    /// there is nothing to do.
    Answered {
        request: Request,
        errors: Vec<u64>,
    },
    Disconnect,
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

struct Parser<'a> {
    config: &'a Config,
    stream: Stream<'a>,
    changes: &'a [(usize, Change)],
    size: u64,
    /// The largest size so far.
    largest: u64,
    shutting_down: bool,
    events: Vec<Event>,
}

/// Parses all bytes of a client during transmission.
pub fn parse(config: &Config, changes: &[(usize, Change)], bytes: &[u8]) -> (Vec<Event>, Validity) {
    let mut parser = Parser {
        config,
        stream: Stream { bytes, at: 0 },
        changes,
        size: config.size,
        largest: config.size,
        shutting_down: false,
        events: Vec::new(),
    };
    // Bytes after DISC are ignored.
    while parser.stream.left() > 0 && parser.events.last() != Some(&Event::Disconnect) {
        if let Err(validity) = parser.request() {
            return (parser.events, validity);
        }
    }
    (parser.events, Validity::Valid)
}

impl Parser<'_> {
    /// "Request message"
    fn request(&mut self) -> Parse<()> {
        let extended = self.config.framing == Framing::Extended;
        let magic = if extended { 0x21e41c71 } else { 0x25609513 };
        ensure(self.stream.number(4)? == magic, "magic")?;
        self.stream.require(if extended { 28 } else { 24 })?;
        let flags = self.stream.number(2)?;
        let kind = self.stream.number(2)?;
        let cookie = self.stream.number(8)?;
        let offset = self.stream.number(8)?;
        let length = self.stream.number(if extended { 8 } else { 4 })?;
        self.apply_changes();
        let mut request = Request {
            kind,
            flags,
            cookie,
            offset,
            length,
            contexts: Vec::new(),
        };
        if kind == DISC {
            // "The values of the length and offset fields in a disconnect request
            // MUST be zero."
            let is_bare = (offset, length) == (0, 0);
            ensure(is_bare || !self.config.strict, "a disconnect with a range")?;
            self.events.push(Event::Disconnect);
            return Ok(());
        }
        // Policy: a write has a payload even without PAYLOAD_LEN.
        let payload = if kind == WRITE || extended && flags & PAYLOAD_LEN != 0 {
            length
        } else {
            0
        };
        // "A server SHOULD initiate hard disconnect if a client sets the
        // NBD_CMD_FLAG_PAYLOAD_LEN flag and uses a length larger than a
        // server's advertised or default maximum payload length". Policy: without
        // the flag more may be discarded.
        let is_announced = flags & PAYLOAD_LEN != 0 || self.config.strict;
        let bound = if extended && is_announced {
            self.config.maximum
        } else {
            self.config.maximum.max(self.config.max_payload)
        };
        ensure(payload <= bound, "payload is too long")?;
        let mut errors = self.request_errors(&request, payload);
        if kind == BLOCK_STATUS {
            request.contexts = self.config.contexts.clone();
        }
        if kind == BLOCK_STATUS && payload > 0 && errors.is_empty() {
            // "NBD_CMD_BLOCK_STATUS": effect length, then ids.
            self.stream.require(payload)?;
            request.length = self.stream.number(8)?;
            request.contexts.clear();
            for _ in 0..(payload - 8) / 4 {
                request.contexts.push(self.stream.number(4)?);
            }
            self.apply_changes();
            if self.shutting_down {
                errors.push(ESHUTDOWN);
            }
            let ids = &request.contexts;
            let selected = |id| self.config.contexts.contains(id);
            let is_repeated = |n: usize| ids[..n].contains(&ids[n]);
            if !ids.iter().all(selected) || (0..ids.len()).any(is_repeated) {
                errors.push(EINVAL);
            }
            errors.extend(self.range_errors(&request));
            self.push_outcome(request, errors);
            return Ok(());
        }
        errors.extend(self.range_errors(&request));
        if errors.is_empty() && kind == WRITE && length > 0 {
            let bytes = self.stream.bytes(payload.min(self.stream.left()))?.to_vec();
            let incomplete = (bytes.len() as u64) < payload;
            let payload = request.clone();
            self.events.push(Event::Payload {
                request: payload,
                bytes,
            });
            if incomplete {
                return Err(Validity::Incomplete);
            }
        } else {
            self.stream.bytes(payload)?;
        }
        self.push_outcome(request, errors);
        Ok(())
    }

    fn push_outcome(&mut self, request: Request, errors: Vec<u64>) {
        let has_range = request.kind != FLUSH && request.kind != RESIZE;
        let is_empty = has_range && request.length == 0;
        self.events.push(if errors.is_empty() && !is_empty {
            Event::Request(request)
        } else {
            Event::Answered { request, errors }
        });
    }

    /// Applies the changes before the last byte parsed arrived.
    fn apply_changes(&mut self) {
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

    /// All errors of a request other than those of its range.
    fn request_errors(&self, request: &Request, payload: u64) -> Vec<u64> {
        let mut errors = Vec::new();
        let mut add_if = |applies: bool, error| {
            if applies {
                errors.push(error);
            }
        };
        let kind = request.kind;
        let has = |flag| self.config.flags & flag != 0;
        add_if(self.shutting_down, ESHUTDOWN);
        // "The server MUST return NBD_EPERM for writes on a read-only export."
        let writes = [WRITE, TRIM, WRITE_ZEROES, RESIZE].contains(&kind);
        add_if(writes && has(READ_ONLY), EPERM);
        let chunks = self.config.framing != Framing::Simple;
        let known = match kind {
            READ | WRITE => true,
            FLUSH => has(SEND_FLUSH),
            TRIM => has(SEND_TRIM),
            CACHE => has(SEND_CACHE),
            WRITE_ZEROES => has(SEND_WRITE_ZEROES),
            BLOCK_STATUS => chunks && !self.config.contexts.is_empty(),
            RESIZE => has(SEND_RESIZE),
            _ => false,
        };
        add_if(!known, EINVAL);
        // "Command flags". Policy: FUA is accepted with all commands.
        for flag in (0..16).map(|bit| 1 << bit) {
            let check_refusal = match flag {
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
                    self.config.framing == Framing::Extended && taken
                }
                _ => false,
            };
            add_if(request.flags & flag != 0 && !check_refusal, EINVAL);
        }
        add_if(kind == WRITE && payload > self.config.maximum, EINVAL);
        // "The command NBD_CMD_WRITE MUST use the flag NBD_CMD_FLAG_PAYLOAD_LEN in
        // this mode". Policy: accepted without it.
        let extended = self.config.framing == Framing::Extended;
        let is_announced = !extended || request.flags & PAYLOAD_LEN != 0;
        add_if(self.config.strict && kind == WRITE && !is_announced, EINVAL);
        if kind == BLOCK_STATUS && request.flags & PAYLOAD_LEN != 0 {
            // Policy: more ids than contexts contain a duplicate.
            let ids = payload.saturating_sub(8) / 4;
            let many = self.config.contexts.len() as u64;
            let is_complete = payload == 8 + 4 * ids;
            add_if(!is_complete || ids == 0 || ids > many, EINVAL);
        }
        errors
    }

    /// "Size constraints"
    fn range_errors(&self, request: &Request) -> Vec<u64> {
        let Request {
            kind,
            flags,
            offset,
            length,
            ..
        } = *request;
        let mut errors = Vec::new();
        if kind == FLUSH || kind == RESIZE {
            // "For a flush request, length and offset are reserved, and MUST be
            // set to all-zero." Policy: ignored.
            let is_reserved_set = length != 0 || kind == FLUSH && offset != 0;
            if self.config.strict && is_reserved_set {
                errors.push(EINVAL);
            }
            return errors;
        }
        let minimum = self.config.minimum;
        let maximum = self.config.maximum;
        // "The client SHOULD NOT request a read length of 0; the behavior of a
        // server on such a request is unspecified". Policy: success. Block status
        // has no such reply.
        if length == 0 && (self.config.strict || kind == BLOCK_STATUS) {
            errors.push(EINVAL);
        }
        if offset % minimum != 0 || length % minimum != 0 {
            errors.push(EINVAL);
        }
        let end = u128::from(offset) + u128::from(length);
        if end > u128::from(self.size) {
            let gone = end <= u128::from(self.largest);
            let space = kind == WRITE || kind == WRITE_ZEROES || gone;
            errors.push(if space { ENOSPC } else { EINVAL });
        }
        let simple = self.config.framing == Framing::Simple;
        let fast = kind == WRITE_ZEROES && flags & FAST_ZERO != 0;
        let too_long = match kind {
            READ if simple => (length > maximum).then_some(EINVAL),
            // The length of a data chunk has 32 bits and includes its offset.
            READ => (length > maximum.min((1 << 32) - 9)).then_some(EOVERFLOW),
            TRIM | CACHE | WRITE_ZEROES if !fast => {
                (length > self.config.max_effect).then_some(EOVERFLOW)
            }
            _ => None,
        };
        errors.extend(too_long);
        errors
    }
}
