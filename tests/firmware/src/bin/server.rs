//! An NBD server for 32 KiB of its RAM, in 256 bytes of buffers, without an
//! operating system.
//!
//! It serves one session, and then tells the debugger what is in the RAM.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use nbd_codec::server::handshake::{self, Handshake};
use nbd_codec::server::{Event, Export, Inquiry, MetaContext, Offer, Reply, Request, Transmission};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ContextId, ErrorValue, OptionReplyType};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Limits, Need, Negotiated};
use nbd_codec_firmware::board::{self, Uart};
use nbd_codec_firmware::{Failure, Inbox};

/// Bytes that are exported.
const SIZE: usize = 32 * 1024;
/// Bytes that are all zero or not, as far as block status tells.
const GRAIN: usize = 512;

const EXPORT: Export<'_> = {
    let flags = TransmissionFlags::SEND_FLUSH
        .union(TransmissionFlags::SEND_FUA)
        .union(TransmissionFlags::SEND_TRIM)
        .union(TransmissionFlags::SEND_WRITE_ZEROES)
        .union(TransmissionFlags::SEND_FAST_ZERO);
    let mut export = Export::new("ram", SIZE as u64, flags);
    export.description = "the RAM of a microcontroller";
    export.block_sizes = BlockSizes {
        minimum: 1,
        preferred: GRAIN as u32,
        maximum: SIZE as u32,
    };
    export.contexts = &[MetaContext::narrow("base:allocation")];
    export
};

#[entry]
fn main() -> ! {
    static mut RECEIVE: [u8; 256] = [0; 256];
    static mut RAM: [u8; SIZE] = [0; SIZE];
    static mut HANDSHAKE: Option<Handshake> = None;
    static mut SESSION: Option<Transmission> = None;
    board::paint_stack();
    #[cfg(feature = "deliberate-panic")]
    {
        RECEIVE[0] = core::hint::black_box(None).unwrap();
    }
    // SAFETY: the only one.
    let mut link = unsafe { Uart::start() };
    let result = server(&mut link, Inbox::new(RECEIVE), RAM, HANDSHAKE, SESSION);
    link.drain();
    board::tell("stack", board::deepest_stack());
    board::tell_bytes(RAM);
    match result {
        Ok(()) => board::exit(0),
        Err(failure) => board::exit(failure as u32),
    }
}

fn server(
    link: &mut Uart,
    mut inbox: Inbox,
    ram: &mut [u8; SIZE],
    shaking: &mut Option<Handshake>,
    session: &mut Option<Transmission>,
) -> Result<(), Failure> {
    greet(shaking)?;
    if let Some(shaking) = shaking {
        handshake(shaking, link, &mut inbox, session)?;
    }
    match session {
        Some(session) => serve(session, link, &mut inbox, ram),
        None => Ok(()), // only asked
    }
}

/// What fits the receive buffer.
fn limits() -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.option_data = 236;
    limits
}

/// The machine for the handshake, where it stays: on the stack, even for a
/// moment, it would be the deepest of all.
#[inline(never)]
fn greet(shaking: &mut Option<Handshake>) -> Result<(), Failure> {
    let mut offer = Offer::default();
    offer.limits = limits();
    *shaking = Some(Handshake::new(offer)?);
    Ok(())
}

/// In a frame of its own, which is gone when transmission begins.
#[inline(never)]
fn handshake(
    handshake: &mut Handshake,
    link: &mut Uart,
    inbox: &mut Inbox,
    session: &mut Option<Transmission>,
) -> Result<(), Failure> {
    loop {
        handshake.transmit(link)?;
        let mut input = inbox.held();
        let mut ready = false;
        match handshake.receive(&mut input)? {
            Some(handshake::Event::Export(inquiry) | handshake::Event::MetaContexts(inquiry)) => {
                decide(handshake, &inquiry, link)?;
            }
            Some(handshake::Event::List) => {
                handshake.list(&EXPORT, link)?;
                handshake.done(link)?;
            }
            Some(handshake::Event::Ready) => ready = true,
            Some(handshake::Event::Aborted) => return Ok(()),
            _ => {}
        }
        let rest = input.len();
        inbox.keep(rest);
        if ready {
            return begin(handshake.agreed(), session);
        }
        if let Need::Header(n) = handshake.need() {
            inbox.fill(link, n)?;
        }
    }
}

