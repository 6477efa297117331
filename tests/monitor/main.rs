//! The monitor, checked by transcripts: each one whole, byte by byte and cut in
//! two at every position, with the same messages and findings.

mod findings;
mod messages;
mod order;
mod recorded;
#[path = "../server/script.rs"]
mod script;
mod see;
