//! The server role.
//!
//! | phase | machine | it ends with |
//! |---|---|---|
//! | handshake | [`Handshake`]: options in, replies out | [`Negotiated`](crate::Negotiated) |
//! | transmission | [`Transmission`]: requests in, as tokens that make their replies | the end of the connection |

mod answer;
mod export;
pub mod handshake;
mod inquiry;
mod judge;
pub mod narrow;
mod offer;
mod read;
mod reply;
mod request;
mod status;
mod transmission;
mod verdict;

pub use export::{Export, MetaContext};
pub use handshake::Handshake;
pub use inquiry::Inquiry;
pub use offer::{Offer, TlsMode};
pub use read::{Chunks, Read};
pub use reply::{Head, Reply};
pub use request::{Cache, Flush, Request, Resize, Returned, Trim, Write, WriteZeroes};
pub use status::{BlockStatus32, BlockStatus64};
pub use transmission::{Event, Transmission};
