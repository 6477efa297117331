//! The client role against the server role, in memory: random legal commands,
//! any number in flight, answered in any order, over a link that splits the
//! bytes anywhere. A model disk determines every byte and every extent.

// The link is a `Vec`, which is a sink only with the feature `alloc`.
#![cfg(feature = "alloc")]

use std::collections::{BTreeMap, HashMap};

use nbd_codec::client::{self, Slot};
use nbd_codec::server::{self, ReadRequest, Request, narrow};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{
    Content, Framing, Limits, Misuse, Negotiated, Receive, SelectedContext, StatusWidth, Step,
};
use proptest::prelude::*;

const BLOCK: u64 = 512;
const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCK * BLOCKS;
const SLOTS: usize = 8;

const ALLOCATION: ContextId = ContextId(0);
/// A 64-bit context: the upper half of its flags is the length of the extent.
const TAGGED: ContextId = ContextId(1);

/// What happens next.
#[derive(Debug, Clone)]
enum Action {
    /// The client sends a command for a range of blocks; `fill` is the byte to
    /// write.
    Command {
        command: Command,
        from: u64,
        blocks: u64,
        fill: u8,
        flag: bool,
    },
    /// The server answers one of its pending requests.
    Answer(usize),
    /// `n` bytes arrive at the server, or at the client.
    Up(usize),
    Down(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let command = prop_oneof![
        Just(Command::READ),
        Just(Command::WRITE),
        Just(Command::TRIM),
        Just(Command::WRITE_ZEROES),
        Just(Command::BLOCK_STATUS),
        Just(Command::CACHE),
        Just(Command::FLUSH),
    ];
    prop_oneof![
        (command, 0..BLOCKS, 1..BLOCKS, 1u8.., any::<bool>()).prop_map(
            |(command, from, blocks, fill, flag)| Action::Command {
                command,
                from,
                blocks: blocks.min(BLOCKS - from),
                fill,
                flag,
            }
        ),
        (0..SLOTS).prop_map(Action::Answer),
        (1usize..5000).prop_map(Action::Up),
        (1usize..5000).prop_map(Action::Down),
        (1usize..40).prop_map(Action::Up),
        (1usize..40).prop_map(Action::Down),
    ]
}

/// The server's disk: blocks that were written; the others are holes.
#[derive(Debug, Default, Clone, PartialEq)]
struct Disk(BTreeMap<u64, [u8; BLOCK as usize]>);

impl Disk {
    fn write(&mut self, offset: u64, data: &[u8]) {
        for (block, data) in (offset / BLOCK..).zip(data.chunks(BLOCK as usize)) {
            self.0.insert(block, data.try_into().expect("whole blocks"));
        }
    }

    fn free(&mut self, offset: u64, length: u64) {
        let blocks = offset / BLOCK..(offset + length) / BLOCK;
        self.0.retain(|block, _| !blocks.contains(block));
    }

    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let blocks = offset / BLOCK..(offset + length) / BLOCK;
        let block = |block| self.0.get(&block).copied().unwrap_or([0; BLOCK as usize]);
        blocks.flat_map(block).collect()
    }

    /// The extents from an offset to the end of the disk.
    fn map(&self, offset: u64, context: ContextId) -> Vec<Extent64> {
        let mut extents: Vec<Extent64> = Vec::new();
        for block in offset / BLOCK..BLOCKS {
            let flags = if self.0.contains_key(&block) { 0 } else { 3 };
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.length += BLOCK,
                _ => extents.push(Extent64 {
                    length: BLOCK,
                    flags,
                }),
            }
        }
        if context == TAGGED {
            for extent in &mut extents {
                extent.flags |= extent.length << 32;
            }
        }
        extents
    }
}

/// The result that a command must have, according to the model at the time of
/// the answer.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Nothing,
    Data(Vec<u8>),
    /// Of each context, all extents that the server may send.
    Map(Vec<(ContextId, Vec<Extent64>)>),
    Fails(ErrorValue),
}

/// What the client has received for a command.
#[derive(Debug, Default)]
struct Seen {
    data: Vec<u8>,
    covered: u64,
    extents: BTreeMap<u32, Vec<Extent64>>,
}

