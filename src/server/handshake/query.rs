//! Options about one export.

use crate::server::export::MetaContext;
use crate::wire::number::{InfoType, OptionType};
use crate::wire::option::{InfoTypes, Queries};
use crate::wire::text::Text;

/// What a client asks about one export: [`grant`](super::Handshake::grant) it
/// with what the export is, or [`refuse`](super::Handshake::refuse) it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportQuery<'i> {
    pub(super) option: OptionType,
    pub(super) export: &'i str,
    pub(super) requests: InfoTypes<'i>,
    pub(super) queries: Queries<'i>,
}

impl<'i> ExportQuery<'i> {
    /// The option: `EXPORT_NAME`, `INFO`, `GO`, `LIST_META_CONTEXT` or
    /// `SET_META_CONTEXT`.
    #[must_use]
    pub const fn option(&self) -> OptionType {
        self.option
    }

    /// Name of the export; empty for the default export.
    #[must_use]
    pub const fn export(&self) -> &'i str {
        self.export
    }

    /// Whether granting it starts transmission: `GO`, `EXPORT_NAME`.
    #[must_use]
    pub const fn starts_transmission(&self) -> bool {
        matches!(self.option, OptionType::GO | OptionType::EXPORT_NAME)
    }

    /// The pieces of information wanted (`INFO`, `GO`).
    #[must_use]
    pub const fn requests(&self) -> InfoTypes<'i> {
        self.requests
    }

    /// The contexts looked for (`LIST_META_CONTEXT`, `SET_META_CONTEXT`).
    #[must_use]
    pub const fn queries(&self) -> Queries<'i> {
        self.queries
    }

    pub(super) fn wants(&self, info: InfoType) -> bool {
        self.requests.contains(info)
    }

    /// Whether a query finds the context (specification, "Metadata querying").
    ///
    /// To select, a query is the name of a context. To list, it may end with a
    /// colon, and then finds what begins like it; no query at all finds
    /// everything.
    pub(super) fn finds(&self, context: &MetaContext<'_>) -> bool {
        let name = context.name.as_bytes();
        let list = self.option == OptionType::LIST_META_CONTEXT;
        if list && self.queries.is_empty() {
            return true;
        }
        self.queries.iter().map(Text::as_bytes).any(|query| {
            query == name || (list && query.ends_with(b":") && name.starts_with(query))
        })
    }
}
