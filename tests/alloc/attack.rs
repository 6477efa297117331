//! The worst a peer can say to a machine, in every state it has: any kind of
//! message with any length in its header, and behind that bytes without end;
//! byte by byte, as much as the smallest buffer holds, and in bulk.
//!
//! However it ends, nothing was allocated, no look at the input was for
//! nothing, the smallest buffer was enough, and an error stayed. All of it runs
//! on a small stack, which a recursion by what the peer sends would exhaust.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::thread;

use nbd_codec::{Error, Limits, Need};

use super::allocations;

/// A machine, and a caller who does what he is asked for.
pub(crate) trait Victim: Debug {
    /// One look at the input, and what the caller makes of it; false if nothing
    /// happened.
    fn look(&mut self, input: &mut &[u8]) -> Result<bool, Error>;
    fn need(&self) -> Need;
    fn end_of_input(&mut self) -> Result<(), Error>;
}

/// Limits for [`BUFFER`].
pub(crate) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.option_data = 148;
    limits.error_message = 122;
    limits
}

/// What the largest message takes that is not passed on in pieces: 32 contexts
/// in a block status request.
pub(crate) const BUFFER: usize = 168;

/// Lengths in 32 bits: what fixed fields take, what limits allow, and what
/// wraps around; each one too short and too long.
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

/// Lengths in 64 bits.
pub(crate) fn wide_lengths() -> Vec<u64> {
    let mut lengths: Vec<u64> = lengths().into_iter().map(u64::from).collect();
    for middle in [1 << 32, 16 << 32, 1 << 63, u64::MAX - 8, u64::MAX - 1] {
        lengths.extend([middle - 1, middle, middle + 1]);
    }
    lengths
}

/// What stands behind the head of a message.
const FILLERS: [u8; 3] = [0, 1, 0xff];

/// How much of it comes in bulk.
const MANY: usize = 1 << 14;

/// Runs `attacks` where a recursion would not go far.
pub(crate) fn on_a_small_stack(attacks: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(192 << 10);
    let ended = thread.spawn(attacks).expect("a thread").join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Says `head` to a machine, and what may follow, in every way; notes the
/// states that the machine comes through.
pub(crate) fn attack<V: Victim>(start: impl Fn() -> V, head: &[u8], states: &mut BTreeSet<String>) {
    note_states(start(), head, states);
    let mut over = false;
    assaulted(start(), head, |victim| {
        over = offer(victim, head, &mut [0; BUFFER], 1, head.len());
    });
    // What is judged by its head has nothing behind it.
    if over {
        return;
    }
    for filler in FILLERS {
        for piece in [1, BUFFER] {
            assaulted(start(), head, |victim| {
                offer(victim, head, &mut [filler; BUFFER], piece, 2 * BUFFER);
            });
        }
        assaulted(start(), head, |victim| {
            offer(victim, head, &mut [filler; MANY], MANY, MANY);
        });
    }
}

fn assaulted<V: Victim>(mut victim: V, head: &[u8], assault: impl FnOnce(&mut V)) {
    let count = allocations(|| {
        assault(&mut victim);
        end(&mut victim);
    });
    assert_eq!(count, 0, "{head:02x?}: allocations");
}

/// Offers the head and what fills the buffer, in pieces, until there are `most`
/// or the machine has enough; whether that was an error.
fn offer(
    victim: &mut impl Victim,
    head: &[u8],
    buffer: &mut [u8],
    piece: usize,
    most: usize,
) -> bool {
    let filler = buffer[0];
    let (mut sent, mut held, mut steps) = (0, 0, 0);
    while sent < most {
        let n = piece.min(buffer.len() - held);
        if n == 0 {
            // A caller who is asked, or a session that has ended.
            let waits = matches!(victim.need(), Need::Nothing);
            assert!(waits, "{head:02x?}: {victim:?} waits for more than fits");
            return false;
        }
        let place = &mut buffer[held..held + n];
        place.fill(filler);
        let front = &head[sent.min(head.len())..];
        let front = &front[..front.len().min(n)];
        place[..front.len()].copy_from_slice(front);
        sent += n;
        held += n;
        let mut input = &buffer[..held];
        loop {
            match victim.look(&mut input) {
                Ok(true) => steps += 1,
                Ok(false) => break,
                Err(error) => {
                    stays(victim, error, Err(error));
                    return true;
                }
            }
            // Two for each message (what was said and what is answered), none
            // of which is shorter than four bytes; one for each piece.
            let consumed = sent - input.len();
            assert!(steps <= 4 + consumed, "{head:02x?}: {steps} of {consumed}");
        }
        let left = input.len();
        buffer.copy_within(held - left..held, 0);
        held = left;
    }
    false
}

/// An error stays, whatever comes; `end` is what is said of the connection's.
fn stays(victim: &mut impl Victim, error: Error, end: Result<(), Error>) {
    for _ in 0..2 {
        for bytes in [&b""[..], &[0; 64], b"NBDMAGIC"] {
            let mut input = bytes;
            assert_eq!(victim.look(&mut input), Err(error));
            assert_eq!(input, bytes, "consumed behind an error");
        }
        assert_eq!(victim.need(), Need::Nothing);
        let again = victim.end_of_input();
        assert!(again == end || again == Err(error), "{again:?}");
    }
}

/// The connection ends, in any state; and that stays too.
fn end(victim: &mut impl Victim) {
    let end = victim.end_of_input();
    stays(victim, end.err().unwrap_or(Error::Closed), end);
}

/// The names of the states in which the machine is between two looks: the end
/// of the head and what follows byte by byte.
fn note_states(mut victim: impl Victim, head: &[u8], states: &mut BTreeSet<String>) {
    let at_once = head.len().saturating_sub(4);
    let mut held = head[..at_once].to_vec();
    for byte in head[at_once..].iter().chain(&[0; 12]) {
        loop {
            note(&victim, states);
            let mut input = &held[..];
            let seen = victim.look(&mut input);
            held.drain(..held.len() - input.len());
            if seen != Ok(true) {
                break;
            }
        }
        note(&victim, states);
        held.push(*byte);
    }
}

fn note(victim: &impl Victim, states: &mut BTreeSet<String>) {
    let text = format!("{victim:?}");
    let (_, state) = text.split_once(" state: ").expect("a state");
    let name = |c: char| c.is_alphanumeric();
    let end = state.find(|c| !name(c)).unwrap_or(state.len());
    let mut state = &state[..end];
    // What is due is another state than what was reported.
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

/// Every state of a machine was attacked.
pub(crate) fn assert_states(seen: &BTreeSet<String>, due: &[&str]) {
    let due: BTreeSet<String> = due.iter().map(|state| (*state).to_owned()).collect();
    assert_eq!(*seen, due);
}
