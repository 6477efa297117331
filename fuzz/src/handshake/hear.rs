//! What a handshake reports, in plain numbers.

use nbd_codec::client::{connect, handshake};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::option_reply::Info;
use nbd_codec::wire::text::Text;

use super::Client;
use crate::reader::handshake::Heard;

impl Client<'_> {
    fn note_ready(&mut self) {
        assert!(!self.ready, "ready twice");
        assert!(!self.failed, "ready behind a failure");
        self.ready = true;
    }

    pub(super) fn note(&mut self, event: &handshake::Event) {
        use handshake::Event as E;
        let bytes = |text: Text| text.as_bytes().to_vec();
        if let E::Ack(_) | E::Refused { .. } | E::StartTls | E::Ready = event {
            self.ended += 1;
        }
        let heard = match *event {
            E::Greeting(Greeting::Newstyle(greeting)) => Heard::Greeting {
                oldstyle: None,
                flags: greeting.flags.0.into(),
            },
            E::Greeting(Greeting::Oldstyle(greeting)) => Heard::Greeting {
                oldstyle: Some(greeting.size),
                flags: u64::from(greeting.handshake_flags.0) << 16 | u64::from(greeting.flags.0),
            },
            E::Server { name, description } => Heard::Server {
                name: bytes(name),
                description: bytes(description),
            },
            E::Info(info) => heard_info(&info),
            E::MetaContext { id, name } => Heard::MetaContext {
                id: id.0.into(),
                name: bytes(name),
            },
            E::Other { reply, data } => Heard::Other {
                reply: reply.0.into(),
                data: data.to_vec(),
            },
            E::Skipped { reply, length } => Heard::Skipped {
                reply: reply.0.into(),
                length: length.into(),
            },
            E::Ack(option) => Heard::Ack {
                option: option.0.into(),
            },
            E::Refused {
                option,
                error,
                message,
            } => Heard::Refused {
                option: option.0.into(),
                error: error.0.into(),
                message: message.map(bytes),
            },
            E::StartTls => Heard::StartTls,
            E::Ready => {
                self.note_ready();
                Heard::Ready
            }
            _ => panic!("an event that this driver does not know"),
        };
        self.outcome.heard.push(heard);
    }

    pub(super) fn note_policy(&mut self, event: &connect::Event) {
        use connect::Event as E;
        self.outcome.told.push(format!("{event:?}"));
        match event {
            E::Ready => self.note_ready(),
            E::Failed { .. } => {
                assert!(!self.failed, "failed twice");
                assert!(!self.ready, "failed behind ready");
                self.failed = true;
            }
            _ => {}
        }
    }
}

fn heard_info(info: &Info) -> Heard {
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
        _ => panic!("information that this driver does not know"),
    };
    Heard::Info { kind, payload }
}
