//! What the monitor finds in what a client sends.

use nbd_codec::monitor::{Fault, Message, Monitor, Side, Slot, Step};
use nbd_codec::wire::flags::{
    ClientFlags, CommandFlags as Flag, HandshakeFlags, TransmissionFlags as Has,
};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::{Misuse, Violation};

use crate::outcome::Finding;
use crate::watch::Watch;

/// Follows a connection of the scripted server.
pub(crate) struct Observer {
    watch: Watch,
    seen: Seen,
}

/// What a finding is about: it comes after the message.
#[derive(Default)]
struct Seen {
    offered: HandshakeFlags,
    /// The last message of the client.
    message: String,
    /// The flags of the last request, and whether it has an extended header.
    flags: Flag,
    extended: bool,
}

impl Observer {
    pub(crate) fn new() -> Self {
        Self {
            watch: Watch::new(),
            seen: Seen::default(),
        }
    }

    /// What follows is the plain text in TLS.
    pub(crate) fn tls_established(&mut self) {
        // Without the acknowledgement the rest is opaque.
        let _ = self.watch.monitor.tls_established();
    }

    /// Takes what a side has sent; returns what the client must not send.
    pub(crate) fn see(&mut self, side: Side, bytes: &[u8]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let Self { watch, seen } = self;
        watch.see(side, bytes, &mut |monitor, step| match step {
            Step::Message(message) => seen.note(&message),
            Step::Violation(finding) if finding.side == Side::Client => {
                let duty = seen.duty(finding.fault, monitor);
                let actual = format!("{}: {}", seen.message, finding.fault);
                findings.push(Finding::new(duty, actual));
            }
            _ => {}
        });
        findings
    }
}

impl Seen {
    fn note(&mut self, message: &Message<'_>) {
        match *message {
            Message::Greeting(Greeting::Newstyle(greeting)) => {
                self.offered = greeting.flags;
                return;
            }
            Message::ClientFlags(_) | Message::Option { .. } => {}
            Message::Request {
                flags, extended, ..
            } => (self.flags, self.extended) = (flags, extended),
            _ => return,
        }
        self.message = message.to_string();
    }

    /// The duty of a fault. The monitor names one for all flags, and one for all sizes.
    fn duty(&self, fault: Fault, monitor: &Monitor<Vec<Slot>>) -> &'static str {
        let agreed = monitor.agreed();
        let lacks = |flag, needs| self.flags.contains(flag) && !agreed.flags.contains(needs);
        match fault {
            Fault::Magic(_) => "O105",
            Fault::Option {
                misuse: Misuse::NotFixed(_),
                ..
            } => "H8",
            Fault::Violation(Violation::ClientFlags(flags))
                if flags.contains(ClientFlags::NO_ZEROES)
                    && !self.offered.contains(HandshakeFlags::NO_ZEROES) =>
            {
                "O8"
            }
            Fault::Request {
                misuse: Misuse::Flag,
                ..
            } => {
                if self.flags.contains(Flag::PAYLOAD_LEN) {
                    if self.extended { "O104" } else { "T9" }
                } else if lacks(Flag::DF, Has::SEND_DF) {
                    "R8"
                } else if lacks(Flag::FAST_ZERO, Has::SEND_FAST_ZERO) {
                    "R11"
                } else if lacks(Flag::FUA, Has::SEND_FUA) {
                    "O13"
                } else {
                    "R1"
                }
            }
            Fault::Request {
                misuse: Misuse::TooLarge { .. },
                ..
            } if agreed.block_sizes.is_none() => "S6",
            fault => fault.duty(Side::Client),
        }
    }
}
