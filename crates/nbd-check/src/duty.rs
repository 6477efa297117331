//! The duties of a server and of a client, as the specification states them.
//!
//! The ids are those of `docs/conformance.md`. A duty that the peer cannot observe is
//! not here. Those of a client are in `client/duties.rs`.

use std::fmt;

use crate::client::CLIENT_DUTIES;

/// How binding a duty is (specification, "Conventions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// `MUST`, `MUST NOT`: another behaviour is a failure.
    Must,
    /// `SHOULD`, `SHOULD NOT`: another behaviour is reported, and a failure only
    /// with `--strict`.
    Should,
    /// The text does not say: the behaviour is reported for information.
    Undefined,
}

impl Level {
    /// The word of the specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
            Self::Undefined => "undefined",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A duty.
#[derive(Debug, PartialEq, Eq)]
pub struct Duty {
    /// The id in `docs/conformance.md`.
    pub id: &'static str,
    /// The heading in the specification.
    pub section: &'static str,
    /// How binding it is.
    pub level: Level,
    /// What the specification demands, in one sentence.
    pub text: &'static str,
}

/// The duty of this id.
///
/// # Panics
///
/// If there is none: the id is a literal of a case, and a test looks up all of them.
#[must_use]
pub fn duty(id: &str) -> &'static Duty {
    match all().find(|duty| duty.id == id) {
        Some(duty) => duty,
        None => panic!("{id} is no duty"),
    }
}

/// Every duty: those of a server, then those that only a client has.
pub(crate) fn all() -> impl Iterator<Item = &'static Duty> {
    DUTIES.iter().chain(CLIENT_DUTIES)
}

