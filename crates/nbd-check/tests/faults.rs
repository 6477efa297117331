//! The tester finds faults: a server without any passes every case, and each fault is
//! found by a case that names the duty.

mod faulty;
mod search;

use std::time::Duration;

use faulty::Fault;
use nbd_check::{CaseResult, Options, Outcome, Runner, Target, cases};

/// How long a server without a fault may take, on a slow machine too.
const LONG: Duration = Duration::from_secs(30);
/// How long a server with a fault may take: some faults make it silent.
const SHORT: Duration = Duration::from_millis(700);

/// Runs the cases that `patterns` select against a server with a fault.
fn check(fault: Fault, patterns: &[&str]) -> Vec<CaseResult> {
    let options = Options {
        timeout: if fault == Fault::None { LONG } else { SHORT },
        destructive: true,
        ..Options::default()
    };
    let target = Target::running(faulty::start(fault)).expect("an address");
    let mut runner = match Runner::new(target, options) {
        Ok(runner) => runner,
        Err(error) => panic!("{fault:?}: {error:#}"),
    };
    let selected = cases::all().into_iter();
    let selected = selected.filter(|case| patterns.iter().any(|pattern| case.matches(pattern)));
    selected.map(|case| runner.run(&case)).collect()
}

#[test]
fn a_server_without_a_fault_passes_every_case() {
    let results = check(Fault::None, &["*"]);
    for result in &results {
        let skipped = result.outcome == Outcome::Skipped;
        let found = nbd_check::report::transcript_of(result);
        assert!(skipped || result.findings.is_empty(), "{found}");
    }
    let passed = results.iter().filter(|one| one.outcome == Outcome::Pass);
    assert!(passed.count() >= 750, "too few cases are run");
}

/// A fault, the duty that it breaks, and the cases that find it.
const FAULTS: &[(Fault, &str, &[&str])] = &[
    (Fault::ClientFlagsUnchecked, "O11", &["O11"]),
    (Fault::UndefinedHandshakeFlag, "O4", &["O4"]),
    (Fault::AlwaysZeroes, "O2", &["O2"]),
    (Fault::ExportNameAcceptsAll, "O25", &["O25"]),
    (Fault::AbortWithoutReply, "O30", &["O30"]),
    (Fault::UnknownOptionCloses, "B4", &["B4"]),
    (Fault::UnknownOptionInvalid, "B4", &["B4"]),
    (Fault::OptionDataNotDrained, "B5", &["B4", "B5"]),
    (Fault::ListWithData, "O36", &["O36"]),
    (Fault::ListDataNotDrained, "B5", &["O36"]),
    (Fault::ListNameTooLong, "O110", &["B7"]),
    (Fault::ListNameWithNul, "C1", &["B7"]),
    (Fault::InfoTwice, "O113", &["O48"]),
    (Fault::UnknownInfoRefused, "O45", &["O45"]),
    (Fault::NameLengthUnchecked, "H17", &["O43"]),
    (Fault::GoUnlikeInfo, "O58", &["O58"]),
    (Fault::DfWithoutStructured, "O16", &["O14", "O16"]),
    (Fault::StartTlsRefusedByTlsReqd, "L6", &["L6"]),
    (Fault::PlainTextAfterStartTls, "L10", &["L10"]),
    (Fault::EndsWhenClientCloses, "T38", &["T38"]),
    (Fault::ContextsWithoutStructured, "O86", &["O86"]),
    (Fault::ContextsNotReplaced, "O90", &["O90"]),
    (Fault::ContextIdsEqual, "O94", &["O94"]),
    (Fault::WildcardSelects, "M14", &["M14"]),
    (Fault::UnknownNamespaceRefused, "O75", &["O75"]),
    (Fault::QueryLengthUnchecked, "B5", &["O74"]),
    (Fault::SimpleReadInStructured, "T22", &["R81"]),
    (Fault::ExtendedOffsetWrong, "T29", &["R81", "E8"]),
    (Fault::UndefinedReplyFlag, "R17", &["R81"]),
    (Fault::NoneWithoutDone, "R15", &["R81"]),
    (Fault::DataOutsideRequest, "R26", &["R81"]),
    (Fault::DataOverlaps, "R28", &["R81"]),
    (Fault::DataShort, "R93", &["R81"]),
    (Fault::HoleEmpty, "R34", &["R81"]),
    (Fault::DfFragments, "R102", &["R106"]),
    (Fault::DfRefused, "R106", &["R106"]),
    (Fault::ErrorZero, "R67", &["E8"]),
    (Fault::ErrorMessageTooLong, "R66", &["E8"]),
    (Fault::ErrorWithData, "T15", &["E9"]),
    (Fault::OffsetWraps, "E3", &["E3"]),
    (Fault::PayloadNotDrained, "T10", &["E1"]),
    (Fault::PayloadNotDrained, "T14", &["E1"]),
    (Fault::CommandPayloadNotDrained, "T14", &["R13", "E8"]),
    (Fault::UnknownCommandCloses, "E8", &["E8"]),
    (Fault::UnknownFlagAccepted, "E9", &["E9"]),
    (Fault::FuaRefused, "R2", &["R2"]),
    (Fault::NoHoleRefused, "R6", &["R6"]),
    (Fault::CacheFlagsAccepted, "R124", &["R124"]),
    (Fault::FlushRefused, "R115", &["R115"]),
    (Fault::FastZeroWrites, "R134", &["R134"]),
    (Fault::ZeroesRefusedAsSlow, "R132", &["R130"]),
    (Fault::ZeroesDoNothing, "R130", &["R130"]),
    (Fault::WritesLost, "R110", &["R110"]),
    (Fault::TrimsTooMuch, "R110", &["R110"]),
    (Fault::CacheChangesData, "R123", &["R123"]),
    (Fault::ConnectionsHaveCaches, "O18", &["O18"]),
    (Fault::ReadOnlyWrites, "O15", &["O15"]),
    (Fault::DataReportedAsZero, "M17", &["M17"]),
    (Fault::StatusWithoutContext, "M5", &["M5"]),
    (Fault::StatusEmptyExtent, "R41", &["R144"]),
    (Fault::StatusEmptyExtent, "R57", &["R144"]),
    (Fault::StatusTooManyExtents, "R45", &["R144"]),
    (Fault::StatusOneContextMissing, "M2", &["R144"]),
    (Fault::StatusRequestOneIgnored, "R43", &["R43"]),
    (Fault::StatusNarrowInExtended, "R59", &["R144"]),
    (Fault::StatusWideInStructured, "R51", &["R144"]),
    (Fault::StatusCountWrong, "R53", &["R144"]),
    (Fault::StatusUpperBits, "R61", &["R144"]),
    (Fault::FilterIdsUnchecked, "R145", &["R145"]),
    (Fault::DiscIgnored, "T32", &["T32"]),
    (Fault::DiscLosesWrites, "R110", &["R112"]),
];

