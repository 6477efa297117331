//! A conformance tester for NBD servers and clients: the library of the program
//! `nbd-check`. What follows is about servers; [`client`] is about clients.
//!
//! # Design
//!
//! - **A table of cases.** [`cases::all`] makes it: an id, the duty (its id in
//!   `docs/conformance.md`, section, `MUST` or `SHOULD`, requirement), what is sent,
//!   what is accepted, what the server must have, and the steps. Combinations are
//!   generated: framing × command × flag, option × length, ranges at every edge. To
//!   add a case, read one file in `cases/`.
//! - **A blocking connection** records every byte of both directions, and waits for
//!   none longer than a limit. All bytes pass two functions; there a passive observer
//!   of both directions can be attached.
//! - **Every reply is checked**, whatever the case is about: its bytes by
//!   [`nbd_codec::wire`], its meaning against the request: cookie, framing, bounds,
//!   overlap, completeness, contexts. A chunk outside of its request is found by
//!   whichever case it comes in, under the duty that it breaks.
//! - **After every refusal one good command is still answered.** Payloads and option
//!   data that must be discarded are made of requests and options with a cookie and a
//!   number of their own: a reply to one of them shows that the server executed what
//!   it had to discard.
//! - **Nothing is accused that the text permits.** A side that detects a violation may
//!   disconnect: after a request that breaks a `MUST`, the end of the connection is a
//!   `SHOULD` at most. Limits that the text permits (options, clients, payloads) are no
//!   failures. What is unspecified is reported for information.
//! - **What a server has is found out once**, and what it does not have is skipped
//!   with this reason. Without [`Options::destructive`] no case writes.
//! - **Outcomes**: [`Outcome`], and how the last connection ended ([`End`]). A
//!   server that the tester started is started again if it ends; the case that ended
//!   it fails.
//!
//! The proof that it can fail is in `tests/`: a server with more than 70 faults, one
//! switch each. Without any it passes every case; with each, a case names the duty.
//!
//! # Fuzzing
//!
//! [`fuzz`] attacks any server or client with scripts from a fuzzer, in ten lines.
//!
//! # Use as a library
//!
//! ```no_run
//! use nbd_check::{Options, Runner, Target, Outcome, cases};
//!
//! let target = Target::running("nbd://localhost/disk".parse()?)?;
//! let mut runner = Runner::new(target, Options::default())?;
//! for case in cases::all() {
//!     let result = runner.run(&case);
//!     if result.outcome == Outcome::Fail {
//!         println!("{}: {:?}", result.id, result.findings);
//!     }
//! }
//! # Ok::<(), anyhow::Error>(())
//! ```

mod case;
pub mod cases;
pub mod client;
mod command;
mod connection;
mod deviations;
mod duty;
pub mod fuzz;
mod handshake;
mod hex;
mod outcome;
mod probe;
mod profile;
pub mod replay;
mod reply;
pub mod report;
mod request;
mod run;
mod session;
mod stream;
mod target;
pub mod tls;
pub mod transcript;
mod trial;
mod watch;

pub use case::Case;
pub use deviations::Deviations;
pub use duty::{DUTIES, Duty, Level};
pub use outcome::{End, Finding, Outcome};
pub use run::{CaseResult, Options, Runner};
pub use stream::Address;
pub use target::Target;
