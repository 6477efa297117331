//! Payloads: of reads, of writes, and where none belongs.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, TransmissionFlags as Has};
use nbd_codec::wire::number::{Command, ErrorValue as Error};

use super::commands::{KINDS, as_size};
use crate::case::{Cases, Need, for_each_framing};
use crate::duty::Level;
use crate::outcome::{Finding, Stop, found};
use crate::request::{Request, trap};
use crate::session::{Answer, Session};

pub(super) fn add(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        payloads(cases, framing, short);
        reads(cases, framing, short);
    });
    block_status_payloads(cases);
}

/// Payloads: longer than the maximum, and where no payload belongs.
fn payloads(cases: &mut Cases, framing: Framing, short: &str) {
    let extended = framing == Framing::Extended;
    cases
        .add(
            "S17",
            format!("{short}-write-32-mib-refused"),
            "WRITE of 32 MiB past the end of the export",
            "an error; then READ succeeds",
        )
        .needs(&[Need::Framing(framing), Need::Writes, Need::Size(1 << 16)])
        .run(move |t| {
            if extended && t.profile.maximum().is_some_and(|maximum| maximum < 1 << 25) {
                let reason = "the maximum payload is below 32 MiB".to_owned();
                return Err(Stop::Skipped(reason));
            }
            let mut session = t.session(framing)?;
            let unit = t.profile.unit();
            let offset = t.profile.size().div_ceil(unit) * unit;
            match session.answer(Request::write(offset, trap(framing, 1 << 25)))? {
                Answer::Closed(end) => {
                    t.note(Finding::new("S17", format!("the connection was {end}")));
                    Ok(())
                }
                Answer::Reply(reply) => {
                    if reply.is_success() {
                        t.note(Finding::new("E1", reply.describe()));
                    }
                    session.breaks = Some(if extended { "T14" } else { "T10" });
                    session.closing = Level::Should;
                    session.still_good()?;
                    session.breaks = None;
                    session.disconnect()
                }
            }
        });
    if !extended {
        return;
    }
    cases
        .add(
            "T13",
            "above-the-maximum",
            "WRITE with a payload of one unit more than the maximum",
            "the end of the connection",
        )
        .needs(&[Need::Framing(framing), Need::Writes, Need::Size(1 << 16)])
        .run(move |t| {
            let maximum = t.profile.maximum().unwrap_or(1 << 25);
            if maximum > 1 << 26 {
                let reason = format!("the maximum payload is {maximum}");
                return Err(Stop::Skipped(reason));
            }
            let mut session = t.session(framing)?;
            let unit = t.profile.unit();
            let payload = trap(framing, as_size(maximum / unit * unit + unit));
            match session.answer(Request::write(unit, payload))? {
                Answer::Closed(_) => Ok(()),
                Answer::Reply(reply) => {
                    // An error, followed by the end: the same.
                    let ends = session.answer(Request::read(0, unit))?;
                    if let Answer::Reply(_) = ends {
                        t.note(Finding::new("T13", reply.describe()));
                    }
                    Ok(())
                }
            }
        });
    for kind in &KINDS {
        if matches!(kind.command, Command::WRITE | Command::BLOCK_STATUS) {
            continue;
        }
        cases
            .add(
                "R13",
                format!("{}-payload", kind.name),
                format!("{} with PAYLOAD_LEN and its payload", kind.command),
                "EINVAL; then READ succeeds",
            )
            .needs(&kind.needs(framing))
            .run(move |t| {
                let mut session = t.session(framing)?;
                let length = 512u64;
                let request = Request::new(kind.command, t.profile.unit(), length)
                    .flags(Flag::PAYLOAD_LEN)
                    .payload(trap(framing, as_size(length)));
                session.breaks = Some("T14");
                t.refuses(&mut session, request, "R13", &[Error::EINVAL])
            });
    }
    cases
        .add(
            "E8",
            "extended-unknown-payload",
            "an unknown command with PAYLOAD_LEN and its payload",
            "EINVAL; then READ succeeds",
        )
        .needs(&[Need::Framing(framing)])
        .run(move |t| {
            let mut session = t.session(framing)?;
            let request = Request::new(Command(0x7ffe), 0, 4096)
                .flags(Flag::PAYLOAD_LEN)
                .payload(trap(framing, 4096));
            session.breaks = Some("T14");
            t.refuses(&mut session, request, "E8", &[Error::EINVAL])
        });
}

