//! Options, until the client has chosen.

use std::io::{Read, Write};

use anyhow::Result;
use nbd_codec::server::Handshake;
use nbd_codec::server::handshake::Event;
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Need, Negotiated};

use crate::export::Export;
use crate::inbox::Inbox;

/// Runs the handshake over any connection. `None`: the client has ended it.
pub fn run(
    link: &mut (impl Read + Write),
    inbox: &mut Inbox,
    export: &Export,
    shutting_down: impl Fn() -> bool,
) -> Result<Option<Negotiated>> {
    let mut machine = export.handshake()?;
    let mut out = Vec::new();
    loop {
        if shutting_down() {
            machine.shut_down();
        }
        machine.transmit(&mut out)?;
        link.write_all(&out)?;
        out.clear();

        let mut input = inbox.unread();
        let event = machine.receive(&mut input)?;
        let more_to_come = event.is_none() && machine.need() != Need::Nothing;
        match event {
            None => {}
            Some(Event::Ready) => {
                let left = input.len();
                inbox.keep_last(left);
                return Ok(machine.into_negotiated().ok());
            }
            Some(Event::Aborted) => return Ok(None),
            Some(event) => answer(&mut machine, &event, export, &mut out)?,
        }
        let left = input.len();
        inbox.keep_last(left);
        if more_to_come && inbox.fill(link)? == 0 {
            machine.end_of_input()?;
            return Ok(None);
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
