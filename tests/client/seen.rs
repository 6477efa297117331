//! What a machine reported, kept and written down for comparison.

use std::fmt;

use nbd_codec::client::Event;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::number::{ContextId, Cookie};

/// One event, no longer borrowed, and joined with its neighbours where only
/// the fragmentation of the input has parted them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Data {
        command: usize,
        offset: u64,
        data: Vec<u8>,
    },
    Extents {
        command: usize,
        context: ContextId,
        offset: u64,
        wide: bool,
        extents: Vec<Extent64>,
    },
    Line(String),
}

impl Seen {
    /// A transmission event; `number` tells which command a cookie belongs to.
    pub(crate) fn of(event: Event<'_>, number: impl Fn(Cookie) -> usize) -> Self {
        Self::Line(match event {
            Event::Data {
                cookie,
                offset,
                data,
            } => {
                assert!(!data.is_empty(), "a fragment without data");
                return Self::Data {
                    command: number(cookie),
                    offset,
                    data: data.to_vec(),
                };
            }
            Event::Extents32 {
                cookie,
                context,
                offset,
                extents,
            } => {
                assert!(!extents.is_empty(), "a batch without extents");
                return Self::Extents {
                    command: number(cookie),
                    context,
                    offset,
                    wide: false,
                    extents: extents.map(Extent64::from).collect(),
                };
            }
            Event::Extents64 {
                cookie,
                context,
                offset,
                extents,
            } => {
                assert!(!extents.is_empty(), "a batch without extents");
                return Self::Extents {
                    command: number(cookie),
                    context,
                    offset,
                    wide: true,
                    extents: extents.collect(),
                };
            }
            Event::Hole {
                cookie,
                offset,
                length,
            } => format!("#{} hole {offset} +{length}", number(cookie)),
            Event::Error {
                cookie,
                error,
                offset,
                message,
            } => {
                let place = offset.map_or(String::new(), |offset| format!(" @{offset}"));
                let text = message.map_or("skipped".to_owned(), |text| format!("{text:?}"));
                format!("#{} error {error}{place} {text}", number(cookie))
            }
            Event::Done { cookie, result } => match result {
                Ok(()) => format!("#{} done", number(cookie)),
                Err(error) => format!("#{} done {error}", number(cookie)),
            },
            other => panic!("an event without notation: {other:?}"),
        })
    }

    /// Appends an event, or joins it to the one before.
    pub(crate) fn push(self, all: &mut Vec<Self>) {
        match (all.last_mut(), &self) {
            (
                Some(Self::Data {
                    command,
                    offset,
                    data,
                }),
                Self::Data {
                    command: c,
                    offset: o,
                    data: more,
                },
            ) if command == c && *offset + data.len() as u64 == *o => data.extend(more),
            (
                Some(Self::Extents {
                    command,
                    context,
                    offset,
                    extents,
                    ..
                }),
                Self::Extents {
                    command: c,
                    context: x,
                    offset: o,
                    extents: more,
                    ..
                },
            ) if command == c && context == x && end(*offset, extents) == *o => {
                extents.extend(more);
            }
            _ => all.push(self),
        }
    }
}

fn end(offset: u64, extents: &[Extent64]) -> u64 {
    let add = |at: u64, extent: &Extent64| at.saturating_add(extent.length);
    extents.iter().fold(offset, add)
}

/// Whether `part` is what `whole` begins with; of data and extents a beginning
/// is enough.
pub(crate) fn begins(whole: &[Seen], part: &[Seen]) -> bool {
    let Some((last, before)) = part.split_last() else {
        return true;
    };
    whole.starts_with(before)
        && match (whole.get(before.len()), last) {
            (
                Some(Seen::Data {
                    command,
                    offset,
                    data,
                }),
                Seen::Data {
                    command: c,
                    offset: o,
                    data: d,
                },
            ) => command == c && offset == o && data.starts_with(d),
            (
                Some(Seen::Extents {
                    command,
                    context,
                    offset,
                    wide,
                    extents,
                }),
                Seen::Extents {
                    command: c,
                    context: x,
                    offset: o,
                    wide: w,
                    extents: e,
                },
            ) => (command, context, offset, wide) == (c, x, o, w) && extents.starts_with(e),
            (Some(whole), last) => whole == last,
            (None, _) => false,
        }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => f.write_str(line),
            Self::Data {
                command,
                offset,
                data,
            } => {
                write!(f, "#{command} data {offset}")?;
                for run in data.chunk_by(|a, b| a == b) {
                    write!(f, " {:02x}*{}", run[0], run.len())?;
                }
                Ok(())
            }
            Self::Extents {
                command,
                context,
                offset,
                wide,
                extents,
            } => {
                let width = if *wide { "wide" } else { "narrow" };
                write!(f, "#{command} {width} {context} @{offset}")?;
                for extent in extents {
                    write!(f, " {}/{:#x}", extent.length, extent.flags)?;
                }
                Ok(())
            }
        }
    }
}
