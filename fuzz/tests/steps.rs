//! Every length field of every message with the worst values, in every way to
//! read, on all state machines.

use nbd_codec_fuzz::steps::{run, scripts};

#[test]
fn client_transmission() {
    scripts::client_transmission(run);
}

#[test]
fn client_handshake() {
    scripts::client_handshake(run);
}

#[test]
fn server_transmission() {
    scripts::server_transmission(run);
}

#[test]
fn server_handshake() {
    scripts::server_handshake(run);
}
