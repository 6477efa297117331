//! How bytes arrive: in pieces, all at once, late; and clients beside each other.

use std::thread::sleep;
use std::time::Duration;

use nbd_codec::Framing;
use nbd_codec::wire::number::{Command, Cookie, InfoType, OptionType as Opt};
use nbd_codec::wire::option::OptionHeader;

use crate::case::{Cases, Need, for_each_framing};
use crate::outcome::{Checked, Finding, found};
use crate::request::Request;
use crate::session::Answer;

pub(super) fn add(cases: &mut Cases) {
    pieces(cases);
    in_flight(cases);
    ends(cases);
    others(cases);
}

/// How long is waited for what the specification does not demand.
const UNSPECIFIED: Duration = Duration::from_millis(500);

fn pieces(cases: &mut Cases) {
    cases
        .add(
            "B5",
            "byte-by-byte",
            "LIST and GO, byte by byte",
            "the same replies",
        )
        .run(|t| {
            let mut handshake = t.handshake()?;
            let go = t.info_data(t.name(), &[InfoType::BLOCK_SIZE]);
            let last = if t.profile.go { Opt::GO } else { Opt::LIST };
            for (option, data) in [(Opt::LIST, &[][..]), (last, &go)] {
                let data = if option == Opt::LIST { &[] } else { data };
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let mut bytes = OptionHeader { option, length }.encode().to_vec();
                bytes.extend(data);
                for byte in bytes {
                    handshake.connection.send(&[byte], "");
                }
                handshake.replies(option)?;
            }
            Ok(())
        });
    for_each_framing(|framing, short| {
        cases
            .add(
                "B8",
                format!("{short}-byte-by-byte"),
                "a READ, byte by byte",
                "the data",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let (bytes, reply) = session.encode(Request::read(0, t.profile.unit()));
                let cookie = reply.cookie;
                session.expect(reply);
                for byte in bytes {
                    session.connection.send(&[byte], "");
                }
                let reply = session.reply(cookie)?;
                t.expect_success(&reply, "R81")?;
                session.still_good()?;
                session.disconnect()
            });
        cases
            .add(
                "B8",
                format!("{short}-write-in-pieces"),
                "a WRITE of 64 KiB in pieces of 1000 bytes, followed by a READ",
                "both replies",
            )
            .needs(&[Need::Framing(framing), Need::Writes, Need::Size(1 << 18)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let at = t.profile.unit().max(1 << 16);
                let (mut bytes, write) = session.encode(Request::write(at, vec![7; 1 << 16]));
                let (more, read) = session.encode(Request::read(at, 1 << 16));
                bytes.extend(more);
                let cookies = [write.cookie, read.cookie];
                session.expect(write);
                session.expect(read);
                for piece in bytes.chunks(1000) {
                    session.connection.send(piece, "");
                }
                for cookie in cookies {
                    let reply = session.reply(cookie)?;
                    t.expect_success(&reply, "B8")?;
                }
                session.still_good()?;
                session.disconnect()
            });
    });
}

fn in_flight(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        cases
            .add(
                "T4",
                format!("{short}-in-one-segment"),
                "64 READs in one segment",
                "64 replies in any order",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let unit = t.profile.unit();
                let requests = (0..64).map(|n| Request::read(n % 8 * unit, unit)).collect();
                if t.profile.size() < 8 * unit {
                    return Err(crate::outcome::Stop::Skipped(
                        "the export is too small".into(),
                    ));
                }
                session.send_all(requests);
                drain(&mut session)?;
                session.still_good()?;
                session.disconnect()
            });
        cases
            .add(
                "T15",
                format!("{short}-slow-reader"),
                "32 READs of 64 KiB; nothing is read for half a second",
                "32 replies",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                session.send_all((0..32).map(|_| Request::read(0, 1 << 16)).collect());
                sleep(Duration::from_millis(500));
                drain(&mut session)?;
                session.still_good()?;
                session.disconnect()
            });
        cases
            .add(
                "R112",
                format!("{short}-disc-in-flight"),
                "8 READs and DISC in one segment",
                "8 replies, then the end of the connection",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let unit = t.profile.unit();
                let mut requests: Vec<_> = (0..8).map(|_| Request::read(0, unit)).collect();
                requests.push(Request::new(Command::DISC, 0, 0));
                session.send_all(requests);
                while session.in_flight() > 0 {
                    if let Err(end) = session.receive()? {
                        if !end.is_by_server() {
                            return found("T32", "neither replies nor the end of the connection");
                        }
                        // The client SHOULD wait before it sends DISC.
                        let actual = format!("{} replies are missing", session.in_flight());
                        t.note(Finding::new("R112", actual).advised());
                        return Ok(());
                    }
                }
                match session.connection.expect_end() {
                    Ok(_) => Ok(()),
                    Err(_) => found("T32", "the connection stays open after NBD_CMD_DISC"),
                }
            });
        cases
            .add(
                "R112",
                format!("{short}-disc-after-write"),
                "a WRITE and DISC in one segment, then READ on a new connection",
                "what was written",
            )
            .needs(&[Need::Framing(framing), Need::Writes, Need::Size(1 << 18)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let (unit, at) = (t.profile.unit(), t.profile.unit() * 4);
                let seed = u8::try_from(short.len()).unwrap_or(0);
                let data = vec![seed ^ 0xa5; usize::try_from(unit).unwrap_or(0)];
                let write = Request::write(at, data.clone()).cookie(1);
                session.send_all(vec![write, Request::new(Command::DISC, 0, 0)]);
                let cookie = Cookie(1);
                let answer = session.wait(cookie)?;
                if let Answer::Reply(reply) = &answer
                    && !reply.is_success()
                {
                    t.note(Finding::new("R112", reply.describe()).advised());
                    return Ok(());
                }
                let mut again = t.session(framing)?;
                for attempt in 0..20 {
                    let reply = again.ask(Request::read(at, unit))?;
                    if reply.data == data {
                        if attempt > 0 {
                            let actual = "the WRITE was handled after the connection was closed";
                            t.note(Finding::new("R112", actual).advised());
                        }
                        return again.disconnect();
                    }
                    sleep(Duration::from_millis(50));
                }
                match answer {
                    Answer::Reply(_) => found("R110", "the WRITE before NBD_CMD_DISC was lost"),
                    Answer::Closed(_) => found("R112", "the WRITE before NBD_CMD_DISC was lost"),
                }
            });
    });
}

