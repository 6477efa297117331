//! All ways to read, on the same script: equal events, content and results, with
//! the smallest receive buffer too, and whatever the caller ignores. The events
//! and results equal those of the reference parsers.

pub mod driver;
pub mod scripts;

use std::fmt::Debug;

use nbd_codec::client::{Handshake, Slot};
use nbd_codec::inbox::{Payloads, ReceiveOwned};
use nbd_codec::server;
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Error, client as crate_client};

use self::driver::{Call, End, Piece, Summary};
use crate::client::handshake::script::Action as HandshakeAction;
use crate::client::transmission::script::Action as TransmissionAction;
use crate::delivery::{Delivery, Reading};
use crate::reply_event::ReplyEvent;
use crate::{client, compare, enums};

enums! {
    pub enum Run {
        Client { run: client::Run },
        Server { run: crate::server::Run },
    }
}

const READINGS: [driver::Reading; 3] = [
    driver::Reading::ReadAhead,
    driver::Reading::Exact,
    driver::Reading::Direct,
];

/// Runs a script in all ways.
pub fn run(run: Run) {
    match run {
        Run::Client { run } => run_client(run),
        Run::Server { run } => run_server(run),
    }
}

/// The delivery with each way to read.
fn deliveries(first: &Delivery) -> [Delivery; 4] {
    let delivery = |reading, direct| Delivery {
        reading,
        direct,
        ..first.clone()
    };
    [
        delivery(Reading::ReadAhead {}, false),
        delivery(Reading::Exact {}, false),
        delivery(Reading::Exact {}, true),
        delivery(Reading::ExactTwice {}, true),
    ]
}

fn run_client(run: client::Run) {
    match run {
        client::Run::Transmission {
            first, mut script, ..
        } => {
            let whole = client::transmission::run(&script, &Delivery::whole());
            if !script.actions.0.iter().any(is_advance) {
                compare::client::transmission(&whole, &script.setup);
                compare::client::requests(&whole, &script.setup);
            }
            for delivery in deliveries(&first) {
                let client = client::transmission::run(&script, &delivery);
                compare::client::transmission_deliveries(&whole.outcome, &client.outcome);
            }
            client_transmission(&mut script, &first);
        }
        client::Run::Handshake { first, script, .. } => {
            let whole = client::handshake::run(&script, &Delivery::whole());
            let (received, outcome) = (whole.received.clone(), whole.outcome.clone());
            compare::client::handshake(whole, &script);
            for delivery in deliveries(&first) {
                let client = client::handshake::run(&script, &delivery);
                compare::client::handshake_deliveries(outcome.clone(), client.outcome);
            }
            let config = client::handshake::config(&script, &[]);
            let buffer = first.buffer(script.limits.limits().buffer());
            for reading in READINGS {
                let mut machine = Handshake::new(&config);
                let mut options = script.actions.0.iter();
                driver::run(
                    &mut machine,
                    &received,
                    buffer,
                    reading,
                    &first.sizes.0,
                    |machine, call| {
                        call == Call::Unanswered
                            && options.by_ref().any(|action| send(machine, action))
                    },
                );
            }
        }
        client::Run::Connector { first, script, .. } => {
            let run = |delivery: &Delivery| {
                client::handshake::run_connector(&script, delivery, |client| {
                    let (outcome, received) = (client.outcome.clone(), client.received.clone());
                    compare::client::handshake(client, &script);
                    (outcome, received)
                })
            };
            let Some((whole, received)) = run(&Delivery::whole()) else {
                return;
            };
            for delivery in deliveries(&first) {
                if let Some((outcome, _)) = run(&delivery) {
                    compare::client::handshake_deliveries(whole.clone(), outcome);
                }
            }
            let contexts = client::handshake::queries(&script.config.contexts.0);
            let config = client::handshake::config(&script, &contexts);
            let buffer = first.buffer(script.limits.limits().buffer());
            for reading in READINGS {
                let Ok(mut machine) = crate_client::Connector::new(config) else {
                    return;
                };
                driver::run(
                    &mut machine,
                    &received,
                    buffer,
                    reading,
                    &first.sizes.0,
                    |machine, call| {
                        let mut out = Vec::new();
                        call == Call::Transmit && machine.transmit(&mut out).expect("room") > 0
                    },
                );
            }
        }
    }
}

