//! Every command flag with every command.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, TransmissionFlags as Has};
use nbd_codec::wire::number::{Command, ErrorValue as Error};

use super::commands::{KINDS, Kind};
use crate::case::{Case, Cases, Need, for_each_framing};
use crate::outcome::{Finding, found};
use crate::request::Request;
use crate::session::Answer;

pub(super) fn add(cases: &mut Cases) {
    for_each_framing(|framing, short| flags(cases, framing, short));
}

fn flags(cases: &mut Cases, framing: Framing, short: &str) {
    for kind in KINDS.iter().filter(|kind| kind.is_in(framing)) {
        for bit in 0..16u16 {
            let flag = Flag(1 << bit);
            if flag == Flag::PAYLOAD_LEN {
                continue;
            }
            // DF is for replies in chunks.
            let chunks = framing != Framing::Simple || flag != Flag::DF;
            let valid = kind.flags().contains(flag) && chunks;
            let (id, expects) = match flag {
                Flag::FUA => ("R2", "success"),
                Flag::NO_HOLE if valid => ("R6", "success"),
                Flag::DF if valid => ("R106", "success with one chunk"),
                Flag::REQ_ONE if valid => ("R9", "success with one extent"),
                Flag::FAST_ZERO if valid => ("R133", "success or ENOTSUP"),
                _ if kind.command == Command::CACHE => ("R124", "an error; then READ succeeds"),
                _ if Flag::KNOWN.contains(flag) => ("E10", "EINVAL; then READ succeeds"),
                _ => ("E9", "EINVAL; then READ succeeds"),
            };
            let mut needs = kind.needs(framing);
            match flag {
                Flag::FUA => needs.push(Need::Flag(Has::SEND_FUA)),
                Flag::DF if valid => needs.push(Need::Flag(Has::SEND_DF)),
                Flag::FAST_ZERO if valid => needs.push(Need::Flag(Has::SEND_FAST_ZERO)),
                _ => {}
            }
            let text = format!("{}/{flag}", kind.command);
            let name = flag_name(flag);
            let case = cases.add(id, format!("{short}-{}-{name}", kind.name), text, expects);
            case.needs(&needs);
            run_flag(case, kind, framing, flag, id);
        }
    }
    if framing != Framing::Simple {
        return;
    }
    // FUA that is not advertised is a flag like any other.
    cases
        .add(
            "E9",
            "read-fua-not-advertised",
            "READ with FUA, without SEND_FUA",
            "EINVAL",
        )
        .needs(&[Need::NoFlag(Has::SEND_FUA, framing), Need::Size(1 << 16)])
        .run(move |t| {
            let mut session = t.session(framing)?;
            let request = Request::read(0, t.profile.unit()).flags(Flag::FUA);
            t.refuses(&mut session, request, "E9", &[Error::EINVAL])
        });
    cases
        .add(
            "R135",
            "fast-zero-not-advertised",
            "WRITE_ZEROES with FAST_ZERO, without SEND_FAST_ZERO",
            "EINVAL; then READ succeeds",
        )
        .needs(&[
            Need::Flag(Has::SEND_WRITE_ZEROES),
            Need::NoFlag(Has::SEND_FAST_ZERO, framing),
            Need::Writes,
            Need::Size(1 << 16),
        ])
        .run(move |t| {
            let mut session = t.session(framing)?;
            let unit = t.profile.unit();
            let request = Request::new(Command::WRITE_ZEROES, unit, unit).flags(Flag::FAST_ZERO);
            t.refuses(&mut session, request, "R135", &[Error::EINVAL])
        });
}

fn flag_name(flag: Flag) -> String {
    if Flag::KNOWN.contains(flag) {
        return flag.to_string().to_lowercase().replace('_', "-");
    }
    format!("bit-{}", flag.0.trailing_zeros())
}

fn run_flag(case: &mut Case, kind: &'static Kind, framing: Framing, flag: Flag, id: &'static str) {
    case.run(move |t| {
        let mut session = kind.session(t, framing)?;
        let request = kind.request(t).flags(flag);
        match id {
            "R2" | "R6" | "R106" | "R9" => {
                let reply = session.ask(request)?;
                t.expect_success(&reply, id)?;
                session.still_good()?;
                session.disconnect()
            }
            "R133" => {
                let reply = session.ask(request)?;
                match reply.error() {
                    None | Some(Error::ENOTSUP) => {}
                    Some(Error::EOVERFLOW) => t.note(Finding::new("R133", reply.describe())),
                    Some(_) => return found("R6", reply.describe()),
                }
                session.still_good()?;
                session.disconnect()
            }
            "R124" => match session.answer(request)? {
                Answer::Reply(reply) if reply.is_success() => found(id, reply.describe()),
                Answer::Reply(_) => {
                    session.still_good()?;
                    session.disconnect()
                }
                Answer::Closed(end) => {
                    t.note(Finding::new(id, format!("the connection was {end}")).advised());
                    Ok(())
                }
            },
            _ => t.refuses(&mut session, request, id, &[Error::EINVAL]),
        }
    });
}
