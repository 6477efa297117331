//! Transcripts, and playing them in every fragmentation.
//!
//! A transcript is lines: `C:` what the client does and sends, `S:` what the
//! server sends, `E:` the events that are due by then. A transcript may end
//! with `!`, the error that ends the session. Lines begin in any column; `//`
//! begins a comment.

use std::convert::Infallible;
use std::num::NonZeroUsize;

use nbd_codec::inbox::Inbox;
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Error, Limits, Step, Violation};

use super::script::{self, Commands};
use super::seen::{Seen, begins};

/// The answer of a state machine to `receive`, no longer borrowed: events and
/// content are both [`Seen`].
pub(crate) type Taken = Result<Step<Seen, Infallible>, Error>;

/// A state machine as a transcript drives it.
pub(crate) trait Machine: Commands {
    /// Does what a `C:` line says, and checks every byte that it makes, and the
    /// steps that come before.
    fn client(&mut self, line: &str);
    fn receive(&mut self, input: &mut &[u8]) -> Taken;
    /// As `receive`, through the crate's own receive buffer.
    fn receive_from(&mut self, inbox: &Inbox<Vec<u8>>) -> Taken;
    /// Reports `n` bytes of payload that were read directly, of `length` that
    /// are left; checks that more is refused.
    fn advance(&mut self, _n: u64, _length: u64) {
        panic!("handshakes have no payload")
    }
    /// Which command a payload belongs to.
    fn command_of(&self, cookie: Cookie) -> usize {
        panic!("handshakes have no commands, {cookie}")
    }
    fn end_of_input(&mut self) -> Result<(), Error>;
    /// Called when the session is over: every command must have ended once.
    fn assert_every_command_ended(&mut self, _: &[Seen]) {}
    /// How an error is written in a transcript.
    fn error(&self, error: Error) -> String {
        format!("{error:?}")
    }
    /// What no [`Step::Read`] may exceed is [`Limits::buffer`] of these.
    fn limits(&self) -> Limits;
    /// The smallest receive buffer that is enough.
    fn buffer(&self) -> usize {
        self.limits().buffer()
    }
}

/// What the client does, what the server then sends, what is then due.
#[derive(Debug, Default)]
struct Turn {
    client: Vec<String>,
    input: Vec<u8>,
    events: Vec<String>,
    error: Option<String>,
}

/// How input is cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Whole,
    Pieces(usize),
    At(usize),
    /// Only what the steps ask for, payload read directly, at most this many
    /// bytes at once.
    Exact(usize),
    /// Through a buffer of this many bytes.
    Buffer(usize),
    /// Through an [`Inbox`] of this many bytes.
    Inbox(usize),
}

/// Plays a transcript in every fragmentation; returns what was seen.
pub(crate) fn play<M: Machine>(start: impl Fn() -> M, transcript: &str) -> Vec<String> {
    let turns = compile(&start, transcript);
    let whole = run(&start, &turns, Cut::Whole, None);
    let length: usize = turns.iter().map(|turn| turn.input.len()).sum();
    let buffer = start().buffer();
    let cuts = [1, 3, 7].map(Cut::Pieces).into_iter();
    let cuts = cuts.chain([1, 13, 1 << 20].map(Cut::Exact));
    let cuts = cuts.chain([Cut::Buffer(buffer), Cut::Buffer(buffer + 37)]);
    let cuts = cuts.chain([Cut::Inbox(buffer), Cut::Inbox(buffer + 37)]);
    for cut in cuts.chain((1..length).map(Cut::At)) {
        let seen = run(&start, &turns, cut, None);
        assert_same(&whole, &seen, &format!("{cut:?}"));
    }
    for stop in 0..=length {
        let part = run(&start, &turns, Cut::Whole, Some(stop));
        let same_error = part.1.is_none() || part.1 == whole.1;
        assert!(
            same_error && (begins(&whole.0, &part.0) || whole.1.is_some()),
            "after {stop} bytes: {part:#?}\nof {whole:#?}",
        );
    }
    let mut lines: Vec<String> = whole.0.iter().map(Seen::to_string).collect();
    lines.extend(whole.1.map(|error| format!("! {error}")));
    lines
}

