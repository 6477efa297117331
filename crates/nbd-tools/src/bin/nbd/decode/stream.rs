//! The two streams of a TCP connection, put together from captured segments.

use std::collections::{BTreeMap, VecDeque};

use nbd_codec::monitor::Side;

use super::transcript::Transcript;

/// What a server of NBD sends first.
const GREETING: &[u8] = b"NBDMAGIC";

/// A segment as it was captured.
pub struct Segment<'p> {
    /// SYN.
    pub begins: bool,
    /// FIN or RST.
    pub ends: bool,
    pub sequence: u32,
    pub acknowledged: Option<u32>,
    pub data: &'p [u8],
}

/// A connection. Which end is the server shows when one greets.
#[derive(Default)]
pub struct Connection {
    ends: [Stream; 2],
    /// Pieces in order, until it is known whether this is NBD.
    kept: Vec<(usize, Piece)>,
    state: State,
}

#[derive(Default)]
enum State {
    /// Before the greeting.
    #[default]
    Unknown,
    /// The end that is the server, and the transcript.
    Nbd(usize, Box<Transcript>),
    Other,
}

/// What one end sends.
#[derive(Default)]
struct Stream {
    /// The sequence number of its first byte.
    first: Option<u32>,
    /// How many bytes have come in order.
    received: u64,
    /// How many bytes were handed on.
    delivered: u64,
    /// Segments that came early, by their position.
    early: BTreeMap<u64, Vec<u8>>,
    /// Pieces in order, each with what its sender had received of the other end.
    ready: VecDeque<(u64, Piece)>,
    /// Where the stream ends.
    end: Option<u64>,
    ended: bool,
}

enum Piece {
    Data(Vec<u8>),
    End,
}

impl Connection {
    /// Takes a segment of one end, the first one or not; `start` makes the transcript.
    pub fn segment(
        &mut self,
        first: bool,
        segment: &Segment<'_>,
        start: &mut dyn FnMut() -> Transcript,
    ) {
        if let State::Other = self.state {
            return;
        }
        let from = usize::from(!first);
        let other = usize::from(first);
        // The other end had received this much: its bytes come first, even where the
        // capture has them later.
        let seen = segment
            .acknowledged
            .and_then(|number| self.ends[other].position(number));
        self.ends[from].take(segment, seen.unwrap_or(0));
        while let Some((from, piece)) = self.next(false) {
            self.deliver(from, piece, start);
        }
    }

    /// The next piece in order. `anyway`: whether or not its sender had received what
    /// the capture lacks.
    fn next(&mut self, anyway: bool) -> Option<(usize, Piece)> {
        for from in [0, 1] {
            let delivered = self.ends[usize::from(from == 0)].delivered;
            let stream = &mut self.ends[from];
            let due = |(seen, _): &&(u64, Piece)| anyway || *seen <= delivered;
            if stream.ready.front().filter(due).is_some()
                && let Some((_, piece)) = stream.ready.pop_front()
            {
                if let Piece::Data(data) = &piece {
                    stream.delivered = stream.delivered.saturating_add(data.len() as u64);
                }
                return Some((from, piece));
            }
        }
        None
    }

    fn deliver(&mut self, from: usize, piece: Piece, start: &mut dyn FnMut() -> Transcript) {
        match &mut self.state {
            State::Other => {}
            State::Nbd(server, transcript) => offer(transcript, *server, from, &piece),
            State::Unknown => {
                self.kept.push((from, piece));
                self.look(start);
            }
        }
    }

    /// Looks at what was sent first: a server of NBD greets before a client speaks.
    fn look(&mut self, start: &mut dyn FnMut() -> Transcript) {
        let data = self.kept.iter().filter_map(|(from, piece)| match piece {
            Piece::Data(data) => Some((*from, data)),
            Piece::End => None,
        });
        let Some((server, _)) = data.clone().next() else {
            return;
        };
        let sent = data.filter(|(from, _)| *from == server);
        let begin: Vec<_> = sent
            .flat_map(|(_, data)| data)
            .take(GREETING.len())
            .copied()
            .collect();
        if begin == GREETING {
            let mut transcript = Box::new(start());
            for (from, piece) in std::mem::take(&mut self.kept) {
                offer(&mut transcript, server, from, &piece);
            }
            self.state = State::Nbd(server, transcript);
        } else if !GREETING.starts_with(&begin) {
            self.kept = Vec::new();
            self.state = State::Other;
        }
    }

    /// One end has closed.
    pub fn is_over(&self) -> bool {
        self.ends.iter().any(|stream| stream.ended)
    }

    /// The end of the capture: what it lacks does not come.
    pub fn finish(&mut self, start: &mut dyn FnMut() -> Transcript) {
        while let Some((from, piece)) = self.next(true) {
            self.deliver(from, piece, start);
        }
        let missing = self.ends.iter().position(|stream| !stream.early.is_empty());
        if let (State::Nbd(server, transcript), Some(from)) = (&mut self.state, missing) {
            transcript.give_up(side(*server, from), "the capture lacks bytes");
        }
    }

    pub fn take(&mut self) -> String {
        match &mut self.state {
            State::Nbd(_, transcript) => transcript.take(),
            _ => String::new(),
        }
    }

    pub fn broken(&self) -> u64 {
        match &self.state {
            State::Nbd(_, transcript) => transcript.broken(),
            _ => 0,
        }
    }
}

fn side(server: usize, from: usize) -> Side {
    if server == from {
        Side::Server
    } else {
        Side::Client
    }
}

fn offer(transcript: &mut Transcript, server: usize, from: usize, piece: &Piece) {
    match piece {
        Piece::Data(data) => transcript.offer(side(server, from), data),
        Piece::End => transcript.end(side(server, from)),
    }
}

impl Stream {
    /// The position of a sequence number, in bytes from the start of the stream; the
    /// one that is nearest to what was received.
    fn position(&self, sequence: u32) -> Option<u64> {
        let first = self.first?;
        let next = first.wrapping_add((self.received & 0xffff_ffff) as u32);
        let distance = i64::from(sequence.wrapping_sub(next).cast_signed());
        self.received.checked_add_signed(distance)
    }

    fn take(&mut self, segment: &Segment<'_>, seen: u64) {
        let mut sequence = segment.sequence;
        if segment.begins {
            sequence = sequence.wrapping_add(1);
        }
        // Without SYN, the capture began after the connection did.
        let _ = self.first.get_or_insert(sequence);
        let Some(position) = self.position(sequence) else {
            return;
        };
        if segment.ends {
            self.end = Some(position.saturating_add(segment.data.len() as u64));
        }
        if !segment.data.is_empty() {
            let longer = |old: &Vec<u8>| old.len() >= segment.data.len();
            if !self.early.get(&position).is_some_and(longer) {
                self.early.insert(position, segment.data.to_vec());
            }
        }
        while let Some((position, data)) = self.early.pop_first() {
            let Some(known) = self.received.checked_sub(position) else {
                self.early.insert(position, data);
                break;
            };
            // What was sent again is known already.
            let known = usize::try_from(known).unwrap_or(usize::MAX);
            let Some(data) = data.get(known..).filter(|data| !data.is_empty()) else {
                continue;
            };
            self.received = self.received.saturating_add(data.len() as u64);
            self.ready.push_back((seen, Piece::Data(data.to_vec())));
        }
        if self.end.is_some_and(|end| self.received >= end) && !self.ended {
            self.ended = true;
            self.ready.push_back((seen, Piece::End));
        }
    }
}
