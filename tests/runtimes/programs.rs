//! The three examples as programs, on the command lines at their tops.

use std::process::Command;

use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::program::{example, run};
use nbd_test_support::server::Server;

#[test]
fn clients_copy_what_the_server_has() {
    needs!("nbdcopy");
    let server = Server::start(example("framed").args(["serve", "127.0.0.1:0"]));
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    let data = noise(15, 16 << 20);
    std::fs::write(&input, &data).expect("input");
    run(Command::new("nbdcopy").arg(&input).arg(&server.uri)).ok();
    for (name, args) in [
        ("framed", &["copy"][..]),
        ("futures_client", &[]),
        ("embedded_client", &[]),
    ] {
        let copied = run(example(name).args(args).arg(server.address()))
            .ok()
            .stdout;
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
