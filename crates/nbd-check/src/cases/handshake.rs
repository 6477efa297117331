//! Greeting, client flags, `EXPORT_NAME`, `ABORT`.

use std::time::Duration;

use nbd_codec::Framing;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option::OptionHeader;

use crate::case::{Cases, Need};
use crate::cases::options::{COMBINED, data_of};
use crate::handshake::greeting;
use crate::outcome::{Checked, Finding, found};
use crate::probe::NO_EXPORT;
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    greetings(cases);
    client_flags(cases);
    export_name(cases);
    abort(cases);
    noise(cases);
}

fn greetings(cases: &mut Cases) {
    cases
        .add(
            "O1",
            "greeting",
            "nothing",
            "FIXED_NEWSTYLE in the greeting",
        )
        .run(|t| {
            let (_, flags) = t.greeted()?;
            if flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
                return Ok(());
            }
            found("O1", format!("the handshake flags are {flags}"))
        });
    cases
        .add("O4", "greeting", "nothing", "no undefined handshake flag")
        .run(|t| {
            let (_, flags) = t.greeted()?;
            if HandshakeFlags::KNOWN.contains(flags) {
                return Ok(());
            }
            found("O4", format!("the handshake flags are {flags}"))
        });
    let case = cases.add("O6", "oldstyle", "nothing", "no handshake flag");
    case.needs = vec![Need::Oldstyle];
    case.run(|t| {
        let mut connection = t.connect()?;
        match greeting(&mut connection)? {
            Greeting::Oldstyle(one) if !one.handshake_flags.is_empty() => found(
                "O6",
                format!("the handshake flags are {}", one.handshake_flags),
            ),
            _ => Ok(()),
        }
    });
}

/// Client flags that the server does not know end the session.
fn end_session(t: &Trial<'_>, flags: ClientFlags) -> Checked {
    let mut handshake = t.plain_handshake(flags)?;
    handshake.send(OptionType::LIST, &[]);
    match handshake.connection.expect_end() {
        Ok(_) => Ok(()),
        Err(_) => found("O11", format!("the session continues with {flags}")),
    }
}

fn client_flags(cases: &mut Cases) {
    for bit in [2, 3, 7, 8, 15, 16, 31] {
        let flags = ClientFlags(1 << bit | 1);
        cases
            .add(
                "O11",
                format!("bit-{bit}"),
                format!("client flags {flags}"),
                "the end of the session",
            )
            .run(move |t| end_session(t, flags));
    }
    cases
        .add(
            "O11",
            "no-zeroes-not-offered",
            "client flags with NO_ZEROES, which the server does not offer",
            "the end of the session",
        )
        .run(|t| {
            if t.profile
                .handshake_flags
                .contains(HandshakeFlags::NO_ZEROES)
            {
                return Err(crate::outcome::Stop::Skipped("NO_ZEROES is offered".into()));
            }
            let flags = t.client_flags() | ClientFlags::NO_ZEROES;
            end_session(t, flags)
        });
    cases
        .add(
            "O5",
            "not-fixed",
            "client flags 0, then EXPORT_NAME",
            "transmission, or the end of the session",
        )
        .needs(&[Need::NotForcedTls])
        .run(|t| {
            let mut handshake = t.plain_handshake(ClientFlags::NONE)?;
            match handshake.export_name(t.name())? {
                Ok(export) => {
                    let connection = handshake.connection;
                    let mut session = t.session_of(connection, Framing::Simple, export, vec![]);
                    session.still_good()?;
                    session.disconnect()
                }
                Err(end) if end.is_by_server() => {
                    t.note(Finding::new(
                        "O5",
                        "EXPORT_NAME without fixed newstyle is refused",
                    ));
                    Ok(())
                }
                Err(end) => found("B14", format!("EXPORT_NAME: {end}")),
            }
        });
}

