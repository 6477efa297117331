//! Options: unknown ones, data where none belongs, and every order that can matter.

use nbd_codec::Framing;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{InfoType, OptionReplyType as Rep, OptionType as Opt};

use crate::case::{Cases, Need, for_each_framing};
use crate::handshake::{Answer, trap};
use crate::outcome::{Finding, Stop, found};
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    unknown(cases);
    data_where_none_belongs(cases);
    list(cases);
    framings(cases);
    orders(cases);
}

/// Options that are sent in every order.
pub(crate) const COMBINED: [Opt; 6] = [
    Opt::LIST,
    Opt::INFO,
    Opt::STRUCTURED_REPLY,
    Opt::LIST_META_CONTEXT,
    Opt::SET_META_CONTEXT,
    UNKNOWN,
];

/// Good data of an option.
pub(crate) fn data_of(t: &Trial<'_>, option: Opt) -> Vec<u8> {
    match option {
        Opt::INFO | Opt::GO => t.info_data(t.name(), &[]),
        Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT => {
            t.context_data(&t.access.export, &["base:allocation"])
        }
        _ => Vec::new(),
    }
}

/// An option of the tester; no server has it.
pub(crate) const UNKNOWN: Opt = Opt(0x6e62_6463);
fn unknown(cases: &mut Cases) {
    for length in [0usize, 1, 16, 4096, 4097, 65_536] {
        cases
            .add(
                "B4",
                format!("unknown-{length}"),
                format!("an unknown option with {length} bytes"),
                "ERR_UNSUP; then GO succeeds",
            )
            .run(move |t| {
                let mut handshake = t.handshake()?;
                handshake.breaks = "B4";
                let replies = handshake.ask(UNKNOWN, &trap(length))?;
                // A limit below 64 KiB is not in the text, but ERR_TOO_BIG is.
                let too_big = length > 4096 && replies.end == Rep::ERR_TOO_BIG;
                if replies.end != Rep::ERR_UNSUP && !too_big {
                    return found("B4", format!("an unknown option: {}", replies.end));
                }
                t.goes_on(handshake)
            });
    }
    for option in [0, 4, 12, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
        cases
            .add(
                "B4",
                format!("option-{option:#x}"),
                format!("option {option:#x}, which is not defined"),
                "ERR_UNSUP; then GO succeeds",
            )
            .run(move |t| {
                let mut handshake = t.handshake()?;
                handshake.breaks = "B4";
                let replies = handshake.ask(Opt(option), &[])?;
                if replies.end != Rep::ERR_UNSUP {
                    return found("B4", format!("option {option:#x}: {}", replies.end));
                }
                t.goes_on(handshake)
            });
    }
    for length in [33_554_432u32, u32::MAX] {
        cases
            .add(
                "B5",
                format!("length-{length}"),
                format!("the header of an unknown option of {length} bytes, then 64 KiB"),
                "an error, the end of the session, or waiting for the data",
            )
            .run(move |t| {
                let mut handshake = t.handshake()?;
                handshake.send_header(UNKNOWN, length, &trap(65_536));
                handshake.connection.shutdown();
                match handshake.answer(UNKNOWN)? {
                    // A client that announces this may be cut off.
                    Answer::Closed(_) => {}
                    Answer::Replies(replies) if replies.end.is_error() => {}
                    Answer::Replies(replies) => return found("B4", replies.describe()),
                }
                drop(handshake);
                t.goes_on(t.handshake()?)
            });
    }
    cases
        .add(
            "B5",
            "sixteen",
            "16 unknown options, one after the other",
            "ERR_UNSUP each time",
        )
        .run(|t| {
            let mut handshake = t.handshake()?;
            handshake.breaks = "B5";
            for _ in 0..16 {
                let replies = handshake.ask(UNKNOWN, &trap(7))?;
                if replies.end != Rep::ERR_UNSUP {
                    return found("B4", format!("an unknown option: {}", replies.end));
                }
            }
            t.goes_on(handshake)
        });
}

