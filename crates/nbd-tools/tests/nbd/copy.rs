//! Copies, there and back.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nbd_test_support::images::{GIB, MIB, assert_as_sparse, assert_same, noise, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use tempfile::TempDir;

use crate::nbd::{nbd, run_nbd};

/// A sparse image of 1 GiB.
struct Fixture {
    folder: TempDir,
    image: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        sparse(&image, GIB, &scattered(GIB));
        Self { folder, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the image's size without data.
    fn blank(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        sparse(&path, GIB, &[]);
        path
    }
}

#[track_caller]
fn copy(from: impl AsRef<OsStr>, to: impl AsRef<OsStr>, framing: &str) {
    let args = ["copy", "--framing", framing].map(OsStr::new);
    run_nbd(args.iter().copied().chain([from.as_ref(), to.as_ref()])).ok();
}

#[track_caller]
fn assert_copied(image: &Path, copy: &Path) {
    assert_same(image, copy);
    assert_as_sparse(image, copy);
}

#[test]
fn a_gib_there_and_back_through_qemu_nbd() {
    needs!("qemu-nbd");
    let fixture = Fixture::new();
    for framing in ["simple", "structured", "extended"] {
        let served = fixture.blank("served");
        let back = fixture.path("back");
        {
            let peer = Peer::qemu(&["--format=raw", "--discard=unmap"], &served);
            copy(&fixture.image, peer.uri(""), framing);
            copy(peer.uri(""), &back, framing);
        }
        assert_copied(&fixture.image, &served);
        assert_copied(&fixture.image, &back);
    }
}

#[test]
fn a_gib_there_and_back_through_nbdkit() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    for framing in ["simple", "structured"] {
        let served = fixture.blank("served");
        let back = fixture.path("back");
        {
            let peer = Peer::nbdkit(&["file", served.to_str().expect("UTF-8")]);
            copy(&fixture.image, peer.uri(""), framing);
            copy(peer.uri(""), &back, framing);
        }
        assert_copied(&fixture.image, &served);
        assert_copied(&fixture.image, &back);
    }
}

#[test]
fn from_server_to_server() {
    needs!("qemu-nbd", "nbdkit");
    let fixture = Fixture::new();
    let served = fixture.blank("served");
    let from = Peer::qemu(&["--format=raw", "--read-only"], &fixture.image);
    let to = Peer::nbdkit(&["file", served.to_str().expect("UTF-8")]);
    copy(from.uri(""), to.uri(""), "extended");
    assert_copied(&fixture.image, &served);
}

#[test]
fn a_hole_of_5_gib_is_zeroed_by_one_wide_command() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (image, served, record) = (path("image"), path("served"), path("record"));
    sparse(&image, 5 * GIB + 2 * MIB, &[(0, MIB), (5 * GIB + MIB, MIB)]);
    // Existing data, which the hole overwrites.
    sparse(&served, 5 * GIB + 2 * MIB, &[(2 * GIB, MIB)]);
    {
        let peer = Peer::qemu(&["--format=raw", "--discard=unmap"], &served);
        let record = record.to_str().expect("UTF-8");
        let uri = peer.uri("");
        let args = ["copy", "--record", record].map(OsStr::new);
        run_nbd(args.into_iter().chain([image.as_os_str(), uri.as_ref()])).ok();
    }
    assert_copied(&image, &served);
    // magic, flags, WRITE_ZEROES, cookie, offset, length.
    let record = std::fs::read_to_string(&record).expect("a record");
    let length = format!("{:016x}", 5 * GIB);
    let offset = format!("{MIB:016x}");
    let commands = record.matches("21e41c7100000006").count();
    assert_eq!(commands, 1);
    assert!(record.contains(&format!("{offset}{length}")));
}

/// The server does not support WRITE_ZEROES, or advertises and rejects it: zeroes
/// are sent as data.
#[test]
fn zeroes_overwrite_data_without_write_zeroes() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (image, served) = (path("image"), path("served"));
    sparse(&image, 64 * MIB, &[(10 * MIB, MIB)]);
    let file = format!("file={}", served.to_str().expect("UTF-8"));
    for filter in [
        &["--filter=nozero", "file", &file][..],
        &[
            "--filter=error",
            "file",
            &file,
            "error-zero=EINVAL",
            "error-zero-rate=100%",
        ],
    ] {
        std::fs::write(&served, noise(3, 64 * MIB as usize)).expect("old data");
        let peer = Peer::nbdkit(filter);
        copy(&image, peer.uri(""), "extended");
        assert_same(&image, &served);
    }
}

/// The minimum block size is 64 KiB; data begins and ends within a block.
#[test]
fn a_copy_obeys_the_minimum_block_size() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (image, back) = (path("image"), path("back"));
    sparse(&image, 64 * MIB, &[(4096, 4096), (10 * MIB - 4096, MIB)]);
    let sizes = [
        "blocksize-minimum=64K",
        "blocksize-preferred=64K",
        "blocksize-maximum=256K",
    ];
    let policy = [
        "--filter=blocksize-policy",
        "memory",
        "64M",
        "blocksize-error-policy=error",
    ];
    let peer = Peer::nbdkit(&[&policy[..], &sizes].concat());
    let uri = peer.uri("");
    copy(&image, &uri, "extended");
    copy(&uri, &back, "extended");
    assert_same(&image, &back);

    run_nbd(["read", &uri, "--offset", "4K", "--length", "64K"]).refused(&["multiple", "65536"]);
    let odd = path("odd");
    sparse(&odd, 100_000, &[]);
    run_nbd(["copy".as_ref(), odd.as_os_str(), uri.as_ref()]).refused(&["multiples of 65536"]);
}

#[test]
fn a_destination_that_is_too_small_is_rejected() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, 2 * MIB, &[]);
    let peer = Peer::nbdkit(&["memory", "1M"]);
    let uri = peer.uri("");
    let text = ["too small", "1048576", "2097152"];
    run_nbd(["copy".as_ref(), image.as_os_str(), uri.as_ref()]).refused(&text);
    let peer = Peer::nbdkit(&["--readonly", "memory", "2M"]);
    let uri = peer.uri("");
    run_nbd(["copy".as_ref(), image.as_os_str(), uri.as_ref()]).refused(&["read-only"]);
}

#[test]
fn a_file_is_not_copied_onto_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, MIB, &[(0, MIB)]);
    let path = image.as_os_str();
    run_nbd(["copy".as_ref(), path, path]).refused(&["the same file"]);
    assert_eq!(
        std::fs::read(&image).expect("the file"),
        noise(0, MIB as usize)
    );
    let copied = folder.path().join("copied");
    copy(&image, &copied, "extended");
    assert_copied(&image, &copied);
}

#[test]
fn what_cannot_be_copied_leaves_the_destination_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let [existing, image] = ["existing", "image"].map(|name| folder.path().join(name));
    std::fs::write(&existing, b"data").expect("a file");
    sparse(&image, MIB, &[]);
    run_nbd(["copy".as_ref(), folder.path(), &existing]).refused(&["it is a directory"]);
    // Files may have 512 KiB.
    let script = "trap '' XFSZ; ulimit -f 1024; exec \"$@\"";
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", script, "sh"]).arg(nbd().get_program());
    let limited = limited.arg("copy").args([&image, &existing]);
    run(limited).refused(&["cannot set its size to 1048576 bytes"]);
    assert_eq!(std::fs::read(&existing).expect("the file"), b"data");
}
