//! The server's state machines, driven by scripts.

pub mod handshake;
pub mod transmission;

use crate::delivery::Delivery;
use crate::enums;

enums! {
    /// Input of the server's targets: a script for one state machine, and two
    /// ways to deliver the client's bytes.
    pub enum Run {
        Transmission { first: Delivery, second: Delivery, script: transmission::script::Script },
        Handshake { first: Delivery, second: Delivery, script: handshake::script::Script },
    }
}
