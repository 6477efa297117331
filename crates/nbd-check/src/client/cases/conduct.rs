//! What the client sends to correct servers, and how it leaves: a case for each duty.

use nbd_codec::wire::number::{Command, OptionType};

use crate::case::Cases;
use crate::client::Trial;
use crate::duty::duty;
use crate::outcome::Stop;

/// What a client must have sent for a duty to matter.
#[derive(Clone, Copy)]
enum About {
    Anything,
    Option(OptionType),
    Command(Command),
}

const ANY: About = About::Anything;
const INFO: About = About::Option(OptionType::GO);
const SET: About = About::Option(OptionType::SET_META_CONTEXT);
const LIST: About = About::Option(OptionType::LIST_META_CONTEXT);
const WRITE: About = About::Command(Command::WRITE);
const READ: About = About::Command(Command::READ);

const DUTIES: &[(&str, About)] = &[
    ("C1", ANY),
    ("C2", ANY),
    ("C3", ANY),
    ("H8", ANY),
    ("O8", ANY),
    ("O10", ANY),
    ("H9", ANY),
    ("H10", ANY),
    ("H15", ANY),
    ("O28", About::Option(OptionType::EXPORT_NAME)),
    ("O31", About::Option(OptionType::ABORT)),
    ("O35", About::Option(OptionType::LIST)),
    ("O37", About::Option(OptionType::STARTTLS)),
    ("O42", INFO),
    ("O44", INFO),
    ("O62", About::Option(OptionType::STRUCTURED_REPLY)),
    ("O69", LIST),
    ("O72", LIST),
    ("O85", SET),
    ("O91", SET),
    ("O97", About::Option(OptionType::EXTENDED_HEADERS)),
    ("O104", ANY),
    ("O105", ANY),
    ("T3", ANY),
    ("T9", ANY),
    ("T11", WRITE),
    ("T37", ANY),
    ("T38", ANY),
    ("S6", READ),
    ("S19", READ),
    ("S22", READ),
    ("S24", READ),
    ("M4", About::Command(Command::BLOCK_STATUS)),
    ("O13", ANY),
    ("R1", ANY),
    ("R8", READ),
    ("R11", About::Command(Command::WRITE_ZEROES)),
    ("R79", READ),
    ("R108", WRITE),
    ("R113", About::Command(Command::DISC)),
    ("R114", About::Command(Command::DISC)),
    ("R116", About::Command(Command::FLUSH)),
    ("R117", About::Command(Command::FLUSH)),
    ("R118", About::Command(Command::TRIM)),
    ("R121", About::Command(Command::TRIM)),
    ("R125", About::Command(Command::WRITE_ZEROES)),
    ("R128", About::Command(Command::WRITE_ZEROES)),
    ("R141", About::Command(Command::BLOCK_STATUS)),
    ("R146", About::Command(Command::BLOCK_STATUS)),
    ("R147", About::Command(Command::BLOCK_STATUS)),
];

pub(super) fn add(cases: &mut Cases) {
    for (id, about) in DUTIES {
        let sends = "correct servers of every framing, minimal, maximal, read-only, and with \
                     coarse block sizes";
        let case = cases.add(id, "conduct", sends, duty(id).text);
        case.run_client(|trial| conduct(trial, id, *about));
    }
    let case = cases.add(
        "O19",
        "conduct",
        "correct servers without CAN_MULTI_CONN",
        "one connection at a time for data",
    );
    case.run_client(|trial| {
        let several = trial.profile.at_a_time;
        if several > 1 {
            let actual = format!("{several} connections in transmission at a time");
            return crate::outcome::found("O19", actual);
        }
        Ok(())
    });
}

fn conduct(trial: &Trial<'_>, id: &str, about: About) -> crate::outcome::Checked {
    let profile = trial.profile;
    let broken = profile
        .conduct
        .iter()
        .find(|(finding, _)| finding.duty.id == id);
    if let Some((finding, transcript)) = broken {
        trial.record.borrow_mut().entries.clone_from(transcript);
        return Err(finding.clone().into());
    }
    let missing = match about {
        About::Anything => None,
        About::Option(option) => {
            let has = profile.options.contains(&option);
            (!has).then(|| option.to_string())
        }
        About::Command(command) => {
            let has = profile.commands.contains(&command);
            (!has).then(|| command.to_string())
        }
    };
    match missing {
        Some(what) => Err(Stop::Unimplemented(format!("the client sends no {what}"))),
        None => Ok(()),
    }
}
