//! `STARTTLS` in the three modes of a server.

use nbd_codec::Framing;
use nbd_codec::wire::number::{Command, ErrorValue, OptionReplyType as Rep, OptionType as Opt};

use crate::case::{Cases, Need};
use crate::cases::options::UNKNOWN;
use crate::handshake::Answer;
use crate::outcome::{Checked, Finding, found};
use crate::request::Request;
use crate::session::Answer as Reaction;
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    without_tls(cases);
    plain_text(cases);
    within_tls(cases);
    forgotten(cases);
    injected(cases);
}

fn without_tls(cases: &mut Cases) {
    cases
        .add(
            "L6",
            "starttls",
            "STARTTLS",
            "ERR_POLICY, ERR_UNSUP or ERR_PLATFORM; then GO succeeds",
        )
        .needs(&[Need::NoTls])
        .run(|t| {
            let mut handshake = t.plain_handshake(t.client_flags())?;
            let replies = handshake.ask(Opt::STARTTLS, &[])?;
            match replies.end {
                Rep::ERR_POLICY | Rep::ERR_UNSUP | Rep::ERR_PLATFORM | Rep::ERR_SHUTDOWN => {}
                Rep::ERR_INVALID => {
                    t.note(Finding::new("L6", "ERR_INVALID to a valid STARTTLS").for_information())
                }
                end => return found("L6", format!("STARTTLS: {end}")),
            }
            t.goes_on(handshake)
        });
    for option in [Opt::LIST, Opt::INFO, Opt::STRUCTURED_REPLY, UNKNOWN] {
        cases
            .add("L7", short(option), format!("{option}"), "not ERR_TLS_REQD")
            .needs(&[Need::NoTls, Need::Answers(option)])
            .run(move |t| {
                let mut handshake = t.plain_handshake(t.client_flags())?;
                let data = match option {
                    Opt::INFO => t.info_data(crate::probe::NO_EXPORT, &[]),
                    _ => Vec::new(),
                };
                let replies = handshake.ask(option, &data)?;
                if replies.end == Rep::ERR_TLS_REQD {
                    return found("L7", format!("{option}: ERR_TLS_REQD"));
                }
                Ok(())
            });
    }
}

/// The name of an option in the id of a case.
fn short(option: Opt) -> String {
    match option.name() {
        Some(name) => name.trim_start_matches("NBD_OPT_").to_lowercase(),
        None => "unknown".to_owned(),
    }
}

/// Options before TLS.
fn plain_text(cases: &mut Cases) {
    let options = [
        Opt::LIST,
        Opt::INFO,
        Opt::GO,
        Opt::STRUCTURED_REPLY,
        Opt::EXTENDED_HEADERS,
        Opt::LIST_META_CONTEXT,
        Opt::SET_META_CONTEXT,
        UNKNOWN,
    ];
    for option in options {
        let id = if option == Opt::GO { "L14" } else { "L12" };
        cases
            .add(
                id,
                short(option),
                format!("{option} before TLS"),
                "ERR_TLS_REQD; then STARTTLS succeeds",
            )
            .needs(&[Need::ForcedTls])
            .run(move |t| {
                let mut handshake = t.plain_handshake(t.client_flags())?;
                let data = match option {
                    Opt::INFO | Opt::GO => t.info_data(t.name(), &[]),
                    Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT => {
                        t.context_data(&t.access.export, &["base:allocation"])
                    }
                    _ => Vec::new(),
                };
                let replies = handshake.ask(option, &data)?;
                if replies.end != Rep::ERR_TLS_REQD {
                    return found(id, format!("{option}: {}", replies.describe()));
                }
                t.start_tls(&mut handshake)?;
                t.goes_on(handshake)
            });
    }
    cases
        .add(
            "L13",
            "export-name",
            "EXPORT_NAME before TLS",
            "the end of the session",
        )
        .needs(&[Need::ForcedTls])
        .run(|t| {
            let mut handshake = t.plain_handshake(t.client_flags())?;
            match handshake.export_name(t.name())? {
                Err(end) if end.is_by_server() => Ok(()),
                Err(end) => found("L13", format!("EXPORT_NAME: {end}")),
                Ok(export) => found("L13", format!("an export of {} bytes", export.size)),
            }
        });
    cases
        .add(
            "L21",
            "list",
            "LIST and an unknown option before TLS",
            "not ERR_TLS_REQD: the mode is not FORCEDTLS",
        )
        .needs(&[Need::Tls, Need::NotForcedTls])
        .run(|t| {
            let mut handshake = t.plain_handshake(t.client_flags())?;
            for option in [Opt::LIST, UNKNOWN] {
                let replies = handshake.ask(option, &[])?;
                if replies.end == Rep::ERR_TLS_REQD {
                    return found("L21", format!("{option}: ERR_TLS_REQD"));
                }
            }
            Ok(())
        });
}

