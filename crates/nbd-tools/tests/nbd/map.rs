//! Maps, compared with those of `nbdinfo` and `qemu-img`.

use std::path::Path;
use std::process::Command;

use nbd_test_support::images::{GIB, MIB, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use serde_json::Value;

use crate::nbd::run_nbd;

/// `nbd map --json`.
#[track_caller]
fn map(uri: &str, args: &[&str]) -> Value {
    run_nbd(["map", uri, "--json"].iter().chain(args)).json()
}

/// `nbdinfo --map --json`.
#[track_caller]
fn nbdinfo_map(uri: &str, context: &str) -> Value {
    run(Command::new("nbdinfo").args([&format!("--map={context}"), "--json", uri])).json()
}

fn number(extent: &Value, key: &str) -> u64 {
    extent[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {extent}"))
}

/// Offset, length, zero, data; adjacent extents of one kind are joined.
type Kinds = Vec<(u64, u64, bool, bool)>;

fn joined(extents: impl Iterator<Item = (u64, u64, bool, bool)>) -> Kinds {
    let mut joined = Kinds::new();
    for (offset, length, zero, data) in extents {
        match joined.last_mut() {
            Some(last) if (last.2, last.3) == (zero, data) => last.1 += length,
            _ => joined.push((offset, length, zero, data)),
        }
    }
    joined
}

/// A map of `base:allocation` as `qemu-img` prints it.
fn in_terms_of_qemu(map: &Value) -> Kinds {
    joined(map.as_array().expect("an array").iter().map(|extent| {
        let kind = number(extent, "type");
        let (hole, zero) = (kind & 1 != 0, kind & 2 != 0);
        (
            number(extent, "offset"),
            number(extent, "length"),
            zero,
            !hole,
        )
    }))
}

#[track_caller]
fn qemu_img_map(format: &str, image: &Path) -> Kinds {
    let mut command = Command::new("qemu-img");
    command
        .args(["map", "--output=json", "-f", format])
        .arg(image);
    let map = run(&mut command).json();
    joined(map.as_array().expect("an array").iter().map(|extent| {
        let flag = |key: &str| extent[key].as_bool().expect("a flag");
        (
            number(extent, "start"),
            number(extent, "length"),
            flag("zero"),
            flag("data"),
        )
    }))
}

#[test]
fn maps_of_qemu_nbd_equal_those_of_nbdinfo_and_qemu_img() {
    needs!("qemu-nbd", "qemu-img", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 256 * MIB, &scattered(256 * MIB));
    let peer = Peer::qemu(&["--format=raw", "--read-only"], &image);
    let uri = peer.uri("");
    let expected = nbdinfo_map(&uri, "base:allocation");
    assert!(
        expected
            .as_array()
            .is_some_and(|extents| extents.len() > 100)
    );
    for framing in ["structured", "extended"] {
        let map = map(&uri, &["--framing", framing]);
        assert_eq!(map, expected, "{framing}");
        assert_eq!(
            in_terms_of_qemu(&map),
            qemu_img_map("raw", &image),
            "{framing}"
        );
    }
}

#[test]
fn maps_of_nbdkit_equal_those_of_nbdinfo_and_qemu_img() {
    needs!("nbdkit", "qemu-img", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 256 * MIB, &scattered(256 * MIB));
    let peer = Peer::nbdkit(&["file", image.to_str().expect("a path in UTF-8")]);
    let uri = peer.uri("");
    let expected = nbdinfo_map(&uri, "base:allocation");
    assert!(
        expected
            .as_array()
            .is_some_and(|extents| extents.len() > 100)
    );
    for args in [&["--framing", "structured"][..], &[]] {
        let map = map(&uri, args);
        assert_eq!(map, expected, "{args:?}");
        assert_eq!(
            in_terms_of_qemu(&map),
            qemu_img_map("raw", &image),
            "{args:?}"
        );
    }
}

#[test]
fn a_hole_of_5_gib_is_one_wide_extent_and_several_narrow_ones() {
    needs!("qemu-nbd", "nbdinfo");
    let hole = 5 * GIB;
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, hole + 2 * MIB, &[(0, MIB), (MIB + hole, MIB)]);
    let peer = Peer::qemu(&["--format=raw", "--read-only"], &image);
    let uri = peer.uri("");
    let holes = |framing: &str| {
        let map = map(&uri, &["--raw", "--framing", framing]);
        let extents = map.as_array().expect("an array").clone();
        let holes = extents.iter().filter(|extent| number(extent, "type") == 3);
        holes
            .map(|extent| (number(extent, "offset"), number(extent, "length")))
            .collect::<Vec<_>>()
    };

    assert_eq!(holes("extended"), [(MIB, hole)]);

    let narrow = holes("structured");
    assert!(narrow.len() > 1, "{narrow:?}");
    let mut at = MIB;
    for (offset, length) in &narrow {
        assert_eq!(*offset, at, "{narrow:?}");
        assert!(*length <= u64::from(u32::MAX), "{narrow:?}");
        at += length;
    }
    assert_eq!(at, MIB + hole, "{narrow:?}");

    // Joined, they are equal to the map by nbdinfo, and to the wide one.
    let expected = nbdinfo_map(&uri, "base:allocation");
    for framing in ["structured", "extended"] {
        assert_eq!(map(&uri, &["--framing", framing]), expected, "{framing}");
    }
}

/// An image with data, a persistent dirty bitmap, and data that was written after it.
fn qcow2_with_bitmap(image: &Path) {
    let qemu = |program: &str, args: &[&str]| {
        run(Command::new(program).args(args).arg(image)).ok();
    };
    let path = image.to_str().expect("a path in UTF-8");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", path, "8G"])).ok();
    qemu("qemu-io", &["-f", "qcow2", "-c", "write 1M 2M"]);
    run(Command::new("qemu-img").args(["bitmap", "--add", path, "changes"])).ok();
    qemu(
        "qemu-io",
        &["-f", "qcow2", "-c", "write 5G 192K", "-c", "write 0 64K"],
    );
}

#[test]
fn maps_of_every_context_of_qemu_equal_those_of_nbdinfo() {
    needs!("qemu-nbd", "qemu-img", "qemu-io", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    qcow2_with_bitmap(&image);
    let args = ["--format=qcow2", "--read-only", "-B", "changes", "-A"];
    let peer = Peer::qemu(&args, &image);
    let uri = peer.uri("");
    let contexts = [
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:changes",
    ];
    for framing in ["structured", "extended"] {
        for context in contexts {
            let map = map(&uri, &["--framing", framing, "--context", context]);
            assert_eq!(map, nbdinfo_map(&uri, context), "{context} {framing}");
        }
        // All contexts at once: an object with an array for each.
        let all: Vec<_> = contexts
            .iter()
            .flat_map(|name| ["--context", name])
            .collect();
        let together = map(&uri, &[&["--framing", framing], &all[..]].concat());
        for context in contexts {
            assert_eq!(
                together[context],
                nbdinfo_map(&uri, context),
                "{context} {framing}"
            );
        }
    }
    let dirty = map(&uri, &["--context", "qemu:dirty-bitmap:changes"]);
    assert_eq!(dirty[0]["description"], "dirty");
    assert_eq!(dirty[1]["length"], 5 * GIB - 64 * 1024);
}

#[test]
fn the_table_has_the_extents_and_the_bar() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 64 * MIB, &[(32 * MIB, 16 * MIB)]);
    let peer = Peer::qemu(&["--format=raw", "--read-only"], &image);
    let ended = run_nbd(["map", &peer.uri("")]).ok();
    let text = String::from_utf8(ended.stdout).expect("UTF-8");
    let bar = format!("  {}{}{}\n", "·".repeat(38), "█".repeat(19), "·".repeat(19));
    for part in [
        "extended framing",
        bar.as_str(),
        "█ data             16 MiB   25.0%  1 extent\n",
        "· hole,zero        48 MiB   75.0%  2 extents\n",
        "  33554432  16777216      16 MiB  0  data\n",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    // Not a terminal: no colours.
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn without_block_status_there_is_no_map() {
    needs!("nbdkit", "qemu-nbd");
    let peer = Peer::nbdkit(&["memory", "1M"]);
    let uri = peer.uri("");
    run_nbd(["map", &uri, "--framing", "simple"]).refused(&["no block status", "--framing"]);
    run_nbd(["map", &uri, "--no-go"]).refused(&["--no-go implies simple framing"]);
    run_nbd(["bench", &uri, "--size", "0"]).refused(&["must not be 0"]);
    run_nbd(["map", &uri, "--context", "x:y"]).refused(&["no metadata context \"x:y\""]);
    let peer = Peer::nbdkit(&["--no-sr", "memory", "1M"]);
    run_nbd(["map", &peer.uri("")]).refused(&["only simple framing"]);
}

#[test]
fn an_empty_export_has_an_empty_map() {
    needs!("nbdkit", "nbdinfo");
    let peer = Peer::nbdkit(&["memory", "0"]);
    let uri = peer.uri("");
    assert_eq!(map(&uri, &[]), nbdinfo_map(&uri, "base:allocation"));
    run_nbd(["map", &uri]).ok();
}