/// The lines of a transcript: `C`, `S`, `E` or `!`, and what follows it.
fn lines(transcript: &str) -> impl Iterator<Item = (&str, &str)> {
    transcript.lines().filter_map(|line| {
        let line = line.split_once("//").map_or(line, |(line, _)| line).trim();
        let parts = line.split_once(' ');
        assert_eq!(parts.is_none(), line.is_empty(), "{line:?} says nothing");
        parts
    })
}

/// Plays the `C:` and `S:` lines of a transcript once, whole; nothing fails.
pub(crate) fn once<M: Machine>(machine: &mut M, transcript: &str) {
    for (actor, what) in lines(transcript) {
        match actor {
            "C:" => machine.client(what),
            "S:" => {
                let bytes = script::server(what, machine);
                let mut input = bytes.as_slice();
                match receive_events(machine, &mut input) {
                    Ok(_) | Err(Error::Unanswered) => assert!(input.is_empty(), "S: {what}"),
                    Err(error) => panic!("S: {what}: {error}"),
                }
            }
            _ => {}
        }
    }
}

/// Receives until the step is no event; returns that step.
pub(crate) fn receive_events<M: Machine>(machine: &mut M, input: &mut &[u8]) -> Taken {
    loop {
        match machine.receive(input) {
            Ok(Step::Event(_)) => {}
            other => return other,
        }
    }
}

/// Reads a transcript, and plays it line by line: cookies are known only when
/// their commands are sent.
fn compile<M: Machine>(start: impl Fn() -> M, transcript: &str) -> Vec<Turn> {
    let mut machine = start();
    let mut turns: Vec<Turn> = Vec::new();
    for (actor, what) in lines(transcript) {
        let fresh = turns.last().is_none_or(|turn| match actor {
            "C:" => !(turn.input.is_empty() && turn.events.is_empty()),
            "S:" => !turn.events.is_empty(),
            _ => false,
        });
        if fresh {
            turns.push(Turn::default());
        }
        let turn = turns.last_mut().unwrap();
        match actor {
            "C:" => {
                machine.client(what);
                turn.client.push(what.to_owned());
            }
            "S:" => {
                let bytes = script::server(what, &machine);
                turn.input.extend(&bytes);
                // Only to keep the state machine in step; `run` checks.
                let _ = receive_events(&mut machine, &mut bytes.as_slice());
            }
            "E:" => turn.events.push(what.to_owned()),
            "!" => turn.error = Some(what.to_owned()),
            _ => panic!("{actor} {what} is no line of a transcript"),
        }
    }
    turns
}

type Outcome = (Vec<Seen>, Option<String>);

/// One fragmentation has the same outcome as the whole input. Before an error
/// some extents more or fewer may have been delivered, because a batch is
/// checked before it becomes an event.
fn assert_same(whole: &Outcome, seen: &Outcome, how: &str) {
    let same = match whole.1 {
        None => whole == seen,
        Some(_) => whole.1 == seen.1 && (begins(&whole.0, &seen.0) || begins(&seen.0, &whole.0)),
    };
    assert!(same, "{how}:\n{seen:#?}\nwhole:\n{whole:#?}");
}

/// A driver: bytes that have arrived and are not consumed.
struct Link<M> {
    machine: M,
    buffer: Vec<u8>,
    inbox: Inbox<Vec<u8>>,
    seen: Vec<Seen>,
    /// The last answer that is no event.
    last: Taken,
}

impl<M: Machine> Link<M> {
    fn is_over(&self) -> bool {
        self.last.as_ref().is_err_and(Error::is_fatal)
    }

    fn error(&self) -> Option<Error> {
        self.last.as_ref().err().copied().filter(Error::is_fatal)
    }

    /// Offers what is there until the step is no event.
    fn receive(&mut self) {
        let mut input = self.buffer.as_slice();
        while !self.last.as_ref().is_err_and(Error::is_fatal) {
            let before = input.len();
            self.last = self.machine.receive(&mut input);
            assert!(input.len() <= before);
            match &self.last {
                Ok(Step::Event(event)) => event.clone().push(&mut self.seen),
                _ => break,
            }
        }
        let consumed = self.buffer.len() - input.len();
        self.buffer.drain(..consumed);
        self.check_step();
    }

