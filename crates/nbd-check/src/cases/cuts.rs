//! Clients that close in the middle of a message: other clients are served.

use std::thread::sleep;
use std::time::Duration;

use nbd_codec::wire::number::{Command, InfoType, OptionType as Opt};
use nbd_codec::wire::option::OptionHeader;

use crate::case::{Cases, Need, for_each_framing};
use crate::cases::options::data_of;
use crate::connection::Connection;
use crate::outcome::{Checked, found};
use crate::request::Request;
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    for (name, option) in [
        ("list", Opt::LIST),
        ("info", Opt::INFO),
        ("go", Opt::GO),
        ("export-name", Opt::EXPORT_NAME),
        ("set-meta-context", Opt::SET_META_CONTEXT),
    ] {
        cases
            .add(
                "T38",
                format!("cut-{name}"),
                format!("the client closes after each byte of {option}"),
                "other clients are served",
            )
            .run(move |t| {
                let data = match option {
                    Opt::LIST => vec![],
                    Opt::EXPORT_NAME => t.name().to_vec(),
                    Opt::SET_META_CONTEXT => t.context_data(&t.access.export, &["base:allocation"]),
                    _ => t.info_data(t.name(), &[InfoType::BLOCK_SIZE]),
                };
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let mut bytes = OptionHeader { option, length }.encode().to_vec();
                bytes.extend(data);
                each_cut(t, &bytes, |t| Ok(t.handshake()?.connection))
            });
    }
    for (name, option) in [
        ("list", Opt::LIST),
        ("go", Opt::GO),
        ("export-name", Opt::EXPORT_NAME),
    ] {
        cases
            .add(
                "T38",
                format!("close-after-{name}"),
                format!("client flags and {option} in one segment, then close, 100 times"),
                "other clients are served",
            )
            .needs(&[Need::NotForcedTls])
            .run(move |t| {
                let data = match option {
                    Opt::EXPORT_NAME => t.name().to_vec(),
                    option => data_of(t, option),
                };
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let mut bytes = t.client_flags().encode().to_vec();
                bytes.extend(OptionHeader { option, length }.encode());
                bytes.extend(data);
                // Whether the server replies before or after the client closes is chance.
                for _ in 0..100 {
                    // The server may be gone after one of them.
                    let Ok((mut connection, _)) = t.greeted() else {
                        break;
                    };
                    connection.send(&bytes, format!("client flags and {option}"));
                    connection.close();
                }
                still_served(t)
            });
    }
    cases
        .add(
            "T38",
            "cut-greeting",
            "the client closes before, within and after its flags",
            "other clients are served",
        )
        .run(|t| {
            let flags = t.client_flags().encode();
            each_cut(t, &flags, |t| Ok(t.greeted()?.0))
        });
    for_each_framing(|framing, short| {
        for command in [Command::READ, Command::WRITE] {
            let name = if command == Command::READ {
                "read"
            } else {
                "write"
            };
            let case = cases.add(
                "T38",
                format!("{short}-cut-{name}"),
                format!("the client closes after each byte of {command}"),
                "other clients are served",
            );
            case.needs(&[Need::Framing(framing), Need::Size(1 << 16)]);
            if command == Command::WRITE {
                case.needs(&[Need::Writes]);
            }
            case.run(move |t| {
                let unit = t.profile.unit();
                let request = match command {
                    Command::READ => Request::read(0, unit),
                    _ => Request::write(unit, vec![3; usize::try_from(unit).unwrap_or(0)]),
                };
                let (mut bytes, _) = t.session(framing)?.encode(request);
                bytes.truncate(40);
                each_cut(t, &bytes, |t| Ok(t.session(framing)?.connection))
            });
        }
        cases
            .add(
                "T38",
                format!("{short}-close-in-flight"),
                "the client closes with 32 READs of 64 KiB in flight, 8 times",
                "other clients are served",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                for _ in 0..8 {
                    let mut session = t.session(framing)?;
                    session.send_all((0..32).map(|_| Request::read(0, 1 << 16)).collect());
                    session.connection.close();
                }
                t.goes_on(t.handshake()?)
            });
    });
}

/// Opens a connection for each prefix of `bytes`, sends the prefix and closes.
fn each_cut(
    t: &Trial<'_>,
    bytes: &[u8],
    open: impl Fn(&Trial<'_>) -> Checked<Connection>,
) -> Checked {
    for end in 0..=bytes.len() {
        let opened = open(t);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(_) if end > 0 => {
                let sent = end - 1;
                return found("T38", format!("no service after a cut at byte {sent}"));
            }
            Err(stop) => return Err(stop),
        };
        if let Some(part) = bytes.get(..end).filter(|part| !part.is_empty()) {
            connection.send(part, "");
        }
        connection.close();
    }
    still_served(t)
}

/// Other clients are served.
fn still_served(t: &Trial<'_>) -> Checked {
    // What the client did may end the server a little later.
    sleep(Duration::from_millis(20));
    match t.handshake().and_then(|handshake| t.goes_on(handshake)) {
        Ok(()) => Ok(()),
        Err(_) => found(
            "T38",
            "no service after the client closed in the middle of a message",
        ),
    }
}
