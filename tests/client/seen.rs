//! What a state machine reported, kept and written down for comparison.

use std::convert::Infallible;
use std::fmt;

use nbd_codec::client::TransmissionEvent;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::number::{ContextId, Cookie};
use nbd_codec::{Content, Step};

/// One event or content, no longer borrowed, and joined with its neighbours
/// where only the fragmentation of the input separates them.
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
    /// A step of any state machine; `event` converts its event, `number` tells
    /// which command a cookie belongs to.
    pub(crate) fn step<E>(
        step: Step<E, &[u8]>,
        event: impl FnOnce(E) -> Self,
        number: impl Fn(Cookie) -> usize,
    ) -> Step<Self, Infallible> {
        match step {
            Step::Event(seen) => Step::Event(event(seen)),
            Step::Content(content) => Step::Event(Self::content(content, number)),
            Step::Transmit => Step::Transmit,
            Step::Read(n) => Step::Read(n),
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => Step::ReadPayload {
                cookie,
                offset,
                length,
            },
            Step::StartTls => Step::StartTls,
            Step::Finished => Step::Finished,
        }
    }

    fn content(content: Content<&[u8]>, number: impl Fn(Cookie) -> usize) -> Self {
        assert!(content.length() > 0, "content of no bytes");
        let command = number(content.cookie());
        match content {
            Content::Data { offset, data, .. } => Self::Data {
                command,
                offset,
                data: data.to_vec(),
            },
            Content::Hole { offset, length, .. } => {
                Self::Line(format!("#{command} hole {offset} +{length}"))
            }
        }
    }

    /// A transmission event.
    pub(crate) fn of(event: TransmissionEvent<'_>, number: impl Fn(Cookie) -> usize) -> Self {
        let (cookie, context, offset, wide, extents) = match event {
            TransmissionEvent::Extents32 {
                cookie,
                context,
                offset,
                extents,
            } => (
                cookie,
                context,
                offset,
                false,
                extents.map(Extent64::from).collect(),
            ),
            TransmissionEvent::Extents64 {
                cookie,
                context,
                offset,
                extents,
            } => (cookie, context, offset, true, extents.collect::<Vec<_>>()),
            TransmissionEvent::Error {
                cookie,
                error,
                offset,
                message,
            } => {
                let place = offset.map_or(String::new(), |offset| format!(" @{offset}"));
                let text = message.map_or("discarded".to_owned(), |text| format!("{text:?}"));
                return Self::Line(format!("#{} error {error}{place} {text}", number(cookie)));
            }
            TransmissionEvent::Done { cookie, result } => {
                let error = result.map_or_else(|error| format!(" {error}"), |()| String::new());
                return Self::Line(format!("#{} done{error}", number(cookie)));
            }
            TransmissionEvent::Fault { cookie, error } => {
                let number = number(cookie);
                let error =
                    format!("{error:?}").replace(&format!("{cookie:?}"), &format!("#{number}"));
                return Self::Line(format!("#{number} fault {error}"));
            }
            other => panic!("an event without notation: {other:?}"),
        };
        assert!(!extents.is_empty(), "a batch without extents");
        Self::Extents {
            command: number(cookie),
            context,
            offset,
            wide,
            extents,
        }
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

/// Whether `part` is a prefix of `whole`; its last data or extents may be a
/// prefix, too.
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
