//! Sizes of what is kept for each command and passed for each message. Callers
//! plan their memory with them: a change is a decision.

#![cfg(target_pointer_width = "64")]

use std::mem::size_of;

use nbd_codec::client::{
    ConnectEvent, Connector, Handshake, HandshakeEvent, Request, RequestHeader, Slot, Transmission,
    TransmissionEvent,
};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::DecodeError;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::{Content, Error, Limits, Misuse, Negotiated, SelectedContexts, Step, Violation};

type TransmissionStep<'i> = Step<TransmissionEvent<'i>, &'i [u8]>;

macro_rules! sizes {
    ($($name:ident { $($kind:ty = $size:expr;)* })*) => {
        $(#[test]
        fn $name() {
            let seen = [$((stringify!($kind), size_of::<$kind>())),*];
            let due = [$((stringify!($kind), $size)),*];
            assert_eq!(seen, due);
        })*
    };
}

/// With `std` a session draws its seed when it needs one; until then it has none.
const UNSEEDED: usize = if cfg!(feature = "std") { 8 } else { 0 };

sizes! {
    for_each_command {
        Slot = 64;
        Request = 24;
        RequestHeader = 48;
        Result<RequestHeader, Misuse> = 48;
    }
    for_each_message {
        TransmissionEvent<'static> = 48;
        Content<&[u8]> = 32;
        // A tag of its own: 8 bytes more, and cheaper than one in the event's.
        TransmissionStep<'static> = 56;
        Result<TransmissionStep<'static>, Error> = 56;
        HandshakeEvent<'static> = 40;
        Result<Step<HandshakeEvent<'static>, &[u8]>, Error> = 48;
        ConnectEvent<'static> = 40;
        Result<Step<ConnectEvent<'static>, &[u8]>, Error> = 48;
        Extent32 = 8;
        Extent64 = 16;
        Extents32<'static> = 16;
        Extents64<'static> = 16;
    }
    errors {
        DecodeError = 32;
        Violation = 16;
        Error = 32;
        Misuse = 32;
    }
    for_each_connection {
        Limits = 24;
        SelectedContexts = 136;
        Negotiated = 168;
        Transmission<[Slot; 0]> = 344 + UNSEEDED;
        Transmission<[Slot; 16]> = 1368 + UNSEEDED;
        Handshake = 304;
        Connector<'static> = 384;
        Inbox<[u8; 0]> = 24;
    }
}
