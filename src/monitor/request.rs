//! Requests, each checked as the client checks it before it sends it.

use super::slots::InFlight;
use super::{Fault, Message, Monitor, Order, Side, Slot, Step, read};
use crate::client::{Request, Slot as InClient};
use crate::error::{Misuse, Violation};
use crate::negotiated::Framing;
use crate::wire::DecodeError;
use crate::wire::bytes::{clip, find_magic, take_slice};
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::Command;
use crate::wire::request::{
    BlockStatusPayload, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, REQUEST_MAGIC,
};

/// The longest block status payload that can be valid, in bytes.
const STATUS_PAYLOAD: u64 = 8 + 4 * 32;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Monitor<S> {
    pub(super) fn request<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        if self.disconnected {
            return self.lose(Side::Client, Fault::AfterEnd);
        }
        let mut rest = *input;
        let (extended, header) = match decode_request(&mut rest) {
            Err(error) => return self.lose(Side::Client, Fault::Magic(error)),
            Ok(Decoded::Short(size)) => return read(size.saturating_sub(input.len())),
            Ok(Decoded::Whole { extended, header }) => (extended, header),
        };
        let ExtendedRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        } = header;
        let disc = command == Command::DISC;
        let repeated = !disc && self.slots.find(cookie).is_some();
        if repeated && self.order == Order::Unknown && !self.server.ended {
            return Step::Wait;
        }
        if !disc && !self.slots.has_room() {
            return Step::Full;
        }
        let mut payload = match command {
            Command::WRITE => length,
            Command::DISC => 0,
            _ if extended => header.payload_length(),
            _ => 0,
        };
        let mut status = None;
        if command == Command::BLOCK_STATUS && (1..=STATUS_PAYLOAD).contains(&payload) {
            let Some(bytes) = take_slice(&mut rest, clip(payload)) else {
                return read(clip(payload).saturating_sub(rest.len()));
            };
            status = Some(BlockStatusPayload::decode(bytes));
            payload = 0;
        }
        *input = rest;
        self.client.payload = payload;
        if core::mem::take(&mut self.client.early) {
            self.find(Side::Client, Fault::Early);
        }
        let negotiated = self.agreed.framing;
        if extended != (negotiated == Framing::Extended) {
            let other = Violation::OtherFraming { negotiated };
            self.find(Side::Client, other.into());
        }
        if disc {
            self.disconnected = true;
            if offset != 0 || length != 0 {
                self.find(Side::Client, Violation::NoRange(command).into());
            }
        } else {
            if repeated {
                self.find(Side::Client, Fault::CookieInFlight(cookie));
            }
            self.requested(extended, &header, status);
        }
        Step::Message(Message::Request {
            extended,
            flags,
            command,
            cookie,
            offset,
            length,
            payload,
            contexts: status.and_then(Result::ok),
        })
    }

    /// Checks a request, and puts it in flight.
    fn requested(
        &mut self,
        extended: bool,
        header: &ExtendedRequest,
        status: Option<Result<BlockStatusPayload<'_>, DecodeError>>,
    ) {
        let ExtendedRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        } = *header;
        let with = extended && flags.contains(CommandFlags::PAYLOAD_LEN);
        let mut request = Request {
            command,
            flags: if extended {
                flags.difference(CommandFlags::PAYLOAD_LEN)
            } else {
                flags
            },
            offset,
            length,
        };
        let mut asked = match command {
            Command::BLOCK_STATUS => self.agreed.contexts.mask(),
            _ => 0,
        };
        let mut fault = match command {
            Command::WRITE if extended && !with => Some(Fault::NoPayloadLen),
            Command::BLOCK_STATUS if with => None,
            Command::WRITE => None,
            _ if with => {
                // The field is not the length of the effect.
                request.length = 0;
                Some(Fault::PayloadLen(command))
            }
            _ => None,
        };
        let mut misuse = None;
        // What it asks for is not known, nor what its reply must have.
        let mut unclear = false;
        if command == Command::BLOCK_STATUS && with {
            match status {
                Some(Ok(payload)) => {
                    request.length = payload.effect_length;
                    (asked, misuse) = self.filter(&payload);
                }
                // It may name more contexts than are known.
                None if self.unknown_contexts && BlockStatusPayload::count(length).is_ok() => {
                    unclear = true;
                }
                _ => fault = Some(Fault::StatusPayload(length)),
            }
        }
        if let Some(fault) = fault {
            self.find(Side::Client, fault);
        }
        unclear |= matches!(fault, Some(Fault::PayloadLen(_) | Fault::StatusPayload(_)));
        if !unclear {
            misuse = misuse.or_else(|| self.misuse(&request));
        }
        if let Some(misuse) = misuse {
            self.find(Side::Client, Fault::Request { command, misuse });
        }
        self.slots.insert(InFlight {
            cookie,
            command: InClient::new(&request, asked),
            faulty: unclear,
        });
    }

    /// The contexts that a block status payload names, one bit for each.
    fn filter(&self, payload: &BlockStatusPayload<'_>) -> (u32, Option<Misuse>) {
        let (mut asked, mut misuse) = (0, None);
        for id in payload.contexts.iter() {
            match self.agreed.contexts.bit(id) {
                Some((bit, _)) if asked & bit == 0 => asked |= bit,
                None if self.unknown_contexts => {}
                _ => misuse = Some(Misuse::Context(id)),
            }
        }
        let supported = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        if !self.agreed.flags.contains(supported) {
            misuse = Some(Misuse::Flag);
        } else if payload.contexts.is_empty() {
            misuse = Some(Misuse::NoContext);
        }
        (asked, misuse)
    }

    /// Why a client must not send a request.
    fn misuse(&mut self, request: &Request) -> Option<Misuse> {
        let misuse = self.agreed.check(request).err()?;
        let allowed = match misuse {
            // A reply in chunks can have any length.
            Misuse::TooLarge { .. } => {
                request.command == Command::READ && self.agreed.framing != Framing::Simple
            }
            Misuse::NoContext => self.unknown_contexts,
            // The size changes when the server does it.
            Misuse::OutOfBounds { .. } => self.slots.any(Command::RESIZE),
            _ => false,
        };
        (!allowed).then_some(misuse)
    }
}

/// A request's header, or how long it is.
enum Decoded {
    Short(usize),
    Whole {
        extended: bool,
        header: ExtendedRequest,
    },
}

/// Decodes a request of either framing, whatever was agreed on.
fn decode_request(input: &mut &[u8]) -> Result<Decoded, DecodeError> {
    let magic = find_magic(input, &[REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC], "request")?;
    let extended = magic == Some(EXTENDED_REQUEST_MAGIC);
    let (size, header) = if extended {
        (ExtendedRequest::SIZE, ExtendedRequest::decode(input)?)
    } else if magic.is_some() {
        let header = CompactRequest::decode(input)?.map(|header| ExtendedRequest {
            flags: header.flags,
            command: header.command,
            cookie: header.cookie,
            offset: header.offset,
            length: header.length.into(),
        });
        (CompactRequest::SIZE, header)
    } else {
        (CompactRequest::SIZE, None)
    };
    Ok(match header {
        Some(header) => Decoded::Whole { extended, header },
        None => Decoded::Short(size),
    })
}
