//! Sinks: slices, buffers that grow, and a sink of the caller.

use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::{EncodeError, Sink};

const ABORT: OptionRequest<'_> = OptionRequest::Abort;

#[test]
fn a_slice_is_written_from_its_beginning() {
    let mut buffer = [9; 8];
    let mut rest = &mut buffer[..];
    assert_eq!(rest.room(), 8);
    rest.put(b"abc");
    rest.put(b"");
    rest.put(b"de");
    assert_eq!(rest.room(), 3);
    assert_eq!(buffer, *b"abcde\x09\x09\x09");
}

#[test]
fn bytes_that_do_not_fit_are_discarded() {
    let mut buffer = [9; 4];
    let mut rest = &mut buffer[..];
    rest.put(b"ab");
    rest.put(b"cde");
    assert_eq!(buffer, *b"ab\x09\x09");
}

#[test]
fn messages_are_appended() {
    let mut buffer = [0; 40];
    let mut rest = &mut buffer[..];
    assert_eq!(ABORT.encode(&mut rest), Ok(16));
    assert_eq!(OptionRequest::List.encode(&mut rest), Ok(16));
    let refused = EncodeError::NoRoom { needed: 16 };
    assert_eq!(ABORT.encode(&mut rest), Err(refused));
    assert_eq!(rest.room(), 8);
    assert_eq!(buffer[12..16], [0, 0, 0, 0]);
    assert_eq!(buffer[16..28], *b"IHAVEOPT\0\0\0\x03");
    assert_eq!(buffer[32..], [0; 8]);
    assert_eq!(
        refused.to_string(),
        "the buffer is too small: the message needs 16 bytes"
    );
}

/// A sink that the caller implements, by value and by reference.
#[test]
fn a_reference_to_a_sink_is_a_sink() {
    struct Limited(Vec<u8>, usize);

    impl Sink for Limited {
        fn room(&self) -> usize {
            self.1 - self.0.len()
        }

        fn put(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
    }

    fn generic(mut sink: impl Sink, option: OptionRequest<'_>) -> Result<usize, EncodeError> {
        option.encode(&mut sink)
    }

    let mut sink = Limited(Vec::new(), 20);
    let other = OptionRequest::Other {
        option: OptionType::LIST,
        data: &[7; 5],
    };
    let refused = Err(EncodeError::NoRoom { needed: 21 });
    assert_eq!(generic(&mut sink, other), refused);
    assert!(sink.0.is_empty());
    assert_eq!(generic(&mut &mut sink, ABORT), Ok(16));
    assert_eq!(sink.room(), 4);
    assert_eq!(sink.0, b"IHAVEOPT\0\0\0\x02\0\0\0\0");
}

#[cfg(feature = "alloc")]
#[test]
fn sinks_that_grow() {
    let mut vec = Vec::new();
    let mut buffer = ::bytes::BytesMut::new();
    assert_eq!((vec.room(), buffer.room()), (usize::MAX, usize::MAX));
    for _ in 0..3 {
        assert_eq!(ABORT.encode(&mut vec), Ok(16));
        assert_eq!(ABORT.encode(&mut buffer), Ok(16));
    }
    assert_eq!(vec, b"IHAVEOPT\0\0\0\x02\0\0\0\0".repeat(3));
    assert_eq!(buffer, vec);
}
