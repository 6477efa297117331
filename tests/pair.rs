//! Our client against our server, in memory: random legal commands, any number
//! in flight, answered in any order, over a link that cuts the bytes anywhere.
//! A model disk says what every byte and every extent must be.

// The link is a `Vec`, which is a sink only with an allocator in the crate.
#![cfg(feature = "alloc")]

use std::collections::{BTreeMap, HashMap};

use nbd_codec::client::{self, Slot};
use nbd_codec::server::{self, Read, Request, narrow};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Context, Framing, Limits, Misuse, Need, Negotiated, Width};
use proptest::prelude::*;

const BLOCK: u64 = 512;
const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCK * BLOCKS;
const SLOTS: usize = 8;

const ALLOCATION: ContextId = ContextId(0);
/// Wide: the length of the extent in its upper half.
const TAGGED: ContextId = ContextId(1);

/// A step of the world.
#[derive(Debug, Clone)]
enum Step {
    /// The client sends a command; blocks from, blocks long, what to write.
    Command {
        command: Command,
        from: u64,
        blocks: u64,
        fill: u8,
        flag: bool,
    },
    /// The server answers one of the requests it has.
    Answer(usize),
    /// So many bytes arrive, at the server or at the client.
    Up(usize),
    Down(usize),
}

fn step() -> impl Strategy<Value = Step> {
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
            |(command, from, blocks, fill, flag)| Step::Command {
                command,
                from,
                blocks: blocks.min(BLOCKS - from),
                fill,
                flag,
            }
        ),
        (0..SLOTS).prop_map(Step::Answer),
        (1usize..5000).prop_map(Step::Up),
        (1usize..5000).prop_map(Step::Down),
        (1usize..40).prop_map(Step::Up),
        (1usize..40).prop_map(Step::Down),
    ]
}

/// The server's disk: blocks that were written, the rest holes.
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

    /// From an offset to the end, whole extents.
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

/// What a command must come to, as the model has it when it is answered.
#[derive(Debug, Clone, PartialEq)]
enum Due {
    Nothing,
    Data(Vec<u8>),
    /// From each context, as far as the server may go.
    Map(Vec<(ContextId, Vec<Extent64>)>),
    Fails(ErrorValue),
}

