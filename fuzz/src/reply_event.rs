//! Replies as plain values, in which runs and the reference parser are
//! compared.

/// One event of a reply to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEvent {
    Data {
        cookie: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Payload that the caller claimed to have read directly, which did not
    /// exist.
    Reported {
        cookie: u64,
        offset: u64,
        length: u64,
    },
    Hole {
        cookie: u64,
        offset: u64,
        length: u64,
    },
    Status {
        cookie: u64,
        context: u32,
        wide: bool,
        offset: u64,
        extents: Vec<(u64, u64)>,
    },
    Error {
        cookie: u64,
        error: u32,
        offset: Option<u64>,
        message: Option<Vec<u8>>,
    },
    /// A fault that costs its command alone.
    Fault { cookie: u64 },
    /// Zero means success.
    Done { cookie: u64, error: u32 },
}

impl ReplyEvent {
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

/// Appends an event. Content and extents that continue the last event are
/// joined to it, because their pieces depend on how the input arrived.
pub fn push(reply_events: &mut Vec<ReplyEvent>, fact: ReplyEvent) {
    match (reply_events.last_mut(), &fact) {
        (
            Some(ReplyEvent::Data {
                cookie,
                offset,
                bytes,
            }),
            ReplyEvent::Data {
                cookie: next_cookie,
                offset: next_offset,
                bytes: next,
            },
        ) if cookie == next_cookie && offset.saturating_add(bytes.len() as u64) == *next_offset => {
            bytes.extend(next);
        }
        (
            Some(ReplyEvent::Status {
                cookie,
                context,
                wide,
                offset,
                extents,
            }),
            ReplyEvent::Status {
                cookie: next_cookie,
                context: next_context,
                wide: next_wide,
                offset: next_offset,
                extents: next,
            },
        ) if (*cookie, *context, *wide) == (*next_cookie, *next_context, *next_wide)
            && extents
                .iter()
                .fold(*offset, |end, extent| end.saturating_add(extent.0))
                == *next_offset =>
        {
            extents.extend(next);
        }
        _ => reply_events.push(fact),
    }
}
