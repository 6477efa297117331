//! The handshake: options, until the client chooses an export or aborts.

use std::io::{Read, Write};
use std::mem;

use anyhow::Result;
use nbd_codec::server::Handshake;
use nbd_codec::server::handshake::Event;
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Need, Negotiated};

use crate::export::Export;
use crate::inbox::Inbox;

/// Replies are sent once they have this many bytes: a client may send many
/// options at once.
const SEND_THRESHOLD: usize = 16 << 10;

/// The handshake of one connection, for both drivers.
pub struct OngoingHandshake {
    machine: Handshake,
    out: Vec<u8>,
}

/// What to do next, after all of [`OngoingHandshake::out`] is sent.
pub enum Step {
    /// Call [`step`](OngoingHandshake::step) again: the inbox may hold more.
    Continue,
    /// Receive more, then call [`step`](OngoingHandshake::step) again.
    Receive,
    /// The handshake has ended; with `None`, because the client aborted it.
    Ended(Option<Negotiated>),
}

impl OngoingHandshake {
    pub fn new(export: &Export) -> Result<Self> {
        Ok(Self {
            machine: export.handshake()?,
            out: Vec::new(),
        })
    }

    /// Takes what is to be sent, also after an error.
    pub fn out(&mut self) -> Vec<u8> {
        mem::take(&mut self.out)
    }

    /// Handles what has arrived.
    pub fn step(
        &mut self,
        inbox: &mut Inbox,
        export: &Export,
        is_shutting_down: bool,
    ) -> Result<Step> {
        let machine = &mut self.machine;
        loop {
            if is_shutting_down {
                machine.shut_down();
            }
            machine.transmit(&mut self.out)?;
            if self.out.len() >= SEND_THRESHOLD {
                return Ok(Step::Continue);
            }
            let mut input = inbox.unread();
            let event = machine.receive(&mut input)?;
            let more_to_come = event.is_none() && machine.need() != Need::Nothing;
            let mut over = None;
            match event {
                None => {}
                Some(Event::Ready) => over = Some(Step::Ended(Some(*machine.agreed()))),
                Some(Event::Aborted) => over = Some(Step::Ended(None)),
                Some(event) => answer(machine, &event, export, &mut self.out)?,
            }
            let left = input.len();
            inbox.keep_last(left);
            match over {
                Some(over) => return Ok(over),
                None if more_to_come => return Ok(Step::Receive),
                None => {}
            }
        }
    }

    /// The client has closed the connection.
    pub fn end_of_input(&mut self) -> Result<()> {
        Ok(self.machine.end_of_input()?)
    }
}

/// Runs the handshake over a blocking connection. `None`: the client aborted it.
pub fn run(
    link: &mut (impl Read + Write),
    inbox: &mut Inbox,
    export: &Export,
    is_shutting_down: impl Fn() -> bool,
) -> Result<Option<Negotiated>> {
    let mut handshake = OngoingHandshake::new(export)?;
    loop {
        let step = handshake.step(inbox, export, is_shutting_down());
        link.write_all(&handshake.out())?;
        match step? {
            Step::Continue => {}
            Step::Ended(negotiated) => return Ok(negotiated),
            Step::Receive if inbox.fill(link)? == 0 => {
                handshake.end_of_input()?;
                return Ok(None);
            }
            Step::Receive => {}
        }
    }
}

fn answer(
    machine: &mut Handshake,
    event: &Event<'_>,
    export: &Export,
    out: &mut Vec<u8>,
) -> Result<()> {
    match event {
        Event::List => {
            machine.list(&export.describe(), out)?;
            machine.done(out)?;
        }
        Event::Export(inquiry) | Event::MetaContexts(inquiry) => {
            if export.is_called(inquiry.export()) {
                machine.grant(inquiry, &export.describe(), out)?;
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
