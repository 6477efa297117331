//! A handshake that is wrong in one way each.

use nbd_codec::Framing;
use nbd_codec::wire::flags::TransmissionFlags as Has;
use nbd_codec::wire::greeting::INIT_PASSWD;
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType as Rep, OptionType as Opt};
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};

use super::Turn;
use super::delivery::flood;
use crate::case::Cases;
use crate::client::handshake::CONTEXT;
use crate::client::message::Message;
use crate::client::script::{Asked, Dialect, SIZE};
use crate::client::trial::{Expect, Spoils};

/// Changes the answer to the options that are selected.
fn turn(
    duty: &'static str,
    name: impl Into<String>,
    sends: impl Into<String>,
    expect: Expect,
    options: &'static [Opt],
    twist: impl Fn(Opt, &mut Vec<Message>) -> bool + Send + Sync + 'static,
) -> Turn {
    let dialect = Dialect::maximal(Framing::Extended);
    Turn::correct(duty, name, sends, dialect)
        .expect(expect)
        .twist(Spoils::Session, move |asked, messages| match asked {
            Asked::Option(option) if options.contains(&option) => twist(option, messages),
            _ => false,
        })
}

const GO: &[Opt] = &[Opt::GO, Opt::INFO];
const FRAMINGS: &[Opt] = &[Opt::STRUCTURED_REPLY, Opt::EXTENDED_HEADERS];
const SET: &[Opt] = &[Opt::SET_META_CONTEXT];
const LIST: &[Opt] = &[Opt::LIST];
const ALL: &[Opt] = &[
    Opt::STRUCTURED_REPLY,
    Opt::EXTENDED_HEADERS,
    Opt::SET_META_CONTEXT,
    Opt::GO,
    Opt::INFO,
    Opt::LIST,
];

pub(super) fn add(cases: &mut Cases) {
    greetings(cases);
    replies(cases);
    exports(cases);
    sizes(cases);
    contexts(cases);
    lists(cases);
}

fn greetings(cases: &mut Cases) {
    let mut add = |name: &str, sends: &str, bytes: Vec<u8>| {
        let dialect = Dialect::maximal(Framing::Extended);
        Turn::correct("X14", name, sends, dialect)
            .expect(Expect::Failure)
            .twist(Spoils::Session, move |asked, messages| {
                let greeting = matches!(asked, Asked::Connection);
                if greeting {
                    *messages = vec![Message::bytes(bytes.clone(), "no greeting")];
                }
                greeting
            })
            .add(cases);
    };
    add(
        "greeting-first",
        "another first magic number",
        vec![b'X'; 18],
    );
    let mut second = INIT_PASSWD.to_be_bytes().to_vec();
    second.extend(b"IHAVEOPX\0\x03");
    add("greeting-second", "another second magic number", second);
    let text = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    add("greeting-http", "the reply of a web server", text);
}

/// What a reply to any option can have wrong.
fn replies(cases: &mut Cases) {
    // The client cannot tell what was granted.
    for (options, to) in [(FRAMINGS, "framing"), (GO, "go")] {
        let name = |what: &str| format!("{to}-{what}");
        let failure = Expect::Failure;
        turn(
            "X14",
            name("magic"),
            "another magic number",
            failure,
            options,
            |_, messages| {
                *messages = vec![Message::bytes([0x5a; 20], "no reply to an option")];
                true
            },
        )
        .add(cases);
        let sends = "the final reply is one to another option";
        turn(
            "H9",
            name("other-option"),
            sends,
            failure,
            options,
            |_, messages| {
                if let Some(Message::Option { option, .. }) = messages.last_mut() {
                    *option = Opt::ABORT;
                }
                true
            },
        )
        .add(cases);
        let sends = "an acknowledgement in front, to another option";
        turn(
            "H9",
            name("extra-other"),
            sends,
            failure,
            options,
            |_, messages| {
                messages.insert(0, Message::ack(Opt::LIST));
                true
            },
        )
        .add(cases);
        let sends = "a final reply of the type 0x1234";
        turn(
            "H9",
            name("unknown-type"),
            sends,
            failure,
            options,
            |_, messages| {
                if let Some(Message::Option { reply, .. }) = messages.last_mut() {
                    *reply = Rep(0x1234);
                }
                true
            },
        )
        .add(cases);
        let sends = "a header with the length 2^32 - 1, then the end";
        turn(
            "O111",
            name("endless"),
            sends,
            failure,
            options,
            |_, messages| {
                if let Some(Message::Option { length, .. }) = messages.last_mut() {
                    *length = Some(u32::MAX);
                }
                messages.push(Message::Close);
                true
            },
        )
        .add(cases);
        let sends = "an acknowledgement with 8 bytes of data";
        turn(
            "O111",
            name("ack-data"),
            sends,
            Expect::Either,
            options,
            |_, messages| {
                if let Some(Message::Option { data, .. }) = messages.last_mut() {
                    data.extend([0; 8]);
                }
                true
            },
        )
        .add(cases);
    }
    let sends = "NBD_REP_SERVER to STRUCTURED_REPLY and EXTENDED_HEADERS";
    let server = OptionReply::Server {
        name: "x".into(),
        description: "".into(),
    };
    turn(
        "H9",
        "framing-server",
        sends,
        Expect::Failure,
        FRAMINGS,
        move |option, messages| {
            messages.insert(0, Message::option(option, &server));
            true
        },
    )
    .add(cases);
    let sends = "after each acknowledgement a second one";
    turn(
        "H9",
        "second-ack",
        sends,
        Expect::Failure,
        FRAMINGS,
        |option, messages| {
            messages.push(Message::ack(option));
            true
        },
    )
    .add(cases);
    let sends = "the same information again and again";
    turn(
        "X3",
        "flood-information",
        sends,
        Expect::Failure,
        GO,
        |_, messages| flood(messages),
    )
    .add(cases);
    let sends = "nothing, then the end";
    for (name, options) in [("all", ALL), ("go", GO)] {
        let name = format!("silence-{name}");
        turn(
            "X3",
            name,
            sends,
            Expect::Failure,
            options,
            |_, messages| {
                *messages = vec![Message::Silence];
                true
            },
        )
        .add(cases);
    }
}

