//! What the programs `nbd` and `nbd-serve` share. It is not a stable interface.

#[doc(hidden)]
pub mod size;
#[doc(hidden)]
pub mod time;
