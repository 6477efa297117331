//! Errors of a correct server: the client reports no success, and leaves as it should.

use nbd_codec::Framing;
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{
    ChunkType, Command, ErrorValue as Error, OptionReplyType as Rep, OptionType as Opt,
};

use super::{Turn, for_chunks, halves, needs_framing};
use crate::case::Cases;
use crate::client::message::{Chunk, Message, wide};
use crate::client::reply::Reply;
use crate::client::script::{Asked, Dialect, Script};
use crate::client::server::Left;
use crate::client::trial::{Expect, Spoils};
use crate::outcome::found;
use crate::profile::{FRAMINGS, framing_name};

pub(super) fn add(cases: &mut Cases) {
    exports(cases);
    leaving(cases);
    reads(cases);
    others(cases);
}

/// Refuses the export, however it is asked for.
fn refuse(error: Rep) -> impl Fn(Asked<'_>, &mut Vec<Message>) -> bool + Send + Sync + 'static {
    move |asked, messages| match asked {
        Asked::Option(option @ (Opt::GO | Opt::INFO)) => {
            *messages = vec![Message::refusal(option, error)];
            true
        }
        Asked::Option(Opt::EXPORT_NAME) => {
            *messages = vec![Message::Close];
            true
        }
        _ => false,
    }
}

/// The error replies to `GO`: the client leaves by `ABORT`.
fn exports(cases: &mut Cases) {
    for (duty, name, error) in [
        ("H15", "unknown", Rep::ERR_UNKNOWN),
        ("H15", "policy", Rep::ERR_POLICY),
        ("H15", "platform", Rep::ERR_PLATFORM),
        ("H15", "undefined", Rep(1 << 31 | 0x1234)),
        ("H19", "shutdown", Rep::ERR_SHUTDOWN),
        ("L27", "tls-required", Rep::ERR_TLS_REQD),
    ] {
        let sends = format!("{error} to GO and INFO");
        let expects = "another exit status than 0; the client leaves by ABORT";
        let case = cases.add(duty, format!("go-{name}"), sends, expects);
        case.run_client(move |trial| {
            let script = Script::twisted(Dialect::maximal(Framing::Extended), refuse(error));
            let run = trial.expect(duty, &script, Spoils::Session, Expect::Failure)?;
            let closed = |served: &&crate::client::server::Served| {
                served.refused && served.framing.is_none() && served.left == Left::Closed
            };
            if run.connections.iter().any(|one| closed(&one)) {
                let id = if duty == "H19" { "H19" } else { "H15" };
                return found(id, format!("after {error} it closes without ABORT"));
            }
            Ok(())
        });
    }
}

/// After an error the client leaves by `DISC`.
fn leaving(cases: &mut Cases) {
    for framing in FRAMINGS {
        for (duty, name, error) in [
            ("T38", "after-error", Error::EIO),
            ("T36", "shutdown", Error::ESHUTDOWN),
        ] {
            let id = format!("{}-{name}", framing_name(framing));
            let expects = "the client leaves by DISC";
            let case = cases.add(duty, id, format!("{error} to READ and WRITE"), expects);
            case.run_client(move |trial| {
                needs_framing(trial, framing)?;
                let twist = move |asked: Asked<'_>, messages: &mut Vec<Message>| match asked {
                    Asked::Request(request, framing) => {
                        let moves = matches!(request.command, Command::READ | Command::WRITE);
                        if moves {
                            *messages = Reply { framing, request }.error(error);
                        }
                        moves
                    }
                    _ => false,
                };
                let script = Script::twisted(Dialect::maximal(framing), twist);
                let writes = trial.profile.commands.contains(&Command::WRITE);
                let spoils = Spoils::Command(if writes {
                    Command::WRITE
                } else {
                    Command::READ
                });
                let run = trial.expect(duty, &script, spoils, Expect::Failure)?;
                let mut spoiled = run.connections.iter().filter(|one| one.twisted);
                if spoiled.any(|one| one.left == Left::Closed) {
                    return found(duty, format!("after {error} it closes without DISC"));
                }
                Ok(())
            });
        }
    }
}

fn last(chunk: Chunk) -> Chunk {
    Chunk {
        flags: ReplyFlags::DONE,
        ..chunk
    }
}

