//! A client with faults: each of them is one switch. Without any it keeps to the
//! specification, and reports success only for data that came.

pub mod fault;
mod handshake;
mod transmission;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use fault::{Fault, Mode};

/// Why a session has no success.
#[derive(Debug)]
pub enum Failure {
    /// The server broke a rule: the client closes the connection.
    Violation(String),
    /// The server closed the connection.
    End,
    /// The server refused: the client leaves as the specification has it.
    Refused(String),
}

pub type Outcome<T = ()> = Result<T, Failure>;

pub fn violation<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Failure::Violation(text.into()))
}

/// A connection.
pub struct Client {
    stream: TcpStream,
    pub fault: Fault,
}

/// Runs the client; its exit status. The export is called "disk".
pub fn run(port: u16, fault: Fault, mode: Mode) -> u8 {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a server");
    let _ = stream.set_nodelay(true);
    let mut client = Client { stream, fault };
    let ended = match client.handshake(mode) {
        Ok(session) => client.transmission(session, mode),
        Err(Failure::Refused(text)) => {
            if fault != Fault::AbortNotSent {
                client.abort();
            }
            Err(Failure::Refused(text))
        }
        Err(failure) => Err(failure),
    };
    match ended {
        Ok(output) => {
            std::io::stdout()
                .write_all(&output)
                .expect("standard output");
            0
        }
        Err(Failure::End) if fault == Fault::EndIsSuccess => 0,
        Err(Failure::End) if fault == Fault::HangsAtEnd => loop {
            std::thread::park();
        },
        Err(Failure::End) if fault == Fault::CrashesAtEnd => std::process::abort(),
        Err(Failure::Violation(text) | Failure::Refused(text)) => {
            eprintln!("{text}");
            1
        }
        Err(Failure::End) => 1,
    }
}

impl Client {
    pub fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub fn take(&mut self, length: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; length];
        let read = self.stream.read_exact(&mut bytes);
        read.map_err(|_| Failure::End)?;
        Ok(bytes)
    }

    pub fn put(&mut self, bytes: &[u8]) -> Outcome {
        self.stream.write_all(bytes).map_err(|_| Failure::End)
    }
}
