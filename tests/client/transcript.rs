//! Transcripts, and playing them in every fragmentation.
//!
//! A transcript is lines: `C:` what the client does and sends, `S:` what the
//! server sends, `E:` the events that are due by then. A transcript may end
//! with `!`, the error that ends the session. Lines begin in any column; `//`
//! begins a comment.

use nbd_codec::{Error, Need};

use super::script::{self, Commands};
use super::seen::{Seen, begins};

/// A machine as a transcript drives it.
pub(crate) trait Machine: Commands {
    /// Does what a `C:` line says, and checks every byte that it makes.
    fn client(&mut self, line: &str);
    /// Checks that the machine has nothing to say on its own.
    fn assert_silent(&mut self) {}
    fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Seen>, Error>;
    fn need(&self) -> Need;
    /// Reports payload that was read directly; checks that more is refused.
    fn advance(&mut self, _: u64) {
        panic!("no payload here")
    }
    /// Which command a payload belongs to.
    fn command_of(&self, _: Need) -> usize {
        panic!("no payload here")
    }
    fn end_of_input(&mut self) -> Result<(), Error>;
    /// Called when the session is over: every command must be accounted for.
    fn assert_accounted(&mut self, _: &[Seen]) {}
    /// How an error is written down.
    fn error(&self, error: Error) -> String {
        format!("{error:?}")
    }
    /// The smallest receive buffer that this machine's limits need.
    fn buffer(&self) -> usize;
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
    /// Only what `need` asks for, payload read directly, at most so many bytes
    /// at once.
    Exact(usize),
    /// Through a buffer of fixed size.
    Buffer(usize),
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

/// Reads a transcript, and plays it line by line: cookies are known only when
/// their commands are sent.
fn compile<M: Machine>(start: impl Fn() -> M, transcript: &str) -> Vec<Turn> {
    let mut machine = start();
    let mut turns: Vec<Turn> = Vec::new();
    for line in transcript.lines() {
        let line = line.split_once("//").map_or(line, |(line, _)| line).trim();
        let Some((who, what)) = line.split_once(' ').filter(|_| !line.is_empty()) else {
            assert!(line.is_empty(), "{line:?} says nothing");
            continue;
        };
        let fresh = turns.last().is_none_or(|turn| match who {
            "C:" => !(turn.input.is_empty() && turn.events.is_empty()),
            "S:" => !turn.events.is_empty(),
            _ => false,
        });
        if fresh {
            turns.push(Turn::default());
        }
        let turn = turns.last_mut().unwrap();
        match who {
            "C:" => {
                machine.client(what);
                turn.client.push(what.to_owned());
            }
            "S:" => {
                let bytes = script::server(what, &machine);
                let mut input = bytes.as_slice();
                turn.input.extend(&bytes);
                // Only to make the machine take part; judged later.
                while let Ok(Some(_)) = machine.receive(&mut input) {}
            }
            "E:" => turn.events.push(what.to_owned()),
            "!" => turn.error = Some(what.to_owned()),
            _ => panic!("{line:?} is no line of a transcript"),
        }
    }
    turns
}

type Outcome = (Vec<Seen>, Option<String>);

/// What came of one fragmentation is what came of the whole input. Before an
/// error some extents more or fewer may have been delivered, because a batch
/// is judged before it becomes an event.
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
    seen: Vec<Seen>,
    error: Option<Error>,
}

