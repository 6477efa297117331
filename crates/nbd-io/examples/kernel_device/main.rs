//! A block device of the Linux kernel, without a network: one end of a socket pair is
//! served by this program, the other is handed to the kernel.
//!
//! It needs the module `nbd` and `CAP_SYS_ADMIN`:
//!
//! ```text
//! modprobe nbd && cargo build --example kernel_device
//! sudo target/debug/examples/kernel_device 1073741824
//! ```

mod netlink;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread;

use nbd_codec::client::{Config as ClientConfig, ConnectEvent, Connector};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Framing, Limits, Negotiated, SessionError, Step};
use nbd_io::kernel;
use nbd_io::server::{Bytes, Config, Device, Export, Exports, Peer, ReadReply, Server};

/// A device in memory.
struct Memory(Mutex<Vec<u8>>);

impl Device for Memory {
    fn size(&self) -> u64 {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.len() as u64
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reply.put(&memory[offset as usize..][..reply.remaining()]);
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory[offset as usize..][..data.len()].copy_from_slice(&data);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = std::env::args().nth(1).ok_or("usage: kernel_device SIZE")?;
    let memory = Memory(Mutex::new(vec![0; size.parse()?]));
    let mut netlink = netlink::Netlink::open()?;
    let family = netlink
        .family(kernel::FAMILY)
        .map_err(|error| format!("the module nbd is not loaded: {error}"))?;

    let server = Server::new(Exports::new().with(Export::new("", memory)), Config::new());
    let (mut ours, theirs) = UnixStream::pair()?;
    let serving = thread::spawn(move || {
        nbd_io::blocking::serve(theirs, Peer::Other("the kernel".into()), &server)
    });
    let negotiated = handshake(&mut ours)?;
    let device = kernel::Device::new(&negotiated)?;
    let index = netlink.connect(family, &device, &[ours.as_fd()])?;
    let longest = format!("/sys/block/nbd{index}/queue/max_sectors_kb");
    if let Err(error) = std::fs::write(&longest, device.max_sectors_kb.to_string()) {
        eprintln!("{longest}: {error}");
    }

    println!("/dev/nbd{index}, until standard input ends");
    io::stdin().read_to_end(&mut Vec::new())?;
    netlink.disconnect(family, index)?;
    let served = serving.join().map_err(|_| "the server panicked")?;
    Ok(served?)
}

/// The handshake of the kernel's client, which has none. It reads exactly, so that
/// nothing of what follows is taken from the kernel.
fn handshake(stream: &mut UnixStream) -> io::Result<Negotiated> {
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let mut connector = Connector::new(ClientConfig::new("").framing(Framing::Simple))?;
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::Transmit => {
                out.clear();
                connector.transmit(&mut out)?;
                stream.write_all(&out)?;
            }
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(connector.into_negotiated().map_err(SessionError::from)?)
}
