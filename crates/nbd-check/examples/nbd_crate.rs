//! A server made of the crate `nbd` 0.3.1, to be checked:
//!
//! ```sh
//! nbd-check server --destructive -- target/debug/examples/nbd_crate {port}
//! ```

use std::io::{Cursor, Read, Result, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The size of the export in bytes.
const SIZE: usize = 64 << 20;

/// The disk that all connections share, and the position of one of them.
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    position: u64,
}

impl Disk {
    /// Calls `act` with the disk as a file.
    fn with<T>(&mut self, act: impl FnOnce(&mut Cursor<&mut [u8]>) -> Result<T>) -> Result<T> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cursor = Cursor::new(bytes.as_mut_slice());
        cursor.set_position(self.position);
        let result = act(&mut cursor);
        self.position = cursor.position();
        result
    }
}

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.with(|disk| disk.read(buffer))
    }
}

impl Write for Disk {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        self.with(|disk| disk.write(buffer))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for Disk {
    fn seek(&mut self, position: SeekFrom) -> Result<u64> {
        self.with(|disk| disk.seek(position))
    }
}

fn main() -> Result<()> {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let port = port.unwrap_or(nbd::server::DEFAULT_TCP_PORT);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let bytes = Arc::new(Mutex::new(vec![0; SIZE]));
    for stream in listener.incoming() {
        let stream = stream?;
        let disk = Disk {
            bytes: Arc::clone(&bytes),
            position: 0,
        };
        thread::spawn(move || serve(&stream, disk));
    }
    Ok(())
}

/// Serves one connection.
fn serve(mut stream: &TcpStream, disk: Disk) -> Result<()> {
    let size = u64::try_from(SIZE).unwrap_or(u64::MAX);
    nbd::server::handshake(&mut stream, |_| {
        Ok(nbd::Export::<()> {
            size,
            ..nbd::Export::default()
        })
    })?;
    nbd::server::transmission(&mut stream, disk)
}