impl<M: Machine> Link<M> {
    /// Offers what is there until the machine wants more.
    fn receive(&mut self) {
        let mut input = self.buffer.as_slice();
        while self.error.is_none() {
            let before = input.len();
            match self.machine.receive(&mut input) {
                Ok(Some(event)) => event.push(&mut self.seen),
                Ok(None) => break,
                Err(error) => self.error = Some(error),
            }
            assert!(input.len() <= before);
        }
        let consumed = self.buffer.len() - input.len();
        self.buffer.drain(..consumed);
        if let Some(error) = self.error {
            // It stays, whatever is offered.
            assert_eq!(self.machine.receive(&mut &b""[..]), Err(error));
            assert_eq!(self.machine.receive(&mut &[0x67; 64][..]), Err(error));
            assert_eq!(self.machine.need(), Need::Nothing);
        } else if let Need::Header(n) = self.machine.need() {
            assert!(
                n > self.buffer.len(),
                "wants {n} bytes, has {}, and waits: a reader would hang",
                self.buffer.len(),
            );
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
        self.receive();
    }

    /// Reads only what is needed, at most `most` at once.
    fn exact(&mut self, mut bytes: &[u8], most: usize) {
        while self.error.is_none() {
            let n = match self.machine.need() {
                Need::Header(n) => n.saturating_sub(self.buffer.len()),
                Need::Payload { length, .. } => usize::try_from(length).unwrap(),
                Need::Nothing => 0,
            };
            let (now, rest) = bytes.split_at(n.min(most).min(bytes.len()));
            if now.is_empty() {
                assert!(
                    bytes.is_empty() || self.machine.need() == Need::Nothing,
                    "a reader has no reason to read the {} bytes that are there",
                    bytes.len(),
                );
                break;
            }
            bytes = rest;
            if let need @ Need::Payload { offset, .. } = self.machine.need() {
                assert!(self.buffer.is_empty(), "read too much");
                let data = Seen::Data {
                    command: self.machine.command_of(need),
                    offset,
                    data: now.to_vec(),
                };
                data.push(&mut self.seen);
                self.machine.advance(now.len() as u64);
                self.receive();
            } else {
                self.feed(now);
                if now.len() < n.min(most) && self.error.is_none() && self.buffer.is_empty() {
                    // All was taken: what is missing is all that was asked for,
                    // or a reader would have waited for more than there is.
                    let missing = Need::Header(n - now.len());
                    assert_eq!(self.machine.need(), missing, "more than needed");
                }
            }
        }
        if self.error.is_none() && !bytes.is_empty() {
            // Nothing was asked for, and something is there.
            self.feed(bytes);
        }
    }

    /// Reads into a buffer of `size` bytes.
    fn bounded(&mut self, mut bytes: &[u8], size: usize) {
        while !bytes.is_empty() && self.error.is_none() {
            let room = size - self.buffer.len();
            assert!(room > 0, "{size} bytes are there, and the machine waits");
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            bytes = rest;
            self.feed(now);
        }
    }
}

fn run<M: Machine>(
    start: impl Fn() -> M,
    turns: &[Turn],
    cut: Cut,
    stop: Option<usize>,
) -> Outcome {
    let mut link = Link {
        machine: start(),
        buffer: Vec::new(),
        seen: Vec::new(),
        error: None,
    };
    let mut at = 0;
    let mut due = Vec::new();
    let mut stopped = false;
    for turn in turns {
        turn.client
            .iter()
            .for_each(|line| link.machine.client(line));
        link.machine.assert_silent();
        let mut input = turn.input.as_slice();
        if let Some(stop) = stop.filter(|stop| *stop < at + input.len()) {
            input = &input[..stop - at];
            stopped = true;
        }
        match cut {
            Cut::Whole => link.feed(input),
            Cut::Pieces(n) => input.chunks(n).for_each(|piece| {
                if link.error.is_none() {
                    link.feed(piece);
                }
            }),
            Cut::At(place) => {
                let place = place.saturating_sub(at).min(input.len());
                link.feed(&input[..place]);
                if link.error.is_none() {
                    link.feed(&input[place..]);
                }
            }
            Cut::Exact(most) => link.exact(input, most),
            Cut::Buffer(size) => link.bounded(input, size),
        }
        if stopped || link.error.is_some() {
            due.extend(turn.events.iter().cloned());
            due.extend(turn.error.as_ref().map(|error| format!("! {error}")));
            break;
        }
        at += turn.input.len();
        due.extend(turn.events.iter().cloned());
        due.extend(turn.error.as_ref().map(|error| format!("! {error}")));
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
    if let Some(error) = link.error {
        seen.push(format!("! {}", link.machine.error(error)));
    }
    assert!(
        seen == due,
        "seen:\n  {}\ndue:\n  {}",
        seen.join("\n  "),
        due.join("\n  "),
    );
}

/// The connection ends: that is legal everywhere, and said again and again.
fn finish<M: Machine>(mut link: Link<M>) -> Outcome {
    let error = link.error.map(|error| link.machine.error(error));
    let ended = link.machine.end_of_input();
    match link.error {
        Some(error) => assert_eq!(ended, Err(error)),
        None => assert!(matches!(ended, Ok(()) | Err(Error::Closed))),
    }
    let last = link.error.unwrap_or(Error::Closed);
    let again = link.machine.end_of_input();
    assert!(again == Err(last) || (ended.is_ok() && again.is_ok()));
    assert_eq!(link.machine.receive(&mut &b"more"[..]), Err(last));
    assert_eq!(link.machine.need(), Need::Nothing);
    link.machine.assert_accounted(&link.seen);
    (link.seen, error)
}