macro_rules! duties {
    ($(#[$doc:meta])* $name:ident: $($section:literal { $($id:literal $level:ident $text:literal)* })*) => {
        $(#[$doc])*
        pub const $name: &[$crate::Duty] = &[$($($crate::Duty {
            id: $id,
            section: $section,
            level: $crate::Level::$level,
            text: $text,
        },)*)*];
    };
}

pub(crate) use duties;

duties! {
    /// Every duty of a server, in the order of the specification.
    DUTIES:
    "Conventions" {
        "C1" Must "A string contains no NUL."
        "C2" Must "A string has at most 4096 bytes."
        "C3" Must "A string is UTF-8."
    }
    "Newstyle negotiation" {
    }
    "Termination of the session during option haggling" {
        "H17" Must "A server answers every option, by an error if it must, and does not disconnect."
    }
    "Transmission" {
        "T4" Must "A reply has the cookie of its request, unchanged."
    }
    "Request message" {
        "T10" Must "A compact WRITE is followed by its data, which is no request."
        "T13" Should "A payload longer than the maximum, with PAYLOAD_LEN, ends the session."
        "T14" Should "Any other payload is consumed, and the next request is found."
    }
    "Simple reply message" {
        "T15" Must "A server answers every request; without negotiation by a simple reply."
        "T16" Must "With extended headers a server sends no simple reply."
    }
    "Structured reply chunk message" {
        "T19" Must "A server sends no structured reply unless it was negotiated."
        "T21" Must "With structured replies, every reply with a payload is a structured reply."
        "T22" Must "With structured replies, READ is not answered by a simple reply."
        "T24" Should "With structured replies, an error is sent in a chunk."
        "T25" Must "The chunk with the flag DONE is the last one of its reply."
    }
    "Extended reply chunk message" {
        "T28" Must "With extended headers every reply is an extended reply."
        "T29" Must "The offset of an extended reply is the offset of its request."
    }
    "Terminating the transmission phase" {
        "T32" Must "On DISC a server closes the connection."
        "T38" Must "Neither side disconnects, or ends, for any other reason."
    }
    "NOTLS mode" {
        "L6" Must "A server without TLS answers STARTTLS by an error that the text permits."
        "L7" Must "A server without TLS never sends ERR_TLS_REQD."
    }
    "FORCEDTLS mode" {
        "L8" Must "STARTTLS before TLS is acknowledged."
        "L9" Must "STARTTLS within TLS is answered ERR_INVALID."
        "L10" Must "After the acknowledgement of STARTTLS all further data is TLS."
        "L12" Must "Before TLS every option but STARTTLS and ABORT is answered ERR_TLS_REQD."
        "L13" Must "EXPORT_NAME before TLS ends the session."
        "L14" Must "GO before TLS is answered ERR_TLS_REQD."
        "L15" Must "ERR_TLS_REQD is not sent within TLS."
    }
    "SELECTIVETLS mode" {
        "L21" Must "ERR_TLS_REQD is sent only in reply to INFO, GO and EXPORT_NAME."
    }
    "Size constraints" {
        "S5" Should "Without advertised sizes the minimum block size is 1, the maximum payload at least 32 MiB."
        "S10" Must "The minimum block size is a power of 2, at most 65,536."
        "S12" Should "The size of the export is a multiple of the minimum block size."
        "S13" Must "The preferred block size is a power of 2, at least 512 and the minimum block size."
        "S15" Must "The maximum payload is at least the preferred block size."
        "S16" Should "The maximum payload is at least 1 MiB if the export is that large."
        "S17" Should "A payload of up to 32 MiB is not considered a denial of service attack."
        "S21" Should "An effect length above the maximum payload is no reason to disconnect."
        "S25" Should "A request that is not aligned or past the end of the export is answered EINVAL."
    }
    "Metadata querying" {
        "M2" Must "Block status is answered by one chunk for each selected context."
        "M5" Should "BLOCK_STATUS without a selected context is answered EINVAL."
        "M13" Should "A query without a leaf-name selects nothing."
    }
    "The base: metadata namespace" {
        "M14" Must "The query \"base:\" is ignored by SET_META_CONTEXT."
        "M15" Must "The query \"base:\" lists every context of the namespace."
        "M16" Must "An unknown leaf-name of the namespace \"base\" is ignored."
    }
    "base:allocation metadata context" {
        "M17" Must "What is reported as zero reads as zeroes."
        "M18" Should "Flags that base:allocation does not define are zero."
    }
    "Handshake flags" {
        "O1" Must "FIXED_NEWSTYLE is set by a server that supports it."
        "O2" Must "With NO_ZEROES on both sides no zeroes follow the reply to EXPORT_NAME."
        "O4" Must "No other handshake flag is set."
        "O5" Should "The server's behaviour is unchanged if the client does not answer a flag."
        "O6" Must "No handshake flag is set in an oldstyle greeting."
    }
    "Client flags" {
        "O11" Must "A client flag that is unknown or was not offered ends the session."
    }
    "Transmission flags" {
        "O12" Must "A flag is not set for a feature that is not supported."
        "O14" Must "HAS_FLAGS is set."
        "O15" Must "On a read-only export every command that writes is an error."
        "O16" Must "SEND_DF is not set without structured replies or extended headers."
        "O18" Must "With CAN_MULTI_CONN the effects of FLUSH and FUA are visible on every connection."
        "O20" Must "SEND_FAST_ZERO is not set without SEND_WRITE_ZEROES."
        "O22" Must "BLOCK_STATUS_PAYLOAD is not set without extended headers."
    }
    "Option types" {
        "O25" Must "EXPORT_NAME for an export that does not exist ends the session."
        "O29" Undefined "EXPORT_NAME after extended headers were negotiated."
        "O30" Must "ABORT is acknowledged."
        "O32" Should "Data of ABORT is ignored."
        "O34" Should "A client may send ABORT and close without waiting."
        "O36" Should "LIST with data is answered ERR_INVALID."
        "O38" Must "STARTTLS is acknowledged, or answered by an error that the text permits."
        "O39" Must "Nothing that was negotiated before STARTTLS is preserved."
        "O43" Undefined "INFO and GO with a length that contradicts the data."
        "O45" Must "Requests for unknown information are ignored."
        "O48" Must "Success of INFO and GO has NBD_INFO_EXPORT."
        "O50" Should "No information is sent with ERR_UNKNOWN."
        "O52" Must "ERR_BLOCK_SIZE_REQD is not sent to a client that requested the block sizes."
        "O53" Should "ERR_BLOCK_SIZE_REQD is not sent by a server with the default sizes."
        "O54" Should "The block sizes are sent before ERR_BLOCK_SIZE_REQD."
        "O57" Must "With extended headers GO is not answered ERR_UNSUP."
        "O58" Must "GO after INFO with the same parameters has the same information."
        "O59" Must "No zeroes follow the acknowledgement of GO."
        "O63" Should "STRUCTURED_REPLY with data is answered ERR_INVALID."
        "O71" Must "ERR_EXT_HEADER_REQD is not sent for contexts of \"base\", nor with extended headers."
        "O73" Undefined "A query without a namespace."
        "O74" Must "LIST_META_CONTEXT that is syntactically invalid is answered ERR_INVALID."
        "O75" Must "A query of an unknown namespace is ignored."
        "O76" Must "A list that finds nothing is a single ACK."
        "O79" Must "LIST_META_CONTEXT without a query lists every context."
        "O80" Should "LIST_META_CONTEXT without a query is not answered ERR_TOO_BIG."
        "O82" Must "The name of a context has a namespace, a colon and a leaf-name."
        "O83" Should "The context id is zero in a list."
        "O86" Should "SET_META_CONTEXT before structured replies is answered ERR_INVALID or ERR_EXT_HEADER_REQD."
        "O88" Must "ERR_EXT_HEADER_REQD is not sent to select contexts of \"base\"."
        "O90" Should "Contexts that another SET_META_CONTEXT replaced are not in force."
        "O93" Must "SET_META_CONTEXT without a query selects no context."
        "O94" Must "Each selected context has one reply and an id of its own, followed by ACK."
        "O98" Should "EXTENDED_HEADERS with data is answered ERR_INVALID."
        "O99" Must "Extended headers take precedence over structured replies."
        "O100" Must "A server that has extended headers supports GO."
        "O101" Should "EXTENDED_HEADERS does not need structured replies first."
    }
    "Option reply types" {
        "O110" Must "The name in NBD_REP_SERVER is within its data."
        "O113" Should "Each type of information comes once."
        "O116" Must "NBD_INFO_EXPORT has 12 bytes."
        "O120" Must "NBD_INFO_BLOCK_SIZE has 14 bytes."
        "O121" Must "The name of a context is UTF-8."
    }
    "Command flags" {
        "R2" Must "FUA is accepted with every command if SEND_FUA is set."
        "R6" Must "NO_HOLE is supported if SEND_WRITE_ZEROES is set."
        "R9" Must "With REQ_ONE no more than one extent is sent for each context."
        "R13" Should "PAYLOAD_LEN with a command that has no payload is answered EINVAL."
    }
    "Structured and extended header reply flags" {
        "R15" Must "NBD_REPLY_TYPE_NONE always has the flag DONE."
        "R17" Must "No reply flag but DONE is set."
    }
    "Structured reply types" {
        "R20" Must "No part of variable length in a chunk exceeds the advertised maximum payload."
        "R21" Must "NBD_REPLY_TYPE_NONE has length 0."
        "R24" Must "NBD_REPLY_TYPE_OFFSET_DATA has length 9 at least."
        "R26" Must "The data of a chunk is within the request."
        "R28" Must "Content does not overlap earlier content or errors."
        "R30" Must "NBD_REPLY_TYPE_OFFSET_HOLE has length 12."
        "R32" Must "A hole is within the request."
        "R34" Must "The size of a hole is not zero."
        "R37" Must "NBD_REPLY_TYPE_BLOCK_STATUS has length 4 plus a positive multiple of 8."
        "R39" Must "Block status has exactly one chunk for each selected context."
        "R41" Must "The length of an extent is not zero."
        "R43" Must "With REQ_ONE each chunk has one extent, not longer than the request."
        "R45" Must "All extents but the last end before the end of the request."
        "R47" Should "A chunk has at most 2^20 extents."
        "R49" Must "NBD_REPLY_TYPE_BLOCK_STATUS_EXT has length 8 plus a positive multiple of 16."
        "R51" Must "NBD_REPLY_TYPE_BLOCK_STATUS_EXT is not used without extended headers."
        "R53" Must "The descriptor count is the number of descriptors."
        "R57" Must "The length of a wide extent is not zero."
        "R59" Must "With extended headers block status is NBD_REPLY_TYPE_BLOCK_STATUS_EXT."
        "R61" Must "The upper 32 bits of the status of a 32-bit context are zero."
        "R63" Must "NBD_REPLY_TYPE_ERROR has length 6 at least, and its message is within it."
        "R65" Should "NBD_REPLY_TYPE_ERROR comes once in a reply."
        "R66" Must "The message of an error has at most 4096 bytes."
        "R67" Must "The error of an error chunk is not zero."
        "R69" Must "NBD_REPLY_TYPE_ERROR_OFFSET has length 14 at least, and its message is within it."
        "R71" Must "The offset of an error is within the request."
        "R73" Should "The offset of an error is not repeated."
        "R101" Should "Errors with and without an offset are not mixed."
    }
    "NBD_CMD_READ" {
        "R78" Must "READ is answered, in the style that was negotiated."
        "R80" Should "READ of length 0 is no reason to disconnect."
        "R81" Must "READ succeeds within the export, and the data is that of the export."
        "R93" Must "A READ that succeeds covers the whole request."
        "R102" Must "With DF there is at most one content chunk."
        "R105" Must "With DF and EOVERFLOW there is no content chunk."
        "R106" Must "With DF a request of up to 65,536 bytes is supported."
    }
    "NBD_CMD_WRITE" {
        "R109" Should "WRITE of length 0 is no reason to disconnect."
        "R110" Must "The data of WRITE is written before its reply."
    }
    "NBD_CMD_DISC" {
        "R112" Must "On DISC outstanding requests are handled before the connection is closed."
    }
    "NBD_CMD_FLUSH" {
        "R115" Must "FLUSH is supported if SEND_FLUSH is set."
    }
    "NBD_CMD_TRIM" {
        "R119" Should "TRIM of length 0 is no reason to disconnect."
    }
    "NBD_CMD_CACHE" {
        "R123" Must "CACHE changes no semantics: the data stays the same."
        "R124" Must "Command flags that CACHE does not recognize are rejected if SEND_CACHE is set."
    }
    "NBD_CMD_WRITE_ZEROES" {
        "R126" Should "WRITE_ZEROES of length 0 is no reason to disconnect."
        "R130" Must "What WRITE_ZEROES wrote reads as zeroes."
        "R132" Must "Without FAST_ZERO a server that advertises it does not send ENOTSUP."
        "R133" Should "With FAST_ZERO a server does not send EOVERFLOW."
        "R134" Should "FAST_ZERO that fails with ENOTSUP changes nothing."
        "R135" Should "FAST_ZERO that was not advertised is answered EINVAL."
        "R136" Should "A server that does not advertise FAST_ZERO does not send ENOTSUP."
        "R139" Should "WRITE_ZEROES past the end of the export is answered ENOSPC."
        "R140" Should "WRITE_ZEROES on a read-only export is answered EPERM."
    }
    "NBD_CMD_BLOCK_STATUS" {
        "R142" Should "BLOCK_STATUS of length 0 is no reason to disconnect."
        "R144" Must "BLOCK_STATUS succeeds within the export."
        "R145" Must "A block status payload that is not supported, or has unknown or repeated ids, is consumed, and answered EINVAL."
        "R148" Should "A block status payload of another length is answered EINVAL."
        "R155" Should "The lengths of extents are multiples of the minimum block size."
        "R159" Should "BLOCK_STATUS past the end of the export is answered EINVAL."
    }
    "Error values" {
        "E1" Should "WRITE past the end of the export is answered ENOSPC."
        "E3" Should "READ and TRIM past the end of the export are answered EINVAL."
        "E4" Should "A request that is not aligned to the advertised minimum block size is answered EINVAL."
        "E5" Should "WRITE and TRIM on a read-only export are answered EPERM."
        "E6" Should "EOVERFLOW is sent only for reads and for effects that are too long."
        "E7" Should "ENOTSUP is sent only for FAST_ZERO."
        "E8" Should "An unknown command is answered EINVAL."
        "E9" Should "An unknown command flag is answered EINVAL."
        "E10" Should "A flag that the command does not have is answered EINVAL."
        "E11" Should "ENOMEM is avoided."
        "E12" Undefined "An error that the specification does not define; a client reads it as EINVAL."
    }
    "Baseline" {
        "B2" Must "The fixed newstyle handshake is implemented, with its replies to options."
        "B3" Must "INFO and GO are implemented."
        "B4" Must "An option that is not implemented is answered ERR_UNSUP."
        "B5" Must "The next option is parsed, whatever was refused before it."
        "B7" Must "LIST is implemented."
        "B8" Must "READ, WRITE and DISC are implemented."
    }
    "Maximum interoperability" {
        "B14" Should "EXPORT_NAME is implemented beside INFO and GO."
        "B15" Should "GO is not answered ERR_EXT_HEADER_REQD."
    }
}