/// Sends this information instead of that of a type.
fn replace_info(option: Opt, messages: &mut [Message], wanted: InfoType, info: Info<'_>) -> bool {
    let at = position(messages, wanted);
    let place = at.and_then(|at| messages.get_mut(at));
    place
        .map(|place| *place = Message::option(option, &OptionReply::Info(info)))
        .is_some()
}

/// Cuts or extends the data of the information of a type to `length` bytes.
fn resize_info(messages: &mut [Message], wanted: InfoType, length: usize) -> bool {
    let at = position(messages, wanted);
    let Some(Message::Option { data, .. }) = at.and_then(|at| messages.get_mut(at)) else {
        return false;
    };
    data.resize(length, 0);
    true
}

/// The position of the information of a type.
fn position(messages: &[Message], wanted: InfoType) -> Option<usize> {
    messages.iter().position(|message| match message {
        Message::Option { data, reply, .. } => {
            *reply == Rep::INFO && data.starts_with(&wanted.0.to_be_bytes())
        }
        _ => false,
    })
}

fn exports(cases: &mut Cases) {
    let sends = "ACK without NBD_INFO_EXPORT";
    turn(
        "O49",
        "no-export",
        sends,
        Expect::Failure,
        GO,
        |_, messages| {
            let at = position(messages, InfoType::EXPORT);
            at.map(|at| messages.remove(at)).is_some()
        },
    )
    .add(cases);
    for (name, keep) in [
        ("11-bytes", 11),
        ("2-bytes", 2),
        ("0-bytes", 0),
        ("13-bytes", 13),
    ] {
        let sends = format!("NBD_INFO_EXPORT of {keep} bytes");
        turn(
            "O116",
            name,
            sends,
            Expect::Failure,
            GO,
            move |_, messages| resize_info(messages, InfoType::EXPORT, keep),
        )
        .add(cases);
    }
    for (name, size) in [("2-63", 1 << 63), ("2-64", u64::MAX)] {
        let sends = format!("the size {size}");
        turn(
            "X3",
            format!("size-{name}"),
            sends,
            Expect::Survival,
            GO,
            move |option, messages| {
                let flags = Has::HAS_FLAGS;
                let info = Info::Export { size, flags };
                replace_info(option, messages, InfoType::EXPORT, info)
            },
        )
        .add(cases);
    }
    let sends = "NBD_INFO_EXPORT twice, with different sizes";
    turn(
        "O114",
        "two-sizes",
        sends,
        Expect::Survival,
        GO,
        |option, messages| {
            let (size, flags) = (SIZE / 2, Has::HAS_FLAGS);
            let info = OptionReply::Info(Info::Export { size, flags });
            messages.insert(0, Message::option(option, &info));
            true
        },
    )
    .add(cases);
    let sends = "information of one byte";
    turn(
        "O111",
        "information-1-byte",
        sends,
        Expect::Either,
        GO,
        |option, messages| {
            messages.insert(
                0,
                Message::Option {
                    option,
                    reply: Rep::INFO,
                    data: vec![0],
                    length: None,
                },
            );
            true
        },
    )
    .add(cases);
}

