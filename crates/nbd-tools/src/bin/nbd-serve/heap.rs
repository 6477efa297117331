//! Freed memory, given back to the system.

/// How much is freed before [`give_back`] is worth its time.
pub const ENOUGH: usize = 16 << 20;

/// Gives freed memory back. The allocator of glibc otherwise keeps what is freed
/// below memory that is still in use, which may be all of it.
#[cfg(all(target_os = "linux", target_pointer_width = "64", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a function of the C library")]
pub fn give_back() {
    // SAFETY: it has no preconditions, and changes no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators do so themselves.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_env = "gnu")))]
pub fn give_back() {}
