//! What a server offers before it knows its client.

use crate::limits::Limits;
use crate::negotiated::Framing;

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

/// What a server offers to a client of newstyle.
///
/// ```
/// use nbd_codec::Framing;
/// use nbd_codec::server::Offer;
///
/// let mut offer = Offer::default();
/// offer.framing = Framing::Structured; // no extended headers
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offer {
    /// Fixed newstyle: any option, with replies. Without it there is
    /// `EXPORT_NAME` only, simple framing and no TLS.
    pub fixed: bool,
    /// To leave out the 124 zeroes behind the answer to `EXPORT_NAME`.
    pub no_zeroes: bool,
    /// How TLS is handled.
    pub tls: TlsMode,
    /// The most able framing.
    pub framing: Framing,
    /// Caps on what the client sends.
    pub limits: Limits,
}

impl Default for Offer {
    /// Everything but TLS.
    fn default() -> Self {
        Self {
            fixed: true,
            no_zeroes: true,
            tls: TlsMode::None,
            framing: Framing::Extended,
            limits: Limits::DEFAULT,
        }
    }
}
