//! Replies whose headers are wrong in one way each.

use nbd_codec::Framing;
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Command, Cookie, ErrorValue as Error};

use super::{Turn, for_chunks};
use crate::case::Cases;
use crate::client::message::{Chunk, Message, REPLY_MAGICS};
use crate::client::reply::Reply;
use crate::client::script::Dialect;
use crate::client::trial::Expect;
use crate::profile::{FRAMINGS, framing_name};

pub(super) fn add(cases: &mut Cases) {
    for framing in FRAMINGS {
        any_framing(cases, framing);
    }
    for_chunks(|name, dialect| chunks(cases, name, &dialect));
    extended(cases);
}

fn any_framing(cases: &mut Cases, framing: Framing) {
    let mut add = |duty,
                   name: &str,
                   sends: &str,
                   expect,
                   twist: fn(&Reply<'_>, &mut Vec<Message>) -> bool| {
        for (command, of) in [
            (Command::READ, "read"),
            (Command::WRITE, "write"),
            (Command::BLOCK_STATUS, "block-status"),
        ] {
            let name = format!("{}-{of}-{name}", framing_name(framing));
            let sends = format!("{sends}, to {command}");
            Turn::correct(duty, name, sends, Dialect::maximal(framing))
                .expect(expect)
                .answer(command, twist)
                .add(cases);
        }
    };
    let failure = Expect::Failure;
    add(
        "X14",
        "magic",
        "another magic number",
        failure,
        |_, messages| {
            if let Some(first) = messages.first_mut() {
                let mut bytes = first.encode();
                if let Some(byte) = bytes.first_mut() {
                    *byte ^= 0xff;
                }
                *first = Message::bytes(bytes, "no reply");
            }
            true
        },
    );
    add(
        "T5",
        "other-cookie",
        "every reply with a cookie of no request",
        failure,
        |_, messages| {
            for message in messages.iter_mut() {
                match message {
                    Message::Simple { cookie, .. } => cookie.0 ^= 1 << 60,
                    Message::Chunk(chunk) => chunk.cookie.0 ^= 1 << 60,
                    _ => {}
                }
            }
            true
        },
    );
    add(
        "T5",
        "stray-reply",
        "first an error for a cookie of no request",
        Expect::Either,
        |reply, messages| {
            let mut stray = reply.error(Error::EIO);
            for message in &mut stray {
                match message {
                    Message::Simple { cookie, .. } => *cookie = Cookie(u64::MAX),
                    Message::Chunk(chunk) => chunk.cookie = Cookie(u64::MAX),
                    _ => {}
                }
            }
            messages.splice(0..0, stray);
            true
        },
    );
    add(
        "T5",
        "second-reply",
        "the reply, and an error with the same cookie",
        Expect::Either,
        |reply, messages| {
            messages.extend(reply.error(Error::EIO));
            true
        },
    );
    add(
        "X3",
        "silence",
        "nothing, then the end",
        failure,
        |_, messages| {
            *messages = vec![Message::Silence];
            true
        },
    );
    add(
        "X3",
        "close",
        "the end instead of a reply",
        failure,
        |_, messages| {
            *messages = vec![Message::Close];
            true
        },
    );
    for magic in REPLY_MAGICS {
        other_framing(cases, framing, magic);
    }
}

/// A reply with the magic number of another framing.
fn other_framing(cases: &mut Cases, framing: Framing, magic: u32) {
    let own = Framing::Simple == framing;
    let index = FRAMINGS.iter().position(|one| *one == framing);
    let is_own = index.and_then(|index| REPLY_MAGICS.get(index)) == Some(&magic);
    // With structured replies a simple one has its own cases.
    let simple = REPLY_MAGICS.first() == Some(&magic);
    if is_own || simple && framing == Framing::Structured {
        return;
    }
    let duty = if own {
        "T20"
    } else if simple {
        "T17"
    } else {
        "T20"
    };
    let other = FRAMINGS
        .iter()
        .zip(REPLY_MAGICS)
        .find(|(_, one)| *one == magic);
    let Some((other, _)) = other else {
        return;
    };
    let other = *other;
    let name = format!("{}-{}-reply", framing_name(framing), framing_name(other));
    let sends = format!(
        "all data in a reply of {} framing, to READ",
        framing_name(other)
    );
    Turn::correct(duty, name, sends, Dialect::maximal(framing))
        .expect(Expect::Either)
        .answer(Command::READ, move |reply, messages| {
            let data = data_of(reply, messages);
            let reply = Reply {
                framing: other,
                request: reply.request,
            };
            *messages = vec![match other {
                Framing::Simple => Message::Simple {
                    error: Error::NONE,
                    cookie: reply.cookie(),
                    data,
                },
                _ => {
                    let mut chunk = reply.data(reply.request.offset, &data);
                    chunk.flags = ReplyFlags::DONE;
                    Message::Chunk(chunk)
                }
            }];
            true
        })
        .add(cases);
}

