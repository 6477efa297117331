//! Attacks of a malicious peer on every state of a state machine: each type of
//! message with each length in its header, followed by bytes without end; byte
//! by byte, in pieces of the smallest buffer, and in bulk.
//!
//! Every attack checks that the state machine does not allocate, that every step
//! consumes input or asks for more, that the buffer of `Limits::buffer` is large
//! enough, and that an error is returned again. All of it runs on a small stack,
//! which a recursion that depends on the input would exhaust.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::thread;

use nbd_codec::{Error, Limits, Step};

use super::allocations;

/// A state machine, and a caller that takes its steps.
pub(crate) trait Target: Debug {
    /// Calls `receive` once, and does what the step asks for, except reads.
    fn receive(&mut self, input: &mut &[u8]) -> Result<Next, Error>;
    fn end_of_input(&mut self) -> Result<(), Error>;
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next step.
    Step,
    /// A read of at most `n` bytes.
    Read(usize),
    /// A read of payload, of at least one byte.
    ReadPayload,
    /// Nothing: the session is finished, or the caller does not answer.
    Stop,
}

impl Next {
    /// What follows a step that the caller has not taken yet.
    pub(crate) fn of<E, D>(step: &Step<E, D>) -> Self {
        match step {
            Step::Event(_) | Step::Content(_) => Self::Step,
            Step::Read(n) => Self::Read(n.get()),
            Step::ReadPayload { length, .. } => {
                assert!(*length > 0);
                Self::ReadPayload
            }
            _ => Self::Stop,
        }
    }
}

/// The largest message that does not come in pieces: a block status request
/// with 32 contexts.
pub(crate) const BUFFER: usize = 168;

/// Limits whose messages fit [`BUFFER`].
pub(crate) const LIMITS: Limits = Limits::for_buffer(BUFFER as u32);

/// 32-bit lengths around those of fixed fields, of the limits, and of a
/// wraparound.
pub(crate) fn lengths() -> Vec<u32> {
    let mut lengths: Vec<u32> = (0..=17).collect();
    for middle in [
        20,
        148,
        4096,
        8196,
        1 << 20,
        4 + (8 << 20),
        8 + (16 << 20),
        32 << 20,
        1 << 31,
        u32::MAX - 8,
        u32::MAX - 1,
    ] {
        lengths.extend([middle - 1, middle, middle + 1]);
    }
    lengths
}

/// The same in 64 bits.
pub(crate) fn wide_lengths() -> Vec<u64> {
    let mut lengths: Vec<u64> = lengths().into_iter().map(u64::from).collect();
    for middle in [1 << 32, 16 << 32, 1 << 63, u64::MAX - 8, u64::MAX - 1] {
        lengths.extend([middle - 1, middle, middle + 1]);
    }
    lengths
}

/// Bytes that follow the header of a message.
const FILLERS: [u8; 3] = [0, 1, 0xff];

/// How many of them follow in bulk.
const MANY: usize = 1 << 14;

