//! Plugins and filters of nbdkit that do what a simple disk does not.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nbd_test_support::images::{MIB, assert_same, noise, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::{Peer, poll_for};
use nbd_test_support::program::run;

use crate::nbd::run_nbd;

/// Extents and a size that no block divides.
#[test]
fn an_export_with_an_odd_size_and_odd_extents() {
    needs!("nbdkit", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let (image, copied) = (folder.path().join("image"), folder.path().join("copied"));
    let mut disk = noise(1, 1_000_001);
    disk[1000..1003].fill(0);
    disk[70_001..200_000].fill(0);
    fs::write(&image, &disk).expect("an image");
    let dd = "dd status=none iflag=skip_bytes,count_bytes,fullblock";
    let pread = format!("pread={dd} if={} skip=$4 count=$3", image.display());
    let peer = Peer::nbdkit(&[
        "eval",
        "get_size=echo 1000001",
        "can_extents=exit 0",
        "extents=echo 0 1000; echo 1000 3 zero; echo 1003 68998; \
         echo 70001 129999 hole,zero; echo 200000 800001",
        &pread,
    ]);
    let uri = peer.uri("");
    let map = run_nbd(["map", "--json", &uri]).json();
    let nbdinfo = run(Command::new("nbdinfo").args(["--map", "--json", &uri])).json();
    assert_eq!(map, nbdinfo);
    assert_eq!(map.as_array().map(Vec::len), Some(5), "{map}");
    assert!(run_nbd(["read", &uri]).ok().stdout == disk);
    run_nbd(["copy".as_ref(), uri.as_ref(), copied.as_os_str()]).ok();
    assert_same(&image, &copied);
}

/// A disk of 1 MiB in a file, of which the second half has no space.
const SCRIPT: &str = r#"
case "$1" in
    get_size) echo 1M ;;
    can_write | can_flush | can_trim | can_zero) exit 0 ;;
    can_fua) echo emulate ;;
    flush) exit 0 ;;
    pread) dd status=none iflag=skip_bytes,count_bytes,fullblock if="$DISK" skip="$4" count="$3" ;;
    pwrite)
        if test "$4" -ge 524288; then echo "ENOSPC the second half is full" >&2; exit 1; fi
        dd status=none oflag=seek_bytes conv=notrunc of="$DISK" seek="$4" ;;
    trim | zero)
        if test "$4" -ge 524288; then echo "EOPNOTSUPP not here" >&2; exit 1; fi
        dd status=none iflag=count_bytes,fullblock oflag=seek_bytes conv=notrunc \
            if=/dev/zero of="$DISK" count="$3" seek="$4" ;;
    *) exit 2 ;;
esac
"#;

#[test]
fn a_disk_that_a_script_serves() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (disk, input, script) = (path("disk"), path("input"), path("script"));
    sparse(&disk, MIB, &[]);
    let data = noise(2, 300_000);
    fs::write(&input, &data).expect("an input");
    let text = format!("#!/bin/sh\nDISK={}{SCRIPT}", disk.display());
    fs::write(&script, text).expect("a script");
    run(Command::new("chmod").arg("+x").arg(&script)).ok();
    let peer = Peer::nbdkit(&["sh", script.to_str().expect("UTF-8")]);
    let uri = peer.uri("");
    let write = |offset: &str| {
        let input = input.to_str().expect("UTF-8");
        run_nbd(["write", &uri, "--offset", offset, "--input", input])
    };
    write("12345").ok();
    let read = ["read", &uri, "--offset", "12345", "--length", "300000"];
    assert!(run_nbd(read).ok().stdout == data);
    // The error of the script, and what was written before stays.
    write("600K").refused(&["NBD_ENOSPC"]);
    assert!(run_nbd(read).ok().stdout == data);
    // The script knows no extents, so nbdkit says that all of it is data.
    let map = run_nbd(["map", &uri, "--json"]).json();
    assert_eq!(map[0]["length"], MIB);
}

