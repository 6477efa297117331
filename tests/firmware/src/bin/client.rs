//! An NBD client in 768 bytes of buffers, without an operating system.
//!
//! It asks for the block status of the whole export, then reads blocks spread
//! over it, changes them and writes them back, several in flight; flushes,
//! disconnects, and tells the debugger what it saw.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::client::{Event, Request, Slot, Transmission, slot_index};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Framing, Limits, Need};
use nbd_codec_firmware::board::{self, Uart};
use nbd_codec_firmware::{Failure, Inbox};

/// Bytes that are read, changed and written at a time.
const BLOCK: usize = 128;
/// How many of them at once.
const LANES: usize = 4;
/// How many in all; a power of two.
const BLOCKS: u32 = 32;

type Session = Transmission<&'static mut [Slot]>;

/// What the image tells the debugger.
#[derive(Clone, Copy, Default)]
struct Report {
    framing: u32,
    extents: u32,
    /// Bytes that are no hole.
    allocated: u32,
    checksum: u32,
}

#[entry]
fn main() -> ! {
    static mut RECEIVE: [u8; 256] = [0; 256];
    static mut DATA: [[u8; BLOCK]; LANES] = [[0; BLOCK]; LANES];
    static mut SLOTS: [Slot; LANES] = [Slot::EMPTY; LANES];
    static mut SESSION: Option<Session> = None;
    board::paint_stack();
    #[cfg(feature = "deliberate-panic")]
    {
        RECEIVE[0] = core::hint::black_box(None).unwrap();
    }
    // SAFETY: the only one.
    let mut link = unsafe { Uart::start() };
    let result = client(&mut link, Inbox::new(RECEIVE), DATA, SLOTS, SESSION);
    link.drain();
    board::tell("stack", board::deepest_stack());
    match result {
        Ok(report) => {
            board::tell("framing", report.framing);
            board::tell("extents", report.extents);
            board::tell("allocated", report.allocated);
            board::tell("checksum", report.checksum);
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
    session: &mut Option<Session>,
) -> Result<Report, Failure> {
    handshake(link, &mut inbox, slots, session)?;
    match session {
        Some(session) => transmission(session, link, inbox, data),
        None => Err(Failure::Refused),
    }
}

/// Everything behind the handshake.
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

/// What fits the receive buffer.
fn limits() -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.option_data = 236;
    limits.error_message = 210;
    limits
}

/// In a frame of its own, which is gone when transmission begins.
#[inline(never)]
fn handshake(
    link: &mut Uart,
    inbox: &mut Inbox,
    slots: &'static mut [Slot],
    session: &mut Option<Session>,
) -> Result<(), Failure> {
    let contexts = [ContextQuery::narrow("base:allocation")];
    let mut plan = Plan::new("");
    plan.contexts = &contexts;
    plan.limits = limits();
    // Used where it is made: moving it would take its size once more.
    let mut connect = Connect::new(plan);
    let connect = connect.as_mut().map_err(|misuse| *misuse)?;
    loop {
        let mut input = inbox.held();
        let event = connect.receive(&mut input)?;
        let waits = event.is_none();
        let ready = matches!(event, Some(connect::Event::Ready));
        if let Some(connect::Event::Failed { .. }) = event {
            return Err(Failure::Refused);
        }
        let rest = input.len();
        inbox.keep(rest);
        if ready {
            *session = Some(Transmission::new(*connect.agreed(), slots, limits()));
            return Ok(());
        }
        if waits {
            connect.transmit(link)?;
            if let Need::Header(n) = connect.need() {
                inbox.fill(link, n)?;
            }
        }
    }
}

/// What a block's memory is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Idle,
    Reading { slot: usize, offset: u64 },
    Writing { slot: usize },
}

