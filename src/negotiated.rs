//! What a handshake yields, and a transmission starts from.

use core::fmt;

use crate::error::Misuse;
use crate::features;
use crate::wire::flags::TransmissionFlags;
use crate::wire::number::ContextId;
use crate::wire::option_reply::BlockSizes;
use crate::wire::text::Text;

/// The message headers of the transmission phase, from least to most able.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Framing {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies; narrow extents.
    Structured,
    /// Extended requests and replies; wide extents.
    Extended,
}

impl Framing {
    /// The most able framing that is compiled: [`Extended`](Self::Extended)
    /// with the feature `extended`, [`Structured`](Self::Structured) with
    /// `structured` alone, and [`Simple`](Self::Simple) without them.
    pub const MOST_ABLE: Self = if features::EXTENDED {
        Self::Extended
    } else if features::STRUCTURED {
        Self::Structured
    } else {
        Self::Simple
    };

    /// Refuses a framing that is not compiled.
    pub(crate) const fn check(self) -> Result<(), Misuse> {
        match self {
            Self::Simple => Ok(()),
            Self::Structured => features::require(features::STRUCTURED, "structured"),
            Self::Extended => features::require(features::EXTENDED, "extended"),
        }
    }

    /// The same framing, since one that is not compiled was refused before. The
    /// compiler sees which ones are left, and removes the code of the others.
    #[inline]
    pub(crate) const fn compiled(self) -> Self {
        if features::EXTENDED {
            self
        } else if self.has_chunks() {
            Self::Structured
        } else {
            Self::Simple
        }
    }

    /// Whether replies are chunks: structured replies or extended headers.
    #[inline]
    pub(crate) const fn has_chunks(self) -> bool {
        features::STRUCTURED && !matches!(self, Self::Simple)
    }

    #[inline]
    pub(crate) const fn is_simple(self) -> bool {
        !self.has_chunks()
    }

    #[inline]
    pub(crate) const fn is_extended(self) -> bool {
        features::EXTENDED && matches!(self, Self::Extended)
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple",
            Self::Structured => "structured",
            Self::Extended => "extended",
        })
    }
}

/// The version of the handshake (specification, "Handshake").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HandshakeStyle {
    /// The server sends everything at once.
    Oldstyle,
    /// One option, `EXPORT_NAME`.
    Newstyle,
    /// Any options, with replies.
    FixedNewstyle,
}

impl fmt::Display for HandshakeStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oldstyle => "oldstyle",
            Self::Newstyle => "newstyle",
            Self::FixedNewstyle => "newstyle-fixed",
        })
    }
}

/// How many bits of status a metadata context has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StatusWidth {
    /// At most 32, as all contexts of the namespace `base:`.
    #[default]
    Narrow,
    /// More than 32: needs extended headers.
    Wide,
}

impl StatusWidth {
    /// The width of a context as far as its name tells: the specification has a
    /// rule for the namespace `base:` only.
    #[inline]
    pub(crate) fn of(name: Text<'_>) -> Self {
        if name.as_bytes().starts_with(b"base:") {
            Self::Narrow
        } else {
            Self::Wide
        }
    }
}

/// A metadata context selected for transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SelectedContext {
    /// Its number on this connection.
    pub id: ContextId,
    /// Its width as far as it is known. What is taken for narrow must not have
    /// more than 32 bits set; say [`StatusWidth::Wide`] where nothing is known.
    pub width: StatusWidth,
}

/// The metadata contexts selected for transmission, in the order the server
/// granted them.
#[derive(Clone, Copy)]
pub struct SelectedContexts {
    /// The numbers; those from `len` on have no meaning.
    ids: [ContextId; Self::CAPACITY],
    /// One bit for each: whether it is wide.
    wide: u32,
    len: u8,
}

impl PartialEq for SelectedContexts {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for SelectedContexts {}

/// No room for another context, or its number is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SelectedContextsError {
    /// [`SelectedContexts::CAPACITY`] contexts are there already.
    #[error("more than 32 metadata contexts; select fewer")]
    Full,
    /// A context with this number is there already.
    #[error("metadata context {0} twice")]
    Repeated(ContextId),
}

