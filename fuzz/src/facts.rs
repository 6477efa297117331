//! What a session told its caller, in plain numbers: the language in which
//! the machines, run in different ways, and the reader are compared.

/// Something the server said about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    Data {
        cookie: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Payload that was only reported, with `advance`, and never existed.
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
    /// Zero is success.
    Done { cookie: u64, error: u32 },
}

impl Fact {
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

/// Appends a fact; what only continues the last one is joined to it, because
/// how much of it comes at once depends on how the input was cut.
pub fn push(facts: &mut Vec<Fact>, fact: Fact) {
    match (facts.last_mut(), &fact) {
        (
            Some(Fact::Data {
                cookie,
                offset,
                bytes,
            }),
            Fact::Data {
                cookie: next_cookie,
                offset: next_offset,
                bytes: next,
            },
        ) if cookie == next_cookie && offset.saturating_add(bytes.len() as u64) == *next_offset => {
            bytes.extend(next);
        }
        (
            Some(Fact::Status {
                cookie,
                context,
                wide,
                offset,
                extents,
            }),
            Fact::Status {
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
        _ => facts.push(fact),
    }
}
