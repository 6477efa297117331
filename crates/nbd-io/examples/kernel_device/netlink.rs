//! Generic netlink: messages, and a socket (`linux/netlink.h`, `linux/genetlink.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nbd_io::kernel::{self, Device, Value, attribute, command};
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, sendto, socket_with};

/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 1 | 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLMSG_ERROR`: an error, or the acknowledgement, which has the error 0.
const ERROR: u16 = 2;

/// The family that knows the others: its number, its command, and its attributes.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// A message to a family; the number of it is `sequence`.
pub struct Message(Vec<u8>);

impl Message {
    fn new(family: u16, sequence: u32, command: u8, version: u8) -> Self {
        let mut bytes = vec![0; 4]; // the length, which is filled in at the end
        bytes.extend(family.to_ne_bytes());
        bytes.extend(REQUEST.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]); // the sender: the kernel fills it in
        bytes.extend([command, version, 0, 0]);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }

    /// Asks for the number of a family.
    pub fn get_family(sequence: u32, name: &str) -> Self {
        let name = [name.as_bytes(), b"\0"].concat();
        Self::new(CONTROL, sequence, GET_FAMILY, 1).attribute(FAMILY_NAME, &name)
    }

    /// Makes a device with these connections.
    pub fn connect(
        family: u16,
        sequence: u32,
        device: &Device,
        sockets: &[BorrowedFd<'_>],
    ) -> Self {
        let mut message = Self::new(family, sequence, command::CONNECT, kernel::VERSION);
        for (kind, value) in device.attributes() {
            message = match value {
                Value::U32(value) => message.attribute(kind, &value.to_ne_bytes()),
                Value::U64(value) => message.attribute(kind, &value.to_ne_bytes()),
            };
        }
        let mut items = Self(Vec::new());
        for socket in sockets {
            let number = socket.as_raw_fd().to_ne_bytes();
            let fd = Self(Vec::new()).attribute(attribute::SOCK_FD, &number);
            items = items.attribute(attribute::SOCK_ITEM | NESTED, &fd.0);
        }
        message.attribute(attribute::SOCKETS | NESTED, &items.0)
    }

    /// Ends a device.
    pub fn disconnect(family: u16, sequence: u32, index: u32) -> Self {
        Self::new(family, sequence, command::DISCONNECT, kernel::VERSION)
            .attribute(attribute::INDEX, &index.to_ne_bytes())
    }
}

/// Attributes: their kinds, without flags, and values.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (u16_at(bytes, 0)?, u16_at(bytes, 2)?);
        let value = bytes.get(4..length.into())?;
        let next = usize::from(length).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
        Some((kind & !(NESTED | 1 << 14), value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// What a datagram of the kernel says to the request of this number: the value of an
/// attribute of the reply, if it has it, and whether the request is done.
pub fn reply(datagram: &[u8], sequence: u32, wanted: u16) -> io::Result<(Option<Vec<u8>>, bool)> {
    let (mut found, mut rest) = (None, datagram);
    while let Some(length) = u32_at(rest, 0) {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let message = rest.get(..length as usize).filter(|it| it.len() >= 16);
        let message = message.ok_or_else(invalid)?;
        let next = message.len().next_multiple_of(4);
        rest = rest.get(next..).unwrap_or_default();
        if u32_at(message, 8) != Some(sequence) {
            continue;
        }
        if u16_at(message, 4) == Some(ERROR) {
            let error = u32_at(message, 16).ok_or_else(invalid)?.cast_signed();
            return match error {
                0 => Ok((found, true)),
                _ => Err(io::Error::from_raw_os_error(error.saturating_neg())),
            };
        }
        let body = message.get(20..).unwrap_or_default();
        let value = attributes(body).find(|(kind, _)| *kind == wanted);
        found = value.map(|(_, value)| value.to_vec()).or(found);
    }
    Ok((found, false))
}

/// A socket to the kernel.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(GENERIC))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a message, and waits until it is acknowledged; returns the value of an
    /// attribute of the reply.
    fn call(&mut self, message: Message, wanted: u16) -> io::Result<Option<Vec<u8>>> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &message.finish(), SendFlags::empty(), &kernel)?;
        let mut found = None;
        loop {
            let mut buffer = [0; 8192];
            let (n, _) = recv(&self.socket, &mut buffer, RecvFlags::empty())?;
            let (value, done) = reply(&buffer[..n], self.sequence, wanted)?;
            found = value.or(found);
            if done {
                return Ok(found);
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// The number of a family. `NotFound`: its module is not loaded.
    pub fn family(&mut self, name: &str) -> io::Result<u16> {
        let message = Message::get_family(self.next(), name);
        let id = self.call(message, FAMILY_ID)?;
        let id = id.and_then(|value| u16_at(&value, 0));
        id.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Makes a device; returns its number.
    pub fn connect(
        &mut self,
        family: u16,
        device: &Device,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        let message = Message::connect(family, self.next(), device, sockets);
        let index = self.call(message, attribute::INDEX)?;
        let index = index.and_then(|value| u32_at(&value, 0));
        index.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Ends a device.
    pub fn disconnect(&mut self, family: u16, index: u32) -> io::Result<()> {
        let message = Message::disconnect(family, self.next(), index);
        self.call(message, attribute::INDEX).map(drop)
    }
}
