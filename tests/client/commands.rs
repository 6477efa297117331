//! Every command in every framing, in flight alone and together.

use nbd_codec::Framing::{Extended, Simple, Structured};
use nbd_codec::Misuse;
use nbd_codec::client::Request;

use super::machines::{Client, FRAMINGS, export, transmission, with_contexts};
use super::script::Commands;
use super::transcript::{Machine, once};

/// Commands whose reply has no payload, and flags that they can have.
const PLAIN: [&str; 11] = [
    "WRITE 0 4K",
    "WRITE 4K 512 FUA",
    "FLUSH",
    "TRIM 0 1M",
    "TRIM 512 512 FUA",
    "CACHE 0 1M",
    "WRITE_ZEROES 0 1M",
    "WRITE_ZEROES 0 1M FUA|NO_HOLE|FAST_ZERO",
    "RESIZE 2M",
    "FLUSH 0 0 FUA",
    "CACHE 0 512 FUA",
];

#[test]
fn success_and_failure() {
    for framing in FRAMINGS {
        for command in PLAIN {
            let (ok, failed) = match framing {
                Simple => ("simple OK #0", "simple EIO #0"),
                _ => ("last NONE #0", "last ERROR #0 EIO:32 0:16"),
            };
            transmission(
                export(framing),
                &format!("C: {command}\nS: {ok}\nE: #0 done"),
            );
            let event = match framing {
                Simple => "",
                _ => "E: #0 error NBD_EIO \"\"\n",
            };
            transmission(
                export(framing),
                &format!("C: {command}\nS: {failed}\n{event}E: #0 done NBD_EIO"),
            );
        }
    }
}

/// With structured replies a reply without payload may be a simple one.
#[test]
fn simple_replies_with_structured_framing() {
    for command in PLAIN {
        transmission(
            export(Structured),
            &format!("C: {command}\nS: simple OK #0\nE: #0 done"),
        );
        transmission(
            export(Structured),
            &format!("C: {command}\nS: simple ENOSPC #0\nE: #0 done NBD_ENOSPC"),
        );
    }
    // The error of a block status command has no payload either.
    transmission(
        with_contexts(Structured, 1),
        "C: STATUS 0 4K\nS: simple EINVAL #0\nE: #0 done NBD_EINVAL",
    );
}

#[test]
fn reads() {
    transmission(
        export(Simple),
        r#"
        C: READ 4K 600
        S: simple OK #0 aa*600
        E: #0 data 4096 aa*600
        E: #0 done
        C: READ 0 1
        S: simple EIO #1
        E: #1 done NBD_EIO
        "#,
    );
    for framing in [Structured, Extended] {
        transmission(
            export(framing),
            r#"
            C: READ 4K 600 DF
            S: last OFFSET_DATA #0 4K:64 aa*600
            E: #0 data 4096 aa*600
            E: #0 done
            C: READ 0 1
            S: chunk OFFSET_DATA #1 0:64 55
            S: last NONE #1
            E: #1 data 0 55*1
            E: #1 done
            C: READ 0 1M
            S: last OFFSET_HOLE #2 0:64 1M:32
            E: #2 hole 0 +1048576
            E: #2 done
            "#,
        );
    }
}

#[test]
fn block_status() {
    transmission(
        with_contexts(Structured, 1),
        r#"
        C: STATUS 512 64K
        S: last BLOCK_STATUS #0 1:32 4K:32 3:32 60K:32 0:32
        E: #0 narrow 1 @512 4096/0x3 61440/0x0
        E: #0 done
        "#,
    );
    transmission(
        with_contexts(Extended, 1),
        r#"
        C: STATUS 512 64K
        S: last BLOCK_STATUS_EXT #0 1:32 2:32 4K:64 3:64 60K:64 0:64
        E: #0 wide 1 @512 4096/0x3 61440/0x0
        E: #0 done
        "#,
    );
}

