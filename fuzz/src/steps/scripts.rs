//! Scripts with every length field of every message replaced by each of the worst
//! values, for all state machines.

use super::Run;
use crate::client::handshake::script as client_handshake;
use crate::client::handshake::script::{ConfigSetup, OptionScript};
use crate::client::transmission::script as client_transmission;
use crate::delivery::{Delivery, Reading};
use crate::format::{List, Rest};
use crate::script::{ContextSetup, Extent, Length, LimitsSetup, Mutation, Setup};
use crate::server::handshake::script as server_handshake;
use crate::server::transmission::script as server_transmission;
use crate::{client, server};

/// More than there are fields in a message, and values of a field.
const FIELDS: u8 = 8;
const VALUES: u8 = 12;

/// Each field and value, with the smallest buffer and a larger one.
fn for_each_length(mut check: impl FnMut(Mutation, Delivery)) {
    let mut extra_buffers = [0, 1, 100, 4000, u16::MAX].into_iter().cycle();
    for field in 0..FIELDS {
        for value in 0..VALUES {
            for extra_buffer in [0, extra_buffers.next().unwrap_or(0)] {
                let delivery = Delivery {
                    reading: Reading::Exact {},
                    sizes: List(vec![0, 1, 5]),
                    direct: false,
                    extra_buffer,
                };
                check(Mutation::Length { field, value }, delivery);
            }
        }
    }
}

/// Limits for a buffer of 64 bytes, or the default limits.
fn limits(small: bool) -> LimitsSetup {
    LimitsSetup {
        custom: small,
        option_data: 44,
        error_message: 56,
        payload: 1 << 25,
        extents: 100,
    }
}

fn setup(framing: u8, small: bool) -> Setup {
    let context = |id, wide| ContextSetup { id, wide };
    Setup {
        framing,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 0,
        minimum: 1,
        maximum: 1 << 25,
        contexts: List(vec![context(1, false), context(7, true)]),
        limits: limits(small),
        slots: 4,
        lenient: false,
        strict: false,
    }
}

fn bytes(n: u64) -> Length {
    Length::Bytes { n }
}

pub fn client_transmission(mut check: impl FnMut(Run)) {
    use client_transmission::{Action, Reply, Script};
    let read = |command| Action::Submit {
        command,
        flags: 0,
        offset: 4096,
        length: 300,
    };
    let data = |skip, length, last| Reply::Data {
        skip: bytes(skip),
        length: bytes(length),
        last,
        fill: 7,
    };
    let extent = Extent {
        length: bytes(100),
        flags: 1,
    };
    let error = |kind| Reply::Error {
        kind,
        error: 5,
        message: 20,
        skip: bytes(9),
        rest: vec![1, 2, 3],
        last: true,
    };
    let replies = [
        (0, Reply::Simple { error: 0, fill: 1 }),
        (0, data(0, 300, true)),
        (0, data(200, 50, false)),
        (
            0,
            Reply::Hole {
                skip: bytes(0),
                length: bytes(300),
                last: true,
            },
        ),
        (
            7,
            Reply::Status {
                context: 0,
                extents: List(vec![extent.clone(), extent.clone()]),
                last: false,
            },
        ),
        (
            7,
            Reply::Status {
                context: 0,
                // Longer than a small buffer.
                extents: List(vec![extent; 39]),
                last: false,
            },
        ),
        (0, error(0)),
        (0, error(2)),
        (1, Reply::None { last: true }),
    ];
    for framing in 0..3 {
        for (command, reply) in &replies {
            for_each_length(|mutation, first| {
                let small = first.extra_buffer < 4000;
                let script = Script {
                    setup: setup(framing, small),
                    actions: Rest(vec![
                        read(*command),
                        read(0),
                        Action::Mutated {
                            to: 0,
                            reply: reply.clone(),
                            mutation,
                        },
                        // What a mutated message discards, and what follows.
                        Action::Raw { bytes: vec![0; 70] },
                        Action::Finish {
                            to: 0,
                            pieces: 3,
                            fail: false,
                        },
                    ]),
                };
                let run = client::Run::Transmission {
                    first,
                    second: Delivery::whole(),
                    script,
                };
                check(Run::Client { run });
            });
        }
    }
}

