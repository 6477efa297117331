//! Misuse by the caller: the error, and that it changed nothing.

use nbd_codec::server::{
    Config, Export, ExportQuery, Handshake, HandshakeEvent, MetaContext, Request, TlsMode,
    Transmission,
};
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest, Queries};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::wire::text::TextError;
use nbd_codec::{Error, Framing, Limits, Misuse, Negotiated, SelectedContext, StatusWidth, Step};

use crate::drive::read;
use crate::replies::{request_of, request_of_type, slim, wide};
use crate::requests::export;
use crate::tls::negotiating;

/// Receives an option: its event, or `None` if the handshake answered it.
fn offer<'i>(
    handshake: &mut Handshake,
    option: &OptionRequest<'_>,
    bytes: &'i mut Vec<u8>,
) -> Option<HandshakeEvent<'i>> {
    bytes.clear();
    option.encode(bytes).unwrap();
    match handshake.receive(&mut &bytes[..]).unwrap() {
        Step::Event(event) => Some(event),
        Step::Transmit => {
            handshake.transmit(&mut Vec::new()).unwrap();
            None
        }
        other => panic!("{other:?}"),
    }
}

fn go<'a>(export: &'a str) -> OptionRequest<'a> {
    let (export, requests) = (export.into(), [].as_slice().into());
    OptionRequest::Go(InfoRequest { export, requests })
}