/// Lengths beyond 32 bits, each in one command.
#[test]
fn long_effects() {
    let mut export = with_contexts(Extended, 1);
    export.size = u64::MAX;
    for command in ["TRIM", "CACHE", "WRITE_ZEROES"] {
        transmission(
            export,
            &format!("C: {command} 1 2^64-2\nS: last NONE #0\nE: #0 done"),
        );
    }
    transmission(
        export,
        r#"
        C: STATUS 0 5G
        S: last BLOCK_STATUS_EXT #0 1:32 1:32 5G:64 3:64
        E: #0 wide 1 @0 5368709120/0x3
        E: #0 done
        C: STATUS 1 2^64-2
        S: last BLOCK_STATUS_EXT #1 1:32 1:32 2^64-1:64 3:64
        E: #1 wide 1 @1 18446744073709551615/0x3
        E: #1 done
        "#,
    );
    export.block_sizes = Some(nbd_codec::wire::option_reply::BlockSizes {
        minimum: 1,
        preferred: 4096,
        maximum: u32::MAX,
    });
    transmission(
        export,
        r#"
        C: READ 2^63 2^32-1
        S: chunk OFFSET_HOLE #0 2^63:64 2^32-2:32
        E: #0 hole 9223372036854775808 +4294967294
        C: WRITE 2^63 2^32-1
        S: last ERROR #1 ENOSPC:32 0:16
        E: #1 error NBD_ENOSPC ""
        E: #1 done NBD_ENOSPC
        "#,
    );
}

/// Several commands in flight, replies in any order, chunks interleaved.
#[test]
fn in_flight() {
    transmission(
        export(Simple),
        r#"
        C: READ 0 512
        C: WRITE 0 512
        C: READ 512 512
        C: FLUSH
        S: simple OK #3
        S: simple OK #2 22*512
        E: #3 done
        E: #2 data 512 22*512
        E: #2 done
        C: TRIM 0 512
        S: simple EIO #4
        S: simple OK #0 11*512
        S: simple OK #1
        E: #4 done NBD_EIO
        E: #0 data 0 11*512
        E: #0 done
        E: #1 done
        "#,
    );
    for (framing, status, seen) in [
        (Structured, "BLOCK_STATUS #1 1:32 1M:32 0:32", "narrow"),
        (Extended, "BLOCK_STATUS_EXT #1 1:32 1:32 1M:64 0:64", "wide"),
    ] {
        transmission(
            with_contexts(framing, 2),
            &format!(
                r#"
                C: READ 0 1024
                C: STATUS 0 1M
                C: READ 4K 1024
                C: FLUSH
                S: chunk OFFSET_DATA #0 512:64 01*512
                S: chunk {status}
                S: chunk OFFSET_HOLE #2 4K:64 512:32
                S: chunk OFFSET_DATA #0 0:64 00*512
                S: last NONE #3
                S: last OFFSET_DATA #2 4608:64 02*512
                E: #0 data 512 01*512
                E: #1 {seen} 1 @0 1048576/0x0
                E: #2 hole 4096 +512
                E: #0 data 0 00*512
                E: #3 done
                E: #2 data 4608 02*512
                E: #2 done
                S: last {}
                S: last NONE #0
                E: #1 {seen} 2 @0 1048576/0x0
                E: #1 done
                E: #0 done
                "#,
                status.replace("#1 1:32", "#1 2:32"),
            ),
        );
    }
}

/// A command may be sent in the middle of a reply.
#[test]
fn commands_between_bytes() {
    transmission(
        export(Structured),
        r#"
        C: READ 0 1024
        S: chunk OFFSET_DATA #0 len=520 0:64
        C: FLUSH
        S: aa*512
        E: #0 data 0 aa*512
        C: READ 1024 1
        S: simple OK #1
        S: last OFFSET_DATA #0 512:64 bb*512
        S: last OFFSET_DATA #2 1024:64 cc
        E: #1 done
        E: #0 data 512 bb*512
        E: #0 done
        E: #2 data 1024 cc*1
        E: #2 done
        "#,
    );
}

/// DISC is the last message. Replies to the commands before it still come.
#[test]
fn disconnect() {
    for (framing, ok) in [
        (Simple, "simple OK"),
        (Structured, "simple OK"),
        (Extended, "last NONE"),
    ] {
        transmission(
            export(framing),
            &format!(
                "C: WRITE 0 512\nC: FLUSH\nC: DISC\nS: {ok} #1\nS: {ok} #0\nE: #1 done\nE: #0 done"
            ),
        );
        let mut client = Client::new(export(framing));
        once(&mut client, "C: DISC");
        assert_eq!(client.receive(&mut &b""[..]), Ok(nbd_codec::Step::Finished));
        assert_eq!(client.end_of_input(), Ok(()));
        assert_eq!(client.machine.pop_unanswered(), None);
        let mut client = Client::new(export(framing));
        once(&mut client, "C: FLUSH\nC: DISC");
        assert_eq!(client.end_of_input(), Err(nbd_codec::Error::Closed));
        assert_eq!(
            client.machine.pop_unanswered().unwrap().0,
            client.command(0).0
        );
        assert_eq!(client.machine.pop_unanswered(), None);
    }
}

