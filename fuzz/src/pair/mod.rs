//! Our client and our server over a link that cuts the bytes anywhere and may
//! be lost at any of them, with a disk behind it and a model of the disk.

mod client;
mod disk;
mod meeting;
pub mod script;
mod server;

use std::collections::BTreeMap;

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId};
use nbd_codec::{Error, client as ours};

use self::client::Client;
use self::disk::Disk;
use self::script::{Pair, PairStep};
use self::server::Server;
use crate::delivery::Feed;

/// What a reply must bring, as the model has it when the server makes it.
struct Due {
    /// The first error; none is success.
    error: Option<u32>,
    /// The disk as it was.
    then: Disk,
}

struct World {
    client: Client,
    server: Server,
    up: Feed,
    down: Feed,
    /// Bytes under way.
    rising: Vec<u8>,
    falling: Vec<u8>,
    /// The disk by what the client has sent.
    model: Disk,
    lost: bool,
}

/// Runs a script to its end; false if the handshake led to nothing.
pub fn run(pair: &Pair) -> bool {
    let Some(met) = meeting::meet(pair) else {
        return false;
    };
    let (block, size) = (pair.meeting.export.block(), met.server.size);
    let disk = Disk::new(size, block);
    let mut world = World {
        client: Client::new(met.client, met.server),
        server: Server::new(met.server, disk.clone()),
        up: Feed::new(&pair.up),
        down: Feed::new(&pair.down),
        rising: Vec::new(),
        falling: Vec::new(),
        model: disk,
        lost: false,
    };
    for step in &pair.steps.0 {
        if world.lost {
            break;
        }
        world.step(step, block);
    }
    world.end();
    true
}

impl World {
    fn step(&mut self, step: &PairStep, block: u64) {
        let range = |from: u8, blocks: u8| {
            let (from, blocks) = (u64::from(from), u64::from(blocks));
            (from * block, blocks * block)
        };
        match step {
            PairStep::Submit {
                command,
                flags,
                from,
                blocks,
                fill,
            } => {
                let command = Command((*command % 9).into());
                let (mut offset, mut length) = range(*from, *blocks);
                match command {
                    Command::FLUSH => (offset, length) = (0, 0),
                    Command::RESIZE => length = 0,
                    _ => {}
                }
                self.submit(command, *flags, offset, length, *fill);
            }
            PairStep::Wild {
                command,
                flags,
                offset,
                length,
            } => self.submit(Command((*command).into()), *flags, *offset, *length, 0x77),
            PairStep::StatusOf {
                contexts,
                flags,
                from,
                blocks,
            } => {
                let (offset, length) = range(*from, *blocks);
                let flags = CommandFlags(*flags);
                let ids: Vec<_> = contexts
                    .0
                    .iter()
                    .map(|id| ContextId((*id).into()))
                    .collect();
                self.client
                    .status_of(&ids, offset, length, flags, &mut self.rising);
            }
            PairStep::Answer { which, how, at } => self.answer(*which, *how, *at),
            PairStep::Up { n } => self.rise(*n),
            PairStep::Down { n } => self.fall(*n),
            PairStep::Settle { how } => self.settle(*how),
            PairStep::ShutDown {} => self.server.machine.shut_down(),
            PairStep::Disconnect {} => self.client.disconnect(&mut self.rising),
            PairStep::Cut { up, down } => {
                self.rise(*up);
                self.fall(*down);
                self.lost = true;
            }
        }
    }

    fn submit(&mut self, command: Command, flags: u16, offset: u64, length: u64, fill: u8) {
        let request = ours::Request {
            command,
            flags: CommandFlags(flags),
            offset,
            length,
        };
        self.client.submit(request, fill, &mut self.rising);
    }

    /// The server does a request, and the model does what the client meant.
    fn answer(&mut self, which: u8, how: u8, at: u8) {
        let Some((cookie, error)) = self.server.answer(which, how, at, &mut self.falling) else {
            return;
        };
        let then = self.model.clone();
        let sent = self.client.sent.get(&cookie).expect("what the client sent");
        if error.is_none() {
            let request = sent.request;
            match request.command {
                Command::WRITE => self.model.write(request.offset, &sent.payload),
                Command::TRIM | Command::WRITE_ZEROES => {
                    self.model.zero(request.offset, request.length);
                }
                Command::RESIZE => self.model.resize(request.offset),
                _ => {}
            }
        }
        assert_eq!(self.server.disk, self.model, "the disk is not the model");
        self.client.due.insert(cookie, Due { error, then });
    }

    fn rise(&mut self, n: u64) {
        let n = self
            .rising
            .len()
            .min(usize::try_from(n).unwrap_or(usize::MAX));
        let bytes: Vec<u8> = self.rising.drain(..n).collect();
        self.up.deliver(&mut self.server, &bytes);
        assert_eq!(self.up.error, None, "the server understands the client");
        self.falling.append(&mut self.server.out);
        let rejected: BTreeMap<u64, u32> = std::mem::take(&mut self.server.rejected);
        for (cookie, error) in rejected {
            let lawful = self.server.shut_down_is(error) || !self.client.strict;
            assert!(lawful, "what our client sends is refused: {error}");
            let then = self.model.clone();
            let error = Some(error);
            self.client.due.insert(cookie, Due { error, then });
        }
    }

    fn fall(&mut self, n: u64) {
        let n = self
            .falling
            .len()
            .min(usize::try_from(n).unwrap_or(usize::MAX));
        let bytes: Vec<u8> = self.falling.drain(..n).collect();
        self.down.deliver(&mut self.client, &bytes);
        assert_eq!(self.down.error, None, "the client understands the server");
    }

    fn settle(&mut self, how: u8) {
        self.rise(u64::MAX);
        while !self.server.waiting.is_empty() {
            self.answer(0, how, how);
        }
        self.fall(u64::MAX);
        assert!(
            self.client.sent.is_empty(),
            "commands that are not answered"
        );
        assert_eq!(self.client.machine.in_flight(), 0);
        assert_eq!(
            self.client.machine.negotiated().size,
            self.model.bytes.len() as u64
        );
    }

    fn end(&mut self) {
        if !self.lost {
            self.settle(0);
            self.client.disconnect(&mut self.rising);
            self.rise(u64::MAX);
            assert_eq!(self.server.machine.end_of_input(), Ok(()), "a goodbye");
            assert_eq!(self.client.machine.end_of_input(), Ok(()), "all is done");
            assert_eq!(self.client.machine.abandon(), None);
            return;
        }
        let bye = self.server.bye;
        let torn = self.server.machine.end_of_input();
        assert_eq!(torn.is_ok(), bye, "the client said goodbye, or not");
        let idle = self.client.sent.is_empty() && self.down.held() == 0;
        let result = self.client.machine.end_of_input();
        assert_eq!(result.is_ok(), idle, "the client knows what it lost");
        if let Err(error) = result {
            assert_eq!(error, Error::Closed);
        }
        // Every command is accounted for.
        while let Some(cookie) = self.client.machine.abandon() {
            assert!(self.client.sent.remove(&cookie.0).is_some(), "twice");
        }
        assert!(self.client.sent.is_empty(), "commands without an end");
    }
}
