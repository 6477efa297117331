//! Servers that send replies without an end.

use std::io;

use crate::fake::{Export, Fake, LIST, LIST_META_CONTEXT, META_CONTEXT, SERVER};
use crate::nbd::run_nbd;

/// A server that answers `option` by `reply` with `data` until the connection is
/// closed.
fn server(option: u32, reply: u32, data: &'static [u8]) -> Fake {
    Fake::start(move |peer| -> io::Result<()> {
        peer.greet()?;
        loop {
            let (received, _) = peer.option()?;
            if received == option {
                loop {
                    peer.reply(option, reply, data)?;
                }
            }
            peer.answer(received, Export::new(512))?;
        }
    })
}

#[test]
fn a_list_of_exports_without_an_end() {
    let server = server(LIST, SERVER, b"\0\0\0\x04name");
    run_nbd(["list", &server.uri()]).refused(&["more than 65536 exports"]);
}

#[test]
fn a_list_of_contexts_without_an_end() {
    let server = server(LIST_META_CONTEXT, META_CONTEXT, b"\0\0\0\x01a:b");
    run_nbd(["info", &server.uri()]).refused(&["more than 65536 metadata contexts"]);
}