fn sizes(cases: &mut Cases) {
    let sizes = |minimum, preferred, maximum| BlockSizes {
        minimum,
        preferred,
        maximum,
    };
    for (duty, name, sizes) in [
        ("S11", "minimum-0", sizes(0, 4096, 1 << 25)),
        ("S11", "minimum-3", sizes(3, 4096, 1 << 25)),
        ("S11", "minimum-131072", sizes(1 << 17, 1 << 17, 1 << 25)),
        ("S14", "preferred-0", sizes(1, 0, 1 << 25)),
        ("S14", "preferred-1000", sizes(1, 1000, 1 << 25)),
        ("S14", "preferred-below-minimum", sizes(4096, 512, 1 << 25)),
        ("S15", "maximum-0", sizes(1, 4096, 0)),
        ("S15", "maximum-below-preferred", sizes(1, 4096, 1024)),
    ] {
        let BlockSizes {
            minimum,
            preferred,
            maximum,
        } = sizes;
        let sends = format!("block sizes {minimum}, {preferred}, {maximum}");
        turn(
            duty,
            name,
            sends,
            Expect::Either,
            GO,
            move |option, messages| {
                let info = Info::BlockSize(sizes);
                replace_info(option, messages, InfoType::BLOCK_SIZE, info)
            },
        )
        .add(cases);
    }
    for keep in [2, 13, 15] {
        let sends = format!("NBD_INFO_BLOCK_SIZE of {keep} bytes");
        let name = format!("{keep}-bytes");
        turn(
            "O120",
            name,
            sends,
            Expect::Either,
            GO,
            move |_, messages| resize_info(messages, InfoType::BLOCK_SIZE, keep),
        )
        .add(cases);
    }
}

fn contexts(cases: &mut Cases) {
    let context = |id, name: &'static str| {
        let (id, name) = (ContextId(id), name.into());
        Message::option(
            Opt::SET_META_CONTEXT,
            &OptionReply::MetaContext { id, name },
        )
    };
    let mut add = |duty, name: &str, sends: &str, added: Vec<Message>| {
        turn(
            duty,
            name,
            sends,
            Expect::Either,
            SET,
            move |_, messages| {
                messages.splice(0..0, added.clone());
                true
            },
        )
        .add(cases);
    };
    let again = vec![context(CONTEXT.0, "base:allocation")];
    add(
        "O95",
        "same-context",
        "one context twice, with one id",
        again,
    );
    let other = vec![context(CONTEXT.0, "x-check:other")];
    add("O95", "same-id", "another context with the same id", other);
    let many: Vec<_> = (0..200).map(|id| context(id, "x-check:many")).collect();
    add("O95", "many", "200 contexts that were not asked for", many);
    let unknown = vec![context(1, "")];
    add("O95", "no-name", "a context without a name", unknown);
    let short = Message::Option {
        option: Opt::SET_META_CONTEXT,
        reply: Rep::META_CONTEXT,
        data: vec![0, 0, 1],
        length: None,
    };
    add(
        "O111",
        "context-3-bytes",
        "a context of 3 bytes",
        vec![short],
    );
    for error in [
        Rep::ERR_UNSUP,
        Rep::ERR_INVALID,
        Rep::ERR_UNKNOWN,
        Rep::ERR_TOO_BIG,
    ] {
        let name = error.name().unwrap_or_default().to_lowercase();
        let name = name.replace("nbd_rep_err_", "");
        let sends = format!("{error} to SET_META_CONTEXT");
        turn(
            "M4",
            format!("refused-{name}"),
            sends,
            Expect::Either,
            SET,
            move |option, messages| {
                *messages = vec![Message::refusal(option, error)];
                true
            },
        )
        .add(cases);
    }
}

fn lists(cases: &mut Cases) {
    let mut add = |name: &str, sends: &str, data: Vec<u8>| {
        let reply = Message::Option {
            option: Opt::LIST,
            reply: Rep::SERVER,
            data,
            length: None,
        };
        turn(
            "O111",
            name,
            sends,
            Expect::Failure,
            LIST,
            move |_, messages| {
                messages.insert(0, reply.clone());
                true
            },
        )
        .add(cases);
    };
    add(
        "name-overrun",
        "a name of 3 bytes in 2",
        vec![0, 0, 0, 3, b'a', b'b'],
    );
    add(
        "name-wraps",
        "a name of 2^32 - 1 bytes in 2",
        vec![255, 255, 255, 255, b'a', b'b'],
    );
    add("list-3-bytes", "an entry of 3 bytes", vec![0, 0, 1]);
    let sends = "the same entry again and again";
    turn(
        "X3",
        "flood-list",
        sends,
        Expect::Failure,
        LIST,
        |_, messages| flood(messages),
    )
    .add(cases);
}
