//! Sizes of what is kept for each command and handed around for each message.
//! They are part of what a caller plans its memory with: a change is a
//! decision.

#![cfg(target_pointer_width = "64")]

use std::mem::size_of;

use nbd_codec::client::connect::{self, Connect};
use nbd_codec::client::handshake::{self, Handshake};
use nbd_codec::client::{Event, Request, RequestHeader, Slot, Transmission};
use nbd_codec::wire::DecodeError;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::{Error, Limits, Misuse, Need, Negotiated, SelectedContexts, Violation};

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

sizes! {
    for_each_command {
        Slot = 64;
        Request = 24;
        RequestHeader = 48;
        Result<RequestHeader, Misuse> = 48;
    }
    for_each_message {
        TransmissionEvent<'static> = 48;
        Option<TransmissionEvent<'static>> = 48;
        Result<Option<TransmissionEvent<'static>>, Error> = 48;
        HandshakeEvent<'static> = 40;
        ConnectEvent<'static> = 40;
        Need = 32;
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
        Transmission<[Slot; 0]> = 336;
        Transmission<[Slot; 16]> = 1360;
        Handshake = 304;
        Connector<'static> = 384;
    }
}