struct World {
    framing: Framing,
    client: client::Transmission<[Slot; SLOTS]>,
    server: server::Transmission,
    disk: Disk,
    /// The same disk as a flat array.
    model: Vec<u8>,
    up: Vec<u8>,
    up_held: Vec<u8>,
    down: Vec<u8>,
    down_held: Vec<u8>,
    /// Offset and payload of the write being received.
    incoming: (u64, Vec<u8>),
    waiting: Vec<(Request, Vec<u8>)>,
    asked: HashMap<Cookie, client::Request>,
    expected: HashMap<Cookie, Expected>,
    seen: HashMap<Cookie, Seen>,
    completed: usize,
}

impl World {
    fn new(framing: Framing) -> Self {
        let mut flags = TransmissionFlags::KNOWN
            - (TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_RESIZE);
        if framing != Framing::Extended {
            flags = flags - TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        }
        if framing == Framing::Simple {
            flags = flags - TransmissionFlags::SEND_DF;
        }
        let mut negotiated = Negotiated::new(framing, SIZE, flags);
        negotiated.block_sizes = Some(BlockSizes {
            minimum: BLOCK as u32,
            preferred: 4096,
            maximum: 16 * 1024,
        });
        let contexts = [
            (ALLOCATION, StatusWidth::Narrow),
            (TAGGED, StatusWidth::Wide),
        ];
        let count = match framing {
            Framing::Simple => 0,
            Framing::Structured => 1,
            Framing::Extended => 2,
        };
        for (id, width) in contexts.into_iter().take(count) {
            let context = SelectedContext { id, width };
            negotiated.contexts.push(context).expect("room");
        }
        Self {
            framing,
            client: client::Transmission::new(negotiated, [Slot::EMPTY; SLOTS], Limits::DEFAULT),
            server: server::Transmission::new(negotiated, Limits::DEFAULT).expect("a server"),
            disk: Disk::default(),
            model: vec![0; SIZE as usize],
            up: Vec::new(),
            up_held: Vec::new(),
            down: Vec::new(),
            down_held: Vec::new(),
            incoming: (0, Vec::new()),
            waiting: Vec::new(),
            asked: HashMap::new(),
            expected: HashMap::new(),
            seen: HashMap::new(),
            completed: 0,
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Command {
                command,
                from,
                blocks,
                fill,
                flag,
            } => {
                self.submit(command, from * BLOCK, blocks * BLOCK, fill, flag);
            }
            Action::Answer(n) => {
                if n < self.waiting.len() {
                    self.answer(n);
                }
            }
            Action::Up(n) => {
                let n = n.min(self.up.len());
                self.up_held.extend(self.up.drain(..n));
                self.serve();
            }
            Action::Down(n) => {
                let n = n.min(self.down.len());
                self.down_held.extend(self.down.drain(..n));
                self.receive_replies();
            }
        }
    }

    fn submit(&mut self, command: Command, offset: u64, length: u64, fill: u8, flag: bool) {
        let request = match command {
            Command::FLUSH => client::Request::flush(),
            _ => client::Request {
                command,
                flags: CommandFlags::NONE,
                offset,
                length,
            },
        };
        let extra = match command {
            Command::READ if self.framing > Framing::Simple => CommandFlags::DF,
            Command::BLOCK_STATUS => CommandFlags::REQ_ONE,
            Command::WRITE_ZEROES => CommandFlags::FAST_ZERO,
            _ => CommandFlags::FUA,
        };
        let request = if flag {
            request.with_flags(extra)
        } else {
            request
        };
        // Reads and writes are limited to the maximum payload.
        let request = self.client.negotiated().split(request).next();
        let request = request.expect("at least one piece");
        let check = self.client.negotiated().check(&request);
        let before = self.client.in_flight();
        let header = match self.client.submit(request) {
            Ok(header) => header,
            Err(Misuse::Full) => return assert_eq!(before, SLOTS),
            Err(misuse @ Misuse::NoContext) => {
                assert_eq!((check, self.framing), (Err(misuse), Framing::Simple));
                return;
            }
            Err(misuse) => panic!("{request:?}: {misuse}"),
        };
        assert_eq!(check, Ok(()));
        assert!(before < SLOTS);
        self.up.extend(header.as_bytes());
        let payload = vec![fill; header.payload_length() as usize];
        self.up.extend(payload);
        assert!(
            self.asked.insert(header.cookie(), request).is_none(),
            "a cookie twice"
        );
        self.seen.insert(header.cookie(), Seen::default());
    }