#[track_caller]
fn query<'i>(
    handshake: &mut Handshake,
    option: &OptionRequest<'_>,
    bytes: &'i mut Vec<u8>,
) -> ExportQuery<'i> {
    match offer(handshake, option, bytes) {
        Some(HandshakeEvent::Export(it) | HandshakeEvent::MetaContexts(it)) => it,
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_must_match_the_pending_option() {
    let disk = Export::new("disk", 1, TransmissionFlags::NONE);
    let mut handshake = negotiating(TlsMode::None);
    let nothing = Err(Misuse::State("no option waits for an answer"));
    let other = Err(Misuse::State("another option waits for an answer"));
    let mut out = Vec::new();
    assert_eq!(handshake.list(&disk, &mut out), nothing);
    assert_eq!(handshake.finish_list(&mut out), nothing);
    assert_eq!(
        handshake.refuse(OptionReplyType::ERR_POLICY, "", &mut out),
        nothing
    );

    let mut bytes = Vec::new();
    let asked = query(&mut handshake, &go("disk"), &mut bytes);
    assert_eq!(handshake.list(&disk, &mut out), other);
    assert_eq!(handshake.finish_list(&mut out), other);
    for _ in 0..3 {
        assert_eq!(handshake.receive(&mut &[][..]), Err(Error::Unanswered));
    }
    assert!(!Error::Unanswered.is_fatal());
    // The query must be the pending one.
    let mut elsewhere = negotiating(TlsMode::None);
    let mut bytes = Vec::new();
    let strange = query(&mut elsewhere, &go("desk"), &mut bytes);
    let another = Err(Misuse::State("another export is asked about"));
    let granted = handshake.grant(&strange, &disk, &mut out);
    assert_eq!(granted, another);
    assert!(out.is_empty());
    handshake.grant(&asked, &disk, &mut out).unwrap();
    let again = handshake
        .grant(&asked, &disk, &mut out)
        .map(|it| it.written);
    assert_eq!(again, nothing);
    let ready = Step::Event(HandshakeEvent::Ready { export: 0 });
    assert_eq!(handshake.receive(&mut &[][..]), Ok(ready));
    for _ in 0..3 {
        assert_eq!(handshake.receive(&mut &[][..]), Ok(Step::Finished));
    }
    assert_eq!(handshake.into_negotiated().unwrap().size, 1);

    let mut handshake = negotiating(TlsMode::None);
    let mut bytes = Vec::new();
    offer(&mut handshake, &OptionRequest::List, &mut bytes);
    let granted = handshake.grant(&asked, &disk, &mut out);
    assert_eq!(granted.map(|it| it.written), other);
    assert!(handshake.into_negotiated().is_err());
}

#[test]
fn refuse_takes_only_errors_of_the_option() {
    let refused = |tls, extended, option: &OptionRequest<'_>, error| {
        let mut handshake = negotiating(tls);
        let mut bytes = Vec::new();
        if extended {
            offer(&mut handshake, &OptionRequest::ExtendedHeaders, &mut bytes);
        }
        assert!(offer(&mut handshake, option, &mut bytes).is_some());
        let mut out = Vec::new();
        let result = handshake.refuse(error, "why", &mut out);
        // After misuse, a legal answer is still possible.
        if result.is_err() {
            assert!(out.is_empty());
            handshake
                .refuse(OptionReplyType::ERR_POLICY, "why", &mut out)
                .unwrap();
        }
        result.map(drop)
    };
    let not = |error| Err(Misuse::Answer(error));
    let list_meta = OptionRequest::ListMetaContext(MetaContextRequest {
        export: "disk".into(),
        queries: Queries::NONE,
    });
    let block_size = [nbd_codec::wire::number::InfoType::BLOCK_SIZE];
    let go_with_sizes = OptionRequest::Go(InfoRequest {
        export: "disk".into(),
        requests: block_size.as_slice().into(),
    });
    use OptionReplyType as R;
    for (tls, extended, option, error, expected) in [
        (TlsMode::None, false, go("disk"), R::ACK, not(R::ACK)),
        (TlsMode::None, false, go("disk"), R::SERVER, not(R::SERVER)),
        (TlsMode::None, false, go("disk"), R(0x8000_1234), Ok(())),
        (
            TlsMode::None,
            false,
            go("disk"),
            R::ERR_TLS_REQD,
            not(R::ERR_TLS_REQD),
        ),
        (
            TlsMode::Selective,
            false,
            go("disk"),
            R::ERR_TLS_REQD,
            Ok(()),
        ),
        (
            TlsMode::Selective,
            false,
            OptionRequest::List,
            R::ERR_TLS_REQD,
            not(R::ERR_TLS_REQD),
        ),
        (
            TlsMode::Selective,
            false,
            list_meta,
            R::ERR_TLS_REQD,
            not(R::ERR_TLS_REQD),
        ),
        (
            TlsMode::None,
            false,
            go("disk"),
            R::ERR_BLOCK_SIZE_REQD,
            Ok(()),
        ),
        (
            TlsMode::None,
            false,
            go_with_sizes,
            R::ERR_BLOCK_SIZE_REQD,
            not(R::ERR_BLOCK_SIZE_REQD),
        ),
        (
            TlsMode::None,
            false,
            list_meta,
            R::ERR_BLOCK_SIZE_REQD,
            not(R::ERR_BLOCK_SIZE_REQD),
        ),
        (
            TlsMode::None,
            false,
            go("disk"),
            R::ERR_EXT_HEADER_REQD,
            Ok(()),
        ),
        (
            TlsMode::None,
            true,
            go("disk"),
            R::ERR_EXT_HEADER_REQD,
            not(R::ERR_EXT_HEADER_REQD),
        ),
        (TlsMode::None, false, go("disk"), R::ERR_UNSUP, Ok(())),
        (
            TlsMode::None,
            true,
            go("disk"),
            R::ERR_UNSUP,
            not(R::ERR_UNSUP),
        ),
        (TlsMode::None, true, list_meta, R::ERR_UNSUP, Ok(())),
    ] {
        assert_eq!(
            refused(tls, extended, &option, error),
            expected,
            "{option:?} {error}"
        );
    }
}