/// Options without data, with data.
fn data_where_none_belongs(cases: &mut Cases) {
    for (option, id) in [
        (Opt::LIST, "O36"),
        (Opt::STRUCTURED_REPLY, "O63"),
        (Opt::EXTENDED_HEADERS, "O98"),
        (Opt::STARTTLS, "O38"),
    ] {
        for length in [1usize, 16, 4097, 65_536] {
            cases
                .add(
                    id,
                    format!("data-{length}"),
                    format!("{option} with {length} bytes"),
                    "ERR_INVALID; then GO succeeds",
                )
                .run(move |t| {
                    let mut handshake = t.handshake()?;
                    handshake.send(option, &trap(length));
                    handshake.breaks = "B5";
                    match handshake.answer(option)? {
                        Answer::Closed(end) => {
                            // The client broke a MUST NOT.
                            let actual =
                                format!("the connection was {end} after {option} with data");
                            t.note(Finding::new(id, actual).advised());
                            Ok(())
                        }
                        Answer::Replies(replies) => {
                            match replies.end {
                                Rep::ERR_INVALID | Rep::ERR_TOO_BIG => {}
                                Rep::ERR_UNSUP | Rep::ERR_POLICY | Rep::ERR_PLATFORM => {}
                                Rep::ACK if option == Opt::STARTTLS => return Ok(()),
                                end => t.note(Finding::new(id, format!("{option}: {end}"))),
                            }
                            match replies.end {
                                Rep::ACK if option == Opt::EXTENDED_HEADERS => Ok(()),
                                Rep::ACK if option == Opt::STRUCTURED_REPLY => Ok(()),
                                Rep::ACK => t.goes_on(handshake),
                                _ => t.goes_on_after_refusal(handshake),
                            }
                        }
                    }
                });
        }
    }
}

fn list(cases: &mut Cases) {
    cases
        .add(
            "B7",
            "list",
            "LIST",
            "NBD_REP_SERVER for each export, then ACK, or an error",
        )
        .run(|t| {
            let mut handshake = t.handshake()?;
            let replies = handshake.ask(Opt::LIST, &[])?;
            match replies.end {
                Rep::ACK => {}
                Rep::ERR_POLICY => t.note(Finding::new("B7", "LIST: ERR_POLICY").for_information()),
                end => return found("B7", format!("LIST: {end}")),
            }
            if let Some(other) = replies.items.iter().find(|item| item.kind != Rep::SERVER) {
                return found("B2", format!("{} in reply to LIST", other.kind));
            }
            t.goes_on(handshake)
        });
    cases
        .add(
            "B7",
            "names",
            "LIST, then INFO for each name",
            "each name is known",
        )
        .needs(&[Need::List, Need::Go])
        .run(|t| {
            let mut handshake = t.handshake()?;
            let replies = handshake.ask(Opt::LIST, &[])?;
            for item in replies.items.iter().take(20) {
                let name = item.data.get(4..).unwrap_or_default();
                let length = item
                    .data
                    .first_chunk()
                    .map_or(0, |n| u32::from_be_bytes(*n));
                let name = name
                    .get(..usize::try_from(length).unwrap_or(0))
                    .unwrap_or_default();
                let info = handshake.ask(Opt::INFO, &t.info_data(name, &[]))?;
                // A listed export may be unavailable for a while, or require TLS.
                if info.end == Rep::ERR_UNKNOWN {
                    t.note(Finding::new("B7", "a listed export is unknown").for_information());
                }
            }
            t.goes_on(handshake)
        });
}