    /// The server receives what has arrived.
    fn serve(&mut self) {
        use server::TransmissionEvent as E;
        let (incoming, waiting) = (&mut self.incoming, &mut self.waiting);
        steps(&mut self.server, &mut self.up_held, |step| match step {
            Step::Event(E::WritePayload { offset, length, .. }) => {
                *incoming = (offset, vec![0xee; length as usize]);
            }
            Step::Content(content) => {
                assert!(content.copy_to(incoming.0, &mut incoming.1), "{content:?}");
            }
            Step::Event(E::Request(request)) => {
                let payload = match request {
                    Request::Write(_) => std::mem::take(&mut incoming.1),
                    _ => Vec::new(),
                };
                waiting.push((request, payload));
            }
            other => panic!("a legal client, and {other:?}"),
        });
    }

    fn answer(&mut self, n: usize) {
        let (request, payload) = self.waiting.remove(n);
        let cookie = request.cookie();
        let range = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
        let mut expected = Expected::Nothing;
        let reply = match request {
            Request::Read(read) => {
                let (offset, length) = (read.offset(), u64::from(read.length()));
                expected = Expected::Data(self.model[range(offset, length)].to_vec());
                read_reply(read, &self.disk, &mut self.down);
                None
            }
            Request::Write(it) => {
                self.disk.write(it.offset(), &payload);
                self.model[range(it.offset(), it.length())].copy_from_slice(&payload);
                Some(it.succeed())
            }
            Request::Trim(it) => {
                self.disk.free(it.offset(), it.length());
                self.model[range(it.offset(), it.length())].fill(0);
                Some(it.succeed())
            }
            Request::WriteZeroes(it) if it.fast_zero() => {
                expected = Expected::Fails(ErrorValue::ENOTSUP);
                Some(it.fail(ErrorValue::ENOTSUP, "it would not be faster"))
            }
            Request::WriteZeroes(it) => {
                self.disk.free(it.offset(), it.length());
                self.model[range(it.offset(), it.length())].fill(0);
                Some(it.succeed())
            }
            Request::Cache(it) => {
                expected = Expected::Fails(ErrorValue::EIO);
                let offset = it.offset();
                let reply = it.fail_at(ErrorValue::EIO, offset, "there is no cache");
                Some(reply.expect("a place within the request"))
            }
            Request::Flush(it) => Some(it.succeed()),
            Request::BlockStatus32(mut it) => {
                expected = self.expected_map(it.offset(), &[ALLOCATION]);
                loop {
                    let id = it.contexts().next().expect("a context is left");
                    let map = self.disk.map(it.offset(), id).into_iter();
                    let map =
                        map.flat_map(|extent| narrow::split(extent).expect("32 bits of status"));
                    match it
                        .reply_truncated(id, map, &mut self.down)
                        .expect("an answer")
                    {
                        Some(more) => it = more,
                        None => break None,
                    }
                }
            }
            Request::BlockStatus64(mut it) => {
                expected = self.expected_map(it.offset(), &[ALLOCATION, TAGGED]);
                loop {
                    let id = it.contexts().next().expect("a context is left");
                    let map = self.disk.map(it.offset(), id).into_iter();
                    match it
                        .reply_truncated(id, map, &mut self.down)
                        .expect("an answer")
                    {
                        Some(more) => it = more,
                        None => break None,
                    }
                }
            }
            other => panic!("not sent: {other:?}"),
        };
        if let Some(reply) = reply {
            self.down.extend(reply.parts().concat());
        }
        self.expected.insert(cookie, expected);
    }

    fn expected_map(&self, offset: u64, contexts: &[ContextId]) -> Expected {
        let map = |id: &ContextId| (*id, self.disk.map(offset, *id));
        Expected::Map(contexts.iter().map(map).collect())
    }