    /// What must hold of every step that is no event, and of every error.
    fn check_step(&mut self) {
        let held = self.buffer.len();
        let room = self.machine.limits().buffer().max(self.machine.buffer());
        match &self.last {
            Err(error) if error.is_fatal() => {
                // It is returned again, whatever is offered.
                assert_eq!(self.machine.receive(&mut &b""[..]), self.last);
                assert_eq!(self.machine.receive(&mut &[0x67; 64][..]), self.last);
                return;
            }
            Ok(Step::Read(n)) => {
                assert!(held + n.get() <= room, "{held} bytes, and {n} to read");
            }
            Ok(Step::ReadPayload { length, .. }) => {
                assert_eq!(held, 0, "payload was held back");
                assert!(*length > 0, "a payload of no bytes");
            }
            Ok(Step::Finished) => {}
            Ok(Step::Transmit | Step::StartTls) | Err(_) => {
                assert_eq!(held, 0, "bytes were held back");
            }
            Ok(Step::Event(_) | Step::Content(_)) => unreachable!(),
        }
        // A step that was not taken is asked for again, and nothing is
        // consumed for it.
        let mut input = self.buffer.as_slice();
        assert_eq!(self.machine.receive(&mut input), self.last);
        assert_eq!(input.len(), held);
        let tls = Seen::Line("StartTls".to_owned());
        if self.last == Ok(Step::StartTls) && self.seen.last() != Some(&tls) {
            self.seen.push(tls);
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        if !self.is_over() {
            self.buffer.extend(bytes);
            self.receive();
        }
    }

    /// Reads only what the steps ask for, at most `most` bytes at once.
    fn exact(&mut self, mut bytes: &[u8], most: usize) {
        while !bytes.is_empty()
            && let Ok(step) = self.last.clone()
            && let Some(limit) = step.read_limit().map(NonZeroUsize::get)
        {
            let (now, later) = bytes.split_at(limit.min(most).min(bytes.len()));
            bytes = later;
            match step {
                Step::ReadPayload {
                    cookie,
                    offset,
                    length,
                } => self.payload(cookie, offset, length, now),
                _ => {
                    let held = self.buffer.len();
                    self.feed(now);
                    self.check_missing(held + limit, limit - now.len());
                }
            }
        }
        // Nothing was asked for, and bytes are there.
        if !bytes.is_empty() {
            self.feed(bytes);
        }
    }

    /// Takes payload past the state machine.
    fn payload(&mut self, cookie: Cookie, offset: u64, length: u64, data: &[u8]) {
        let n = data.len() as u64;
        Seen::Data {
            command: self.machine.command_of(cookie),
            offset,
            data: data.to_vec(),
        }
        .push(&mut self.seen);
        self.machine.advance(n, length);
        self.receive();
        if n < length {
            let left = Step::ReadPayload {
                cookie,
                offset: offset + n,
                length: length - n,
            };
            assert_eq!(self.last, Ok(left));
        }
    }

    /// After a part of what a step asked for: every byte of it belongs to the
    /// message under way, so what is `missing` is still asked for. It is all
    /// that is asked for where no header can turn out longer and where the
    /// message is not longer than the buffer.
    fn check_missing(&self, asked: usize, missing: usize) {
        if missing == 0 || self.is_over() {
            return;
        }
        let Ok(Step::Read(n)) = self.last else {
            panic!(
                "{missing} bytes are missing, and the step is {:?}",
                self.last
            );
        };
        assert!(n.get() >= missing, "{n} of {missing} bytes are asked for");
        if self.buffer.is_empty() && asked < self.machine.limits().buffer() {
            assert_eq!(n.get(), missing, "more than belongs to the message");
        }
    }

    /// Reads into a buffer of `size` bytes.
    fn bounded(&mut self, mut bytes: &[u8], size: usize) {
        while !bytes.is_empty() && !self.is_over() {
            let room = size - self.buffer.len();
            assert!(room > 0, "{size} bytes are there, and more are asked for");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            bytes = later;
            self.feed(now);
        }
    }

    /// Reads into the inbox, as much as it has space for.
    fn inbox(&mut self, mut bytes: &[u8]) {
        loop {
            self.last = self.machine.receive_from(&self.inbox);
            if let Ok(Step::Event(event)) = &self.last {
                event.clone().push(&mut self.seen);
                continue;
            }
            let space = self.inbox.space();
            let n = space.len().min(bytes.len());
            if n == 0 || self.last.as_ref().is_err_and(Error::is_fatal) {
                break;
            }
            space[..n].copy_from_slice(&bytes[..n]);
            self.inbox.filled(n).unwrap();
            bytes = &bytes[n..];
        }
        assert!(bytes.is_empty() || self.is_over(), "the inbox is full");
        self.buffer = self.inbox.held().to_vec();
        self.check_step();
    }
}

fn run<M: Machine>(
    start: impl Fn() -> M,
    turns: &[Turn],
    cut: Cut,
    stop: Option<usize>,
) -> Outcome {
    let size = match cut {
        Cut::Inbox(size) => size,
        _ => 0,
    };
    let mut link = Link {
        machine: start(),
        buffer: Vec::new(),
        inbox: Inbox::new(vec![0; size]),
        seen: Vec::new(),
        last: Ok(Step::Finished),
    };
    let mut at = 0;
    let mut due = Vec::new();
    let mut stopped = false;
    for turn in turns {
        turn.client
            .iter()
            .for_each(|line| link.machine.client(line));
        if !matches!(cut, Cut::Inbox(_)) {
            link.receive();
            // What the client did is all that it has to do.
            assert_ne!(link.last, Ok(Step::Transmit), "{:?}", turn.client);
        }
        let mut input = turn.input.as_slice();
        if let Some(stop) = stop.filter(|stop| *stop < at + input.len()) {
            input = &input[..stop - at];
            stopped = true;
        }
        match cut {
            Cut::Whole => link.feed(input),
            Cut::Pieces(n) => input.chunks(n).for_each(|piece| link.feed(piece)),
            Cut::At(place) => {
                let place = place.saturating_sub(at).min(input.len());
                link.feed(&input[..place]);
                link.feed(&input[place..]);
            }
            Cut::Exact(most) => link.exact(input, most),
            Cut::Buffer(size) => link.bounded(input, size),
            Cut::Inbox(_) => link.inbox(input),
        }
        due.extend(turn.events.iter().cloned());
        due.extend(turn.error.as_ref().map(|error| format!("! {error}")));
        if stopped || link.is_over() {
            break;
        }
        at += turn.input.len();
        if matches!(cut, Cut::Whole) && stop.is_none() {
            assert_due(&link, &due);
        }
    }
    if !stopped && matches!(cut, Cut::Whole) {
        assert_due(&link, &due);
    }
    finish(link)
}

fn assert_due<M: Machine>(link: &Link<M>, due: &[String]) {
    let mut seen: Vec<String> = link.seen.iter().map(Seen::to_string).collect();
    if let Some(error) = link.error() {
        seen.push(format!("! {}", link.machine.error(error)));
    }
    assert!(
        seen == due,
        "seen:\n  {}\ndue:\n  {}",
        seen.join("\n  "),
        due.join("\n  "),
    );
}

/// The connection ends: that is legal everywhere, and returns the same however
/// often it is reported.
fn finish<M: Machine>(mut link: Link<M>) -> Outcome {
    let error = link.error();
    let ended = link.machine.end_of_input();
    match (error, ended) {
        (Some(error), ended) => assert_eq!(ended, Err(error)),
        (None, Ok(()) | Err(Error::Closed | Error::ClosedDuring(_))) => {}
        (None, other) => panic!("{other:?}"),
    }
    assert_eq!(link.machine.end_of_input(), ended);
    let empty = link.machine.receive(&mut &b""[..]);
    let more = link.machine.receive(&mut &b"more"[..]);
    match ended {
        Ok(()) => {
            assert_eq!(empty, Ok(Step::Finished));
            let unsolicited = Error::Violation(Violation::Unsolicited);
            assert!(more == Ok(Step::Finished) || more == Err(unsolicited));
        }
        // An error that was reported as an event has ended the handshake.
        Err(error) => assert!(empty == Err(error) && more == Err(error)),
    }
    link.machine.assert_every_command_ended(&link.seen);
    (link.seen, error.map(|error| link.machine.error(error)))
}
