//! What the programs `nbd` and `nbd-serve` share. This is no stable interface.

#[doc(hidden)]
pub mod size;
