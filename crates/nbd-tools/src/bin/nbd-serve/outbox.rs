//! Outgoing replies of a connection.
//!
//! All threads of the connection add replies here. A thread that finds no other
//! thread writing writes: all replies, including those that are added meanwhile,
//! many with each system call, and without copying payloads.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_codec::server::{Reply, ReplyHeader};

use crate::batch::{Batch, MAX_SLICES};
use crate::budget::Permit;
use crate::buffer::Buffer;
use crate::socket::{Output, is_retryable};

/// The most messages in one write: each has up to three parts, and a system call
/// accepts 1024.
const BATCH: usize = 64;

/// Limits of the replies by [`Outbox::send_soon`] that the client has not read:
/// in bytes,
const MAX_UNSENT_BYTES: usize = 1 << 20;

/// and in messages.
const MAX_UNSENT_MESSAGES: usize = 64;

/// A reply, or a part of one.
pub struct Message {
    pub content: Content,
    /// Set for the last part of a reply.
    pub permit: Option<Permit>,
}

pub enum Content {
    Reply(Reply<'static>),
    Data(ReplyHeader, Buffer),
    /// Block status, or an error with its text.
    Bytes(Vec<u8>),
    /// Replies by [`Outbox::send_soon`] that the socket did not accept.
    Unsent(Vec<u8>),
}

impl Content {
    fn unsent(&self) -> Option<usize> {
        match self {
            Self::Unsent(bytes) => Some(bytes.len()),
            _ => None,
        }
    }

    fn parts(&self) -> [&[u8]; 3] {
        match self {
            Self::Reply(reply) => reply.parts(),
            Self::Data(header, data) => [header.as_bytes(), data, &[]],
            Self::Bytes(bytes) | Self::Unsent(bytes) => [bytes, &[], &[]],
        }
    }
}

pub struct Outbox {
    state: Mutex<State>,
}

struct State {
    queue: VecDeque<Message>,
    /// `None` while a thread writes, and after writing failed.
    output: Option<Box<dyn Output>>,
    /// The number of [`Content::Unsent`] messages, and their bytes.
    unsent_messages: usize,
    unsent_bytes: usize,
    broken: bool,
}

impl Outbox {
    pub fn new(output: Box<dyn Output>) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                output: Some(output),
                unsent_messages: 0,
                unsent_bytes: 0,
                broken: false,
            }),
        }
    }

    /// Sends `messages`, which are the parts of whole replies. If another thread
    /// is writing, that thread sends them. An error is returned once; afterwards
    /// messages are dropped.
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
            let unsent = batch.iter().filter_map(|message| message.content.unsent());
            let (count, bytes) = unsent.fold((0, 0), |(n, sum), bytes| (n + 1, sum + bytes));
            batch.clear();
            state = self.state();
            state.unsent_messages -= count;
            state.unsent_bytes -= bytes;
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

    /// Whether [`send_soon`](Self::send_soon) may be called.
    pub fn has_room(&self) -> bool {
        let state = self.state();
        state.unsent_bytes < MAX_UNSENT_BYTES && state.unsent_messages < MAX_UNSENT_MESSAGES
    }

    /// Sends `replies`, which are whole, but does not wait long for a client that
    /// does not read. Returns whether [`send`](Self::send) has to be called, with
    /// or without more messages, to send what remains.
    #[must_use = "what remains has to be sent"]
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
            let slices: Vec<_> = replies.parts().take(MAX_SLICES).map(IoSlice::new).collect();
            let result = output.write_soon(&slices);
            drop(slices);
            state = self.state();
            state.broken = result.is_err();
            sent = result?;
            state.output = Some(output);
        }
        if !replies.advance(sent) {
            let bytes: Vec<u8> = replies.parts().flatten().copied().collect();
            state.unsent_messages += 1;
            state.unsent_bytes += bytes.len();
            let content = Content::Unsent(bytes);
            let permit = None;
            // Other threads may have added messages. A reply that is partly
            // sent has to be continued first.
            if sent == 0 {
                state.queue.push_back(Message { content, permit });
            } else {
                state.queue.push_front(Message { content, permit });
            }
        }
        // A thread that is writing sends this, too.
        Ok(state.output.is_some() && !state.queue.is_empty())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all parts of all messages.
fn write(output: &mut dyn Output, messages: &[Message]) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); 3 * BATCH];
    let parts = messages.iter().flat_map(|message| message.content.parts());
    let parts = parts.filter(|part| !part.is_empty());
    let mut count = 0;
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
        count += 1;
    }
    let mut unwritten = &mut slices[..count];
    while !unwritten.is_empty() {
        match output.write_vectored(unwritten) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut unwritten, n),
            // The client does not read. Trying again and again would cost processor
            // time for as long as it does not.
            Err(error) if is_retryable(&error) => output.wait()?,
            Err(error) => return Err(error),
        }
    }
    output.flush()
}
