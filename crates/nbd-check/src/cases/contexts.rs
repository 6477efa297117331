//! `LIST_META_CONTEXT` and `SET_META_CONTEXT`.

use nbd_codec::Framing;
use nbd_codec::wire::number::{Command, ErrorValue, OptionReplyType as Rep, OptionType as Opt};

use crate::case::{Cases, Need};
use crate::duty::Level;
use crate::handshake::{Answer, Replies};
use crate::outcome::{Checked, Finding, Stop, found};
use crate::profile::framing_name;
use crate::request::Request;
use crate::trial::Trial;

const LIST: Opt = Opt::LIST_META_CONTEXT;
const SET: Opt = Opt::SET_META_CONTEXT;

pub(super) fn add(cases: &mut Cases) {
    for framing in [Framing::Structured, Framing::Extended] {
        listing(cases, framing);
        selecting(cases, framing);
        replaced(cases, framing);
    }
    before_structured_replies(cases);
    malformed(cases);
}

/// The list of contexts that a query finds is empty; `duty` is to answer it at all.
fn lists_nothing(t: &Trial<'_>, framing: Framing, query: &str, duty: &str) -> Checked {
    let replies = ask(t, framing, LIST, &[query])?;
    succeeds(&replies, duty)?;
    match names(&replies).as_slice() {
        [] => Ok(()),
        found_names => found("O76", format!("{found_names:?}")),
    }
}

/// The option `option` with these queries, after the framing was agreed on.
fn ask(t: &Trial<'_>, framing: Framing, option: Opt, queries: &[&str]) -> Checked<Replies> {
    let mut handshake = t.handshake()?;
    t.agree(&mut handshake, framing)?;
    let replies = handshake.ask(option, &t.context_data(&t.access.export, queries))?;
    check(option, &replies)?;
    handshake.breaks = "B5";
    let contexts = match option {
        Opt::SET_META_CONTEXT if replies.is_ack() => replies.contexts(),
        _ => Vec::new(),
    };
    let mut session = t.enter_with(handshake, framing, contexts)?;
    session.still_good()?;
    session.disconnect()?;
    Ok(replies)
}

/// Only contexts come before the end, and selected ones have ids of their own.
fn check(option: Opt, replies: &Replies) -> Checked {
    if let Some(other) = replies
        .items
        .iter()
        .find(|item| item.kind != Rep::META_CONTEXT)
    {
        return found("B2", format!("{} in reply to {option}", other.kind));
    }
    let contexts = replies.contexts();
    let mut ids: Vec<_> = contexts.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    if option == Opt::SET_META_CONTEXT && ids.len() != contexts.len() {
        return found(
            "O94",
            format!("{} contexts with {} ids", contexts.len(), ids.len()),
        );
    }
    Ok(())
}

/// The option succeeds.
fn succeeds(replies: &Replies, id: &str) -> Checked {
    match replies.end {
        Rep::ACK => Ok(()),
        Rep::ERR_EXT_HEADER_REQD => found("O71", replies.describe()),
        _ => found(id, replies.describe()),
    }
}

fn names(replies: &Replies) -> Vec<String> {
    replies
        .contexts()
        .into_iter()
        .map(|(_, name)| name)
        .collect()
}