/// Receives until nothing is in flight.
fn drain(session: &mut crate::session::Session) -> Checked {
    while session.in_flight() > 0 {
        if let Err(end) = session.receive()? {
            let id = if end.is_by_server() { "T38" } else { "T15" };
            return found(
                id,
                format!("{} replies are missing: {end}", session.in_flight()),
            );
        }
    }
    Ok(())
}

fn ends(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        cases
            .add(
                "T32",
                format!("{short}-disc"),
                "DISC",
                "the end of the connection",
            )
            .needs(&[Need::Framing(framing)])
            .run(move |t| t.session(framing)?.disconnect());
        cases
            .add(
                "T38",
                format!("{short}-half-close"),
                "a READ, then the client ends its side of the stream",
                "the reply, then the end of the connection",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let cookie = session.send(Request::read(0, t.profile.unit()));
                session.connection.shutdown();
                match session.wait(cookie)? {
                    Answer::Reply(_) => {}
                    Answer::Closed(end) => {
                        let actual = format!("the connection was {end} without a reply");
                        t.note(Finding::new("T38", actual).for_information());
                        return Ok(());
                    }
                }
                if session.connection.expect_end_within(UNSPECIFIED).is_err() {
                    let actual = "the connection stays open after the client ended its side";
                    t.note(Finding::new("T38", actual).for_information());
                }
                Ok(())
            });
        cases
            .add(
                "T38",
                format!("{short}-magic"),
                "a request with another magic number",
                "the end of the connection, or an error; other clients are served",
            )
            .needs(&[Need::Framing(framing)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let (mut bytes, _) = session.encode(Request::read(0, t.profile.unit()));
                bytes[0] ^= 0xff;
                session.connection.send(&bytes, "not a request");
                if session.connection.expect_end_within(UNSPECIFIED).is_err() {
                    let actual = "the connection stays open after a wrong magic number";
                    t.note(Finding::new("T38", actual).for_information());
                }
                drop(session);
                t.goes_on(t.handshake()?)
            });
    });
    for (framing, other, name) in [
        (Framing::Simple, Framing::Extended, "extended-request"),
        (Framing::Extended, Framing::Simple, "compact-request"),
    ] {
        cases
            .add(
                "T38",
                format!("{name}-not-negotiated"),
                "a request of another framing",
                "the end of the connection, or an error; other clients are served",
            )
            .needs(&[Need::Framing(framing), Need::Size(1 << 16)])
            .run(move |t| {
                let mut session = t.session(framing)?;
                let request = Request::read(0, t.profile.unit());
                let (_, reply) = session.encode(request.clone());
                let bytes = request.encode(other, reply.cookie);
                session
                    .connection
                    .send(&bytes, "a request of another framing");
                session.connection.shutdown();
                match session.connection.expect_end() {
                    Ok(_) => {}
                    Err(bytes) => {
                        let actual = format!("{} bytes instead of the end", bytes.len());
                        t.note(Finding::new("T38", actual).for_information());
                    }
                }
                drop(session);
                t.goes_on(t.handshake()?)
            });
    }
}

/// Clients beside each other.
fn others(cases: &mut Cases) {
    cases
        .add(
            "H17",
            "silent-client",
            "a client that sends nothing, and another one",
            "the other one is served",
        )
        .needs(&[Need::Concurrent])
        .run(|t| {
            let _silent = t.connect()?;
            let (_greeted, _) = t.greeted()?;
            t.goes_on(t.handshake()?)
        });
    cases
        .add(
            "H17",
            "sixteen-clients",
            "16 clients that negotiate, one after the other; all stay",
            "each is served, or a limit is reported",
        )
        .needs(&[Need::Concurrent])
        .run(|t| {
            let mut clients = Vec::new();
            for n in 0..16 {
                match t.handshake() {
                    Ok(client) => clients.push(client),
                    // A server may limit its clients.
                    Err(_) => {
                        let actual = format!("client {n} is not served beside the others");
                        t.note(Finding::new("H17", actual).for_information());
                        break;
                    }
                }
            }
            drop(clients);
            sleep(Duration::from_millis(20));
            t.goes_on(t.handshake()?)
        });
    cases
        .add(
            "T38",
            "reads-beside-a-stalled-client",
            "a client with 32 READs that it does not read, and another one",
            "the other one is served",
        )
        .needs(&[Need::Concurrent, Need::Size(1 << 16)])
        .run(|t| {
            let mut stalled = t.session(Framing::Simple)?;
            stalled.send_all((0..32).map(|_| Request::read(0, 1 << 16)).collect());
            t.goes_on(t.handshake()?)?;
            drain(&mut stalled)
        });
}
