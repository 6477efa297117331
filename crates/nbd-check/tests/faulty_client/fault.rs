//! The faults of the client, and what it is for.

nbd_test_support::faults! {
    /// What is wrong with a client.
    None
    // Handshake.
    GreetingUnchecked
    UnknownClientFlag
    NoZeroesNotOffered
    AbortNotSent
    OptionsPipelined
    OtherOptionAccepted
    ExportMissingAccepted
    InfoTwice
    StructuredWithData
    QueryWithoutNamespace
    ContextsBeforeFraming
    ExportNameWithExtended
    NoFallback
    StatusWithoutContext
    // Requests.
    CompactInExtended
    CookieReused
    PayloadLenInCompact
    PayloadLenMissing
    FuaNotAdvertised
    DfNotAdvertised
    FlushNotAdvertised
    FlushWithOffset
    WritesToReadOnly
    ReadsPastEnd
    ReadsUnaligned
    ReadsTooMuch
    ReadsNothing
    DiscNotSent
    DiscInFlight
    DiscWithOffset
    SendsAfterDisc
    // Replies.
    MagicUnchecked
    CookieUnchecked
    ErrorIgnored
    ErrorAfterDataIgnored
    GapAccepted
    OverlapUnnoticed
    UnknownChunkSkipped
    UnknownErrorSkipped
    EmptyDataAccepted
    EmptyHoleAccepted
    HoleLengthUnchecked
    NoneWithPayloadAccepted
    StatusMissingAccepted
    StatusLengthUnchecked
    StatusCountUnchecked
    OtherWidthAccepted
    WriteErrorIgnored
    EndIsSuccess
    HangsAtEnd
    CrashesAtEnd
    ClosesOnShutdown
}

/// What the client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Writes the content of the export to standard output.
    Read,
    /// The same of its block status.
    Map,
    /// Writes to the export.
    Write,
}

impl Mode {
    #[allow(dead_code, reason = "only the example has it from a command line")]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "read" => Some(Self::Read),
            "map" => Some(Self::Map),
            "write" => Some(Self::Write),
            _ => None,
        }
    }
}