fn listing(cases: &mut Cases, framing: Framing) {
    let short = framing_name(framing);
    let needs = [Need::Framing(framing), Need::Contexts];
    let mut add = |id, name: &str, queries: &str, expects: &str, run: Check| {
        cases
            .add(
                id,
                format!("{short}-list-{name}"),
                format!("LIST_META_CONTEXT, {queries}"),
                expects,
            )
            .needs(&needs)
            .run(move |t| run(t, framing));
    };
    add(
        "O79",
        "all",
        "no query",
        "every context, then ACK",
        |t, framing| {
            let replies = ask(t, framing, LIST, &[])?;
            if replies.end == Rep::ERR_TOO_BIG {
                t.note(Finding::new("O80", replies.describe()));
                return Ok(());
            }
            if framing == Framing::Extended && replies.end == Rep::ERR_EXT_HEADER_REQD {
                return found("O71", replies.describe());
            }
            if replies.end != Rep::ERR_EXT_HEADER_REQD {
                succeeds(&replies, "O79")?;
            }
            if let Some((id, name)) = replies.contexts().into_iter().find(|(id, _)| id.0 != 0) {
                t.note(Finding::new("O83", format!("{name} has id {id}")));
            }
            // For each namespace the server may list what describes all of its contexts.
            let listed = names(&replies);
            let namespace = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
            let missing = t.profile.contexts.iter().find(|name| {
                !listed
                    .iter()
                    .any(|other| namespace(other) == namespace(name))
            });
            match missing {
                Some(name) => found("O79", format!("{name} can be selected, and is not listed")),
                None => Ok(()),
            }
        },
    );
    add(
        "O76",
        "none",
        "\"base:nbd-check\"",
        "ACK alone",
        |t, framing| lists_nothing(t, framing, "base:nbd-check", "M16"),
    );
    add(
        "O75",
        "namespace",
        "\"x-nbd-check:a\"",
        "ACK alone",
        |t, framing| lists_nothing(t, framing, "x-nbd-check:a", "O75"),
    );
    add(
        "M15",
        "base",
        "\"base:\"",
        "base:allocation, if it can be selected",
        |t, framing| {
            let replies = ask(t, framing, LIST, &["base:"])?;
            succeeds(&replies, "M15")?;
            let has = |names: &[String]| names.iter().any(|name| name == "base:allocation");
            if has(&t.profile.contexts) && !has(&names(&replies)) {
                return found("M15", format!("{:?}", names(&replies)));
            }
            Ok(())
        },
    );
    add(
        "O73",
        "no-namespace",
        "\"allocation\"",
        "ERR_INVALID, or ACK alone",
        |t, framing| {
            let replies = ask(t, framing, LIST, &["allocation"])?;
            match replies.end {
                Rep::ACK | Rep::ERR_INVALID => Ok(()),
                end => {
                    t.note(Finding::new("O73", format!("{end}")));
                    Ok(())
                }
            }
        },
    );
    add(
        "O75",
        "mixed",
        "a known and an unknown query",
        "the known context",
        |t, framing| {
            let name = t.profile.contexts.first().cloned().unwrap_or_default();
            let replies = ask(t, framing, LIST, &["x-nbd-check:a", &name])?;
            succeeds(&replies, "O75")?;
            if names(&replies).is_empty() {
                return found("O75", format!("{name} is not listed"));
            }
            Ok(())
        },
    );
}

