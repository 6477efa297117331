//! Every defined number, and undefined ones.

use std::fmt::{Debug, Display};

use nbd_codec::wire::number::{
    ChunkType, Command, ContextId, Cookie, ErrorValue, InfoType, OptionReplyType, OptionType,
};

/// Compares a table of constants, numbers and names with the type, and looks
/// for names that are not in the table.
macro_rules! check {
    ($kind:ident: $($constant:ident = $number:literal, $name:literal;)*) => {{
        let table = [$(($kind::$constant, $number, $name)),*];
        for (constant, number, name) in table {
            assert_eq!(constant, $kind(number));
            assert_eq!(constant.name(), Some(name));
            shows(constant, name);
        }
        let last = table.map(|(_, number, _)| number).into_iter().max().unwrap();
        let numbers = (0..200).chain(last.saturating_sub(20)..=last + 200).chain([last.reverse_bits(), !last, !0]);
        for number in numbers.filter(|n| table.iter().all(|(_, number, _)| number != n)) {
            assert_eq!($kind(number).name(), None, "{number}");
            shows($kind(number), &format!(concat!(stringify!($kind), "({:#x})"), number));
        }
    }};
}

fn shows(value: impl Display + Debug, expected: &str) {
    assert_eq!(value.to_string(), expected);
    assert_eq!(format!("{value:?}"), expected);
}