/// Errors of every command but reads, which `errors` has.
#[test]
fn a_server_that_fails_a_command() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (served, input, copied) = (path("served"), path("input"), path("copied"));
    sparse(&served, MIB, &[(65536, 65536)]);
    fs::write(&input, noise(3, 4096)).expect("an input");
    let file = format!("file={}", served.display());
    let failing = |command: &str, error: &str| {
        Peer::nbdkit(&[
            "--filter=error",
            "file",
            &file,
            &format!("error-{command}={error}"),
            &format!("error-{command}-rate=100%"),
        ])
    };
    let peer = failing("extents", "EIO");
    let uri = peer.uri("");
    run_nbd(["map", &uri]).refused(&["NBD_EIO"]);
    // Data can still be read, where holes need not be known.
    let whole = run_nbd(["read", &uri]).ok().stdout;
    assert!(whole == fs::read(&served).expect("the image"));
    run_nbd(["copy".as_ref(), uri.as_ref(), copied.as_os_str()])
        .refused(&["block status", "NBD_EIO"]);

    let peer = failing("pwrite", "ENOSPC");
    let input = input.to_str().expect("UTF-8");
    run_nbd(["write", &peer.uri(""), "--input", input]).refused(&["NBD_ENOSPC"]);
}

/// Requests are split at the maximum, and a whole copy obeys the minimum.
#[test]
fn a_small_maximum_block_size() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    let data = noise(4, MIB as usize);
    fs::write(&input, &data).expect("an input");
    let peer = Peer::nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-error-policy=error",
        "blocksize-minimum=512",
        "blocksize-preferred=4K",
        "blocksize-maximum=12K",
    ]);
    let uri = peer.uri("");
    run_nbd(["write", &uri, "--input", input.to_str().expect("UTF-8")]).ok();
    assert!(run_nbd(["read", &uri]).ok().stdout == data);
    run_nbd(["read", &uri, "--offset", "100", "--length", "512"]).refused(&["512"]);
    let bench = ["bench", &uri, "--size", "16K", "--requests", "10"];
    run_nbd(bench).refused(&["at most 12K"]);
}

/// The filter answers from what it has asked for before.
#[test]
fn cached_extents() {
    needs!("nbdkit", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let (image, copied) = (folder.path().join("image"), folder.path().join("copied"));
    let data: Vec<_> = (0..1000).map(|n| (n * 8192, 4096)).collect();
    sparse(&image, 16 * MIB, &data);
    let file = format!("file={}", image.display());
    let peer = Peer::nbdkit(&["--filter=cacheextents", "file", &file]);
    let uri = peer.uri("");
    let map = run_nbd(["map", "--json", &uri]).json();
    assert_eq!(map.as_array().map(Vec::len), Some(2000));
    let nbdinfo = run(Command::new("nbdinfo").args(["--map", "--json", &uri])).json();
    assert_eq!(map, nbdinfo);
    // Ranges that begin and end within extents.
    let disk = fs::read(&image).expect("the image");
    for (offset, length) in [(0, 4096), (100, 20_000), (4095, 2), (8_000_000, 1_000_000)] {
        let [from, count] = [offset, length].map(|number: usize| number.to_string());
        let read = ["read", &uri, "--offset", &from, "--length", &count];
        assert!(run_nbd(read).ok().stdout == disk[offset..][..length]);
    }
    run_nbd(["copy".as_ref(), uri.as_ref(), copied.as_os_str()]).ok();
    assert_same(&image, &copied);
}

/// The server ends with its last client. So no command may close all of its
/// connections before it has done its work.
#[test]
fn a_server_that_ends_with_its_last_client() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (input, image, copied) = (path("input"), path("image"), path("copied"));
    let data = noise(5, 100_000);
    fs::write(&input, &data).expect("an input");
    sparse(image.as_ref(), 64 * MIB, &[(MIB, 32 * MIB)]);
    let file = format!("file={image}");
    let commands: [&[&str]; 7] = [
        &["info", "URI"],
        &["list", "URI"],
        &["map", "URI"],
        &["read", "URI", "--output", &copied],
        &["write", "URI", "--input", &input],
        &["copy", "URI", &copied],
        &["bench", "URI", "--requests", "100", "--connections", "3"],
    ];
    for command in commands {
        let peer = Peer::nbdkit(&["--filter=exitlast", "file", &file]);
        let uri = peer.uri("");
        let args = command
            .iter()
            .map(|arg| if *arg == "URI" { &uri } else { *arg });
        run_nbd(args).ok();
        poll_for("the server ends", || {
            UnixStream::connect(peer.socket()).err()
        });
    }
    let disk = fs::read(&image).expect("the image");
    assert!(disk[..data.len()] == data, "what was written");
    assert_same(image.as_ref(), copied.as_ref());
}