/// What the client has seen of a command.
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
    /// The same disk, obviously: a flat array and no extents.
    model: Vec<u8>,
    up: Vec<u8>,
    up_held: Vec<u8>,
    down: Vec<u8>,
    down_held: Vec<u8>,
    incoming: Vec<u8>,
    waiting: Vec<(Request, Vec<u8>)>,
    asked: HashMap<Cookie, client::Request>,
    due: HashMap<Cookie, Due>,
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
        let contexts = [(ALLOCATION, Width::Narrow), (TAGGED, Width::Wide)];
        let can_have = match framing {
            Framing::Simple => 0,
            Framing::Structured => 1,
            Framing::Extended => 2,
        };
        for (id, width) in contexts.into_iter().take(can_have) {
            let context = Context { id, width };
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
            incoming: Vec::new(),
            waiting: Vec::new(),
            asked: HashMap::new(),
            due: HashMap::new(),
            seen: HashMap::new(),
            completed: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Command {
                command,
                from,
                blocks,
                fill,
                flag,
            } => {
                self.submit(command, from * BLOCK, blocks * BLOCK, fill, flag);
            }
            Step::Answer(n) => {
                if n < self.waiting.len() {
                    self.answer(n);
                }
            }
            Step::Up(n) => {
                let n = n.min(self.up.len());
                self.up_held.extend(self.up.drain(..n));
                self.serve();
            }
            Step::Down(n) => {
                let n = n.min(self.down.len());
                self.down_held.extend(self.down.drain(..n));
                self.look();
            }
        }
    }

    fn submit(&mut self, command: Command, offset: u64, length: u64, fill: u8, flag: bool) {
        let length = match command {
            Command::READ | Command::WRITE => length.min(16 * 1024),
            _ => length,
        };
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
        let request = if flag { request.with(extra) } else { request };
        let before = self.client.in_flight();
        let head = match self.client.submit(request) {
            Ok(head) => head,
            Err(Misuse::Full) => return assert_eq!(before, SLOTS),
            Err(Misuse::NoContext) => return assert_eq!(self.framing, Framing::Simple),
            Err(misuse) => panic!("{request:?}: {misuse}"),
        };
        assert!(before < SLOTS);
        self.up.extend(head.as_bytes());
        let payload = vec![fill; head.payload_length() as usize];
        self.up.extend(payload);
        assert!(
            self.asked.insert(head.cookie(), request).is_none(),
            "a cookie twice"
        );
        self.seen.insert(head.cookie(), Seen::default());
    }

    /// The server takes what arrived; some payloads past the machine.
    fn serve(&mut self) {
        use server::Event as E;
        loop {
            let mut input = &self.up_held[..];
            let event = self.server.receive(&mut input).expect("a lawful client");
            let mut going = true;
            match event {
                Some(E::Payload { .. }) => self.incoming.clear(),
                Some(E::Data { data, .. }) => self.incoming.extend(data),
                Some(E::Request(request)) => {
                    let payload = match request {
                        Request::Write(_) => std::mem::take(&mut self.incoming),
                        _ => Vec::new(),
                    };
                    self.waiting.push((request, payload));
                }
                Some(other) => panic!("a lawful client got {other:?}"),
                None => going = false,
            }
            self.up_held = input.to_vec();
            // A payload that is here is read directly now and then.
            if let Need::Payload { offset, length, .. } = self.server.need()
                && offset % 1024 == 0
                && !self.up_held.is_empty()
            {
                let n = (length as usize).min(self.up_held.len());
                self.incoming.extend(self.up_held.drain(..n));
                self.server.advance(n as u64).expect("its payload");
                going = true;
            }
            if !going {
                return;
            }
        }
    }

    fn answer(&mut self, n: usize) {
        let (request, payload) = self.waiting.remove(n);
        let cookie = request.cookie();
        let range = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
        let mut due = Due::Nothing;
        let reply = match request {
            Request::Read(read) => {
                let (offset, length) = (read.offset(), u64::from(read.length()));
                due = Due::Data(self.model[range(offset, length)].to_vec());
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
            Request::WriteZeroes(it) if it.fast() => {
                due = Due::Fails(ErrorValue::ENOTSUP);
                Some(it.fail(ErrorValue::ENOTSUP, "it would not be faster"))
            }
            Request::WriteZeroes(it) => {
                self.disk.free(it.offset(), it.length());
                self.model[range(it.offset(), it.length())].fill(0);
                Some(it.succeed())
            }
            Request::Cache(it) => {
                due = Due::Fails(ErrorValue::EIO);
                let offset = it.offset();
                let reply = it.fail_at(ErrorValue::EIO, offset, "there is no cache");
                Some(reply.expect("a place within the request"))
            }
            Request::Flush(it) => Some(it.succeed()),
            Request::BlockStatus32(mut it) => {
                due = self.map_due(it.offset(), &[ALLOCATION]);
                loop {
                    let id = it.contexts().next().expect("a context is left");
                    let map = self.disk.map(it.offset(), id).into_iter();
                    let map =
                        map.flat_map(|extent| narrow::split(extent).expect("32 bits of status"));
                    match it.answer_from(id, map, &mut self.down).expect("an answer") {
                        Some(more) => it = more,
                        None => break None,
                    }
                }
            }
            Request::BlockStatus64(mut it) => {
                due = self.map_due(it.offset(), &[ALLOCATION, TAGGED]);
                loop {
                    let id = it.contexts().next().expect("a context is left");
                    let map = self.disk.map(it.offset(), id).into_iter();
                    match it.answer_from(id, map, &mut self.down).expect("an answer") {
                        Some(more) => it = more,
                        None => break None,
                    }
                }
            }
            other => panic!("nobody asked for {other:?}"),
        };
        if let Some(reply) = reply {
            self.down.extend(reply.parts().concat());
        }
        self.due.insert(cookie, due);
    }

    fn map_due(&self, offset: u64, contexts: &[ContextId]) -> Due {
        let map = |id: &ContextId| (*id, self.disk.map(offset, *id));
        Due::Map(contexts.iter().map(map).collect())
    }

    /// The client takes what arrived; some payloads past the machine.
    fn look(&mut self) {
        use client::Event as E;
        loop {
            let mut input = &self.down_held[..];
            let event = self.client.receive(&mut input).expect("a lawful server");
            let (mut going, mut done) = (true, None);
            match event {
                Some(E::Data {
                    cookie,
                    offset,
                    data,
                }) => {
                    put(
                        &self.asked,
                        &mut self.seen,
                        cookie,
                        offset,
                        data.len() as u64,
                        data,
                    );
                }
                Some(E::Hole {
                    cookie,
                    offset,
                    length,
                }) => {
                    put(
                        &self.asked,
                        &mut self.seen,
                        cookie,
                        offset,
                        length.into(),
                        &[],
                    );
                }
                Some(E::Extents32 {
                    cookie,
                    context,
                    extents,
                    ..
                }) => {
                    assert_eq!(self.framing, Framing::Structured);
                    let seen = self.seen.get_mut(&cookie).expect("in flight");
                    let extents = extents.map(Extent64::from);
                    seen.extents.entry(context.0).or_default().extend(extents);
                }
                Some(E::Extents64 {
                    cookie,
                    context,
                    extents,
                    ..
                }) => {
                    assert_eq!(self.framing, Framing::Extended);
                    let seen = self.seen.get_mut(&cookie).expect("in flight");
                    seen.extents.entry(context.0).or_default().extend(extents);
                }
                Some(E::Error { .. }) => {}
                Some(E::Done { cookie, result }) => done = Some((cookie, result)),
                Some(other) => panic!("{other:?}"),
                None => going = false,
            }
            self.down_held = input.to_vec();
            if let Some((cookie, result)) = done {
                self.done(cookie, result);
            }
            if let Need::Payload {
                cookie,
                offset,
                length,
            } = self.client.need()
                && offset % 1024 == 0
                && !self.down_held.is_empty()
            {
                let n = (length as usize).min(self.down_held.len());
                let data: Vec<u8> = self.down_held.drain(..n).collect();
                put(&self.asked, &mut self.seen, cookie, offset, n as u64, &data);
                self.client.advance(n as u64).expect("its payload");
                going = true;
            }
            if !going {
                return;
            }
        }
    }

    /// Compares what a command came to with what it must come to.
    fn done(&mut self, cookie: Cookie, result: Result<(), ErrorValue>) {
        let request = self.asked.remove(&cookie).expect("completed once");
        let seen = self.seen.remove(&cookie).expect("in flight");
        self.completed += 1;
        match self.due.remove(&cookie).expect("answered") {
            Due::Fails(error) => assert_eq!(result, Err(error), "{request:?}"),
            Due::Nothing => assert_eq!(result, Ok(()), "{request:?}"),
            Due::Data(data) => {
                assert_eq!(result, Ok(()), "{request:?}");
                assert_eq!(seen.covered, request.length, "{request:?}");
                assert!(seen.data == data, "{request:?}: wrong data");
            }
            Due::Map(maps) => {
                assert_eq!(result, Ok(()), "{request:?}");
                assert_eq!(seen.extents.len(), maps.len(), "{request:?}: contexts");
                for (id, due) in maps {
                    check_map(&request, &seen.extents[&id.0], &due);
                }
            }
        }
    }

    /// Lets everything that is on its way arrive, and answers what waits.
    fn settle(&mut self) {
        while !self.asked.is_empty() {
            self.step(&Step::Up(usize::MAX));
            while !self.waiting.is_empty() {
                self.answer(0);
            }
            self.step(&Step::Down(usize::MAX));
        }
        assert_eq!(self.client.in_flight(), 0);
        assert!(self.disk.read(0, SIZE) == self.model, "the disks differ");
        assert!(self.due.is_empty() && self.seen.is_empty());
        assert!(self.up_held.is_empty() && self.down_held.is_empty());
    }
}

