//! A client of bytes, in plain text or under TLS.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// `NBD_CMD_READ` and `NBD_CMD_WRITE`.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;

/// `NBD_CMD_FLAG_FUA`, and `NBD_FLAG_SEND_FUA` of the transmission flags.
pub const FUA: u16 = 1;
pub const SEND_FUA: u16 = 1 << 3;

pub trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// A client in transmission, with simple replies.
pub struct Raw {
    pub stream: Box<dyn Stream>,
    /// The transmission flags.
    pub flags: u16,
}

impl Raw {
    /// Negotiates the default export, with TLS if there are certificates.
    pub fn ready(mut socket: impl Stream + 'static, certificates: Option<&Path>) -> Self {
        receive::<18>(&mut socket);
        // FIXED_NEWSTYLE and NO_ZEROES
        socket.write_all(&[0, 0, 0, 3]).expect("sent");
        let mut stream: Box<dyn Stream> = match certificates {
            None => Box::new(socket),
            Some(folder) => {
                // STARTTLS
                socket
                    .write_all(b"IHAVEOPT\0\0\0\x05\0\0\0\0")
                    .expect("sent");
                receive::<20>(&mut socket);
                Box::new(StreamOwned::new(tls(folder).expect("TLS"), socket))
            }
        };
        // EXPORT_NAME
        stream
            .write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")
            .expect("sent");
        stream.flush().expect("sent");
        let [.., high, low] = receive::<10>(&mut stream);
        Self {
            stream,
            flags: u16::from_be_bytes([high, low]),
        }
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

fn tls(folder: &Path) -> io::Result<ClientConnection> {
    let certificates = |name: &str| {
        let file = CertificateDer::pem_file_iter(folder.join(name));
        let all = file.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(io::Error::other)
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca-cert.pem")?);
    let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem"));
    let key = key.map_err(io::Error::other)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("client-cert.pem")?, key)
        .map_err(io::Error::other)?;
    let name = "localhost".try_into().map_err(io::Error::other)?;
    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
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
