//! Errors: one line on standard error and exit code 1, without hanging.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use nbd_test_support::images::{MIB, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::{Peer, poll_for};
use nbd_test_support::program::{start, wait};

use crate::nbd::{nbd, run_nbd};

/// Every command that takes one URI.
const COMMANDS: [&str; 4] = ["info", "list", "map", "read"];

#[test]
fn an_unknown_export() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, MIB, &[]);
    let peer = Peer::qemu(&["--format=raw", "--read-only", "-x", "disk"], &image);
    for command in ["info", "map", "read"] {
        run_nbd([command, &peer.uri("nodisk")]).refused(&[
            "\"nodisk\"",
            "no such export",
            "nbd list",
        ]);
    }
    let target = folder.path().join("target");
    let uri = peer.uri("nodisk");
    run_nbd(["copy".as_ref(), uri.as_ref(), target.as_os_str()]).refused(&["no such export"]);
    assert!(!target.exists(), "the destination is not created");
}

#[test]
fn a_server_that_requires_tls() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys.psk");
    fs::write(&keys, "alice:00112233445566778899aabbccddeeff\n").expect("keys");
    let keys = keys.to_str().expect("UTF-8");
    let peer = Peer::nbdkit(&[
        "--tls=require",
        &format!("--tls-psk={keys}"),
        "memory",
        "1M",
    ]);
    for command in COMMANDS {
        run_nbd([command, &peer.uri("")]).refused(&["TLS"]);
    }
}

#[test]
fn sockets_without_a_listener() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = format!("nbd+unix:///?socket={}/none", folder.path().display());
    let dead = folder.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("a socket"));
    let dead = format!("nbd+unix:///?socket={}", dead.display());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its number");
    drop(listener);
    let refused = format!("nbd://{address}");
    for command in COMMANDS {
        for uri in [&missing, &dead, &refused] {
            run_nbd([command, uri]).refused(&["cannot connect", "is the server running?"]);
        }
    }
}

#[test]
fn invalid_and_unsupported_uris() {
    for (uri, text) in [
        ("http://localhost", "no NBD scheme"),
        ("nbd://localhost/50%", "%25"),
        ("nbd+unix:///", "socket"),
        ("nbds://localhost", "TLS"),
        ("nbd+vsock://2", "vsock"),
        ("nbd+ssh://localhost", "SSH"),
        ("nbd://-oProxyCommand=x/", "-"),
    ] {
        for command in COMMANDS {
            run_nbd([command, uri]).refused(&[text]);
        }
    }
}

#[test]
fn unknown_parameters_are_reported() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["memory", "1M"]);
    let ended = run_nbd(["info", &format!("{}&sokcet=x", peer.uri(""))]).ok();
    assert!(
        ended
            .stderr
            .contains("warning: unknown parameter \"sokcet\""),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stderr.lines().count(), 1);
}

/// Serves one client: sends `text`, then waits until the client disconnects, or
/// closes the connection at once.
fn impostor(text: &'static [u8], stays: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its number");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(text).expect("sent");
        if stays {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    format!("nbd://{address}")
}

#[test]
fn peers_that_are_not_nbd_servers() {
    for command in COMMANDS {
        run_nbd([command, &impostor(b"SSH-2.0-OpenSSH_9.2\r\n", true)]).refused(&["not NBD"]);
        run_nbd([command, &impostor(b"", false)]).refused(&["closed the connection"]);
        run_nbd([command, &impostor(b"NBDMAGICIHAVEOPT", false)])
            .refused(&["closed the connection"]);
        let silent = [command, &impostor(b"NBDMAGIC", true), "--timeout", "0.2"];
        run_nbd(silent).refused(&["sent nothing", "--timeout"]);
    }
}

#[test]
fn a_server_killed_during_a_copy() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let target = folder.path().join("target");
    // Only data, and a tenth of a second for each request.
    sparse(&image, 256 * MIB, &[(0, 256 * MIB)]);
    let file = format!("file={}", image.to_str().expect("UTF-8"));
    let delayed = [
        "--filter=delay",
        "file",
        &file,
        "rdelay=100ms",
        "wdelay=100ms",
    ];

    let killed = |copy: &dyn Fn(&str) -> [std::ffi::OsString; 2]| {
        let mut peer = Peer::nbdkit(&delayed);
        let record = folder.path().join("record");
        let _ = fs::remove_file(&record);
        let mut command = nbd();
        command.arg("copy").arg("--record").arg(&record);
        let child = start(command.args(copy(&peer.uri(""))));
        poll_for("a first command", || {
            let text = fs::read_to_string(&record).ok()?;
            text.contains("C: 25609513").then_some(())
        });
        peer.kill();
        wait(child).refused(&["connection", peer.socket().to_str().expect("UTF-8")]);
    };
    killed(&|uri| [uri.into(), target.clone().into()]);
    killed(&|uri| [image.clone().into(), uri.into()]);
}

#[test]
fn a_read_or_write_that_fails_fails_the_copy() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let target = folder.path().join("target");
    sparse(&image, 8 * MIB, &[(0, 8 * MIB)]);
    let file = format!("file={}", image.to_str().expect("UTF-8"));
    for framing in ["simple", "structured"] {
        let reads = [
            "--filter=error",
            "file",
            &file,
            "error-pread=EIO",
            "error-pread-rate=100%",
        ];
        let peer = Peer::nbdkit(&reads);
        let args = ["copy", "--framing", framing, &peer.uri("")].map(str::to_owned);
        let target = target.to_str().expect("UTF-8").to_owned();
        run_nbd(args.into_iter().chain([target])).refused(&["read of", "input/output error"]);

        let writes = [
            "--filter=error",
            "memory",
            "8M",
            "error-pwrite=ENOSPC",
            "error-pwrite-rate=100%",
        ];
        let peer = Peer::nbdkit(&writes);
        let path = image.to_str().expect("UTF-8");
        run_nbd(["copy", "--framing", framing, path, &peer.uri("")])
            .refused(&["write of", "no space left"]);
    }
}

#[test]
fn a_closed_standard_output_is_not_reported() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["pattern", "64M"]);
    let mut child = start(nbd().args(["read", &peer.uri("")]).stdout(Stdio::piped()));
    let mut first = [0; 16];
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut first).expect("the first bytes");
    drop(stdout);
    let ended = wait(child);
    assert_eq!(ended.stderr, "");
    assert_eq!(ended.code, Some(1));
}

#[test]
fn a_record_is_a_transcript() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let record = folder.path().join("record");
    let path = record.to_str().expect("UTF-8");
    let peer = Peer::nbdkit(&["memory", "1M"]);
    run_nbd(["map", &peer.uri(""), "--record", path]).ok();
    let text = fs::read_to_string(&record).expect("a record");
    let text = text.strip_prefix("# connection\n").expect("its first line");
    let sides: Vec<_> = text.lines().map(|line| line.split_at(3)).collect();
    assert!(sides.iter().all(|(side, hex)| {
        ["C: ", "S: "].contains(side) && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    }));
    // The greeting, and NBD_CMD_DISC.
    assert!(sides[0].1.starts_with("4e42444d41474943") && sides[0].0 == "S: ");
    let last = sides[sides.len() - 1];
    assert!(
        last.1.starts_with("2560951300000002") && last.0 == "C: ",
        "{last:?}"
    );
}
