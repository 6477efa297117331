//! Scripts for the server's `Transmission`.

use nbd_codec_fuzz::format::{List, Rest};
use nbd_codec_fuzz::script::{Extent, Length, Mutation, Setup};
use nbd_codec_fuzz::server::transmission::script::{
    Action, Answer, RequestScript, Script, ServerSetup,
};

use super::setup;

fn request_script(command: u8, flags: u16, offset: u64, length: u64) -> RequestScript {
    let fill = 0x5a;
    RequestScript {
        command,
        flags,
        offset,
        length,
        fill,
    }
}

fn request(command: u8, flags: u16, offset: u64, length: u64) -> Action {
    let request = request_script(command, flags, offset, length);
    Action::Request { request }
}

fn answer(which: u8, answer: Answer) -> Action {
    Action::Answer { which, answer }
}

fn bytes(n: u64) -> Length {
    Length::Bytes { n }
}

/// Every command in every framing, with success and errors; invalid requests.
pub fn scripts() -> Vec<(String, Script)> {
    let mut scripts = Vec::new();
    for framing in 0..3 {
        for (name, actions) in [
            ("well", commands(0, false)),
            ("pieces", commands(3, false)),
            ("errors", commands(0, true)),
            ("chunks", chunks()),
            ("status", status()),
            ("faults", faults()),
            ("tolerated", tolerated()),
            ("strict", tolerated()),
            ("limits", limits()),
            ("resize", resize()),
            ("texts", texts()),
        ] {
            let own = Setup {
                block_sizes: match name {
                    "limits" => 3,
                    "texts" => 2,
                    _ => 0,
                },
                minimum: 9,
                maximum: 1 << 16,
                strict: name == "strict",
                ..setup(framing)
            };
            let max_effect = if name == "limits" { 1 << 17 } else { 0 };
            let setup = ServerSetup {
                common: own,
                max_effect,
            };
            let actions = Rest(actions);
            scripts.push((format!("{name}-{framing}"), Script { setup, actions }));
        }
    }
    scripts
}

fn commands(pieces: u8, fail: bool) -> Vec<Action> {
    let mut actions = Vec::new();
    let which = 0;
    for request in [
        request(0, 0, 512, 1000),
        request(1, 1, 0, 512),
        request(3, 0, 0, 0),
        request(4, 0, 0, 4096),
        request(5, 0, 0, 4096),
        request(6, 2, 0, 4096),
        request(7, 0, 0, 65536),
        request(7, 8, 4096, 4096),
        request(8, 0, 1 << 21, 0),
    ] {
        let finish = Action::Finish {
            which,
            pieces,
            fail,
        };
        actions.extend([request, finish]);
    }
    actions.push(Action::BlockStatusOf {
        contexts: List(vec![1]),
        flags: 0,
        offset: 0,
        length: 512,
    });
    actions.push(request(0, 0, 0, 16));
    actions.push(request(1, 0, 0, 700));
    actions.push(Action::ShutDown {});
    actions.push(request(0, 0, 0, 16));
    for which in [1, 1, 0] {
        actions.push(Action::Finish {
            which,
            pieces,
            fail,
        });
    }
    actions.extend([Action::Disconnect {}, Action::End {}]);
    actions
}

/// Two reads with concurrent replies, in pieces.
fn chunks() -> Vec<Action> {
    let data = |skip, length, last| Answer::Data {
        skip: bytes(skip),
        length: bytes(length),
        last,
        fill: 0xaa,
    };
    let hole = |skip, length, last| Answer::Hole {
        skip: bytes(skip),
        length: bytes(length),
        last,
    };
    let (error, text) = (5, 1);
    let skip = bytes(20);
    vec![
        request(0, 0, 0, 64),
        request(0, 0, 1 << 16, 32),
        request(0, 4, 0, 64),
        answer(0, Answer::IntoChunks {}),
        answer(1, Answer::IntoChunks {}),
        answer(2, Answer::IntoChunks {}),
        answer(1, data(16, 16, false)),
        answer(0, hole(32, 32, false)),
        answer(0, data(40, 8, false)),
        answer(0, Answer::Succeed {}),
        answer(0, data(0, 32, true)),
        answer(0, Answer::ErrorAt { error, skip, text }),
        // At the place of the error, and after it.
        answer(0, data(20, 4, false)),
        answer(0, data(21, 4, false)),
        answer(0, data(0, 16, true)),
        answer(0, data(0, 16, false)),
        answer(0, hole(16, 48, true)),
        answer(0, Answer::Fail { error, text }),
    ]
}

