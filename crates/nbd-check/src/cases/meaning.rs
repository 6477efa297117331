//! What commands mean: content, zeroes, and what other connections see.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, TransmissionFlags as Has};
use nbd_codec::wire::number::{Command, ErrorValue as Error};

use crate::case::{Cases, Need, for_each_framing};
use crate::outcome::{Checked, Finding, found};
use crate::request::Request;
use crate::session::Session;
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        same_data(cases, framing, short);
        writing(cases, framing, short);
    });
    connections(cases);
    flush_and_cache(cases);
}

/// Where cases write: after the first block, which stays as it is.
pub(super) fn scratch(t: &Trial<'_>) -> u64 {
    t.profile.unit()
}

/// Bytes that are unlike each other and unlike zero.
pub(super) fn pattern(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56).to_be_bytes()[7] | 1
        })
        .collect()
}

/// The data of a range that must be readable.
fn read(t: &Trial<'_>, session: &mut Session, offset: u64, length: u64) -> Checked<Vec<u8>> {
    let reply = session.ask(Request::read(offset, length))?;
    t.expect_success(&reply, "R81")?;
    Ok(reply.data)
}

/// The range has this content.
pub(super) fn reads_as(
    t: &Trial<'_>,
    session: &mut Session,
    offset: u64,
    expected: &[u8],
    id: &str,
) -> Checked {
    let data = read(t, session, offset, crate::reply::wide(expected.len()))?;
    match data.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let actual = format!("byte {at} after offset {offset} is {:#04x}", data[at]);
            let expected = format!("not {:#04x}", expected[at]);
            found(id, format!("{actual}, {expected}"))
        }
    }
}

fn same_data(cases: &mut Cases, framing: Framing, short: &str) {
    cases
        .add(
            "R81",
            format!("{short}-parts"),
            "READ of 64 KiB, and of its parts",
            "the same data",
        )
        .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
        .run(move |t| {
            let unit = t.profile.unit();
            let mut session = t.session(framing)?;
            let whole = read(t, &mut session, 0, 1 << 16)?;
            for part in 0..8u64 {
                let offset = (part * 8192).div_ceil(unit) * unit;
                if offset + unit > 1 << 16 {
                    continue;
                }
                let data = read(t, &mut session, offset, unit)?;
                let at = usize::try_from(offset).unwrap_or(0);
                if whole.get(at..at + data.len()) != Some(data.as_slice()) {
                    return found("R81", format!("{unit} bytes at {offset} differ"));
                }
            }
            let mut simple = t.session(Framing::Simple)?;
            reads_as(t, &mut simple, 0, &whole, "R81")?;
            session.disconnect()
        });
}