fn export_name(cases: &mut Cases) {
    for (name, id, zeroes) in [("no-zeroes", "O2", false), ("zeroes", "O5", true)] {
        let expects = if zeroes {
            "size, flags and 124 zeroes, then READ succeeds"
        } else {
            "size and flags, then READ succeeds"
        };
        cases
            .add(id, format!("export-name-{name}"), "EXPORT_NAME", expects)
            .run(move |t| {
                let mut flags = t.client_flags();
                if zeroes {
                    flags.remove(ClientFlags::NO_ZEROES);
                }
                let mut handshake = t.plain_handshake(flags)?;
                if t.profile.uses_tls {
                    t.start_tls(&mut handshake)?;
                }
                let export = match handshake.export_name(t.name())? {
                    Ok(export) => export,
                    Err(end) if end.is_by_server() => {
                        t.note(Finding::new("B14", format!("EXPORT_NAME: {end}")));
                        return Ok(());
                    }
                    Err(end) => return found(id, format!("EXPORT_NAME: {end}")),
                };
                crate::handshake::check_flags(export.flags)?;
                let connection = handshake.connection;
                let mut session = t.session_of(connection, Framing::Simple, export, vec![]);
                session.breaks = Some(id);
                session.still_good()?;
                session.breaks = None;
                session.disconnect()
            });
    }
    let names: [(&str, Vec<u8>); 5] = [
        ("unknown", NO_EXPORT.to_vec()),
        ("4096-bytes", vec![b'x'; 4096]),
        ("4097-bytes", vec![b'x'; 4097]),
        ("not-utf-8", b"\xff\xfe".to_vec()),
        ("nul", b"nbd-check\0".to_vec()),
    ];
    for (name, bytes) in names {
        cases
            .add(
                "O25",
                format!("export-name-{name}"),
                format!("EXPORT_NAME of {} bytes that no export has", bytes.len()),
                "the end of the session",
            )
            .needs(&[Need::RefusesNames])
            .run(move |t| {
                let mut handshake = t.handshake()?;
                match handshake.export_name(&bytes)? {
                    Err(end) if end.is_by_server() => Ok(()),
                    Err(end) => found("O25", format!("EXPORT_NAME: {end}")),
                    Ok(export) => found("O25", format!("an export of {} bytes", export.size)),
                }
            });
    }
    cases
        .add(
            "O16",
            "export-name",
            "EXPORT_NAME without structured replies",
            "no SEND_DF, no BLOCK_STATUS_PAYLOAD",
        )
        .run(|t| {
            use nbd_codec::wire::flags::TransmissionFlags as Flags;
            let mut handshake = t.handshake()?;
            let Ok(export) = handshake.export_name(t.name())? else {
                return Err(crate::outcome::Stop::Unimplemented("EXPORT_NAME".into()));
            };
            for (flag, id) in [
                (Flags::SEND_DF, "O16"),
                (Flags::BLOCK_STATUS_PAYLOAD, "O22"),
            ] {
                if export.flags.contains(flag) {
                    return found(id, format!("the flags are {}", export.flags));
                }
            }
            Ok(())
        });
}

fn abort(cases: &mut Cases) {
    for length in [0usize, 1, 4097] {
        let id = if length == 0 { "O30" } else { "O32" };
        cases
            .add(
                id,
                format!("abort-{length}"),
                format!("ABORT with {length} bytes"),
                "ACK",
            )
            .run(move |t| {
                use crate::handshake::Answer;
                let mut handshake = t.handshake()?;
                handshake.send(OptionType::ABORT, &vec![0; length]);
                match handshake.answer(OptionType::ABORT)? {
                    Answer::Replies(replies) if replies.is_ack() => Ok(()),
                    Answer::Replies(replies) => found(id, format!("ABORT: {}", replies.end)),
                    // Earlier versions of the text were unclear about it.
                    Answer::Closed(end) => found(id, format!("ABORT: {end}, without a reply")),
                }
            });
    }
    for before in COMBINED.into_iter().chain([OptionType::EXTENDED_HEADERS]) {
        let name = before.name().unwrap_or("an unknown option");
        cases
            .add(
                "O30",
                format!("abort-after-{}", name.to_lowercase().replace(' ', "-")),
                format!("{before}, then ABORT"),
                "ACK",
            )
            .needs(&[Need::Answers(before)])
            .run(move |t| {
                let mut handshake = t.handshake()?;
                handshake.ask(before, &data_of(t, before))?;
                handshake.breaks = "O30";
                let replies = handshake.ask(OptionType::ABORT, &[])?;
                if !replies.is_ack() {
                    return found("O30", format!("ABORT: {}", replies.end));
                }
                match handshake
                    .connection
                    .expect_end_within(Duration::from_millis(500))
                {
                    Ok(_) => Ok(()),
                    Err(bytes) if bytes.is_empty() => Ok(()),
                    Err(bytes) => found("O30", format!("{} bytes after ABORT", bytes.len())),
                }
            });
    }
    cases
        .add(
            "O34",
            "abort-and-close",
            "ABORT, then close",
            "other clients are served",
        )
        .run(|t| {
            let mut handshake = t.handshake()?;
            handshake.send(OptionType::ABORT, &[]);
            handshake.connection.close();
            t.goes_on(t.handshake()?)
        });
}

/// What is no option at all.
fn noise(cases: &mut Cases) {
    let header = OptionHeader {
        option: OptionType::LIST,
        length: 0,
    };
    let mut magic = header.encode().to_vec();
    magic[7] ^= 1;
    let inputs: [(&str, Vec<u8>); 3] = [
        ("magic", magic),
        ("zeroes", vec![0; 64]),
        (
            "http",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
    ];
    for (name, bytes) in inputs {
        cases
            .add(
                "H17",
                format!("not-an-option-{name}"),
                "bytes that are no option",
                "an error or the end of the session; other clients are served",
            )
            .run(move |t| {
                let mut handshake = t.handshake()?;
                handshake.connection.send(&bytes, "no option");
                let wait = Duration::from_millis(500);
                match handshake.connection.expect_end_within(wait) {
                    Ok(_) => {}
                    Err(reply) => t.note(
                        Finding::new("H17", format!("{} bytes, and no end", reply.len()))
                            .for_information(),
                    ),
                }
                drop(handshake);
                t.goes_on(t.handshake()?)
            });
    }
}
