//! The NBD client of the Linux kernel: what it is told over generic netlink, so that a
//! connection becomes a block device (`/dev/nbd0`).
//!
//! [`Device::new`] makes the attributes of a device from what a handshake agreed on.
//! This module is data only: the example `kernel_device` builds the messages and
//! sends them.
//!
//! The program negotiates, and hands the socket over after the handshake; nothing may
//! have been read from it past the handshake. The kernel has restrictions of its own:
//!
//! - It has simple replies only: negotiate with [`Framing::Simple`].
//! - It has no TLS. A program that has gives it one end of a socket pair, and copies
//!   between the other end and the TLS stream, or serves it.
//! - Its block size is a power of two from 512 to the page size.
//! - Connections after the first need `CAN_MULTI_CONN`.
//!
//! ```
//! use nbd_codec::wire::flags::TransmissionFlags;
//! use nbd_codec::{Framing, Negotiated};
//! use nbd_io::kernel::{Device, Value, attribute};
//!
//! let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
//! let negotiated = Negotiated::new(Framing::Simple, 1 << 30, flags);
//! let device = Device::new(&negotiated)?;
//! let mut attributes = device.attributes();
//! assert_eq!(attributes.next(), Some((attribute::SIZE_BYTES, Value::U64(1 << 30))));
//! assert_eq!(attributes.next(), Some((attribute::BLOCK_SIZE_BYTES, Value::U64(512))));
//! assert_eq!(attributes.next(), Some((attribute::SERVER_FLAGS, Value::U64(0b101))));
//! # Ok::<(), nbd_io::kernel::KernelError>(())
//! ```

use core::time::Duration;

use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Framing, Negotiated};

/// Name of the generic netlink family (`linux/nbd-netlink.h`). It exists while the
/// module `nbd` is loaded.
pub const FAMILY: &str = "nbd";
/// Version of the family.
pub const VERSION: u8 = 1;

/// Commands of the family (`linux/nbd-netlink.h`). All need `CAP_SYS_ADMIN`.
pub mod command {
    /// Makes a device. The kernel replies with [`INDEX`](super::attribute::INDEX).
    pub const CONNECT: u8 = 1;
    /// Ends the device of [`INDEX`](super::attribute::INDEX).
    pub const DISCONNECT: u8 = 2;
    /// Replaces connections of a device that are dead, or its size.
    pub const RECONFIGURE: u8 = 3;
}

/// Attributes of the commands (`linux/nbd-netlink.h`).
pub mod attribute {
    /// `u32`: the number of the device. Without it the kernel takes a free one.
    pub const INDEX: u16 = 1;
    /// `u64`: the size in bytes.
    pub const SIZE_BYTES: u16 = 2;
    /// `u64`: the block size in bytes.
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    /// `u64`: seconds after which a request fails, or is sent on another connection.
    pub const TIMEOUT: u16 = 4;
    /// `u64`: transmission flags.
    pub const SERVER_FLAGS: u16 = 5;
    /// `u64`: flags of the device.
    pub const CLIENT_FLAGS: u16 = 6;
    /// Nested: [`SOCK_ITEM`] for each connection.
    pub const SOCKETS: u16 = 7;
    /// `u64`: seconds to wait for a [`RECONFIGURE`](super::command::RECONFIGURE) when
    /// no connection is alive; requests wait as long.
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    /// In [`SOCKETS`], nested: [`SOCK_FD`].
    pub const SOCK_ITEM: u16 = 1;
    /// In [`SOCK_ITEM`], `u32`: the file descriptor.
    pub const SOCK_FD: u16 = 1;
}

/// The flags that the kernel acts on. Older kernels ignore `ROTATIONAL` and
/// `SEND_WRITE_ZEROES`.
const KERNEL_FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .union(TransmissionFlags::READ_ONLY)
    .union(TransmissionFlags::SEND_FLUSH)
    .union(TransmissionFlags::SEND_FUA)
    .union(TransmissionFlags::ROTATIONAL)
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::CAN_MULTI_CONN);

/// The smallest block size, in bytes: a sector.
const SECTOR: u64 = 512;
/// The largest block size of every kernel, in bytes: the smallest page.
const PAGE: u64 = 4096;
/// The longest request of the kernel, in KiB.
const LONGEST: u32 = 32 << 10;

/// Why the kernel cannot use a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Only simple replies.
    #[error("the kernel has simple replies only, not {0} ones: negotiate with Framing::Simple")]
    Framing(Framing),
    /// No TLS.
    #[error("the kernel has no TLS: hand it one end of a socket pair, and relay")]
    Tls,
    /// The minimum block size of the export is too large.
    #[error("the minimum block size is {0} bytes; the kernel has at most 4096")]
    BlockSize(u32),
    /// The export has no whole block, or 2^63 bytes or more.
    #[error("the kernel has no device of {0} bytes")]
    Size(u64),
}

/// A value of an attribute, in the byte order of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Value {
    /// 32 bits.
    U32(u32),
    /// 64 bits.
    U64(u64),
}

