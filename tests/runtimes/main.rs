//! The drivers of `examples/` that share a connection, own their payloads or do
//! without an allocator, with live peers. Each test runs the code of the
//! example itself.

mod embedded_client;
mod framed;
mod futures_client;
mod programs;

/// Numbers that look random, the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
