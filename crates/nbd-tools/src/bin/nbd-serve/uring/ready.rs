//! A client in transmission: its requests, taken out of what has arrived and
//! given to whoever does them.

use std::mem;
use std::sync::Arc;

use anyhow::Result;
use nbd_codec::server::{Event, Read, Reply, Request, Transmission, Write};
use nbd_codec::{Limits, Negotiated};

use super::client::{Hands, Next};
use super::flight::{self, Flight, Incoming};
use super::pool::Task;
use super::replies::Replies;
use crate::buffer::Buffer;
use crate::inbox::Inbox;
use crate::job::SPARSE;
use crate::reader::reply_payload;

/// Payloads up to so many bytes are received with what is around them, many at
/// a time. Larger ones go straight to their place.
const SMALL: u32 = 32 << 10;

/// What needs no waiting is done at once up to so many bytes: others wait so
/// long.
const AT_ONCE: usize = 1 << 20;

/// Data of files is gathered up to so many bytes.
const NEAR: usize = (256 << 10) + 4096;

pub struct Ready {
    pub machine: Transmission,
    /// The payload that arrives in its place.
    pub incoming: Option<Incoming>,
    /// How long the one is that is due in the inbox.
    due: usize,
    /// What there is no room for yet.
    held: Option<Held>,
    /// How many requests there were.
    pub requests: u64,
}

enum Held {
    Payload(u32),
    Request(Request),
    Rejected(Reply<'static>),
}

/// The data of a write.
enum Data<'d> {
    /// In the inbox.
    Small(&'d [u8]),
    Large(Buffer),
}

/// What requests are done with.
pub struct Work<'w, 'h> {
    /// The client's.
    pub key: usize,
    /// The minimum block size.
    pub block: u32,
    /// Whether reads may be answered in pieces.
    pub cuts: bool,
    pub replies: &'w mut Replies,
    pub elsewhere: &'w mut usize,
    pub hands: &'w mut Hands<'h>,
}

impl Ready {
    pub fn new(negotiated: Negotiated) -> Result<Self> {
        Ok(Self {
            machine: Transmission::new(negotiated, Limits::DEFAULT)?,
            incoming: None,
            due: 0,
            held: None,
            requests: 0,
        })
    }

    /// Takes all that there is room for.
    pub fn take(&mut self, inbox: &mut Inbox, work: &mut Work<'_, '_>) -> Result<Next> {
        let mut input = inbox.unread();
        let next = self.take_from(&mut input, work);
        let left = input.len();
        inbox.keep_last(left);
        next
    }

    fn take_from(&mut self, input: &mut &[u8], work: &mut Work<'_, '_>) -> Result<Next> {
        // The data of a small write, which is here whole.
        let mut small = &[][..];
        loop {
            if let Some(held) = self.held.take()
                && let Some(held) = self.admit(held, work)?
            {
                self.held = Some(held);
                return Ok(Next::Wait);
            }
            if input.len() < self.due {
                return Ok(Next::Receive);
            }
            let Some(event) = self.machine.receive(input)? else {
                return Ok(Next::Receive);
            };
            match event {
                Event::Disconnect => return Ok(Next::Over),
                Event::Payload { length, .. } => self.held = Some(Held::Payload(length)),
                Event::Data { data, .. } => match &mut self.incoming {
                    None => {
                        self.due = 0;
                        small = data;
                    }
                    Some(Incoming {
                        data: place,
                        filled,
                    }) => {
                        let end = *filled + data.len();
                        place[*filled..end].copy_from_slice(data);
                        *filled = end;
                    }
                },
                // It was admitted with its payload.
                Event::Request(Request::Write(token)) => {
                    self.requests += 1;
                    let data = match self.incoming.take() {
                        Some(incoming) => Data::Large(incoming.data),
                        None => Data::Small(mem::take(&mut small)),
                    };
                    work.write(token, data)?;
                }
                Event::Request(request) => {
                    self.requests += 1;
                    self.held = Some(Held::Request(request));
                }
                Event::Rejected { reply, .. } => {
                    self.requests += 1;
                    self.held = Some(Held::Rejected(reply));
                }
                _ => {}
            }
        }
    }

