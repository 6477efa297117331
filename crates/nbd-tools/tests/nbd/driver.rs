//! A minimal client: one command at a time, and exact reads.

use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_codec::client::{
    Config, ConnectEvent, Connector, Request, Slot, Transmission, TransmissionEvent,
};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Content, Framing, Limits, Misuse, Negotiated, Step};
use nbd_test_support::peer::Peer;

pub struct Client {
    stream: UnixStream,
    machine: Transmission<[Slot; 4]>,
    inbox: Inbox<Vec<u8>>,
}

impl Client {
    pub fn open(peer: &Peer, export: &str, framing: Framing) -> Self {
        Self::with(peer, Config::new(export).framing(framing))
    }

    pub fn with(peer: &Peer, config: Config<'_>) -> Self {
        let mut stream = UnixStream::connect(peer.socket()).expect("a connection");
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).expect("a time limit");
        let mut machine = Connector::new(config).expect("a configuration");
        let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
        loop {
            match inbox.receive(&mut machine).expect("a handshake") {
                Step::Event(ConnectEvent::Ready) => break,
                Step::Event(ConnectEvent::Failed { reason, .. }) => panic!("{reason}"),
                Step::Event(_) => {}
                Step::Transmit => {
                    let mut outgoing = Vec::new();
                    machine.transmit(&mut outgoing).expect("room");
                    stream.write_all(&outgoing).expect("sent");
                }
                Step::Read(n) => read_exactly(&mut stream, &mut inbox, n),
                other => panic!("{other:?}"),
            }
        }
        let negotiated = machine.into_negotiated().expect("ready");
        Self {
            stream,
            machine: Transmission::new(negotiated, [Slot::EMPTY; 4], Limits::DEFAULT),
            inbox,
        }
    }

    /// Sends invalid requests, too.
    pub fn lenient(mut self) -> Self {
        self.machine = self.machine.lenient();
        self
    }

    pub fn negotiated(&self) -> &Negotiated {
        self.machine.negotiated()
    }

    /// Sends one command; returns the data of a read, or the error of the server.
    pub fn command(
        &mut self,
        request: Request,
        payload: &[u8],
    ) -> Result<Result<Vec<u8>, ErrorValue>, Misuse> {
        let header = self.machine.submit(request)?;
        assert_eq!(header.payload_length() as usize, payload.len());
        self.stream.write_all(header.as_bytes()).expect("sent");
        self.stream.write_all(payload).expect("sent");

        let mut data = vec![0xee; request.length as usize];
        loop {
            match self.inbox.receive(&mut self.machine).expect("a reply") {
                Step::Content(Content::Data { .. }) => panic!("a payload was read too early"),
                Step::Content(hole) => assert!(hole.copy_to(request.offset, &mut data)),
                Step::Event(TransmissionEvent::Done { cookie, result }) => {
                    assert_eq!(cookie, header.cookie());
                    assert!(self.inbox.held().is_empty(), "something was read too early");
                    return Ok(result.map(|()| data));
                }
                Step::Event(_) => {}
                Step::Read(n) => read_exactly(&mut self.stream, &mut self.inbox, n),
                Step::ReadPayload { offset, length, .. } => {
                    let start = (offset - request.offset) as usize;
                    let place = &mut data[start..][..length as usize];
                    self.stream.read_exact(place).expect("payload");
                    self.machine.advance(length).expect("payload was due");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// As [`command`](Self::command), for a command that must succeed.
    #[track_caller]
    pub fn done(&mut self, request: Request, payload: &[u8]) -> Vec<u8> {
        let result = self.command(request, payload).expect("a possible command");
        result.unwrap_or_else(|error| panic!("{request:?}: {error}"))
    }

    pub fn disconnect(mut self) {
        let header = self.machine.disconnect().expect("a session");
        self.stream.write_all(header.as_bytes()).expect("sent");
        // The server sends nothing more.
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("the end");
        assert!(rest.is_empty(), "{rest:?}");
        self.machine.end_of_input().expect("a good end");
    }
}

/// Reads the `n` bytes that the state machine asks for, and no more.
fn read_exactly(stream: &mut UnixStream, inbox: &mut Inbox<Vec<u8>>, n: NonZeroUsize) {
    let space = inbox.space_for(n);
    assert_eq!(space.len(), n.get(), "the message fits the inbox");
    stream.read_exact(space).expect("more");
    inbox.filled(n.get()).expect("there was space");
}