fn writing(cases: &mut Cases, framing: Framing, short: &str) {
    let needs = [Need::Framing(framing), Need::Writes, Need::Size(1 << 18)];
    for (name, flag) in [("write", Flag::NONE), ("write-fua", Flag::FUA)] {
        let case = cases.add(
            "R110",
            format!("{short}-{name}"),
            "WRITE, then READ on this and on a new connection",
            "what was written; what is around it is unchanged",
        );
        case.needs(&needs);
        if flag == Flag::FUA {
            case.needs(&[Need::Flag(Has::SEND_FUA)]);
        }
        case.run(move |t| {
            let (unit, at) = (t.profile.unit(), scratch(t));
            let mut session = t.session(framing)?;
            let before = pattern(1, 3 * unit);
            let reply = session.ask(Request::write(at, before.clone()))?;
            t.expect_success(&reply, "B8")?;
            let middle = pattern(2, unit);
            let reply = session.ask(Request::write(at + unit, middle.clone()).flags(flag))?;
            t.expect_success(&reply, "B8")?;
            let size = middle.len();
            let mut expected = before;
            if let Some(space) = expected.get_mut(size..2 * size) {
                space.copy_from_slice(&middle);
            }
            reads_as(t, &mut session, at, &expected, "R110")?;
            session.still_good()?;
            session.disconnect()?;
            let mut again = t.session(Framing::Simple)?;
            reads_as(t, &mut again, at, &expected, "R110")?;
            again.disconnect()
        });
    }
    for (name, flags, needs_flag) in [
        ("write-zeroes", Flag::NONE, None),
        ("write-zeroes-no-hole", Flag::NO_HOLE, None),
        ("write-zeroes-fua", Flag::FUA, Some(Has::SEND_FUA)),
        (
            "write-zeroes-fast",
            Flag::FAST_ZERO,
            Some(Has::SEND_FAST_ZERO),
        ),
        (
            "write-zeroes-fast-no-hole",
            Flag(Flag::FAST_ZERO.0 | Flag::NO_HOLE.0),
            Some(Has::SEND_FAST_ZERO),
        ),
    ] {
        let fast = flags.contains(Flag::FAST_ZERO);
        let case = cases.add(
            if fast { "R134" } else { "R130" },
            format!("{short}-{name}"),
            "WRITE, WRITE_ZEROES of a part, then READ",
            "zeroes in this part, and nowhere else",
        );
        case.needs(&needs)
            .needs(&[Need::Flag(Has::SEND_WRITE_ZEROES)]);
        if let Some(flag) = needs_flag {
            case.needs(&[Need::Flag(flag)]);
        }
        case.run(move |t| {
            let (unit, at) = (t.profile.unit(), scratch(t));
            let mut session = t.session(framing)?;
            let mut expected = pattern(3, 20 * unit);
            let reply = session.ask(Request::write(at, expected.clone()))?;
            t.expect_success(&reply, "B8")?;
            let zeroes = Request::new(Command::WRITE_ZEROES, at + unit, 18 * unit).flags(flags);
            let reply = session.ask(zeroes)?;
            let size = usize::try_from(unit).unwrap_or(0);
            match reply.error() {
                None => expected[size..19 * size].fill(0),
                Some(Error::ENOTSUP) if fast => {}
                Some(Error::ENOTSUP) => {
                    let advertised = t.profile.flags().contains(Has::SEND_FAST_ZERO);
                    return found(if advertised { "R132" } else { "R136" }, reply.describe());
                }
                Some(_) => return found("O12", reply.describe()),
            }
            let id = match reply.error() {
                None => "R130",
                Some(_) => "R134",
            };
            reads_as(t, &mut session, at, &expected, id)?;
            session.still_good()?;
            session.disconnect()
        });
    }
    cases
        .add(
            "R110",
            format!("{short}-trim"),
            "WRITE, TRIM of a part, then READ",
            "success; what is around the part is unchanged",
        )
        .needs(&needs)
        .needs(&[Need::Flag(Has::SEND_TRIM)])
        .run(move |t| {
            let (unit, at) = (t.profile.unit(), scratch(t));
            let mut session = t.session(framing)?;
            let data = pattern(4, 20 * unit);
            let reply = session.ask(Request::write(at, data.clone()))?;
            t.expect_success(&reply, "B8")?;
            let reply = session.ask(Request::new(Command::TRIM, at + unit, 18 * unit))?;
            if !reply.is_success() {
                t.note(Finding::new("O12", reply.describe()).for_information());
            }
            let size = usize::try_from(unit).unwrap_or(0);
            reads_as(t, &mut session, at, &data[..size], "R110")?;
            reads_as(t, &mut session, at + 19 * unit, &data[19 * size..], "R110")?;
            session.still_good()?;
            session.disconnect()
        });
    cases
        .add(
            "S21",
            format!("{short}-write-zeroes-long"),
            "WRITE_ZEROES of everything after the first block",
            "success, EOVERFLOW or EINVAL",
        )
        .needs(&needs)
        .needs(&[Need::Flag(Has::SEND_WRITE_ZEROES)])
        .run(move |t| {
            let at = scratch(t);
            let mut session = t.session(framing)?;
            let length = (t.profile.size() - at) / at * at;
            let length = match framing {
                Framing::Extended => length,
                _ => length.min((1 << 32) - at),
            };
            let reply = session.ask(Request::new(Command::WRITE_ZEROES, at, length))?;
            match reply.error() {
                None => reads_as(t, &mut session, at, &vec![0; 1 << 16], "R130")?,
                Some(Error::EOVERFLOW | Error::EINVAL) if length > 1 << 25 => {}
                Some(_) => return found("O12", reply.describe()),
            }
            session.still_good()?;
            session.disconnect()
        });
}

/// What one connection wrote, another one reads.
fn connections(cases: &mut Cases) {
    for (name, command) in [("flush", Command::FLUSH), ("fua", Command::WRITE)] {
        let flag = match name {
            "flush" => Has::SEND_FLUSH,
            _ => Has::SEND_FUA,
        };
        cases
            .add(
                "O18",
                name,
                "WRITE and FLUSH, or WRITE with FUA; READ on a connection that was open before",
                "what was written",
            )
            .needs(&[
                Need::Flag(Has::CAN_MULTI_CONN),
                Need::Flag(flag),
                Need::Writes,
                Need::Concurrent,
                Need::Size(1 << 18),
            ])
            .run(move |t| {
                let (unit, at) = (t.profile.unit(), scratch(t));
                let mut one = t.session(Framing::Simple)?;
                let mut other = t.session(Framing::Simple)?;
                for seed in 10..14 {
                    // The other connection may have it in its cache.
                    read(t, &mut other, at, unit)?;
                    let data = pattern(seed, unit);
                    let fua = if command == Command::WRITE {
                        Flag::FUA
                    } else {
                        Flag::NONE
                    };
                    let reply = one.ask(Request::write(at, data.clone()).flags(fua))?;
                    t.expect_success(&reply, "B8")?;
                    if command == Command::FLUSH {
                        let reply = one.ask(Request::new(Command::FLUSH, 0, 0))?;
                        t.expect_success(&reply, "R115")?;
                    }
                    reads_as(t, &mut other, at, &data, "O18")?;
                }
                one.disconnect()?;
                other.disconnect()
            });
    }
}

fn flush_and_cache(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        cases
            .add("R115", format!("{short}-flush"), "FLUSH", "success")
            .needs(&[Need::Framing(framing), Need::Flag(Has::SEND_FLUSH)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let reply = session.ask(Request::new(Command::FLUSH, 0, 0))?;
                t.expect_success(&reply, "R115")?;
                session.still_good()?;
                session.disconnect()
            });
        cases
            .add(
                "R123",
                format!("{short}-cache"),
                "READ, CACHE, READ",
                "the same data",
            )
            .needs(&[
                Need::Framing(framing),
                Need::Flag(Has::SEND_CACHE),
                Need::Size(1 << 16),
            ])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let before = read(t, &mut session, 0, 1 << 16)?;
                // It may fail: the flag does not promise success.
                session.ask(Request::new(Command::CACHE, 0, 1 << 16))?;
                reads_as(t, &mut session, 0, &before, "R123")?;
                session.disconnect()
            });
    });
}
