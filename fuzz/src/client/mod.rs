//! The client's state machines, driven by scripts.

pub mod handshake;
pub mod transmission;

use crate::delivery::Delivery;
use crate::enums;

enums! {
    /// Input of the client's targets: a script for one state machine, and two
    /// ways to deliver the server's bytes.
    pub enum Run {
        Transmission { first: Delivery, second: Delivery, script: transmission::script::Script },
        Handshake { first: Delivery, second: Delivery, script: handshake::script::Script },
        Connector { first: Delivery, second: Delivery, script: handshake::script::Script },
    }
}
