//! Older handshake styles: oldstyle, newstyle that is not fixed, and fixed newstyle
//! without some options.

use std::process::Command;

use nbd_codec::{Framing, HandshakeStyle};
use nbd_test_support::images::{MIB, assert_as_sparse, assert_same, noise, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;

use crate::driver::Client;
use crate::nbd::run_nbd;

/// Options of nbdkit, and the resulting handshake.
const STYLES: [(&[&str], HandshakeStyle, Framing); 5] = [
    (&["--oldstyle"], HandshakeStyle::Oldstyle, Framing::Simple),
    // Neither fixed newstyle nor NO_ZEROES: EXPORT_NAME is the only option.
    (
        &["--mask-handshake=0"],
        HandshakeStyle::Newstyle,
        Framing::Simple,
    ),
    (
        &["--mask-handshake=2"],
        HandshakeStyle::Newstyle,
        Framing::Simple,
    ),
    (
        &["--mask-handshake=1"],
        HandshakeStyle::FixedNewstyle,
        Framing::Structured,
    ),
    (&["--no-sr"], HandshakeStyle::FixedNewstyle, Framing::Simple),
];

#[test]
fn a_client_supports_every_style() {
    needs!("nbdkit");
    for (args, style, framing) in STYLES {
        let peer = Peer::nbdkit(&[args, &["memory", "1M"]].concat());
        let mut client = Client::open(&peer, "", Framing::Extended);
        let negotiated = *client.negotiated();
        assert_eq!(
            (negotiated.style, negotiated.framing),
            (style, framing),
            "{args:?}"
        );
        assert_eq!(negotiated.size, MIB);
        let data = noise(2, 70000);
        client.done(nbd_codec::client::Request::write(1234, 70000), &data);
        let read = nbd_codec::client::Request::read(1234, 70000);
        assert!(client.done(read, &[]) == data, "{args:?}");
        client.disconnect();
    }
}

#[test]
fn nbd_describes_and_copies_in_every_style() {
    needs!("nbdkit", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (image, copy) = (path("image"), path("copy"));
    sparse(&image, 32 * MIB, &scattered(32 * MIB));
    let file = format!("file={}", image.to_str().expect("UTF-8"));
    for (args, style, _) in STYLES {
        let peer = Peer::nbdkit(&[args, &["file", &file]].concat());
        let uri = peer.uri("");
        let info = run_nbd(["info", &uri, "--json"]).json();
        assert_eq!(info["protocol"], style.to_string(), "{args:?}");
        let nbdinfo = run(Command::new("nbdinfo").args(["--json", "--no-content", &uri])).json();
        assert_eq!(info["exports"], nbdinfo["exports"], "{args:?}");
        run_nbd(["copy".as_ref(), uri.as_ref(), copy.as_os_str()]).ok();
        assert_same(&image, &copy);
        assert_as_sparse(&image, &copy);

        // With oldstyle, nbdkit advertises FLUSH and rejects it, so a copy to it
        // cannot be made permanent.
        if style != HandshakeStyle::Oldstyle {
            let peer = Peer::nbdkit(&[args, &["memory", "32M"]].concat());
            let uri = peer.uri("");
            run_nbd(["copy".as_ref(), image.as_os_str(), uri.as_ref()]).ok();
            run_nbd(["copy".as_ref(), uri.as_ref(), copy.as_os_str()]).ok();
            assert_same(&image, &copy);
        }
    }
}

#[test]
fn old_styles_have_no_list() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["--oldstyle", "memory", "1M"]);
    run_nbd(["list", &peer.uri("")]).refused(&["oldstyle", "nbd info"]);
    run_nbd(["info", &peer.uri("name")]).refused(&["oldstyle", "no export names"]);
    let peer = Peer::nbdkit(&["--mask-handshake=0", "memory", "1M"]);
    run_nbd(["list", &peer.uri("")]).refused(&["newstyle", "nbd info"]);
}
