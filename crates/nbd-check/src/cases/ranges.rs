//! Ranges: past the end of the export, and not aligned.

use nbd_codec::Framing;
use nbd_codec::wire::number::{Command, ErrorValue as Error};

use super::commands::{KINDS, as_size};
use crate::case::{Cases, Need, for_each_framing};
use crate::request::{Request, trap};
use crate::trial::Trial;

pub(super) fn add(cases: &mut Cases) {
    for_each_framing(|framing, short| {
        ranges(cases, framing, short);
        unaligned(cases, framing, short);
    });
}

/// Ranges past the end of the export.
fn ranges(cases: &mut Cases, framing: Framing, short: &str) {
    for kind in KINDS.iter().filter(|kind| kind.is_in(framing)) {
        let (id, error, writes) = match kind.command {
            Command::READ | Command::TRIM => ("E3", Error::EINVAL, kind.writes),
            Command::WRITE => ("E1", Error::ENOSPC, true),
            Command::WRITE_ZEROES => ("R139", Error::ENOSPC, true),
            Command::CACHE => ("S25", Error::EINVAL, false),
            Command::BLOCK_STATUS => ("R159", Error::EINVAL, false),
            _ => continue,
        };
        for edge in Edge::ALL {
            if edge == Edge::WholeAndMore && framing != Framing::Extended {
                continue;
            }
            let mut needs = kind.needs(framing);
            if writes {
                needs.push(Need::WritesRefused);
            }
            cases
                .add(
                    id,
                    format!("{short}-{}-{}", kind.name, edge.name()),
                    format!("{} {}", kind.command, edge.describe()),
                    format!("{error}; then READ succeeds"),
                )
                .needs(&needs)
                .run(move |t| {
                    let mut session = kind.session(t, framing)?;
                    let (offset, length) = edge.range(t);
                    let request = match kind.command {
                        Command::WRITE if length > 1 << 20 => return Ok(()),
                        Command::WRITE => Request::write(offset, trap(framing, as_size(length))),
                        command => Request::new(command, offset, length),
                    };
                    // Both documents name an error for some commands only.
                    let errors: &[Error] = match kind.command {
                        Command::CACHE => &[Error::EINVAL, Error::ENOSPC, Error::ENOTSUP],
                        Command::WRITE_ZEROES if edge == Edge::WholeAndMore => {
                            &[Error::ENOSPC, Error::EINVAL, Error::EOVERFLOW]
                        }
                        Command::TRIM | Command::BLOCK_STATUS if edge == Edge::WholeAndMore => {
                            &[Error::EINVAL, Error::EOVERFLOW]
                        }
                        Command::READ if edge == Edge::WholeAndMore => {
                            &[Error::EINVAL, Error::EOVERFLOW]
                        }
                        _ => &[error],
                    };
                    t.refuses(&mut session, request, id, errors)
                });
        }
    }
}

/// A range that is not within the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    AtTheEnd,
    AcrossTheEnd,
    At32Bits,
    At63Bits,
    LastUnit,
    WholeAndMore,
}

impl Edge {
    const ALL: [Self; 6] = [
        Self::AtTheEnd,
        Self::AcrossTheEnd,
        Self::At32Bits,
        Self::At63Bits,
        Self::LastUnit,
        Self::WholeAndMore,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AtTheEnd => "at-the-end",
            Self::AcrossTheEnd => "across-the-end",
            Self::At32Bits => "at-2-32-above",
            Self::At63Bits => "at-2-63",
            Self::LastUnit => "wraps-around",
            Self::WholeAndMore => "length-2-63",
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::AtTheEnd => "at the end of the export",
            Self::AcrossTheEnd => "across the end of the export",
            Self::At32Bits => "2^32 bytes past the end of the export",
            Self::At63Bits => "at offset 2^63",
            Self::LastUnit => "whose offset and length add up to 2^64",
            Self::WholeAndMore => "of length 2^63",
        }
    }

    /// Offset and length, multiples of the minimum block size.
    fn range(self, t: &Trial<'_>) -> (u64, u64) {
        let unit = t.profile.unit();
        let end = t.profile.size() / unit * unit;
        let past = if end < t.profile.size() {
            end + unit
        } else {
            end
        };
        match self {
            Self::AtTheEnd => (past, unit),
            Self::AcrossTheEnd => (end - unit, 2 * unit + past - end),
            Self::At32Bits => (past.saturating_add(1 << 32), unit),
            Self::At63Bits => ((1 << 63) - unit, 2 * unit),
            Self::LastUnit => (0u64.wrapping_sub(unit), unit),
            Self::WholeAndMore => (0, 1 << 63),
        }
    }
}

/// Requests that are not aligned to the minimum block size.
fn unaligned(cases: &mut Cases, framing: Framing, short: &str) {
    for kind in KINDS.iter().filter(|kind| kind.is_in(framing)) {
        if kind.command == Command::FLUSH {
            continue;
        }
        for (name, shift, shorter) in [("offset", 1, 0), ("length", 0, 1), ("both", 1, 1)] {
            let mut needs = kind.needs(framing);
            needs.push(Need::Blocks);
            let id = match kind.command {
                Command::READ | Command::WRITE => "E4",
                _ => "S25",
            };
            cases
                .add(
                    id,
                    format!("{short}-{}-unaligned-{name}", kind.name),
                    format!("{} that is not aligned", kind.command),
                    "EINVAL; then READ succeeds",
                )
                .needs(&needs)
                .run(move |t| {
                    let mut session = kind.session(t, framing)?;
                    let mut request = kind.request(t);
                    request.offset += shift;
                    request.length -= shorter;
                    if kind.command == Command::WRITE {
                        request.payload = trap(framing, as_size(request.length));
                    }
                    t.refuses(&mut session, request, id, &[Error::EINVAL])
                });
        }
    }
}