const DISK: Export<'_> = Export::new("disk", 1, TransmissionFlags::NONE);
const MANY: &[MetaContext<'_>] = &[MetaContext::narrow("x-m:any"); 33];
const WIDE_BASE: &[MetaContext<'_>] = &[MetaContext::wide("base:allocation")];
const NO_COLON: &[MetaContext<'_>] = &[MetaContext::narrow("allocation")];
const NO_NAMESPACE: &[MetaContext<'_>] = &[MetaContext::narrow(":allocation")];
const NO_LEAF: &[MetaContext<'_>] = &[MetaContext::narrow("base:")];

#[test]
fn invalid_exports_are_misuse() {
    let long = "n".repeat(4097);
    let named = |name| Export::new(name, 1, TransmissionFlags::NONE);
    let sized = |minimum, preferred, maximum| {
        let sizes = BlockSizes {
            minimum,
            preferred,
            maximum,
        };
        let mut export = DISK;
        export.block_sizes = sizes;
        (export, Misuse::BlockSizes(sizes))
    };
    let described = |description| {
        let mut export = DISK;
        export.description = description;
        export
    };
    let with = |contexts| {
        let mut export = DISK;
        export.contexts = contexts;
        export
    };
    for (export, misuse) in [
        (named(&long), Misuse::Text(TextError::TooLong)),
        (named("a\0b"), Misuse::Text(TextError::Nul)),
        (described(&long), Misuse::Text(TextError::TooLong)),
        sized(3, 4096, 4096),
        sized(1 << 17, 1 << 18, 1 << 19),
        sized(1, 256, 4096),
        sized(1, 4096, 4095),
        (with(MANY), Misuse::TooManyContexts),
        (with(WIDE_BASE), Misuse::ContextName),
        (with(NO_COLON), Misuse::ContextName),
        (with(NO_NAMESPACE), Misuse::ContextName),
        (with(NO_LEAF), Misuse::ContextName),
    ] {
        let mut handshake = negotiating(TlsMode::None);
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        let asked = query(&mut handshake, &go(""), &mut bytes);
        assert_eq!(handshake.grant(&asked, &export, &mut out), Err(misuse));
        assert!(out.is_empty());
        handshake.grant(&asked, &DISK, &mut out).unwrap();
        assert!(matches!(Handshake::oldstyle(&export), Err(error) if error == misuse));
    }
    // The longest name and the most contexts.
    for export in [named(&long[1..]), with(&MANY[1..])] {
        assert!(Handshake::oldstyle(&export).is_ok());
    }
}

#[test]
fn oldstyle_and_newstyle_cannot_enforce_requirements() {
    let requiring = |set: fn(&mut Export<'_>)| {
        let mut export = DISK;
        set(&mut export);
        Handshake::oldstyle(&export).map(drop).unwrap_err()
    };
    let more = Misuse::State("the export requires more than oldstyle has");
    assert_eq!(
        requiring(|export| export.requires_tls = true),
        Misuse::TlsRequired
    );
    assert_eq!(requiring(|export| export.requires_extended = true), more);
    assert_eq!(requiring(|export| export.requires_block_sizes = true), more);
    for tls in [TlsMode::Selective, TlsMode::Forced] {
        let config = Config::new().fixed_newstyle(false).tls(tls);
        let misuse = Handshake::new(config).map(drop).unwrap_err();
        assert_eq!(misuse, Misuse::NotFixed(OptionType::STARTTLS));
    }
}

/// A sink that is too small takes nothing, and the answer can be repeated.
#[test]
fn answers_are_written_whole_or_not_at_all() {
    let mut export = DISK;
    export.contexts = &[MetaContext {
        name: "x-a:one",
        width: StatusWidth::Narrow,
    }];
    let set = OptionRequest::SetMetaContext(MetaContextRequest {
        export: "disk".into(),
        queries: ["x-a:one"].as_slice().into(),
    });
    let name = OptionRequest::ExportName("disk".into());
    let no_room = |needed| Misuse::Encode(EncodeError::NoRoom { needed });
    for (option, needed) in [(go("disk"), 52), (set, 51), (name, 10)] {
        let mut handshake = negotiating(TlsMode::None);
        let mut bytes = Vec::new();
        offer(&mut handshake, &OptionRequest::StructuredReply, &mut bytes);
        let asked = query(&mut handshake, &option, &mut bytes);
        for size in 0..needed {
            let mut small = vec![0xee; size];
            let result = handshake.grant(&asked, &export, &mut &mut small[..]);
            assert_eq!(result, Err(no_room(needed)));
            assert!(small.iter().all(|byte| *byte == 0xee));
        }
        let mut enough = vec![0; needed];
        let granted = handshake.grant(&asked, &export, &mut &mut enough[..]);
        assert_eq!(granted.map(|it| it.written), Ok(needed));
    }
    // So can `transmit`.
    let mut handshake = Handshake::new(Config::new()).unwrap();
    assert_eq!(handshake.transmit(&mut &mut [0; 17][..]), Err(no_room(18)));
    let flags = [0, 0, 0, 3];
    let mut input = &flags[..];
    assert_eq!(handshake.receive(&mut input), Ok(Step::Transmit));
    assert_eq!(input, flags);
    assert_eq!(handshake.transmit(&mut &mut [0; 18][..]), Ok(18));
    assert_eq!(handshake.transmit(&mut &mut [0; 18][..]), Ok(0));
}

/// After an error, every call returns it.
#[test]
fn errors_are_sticky() {
    let mut handshake = negotiating(TlsMode::None);
    let mut bytes = Vec::new();
    let asked = query(&mut handshake, &go("disk"), &mut bytes);
    assert_eq!(handshake.end_of_input(), Err(Error::Closed));
    let mut out = Vec::new();
    let over = Err(Misuse::Failed(Error::Closed));
    let granted = handshake.grant(&asked, &DISK, &mut out);
    assert_eq!(granted.map(|it| it.written), over);
    assert_eq!(
        handshake.refuse(OptionReplyType::ERR_POLICY, "", &mut out),
        over
    );
    assert_eq!(handshake.receive(&mut &b"I"[..]), Err(Error::Closed));
    assert_eq!(handshake.end_of_input(), Err(Error::Closed));
    assert!(out.is_empty() && !handshake.is_negotiating());

    let simple = export(Framing::Simple, TransmissionFlags::KNOWN);
    let mut transmission = Transmission::new(simple, Limits::DEFAULT).unwrap();
    let error = transmission.receive(&mut &[0][..]).unwrap_err();
    for bytes in [&[0x25][..], &[]] {
        assert_eq!(transmission.receive(&mut &*bytes), Err(error));
    }
    assert!(error.is_fatal());
    assert_eq!(transmission.end_of_input(), Err(error));
    assert_eq!(transmission.advance(0), Err(Misuse::Failed(error)));
}

#[test]
fn advance_is_limited_to_the_payload() {
    let simple = export(Framing::Simple, TransmissionFlags::NONE);
    let mut transmission = Transmission::new(simple, Limits::DEFAULT).unwrap();
    assert_eq!(transmission.advance(0), Ok(()));
    assert_eq!(
        transmission.advance(1),
        Err(Misuse::TooMuchPayload { expected: 0 })
    );
    let header = crate::script::bytes("REQUEST 0000 WRITE 00*8 00*8 0000_0005");
    let step = transmission.receive(&mut &header[..]).unwrap();
    assert!(matches!(step, Step::Event(_)), "{step:?}");
    assert_eq!(
        transmission.advance(6),
        Err(Misuse::TooMuchPayload { expected: 5 })
    );
    assert_eq!(transmission.advance(2), Ok(()));
    let payload = Step::ReadPayload {
        cookie: Default::default(),
        offset: 2,
        length: 3,
    };
    assert_eq!(transmission.receive(&mut &[][..]), Ok(payload));
    assert_eq!(transmission.advance(3), Ok(()));
    let step = transmission.receive(&mut &[][..]).unwrap();
    assert!(matches!(step, Step::Event(_)), "{step:?}");
    assert_eq!(transmission.receive(&mut &[][..]), Ok(read(28)));
}

#[test]
fn context_ids_are_below_32() {
    let mut export = Negotiated::new(Framing::Structured, 1, TransmissionFlags::NONE);
    let width = StatusWidth::Narrow;
    for (id, good) in [(31, true), (32, false)] {
        let id = ContextId(id);
        export.contexts.push(SelectedContext { id, width }).unwrap();
        let result = Transmission::new(export, Limits::DEFAULT).map(drop);
        assert_eq!(
            result,
            if good {
                Ok(())
            } else {
                Err(Misuse::Context(id))
            }
        );
    }
}

#[test]
fn chunks_cover_the_read_exactly_once() {
    let chunks = || {
        request_of_type!(Framing::Structured, Read, READ)
            .into_chunks()
            .unwrap()
    };
    let mut it = chunks();
    for (offset, length) in [
        (0xfff, 2),
        (0x0, 0x1000),
        (0x1fff, 2),
        (0x2000, 1),
        (0x1000, 0x1001),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
    ] {
        assert_eq!(it.data(offset, length), Err(Misuse::OutsideRequest));
        assert_eq!(it.hole(offset, length), Err(Misuse::OutsideRequest));
    }
    assert_eq!(it.data(0x1000, 0), Err(Misuse::ZeroLength));
    assert_eq!(it.hole(0x1000, 0), Err(Misuse::ZeroLength));
    let error = it.error_at(ErrorValue::EIO, 0x2000, "");
    assert_eq!(error, Err(Misuse::OutsideRequest));
    // The misuse changed nothing.
    let it = it.finish().unwrap_err();
    assert_eq!(it.reason, Misuse::Incomplete);
    let mut it = it.request;
    assert_eq!(it, chunks());
    let _ = it.data(0x1000, 0x800).unwrap();
    assert_eq!(it.data(0x1000, 0x801), Err(Misuse::Overlap));
    let it = it.finish_with_data(0x1800, 0x7ff).unwrap_err();
    assert_eq!(it.reason, Misuse::Incomplete);
    let it = it.request.finish_with_hole(0x1800, 0x900).unwrap_err();
    assert_eq!(it.reason, Misuse::OutsideRequest);
    assert!(it.request.finish_with_hole(0x1800, 0x800).is_ok());

    // An overlap that leaves a gap is found at the end.
    let mut it = chunks();
    let _ = it.data(0x1000, 0x800).unwrap();
    let _ = it.data(0x1000, 0x800).unwrap();
    assert_eq!(it.finish().unwrap_err().reason, Misuse::Overlap);

    // DF: one chunk with all of the data.
    let mut it = request_of_type!(Framing::Structured, Read, READ, CommandFlags::DF)
        .into_chunks()
        .unwrap();
    let _ = it.hole(0x1000, 0x800).unwrap();
    assert_eq!(it.data(0x1800, 0x800), Err(Misuse::Fragmented));
    assert_eq!(it.finish().unwrap_err().reason, Misuse::Incomplete);

    // Content must not contain the offset of an earlier error.
    let mut it = chunks();
    let _ = it.error_at(ErrorValue::EIO, 0x1400, "").unwrap();
    assert_eq!(it.data(0x1000, 0x401), Err(Misuse::Overlap));
    // It begins there, or holds nothing else.
    assert_eq!(it.data(0x1400, 0x100), Err(Misuse::Overlap));
    assert_eq!(it.hole(0x1400, 1), Err(Misuse::Overlap));
    assert!(it.data(0x1000, 0x400).is_ok());
    assert!(it.data(0x1401, 0x100).is_ok());
    assert!(it.finish().is_ok());
}

#[test]
fn error_offsets_are_within_the_request() {
    for offset in [0xfff, 0x2000, u64::MAX, 0] {
        let read = request_of_type!(Framing::Structured, Read, READ);
        let read = read.fail_at(ErrorValue::EIO, offset, "").unwrap_err();
        assert_eq!(read.reason, Misuse::OutsideRequest);
        assert_eq!(
            read.request,
            request_of_type!(Framing::Structured, Read, READ)
        );
        let trim = request_of_type!(Framing::Simple, Trim, TRIM);
        let trim = trim.fail_at(ErrorValue::EIO, offset, "").unwrap_err();
        assert_eq!(trim.reason, Misuse::OutsideRequest);
        let status = request_of_type!(Framing::Extended, BlockStatus64, BLOCK_STATUS);
        let status = status.fail_at(ErrorValue::EIO, offset, "").unwrap_err();
        assert_eq!(status.reason, Misuse::OutsideRequest);
    }
}

#[test]
fn extents_are_validated() {
    let mut out = Vec::new();
    let mut narrow = |flags, context, extents: &[_], misuse| {
        let status = request_of_type!(Framing::Structured, BlockStatus32, BLOCK_STATUS, flags);
        let again = request_of_type!(Framing::Structured, BlockStatus32, BLOCK_STATUS, flags);
        let context = ContextId(context);
        let result = status.reply(context, extents.iter().copied(), &mut out);
        let rejected = result.unwrap_err();
        assert_eq!(rejected.reason, misuse);
        assert_eq!(rejected.request, again);
        assert!(out.is_empty());
    };
    let (none, one) = (CommandFlags::NONE, CommandFlags::REQ_ONE);
    narrow(none, 1, &[slim(1, 0)], Misuse::Context(ContextId(1)));
    narrow(none, 35, &[slim(1, 0)], Misuse::Context(ContextId(35)));
    narrow(none, 0, &[], Misuse::EmptyExtent);
    narrow(none, 0, &[slim(1, 0), slim(0, 0)], Misuse::EmptyExtent);
    narrow(
        none,
        0,
        &[slim(0x1000, 0), slim(1, 0)],
        Misuse::ExtentBeyond,
    );
    narrow(none, 0, &[slim(u32::MAX, 0); 3], Misuse::ExtentBeyond);
    narrow(one, 0, &[slim(0x1001, 0)], Misuse::NotOne);
    narrow(one, 0, &[slim(1, 0), slim(1, 0)], Misuse::NotOne);
    narrow(one, 0, &[], Misuse::EmptyExtent);

    // Each context once.
    let status = request_of_type!(Framing::Structured, BlockStatus32, BLOCK_STATUS);
    let status = status
        .reply(ContextId(0), [slim(1, 0)], &mut out)
        .unwrap()
        .unwrap();
    let again = status
        .reply(ContextId(0), [slim(1, 0)], &mut out)
        .unwrap_err();
    assert_eq!(again.reason, Misuse::Context(ContextId(0)));

    // More bits than the context has; the sum of lengths must not wrap.
    out.clear();
    let status = request_of_type!(Framing::Extended, BlockStatus64, BLOCK_STATUS);
    let extents = [wide(1, 1 << 32)];
    let status = status.reply(ContextId(0), extents, &mut out).unwrap_err();
    assert_eq!(status.reason, Misuse::StatusTooWide(ContextId(0)));
    let extents = [wide(u64::MAX, 0), wide(2, 0)];
    let status = status
        .request
        .reply(ContextId(0), extents, &mut out)
        .unwrap_err();
    assert_eq!(status.reason, Misuse::ExtentBeyond);
    // A sink that is too small takes nothing.
    let mut small = [0xee; 55];
    let status = status
        .request
        .reply(ContextId(0), [wide(1, 1)], &mut &mut small[..]);
    let status = status.unwrap_err();
    assert_eq!(
        status.reason,
        Misuse::Encode(EncodeError::NoRoom { needed: 56 })
    );
    assert_eq!(small, [0xee; 55]);
    assert!(
        status
            .request
            .reply(ContextId(0), [wide(1, 1)], &mut out)
            .is_ok()
    );
}

/// A chunk has at most 2^20 extents, and no more than the maximum payload holds.
#[test]
fn extent_count_is_limited() {
    let mut sized = export(Framing::Structured, TransmissionFlags::NONE);
    sized.block_sizes = Some(BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum: 512,
    });
    let status = || match request_of(sized, Command::BLOCK_STATUS, CommandFlags::NONE) {
        Request::BlockStatus32(status) => status,
        other => panic!("{other:?}"),
    };
    let mut out = Vec::new();
    let many = [slim(1, 0); 65];
    let rejected = status().reply(ContextId(0), many, &mut out).unwrap_err();
    assert_eq!(rejected.reason, Misuse::TooManyExtents { maximum: 64 });
    assert_eq!(status().truncate(many.into_iter()).count(), 64);
    assert!(
        status()
            .reply(ContextId(0), many[..64].iter().copied(), &mut out)
            .is_ok()
    );

    let mut large = export(Framing::Structured, TransmissionFlags::NONE);
    large.block_sizes = Some(BlockSizes {
        maximum: u32::MAX,
        ..BlockSizes::DEFAULT
    });
    let Request::BlockStatus32(status) =
        request_of(large, Command::BLOCK_STATUS, CommandFlags::NONE)
    else {
        panic!("no status");
    };
    let endless = std::iter::repeat(slim(1, 0));
    let rejected = status.reply(ContextId(0), endless, &mut out).unwrap_err();
    assert_eq!(rejected.reason, Misuse::TooManyExtents { maximum: 1 << 20 });
}

/// Extents are multiples of the minimum block size.
#[test]
fn extents_are_aligned() {
    let mut aligned = export(Framing::Structured, TransmissionFlags::NONE);
    aligned.block_sizes = Some(BlockSizes {
        minimum: 512,
        ..BlockSizes::DEFAULT
    });
    let Request::BlockStatus32(status) =
        request_of(aligned, Command::BLOCK_STATUS, CommandFlags::NONE)
    else {
        panic!("no status");
    };
    let mut out = Vec::new();
    let rejected = status.reply(ContextId(0), [slim(512, 0), slim(513, 0)], &mut out);
    let rejected = rejected.unwrap_err();
    assert_eq!(rejected.reason, Misuse::Misaligned { minimum: 512 });
    let rejected = rejected.request.reply(ContextId(0), [slim(1, 0)], &mut out);
    let rejected = rejected.unwrap_err();
    assert_eq!(rejected.reason, Misuse::Misaligned { minimum: 512 });
    assert!(
        rejected
            .request
            .reply(ContextId(0), [slim(512, 0)], &mut out)
            .is_ok()
    );
}

/// A caller that does not retry can use `?`.
#[test]
fn a_rejected_answer_converts_to_misuse() {
    let flags = CommandFlags::NONE;
    let read = request_of_type!(Framing::Structured, Read, READ, flags);
    let chunks = read.into_chunks().unwrap();
    let refused = chunks.finish().unwrap_err();
    let (misuse, text) = (refused.reason, refused.to_string());
    assert_eq!(text, misuse.to_string());
    assert_eq!(Misuse::from(refused), misuse);
}
