//! Every message of the protocol against bytes written out by hand.
//!
//! Vectors are transcripts: `C:` or `S:`, then the bytes as
//! [`support::bytes`] reads them, then the value they stand for. What is
//! checked of every one of them is in [`support`].

mod chunk;
mod chunk_length;
mod extent;
mod flags;
mod greeting;
mod number;
mod option;
mod option_reply;
mod reply;
mod request;
mod roundtrip;
mod sink;
mod support;
mod text;
