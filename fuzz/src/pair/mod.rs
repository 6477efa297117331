//! The client and the server of this crate, connected by a link that splits the
//! bytes anywhere and may fail at any byte, with a disk at the server and a
//! model of it at the client.

mod client;
mod disk;
mod handshake;
pub mod script;
mod server;

use nbd_codec::monitor::{Finding, Side};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId};
use nbd_codec::{Error, client as ours};

use self::client::Client;
use self::disk::Disk;
use self::script::{Action, Script};
use self::server::Server;
use crate::delivery::Driver;
use crate::monitor::Watcher;

/// What a reply must say, recorded when the server makes it.
struct Expected {
    /// The first error; none for success.
    error: Option<u32>,
    /// The disk at that time.
    then: Disk,
}

struct Session {
    client: Client,
    server: Server,
    /// Bytes in transit.
    upstream: Vec<u8>,
    downstream: Vec<u8>,
    /// A tap on the link.
    watcher: Watcher,
    /// The disk according to the commands the client sent.
    model: Disk,
    failed: bool,
}

/// Runs a script to its end; false if the handshake fails.
pub fn run(script: &Script) -> bool {
    let Some(outcome) = handshake::run(script) else {
        return false;
    };
    let (block, size) = (script.handshake.export.block(), outcome.server.size);
    let disk = Disk::new(size, block);
    let mut session = Session {
        client: Client::new(outcome.client, outcome.server, &script.down),
        server: Server::new(
            outcome.server,
            script.handshake.server.strict,
            disk.clone(),
            &script.up,
        ),
        upstream: Vec::new(),
        downstream: Vec::new(),
        watcher: outcome.watcher,
        model: disk,
        failed: false,
    };
    for action in &script.actions.0 {
        if session.failed {
            break;
        }
        session.action(action, block);
    }
    session.end();
    true
}

impl Session {
    fn action(&mut self, action: &Action, block: u64) {
        let range = |from: u8, blocks: u8| {
            let (from, blocks) = (u64::from(from), u64::from(blocks));
            (from * block, blocks * block)
        };
        match action {
            Action::Submit {
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
            Action::SubmitAny {
                command,
                flags,
                offset,
                length,
            } => self.submit(Command((*command).into()), *flags, *offset, *length, 0x77),
            Action::BlockStatusOf {
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
                    .status_of(&ids, offset, length, flags, &mut self.upstream);
            }
            Action::Answer { which, how, at } => self.answer(*which, *how, *at),
            Action::Up { n } => self.deliver_up(*n),
            Action::Down { n } => self.deliver_down(*n),
            Action::Settle { how } => self.settle(*how),
            Action::ShutDown {} => self.server.machine.shut_down(),
            Action::Disconnect {} => self.client.disconnect(&mut self.upstream),
            Action::Cut { up, down } => {
                self.deliver_up(*up);
                self.deliver_down(*down);
                self.failed = true;
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
        self.client.submit(request, fill, &mut self.upstream);
    }

    /// The server executes a request, and the model executes the client's
    /// command.
    fn answer(&mut self, which: u8, how: u8, at: u8) {
        let Some((cookie, error)) = self.server.answer(which, how, at, &mut self.downstream) else {
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
        assert_eq!(
            self.server.disk, self.model,
            "the disk differs from the model"
        );
        self.client
            .expected
            .insert(cookie, Expected { error, then });
    }

    fn deliver_up(&mut self, n: u64) {
        let n = self
            .upstream
            .len()
            .min(usize::try_from(n).unwrap_or(usize::MAX));
        let bytes: Vec<u8> = self.upstream.drain(..n).collect();
        self.watcher.offer(Side::Client, &bytes);
        self.assert_lawful();
        self.server.deliver(&bytes);
        assert_eq!(self.server.error, None, "the server fails");
        self.downstream.append(&mut self.server.out);
        let answered = std::mem::take(&mut self.server.answered);
        for (cookie, error) in answered {
            let is_shut_down = error.is_some_and(|error| self.server.shut_down_is(error));
            let lawful = is_shut_down || !self.client.strict;
            assert!(lawful, "a valid request is answered with {error:?}");
            let then = self.model.clone();
            self.client
                .expected
                .insert(cookie, Expected { error, then });
        }
    }

    fn deliver_down(&mut self, n: u64) {
        let n = self
            .downstream
            .len()
            .min(usize::try_from(n).unwrap_or(usize::MAX));
        let bytes: Vec<u8> = self.downstream.drain(..n).collect();
        self.watcher.offer(Side::Server, &bytes);
        self.assert_lawful();
        self.client.deliver(&bytes);
        assert_eq!(self.client.error, None, "the client fails");
    }

    /// What both sides accept breaks no rule.
    fn assert_lawful(&self) {
        let lawful = |finding: &Finding| finding.side == Side::Client && !self.client.strict;
        let findings = &self.watcher.findings;
        assert!(findings.iter().all(lawful), "{findings:?}");
    }

    fn settle(&mut self, how: u8) {
        self.deliver_up(u64::MAX);
        while !self.server.pending.is_empty() {
            self.answer(0, how, how);
        }
        self.deliver_down(u64::MAX);
        assert!(self.client.sent.is_empty(), "commands without a reply");
        assert_eq!(self.client.machine.in_flight(), 0);
        assert_eq!(
            self.client.machine.negotiated().size,
            self.model.bytes.len() as u64
        );
    }

    fn end(&mut self) {
        if !self.failed {
            self.settle(0);
            self.client.disconnect(&mut self.upstream);
            self.deliver_up(u64::MAX);
            assert_eq!(self.server.machine.end_of_input(), Ok(()), "a clean end");
            assert_eq!(self.client.machine.end_of_input(), Ok(()), "a clean end");
            assert_eq!(self.client.machine.pop_unanswered(), None);
            self.watcher.end(Side::Client);
            self.watcher.end(Side::Server);
            self.assert_lawful();
            return;
        }
        let disconnected = self.server.disconnected;
        let incomplete = self.server.machine.end_of_input();
        assert_eq!(
            incomplete.is_ok(),
            disconnected,
            "a clean end if and only if DISC"
        );
        let idle = self.client.sent.is_empty() && self.client.incoming.buffered() == 0;
        let result = self.client.machine.end_of_input();
        assert_eq!(result.is_ok(), idle, "a clean end if and only if idle");
        if let Err(error) = result {
            assert_eq!(error, Error::Closed);
        }
        // Every command ends exactly once.
        while let Some(cookie) = self.client.machine.pop_unanswered() {
            assert!(self.client.sent.remove(&cookie.0).is_some(), "twice");
        }
        assert!(self.client.sent.is_empty(), "unfinished commands");
    }
}
