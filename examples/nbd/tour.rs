//! What `nbd` shows without a command: the client at work, in each framing,
//! against a server in memory.

use std::fmt::Write;

use anyhow::{Result, bail};
use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::client::{Event, Head, Request, Slot, Transmission};
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::{Framing, Limits, Negotiated};

use crate::canned::{Canned, Said};
use crate::draw::{self, Palette};
use crate::extents::{Placed, Status};
use crate::session::Replies;
use crate::{out, size};

const MIB: u64 = 1 << 20;
const DATA: AllocationFlags = AllocationFlags::NONE;
const ZERO: AllocationFlags = AllocationFlags::ZERO;
const HOLE: AllocationFlags = AllocationFlags(AllocationFlags::HOLE.0 | AllocationFlags::ZERO.0);

/// The pretend disk: 16 GiB, with a hole in it of more than 32 bits.
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

/// A read over the end of data: the first half of it is data, the rest hole.
const READ: Request = Request::read(MIB - 64 * 1024, 128 * 1024);

pub fn run() -> Result<()> {
    let palette = Palette::of_stdout();
    let mut text = String::from(INTRODUCTION);
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let shown = Shown::new(framing)?;
        writeln!(text, "\n{}", palette.paint(&shown.headline(), BOLD))?;
        text += &wire(&shown.said, &palette);
        writeln!(text, "  {}", shown.conclusion())?;
        if framing == Framing::Extended {
            text += "\nThe disk:\n";
            text += &draw::bar("base:allocation", &shown.extents, shown.size, &palette);
        }
    }
    text += HINTS;
    out::write(text.as_bytes())
}

const BOLD: &str = "1";

const INTRODUCTION: &str = "\
nbd-codec speaks NBD and does no I/O. Here its client machines meet a server in
memory that pretends to have a sparse disk of 16 GiB: handshake, a map of the
whole disk, one read of 128 KiB half of which is hole, goodbye. Every byte below
was made by the library and read by it.
";

const HINTS: &str = "
Against a real server:
  truncate -s 8G disk.img && qemu-nbd -t -b localhost -f raw disk.img &
  nbd info nbd://localhost           what the export is and can
  nbd map nbd://localhost            where its data is
  nbd copy nbd://localhost copy.img  there and back, holes kept
  nbd --help                         all commands
";

/// A session that was had.
struct Shown {
    framing: Framing,
    size: u64,
    extents: Vec<Placed>,
    said: Vec<Said>,
}

impl Shown {
    fn new(framing: Framing) -> Result<Self> {
        let mut wire = Vec::new();
        let mut server = Canned::new(framing, DISK, &mut wire);
        let negotiated = handshake(&mut server, framing, wire)?;
        let mut client = Client {
            machine: Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT),
            server,
        };
        let contexts: Vec<_> = negotiated.contexts.iter().collect();
        let ids: Vec<_> = contexts.iter().map(|context| context.id).collect();
        let mut status = Status::new(&ids, 0..negotiated.size);
        while let Some((offset, length)) = status.next(&negotiated)? {
            client.exchange(Request::block_status(offset, length), &mut status)?;
        }
        client.exchange(READ, &mut Ignore)?;
        let goodbye = client.machine.disconnect()?;
        client.send(goodbye);
        Ok(Self {
            framing,
            size: negotiated.size,
            extents: status.extents.into_iter().flatten().collect(),
            said: client.server.said,
        })
    }

    fn headline(&self) -> String {
        let bytes: usize = self.said.iter().map(|said| said.bytes).sum();
        let name = match self.framing {
            Framing::Simple => "Simple replies",
            Framing::Structured => "Structured replies",
            Framing::Extended => "Extended headers",
        };
        format!("{name}: {} messages, {bytes} bytes", self.said.len())
    }

    fn conclusion(&self) -> String {
        let hole = self.extents.iter().map(|extent| extent.length).max();
        let hole = size::rounded(hole.unwrap_or(0));
        let count = self.extents.len();
        match self.framing {
            Framing::Simple => {
                "No block status, so no map; and the hole that was read came as zeroes.".into()
            }
            Framing::Structured => format!(
                "{count} narrow extents: 32 bits end below 4 GiB, so the long ones came in parts. The hole that was read came in 12 bytes."
            ),
            Framing::Extended => {
                format!("{count} wide extents in one reply, the longest {hole}, whole.")
            }
        }
    }
}

/// Lets client and server agree.
fn handshake(server: &mut Canned, framing: Framing, mut wire: Vec<u8>) -> Result<Negotiated> {
    let contexts = [ContextQuery::narrow("base:allocation")];
    let mut plan = Plan::new("pretend");
    plan.contexts = &contexts;
    // The best there is, to see it fall back; but without the detour where
    // nothing comes of it.
    plan.framing = framing;
    let mut client = Connect::new(plan)?;
    loop {
        let mut input = wire.as_slice();
        let mut ready = false;
        while let Some(event) = client.receive(&mut input)? {
            ready |= event == connect::Event::Ready;
        }
        if ready {
            break;
        }
        let mut request = Vec::new();
        if client.transmit(&mut request)? == 0 {
            bail!("the handshake came to a halt");
        }
        wire.clear();
        server.hear(&request, &mut wire);
    }
    match client.into_negotiated() {
        Ok(negotiated) => Ok(negotiated),
        Err(_) => bail!("the handshake did not come to its end"),
    }
}

struct Client {
    machine: Transmission<[Slot; 1]>,
    server: Canned,
}

impl Client {
    fn send(&mut self, head: Head) -> Vec<u8> {
        let mut answer = Vec::new();
        self.server.hear(head.as_bytes(), &mut answer);
        answer
    }

    /// One command, and all that is said in reply.
    fn exchange(&mut self, request: Request, replies: &mut dyn Replies) -> Result<()> {
        let head = self.machine.submit(request)?;
        let answer = self.send(head);
        let mut input = answer.as_slice();
        while let Some(event) = self.machine.receive(&mut input)? {
            replies.event(event)?;
        }
        match self.machine.in_flight() {
            0 => Ok(()),
            _ => bail!("the answer is not complete"),
        }
    }
}

/// For a read whose data nobody wants.
struct Ignore;

impl Replies for Ignore {
    fn place(&mut self, _: nbd_codec::wire::number::Cookie, _: u64, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn event(&mut self, _: Event<'_>) -> Result<()> {
        Ok(())
    }
}

/// The messages, equal ones behind each other on one line.
fn wire(said: &[Said], palette: &Palette) -> String {
    let alike = |a: &Said, b: &Said| (a.client, &a.what) == (b.client, &b.what);
    let mut text = String::new();
    for group in said.chunk_by(alike) {
        let [first, ..] = group else { continue };
        let bytes: usize = group.iter().map(|said| said.bytes).sum();
        let times = match group.len() {
            1 => String::new(),
            n => format!(" × {n}"),
        };
        let side = match first.client {
            true => palette.paint("C:", "36"),
            false => palette.paint("S:", "33"),
        };
        let what = format!("{}{times}", first.what);
        text += &format!("  {side} {what:<36} {bytes:>7} bytes\n");
    }
    text
}
