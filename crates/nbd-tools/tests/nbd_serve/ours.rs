//! Our own client, the program `nbd`.

use std::thread;

use nbd_test_support::images::{GIB, MIB, assert_as_sparse, assert_same, noise, scattered, sparse};
use nbd_test_support::program::run;

use crate::nbd::{nbd, run_nbd};
use crate::running::{DISKS, Disk, FRAMINGS};

/// A copy from one server to another; holes stay holes.
#[test]
fn a_backup_of_two_gib() {
    let size = 2 * GIB;
    for framing in FRAMINGS {
        let from = Disk::File.serve(2048, &["--framing", framing]);
        sparse(&from.folder().join("disk"), size, &scattered(size / 8));
        let to = Disk::File.serve(2048, &["--framing", framing]);
        run_nbd(["copy", from.uri(), to.uri()]).ok();
        assert_same(&from.folder().join("disk"), &to.folder().join("disk"));
        assert_as_sparse(&from.folder().join("disk"), &to.folder().join("disk"));
    }
}

#[test]
fn the_map_in_both_widths() {
    let serve = Disk::File.serve(6 * 1024, &[]);
    sparse(&serve.folder().join("disk"), 6 * GIB, &[(MIB, MIB)]);
    let map = |framing: &str| {
        let args = ["map", "--json", "--framing", framing, serve.uri()];
        run_nbd(args).json()
    };
    let due = serde_json::json!([
        { "offset": 0, "length": MIB, "type": 3, "description": "hole,zero" },
        { "offset": MIB, "length": MIB, "type": 0, "description": "data" },
        { "offset": 2 * MIB, "length": 6 * GIB - 2 * MIB, "type": 3, "description": "hole,zero" },
    ]);
    assert_eq!(map("structured"), due);
    assert_eq!(map("extended"), due);
    let raw = |framing: &str| {
        let args = ["map", "--json", "--raw", "--framing", framing, serve.uri()];
        let extents = run_nbd(args).json();
        extents.as_array().expect("an array").len()
    };
    assert_eq!(raw("extended"), 3, "one extent for each");
    assert!(raw("structured") > 3, "no narrow extent reaches 4 GiB");
}

/// Many connections at once, each to its own range.
#[test]
fn sixteen_clients_at_once() {
    for disk in DISKS {
        let serve = disk.serve(32, &[]);
        let folder = tempfile::tempdir().expect("a folder");
        thread::scope(|scope| {
            for n in 0..16u64 {
                let (serve, folder) = (&serve, folder.path());
                scope.spawn(move || {
                    let input = folder.join(n.to_string());
                    let data = noise(n, 2 << 20);
                    std::fs::write(&input, &data).expect("an input");
                    let offset = (n * 2 * MIB).to_string();
                    let write = ["write", serve.uri(), "--offset", &offset, "--input"];
                    run(nbd().args(write).arg(&input)).ok();
                    let read = ["read", serve.uri(), "--offset", &offset, "--length", "2M"];
                    assert!(run_nbd(read).ok().stdout == data, "client {n}");
                });
            }
        });
    }
}