pub fn client_handshake(mut check: impl FnMut(Run)) {
    use client_handshake::{Action, Reply, Script};
    let send = |option| Action::Send {
        option,
        space: 9000,
    };
    let requests = List(vec![1, 2, 3]);
    let queries = List(vec![2]);
    let options = [
        (
            OptionScript::List {},
            Reply::Server {
                name: 1,
                description: 5,
            },
        ),
        (
            OptionScript::Go {
                export: 1,
                requests: requests.clone(),
            },
            Reply::BlockSize {
                minimum: 1,
                preferred: 4096,
                maximum: 1 << 25,
            },
        ),
        (
            OptionScript::Go {
                export: 1,
                requests: requests.clone(),
            },
            Reply::Export { size: 9, flags: 1 },
        ),
        (
            OptionScript::Go {
                export: 1,
                requests,
            },
            Reply::Error {
                error: 6,
                message: 250,
            },
        ),
        (
            OptionScript::ListMetaContext { export: 1, queries },
            Reply::MetaContext { id: 4, name: 2 },
        ),
        (OptionScript::StructuredReply {}, Reply::Ack {}),
    ];
    for (option, reply) in options {
        for_each_length(|mutation, first| {
            let small = first.extra_buffer < 4000;
            let script = Script {
                tls: 0,
                strict: false,
                go: true,
                limits: limits(small),
                config: ConfigSetup {
                    export: 1,
                    contexts: List(vec![]),
                    framing: 0,
                    describe: true,
                },
                actions: Rest(vec![
                    Action::Greeting {
                        kind: 2,
                        flags: 3,
                        size: 0,
                    },
                    Action::ClientFlags {
                        wanted: 3,
                        space: 16,
                    },
                    send(option.clone()),
                    Action::Mutated {
                        option: 0,
                        reply: reply.clone(),
                        mutation,
                    },
                    Action::Raw { bytes: vec![0; 70] },
                    Action::Finish {
                        how: 13,
                        size: 1 << 20,
                        flags: 1,
                    },
                ]),
            };
            let second = Delivery::whole();
            for run in [
                client::Run::Handshake {
                    first: first.clone(),
                    second: second.clone(),
                    script: script.clone(),
                },
                client::Run::Connector {
                    first,
                    second,
                    script,
                },
            ] {
                check(Run::Client { run });
            }
        });
    }
}

pub fn server_transmission(mut check: impl FnMut(Run)) {
    use server_transmission::{Action, RequestScript, Script, ServerSetup};
    let request = |command, flags| RequestScript {
        command,
        flags,
        offset: 4096,
        length: 300,
        fill: 7,
    };
    for framing in 0..3 {
        for (command, flags) in [(0, 0), (1, 0), (3, 0), (6, 0), (7, 0), (7, 32), (9, 32)] {
            for_each_length(|mutation, first| {
                let small = first.extra_buffer < 4000;
                let script = Script {
                    setup: ServerSetup {
                        common: setup(framing, small),
                        max_effect: 0,
                    },
                    actions: Rest(vec![
                        Action::Mutated {
                            request: request(command, flags),
                            mutation,
                        },
                        Action::Raw { bytes: vec![0; 70] },
                        Action::BlockStatusOf {
                            contexts: List(vec![0, 1]),
                            flags: 0,
                            offset: 0,
                            length: 512,
                        },
                        Action::Request {
                            request: request(1, 0),
                        },
                        Action::Disconnect {},
                    ]),
                };
                let run = server::Run::Transmission {
                    first,
                    second: Delivery::whole(),
                    script,
                };
                check(Run::Server { run });
            });
        }
    }
}

pub fn server_handshake(mut check: impl FnMut(Run)) {
    use server_handshake::{Action, Script};
    let (export, queries, requests) = (1, List(vec![2, 3]), List(vec![0, 3]));
    let options = [
        OptionScript::List {},
        OptionScript::Go {
            export,
            requests: requests.clone(),
        },
        OptionScript::Info { export, requests },
        OptionScript::ListMetaContext {
            export,
            queries: queries.clone(),
        },
        OptionScript::SetMetaContext { export, queries },
        OptionScript::ExportName { export },
        OptionScript::StructuredReply {},
        OptionScript::StartTls {},
        OptionScript::Abort {},
    ];
    for option in options {
        for_each_length(|mutation, first| {
            let small = first.extra_buffer < 4000;
            let export = server_handshake::ExportSetup {
                name: 1,
                description: 5,
                size: 1 << 20,
                flags: 0x1ffd,
                block_sizes: 2,
                contexts: List(vec![]),
                requires: 0,
            };
            let script = Script {
                config: server_handshake::ConfigSetup {
                    oldstyle: 0,
                    fixed: true,
                    no_zeroes: true,
                    tls: 1,
                    framing: 2,
                    limits: limits(small),
                    strict: false,
                },
                exports: List(vec![export]),
                writes_immediately: true,
                actions: Rest(vec![
                    Action::ClientFlags { flags: 3 },
                    Action::Option {
                        option: OptionScript::StructuredReply {},
                    },
                    Action::Mutated {
                        option: option.clone(),
                        mutation,
                    },
                    Action::Serve {},
                    Action::Raw { bytes: vec![0; 70] },
                    Action::Serve {},
                    Action::Option {
                        option: OptionScript::List {},
                    },
                    Action::Serve {},
                ]),
            };
            let run = server::Run::Handshake {
                first,
                second: Delivery::whole(),
                script,
            };
            check(Run::Server { run });
        });
    }
}
