//! Faults of the server that cost a command alone: the message says which command,
//! and what the server did wrong.

use std::io;

use crate::fake::{BLOCK_STATUS, Export, Fake, Peer, READ, Request};
use crate::nbd::run_nbd;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const BLOCK_STATUS_CHUNK: u16 = 5;

/// Runs a server of 1 MiB that answers requests of one command wrongly.
fn server(command: u16, wrong: fn(&mut Peer, &Request) -> io::Result<()>) -> Fake {
    Fake::start(move |peer| {
        peer.handshake(Export::new(1 << 20))?;
        loop {
            let request = peer.request()?;
            match request.command {
                asked if asked == command => wrong(peer, &request)?,
                BLOCK_STATUS => peer.status(&request, &[(request.length, 0)])?,
                _ => peer.done(&request)?,
            }
        }
    })
}

#[test]
fn reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    let file = file.to_str().expect("UTF-8");
    let elsewhere = server(READ, |peer, request| {
        let body = [&(1u64 << 40).to_be_bytes()[..], &[1; 512]].concat();
        peer.chunk(request, OFFSET_DATA, &body)
    });
    let nothing = server(READ, |peer, request| peer.chunk(request, NONE, &[]));
    for (server, fault) in [
        (elsewhere, "is outside the request"),
        (nothing, "was declared complete with parts missing"),
    ] {
        let uri = server.uri();
        let range = ["--offset", "4096", "--length", "512"];
        run_nbd([&["read", &uri][..], &range].concat()).refused(&[
            "read of 512 bytes at offset 4096 failed: ",
            "the peer broke the protocol: ",
            fault,
        ]);
        for command in [&["copy", &uri, file][..], &["bench", &uri]] {
            run_nbd(command).refused(&["read of ", "the peer broke the protocol: ", fault]);
        }
    }
}

#[test]
fn block_status() {
    let nothing = server(BLOCK_STATUS, |peer, request| peer.chunk(request, NONE, &[]));
    let empty = server(BLOCK_STATUS, |peer, request| {
        let body = [0, 0, 0, 1].into_iter().chain([0; 8]);
        peer.chunk(request, BLOCK_STATUS_CHUNK, &body.collect::<Vec<u8>>())
    });
    for (server, fault) in [
        (nothing, "lacks a metadata context"),
        (empty, "block status extent of length zero"),
    ] {
        run_nbd(["map", &server.uri()]).refused(&["block status at offset 0 failed: ", fault]);
    }
}