impl SelectedContexts {
    /// Most contexts on one connection: a command in flight remembers in 32
    /// bits which of them have been answered. Without the feature `structured`
    /// there are none.
    pub const CAPACITY: usize = if features::STRUCTURED { 32 } else { 0 };

    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ids: [ContextId(0); Self::CAPACITY],
            wide: 0,
            len: 0,
        }
    }

    /// Adds one.
    ///
    /// # Errors
    ///
    /// [`SelectedContextsError`]; nothing changed.
    pub fn push(&mut self, context: SelectedContext) -> Result<(), SelectedContextsError> {
        let SelectedContext { id, width } = context;
        if self.position(id).is_some() {
            return Err(SelectedContextsError::Repeated(id));
        }
        let len = usize::from(self.len);
        let place = self.ids.get_mut(len).ok_or(SelectedContextsError::Full)?;
        *place = id;
        self.len = self.len.saturating_add(1);
        self.set_width(id, width);
        Ok(())
    }

    /// Takes all of them out.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Changes the width of the context with this number, if it is there.
    pub(crate) fn set_width(&mut self, id: ContextId, width: StatusWidth) {
        let Some((bit, _)) = self.bit(id) else {
            return;
        };
        match width {
            StatusWidth::Narrow => self.wide &= !bit,
            StatusWidth::Wide => self.wide |= bit,
        }
    }

    /// The contexts in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = SelectedContext> + Clone {
        let bits = (0..u32::BITS).map(|n| 1u32.wrapping_shl(n));
        let ids = self.ids().iter().zip(bits);
        ids.map(|(id, bit)| SelectedContext {
            id: *id,
            width: width(self.wide, bit),
        })
    }

    /// The position of the context with this number in the list.
    #[must_use]
    pub fn position(&self, id: ContextId) -> Option<usize> {
        self.ids().iter().position(|other| *other == id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids().is_empty()
    }

    /// One bit for each context.
    pub(crate) fn mask(&self) -> u32 {
        1u32.checked_shl(u32::from(self.len))
            .map_or(u32::MAX, |bit| bit.wrapping_sub(1))
    }

    /// The bit of the context with this number, and the context.
    pub(crate) fn bit(&self, id: ContextId) -> Option<(u32, SelectedContext)> {
        let at = u32::try_from(self.position(id)?).unwrap_or(0);
        let bit = 1u32.wrapping_shl(at);
        let width = width(self.wide, bit);
        Some((bit, SelectedContext { id, width }))
    }

    fn ids(&self) -> &[ContextId] {
        self.ids.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The width that a bit of a set of wide ones tells.
fn width(wide: u32, bit: u32) -> StatusWidth {
    match wide & bit {
        0 => StatusWidth::Narrow,
        _ => StatusWidth::Wide,
    }
}

impl Default for SelectedContexts {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SelectedContexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// How messages are framed.
    pub framing: Framing,
    /// Size of the export in bytes. All 64 bits are meant: exports of 2^63
    /// bytes and more exist.
    pub size: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// The size constraints, if the server stated any.
    pub block_sizes: Option<BlockSizes>,
    /// The metadata contexts.
    pub contexts: SelectedContexts,
    /// How the handshake went.
    pub style: HandshakeStyle,
    /// Whether TLS protects the connection.
    pub tls: bool,
}

impl Negotiated {
    /// As if a fixed newstyle handshake without TLS had agreed on this; for
    /// tests, testers, and transports that negotiate elsewhere.
    #[must_use]
    pub const fn new(framing: Framing, size: u64, flags: TransmissionFlags) -> Self {
        Self {
            framing,
            size,
            flags,
            block_sizes: None,
            contexts: SelectedContexts::new(),
            style: HandshakeStyle::FixedNewstyle,
            tls: false,
        }
    }

    /// As before the first option.
    pub(crate) fn forget(&mut self) {
        self.framing = Framing::Simple;
        self.size = 0;
        self.flags = TransmissionFlags::NONE;
        self.block_sizes = None;
        self.contexts.clear();
        self.tls = false;
    }

    /// The size constraints in force: the server's, or the defaults.
    #[must_use]
    pub fn constraints(&self) -> BlockSizes {
        self.block_sizes.unwrap_or_default()
    }
}
