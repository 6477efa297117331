//! The server of the crate `nbd` 0.3.1, which knows `EXPORT_NAME`, `LIST` and `ABORT`,
//! refuses some options, and closes the connection at all others (`STARTTLS`).

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use nbd_test_support::images::noise;
use nbd_test_support::program::{Ended, example, run, tool};

/// Serves a file as "disk" and by the empty name; returns `ADDR:PORT`.
fn serve(path: &Path) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let path = path.to_owned();
    // The threads end with the process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let path = path.clone();
            // Its client may close the connection at any time.
            thread::spawn(move || drop(talk(&stream, &path)));
        }
    });
    address
}

fn talk(stream: &TcpStream, path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    nbd::server::handshake(stream, |name| match name {
        "" | "disk" => Ok(nbd::Export::<()> {
            size,
            send_flush: true,
            ..nbd::Export::default()
        }),
        _ => Err(io::ErrorKind::NotFound.into()),
    })?;
    nbd::server::transmission(stream, file)
}

fn nbd(args: &[&str]) -> Ended {
    run(tool("nbd").args(args))
}

/// A disk, and the address of a server for it.
fn start(folder: &Path) -> (Vec<u8>, String) {
    let image = folder.join("image");
    let disk = noise(1, 3 << 20);
    fs::write(&image, &disk).expect("an image");
    (disk, serve(&image))
}

#[test]
fn options_that_the_server_refuses_are_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (disk, address) = start(folder.path());
    let uri = format!("nbd://{address}/disk");
    for args in [&[][..], &["--no-go"], &["--framing=simple"]] {
        let info = nbd(&[&["info", &uri, "--json"], args].concat()).json();
        assert_eq!(info["exports"][0]["export-size"], disk.len());
        assert_eq!(info["structured"], false);
        assert!(nbd(&[&["read", &uri], args].concat()).ok().stdout == disk);
    }
    nbd(&["map", &uri]).refused(&["only simple framing"]);
    for export in ["disk", ""] {
        let pulled = run(example("blocking_client").args([&address, export])).ok();
        assert!(pulled.stdout == disk, "blocking_client");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (disk, address) = start(folder.path());
    let uri = format!("nbd://{address}/disk");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (image, copied) = (path("image"), path("copied"));
    // It has no WRITE_ZEROES: holes are sent as data.
    let mut new = noise(2, disk.len());
    new[65536..1 << 20].fill(0);
    fs::write(&copied, &new).expect("a source");
    nbd(&["copy", &copied, &uri]).ok();
    assert!(fs::read(&image).expect("the image") == new);
    fs::remove_file(&copied).expect("removed");
    nbd(&["copy", &uri, &copied]).ok();
    assert!(fs::read(&copied).expect("a copy") == new);
}

/// The end of the connection is the only reply to an export that it does not have. It lists an export that it does not have.
#[test]
fn the_option_at_which_it_hangs_up_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (disk, address) = start(folder.path());
    let other = format!("nbd://{address}/other");
    let text = ["NBD_OPT_EXPORT_NAME", "no such export"];
    nbd(&["read", &other]).refused(&text);
    nbd(&["read", &other, "--no-go"]).refused(&text);
    let ended = nbd(&["list", &format!("nbd://{address}"), "--json"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("\"rustnbd\""), "{ended:?}");
    let ended = run(example("blocking_client").args([&address, "other"]));
    assert!(ended.stderr.contains("NBD_OPT_EXPORT_NAME"), "{ended:?}");
    // It serves the next client.
    assert!(nbd(&["read", &format!("nbd://{address}/disk")]).ok().stdout == disk);
}
