//! Writes the seed corpora, from what is built in here and from recorded
//! sessions: `cargo run --example seeds CORPORA SESSIONS`. The same bytes every
//! time.

mod messages;
mod pair;
mod server;

use std::fs;
use std::path::{Path, PathBuf};

use nbd_codec_fuzz::delivery::{Delivery, How};
use nbd_codec_fuzz::recorded;
use nbd_codec_fuzz::script::{
    ContextSetup, Extent, LimitsSetup, Measure, Reply, Run, Session, Setup, Step, Tweak,
};
use nbd_codec_fuzz::talk::{OptionScript, PlanSetup, QuerySetup, Talk, TalkReply, TalkStep};
use nbd_codec_fuzz::tape::{List, OnTape, Rest, write};

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(directory), Some(recorded)) = (args.next(), args.next()) else {
        eprintln!("usage: seeds CORPORA SESSIONS");
        std::process::exit(2);
    };
    let corpora = Corpora(Path::new(&directory));
    let (mut talks, mut sessions) = (talks(), sessions());
    let mut served = Vec::new();
    for (name, text) in recordings(Path::new(&recorded)) {
        let (talk, session) = recorded::scripts(&text);
        let (reception, service) = recorded::server_scripts(&text);
        served.push((name.clone(), reception, service));
        talks.push((name.clone(), talk));
        sessions.extend(session.map(|session| (name, session)));
    }
    for (way, one) in deliveries() {
        let other = Delivery::whole();
        for (name, session) in &sessions {
            let run = Run::Transmission {
                one: one.clone(),
                other: other.clone(),
                session: session.clone(),
            };
            corpora.script(&format!("transmission-{name}-{way}"), &run);
        }
        for (name, talk) in &talks {
            let hand = Run::ByHand {
                one: one.clone(),
                other: other.clone(),
                talk: talk.clone(),
            };
            corpora.script(&format!("hand-{name}-{way}"), &hand);
            let policy = Run::ByPolicy {
                one: one.clone(),
                other: other.clone(),
                talk: talk.clone(),
            };
            corpora.script(&format!("policy-{name}-{way}"), &policy);
        }
    }
    for (name, run) in server::runs(&served) {
        corpora.server_script(&name, &run);
    }
    for (name, pair) in pair::scripts() {
        corpora.add("pair", &name, &write(&pair));
    }
    for (name, bytes) in messages::messages() {
        corpora.add("wire_decode", name, &bytes);
        corpora.add("wire_roundtrip", name, &bytes);
    }
}

/// The files of recorded sessions, in the order of their names.
fn recordings(directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).expect("the directory of recorded sessions");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no recorded sessions");
    let read = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(path).expect("a session that can be read");
        (name.into_owned(), text)
    };
    files.iter().map(read).collect()
}

struct Corpora<'a>(&'a Path);

impl Corpora<'_> {
    fn script(&self, name: &str, script: &impl OnTape) {
        for target in ["client", "client_split", "differential"] {
            self.add(target, name, &write(script));
        }
    }

    fn server_script(&self, name: &str, script: &impl OnTape) {
        for target in ["server", "server_split", "differential_server"] {
            self.add(target, name, &write(script));
        }
    }

    fn add(&self, target: &str, name: &str, bytes: &[u8]) {
        let directory = self.0.join(target);
        fs::create_dir_all(&directory).expect("a directory that can be made");
        fs::write(directory.join(name), bytes).expect("a file that can be written");
    }
}