/// An error chunk with an offset, not the last one.
pub(super) fn error_at(reply: &Reply<'_>, offset: u64) -> Chunk {
    let mut chunk = reply.error_chunk(Error::EIO);
    chunk.chunk = ChunkType::ERROR_OFFSET;
    chunk.payload.extend(offset.to_be_bytes());
    chunk
}

fn reads(cases: &mut Cases) {
    for framing in FRAMINGS {
        for error in [
            Error::EIO,
            Error::EPERM,
            Error::EINVAL,
            Error::EOVERFLOW,
            Error(9999),
        ] {
            let (duty, what) = match error.name() {
                Some(name) => ("R99", name.to_lowercase().replace("nbd_", "")),
                None => ("E12", "undefined".to_owned()),
            };
            let name = format!("{}-{what}", framing_name(framing));
            let dialect = Dialect::maximal(framing);
            let turn = Turn::correct(duty, name, format!("{error} to READ"), dialect);
            turn.expect(Expect::Failure)
                .answer(Command::READ, move |reply, messages| {
                    *messages = reply.error(error);
                    true
                })
                .add(cases);
        }
    }
    for_chunks(|framing, dialect| {
        let mut add = |name: &str, sends: &str, chunks: fn(&Reply<'_>, &[u8]) -> Vec<Chunk>| {
            let name = format!("{framing}-{name}");
            Turn::correct("R99", name, sends, dialect.clone())
                .expect(Expect::Failure)
                .read(chunks)
                .add(cases);
        };
        add("after-data", "all data, then EIO", |reply, data| {
            let data = reply.data(reply.request.offset, data);
            vec![data, last(reply.error_chunk(Error::EIO))]
        });
        add("before-data", "EIO, then all data", |reply, data| {
            let error = reply.error_chunk(Error::EIO);
            vec![error, last(reply.data(reply.request.offset, data))]
        });
        add("before-none", "EIO, all data, then NONE", |reply, data| {
            let error = reply.error_chunk(Error::EIO);
            vec![error, reply.data(reply.request.offset, data), reply.none()]
        });
        add(
            "between",
            "half of the data, EIO, the other half",
            |reply, data| {
                let (first, second) = halves(data);
                let start = reply.request.offset;
                let second = reply.data(start + wide(first.len()), second);
                let error = reply.error_chunk(Error::EIO);
                vec![reply.data(start, first), error, second, reply.none()]
            },
        );
        add(
            "offset",
            "all data, then EIO with an offset",
            |reply, data| {
                let start = reply.request.offset;
                let middle = start + wide(data.len() / 2);
                vec![reply.data(start, data), last(error_at(reply, middle))]
            },
        );
        add(
            "offset-none",
            "half of the data, EIO with an offset, NONE",
            |reply, data| {
                let (first, _) = halves(data);
                let start = reply.request.offset;
                let error = error_at(reply, start + wide(first.len()));
                vec![reply.data(start, first), error, reply.none()]
            },
        );
    });
}

/// Errors to commands other than `READ`.
fn others(cases: &mut Cases) {
    for framing in FRAMINGS {
        for (command, name, error) in [
            (Command::WRITE, "write-eio", Error::EIO),
            (Command::WRITE, "write-enospc", Error::ENOSPC),
            (Command::WRITE, "write-eperm", Error::EPERM),
            (Command::FLUSH, "flush-eio", Error::EIO),
            (Command::BLOCK_STATUS, "block-status-eio", Error::EIO),
            (Command::WRITE_ZEROES, "write-zeroes-einval", Error::EINVAL),
            (
                Command::WRITE_ZEROES,
                "write-zeroes-enotsup",
                Error::ENOTSUP,
            ),
            (Command::TRIM, "trim-eio", Error::EIO),
            (Command::CACHE, "cache-eio", Error::EIO),
        ] {
            let id = format!("{}-{name}", framing_name(framing));
            let sends = format!("{error} to {command}");
            let dialect = Dialect::maximal(framing);
            Turn::correct("R107", id, sends, dialect)
                .expect(Expect::Failure)
                .answer(command, move |reply, messages| {
                    *messages = reply.error(error);
                    true
                })
                .add(cases);
        }
    }
}
