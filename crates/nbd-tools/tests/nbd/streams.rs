//! Standard input and output, and pipes, as sides of a copy; holes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nbd_test_support::images::{MIB, assert_as_sparse, assert_same, noise, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use tempfile::TempDir;

use crate::nbd::{nbd, run_nbd};

/// Two MiB of data in 64.
struct Fixture {
    folder: TempDir,
    image: PathBuf,
    bytes: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        sparse(&image, 64 * MIB, &[(MIB + 4096, MIB), (63 * MIB, MIB)]);
        let bytes = fs::read(&image).expect("the image");
        Self {
            folder,
            image,
            bytes,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, file: &Path, filters: &[&str], settings: &[&str]) -> Peer {
        let file = ["file", file.to_str().expect("UTF-8")];
        Peer::nbdkit(&[filters, &file, settings].concat())
    }

    /// `nbd`, in the folder.
    fn nbd(&self, args: &[&str]) -> Command {
        let mut command = nbd();
        command.args(args).current_dir(self.folder.path());
        command
    }
}

#[test]
fn an_export_and_a_file_to_standard_output() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let peer = fixture.serve(&fixture.image, &[], &[]);
    let uri = peer.uri("");
    for args in [
        &["copy", &uri, "-"][..],
        &["copy", &uri, "-", "--framing=simple"],
        &["copy", &uri, "/dev/stdout"],
        &["copy", "image", "-"],
        &["read", &uri],
    ] {
        let ended = run(&mut fixture.nbd(args)).ok();
        assert!(ended.stdout == fixture.bytes, "{args:?}");
    }
    assert!(!fixture.path("-").exists());
}

#[test]
fn standard_input_to_an_export_and_a_file() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let served = fixture.path("served");
    let copied = fixture.path("copied");
    let send = |args: &[&str]| {
        // A pipe, not a file.
        let mut cat = Command::new("cat");
        let mut cat = cat
            .arg(&fixture.image)
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat");
        let pipe = cat.stdout.take().expect("a pipe");
        let output = fixture.nbd(args).stdin(pipe).output().expect("nbd");
        cat.wait().expect("cat");
        assert!(output.status.success(), "{args:?} {output:?}");
        output.stdout
    };
    for source in ["-", "/dev/stdin"] {
        fs::write(&served, noise(5, 64 * MIB as usize)).expect("old data");
        {
            let peer = fixture.serve(&served, &[], &[]);
            send(&["copy", source, &peer.uri("")]);
        }
        assert_same(&fixture.image, &served);
        send(&["copy", source, "copied"]);
        assert_same(&fixture.image, &copied);
        assert!(send(&["copy", source, "-"]) == fixture.bytes);
        send(&["copy", source, "null:"]);
    }
    // Longer than the export.
    sparse(&served, MIB, &[]);
    let peer = fixture.serve(&served, &[], &[]);
    let input = File::open(&fixture.image).expect("the image");
    let output = fixture
        .nbd(&["copy", "-", &peer.uri("")])
        .stdin(input)
        .output()
        .expect("nbd");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("1048576"),
        "{text}"
    );
}

/// The server reports holes: what is read of them is not transferred, and they
/// are holes in the output file.
#[test]
fn holes_are_not_transferred() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let log = fixture.path("log");
    for (to, args) in [("output", "read"), ("-", "copy")] {
        let settings = [&format!("logfile={}", log.display())[..]];
        let peer = fixture.serve(&fixture.image, &["--filter=log"], &settings);
        let uri = peer.uri("");
        let ended = match args {
            "read" => run_nbd([
                "read".as_ref(),
                uri.as_ref(),
                "--output".as_ref(),
                fixture.path(to).as_os_str(),
            ]),
            _ => run(&mut fixture.nbd(&["copy", &uri, to])),
        };
        ended.ok();
        drop(peer);
        let text = fs::read_to_string(&log).expect("a log");
        let read: u64 = text
            .lines()
            .filter(|line| line.contains(" Read "))
            .filter_map(|line| line.split("count=0x").nth(1)?.split(' ').next())
            .map(|count| u64::from_str_radix(count, 16).expect("a number"))
            .sum();
        assert!(
            (2 * MIB..4 * MIB).contains(&read),
            "{read} bytes read by {args}\n{text}"
        );
        fs::remove_file(&log).expect("the log");
    }
    assert_same(&fixture.image, &fixture.path("output"));
    assert_as_sparse(&fixture.image, &fixture.path("output"));
}
