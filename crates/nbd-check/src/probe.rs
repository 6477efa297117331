//! Finds out what a server is and has.

use std::time::Duration;

use nbd_codec::Framing;
use nbd_codec::wire::flags::{HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::{InfoType, OptionReplyType, OptionType};

use crate::cases::options::{COMBINED, data_of};
use crate::handshake::Export;
use crate::handshake::greeting;
use crate::outcome::{Checked, Stop};
use crate::profile::{FRAMINGS, Profile, TlsMode};
use crate::request::Request;
use crate::trial::{Access, Trial};

/// How long a second client waits for its greeting.
const SECOND_CLIENT: Duration = Duration::from_millis(500);

/// Connects a few times.
///
/// # Errors
///
/// The server cannot be tested at all: no greeting, or no way into transmission.
pub(crate) fn probe(access: &Access, force_tls: bool) -> Checked<Profile> {
    let mut profile = Profile {
        oldstyle: false,
        handshake_flags: HandshakeFlags::NONE,
        tls: TlsMode::None,
        uses_tls: force_tls,
        go: true,
        answers: Vec::new(),
        list: true,
        exports: [None; 3],
        contexts: Vec::new(),
        filters: false,
        refuses_names: false,
        concurrent: false,
        first_block: Vec::new(),
    };
    let mut connection = Trial::new(access, &profile).connect()?;
    match greeting(&mut connection)? {
        Greeting::Oldstyle(greeting) => {
            profile.oldstyle = true;
            profile.handshake_flags = greeting.handshake_flags;
            profile.exports[0] = Some(Export {
                size: greeting.size,
                flags: greeting.flags,
                block_sizes: None,
            });
            profile.uses_tls = false;
            return Ok(profile);
        }
        Greeting::Newstyle(greeting) => profile.handshake_flags = greeting.flags,
    }
    profile.concurrent = second_client(access, &profile);
    drop(connection);

    profile.tls = tls_mode(access, &profile);
    profile.uses_tls |= profile.tls == TlsMode::Forced;
    let trial = Trial::new(access, &profile);
    let go = supports(&trial, OptionType::GO);
    let list = supports(&trial, OptionType::LIST);
    let all = COMBINED.into_iter().chain([OptionType::EXTENDED_HEADERS]);
    let answers = all.filter(|option| answers(&trial, *option));
    let answers = answers.collect();
    (profile.go, profile.list, profile.answers) = (go, list, answers);
    for framing in FRAMINGS {
        let trial = Trial::new(access, &profile);
        match trial.session(framing) {
            Ok(session) => profile.set_export(framing, session.export),
            Err(Stop::Unimplemented(_)) => {}
            // Cases report what it is.
            Err(_) if profile.any().is_some() => {}
            Err(stop) => return Err(stop),
        }
    }
    profile.contexts = contexts(access, &profile);
    profile.filters = filters(&Trial::new(access, &profile));
    profile.refuses_names = refuses_names(&Trial::new(access, &profile));
    profile.first_block = first_block(&Trial::new(access, &profile)).unwrap_or_default();
    Ok(profile)
}

/// Whether a second client is greeted.
fn second_client(access: &Access, profile: &Profile) -> bool {
    let access = Access {
        timeout: access.timeout.min(SECOND_CLIENT),
        ..access.clone()
    };
    Trial::new(&access, profile).greeted().is_ok()
}

fn tls_mode(access: &Access, profile: &Profile) -> TlsMode {
    let reply = |option| {
        let trial = Trial::new(access, profile);
        let mut handshake = trial.plain_handshake(trial.client_flags()).ok()?;
        Some(handshake.ask(option, &[]).ok()?.end)
    };
    if reply(OptionType::STARTTLS) != Some(OptionReplyType::ACK) {
        return TlsMode::None;
    }
    match reply(OptionType::LIST) {
        Some(OptionReplyType::ERR_TLS_REQD) => TlsMode::Forced,
        _ => TlsMode::Selective,
    }
}

/// Whether the server knows an option.
fn supports(trial: &Trial<'_>, option: OptionType) -> bool {
    let data = match option {
        OptionType::GO => trial.info_data(trial.name(), &[InfoType::BLOCK_SIZE]),
        _ => Vec::new(),
    };
    let reply = trial
        .handshake()
        .and_then(|mut handshake| handshake.ask(option, &data));
    match reply {
        Ok(replies) => replies.end != OptionReplyType::ERR_UNSUP,
        // It is not refused as unsupported: a case finds what is wrong.
        Err(Stop::Found(finding)) => finding.duty.id != "H17",
        Err(_) => true,
    }
}

/// Whether the server answers an option, if only by an error.
fn answers(trial: &Trial<'_>, option: OptionType) -> bool {
    let handshake = trial.handshake();
    let replies = handshake.and_then(|mut one| one.ask(option, &data_of(trial, option)));
    replies.is_ok()
}

/// The contexts that can be selected.
fn contexts(access: &Access, profile: &Profile) -> Vec<String> {
    for framing in FRAMINGS.into_iter().rev() {
        if profile.export(framing).is_none() {
            continue;
        }
        let trial = Trial::new(access, profile);
        let list = || {
            let mut handshake = trial.handshake()?;
            trial.agree(&mut handshake, framing)?;
            let data = trial.context_data(&access.export, &[]);
            let replies = handshake.ask(OptionType::LIST_META_CONTEXT, &data)?;
            let mut names: Vec<_> = replies
                .contexts()
                .into_iter()
                .map(|(_, name)| name)
                .collect();
            if names.is_empty() {
                names.push("base:allocation".to_owned());
            }
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            trial.select(&mut handshake, &names)
        };
        return match list() {
            Ok(selected) => selected.into_iter().map(|(_, name)| name).collect(),
            Err(_) => Vec::new(),
        };
    }
    Vec::new()
}

/// Whether `BLOCK_STATUS_PAYLOAD` is advertised to a client that selected contexts.
fn filters(trial: &Trial<'_>) -> bool {
    let session = if trial.profile.contexts.is_empty() {
        None
    } else {
        trial.status_session(Framing::Extended).ok()
    };
    let flags = session.map(|session| session.export.flags);
    flags.is_some_and(|flags| flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD))
}

/// A name that no export has.
pub(crate) const NO_EXPORT: &[u8] = b"nbd-check: no export has this name";

fn refuses_names(trial: &Trial<'_>) -> bool {
    let ask = || {
        let mut handshake = trial.handshake()?;
        if !trial.profile.go {
            return Ok(handshake.export_name(NO_EXPORT)?.is_err());
        }
        let data = trial.info_data(NO_EXPORT, &[]);
        Ok::<_, Stop>(!handshake.ask(OptionType::INFO, &data)?.is_ack())
    };
    ask().unwrap_or(true)
}

fn first_block(trial: &Trial<'_>) -> Checked<Vec<u8>> {
    let length = trial.profile.unit();
    if trial.profile.size() < length {
        return Ok(Vec::new());
    }
    let mut session = trial.session(Framing::Simple)?;
    let reply = session.ask(Request::read(0, length))?;
    Ok(if reply.is_success() {
        reply.data
    } else {
        Vec::new()
    })
}
