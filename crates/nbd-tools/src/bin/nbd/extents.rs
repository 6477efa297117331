//! Maps an export with block status requests.

use std::ops::Range;

use anyhow::{Result, bail};
use nbd_codec::client::{Request, TransmissionEvent};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ContextId, Cookie};
use nbd_codec::{Framing, Negotiated};

use crate::align::{length, round_down};
use crate::session::{Replies, Session, detail, explain};

/// An extent and its offset; for narrow and wide extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub offset: u64,
    pub length: u64,
    pub flags: u64,
}

impl Placed {
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Receives extents in order, with the position of their context.
pub type Each<'e> = dyn FnMut(usize, &[Placed]) -> Result<()> + 'e;

/// Passes on the extents of each context in `range` as the server sends them.
///
/// With extended headers a request covers all of the remaining range; without them,
/// as much as 32 bits and the block size permit. Servers may answer for less.
/// `range` begins and ends at a block.
pub fn walk(
    session: &mut Session,
    contexts: &[Context],
    range: Range<u64>,
    each: &mut Each<'_>,
) -> Result<()> {
    let filter = session
        .negotiated()
        .flags
        .contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
        && session.negotiated().framing == Framing::Extended;
    let selected = session.negotiated().contexts.len();
    if filter && selected > 1 {
        // Separate requests for each context: their replies need not cover the
        // same ranges.
        for (index, context) in contexts.iter().enumerate() {
            let each = &mut |_: usize, extents: &[Placed]| each(index, extents);
            walk_together(session, &[*context], true, &range, each)?;
        }
        return Ok(());
    }
    walk_together(session, contexts, false, &range, each)
}

fn walk_together(
    session: &mut Session,
    contexts: &[Context],
    filter: bool,
    range: &Range<u64>,
    each: &mut Each<'_>,
) -> Result<()> {
    let mut status = Status::new(session.negotiated(), contexts, range.clone());
    while status.request(session, filter)? {
        while status.is_running() {
            session.step(&mut status)?;
        }
        status.pass_on(each)?;
    }
    // What was assumed after the last reply.
    status.pass_on(each)
}

/// A metadata context.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    pub id: ContextId,
    /// Whether it is `base:allocation`, in which type 0 promises nothing: it is
    /// true of everything.
    pub allocation: bool,
}

/// A mapping in progress.
pub struct Status {
    contexts: Vec<Context>,
    /// The extents so far, for each context.
    pub extents: Vec<Vec<Placed>>,
    /// Up to where the extents of each context are known.
    known: Vec<u64>,
    range: Range<u64>,
    /// The minimum block size.
    block: u64,
    /// Up to where all contexts were known before the last request.
    requested: Option<u64>,
    running: Option<Cookie>,
    /// What the server reported or did wrong.
    message: String,
    failed: Option<String>,
}

impl Status {
    pub fn new(negotiated: &Negotiated, contexts: &[Context], range: Range<u64>) -> Self {
        Self {
            contexts: contexts.to_vec(),
            extents: vec![Vec::new(); contexts.len()],
            known: vec![range.start; contexts.len()],
            range,
            block: negotiated.constraints().minimum.max(1).into(),
            requested: None,
            running: None,
            message: String::new(),
            failed: None,
        }
    }

    /// Passes on the extents so far, and forgets them.
    fn pass_on(&mut self, each: &mut Each<'_>) -> Result<()> {
        for (index, extents) in self.extents.iter_mut().enumerate() {
            each(index, extents)?;
            extents.clear();
        }
        Ok(())
    }

    /// Sends the next request, with `filter` for these contexts only; returns false
    /// when the map is complete.
    pub fn request(&mut self, session: &mut Session, filter: bool) -> Result<bool> {
        let Some((offset, length)) = self.next(session.negotiated())? else {
            return Ok(false);
        };
        let cookie = if filter {
            let ids: Vec<_> = self.contexts.iter().map(|context| context.id).collect();
            session.block_status_of(&ids, offset, length)?
        } else {
            session.submit(Request::block_status(offset, length), Vec::new())?
        };
        self.running = Some(cookie);
        Ok(true)
    }

