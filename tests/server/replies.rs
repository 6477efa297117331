//! Replies: the bytes of each, in each framing.

use nbd_codec::server::{
    Handshake, HandshakeEvent, Reply, ReplyHeader, Request, Transmission, TransmissionEvent, narrow,
};
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits, Misuse, Negotiated, Step};

use crate::requests::export;
use crate::script::bytes;

pub(crate) const OFFSET: u64 = 0x1000;
pub(crate) const LENGTH: u32 = 0x1000;
const FLAGS: TransmissionFlags = TransmissionFlags(0x1ffd);
const COOKIE: &str = "0000_0000_0000_00cc";
const AT: &str = "0000_0000_0000_1000";

/// A request for 4 KiB at offset 4 KiB, as the server receives it.
pub(crate) fn request(framing: Framing, command: Command, flags: CommandFlags) -> Request {
    request_of(export(framing, FLAGS), command, flags)
}

pub(crate) fn request_of(export: Negotiated, command: Command, flags: CommandFlags) -> Request {
    let framing = export.framing;
    let mut transmission = Transmission::new(export, Limits::DEFAULT).unwrap();
    let cookie = Cookie(0xcc);
    let mut input = match framing {
        Framing::Extended => ExtendedRequest {
            flags: match command {
                Command::WRITE => flags | CommandFlags::PAYLOAD_LEN,
                _ => flags,
            },
            command,
            cookie,
            offset: OFFSET,
            length: LENGTH.into(),
        }
        .encode()
        .to_vec(),
        _ => CompactRequest {
            flags,
            command,
            cookie,
            offset: OFFSET,
            length: LENGTH,
        }
        .encode()
        .to_vec(),
    };
    if command == Command::WRITE {
        input.resize(input.len() + LENGTH as usize, 7);
    }
    let mut input = &input[..];
    loop {
        match transmission.receive(&mut input) {
            Ok(Step::Event(TransmissionEvent::Request(request))) => return request,
            Ok(Step::Event(TransmissionEvent::WritePayload { .. }) | Step::Content(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

macro_rules! request_of_type {
    ($framing:expr, $kind:ident, $command:ident, $flags:expr) => {
        match crate::replies::request($framing, Command::$command, $flags) {
            Request::$kind(request) => request,
            other => panic!("{other:?}"),
        }
    };
    ($framing:expr, $kind:ident, $command:ident) => {
        request_of_type!($framing, $kind, $command, CommandFlags::NONE)
    };
}
pub(crate) use request_of_type;

/// Compares written bytes with a line of a transcript.
#[track_caller]
fn assert_bytes(written: impl AsRef<[u8]>, expected: &str) {
    let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
    assert_eq!(show(written.as_ref()), show(&bytes(expected)));
}

/// Encodes a reply: into a sink of exactly its size, and into none that is
/// smaller.
fn encoded(reply: Reply<'_>) -> Vec<u8> {
    let needed = reply.size();
    let mut out = vec![0xee; needed];
    for size in [0, 1, needed - 1] {
        let refused = reply.encode(&mut &mut out[..size]);
        assert_eq!(refused, Err(EncodeError::NoRoom { needed }));
        assert!(out.iter().all(|byte| *byte == 0xee));
    }
    assert_eq!(reply.encode(&mut &mut out[..]), Ok(needed));
    assert_eq!(reply.parts().concat(), out);
    out
}

const SIMPLE: Framing = Framing::Simple;
const STRUCTURED: Framing = Framing::Structured;
const EXTENDED: Framing = Framing::Extended;

/// Each request has the cookie that its replies repeat.
#[test]
fn requests_know_their_cookie() {
    let of = |framing, command| match request(framing, command, CommandFlags::NONE) {
        Request::Read(it) => {
            let whole = it.cookie();
            let chunks = it.into_chunks();
            chunks
                .map_or_else(|it| it.cookie(), |it| it.cookie())
                .min(whole)
        }
        Request::Write(it) => it.cookie(),
        Request::Flush(it) => it.cookie(),
        Request::Trim(it) => it.cookie(),
        Request::Cache(it) => it.cookie(),
        Request::WriteZeroes(it) => it.cookie(),
        Request::BlockStatus32(it) => it.cookie(),
        Request::BlockStatus64(it) => it.cookie(),
        Request::Resize(it) => it.cookie(),
        other => panic!("{other:?}"),
    };
    for framing in [SIMPLE, STRUCTURED, EXTENDED] {
        for command in (0..=8).map(Command) {
            let none =
                command == Command::DISC || command == Command::BLOCK_STATUS && framing == SIMPLE;
            if !none {
                assert_eq!(of(framing, command), Cookie(0xcc), "{framing} {command}");
            }
        }
    }
}

#[test]
fn every_request_fails_with_the_error_reply_of_its_framing() {
    let commands = [
        Command::READ,
        Command::WRITE,
        Command::FLUSH,
        Command::TRIM,
        Command::CACHE,
        Command::WRITE_ZEROES,
        Command::BLOCK_STATUS,
        Command::RESIZE,
    ];
    for command in commands {
        let fail = |framing| {
            let request = request(framing, command, CommandFlags::NONE);
            assert_eq!(request.cookie(), Cookie(0xcc));
            assert_eq!(request.command(), command);
            encoded(request.fail(ErrorValue::ESHUTDOWN, "going down"))
        };
        if command != Command::BLOCK_STATUS {
            assert_bytes(fail(SIMPLE), &format!("SIMPLE ESHUTDOWN {COOKIE}"));
        }
        assert_bytes(
            fail(STRUCTURED),
            &format!("CHUNK DONE ERROR {COOKIE} 4{{ ESHUTDOWN 2{{ \"going down\" }} }}"),
        );
        assert_bytes(
            fail(EXTENDED),
            &format!("EXTCHUNK DONE ERROR {COOKIE} {AT} 8{{ ESHUTDOWN 2{{ \"going down\" }} }}"),
        );
    }
}

#[test]
fn errors_have_an_offset_where_the_request_has_a_range() {
    macro_rules! at {
        ($($kind:ident $command:ident $(not in $simple:ident)?;)*) => {$(
            for framing in [SIMPLE, STRUCTURED, EXTENDED] {
                $(if framing == $simple { continue; })?
                at!(@ framing, $kind, $command, $kind);
            }
        )*};
        (@ $framing:expr, BlockStatus, $command:ident, $_:ident) => {
            let out = match $framing {
                EXTENDED => encoded(request_of_type!($framing, BlockStatus64, $command)
                    .fail_at(ErrorValue::EIO, 0x1fff, "here").unwrap()),
                _ => encoded(request_of_type!($framing, BlockStatus32, $command)
                    .fail_at(ErrorValue::EIO, 0x1fff, "here").unwrap()),
            };
            check($framing, out);
        };
        (@ $framing:expr, $kind:ident, $command:ident, $_:ident) => {
            let request = request_of_type!($framing, $kind, $command);
            check($framing, encoded(request.fail_at(ErrorValue::EIO, 0x1fff, "here").unwrap()));
        };
    }
    fn check(framing: Framing, out: Vec<u8>) {
        let body = "EIO 2{ \"here\" } 0000_0000_0000_1fff";
        match framing {
            SIMPLE => assert_bytes(out, &format!("SIMPLE EIO {COOKIE}")),
            STRUCTURED => {
                assert_bytes(
                    out,
                    &format!("CHUNK DONE ERROR_OFFSET {COOKIE} 4{{ {body} }}"),
                );
            }
            EXTENDED => assert_bytes(
                out,
                &format!("EXTCHUNK DONE ERROR_OFFSET {COOKIE} {AT} 8{{ {body} }}"),
            ),
        }
    }
    at! {
        Read READ;
        Write WRITE;
        Trim TRIM;
        Cache CACHE;
        WriteZeroes WRITE_ZEROES;
        BlockStatus BLOCK_STATUS not in SIMPLE;
    }
}

/// An error reply must not report success.
#[test]
fn error_zero_becomes_eio() {
    let reply = request_of_type!(SIMPLE, Read, READ).fail(ErrorValue::NONE, "");
    assert_bytes(encoded(reply), &format!("SIMPLE EIO {COOKIE}"));
    let reply = request_of_type!(STRUCTURED, Trim, TRIM).fail(ErrorValue::NONE, "");
    let expected = format!("CHUNK DONE ERROR {COOKIE} 4{{ EIO 0000 }}");
    assert_bytes(encoded(reply), &expected);
}

/// A message has at most 4096 bytes, whole characters, and no NUL.
#[test]
fn error_messages_are_truncated() {
    let sent = |text: &str| {
        let reply = request_of_type!(STRUCTURED, Flush, FLUSH).fail(ErrorValue::EIO, text);
        let out = encoded(reply);
        assert_eq!(
            out.len(),
            26 + usize::from(u16::from_be_bytes([out[24], out[25]]))
        );
        String::from_utf8(out[26..].to_vec()).unwrap()
    };
    assert_eq!(sent(&"x".repeat(70_000)), "x".repeat(4096));
    // Three bytes each: 1365 of them are 4095 bytes.
    assert_eq!(sent(&"€".repeat(3000)), "€".repeat(1365));
    assert_eq!(sent("before\0after"), "before");
    assert_eq!(sent(""), "");
    // A message is not longer than the maximum payload.
    let mut export = export(STRUCTURED, FLAGS);
    export.block_sizes = Some(BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum: 512,
    });
    let request = request_of(export, Command::FLUSH, CommandFlags::NONE);
    let text = "y".repeat(4096);
    let reply = request.fail(ErrorValue::EIO, &text);
    assert_eq!(reply.size(), 26 + 512);
}

#[test]
fn a_read_in_chunks() {
    let mut chunks = request_of_type!(STRUCTURED, Read, READ)
        .into_chunks()
        .unwrap();
    assert_eq!((chunks.offset(), chunks.length()), (OFFSET, LENGTH));
    assert!(!chunks.dont_fragment());
    let header = chunks.data(0x1800, 0x400).unwrap();
    assert_bytes(
        header,
        &format!("CHUNK MORE OFFSET_DATA {COOKIE} 0000_0408 0000_0000_0000_1800"),
    );
    assert_eq!(header.payload_length(), 0x400);
    assert_bytes(
        encoded(chunks.hole(0x1000, 0x800).unwrap()),
        &format!("CHUNK MORE OFFSET_HOLE {COOKIE} 4{{ 0000_0000_0000_1000 0000_0800 }}"),
    );
    assert_bytes(
        chunks.data(0x1c00, 0x400).unwrap(),
        &format!("CHUNK MORE OFFSET_DATA {COOKIE} 0000_0408 0000_0000_0000_1c00"),
    );
    assert_bytes(
        encoded(chunks.finish().unwrap()),
        &format!("CHUNK DONE NONE {COOKIE} 4{{ }}"),
    );

    let mut chunks = request_of_type!(EXTENDED, Read, READ)
        .into_chunks()
        .unwrap();
    assert_bytes(
        chunks.data(0x1000, 0x800).unwrap(),
        &format!("EXTCHUNK MORE OFFSET_DATA {COOKIE} {AT} 0000_0000_0000_0808 {AT}"),
    );
    assert_bytes(
        encoded(chunks.hole(0x1800, 0x400).unwrap()),
        &format!("EXTCHUNK MORE OFFSET_HOLE {COOKIE} {AT} 8{{ 0000_0000_0000_1800 0000_0400 }}"),
    );
    // The last chunk ends the reply.
    assert_bytes(
        chunks.finish_with_data(0x1c00, 0x400).unwrap(),
        &format!("EXTCHUNK DONE OFFSET_DATA {COOKIE} {AT} 0000_0000_0000_0408 0000_0000_0000_1c00"),
    );

    let chunks = request_of_type!(EXTENDED, Read, READ, CommandFlags::DF)
        .into_chunks()
        .unwrap();
    assert_bytes(
        encoded(chunks.finish_with_hole(0x1000, 0x1000).unwrap()),
        &format!("EXTCHUNK DONE OFFSET_HOLE {COOKIE} {AT} 8{{ {AT} 0000_1000 }}"),
    );
}

#[test]
fn a_read_with_errors_in_it() {
    let mut chunks = request_of_type!(STRUCTURED, Read, READ)
        .into_chunks()
        .unwrap();
    let _ = chunks.data(0x1000, 0x800).unwrap();
    assert_bytes(
        encoded(
            chunks
                .error_at(ErrorValue::EIO, 0x1400, "bad block")
                .unwrap(),
        ),
        &format!(
            "CHUNK MORE ERROR_OFFSET {COOKIE} 4{{ EIO 2{{ \"bad block\" }} 0000_0000_0000_1400 }}"
        ),
    );
    let _ = chunks.hole(0x1c00, 0x100).unwrap();
    // After an error, the chunks need not cover the whole read.
    assert_bytes(
        encoded(chunks.finish().unwrap()),
        &format!("CHUNK DONE NONE {COOKIE} 4{{ }}"),
    );

    // Shutdown between two chunks.
    let mut chunks = request_of_type!(EXTENDED, Read, READ)
        .into_chunks()
        .unwrap();
    let _ = chunks.data(0x1000, 0x800).unwrap();
    assert_bytes(
        encoded(chunks.fail(ErrorValue::ESHUTDOWN, "")),
        &format!("EXTCHUNK DONE ERROR {COOKIE} {AT} 8{{ ESHUTDOWN 0000 }}"),
    );
}

#[test]
fn simple_framing_has_no_chunks() {
    let read = request_of_type!(SIMPLE, Read, READ);
    let read = read.into_chunks().expect_err("chunks in simple framing");
    let header = read.data();
    assert_bytes(header, &format!("SIMPLE OK {COOKIE}"));
    assert_eq!(header.payload_length(), LENGTH);
}

pub(crate) fn wide(length: u64, flags: u64) -> Extent64 {
    Extent64 { length, flags }
}

pub(crate) fn slim(length: u32, flags: u32) -> Extent32 {
    Extent32 { length, flags }
}

/// One chunk for each context, in any order; the last chunk ends the reply.
#[test]
fn block_status_32() {
    let status = request_of_type!(STRUCTURED, BlockStatus32, BLOCK_STATUS);
    let contexts: Vec<_> = status.contexts().collect();
    assert_eq!(contexts, [ContextId(0), ContextId(3)]);
    let mut out = Vec::new();
    // The last extent may reach past the end of the request.
    let extents = [slim(0xfff, 1), slim(u32::MAX, 0)];
    let status = status
        .reply(ContextId(3), extents, &mut out)
        .unwrap()
        .unwrap();
    assert!(status.contexts().eq([ContextId(0)]));
    let end = status.reply(ContextId(0), [slim(1, u32::MAX)], &mut out);
    assert_eq!(end, Ok(None));
    assert_bytes(
        out,
        &format!(
            "CHUNK MORE STATUS {COOKIE} 4{{ 0000_0003 0000_0fff 0000_0001 ffff_ffff 0000_0000 }}
             CHUNK DONE STATUS {COOKIE} 4{{ 0000_0000 0000_0001 ffff_ffff }}"
        ),
    );
}

#[test]
fn block_status_64() {
    let status = request_of_type!(EXTENDED, BlockStatus64, BLOCK_STATUS);
    let mut out = Vec::new();
    let extents = [wide(0xfff, 1), wide(u64::MAX, 0xffff_ffff)];
    let status = status
        .reply(ContextId(0), extents, &mut out)
        .unwrap()
        .unwrap();
    // Flags of 64 bits for a 64-bit context.
    let end = status.reply(ContextId(3), [wide(1, u64::MAX)], &mut out);
    assert_eq!(end, Ok(None));
    assert_bytes(
        out,
        &format!(
            "EXTCHUNK MORE STATUS_EXT {COOKIE} {AT} 8{{ 0000_0000 0000_0002
                0000_0000_0000_0fff 0000_0000_0000_0001
                ffff_ffff_ffff_ffff 0000_0000_ffff_ffff }}
             EXTCHUNK DONE STATUS_EXT {COOKIE} {AT} 8{{ 0000_0003 0000_0001
                0000_0000_0000_0001 ffff_ffff_ffff_ffff }}"
        ),
    );
}

#[test]
fn block_status_fails_between_contexts() {
    let status = request_of_type!(STRUCTURED, BlockStatus32, BLOCK_STATUS);
    let mut out = Vec::new();
    let status = status
        .reply(ContextId(0), [slim(1, 0)], &mut out)
        .unwrap()
        .unwrap();
    assert_bytes(
        encoded(status.fail(ErrorValue::ESHUTDOWN, "")),
        &format!("CHUNK DONE ERROR {COOKIE} 4{{ ESHUTDOWN 0000 }}"),
    );
}

/// A map of the export may be longer than the request.
#[test]
fn extents_are_truncated_to_the_request() {
    let status = request_of_type!(STRUCTURED, BlockStatus32, BLOCK_STATUS);
    let map = [slim(0x800, 1), slim(0x800, 0), slim(0x800, 1)];
    assert!(
        status
            .truncate(map.into_iter())
            .eq(map[..2].iter().copied())
    );
    let map = [slim(0xfff, 1), slim(0x800, 0), slim(0x800, 1)];
    assert!(
        status
            .truncate(map.into_iter())
            .eq(map[..2].iter().copied())
    );
    let map = [slim(0x5000, 1), slim(0x800, 0)];
    assert!(status.truncate(map.into_iter()).eq([map[0]]));
    assert!(status.truncate(map[..0].iter().copied()).eq([]));

    let one = request_of_type!(
        STRUCTURED,
        BlockStatus32,
        BLOCK_STATUS,
        CommandFlags::REQ_ONE
    );
    assert!(one.req_one());
    assert!(one.truncate(map.into_iter()).eq([slim(0x1000, 1)]));
    let map = [slim(0x200, 1), slim(0x800, 0)];
    assert!(one.truncate(map.into_iter()).eq([map[0]]));

    let one = request_of_type!(EXTENDED, BlockStatus64, BLOCK_STATUS, CommandFlags::REQ_ONE);
    assert!(
        one.truncate([wide(u64::MAX, 9)].into_iter())
            .eq([wide(0x1000, 9)])
    );
    let all = request_of_type!(EXTENDED, BlockStatus64, BLOCK_STATUS);
    let map = [wide(u64::MAX, 9), wide(1, 0)];
    assert!(all.truncate(map.into_iter()).eq([map[0]]));
}

/// A server that keeps its map in 64 bits answers both widths with it.
#[test]
fn a_map_in_64_bits_is_narrowed_for_narrow_status() {
    // What is past the end of the request is not looked at.
    let map = [wide(0x800, 1), wide(5 << 30, 0), wide(1, u64::MAX)];
    let mut out = Vec::new();
    let narrow = request_of_type!(STRUCTURED, BlockStatus32, BLOCK_STATUS);
    let Err(rejected) = narrow.reply_wide(ContextId(0), [wide(1, 1 << 32)], &mut out) else {
        panic!("flags of 33 bits");
    };
    assert_eq!(rejected.reason, Misuse::StatusTooWide(ContextId(0)));
    assert!(out.is_empty());
    let narrow = rejected.request;
    let narrow = narrow.reply_wide(ContextId(0), map, &mut out);
    let narrow = narrow.unwrap().unwrap();
    assert!(narrow.contexts().eq([ContextId(3)]));
    assert_bytes(
        std::mem::take(&mut out),
        &format!(
            "CHUNK MORE STATUS {COOKIE} 4{{ 0000_0000 0000_0800 0000_0001 ffff_0000 0000_0000 }}"
        ),
    );
    let one = CommandFlags::REQ_ONE;
    let narrow = request_of_type!(STRUCTURED, BlockStatus32, BLOCK_STATUS, one);
    narrow.reply_wide(ContextId(0), map, &mut out).unwrap();
    assert_bytes(
        std::mem::take(&mut out),
        &format!("CHUNK MORE STATUS {COOKIE} 4{{ 0000_0000 0000_0800 0000_0001 }}"),
    );
    let all = request_of_type!(EXTENDED, BlockStatus64, BLOCK_STATUS);
    all.reply_wide(ContextId(0), map, &mut out).unwrap();
    assert_bytes(
        out,
        &format!(
            "EXTCHUNK MORE STATUS_EXT {COOKIE} {AT} 8{{ 0000_0000 0000_0002
                0000_0000_0000_0800 0000_0000_0000_0001
                0000_0001_4000_0000 0000_0000_0000_0000 }}"
        ),
    );
}

