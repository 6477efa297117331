//! Block status that goes past the end of the request.

use nbd_codec::client::{Config, MetaContextQuery, Request};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;

use crate::driver::Client;

/// nbdkit sends what a plugin returns, also an extent that begins exactly at the end of
/// the request. The place in the stream is known, so the session goes on.
#[test]
fn an_extent_past_the_request_ends_no_session() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&[
        "eval",
        "get_size=echo 1M",
        "can_extents=exit 0",
        "extents=echo 0 65536; echo 65536 65536 hole,zero; echo 131072 917504",
        "pread=dd if=/dev/zero bs=1 count=$3 status=none",
    ]);
    let contexts = [MetaContextQuery::narrow("base:allocation")];
    let mut client = Client::with(&peer, Config::new("").contexts(&contexts));
    client.done(Request::block_status(0, 65536), &[]);
    assert_eq!(client.done(Request::read(0, 512), &[]), [0; 512]);
    client.disconnect();
}