fn deliveries() -> [(&'static str, Delivery); 4] {
    let delivery = |how, sizes: &[u8], direct| Delivery {
        how,
        sizes: List(sizes.to_vec()),
        direct,
    };
    [
        ("whole", Delivery::whole()),
        ("bytes", delivery(How::Pieces {}, &[1], false)),
        ("exact", delivery(How::Exact {}, &[0, 7], true)),
        ("eager", delivery(How::Eager {}, &[], true)),
    ]
}

/// Every command, answered well, in errors and in pieces, in every framing.
fn sessions() -> Vec<(String, Session)> {
    let mut sessions = Vec::new();
    for framing in 0..3 {
        for (name, steps) in [
            (
                "well",
                commands_and(|to| Step::Finish {
                    to,
                    pieces: 0,
                    fail: false,
                }),
            ),
            (
                "pieces",
                commands_and(|to| Step::Finish {
                    to,
                    pieces: 3,
                    fail: false,
                }),
            ),
            (
                "errors",
                commands_and(|to| Step::Finish {
                    to,
                    pieces: 2,
                    fail: true,
                }),
            ),
            (
                "late",
                commands_and(|to| Step::Finish {
                    to,
                    pieces: 1,
                    fail: true,
                }),
            ),
            ("replies", replies()),
            ("faults", faults()),
        ] {
            let setup = setup(framing);
            let steps = Rest(steps);
            sessions.push((format!("{name}-{framing}"), Session { setup, steps }));
        }
    }
    sessions
}

fn setup(framing: u8) -> Setup {
    let context = |id, wide| ContextSetup { id, wide };
    Setup {
        framing,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 0,
        minimum: 1,
        maximum: 1 << 25,
        contexts: List(vec![context(1, false), context(7, true)]),
        limits: LimitsSetup {
            own: false,
            option_data: 100,
            error_message: 5,
            payload: 100,
            extents: 2,
        },
        slots: 4,
        lenient: false,
    }
}

fn submit(command: u8, flags: u16, offset: u64, length: u64) -> Step {
    Step::Submit {
        command,
        flags,
        offset,
        length,
    }
}

/// Every command, each followed by what answers it.
fn commands_and(answer: impl Fn(u8) -> Step) -> Vec<Step> {
    let mut steps = Vec::new();
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
        steps.extend([command, answer(0)]);
    }
    steps.push(Step::StatusOf {
        contexts: List(vec![1]),
        offset: 0,
        length: 512,
        flags: 0,
        room: 64,
    });
    steps.extend([answer(0), Step::Disconnect {}, Step::End {}]);
    steps
}

