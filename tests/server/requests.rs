//! Every command in every framing, and the order of requests.

use nbd_codec::server::{Request, Transmission};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Framing, Limits, Negotiated, SelectedContext, StatusWidth};

use crate::drive::{TransmissionDriver, play};
use crate::rejections::COMPACT;

const SIZE: u64 = 0x1_0000_0000_0000;
pub(crate) const WRITABLE: TransmissionFlags =
    TransmissionFlags(0x1fff & !TransmissionFlags::READ_ONLY.0);

/// An export with two contexts; with extended headers, the second has 64 bits.
pub(crate) fn export(framing: Framing, flags: TransmissionFlags) -> Negotiated {
    let mut export = Negotiated::new(framing, SIZE, flags);
    if framing != Framing::Simple {
        let width =
            [StatusWidth::Narrow, StatusWidth::Wide][usize::from(framing == Framing::Extended)];
        for (id, width) in [(0, StatusWidth::Narrow), (3, width)] {
            let id = ContextId(id);
            export.contexts.push(SelectedContext { id, width }).unwrap();
        }
    }
    export
}

/// Answers every request with success. Each byte of the export is the low byte
/// of its offset.
pub(crate) fn succeed(transmission: &mut Transmission, request: Request, out: &mut Vec<u8>) {
    let reply = match request {
        Request::Read(read) => {
            let from = read.offset();
            let header = read.data();
            out.extend(header.as_bytes());
            out.extend((0..u64::from(header.payload_length())).map(|at| (from + at) as u8));
            return;
        }
        Request::Write(it) => it.succeed(),
        Request::Flush(it) => it.succeed(),
        Request::Trim(it) => it.succeed(),
        Request::Cache(it) => it.succeed(),
        Request::WriteZeroes(it) => it.succeed(),
        Request::Resize(it) => transmission.resized(it),
        Request::BlockStatus32(mut it) => {
            for id in it.contexts() {
                let length = it.length().try_into().unwrap();
                let extent = Extent32 {
                    length,
                    flags: id.0 + 1,
                };
                match it.reply(id, [extent], out).unwrap() {
                    Some(more) => it = more,
                    None => return,
                }
            }
            panic!("a context was not answered");
        }
        Request::BlockStatus64(mut it) => {
            for id in it.contexts() {
                let extent = Extent64 {
                    length: it.length(),
                    flags: u64::from(id.0) + 1,
                };
                match it.reply(id, [extent], out).unwrap() {
                    Some(more) => it = more,
                    None => return,
                }
            }
            panic!("a context was not answered");
        }
        other => panic!("unknown {other:?}"),
    };
    reply.encode(out).unwrap();
}

#[track_caller]
pub(crate) fn play_on(export: Negotiated, transcript: &str) {
    play_with(export, Limits::DEFAULT, transcript);
}

#[track_caller]
pub(crate) fn play_with(export: Negotiated, limits: Limits, transcript: &str) {
    let start = || TransmissionDriver {
        transmission: Transmission::new(export, limits).unwrap(),
        limits,
        answer: succeed,
    };
    play(start, transcript);
}

pub(crate) const COOKIE: &str = "c00c_1e00_0000_0001";

