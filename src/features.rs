//! Which parts of the protocol are compiled: the features as constants.
//!
//! The compiler removes what a condition with one of them excludes. Of the items only
//! the module `monitor` depends on one, so the rest of the interface is the same with
//! and without them. (`alloc`, `std` and `arbitrary`, which are no parts of the protocol,
//! add items.)

use crate::error::Misuse;
use crate::wire::number::OptionType;

/// Structured replies and metadata contexts.
pub(crate) const STRUCTURED: bool = cfg!(feature = "structured");

/// Extended headers.
pub(crate) const EXTENDED: bool = cfg!(feature = "extended");

/// The handshakes before fixed newstyle, and `NBD_OPT_EXPORT_NAME`.
pub(crate) const OLDSTYLE: bool = cfg!(feature = "oldstyle");

/// `NBD_OPT_STARTTLS`.
pub(crate) const TLS: bool = cfg!(feature = "tls");

/// `NBD_CMD_RESIZE`, of the resize extension.
pub(crate) const RESIZE: bool = cfg!(feature = "resize");

/// Whether small code is worth more than fast code: without an operating system.
/// The fast paths are left out there; the slow paths accept the same.
pub(crate) const SMALL: bool = cfg!(target_os = "none");

/// Refuses a part of the protocol that is not compiled.
pub(crate) const fn require(compiled: bool, feature: &'static str) -> Result<(), Misuse> {
    if compiled {
        Ok(())
    } else {
        Err(Misuse::NotCompiled { feature })
    }
}

/// Refuses an option of a part that is not compiled.
pub(crate) const fn check_option(option: OptionType) -> Result<(), Misuse> {
    match option {
        OptionType::EXPORT_NAME => require(OLDSTYLE, "oldstyle"),
        OptionType::STARTTLS => require(TLS, "tls"),
        OptionType::STRUCTURED_REPLY
        | OptionType::LIST_META_CONTEXT
        | OptionType::SET_META_CONTEXT => require(STRUCTURED, "structured"),
        OptionType::EXTENDED_HEADERS => require(EXTENDED, "extended"),
        _ => Ok(()),
    }
}