/// Reads within the export.
fn reads(cases: &mut Cases, framing: Framing, short: &str) {
    let sizes: [(&str, u64); 5] = [
        ("one-unit", 1),
        ("two-units", 2),
        ("65536", 65_536),
        ("1-mib", 1 << 20),
        ("32-mib", 1 << 25),
    ];
    for (name, size) in sizes {
        cases
            .add(
                "R81",
                format!("{short}-read-{name}"),
                format!("READ of {name} at the end of the export"),
                "the data",
            )
            .needs(&[Need::Framing(framing), Need::Size(size.max(1 << 16))])
            .run(move |t| {
                let unit = t.profile.unit();
                let length = if size < 3 { size * unit } else { size };
                let maximum = t.profile.maximum().unwrap_or(1 << 25);
                if length > maximum || length % unit != 0 {
                    let reason = format!("the maximum payload is {maximum}");
                    return Err(Stop::Skipped(reason));
                }
                let mut session = t.session(framing)?;
                let offset = (t.profile.size() - length) / unit * unit;
                let reply = session.ask(Request::read(offset, length))?;
                t.expect_success(&reply, "R81")?;
                session.still_good()?;
                session.disconnect()
            });
    }
    cases
        .add(
            "S5",
            format!("{short}-read-byte"),
            "READ of 3 bytes at offset 1",
            "the data, if the minimum block size is 1",
        )
        .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
        .run(move |t| {
            let mut session = t.session(framing)?;
            if t.profile.minimum() > 1 {
                let reason = "the minimum block size is above 1".to_owned();
                return Err(Stop::Skipped(reason));
            }
            let reply = session.ask(Request::read(1, 3))?;
            if reply.is_success() && Some(reply.data.as_slice()) != session.first_block.get(1..4) {
                return found(
                    "R81",
                    "READ of 3 bytes returned other data than READ of 512",
                );
            }
            if !reply.is_success() {
                t.note(Finding::new("S5", reply.describe()));
            }
            session.still_good()?;
            session.disconnect()
        });
    cases
        .add(
            "S5",
            format!("{short}-read-last-byte"),
            "READ of the last byte, then of one byte after it",
            "the data, then EINVAL",
        )
        .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
        .run(move |t| {
            if t.profile.minimum() > 1 {
                let reason = "the minimum block size is above 1".to_owned();
                return Err(Stop::Skipped(reason));
            }
            let mut session = t.session(framing)?;
            let size = t.profile.size();
            let reply = session.ask(Request::read(size - 1, 1))?;
            if !reply.is_success() {
                t.note(Finding::new("S5", reply.describe()));
            }
            t.refuses(&mut session, Request::read(size, 1), "E3", &[Error::EINVAL])
        });
    if framing == Framing::Simple {
        return;
    }
    for size in [1u64 << 16, 1 << 20] {
        cases
            .add(
                if size > 1 << 16 { "R105" } else { "R106" },
                format!("{short}-df-{size}"),
                format!("READ of {size} bytes with DF"),
                "one content chunk, or EOVERFLOW above 64 KiB",
            )
            .needs(&[
                Need::Framing(framing),
                Need::Flag(Has::SEND_DF),
                Need::Size(size),
            ])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let reply = session.ask(Request::read(0, size).flags(Flag::DF))?;
                match reply.error() {
                    Some(Error::EOVERFLOW) if reply.chunks != (0, 0) => {
                        return found("R105", "EOVERFLOW and a content chunk");
                    }
                    Some(Error::EOVERFLOW) if size > 1 << 16 => {}
                    Some(_) => return found("R106", reply.describe()),
                    None => {}
                }
                session.still_good()?;
                session.disconnect()
            });
    }
}