fn within_tls(cases: &mut Cases) {
    cases
        .add(
            "L8",
            "starttls",
            "STARTTLS and TLS, then GO and READ",
            "success",
        )
        .needs(&[Need::Tls])
        .run(|t| t.goes_on(tls(t)?));
    cases
        .add(
            "L9",
            "starttls-twice",
            "STARTTLS within TLS",
            "ERR_INVALID; then GO succeeds",
        )
        .needs(&[Need::Tls])
        .run(|t| {
            let mut handshake = tls(t)?;
            let replies = handshake.ask(Opt::STARTTLS, &[])?;
            if replies.end != Rep::ERR_INVALID {
                return found("L9", format!("STARTTLS within TLS: {}", replies.end));
            }
            t.goes_on(handshake)
        });
    cases
        .add(
            "L15",
            "within-tls",
            "LIST, INFO and an unknown option within TLS",
            "not ERR_TLS_REQD",
        )
        .needs(&[Need::Tls])
        .run(|t| {
            let mut handshake = tls(t)?;
            let info = t.info_data(crate::probe::NO_EXPORT, &[]);
            for (option, data) in [(Opt::LIST, vec![]), (Opt::INFO, info), (UNKNOWN, vec![])] {
                let replies = handshake.ask(option, &data)?;
                if replies.end == Rep::ERR_TLS_REQD {
                    return found("L15", format!("{option}: ERR_TLS_REQD"));
                }
            }
            t.goes_on(handshake)
        });
}

fn tls(t: &Trial<'_>) -> Checked<crate::handshake::Handshake> {
    let mut handshake = t.plain_handshake(t.client_flags())?;
    t.start_tls(&mut handshake)?;
    Ok(handshake)
}

/// What was negotiated before TLS does not hold after it.
fn forgotten(cases: &mut Cases) {
    let needs = [
        Need::Tls,
        Need::Framing(Framing::Structured),
        Need::Size(1 << 16),
    ];
    cases
        .add(
            "O39",
            "structured-replies",
            "STRUCTURED_REPLY, STARTTLS, then READ",
            "a simple reply",
        )
        .needs(&needs)
        .run(|t| {
            let mut handshake = t.plain_handshake(t.client_flags())?;
            // In FORCEDTLS mode it is refused.
            handshake.ask(Opt::STRUCTURED_REPLY, &[])?;
            t.start_tls(&mut handshake)?;
            let mut session = t.enter(handshake, Framing::Simple)?;
            match session.still_good() {
                Err(crate::outcome::Stop::Found(one)) if one.duty.id == "T19" => {
                    found("O39", "a structured reply after STARTTLS")
                }
                result => result,
            }?;
            session.disconnect()
        });
    cases
        .add(
            "O39",
            "contexts",
            "SET_META_CONTEXT, STARTTLS, STRUCTURED_REPLY, then BLOCK_STATUS",
            "EINVAL",
        )
        .needs(&needs)
        .needs(&[Need::Contexts])
        .run(|t| {
            let mut handshake = t.plain_handshake(t.client_flags())?;
            handshake.ask(Opt::STRUCTURED_REPLY, &[])?;
            let data = t.context_data(&t.access.export, &["base:allocation"]);
            handshake.ask(Opt::SET_META_CONTEXT, &data)?;
            t.start_tls(&mut handshake)?;
            t.agree(&mut handshake, Framing::Structured)?;
            let mut session = t.enter(handshake, Framing::Structured)?;
            let unit = t.profile.unit();
            match session.answer(Request::new(Command::BLOCK_STATUS, 0, unit)) {
                Ok(Reaction::Reply(reply)) => {
                    t.expect_error(&reply, "M5", &[ErrorValue::EINVAL]);
                    Ok(())
                }
                Ok(Reaction::Closed(_)) => Ok(()),
                Err(crate::outcome::Stop::Found(one)) if matches!(one.duty.id, "R39" | "M2") => {
                    found("O39", "block status of a context selected before STARTTLS")
                }
                Err(stop) => Err(stop),
            }
        });
}

/// Plain text after `STARTTLS`, as an attacker would inject it.
fn injected(cases: &mut Cases) {
    cases
        .add(
            "L10",
            "plain-text",
            "STARTTLS and LIST in one segment, in plain text",
            "no reply to LIST, neither in plain text nor within TLS",
        )
        .needs(&[Need::Tls])
        .run(|t| {
            let mut handshake = t.plain_handshake(t.client_flags())?;
            let header = |option| nbd_codec::wire::option::OptionHeader { option, length: 0 };
            let mut bytes = header(Opt::STARTTLS).encode().to_vec();
            bytes.extend(header(Opt::LIST).encode());
            handshake
                .connection
                .send(&bytes, "NBD_OPT_STARTTLS and NBD_OPT_LIST");
            match handshake.answer(Opt::STARTTLS)? {
                Answer::Closed(_) => return Ok(()),
                Answer::Replies(replies) if replies.is_ack() => {}
                Answer::Replies(_) => return Ok(()),
            }
            // No TLS follows: the server sends nothing but TLS records.
            handshake.connection.shutdown();
            match handshake.connection.expect_end() {
                Ok(_) => Ok(()),
                Err(bytes) if bytes.starts_with(&[0, 3, 0xe8]) => {
                    found("L10", "LIST was answered in plain text after STARTTLS")
                }
                Err(_) => Ok(()),
            }
        });
}
