//! The driver on `io_uring`, where there is none.

use std::io;
use std::sync::Arc;

use crate::server::{NewClient, Server};

/// There is no value of it.
pub enum Engine {}

impl Engine {
    /// Fails.
    pub fn start(_: &Arc<Server>) -> io::Result<Self> {
        let text = "it needs 64-bit Linux";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    pub fn add_client(&self, _: NewClient) {
        match *self {}
    }
}