/// `BLOCK_STATUS` with a payload that names contexts.
fn block_status_payloads(cases: &mut Cases) {
    let framing = Framing::Extended;
    let needs = [Need::Framing(framing), Need::Contexts, Need::Size(1 << 16)];
    let payload = |length: u64, ids: &[u32]| {
        let mut bytes = length.to_be_bytes().to_vec();
        ids.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
        bytes
    };
    let ask = move |session: &mut Session, offset: u64, payload: Vec<u8>| {
        let length = crate::reply::wide(payload.len());
        let request = Request::new(Command::BLOCK_STATUS, offset, length)
            .flags(Flag::PAYLOAD_LEN)
            .payload(payload);
        session.breaks = Some("R145");
        let answer = session.answer(request);
        session.breaks = None;
        answer
    };
    let inputs = ["unknown-id", "repeated-id", "7-bytes", "9-bytes", "1-byte"];
    for name in inputs {
        let id = if name.ends_with("id") { "R145" } else { "R148" };
        cases
            .add(
                id,
                name,
                "BLOCK_STATUS with an invalid payload",
                "EINVAL; then READ succeeds",
            )
            .needs(&needs)
            .run(move |t| {
                let mut session = t.status_session(framing)?;
                let unit = t.profile.unit();
                let known = session.rules.contexts.first().map_or(0, |(id, _)| id.0);
                let unknown = (0..).find(|n| {
                    let contexts = &session.rules.contexts;
                    !contexts.iter().any(|(id, _)| id.0 == *n)
                });
                let bytes = match name {
                    "unknown-id" => payload(unit, &[unknown.unwrap_or(0)]),
                    "repeated-id" => payload(unit, &[known, known]),
                    "7-bytes" => payload(unit, &[]).split_off(1),
                    "9-bytes" => [payload(unit, &[]), vec![0]].concat(),
                    _ => vec![0],
                };
                match ask(&mut session, 0, bytes) {
                    Ok(Answer::Reply(reply)) if reply.is_success() => found(id, reply.describe()),
                    Ok(Answer::Reply(reply)) => {
                        if reply.error() != Some(Error::EINVAL) {
                            return found(id, reply.describe());
                        }
                        session.breaks = Some("R145");
                        session.still_good()?;
                        session.breaks = None;
                        session.disconnect()
                    }
                    Ok(Answer::Closed(end)) => found(id, format!("the connection was {end}")),
                    Err(stop) => Err(stop),
                }
            });
    }
    cases
        .add(
            "R145",
            "filtered",
            "BLOCK_STATUS for one context",
            "status of this context only",
        )
        .needs(&needs)
        .needs(&[Need::Filters])
        .run(move |t| {
            let mut session = t.status_session(framing)?;
            let ids: Vec<_> = session.rules.contexts.iter().map(|(id, _)| *id).collect();
            for id in ids {
                let answer = ask(&mut session, 0, payload(t.profile.unit(), &[id.0]))?;
                match answer {
                    Answer::Reply(reply) => {
                        t.expect_success(&reply, "R144")?;
                        if reply.extents.iter().any(|(other, _)| *other != id) {
                            return found("R39", "status of another context than requested");
                        }
                    }
                    Answer::Closed(end) => {
                        return found("T38", format!("the connection was {end}"));
                    }
                }
            }
            session.still_good()?;
            session.disconnect()
        });
    cases
        .add(
            "R145",
            "not-advertised",
            "BLOCK_STATUS with a payload, without BLOCK_STATUS_PAYLOAD",
            "EINVAL; then READ succeeds",
        )
        .needs(&needs)
        .needs(&[Need::NoFilters])
        .run(move |t| {
            let mut session = t.status_session(framing)?;
            let known = session.rules.contexts.first().map_or(0, |(id, _)| id.0);
            match ask(&mut session, 0, payload(t.profile.unit(), &[known]))? {
                Answer::Reply(reply) => {
                    if reply.error() != Some(Error::EINVAL) {
                        t.note(Finding::new("R145", reply.describe()).for_information());
                    }
                    session.breaks = Some("R145");
                    session.still_good()
                }
                Answer::Closed(end) => found("R145", format!("the connection was {end}")),
            }
        });
}