/// The new size takes effect when the reply reports success.
#[test]
fn resize() {
    for (framing, reply, size) in [
        (Simple, "simple OK #0", 2 << 20),
        (Simple, "simple ENOSPC #0", 1 << 20),
        (Structured, "last NONE #0", 2 << 20),
        (Extended, "last NONE #0", 2 << 20),
        (Extended, "last ERROR #0 EPERM:32 0:16", 1 << 20),
    ] {
        let mut client = Client::new(export(framing));
        once(&mut client, "C: RESIZE 2M");
        let beyond = Request::trim(1 << 20, 512);
        let too_early = client.machine.submit(beyond);
        assert_eq!(too_early, Err(Misuse::OutOfBounds { size: 1 << 20 }));
        for size in [0, 2 << 20, 4 << 20] {
            let again = client.machine.submit(Request::resize(size));
            assert_eq!(again, Err(Misuse::Resizing));
        }
        once(&mut client, &format!("S: {reply}"));
        assert_eq!(client.machine.negotiated().size, size);
        assert_eq!(client.machine.submit(beyond).is_ok(), size > 1 << 20);
    }
}

/// The caller learns of a resize on another connection, and says so.
#[test]
fn resized_on_another_connection() {
    let mut client = Client::new(export(Structured));
    let beyond = Request::read(1 << 20, 512);
    let refused = client.machine.submit(beyond);
    assert_eq!(refused, Err(Misuse::OutOfBounds { size: 1 << 20 }));
    assert_eq!(client.machine.set_size(2 << 20), Ok(()));
    assert_eq!(client.machine.negotiated().size, 2 << 20);
    assert!(client.machine.submit(beyond).is_ok());
    // Commands beyond a smaller size stay in flight.
    assert_eq!(client.machine.set_size(4096), Ok(()));
    let refused = client.machine.submit(Request::read(4096, 512));
    assert_eq!(refused, Err(Misuse::OutOfBounds { size: 4096 }));
    assert!(client.machine.submit(Request::read(0, 4096)).is_ok());
    assert_eq!(client.machine.in_flight(), 2);

    let mut client = Client::new(export(Structured));
    once(&mut client, "C: RESIZE 2M");
    assert_eq!(client.machine.set_size(4096), Err(Misuse::Resizing));
    once(&mut client, "S: simple OK #0");
    assert_eq!(client.machine.negotiated().size, 2 << 20);

    // It does not begin a session again that is over.
    let mut client = Client::new(export(Structured));
    assert_eq!(client.end_of_input(), Ok(()));
    assert_eq!(client.machine.set_size(4096), Ok(()));
    let refused = client.machine.submit(Request::read(0, 512));
    assert_eq!(refused, Err(Misuse::Failed(nbd_codec::Error::Closed)));
}

/// A smaller size, and commands in the range that is removed.
#[test]
fn resize_to_less() {
    let mut client = Client::new(export(Structured));
    once(&mut client, "C: READ 4K 4K");
    let refused = client.machine.submit(Request::resize(8191));
    assert_eq!(refused, Err(Misuse::Resizing));
    once(&mut client, "C: RESIZE 8K");
    let size = 1 << 20;
    for (offset, length) in [(4096, 4097), (8192, 1), (size - 1, 1)] {
        let refused = client.machine.submit(Request::read(offset, length));
        assert_eq!(refused, Err(Misuse::Resizing), "{offset} {length}");
    }
    // Whatever the reply is.
    for (offset, length) in [(size - 1, 2), (size, 1)] {
        let refused = client.machine.submit(Request::read(offset, length));
        assert_eq!(refused, Err(Misuse::OutOfBounds { size }));
    }
    once(&mut client, "C: READ 0 8K\nS: simple OK #1");
    assert_eq!(client.machine.negotiated().size, 8192);
    let refused = client.machine.submit(Request::read(4096, 4097));
    assert_eq!(refused, Err(Misuse::OutOfBounds { size: 8192 }));
}

/// Only a lenient client has two resizes in flight: each sets the size that it
/// asked for.
#[test]
fn two_resizes_of_a_lenient_client() {
    for (first, size) in [(0, 2 << 20), (1, 3 << 20)] {
        let mut client = Client::lenient(export(Simple));
        let transcript = format!("C: RESIZE 2M\nC: RESIZE 3M\nS: simple OK #{first}");
        once(&mut client, &transcript);
        assert_eq!(client.machine.negotiated().size, size);
    }
}
