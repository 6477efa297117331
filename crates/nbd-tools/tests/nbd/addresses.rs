//! QEMU's spelling of addresses from before there were URIs.

use std::fs;

use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;

use crate::nbd::{nbd, run_nbd};

#[test]
fn addresses_of_qemu_are_understood() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let (image, copied) = (folder.path().join("image"), folder.path().join("copied"));
    let data = noise(1, 65536);
    fs::write(&image, &data).expect("a file");
    let filter = [
        "--filter=exportname",
        "memory",
        "64K",
        "exportname=a:b",
        "exportname-strict=true",
    ];
    let peer = Peer::nbdkit(&filter);
    let address = format!("nbd:unix:{}:exportname=a:b", peer.socket().display());
    run_nbd(["info", &address]).ok();
    run_nbd(["copy".as_ref(), image.as_os_str(), address.as_ref()]).ok();
    run_nbd(["copy".as_ref(), address.as_ref(), copied.as_os_str()]).ok();
    assert!(fs::read(&copied).expect("a copy") == data);
}

#[test]
fn an_address_is_never_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("image"), [1; 512]).expect("a file");
    for (address, text) in [
        ("nbd:127.0.0.1:1", "cannot connect to 127.0.0.1:1"),
        ("NBD:127.0.0.1:1", "cannot connect to 127.0.0.1:1"),
        ("nbd:[::1]:1", "[::1]:1"),
        ("nbd:localhost:1:exportname=foo", "nbd://localhost:1/foo"),
        (
            "nbd:unix:/none/x.sock",
            "cannot connect to socket /none/x.sock",
        ),
        (
            "nbd:unix:x.sock:exportname=a",
            "cannot connect to socket x.sock",
        ),
        ("nbd:localhost", "nbd://HOST:PORT/EXPORT"),
        ("nbd:", "nbd://HOST"),
        ("nbd:unix:", "nbd+unix:///EXPORT?socket=PATH"),
        ("nbd:localhost:99999", "nbd://HOST:PORT"),
        ("nbd+unix:/x", "nbd+unix:///EXPORT?socket=PATH"),
        ("nbds:localhost:1", "nbds://"),
        ("nbd:/localhost/x", "nbd://"),
    ] {
        for args in [["copy", "image", address], ["copy", address, "null:"]] {
            run(nbd().args(args).current_dir(folder.path())).refused(&[text]);
        }
        run(nbd().args(["info", address])).refused(&[text]);
        assert_eq!(
            fs::read_dir(folder.path()).expect("a folder").count(),
            1,
            "{address}"
        );
    }
    // A file of such a name has another spelling, too.
    run(nbd()
        .args(["copy", "image", "./nbd:x"])
        .current_dir(folder.path()))
    .ok();
    assert!(folder.path().join("nbd:x").is_file());
}
