//! The handshake's events, in plain numbers.

use nbd_codec::client::{ConnectEvent, HandshakeEvent};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option_reply::Info;
use nbd_codec::wire::text::Text;

use super::Harness;
use crate::reference::option_replies::Event;

impl Harness<'_> {
    /// Records the first `StartTls` after an acknowledgement.
    pub(super) fn record_start_tls(&mut self) {
        if !self.starting_tls {
            self.starting_tls = true;
            self.ended += 1;
            if self.is_connector {
                self.outcome.connector_events.push("StartTls".into());
            } else {
                self.outcome.events.push(Event::StartTls);
            }
        }
    }

    fn record_ready(&mut self) {
        assert!(!self.ready, "ready twice");
        assert!(!self.failed, "ready after failed");
        self.ready = true;
    }

    pub(super) fn record(&mut self, event: &HandshakeEvent) {
        use HandshakeEvent as E;
        let bytes = |text: Text| text.as_bytes().to_vec();
        if let E::Ack(_) | E::Refused { .. } | E::Ready = event {
            self.ended += 1;
        }
        let events = match *event {
            E::Greeting(Greeting::Newstyle(greeting)) => Event::Greeting {
                oldstyle: None,
                flags: greeting.flags.0.into(),
            },
            E::Greeting(Greeting::Oldstyle(greeting)) => Event::Greeting {
                oldstyle: Some(greeting.size),
                flags: u64::from(greeting.handshake_flags.0) << 16 | u64::from(greeting.flags.0),
            },
            E::Server { name, description } => Event::Server {
                name: bytes(name),
                description: bytes(description),
            },
            E::Info(info) => heard_info(&info),
            E::MetaContext { id, name } => Event::MetaContext {
                id: id.0.into(),
                name: bytes(name),
            },
            E::Other { reply, data } => Event::Other {
                reply: reply.0.into(),
                data: data.to_vec(),
            },
            E::Discarded { reply, length } => Event::Discarded {
                reply: reply.0.into(),
                length: length.into(),
            },
            E::Ack(option) => {
                self.aborted |= option == OptionType::ABORT;
                Event::Ack {
                    option: option.0.into(),
                }
            }
            E::Refused {
                option,
                error,
                message,
            } => Event::Refused {
                option: option.0.into(),
                error: error.0.into(),
                message: message.map(bytes),
            },
            E::Ready => {
                self.record_ready();
                Event::Ready
            }
            _ => panic!("unknown event"),
        };
        self.outcome.events.push(events);
    }

    pub(super) fn record_connector(&mut self, event: &ConnectEvent) {
        self.outcome.connector_events.push(format!("{event:?}"));
        match event {
            ConnectEvent::Ready => self.record_ready(),
            ConnectEvent::Failed { .. } => {
                assert!(!self.failed, "failed twice");
                assert!(!self.ready, "failed after ready");
                self.failed = true;
            }
            _ => {}
        }
    }
}

fn heard_info(info: &Info) -> Event {
    let kind = info.info().0.into();
    let payload = match *info {
        Info::Export { size, flags } => {
            [&size.to_be_bytes()[..], &flags.0.to_be_bytes()[..]].concat()
        }
        Info::Name(text) | Info::Description(text) => text.as_bytes().to_vec(),
        Info::BlockSize(sizes) => [sizes.minimum, sizes.preferred, sizes.maximum]
            .map(u32::to_be_bytes)
            .concat(),
        Info::Other { data, .. } => data.to_vec(),
        _ => panic!("unknown information"),
    };
    Event::Info { kind, payload }
}