    /// Goes on with it if there is room, or gives it back.
    fn admit(&mut self, held: Held, work: &mut Work<'_, '_>) -> Result<Option<Held>> {
        let room = match &held {
            Held::Payload(length) => *length as usize,
            Held::Request(request) => reply_payload(request),
            Held::Rejected(_) => 0,
        };
        if !work.replies.admit(room) {
            return Ok(Some(held));
        }
        match held {
            Held::Payload(length) if length <= SMALL => self.due = length as usize,
            Held::Payload(length) => {
                let data = Buffer::new(length as usize);
                self.incoming = Some(Incoming { data, filled: 0 });
            }
            Held::Request(request) => work.request(request, room)?,
            Held::Rejected(reply) => work.say(&reply, 0),
        }
        Ok(None)
    }
}

impl Work<'_, '_> {
    /// Does it, or gives it to somebody who does.
    fn request(&mut self, request: Request, room: usize) -> std::io::Result<()> {
        let disk = &self.hands.server.export.disk;
        match (request, disk.file()) {
            (Request::Read(token), _) if self.is_whole(&token) => self.read(token, room),
            (Request::Flush(token), Some(file)) => {
                let sync = flight::Sync {
                    file: Arc::clone(file),
                    request: Request::Flush(token),
                    room,
                };
                self.fly(Flight::Sync(self.key, sync))
            }
            (request, _) => {
                self.delegate(request, None, room);
                Ok(())
            }
        }
    }

    /// Whether the data goes in one piece: if it is short or all data.
    fn is_whole(&self, token: &Read) -> bool {
        let length = token.length();
        let may_be_cut = self.cuts && length >= SPARSE && !token.dont_fragment();
        let disk = &self.hands.server.export.disk;
        !may_be_cut || disk.is_data(token.offset(), length.into())
    }

    fn read(&mut self, token: Read, room: usize) -> std::io::Result<()> {
        let disk = &self.hands.server.export.disk;
        let (offset, length) = (token.offset(), token.length());
        let batch = &mut self.replies.next;
        if disk.lends() {
            batch.put(token.data().as_bytes());
            disk.lend(offset, length.into(), &mut |lent| batch.put_lent(lent));
            batch.end_reply(room);
            return Ok(());
        }
        // What is in memory is here sooner than a flight has set out. It leaves
        // before there is more of it than a cache holds.
        if batch.size().0 + room > NEAR {
            self.replies.send_now();
        }
        let batch = &mut self.replies.next;
        let near = batch.size().0 + room <= NEAR;
        if near && disk.try_read(offset, batch.space(room)) {
            batch.put_filled(token.data().as_bytes(), room);
            batch.end_reply(room);
            return Ok(());
        }
        let mut data = Buffer::new(room);
        if !near && room <= AT_ONCE && disk.try_read(offset, &mut data) {
            batch.put(token.data().as_bytes());
            batch.put_data(data);
            batch.end_reply(room);
            return Ok(());
        }
        match disk.file() {
            Some(file) => {
                let read = flight::Read {
                    file: Arc::clone(file),
                    token,
                    data,
                    filled: 0,
                };
                self.fly(Flight::Read(self.key, read))
            }
            None => {
                self.delegate(Request::Read(token), None, room);
                Ok(())
            }
        }
    }

    fn write(&mut self, token: Write, data: Data<'_>) -> std::io::Result<()> {
        let disk = &self.hands.server.export.disk;
        let bytes = match &data {
            Data::Small(bytes) => bytes,
            Data::Large(buffer) => &buffer[..],
        };
        let room = bytes.len();
        let file = disk.file();
        let at_once = file.is_none() && !token.fua() && room <= AT_ONCE;
        if at_once && disk.try_write(token.offset(), bytes) {
            self.say(&token.succeed(), room);
            return Ok(());
        }
        let data = match data {
            Data::Large(buffer) => buffer,
            Data::Small(bytes) => {
                let mut buffer = Buffer::new(bytes.len());
                buffer.copy_from_slice(bytes);
                buffer
            }
        };
        match file {
            Some(file) => {
                let write = flight::Write {
                    file: Arc::clone(file),
                    token,
                    data,
                    written: 0,
                };
                self.fly(Flight::Write(self.key, write))
            }
            None => {
                self.delegate(Request::Write(token), Some(data), room);
                Ok(())
            }
        }
    }

    /// A reply that is there already.
    fn say(&mut self, reply: &Reply<'_>, room: usize) {
        self.replies.next.put_reply(reply);
        self.replies.next.end_reply(room);
    }

    fn fly(&mut self, flight: Flight) -> std::io::Result<()> {
        *self.elsewhere += 1;
        self.hands.ring.start(flight)
    }

    fn delegate(&mut self, request: Request, data: Option<Buffer>, room: usize) {
        *self.elsewhere += 1;
        self.hands.pool.add(Task {
            door: Arc::clone(self.hands.door),
            client: self.key,
            request,
            data,
            block: self.block,
            room,
        });
    }
}
