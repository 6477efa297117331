//! Ranges in devices that are made of chunks.

use std::ops::Range;

/// Splits a range of a device at the multiples of `size` bytes: for each chunk its
/// number, and the part of it that is in the range. `size` is not zero.
///
/// ```
/// use nbd_io::server::chunks;
///
/// let parts: Vec<_> = chunks(1000, 100, 512).collect();
/// assert_eq!(parts, [(1, 488..512), (2, 0..76)]);
/// ```
pub fn chunks(
    offset: u64,
    length: u64,
    size: u32,
) -> impl Iterator<Item = (u64, Range<usize>)> + Clone {
    let size = u64::from(size.max(1));
    let end = offset.saturating_add(length);
    (offset / size..end.div_ceil(size)).map(move |chunk| {
        let start = chunk.saturating_mul(size);
        let within = |at: u64| {
            let at = at.saturating_sub(start).min(size);
            usize::try_from(at).unwrap_or(usize::MAX)
        };
        (chunk, within(offset)..within(end))
    })
}