#[test]
fn option_types() {
    check! { OptionType:
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        ABORT = 2, "NBD_OPT_ABORT";
        LIST = 3, "NBD_OPT_LIST";
        PEEK_EXPORT = 4, "NBD_OPT_PEEK_EXPORT";
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        INFO = 6, "NBD_OPT_INFO";
        GO = 7, "NBD_OPT_GO";
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        LIST_META_CONTEXT = 9, "NBD_OPT_LIST_META_CONTEXT";
        SET_META_CONTEXT = 10, "NBD_OPT_SET_META_CONTEXT";
        EXTENDED_HEADERS = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
}

#[test]
fn option_reply_types() {
    check! { OptionReplyType:
        ACK = 1, "NBD_REP_ACK";
        SERVER = 2, "NBD_REP_SERVER";
        INFO = 3, "NBD_REP_INFO";
        META_CONTEXT = 4, "NBD_REP_META_CONTEXT";
        ERR_UNSUP = 0x8000_0001, "NBD_REP_ERR_UNSUP";
        ERR_POLICY = 0x8000_0002, "NBD_REP_ERR_POLICY";
        ERR_INVALID = 0x8000_0003, "NBD_REP_ERR_INVALID";
        ERR_PLATFORM = 0x8000_0004, "NBD_REP_ERR_PLATFORM";
        ERR_TLS_REQD = 0x8000_0005, "NBD_REP_ERR_TLS_REQD";
        ERR_UNKNOWN = 0x8000_0006, "NBD_REP_ERR_UNKNOWN";
        ERR_SHUTDOWN = 0x8000_0007, "NBD_REP_ERR_SHUTDOWN";
        ERR_BLOCK_SIZE_REQD = 0x8000_0008, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        ERR_TOO_BIG = 0x8000_0009, "NBD_REP_ERR_TOO_BIG";
        ERR_EXT_HEADER_REQD = 0x8000_000a, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
    for (number, error) in [
        (0, false),
        (4, false),
        (0x7fff_ffff, false),
        (0x8000_0000, true),
        (0x8000_000a, true),
        (u32::MAX, true),
    ] {
        assert_eq!(OptionReplyType(number).is_error(), error, "{number:#x}");
    }
}

#[test]
fn info_types() {
    check! { InfoType:
        EXPORT = 0, "NBD_INFO_EXPORT";
        NAME = 1, "NBD_INFO_NAME";
        DESCRIPTION = 2, "NBD_INFO_DESCRIPTION";
        BLOCK_SIZE = 3, "NBD_INFO_BLOCK_SIZE";
    }
}

#[test]
fn commands() {
    check! { Command:
        READ = 0, "NBD_CMD_READ";
        WRITE = 1, "NBD_CMD_WRITE";
        DISC = 2, "NBD_CMD_DISC";
        FLUSH = 3, "NBD_CMD_FLUSH";
        TRIM = 4, "NBD_CMD_TRIM";
        CACHE = 5, "NBD_CMD_CACHE";
        WRITE_ZEROES = 6, "NBD_CMD_WRITE_ZEROES";
        BLOCK_STATUS = 7, "NBD_CMD_BLOCK_STATUS";
        RESIZE = 8, "NBD_CMD_RESIZE";
    }
}

#[test]
fn chunk_types() {
    check! { ChunkType:
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        OFFSET_HOLE = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        BLOCK_STATUS_EXT = 6, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
        ERROR = 0x8001, "NBD_REPLY_TYPE_ERROR";
        ERROR_OFFSET = 0x8002, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
    for (number, error) in [
        (0, false),
        (6, false),
        (0x7fff, false),
        (0x8000, true),
        (0x8001, true),
        (0xffff, true),
    ] {
        assert_eq!(ChunkType(number).is_error(), error, "{number:#x}");
    }
}

#[test]
fn error_values() {
    check! { ErrorValue:
        NONE = 0, "no error";
        EPERM = 1, "NBD_EPERM";
        EIO = 5, "NBD_EIO";
        ENOMEM = 12, "NBD_ENOMEM";
        EINVAL = 22, "NBD_EINVAL";
        ENOSPC = 28, "NBD_ENOSPC";
        EOVERFLOW = 75, "NBD_EOVERFLOW";
        ENOTSUP = 95, "NBD_ENOTSUP";
        ESHUTDOWN = 108, "NBD_ESHUTDOWN";
    }
    assert!(!ErrorValue::NONE.is_error());
    assert!(ErrorValue::EPERM.is_error() && ErrorValue(u32::MAX).is_error());
}

const DEFINED: [u32; 8] = [1, 5, 12, 22, 28, 75, 95, 108];

#[test]
fn undefined_errors_become_einval() {
    for number in (0..=200).chain([1 << 31, u32::MAX]) {
        let expected = if number == 0 || DEFINED.contains(&number) {
            number
        } else {
            22
        };
        let acted_on = ErrorValue(number).or_invalid();
        assert_eq!(acted_on, ErrorValue(expected), "{number}");
    }
}

#[test]
fn errno_of_linux_to_error_value() {
    for (errno, name, expected) in [
        (13, "EACCES", ErrorValue::EPERM),
        (27, "EFBIG", ErrorValue::ENOSPC),
        (30, "EROFS", ErrorValue::EPERM),
        (122, "EDQUOT", ErrorValue::ENOSPC),
        (28, "ENOSPC", ErrorValue::ENOSPC),
        (95, "EOPNOTSUPP", ErrorValue::ENOTSUP),
        (2, "ENOENT", ErrorValue::EIO),
        (11, "EAGAIN", ErrorValue::EIO),
    ] {
        assert_eq!(ErrorValue::from_linux_errno(errno), expected, "{name}");
    }
    for errno in (0..=200).chain([u32::MAX]) {
        let error = ErrorValue::from_linux_errno(errno);
        assert_eq!(error.is_error(), errno != 0, "{errno}");
        assert!(errno == 0 || DEFINED.contains(&error.0), "{errno}");
        if DEFINED.contains(&errno) {
            assert_eq!(error.0, errno);
        }
    }
}

#[test]
fn cookies_and_context_ids() {
    assert_eq!(Cookie(0x1f).to_string(), "0x000000000000001f");
    assert_eq!(format!("{:?}", Cookie(0x1f)), "Cookie(0x000000000000001f)");
    assert_eq!(Cookie(u64::MAX).to_string(), "0xffffffffffffffff");
    assert_eq!(ContextId(4_000_000_000).to_string(), "4000000000");
}
