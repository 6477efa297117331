//! Scripts for the server's `Handshake`.

use nbd_codec_fuzz::client::handshake::script::OptionScript;
use nbd_codec_fuzz::format::{List, Rest};
use nbd_codec_fuzz::script::Mutation;
use nbd_codec_fuzz::server::handshake::script::{
    Action, ConfigSetup, ExportContext, ExportSetup, Script,
};

use super::limits;

/// Handshakes with every kind of configuration.
pub fn scripts() -> Vec<(String, Script)> {
    let mut scripts = Vec::new();
    for framing in 0..3 {
        for tls in 0..3 {
            for (name, requires) in [("open", 0), ("strict", 7)] {
                let name = format!("{name}-{framing}-tls-{tls}");
                let actions = options(tls > 0);
                scripts.push((name, script(framing, tls, requires, actions)));
            }
        }
    }
    for (name, actions) in [
        ("by-name", by_name()),
        ("malformed", malformed()),
        ("refused", refused()),
        ("late-tls", late_tls()),
        ("early", early()),
        (
            "abort",
            vec![flags(), send(OptionScript::Abort {}), serve()],
        ),
    ] {
        scripts.push((name.into(), script(2, 1, 0, actions)));
    }
    for (name, actions) in [("no-faults", options(true)), ("faults", faults())] {
        let mut strict = script(2, 1, 0, actions);
        strict.config.strict = true;
        scripts.push((format!("strict-{name}"), strict));
    }
    let mut oldstyle = script(2, 0, 0, vec![serve()]);
    oldstyle.config.oldstyle = 15;
    scripts.push(("oldstyle".into(), oldstyle));
    let mut silent = script(2, 0, 0, by_name());
    silent.writes_immediately = false;
    scripts.push(("silent".into(), silent));
    scripts
}

fn script(framing: u8, tls: u8, requires: u8, actions: Vec<Action>) -> Script {
    let config = ConfigSetup {
        oldstyle: 0,
        fixed: true,
        no_zeroes: true,
        tls,
        framing,
        limits: limits(),
        strict: false,
    };
    let context = |name, wide| ExportContext { name, wide };
    let export = |name, requires| ExportSetup {
        name,
        description: 5,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 2,
        contexts: List(vec![context(2, false), context(3, true)]),
        requires,
    };
    Script {
        config,
        exports: List(vec![export(1, requires), export(0, 0)]),
        writes_immediately: true,
        actions: Rest(actions),
    }
}

fn flags() -> Action {
    Action::ClientFlags { flags: 3 }
}

fn send(option: OptionScript) -> Action {
    Action::Option { option }
}

fn serve() -> Action {
    Action::Serve {}
}

/// What a strict server refuses, and another accepts.
fn faults() -> Vec<Action> {
    let mut actions = vec![flags()];
    let (export, queries) = (1, List(vec![]));
    let requests = List(vec![1, 3, 1]);
    for option in [
        OptionScript::ListMetaContext { export, queries },
        OptionScript::StructuredReply {},
        OptionScript::StructuredReply {},
        OptionScript::ExtendedHeaders {},
        OptionScript::ExtendedHeaders {},
        OptionScript::Info {
            export,
            requests: requests.clone(),
        },
        OptionScript::Go { export, requests },
    ] {
        actions.extend([send(option), serve()]);
    }
    actions
}

fn options(tls: bool) -> Vec<Action> {
    let mut actions = vec![flags(), send(OptionScript::List {}), serve()];
    if tls {
        actions.extend([send(OptionScript::StartTls {}), serve()]);
    }
    let (export, queries) = (1, List(vec![2, 3]));
    let requests = List(vec![0, 1, 2, 3]);
    for option in [
        OptionScript::List {},
        OptionScript::StartTls {},
        OptionScript::ListMetaContext {
            export,
            queries: List(vec![]),
        },
        OptionScript::StructuredReply {},
        OptionScript::SetMetaContext {
            export,
            queries: queries.clone(),
        },
        OptionScript::ExtendedHeaders {},
        OptionScript::StructuredReply {},
        OptionScript::SetMetaContext { export, queries },
        OptionScript::Info {
            export,
            requests: List(vec![]),
        },
        OptionScript::Go {
            export: 4,
            requests: requests.clone(),
        },
        OptionScript::Go { export, requests },
    ] {
        actions.extend([send(option), serve()]);
    }
    actions
}

fn by_name() -> Vec<Action> {
    let space = 200;
    vec![
        Action::Transmit { space },
        flags(),
        send(OptionScript::ExportName { export: 1 }),
        Action::Grant {
            export: 0,
            space: 20,
        },
        Action::Grant { export: 1, space },
        Action::Grant { export: 0, space },
        Action::Transmit { space },
    ]
}

fn malformed() -> Vec<Action> {
    let (export, requests) = (1, List(vec![3]));
    let go = OptionScript::Go { export, requests };
    let value = 9;
    let mutated = |option, mutation| Action::Mutated { option, mutation };
    let other = |option, data: &[u8]| OptionScript::Other {
        option,
        data: data.to_vec(),
    };
    vec![
        flags(),
        mutated(go.clone(), Mutation::Set { at: 19, value }),
        send(other(3, b"list")),
        send(other(77, b"what")),
        send(OptionScript::ListMetaContext {
            export,
            queries: List(vec![1]),
        }),
        send(other(6, b"\0\0\0\x01\xff\0\0")),
        send(OptionScript::Go {
            export: 253,
            requests: List(vec![]),
        }),
        Action::ShutDown {},
        send(OptionScript::List {}),
        mutated(go, Mutation::Set { at: 3, value }),
    ]
}

fn refused() -> Vec<Action> {
    let (export, space, message) = (1, 100, 4);
    let refuse = |error| Action::Refuse {
        error,
        message,
        space,
    };
    let info = || {
        send(OptionScript::Info {
            export,
            requests: List(vec![]),
        })
    };
    vec![
        flags(),
        info(),
        refuse(5),
        info(),
        refuse(8),
        info(),
        refuse(0x80),
        refuse(6),
        send(OptionScript::List {}),
        Action::List { export: 0, space },
        refuse(5),
        refuse(2),
        send(OptionScript::ExportName { export }),
        refuse(6),
    ]
}

/// The results of a negotiation before TLS are forgotten.
fn late_tls() -> Vec<Action> {
    let (export, queries) = (1, List(vec![2]));
    let mut actions = vec![flags()];
    for option in [
        OptionScript::ExtendedHeaders {},
        OptionScript::SetMetaContext { export, queries },
        OptionScript::StartTls {},
        OptionScript::Go {
            export,
            requests: List(vec![3]),
        },
    ] {
        actions.extend([send(option), serve(), serve()]);
    }
    actions
}

/// A client that does not wait for replies.
fn early() -> Vec<Action> {
    let (export, queries) = (1, List(vec![2]));
    vec![
        flags(),
        send(OptionScript::ExtendedHeaders {}),
        send(OptionScript::SetMetaContext { export, queries }),
        send(OptionScript::Go {
            export,
            requests: List(vec![3]),
        }),
        serve(),
        serve(),
        Action::Raw {
            bytes: vec![0x21, 0xe4],
        },
    ]
}
