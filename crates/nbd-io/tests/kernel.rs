//! The messages of the example `kernel_device`. The machine of a test has no module
//! `nbd`, but its kernel knows generic netlink.
#![cfg(target_os = "linux")]
#![allow(dead_code, reason = "the example uses all of it")]

#[path = "../examples/kernel_device/netlink.rs"]
mod netlink;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Framing, Negotiated};
use nbd_io::kernel::{Device, FAMILY};
use nbd_test_support::skipped::skip;

use netlink::{Message, Netlink, reply};

#[cfg(target_endian = "little")]
#[test]
fn a_connect_message_is_what_the_kernel_expects() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::CAN_MULTI_CONN;
    let negotiated = Negotiated::new(Framing::Simple, 1 << 20, flags);
    let mut device = Device::new(&negotiated).expect("a device");
    device.index = Some(3);
    device.timeout = Some(Duration::from_secs(30));
    let (a, b) = UnixStream::pair().expect("sockets");
    let fd = |stream: &UnixStream| stream.as_raw_fd() as u8;
    let (first, second) = (fd(&a), fd(&b));
    let message = Message::connect(0x1c, 9, &device, &[a.as_fd(), b.as_fd()]).finish();
    #[rustfmt::skip]
    let expected = [
        // nlmsghdr: length, family, REQUEST | ACK, sequence, port
        116, 0, 0, 0, 0x1c, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        // genlmsghdr: CONNECT, version 1
        1, 1, 0, 0,
        // INDEX
        8, 0, 1, 0, 3, 0, 0, 0,
        // SIZE_BYTES, BLOCK_SIZE_BYTES, TIMEOUT, SERVER_FLAGS, CLIENT_FLAGS
        12, 0, 2, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
        12, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0, 0,
        12, 0, 4, 0, 30, 0, 0, 0, 0, 0, 0, 0,
        12, 0, 5, 0, 1, 1, 0, 0, 0, 0, 0, 0,
        12, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // SOCKETS: two SOCK_ITEMs of one SOCK_FD
        28, 0, 7, 0x80,
        12, 0, 1, 0x80, 8, 0, 1, 0, first, 0, 0, 0,
        12, 0, 1, 0x80, 8, 0, 1, 0, second, 0, 0, 0,
    ];
    assert_eq!(message, expected);
}

#[cfg(target_endian = "little")]
#[test]
fn a_disconnect_message_names_the_device() {
    let message = Message::disconnect(0x1c, 10, 3).finish();
    #[rustfmt::skip]
    let expected = [
        28, 0, 0, 0, 0x1c, 0, 5, 0, 10, 0, 0, 0, 0, 0, 0, 0,
        2, 1, 0, 0,
        8, 0, 1, 0, 3, 0, 0, 0,
    ];
    assert_eq!(message, expected);
}

#[cfg(target_endian = "little")]
#[test]
fn replies_are_understood_and_broken_ones_are_errors() {
    #[rustfmt::skip]
    let datagram = [
        // Of another request.
        28, 0, 0, 0, 0x1c, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 8, 0, 1, 0, 9, 0, 0, 0,
        // INDEX 3, then the acknowledgement.
        28, 0, 0, 0, 0x1c, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 8, 0, 1, 0, 3, 0, 0, 0,
        36, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(
        reply(&datagram, 7, 1).expect("valid"),
        (Some(vec![3, 0, 0, 0]), true)
    );
    assert_eq!(
        reply(&datagram[..56], 7, 1).expect("valid"),
        (Some(vec![3, 0, 0, 0]), false)
    );
    let mut refused = datagram;
    refused[72] = 0xff; // -1: EPERM
    refused[73..76].fill(0xff);
    let error = reply(&refused, 7, 1).expect_err("an error");
    assert_eq!(error.raw_os_error(), Some(1));
    // Any cut, and any length, ends.
    for end in 0..datagram.len() {
        let _ = reply(&datagram[..end], 7, 1);
        for value in [0, 1, 15, 17, 255] {
            let mut broken = datagram;
            broken[end] = value;
            let _ = reply(&broken, 7, 1);
        }
    }
}

#[test]
fn the_kernel_knows_the_messages() {
    let Ok(mut netlink) = Netlink::open() else {
        return skip("generic netlink");
    };
    // The family of families always has this number.
    assert_eq!(netlink.family("nlctrl").expect("it is there"), 16);
    // With the module this is the number of the family.
    match netlink.family(FAMILY) {
        Ok(family) => assert!(family > 16),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
    }
}
