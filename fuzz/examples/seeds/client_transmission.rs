//! Scripts for the client's `Transmission`.

use nbd_codec_fuzz::client::transmission::script::{Action, Reply, Script};
use nbd_codec_fuzz::format::{List, Rest};
use nbd_codec_fuzz::script::{Extent, Length, Mutation};

use super::setup;

/// Every command in every framing, with success, with errors and in pieces.
pub fn scripts() -> Vec<(String, Script)> {
    let mut scripts = Vec::new();
    for framing in 0..3 {
        for (name, actions) in [
            (
                "well",
                commands_and(|to| Action::Finish {
                    to,
                    pieces: 0,
                    fail: false,
                }),
            ),
            (
                "pieces",
                commands_and(|to| Action::Finish {
                    to,
                    pieces: 3,
                    fail: false,
                }),
            ),
            (
                "errors",
                commands_and(|to| Action::Finish {
                    to,
                    pieces: 2,
                    fail: true,
                }),
            ),
            (
                "late",
                commands_and(|to| Action::Finish {
                    to,
                    pieces: 1,
                    fail: true,
                }),
            ),
            ("replies", replies()),
            ("faults", faults()),
        ] {
            let setup = setup(framing);
            let actions = Rest(actions);
            scripts.push((format!("{name}-{framing}"), Script { setup, actions }));
        }
    }
    scripts
}

fn submit(command: u8, flags: u16, offset: u64, length: u64) -> Action {
    Action::Submit {
        command,
        flags,
        offset,
        length,
    }
}

/// Every command, each followed by its reply.
fn commands_and(answer: impl Fn(u8) -> Action) -> Vec<Action> {
    let mut actions = Vec::new();
    for command in [
        submit(0, 0, 512, 1000),
        submit(1, 1, 0, 512),
        submit(3, 0, 0, 0),
        submit(4, 0, 0, 4096),
        submit(5, 0, 0, 4096),
        submit(6, 2, 0, 4096),
        submit(7, 0, 0, 65536),
        submit(7, 8, 4096, 4096),
        submit(8, 0, 1 << 21, 0),
    ] {
        actions.extend([command, answer(0)]);
    }
    actions.push(Action::BlockStatusOf {
        contexts: List(vec![1]),
        offset: 0,
        length: 512,
        flags: 0,
        space: 64,
    });
    actions.extend([answer(0), Action::Disconnect {}, Action::End {}]);
    actions
}

/// Two concurrent reads, and chunks of every type.
fn replies() -> Vec<Action> {
    let reply = |to, reply| Action::Reply { to, reply };
    let bytes = |n| Length::Bytes { n };
    let data = |skip, length, last| Reply::Data {
        skip: bytes(skip),
        length: bytes(length),
        last,
        fill: 0xaa,
    };
    let hole = |skip, length, last| Reply::Hole {
        skip: bytes(skip),
        length: bytes(length),
        last,
    };
    let error = |kind, last| Reply::Error {
        kind,
        error: 5,
        message: 7,
        skip: bytes(1),
        rest: vec![1, 2],
        last,
    };
    let status = |context, last| Reply::Status {
        context,
        extents: List(vec![
            Extent {
                length: bytes(100),
                flags: 3,
            },
            Extent {
                length: Length::Request { less: 0 },
                flags: 0,
            },
        ]),
        last,
    };
    vec![
        submit(0, 0, 0, 64),
        submit(0, 0, 1 << 16, 32),
        reply(1, data(16, 16, false)),
        reply(0, hole(32, 32, false)),
        reply(0, data(0, 32, true)),
        reply(0, data(0, 16, false)),
        reply(0, Reply::None { last: true }),
        submit(0, 4, 0, 64),
        reply(0, error(0, false)),
        reply(0, error(2, false)),
        reply(0, error(3, true)),
        submit(7, 0, 0, 1000),
        reply(0, status(1, false)),
        reply(0, status(0, true)),
        submit(7, 0, 0, 1000),
        reply(0, status(0, false)),
        reply(0, error(3, true)),
        reply(0xf0, Reply::None { last: true }),
    ]
}

/// Invalid messages.
fn faults() -> Vec<Action> {
    let mutation = |at, value| Mutation::Set { at, value };
    let reply = Reply::Data {
        skip: Length::Bytes { n: 0 },
        length: Length::Request { less: 0 },
        last: true,
        fill: 1,
    };
    vec![
        submit(0, 0, 0, 16),
        Action::Advance { n: 3 },
        Action::Mutated {
            to: 0,
            reply: reply.clone(),
            mutation: Mutation::Truncate { at: 12 },
        },
        Action::Mutated {
            to: 0,
            reply: reply.clone(),
            mutation: Mutation::Insert {
                at: 20,
                bytes: vec![0; 8],
            },
        },
        Action::Mutated {
            to: 0,
            reply,
            mutation: mutation(5, 2),
        },
        Action::Raw {
            bytes: b"gDf\x98".to_vec(),
        },
    ]
}