/// Errors with texts of every length.
fn texts() -> Vec<Action> {
    let (which, error) = (0, 5);
    let texts = [1, 5, 250, 251, 252, 253];
    let fails = texts.map(|text| answer(which, Answer::Fail { error, text }));
    let requests = texts.map(|_| request(0, 0, 0, 512));
    requests.into_iter().chain(fails).collect()
}

fn status() -> Vec<Action> {
    let extents = List(vec![
        Extent {
            length: bytes(512),
            flags: 3,
        },
        Extent {
            length: Length::Request { less: 0 },
            flags: 1,
        },
    ]);
    let status = |context, truncate, space| Answer::Status {
        context,
        extents: extents.clone(),
        truncate,
        space,
    };
    // An extent that covers the request, followed by another.
    let beyond = Answer::Status {
        context: 0,
        extents: List(extents.0.iter().rev().cloned().collect()),
        truncate: false,
        space: 200,
    };
    let longer = Answer::Status {
        context: 0,
        extents: List(vec![Extent {
            length: Length::PastRequest { more: 1 },
            flags: 0,
        }]),
        truncate: false,
        space: 200,
    };
    let (error, text, skip) = (28, 2, bytes(7));
    vec![
        request(7, 0, 0, 4096),
        request(7, 8, 0, 4096),
        answer(0, beyond),
        answer(1, longer),
        answer(0, status(1, false, 200)),
        answer(1, status(0, false, 200)),
        answer(1, status(0, true, 200)),
        answer(0, status(0, false, 10)),
        answer(0, Answer::FailAt { error, skip, text }),
        answer(0, status(0, true, 200)),
    ]
}

/// Invalid requests.
fn faults() -> Vec<Action> {
    let mutated = |request, mutation| Action::Mutated { request, mutation };
    let value = 0xff;
    vec![
        request(0, 0, 0, 0),
        request(0, 0, 1 << 20, 512),
        request(1, 0, 1 << 20, 512),
        request(6, 0, u64::MAX, 512),
        request(4, 16, 0, 512),
        request(9, 0, 0, 512),
        request(7, 32, 0, 20),
        request(3, 32, 0, 5),
        Action::BlockStatusOf {
            contexts: List(vec![0, 0]),
            flags: 8,
            offset: 0,
            length: 512,
        },
        request(1, 0, 0, 16),
        Action::Advance { n: 3 },
        mutated(request_script(1, 0, 0, 64), Mutation::Truncate { at: 40 }),
        Action::Advance { n: 9 },
        mutated(request_script(1, 0, 0, 64), Mutation::Set { at: 5, value }),
        Action::Raw {
            bytes: b"%\x60\x95\x13".to_vec(),
        },
    ]
}

/// What a strict server refuses, and another accepts.
fn tolerated() -> Vec<Action> {
    let mut actions = vec![
        request(0, 0, 512, 0),
        request(1, 0, 1 << 20, 0),
        request(6, 1, 512, 0),
        request(7, 0, 512, 0),
        request(3, 0, 512, 0),
        request(3, 0, 0, 512),
        request(8, 0, 1 << 20, 512),
        // The script sets PAYLOAD_LEN unless it is set here.
        request(1, 32, 512, 64),
        request(1, 32, 512, (1 << 16) + 512),
    ];
    // DISC, with an offset.
    actions.push(request(2, 0, 512, 0));
    actions
}

/// Block sizes and lengths, at and past their limits.
fn limits() -> Vec<Action> {
    vec![
        request(0, 0, 0, 1 << 16),
        request(0, 0, 0, (1 << 16) + 512),
        request(0, 0, 256, 512),
        request(6, 0, 0, 1 << 17),
        request(6, 0, 0, (1 << 17) + 512),
        request(6, 16, 0, (1 << 17) + 512),
        request(4, 0, 512, (1 << 20) - 512),
        request(1, 0, 0, 1024),
        Action::Finish {
            which: 0,
            pieces: 2,
            fail: false,
        },
        request(1, 0, 0, (1 << 16) + 512),
    ]
}

fn resize() -> Vec<Action> {
    vec![
        request(8, 0, 4096, 0),
        request(0, 0, 1 << 16, 512),
        answer(0, Answer::Succeed {}),
        request(0, 0, 1 << 16, 512),
        request(5, 0, 1 << 19, 512),
        request(0, 0, 4096, 512),
        answer(0, Answer::Succeed {}),
        Action::End {},
    ]
}