type Check = fn(&Trial<'_>, Framing) -> Checked;

fn selecting(cases: &mut Cases, framing: Framing) {
    let short = framing_name(framing);
    let needs = [Need::Framing(framing), Need::Contexts];
    let mut add = |id, name: &str, queries: &str, expects: &str, run: Check| {
        cases
            .add(
                id,
                format!("{short}-set-{name}"),
                format!("SET_META_CONTEXT, {queries}"),
                expects,
            )
            .needs(&needs)
            .run(move |t| run(t, framing));
    };
    add(
        "O94",
        "all",
        "every context",
        "each with an id, then ACK",
        |t, framing| {
            let all: Vec<_> = t.profile.contexts.iter().map(String::as_str).collect();
            let replies = ask(t, framing, SET, &all)?;
            if replies.end == Rep::ERR_TOO_BIG {
                return Ok(());
            }
            succeeds(&replies, "O94")?;
            let selected = names(&replies);
            match all
                .iter()
                .find(|name| !selected.iter().any(|one| one == *name))
            {
                Some(name) => found("O94", format!("{name} is not selected")),
                None => Ok(()),
            }
        },
    );
    let selects_nothing: [(&str, &str, &str, &[&str]); 5] = [
        ("O93", "none", "no query", &[]),
        ("M14", "base", "\"base:\"", &["base:"]),
        ("M16", "leaf", "\"base:nbd-check\"", &["base:nbd-check"]),
        ("O75", "namespace", "\"x-nbd-check:a\"", &["x-nbd-check:a"]),
        (
            "M13",
            "wildcard",
            "\"qemu:\" and \"x-nbd-check:\"",
            &["qemu:", "x-nbd-check:"],
        ),
    ];
    for (id, name, queries, list) in selects_nothing {
        cases
            .add(
                id,
                format!("{short}-set-{name}"),
                format!("SET_META_CONTEXT, {queries}; then BLOCK_STATUS"),
                "ACK alone; BLOCK_STATUS: EINVAL",
            )
            .needs(&needs)
            .run(move |t| {
                let mut handshake = t.handshake()?;
                t.agree(&mut handshake, framing)?;
                let data = t.context_data(&t.access.export, list);
                let replies = handshake.ask(SET, &data)?;
                check(SET, &replies)?;
                match (replies.end, names(&replies).as_slice()) {
                    (Rep::ACK, []) => {}
                    // Semantics of the namespace: the server may refuse the query.
                    (Rep::ERR_INVALID, []) if id == "M13" => {}
                    (Rep::ERR_EXT_HEADER_REQD, _) => return found("O88", replies.describe()),
                    (_, []) => return found(id, replies.describe()),
                    (_, selected) if id == "M13" => {
                        t.note(Finding::new(id, format!("{selected:?}")));
                        return Ok(());
                    }
                    (_, selected) => return found(id, format!("{selected:?}")),
                }
                handshake.breaks = "B5";
                no_status(t, handshake, framing, "M5")
            });
    }
    cases
        .add(
            "O94",
            format!("{short}-set-duplicate"),
            "SET_META_CONTEXT, the same query twice",
            "one context",
        )
        .needs(&needs)
        .run(move |t| {
            let name = t.profile.contexts.first().cloned().unwrap_or_default();
            let mut handshake = t.handshake()?;
            t.agree(&mut handshake, framing)?;
            let contexts = t.select(&mut handshake, &[&name, &name])?;
            if contexts.len() != 1 {
                return found(
                    "O94",
                    format!("{} contexts for {name} twice", contexts.len()),
                );
            }
            let mut session = t.enter_with(handshake, framing, contexts)?;
            if session.export.size > 0 {
                let length = t.profile.unit().min(session.export.size);
                let reply = session.ask(Request::new(Command::BLOCK_STATUS, 0, length))?;
                t.expect_success(&reply, "R144")?;
            }
            session.disconnect()
        });
    cases
        .add(
            "O94",
            format!("{short}-set-many"),
            "SET_META_CONTEXT, 1000 queries",
            "ACK or ERR_TOO_BIG; then GO succeeds",
        )
        .needs(&needs)
        .run(move |t| {
            let queries: Vec<_> = (0..1000).map(|n| format!("x-nbd-check:{n}")).collect();
            let queries: Vec<_> = queries.iter().map(String::as_str).collect();
            let mut handshake = t.handshake()?;
            t.agree(&mut handshake, framing)?;
            handshake.breaks = "B5";
            let replies = handshake.ask(SET, &t.context_data(&t.access.export, &queries))?;
            match replies.end {
                Rep::ACK | Rep::ERR_TOO_BIG | Rep::ERR_INVALID => {}
                _ => return found("O75", replies.describe()),
            }
            let mut session = t.enter(handshake, framing)?;
            session.still_good()?;
            session.disconnect()
        });
}

/// Enters transmission and asks for block status, which no context permits.
fn no_status(
    t: &Trial<'_>,
    handshake: crate::handshake::Handshake,
    framing: Framing,
    id: &'static str,
) -> Checked {
    let mut session = t.enter(handshake, framing)?;
    if session.export.size == 0 {
        return session.disconnect();
    }
    session.still_good()?;
    let length = t.profile.unit().min(session.export.size);
    let request = Request::new(Command::BLOCK_STATUS, 0, length);
    // A chunk of status would break R39, but the client broke a MUST NOT before it.
    match session.answer(request) {
        Ok(crate::session::Answer::Reply(reply)) => {
            t.expect_error(&reply, id, &[ErrorValue::EINVAL]);
            session.still_good()?;
            session.disconnect()
        }
        Ok(crate::session::Answer::Closed(end)) => {
            let actual = format!("the connection was {end} after BLOCK_STATUS without a context");
            t.note(Finding::new(id, actual).advised());
            Ok(())
        }
        Err(Stop::Found(finding)) if matches!(finding.duty.id, "R39" | "M2") => {
            t.note(Finding::new(
                id,
                format!("status without a context: {}", finding.actual),
            ));
            Ok(())
        }
        Err(stop) => Err(stop),
    }
}

/// Selections that another one replaced.
fn replaced(cases: &mut Cases, framing: Framing) {
    let short = framing_name(framing);
    let needs = [Need::Framing(framing), Need::Contexts];
    cases
        .add(
            "M5",
            format!("{short}-no-context"),
            "BLOCK_STATUS without any selection",
            "EINVAL",
        )
        .needs(&[Need::Framing(framing)])
        .run(move |t| {
            let mut handshake = t.handshake()?;
            t.agree(&mut handshake, framing)?;
            no_status(t, handshake, framing, "M5")
        });
    for name in ["none", "refused", "unknown-export"] {
        cases
            .add(
                "O90",
                format!("{short}-{name}"),
                match name {
                    "none" => "a selection, another one without a query, then BLOCK_STATUS",
                    "refused" => "a selection, a malformed one, then BLOCK_STATUS",
                    _ => "a selection for another export, then BLOCK_STATUS",
                },
                "EINVAL: the later selection holds",
            )
            .needs(&needs)
            .run(move |t| {
                let mut handshake = t.handshake()?;
                t.agree(&mut handshake, framing)?;
                let all: Vec<_> = t.profile.contexts.iter().map(String::as_str).collect();
                t.select(&mut handshake, &all)?;
                let other = String::from_utf8_lossy(crate::probe::NO_EXPORT).into_owned();
                let data = match name {
                    "none" => t.context_data(&t.access.export, &[]),
                    // The number of queries is too large.
                    "refused" => {
                        let mut data = t.context_data(&t.access.export, &["base:allocation"]);
                        let at = 4 + t.name().len() + 3;
                        if let Some(count) = data.get_mut(at) {
                            *count = 2;
                        }
                        data
                    }
                    _ => t.context_data(&other, &all),
                };
                handshake.send(Opt::SET_META_CONTEXT, &data);
                match handshake.answer(Opt::SET_META_CONTEXT)? {
                    Answer::Closed(_) => return Ok(()),
                    Answer::Replies(replies) if name == "refused" && replies.is_ack() => {
                        let actual = "a malformed SET_META_CONTEXT: ACK";
                        t.note(Finding::new("O74", actual).for_information());
                        return Ok(());
                    }
                    Answer::Replies(_) => {}
                }
                no_status(t, handshake, framing, "O90")
            });
    }
}

fn before_structured_replies(cases: &mut Cases) {
    cases
        .add(
            "O86",
            "simple",
            "SET_META_CONTEXT before structured replies",
            "ERR_INVALID or ERR_EXT_HEADER_REQD; then GO succeeds",
        )
        .run(|t| {
            let mut handshake = t.handshake()?;
            let data = t.context_data(&t.access.export, &["base:allocation"]);
            handshake.send(Opt::SET_META_CONTEXT, &data);
            match handshake.answer(Opt::SET_META_CONTEXT)? {
                Answer::Closed(end) => {
                    let actual = format!("the connection was {end}");
                    t.note(Finding::new("O86", actual).advised());
                    Ok(())
                }
                Answer::Replies(replies) => {
                    match replies.end {
                        Rep::ERR_INVALID | Rep::ERR_EXT_HEADER_REQD | Rep::ERR_UNSUP => {}
                        _ => t.note(Finding::new("O86", replies.describe())),
                    }
                    t.goes_on_after_refusal(handshake)
                }
            }
        });
}

/// Data whose inner lengths contradict its length.
fn malformed(cases: &mut Cases) {
    // The name "", then the count, then queries.
    let inputs: [(&str, Vec<u8>); 10] = [
        ("empty", vec![]),
        ("3-bytes", vec![0; 3]),
        ("no-count", vec![0; 4]),
        ("name-too-long", vec![0, 0, 0, 5, 0, 0, 0, 0]),
        (
            "name-2-32-minus-1",
            vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        ),
        ("count-1-no-query", vec![0, 0, 0, 0, 0, 0, 0, 1]),
        (
            "count-2-32-minus-1",
            vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ),
        (
            "query-too-long",
            vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, b'b', b':'],
        ),
        (
            "query-2-32-minus-1",
            vec![0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'b', b':'],
        ),
        ("trailing", vec![0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    for (option, short) in [
        (Opt::LIST_META_CONTEXT, "list"),
        (Opt::SET_META_CONTEXT, "set"),
    ] {
        for (name, data) in &inputs {
            let (name, data) = (*name, data.clone());
            cases
                .add(
                    "O74",
                    format!("{short}-{name}"),
                    format!("{option} with malformed data"),
                    "ERR_INVALID; then GO succeeds",
                )
                .needs(&[Need::Framing(Framing::Structured), Need::Contexts])
                .run(move |t| {
                    let mut handshake = t.handshake()?;
                    t.agree(&mut handshake, Framing::Structured)?;
                    handshake.send(option, &data);
                    handshake.breaks = "B5";
                    match handshake.answer(option)? {
                        Answer::Replies(replies) => {
                            let finding = Finding::new("O74", replies.describe());
                            if replies.end.is_error() {
                                handshake.closing = Level::Should;
                            }
                            match replies.end {
                                Rep::ERR_INVALID => {}
                                // What follows the last query is not a query.
                                Rep::ACK if name == "trailing" => {
                                    t.note(finding.for_information());
                                }
                                Rep::ERR_TOO_BIG => t.note(finding.for_information()),
                                // The text says it of LIST_META_CONTEXT only.
                                _ if option == Opt::SET_META_CONTEXT => {
                                    t.note(finding.for_information());
                                }
                                _ => return Err(finding.into()),
                            }
                            t.goes_on_in(handshake, Framing::Structured)
                        }
                        Answer::Closed(end) => {
                            let actual = format!("the connection was {end}");
                            t.note(Finding::new("O74", actual).advised());
                            Ok(())
                        }
                    }
                });
        }
    }
}
