//! Seeds of the server's targets.

use nbd_codec_fuzz::delivery::Delivery;
use nbd_codec_fuzz::host::script::{
    ContextSetup, ExportSetup, OfferSetup, Reception, ReceptionStep,
};
use nbd_codec_fuzz::script::{Extent, Measure, Setup, Tweak};
use nbd_codec_fuzz::server::script::{Answer, Ask, ServerRun, Service, ServiceSetup, ServiceStep};
use nbd_codec_fuzz::talk::OptionScript;
use nbd_codec_fuzz::tape::{List, Rest};

use super::{deliveries, setup};

/// Every script of this module and of the recorded sessions, in every delivery.
pub fn runs(recorded: &[(String, Reception, Option<Service>)]) -> Vec<(String, ServerRun)> {
    let (mut services, mut receptions) = (services(), receptions());
    for (name, reception, service) in recorded {
        receptions.push((name.clone(), reception.clone()));
        services.extend(service.clone().map(|service| (name.clone(), service)));
    }
    let mut runs = Vec::new();
    for (way, one) in deliveries() {
        for (name, service) in &services {
            let run = ServerRun::Transmission {
                one: one.clone(),
                other: Delivery::whole(),
                service: service.clone(),
            };
            runs.push((format!("transmission-{name}-{way}"), run));
        }
        for (name, reception) in &receptions {
            let run = ServerRun::Handshake {
                one: one.clone(),
                other: Delivery::whole(),
                reception: reception.clone(),
            };
            runs.push((format!("handshake-{name}-{way}"), run));
        }
    }
    runs
}

fn ask(command: u8, flags: u16, offset: u64, length: u64) -> Ask {
    let fill = 0x5a;
    Ask {
        command,
        flags,
        offset,
        length,
        fill,
    }
}

fn request(command: u8, flags: u16, offset: u64, length: u64) -> ServiceStep {
    let ask = ask(command, flags, offset, length);
    ServiceStep::Request { ask }
}

fn answer(which: u8, answer: Answer) -> ServiceStep {
    ServiceStep::Answer { which, answer }
}

fn bytes(n: u64) -> Measure {
    Measure::Bytes { n }
}

/// Every command in every framing, answered well and badly; faults of the
/// client.
fn services() -> Vec<(String, Service)> {
    let mut services = Vec::new();
    for framing in 0..3 {
        for (name, steps) in [
            ("well", commands(0, false)),
            ("pieces", commands(3, false)),
            ("errors", commands(0, true)),
            ("chunks", chunks()),
            ("status", status()),
            ("faults", faults()),
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
                ..setup(framing)
            };
            let longest_effect = if name == "limits" { 1 << 17 } else { 0 };
            let setup = ServiceSetup {
                common: own,
                longest_effect,
            };
            let steps = Rest(steps);
            services.push((format!("{name}-{framing}"), Service { setup, steps }));
        }
    }
    services
}

fn commands(pieces: u8, fail: bool) -> Vec<ServiceStep> {
    let mut steps = Vec::new();
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
        let finish = ServiceStep::Finish {
            which,
            pieces,
            fail,
        };
        steps.extend([request, finish]);
    }
    steps.push(ServiceStep::StatusOf {
        contexts: List(vec![1]),
        flags: 0,
        offset: 0,
        length: 512,
    });
    steps.push(request(0, 0, 0, 16));
    steps.push(request(1, 0, 0, 700));
    steps.push(ServiceStep::ShutDown {});
    steps.push(request(0, 0, 0, 16));
    for which in [1, 1, 0] {
        steps.push(ServiceStep::Finish {
            which,
            pieces,
            fail,
        });
    }
    steps.extend([ServiceStep::Disconnect {}, ServiceStep::End {}]);
    steps
}

/// Two reads answered at once, piece by piece.
fn chunks() -> Vec<ServiceStep> {
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
        answer(0, data(0, 16, true)),
        answer(0, data(0, 16, false)),
        answer(0, hole(16, 48, true)),
        answer(0, Answer::Fail { error, text }),
    ]
}

/// Errors with texts of every length.
fn texts() -> Vec<ServiceStep> {
    let (which, error) = (0, 5);
    let texts = [1, 5, 250, 251, 252, 253];
    let fails = texts.map(|text| answer(which, Answer::Fail { error, text }));
    let asks = texts.map(|_| request(0, 0, 0, 512));
    asks.into_iter().chain(fails).collect()
}

