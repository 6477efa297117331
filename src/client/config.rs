//! What a client wants to negotiate.

use crate::error::Misuse;
use crate::features;
use crate::limits::Limits;
use crate::negotiated::{Framing, SelectedContexts, StatusWidth};
use crate::wire::list::has_repeated;
use crate::wire::number::OptionType;
use crate::wire::text::{Text, check_str};

/// What the caller wants of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsPolicy {
    /// Plain text only.
    #[default]
    Never,
    /// TLS where the server has it. An attacker between client and server can
    /// pretend that it has not.
    Prefer,
    /// TLS or nothing: the name of the export is not sent in plain text.
    Require,
}

/// A metadata context the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetaContextQuery<'a> {
    /// Its name, as `base:allocation`.
    pub name: &'a str,
    /// How many bits of status it has, if that is known. One known to need 64
    /// is not asked for without extended headers; one known to have 32 is held
    /// to them by a [`Connector`](super::Connector). Where no width is given,
    /// and by a [`Handshake`](super::Handshake), those of the namespace `base:` are.
    pub width: Option<StatusWidth>,
}

impl<'a> MetaContextQuery<'a> {
    /// A context of which no more than the name is known.
    #[must_use]
    pub const fn new(name: &'a str) -> Self {
        Self { name, width: None }
    }

    /// A context of at most 32 bits of status.
    #[must_use]
    pub const fn narrow(name: &'a str) -> Self {
        Self {
            name,
            width: Some(StatusWidth::Narrow),
        }
    }

    /// A context of more than 32 bits of status.
    #[must_use]
    pub const fn wide(name: &'a str) -> Self {
        Self {
            name,
            width: Some(StatusWidth::Wide),
        }
    }

    /// Whether a client may ask for it with this framing.
    pub(super) fn can_be_asked(&self, framing: Framing) -> bool {
        match self.width {
            Some(StatusWidth::Wide) => framing.is_extended(),
            Some(StatusWidth::Narrow) | None => framing.has_chunks(),
        }
    }
}

/// Whether it begins with a namespace and a colon.
pub(super) fn is_query(query: Text<'_>) -> bool {
    let colon = query.as_bytes().iter().position(|byte| *byte == b':');
    colon.is_some_and(|at| at > 0)
}

/// What is to be negotiated.
///
/// ```
/// use nbd_codec::Framing;
/// use nbd_codec::client::{Config, MetaContextQuery};
///
/// let contexts = [MetaContextQuery::narrow("base:allocation")];
/// let config = Config::new("disk")
///     .framing(Framing::Structured) // not extended, whatever the server has
///     .contexts(&contexts);
/// # let _ = config;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    pub(super) export: &'a str,
    pub(super) contexts: &'a [MetaContextQuery<'a>],
    pub(super) tls: TlsPolicy,
    pub(super) framing: Framing,
    pub(super) go: bool,
    pub(super) describe: bool,
    pub(super) lenient: bool,
    pub(super) strict: bool,
    pub(super) limits: Limits,
}

impl<'a> Config<'a> {
    /// The export with this name (empty: the default export), no contexts, no
    /// TLS, the most able framing that the server has.
    #[must_use]
    pub const fn new(export: &'a str) -> Self {
        Self {
            export,
            contexts: &[],
            tls: TlsPolicy::Never,
            framing: Framing::MOST_ABLE,
            go: true,
            describe: false,
            lenient: false,
            strict: false,
            limits: Limits::DEFAULT,
        }
    }

    /// The metadata contexts wanted, at most [`SelectedContexts::CAPACITY`].
    #[must_use]
    pub const fn contexts(mut self, contexts: &'a [MetaContextQuery<'a>]) -> Self {
        self.contexts = contexts;
        self
    }

    /// What is wanted of TLS. Default: never.
    #[must_use]
    pub const fn tls(mut self, tls: TlsPolicy) -> Self {
        self.tls = tls;
        self
    }

    /// TLS or nothing.
    #[must_use]
    pub const fn require_tls(self) -> Self {
        self.tls(TlsPolicy::Require)
    }

    /// The most able framing wanted. Default: [`Framing::MOST_ABLE`].
    #[must_use]
    pub const fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Whether to enter transmission with `GO`. Default: yes.
    ///
    /// Without it the export is opened with `EXPORT_NAME`, which every newstyle
    /// server has: for servers that close the connection at `GO`, or misread it.
    /// It tells neither block sizes nor a description, its only refusal is to
    /// close the connection, and extended headers exclude it: they are not
    /// asked for then. With `framing(Framing::Simple)` and without contexts it is the
    /// first option.
    #[must_use]
    pub const fn go(mut self, go: bool) -> Self {
        self.go = go;
        self
    }

    /// Whether to ask for the server's canonical name and description of the
    /// export. Default: no.
    #[must_use]
    pub const fn describe(mut self, describe: bool) -> Self {
        self.describe = describe;
        self
    }

    /// For testers of servers: a [`Handshake`](super::Handshake) then sends
    /// options that the specification asks a client not to send. An option may
    /// come before the framing it needs, a framing and a piece of information
    /// be asked for again, and a query lack its namespace. What the state
    /// machine itself depends on is refused all the same, and replies are
    /// checked all the same.
    #[must_use]
    pub const fn lenient(mut self, lenient: bool) -> Self {
        self.lenient = lenient;
        self
    }

    /// For testers of servers: each fault that [the guide](crate::guide::faults)
    /// lists as tolerated ends the handshake with its
    /// [`Violation`](crate::Violation). Default: no. Transmission has a setting
    /// of its own, [`Transmission::strict`](super::Transmission::strict).
    #[must_use]
    pub const fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Caps on what the server sends.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether it can be sent.
    pub(super) fn check(&self) -> Result<(), Misuse> {
        self.framing.check()?;
        features::require(
            features::STRUCTURED || self.contexts.is_empty(),
            "structured",
        )?;
        features::require(features::OLDSTYLE || self.go, "oldstyle")?;
        features::require(features::TLS || self.tls == TlsPolicy::Never, "tls")?;
        check_str(self.export)?;
        if self.contexts.len() > SelectedContexts::CAPACITY {
            return Err(Misuse::TooManyContexts);
        }
        for query in self.contexts {
            check_str(query.name)?;
            if !is_query(Text::from(query.name)) {
                return Err(Misuse::Query);
            }
        }
        check_distinct(self.contexts.iter().map(|query| query.name))
    }

    /// The most able framing that can be asked for.
    pub(super) fn most_able_framing(&self) -> Framing {
        if self.go || !features::OLDSTYLE {
            self.framing
        } else {
            // EXPORT_NAME is not allowed with extended headers.
            self.framing.min(Framing::Structured)
        }
    }

    /// The option that enters transmission.
    pub(super) fn entry(&self) -> OptionType {
        if self.go || !features::OLDSTYLE {
            OptionType::GO
        } else {
            OptionType::EXPORT_NAME
        }
    }
}

/// Refuses to select a context twice: its number would come twice, as a fault of
/// the server does.
pub(super) fn check_distinct<T: PartialEq>(
    names: impl Iterator<Item = T> + Clone,
) -> Result<(), Misuse> {
    if has_repeated(names) {
        Err(Misuse::RepeatedQuery)
    } else {
        Ok(())
    }
}
