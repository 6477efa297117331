//! What `nbd` shows without a command: a session of client and server in each
//! framing, connected by two queues of bytes.

mod model;
mod server;

use std::fmt::Write;

use anyhow::{Result, bail, ensure};
use nbd_codec::client::{
    Config, ConnectEvent, Connector, MetaContextQuery, Request, Slot, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::number::Cookie;
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::{Content, Framing, Limits, Negotiated, Step};
use nbd_tools::size;

use crate::draw::{self, Palette};
use crate::extents::{Context, Placed, Status};
use crate::session::Replies;
use crate::stdout;
use model::Disk;
use server::{Link, Message, Server};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DATA: AllocationFlags = AllocationFlags::NONE;
const ZERO: AllocationFlags = AllocationFlags::ZERO;
const HOLE: AllocationFlags = AllocationFlags(AllocationFlags::HOLE.0 | AllocationFlags::ZERO.0);

/// The model disk: 16 GiB, with a hole whose length exceeds 32 bits.
const DISK: &[(u64, AllocationFlags)] = &[
    (MIB, DATA),
    (255 * MIB, HOLE),
    (1280 * MIB, DATA),
    (5632 * MIB, HOLE),
    (2 * MIB, DATA),
    (510 * MIB, HOLE),
    (3072 * MIB, DATA),
    (1024 * MIB, ZERO),
    (4608 * MIB, HOLE),
];

/// The offset of the pattern: in the last hole, so that there is a hole between its
/// two halves.
const PLACE: u64 = 14 * 1024 * MIB;
const HALF: u64 = 64 * KIB;
const HALVES: [u64; 2] = [PLACE, PLACE + 2 * HALF];
/// What is read back: the halves, and the hole after each.
const READ: Request = Request::read(PLACE, 4 * HALF);

pub fn run() -> Result<()> {
    let palette = Palette::of_stdout();
    let mut text = String::from(INTRODUCTION);
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let shown = Shown::new(framing)?;
        writeln!(text, "\n{}", palette.paint(&shown.headline(), BOLD))?;
        text += &wire(&shown.messages, &palette);
        for line in shown.conclusion() {
            writeln!(text, "  {line}")?;
        }
        if framing == Framing::Extended {
            text += "\nThe disk, with what was written into its last hole:\n";
            text += &draw::bar(
                &crate::connection::ALLOCATION.into(),
                &shown.extents,
                shown.size,
                &palette,
            );
        }
    }
    text += HINTS;
    stdout::write(text.as_bytes())
}

const BOLD: &str = "1";

const INTRODUCTION: &str = "\
nbd-codec implements NBD and does no I/O. Here its client and its server are
connected by two queues of bytes. The server has a model of a sparse disk of
16 GiB. The client writes a pattern into a hole, in two halves with a hole between
them, maps the whole disk, reads the pattern back, compares it, and disconnects.
";

const HINTS: &str = "
Against a real server:
  truncate -s 8G disk.img && qemu-nbd -t -b localhost -f raw disk.img &
  nbd info nbd://localhost           describe the export
  nbd map nbd://localhost            show its data and holes
  nbd copy nbd://localhost copy.img  copy it; holes stay holes
  nbd --help                         all commands
";

/// A finished session.
struct Shown {
    framing: Framing,
    size: u64,
    extents: Vec<Placed>,
    /// How many bytes were read back as holes.
    holes: u64,
    messages: Vec<Message>,
}

impl Shown {
    fn new(framing: Framing) -> Result<Self> {
        let mut disk = Disk::new(DISK);
        let mut server = Server::new(framing, &mut disk)?;
        let mut link = Link::default();
        let negotiated = handshake(&mut server, framing, &mut link)?;
        let machine = Transmission::new(negotiated, [Slot::EMPTY; 2], Limits::DEFAULT);
        let mut client = Client {
            machine,
            server,
            link,
        };
        client.write_pattern()?;

        let selected = negotiated.contexts.iter();
        let contexts: Vec<_> = selected
            .map(|context| Context {
                id: context.id,
                allocation: true,
            })
            .collect();
        let mut status = Status::new(&negotiated, &contexts, 0..negotiated.size);
        while let Some((offset, length)) = status.next(&negotiated)? {
            client.submit(Request::block_status(offset, length), &[])?;
            client.exchange(&mut status)?;
        }
        let mut read = ReadBack::new();
        client.submit(READ, &[])?;
        client.exchange(&mut read)?;
        read.verify()?;
        client.disconnect()?;
        Ok(Self {
            framing,
            size: negotiated.size,
            extents: status.extents.into_iter().flatten().collect(),
            holes: read.holes,
            messages: client.link.messages,
        })
    }

    fn headline(&self) -> String {
        let bytes: usize = self.messages.iter().map(|message| message.bytes).sum();
        let name = match self.framing {
            Framing::Simple => "Simple replies",
            Framing::Structured => "Structured replies",
            Framing::Extended => "Extended headers",
        };
        format!("{name}: {} messages, {bytes} bytes", self.messages.len())
    }

    fn conclusion(&self) -> [String; 2] {
        let longest = self.extents.iter().map(|extent| extent.length).max();
        let longest = size::rounded(longest.unwrap_or(0));
        let count = self.extents.len();
        let map = match self.framing {
            Framing::Simple => "No block status, so no map.".into(),
            Framing::Structured => format!(
                "{count} narrow extents, the longest {longest}: 32 bits limit an extent to less than 4 GiB."
            ),
            Framing::Extended => {
                format!("{count} wide extents in one reply, the longest {longest}.")
            }
        };
        let read = format!(
            "Read back {}, equal to what was written; {} of it came as holes.",
            size::rounded(READ.length),
            size::rounded(self.holes)
        );
        [map, read]
    }
}

