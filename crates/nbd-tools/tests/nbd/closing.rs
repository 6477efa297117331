//! Servers that close the connection.

use std::fs;

use nbd_test_support::images::{MIB, noise};

use crate::fake::{BLOCK_STATUS, Export, FLUSH, Fake, READ};
use crate::nbd::run_nbd;

/// A server that answers until it has answered a command of the type `last`, and
/// does not receive DISC.
fn without_disc(last: u16) -> Fake {
    Fake::start(move |peer| {
        peer.handshake(Export::new(4096))?;
        loop {
            let request = peer.request()?;
            if request.command == last {
                peer.stop_receiving()?;
            }
            match request.command {
                BLOCK_STATUS => peer.status(&request, &[(request.length, 0)])?,
                _ => peer.done(&request)?,
            }
        }
    })
}

#[test]
fn disc_that_cannot_be_sent_is_no_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    fs::write(&image, noise(1, 4096)).expect("a file");
    let image = image.to_str().expect("UTF-8");
    let (read, status, flush) = (
        without_disc(READ),
        without_disc(BLOCK_STATUS),
        without_disc(FLUSH),
    );
    let (read, status, flush) = (read.uri(), status.uri(), flush.uri());
    for args in [
        &["read", &read][..],
        &["map", &status],
        &["copy", &read, "null:"],
        &["write", &flush, "--input", image],
        &["copy", image, &flush],
        &[
            "bench",
            &read,
            "--requests",
            "1",
            "--depth",
            "1",
            "--size",
            "512",
        ],
    ] {
        run_nbd(args).ok();
    }
}

#[test]
fn the_number_of_unanswered_commands() {
    for (count, length, text) in [
        (1, "4096", "with 1 command unanswered"),
        (4, "1M", "with 4 commands unanswered"),
    ] {
        let server = Fake::start(move |peer| {
            peer.handshake(Export::new(MIB))?;
            for _ in 0..count {
                peer.request()?;
            }
            Ok(())
        });
        run_nbd(["read", &server.uri(), "--length", length]).refused(&[text]);
    }
    let server = Fake::start(|peer| {
        peer.handshake(Export::new(MIB))?;
        peer.request().map(drop)
    });
    let bench = ["bench", &server.uri(), "--requests", "1", "--depth", "1"];
    run_nbd(bench).refused(&["with 1 command unanswered"]);
}
