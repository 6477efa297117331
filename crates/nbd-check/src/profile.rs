//! What a server is and has: found out once, before the cases.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{HandshakeFlags, TransmissionFlags};

use nbd_codec::wire::number::OptionType;

use crate::handshake::Export;

/// The TLS mode of a server (specification, "TLS support").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// `STARTTLS` is refused.
    None,
    /// Everything else is refused before TLS.
    Forced,
    /// TLS is possible.
    Selective,
}

/// What a server is and has.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) oldstyle: bool,
    pub(crate) handshake_flags: HandshakeFlags,
    pub(crate) tls: TlsMode,
    /// Whether cases use TLS.
    pub(crate) uses_tls: bool,
    /// Whether `GO` is implemented.
    pub(crate) go: bool,
    /// The options that are answered, if only by an error.
    pub(crate) answers: Vec<OptionType>,
    /// Whether `LIST` is implemented.
    pub(crate) list: bool,
    /// The export in each framing that the server has: simple, structured, extended.
    pub(crate) exports: [Option<Export>; 3],
    /// The contexts that can be selected.
    pub(crate) contexts: Vec<String>,
    /// Whether block status of some contexts can be requested.
    pub(crate) filters: bool,
    /// Whether an export of another name is refused.
    pub(crate) refuses_names: bool,
    /// Whether a second client is served while the first is connected.
    pub(crate) concurrent: bool,
    /// The first block: the tester never writes to it.
    pub(crate) first_block: Vec<u8>,
}

/// The framings, in the order of [`Profile::exports`].
pub(crate) const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// The name of a framing in the id of a case.
pub(crate) const fn framing_name(framing: Framing) -> &'static str {
    match framing {
        Framing::Simple => "simple",
        Framing::Structured => "structured",
        _ => "extended",
    }
}

impl Profile {
    pub(crate) fn export(&self, framing: Framing) -> Option<&Export> {
        let index = FRAMINGS.iter().position(|one| *one == framing)?;
        self.exports.get(index)?.as_ref()
    }

    pub(crate) fn set_export(&mut self, framing: Framing, export: Export) {
        let index = FRAMINGS.iter().position(|one| *one == framing);
        if let Some(place) = index.and_then(|index| self.exports.get_mut(index)) {
            *place = Some(export);
        }
    }

    /// The export in the least framing there is.
    pub(crate) fn any(&self) -> Option<&Export> {
        self.exports.iter().flatten().next()
    }

    /// All flags that the server advertises in some framing.
    pub(crate) fn flags(&self) -> TransmissionFlags {
        let flags = self.exports.iter().flatten().map(|export| export.flags);
        flags.fold(TransmissionFlags::NONE, |all, one| all | one)
    }

    pub(crate) fn size(&self) -> u64 {
        self.any().map_or(0, |export| export.size)
    }

    /// The smallest length and alignment of requests that any server accepts that
    /// keeps to its sizes: the minimum block size, at least 512.
    pub(crate) fn unit(&self) -> u64 {
        self.minimum().max(512)
    }

    /// The minimum block size, 1 if none is advertised.
    pub(crate) fn minimum(&self) -> u64 {
        let sizes = self
            .exports
            .iter()
            .flatten()
            .find_map(|one| one.block_sizes);
        sizes.map_or(1, |sizes| u64::from(sizes.minimum)).max(1)
    }

    /// The advertised maximum payload.
    pub(crate) fn maximum(&self) -> Option<u64> {
        let sizes = self
            .exports
            .iter()
            .flatten()
            .find_map(|one| one.block_sizes);
        sizes.map(|sizes| u64::from(sizes.maximum))
    }

    /// A few lines for reports.
    pub(crate) fn describe(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let mut line = |what: &str, text: String| lines.push((what.to_owned(), text));
        let style = if self.oldstyle {
            "oldstyle"
        } else {
            "newstyle"
        };
        line("greeting", format!("{style}, {}", self.handshake_flags));
        line("tls", format!("{:?}", self.tls).to_lowercase());
        line("export", format!("{} bytes", self.size()));
        for framing in FRAMINGS {
            if let Some(export) = self.export(framing) {
                line(framing_name(framing), export.flags.to_string());
            }
        }
        if let Some(sizes) = self.any().and_then(|export| export.block_sizes) {
            let text = format!("{} {} {}", sizes.minimum, sizes.preferred, sizes.maximum);
            line("block sizes", text);
        }
        if !self.contexts.is_empty() {
            line("contexts", self.contexts.join(", "));
        }
        lines
    }
}
