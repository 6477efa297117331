//! What block status means: extents that add up, zeroes that are zero, one status in
//! both widths.

use nbd_codec::Framing;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags as Flag, TransmissionFlags as Has};
use nbd_codec::wire::number::Command;

use super::meaning::{pattern, reads_as, scratch};
use crate::case::{Cases, Need};
use crate::outcome::{Checked, Finding, found};
use crate::profile::framing_name;
use crate::request::Request;
use crate::session::Session;
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    for framing in [Framing::Structured, Framing::Extended] {
        status(cases, framing, framing_name(framing));
    }
    widths(cases);
}

fn status(cases: &mut Cases, framing: Framing, short: &str) {
    let needs = [
        Need::Framing(framing),
        Need::Allocation,
        Need::Size(1 << 16),
    ];
    cases
        .add(
            "R144",
            format!("{short}-whole"),
            "BLOCK_STATUS until the end of the export",
            "extents that add up to the export",
        )
        .needs(&needs)
        .run(move |t| {
            let mut session = t.status_session(framing)?;
            let size = t.profile.size();
            let extents = allocation(t, &mut session, 0..size)?;
            if let Some((at, last)) = extents.last() {
                let end = at.saturating_add(last.length);
                if end > size {
                    let actual = format!("the extents end at {end}, the export at {size}");
                    t.note(Finding::new("R144", actual).for_information());
                }
            }
            session.still_good()?;
            session.disconnect()
        });
    cases
        .add(
            "M17",
            format!("{short}-zero"),
            "BLOCK_STATUS, then READ of what is reported as zero",
            "zeroes",
        )
        .needs(&needs)
        .run(move |t| {
            let mut session = t.status_session(framing)?;
            let size = t.profile.size();
            let unit = t.profile.unit();
            zero_extents_are_zero(t, &mut session, 0..size.min(1 << 26))?;
            let last = size.saturating_sub(1 << 16) / unit * unit;
            zero_extents_are_zero(t, &mut session, last..size / unit * unit)?;
            session.disconnect()
        });
    cases
        .add(
            "M17",
            format!("{short}-zero-written"),
            "WRITE_ZEROES and WRITE next to each other, then BLOCK_STATUS and READ",
            "what is reported as zero reads as zeroes",
        )
        .needs(&needs)
        .needs(&[
            Need::Writes,
            Need::Flag(Has::SEND_WRITE_ZEROES),
            Need::Size(1 << 18),
        ])
        .run(move |t| {
            let mut session = t.status_session(framing)?;
            let (unit, at) = (t.profile.unit(), scratch(t));
            let zeroes = Request::new(Command::WRITE_ZEROES, at, 16 * unit);
            let reply = session.ask(zeroes)?;
            t.expect_success(&reply, "O12")?;
            let reply = session.ask(Request::write(at + 16 * unit, pattern(5, unit)))?;
            t.expect_success(&reply, "B8")?;
            zero_extents_are_zero(t, &mut session, at..at + 20 * unit)?;
            session.still_good()?;
            session.disconnect()
        });
    for (name, length) in [
        ("one-unit", 0u64),
        ("1-mib", 1 << 20),
        ("2-32-minus", 0xffff_0000),
    ] {
        cases
            .add(
                "R43",
                format!("{short}-req-one-{name}"),
                format!("BLOCK_STATUS of {name} with REQ_ONE"),
                "one extent, not longer than the request",
            )
            .needs(&needs)
            .needs(&[Need::Size(length)])
            .run(move |t| {
                let mut session = t.status_session(framing)?;
                let length = length.max(t.profile.unit());
                let request = Request::new(Command::BLOCK_STATUS, 0, length).flags(Flag::REQ_ONE);
                let reply = session.ask(request)?;
                t.expect_success(&reply, "R144")?;
                session.still_good()?;
                session.disconnect()
            });
    }
}

/// Reads the zero extents of a range, in part if they are long.
fn zero_extents_are_zero(
    t: &Trial<'_>,
    session: &mut Session,
    range: std::ops::Range<u64>,
) -> Checked {
    let unit = t.profile.unit();
    let extents = allocation(t, session, range.clone())?;
    for (at, extent) in extents.into_iter().take(64) {
        if extent.flags & 2 == 0 {
            continue;
        }
        let end = at.saturating_add(extent.length).min(t.profile.size());
        let first = at.div_ceil(unit) * unit;
        let last = (end / unit * unit)
            .saturating_sub(4096.max(unit))
            .max(first);
        for start in [first, last] {
            let length = (end / unit * unit).saturating_sub(start).min(1 << 16);
            if length > 0 {
                reads_as(
                    t,
                    session,
                    start,
                    &vec![0; usize::try_from(length).unwrap_or(0)],
                    "M17",
                )?;
            }
        }
    }
    Ok(())
}

/// The extents of `base:allocation` over a range.
fn allocation(
    t: &Trial<'_>,
    session: &mut Session,
    range: std::ops::Range<u64>,
) -> Checked<Vec<(u64, Extent64)>> {
    let contexts = session.rules.contexts.iter();
    let id = contexts.clone().find(|(_, name)| name == "base:allocation");
    let Some(id) = id.map(|(id, _)| *id) else {
        return Ok(Vec::new());
    };
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end && extents.len() < 10_000 {
        let most = match session.rules.framing {
            Framing::Extended => range.end - at,
            _ => (range.end - at).min(1 << 31),
        };
        let reply = session.ask(Request::new(Command::BLOCK_STATUS, at, most))?;
        t.expect_success(&reply, "R144")?;
        let found_extents = reply.extents.iter().find(|(one, _)| *one == id);
        let start = at;
        for extent in found_extents
            .map(|(_, list)| list.as_slice())
            .unwrap_or_default()
        {
            extents.push((at, *extent));
            at = at.saturating_add(extent.length);
        }
        if at == start {
            return found("R144", "block status without an extent");
        }
    }
    Ok(extents)
}

/// Narrow and wide status of one export agree.
fn widths(cases: &mut Cases) {
    cases
        .add(
            "R59",
            "narrow-and-wide",
            "BLOCK_STATUS with structured replies and with extended headers",
            "the same status of every byte",
        )
        .needs(&[
            Need::Framing(Framing::Structured),
            Need::Framing(Framing::Extended),
            Need::Allocation,
            Need::Size(1 << 16),
        ])
        .run(|t| {
            let end = t.profile.size().min(1 << 30);
            let mut lists = Vec::new();
            for framing in [Framing::Structured, Framing::Extended] {
                let mut session = t.status_session(framing)?;
                lists.push(joined(&allocation(t, &mut session, 0..end)?, end));
            }
            // The status of a server may change between two questions; not its own.
            if let [narrow, wide] = lists.as_slice()
                && narrow != wide
            {
                let differ = narrow.iter().zip(wide).find(|(a, b)| a != b);
                return found("R59", format!("the first that differ: {differ:?}"));
            }
            Ok(())
        });
}

/// Where the status changes, up to `end`.
fn joined(extents: &[(u64, Extent64)], end: u64) -> Vec<(u64, u64)> {
    let mut changes: Vec<(u64, u64)> = Vec::new();
    for (at, extent) in extents.iter().filter(|(at, _)| *at < end) {
        if changes
            .last()
            .is_none_or(|(_, flags)| *flags != extent.flags)
        {
            changes.push((*at, extent.flags));
        }
    }
    changes
}
