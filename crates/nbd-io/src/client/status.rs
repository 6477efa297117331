//! The result of `block_status`.

use std::sync::Arc;

use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::number::ContextId;

/// A metadata context that the server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Context {
    /// Its name, as `base:allocation`.
    pub name: Arc<str>,
    /// Its number on the connection that granted it.
    pub(crate) id: ContextId,
}

/// The status of a range. Which width it has is known from the framing: narrow with
/// structured replies, wide with extended headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockStatus {
    /// Lengths and flags of 32 bits.
    Narrow(Vec<ContextStatus<Extent32>>),
    /// Lengths and flags of 64 bits.
    Wide(Vec<ContextStatus<Extent64>>),
}

/// The status of a range in one metadata context.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextStatus<E> {
    /// The name of the context.
    pub context: Arc<str>,
    /// The extents; the first one begins at the offset of the call, each other one at the end
    /// of the one before it. None is empty. They cover the range from its beginning, maybe
    /// not all of it, and the last one may end after it.
    pub extents: Vec<E>,
}

/// The descriptors of a reply, by the number of their context.
#[derive(Debug)]
pub(crate) enum Extents {
    Narrow(Vec<(ContextId, Vec<Extent32>)>),
    Wide(Vec<(ContextId, Vec<Extent64>)>),
}

impl Extents {
    /// None yet.
    pub(crate) fn new(wide: bool) -> Self {
        if wide {
            Self::Wide(Vec::new())
        } else {
            Self::Narrow(Vec::new())
        }
    }

    pub(crate) fn narrow(&mut self, context: ContextId, extents: Extents32<'_>) {
        if let Self::Narrow(all) = self {
            list(all, context).extend(extents);
        }
    }

    pub(crate) fn wide(&mut self, context: ContextId, extents: Extents64<'_>) {
        if let Self::Wide(all) = self {
            list(all, context).extend(extents);
        }
    }

    /// The status without its first `surplus` bytes, with the names of the contexts.
    pub(crate) fn named(self, contexts: &[Context], surplus: u64) -> BlockStatus {
        match self {
            Self::Narrow(all) => BlockStatus::Narrow(named(all, contexts, surplus)),
            Self::Wide(all) => BlockStatus::Wide(named(all, contexts, surplus)),
        }
    }
}

fn list<E>(all: &mut Vec<(ContextId, Vec<E>)>, context: ContextId) -> &mut Vec<E> {
    let at = all.iter().position(|(id, _)| *id == context);
    let at = at.unwrap_or_else(|| {
        all.push((context, Vec::new()));
        all.len().saturating_sub(1)
    });
    &mut all[at].1
}

fn named<E: Cut>(
    all: Vec<(ContextId, Vec<E>)>,
    contexts: &[Context],
    surplus: u64,
) -> Vec<ContextStatus<E>> {
    let name = |id| contexts.iter().find(|context| context.id == id);
    let all = all.into_iter().filter_map(|(id, mut extents)| {
        cut(&mut extents, surplus);
        let context = name(id)?.name.clone();
        Some(ContextStatus { context, extents })
    });
    all.collect()
}

/// Removes the first `surplus` bytes.
fn cut<E: Cut>(extents: &mut Vec<E>, mut surplus: u64) {
    while surplus > 0 {
        let Some(first) = extents.first_mut() else {
            return;
        };
        let length = first.length();
        if length > surplus {
            first.shorten(surplus);
            return;
        }
        surplus = surplus.saturating_sub(length);
        extents.remove(0);
    }
}

trait Cut {
    fn length(&self) -> u64;
    fn shorten(&mut self, by: u64);
}

impl Cut for Extent32 {
    fn length(&self) -> u64 {
        self.length.into()
    }

    fn shorten(&mut self, by: u64) {
        let by = u32::try_from(by).unwrap_or(u32::MAX);
        self.length = self.length.saturating_sub(by);
    }
}

impl Cut for Extent64 {
    fn length(&self) -> u64 {
        self.length
    }

    fn shorten(&mut self, by: u64) {
        self.length = self.length.saturating_sub(by);
    }
}
