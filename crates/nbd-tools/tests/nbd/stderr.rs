//! Standard error, which its reader may close.

use std::io;
use std::process::Stdio;

use crate::fake::{Export, Fake};
use crate::nbd::nbd;

#[test]
fn a_closed_standard_error_is_no_panic() {
    let code = |args: &[&str]| {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut command = nbd();
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.stderr(writer).status().expect("nbd").code()
    };
    assert_eq!(code(&["info", "nbd+unix:///?socket=/nonexistent"]), Some(1));
    assert_eq!(code(&["read", "http://localhost"]), Some(1));
    // A warning.
    let server = Fake::start(|peer| {
        peer.handshake(Export::new(4096))?;
        loop {
            let request = peer.request()?;
            peer.done(&request)?;
        }
    });
    let uri = format!("{}&sokcet=x", server.uri());
    assert_eq!(code(&["read", &uri]), Some(0));
    let bench = [
        "bench",
        &server.uri(),
        "--mode",
        "write",
        "--requests",
        "1",
        "--size",
        "512",
    ];
    assert_eq!(code(&bench), Some(0));
}
