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
use crate::pipe::Pipe;
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
    Data(ReplyHeader, Payload),
    /// Block status, or an error with its text.
    Bytes(Vec<u8>),
    /// Replies by [`Outbox::send_soon`] that the socket did not accept.
    Unsent(Vec<u8>),
    UnsentPipe(Pipe),
}

/// The data of a read.
pub enum Payload {
    Copied(Buffer),
    Piped(Pipe),
}

impl Content {
    fn unsent(&self) -> Option<usize> {
        match self {
            Self::Unsent(bytes) => Some(bytes.len()),
            Self::UnsentPipe(pipe) => Some(pipe.length()),
            _ => None,
        }
    }

    pub fn parts(&self) -> [&[u8]; 3] {
        match self {
            Self::Reply(reply) => reply.parts(),
            Self::Data(header, Payload::Copied(data)) => [header.as_bytes(), data, &[]],
            Self::Data(header, Payload::Piped(_)) => [header.as_bytes(), &[], &[]],
            Self::Bytes(bytes) | Self::Unsent(bytes) => [bytes, &[], &[]],
            Self::UnsentPipe(_) => [&[], &[], &[]],
        }
    }

    /// What follows the parts.
    fn pipe(&mut self) -> Option<&mut Pipe> {
        match self {
            Self::Data(_, Payload::Piped(pipe)) | Self::UnsentPipe(pipe) => Some(pipe),
            _ => None,
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
            let unsent = batch.iter().filter_map(|message| message.content.unsent());
            let (count, bytes) = unsent.fold((0, 0), |(n, sum), bytes| (n + 1, sum + bytes));
            let result = write(&mut *output, &mut batch);
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
        let size = replies.unsent();
        if state.queue.is_empty()
            && let Some(mut output) = state.output.take()
        {
            drop(state);
            let result = write_soon(&mut *output, replies);
            state = self.state();
            state.broken = result.is_err();
            result?;
            state.output = Some(output);
        }
        let begun = replies.unsent() < size;
        let bytes: Vec<u8> = replies.parts().flatten().copied().collect();
        let bytes = (!bytes.is_empty()).then_some(Content::Unsent(bytes));
        let pipe = replies.pipe.take().filter(|pipe| pipe.length() > 0);
        let left = bytes.into_iter().chain(pipe.map(Content::UnsentPipe));
        let left = left.map(|content| Message {
            content,
            permit: None,
        });
        let left: Vec<_> = left.collect();
        state.unsent_messages += left.len();
        let unsent = left.iter().filter_map(|message| message.content.unsent());
        state.unsent_bytes += unsent.sum::<usize>();
        // Other threads may have added messages. A reply that is partly sent has to be
        // continued first.
        if begun {
            left.into_iter()
                .rev()
                .for_each(|message| state.queue.push_front(message));
        } else {
            state.queue.extend(left);
        }
        // A thread that is writing sends this, too.
        Ok(state.output.is_some() && !state.queue.is_empty())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what the client accepts soon.
fn write_soon(output: &mut dyn Output, replies: &mut Batch) -> io::Result<()> {
    let slices: Vec<_> = replies.parts().take(MAX_SLICES).map(IoSlice::new).collect();
    if !slices.is_empty() {
        let sent = output.write_soon(&slices)?;
        drop(slices);
        if !replies.advance(sent) {
            return Ok(());
        }
    }
    match &mut replies.pipe {
        Some(pipe) => output.splice_soon(pipe),
        None => Ok(()),
    }
}

/// Writes all parts of all messages.
fn write(output: &mut dyn Output, mut messages: &mut [Message]) -> io::Result<()> {
    while !messages.is_empty() {
        let piped = messages
            .iter_mut()
            .position(|message| message.content.pipe().is_some());
        let (now, later) = messages.split_at_mut(piped.map_or(messages.len(), |n| n + 1));
        write_parts(output, now)?;
        if let Some(pipe) = now.last_mut().and_then(|message| message.content.pipe()) {
            while pipe.length() > 0 {
                let before = pipe.length();
                output.splice_soon(pipe)?;
                if pipe.length() == before {
                    output.wait()?;
                }
            }
        }
        messages = later;
    }
    output.flush()
}

fn write_parts(output: &mut dyn Output, messages: &[Message]) -> io::Result<()> {
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
    Ok(())
}
