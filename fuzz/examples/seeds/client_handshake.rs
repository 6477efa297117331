//! Scripts for the client's `Handshake` and `Connector`.

use nbd_codec_fuzz::client::handshake::script::{
    Action, ConfigSetup, OptionScript, QuerySetup, Reply, Script,
};
use nbd_codec_fuzz::format::{List, Rest};

use super::limits;

/// Handshakes of all kinds. `Connector` sends the same options by itself.
pub fn scripts() -> Vec<(String, Script)> {
    let mut scripts = Vec::new();
    for framing in 0..3 {
        for tls in 0..3 {
            for (name, how) in [("well", 13), ("contexts", 2), ("unsupported", 1)] {
                scripts.push((
                    format!("{name}-{framing}-tls-{tls}"),
                    script(framing, tls, options(framing, tls, how)),
                ));
            }
        }
    }
    for kind in [0, 1, 4] {
        let greeting = Action::Greeting {
            kind,
            flags: u16::from(kind),
            size: 4096,
        };
        let mut actions = vec![greeting, client_flags()];
        actions.push(send(OptionScript::ExportName { export: 1 }));
        actions.push(finish(0));
        scripts.push((format!("export-name-{kind}"), script(0, 0, actions)));
    }
    scripts.push(("replies".into(), script(2, 0, replies())));
    scripts.push(("late-tls".into(), script(2, 1, late_tls())));
    scripts.push((
        "end".into(),
        script(
            2,
            0,
            vec![
                newstyle(),
                client_flags(),
                send(OptionScript::Abort {}),
                finish(13),
                Action::End {},
            ],
        ),
    ));
    scripts
}

fn script(framing: u8, tls: u8, actions: Vec<Action>) -> Script {
    Script {
        tls,
        strict: false,
        go: true,
        limits: limits(),
        config: ConfigSetup {
            export: 1,
            contexts: List(vec![
                QuerySetup { name: 2, width: 0 },
                QuerySetup { name: 3, width: 1 },
            ]),
            framing,
            describe: true,
        },
        actions: Rest(actions),
    }
}

fn newstyle() -> Action {
    Action::Greeting {
        kind: 2,
        flags: 3,
        size: 0,
    }
}

fn client_flags() -> Action {
    Action::ClientFlags {
        wanted: 3,
        space: 16,
    }
}

fn send(option: OptionScript) -> Action {
    let space = 8000;
    Action::Send { option, space }
}

fn finish(how: u8) -> Action {
    Action::Finish {
        how,
        size: 1 << 20,
        flags: 0x1fff,
    }
}

fn options(framing: u8, tls: u8, how: u8) -> Vec<Action> {
    let mut actions = vec![newstyle(), client_flags()];
    if tls > 0 {
        actions.extend([send(OptionScript::StartTls {}), finish(13)]);
        actions.push(Action::TlsEstablished {});
    }
    actions.extend([send(OptionScript::List {}), finish(13)]);
    actions.extend(match framing {
        0 => vec![],
        1 => vec![send(OptionScript::StructuredReply {}), finish(how)],
        _ => vec![send(OptionScript::ExtendedHeaders {}), finish(how)],
    });
    let (export, queries) = (1, List(vec![2, 3]));
    actions.push(send(OptionScript::SetMetaContext { export, queries }));
    actions.push(finish(how));
    let requests = List(vec![0, 1, 2, 3]);
    actions.extend([send(OptionScript::Go { export, requests }), finish(how)]);
    actions.extend([send(OptionScript::ExportName { export }), finish(0)]);
    actions
}

/// The results of a negotiation before TLS are forgotten.
fn late_tls() -> Vec<Action> {
    let (export, queries, requests) = (1, List(vec![2, 3]), List(vec![3]));
    vec![
        newstyle(),
        client_flags(),
        send(OptionScript::ExtendedHeaders {}),
        finish(13),
        send(OptionScript::SetMetaContext { export, queries }),
        finish(0x82),
        send(OptionScript::StartTls {}),
        finish(13),
        Action::TlsEstablished {},
        send(OptionScript::Go { export, requests }),
        finish(13),
    ]
}

/// Replies of every type, some of them too long.
fn replies() -> Vec<Action> {
    let reply = |reply| Action::Reply { option: 0, reply };
    let (export, queries, requests) = (1, List(vec![2]), List(vec![3]));
    let message = 250;
    vec![
        newstyle(),
        client_flags(),
        send(OptionScript::List {}),
        reply(Reply::Server {
            name: 250,
            description: 1,
        }),
        reply(Reply::Error { error: 9, message }),
        send(OptionScript::ExtendedHeaders {}),
        reply(Reply::Ack {}),
        send(OptionScript::SetMetaContext {
            export,
            queries: queries.clone(),
        }),
        reply(Reply::MetaContext { id: 5, name: 250 }),
        reply(Reply::MetaContext { id: 6, name: 2 }),
        reply(Reply::Ack {}),
        send(OptionScript::ListMetaContext { export, queries }),
        reply(Reply::MetaContext { id: 6, name: 2 }),
        reply(Reply::Ack {}),
        send(OptionScript::Other {
            option: 77,
            data: vec![1],
        }),
        reply(Reply::Other {
            reply: 99,
            data: vec![2],
        }),
        reply(Reply::Ack {}),
        send(OptionScript::Go { export, requests }),
        reply(Reply::Name { name: 1 }),
        reply(Reply::Information {
            kind: 9,
            data: vec![3],
        }),
        reply(Reply::BlockSize {
            minimum: 1,
            preferred: 256,
            maximum: 1 << 25,
        }),
        reply(Reply::Export { size: 9, flags: 1 }),
        reply(Reply::Ack {}),
        Action::Raw { bytes: vec![0x67] },
    ]
}
