//! Listening sockets.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::uri::{Host, Uri};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::socket::Socket;

pub enum Listener {
    /// With the scope of an IPv6 address, as it was given.
    Tcp(TcpListener, Option<String>),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    pub fn tcp(address: &str) -> Result<Self> {
        let scoped = scoped(address);
        let listener = match scoped {
            // The resolver of the system knows the names of interfaces.
            Some((host, port)) => TcpListener::bind((host, port)),
            None => TcpListener::bind(address),
        };
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let scope = scoped.and_then(|(host, _)| host.split_once('%'));
        Ok(Self::Tcp(listener, scope.map(|(_, scope)| scope.into())))
    }

    pub fn unix(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)?;
        let _lock = lock_folder(&path)?;
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(&path)?;
                UnixListener::bind(&path)
            }
            result => result,
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener, SocketFile::new(path)?))
    }

    /// The URI that clients on this machine connect to.
    pub fn uri(&self, export: &str) -> Result<Uri> {
        let uri = match self {
            Self::Tcp(listener, scope) => {
                let address = listener.local_addr()?;
                let host = match address {
                    SocketAddr::V6(v6) if scope.is_some() => Host::Ipv6 {
                        address: *v6.ip(),
                        zone: scope.clone(),
                    },
                    address => reachable_host(address),
                };
                Uri::tcp(host, address.port(), export)
            }
            Self::Unix(_, file) => Uri::unix(file.path.as_os_str().as_bytes(), export),
        };
        uri.map_err(|error| anyhow!(error).context("there is no URI for this address and name"))
    }

    /// The next client, if there is one, and its address for messages.
    pub fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener, _) => {
                let (stream, address) = listener.accept()?;
                Ok((Socket::Tcp(stream), address.to_string()))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                Ok((Socket::Unix(stream), "unix".into()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener, _) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// Host and port of `[ADDRESS%SCOPE]:PORT`. The scope of a link-local address is the
/// name or the number of an interface.
fn scoped(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.strip_prefix('[')?.split_once("]:")?;
    Some((host, port.parse().ok()?)).filter(|(host, _)| host.contains('%'))
}

/// The address that clients on this machine reach a listener by: for one that
/// listens on all addresses, localhost.
fn reachable_host(address: SocketAddr) -> Host {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address.ip(),
    }
    .into()
}

/// How long to wait for another server that starts or ends.
const LOCK_TIME: Duration = Duration::from_secs(5);

/// Locks the folder of a socket, for as long as the value exists. Otherwise two
/// servers could find the same file stale, and the second one would remove the
/// socket that the first one has just made.
fn lock_folder(path: &Path) -> Result<Option<File>> {
    let folder = path.parent().unwrap_or(path);
    // Binding reports what is wrong with a folder that cannot be opened.
    let Ok(file) = File::open(folder) else {
        return Ok(None);
    };
    let deadline = Instant::now() + LOCK_TIME;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) if Instant::now() < deadline => sleep(Duration::from_millis(10)),
            Err(Errno::AGAIN) => bail!(
                "cannot listen on {}: another program holds a lock on the folder",
                path.display()
            ),
            // Not every file system has locks.
            Ok(()) | Err(_) => return Ok(Some(file)),
        }
    }
}

/// Removes the socket file of a server that no longer runs.
fn remove_stale(path: &Path) -> Result<()> {
    let name = path.display();
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        bail!("cannot listen on {name}: the file exists and is not a socket");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot replace {name}"))
        }
        _ => bail!("cannot listen on {name}: another server listens on it"),
    }
}

/// The file of a Unix socket. Dropping the value removes the file, unless
/// another socket has replaced it.
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: PathBuf) -> Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _lock = lock_folder(&self.path);
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
