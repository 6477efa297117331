//! One connection under load: it keeps a number of requests in flight, and submits
//! the next request for each reply.

use std::time::Instant;

use anyhow::{Result, bail};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Limits, Step};

use super::histogram::Histogram;
use super::pipe::Pipe;
use super::{Load, Stop};
use crate::connection::Opened;
use crate::session::{commands, describe, explain};

/// Payloads with at least this many bytes missing are read into their own buffer.
/// Many smaller ones are read at a time, which takes less time.
///
/// Neither is copied: a program that only inspects or forwards data needs no copy.
/// One that keeps small payloads would have to copy them.
const DIRECT: u64 = 32 << 10;

pub struct Worker<'l> {
    load: &'l Load,
    stop: &'l Stop,
    histogram: &'l Histogram,
    machine: Transmission<Vec<Slot>>,
    pipe: Pipe,
    /// How many bytes are missing of the payload that arrives.
    payload: u64,
    /// The buffer for all large payloads.
    place: Vec<u8>,
    /// The offset of the request in each slot, and when it was submitted.
    running: Vec<(u64, u64)>,
    /// How many requests were submitted.
    made: u64,
    next: Next,
    /// It is time to stop.
    due: bool,
    started: Instant,
    /// The time of the last batch, in nanoseconds since `started`.
    now: u64,
}

impl<'l> Worker<'l> {
    pub fn new(
        opened: Opened,
        number: u16,
        load: &'l Load,
        stop: &'l Stop,
        histogram: &'l Histogram,
    ) -> Result<Self> {
        let depth = load.depth.into();
        let size = load.size as usize;
        let next = Next::new(load, number, opened.negotiated.size);
        let payload = if load.mode.writes() {
            noise(size)
        } else {
            Vec::new()
        };
        let place = if load.mode.writes() {
            Vec::new()
        } else {
            vec![0; size]
        };
        Ok(Self {
            load,
            stop,
            histogram,
            machine: Transmission::new(
                opened.negotiated,
                vec![Slot::EMPTY; depth],
                Limits::DEFAULT,
            ),
            pipe: Pipe::new(opened.link, payload),
            payload: 0,
            place,
            running: vec![(0, 0); depth],
            made: 0,
            next,
            due: false,
            started: Instant::now(),
            now: 0,
        })
    }

    /// Runs until it is time to stop and all requests are answered.
    pub fn run(mut self) -> Result<()> {
        self.started = Instant::now();
        loop {
            self.submit()?;
            self.pipe.send()?;
            if self.machine.in_flight() == 0 {
                break;
            }
            if self.pipe.is_all_sent() || self.pipe.wait()? {
                self.receive()?;
                let elapsed = self.started.elapsed();
                self.now = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
                self.due = self.stop.is_due(elapsed);
                self.take()?;
            }
        }
        let header = self.machine.disconnect()?;
        // It has no reply: nothing is lost if the server has closed the connection.
        let _ = self.pipe.finish(&header);
        Ok(())
    }

    fn submit(&mut self) -> Result<()> {
        let depth = usize::from(self.load.depth);
        while self.machine.in_flight() < depth && self.made < self.stop.requests && !self.due {
            let offset = self.next.offset();
            let request = if self.load.mode.writes() {
                Request::write(offset, self.load.size)
            } else {
                Request::read(offset, self.load.size)
            };
            let header = self.machine.submit(request)?;
            self.pipe.queue(&header);
            self.running[slot_index(header.cookie())] = (offset, self.now);
            self.made += 1;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let place = if self.payload >= DIRECT {
            let length = self.place.len().min(self.payload as usize);
            &mut self.place[..length]
        } else {
            &mut []
        };
        let received = self.pipe.receive(place)?;
        if received.end {
            let waiting = commands(self.machine.in_flight());
            bail!("the server closed the connection with {waiting} unanswered");
        }
        if received.placed > 0 {
            self.machine.advance(received.placed as u64)?;
        }
        Ok(())
    }

    /// A command in flight, for messages.
    fn describe(&self, cookie: Cookie) -> String {
        let (offset, _) = self.running[slot_index(cookie)];
        let request = if self.load.mode.writes() {
            Request::write(offset, self.load.size)
        } else {
            Request::read(offset, self.load.size)
        };
        describe(&request)
    }

    /// Handles all replies that have arrived.
    fn take(&mut self) -> Result<()> {
        let mut input = self.pipe.unread();
        self.payload = loop {
            match self.machine.receive(&mut input)? {
                Step::Event(TransmissionEvent::Done { cookie, result }) => {
                    if let Err(error) = result {
                        bail!("{} failed: {}", self.describe(cookie), explain(error));
                    }
                    let (_, since) = self.running[slot_index(cookie)];
                    self.histogram.record(self.now - since);
                }
                Step::Event(TransmissionEvent::Fault { cookie, error }) => {
                    bail!("{} failed: {error}", self.describe(cookie));
                }
                Step::Event(_) | Step::Content(_) => {}
                Step::Read(_) => break 0,
                Step::ReadPayload { length, .. } => break length,
                other => return Err(other.unexpected().into()),
            }
        };
        let left = input.len();
        self.pipe.keep_last(left);
        Ok(())
    }
}

/// Chooses the offset of the next request.
struct Next {
    random: Option<Random>,
    size: u64,
    /// How many requests fit into the export.
    places: u64,
    at: u64,
}

impl Next {
    fn new(load: &Load, number: u16, size: u64) -> Self {
        let places = size / load.size;
        Self {
            random: load.mode.is_random().then(|| Random(u64::from(number))),
            size: load.size,
            places,
            // Sequential connections begin at different offsets.
            at: places / u64::from(load.connections) * u64::from(number),
        }
    }

    fn offset(&mut self) -> u64 {
        let place = match &mut self.random {
            Some(random) => random.below(self.places),
            None => {
                self.at = (self.at + 1) % self.places;
                self.at
            }
        };
        place * self.size
    }
}

/// SplitMix64 by Steele, Lea and Flood: the same offsets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`: the upper half of a 128-bit product.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// Data that does not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut random = Random(1);
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    words.flatten().take(length).collect()
}