/// The data of a reply to a read, without its holes.
fn data_of(reply: &Reply<'_>, messages: &[Message]) -> Vec<u8> {
    let length = usize::try_from(reply.request.length).unwrap_or(0);
    let mut data = Vec::with_capacity(length);
    for message in messages {
        match message {
            Message::Simple { data: part, .. } => data.extend(part),
            Message::Chunk(chunk) if chunk.chunk == ChunkType::OFFSET_DATA => {
                data.extend(chunk.payload.get(8..).unwrap_or_default());
            }
            _ => {}
        }
    }
    data.resize(length, 0);
    data
}

/// What only replies in chunks can have wrong, whatever the command.
fn chunks(cases: &mut Cases, framing: &str, dialect: &Dialect) {
    let commands = [
        (Command::READ, "read"),
        (Command::WRITE, "write"),
        (Command::BLOCK_STATUS, "block-status"),
    ];
    let mut add = |duty, name: &str, sends: &str, expect, twist: fn(&Reply<'_>) -> Chunk| {
        for (command, of) in commands {
            // The chunk that is wrong, then the reply as it should be.
            let name = format!("{framing}-{of}-{name}");
            let sends = format!("{sends}, then the reply, to {command}");
            Turn::correct(duty, name, sends, dialect.clone())
                .expect(expect)
                .answer(command, move |reply, messages| {
                    in_chunks(reply, messages);
                    messages.insert(0, Message::Chunk(twist(reply)));
                    true
                })
                .add(cases);
        }
    };
    let disconnect = Expect::Disconnect;
    add(
        "R19",
        "unknown-type",
        "a chunk of the type 0x1234",
        disconnect,
        |reply| reply.chunk(ChunkType(0x1234), vec![0; 8]),
    );
    add(
        "R22",
        "none-payload",
        "NONE with 4 bytes",
        disconnect,
        |reply| reply.chunk(ChunkType::NONE, vec![0; 4]),
    );
    add(
        "R16",
        "none-not-done",
        "NONE without DONE",
        Expect::Either,
        |reply| reply.chunk(ChunkType::NONE, Vec::new()),
    );
    add(
        "R76",
        "unknown-error",
        "an error chunk of the type 0x9234",
        Expect::Failure,
        |reply| {
            let mut chunk = reply.error_chunk(Error::EIO);
            chunk.chunk = ChunkType(0x9234);
            chunk
        },
    );
    add(
        "R68",
        "error-0",
        "an error chunk with the error zero",
        Expect::Failure,
        |reply| reply.error_chunk(Error::NONE),
    );
    add(
        "R64",
        "error-5-bytes",
        "an error chunk of 5 bytes",
        Expect::Failure,
        |reply| reply.chunk(ChunkType::ERROR, vec![0, 0, 0, 5, 0]),
    );
    add(
        "R77",
        "message-overrun",
        "an error whose message is longer than its chunk",
        Expect::Failure,
        |reply| reply.chunk(ChunkType::ERROR, vec![0, 0, 0, 5, 0, 9, b'x']),
    );
    add(
        "R70",
        "error-offset-short",
        "NBD_REPLY_TYPE_ERROR_OFFSET without its offset",
        Expect::Failure,
        |reply| reply.chunk(ChunkType::ERROR_OFFSET, vec![0, 0, 0, 5, 0, 0]),
    );
    add(
        "R72",
        "error-offset-outside",
        "an error at offset 2^64 - 1",
        Expect::Failure,
        |reply| super::refusals::error_at(reply, u64::MAX),
    );
    // Chunks of other commands.
    let sends = "data of a read";
    for (command, of) in commands {
        let (duty, name) = ("R19", format!("{framing}-{of}-other-command"));
        let chunk = match command {
            Command::READ => "block status",
            _ => sends,
        };
        Turn::correct(
            duty,
            name,
            format!("{chunk}, then the reply, to {command}"),
            dialect.clone(),
        )
        .expect(disconnect)
        .answer(command, move |reply, messages| {
            let chunk = match command {
                Command::READ => reply.extents(&[nbd_codec::wire::extent::Extent64 {
                    length: 512,
                    flags: 0,
                }]),
                _ => reply.data(reply.request.offset, &[7; 512]),
            };
            in_chunks(reply, messages);
            messages.insert(0, Message::Chunk(chunk));
            true
        })
        .add(cases);
    }
    if dialect.framing == Framing::Structured {
        simple_replies(cases, dialect);
    }
}

