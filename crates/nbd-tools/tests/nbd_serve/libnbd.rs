//! The programs and the library of libnbd with `nbd-serve`.

use std::path::Path;
use std::process::{Command, Stdio};

use nbd_test_support::images::{GIB, MIB, assert_as_sparse, assert_same, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::program::run;
use nbd_test_support::skipped::skip;
use serde_json::Value;

use crate::running::{DISKS, Disk, FRAMINGS, Serve};

#[track_caller]
fn nbdinfo(args: &[&str]) -> Value {
    run(Command::new("nbdinfo").arg("--json").args(args)).json()
}

#[test]
fn nbdinfo_shows_the_options_of_the_export() {
    needs!("nbdinfo");
    let sizes = ["--block-size", "512:8K:1M"];
    let names = ["--export-name", "disk 1", "--description", "for tests"];
    let serve = Serve::start(&[&sizes[..], &names, &["--memory", "5T"]].concat());
    let info = nbdinfo(&[serve.uri()]);
    assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
    assert_eq!(info["structured"], true, "{info}");
    let export = &info["exports"][0];
    let expected = [
        ("export-name", Value::from("disk 1")),
        ("description", Value::from("for tests")),
        ("export-size", Value::from(5 * 1024 * GIB)),
        ("block_size_minimum", Value::from(512)),
        ("block_size_preferred", Value::from(8192)),
        ("block_size_maximum", Value::from(MIB)),
        ("is_read_only", Value::from(false)),
        ("can_cache", Value::from(true)),
        ("can_df", Value::from(true)),
        ("can_fast_zero", Value::from(true)),
        ("can_flush", Value::from(true)),
        ("can_fua", Value::from(true)),
        ("can_multi_conn", Value::from(true)),
        ("can_trim", Value::from(true)),
        ("can_zero", Value::from(true)),
        ("contexts", Value::from(vec!["base:allocation"])),
    ];
    for (key, value) in expected {
        assert_eq!(export[key], value, "{key} in {info}");
    }
}

#[test]
fn nbdinfo_lists_the_export() {
    needs!("nbdinfo");
    let serve = Serve::start(&["--memory", "1M", "--export-name", "x", "--description", "y"]);
    let list = nbdinfo(&["--list", serve.uri()]);
    let exports = list["exports"].as_array().expect("an array");
    assert_eq!(exports.len(), 1, "{list}");
    assert_eq!(exports[0]["export-name"], "x");
    assert_eq!(exports[0]["description"], "y");
}

#[test]
fn another_name_is_unknown_and_the_empty_name_is_the_export() {
    needs!("nbdinfo");
    let serve = Serve::start(&["--memory", "1M", "--export-name", "x"]);
    let other = serve.uri().replace("/x?", "/z?");
    let ended = run(Command::new("nbdinfo").arg(&other));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let default = serve.uri().replace("/x?", "/?");
    run(Command::new("nbdinfo").args(["--size", &default])).ok();
}

#[test]
fn nbdinfo_maps_the_data_of_the_file() {
    needs!("nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 6 * GIB, &[(MIB, MIB), (5 * GIB, 64 << 10)]);
    let serve = Serve::start(&["--read-only", image.to_str().expect("UTF-8")]);
    let map = nbdinfo(&["--map", serve.uri()]);
    let extents: Vec<_> = map.as_array().expect("an array").iter().collect();
    let numbers = |key: &str| -> Vec<u64> {
        extents
            .iter()
            .map(|extent| extent[key].as_u64().expect("a number"))
            .collect()
    };
    let end = 5 * GIB + (64 << 10);
    assert_eq!(numbers("offset"), [0, MIB, 2 * MIB, 5 * GIB, end]);
    assert_eq!(numbers("type"), [3, 0, 3, 0, 3]);
}

#[test]
fn nbdcopy_there_and_back() {
    needs!("nbdcopy");
    let folder = tempfile::tempdir().expect("a folder");
    let (image, back) = (folder.path().join("image"), folder.path().join("back"));
    sparse(&image, 256 * MIB, &scattered(256 * MIB));
    for disk in DISKS {
        for framing in FRAMINGS {
            let serve = disk.serve(256, &["--framing", framing]);
            nbdcopy(&[path(&image), serve.uri()]);
            sparse(&back, 256 * MIB, &[]);
            nbdcopy(&[serve.uri(), path(&back)]);
            assert_same(&image, &back);
            assert_as_sparse(&image, &back);
            // Over existing data, without assuming zeroes, with many connections.
            nbdcopy(&["--allocated", "--connections=4", path(&image), serve.uri()]);
            nbdcopy(&["--connections=4", "--requests=64", serve.uri(), path(&back)]);
            assert_same(&image, &back);
        }
    }
}

#[test]
fn nbdcopy_over_tcp() {
    needs!("nbdcopy");
    let folder = tempfile::tempdir().expect("a folder");
    let (image, back) = (folder.path().join("image"), folder.path().join("back"));
    sparse(&image, 64 * MIB, &scattered(64 * MIB));
    let args = ["--tcp", "localhost:0", "--memory", "64M"];
    let serve = Serve::run(tempfile::tempdir().expect("a folder"), &args);
    nbdcopy(&[path(&image), serve.uri()]);
    nbdcopy(&[serve.uri(), path(&back)]);
    assert_same(&image, &back);
}

#[test]
fn nbdcopy_from_server_to_server() {
    needs!("nbdcopy");
    let from = Disk::File.serve(128, &[]);
    let image = from.folder().join("disk");
    sparse(&image, 128 * MIB, &scattered(128 * MIB));
    let to = Disk::File.serve(128, &[]);
    nbdcopy(&[from.uri(), to.uri()]);
    assert_same(&image, &to.folder().join("disk"));
    assert_as_sparse(&image, &to.folder().join("disk"));
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[track_caller]
fn nbdcopy(args: &[&str]) {
    run(Command::new("nbdcopy").args(args)).ok();
}

/// The system's Python: its packages include the bindings.
const PYTHON: &str = "/usr/bin/python3";

fn python_has_nbd() -> bool {
    let mut command = Command::new(PYTHON);
    command.args(["-c", "import nbd"]).stderr(Stdio::null());
    let found = command.status().is_ok_and(|status| status.success());
    if !found {
        skip("the Python module nbd");
    }
    found
}

#[test]
fn every_command_and_every_flag_of_libnbd() {
    if !python_has_nbd() {
        return;
    }
    for disk in DISKS {
        for framing in ["simple", "structured"] {
            let sizes = ["--block-size", "512:4096:1M"];
            let serve = disk.serve(16, &[&sizes[..], &["--framing", framing]].concat());
            let script = serve.folder().join("session.py");
            std::fs::write(&script, include_str!("session.py")).expect("a script");
            let kind = match disk {
                Disk::Memory => "memory",
                Disk::File => "file",
            };
            let mut command = Command::new(PYTHON);
            command.arg(&script).args([serve.uri(), framing, kind]);
            run(&mut command).ok();
            let log = serve.stop();
            assert!(log.contains(&format!("{framing} framing")), "{log}");
        }
    }
}
