//! `nbd decode` and `nbd tap` on the recorded sessions: the same transcript from the
//! recording, from captures of its packets, and from a tap between its two sides.
//! With `NBD_CODEC_BLESS=1` the transcripts are written again; check them before they
//! are committed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use nbd_test_support::needs;
use nbd_test_support::peer::{Peer, poll_for};
use nbd_test_support::program::{start, wait};
use serde_json::Value;

use super::capture::{Packets, in_order, jumbled};
use super::nbd::{nbd, run_nbd};

/// A line of a session: whether the client sent it, and its bytes.
pub type Line = (bool, Vec<u8>);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sessions")
}

fn sessions() -> Vec<PathBuf> {
    let files = fs::read_dir(folder()).expect("the folder of the sessions");
    let paths = files.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 16, "sessions are missing");
    paths
}

fn lines(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).expect("a session");
    let line = |line: &str| {
        let (key, digits) = line.split_once(": ")?;
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
        let bytes = || (0..digits.len()).step_by(2).map(byte).collect();
        matches!(key, "C" | "S").then(|| (key == "C", bytes()))
    };
    text.lines().filter_map(line).collect()
}

fn golden(path: &Path) -> String {
    let name = path.file_name().expect("a name");
    fs::read_to_string(folder().join("decoded").join(name)).expect("a transcript")
}

fn decode(path: &Path) -> String {
    let ended = run_nbd(["decode".as_ref(), path.as_os_str()]).ok();
    String::from_utf8(ended.stdout).expect("text")
}

#[test]
fn recordings_have_their_transcripts() {
    for path in sessions() {
        let seen = decode(&path);
        if std::env::var_os("NBD_CODEC_BLESS").is_some() {
            let name = path.file_name().expect("a name");
            fs::write(folder().join("decoded").join(name), &seen).expect("a transcript");
        }
        assert_eq!(seen, golden(&path), "{}", path.display());
    }
}

#[test]
fn captures_have_the_same_transcripts() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in sessions() {
        for (packets, name) in [(Packets::Pcap, "a.pcap"), (Packets::PcapNg, "a.pcapng")] {
            for capture in [in_order(&lines(&path)), jumbled(&lines(&path))] {
                let file = folder.path().join(name);
                fs::write(&file, packets.file(&capture)).expect("a capture");
                assert_eq!(decode(&file), golden(&path), "{} as {name}", path.display());
            }
        }
    }
}

/// Both sides of a session are played to a tap between them.
#[test]
fn a_tap_has_the_same_transcript() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in sessions() {
        let lines = lines(&path);
        let (socket, tap) = (folder.path().join("server"), folder.path().join("tap"));
        let server = UnixListener::bind(&socket).expect("a socket");
        let uri = |path: &Path| format!("nbd+unix:///?socket={}", path.display());
        let child = start(nbd().args([
            "tap",
            "--once",
            "--listen",
            &uri(&tap),
            "--connect",
            &uri(&socket),
        ]));
        let client = poll_for("a tap", || UnixStream::connect(&tap).ok());
        let (server, _) = server.accept().expect("the tap connects");
        let played = lines.clone();
        let server = thread::spawn(move || play(server, &played, false));
        play(client, &lines, true);
        server.join().expect("the server");
        let ended = wait(child).ok();
        assert_eq!(
            String::from_utf8(ended.stdout).expect("text"),
            golden(&path),
            "{}",
            path.display()
        );
        fs::remove_file(&socket).expect("the socket");
        assert!(!tap.exists(), "the tap leaves its socket");
    }
}

/// Plays one side, and checks what comes from the other.
fn play(mut stream: UnixStream, lines: &[Line], client: bool) {
    for (from_client, bytes) in lines {
        if *from_client == client {
            stream.write_all(bytes).expect("the tap reads");
        } else {
            let mut received = vec![0; bytes.len()];
            stream.read_exact(&mut received).expect("the tap writes");
            assert!(received == *bytes, "the tap changes bytes");
        }
    }
    if client {
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("half of a close");
    }
    let mut rest = Vec::new();
    // The client closes first, the server when it has seen that.
    stream.read_to_end(&mut rest).expect("the end is passed on");
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn json_has_a_line_for_each_message() {
    for path in sessions() {
        let args = ["decode".as_ref(), path.as_os_str(), "--json".as_ref()];
        let text = String::from_utf8(run_nbd(args).ok().stdout).expect("text");
        assert_eq!(
            text.lines().count(),
            golden(&path).lines().count(),
            "{text}"
        );
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(value["connection"], 1, "{line}");
            assert!(
                ["C", "S"].contains(&value["side"].as_str().expect("a side")),
                "{line}"
            );
            assert!(value["type"].is_string(), "{line}");
        }
    }
}

