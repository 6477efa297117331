//! Replies on their way out.
//!
//! Whoever has a reply puts it here. The first one to find nobody writing
//! writes, all there is and all that is added meanwhile, many replies at a
//! time and payloads from where they are.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_codec::server::{Head, Reply};

use crate::batch::{Batch, MOST_SLICES};
use crate::budget::Permit;
use crate::buffer::Buffer;
use crate::socket::{Output, is_no_error};

/// Most messages in one write: each has up to three parts, and a system call
/// takes 1024.
const BATCH: usize = 64;

/// Replies that were made at once wait for the client to read them up to so
/// many bytes,
const MOST_REST: usize = 1 << 20;

/// and so many messages.
const MOST_RESTS: usize = 64;

/// A reply, or a part of one.
pub struct Message {
    pub content: Content,
    /// With the last part of a reply.
    pub permit: Option<Permit>,
}

pub enum Content {
    Reply(Reply<'static>),
    Data(Head, Buffer),
    /// Status, or an error with its text.
    Bytes(Vec<u8>),
    /// What the socket did not take of replies that were made at once.
    Rest(Vec<u8>),
}

impl Content {
    fn rest(&self) -> Option<usize> {
        match self {
            Self::Rest(bytes) => Some(bytes.len()),
            _ => None,
        }
    }

    fn parts(&self) -> [&[u8]; 3] {
        match self {
            Self::Reply(reply) => reply.parts(),
            Self::Data(head, data) => [head.as_bytes(), data, &[]],
            Self::Bytes(bytes) | Self::Rest(bytes) => [bytes, &[], &[]],
        }
    }
}

pub struct Outbox {
    state: Mutex<State>,
}

struct State {
    queue: VecDeque<Message>,
    /// Away while somebody writes, and for ever once writing has failed.
    output: Option<Box<dyn Output>>,
    /// Messages of [`Content::Rest`] that are not sent, and their bytes.
    rests: usize,
    rest: usize,
    broken: bool,
}

impl Outbox {
    pub fn new(output: Box<dyn Output>) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                output: Some(output),
                rests: 0,
                rest: 0,
                broken: false,
            }),
        }
    }

    /// Sends `messages`, which are the parts of whole replies, now or through
    /// somebody who writes already. An error is reported once; afterwards
    /// nothing is sent any more.
    pub fn send(&self, messages: impl Iterator<Item = Message>) -> io::Result<()> {
        let mut state = self.state();
        if state.broken {
            return Ok(());
        }
        state.queue.extend(messages);
        let Some(mut output) = state.output.take() else {
            return Ok(());
        };
        let mut batch = Vec::with_capacity(BATCH.min(state.queue.len()));
        while !state.queue.is_empty() {
            let n = state.queue.len().min(BATCH);
            batch.extend(state.queue.drain(..n));
            drop(state);
            let result = write(&mut *output, &batch);
            let rests = batch.iter().filter_map(|message| message.content.rest());
            let (rests, rest) = rests.fold((0, 0), |(n, sum), rest| (n + 1, sum + rest));
            batch.clear();
            state = self.state();
            state.rests -= rests;
            state.rest -= rest;
            if result.is_err() {
                state.broken = true;
                let lost = std::mem::take(&mut state.queue);
                drop(state);
                drop(lost);
                return result;
            }
        }
        state.output = Some(output);
        Ok(())
    }

    /// Whether replies that were made at once can still be added.
    pub fn has_room(&self) -> bool {
        let state = self.state();
        state.rest < MOST_REST && state.rests < MOST_RESTS
    }

    /// Sends `replies`, which are whole, but does not wait long for a client
    /// that does not read. The rest is for [`send`](Self::send), with or
    /// without more messages; whether there is one.
    #[must_use = "the rest has to be sent"]
    pub fn send_soon(&self, replies: &mut Batch) -> io::Result<bool> {
        let mut state = self.state();
        if state.broken {
            return Ok(false);
        }
        let mut sent = 0;
        if state.queue.is_empty()
            && let Some(mut output) = state.output.take()
        {
            drop(state);
            let slices: Vec<_> = replies
                .parts()
                .take(MOST_SLICES)
                .map(IoSlice::new)
                .collect();
            let result = output.write_soon(&slices);
            drop(slices);
            state = self.state();
            state.broken = result.is_err();
            sent = result?;
            state.output = Some(output);
        }
        if !replies.advance(sent) {
            let rest: Vec<u8> = replies.parts().flatten().copied().collect();
            state.rests += 1;
            state.rest += rest.len();
            let content = Content::Rest(rest);
            let permit = None;
            // Others have added theirs meanwhile. It is begun, so it is first.
            match sent {
                0 => state.queue.push_back(Message { content, permit }),
                _ => state.queue.push_front(Message { content, permit }),
            }
        }
        // Whoever writes already takes it along.
        Ok(state.output.is_some() && !state.queue.is_empty())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all parts of all messages.
fn write(output: &mut dyn Write, messages: &[Message]) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); 3 * BATCH];
    let parts = messages.iter().flat_map(|message| message.content.parts());
    let parts = parts.filter(|part| !part.is_empty());
    let mut count = 0;
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
        count += 1;
    }
    let mut rest = &mut slices[..count];
    while !rest.is_empty() {
        match output.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) if is_no_error(&error) => {}
            Err(error) => return Err(error),
        }
    }
    output.flush()
}