    /// The client receives what has arrived.
    fn receive_replies(&mut self) {
        use client::TransmissionEvent as E;
        let (asked, seen, framing) = (&self.asked, &mut self.seen, self.framing);
        let mut done = Vec::new();
        steps(&mut self.client, &mut self.down_held, |step| match step {
            Step::Content(content) => {
                let seen = seen.get_mut(&content.cookie()).expect("in flight");
                let request = asked[&content.cookie()];
                seen.data.resize(request.length as usize, 0xee);
                assert!(
                    content.copy_to(request.offset, &mut seen.data),
                    "{content:?}"
                );
                seen.covered += content.length();
            }
            Step::Event(E::Extents32 {
                cookie,
                context,
                extents,
                ..
            }) => {
                assert_eq!(framing, Framing::Structured);
                let seen = seen.get_mut(&cookie).expect("in flight");
                let extents = extents.map(Extent64::from);
                seen.extents.entry(context.0).or_default().extend(extents);
            }
            Step::Event(E::Extents64 {
                cookie,
                context,
                extents,
                ..
            }) => {
                assert_eq!(framing, Framing::Extended);
                let seen = seen.get_mut(&cookie).expect("in flight");
                seen.extents.entry(context.0).or_default().extend(extents);
            }
            Step::Event(E::Error { .. }) => {}
            Step::Event(E::Done { cookie, result }) => done.push((cookie, result)),
            other => panic!("a legal server, and {other:?}"),
        });
        for (cookie, result) in done {
            self.done(cookie, result);
        }
    }

    /// Compares the result of a command with the expected one.
    fn done(&mut self, cookie: Cookie, result: Result<(), ErrorValue>) {
        let request = self.asked.remove(&cookie).expect("completed once");
        let seen = self.seen.remove(&cookie).expect("in flight");
        self.completed += 1;
        match self.expected.remove(&cookie).expect("answered") {
            Expected::Fails(error) => assert_eq!(result, Err(error), "{request:?}"),
            Expected::Nothing => assert_eq!(result, Ok(()), "{request:?}"),
            Expected::Data(data) => {
                assert_eq!(result, Ok(()), "{request:?}");
                assert_eq!(seen.covered, request.length, "{request:?}");
                assert!(seen.data == data, "{request:?}: wrong data");
            }
            Expected::Map(maps) => {
                assert_eq!(result, Ok(()), "{request:?}");
                assert_eq!(seen.extents.len(), maps.len(), "{request:?}: contexts");
                for (id, expected) in maps {
                    check_map(&request, &seen.extents[&id.0], &expected);
                }
            }
        }
    }

    /// Delivers everything in transit, and answers all pending requests.
    fn settle(&mut self) {
        while !self.asked.is_empty() {
            self.act(&Action::Up(usize::MAX));
            while !self.waiting.is_empty() {
                self.answer(0);
            }
            self.act(&Action::Down(usize::MAX));
        }
        assert_eq!(self.client.in_flight(), 0);
        assert!(self.disk.read(0, SIZE) == self.model, "the disks differ");
        assert!(self.expected.is_empty() && self.seen.is_empty());
        assert!(self.up_held.is_empty() && self.down_held.is_empty());
    }
}

/// The extents must be those of the model: as many as cover the request. The
/// last one is whole or, with REQ_ONE, truncated to the request.
fn check_map(request: &client::Request, seen: &[Extent64], expected: &[Extent64]) {
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    if one {
        assert_eq!(seen.len(), 1, "{request:?}");
        assert_eq!(
            seen[0].length,
            expected[0].length.min(request.length),
            "{request:?}"
        );
        assert_eq!(seen[0].flags, expected[0].flags, "{request:?}");
        return;
    }
    let total: u64 = seen.iter().map(|extent| extent.length).sum();
    assert!(total >= request.length, "{request:?}: {total} bytes mapped");
    for (seen, expected) in seen.iter().zip(expected) {
        assert_eq!(seen.flags, expected.flags, "{request:?}");
    }
    let (last, before) = seen.split_last().expect("an extent");
    assert_eq!(before, &expected[..before.len()], "{request:?}");
    assert!(last.length <= expected[before.len()].length, "{request:?}");
}

/// Replies in chunks if the framing has them, the last first, zeroes as holes.
fn read_reply(read: ReadRequest, disk: &Disk, out: &mut Vec<u8>) {
    let (from, length) = (read.offset(), u64::from(read.length()));
    let piece = if read.dont_fragment() {
        length
    } else {
        3 * BLOCK
    };
    let mut chunks = match read.into_chunks() {
        Ok(chunks) => chunks,
        Err(read) => {
            out.extend(read.data().as_bytes());
            return out.extend(disk.read(from, length));
        }
    };
    let starts: Vec<u64> = (from..from + length).step_by(piece as usize).collect();
    for at in starts.into_iter().rev() {
        let n = piece.min(from + length - at);
        let data = disk.read(at, n);
        if data.iter().all(|byte| *byte == 0) {
            let hole = chunks.hole(at, n as u32).expect("within the read");
            out.extend(hole.parts().concat());
        } else {
            let header = chunks.data(at, n as u32).expect("within the read");
            out.extend(header.as_bytes());
            out.extend(data);
        }
    }
    let last = chunks.finish().expect("all of it");
    out.extend(last.parts().concat());
}

