//! The three examples as programs, on the command lines at their tops.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};

use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::program::{example, run, start};

/// Ends the program.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn clients_copy_what_the_server_has() {
    needs!("nbdcopy");
    let mut server = Running(start(example("framed").args(["serve", "127.0.0.1:0"])));
    let stdout = server.0.stdout.as_mut().expect("a pipe");
    let mut uri = String::new();
    let read = BufReader::new(stdout).read_line(&mut uri);
    read.expect("the first line");
    let uri = uri.trim();
    let address = uri.strip_prefix("nbd://").expect("a URI");

    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    let data = noise(15, 16 << 20);
    std::fs::write(&input, &data).expect("input");
    run(Command::new("nbdcopy").arg(&input).arg(uri)).ok();
    for (name, args) in [
        ("framed", &["copy"][..]),
        ("futures_client", &[]),
        ("embedded_client", &[]),
    ] {
        let copied = run(example(name).args(args).arg(address)).ok().stdout;
        assert!(copied == data, "{name}");
    }
}

#[test]
fn without_arguments_they_say_how_they_are_called() {
    for name in ["framed", "futures_client", "embedded_client"] {
        let ended = run(&mut example(name));
        assert_eq!(ended.code, Some(1));
        assert!(
            ended.stderr.contains(&format!("usage: {name}")),
            "{ended:?}"
        );
    }
}