#[test]
fn simple_framing() {
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: REQUEST 0000 READ {COOKIE} 0000_0000_0000_00fe 0000_0004
             E: read 0xfe+0x4
             S: SIMPLE OK {COOKIE} feff0001
             C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_1000 4{{ \"payload\" }}
             E: payload 0x1000+0x7
             E: data 0x1000 payload
             E: write 0x1000+0x7
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0001 WRITE {COOKIE} 0000_0000_0000_1000 4{{ \"p\" }}
             E: payload 0x1000+0x1
             E: data 0x1000 p
             E: write 0x1000+0x1 FUA
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000
             E: flush
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0001 TRIM {COOKIE} 0000_0000_0000_0000 ffff_ffff
             E: trim 0x0+0xffffffff FUA
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 CACHE {COOKIE} 0000_0000_0000_0001 0000_0002
             E: cache 0x1+0x2
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0013 WRITE_ZEROES {COOKIE} 0000_ffff_ffff_ffff 0000_0001
             E: zeroes 0xffffffffffff+0x1 FUA NO_HOLE FAST_ZERO
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_1000 0000_0000
             E: resize 0x1000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000
             E: Disconnect"
        ),
    );
}

#[test]
fn structured_framing() {
    let ok = format!("CHUNK DONE NONE {COOKIE} 4{{ }}");
    play_on(
        export(Framing::Structured, WRITABLE),
        &format!(
            "C: REQUEST 0005 READ {COOKIE} 0000_0000_0000_00fe 0000_0004
             E: read 0xfe+0x4 DF
             S: CHUNK DONE OFFSET_DATA {COOKIE} 4{{ 0000_0000_0000_00fe feff0001 }}
             C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_1000 4{{ \"payload\" }}
             E: payload 0x1000+0x7
             E: data 0x1000 payload
             E: write 0x1000+0x7
             S: {ok}
             C: REQUEST 0001 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000
             E: flush
             S: {ok}
             C: REQUEST 0000 TRIM {COOKIE} 0000_0000_0000_0000 ffff_ffff
             E: trim 0x0+0xffffffff
             S: {ok}
             C: REQUEST 0001 CACHE {COOKIE} 0000_0000_0000_0001 0000_0002
             E: cache 0x1+0x2
             S: {ok}
             C: REQUEST 0002 WRITE_ZEROES {COOKIE} 0000_ffff_ffff_ffff 0000_0001
             E: zeroes 0xffffffffffff+0x1 NO_HOLE
             S: {ok}
             C: REQUEST 0008 BLOCK_STATUS {COOKIE} 0000_0000_0001_0000 8000_0000
             E: status32 0x10000+0x80000000 of ContextId(0) ContextId(3) REQ_ONE
             S: CHUNK MORE STATUS {COOKIE} 4{{ 0000_0000 8000_0000 0000_0001 }}
             S: CHUNK DONE STATUS {COOKIE} 4{{ 0000_0003 8000_0000 0000_0004 }}
             C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_1000 0000_0000
             E: resize 0x1000
             S: {ok}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000
             E: Disconnect"
        ),
    );
}

/// Commands without payload have 64-bit lengths.
#[test]
fn extended_framing() {
    let ok = |offset| format!("EXTCHUNK DONE NONE {COOKIE} {offset} 8{{ }}");
    let (zero, half) = ("0000_0000_0000_0000", "0000_4000_0000_0000");
    play_on(
        export(Framing::Extended, WRITABLE),
        &format!(
            "C: EXTREQUEST 0005 READ {COOKIE} 0000_0000_0000_00fe 0000_0000_0000_0004
             E: read 0xfe+0x4 DF
             S: EXTCHUNK DONE OFFSET_DATA {COOKIE} 0000_0000_0000_00fe 8{{ 0000_0000_0000_00fe feff0001 }}
             C: EXTREQUEST 0021 WRITE {COOKIE} {half} 8{{ \"payload\" }}
             E: payload 0x400000000000+0x7
             E: data 0x400000000000 payload
             E: write 0x400000000000+0x7 FUA
             S: {}
             C: EXTREQUEST 0001 FLUSH {COOKIE} {zero} {zero}
             E: flush
             S: {}
             C: EXTREQUEST 0000 TRIM {COOKIE} {half} {half}
             E: trim 0x400000000000+0x400000000000
             S: {}
             C: EXTREQUEST 0000 CACHE {COOKIE} {half} {half}
             E: cache 0x400000000000+0x400000000000
             S: {}
             C: EXTREQUEST 0010 WRITE_ZEROES {COOKIE} {half} {half}
             E: zeroes 0x400000000000+0x400000000000 FAST_ZERO
             S: {}
             C: EXTREQUEST 0000 BLOCK_STATUS {COOKIE} {half} {half}
             E: status64 0x400000000000+0x400000000000 of ContextId(0) ContextId(3)
             S: EXTCHUNK MORE STATUS_EXT {COOKIE} {half} 8{{ 0000_0000 0000_0001 {half} 0000_0000_0000_0001 }}
             S: EXTCHUNK DONE STATUS_EXT {COOKIE} {half} 8{{ 0000_0003 0000_0001 {half} 0000_0000_0000_0004 }}
             C: EXTREQUEST 0028 BLOCK_STATUS {COOKIE} {half} 8{{ {half} 0000_0003 }}
             E: status64 0x400000000000+0x400000000000 of ContextId(3) REQ_ONE
             S: EXTCHUNK DONE STATUS_EXT {COOKIE} {half} 8{{ 0000_0003 0000_0001 {half} 0000_0000_0000_0004 }}
             C: EXTREQUEST 0000 RESIZE {COOKIE} {half} {zero}
             E: resize 0x400000000000
             S: {}
             C: EXTREQUEST 0000 DISC {COOKIE} {zero} {zero}
             E: Disconnect",
            ok(half),
            ok(zero),
            ok(half),
            ok(half),
            ok(half),
            ok(half),
        ),
    );
}

#[test]
fn unused_fields_are_ignored() {
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0003 0000_0007
             E: flush
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0003 0000_0007
             E: Disconnect"
        ),
    );
}

/// QEMU's client does not set PAYLOAD_LEN, and sends the payload.
#[test]
fn writes_without_payload_len_have_a_payload() {
    let zero = "0000_0000_0000_0000";
    play_on(
        export(Framing::Extended, WRITABLE),
        &format!(
            "C: EXTREQUEST 0001 WRITE {COOKIE} {zero} 8{{ \"data\" }}
             E: payload 0x0+0x4
             E: data 0x0 data
             E: write 0x0+0x4 FUA
             S: EXTCHUNK DONE NONE {COOKIE} {zero} 8{{ }}"
        ),
    );
}

#[test]
fn resize_changes_the_size() {
    let (inside, beyond) = ("0000_0000_0000_1000", "0000_ffff_ffff_f000");
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_2000 0000_0000
             E: resize 0x2000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {inside} 0000_1000
             E: trim 0x1000+0x1000
             S: SIMPLE OK {COOKIE}
             # Ranges that the resize removed get ENOSPC, whatever the command.
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1000
             E: rejected NBD_CMD_TRIM NBD_ENOSPC
             S: SIMPLE ENOSPC {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1001
             E: rejected NBD_CMD_TRIM NBD_EINVAL
             S: SIMPLE EINVAL {COOKIE}
             C: REQUEST 0000 RESIZE {COOKIE} 0001_0000_0000_1000 0000_0000
             E: resize 0x1000000001000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1001
             E: trim 0xfffffffff000+0x1001
             S: SIMPLE OK {COOKIE}
             # Also ranges that an earlier resize added.
             C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_2000 0000_0000
             E: resize 0x2000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1001
             E: rejected NBD_CMD_TRIM NBD_ENOSPC
             S: SIMPLE ENOSPC {COOKIE}"
        ),
    );
}

#[test]
fn shutdown_rejects_every_request() {
    let start = || {
        let export = export(Framing::Structured, WRITABLE);
        let mut transmission = Transmission::new(export, Limits::DEFAULT).unwrap();
        transmission.shut_down();
        TransmissionDriver {
            transmission,
            limits: Limits::DEFAULT,
            answer: |_: &mut _, request, _: &mut _| panic!("{request:?}"),
        }
    };
    let down = format!(
        "S: CHUNK DONE ERROR {COOKIE} 4{{ ESHUTDOWN 2{{ \"the server is shutting down\" }} }}"
    );
    play(
        start,
        &format!(
            "C: REQUEST 0000 READ {COOKIE} 0000_0000_0000_0000 0000_0200
             E: rejected NBD_CMD_READ NBD_ESHUTDOWN
             {down}
             C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0000 4{{ \"drained\" }}
             E: rejected NBD_CMD_WRITE NBD_ESHUTDOWN
             {down}
             C: REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000
             E: rejected NBD_CMD_FLUSH NBD_ESHUTDOWN
             {down}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000
             E: Disconnect"
        ),
    );
}

#[test]
fn magic_numbers_of_other_framings_end_the_session() {
    let wrong = |framing, bytes: &str, over: &str| {
        play_on(export(framing, WRITABLE), &format!("C: {bytes}\nX: {over}"));
    };
    let compact = "the peer sent bytes that are not an NBD message: wrong magic number in compact request: not NBD, or the stream is out of sync";
    let extended = "the peer sent bytes that are not an NBD message: wrong magic number in extended request: not NBD, or the stream is out of sync";
    let other = |framing: Framing| {
        format!(
            "the peer broke the protocol: a message of another framing than {framing}, which was negotiated"
        )
    };
    for framing in COMPACT {
        wrong(framing, "00", compact);
        wrong(framing, "2560_9514", compact);
        wrong(framing, "EXTREQUEST", &other(framing));
    }
    wrong(Framing::Extended, "00", extended);
    wrong(Framing::Extended, "21e4_1c70", extended);
    wrong(Framing::Extended, "REQUEST", &other(Framing::Extended));
}

/// Several requests in one piece.
#[test]
fn consecutive_requests_in_one_piece() {
    let request = format!("REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0000 4{{ \"ab\" }}");
    let flush = format!("REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000");
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: {request} {request} {flush}
             E: payload 0x0+0x2
             E: data 0x0 ab
             E: write 0x0+0x2
             E: payload 0x0+0x2
             E: data 0x0 ab
             E: write 0x0+0x2
             E: flush
             S: SIMPLE OK {COOKIE} SIMPLE OK {COOKIE} SIMPLE OK {COOKIE}"
        ),
    );
}

/// Bytes after DISC are left to the caller.
#[test]
fn nothing_is_received_after_disconnect() {
    let disc = format!("REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000");
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!("C: {disc}\nE: Disconnect\nC: {disc}"),
    );
}
