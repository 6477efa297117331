//! The faulty server of the tests, to see what the tester finds:
//!
//! ```sh
//! nbd-check server --destructive -- target/debug/examples/faulty DataOverlaps {port}
//! ```

#[path = "../tests/faulty/mod.rs"]
mod faulty;

use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let fault = arguments.next();
    let fault = fault.as_deref().and_then(faulty::Fault::parse);
    let port: Option<u16> = arguments.next().and_then(|text| text.parse().ok());
    let (Some(fault), Some(port)) = (fault, port) else {
        eprintln!("usage: faulty FAULT PORT; the faults are in tests/faulty/mod.rs");
        return ExitCode::FAILURE;
    };
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(listener) => faulty::run(&listener, fault),
        Err(error) => eprintln!("port {port}: {error}"),
    }
    ExitCode::FAILURE
}
