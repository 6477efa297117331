//! A page for each kind of user.
//!
//! | page | for |
//! |---|---|
//! | [`async_runtime`] | clients and servers on tokio, smol, io_uring, threads |
//! | [`firmware`] | no operating system, no allocator |
//! | [`faults`] | what ends a session, what ends a command, and what is accepted |
//! | [`fuzzing`] | testing NBD programs, this crate among them |

#[doc = include_str!("async_runtime.md")]
pub mod async_runtime {}

#[doc = include_str!("faults.md")]
pub mod faults {}

#[doc = include_str!("firmware.md")]
pub mod firmware {}

#[doc = include_str!("fuzzing.md")]
pub mod fuzzing {}
