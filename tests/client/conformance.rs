//! Duties of the specification that no other test is about.

use nbd_codec::Framing;
use nbd_codec::Limits;
use nbd_codec::Misuse;
use nbd_codec::client::{Request, Slot, Transmission};

use super::machines::{by_hand, export};

/// The zeroes are EXPORT_NAME's: what follows GO is a reply, though they were
/// not declined.
#[test]
fn go_has_no_zeroes_behind_it() {
    by_hand(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 1:16
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE) }))
        C: flags 1
        C: opt GO 0:32 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        S: 67446698 0:32
        E: Info(Export { size: 1048576, flags: TransmissionFlags(HAS_FLAGS) })
        E: Ack(NBD_OPT_GO)
        E: Ready
        "#,
    );
}

/// Offset and length are reserved, and zero.
#[test]
fn disc_and_flush_have_no_range() {
    for (framing, size) in [
        (Framing::Simple, 28),
        (Framing::Structured, 28),
        (Framing::Extended, 32),
    ] {
        let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 2], Limits::DEFAULT);
        for (offset, length) in [(0, 1), (512, 0), (512, 512)] {
            let by_hand = Request {
                offset,
                length,
                ..Request::flush()
            };
            let refused = machine.submit(by_hand);
            assert_eq!(refused, Err(Misuse::NoRange(by_hand.command)));
        }
        let flush = machine.submit(Request::flush()).unwrap();
        let disc = machine.disconnect().unwrap();
        for (head, command) in [(flush, 3), (disc, 2)] {
            assert_eq!(head.as_bytes().len(), size);
            assert_eq!(head.as_bytes()[4..8], [0, 0, 0, command]);
            assert!(head.as_bytes()[16..].iter().all(|byte| *byte == 0));
            assert_eq!(head.payload_length(), 0);
        }
    }
}