#[test]
fn every_fault_is_found_by_a_case_that_names_the_duty() {
    // Most of the time is waiting for servers that are silent.
    search::every(8, FAULTS, |(fault, duty, patterns)| {
        (format!("{fault:?}"), duty, check(*fault, patterns))
    });
}

/// With these faults there is no transmission, or nothing can be read in it.
const EARLY: &[(Fault, &str)] = &[
    (Fault::InfoWithoutExport, "O48"),
    (Fault::FlagsWithoutHasFlags, "O14"),
    (Fault::MinimumNotAPowerOfTwo, "S10"),
    (Fault::ZeroesAfterGo, "O59"),
    (Fault::WrongCookie, "T4"),
    (Fault::StructuredNotNegotiated, "T19"),
];

#[test]
fn no_fault_is_omitted() {
    let tested = FAULTS.iter().map(|(fault, ..)| fault);
    let tested: Vec<_> = tested.chain(EARLY.iter().map(|(fault, _)| fault)).collect();
    for fault in Fault::ALL.iter().filter(|fault| **fault != Fault::None) {
        assert!(tested.contains(&fault), "{fault:?}");
    }
}

/// If the server cannot be tested, the reason names the duty.
#[test]
fn faults_that_prevent_transmission_are_reported() {
    for (fault, duty) in EARLY {
        let target = Target::running(faulty::start(*fault)).expect("an address");
        let options = Options {
            timeout: SHORT,
            ..Options::default()
        };
        let found = match Runner::new(target, options) {
            Err(error) => format!("{error:#}"),
            Ok(_) => format!(
                "{:?}",
                search::broken(&check(*fault, &["O48", "O59", "T4", "R81"]))
            ),
        };
        assert!(found.contains(duty), "{fault:?}: {found}");
    }
}
