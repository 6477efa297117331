//! An NBD client in 768 bytes of buffers, without an operating system.
//!
//! It requests the block status of the whole export; reads blocks spread over
//! it, changes them and writes them back, several in flight; flushes,
//! disconnects, and reports figures to the debugger.
#![no_std]
#![no_main]

use core::mem::MaybeUninit;

use cortex_m_rt::entry;
use nbd_codec::client::{
    Config, ConnectEvent, Connector, MetaContextQuery, Request, Slot, Transmission,
    TransmissionEvent, slot_index,
};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{AllocationFlags, TransmissionFlags};
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Content, Framing, Negotiated, Step};
use nbd_codec_firmware::board::{self, Uart};
use nbd_codec_firmware::{BUFFER, Failure, Inbox, LIMITS};

/// Bytes of a block: the unit of reads and writes.
const BLOCK: usize = 128;
/// Blocks in flight at once.
const LANES: usize = 4;
/// Blocks in all; a power of two.
const BLOCKS: u32 = 32;

/// The metadata contexts that it requests.
const CONTEXTS: &[MetaContextQuery<'_>] = &[MetaContextQuery::narrow("base:allocation")];

type Session = Transmission<&'static mut [Slot]>;

/// The figures that the image reports to the debugger.
#[derive(Clone, Copy, Default)]
struct Report {
    framing: u32,
    extents: u32,
    /// Bytes that are not holes.
    allocated: u32,
    checksum: u32,
}

#[entry]
fn main() -> ! {
    static mut RECEIVE: [u8; BUFFER] = [0; BUFFER];
    static mut DATA: [[u8; BLOCK]; LANES] = [[0; BLOCK]; LANES];
    static mut SLOTS: [Slot; LANES] = [Slot::EMPTY; LANES];
    static mut HANDSHAKE: MaybeUninit<Connector<'_>> = MaybeUninit::uninit();
    static mut SESSION: MaybeUninit<Session> = MaybeUninit::uninit();
    board::paint_stack();
    #[cfg(feature = "deliberate-panic")]
    {
        RECEIVE[0] = core::hint::black_box(None).unwrap();
    }
    // SAFETY: the only call.
    let mut link = unsafe { Uart::start() };
    let result = client(
        &mut link,
        Inbox::new(RECEIVE),
        DATA,
        SLOTS,
        HANDSHAKE,
        SESSION,
    );
    link.drain();
    board::report("stack", board::deepest_stack());
    match result {
        Ok(report) => {
            board::report("framing", report.framing);
            board::report("extents", report.extents);
            board::report("allocated", report.allocated);
            board::report("checksum", report.checksum);
            board::exit(0)
        }
        Err(failure) => board::exit(failure as u32),
    }
}

fn client(
    link: &mut Uart,
    mut inbox: Inbox,
    data: &mut [[u8; BLOCK]; LANES],
    slots: &'static mut [Slot],
    connector: &mut MaybeUninit<Connector<'static>>,
    session: &mut MaybeUninit<Session>,
) -> Result<Report, Failure> {
    let connector = start(connector)?;
    handshake(connector, link, &mut inbox)?;
    let session = begin(connector.agreed(), slots, session);
    transmission(session, link, inbox, data)
}

/// Makes the handshake in its static memory. Returned by value, it would be on
/// the stack for a moment, deeper than anything else.
#[inline(never)]
fn start<'m>(
    memory: &'m mut MaybeUninit<Connector<'static>>,
) -> Result<&'m mut Connector<'static>, Failure> {
    let mut config = Config::new("").limits(LIMITS);
    if cfg!(feature = "full") {
        config = config.contexts(CONTEXTS);
    }
    Ok(memory.write(Connector::new(config)?))
}

#[inline(never)]
fn begin<'m>(
    agreed: &Negotiated,
    slots: &'static mut [Slot],
    memory: &'m mut MaybeUninit<Session>,
) -> &'m mut Session {
    memory.write(Transmission::new(*agreed, slots, LIMITS))
}