/// The extents that came are the model's: as many as fit the question, the
/// last one whole or, for one only, cut to it.
fn check_map(request: &client::Request, seen: &[Extent64], due: &[Extent64]) {
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    if one {
        assert_eq!(seen.len(), 1, "{request:?}");
        assert_eq!(
            seen[0].length,
            due[0].length.min(request.length),
            "{request:?}"
        );
        assert_eq!(seen[0].flags, due[0].flags, "{request:?}");
        return;
    }
    let total: u64 = seen.iter().map(|extent| extent.length).sum();
    assert!(total >= request.length, "{request:?}: {total} bytes mapped");
    for (seen, due) in seen.iter().zip(due) {
        assert_eq!(seen.flags, due.flags, "{request:?}");
    }
    let (last, before) = seen.split_last().expect("an extent");
    assert_eq!(before, &due[..before.len()], "{request:?}");
    assert!(last.length <= due[before.len()].length, "{request:?}");
}

/// Zeroes as holes where the framing has them, backwards, in pieces.
fn read_reply(read: Read, disk: &Disk, out: &mut Vec<u8>) {
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
            let head = chunks.data(at, n as u32).expect("within the read");
            out.extend(head.as_bytes());
            out.extend(data);
        }
    }
    let last = chunks.finish().expect("all of it");
    out.extend(last.parts().concat());
}

/// Data, or a hole, in its place.
fn put(
    asked: &HashMap<Cookie, client::Request>,
    seen: &mut HashMap<Cookie, Seen>,
    cookie: Cookie,
    offset: u64,
    length: u64,
    data: &[u8],
) {
    let request = asked[&cookie];
    let seen = seen.get_mut(&cookie).expect("in flight");
    seen.data.resize(request.length as usize, 0xee);
    let from = (offset - request.offset) as usize;
    let place = &mut seen.data[from..from + length as usize];
    match data {
        [] => place.fill(0),
        _ => place.copy_from_slice(data),
    }
    seen.covered += length;
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
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(framing);
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}

/// The property is worth something only if commands complete.
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
