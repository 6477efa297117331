//! Options: the header and the data of every one.

use std::hash::{DefaultHasher, Hash, Hasher};

use nbd_codec::wire::number::{InfoType, OptionType};
use nbd_codec::wire::option::{
    InfoRequest, InfoTypes, MetaContextRequest, OptionHeader, OptionRequest, Queries,
};
use nbd_codec::wire::text::Text;
use nbd_codec::wire::{DecodeError, EncodeError};

use crate::support::{Body, Cut, Stream, bytes, encoded, overrun, trailing};

#[test]
#[rustfmt::skip]
fn headers() {
    let header = Stream {
        decode: OptionHeader::decode,
        encode: |header: &OptionHeader| header.encode().to_vec(),
        magic: 8,
        message: "option",
    };
    let value = |option, length| OptionHeader { option, length };
    header.check(&[
        ("no data", r#"C: "IHAVEOPT" 0000_0003 0000_0000"#, value(OptionType::LIST, 0)),
        ("some data", r#"C: "IHAVEOPT" 0000_0007 0000_000c"#, value(OptionType::GO, 12)),
        ("an undefined option", r#"C: "IHAVEOPT" ffff_ffff 0000_0001"#,
            value(OptionType(u32::MAX), 1)),
        ("4 GiB of data", r#"C: "IHAVEOPT" 0000_0001 ffff_ffff"#,
            value(OptionType::EXPORT_NAME, u32::MAX)),
    ]);
    assert_eq!(OptionHeader::SIZE, 16);
}

/// Runs every check on an option with its data, header included.
fn check(name: &str, transcript: &str, value: OptionRequest<'_>, cut: impl Fn(usize) -> Cut) {
    let body = Body::new(name, transcript, OptionHeader::SIZE);
    let header = OptionHeader::decode(&mut body.header()).unwrap().unwrap();
    assert_eq!(header.option, value.option(), "{name}");
    assert_eq!(header.length as usize, body.body().len(), "{name}");
    body.check(
        &value,
        |data| OptionRequest::decode(header.option, data),
        |value, sink| value.encode(sink),
        cut,
    );
}

/// As [`check`], for data that is malformed when it is shorter or longer;
/// `data` comes without the header.
fn check_exact(name: &str, data: &str, value: OptionRequest<'_>) {
    let (option, whole) = (value.option(), bytes(data).len());
    let header = format!(r#"C: "IHAVEOPT" {:08x} {whole:08x}"#, option.0);
    let message = option.name().unwrap();
    check(name, &format!("{header}\n{data}"), value, |n| {
        if n < whole {
            overrun(message)
        } else {
            trailing(message)
        }
    });
}

#[test]
#[rustfmt::skip]
fn options_without_data() {
    for (transcript, value) in [
        (r#"C: "IHAVEOPT" 0000_0003 0000_0000"#, OptionRequest::List),
        (r#"C: "IHAVEOPT" 0000_0005 0000_0000"#, OptionRequest::StartTls),
        (r#"C: "IHAVEOPT" 0000_0008 0000_0000"#, OptionRequest::StructuredReply),
        (r#"C: "IHAVEOPT" 0000_000b 0000_0000"#, OptionRequest::ExtendedHeaders),
    ] {
        let name = value.option().name().unwrap();
        check(name, transcript, value, |_| trailing(name));
    }
    // A server ignores what ABORT carries.
    check("ABORT", r#"C: "IHAVEOPT" 0000_0002 0000_0000"#, OptionRequest::Abort, |_| Cut::Ignored);
}

#[test]
#[rustfmt::skip]
fn export_name() {
    for (name, transcript, export) in [
        ("the default export", r#"C: "IHAVEOPT" 0000_0001 0000_0000"#, Text::EMPTY),
        ("an export", r#"C: "IHAVEOPT" 0000_0001 0000_0004 "disk""#, Text::new(b"disk")),
        ("not even text", r#"C: "IHAVEOPT" 0000_0001 0000_0003 ff00fe"#, Text::new(b"\xff\0\xfe")),
    ] {
        check(name, transcript, OptionRequest::ExportName(export), |_| Cut::Body);
    }
}

#[test]
#[rustfmt::skip]
fn undefined_options() {
    for (name, transcript, option, data) in [
        ("PEEK_EXPORT", r#"C: "IHAVEOPT" 0000_0004 0000_0000"#, OptionType::PEEK_EXPORT, &b""[..]),
        ("PEEK_EXPORT with data", r#"C: "IHAVEOPT" 0000_0004 0000_0004 "disk""#, OptionType::PEEK_EXPORT, b"disk"),
        ("number 0", r#"C: "IHAVEOPT" 0000_0000 0000_0001 00"#, OptionType(0), b"\0"),
        ("number 12", r#"C: "IHAVEOPT" 0000_000c 0000_0003 "abc""#, OptionType(12), b"abc"),
        ("the last number", r#"C: "IHAVEOPT" ffff_ffff 0000_0002 ffff"#, OptionType(u32::MAX), b"\xff\xff"),
    ] {
        check(name, transcript, OptionRequest::Other { option, data }, |_| Cut::Body);
    }
}

#[test]
fn malformed_data_can_be_encoded() {
    let nonsense = OptionRequest::Other {
        option: OptionType::LIST,
        data: b"oops",
    };
    assert_eq!(
        encoded(|sink| nonsense.encode(sink)),
        bytes(r#"C: "IHAVEOPT" 0000_0003 0000_0004 "oops""#)
    );
}

#[test]
#[rustfmt::skip]
fn info_and_go() {
    let list: [&[InfoType]; 3] = [
        &[],
        &[InfoType::BLOCK_SIZE],
        &[InfoType::NAME, InfoType(0x7777), InfoType::NAME],
    ];
    for (name, data, export, requests) in [
        ("the default export, nothing asked", "C: 0000_0000 0000", "", list[0]),
        ("an export, nothing asked", r#"C: 0000_0004 "disk" 0000"#, "disk", list[0]),
        ("block sizes", r#"C: 0000_0004 "disk" 0001 0003"#, "disk", list[1]),
        ("twice the same, and an undefined one",
            r#"C: 0000_0001 "x" 0003 0001 7777 0001"#, "x", list[2]),
    ] {
        let request = InfoRequest { export: export.into(), requests: requests.into() };
        for value in [OptionRequest::Info(request), OptionRequest::Go(request)] {
            check_exact(name, data, value);
        }
    }
}

#[test]
#[rustfmt::skip]
fn metadata_contexts() {
    let list: [&[&str]; 4] = [&[], &["base:allocation"], &["base:", "qemu:dirty-bitmap:x"], &["", ""]];
    for (name, data, export, queries) in [
        ("no query", "C: 0000_0000 0000_0000", "", list[0]),
        ("one query", r#"C: 0000_0004 "disk" 0000_0001
                         C: 0000_000f "base:allocation""#, "disk", list[1]),
        ("two queries", r#"C: 0000_0004 "disk" 0000_0002
                           C: 0000_0005 "base:"
                           C: 0000_0013 "qemu:dirty-bitmap:x""#, "disk", list[2]),
        ("empty queries", "C: 0000_0000 0000_0002 0000_0000 0000_0000", "", list[3]),
    ] {
        let request = MetaContextRequest { export: export.into(), queries: queries.into() };
        for value in [OptionRequest::ListMetaContext(request), OptionRequest::SetMetaContext(request)] {
            check_exact(name, data, value);
        }
    }
}

/// Data to which a server replies `NBD_REP_ERR_INVALID`.
#[test]
#[rustfmt::skip]
fn invalid_lengths_inside_the_data() {
    let info = [OptionType::INFO, OptionType::GO];
    let meta = [OptionType::LIST_META_CONTEXT, OptionType::SET_META_CONTEXT];
    for (name, options, data, error) in [
        ("no data at all", info, "C:", overrun as fn(_) -> _),
        ("name length 2^32 - 1", info, "C: ffff_ffff 0000", overrun),
        ("name length 2^32 - 1, no count", info, "C: ffff_ffff", overrun),
        ("name length 2^31", info, "C: 8000_0000 0000", overrun),
        ("name length that includes the count", info, r#"C: 0000_0006 "disk" 0000"#, overrun),
        ("name length that includes half of the count", info, r#"C: 0000_0005 "disk" 0000"#, overrun),
        ("name length one too short", info, r#"C: 0000_0003 "disk" 0000"#, overrun), // count 0x6b00
        ("name length 1024, data as long", info, "C: 0000_0400 61*1024 0000 00", trailing),
        ("name length 1025, data one less", info, "C: 0000_0401 61*1024 0000", overrun),
        ("name length 4097, data 1024", info, "C: 0000_1001 61*1024 0000", overrun),
        ("one request too few", info, "C: 0000_0000 0002 0003", overrun),
        ("half a request", info, "C: 0000_0000 0001 00", overrun),
        ("65,535 requests, none there", info, "C: 0000_0000 ffff", overrun),
        ("a request too many", info, "C: 0000_0000 0001 0003 0000", trailing),
        ("requests not counted", info, "C: 0000_0000 0000 0003", trailing),

        ("no data at all", meta, "C:", overrun),
        ("name length 2^32 - 1", meta, "C: ffff_ffff 0000_0000", overrun),
        ("name length that includes the count", meta, r#"C: 0000_0008 "disk" 0000_0000"#, overrun),
        ("name length 1025, data one less", meta, "C: 0000_0401 61*1024 0000_0000", overrun),
        ("2^32 - 1 queries, none there", meta, "C: 0000_0000 ffff_ffff", overrun),
        ("2^32 - 1 queries, some there", meta, "C: 0000_0000 ffff_ffff 00*4096", overrun),
        ("a query too few", meta, "C: 0000_0000 0000_0002 0000_0001 61", overrun),
        ("a query too many", meta, "C: 0000_0000 0000_0001 0000_0001 61 0000_0000", trailing),
        ("queries not counted", meta, "C: 0000_0000 0000_0000 0000_0000", trailing),
        ("a query longer than the data", meta, "C: 0000_0000 0000_0001 0000_0002 61", overrun),
        ("a query of 2^32 - 1 bytes", meta, "C: 0000_0000 0000_0001 ffff_ffff 61", overrun),
        ("the second query too long", meta, "C: 0000_0000 0000_0002 0000_0001 61 ffff_ffff", overrun),
        ("a query shorter than the data", meta, r#"C: 0000_0000 0000_0001 0000_0001 "ab""#, trailing),
    ] {
        for option in options {
            let data = bytes(data);
            let Cut::Error(error) = error(option.name().unwrap()) else { unreachable!() };
            let decoded = OptionRequest::decode(option, &data);
            assert_eq!(decoded, Err(error), "{option}: {name}");
        }
    }
}

#[test]
fn long_names_are_no_error_here() {
    for length in [1024, 4096, 4097, 65536] {
        let name = "x".repeat(length);
        let value = OptionRequest::Go(InfoRequest {
            export: name.as_str().into(),
            requests: InfoTypes::from(&[InfoType::NAME][..]),
        });
        let written = encoded(|sink| value.encode(sink));
        assert_eq!(written.len(), 16 + 4 + length + 2 + 2);
        let decoded = OptionRequest::decode(OptionType::GO, &written[16..]);
        assert_eq!(decoded, Ok(value));
    }
}

#[test]
fn lists_compare_by_their_items() {
    let types = [InfoType::NAME, InfoType(9), InfoType::EXPORT];
    let memory = InfoTypes::from(&types[..]);
    let data = bytes("C: 0000_0000 0003 0001 0009 0000");
    let Ok(OptionRequest::Info(InfoRequest { requests, .. })) =
        OptionRequest::decode(OptionType::INFO, &data)
    else {
        panic!("an InfoRequest")
    };
    assert_eq!(requests, memory);
    assert_ne!(requests, InfoTypes::from(&types[..2]));
    for list in [requests, memory] {
        assert_eq!(list.iter().collect::<Vec<_>>(), types);
        assert_eq!(list.iter().size_hint(), (3, Some(3)));
        assert_eq!((list.len(), list.is_empty()), (3, false));
        assert!(types.iter().all(|info| list.contains(*info)));
        assert!(!list.contains(InfoType::DESCRIPTION));
        assert_eq!(
            format!("{list:?}"),
            "[NBD_INFO_NAME, InfoType(0x9), NBD_INFO_EXPORT]"
        );
    }

    assert!(InfoTypes::from(&types[..0]).is_empty());
    // Equal lists have equal hashes.
    let hash = |list: InfoTypes<'_>| {
        let mut hasher = DefaultHasher::new();
        list.hash(&mut hasher);
        hasher.finish()
    };
    assert_eq!(hash(requests), hash(memory));
    assert_ne!(hash(memory), hash(InfoTypes::from(&types[1..])));

    let texts = ["base:", "", "x-y:z"];
    let memory = Queries::from(&texts[..]);
    let data = bytes(
        r#"C: 0000_0000 0000_0003
           C: 0000_0005 "base:" 0000_0000 0000_0005 "x-y:z""#,
    );
    let Ok(OptionRequest::SetMetaContext(MetaContextRequest { queries, .. })) =
        OptionRequest::decode(OptionType::SET_META_CONTEXT, &data)
    else {
        panic!("a MetaContextRequest")
    };
    assert_eq!(queries, memory);
    assert_ne!(queries, Queries::from(&texts[1..]));
    assert_ne!(queries, Queries::NONE);
    for list in [queries, memory] {
        assert_eq!(list.iter().collect::<Vec<_>>(), texts.map(Text::from));
        assert_eq!((list.len(), list.is_empty()), (3, false));
        assert_eq!(format!("{list:?}"), r#"["base:", "", "x-y:z"]"#);
    }
    assert!(Queries::NONE.is_empty() && Queries::NONE.iter().next().is_none());
}

#[test]
fn more_than_65535_requests_have_no_encoding() {
    let types = vec![InfoType::NAME; 65536];
    let option = |count| {
        let request = InfoRequest {
            export: Text::EMPTY,
            requests: InfoTypes::from(&types[..count]),
        };
        [OptionRequest::Info(request), OptionRequest::Go(request)]
    };
    for value in option(65535) {
        let written = encoded(|sink| value.encode(sink));
        let decoded = OptionRequest::decode(value.option(), &written[16..]);
        assert_eq!(decoded, Ok(value));
    }
    for value in option(65536) {
        let mut room = vec![0; 1 << 18];
        let mut sink = &mut room[..];
        assert_eq!(value.encode(&mut sink), Err(EncodeError::TooLong));
        assert_eq!(sink.len(), 1 << 18, "nothing was written");
    }
}

#[test]
#[cfg(target_pointer_width = "64")]
fn four_gigabytes_of_data_have_no_encoding() {
    // All queries share one string, and none is written. name_length, count
    // and 65,532 times query_length and query are 2^32 - 8 bytes.
    let text = "x".repeat(65536);
    let queries = vec![text.as_str(); 65532];
    let needed = 16 + u32::MAX as usize;
    for (last, expected) in [
        ("abc", EncodeError::NoRoom { needed }),
        ("abcd", EncodeError::TooLong),
    ] {
        let queries = [&queries[..], &[last]].concat();
        let value = OptionRequest::SetMetaContext(MetaContextRequest {
            export: Text::EMPTY,
            queries: Queries::from(&queries[..]),
        });
        let mut room = [0; 64];
        assert_eq!(value.encode(&mut &mut room[..]), Err(expected));
        assert_eq!(room, [0; 64], "nothing was written");
    }
}

#[test]
fn texts_are_read_in_place() {
    let data = bytes(r#"C: 0000_0004 "disk" 0000_0001 0000_0005 "base:""#);
    let Ok(OptionRequest::ListMetaContext(request)) =
        OptionRequest::decode(OptionType::LIST_META_CONTEXT, &data)
    else {
        panic!("a MetaContextRequest")
    };
    assert!(std::ptr::eq(request.export.as_bytes(), &data[4..8]));
    let query = request.queries.iter().next().unwrap();
    assert!(std::ptr::eq(query.as_bytes(), &data[16..]));
}

#[test]
fn data_where_none_is_allowed() {
    for option in [
        OptionType::LIST,
        OptionType::STARTTLS,
        OptionType::STRUCTURED_REPLY,
        OptionType::EXTENDED_HEADERS,
    ] {
        for data in [&b"\0"[..], b"data", &[0; 5000]] {
            let message = option.name().unwrap();
            assert_eq!(
                OptionRequest::decode(option, data),
                Err(DecodeError::Trailing { message })
            );
        }
    }
    for data in [&b"\0"[..], b"data", &[0; 5000]] {
        let abort = OptionRequest::decode(OptionType::ABORT, data);
        assert_eq!(abort, Ok(OptionRequest::Abort));
    }
}
