//! Ranges of zeroes and data, aligned to a block size.

use std::ops::Range;

/// The last multiple of `block` up to `number`.
pub fn round_down(number: u64, block: u64) -> u64 {
    number.saturating_sub(number.checked_rem(block).unwrap_or(0))
}

/// How many bytes are in a range.
pub fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// A length or an offset in memory. Where it does not fit, indexing with it fails.
pub fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Splits `whole` into aligned parts that are zeroes (true) or data: ranges of
/// zeroes shrink to the alignment, data grows. `zeroes` are in order.
pub fn aligned(
    zeroes: impl Iterator<Item = Range<u64>>,
    whole: Range<u64>,
    alignment: u64,
) -> Vec<(Range<u64>, bool)> {
    let mut parts = Vec::new();
    let mut at = whole.start;
    for zero in joined(zeroes) {
        // There may be no multiple of it below 2^64.
        let start = zero.start.checked_next_multiple_of(alignment);
        let start = start.unwrap_or(u64::MAX);
        let end = if zero.end == whole.end {
            zero.end
        } else {
            round_down(zero.end, alignment)
        };
        if start >= end {
            continue;
        }
        if at < start {
            parts.push((at..start, false));
        }
        parts.push((start..end, true));
        at = end;
    }
    if at < whole.end {
        parts.push((at..whole.end, false));
    }
    parts
}

/// Joins adjacent ranges, so that blocks at their boundary are zeroes, too.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_shrink_to_the_alignment() {
        let align = |zeroes: &[(u64, u64)], whole, alignment| {
            aligned(
                zeroes.iter().map(|(start, end)| *start..*end),
                whole,
                alignment,
            )
        };
        let (data, zero) = (false, true);
        assert_eq!(align(&[], 0..100, 1), [(0..100, data)]);
        assert_eq!(align(&[], 5..5, 1), []);
        let all = align(&[(0, 100)], 0..100, 512);
        assert_eq!(all, [(0..100, zero)]);
        let inside = align(&[(10, 2000)], 0..3000, 512);
        assert_eq!(
            inside,
            [(0..512, data), (512..1536, zero), (1536..3000, data)]
        );
        let touching = align(&[(10, 1000), (1000, 2000)], 0..3000, 512);
        assert_eq!(touching, inside);
        let small_and_last = align(&[(10, 20), (2000, 3000)], 0..3000, 512);
        assert_eq!(small_and_last, [(0..2048, data), (2048..3000, zero)]);
        let end = u64::MAX - 100;
        let last = align(&[(end - 10, end)], 0..end, 512);
        assert_eq!(last, [(0..end, data)]);
        let first = align(&[(512, 1024), (2000, 2100)], 512..2512, 512);
        assert_eq!(first, [(512..1024, zero), (1024..2512, data)]);
    }
}
