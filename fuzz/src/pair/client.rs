//! The client of a script: the commands it sent, and the events it must receive.

use std::collections::BTreeMap;

use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::{Content, Error, Limits, Misuse, Negotiated, StatusWidth, Step};

use super::Expected;
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};

const SLOTS: usize = 6;

/// A command in flight.
pub(super) struct Sent {
    pub(super) request: Request,
    pub(super) payload: Vec<u8>,
    /// The contexts it asks for, and how far each has been described.
    status: BTreeMap<u32, Option<u64>>,
    received: u64,
}

pub(super) struct Client {
    pub(super) machine: Transmission<[Slot; SLOTS]>,
    pub(super) sent: BTreeMap<u64, Sent>,
    pub(super) expected: BTreeMap<u64, Expected>,
    /// It knows the server's block sizes.
    pub(super) strict: bool,
    /// The contexts that the server declared as wide.
    wide: Vec<u32>,
    disconnected: bool,
    done: usize,
    pub(super) incoming: Incoming,
    pub(super) error: Option<Error>,
}

impl Client {
    pub(super) fn new(negotiated: Negotiated, server: Negotiated, delivery: &Delivery) -> Self {
        let strict = negotiated.constraints() == server.constraints();
        let contexts = server.contexts.iter();
        let wide = contexts.filter(|context| context.width == StatusWidth::Wide);
        let wide = wide.map(|context| context.id.0).collect();
        Self {
            machine: Transmission::new(negotiated, [Slot::EMPTY; SLOTS], Limits::DEFAULT),
            sent: BTreeMap::new(),
            expected: BTreeMap::new(),
            strict,
            wide,
            disconnected: false,
            done: 0,
            incoming: Incoming::new(delivery, Limits::DEFAULT.buffer()),
            error: None,
        }
    }

    pub(super) fn submit(&mut self, request: Request, fill: u8, out: &mut Vec<u8>) {
        if request.command == Command::RESIZE && request.offset > 1 << 16 {
            // Larger than a disk in memory should be.
            return;
        }
        let contexts = self.machine.negotiated().contexts;
        let requested = contexts.iter().map(|context| context.id.0);
        let requested = requested.filter(|_| request.command == Command::BLOCK_STATUS);
        let requested: Vec<u32> = requested.collect();
        let Ok(header) = self.checked(|machine| machine.submit(request)) else {
            return;
        };
        let length = header.payload_length();
        // Each byte depends on its offset.
        let payload = (0..length).map(|n| fill.wrapping_add(n as u8));
        let payload: Vec<u8> = payload.collect();
        out.extend(header.as_bytes());
        out.extend(&payload);
        self.record_sent(header.cookie(), request, payload, &requested);
    }

    pub(super) fn status_of(
        &mut self,
        contexts: &[ContextId],
        offset: u64,
        length: u64,
        flags: CommandFlags,
        out: &mut Vec<u8>,
    ) {
        let request = Request::block_status(offset, length).with_flags(flags);
        let mut payload = Vec::new();
        let header = self.checked(|machine| {
            machine.block_status_of(contexts, offset, length, flags, &mut payload)
        });
        let Ok(header) = header else {
            return assert!(payload.is_empty(), "a failed call wrote");
        };
        assert_eq!(header.payload_length() as usize, payload.len());
        out.extend(header.as_bytes());
        out.extend(&payload);
        let requested: Vec<u32> = contexts.iter().map(|id| id.0).collect();
        self.record_sent(header.cookie(), request, Vec::new(), &requested);
    }

    fn checked<T>(
        &mut self,
        call: impl FnOnce(&mut Transmission<[Slot; SLOTS]>) -> Result<T, Misuse>,
    ) -> Result<T, Misuse> {
        let before = self.machine.in_flight();
        let result = call(&mut self.machine);
        match &result {
            Ok(_) => assert!(before < SLOTS && !self.disconnected),
            Err(misuse) => {
                assert_eq!(self.machine.in_flight(), before);
                assert!(*misuse != Misuse::Full || before == SLOTS);
            }
        }
        result
    }

    fn record_sent(
        &mut self,
        cookie: Cookie,
        request: Request,
        payload: Vec<u8>,
        requested: &[u32],
    ) {
        let sent = Sent {
            request,
            payload,
            status: requested.iter().map(|id| (*id, None)).collect(),
            received: 0,
        };
        let before = self.sent.insert(cookie.0, sent);
        assert!(before.is_none(), "a cookie twice");
    }

