//! Seeds of `pair`.

use nbd_codec_fuzz::client::handshake::script::{ConfigSetup, QuerySetup};
use nbd_codec_fuzz::delivery::{Delivery, Reading};
use nbd_codec_fuzz::format::{List, Rest};
use nbd_codec_fuzz::pair::script::{Action, DiskSetup, HandshakeSetup, Script};
use nbd_codec_fuzz::server::handshake::script::ConfigSetup as ServerSetup;

use super::{deliveries, limits};

/// Each configuration, and in each framing each kind of session.
pub fn scripts() -> Vec<(String, Script)> {
    let mut scripts = Vec::new();
    for framing in 0..3 {
        for (name, actions) in sessions() {
            for (delivery, up) in deliveries() {
                let down = Delivery {
                    reading: Reading::ReadAhead {},
                    sizes: List(vec![7, 0, 100]),
                    direct: true,
                    extra_buffer: 9,
                };
                let pair = Script {
                    up: up.clone(),
                    down: if delivery == "bytes" { up } else { down },
                    handshake: handshake(framing, 0, 0),
                    actions: Rest(actions.clone()),
                };
                scripts.push((format!("{name}-{framing}-{delivery}"), pair));
            }
        }
        for tls in 0..3 {
            for (name, requires) in [("open", 0), ("strict", 7)] {
                let handshake = handshake(framing, tls, requires);
                scripts.push((format!("{name}-{framing}-tls-{tls}"), short(handshake)));
            }
        }
    }
    for (name, change) in [
        (
            "oldstyle",
            (|handshake| handshake.server.oldstyle = 15) as fn(&mut HandshakeSetup),
        ),
        ("not-fixed", |handshake| handshake.server.fixed = false),
        ("zeroes", |handshake| {
            handshake.server.fixed = false;
            handshake.server.no_zeroes = false;
        }),
        ("unknown", |handshake| handshake.export.name = 4),
        ("forced", |handshake| handshake.server.tls = 2),
        ("cut", |handshake| handshake.cut = 77),
    ] {
        let mut handshake = handshake(2, 0, 0);
        change(&mut handshake);
        scripts.push((name.into(), short(handshake)));
    }
    scripts
}

/// A short session.
fn short(handshake: HandshakeSetup) -> Script {
    let actions = vec![
        submit(1, 0, 0, 3),
        submit(0, 0, 0, 8),
        Action::Settle { how: 2 },
        Action::Disconnect {},
    ];
    Script {
        up: Delivery::whole(),
        down: Delivery::whole(),
        handshake,
        actions: Rest(actions),
    }
}

fn handshake(framing: u8, tls: u8, requires: u8) -> HandshakeSetup {
    let query = |name, width| QuerySetup { name, width };
    HandshakeSetup {
        config: ConfigSetup {
            export: 0,
            contexts: List(vec![query(2, 0), query(3, 1), query(4, 2)]),
            framing,
            describe: true,
        },
        tls,
        server: ServerSetup {
            oldstyle: 0,
            fixed: true,
            no_zeroes: true,
            tls: u8::from(tls > 0),
            framing: 2,
            limits: limits(),
            strict: false,
        },
        export: DiskSetup {
            name: 0,
            block: 3,
            blocks: 15,
            flags: 0x1ffd,
            maximum: 4,
            contexts: List(vec![0, 1, 2]),
            requires,
        },
        cut: 0,
    }
}

fn submit(command: u8, flags: u16, from: u8, blocks: u8) -> Action {
    Action::Submit {
        command,
        flags,
        from,
        blocks,
        fill: 0x11,
    }
}

fn answer(which: u8, how: u8) -> Action {
    Action::Answer { which, how, at: 1 }
}

fn sessions() -> Vec<(&'static str, Vec<Action>)> {
    let settle = |how| Action::Settle { how };
    let all = u64::MAX;
    let mut everything = Vec::new();
    for how in 0..8 {
        everything.extend([submit(1, 1, how, 2), submit(0, 0, 0, 16), settle(how)]);
        everything.extend([submit(7, 0, 0, 16), submit(7, 8, 2, 4), settle(how)]);
        everything.extend([submit(6, 0, how, 1), submit(4, 0, 9, 2), settle(how)]);
        everything.extend([submit(6, 16, how, 1), submit(5, 0, 9, 2), settle(how)]);
    }
    vec![
        ("everything", everything),
        (
            "order",
            vec![
                submit(1, 0, 0, 4),
                submit(1, 0, 2, 4),
                submit(0, 0, 0, 8),
                submit(0, 4, 1, 3),
                Action::Up { n: 700 },
                Action::Up { n: all },
                answer(3, 1),
                answer(1, 0),
                Action::Down { n: 40 },
                answer(1, 3),
                answer(0, 0),
                Action::BlockStatusOf {
                    contexts: List(vec![1, 0]),
                    flags: 0,
                    from: 0,
                    blocks: 16,
                },
                settle(4),
            ],
        ),
        (
            "resize",
            vec![
                submit(1, 0, 8, 8),
                settle(0),
                submit(8, 0, 4, 0),
                submit(0, 0, 0, 4),
                settle(0),
                submit(0, 0, 4, 1),
                submit(8, 0, 32, 0),
                settle(0),
                submit(0, 0, 0, 32),
                submit(8, 0, 16, 0),
                settle(7),
            ],
        ),
        (
            "shutdown",
            vec![
                submit(1, 0, 0, 2),
                submit(0, 0, 0, 2),
                Action::Up { n: 100 },
                Action::ShutDown {},
                submit(3, 0, 0, 0),
                settle(0),
            ],
        ),
        (
            "failed",
            vec![
                submit(1, 0, 0, 2),
                submit(0, 0, 0, 2),
                Action::Up { n: all },
                answer(1, 1),
                answer(0, 0),
                submit(3, 0, 0, 0),
                Action::Cut { up: 9, down: 50 },
            ],
        ),
        (
            "any",
            vec![
                Action::SubmitAny {
                    command: 0,
                    flags: 0,
                    offset: 1,
                    length: 9,
                },
                Action::SubmitAny {
                    command: 6,
                    flags: 2,
                    offset: 0,
                    length: 8192,
                },
                Action::Disconnect {},
                Action::Up { n: all },
            ],
        ),
    ]
}