#[test]
fn the_end_of_a_capture_that_lacks_bytes_is_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gap.pcap");
    for path in sessions() {
        let mut packets = in_order(&lines(&path));
        // The first segment of the client, after those that connect.
        packets.remove(3);
        fs::write(&file, Packets::Pcap.file(&packets)).expect("a capture");
        let args = ["decode".as_ref(), file.as_os_str(), "--json".as_ref()];
        let text = String::from_utf8(run_nbd(args).stdout).expect("text");
        let values: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let last = values.last().expect("a line");
        assert_eq!(last["type"], "end", "{text}");
    }
}

#[test]
fn hex_has_every_byte() {
    for path in sessions() {
        let args = ["decode".as_ref(), path.as_os_str(), "--hex".as_ref()];
        let text = String::from_utf8(run_nbd(args).ok().stdout).expect("text");
        for client in [true, false] {
            let key = if client { "C:   " } else { "S:   " };
            let digits = text.lines().filter_map(|line| line.strip_prefix(key));
            let is_hex = |line: &&str| line.bytes().all(|byte| byte.is_ascii_hexdigit());
            let digits: String = digits.filter(is_hex).collect();
            let all = lines(&path).into_iter().filter(|line| line.0 == client);
            let all: String = all
                .flat_map(|line| line.1)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert!(digits == all, "{}: {digits}\n{all}", path.display());
        }
    }
}

/// The exit code tells, and `--quiet` prints nothing else.
#[test]
fn broken_rules_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("session.txt");
    let text = "S: 4e42444d4147494349484156454f50540001\nC: 00000003\nC: 49484156454f50540000000300000000\n";
    fs::write(&file, text).expect("a session");
    let finding =
        "! the client: client flags that were not offered: FIXED_NEWSTYLE | NO_ZEROES [O10]\n";
    let ended = run_nbd(["decode".as_ref(), file.as_os_str(), "--quiet".as_ref()]);
    assert_eq!(String::from_utf8_lossy(&ended.stdout), finding);
    ended.refused(&["a rule of the protocol was broken"]);
    let ended = run_nbd(["decode".as_ref(), file.as_os_str(), "--json".as_ref()]);
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let line = text
        .lines()
        .find(|line| line.contains("violation"))
        .expect("a violation");
    let value: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(
        (&value["duty"], &value["lost"]),
        (&"O10".into(), &false.into())
    );
}

/// An export without bytes is asked for its description on a second connection.
#[test]
fn each_recorded_connection_has_its_transcript() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("record");
    let peer = Peer::nbdkit(&["memory", "0"]);
    for _ in 0..2 {
        let uri = peer.uri("");
        run_nbd([
            "info".as_ref(),
            "--record".as_ref(),
            file.as_os_str(),
            uri.as_ref(),
        ])
        .ok();
    }
    let text = decode(&file);
    assert_eq!(text.matches("! the").count(), 0, "{text}");
    assert!(text.lines().any(|line| line.starts_with("2 S: ")), "{text}");
}

#[test]
fn what_is_no_session_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |content: &[u8], text: &str| {
        let file = folder.path().join("file");
        fs::write(&file, content).expect("a file");
        run_nbd(["decode".as_ref(), file.as_os_str()]).refused(&[text]);
    };
    refused(b"", "no lines of a recorded session");
    refused(b"C: 0", "line 1: not hexadecimal");
    refused(b"\xff\xfe", "not a recorded session, and not a capture");
    refused(&Packets::Pcap.file(&[]), "no NBD connection");
    refused(b"\xa1\xb2\xc3\xd4rest", "the capture is damaged");
    let other = [
        (true, b"GET / HTTP/1.1\r\n".to_vec()),
        (false, b"HTTP/1.1 400\r\n".to_vec()),
    ];
    refused(
        &Packets::PcapNg.file(&in_order(&other)),
        "no NBD connection",
    );
}