/// There is one export, which is the default too.
#[inline(never)]
fn decide(
    handshake: &mut Handshake,
    inquiry: &Inquiry<'_>,
    link: &mut Uart,
) -> Result<(), Failure> {
    match inquiry.export() {
        "" | "ram" => handshake.grant(inquiry, &EXPORT, link)?,
        _ => handshake.refuse(OptionReplyType::ERR_UNKNOWN, "", link)?,
    };
    Ok(())
}

#[inline(never)]
fn begin(agreed: &Negotiated, session: &mut Option<Transmission>) -> Result<(), Failure> {
    *session = Some(Transmission::new(*agreed, limits())?);
    Ok(())
}

/// Everything behind the handshake.
#[inline(never)]
fn serve(
    session: &mut Transmission,
    link: &mut Uart,
    inbox: &mut Inbox,
    ram: &mut [u8; SIZE],
) -> Result<(), Failure> {
    loop {
        let mut input = inbox.held();
        let mut waits = false;
        match session.receive(&mut input)? {
            Some(Event::Request(request)) => answer(request, link, ram)?,
            Some(Event::Rejected { reply, .. }) => write(link, &reply),
            Some(Event::Disconnect) => return Ok(()),
            // `Payload` says what `need` says too, and what is read directly
            // is no `Data`.
            Some(_) => {}
            None => waits = true,
        }
        let rest = input.len();
        inbox.keep(rest);
        if waits {
            match session.need() {
                Need::Header(n) => inbox.fill(link, n)?,
                Need::Payload { offset, length, .. } => {
                    // From the line to its place, with no buffer between.
                    link.read(piece(ram, offset, length)?);
                    session.advance(length)?;
                }
                Need::Nothing => return Err(Failure::Protocol),
            }
        }
    }
}

/// Does what a request wants, and answers it.
#[inline(never)]
fn answer(request: Request, link: &mut Uart, ram: &mut [u8; SIZE]) -> Result<(), Failure> {
    let reply = match request {
        Request::Read(read) => {
            let data = piece(ram, read.offset(), read.length().into())?;
            link.write(read.data().as_bytes());
            link.write(data);
            return Ok(());
        }
        Request::BlockStatus32(status) => {
            let (length, flags) = zeroes(ram, status.offset(), status.length());
            let (length, flags) = (length as u32, flags as u32);
            let extents = [Extent32 { length, flags }];
            status
                .answer(ALLOCATION, extents, link)
                .map_err(|returned| returned.misuse)?;
            return Ok(());
        }
        Request::BlockStatus64(status) => {
            let (length, flags) = zeroes(ram, status.offset(), status.length());
            let extents = [Extent64 { length, flags }];
            status
                .answer(ALLOCATION, extents, link)
                .map_err(|returned| returned.misuse)?;
            return Ok(());
        }
        Request::Write(write) => write.succeed(),
        Request::WriteZeroes(zeroes) => {
            piece(ram, zeroes.offset(), zeroes.length())?.fill(0);
            zeroes.succeed()
        }
        Request::Trim(trim) => {
            piece(ram, trim.offset(), trim.length())?.fill(0);
            trim.succeed()
        }
        Request::Flush(flush) => flush.succeed(),
        other => {
            write(link, &other.fail(ErrorValue::EINVAL, ""));
            return Ok(());
        }
    };
    write(link, &reply);
    Ok(())
}

/// The place of the only context of the export.
const ALLOCATION: ContextId = ContextId(0);

/// How far the RAM is the same from an offset on, all zeroes or not, and the
/// flags that say which.
fn zeroes(ram: &[u8; SIZE], offset: u64, length: u64) -> (u64, u64) {
    const ZERO: u64 = 2;
    let rest = ram.get(offset as usize..).unwrap_or_default();
    let rest = rest.get(..length as usize).unwrap_or_default();
    let mut grains = rest.chunks(GRAIN);
    let is_zero = |grain: &[u8]| grain.iter().all(|byte| *byte == 0);
    let first = grains.next().unwrap_or_default();
    let zero = is_zero(first);
    let same = grains.take_while(|grain| is_zero(grain) == zero);
    let length = same.fold(first.len(), |sum, grain| sum + grain.len());
    (length as u64, if zero { ZERO } else { 0 })
}

/// A piece of the RAM; the machine has checked that there is one.
fn piece(ram: &mut [u8; SIZE], offset: u64, length: u64) -> Result<&mut [u8], Failure> {
    let rest = ram.get_mut(offset as usize..);
    rest.and_then(|rest| rest.get_mut(..length as usize))
        .ok_or(Failure::Command)
}

fn write(link: &mut Uart, reply: &Reply<'_>) {
    for part in reply.parts() {
        link.write(part);
    }
}