/// A reply that begins with a chunk does not end with a simple one.
fn in_chunks(reply: &Reply<'_>, messages: &mut [Message]) {
    for message in messages {
        if matches!(message, Message::Simple { .. }) {
            *message = Message::Chunk(reply.none());
        }
    }
}

/// Simple replies where chunks were agreed on.
fn simple_replies(cases: &mut Cases, dialect: &Dialect) {
    let mut add = |duty,
                   name: &str,
                   sends: &str,
                   expect,
                   command,
                   twist: fn(&Reply<'_>, &mut Vec<Message>)| {
        Turn::correct(duty, format!("structured-{name}"), sends, dialect.clone())
            .expect(expect)
            .answer(command, move |reply, messages| {
                twist(reply, messages);
                true
            })
            .add(cases);
    };
    let read = Command::READ;
    add(
        "T23",
        "simple-data",
        "a simple reply with all data, to READ",
        Expect::Either,
        read,
        |reply, messages| {
            let data = data_of(reply, messages);
            *messages = vec![Message::Simple {
                error: Error::NONE,
                cookie: reply.cookie(),
                data,
            }];
        },
    );
    add(
        "T23",
        "simple-error",
        "a simple reply with EIO, to READ",
        Expect::Failure,
        read,
        |reply, messages| {
            *messages = vec![reply.simple(Error::EIO)];
        },
    );
    let sends = "a simple reply of success without data, to READ";
    add(
        "T23",
        "simple-no-data",
        sends,
        Expect::Failure,
        read,
        |reply, messages| {
            *messages = vec![reply.simple(Error::NONE), Message::Silence];
        },
    );
    let sends = "a simple reply of success to BLOCK_STATUS";
    add(
        "M7",
        "simple-success",
        sends,
        Expect::Failure,
        Command::BLOCK_STATUS,
        |reply, messages| {
            *messages = vec![reply.simple(Error::NONE)];
        },
    );
    let sends = "the first chunk, then a simple reply of success, to READ";
    add(
        "T23",
        "simple-after-chunk",
        sends,
        Expect::Failure,
        read,
        |reply, messages| {
            messages.truncate(1);
            if let Some(Message::Chunk(chunk)) = messages.first_mut() {
                chunk.flags = ReplyFlags::NONE;
                // Half of the data is missing.
                let half = chunk.payload.len() / 2;
                chunk.payload.truncate(half.max(9));
            }
            messages.push(reply.simple(Error::NONE));
            messages.push(Message::Silence);
        },
    );
}

/// What only extended headers can have wrong.
fn extended(cases: &mut Cases) {
    for (command, of) in [
        (Command::READ, "read"),
        (Command::WRITE, "write"),
        (Command::BLOCK_STATUS, "block-status"),
    ] {
        let sends = format!("another offset in the header, to {command}");
        let dialect = Dialect::maximal(Framing::Extended);
        Turn::correct(
            "T30",
            format!("extended-{of}-offset"),
            sends,
            dialect.clone(),
        )
        .expect(Expect::Either)
        .answer(command, |_, messages| {
            for message in messages {
                if let Message::Chunk(chunk) = message {
                    chunk.offset ^= 512;
                }
            }
            true
        })
        .add(cases);
        let sends = format!("a header with the length 2^64 - 1, then the end, to {command}");
        Turn::correct("X3", format!("extended-{of}-endless"), sends, dialect)
            .expect(Expect::Failure)
            .answer(command, |_, messages| {
                if let Some(Message::Chunk(chunk)) = messages.first_mut() {
                    chunk.length = Some(u64::MAX);
                }
                messages.truncate(1);
                messages.push(Message::Silence);
                true
            })
            .add(cases);
    }
}
