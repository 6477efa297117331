//! The transport of a URI.

use std::vec::Vec;

use super::Host;

/// The port of an NBD server if the URI has none.
pub const DEFAULT_PORT: u16 = 10809;

/// The context identifier that a virtual machine uses for its host.
pub(super) const HOST_CID: u32 = 2;

/// How a client connects to the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// A TCP connection.
    Tcp {
        /// The host of the server.
        host: Host,
        /// The port. 0 is accepted, although no server can listen on it.
        port: u16,
    },
    /// A Unix domain socket.
    Unix {
        /// The path, never empty. If it begins with `NUL` it is a name in the
        /// abstract namespace of Linux: [`abstract_name`](Self::abstract_name).
        path: Vec<u8>,
    },
    /// A vsock connection, between a virtual machine and its host.
    Vsock {
        /// The context identifier; 2, the host, by default.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A tunnel through SSH. Its parameters are not standardized: see
    /// [`Uri::unknown_parameters`](super::Uri::unknown_parameters).
    Ssh {
        /// The host of the SSH server.
        host: Host,
        /// The port of the SSH server, if the URI has one.
        port: Option<u16>,
    },
}

impl Transport {
    /// The name of a Unix domain socket in the abstract namespace, without the
    /// leading `NUL`; `None` for a socket in the file system and for every
    /// other transport.
    #[must_use]
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match self {
            Self::Unix { path } => path.strip_prefix(b"\0"),
            _ => None,
        }
    }
}
