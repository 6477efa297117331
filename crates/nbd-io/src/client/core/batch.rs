//! Outgoing commands.

use std::io::IoSlice;

use bytes::Bytes;

use crate::client::Payload;

/// Payloads up to this length are copied after their headers. A copy of 8 KiB takes less time
/// than another element of a vectored write.
const COPY: usize = 8 << 10;

/// Room that is kept for the next batch, in bytes.
const KEEP: usize = 256 << 10;

/// Slices of one vectored write.
pub(crate) const SLICES: usize = 32;

/// Messages to write, each whole and in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Headers and short payloads.
    bytes: Vec<u8>,
    /// Long payloads, each with the position in `bytes` that it comes before.
    long: Vec<(usize, Bytes)>,
    written: usize,
    length: usize,
}

impl Batch {
    /// Whether all of it was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.written >= self.length
    }

    /// Adds a message, or a part of one.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.length = self.length.saturating_add(bytes.len());
    }

    /// Adds the payload of the message before.
    pub(crate) fn push_payload(&mut self, payload: &Payload<'_>) {
        let bytes = payload.as_ref();
        if bytes.len() <= COPY {
            return self.push(bytes);
        }
        self.length = self.length.saturating_add(bytes.len());
        self.long.push((self.bytes.len(), payload.to_bytes()));
    }

    /// What is to be written, as far as there are slices for it.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        let mut from = 0;
        let ends = self.long.iter().map(|(at, bytes)| (*at, &bytes[..]));
        let last: (usize, &[u8]) = (self.bytes.len(), &[]);
        for (at, payload) in ends.chain([last]) {
            let short = self.bytes.get(from..at).unwrap_or_default();
            from = at;
            for part in [short, payload] {
                let rest = part.get(skip..).unwrap_or_default();
                skip = skip.saturating_sub(part.len());
                if rest.is_empty() {
                    continue;
                }
                let Some(slice) = slices.get_mut(count) else {
                    return count;
                };
                *slice = IoSlice::new(rest);
                count += 1;
            }
        }
        count
    }

    /// `n` bytes were written.
    pub(crate) fn advance(&mut self, n: usize) {
        self.written = self.written.saturating_add(n);
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEEP);
            self.long.clear();
            (self.written, self.length) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is written at a time, the bytes and their order are the same.
    #[test]
    fn any_lengths_of_writes_send_the_same_bytes() {
        let long = Bytes::from(vec![7; COPY + 1]);
        let mut expected = Vec::new();
        for step in [1, 2, 3, 1000, COPY, usize::MAX] {
            let mut batch = Batch::default();
            expected.clear();
            for n in 0..SLICES as u8 {
                batch.push(&[n; 28]);
                expected.extend([n; 28]);
                if n % 3 == 0 {
                    batch.push_payload(&Payload::Owned(long.clone()));
                    expected.extend_from_slice(&long);
                } else if n % 3 == 1 {
                    batch.push_payload(&Payload::Borrowed(&[n; 5]));
                    expected.extend([n; 5]);
                }
            }
            let mut sent = Vec::new();
            while !batch.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = batch.slices(&mut slices);
                let mut left = step;
                for slice in slices.iter().take(count) {
                    let n = slice.len().min(left);
                    sent.extend_from_slice(&slice[..n]);
                    left -= n;
                }
                batch.advance(step - left);
            }
            assert!(sent == expected, "{step} bytes at a time");
        }
    }
}
