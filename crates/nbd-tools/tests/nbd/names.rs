//! Names are bytes: what is printed escaped is not what is sent.

use std::process::Command;

use nbd_test_support::images::{MIB, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use serde_json::Value;

use crate::fake::{ACK, ERR_UNKNOWN, Export, Fake, INFO, LIST, SERVER};
use crate::nbd::run_nbd;

/// Percent-encodes every byte.
fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn exports_with_names_that_are_escaped_when_printed() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, MIB, &[]);
    let long = "n".repeat(4096);
    for (name, printed) in [
        ("tab\tone", "tab\\tone"),
        ("line\nend", "line\\nend"),
        ("red\u{1b}[31m", "red\\u{1b}[31m"),
        ("no\u{200b}width", "no\\u{200b}width"),
        ("joined\u{200d}", "joined\\u{200d}"),
        ("back\\slash\"", "back\\\\slash\\\""),
        (&long, &long),
    ] {
        let args = ["--format=raw", "--read-only", "-x", name, "-D", "tab\there"];
        let peer = Peer::qemu(&args, &image);
        let uri = peer.uri(&encoded(name));
        for args in [["list", &peer.uri("")], ["info", &uri]] {
            let text = run_nbd(args).ok().stdout;
            let text = String::from_utf8(text).expect("UTF-8");
            let line = format!("\nexport \"{printed}\"\n");
            assert!(text.contains(&line), "{line:?} in {text:?}");
            assert!(text.contains("1 MiB"), "{text:?}");
            assert!(text.contains("tab\\there"), "{text:?}");
            let json = run_nbd(args.iter().chain(&["--json"])).json();
            let export = &json["exports"][0];
            assert_eq!(export["export-name"], name);
            assert_eq!(export["description"], "tab\there");
            assert_eq!(export["export-size"], MIB);
            // The URI is that of the export.
            let uri = export["uri"].as_str().expect("a URI");
            run_nbd(["read", uri]).ok();
        }
    }
}

#[test]
fn contexts_with_names_that_are_escaped_when_printed() {
    needs!("qemu-nbd", "qemu-img");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let path = image.to_str().expect("UTF-8");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", path, "1M"])).ok();
    let bitmap = "tab\tand\u{200d}joiner";
    run(Command::new("qemu-img").args(["bitmap", "--add", path, bitmap])).ok();
    let args = ["--format=qcow2", "--read-only", "-B", bitmap];
    let peer = Peer::qemu(&args, &image);
    let uri = peer.uri("");
    let context = format!("qemu:dirty-bitmap:{bitmap}");
    let info = run_nbd(["info", &uri, "--json"]).json();
    let contexts = info["exports"][0]["contexts"].as_array().expect("contexts");
    assert!(contexts.contains(&context.as_str().into()), "{contexts:?}");

    let map = run_nbd(["map", &uri, "--context", &context, "--json"]).json();
    assert_eq!(map[0]["description"], "clean");
    let both = ["--context", "base:allocation", "--context", &context];
    let map = run_nbd(["map", &uri, "--json"].iter().chain(&both)).json();
    assert_eq!(map[&context][0]["description"], "clean");
    let table = run_nbd(["map", &uri, "--context", &context]).ok().stdout;
    let table = String::from_utf8(table).expect("UTF-8");
    let printed = "\nqemu:dirty-bitmap:tab\\tand\\u{200d}joiner\n";
    assert!(table.contains(printed), "{table:?}");
}

/// Of three exports, one has a name that is not UTF-8, and one is unknown when it
/// is described.
#[test]
fn an_export_that_cannot_be_described_is_listed() {
    let names: [&[u8]; 3] = [b"invalid\xff", b"unknown", b"good"];
    let server = Fake::start(move |peer| {
        peer.greet()?;
        loop {
            let (option, data) = peer.option()?;
            match option {
                LIST => {
                    for name in names {
                        let length = name.len() as u32;
                        peer.reply(LIST, SERVER, &[&length.to_be_bytes(), name].concat())?;
                    }
                    peer.reply(LIST, ACK, &[])?;
                }
                INFO if data.windows(7).any(|part| part == b"unknown") => {
                    peer.reply(INFO, ERR_UNKNOWN, b"not now")?;
                }
                _ => drop(peer.answer(option, Export::new(512))?),
            }
        }
    });
    let ended = run_nbd(["list", &server.uri(), "--json"]);
    let json: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    let exports = json["exports"].as_array().expect("exports");
    assert_eq!(exports.len(), 3, "{json}");
    assert_eq!(exports[0]["export-name"], "invalid\u{fffd}");
    assert_eq!(exports[1]["export-name"], "unknown");
    assert_eq!(exports[2]["export-size"], 512);
    for (export, reason) in [(0, "not valid UTF-8"), (1, "not now")] {
        let error = exports[export]["error"].as_str().expect("an error");
        assert!(error.contains(reason), "{error}");
    }
    ended.refused(&["2 of 3 exports", "not be described"]);

    let ended = run_nbd(["list", &server.uri()]);
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    for line in [
        "export \"invalid\u{fffd}\"",
        "export \"unknown\"",
        "export \"good\"",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(
        text.contains("512 bytes") && text.contains("not now"),
        "{text}"
    );
    ended.refused(&["2 of 3 exports"]);
}