/// Two reads under way at once, and chunks of every kind.
fn replies() -> Vec<Step> {
    let reply = |to, reply| Step::Reply { to, reply };
    let bytes = |n| Measure::Bytes { n };
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
                length: Measure::Length { less: 0 },
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

/// Messages with something wrong.
fn faults() -> Vec<Step> {
    let tweak = |at, value| Tweak::Set { at, value };
    let reply = Reply::Data {
        skip: Measure::Bytes { n: 0 },
        length: Measure::Length { less: 0 },
        last: true,
        fill: 1,
    };
    vec![
        submit(0, 0, 0, 16),
        Step::Advance { n: 3 },
        Step::Tweaked {
            to: 0,
            reply: reply.clone(),
            tweak: Tweak::Cut { at: 12 },
        },
        Step::Tweaked {
            to: 0,
            reply: reply.clone(),
            tweak: Tweak::Insert {
                at: 20,
                bytes: vec![0; 8],
            },
        },
        Step::Tweaked {
            to: 0,
            reply,
            tweak: tweak(5, 2),
        },
        Step::Raw {
            bytes: b"gDf\x98".to_vec(),
        },
    ]
}

/// Handshakes: what a policy sends is what is sent by hand.
fn talks() -> Vec<(String, Talk)> {
    let mut talks = Vec::new();
    for framing in 0..3 {
        for tls in 0..3 {
            for (name, how) in [("well", 13), ("contexts", 2), ("unsupported", 1)] {
                talks.push((
                    format!("{name}-{framing}-tls-{tls}"),
                    talk(framing, tls, options(framing, tls, how)),
                ));
            }
        }
    }
    for kind in [0, 1, 4] {
        let greeting = TalkStep::Greeting {
            kind,
            flags: u16::from(kind),
            size: 4096,
        };
        let mut steps = vec![greeting, client_flags()];
        steps.push(send(OptionScript::ExportName { export: 1 }));
        steps.push(finish(0));
        talks.push((format!("export-name-{kind}"), talk(0, 0, steps)));
    }
    talks.push(("replies".into(), talk(2, 0, talk_replies())));
    talks.push(("late-tls".into(), talk(2, 1, late_tls())));
    talks.push((
        "end".into(),
        talk(
            2,
            0,
            vec![
                newstyle(),
                client_flags(),
                send(OptionScript::Abort {}),
                finish(13),
                TalkStep::End {},
            ],
        ),
    ));
    talks
}

fn talk(framing: u8, tls: u8, steps: Vec<TalkStep>) -> Talk {
    Talk {
        tls,
        limits: setup(0).limits,
        plan: PlanSetup {
            export: 1,
            contexts: List(vec![
                QuerySetup { name: 2, width: 0 },
                QuerySetup { name: 3, width: 1 },
            ]),
            framing,
            describe: true,
        },
        steps: Rest(steps),
    }
}

fn newstyle() -> TalkStep {
    TalkStep::Greeting {
        kind: 2,
        flags: 3,
        size: 0,
    }
}

fn client_flags() -> TalkStep {
    TalkStep::ClientFlags {
        wanted: 3,
        room: 16,
    }
}

fn send(option: OptionScript) -> TalkStep {
    let room = 8000;
    TalkStep::Send { option, room }
}

fn finish(how: u8) -> TalkStep {
    TalkStep::Finish {
        how,
        size: 1 << 20,
        flags: 0x1fff,
    }
}

fn options(framing: u8, tls: u8, how: u8) -> Vec<TalkStep> {
    let mut steps = vec![newstyle(), client_flags()];
    if tls > 0 {
        steps.extend([send(OptionScript::StartTls {}), finish(13)]);
        steps.push(TalkStep::TlsEstablished {});
    }
    steps.extend([send(OptionScript::List {}), finish(13)]);
    steps.extend(match framing {
        0 => vec![],
        1 => vec![send(OptionScript::StructuredReply {}), finish(how)],
        _ => vec![send(OptionScript::ExtendedHeaders {}), finish(how)],
    });
    let (export, queries) = (1, List(vec![2, 3]));
    steps.push(send(OptionScript::SetMetaContext { export, queries }));
    steps.push(finish(how));
    let requests = List(vec![0, 1, 2, 3]);
    steps.extend([send(OptionScript::Go { export, requests }), finish(how)]);
    steps.extend([send(OptionScript::ExportName { export }), finish(0)]);
    steps
}

/// What is agreed on before TLS is forgotten.
fn late_tls() -> Vec<TalkStep> {
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
        TalkStep::TlsEstablished {},
        send(OptionScript::Go { export, requests }),
        finish(13),
    ]
}

/// Replies of every kind, some too long for the caller.
fn talk_replies() -> Vec<TalkStep> {
    let reply = |reply| TalkStep::Reply { option: 0, reply };
    let (export, queries, requests) = (1, List(vec![2]), List(vec![3]));
    let message = 250;
    vec![
        newstyle(),
        client_flags(),
        send(OptionScript::List {}),
        reply(TalkReply::Server {
            name: 250,
            description: 1,
        }),
        reply(TalkReply::Error { error: 9, message }),
        send(OptionScript::ExtendedHeaders {}),
        reply(TalkReply::Ack {}),
        send(OptionScript::SetMetaContext {
            export,
            queries: queries.clone(),
        }),
        reply(TalkReply::MetaContext { id: 5, name: 250 }),
        reply(TalkReply::MetaContext { id: 6, name: 2 }),
        reply(TalkReply::Ack {}),
        send(OptionScript::ListMetaContext { export, queries }),
        reply(TalkReply::MetaContext { id: 6, name: 2 }),
        reply(TalkReply::Ack {}),
        send(OptionScript::Other {
            option: 77,
            data: vec![1],
        }),
        reply(TalkReply::Other {
            reply: 99,
            data: vec![2],
        }),
        reply(TalkReply::Ack {}),
        send(OptionScript::Go { export, requests }),
        reply(TalkReply::Name { name: 1 }),
        reply(TalkReply::Information {
            kind: 9,
            data: vec![3],
        }),
        reply(TalkReply::BlockSize {
            minimum: 1,
            preferred: 256,
            maximum: 1 << 25,
        }),
        reply(TalkReply::Export { size: 9, flags: 1 }),
        reply(TalkReply::Ack {}),
        TalkStep::Raw { bytes: vec![0x67] },
    ]
}