/// An `Extent64` becomes several `Extent32`.
#[test]
fn wide_extents_are_split() {
    let split = |length, flags| {
        narrow::split(wide(length, flags))
            .unwrap()
            .collect::<Vec<_>>()
    };
    assert_eq!(split(0, 1), []);
    assert_eq!(split(1, 1), [slim(1, 1)]);
    assert_eq!(split(0xffff_0000, 1), [slim(0xffff_0000, 1)]);
    assert_eq!(split(0xffff_0001, 1), [slim(0xffff_0000, 1), slim(1, 1)]);
    assert_eq!(
        split(0x1_ffff_0000, 3),
        [
            slim(0xffff_0000, 3),
            slim(0xffff_0000, 3),
            slim(0x1_0000, 3)
        ]
    );
    // The largest extent is split lazily.
    let pieces = narrow::split(wide(u64::MAX, u64::from(u32::MAX))).unwrap();
    assert!(
        pieces
            .take(1000)
            .all(|piece| piece == slim(0xffff_0000, u32::MAX))
    );
    let whole = wide(4096, 1 << 32);
    assert_eq!(narrow::split(whole).unwrap_err().0, whole);
}

/// Memory of a server for each connection and each request.
#[test]
fn state_machines_and_requests_are_small() {
    assert!(size_of::<Request>() <= 64, "{}", size_of::<Request>());
    type HandshakeStep = Step<HandshakeEvent<'static>, &'static [u8]>;
    type TransmissionStep = Step<TransmissionEvent, &'static [u8]>;
    let (handshake, transmission) = (size_of::<HandshakeStep>(), size_of::<TransmissionStep>());
    assert!(handshake <= 96, "{handshake}");
    assert!(transmission <= 96, "{transmission}");
    assert!(size_of::<Reply<'_>>() <= 72, "{}", size_of::<Reply<'_>>());
    assert!(
        size_of::<ReplyHeader>() <= 52,
        "{}",
        size_of::<ReplyHeader>()
    );
    assert!(size_of::<Handshake>() <= 512, "{}", size_of::<Handshake>());
    assert!(
        size_of::<Transmission>() <= 512,
        "{}",
        size_of::<Transmission>()
    );
}
