//! The clients with servers that are unusual: names of exports that have to be escaped
//! when they are printed, and plugins and filters of nbdkit that are no simple disk.

use std::fs;
use std::process::Command;

use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::{Ended, example, run};

use crate::clients::exercise;
use crate::place::Bridge;

/// The export by each client that only reads.
fn pull(address: &str, export: &str) -> [Ended; 2] {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("output");
    let streamed = run(example("blocking_client").args([address, export]));
    let mut direct = run(example("direct_reads").args([address, export]).arg(&output));
    direct.stdout = fs::read(&output).unwrap_or_default();
    [streamed, direct]
}

#[test]
fn exports_of_qemu_nbd_with_names_of_every_kind() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let disk = noise(1, 1 << 20);
    fs::write(&image, &disk).expect("an image");
    let long = "n".repeat(4096);
    let names = [
        "tab\tone",
        "line\nend",
        "red\u{1b}[31m",
        "no\u{200b}width",
        "joined\u{200d}",
        "back\\slash\"",
        &long,
    ];
    for name in names {
        let peer = Peer::qemu(&["--format=raw", "--read-only", "-x", name], &image);
        let bridge = Bridge::new(peer);
        for pulled in pull(&bridge.address(), name) {
            assert!(pulled.ok().stdout == disk, "{name:?}");
        }
        // A name that is printed alike is another one.
        let escaped = name.escape_debug().to_string();
        if escaped != name {
            for ended in pull(&bridge.address(), &escaped) {
                assert!(ended.stderr.contains("UnknownExport"), "{ended:?}");
            }
        }
    }
}

#[test]
fn filters_of_nbdkit() {
    needs!("nbdkit");
    let filters: [&[&str]; 2] = [
        &[
            "--filter=blocksize-policy",
            "memory",
            "16M",
            "blocksize-error-policy=error",
            "blocksize-minimum=512",
            "blocksize-preferred=4K",
            "blocksize-maximum=64K",
        ],
        &["--filter=cacheextents", "memory", "16M"],
    ];
    for args in filters {
        let bridge = Bridge::new(Peer::nbdkit(args));
        exercise(&bridge.address(), "");
    }
    // It ends with its first client, which gets everything.
    let bridge = Bridge::new(Peer::nbdkit(&["--filter=exitlast", "pattern", "1M"]));
    let [first, second] = pull(&bridge.address(), "");
    assert_eq!(first.ok().stdout.len(), 1 << 20);
    assert_eq!(second.code, Some(1), "{second:?}");
}

/// A size that no block divides, and an error with a text that the script chooses.
#[test]
fn scripts_of_nbdkit() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (image, script) = (path("image"), path("script"));
    let disk = noise(2, 1_000_001);
    fs::write(&image, &disk).expect("an image");
    let text = format!(
        "#!/bin/sh\ncase $1 in\n\
         get_size) echo 1000001;;\n\
         pread) dd status=none iflag=skip_bytes,count_bytes,fullblock if={} skip=$4 count=$3;;\n\
         *) exit 2;;\nesac\n",
        image.display()
    );
    fs::write(&script, text).expect("a script");
    run(Command::new("chmod").arg("+x").arg(&script)).ok();
    let script = Peer::nbdkit(&["sh", script.to_str().expect("UTF-8")]);
    for pulled in pull(&Bridge::new(script).address(), "") {
        assert!(pulled.ok().stdout == disk);
    }

    let failing = "pread=echo ESHUTDOWN the script has ended >&2; exit 1";
    let eval = Peer::nbdkit(&["eval", "get_size=echo 1M", failing]);
    for ended in pull(&Bridge::new(eval).address(), "") {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("ESHUTDOWN"), "{ended:?}");
    }
}