/// Everything after the handshake.
#[inline(never)]
fn transmission(
    session: &mut Session,
    link: &mut Uart,
    inbox: Inbox,
    data: &mut [[u8; BLOCK]; LANES],
) -> Result<Report, Failure> {
    let mut client = Client {
        session,
        link,
        inbox,
        data,
        lanes: [Lane::Idle; LANES],
        status_end: 0,
        report: Report::default(),
    };
    client.block_status()?;
    client.change_blocks()?;
    client.end()
}

/// Not inlined: its stack frame is gone when transmission begins.
#[inline(never)]
fn handshake(
    connector: &mut Connector<'_>,
    link: &mut Uart,
    inbox: &mut Inbox,
) -> Result<(), Failure> {
    loop {
        match inbox.receive(connector)? {
            Step::Event(ConnectEvent::Ready) => return Ok(()),
            Step::Event(ConnectEvent::Failed { .. }) => return Err(Failure::Refused),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(link)?),
            Step::Read(n) => link.fill(inbox, n),
            other => return Err(other.unexpected().into()),
        }
    }
}

/// The use of a block's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Idle,
    Reading { slot: usize, offset: u64 },
    Writing { slot: usize },
}

impl Lane {
    fn is_for(&self, cookie: Cookie) -> bool {
        let index = slot_index(cookie);
        matches!(self, Self::Reading { slot, .. } | Self::Writing { slot } if *slot == index)
    }
}

struct Client<'a> {
    session: &'a mut Session,
    link: &'a mut Uart,
    inbox: Inbox,
    data: &'a mut [[u8; BLOCK]; LANES],
    lanes: [Lane; LANES],
    /// The end of the known block status, in bytes.
    status_end: u64,
    report: Report,
}

