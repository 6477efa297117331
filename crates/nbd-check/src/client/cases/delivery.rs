//! Connections that are cut, and floods.

use nbd_codec::Framing;
use nbd_codec::wire::number::Command;

use super::{Turn, for_chunks, needs_framing};
use crate::case::Cases;
use crate::client::message::Message;
use crate::client::script::{Dialect, Script};
use crate::client::trial::{Expect, Spoils, Trial};
use crate::outcome::{Checked, Stop};
use crate::profile::{FRAMINGS, framing_name};

pub(super) fn add(cases: &mut Cases) {
    for framing in FRAMINGS {
        for (name, sends) in [
            ("handshake", "the server closes within the handshake"),
            ("transmission", "the server closes in transmission"),
        ] {
            let id = format!("{}-cut-{name}", framing_name(framing));
            let sends = format!("{sends}: after some bytes, with --thorough at up to 4,096 places");
            let expects = "another exit status than 0, or all data; no hang, no crash";
            let case = cases.add("X3", id, sends, expects);
            let early = name == "handshake";
            case.run_client(move |trial| cuts(trial, framing, early));
        }
    }
    for_chunks(|framing, dialect| {
        let sends = "the same content chunk again and again, to READ";
        Turn::correct(
            "X3",
            format!("{framing}-flood-content"),
            sends,
            dialect.clone(),
        )
        .expect(Expect::Failure)
        .answer(Command::READ, |_, messages| flood(messages))
        .add(cases);
        let sends = "the same error chunk again and again, to READ";
        Turn::correct(
            "X3",
            format!("{framing}-flood-errors"),
            sends,
            dialect.clone(),
        )
        .expect(Expect::Failure)
        .answer(Command::READ, |reply, messages| {
            let error = reply.error_chunk(nbd_codec::wire::number::ErrorValue::EIO);
            *messages = vec![Message::Chunk(error)];
            flood(messages)
        })
        .add(cases);
        let sends = "the same status chunk again and again, to BLOCK_STATUS";
        Turn::correct("X3", format!("{framing}-flood-status"), sends, dialect)
            .expect(Expect::Failure)
            .answer(Command::BLOCK_STATUS, |_, messages| flood(messages))
            .add(cases);
    });
}

/// The first message without an end.
pub(super) fn flood(messages: &mut Vec<Message>) -> bool {
    let Some(first) = messages.first().cloned() else {
        return false;
    };
    let first = match first {
        Message::Chunk(mut chunk) => {
            chunk.flags = nbd_codec::wire::flags::ReplyFlags::NONE;
            Message::Chunk(chunk)
        }
        other => other,
    };
    *messages = vec![Message::Flood(Box::new(first))];
    true
}

/// How many cuts a case tries, unless it is to try all.
const SOME: u64 = 12;

fn cuts(trial: &Trial<'_>, framing: Framing, early: bool) -> Checked {
    needs_framing(trial, framing)?;
    let Some((sent, handshake)) = trial.profile.sent(framing) else {
        let reason = "the client does not get into transmission".to_owned();
        return Err(Stop::Unimplemented(reason));
    };
    let (start, end) = if early {
        (0, handshake)
    } else {
        (handshake, sent)
    };
    for at in places(start, end, trial.thorough) {
        let script = Script {
            cut: Some(at),
            ..Script::correct(Dialect::maximal(framing))
        };
        // In transmission all data may have come before.
        // So may all that the client wants to know.
        let profile = trial.profile;
        let moves = profile.reads || profile.commands.contains(&Command::WRITE);
        let expect = if early && moves {
            Expect::Failure
        } else {
            Expect::Cut
        };
        trial.expect("X3", &script, Spoils::Session, expect)?;
        if !trial.record.borrow().findings.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// Where to cut: at some places, the first and the last ones among them, or at many.
fn places(start: u64, end: u64, many: bool) -> Vec<u64> {
    let length = end.saturating_sub(start);
    if many {
        // Headers are at the beginning; of long data a part.
        let step = (length / 4096).max(1);
        return (start..end)
            .step_by(usize::try_from(step).unwrap_or(1))
            .collect();
    }
    let mut places: Vec<_> = (0..SOME).map(|n| start + length * n / SOME).collect();
    places.extend([start + 1, start + 17, end.saturating_sub(1)]);
    places.retain(|at| (start..end).contains(at));
    places.sort_unstable();
    places.dedup();
    places
}
