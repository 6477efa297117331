//! What the fuzz targets share. `../docs/fuzzing.md` says what each of them
//! shows, and how to run them.

pub mod agree;
pub mod client;
pub mod compare;
pub mod delivery;
pub mod facts;
pub mod handshake;
pub mod host;
pub mod pair;
pub mod peer;
pub mod reader;
pub mod recorded;
pub mod script;
pub mod server;
pub mod talk;
pub mod tape;
pub mod wire;
