//! A model of the disk: what a server must return, as far as that is known.

use std::ops::Range;

use nbd_codec::wire::number::{Command, Cookie};

use crate::outcome::{Checked, found};
use crate::reply::{Reply, wide};

/// What the commands of a session have done, the latest last. The content from before
/// the session is learned from what is read.
#[derive(Default)]
pub(super) struct Model {
    log: Vec<Entry>,
    /// Commands in flight that change content.
    changing: Vec<(Cookie, Range<u64>)>,
    /// Reads in flight, and those whose content a command in flight may have changed.
    reading: Vec<(Cookie, Range<u64>, bool)>,
}

struct Entry {
    range: Range<u64>,
    content: Content,
    /// The duty that is broken if the content is otherwise.
    duty: &'static str,
}

enum Content {
    Data(Vec<u8>),
    Zeroes,
    /// Each read may return something else.
    Undefined,
}

#[derive(Clone, Copy, PartialEq)]
enum Byte {
    Unknown,
    Undefined,
    Known(u8, &'static str),
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn range_of(reply: &Reply) -> Range<u64> {
    let request = &reply.request;
    request.offset..request.offset.saturating_add(request.length)
}

impl Model {
    /// A request is sent.
    pub(super) fn submit(&mut self, reply: &Reply) {
        let range = range_of(reply);
        match reply.request.command {
            Command::READ | Command::BLOCK_STATUS => {
                let changing = self.changing.iter();
                let unclear = changing
                    .into_iter()
                    .any(|(_, other)| overlap(other, &range));
                self.reading.push((reply.cookie, range, unclear));
            }
            Command::WRITE | Command::TRIM | Command::WRITE_ZEROES => {
                for (_, other, unclear) in &mut self.reading {
                    *unclear |= overlap(other, &range);
                }
                self.changing.push((reply.cookie, range));
            }
            _ => {}
        }
    }

    /// A request is answered.
    pub(super) fn complete(&mut self, reply: &Reply) -> Checked {
        let range = range_of(reply);
        let reading = self.reading.iter();
        let reading = reading.into_iter().position(|one| one.0 == reply.cookie);
        if let Some(index) = reading {
            let (_, _, unclear) = self.reading.remove(index);
            if unclear || !reply.is_success() {
                return Ok(());
            }
            return match reply.request.command {
                Command::READ => self.check(range.start, &reply.data, "R81"),
                _ => self.check_status(reply),
            };
        }
        let changing = self.changing.iter().position(|one| one.0 == reply.cookie);
        let Some(index) = changing else {
            return Ok(());
        };
        self.changing.remove(index);
        let alone = !self
            .changing
            .iter()
            .any(|(_, other)| overlap(other, &range));
        let request = &reply.request;
        let (content, duty) = match (request.command, reply.is_success() && alone) {
            (Command::WRITE, true) => (Content::Data(request.payload.clone()), "R110"),
            (Command::WRITE_ZEROES, true) => (Content::Zeroes, "R130"),
            _ => (Content::Undefined, "R81"),
        };
        self.push(range, content, duty);
        Ok(())
    }

    fn push(&mut self, range: Range<u64>, content: Content, duty: &'static str) {
        if !range.is_empty() {
            self.log.push(Entry {
                range,
                content,
                duty,
            });
        }
    }

    /// Content that was read is what is known; the rest is learned.
    fn check(&mut self, offset: u64, data: &[u8], duty: &'static str) -> Checked {
        let known = self.bytes(offset, data.len());
        for ((byte, known), at) in data.iter().zip(&known).zip(offset..) {
            if let Byte::Known(expected, other) = *known
                && expected != *byte
            {
                let duty = if duty == "M17" { duty } else { other };
                let actual = format!("byte {at} is {byte:#04x} instead of {expected:#04x}");
                return found(duty, actual);
            }
        }
        if known.contains(&Byte::Unknown) && !known.contains(&Byte::Undefined) {
            let end = offset.saturating_add(wide(data.len()));
            self.push(offset..end, Content::Data(data.to_vec()), duty);
        }
        Ok(())
    }

    /// What is reported as zero reads as zeroes.
    fn check_status(&mut self, reply: &Reply) -> Checked {
        /// `NBD_STATE_ZERO`.
        const ZERO: u64 = 2;
        let range = range_of(reply);
        // Only `base:allocation` is selected.
        for (_, extents) in &reply.extents {
            let mut at = range.start;
            for extent in extents {
                let end = at.saturating_add(extent.length).min(range.end);
                let length = usize::try_from(end.saturating_sub(at)).unwrap_or(0);
                if extent.flags & ZERO != 0 && length <= 1 << 20 {
                    self.check(at, &vec![0; length], "M17")?;
                }
                at = end;
            }
        }
        Ok(())
    }

    fn bytes(&self, offset: u64, length: usize) -> Vec<Byte> {
        let mut bytes = vec![Byte::Unknown; length];
        let range = offset..offset.saturating_add(wide(length));
        for entry in self.log.iter().filter(|one| overlap(&one.range, &range)) {
            let from = entry.range.start.max(range.start);
            let to = entry.range.end.min(range.end);
            let index = |at: u64, start: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
            let place = index(from, range.start)..index(to, range.start);
            let place = bytes.get_mut(place).unwrap_or_default();
            match &entry.content {
                Content::Undefined => place.fill(Byte::Undefined),
                Content::Zeroes => place.fill(Byte::Known(0, entry.duty)),
                Content::Data(data) => {
                    let data = data
                        .get(index(from, entry.range.start)..)
                        .unwrap_or_default();
                    for (byte, value) in place.iter_mut().zip(data) {
                        *byte = Byte::Known(*value, entry.duty);
                    }
                }
            }
        }
        bytes
    }
}
