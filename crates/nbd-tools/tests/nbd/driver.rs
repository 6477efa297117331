//! A minimal client: one command at a time, and exact reads.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Framing, Limits, Misuse, Need, Negotiated};
use nbd_test_support::peer::Peer;

pub struct Client {
    stream: UnixStream,
    machine: Transmission<[Slot; 4]>,
    /// What was read and not consumed.
    input: Vec<u8>,
}

impl Client {
    pub fn open(peer: &Peer, export: &str, framing: Framing) -> Self {
        let mut stream = UnixStream::connect(peer.socket()).expect("a connection");
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).expect("a time limit");
        let mut plan = Plan::new(export);
        plan.framing = framing;
        let mut machine = Connect::new(plan).expect("a plan");
        let mut input = Vec::new();
        loop {
            let mut rest = input.as_slice();
            let event = machine.receive(&mut rest).expect("a handshake");
            let left = rest.len();
            match event {
                Some(connect::Event::Ready) => break,
                Some(connect::Event::Failed { reason, .. }) => panic!("{reason}"),
                _ => {}
            }
            let again = event.is_some();
            input.drain(..input.len() - left);
            let mut outgoing = Vec::new();
            while machine.transmit(&mut outgoing).expect("room") > 0 {}
            stream.write_all(&outgoing).expect("sent");
            if !again {
                read_more(&mut stream, &mut input, machine.need());
            }
        }
        let negotiated = machine.into_negotiated().expect("ready");
        Self {
            stream,
            machine: Transmission::new(negotiated, [Slot::EMPTY; 4], Limits::DEFAULT),
            input: Vec::new(),
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
        let place = |offset: u64| (offset - request.offset) as usize;
        loop {
            let mut rest = self.input.as_slice();
            let event = self.machine.receive(&mut rest).expect("a reply");
            let left = rest.len();
            match event {
                Some(Event::Data { .. }) => panic!("nothing of a payload was read too early"),
                Some(Event::Hole { offset, length, .. }) => {
                    data[place(offset)..][..length as usize].fill(0);
                }
                Some(Event::Done { cookie, result }) => {
                    assert_eq!(cookie, header.cookie());
                    assert_eq!(left, 0, "nothing was read too early");
                    self.input.clear();
                    return Ok(result.map(|()| data));
                }
                _ => {}
            }
            let again = event.is_some();
            self.input.drain(..self.input.len() - left);
            if again {
                continue;
            }
            match self.machine.need() {
                Need::Payload { offset, length, .. } => {
                    let place = &mut data[place(offset)..][..length as usize];
                    self.stream.read_exact(place).expect("payload");
                    self.machine.advance(length).expect("payload was due");
                }
                need => read_more(&mut self.stream, &mut self.input, need),
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

/// Reads exactly what is needed and no more.
fn read_more(stream: &mut UnixStream, input: &mut Vec<u8>, need: Need) {
    let Need::Header(n) = need else {
        panic!("the machine waits, and needs {need:?}");
    };
    let have = input.len();
    assert!(have < n, "needs {n} bytes and has {have}");
    input.resize(n, 0);
    stream.read_exact(&mut input[have..]).expect("more");
}
