//! Options, until the client has chosen.

use std::io::{Read, Write};
use std::mem;

use anyhow::Result;
use nbd_codec::server::Handshake;
use nbd_codec::server::handshake::Event;
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Need, Negotiated};

use crate::export::Export;
use crate::inbox::Inbox;

/// Answers are sent when they are more bytes: a client may ask much at once.
const ENOUGH: usize = 16 << 10;

/// A handshake under way, for whoever has a connection.
pub struct Shaking {
    machine: Handshake,
    out: Vec<u8>,
}

/// What is to be done when all of [`Shaking::out`] is sent.
pub enum Step {
    /// Go on: there may be more in the inbox.
    GoOn,
    /// Wait for more, and go on then.
    Receive,
    /// It has ended; with `None`, by the client's choice.
    Over(Option<Negotiated>),
}

impl Shaking {
    pub fn new(export: &Export) -> Result<Self> {
        Ok(Self {
            machine: export.handshake()?,
            out: Vec::new(),
        })
    }

    /// What is to be sent, also after an error.
    pub fn out(&mut self) -> Vec<u8> {
        mem::take(&mut self.out)
    }

    /// Takes what has arrived.
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
            if self.out.len() >= ENOUGH {
                return Ok(Step::GoOn);
            }
            let mut input = inbox.unread();
            let event = machine.receive(&mut input)?;
            let more_to_come = event.is_none() && machine.need() != Need::Nothing;
            let mut over = None;
            match event {
                None => {}
                Some(Event::Ready) => over = Some(Step::Over(Some(*machine.agreed()))),
                Some(Event::Aborted) => over = Some(Step::Over(None)),
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

    /// The client has gone.
    pub fn end_of_input(&mut self) -> Result<()> {
        Ok(self.machine.end_of_input()?)
    }
}

/// Runs the handshake over any connection. `None`: the client has ended it.
pub fn run(
    link: &mut (impl Read + Write),
    inbox: &mut Inbox,
    export: &Export,
    is_shutting_down: impl Fn() -> bool,
) -> Result<Option<Negotiated>> {
    let mut shaking = Shaking::new(export)?;
    loop {
        let step = shaking.step(inbox, export, is_shutting_down());
        link.write_all(&shaking.out())?;
        match step? {
            Step::GoOn => {}
            Step::Over(negotiated) => return Ok(negotiated),
            Step::Receive if inbox.fill(link)? == 0 => {
                shaking.end_of_input()?;
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
                machine.refuse(unknown, "there is no export of this name", out)?;
            }
        }
        // Nothing else waits for an answer; TLS is not offered.
        _ => {}
    }
    Ok(())
}
