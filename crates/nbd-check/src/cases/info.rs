//! `INFO` and `GO`: good, malformed, and for exports that do not exist.

use nbd_codec::Framing;
use nbd_codec::wire::number::{InfoType, OptionReplyType as Rep, OptionType as Opt};

use crate::case::{Cases, Need};
use crate::handshake::{Answer, Replies};
use crate::outcome::{Checked, Finding, Stop, found};
use crate::probe::NO_EXPORT;
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    info_and_go(cases);
    malformed_info(cases);
}

fn info_and_go(cases: &mut Cases) {
    let requests: [(&str, Vec<u16>); 9] = [
        ("none", vec![]),
        ("export", vec![0]),
        ("name", vec![1]),
        ("description", vec![2]),
        ("block-size", vec![3]),
        ("all", vec![3, 2, 1, 0]),
        ("unknown", vec![0x6e62]),
        ("unknown-and-known", vec![0xffff, 3, 0x8000]),
        ("repeated", vec![3, 3, 3]),
    ];
    for option in [Opt::INFO, Opt::GO] {
        let short = if option == Opt::GO { "go" } else { "info" };
        for (name, infos) in &requests {
            let infos: Vec<_> = infos.iter().map(|one| InfoType(*one)).collect();
            let id = match *name {
                "unknown" | "unknown-and-known" => "O45",
                _ => "O48",
            };
            cases
                .add(
                    id,
                    format!("{short}-{name}"),
                    format!("{option} with requests for {infos:?}"),
                    "NBD_INFO_EXPORT and ACK",
                )
                .needs(&[Need::Go])
                .run(move |t| {
                    let mut handshake = t.handshake()?;
                    let replies = handshake.ask(option, &t.info_data(t.name(), &infos))?;
                    let sizes = infos.contains(&InfoType::BLOCK_SIZE);
                    let repeated = infos.len() > 1 && infos.iter().all(|one| *one == infos[0]);
                    match replies.end {
                        Rep::ERR_BLOCK_SIZE_REQD if sizes => {
                            return found("O52", replies.describe());
                        }
                        Rep::ERR_BLOCK_SIZE_REQD => return check_sizes_required(t, &replies),
                        Rep::ERR_EXT_HEADER_REQD => {
                            t.note(Finding::new("B15", replies.describe()));
                            return Ok(());
                        }
                        // The client MUST NOT repeat a request.
                        Rep::ERR_INVALID if repeated => return t.goes_on(handshake),
                        _ if id == "O45" && !replies.is_ack() => {
                            return found("O45", replies.describe());
                        }
                        _ => check_success(t, option, &replies)?,
                    }
                    if option == Opt::INFO {
                        return t.goes_on(handshake);
                    }
                    enter(t, handshake, &replies)
                });
        }
        cases
            .add(
                "O50",
                format!("{short}-unknown-export"),
                format!("{option} for an export that does not exist"),
                "ERR_UNKNOWN without information; then GO succeeds",
            )
            .needs(&[Need::Go, Need::RefusesNames])
            .run(move |t| {
                let mut handshake = t.handshake()?;
                let replies = handshake.ask(option, &t.info_data(NO_EXPORT, &[]))?;
                match replies.end {
                    Rep::ERR_UNKNOWN if replies.items.is_empty() => {}
                    Rep::ERR_UNKNOWN => t.note(Finding::new("O50", replies.describe())),
                    Rep::ERR_TLS_REQD => {}
                    Rep::ACK => return found("B3", "an export that does not exist"),
                    _ => t.note(Finding::new("O50", replies.describe()).for_information()),
                }
                t.goes_on(handshake)
            });
    }
    for infos in [
        &[][..],
        &[InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION],
    ] {
        cases
            .add(
                "O58",
                format!("go-after-info-{}", infos.len()),
                "INFO, then GO with the same parameters",
                "the same information",
            )
            .needs(&[Need::Go])
            .run(move |t| {
                let mut handshake = t.handshake()?;
                let data = t.info_data(t.name(), infos);
                let mut info = handshake.ask(Opt::INFO, &data)?;
                let mut go = handshake.ask(Opt::GO, &data)?;
                info.items.sort();
                go.items.sort();
                if info.is_ack() && info != go {
                    let actual = format!("INFO: {}; GO: {}", info.describe(), go.describe());
                    return found("O58", format!("different information. {actual}"));
                }
                Ok(())
            });
    }
}

/// The option succeeds with `NBD_INFO_EXPORT`, each type once.
fn check_success(t: &Trial<'_>, option: Opt, replies: &Replies) -> Checked {
    if !replies.is_ack() {
        return found("B3", format!("{option}: {}", replies.describe()));
    }
    if let Some(other) = replies.items.iter().find(|item| item.kind != Rep::INFO) {
        return found("B2", format!("{} in reply to {option}", other.kind));
    }
    let Some(export) = replies.export() else {
        return found("O48", format!("{option}: no NBD_INFO_EXPORT"));
    };
    let mut kinds: Vec<_> = replies.infos().map(|info| info.info()).collect();
    let count = kinds.len();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.len() != count {
        t.note(Finding::new(
            "O113",
            format!("{count} pieces of information, {} types", kinds.len()),
        ));
    }
    if let Some(sizes) = export.block_sizes {
        let (minimum, maximum) = (u64::from(sizes.minimum), u64::from(sizes.maximum));
        if !export.size.is_multiple_of(minimum.max(1)) {
            let actual = format!("{} bytes, minimum block size {minimum}", export.size);
            t.note(Finding::new("S12", actual));
        }
        if maximum < 1 << 20 && export.size >= 1 << 20 {
            t.note(Finding::new(
                "S16",
                format!("the maximum payload is {maximum}"),
            ));
        }
    }
    Ok(())
}

