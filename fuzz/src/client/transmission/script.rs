//! Scripts for the client's `Transmission`: the caller's calls, and the
//! server's messages between them.

use crate::format::{List, Rest};
use crate::script::{Extent, Length, Mutation, Setup};
use crate::{enums, structs};

structs! {
    pub struct Script {
        setup: Setup,
        actions: Rest<Action>,
    }
}

enums! {
    pub enum Action {
        /// The caller submits a command.
        Submit { command: u8, flags: u16, offset: u64, length: u64 },
        /// The server sends the whole, valid reply to a command.
        Finish { to: u8, pieces: u8, fail: bool },
        /// The server sends a message whose length fields are consistent.
        Reply { to: u8, reply: Reply },
        /// The server sends a mutated message.
        Mutated { to: u8, reply: Reply, mutation: Mutation },
        /// The server sends arbitrary bytes.
        Raw { bytes: Vec<u8> },
        /// The caller asks for the block status of some contexts. The payload
        /// goes into a buffer of `space` bytes.
        BlockStatusOf { contexts: List<u8>, offset: u64, length: u64, flags: u16, space: u64 },
        /// The caller reports `n` bytes of payload as read directly.
        Advance { n: u64 },
        /// The caller sends DISC.
        Disconnect {},
        /// The connection ends.
        End {},
    }

    /// A message in reply to a command. Offsets are relative to the command's.
    pub enum Reply {
        Simple { error: u8, fill: u8 },
        Data { skip: Length, length: Length, last: bool, fill: u8 },
        Hole { skip: Length, length: Length, last: bool },
        None { last: bool },
        Status { context: u8, extents: List<Extent>, last: bool },
        Error { kind: u8, error: u8, message: u64, skip: Length, rest: Vec<u8>, last: bool },
        Other { kind: u16, payload: Vec<u8>, last: bool },
    }
}