fn status() -> Vec<ServiceStep> {
    let extents = List(vec![
        Extent {
            length: bytes(512),
            flags: 3,
        },
        Extent {
            length: Measure::Length { less: 0 },
            flags: 1,
        },
    ]);
    let status = |context, cut, room| Answer::Status {
        context,
        extents: extents.clone(),
        cut,
        room,
    };
    // All of the request, and then one more.
    let beyond = Answer::Status {
        context: 0,
        extents: List(extents.0.iter().rev().cloned().collect()),
        cut: false,
        room: 200,
    };
    let longer = Answer::Status {
        context: 0,
        extents: List(vec![Extent {
            length: Measure::Beyond { more: 1 },
            flags: 0,
        }]),
        cut: false,
        room: 200,
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

/// Requests with something wrong.
fn faults() -> Vec<ServiceStep> {
    let tweaked = |ask, tweak| ServiceStep::Tweaked { ask, tweak };
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
        ServiceStep::StatusOf {
            contexts: List(vec![0, 0]),
            flags: 8,
            offset: 0,
            length: 512,
        },
        request(1, 0, 0, 16),
        ServiceStep::Advance { n: 3 },
        tweaked(ask(1, 0, 0, 64), Tweak::Cut { at: 40 }),
        ServiceStep::Advance { n: 9 },
        tweaked(ask(1, 0, 0, 64), Tweak::Set { at: 5, value }),
        ServiceStep::Raw {
            bytes: b"%\x60\x95\x13".to_vec(),
        },
    ]
}

/// Block sizes and lengths, at their edges.
fn limits() -> Vec<ServiceStep> {
    vec![
        request(0, 0, 0, 1 << 16),
        request(0, 0, 0, (1 << 16) + 512),
        request(0, 0, 256, 512),
        request(6, 0, 0, 1 << 17),
        request(6, 0, 0, (1 << 17) + 512),
        request(6, 16, 0, (1 << 17) + 512),
        request(4, 0, 512, (1 << 20) - 512),
        request(1, 0, 0, 1024),
        ServiceStep::Finish {
            which: 0,
            pieces: 2,
            fail: false,
        },
        request(1, 0, 0, (1 << 16) + 512),
    ]
}

fn resize() -> Vec<ServiceStep> {
    vec![
        request(8, 0, 4096, 0),
        request(0, 0, 1 << 16, 512),
        answer(0, Answer::Succeed {}),
        request(0, 0, 1 << 16, 512),
        request(5, 0, 1 << 19, 512),
        request(0, 0, 4096, 512),
        answer(0, Answer::Succeed {}),
        ServiceStep::End {},
    ]
}

/// Handshakes of every kind of server.
fn receptions() -> Vec<(String, Reception)> {
    let mut receptions = Vec::new();
    for framing in 0..3 {
        for tls in 0..3 {
            for (name, requires) in [("open", 0), ("strict", 7)] {
                let name = format!("{name}-{framing}-tls-{tls}");
                let steps = options(tls > 0);
                receptions.push((name, reception(framing, tls, requires, steps)));
            }
        }
    }
    for (name, steps) in [
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
        receptions.push((name.into(), reception(2, 1, 0, steps)));
    }
    let mut oldstyle = reception(2, 0, 0, vec![serve()]);
    oldstyle.offer.oldstyle = 15;
    receptions.push(("oldstyle".into(), oldstyle));
    let mut silent = reception(2, 0, 0, by_name());
    silent.prompt = false;
    receptions.push(("silent".into(), silent));
    receptions
}

fn reception(framing: u8, tls: u8, requires: u8, steps: Vec<ReceptionStep>) -> Reception {
    let offer = OfferSetup {
        oldstyle: 0,
        fixed: true,
        no_zeroes: true,
        tls,
        framing,
        limits: setup(0).limits,
    };
    let context = |name, wide| ContextSetup { name, wide };
    let export = |name, requires| ExportSetup {
        name,
        description: 5,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 2,
        contexts: List(vec![context(2, false), context(3, true)]),
        requires,
    };
    Reception {
        offer,
        exports: List(vec![export(1, requires), export(0, 0)]),
        prompt: true,
        steps: Rest(steps),
    }
}

fn flags() -> ReceptionStep {
    ReceptionStep::ClientFlags { flags: 3 }
}

fn send(option: OptionScript) -> ReceptionStep {
    ReceptionStep::Option { option }
}

fn serve() -> ReceptionStep {
    ReceptionStep::Serve {}
}

fn options(tls: bool) -> Vec<ReceptionStep> {
    let mut steps = vec![flags(), send(OptionScript::List {}), serve()];
    if tls {
        steps.extend([send(OptionScript::StartTls {}), serve()]);
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
        steps.extend([send(option), serve()]);
    }
    steps
}

fn by_name() -> Vec<ReceptionStep> {
    let room = 200;
    vec![
        ReceptionStep::Transmit { room },
        flags(),
        send(OptionScript::ExportName { export: 1 }),
        ReceptionStep::Grant {
            export: 0,
            room: 20,
        },
        ReceptionStep::Grant { export: 1, room },
        ReceptionStep::Grant { export: 0, room },
        ReceptionStep::Transmit { room },
    ]
}

fn malformed() -> Vec<ReceptionStep> {
    let (export, requests) = (1, List(vec![3]));
    let go = OptionScript::Go { export, requests };
    let value = 9;
    let tweaked = |option, tweak| ReceptionStep::Tweaked { option, tweak };
    let other = |option, data: &[u8]| OptionScript::Other {
        option,
        data: data.to_vec(),
    };
    vec![
        flags(),
        tweaked(go.clone(), Tweak::Set { at: 19, value }),
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
        ReceptionStep::ShutDown {},
        send(OptionScript::List {}),
        tweaked(go, Tweak::Set { at: 3, value }),
    ]
}

fn refused() -> Vec<ReceptionStep> {
    let (export, room, message) = (1, 100, 4);
    let refuse = |error| ReceptionStep::Refuse {
        error,
        message,
        room,
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
        ReceptionStep::List { export: 0, room },
        refuse(5),
        refuse(2),
        send(OptionScript::ExportName { export }),
        refuse(6),
    ]
}

/// What is agreed on before TLS is forgotten.
fn late_tls() -> Vec<ReceptionStep> {
    let (export, queries) = (1, List(vec![2]));
    let mut steps = vec![flags()];
    for option in [
        OptionScript::ExtendedHeaders {},
        OptionScript::SetMetaContext { export, queries },
        OptionScript::StartTls {},
        OptionScript::Go {
            export,
            requests: List(vec![3]),
        },
    ] {
        steps.extend([send(option), serve(), serve()]);
    }
    steps
}

/// A client that does not wait.
fn early() -> Vec<ReceptionStep> {
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
        ReceptionStep::Raw {
            bytes: vec![0x21, 0xe4],
        },
    ]
}
