//! What a server offers before it knows its client.

use crate::error::Misuse;
use crate::features;
use crate::limits::Limits;
use crate::negotiated::Framing;
use crate::wire::number::OptionType;

/// How a server handles TLS (specification, "Server-side requirements"). It
/// is the same for the whole of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsMode {
    /// `NOTLS`: no TLS. Exports that require it cannot be had.
    #[default]
    None,
    /// `SELECTIVETLS`: as the client likes, but for exports that require it.
    Selective,
    /// `FORCEDTLS`: nothing but `STARTTLS` and `ABORT` in plain text.
    Forced,
}

/// What a server offers to a client of newstyle. The default is everything but
/// TLS.
///
/// ```
/// use nbd_codec::Framing;
/// use nbd_codec::server::{Config, TlsMode};
///
/// let config = Config::new()
///     .framing(Framing::Structured) // no extended headers
///     .tls(TlsMode::Forced);
/// # let _ = config;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub(super) fixed_newstyle: bool,
    pub(super) no_zeroes: bool,
    pub(super) tls: TlsMode,
    pub(super) framing: Framing,
    pub(super) limits: Limits,
    pub(super) strict: bool,
}

impl Config {
    /// Everything but TLS.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            fixed_newstyle: true,
            no_zeroes: true,
            tls: TlsMode::None,
            framing: Framing::MOST_ABLE,
            limits: Limits::DEFAULT,
            strict: false,
        }
    }

    /// Fixed newstyle: any option, with replies. Without it there is
    /// `EXPORT_NAME` only, simple framing and no TLS. Default: yes.
    #[must_use]
    pub const fn fixed_newstyle(mut self, fixed_newstyle: bool) -> Self {
        self.fixed_newstyle = fixed_newstyle;
        self
    }

    /// Whether to offer to leave out the 124 zeroes after the reply to
    /// `EXPORT_NAME`. Default: yes.
    #[must_use]
    pub const fn no_zeroes(mut self, no_zeroes: bool) -> Self {
        self.no_zeroes = no_zeroes;
        self
    }

    /// How TLS is handled. Default: there is none.
    #[must_use]
    pub const fn tls(mut self, tls: TlsMode) -> Self {
        self.tls = tls;
        self
    }

    /// The most able framing. Default: [`Framing::MOST_ABLE`].
    #[must_use]
    pub const fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Caps on what the client sends.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// For testers of clients: whether options that the specification forbids a
    /// client, and that are accepted otherwise, are answered `ERR_INVALID`.
    /// [`guide::faults`](crate::guide::faults) lists each case. For requests
    /// there is [`Transmission::strict`](super::Transmission::strict). Default: no.
    #[must_use]
    pub const fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Whether it can be offered: `STARTTLS` needs fixed newstyle.
    pub(super) fn check(&self) -> Result<(), Misuse> {
        self.framing.check()?;
        features::require(features::TLS || self.tls == TlsMode::None, "tls")?;
        features::require(features::OLDSTYLE || self.fixed_newstyle, "oldstyle")?;
        if self.tls != TlsMode::None && !self.fixed_newstyle {
            return Err(Misuse::NotFixed(OptionType::STARTTLS));
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}
