//! The cases for clients: a scripted server, correct in every dialect, then wrong in one
//! way each, and what the client does next.
//!
//! The client is a command; it is run once for each script. It is checked by
//!
//! - what it sends: the monitor of `nbd-codec` checks every option and request against what
//!   was negotiated and advertised. What a client sends to correct servers is found out once, and reported by
//!   one case for each duty (`cases/conduct.rs`);
//! - what it reports: its exit status. If its output depends on the content of the export
//!   (standard output, or the file that the command names `{out}`; with `{in}` the
//!   export), the output of a run with exit status 0 must be right;
//! - how it ends: not by a signal, and soon after the server has closed the connection;
//! - how it leaves: by `ABORT` or `DISC` where the specification demands it.
//!
//! A server that broke a rule closes the connection when the client sends nothing for a
//! while. So a client that waits for a reply that cannot come is no failure.

pub(crate) mod cases;
mod duties;
mod handshake;
mod message;
mod profile;
mod program;
mod replay;
mod reply;
mod run;
mod script;
mod server;
mod stage;
mod transmission;
mod trial;
mod watch;

pub use cases::all;
pub use duties::CLIENT_DUTIES;
pub use replay::replay;
pub use run::Runner;
pub(crate) use trial::{Run, Trial};
pub(crate) use watch::Observer;
