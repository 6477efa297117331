//! A client of bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// `NBD_CMD_READ` and `NBD_CMD_WRITE`.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;

/// A client in transmission, with simple replies.
pub struct Raw {
    pub stream: UnixStream,
}

impl Raw {
    /// Negotiates the default export.
    pub fn ready(mut stream: UnixStream) -> Self {
        receive::<18>(&mut stream);
        // FIXED_NEWSTYLE and NO_ZEROES
        stream.write_all(&[0, 0, 0, 3]).expect("sent");
        // EXPORT_NAME
        stream
            .write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")
            .expect("sent");
        receive::<10>(&mut stream);
        Self { stream }
    }

    /// Receives a simple reply: its error and its cookie.
    pub fn reply(&mut self) -> io::Result<(u32, u64)> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let [magic, error, high, low] = [0, 4, 8, 12].map(|at| {
            let bytes = reply[at..at + 4].try_into();
            u32::from_be_bytes(bytes.expect("four bytes"))
        });
        assert_eq!(magic, 0x6744_6698);
        Ok((error, u64::from(high) << 32 | u64::from(low)))
    }
}

fn receive<const N: usize>(stream: &mut impl Read) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("the server replies");
    bytes
}

/// A compact request.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(b"\x25\x60\x95\x13");
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}