/// Runs `attacks` on a stack that a recursion would exhaust.
pub(crate) fn on_a_small_stack(attacks: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(192 << 10);
    let ended = thread.spawn(attacks).expect("a thread").join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Sends `header` to a state machine, and bytes after it, in every
/// fragmentation; notes the states that the state machine is in.
pub(crate) fn attack<T: Target>(
    start: impl Fn() -> T,
    header: &[u8],
    states: &mut BTreeSet<String>,
) {
    note_states(start(), header, states);
    let mut over = false;
    check(start(), header, |target| {
        over = offer(target, header, &mut [0; BUFFER], 1, header.len());
    });
    // The header alone is an error.
    if over {
        return;
    }
    for filler in FILLERS {
        for piece in [1, BUFFER] {
            check(start(), header, |target| {
                offer(target, header, &mut [filler; BUFFER], piece, 2 * BUFFER);
            });
        }
        check(start(), header, |target| {
            offer(target, header, &mut [filler; MANY], MANY, MANY);
        });
    }
}

fn check<T: Target>(mut target: T, header: &[u8], attack: impl FnOnce(&mut T)) {
    let count = allocations(|| {
        attack(&mut target);
        end(&mut target);
    });
    assert_eq!(count, 0, "{header:02x?}: allocations");
}

/// Offers the header and the bytes of the buffer in pieces, up to `most` bytes;
/// true if that ended in an error.
fn offer(
    target: &mut impl Target,
    header: &[u8],
    buffer: &mut [u8],
    piece: usize,
    most: usize,
) -> bool {
    let filler = buffer[0];
    let (mut sent, mut held, mut steps) = (0, 0, 0);
    let mut next = Next::Step;
    while sent < most {
        let n = piece.min(buffer.len() - held);
        if n == 0 {
            assert_eq!(next, Next::Stop, "{header:02x?}: {target:?}: full buffer");
            return false;
        }
        let place = &mut buffer[held..held + n];
        place.fill(filler);
        let unsent = &header[sent.min(header.len())..];
        let unsent = &unsent[..unsent.len().min(n)];
        place[..unsent.len()].copy_from_slice(unsent);
        sent += n;
        held += n;
        let mut input = &buffer[..held];
        loop {
            match target.receive(&mut input) {
                Ok(Next::Step) => steps += 1,
                Ok(other) => {
                    next = other;
                    break;
                }
                Err(error) => {
                    stays(target, error, Err(error));
                    return true;
                }
            }
            // Two for each message (its event and its answer), none of which is
            // shorter than four bytes; one for each piece.
            let consumed = sent - input.len();
            assert!(
                steps <= 4 + consumed,
                "{header:02x?}: {steps} of {consumed}"
            );
        }
        let left = input.len();
        match next {
            // Never more than the buffer holds.
            Next::Read(n) => {
                let fits = 0 < n && left + n <= BUFFER;
                assert!(fits, "{header:02x?}: {n} bytes after {left}");
            }
            Next::ReadPayload => assert_eq!(left, 0, "{header:02x?}"),
            _ => {}
        }
        buffer.copy_within(held - left..held, 0);
        held = left;
    }
    false
}

/// An error is returned again, whatever is offered; `end` is the result of
/// `end_of_input`.
fn stays(target: &mut impl Target, error: Error, end: Result<(), Error>) {
    for _ in 0..2 {
        for bytes in [&b""[..], &[0; 64], b"NBDMAGIC"] {
            let mut input = bytes;
            assert_eq!(target.receive(&mut input), Err(error));
            assert_eq!(input, bytes, "consumed after an error");
        }
        let again = target.end_of_input();
        assert!(again == end || again == Err(error), "{again:?}");
    }
}

/// The peer closes the connection, in any state. After a clean end, the result
/// of `end_of_input` stays the same.
fn end(target: &mut impl Target) {
    match target.end_of_input() {
        Err(error) => stays(target, error, Err(error)),
        Ok(()) => {
            assert_eq!(target.end_of_input(), Ok(()));
            assert_eq!(target.end_of_input(), Ok(()));
        }
    }
}

/// Notes the states of a state machine between two steps, while the end of the
/// header and the bytes after it arrive one by one.
fn note_states(mut target: impl Target, header: &[u8], states: &mut BTreeSet<String>) {
    let at_once = header.len().saturating_sub(4);
    let mut held = header[..at_once].to_vec();
    for byte in header[at_once..].iter().chain(&[0; 12]) {
        loop {
            note(&target, states);
            let mut input = &held[..];
            let seen = target.receive(&mut input);
            held.drain(..held.len() - input.len());
            if seen != Ok(Next::Step) {
                break;
            }
        }
        note(&target, states);
        held.push(*byte);
    }
}

fn note(target: &impl Target, states: &mut BTreeSet<String>) {
    let text = format!("{target:?}");
    let (_, state) = text.split_once(" state: ").expect("a state");
    let name = |c: char| c.is_alphanumeric();
    let end = state.find(|c| !name(c)).unwrap_or(state.len());
    let mut state = &state[..end];
    // An event that is due and one that was reported are different states.
    let reported = ["Ready", "Tls", "Aborted"].contains(&state) && text.contains("reported: true");
    if reported {
        state = match state {
            "Ready" => "Ready, reported",
            "Tls" => "Tls, reported",
            _ => "Aborted, reported",
        };
    }
    if !states.contains(state) {
        states.insert(state.to_owned());
    }
}

/// Every state of a state machine was attacked.
pub(crate) fn assert_states(seen: &BTreeSet<String>, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|state| (*state).to_owned()).collect();
    assert_eq!(*seen, expected);
}
