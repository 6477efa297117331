//! QEMU's programs with `nbd-serve`, in every framing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nbd_test_support::images::{GIB, MIB, assert_as_sparse, assert_same, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::program::run;
use serde_json::Value;

use crate::running::{DISKS, Disk, FRAMINGS, Serve};

/// Runs `qemu-io` commands, none of which may fail.
#[track_caller]
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", uri]);
    for text in commands {
        command.args(["-c", text]);
    }
    let ended = run(&mut command).ok();
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(!text.contains("ailed"), "{text}");
    text
}

#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let ended = run(Command::new("qemu-img").args(args)).ok();
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// Start, length, zero, data; adjacent extents of one kind are joined.
fn map(image: &str) -> Vec<(u64, u64, bool, bool)> {
    let text = qemu_img(&["map", "--output=json", "-f", "raw", image]);
    let map: Value = serde_json::from_str(&text).expect("JSON");
    let mut joined: Vec<(u64, u64, bool, bool)> = Vec::new();
    for extent in map.as_array().expect("an array") {
        let number = |key: &str| extent[key].as_u64().expect("a number");
        let flag = |key: &str| extent[key].as_bool().expect("a flag");
        let (length, zero, data) = (number("length"), flag("zero"), flag("data"));
        match joined.last_mut() {
            Some(last) if (last.2, last.3) == (zero, data) => last.1 += length,
            _ => joined.push((number("start"), length, zero, data)),
        }
    }
    joined
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_what_it_should() {
    needs!("qemu-io");
    for disk in DISKS {
        for framing in FRAMINGS {
            let serve = disk.serve(64, &["--framing", framing]);
            qemu_io(
                serve.uri(),
                &[
                    "write -P 0xa5 1M 4M",
                    "write -f -P 0x5a 512 1536", // FUA
                    "flush",
                    "read -P 0xa5 1M 4M",
                    "read -P 0x5a 512 1536",
                    "read -P 0 0 512",
                    "read -P 0 2048 1000k",
                    "write -z -u 2M 1M",
                    "write -z 3145728 65536", // NO_HOLE
                    "discard 4M 1M",
                    "read -P 0xa5 1M 1M",
                    "read -P 0 2M 1M",
                    "read -P 0 3M 64k",
                    "read -P 0xa5 3211264 983040",
                    "aio_write -P 1 8M 1M",
                    "aio_write -P 2 9M 1M",
                    "aio_write -P 3 10M 1M",
                    "aio_flush",
                    "read -P 2 9M 1M",
                    "read -P 3 10M 1M",
                    "read -P 1 8M 1M",
                ],
            );
            let log = serve.stop();
            assert!(
                log.contains(&format!("{framing} framing")),
                "{disk:?}: {log}"
            );
        }
    }
}

#[test]
fn zeroes_are_holes_or_have_their_space() {
    needs!("qemu-io");
    for framing in FRAMINGS {
        let serve = Disk::File.serve(64, &["--framing", framing]);
        let blocks = || {
            let disk = serve.folder().join("disk");
            512 * disk.metadata().expect("the disk").blocks()
        };
        assert_eq!(blocks(), 0);
        qemu_io(serve.uri(), &["write -P 1 0 8M", "flush"]);
        assert!(blocks() >= 8 * MIB);
        qemu_io(
            serve.uri(),
            &["write -z -u 1M 3M", "discard 4M 1M", "flush"],
        );
        assert!(blocks() <= 4 * MIB + 64 * 1024, "{framing}: {}", blocks());
        let before = blocks();
        qemu_io(serve.uri(), &["write -z 16M 8M", "flush"]);
        assert!(blocks() >= before + 8 * MIB, "{framing}: {}", blocks());
    }
}

#[test]
fn convert_there_and_back_and_compare() {
    needs!("qemu-img");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 256 * MIB, &scattered(256 * MIB));
    for disk in DISKS {
        for framing in FRAMINGS {
            let serve = disk.serve(256, &["--framing", framing]);
            let uri = serve.uri();
            let raw = ["-f", "raw", "-O", "raw", "-m", "16", "-W"];
            qemu_img(&[&["convert", "-n"], &raw[..], &[path(&image), uri]].concat());
            qemu_img(&["compare", "-f", "raw", "-F", "raw", path(&image), uri]);
            let back = folder.path().join("back");
            qemu_img(&[&["convert"], &raw[..], &[uri, path(&back)]].concat());
            assert_same(&image, &back);
            assert_as_sparse(&image, &back);
            if disk == Disk::File {
                assert_same(&image, &serve.folder().join("disk"));
            }
            let log = serve.stop();
            assert!(
                log.contains(&format!("{framing} framing")),
                "{disk:?}: {log}"
            );
        }
    }
}

#[test]
fn the_map_equals_that_of_the_file() {
    needs!("qemu-img");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 256 * MIB, &scattered(256 * MIB));
    let expected = map(path(&image));
    assert!(expected.len() > 100);
    let disk = path(&image);
    for framing in ["structured", "extended"] {
        let serve = Serve::start(&["--framing", framing, "--read-only", disk]);
        assert_eq!(map(serve.uri()), expected, "{framing}");
    }
    // Without block status, everything is data.
    let serve = Serve::start(&["--framing", "simple", "--read-only", disk]);
    assert_eq!(map(serve.uri()), [(0, 256 * MIB, false, true)]);
}

#[test]
fn a_hole_of_many_gib_is_mapped_in_both_widths() {
    needs!("qemu-img");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let size = 9 * GIB + 2 * MIB;
    sparse(&image, size, &[(0, MIB), (size - MIB, MIB)]);
    let expected = [
        (0, MIB, false, true),
        (MIB, 9 * GIB, true, false),
        (MIB + 9 * GIB, MIB, false, true),
    ];
    for framing in ["structured", "extended"] {
        let serve = Serve::start(&["--framing", framing, "--read-only", path(&image)]);
        assert_eq!(map(serve.uri()), expected, "{framing}");
        let log = serve.stop();
        assert!(
            log.contains(&format!("{framing} framing, base:allocation")),
            "{log}"
        );
        // One request is enough with 64 bits, not with 32.
        let few = log.contains("disconnected after 3 requests");
        assert_eq!(few, framing == "extended", "{log}");
    }
}

#[test]
fn many_requests_in_flight() {
    needs!("qemu-img");
    for disk in DISKS {
        for framing in FRAMINGS {
            let serve = disk.serve(256, &["--framing", framing]);
            let bench = |args: &[&str]| {
                let common = ["bench", "-q", "-f", "raw", "-t", "none"];
                qemu_img(&[&common, args, &[serve.uri()]].concat());
            };
            bench(&["-c", "5000", "-d", "64", "-s", "4096"]);
            bench(&["-c", "5000", "-d", "64", "-s", "4096", "-w"]);
            bench(&[
                "-c",
                "200",
                "-d",
                "16",
                "-s",
                "1M",
                "-w",
                "--flush-interval=50",
            ]);
            bench(&["-c", "200", "-d", "16", "-s", "1M"]);
        }
    }
}

#[test]
fn once_serves_qemu() {
    needs!("qemu-io");
    let mut serve = Disk::File.serve(1, &["--once"]);
    qemu_io(
        serve.uri(),
        &["write -P 3 0 64k", "flush", "read -P 3 0 64k"],
    );
    assert_eq!(serve.ended().code(), Some(0));
    let bytes = std::fs::read(serve.folder().join("disk")).expect("the disk");
    assert!(bytes[..65536].iter().all(|byte| *byte == 3));
}
