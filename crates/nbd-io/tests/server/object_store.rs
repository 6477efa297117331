//! The example `object_store` with programs of other projects.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use nbd_test_support::images::{assert_same, scattered, sparse};
use nbd_test_support::program::{example, run};
use nbd_test_support::server::Server;
use nbd_test_support::{certificates, needs};

use crate::support::MIB;

const SIZE: u64 = 64 * MIB;

fn start(certificates: Option<&Path>) -> Server {
    let args = ["127.0.0.1:0", &SIZE.to_string()];
    Server::start(example("object_store").args(args).args(certificates))
}

fn uri(store: &Server, export: &str) -> String {
    format!("{}/{export}", store.uri)
}

fn image(folder: &Path) -> std::path::PathBuf {
    let image = folder.join("image");
    sparse(&image, SIZE, &scattered(SIZE));
    image
}

#[test]
fn qemu_img_converts_and_compares() {
    needs!("qemu-img");
    let store = start(None);
    let folder = tempfile::tempdir().expect("a folder");
    let (image, copy) = (image(folder.path()), folder.path().join("copy"));
    let uri = uri(&store, "disk");
    let raw = ["convert", "-n", "-f", "raw", "-O", "raw"];
    run(Command::new("qemu-img").args(raw).arg(&image).arg(&uri)).ok();
    File::create(&copy)
        .expect("a file")
        .set_len(SIZE)
        .expect("a size");
    run(Command::new("qemu-img").args(raw).arg(&uri).arg(&copy)).ok();
    assert_same(&image, &copy);
}

#[test]
fn nbdcopy_copies_the_hidden_export_through_tls_over_four_connections() {
    needs!("nbdcopy", "nbdinfo");
    let certificates = certificates::folder();
    let store = start(Some(certificates.path()));
    let folder = tempfile::tempdir().expect("a folder");
    let (image, copy) = (image(folder.path()), folder.path().join("copy"));
    let archive = format!(
        "nbds://{}/archive?tls-certificates={}",
        store.address(),
        certificates.path().display()
    );
    let many = ["--connections=4", "--requests=16"];
    run(Command::new("nbdcopy").args(many).arg(&image).arg(&archive)).ok();
    run(Command::new("nbdcopy").args(many).arg(&archive).arg(&copy)).ok();
    assert_same(&image, &copy);

    let list = run(Command::new("nbdinfo").args(["--json", "--list", &uri(&store, "")])).json();
    assert_eq!(list["exports"].as_array().expect("exports").len(), 1);
    let plain = run(Command::new("nbdinfo").args(["--size", &uri(&store, "archive")]));
    assert_ne!(plain.code, Some(0));
}

#[test]
fn fio_verifies_its_writes() {
    needs!("fio");
    let store = start(None);
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("fio");
    command.current_dir(folder.path());
    command.args(["--name=verify", "--ioengine=nbd", "--size=32M", "--minimal"]);
    command.args(["--rw=randwrite", "--bsrange=4k-256k", "--iodepth=64"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
    command.arg(format!("--uri={}", uri(&store, "disk")));
    run(&mut command).ok();
}
