//! What the tests of several packages share.

pub mod certificates;
pub mod images;
pub mod peer;
pub mod program;
pub mod server;
pub mod skipped;