/// The attributes of a device, except its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// The number of the device; `None`: the kernel takes a free one.
    pub index: Option<u32>,
    /// The size in bytes: that of the export without what is not a whole block.
    pub size: u64,
    /// The block size in bytes: the minimum of the export, or 512.
    pub block_size: u64,
    /// The transmission flags that the kernel acts on.
    pub server_flags: TransmissionFlags,
    /// How long a request may take. The kernel counts in seconds; parts of one are
    /// rounded up. `None`: its default, which is no limit for one connection.
    pub timeout: Option<Duration>,
    /// How long requests wait for a new connection after the last one has died; in
    /// seconds, too. `None`: they fail at once.
    pub dead_connection_timeout: Option<Duration>,
    /// Removes the device when it is disconnected
    /// (`NBD_CFLAG_DESTROY_ON_DISCONNECT`).
    pub destroy_on_disconnect: bool,
    /// Disconnects the device when the last program closes it
    /// (`NBD_CFLAG_DISCONNECT_ON_CLOSE`).
    pub disconnect_on_close: bool,
    /// The longest request that the server accepts, in KiB. It has no attribute: if it
    /// is less than the kernel's own, write it to
    /// `/sys/block/nbdN/queue/max_sectors_kb` before the device is used.
    pub max_sectors_kb: u32,
}

impl Device {
    /// The device for what a handshake agreed on.
    ///
    /// # Errors
    ///
    /// [`KernelError`] for what the kernel does not have.
    pub fn new(negotiated: &Negotiated) -> Result<Self, KernelError> {
        let sizes = negotiated.constraints();
        if negotiated.framing != Framing::Simple {
            return Err(KernelError::Framing(negotiated.framing));
        }
        if negotiated.tls {
            return Err(KernelError::Tls);
        }
        let block_size = u64::from(sizes.minimum).max(SECTOR);
        if block_size > PAGE {
            return Err(KernelError::BlockSize(sizes.minimum));
        }
        // A power of two.
        let size = negotiated.size & !block_size.saturating_sub(1);
        if size == 0 || i64::try_from(size).is_err() {
            return Err(KernelError::Size(negotiated.size));
        }
        Ok(Self {
            index: None,
            size,
            block_size,
            server_flags: negotiated.flags & KERNEL_FLAGS,
            timeout: None,
            dead_connection_timeout: None,
            destroy_on_disconnect: false,
            disconnect_on_close: false,
            max_sectors_kb: (sizes.maximum / 1024).min(LONGEST),
        })
    }

    /// The attributes of [`CONNECT`](command::CONNECT), but for
    /// [`SOCKETS`](attribute::SOCKETS).
    pub fn attributes(&self) -> impl Iterator<Item = (u16, Value)> + use<> {
        let mut client_flags = 0;
        if self.destroy_on_disconnect {
            client_flags |= 1;
        }
        if self.disconnect_on_close {
            client_flags |= 2;
        }
        let seconds = |time: Duration| {
            let more = u64::from(time.subsec_nanos() > 0);
            Value::U64(time.as_secs().saturating_add(more))
        };
        [
            (attribute::INDEX, self.index.map(Value::U32)),
            (attribute::SIZE_BYTES, Some(Value::U64(self.size))),
            (
                attribute::BLOCK_SIZE_BYTES,
                Some(Value::U64(self.block_size)),
            ),
            (attribute::TIMEOUT, self.timeout.map(seconds)),
            (
                attribute::SERVER_FLAGS,
                Some(Value::U64(self.server_flags.0.into())),
            ),
            (attribute::CLIENT_FLAGS, Some(Value::U64(client_flags))),
            (
                attribute::DEAD_CONN_TIMEOUT,
                self.dead_connection_timeout.map(seconds),
            ),
        ]
        .into_iter()
        .filter_map(|(attribute, value)| Some((attribute, value?)))
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test fails by it")]
mod tests {
    use nbd_codec::wire::option_reply::BlockSizes;

    use super::*;

    fn negotiated(size: u64) -> Negotiated {
        let flags = TransmissionFlags::KNOWN;
        Negotiated::new(Framing::Simple, size, flags)
    }

    #[test]
    fn the_kernel_is_told_what_it_acts_on() {
        let mut device = Device::new(&negotiated(1000)).expect("a device");
        assert_eq!((device.size, device.block_size), (512, 512));
        assert_eq!(device.server_flags.0, 0b1_0111_1111);
        assert_eq!(device.max_sectors_kb, 32 << 10);
        device.index = Some(5);
        device.timeout = Some(Duration::from_millis(1500));
        device.dead_connection_timeout = Some(Duration::from_secs(60));
        device.disconnect_on_close = true;
        let expected = [
            (1, Value::U32(5)),
            (2, Value::U64(512)),
            (3, Value::U64(512)),
            (4, Value::U64(2)),
            (5, Value::U64(0b1_0111_1111)),
            (6, Value::U64(2)),
            (8, Value::U64(60)),
        ];
        assert!(device.attributes().eq(expected));
    }

    #[test]
    fn what_the_kernel_does_not_have_is_an_error() {
        let mut structured = negotiated(4096);
        structured.framing = Framing::Structured;
        let framing = KernelError::Framing(Framing::Structured);
        assert_eq!(Device::new(&structured), Err(framing));
        let mut tls = negotiated(4096);
        tls.tls = true;
        assert_eq!(Device::new(&tls), Err(KernelError::Tls));
        let mut blocks = negotiated(1 << 20);
        for (minimum, expected) in [(1, Ok(512)), (4096, Ok(4096)), (8192, Err(8192))] {
            blocks.block_sizes = Some(BlockSizes {
                minimum,
                preferred: 8192,
                maximum: 1 << 16,
            });
            let device = Device::new(&blocks);
            let expected = expected.map_err(KernelError::BlockSize);
            assert_eq!(device.map(|device| device.block_size), expected);
            assert_eq!(device.map_or(64, |device| device.max_sectors_kb), 64);
        }
        for size in [0, 511, 1 << 63, u64::MAX] {
            assert_eq!(Device::new(&negotiated(size)), Err(KernelError::Size(size)));
        }
        let largest = Device::new(&negotiated(i64::MAX as u64)).expect("a device");
        assert_eq!(largest.size, (1 << 63) - 512);
    }
}
