//! An NBD server for 32 KiB of its RAM, in 256 bytes of buffers, without an
//! operating system.
//!
//! It serves one session, and then reports the content of the RAM to the
//! debugger.
#![no_std]
#![no_main]

use core::mem::MaybeUninit;

use cortex_m_rt::entry;
use nbd_codec::server::{
    Config, Export, ExportQuery, Handshake, HandshakeEvent, MetaContext, Reply, Request,
    Transmission, TransmissionEvent,
};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::{AllocationFlags, TransmissionFlags};
use nbd_codec::wire::number::{ContextId, ErrorValue, OptionReplyType};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Negotiated, Step};
use nbd_codec_firmware::board::{self, Uart};
use nbd_codec_firmware::{BUFFER, Failure, Inbox, LIMITS};

/// Size of the export in bytes.
const SIZE: usize = 32 * 1024;
/// Granularity of block status in bytes.
const GRAIN: usize = 512;

const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];

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
    if cfg!(feature = "full") {
        export.contexts = CONTEXTS;
    }
    export
};

#[entry]
fn main() -> ! {
    static mut RECEIVE: [u8; BUFFER] = [0; BUFFER];
    static mut RAM: [u8; SIZE] = [0; SIZE];
    static mut HANDSHAKE: MaybeUninit<Handshake> = MaybeUninit::uninit();
    static mut SESSION: MaybeUninit<Transmission> = MaybeUninit::uninit();
    board::paint_stack();
    #[cfg(feature = "deliberate-panic")]
    {
        RECEIVE[0] = core::hint::black_box(None).unwrap();
    }
    // SAFETY: the only call.
    let mut link = unsafe { Uart::start() };
    let result = server(&mut link, Inbox::new(RECEIVE), RAM, HANDSHAKE, SESSION);
    link.drain();
    board::report("stack", board::deepest_stack());
    board::report_bytes(RAM);
    match result {
        Ok(()) => board::exit(0),
        Err(failure) => board::exit(failure as u32),
    }
}

fn server(
    link: &mut Uart,
    mut inbox: Inbox,
    ram: &mut [u8; SIZE],
    begun: &mut MaybeUninit<Handshake>,
    session: &mut MaybeUninit<Transmission>,
) -> Result<(), Failure> {
    match handshake(start(begun)?, link, &mut inbox, session)? {
        Some(session) => serve(session, link, &mut inbox, ram),
        None => Ok(()), // the client ended the handshake with ABORT
    }
}

/// Makes the handshake in its static memory. Returned by value, it would be on
/// the stack for a moment, deeper than anything else.
#[inline(never)]
fn start(memory: &mut MaybeUninit<Handshake>) -> Result<&mut Handshake, Failure> {
    Ok(memory.write(Handshake::new(Config::new().limits(LIMITS))?))
}

/// Not inlined: its stack frame is gone when transmission begins.
#[inline(never)]
fn handshake<'s>(
    handshake: &mut Handshake,
    link: &mut Uart,
    inbox: &mut Inbox,
    session: &'s mut MaybeUninit<Transmission>,
) -> Result<Option<&'s mut Transmission>, Failure> {
    use HandshakeEvent as E;
    loop {
        match inbox.receive(handshake)? {
            Step::Event(E::Export(query) | E::MetaContexts(query)) => {
                answer_query(handshake, &query, link)?;
            }
            Step::Event(E::List) => {
                handshake.list(&EXPORT, link)?;
                handshake.finish_list(link)?;
            }
            Step::Event(E::Ready { .. }) => return begin(handshake.agreed(), session).map(Some),
            Step::Event(E::Aborted) => return Ok(None),
            Step::Event(_) => {}
            Step::Transmit => drop(handshake.transmit(link)?),
            Step::Read(n) => link.fill(inbox, n),
            other => return Err(other.unexpected().into()),
        }
    }
}