/// The server insists on a request for the block sizes.
fn check_sizes_required(t: &Trial<'_>, replies: &Replies) -> Checked {
    match replies
        .infos()
        .find(|info| info.info() == InfoType::BLOCK_SIZE)
    {
        None => t.note(Finding::new("O54", replies.describe())),
        Some(_) if t.profile.minimum() == 1 => {
            t.note(Finding::new("O53", replies.describe()));
        }
        Some(_) => {}
    }
    Ok(())
}

/// Transmission after a successful `GO`: no zeroes come before the first reply.
fn enter(t: &Trial<'_>, handshake: crate::handshake::Handshake, replies: &Replies) -> Checked {
    let Some(export) = replies.export() else {
        return Ok(());
    };
    let connection = handshake.connection;
    let mut session = t.session_of(connection, Framing::Simple, export, vec![]);
    session.breaks = Some("O59");
    session.still_good()?;
    session.breaks = None;
    session.disconnect()
}

/// Inner fields that contradict the length of the data.
fn malformed_info(cases: &mut Cases) {
    for option in [Opt::INFO, Opt::GO] {
        let short = if option == Opt::GO { "go" } else { "info" };
        let inputs: [(&str, Vec<u8>); 12] = [
            ("empty", vec![]),
            ("1-byte", vec![0]),
            ("5-bytes", vec![0; 5]),
            ("no-count", vec![0, 0, 0, 0]),
            ("name-too-long-by-1", vec![0, 0, 0, 1, 0, 0]),
            ("name-too-long", vec![0, 0, 0, 0xff, b'x', 0, 0]),
            ("name-2-31", vec![0x80, 0, 0, 0, b'x', 0, 0]),
            (
                "name-2-32-minus-1",
                vec![0xff, 0xff, 0xff, 0xff, b'x', 0, 0],
            ),
            (
                "name-2-32-minus-4",
                vec![0xff, 0xff, 0xff, 0xfc, b'x', 0, 0],
            ),
            ("count-too-large", vec![0, 0, 0, 0, 0, 2, 0, 0]),
            ("count-too-small", vec![0, 0, 0, 0, 0, 0, 0, 3]),
            ("odd", vec![0, 0, 0, 0, 0, 1, 0, 3, 0]),
        ];
        for (name, data) in inputs {
            cases
                .add(
                    "O43",
                    format!("{short}-{name}"),
                    format!("{option} with malformed data"),
                    "ERR_INVALID; then GO succeeds",
                )
                .needs(&[Need::Go])
                .run(move |t| refused_data(t, option, &data, "O43"));
        }
        let names: [(&str, Vec<u8>, &str); 4] = [
            ("4096-bytes", vec![b'x'; 4096], "O50"),
            ("4097-bytes", vec![b'x'; 4097], "O43"),
            ("not-utf-8", b"\xff\xfe".to_vec(), "O43"),
            ("nul", b"a\0b".to_vec(), "O43"),
        ];
        for (name, bytes, id) in names {
            cases
                .add(
                    id,
                    format!("{short}-name-{name}"),
                    format!(
                        "{option} for a name of {} bytes that no export has",
                        bytes.len()
                    ),
                    "an error; then GO succeeds",
                )
                .needs(&[Need::Go, Need::RefusesNames])
                .run(move |t| refused_data(t, option, &t.info_data(&bytes, &[]), "O43"));
        }
    }
}

/// The option is refused, or the client disconnected; then other options succeed.
fn refused_data(t: &Trial<'_>, option: Opt, data: &[u8], id: &str) -> Checked {
    let mut handshake = t.handshake()?;
    handshake.send(option, data);
    let answer = match handshake.answer(option) {
        // The message repeats the name: the client broke the rule first.
        Err(Stop::Found(one)) if matches!(one.duty.id, "C1" | "C3") => {
            t.note(one.advised());
            return t.goes_on_after_refusal(handshake);
        }
        answer => answer?,
    };
    match answer {
        // The text permits it: the client broke a MUST.
        Answer::Closed(end) => {
            let actual = format!("the connection was {end} after malformed data");
            t.note(Finding::new(id, actual).for_information());
            drop(handshake);
            t.goes_on(t.handshake()?)
        }
        Answer::Replies(replies) if replies.is_ack() => {
            t.note(Finding::new(
                id,
                format!("malformed data: {}", replies.describe()),
            ));
            if option == Opt::INFO {
                return t.goes_on(handshake);
            }
            Ok(())
        }
        Answer::Replies(_) => t.goes_on_after_refusal(handshake),
    }
}
