//! Rules of the specification that no other test covers.

use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::{Framing, Limits, Misuse};

use super::machines::{export, manual};

/// Only EXPORT_NAME has reserved zeroes: after GO comes the first reply, even
/// where the client did not set NO_ZEROES.
#[test]
fn no_zeroes_follow_go() {
    manual(
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
            let request = Request {
                offset,
                length,
                ..Request::flush()
            };
            let refused = machine.submit(request);
            assert_eq!(refused, Err(Misuse::NoRange(request.command)));
        }
        let flush = machine.submit(Request::flush()).unwrap();
        let disc = machine.disconnect().unwrap();
        for (header, command) in [(flush, 3), (disc, 2)] {
            assert_eq!(header.as_bytes().len(), size);
            assert_eq!(header.as_bytes()[4..8], [0, 0, 0, command]);
            assert!(header.as_bytes()[16..].iter().all(|byte| *byte == 0));
            assert_eq!(header.payload_length(), 0);
        }
    }
}
