//! Code that the fuzz targets share. `../docs/fuzzing.md` says what each target
//! checks, and how to run them.

pub mod client;
pub mod compare;
pub mod delivery;
pub mod monitor;
pub mod pair;
pub mod recorded;
pub mod reference;
pub mod reply_event;
pub mod script;
pub mod server;
pub mod snapshot;
pub mod steps;
pub mod wire;

pub use nbd_check::fuzz::format;
pub use nbd_check::{enums, structs};