/// Takes steps until the state machine needs more bytes. Every other payload
/// whose offset is a multiple of 1024 goes past the state machine.
fn steps<M: Receive>(
    machine: &mut M,
    held: &mut Vec<u8>,
    mut act: impl FnMut(Step<M::Event<'_>, &[u8]>),
) {
    loop {
        // Without input, the state machine says whether payload comes next.
        match machine.receive(&mut &[][..]).expect("a legal peer") {
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } if offset % 1024 == 0 && !held.is_empty() => {
                let n = (length as usize).min(held.len());
                let data: Vec<u8> = held.drain(..n).collect();
                act(Step::Content(Content::Data {
                    cookie,
                    offset,
                    data: &data,
                }));
                machine.advance(n as u64).expect("its payload");
                continue;
            }
            Step::Read(_) | Step::ReadPayload { .. } => {}
            step => {
                act(step);
                continue;
            }
        }
        let mut input = &held[..];
        let missing = match machine.receive(&mut input).expect("a legal peer") {
            Step::Read(n) => Some(n.get()),
            Step::ReadPayload { .. } => Some(0),
            step => {
                act(step);
                None
            }
        };
        let left = input.len();
        held.drain(..held.len() - left);
        match missing {
            // A payload follows: there is no more input.
            Some(0) => return assert_eq!(left, 0),
            Some(n) => return assert!(left + n <= Limits::DEFAULT.buffer()),
            None => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_match_the_model(
        framing in prop_oneof![
            Just(Framing::Simple),
            Just(Framing::Structured),
            Just(Framing::Extended),
        ],
        actions in prop::collection::vec(action(), 1..200),
    ) {
        let mut world = World::new(framing);
        for action in &actions {
            world.act(action);
        }
        world.settle();
    }
}

/// A tester's client makes them. A server has nothing to do for them, and an
/// answer for each.
#[test]
fn requests_of_zero_length_complete() {
    use client::TransmissionEvent as C;
    use server::TransmissionEvent as S;
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let World { client, server, .. } = World::new(framing);
        let (mut client, mut server) = (client.lenient(), server);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for request in [
            client::Request::read(BLOCK, 0),
            client::Request::write(SIZE, 0),
            client::Request::trim(0, 0),
            client::Request::cache(BLOCK, 0),
            client::Request::write_zeroes(SIZE, 0),
            client::Request::block_status(BLOCK, 0),
        ] {
            let header = client.submit(request).expect("a lenient client");
            assert_eq!(header.payload_length(), 0);
            up.extend(header.as_bytes());
            steps(&mut server, &mut up, |step| match step {
                Step::Event(S::Answered { reply, .. }) => drop(reply.encode(&mut down)),
                other => panic!("{framing} {request:?}: {other:?}"),
            });
            let mut results = Vec::new();
            steps(&mut client, &mut down, |step| match step {
                Step::Event(C::Done { result, .. }) => results.push(result),
                Step::Event(C::Error { .. }) => {}
                other => panic!("{framing} {request:?}: {other:?}"),
            });
            let expected = match request.command {
                // No extent has a length of zero.
                Command::BLOCK_STATUS => Err(ErrorValue::EINVAL),
                _ => Ok(()),
            };
            assert_eq!(results, [expected], "{framing} {request:?}");
        }
    }
}

/// The property above means something only if commands complete.
#[test]
fn commands_complete() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let mut world = World::new(framing);
        for round in 0..100u64 {
            for command in [
                Command::WRITE,
                Command::READ,
                Command::BLOCK_STATUS,
                Command::TRIM,
            ] {
                world.submit(command, round % BLOCKS * BLOCK, BLOCK, 1, round % 2 == 0);
            }
            world.settle();
        }
        let commands = if framing == Framing::Simple { 300 } else { 400 };
        assert_eq!(world.completed, commands);
    }
}
