//! Servers that close the connection at options that they do not know.

use crate::fake::{
    EXPORT_NAME, EXTENDED_HEADERS, Export, Fake, GO, INFO, LIST, LIST_META_CONTEXT,
    STRUCTURED_REPLY,
};
use crate::nbd::run_nbd;

/// A server that closes the connection at options that it does not know.
fn without(options: &'static [u32]) -> Fake {
    Fake::start(move |peer| {
        peer.greet()?;
        loop {
            let (option, _) = peer.option()?;
            if options.contains(&option) {
                return Ok(());
            }
            if peer.answer(option, Export::new(4096).simple())? {
                break;
            }
        }
        loop {
            let request = peer.request()?;
            peer.done(&request)?;
        }
    })
}

#[test]
fn a_server_that_hangs_up_at_an_option() {
    let server = without(&[EXTENDED_HEADERS, STRUCTURED_REPLY]);
    let uri = server.uri();
    for command in ["read", "info", "list"] {
        run_nbd([command, &uri]).refused(&["NBD_OPT_EXTENDED_HEADERS", "--framing simple"]);
        run_nbd([command, &uri, "--framing", "structured"])
            .refused(&["NBD_OPT_STRUCTURED_REPLY", "--framing simple"]);
        run_nbd([command, &uri, "--framing", "simple"]).ok();
    }
    let server = without(&[LIST]);
    run_nbd(["list", &server.uri()]).refused(&["NBD_OPT_LIST", "nbd info"]);
    let server = without(&[LIST_META_CONTEXT, INFO, GO]);
    run_nbd(["read", &server.uri()]).refused(&["NBD_OPT_GO", "--no-go"]);
    run_nbd(["info", &server.uri()]).refused(&["NBD_OPT_GO", "--no-go"]);
}

#[test]
fn a_handshake_that_begins_at_export_name() {
    let server = without(&[
        EXTENDED_HEADERS,
        STRUCTURED_REPLY,
        LIST_META_CONTEXT,
        INFO,
        GO,
    ]);
    let uri = server.uri();
    for args in [
        ["--no-go", "--framing=simple"],
        ["--no-go", "--framing=extended"],
    ] {
        let read = run_nbd(["read", &uri].iter().chain(&args)).ok();
        assert!(read.stdout == [1; 4096], "{args:?}");
        let info = run_nbd(["info", &uri, "--json"].iter().chain(&args)).json();
        assert_eq!(info["exports"][0]["export-size"], 4096);
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], false);
        run_nbd(["list", &uri, "--json"].iter().chain(&args)).json();
    }
    // With simple framing nothing else can be left out.
    run_nbd(["read", &uri, "--framing=simple"]).ok();
    run_nbd(["info", &uri, "--framing=simple"]).ok();
    // The only reply to an unknown export is the end of the connection.
    let server = without(&[EXPORT_NAME]);
    run_nbd(["read", &server.uri(), "--no-go"]).refused(&["NBD_OPT_EXPORT_NAME", "no such export"]);
}
