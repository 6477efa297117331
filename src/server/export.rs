//! What the caller says of an export, and what of it is advertised.

use crate::error::Misuse;
use crate::features;
use crate::negotiated::{
    Framing, HandshakeStyle, Negotiated, SelectedContext, SelectedContexts, StatusWidth,
};
use crate::wire::flags::TransmissionFlags;
use crate::wire::option_reply::BlockSizes;
use crate::wire::text::Text;

/// An export as the caller describes it, whenever a client asks about it.
///
/// ```
/// use nbd_codec::server::{Export, MetaContext};
/// use nbd_codec::wire::flags::TransmissionFlags;
///
/// const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];
///
/// let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_TRIM;
/// let mut export = Export::new("disk", 1 << 30, flags);
/// export.description = "the disk with the holes";
/// export.contexts = CONTEXTS;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Export<'a> {
    /// The caller's number for it, zero if none is given:
    /// [`HandshakeEvent::Ready`](super::HandshakeEvent::Ready) has it.
    pub id: usize,
    /// Its name, as it is listed; a client may know it by others.
    pub name: &'a str,
    /// For people; may be empty.
    pub description: &'a str,
    /// Size in bytes.
    pub size: u64,
    /// What it can do. What is advertised of it depends on what was agreed on:
    /// [`Negotiated::flags`] has the flags that hold.
    pub flags: TransmissionFlags,
    /// The size constraints; they are enforced, whether the client asked for
    /// them or not. Default: [`BlockSizes::DEFAULT`].
    pub block_sizes: BlockSizes,
    /// The metadata contexts. The place of a context in this list is its
    /// [`ContextId`](crate::wire::number::ContextId) during transmission, so
    /// an export always has the same list; at most [`SelectedContexts::CAPACITY`].
    pub contexts: &'a [MetaContext<'a>],
    /// Only with TLS.
    pub requires_tls: bool,
    /// Only with extended headers.
    pub requires_extended: bool,
    /// Only for clients that ask for the block sizes, and so promise to keep
    /// to them.
    pub requires_block_sizes: bool,
}

impl<'a> Export<'a> {
    /// An export without description, contexts and requirements.
    #[must_use]
    pub const fn new(name: &'a str, size: u64, flags: TransmissionFlags) -> Self {
        Self {
            id: 0,
            name,
            description: "",
            size,
            flags,
            block_sizes: BlockSizes::DEFAULT,
            contexts: &[],
            requires_tls: false,
            requires_extended: false,
            requires_block_sizes: false,
        }
    }

    /// Whether it can be told to a client as it is.
    pub(super) fn check(&self) -> Result<(), Misuse> {
        features::require(
            features::STRUCTURED || self.contexts.is_empty(),
            "structured",
        )?;
        features::require(features::EXTENDED || !self.requires_extended, "extended")?;
        features::require(features::TLS || !self.requires_tls, "tls")?;
        let resize = self.flags.contains(TransmissionFlags::SEND_RESIZE);
        features::require(features::RESIZE || !resize, "resize")?;
        Text::from(self.name).to_str()?;
        Text::from(self.description).to_str()?;
        if !self.block_sizes.is_valid() {
            return Err(Misuse::BlockSizes(self.block_sizes));
        }
        if self.contexts.len() > SelectedContexts::CAPACITY {
            return Err(Misuse::TooManyContexts);
        }
        self.contexts.iter().try_for_each(MetaContext::check)
    }

    /// What holds on a connection of oldstyle: the one value that is advertised,
    /// and against which requests are checked.
    pub(super) fn oldstyle(&self) -> Negotiated {
        let framing = Framing::Simple;
        let flags = self.effective_flags(framing, false);
        Negotiated {
            block_sizes: Some(self.block_sizes),
            style: HandshakeStyle::Oldstyle,
            ..Negotiated::new(framing, self.size, flags)
        }
    }

    /// Whether a context that was selected is one of its own.
    pub(super) fn has(&self, selected: SelectedContext) -> bool {
        usize::try_from(selected.id.0)
            .ok()
            .and_then(|place| self.contexts.get(place))
            .is_some_and(|own| own.width == selected.width)
    }

    /// The flags that are advertised, and that hold, with what was agreed on;
    /// `contexts`: any context was selected.
    pub(super) fn effective_flags(&self, framing: Framing, contexts: bool) -> TransmissionFlags {
        let mut without = TransmissionFlags::NONE;
        // A server with DF must serve 64 KiB in one chunk.
        if framing.is_simple() || self.block_sizes.maximum < 1 << 16 {
            without |= TransmissionFlags::SEND_DF;
        }
        if !self.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            without |= TransmissionFlags::SEND_FAST_ZERO;
        }
        if !framing.is_extended() || !contexts {
            without |= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        }
        let known = self.flags & TransmissionFlags::KNOWN;
        TransmissionFlags::HAS_FLAGS | known.difference(without)
    }
}

/// A metadata context that an export has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetaContext<'a> {
    /// Its name, `namespace:leaf`.
    pub name: &'a str,
    /// How many bits of status it has. A wide one is granted with extended
    /// headers only.
    pub width: StatusWidth,
}

impl<'a> MetaContext<'a> {
    /// A context of at most 32 bits of status, as `base:allocation`.
    #[must_use]
    pub const fn narrow(name: &'a str) -> Self {
        Self {
            name,
            width: StatusWidth::Narrow,
        }
    }

    /// A context of more than 32 bits of status.
    #[must_use]
    pub const fn wide(name: &'a str) -> Self {
        Self {
            name,
            width: StatusWidth::Wide,
        }
    }

    fn check(&self) -> Result<(), Misuse> {
        let name = Text::from(self.name);
        name.to_str()?;
        let Some((namespace, leaf)) = split(name) else {
            return Err(Misuse::ContextName);
        };
        let wide_base = namespace == b"base" && self.width == StatusWidth::Wide;
        if leaf.is_empty() || wide_base {
            Err(Misuse::ContextName)
        } else {
            Ok(())
        }
    }
}

/// Splits a context's name or a query into a namespace, which is printable and
/// not empty, and what follows its colon.
fn split(text: Text<'_>) -> Option<(&[u8], &[u8])> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let (namespace, rest) = bytes.split_at_checked(colon)?;
    let printable = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    let good = !namespace.is_empty() && namespace.iter().all(printable);
    good.then(|| (namespace, rest.get(1..).unwrap_or_default()))
}

/// Whether a query of a client has the form of one: a namespace and a colon.
pub(super) fn is_query(query: Text<'_>) -> bool {
    query.to_str().is_ok() && split(query).is_some()
}

/// The front of a text that a client may be sent: at most `maximum` bytes, and
/// no `NUL`.
pub(super) fn cap(text: &str, maximum: usize) -> &str {
    let nul = text.bytes().position(|byte| byte == 0);
    let mut end = nul.unwrap_or(text.len()).min(maximum);
    // At most three steps: no character is longer than four bytes.
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}
