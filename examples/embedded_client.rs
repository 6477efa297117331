//! A client on embedded-io-async without an allocator, in 512 bytes of buffer.
//! `main`, which writes an export to standard output, uses the standard library.
//!
//! ```text
//! cargo run --example embedded_client -- 127.0.0.1:10809 EXPORT > disk.img
//! ```

use core::mem::take;

use embedded_io_async::{Read, Write};
use nbd_codec::client::{Config, ConnectEvent, Connector, Request};
use nbd_codec::client::{Slot, Transmission, TransmissionEvent};
use nbd_codec::{Error, Limits, SessionError, Step, inbox::Inbox};

type Result<T> = core::result::Result<T, SessionError>;
type Buffer = Inbox<[u8; 384]>;
const LIMITS: Limits = Limits::for_buffer(384);

/// A connection to an export, with one command in flight.
pub struct Client<L> {
    link: L,
    inbox: Buffer,
    session: Transmission<[Slot; 1]>,
}

impl<L: Read + Write> Client<L> {
    /// Connects. The request for the export has to fit into 128 bytes.
    pub async fn connect(mut link: L, export: &str) -> Result<Self> {
        let mut inbox = Inbox::new([0; 384]);
        let mut connector = Connector::new(Config::new(export).limits(LIMITS))?;
        let (mut out, mut length) = ([0; 128], 0);
        loop {
            match inbox.receive(&mut connector)? {
                Step::Event(ConnectEvent::Ready) => break,
                Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
                Step::Event(_) => {}
                Step::Transmit => length = connector.transmit(&mut &mut out[..])?,
                Step::Read(_) => fill(&mut inbox, &mut link).await?,
                other => return Err(other.unexpected().into()),
            }
            send(&mut link, &out[..take(&mut length)]).await?;
        }
        let ready = connector.into_negotiated();
        let negotiated = ready.map_err(|_| SessionError::NotReady)?;
        let session = Transmission::new(negotiated, [Slot::EMPTY], LIMITS);
        Ok(Self {
            link,
            inbox,
            session,
        })
    }

    /// Runs a command: `payload` is what a write sends, `block` what a read fills.
    pub async fn run(&mut self, request: Request, payload: &[u8], block: &mut [u8]) -> Result<()> {
        let header = self.session.submit(request)?;
        send(&mut self.link, header.as_bytes()).await?;
        send(&mut self.link, payload).await?;
        loop {
            match self.inbox.receive(&mut self.session)? {
                Step::Event(TransmissionEvent::Done { result, .. }) => return Ok(result?),
                Step::Event(_) => {}
                Step::Content(content) => assert!(content.copy_to(request.offset, block)),
                Step::Read(_) | Step::ReadPayload { .. } => {
                    fill(&mut self.inbox, &mut self.link).await?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
    }
}

/// Reads what there is room for. A link that fails counts as closed.
async fn fill(inbox: &mut Buffer, link: &mut impl Read) -> Result<()> {
    let n = link.read(inbox.space()).await.unwrap_or(0);
    Ok(inbox.filled(n)?)
}

async fn send(link: &mut impl Write, bytes: &[u8]) -> Result<()> {
    Ok(link.write_all(bytes).await.map_err(|_| Error::Closed)?)
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: embedded_client ADDR:PORT [EXPORT]";
    let address = args.next().ok_or_else(|| std::io::Error::other(usage))?;
    smol::block_on(async {
        let stream = smol::net::TcpStream::connect(address).await?;
        let link = embedded_io_adapters::futures_03::FromFutures::new(stream);
        let mut client = Client::connect(link, &args.next().unwrap_or_default()).await?;
        let size = client.session.negotiated().size;
        for start in (0..size).step_by(4096) {
            let block = &mut [0; 4096][..(size - start).min(4096) as usize];
            let read = Request::read(start, block.len() as u64);
            client.run(read, &[], block).await?;
            std::io::Write::write_all(&mut std::io::stdout(), block)?;
        }
        let disc = client.session.disconnect()?;
        Ok(send(&mut client.link, disc.as_bytes()).await?)
    })
}