fn is_advance(action: &TransmissionAction) -> bool {
    matches!(action, TransmissionAction::Advance { .. })
}

/// Sends the option of an action. False if it has none, or it cannot be sent.
fn send(machine: &mut Handshake, action: &HandshakeAction) -> bool {
    let mut out = Vec::new();
    match action {
        HandshakeAction::ClientFlags { wanted, .. } => {
            let flags = nbd_codec::wire::flags::ClientFlags((*wanted).into());
            machine.send_client_flags(flags, &mut out).is_ok()
        }
        HandshakeAction::Send { option, .. } => {
            option.with(|option| machine.send(option, &mut out).is_ok())
        }
        _ => false,
    }
}

/// The replies to commands that were all submitted before.
fn client_transmission(script: &mut client::transmission::script::Script, first: &Delivery) {
    let actions = std::mem::take(&mut script.actions.0);
    let (submits, mut others): (Vec<_>, Vec<_>) = actions
        .into_iter()
        .partition(|action| matches!(action, TransmissionAction::Submit { .. }));
    others.retain(|action| {
        !matches!(
            action,
            TransmissionAction::BlockStatusOf { .. }
                | TransmissionAction::Advance { .. }
                | TransmissionAction::Disconnect {}
                | TransmissionAction::End {}
        )
    });
    script.actions.0 = [submits, others].concat();
    let expected = client::transmission::run(script, &Delivery::whole());
    let limits = script.setup.limits.limits();
    let machine = || {
        let slots = vec![Slot::EMPTY; script.setup.slots()];
        let negotiated = script.setup.negotiated();
        let mut machine = crate_client::Transmission::new(negotiated, slots, limits);
        if script.setup.lenient {
            machine = machine.lenient();
        }
        if script.setup.strict {
            machine = machine.strict();
        }
        for sent in &expected.sent {
            let header = machine.submit(sent.target.request).expect("a command");
            assert_eq!(header.cookie(), sent.target.cookie);
        }
        machine
    };
    let (stream, sizes) = (&expected.received, &first.sizes.0);
    let buffer = first.buffer(limits.buffer());
    let summary = summaries(machine, stream, buffer, sizes);
    assert_eq!(summary.content, content(&expected.outcome.events));
    let is_kept =
        |event: &&ReplyEvent| matches!(event, ReplyEvent::Fault { .. }) || event.is_done();
    let kept = expected.outcome.events.iter().filter(is_kept).count();
    assert_eq!(summary.events.len(), kept, "{:?}", summary.events);
    let end = expected.outcome.error.map_or(End::Finished, End::Failed);
    assert_eq!(summary.end, end);
}

/// All ways to read, with borrowed and with owned content.
fn summaries<M>(machine: impl Fn() -> M, stream: &[u8], buffer: usize, sizes: &[u8]) -> Summary
where
    M: ReceiveOwned,
    M::Owned: Debug,
    for<'i> M::Event<'i>: Debug,
{
    let [first, second, third] = READINGS
        .map(|reading| driver::run(&mut machine(), stream, buffer, reading, sizes, |_, _| false));
    assert_eq!(first, second);
    assert_eq!(first, third);
    let owned = |payloads| driver::run_owned(&mut machine(), stream, payloads, sizes);
    let fragments = owned(Payloads::Fragments);
    assert_eq!(first, fragments);
    let mut whole = owned(Payloads::Whole);
    if whole.end == End::Failed(Error::Closed) {
        // The last payload is incomplete.
        assert!(is_prefix(&whole.content, &first.content), "{whole:?}");
        whole.content.clone_from(&first.content);
    }
    assert_eq!(first, whole);
    first
}