fn framings(cases: &mut Cases) {
    use TransmissionFlags as Flags;
    for_each_framing(|framing, name| {
        cases
            .add(
                "O14",
                format!("{name}-flags"),
                "the framing, then GO",
                "flags that fit the framing",
            )
            .needs(&[Need::Framing(framing)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let flags = session.export.flags;
                if framing == Framing::Simple && flags.contains(Flags::SEND_DF) {
                    return found("O16", format!("the flags are {flags}"));
                }
                if framing != Framing::Extended && flags.contains(Flags::BLOCK_STATUS_PAYLOAD) {
                    return found("O22", format!("the flags are {flags}"));
                }
                session.still_good()?;
                session.disconnect()
            });
    });
    // The structured replies that extended headers replaced are not sent again.
    for (name, first, second) in [
        (
            "structured-then-extended",
            Opt::STRUCTURED_REPLY,
            Opt::EXTENDED_HEADERS,
        ),
        (
            "extended-then-structured",
            Opt::EXTENDED_HEADERS,
            Opt::STRUCTURED_REPLY,
        ),
        (
            "extended-twice",
            Opt::EXTENDED_HEADERS,
            Opt::EXTENDED_HEADERS,
        ),
        (
            "structured-twice",
            Opt::STRUCTURED_REPLY,
            Opt::STRUCTURED_REPLY,
        ),
    ] {
        let extended = name != "structured-twice";
        let framing = if extended {
            Framing::Extended
        } else {
            Framing::Structured
        };
        cases
            .add(
                "O99",
                name,
                format!("{first}, then {second}"),
                "an answer to each; then replies of the framing",
            )
            .needs(&[Need::Framing(framing)])
            .run(move |t| {
                let mut handshake = t.handshake()?;
                let one = handshake.ask(first, &[])?;
                if !one.is_ack() {
                    return Err(Stop::Unimplemented(format!("{first}: {}", one.end)));
                }
                let two = handshake.ask(second, &[])?;
                if name == "extended-then-structured" && two.is_ack() {
                    t.note(Finding::new("O99", "STRUCTURED_REPLY: ACK").for_information());
                }
                if name == "structured-then-extended" && !two.is_ack() {
                    return found("O99", format!("EXTENDED_HEADERS: {}", two.end));
                }
                let mut session = t.enter(handshake, framing)?;
                session.still_good()?;
                session.disconnect()
            });
    }
    cases
        .add(
            "O101",
            "extended-alone",
            "EXTENDED_HEADERS, then GO",
            "ACK, then transmission",
        )
        .needs(&[Need::Framing(Framing::Extended)])
        .run(|t| {
            let mut handshake = t.handshake()?;
            let replies = handshake.ask(Opt::EXTENDED_HEADERS, &[])?;
            if !replies.is_ack() {
                return found("O101", replies.describe());
            }
            let replies =
                handshake.ask(Opt::GO, &t.info_data(t.name(), &[InfoType::BLOCK_SIZE]))?;
            match replies.end {
                Rep::ACK => Ok(()),
                Rep::ERR_UNSUP => found("O57", "GO: ERR_UNSUP"),
                end => found("O100", format!("GO: {end}")),
            }
        });
    cases
        .add(
            "O29",
            "export-name-with-extended",
            "EXTENDED_HEADERS, then EXPORT_NAME",
            "anything but a crash",
        )
        .needs(&[Need::Framing(Framing::Extended)])
        .run(|t| {
            let mut handshake = t.handshake()?;
            t.agree(&mut handshake, Framing::Extended)?;
            let reply = handshake.export_name(t.name())?;
            if let Ok(export) = reply {
                let actual = format!("transmission with {} bytes", export.size);
                t.note(Finding::new("O29", actual));
            }
            drop(handshake);
            t.goes_on(t.handshake()?)
        });
}

/// One option after another: no order breaks the handshake.
fn orders(cases: &mut Cases) {
    let name = |option: Opt| match option.name() {
        Some(name) => name.trim_start_matches("NBD_OPT_").to_lowercase(),
        None => "unknown".to_owned(),
    };
    for option in COMBINED.into_iter().filter(|option| option.is_known()) {
        cases
            .add(
                "B4",
                name(option),
                format!("{option}"),
                "success or an error; then GO succeeds",
            )
            .run(move |t| {
                let mut handshake = t.handshake()?;
                handshake.breaks = "B4";
                handshake.ask(option, &data_of(t, option))?;
                let structured = option == Opt::STRUCTURED_REPLY;
                let framing = match t.profile.export(Framing::Structured) {
                    Some(_) if structured => Framing::Structured,
                    _ => Framing::Simple,
                };
                t.goes_on_in(handshake, framing)
            });
    }
    for first in COMBINED {
        for second in COMBINED {
            cases
                .add(
                    "H17",
                    format!("{}-then-{}", name(first), name(second)),
                    format!("{first}, then {second}, then GO"),
                    "an answer to each; then transmission",
                )
                .needs(&[Need::Answers(first), Need::Answers(second)])
                .run(move |t| {
                    let mut handshake = t.handshake()?;
                    let mut structured = false;
                    let mut contexts = Vec::new();
                    for option in [first, second] {
                        let replies = handshake.ask(option, &data_of(t, option))?;
                        structured |= option == Opt::STRUCTURED_REPLY && replies.is_ack();
                        if option == Opt::SET_META_CONTEXT && replies.is_ack() {
                            contexts = replies.contexts();
                        }
                    }
                    let framing = if structured {
                        Framing::Structured
                    } else {
                        Framing::Simple
                    };
                    let mut session = t.enter_with(handshake, framing, contexts)?;
                    session.still_good()?;
                    session.disconnect()
                });
        }
    }
}
