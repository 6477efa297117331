//! The faulty client of the tests, to see what the tester finds:
//!
//! ```sh
//! nbd-check client -- target/debug/examples/faulty_client GapAccepted read {port}
//! ```

#[path = "../tests/faulty_client/mod.rs"]
mod faulty_client;

use std::process::ExitCode;

use faulty_client::fault::{Fault, Mode};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let fault = arguments.next();
    let fault = fault.as_deref().and_then(Fault::parse);
    let mode = arguments.next();
    let mode = mode.as_deref().and_then(Mode::parse);
    let port: Option<u16> = arguments.next().and_then(|text| text.parse().ok());
    let (Some(fault), Some(mode), Some(port)) = (fault, mode, port) else {
        eprintln!(
            "usage: faulty_client FAULT read|map|write PORT; the faults are in \
             tests/faulty_client/fault.rs"
        );
        return ExitCode::FAILURE;
    };
    ExitCode::from(faulty_client::run(port, fault, mode))
}
