//! Requests: received, checked, and handed out. The fast path is above the slow
//! path.

use super::validate::{Fault, Header};
use super::{State, Transmission, TransmissionEvent};
use crate::error::{Error, Violation};
use crate::features;
use crate::negotiated::{Framing, StatusWidth};
use crate::server::request::{
    BlockStatus32Request, BlockStatus64Request, CacheRequest, ContextSet, FlushRequest,
    ReadRequest, Request, RequestInfo, ResizeRequest, TrimRequest, WriteRequest,
    WriteZeroesRequest,
};
use crate::step::{Content, Step};
use crate::wire::bytes::{clip, find_magic, take_header, take_slice, wide};
use crate::wire::number::Command;
use crate::wire::request::{
    BlockStatusPayload, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, REQUEST_MAGIC,
};

type ServerStep<'i> = Step<TransmissionEvent, &'i [u8]>;

impl Transmission {
    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call returns the same.
    #[inline]
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<ServerStep<'i>, Error> {
        if !features::SMALL
            && let State::Header = self.state
            && let Some(info) = self.plain_read(input)
        {
            let request = Request::Read(ReadRequest { info });
            return Ok(Step::Event(TransmissionEvent::Request(request)));
        }
        self.receive_slow(input)
    }

    /// Fast path: takes a valid read without flags.
    ///
    /// What is taken here, [`header`](Self::header) would take as well, with the
    /// same outcome. Of anything else nothing is taken.
    #[inline]
    fn plain_read(&self, input: &mut &[u8]) -> Option<RequestInfo> {
        let mut rest = *input;
        let header = match self.rules.export.framing.compiled() {
            Framing::Extended => take_header(&mut rest, ExtendedRequest::parse_plain_read)?.into(),
            _ => take_header(&mut rest, CompactRequest::parse_plain_read)?.into(),
        };
        if !self.rules.accepts_read(&header) {
            return None;
        }
        *input = rest;
        Some(self.info(&header))
    }

    /// Slow path of [`receive`](Self::receive).
    #[inline(never)]
    fn receive_slow<'i>(&mut self, input: &mut &'i [u8]) -> Result<ServerStep<'i>, Error> {
        let result = self.step(input);
        if let Err(error) = &result {
            self.state = State::Failed(*error);
        }
        result
    }

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<ServerStep<'i>, Error> {
        match self.state {
            State::Header => self.header(input),
            State::Payload { info, left: 0, .. } => {
                self.expect_header();
                let request = Request::Write(WriteRequest { info });
                Ok(Step::Event(TransmissionEvent::Request(request)))
            }
            State::Payload { info, left, offset } => {
                let data = take_up_to(input, left);
                let cookie = info.cookie;
                if data.is_empty() {
                    return Ok(Step::ReadPayload {
                        cookie,
                        offset,
                        length: left,
                    });
                }
                let taken = wide(data.len());
                self.state = State::Payload {
                    info,
                    left: left.saturating_sub(taken),
                    offset: offset.saturating_add(taken),
                };
                Ok(Step::Content(Content::Data {
                    cookie,
                    offset,
                    data,
                }))
            }
            State::Discard {
                header,
                fault,
                left,
            } => Ok(self.discard(header, fault, left, input)),
            State::Disconnected => Ok(Step::Finished),
            State::Failed(error) => Err(error),
        }
    }

    /// A header comes next.
    fn expect_header(&mut self) {
        self.state = State::Header;
        self.want = header_size(self.rules.export.framing);
    }

    /// Discards the payload of a request that is rejected, exactly.
    fn discard<'i>(
        &mut self,
        header: Header,
        fault: Fault,
        left: u64,
        input: &mut &'i [u8],
    ) -> ServerStep<'i> {
        let taken = wide(take_up_to(input, left).len());
        let left = left.saturating_sub(taken);
        if left > 0 {
            self.state = State::Discard {
                header,
                fault,
                left,
            };
            return Step::read(clip(left).min(self.rules.limits.buffer()));
        }
        self.expect_header();
        let Fault { error, text } = fault;
        Step::Event(TransmissionEvent::Answered {
            command: header.command,
            result: Err(error),
            reply: self.info(&header).error(error, None, true, text),
        })
    }

    fn header<'i>(&mut self, input: &mut &'i [u8]) -> Result<ServerStep<'i>, Error> {
        let mut rest = *input;
        let Some(header) = self.decode(&mut rest)? else {
            return Ok(Step::read(self.want.saturating_sub(input.len())));
        };
        if header.command == Command::DISC {
            self.rules.check_disconnect(&header)?;
            *input = rest;
            self.state = State::Disconnected;
            return Ok(Step::Event(TransmissionEvent::Disconnect));
        }
        self.rules.bound_payload(&header)?;
        let form = self.rules.check_form(&header);
        let filtered = header.command == Command::BLOCK_STATUS && header.payload > 0;
        if features::EXTENDED && filtered && form.is_ok() {
            return Ok(self.filtered_status(header, rest, input));
        }
        *input = rest;
        match form.and_then(|()| self.rules.check_range(&header)) {
            Err(fault) => Ok(self.discard(header, fault, header.payload, input)),
            Ok(()) if header.is_empty() => Ok(Step::Event(TransmissionEvent::Answered {
                command: header.command,
                result: Ok(()),
                reply: self.info(&header).success(),
            })),
            Ok(()) => Ok(Step::Event(self.accept(&header, self.rules.contexts()))),
        }
    }

    /// The next header, if all of it has arrived.
    #[inline]
    fn decode(&self, input: &mut &[u8]) -> Result<Option<Header>, Error> {
        let header = match self.rules.export.framing.compiled() {
            Framing::Extended => take_header(input, ExtendedRequest::parse).map(Header::from),
            _ => take_header(input, CompactRequest::parse).map(Header::from),
        };
        match header {
            Some(header) => Ok(Some(header)),
            None if input.is_empty() => Ok(None),
            None => self.check_magic(input).map(|()| None),
        }
    }

    /// The input is not a whole header: more is to come, or it is no request.
    /// The other framing's magic number is named as such.
    #[inline(never)]
    fn check_magic(&self, input: &[u8]) -> Result<(), Error> {
        let negotiated = self.rules.export.framing;
        let (own, other, message) = match negotiated {
            Framing::Extended => (EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, "extended request"),
            _ => (REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC, "compact request"),
        };
        match find_magic(input, &[own, other], message)? {
            Some(magic) if magic == other => Err(Violation::OtherFraming { negotiated }.into()),
            _ => Ok(()),
        }
    }

    /// Block status for some of the contexts: header and payload are consumed
    /// together.
    fn filtered_status<'i>(
        &mut self,
        mut header: Header,
        mut rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> ServerStep<'i> {
        let length = clip(header.payload);
        let Some(payload) = take_slice(&mut rest, length) else {
            self.want = ExtendedRequest::SIZE.saturating_add(length);
            return Step::read(self.want.saturating_sub(input.len()));
        };
        *input = rest;
        self.expect_header();
        let checked = match BlockStatusPayload::decode(payload) {
            Ok(payload) => {
                header.length = payload.effect_length;
                let asked = self.rules.asked(&payload);
                asked.and_then(|asked| self.rules.check_range(&header).map(|()| asked))
            }
            Err(_) => Err(Fault::STATUS_PAYLOAD),
        };
        match checked {
            Err(fault) => self.discard(header, fault, 0, input),
            Ok(asked) => Step::Event(self.accept(&header, asked)),
        }
    }

    /// A request that may be done.
    #[inline(never)]
    fn accept(&mut self, header: &Header, asked: ContextSet) -> TransmissionEvent {
        let info = self.info(header);
        let request = match header.command {
            Command::READ => Request::Read(ReadRequest { info }),
            Command::WRITE => return self.write_payload(info),
            Command::FLUSH => Request::Flush(FlushRequest { info }),
            Command::TRIM => Request::Trim(TrimRequest { info }),
            Command::CACHE => Request::Cache(CacheRequest { info }),
            Command::WRITE_ZEROES => Request::WriteZeroes(WriteZeroesRequest { info }),
            Command::RESIZE if features::RESIZE => Request::Resize(ResizeRequest { info }),
            _ => self.block_status(info, asked),
        };
        TransmissionEvent::Request(request)
    }

    #[inline(never)]
    fn write_payload(&mut self, info: RequestInfo) -> TransmissionEvent {
        let RequestInfo {
            cookie,
            offset,
            length,
            ..
        } = info;
        self.state = State::Payload {
            info,
            left: length,
            offset,
        };
        // It was checked against the maximum payload.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        TransmissionEvent::WritePayload {
            cookie,
            offset,
            length,
        }
    }

    fn block_status(&self, info: RequestInfo, missing: ContextSet) -> Request {
        let contexts = self.rules.export.contexts.iter();
        let wide = contexts
            .filter(|context| context.width == StatusWidth::Wide)
            .fold(ContextSet::NONE, |set, context| set.with(context.id));
        match info.framing.compiled() {
            Framing::Extended => Request::BlockStatus64(BlockStatus64Request {
                info,
                missing,
                wide,
            }),
            _ => Request::BlockStatus32(BlockStatus32Request {
                info,
                missing,
                wide,
            }),
        }
    }

    #[inline]
    fn info(&self, header: &Header) -> RequestInfo {
        RequestInfo {
            framing: self.rules.export.framing,
            flags: header.flags,
            minimum: self.rules.sizes.minimum,
            maximum: self.rules.sizes.maximum,
            cookie: header.cookie,
            offset: header.offset,
            length: header.length,
        }
    }
}

/// The size of a request's header.
pub(super) const fn header_size(framing: Framing) -> usize {
    match framing.compiled() {
        Framing::Extended => ExtendedRequest::SIZE,
        Framing::Simple | Framing::Structured => CompactRequest::SIZE,
    }
}

/// Takes as much as the input holds, at most `most` bytes.
#[inline]
fn take_up_to<'i>(input: &mut &'i [u8], most: u64) -> &'i [u8] {
    let n = clip(most).min(input.len());
    take_slice(input, n).unwrap_or_default()
}