impl Lane {
    fn serves(&self, cookie: Cookie) -> bool {
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
    /// Up to where the block status is known, in bytes.
    status_end: u64,
    report: Report,
}

impl Client<'_> {
    /// Waits until the next command is complete.
    fn wait(&mut self) -> Result<Cookie, Failure> {
        loop {
            let mut input = self.inbox.held();
            let event = self.session.receive(&mut input)?;
            let waits = event.is_none();
            let mut done = None;
            match event {
                Some(Event::Done { cookie, result }) => {
                    result.map_err(|_| Failure::Command)?;
                    done = Some(cookie);
                }
                Some(Event::Extents32 { extents, .. }) => {
                    for extent in extents {
                        count(&mut self.report, &mut self.status_end, extent.into());
                    }
                }
                Some(Event::Extents64 { extents, .. }) => {
                    for extent in extents {
                        count(&mut self.report, &mut self.status_end, extent);
                    }
                }
                Some(Event::Hole {
                    cookie,
                    offset,
                    length,
                }) => {
                    place(self.data, &self.lanes, cookie, offset, length.into())?.fill(0);
                }
                _ => {}
            }
            let rest = input.len();
            self.inbox.keep(rest);
            if let Some(cookie) = done {
                return Ok(cookie);
            }
            if waits {
                match self.session.need() {
                    Need::Header(n) => self.inbox.fill(self.link, n)?,
                    Need::Payload {
                        cookie,
                        offset,
                        length,
                    } => {
                        // From the line to its place, with no buffer between.
                        let room = place(self.data, &self.lanes, cookie, offset, length)?;
                        self.link.read(room);
                        self.session.advance(length)?;
                    }
                    Need::Nothing => return Err(Failure::Protocol),
                }
            }
        }
    }

    /// Asks for the status of the whole export, in as many turns as the
    /// server wants.
    fn block_status(&mut self) -> Result<(), Failure> {
        let negotiated = self.session.negotiated();
        let (size, framing) = (negotiated.size, negotiated.framing);
        self.report.framing = framing as u32;
        if negotiated.contexts.is_empty() {
            return Ok(());
        }
        // The most that compact headers can say, in whole blocks.
        let most = match framing {
            Framing::Extended => u64::MAX,
            _ => u64::from(u32::MAX - 65_535),
        };
        while self.status_end < size {
            let offset = self.status_end;
            let length = (size - offset).min(most);
            let head = self.session.submit(Request::block_status(offset, length))?;
            self.link.write(head.as_bytes());
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
            let lane = self.lanes.iter().position(|lane| lane.serves(cookie));
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
        let head = self.session.submit(Request::read(offset, BLOCK as u64))?;
        let slot = slot_index(head.cookie());
        self.set(lane, Lane::Reading { slot, offset });
        self.link.write(head.as_bytes());
        Ok(())
    }

    /// Changes what was read, and writes it back.
    fn write(&mut self, lane: usize, offset: u64) -> Result<(), Failure> {
        let head = self.session.submit(Request::write(offset, BLOCK as u64))?;
        let slot = slot_index(head.cookie());
        self.set(lane, Lane::Writing { slot });
        let Some(block) = self.data.get_mut(lane) else {
            return Err(Failure::Command);
        };
        for (place, byte) in (offset as u32..).zip(block.iter_mut()) {
            let weighed = u32::from(*byte).wrapping_mul(place | 1);
            self.report.checksum = self.report.checksum.wrapping_add(weighed);
            *byte = byte.wrapping_mul(3).wrapping_add(place as u8);
        }
        self.link.write(head.as_bytes());
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
            let head = self.session.submit(Request::flush())?;
            self.link.write(head.as_bytes());
            self.wait()?;
        }
        self.link.write(self.session.disconnect()?.as_bytes());
        Ok(self.report)
    }
}

/// Counts an extent of `base:allocation`.
fn count(report: &mut Report, status_end: &mut u64, extent: Extent64) {
    const HOLE: u64 = 1;
    report.extents += 1;
    if extent.flags & HOLE == 0 {
        report.allocated += extent.length as u32;
    }
    *status_end += extent.length;
}

/// Where data of a read belongs.
fn place<'a>(
    data: &'a mut [[u8; BLOCK]; LANES],
    lanes: &[Lane; LANES],
    cookie: Cookie,
    offset: u64,
    length: u64,
) -> Result<&'a mut [u8], Failure> {
    for (block, lane) in data.iter_mut().zip(lanes) {
        if let Lane::Reading { offset: start, .. } = lane
            && lane.serves(cookie)
            && let Some(rest) = block.get_mut((offset - start) as usize..)
            && let Some(room) = rest.get_mut(..length as usize)
        {
            return Ok(room);
        }
    }
    Err(Failure::Command)
}