    /// Whether a request is in flight.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether an event belongs to the request in flight.
    pub fn is_answered_by(&self, event: &TransmissionEvent<'_>) -> bool {
        match event {
            TransmissionEvent::Extents32 { cookie, .. }
            | TransmissionEvent::Extents64 { cookie, .. }
            | TransmissionEvent::Error { cookie, .. }
            | TransmissionEvent::Fault { cookie, .. }
            | TransmissionEvent::Done { cookie, .. } => self.running == Some(*cookie),
            _ => false,
        }
    }

    /// The offset and length of the next request; `None` when the map is complete.
    pub fn next(&mut self, negotiated: &Negotiated) -> Result<Option<(u64, u64)>> {
        if let (Some(failed), Some(requested)) = (&self.failed, self.requested) {
            bail!("block status at offset {requested} failed: {failed}");
        }
        loop {
            // The replies may have covered different ranges for different contexts.
            let known = self.known.iter().copied().min();
            let known = known.unwrap_or(self.range.end);
            if known >= self.range.end {
                return Ok(None);
            }
            if self.requested == Some(known) {
                // There was no progress.
                self.assume_data(known)?;
                continue;
            }
            self.requested = Some(known);
            // Requests begin at a block, even if an extent ended within it.
            let offset = round_down(known, self.block);
            return Ok(Some((
                offset,
                longest(negotiated, length(&(offset..self.range.end))),
            )));
        }
    }

    /// The server has described a part of a block, up to `known`, and describes no
    /// more of it if it is asked for the block. It cannot be asked for the remainder;
    /// QEMU takes that for data, too.
    fn assume_data(&mut self, known: u64) -> Result<()> {
        let start = round_down(known, self.block);
        let end = self.range.end.min(start.saturating_add(self.block));
        for index in 0..self.contexts.len() {
            if self.known[index] > known {
                continue;
            }
            if start == known || !self.contexts[index].allocation {
                bail!("the server sends no extent for offset {known}");
            }
            let extent = Placed {
                offset: known,
                length: length(&(known..end)),
                flags: 0,
            };
            self.add(self.contexts[index].id, extent);
        }
        Ok(())
    }

    /// Adds an extent, without the part that is known already, and without the part
    /// after the range: extents may exceed the request.
    fn add(&mut self, context: ContextId, extent: Placed) {
        let Some(index) = self.contexts.iter().position(|known| known.id == context) else {
            return;
        };
        let end = extent.end().min(self.range.end);
        let start = extent.offset.max(self.known[index]);
        if start < end {
            self.known[index] = end;
            self.extents[index].push(Placed {
                offset: start,
                length: length(&(start..end)),
                flags: extent.flags,
            });
        }
    }
}

/// The longest range that one request may cover.
fn longest(negotiated: &Negotiated, left: u64) -> u64 {
    if negotiated.framing == Framing::Extended {
        return left;
    }
    let minimum = u64::from(negotiated.constraints().minimum.max(512));
    left.min(round_down(u32::MAX.into(), minimum))
}

impl Replies for Status {
    fn place(&mut self, _: Cookie, _: u64, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()> {
        if let Some((_, text)) = detail(&event) {
            self.message += &text;
        }
        match event {
            TransmissionEvent::Extents32 {
                context,
                mut offset,
                extents,
                ..
            } => {
                for extent in extents {
                    let length = u64::from(extent.length);
                    let flags = u64::from(extent.flags);
                    self.add(
                        context,
                        Placed {
                            offset,
                            length,
                            flags,
                        },
                    );
                    offset = offset.saturating_add(length);
                }
            }
            TransmissionEvent::Extents64 {
                context,
                mut offset,
                extents,
                ..
            } => {
                for extent in extents {
                    let (length, flags) = (extent.length, extent.flags);
                    self.add(
                        context,
                        Placed {
                            offset,
                            length,
                            flags,
                        },
                    );
                    offset = offset.saturating_add(length);
                }
            }
            TransmissionEvent::Done { result, .. } => {
                self.running = None;
                if let Err(error) = result {
                    self.failed = Some(format!("{}{}", explain(error), self.message));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