    pub(super) fn disconnect(&mut self, out: &mut Vec<u8>) {
        if let Ok(header) = self.machine.disconnect() {
            assert!(!self.disconnected, "twice");
            self.disconnected = true;
            out.extend(header.as_bytes());
        }
    }

    fn record(&mut self, event: TransmissionEvent) {
        match event {
            TransmissionEvent::Extents32 {
                cookie,
                context,
                offset,
                extents,
            } => {
                let extents = extents.map(|extent| (extent.length.into(), extent.flags.into()));
                self.record_status(cookie, context, offset, extents);
            }
            TransmissionEvent::Extents64 {
                cookie,
                context,
                offset,
                extents,
            } => {
                let extents = extents.map(|extent| (extent.length, extent.flags));
                self.record_status(cookie, context, offset, extents);
            }
            TransmissionEvent::Error { cookie, .. } => {
                let expected = self.expected.get(&cookie.0).expect("a reply of the server");
                assert!(expected.error.is_some(), "unexpected error");
            }
            TransmissionEvent::Done { cookie, result } => self.record_done(cookie, result),
            _ => panic!("unknown event"),
        }
    }

    /// Content equals the disk at the time the server read it.
    fn record_content(&mut self, content: Content<&[u8]>) {
        let (cookie, offset) = (content.cookie().0, content.offset());
        let expected = self.expected.get(&cookie).expect("a reply of the server");
        let sent = self.sent.get_mut(&cookie).expect("a command in flight");
        assert_eq!(sent.request.command, Command::READ);
        let (begin, end) = (
            sent.request.offset,
            sent.request.offset + sent.request.length,
        );
        let data = expected.then.read(offset, content.length());
        match content {
            Content::Data { data: received, .. } => assert_eq!(data, received, "wrong data"),
            Content::Hole { .. } => assert!(data.iter().all(|byte| *byte == 0), "a hole over data"),
        }
        assert!(
            offset >= begin && offset + content.length() <= end,
            "outside the request"
        );
        sent.received += content.length();
    }

    fn record_status(
        &mut self,
        cookie: Cookie,
        context: ContextId,
        offset: u64,
        extents: impl Iterator<Item = (u64, u64)>,
    ) {
        let expected = self.expected.get(&cookie.0).expect("a reply of the server");
        let sent = self.sent.get_mut(&cookie.0).expect("a command in flight");
        let wide = self.wide.contains(&context.0);
        let reached = sent
            .status
            .get_mut(&context.0)
            .expect("a requested context");
        assert_eq!(offset, reached.unwrap_or(sent.request.offset));
        let end = sent.request.offset + sent.request.length;
        let mut at = offset;
        for (length, flags) in extents {
            assert!(at < end, "an extent after the request");
            let statuses = expected.then.statuses(at, length, wide);
            assert!(
                statuses.into_iter().all(|status| status == flags),
                "wrong status"
            );
            at += length;
        }
        let one = sent.request.flags.contains(CommandFlags::REQ_ONE);
        assert!(
            !one || reached.is_none() && at <= end,
            "more than one extent"
        );
        *reached = Some(at);
    }

    fn record_done(&mut self, cookie: Cookie, result: Result<(), ErrorValue>) {
        let expected = self
            .expected
            .remove(&cookie.0)
            .expect("a reply of the server");
        let sent = self.sent.remove(&cookie.0).expect("a command in flight");
        let error = result.err().map(|error| error.0);
        assert_eq!(error, expected.error, "wrong result: {:?}", sent.request);
        if error.is_none() {
            let read = sent.request.command == Command::READ;
            assert!(
                !read || sent.received == sent.request.length,
                "incomplete payload"
            );
            assert!(sent.status.values().all(Option::is_some), "a context");
        }
        self.done += 1;
    }
}

impl Driver for Client {
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
            Step::Content(content) => self.record_content(content),
            Step::Event(event) => self.record(event),
            Step::Finished => assert!(self.disconnected && self.sent.is_empty()),
            Step::Read(_) | Step::ReadPayload { .. } => {}
            Step::Transmit | Step::StartTls => panic!("a step of the handshake"),
        }
        Ok(next)
    }

    fn read_directly(&mut self, cookie: Cookie, offset: u64, payload: &[u8]) {
        self.machine.advance(payload.len() as u64).expect("payload");
        let data = payload;
        self.record_content(Content::Data {
            cookie,
            offset,
            data,
        });
    }

    fn fail(&mut self, error: Error) {
        self.error = Some(error);
    }

    fn ended(&self) -> usize {
        self.done
    }
}