/// Runs the handshake.
fn handshake(server: &mut Server<'_>, framing: Framing, link: &mut Link) -> Result<Negotiated> {
    let contexts = [MetaContextQuery::narrow("base:allocation")];
    let config = Config::new("disk").contexts(&contexts).framing(framing);
    let mut client = Connector::new(config)?;
    loop {
        server.serve(link)?;
        let answer = std::mem::take(&mut link.to_client);
        let mut input = answer.as_slice();
        let mut ready = false;
        loop {
            match client.receive(&mut input)? {
                Step::Event(event) => ready |= event == ConnectEvent::Ready,
                Step::Transmit | Step::Read(_) | Step::Finished => break,
                other => return Err(other.unexpected().into()),
            }
        }
        ensure!(input.is_empty(), "{} bytes are not consumed", input.len());
        if ready {
            break;
        }
        let mut request = Vec::new();
        if client.transmit(&mut request)? == 0 {
            bail!("the handshake makes no progress");
        }
        match OptionHeader::decode(&mut request.as_slice()) {
            Ok(Some(header)) => link.send(header.option, &[&request]),
            _ => link.send("client flags", &[&request]),
        }
    }
    match client.into_negotiated() {
        Ok(negotiated) => Ok(negotiated),
        Err(_) => bail!("the handshake has not ended"),
    }
}

struct Client<'d> {
    machine: Transmission<[Slot; 2]>,
    server: Server<'d>,
    link: Link,
}

impl Client<'_> {
    /// Writes both halves; both commands are in flight before the first is answered.
    fn write_pattern(&mut self) -> Result<()> {
        for offset in HALVES {
            self.submit(Request::write(offset, HALF), &pattern(offset))?;
        }
        self.exchange(&mut Written)
    }

    fn submit(&mut self, request: Request, payload: &[u8]) -> Result<()> {
        let header = self.machine.submit(request)?;
        self.link
            .send(request.command, &[header.as_bytes(), payload]);
        Ok(())
    }

    /// The server answers all commands in flight.
    fn exchange(&mut self, replies: &mut dyn Replies) -> Result<()> {
        self.server.serve(&mut self.link)?;
        let answer = std::mem::take(&mut self.link.to_client);
        let mut input = answer.as_slice();
        loop {
            match self.machine.receive(&mut input)? {
                Step::Event(event) => replies.event(event)?,
                Step::Content(Content::Data {
                    cookie,
                    offset,
                    data,
                }) => match replies.place(cookie, offset, data.len()) {
                    Some(place) => place.copy_from_slice(data),
                    None => bail!("data without a read"),
                },
                Step::Content(Content::Hole {
                    cookie,
                    offset,
                    length,
                }) => replies.hole(cookie, offset, length as usize)?,
                Step::Read(_) | Step::ReadPayload { .. } => break,
                other => return Err(other.unexpected().into()),
            }
        }
        match self.machine.in_flight() {
            0 => Ok(()),
            _ => bail!("not all commands are answered"),
        }
    }

    fn disconnect(&mut self) -> Result<()> {
        let header = self.machine.disconnect()?;
        self.link.send("NBD_CMD_DISC", &[header.as_bytes()]);
        self.server.serve(&mut self.link)
    }
}

/// The data at an offset: pseudo-random bytes.
fn pattern(offset: u64) -> Vec<u8> {
    let words = (offset..offset + HALF).step_by(8);
    words
        .flat_map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect()
}

/// Replies to writes, which must not fail.
struct Written;

impl Replies for Written {
    fn place(&mut self, _: Cookie, _: u64, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()> {
        match event {
            TransmissionEvent::Done { result, .. } => Ok(result?),
            _ => Ok(()),
        }
    }
}

/// The reply to the read.
struct ReadBack {
    data: Vec<u8>,
    holes: u64,
}

impl ReadBack {
    fn new() -> Self {
        Self {
            data: vec![0xee; READ.length as usize],
            holes: 0,
        }
    }

    fn verify(&self) -> Result<()> {
        let mut expected = vec![0; READ.length as usize];
        for offset in HALVES {
            let at = (offset - READ.offset) as usize;
            expected[at..at + HALF as usize].copy_from_slice(&pattern(offset));
        }
        ensure!(
            self.data == expected,
            "the data read differs from the data written"
        );
        Ok(())
    }
}

impl Replies for ReadBack {
    fn place(&mut self, _: Cookie, offset: u64, length: usize) -> Option<&mut [u8]> {
        let at = (offset - READ.offset) as usize;
        self.data.get_mut(at..at + length)
    }

    fn hole(&mut self, cookie: Cookie, offset: u64, length: usize) -> Result<()> {
        self.holes += length as u64;
        if let Some(place) = self.place(cookie, offset, length) {
            place.fill(0);
        }
        Ok(())
    }

    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()> {
        match event {
            TransmissionEvent::Done { result, .. } => Ok(result?),
            _ => Ok(()),
        }
    }
}

/// The messages; consecutive equal ones share a line.
fn wire(messages: &[Message], palette: &Palette) -> String {
    let alike = |a: &Message, b: &Message| (a.client, &a.what) == (b.client, &b.what);
    let mut text = String::new();
    for group in messages.chunk_by(alike) {
        let [first, ..] = group else { continue };
        let bytes: usize = group.iter().map(|message| message.bytes).sum();
        let times = match group.len() {
            1 => String::new(),
            n => format!(" × {n}"),
        };
        let side = if first.client {
            palette.paint("C:", "36")
        } else {
            palette.paint("S:", "33")
        };
        let what = format!("{}{times}", first.what);
        text += &format!("  {side} {what:<36} {bytes:>7} bytes\n");
    }
    text
}
