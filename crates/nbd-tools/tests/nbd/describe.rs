//! Descriptions, compared with those of `nbdinfo`.

use std::process::Command;

use nbd_test_support::images::{MIB, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use serde_json::Value;

use crate::nbd::run_nbd;

/// `nbd` prints the same keys in the same order with the same values, except for
/// the key that `nbdinfo` lacks. Returns the output of `nbd`.
#[track_caller]
fn assert_like_nbdinfo(command: &str, uri: &str, extended: bool) -> Value {
    let mut nbdinfo = Command::new("nbdinfo");
    nbdinfo.args(["--json", "--no-content", uri]);
    if command == "list" {
        nbdinfo.arg("--list");
    }
    let expected = run(&mut nbdinfo).json();
    let output = run_nbd([command, uri, "--json"]).json();
    let mut alike = output.clone();
    let own = alike
        .as_object_mut()
        .and_then(|object| object.shift_remove("extended"));
    assert_eq!(own, Some(Value::Bool(extended)));
    // As text, because the order matters.
    assert_eq!(alike.to_string(), expected.to_string());
    output
}

#[test]
fn exports_of_qemu_nbd() {
    needs!("qemu-nbd", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 65 * MIB, &[]);
    for args in [
        &[
            "--format=raw",
            "--read-only",
            "-x",
            "a disk",
            "-D",
            "its description",
            "-A",
        ][..],
        &["--format=raw", "-x", "a disk", "--discard=unmap"],
    ] {
        let peer = Peer::qemu(args, &image);
        let uri = peer.uri("a%20disk");
        let info = assert_like_nbdinfo("info", &uri, true);
        assert_eq!(info["exports"][0]["export-size-str"], "65M");
        assert_eq!(info["exports"][0]["block_size_minimum"], 1);
        assert_like_nbdinfo("list", &uri, true);
    }
}

#[test]
fn exports_of_nbdkit() {
    needs!("nbdkit", "nbdinfo");
    for args in [
        &["memory", "1536M"][..],
        &["--readonly", "memory", "65537"],
        &["--no-sr", "memory", "1M"],
        &["--mask-handshake=1", "memory", "1M"],
    ] {
        let peer = Peer::nbdkit(args);
        assert_like_nbdinfo("info", &peer.uri(""), false);
        assert_like_nbdinfo("list", &peer.uri(""), false);
    }
    let names = [
        "exportname=a",
        "exportname=ä b",
        "exportname-list=explicit",
        "exportdesc=fixed:hello",
    ];
    let args = [&["--filter=exportname", "memory", "1M"], &names[..]].concat();
    let peer = Peer::nbdkit(&args);
    let list = assert_like_nbdinfo("list", &peer.uri(""), false);
    assert_eq!(list["exports"][1]["export-name"], "ä b");
    assert_eq!(list["exports"][1]["description"], "hello");
}

#[test]
fn the_largest_export() {
    needs!("nbdkit", "nbdinfo");
    let peer = Peer::nbdkit(&["null", "9223372036854775807"]);
    let uri = peer.uri("");
    let info = assert_like_nbdinfo("info", &uri, false);
    assert_eq!(info["exports"][0]["export-size"], i64::MAX);
    let text = run_nbd(["info", &uri]).ok().stdout;
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(
        text.contains("8.0 EiB (9223372036854775807 bytes)"),
        "{text}"
    );
}

#[test]
fn an_export_of_nbd_server_is_opened_for_its_size() {
    needs!("nbd-server");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 16 * MIB, &[]);
    let peer = Peer::nbd_server(&image);
    for command in ["info", "list"] {
        let output = run_nbd([command, &peer.uri("disk"), "--json"]).json();
        assert_eq!(output["exports"][0]["export-name"], "disk", "{command}");
        assert_eq!(output["exports"][0]["export-size"], 16 * MIB, "{command}");
    }
}

#[test]
fn the_text_of_nbd_info() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 64 * MIB, &[]);
    let args = [
        "--format=raw",
        "--read-only",
        "-x",
        "disk",
        "-D",
        "its description",
    ];
    let peer = Peer::qemu(&args, &image);
    for (framing, shown) in [
        ("extended", "extended"),
        ("structured", "structured"),
        ("simple", "simple"),
    ] {
        let ended = run_nbd(["info", &peer.uri("disk"), "--framing", framing]).ok();
        let text = String::from_utf8(ended.stdout).expect("UTF-8");
        for part in [
            format!("newstyle-fixed handshake, no TLS, {shown} framing").as_str(),
            "export \"disk\"",
            "its description",
            "64 MiB (67108864 bytes)",
            "read only",
            "minimum 1, preferred 4K, maximum 32M",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
