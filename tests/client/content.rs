//! `Content`: where the content of a read belongs.

use nbd_codec::Content;
use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::wire::number::Cookie;
use nbd_codec::{Framing, Limits, Step};

use super::machines::{Client, export};
use super::script;
use super::transcript::once;

const COOKIE: Cookie = Cookie(7);

const fn data(offset: u64, data: &[u8]) -> Content<&[u8]> {
    Content::Data {
        cookie: COOKIE,
        offset,
        data,
    }
}

const fn hole(offset: u64, length: u32) -> Content<&'static [u8]> {
    Content::Hole {
        cookie: COOKIE,
        offset,
        length,
    }
}

#[test]
fn accessors() {
    for (content, offset, length) in [
        (data(4096, b"abc"), 4096, 3),
        (data(u64::MAX, b""), u64::MAX, 0),
        (hole(512, u32::MAX), 512, 0xffff_ffff),
    ] {
        assert_eq!(content.cookie(), COOKIE);
        assert_eq!((content.offset(), content.length()), (offset, length));
    }
}

/// A block of 8 bytes at offset 100: what is within it is copied, whatever else
/// is refused whole.
#[test]
fn copy_to_a_block() {
    for (content, block) in [
        (data(100, b"abc"), Some(b"abc.....")),
        (data(105, b"abc"), Some(b".....abc")),
        (data(100, b"abcdefgh"), Some(b"abcdefgh")),
        (data(108, b""), Some(b"........")),
        (hole(100, 8), Some(b"\0\0\0\0\0\0\0\0")),
        (hole(103, 2), Some(b"...\0\0...")),
        (data(99, b"abc"), None),
        (data(106, b"abc"), None),
        (data(100, b"abcdefghi"), None),
        (data(0, b"abc"), None),
        (data(u64::MAX, b"abc"), None),
        (hole(99, 1), None),
        (hole(107, 2), None),
        (hole(108, 1), None),
        (hole(100, u32::MAX), None),
        (hole(u64::MAX, u32::MAX), None),
    ] {
        let mut seen = *b"........";
        assert_eq!(content.copy_to(100, &mut seen), block.is_some());
        assert_eq!(&seen, block.unwrap_or(b"........"), "{content:?}");
    }
    // The end of the address space.
    let mut seen = *b"..";
    assert!(data(u64::MAX - 1, b"ab").copy_to(u64::MAX - 1, &mut seen));
    assert_eq!(&seen, b"ab");
    assert!(!hole(u64::MAX - 1, 3).copy_to(u64::MAX - 1, &mut seen));
}

/// A whole read in pieces: data and holes in any order, in any fragmentation.
#[test]
fn a_block_from_any_fragmentation() {
    let start = || {
        let mut client = Client::new(export(Framing::Extended));
        once(&mut client, "C: READ 4K 16");
        client
    };
    let reply: Vec<u8> = [
        "chunk OFFSET_HOLE #0 4104:64 4:32",
        "chunk OFFSET_DATA #0 4108:64 03*4",
        "last OFFSET_DATA #0 4096:64 01*8",
    ]
    .iter()
    .flat_map(|line| script::server(line, &start()))
    .collect();
    for size in 1..reply.len() {
        let mut client = start();
        let mut block = [0xff; 16];
        let mut held = Vec::new();
        for piece in reply.chunks(size) {
            held.extend(piece);
            let mut input = held.as_slice();
            loop {
                match client.machine.receive(&mut input).unwrap() {
                    Step::Content(content) => assert!(content.copy_to(4096, &mut block)),
                    Step::Event(_) => {}
                    _ => break,
                }
            }
            held = input.to_vec();
        }
        assert_eq!(client.machine.in_flight(), 0);
        let due = [[1; 8].as_slice(), &[0; 4], &[3; 4]].concat();
        assert_eq!(block, due.as_slice(), "in pieces of {size}");
    }
}

/// Content borrows the input, not the state machine: a command can be submitted
/// while it is held.
#[test]
fn content_does_not_borrow_the_state_machine() {
    let mut machine = Transmission::new(export(Framing::Simple), [Slot::EMPTY; 2], Limits::DEFAULT);
    let cookie = machine.submit(Request::read(0, 2)).unwrap().cookie();
    let mut reply = 0x6744_6698_0000_0000_u64.to_be_bytes().to_vec();
    reply.extend(cookie.0.to_be_bytes());
    reply.extend(b"ab");
    let mut input = reply.as_slice();
    let Ok(Step::Content(content)) = machine.receive(&mut input) else {
        panic!("no content");
    };
    assert!(machine.submit(Request::flush()).is_ok());
    assert_eq!(content.length(), 2);
}