impl Client<'_> {
    /// Sends a command, and returns the number of its slot. One stack frame holds the
    /// header, and is gone when the reply comes.
    #[inline(never)]
    fn send(&mut self, request: Request) -> Result<usize, Failure> {
        let header = self.session.submit(request)?;
        self.link.write(header.as_bytes());
        Ok(slot_index(header.cookie()))
    }

    /// Waits until the next command is complete.
    fn wait(&mut self) -> Result<Cookie, Failure> {
        use TransmissionEvent as E;
        loop {
            match self.inbox.receive(self.session)? {
                Step::Event(E::Done { cookie, result }) => {
                    result.map_err(|_| Failure::Command)?;
                    return Ok(cookie);
                }
                Step::Event(E::Extents32 { extents, .. }) if cfg!(feature = "full") => {
                    for extent in extents {
                        count(&mut self.report, &mut self.status_end, extent.into());
                    }
                }
                Step::Event(E::Extents64 { extents, .. }) if cfg!(feature = "full") => {
                    for extent in extents {
                        count(&mut self.report, &mut self.status_end, extent);
                    }
                }
                Step::Event(_) => {}
                // Data is never in the inbox: it reads no more than a step asks.
                Step::Content(Content::Hole {
                    cookie,
                    offset,
                    length,
                }) if cfg!(feature = "full") => {
                    place(self.data, &self.lanes, cookie, offset, length.into())?.fill(0)
                }
                Step::Read(n) => self.link.fill(&mut self.inbox, n),
                Step::ReadPayload {
                    cookie,
                    offset,
                    length,
                } => {
                    // From the line to its place, without a buffer.
                    let place = place(self.data, &self.lanes, cookie, offset, length)?;
                    self.link.read(place);
                    self.session.advance(length)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
    }

    /// Requests the status of the whole export. A server may describe less than
    /// the request: the next request begins where the status ends.
    fn block_status(&mut self) -> Result<(), Failure> {
        let negotiated = self.session.negotiated();
        let (size, framing) = (negotiated.size, negotiated.framing);
        self.report.framing = framing as u32;
        if !cfg!(feature = "full") || negotiated.contexts.is_empty() {
            return Ok(());
        }
        // The longest length of compact headers, in whole blocks.
        let most = match framing {
            Framing::Extended => u64::MAX,
            _ => u64::from(u32::MAX - 65_535),
        };
        while self.status_end < size {
            let offset = self.status_end;
            let length = (size - offset).min(most);
            self.send(Request::block_status(offset, length))?;
            self.wait()?;
            if self.status_end == offset {
                return Err(Failure::Command);
            }
        }
        Ok(())
    }

    /// Reads, changes and writes blocks, as many in flight as there are lanes.
    fn change_blocks(&mut self) -> Result<(), Failure> {
        let size = self.session.negotiated().size;
        let stride = size / u64::from(BLOCKS) & !(BLOCK as u64 - 1);
        if stride == 0 {
            return Err(Failure::Export);
        }
        let mut offsets = (0..BLOCKS).map(|n| u64::from(n) * stride);
        for lane in 0..LANES {
            if let Some(offset) = offsets.next() {
                self.read(lane, offset)?;
            }
        }
        while self.session.in_flight() > 0 {
            let cookie = self.wait()?;
            let lane = self.lanes.iter().position(|lane| lane.is_for(cookie));
            let lane = lane.ok_or(Failure::Command)?;
            match self.lanes.get(lane) {
                Some(&Lane::Reading { offset, .. }) => self.write(lane, offset)?,
                _ => {
                    if let Some(offset) = offsets.next() {
                        self.read(lane, offset)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, lane: usize, offset: u64) -> Result<(), Failure> {
        let slot = self.send(Request::read(offset, BLOCK as u64))?;
        self.set(lane, Lane::Reading { slot, offset });
        Ok(())
    }

    /// Changes what was read, and writes it back.
    fn write(&mut self, lane: usize, offset: u64) -> Result<(), Failure> {
        let slot = self.send(Request::write(offset, BLOCK as u64))?;
        self.set(lane, Lane::Writing { slot });
        let Some(block) = self.data.get_mut(lane) else {
            return Err(Failure::Command);
        };
        for (place, byte) in (offset as u32..).zip(block.iter_mut()) {
            let weighed = u32::from(*byte).wrapping_mul(place | 1);
            self.report.checksum = self.report.checksum.wrapping_add(weighed);
            *byte = byte.wrapping_mul(3).wrapping_add(place as u8);
        }
        self.link.write(block);
        Ok(())
    }

    fn set(&mut self, lane: usize, to: Lane) {
        if let Some(place) = self.lanes.get_mut(lane) {
            *place = to;
        }
    }

    fn end(&mut self) -> Result<Report, Failure> {
        let flags = self.session.negotiated().flags;
        if flags.contains(TransmissionFlags::SEND_FLUSH) {
            self.send(Request::flush())?;
            self.wait()?;
        }
        self.link.write(self.session.disconnect()?.as_bytes());
        Ok(self.report)
    }
}

/// Counts an extent of `base:allocation`.
fn count(report: &mut Report, status_end: &mut u64, extent: Extent64) {
    report.extents += 1;
    if extent.flags & u64::from(AllocationFlags::HOLE.0) == 0 {
        report.allocated += extent.length as u32;
    }
    *status_end += extent.length;
}

/// The memory for data of a read.
fn place<'a>(
    data: &'a mut [[u8; BLOCK]; LANES],
    lanes: &[Lane; LANES],
    cookie: Cookie,
    offset: u64,
    length: u64,
) -> Result<&'a mut [u8], Failure> {
    for (block, lane) in data.iter_mut().zip(lanes) {
        if let Lane::Reading { offset: start, .. } = lane
            && lane.is_for(cookie)
            && let Some(after) = block.get_mut((offset - start) as usize..)
            && let Some(place) = after.get_mut(..length as usize)
        {
            return Ok(place);
        }
    }
    Err(Failure::Command)
}