/// There is one export, which is also the default export.
#[inline(never)]
fn answer_query(
    handshake: &mut Handshake,
    query: &ExportQuery<'_>,
    link: &mut Uart,
) -> Result<(), Failure> {
    match query.export() {
        "" | "ram" => drop(handshake.grant(query, &EXPORT, link)?),
        _ => drop(handshake.refuse(OptionReplyType::ERR_UNKNOWN, "", link)?),
    }
    Ok(())
}

#[inline(never)]
fn begin<'s>(
    agreed: &Negotiated,
    memory: &'s mut MaybeUninit<Transmission>,
) -> Result<&'s mut Transmission, Failure> {
    Ok(memory.write(Transmission::new(*agreed, LIMITS)?))
}

/// Everything after the handshake.
#[inline(never)]
fn serve(
    session: &mut Transmission,
    link: &mut Uart,
    inbox: &mut Inbox,
    ram: &mut [u8; SIZE],
) -> Result<(), Failure> {
    use TransmissionEvent as E;
    loop {
        match inbox.receive(session)? {
            Step::Event(E::Request(request)) => answer(request, link, ram)?,
            Step::Event(E::Answered { reply, .. }) => write(link, &reply),
            Step::Event(E::Disconnect) => return Ok(()),
            Step::Event(_) => {}
            Step::Read(n) => link.fill(inbox, n),
            Step::ReadPayload { offset, length, .. } => {
                // From the line to its place, without a buffer. Data is never
                // in the inbox: it reads no more than a step asks.
                link.read(piece(ram, offset, length)?);
                session.advance(length)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
}

/// Executes a request and answers it.
#[inline(never)]
fn answer(request: Request, link: &mut Uart, ram: &mut [u8; SIZE]) -> Result<(), Failure> {
    let reply = match request {
        Request::Read(read) => {
            let data = piece(ram, read.offset(), read.length().into())?;
            link.write(read.data().as_bytes());
            link.write(data);
            return Ok(());
        }
        Request::BlockStatus32(status) if cfg!(feature = "full") => {
            let (length, flags) = zeroes(ram, status.offset(), status.length());
            let (length, flags) = (length as u32, flags as u32);
            let extents = [Extent32 { length, flags }];
            status
                .reply(ALLOCATION, extents, link)
                .map_err(|rejected| rejected.reason)?;
            return Ok(());
        }
        Request::BlockStatus64(status) if cfg!(feature = "full") => {
            let (length, flags) = zeroes(ram, status.offset(), status.length());
            let extents = [Extent64 { length, flags }];
            status
                .reply(ALLOCATION, extents, link)
                .map_err(|rejected| rejected.reason)?;
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

/// The only context of the export.
const ALLOCATION: ContextId = ContextId(0);

/// The first extent of a range: its length and its flags. It is all zeroes, or
/// no block of it is.
fn zeroes(ram: &[u8; SIZE], offset: u64, length: u64) -> (u64, u64) {
    let range = ram.get(offset as usize..).unwrap_or_default();
    let range = range.get(..length as usize).unwrap_or_default();
    let mut grains = range.chunks(GRAIN);
    let is_zero = |grain: &[u8]| grain.iter().all(|byte| *byte == 0);
    let first = grains.next().unwrap_or_default();
    let zero = is_zero(first);
    let same = grains.take_while(|grain| is_zero(grain) == zero);
    let length = same.fold(first.len(), |sum, grain| sum + grain.len());
    let flags = if zero { AllocationFlags::ZERO.0 } else { 0 };
    (length as u64, flags.into())
}

/// A range of the RAM. The session has checked that it is within the export.
fn piece(ram: &mut [u8; SIZE], offset: u64, length: u64) -> Result<&mut [u8], Failure> {
    let after = ram.get_mut(offset as usize..);
    after
        .and_then(|after| after.get_mut(..length as usize))
        .ok_or(Failure::Command)
}

fn write(link: &mut Uart, reply: &Reply<'_>) {
    for part in reply.parts() {
        link.write(part);
    }
}
