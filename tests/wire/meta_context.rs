//! Names and flags of well-known metadata contexts.

use std::fmt::Debug;

use nbd_codec::wire::EncodeError;
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::meta_context::{
    AllocationFlags, BASE_ALLOCATION, DirtyBitmapFlags, DirtyBitmapName, QEMU_ALLOCATION_DEPTH,
    QEMU_DIRTY_BITMAP,
};

use crate::support::encoded;

#[test]
fn names() {
    assert_eq!(BASE_ALLOCATION, "base:allocation");
    assert_eq!(QEMU_ALLOCATION_DEPTH, "qemu:allocation-depth");
    assert_eq!(QEMU_DIRTY_BITMAP, "qemu:dirty-bitmap:");
}

#[test]
fn names_of_dirty_bitmaps() {
    for (bitmap, context) in [
        ("", "qemu:dirty-bitmap:"),
        ("b0", "qemu:dirty-bitmap:b0"),
        ("a:b c", "qemu:dirty-bitmap:a:b c"),
        ("größe", "qemu:dirty-bitmap:größe"),
    ] {
        let name = DirtyBitmapName::new(bitmap);
        assert_eq!(name.to_string(), context);
        assert_eq!(encoded(|sink| name.encode(sink)), context.as_bytes());
        assert_eq!(DirtyBitmapName::parse(context), Some(name));
        assert_eq!(name.bitmap(), bitmap);
    }
    for other in [
        "",
        "b0",
        "qemu:dirty-bitmap",
        "QEMU:dirty-bitmap:b0",
        "base:allocation",
    ] {
        assert_eq!(DirtyBitmapName::parse(other), None, "{other}");
    }
    let mut buffer = [7; 19];
    let encoded = DirtyBitmapName::new("b0").encode(&mut &mut buffer[..]);
    assert_eq!(encoded, Err(EncodeError::NoRoom { needed: 20 }));
    assert_eq!(buffer, [7; 19], "nothing was written");
}

/// Flags of an extent, of either width, as flags of its context.
fn check<F: From<u32> + TryFrom<u64, Error: Debug> + PartialEq + Debug>(table: &[(u32, F)]) {
    for (flags, expected) in table {
        let narrow = Extent32 {
            length: 1,
            flags: *flags,
        };
        let wide = Extent64::from(narrow);
        assert_eq!(F::from(narrow.flags), *expected);
        assert_eq!(F::try_from(wide.flags).unwrap(), *expected);
        for bit in 32..64 {
            let flags = wide.flags | 1 << bit;
            assert!(F::try_from(flags).is_err(), "bit {bit} is not dropped");
        }
    }
}

#[test]
fn flags_of_extents() {
    type A = AllocationFlags;
    check(&[
        (0, A::NONE),
        (1, A::HOLE),
        (2, A::ZERO),
        (3, A::HOLE | A::ZERO),
        (0x8000_0001, AllocationFlags(0x8000_0001)),
    ]);
    check(&[
        (0, DirtyBitmapFlags::NONE),
        (1, DirtyBitmapFlags::DIRTY),
        (u32::MAX, DirtyBitmapFlags(u32::MAX)),
    ]);
}