/// Whether some content is the start of other content.
fn is_prefix(content: &[Piece], other: &[Piece]) -> bool {
    match (content.split_last(), other) {
        (None, _) => true,
        (Some((last, before)), other) => {
            let same = other.starts_with(before) && other.len() <= content.len() + 1;
            let last = match (last, other.get(before.len())) {
                (
                    Piece::Data {
                        cookie,
                        offset,
                        bytes,
                    },
                    Some(Piece::Data {
                        cookie: other_cookie,
                        offset: other_offset,
                        bytes: other_bytes,
                    }),
                ) => {
                    (cookie, offset) == (other_cookie, other_offset)
                        && other_bytes.starts_with(bytes)
                }
                (last, other) => Some(last) == other,
            };
            same && last
        }
    }
}

/// The content among events. Data of different chunks is joined.
fn content(events: &[ReplyEvent]) -> Vec<Piece> {
    let piece = |event: &ReplyEvent| match event {
        ReplyEvent::Data {
            cookie,
            offset,
            bytes,
        } => Some(Piece::Data {
            cookie: *cookie,
            offset: *offset,
            bytes: bytes.clone(),
        }),
        ReplyEvent::Hole {
            cookie,
            offset,
            length,
        } => Some(Piece::Hole {
            cookie: *cookie,
            offset: *offset,
            length: *length,
        }),
        _ => None,
    };
    events.iter().filter_map(piece).collect()
}

fn run_server(run: crate::server::Run) {
    match run {
        crate::server::Run::Transmission { first, script, .. } => {
            let Some(whole) = crate::server::transmission::run(&script, &Delivery::whole()) else {
                return;
            };
            let sizes = whole.setup.common.negotiated().block_sizes;
            if !whole.has_reported_payload() && sizes.is_none_or(|sizes| sizes.is_valid()) {
                compare::server::transmission(&whole);
            }
            for delivery in deliveries(&first) {
                let server = crate::server::transmission::run(&script, &delivery);
                let server = server.expect("a valid setup");
                compare::server::transmission_deliveries(&whole, &server);
            }
            let machine = || script.setup.machine().expect("a valid setup");
            let (stream, sizes) = (&whole.received, &first.sizes.0);
            let buffer = first.buffer(script.setup.least_buffer());
            let summary = summaries(machine, stream, buffer, sizes);
            // The requests of this caller did not resize the export.
            if whole.changes.is_empty() && !whole.has_reported_payload() {
                assert_eq!(summary.content, content(&whole.payloads()));
            }
        }
        crate::server::Run::Handshake { first, script, .. } => {
            let Some(whole) = crate::server::handshake::run(&script, &Delivery::whole()) else {
                return;
            };
            let received = whole.received.clone();
            for delivery in deliveries(&first) {
                let server = crate::server::handshake::run(&script, &delivery);
                let server = server.expect("a valid configuration");
                compare::server::handshake_deliveries(&whole, &server);
            }
            compare::server::handshake(whole);
            let buffer = first.buffer(script.config.limits.limits().buffer());
            let summaries = READINGS.map(|reading| {
                let machine = server::Handshake::new(script.config.config());
                let Ok(mut machine) = machine else {
                    return Summary::default();
                };
                let mut ignored = 0;
                driver::run(
                    &mut machine,
                    &received,
                    buffer,
                    reading,
                    &first.sizes.0,
                    |machine, call| {
                        let mut out = Vec::new();
                        match call {
                            Call::Transmit => machine.transmit(&mut out).expect("room") > 0,
                            Call::StartTls => false,
                            Call::Unanswered if ignored < 3 => {
                                ignored += 1;
                                true
                            }
                            Call::Unanswered => {
                                ignored = 0;
                                let error = OptionReplyType::ERR_UNKNOWN;
                                machine.refuse(error, "", &mut out).is_ok()
                            }
                        }
                    },
                )
            });
            let [ahead, exact, direct] = summaries;
            assert_eq!(exact, direct);
            // Plain text before TLS is only detected by reading ahead.
            if exact.end != End::Call(Call::StartTls) {
                assert_eq!(ahead, exact);
            }
        }
    }
}
