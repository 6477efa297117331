//! Every message of the protocol against its bytes.
//!
//! Each vector is a transcript (`C:` or `S:`, then bytes in the notation of
//! [`support::bytes`]) and the value that it encodes. [`support`] has the
//! checks that every vector passes.

mod chunk;
mod chunk_length;
mod extent;
mod flags;
mod greeting;
mod meta_context;
mod number;
mod option;
mod option_reply;
mod reply;
mod request;
mod roundtrip;
mod sink;
mod support;
mod text;
