//! The handshake: options, until the client chooses an export or aborts.

use std::io::{Read, Write};
use std::mem;

use anyhow::Result;
use nbd_codec::server::{Handshake, HandshakeEvent};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Negotiated, Step};

use crate::export::Export;
use crate::inbox::Inbox;

/// Replies are sent once they have this many bytes: a client may send many
/// options at once.
const SEND_THRESHOLD: usize = 16 << 10;

/// Runs the handshake over a blocking connection. `None`: the client aborted it.
pub fn run(
    link: &mut (impl Read + Write),
    inbox: &mut Inbox,
    export: &Export,
    is_shutting_down: impl Fn() -> bool,
) -> Result<Option<Negotiated>> {
    let mut machine = export.handshake()?;
    let mut out = Vec::new();
    loop {
        let step = step(&mut machine, inbox, export, is_shutting_down(), &mut out);
        // What is to be sent is sent after an error, too.
        link.write_all(&mem::take(&mut out))?;
        match step? {
            Progress::Continue => {}
            Progress::Ended(negotiated) => return Ok(negotiated),
            Progress::Receive if inbox.fill(link)? == 0 => {
                machine.end_of_input()?;
                return Ok(None);
            }
            Progress::Receive => {}
        }
    }
}

/// What to do next, after all output is sent.
enum Progress {
    /// Call [`step`] again: the inbox may hold more.
    Continue,
    /// Receive more, then call [`step`] again.
    Receive,
    /// The handshake has ended; with `None`, because the client aborted it.
    Ended(Option<Negotiated>),
}

/// Handles what has arrived.
fn step(
    machine: &mut Handshake,
    inbox: &mut Inbox,
    export: &Export,
    is_shutting_down: bool,
    out: &mut Vec<u8>,
) -> Result<Progress> {
    loop {
        if is_shutting_down {
            machine.shut_down();
        }
        if out.len() >= SEND_THRESHOLD {
            return Ok(Progress::Continue);
        }
        let mut input = inbox.unread();
        let mut progress = None;
        match machine.receive(&mut input)? {
            Step::Event(HandshakeEvent::Ready { .. }) => {
                progress = Some(Progress::Ended(Some(*machine.agreed())));
            }
            Step::Event(HandshakeEvent::Aborted) => progress = Some(Progress::Ended(None)),
            Step::Event(event) => answer(machine, &event, export, out)?,
            Step::Transmit => {
                machine.transmit(out)?;
            }
            Step::Read(_) => progress = Some(Progress::Receive),
            other => return Err(other.unexpected().into()),
        }
        let left = input.len();
        inbox.keep_last(left);
        if let Some(progress) = progress {
            return Ok(progress);
        }
    }
}

fn answer(
    machine: &mut Handshake,
    event: &HandshakeEvent<'_>,
    export: &Export,
    out: &mut Vec<u8>,
) -> Result<()> {
    match event {
        HandshakeEvent::List => {
            machine.list(&export.describe(), out)?;
            machine.finish_list(out)?;
        }
        HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
            if export.is_called(query.export()) {
                machine.grant(query, &export.describe(), out)?;
            } else {
                let unknown = OptionReplyType::ERR_UNKNOWN;
                machine.refuse(unknown, "no export has this name", out)?;
            }
        }
        // No other event needs a reply; TLS is not offered.
        _ => {}
    }
    Ok(())
}
