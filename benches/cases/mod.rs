//! The operations that are measured.

mod commands;
mod extents;
mod headers;
mod server;
mod streams;

/// An operation, done `count` times.
pub struct Case {
    pub name: &'static str,
    pub run: fn(count: u64),
    /// A count whose cost is large against the start of the process.
    pub count: u64,
    /// The case of a bare loop that does the least possible work.
    pub limit: Option<&'static str>,
    /// The case in which another crate does the same.
    pub other: Option<&'static str>,
}

pub const ALL: &[Case] = &[
    headers::ENCODE_COMPACT,
    headers::ENCODE_EXTENDED,
    headers::DECODE_COMPACT,
    headers::DECODE_EXTENDED,
    headers::DECODE_SIMPLE,
    headers::DECODE_STRUCTURED,
    headers::DECODE_EXTENDED_REPLY,
    headers::BARE_32,
    commands::SIMPLE_1,
    commands::STRUCTURED_1,
    commands::EXTENDED_1,
    commands::EXTENDED_32,
    commands::EXTENDED_1024,
    commands::EXTENDED_65536,
    commands::BARE_SIMPLE_1,
    commands::BARE_STRUCTURED_1,
    commands::BARE_EXTENDED_1,
    commands::BARE_EXTENDED_32,
    commands::BARE_EXTENDED_1024,
    commands::BARE_EXTENDED_65536,
    server::SIMPLE,
    server::STRUCTURED,
    server::EXTENDED,
    server::HANDSHAKE,
    streams::CLIENT_READ,
    streams::SERVER_READ,
    streams::CLIENT_HANDSHAKE,
    streams::SERVER_HANDSHAKE,
    streams::OTHER_CLIENT_READ,
    streams::OTHER_SERVER_READ,
    streams::OTHER_CLIENT_HANDSHAKE,
    streams::OTHER_SERVER_HANDSHAKE,
    commands::FRAGMENTS,
    commands::DIRECT,
    extents::NARROW_1,
    extents::NARROW_EACH,
    extents::NARROW_1000,
    extents::NARROW_MANY,
    extents::WIDE_1,
    extents::WIDE_EACH,
    extents::WIDE_1000,
    extents::WIDE_MANY,
    extents::BARE_NARROW_1,
    extents::BARE_NARROW_1000,
    extents::BARE_NARROW_MANY,
    extents::BARE_WIDE_1,
    extents::BARE_WIDE_1000,
    extents::BARE_WIDE_MANY,
];
