//! The tester finds faults of clients: a client without any passes every case, and each
//! fault is found by a case that names the duty.

#[path = "faulty_client/fault.rs"]
mod fault;
mod passed;
mod search;

use std::time::Duration;

use fault::{Fault, Mode};
use nbd_check::{CaseResult, Options, client};
use nbd_test_support::program::example;

/// Runs the cases that `patterns` select against a client with a fault.
fn check(fault: Fault, mode: Mode, patterns: &[&str], timeout: Duration) -> Vec<CaseResult> {
    let program = example("faulty_client");
    let program = program.get_program().to_str().expect("a path");
    let (fault, mode) = (format!("{fault:?}"), format!("{mode:?}").to_lowercase());
    let command = [program, &fault, &mode, "{port}"].map(str::to_owned);
    let options = Options {
        timeout,
        // The faults are looked for several at a time.
        jobs: if fault == "None" { 8 } else { 1 },
        ..Options::default()
    };
    let runner = match client::Runner::new(&command, options) {
        Ok(runner) => runner,
        Err(error) => panic!("{fault}: {error:#}"),
    };
    let selected = client::all().into_iter();
    let selected = selected.filter(|case| patterns.iter().any(|pattern| case.matches(pattern)));
    let selected: Vec<_> = selected.collect();
    runner.run(&selected, |_| ())
}

fn passes(mode: Mode, least: usize) {
    let results = check(Fault::None, mode, &["*"], Duration::from_secs(20));
    passed::all(&results, least);
}

#[test]
fn a_client_that_reads_without_a_fault_passes_every_case() {
    passes(Mode::Read, 200);
}

#[test]
fn a_client_that_maps_without_a_fault_passes_every_case() {
    passes(Mode::Map, 120);
}

#[test]
fn a_client_that_writes_without_a_fault_passes_every_case() {
    passes(Mode::Write, 120);
}

/// A fault, what the client is for, the duty that it breaks, and the cases that find it.
const FAULTS: &[(Fault, Mode, &str, &str)] = &[
    (
        Fault::GreetingUnchecked,
        Mode::Read,
        "X14",
        "X14/greeting-second",
    ),
    (Fault::UnknownClientFlag, Mode::Read, "O10", "O10/conduct"),
    (Fault::NoZeroesNotOffered, Mode::Read, "O8", "O3/zeroes"),
    (Fault::AbortNotSent, Mode::Read, "H15", "H15/go-unknown"),
    (Fault::OptionsPipelined, Mode::Read, "H9", "H9/conduct"),
    (
        Fault::OtherOptionAccepted,
        Mode::Read,
        "H9",
        "H9/go-other-option",
    ),
    (
        Fault::ExportMissingAccepted,
        Mode::Read,
        "O49",
        "O49/no-export",
    ),
    (Fault::InfoTwice, Mode::Read, "O44", "O44/conduct"),
    (Fault::StructuredWithData, Mode::Read, "O62", "O62/conduct"),
    (
        Fault::QueryWithoutNamespace,
        Mode::Read,
        "O91",
        "O91/conduct",
    ),
    (
        Fault::ContextsBeforeFraming,
        Mode::Read,
        "O85",
        "O85/conduct",
    ),
    (
        Fault::ExportNameWithExtended,
        Mode::Read,
        "O28",
        "O28/conduct",
    ),
    (Fault::NoFallback, Mode::Read, "O56", "O56/no-go"),
    (Fault::StatusWithoutContext, Mode::Read, "M4", "M4/conduct"),
    (Fault::CompactInExtended, Mode::Read, "O105", "O105/conduct"),
    (Fault::CookieReused, Mode::Read, "T3", "T3/conduct"),
    (Fault::PayloadLenInCompact, Mode::Read, "T9", "T9/conduct"),
    (Fault::PayloadLenMissing, Mode::Write, "T11", "T11/conduct"),
    (Fault::FuaNotAdvertised, Mode::Read, "O13", "O13/conduct"),
    (Fault::DfNotAdvertised, Mode::Read, "R8", "R8/conduct"),
    (
        Fault::FlushNotAdvertised,
        Mode::Read,
        "R116",
        "R116/conduct",
    ),
    (Fault::FlushWithOffset, Mode::Read, "R117", "R117/conduct"),
    (Fault::WritesToReadOnly, Mode::Read, "O13", "O13/conduct"),
    (Fault::ReadsPastEnd, Mode::Read, "S24", "S24/conduct"),
    (Fault::ReadsUnaligned, Mode::Read, "S22", "S22/conduct"),
    (Fault::ReadsTooMuch, Mode::Read, "S19", "S19/conduct"),
    (Fault::ReadsNothing, Mode::Read, "R79", "R79/conduct"),
    (Fault::DiscNotSent, Mode::Read, "T38", "T38/conduct"),
    (Fault::DiscInFlight, Mode::Read, "T37", "T37/conduct"),
    (Fault::DiscWithOffset, Mode::Read, "R114", "R114/conduct"),
    (Fault::SendsAfterDisc, Mode::Read, "R113", "R113/conduct"),
    (Fault::MagicUnchecked, Mode::Read, "X14", "X14/*-read-magic"),
    (
        Fault::CookieUnchecked,
        Mode::Read,
        "T5",
        "T5/*-read-other-cookie",
    ),
    (Fault::ErrorIgnored, Mode::Read, "R99", "R99/*-eio"),
    (
        Fault::ErrorAfterDataIgnored,
        Mode::Read,
        "R99",
        "R99/*-after-data",
    ),
    (Fault::GapAccepted, Mode::Read, "X7", "R94"),
    (Fault::OverlapUnnoticed, Mode::Read, "X7", "R29/*-with-gap"),
    (
        Fault::UnknownChunkSkipped,
        Mode::Read,
        "R19",
        "R19/*-read-unknown-type",
    ),
    (
        Fault::UnknownErrorSkipped,
        Mode::Read,
        "R76",
        "R76/*-read-unknown-error",
    ),
    (Fault::EmptyDataAccepted, Mode::Read, "R25", "R25"),
    (Fault::EmptyHoleAccepted, Mode::Read, "R35", "R35"),
    (Fault::HoleLengthUnchecked, Mode::Read, "R31", "R31"),
    (
        Fault::NoneWithPayloadAccepted,
        Mode::Read,
        "R22",
        "R22/*-read-none-payload",
    ),
    (
        Fault::StatusMissingAccepted,
        Mode::Map,
        "M3",
        "M3/*-missing",
    ),
    (Fault::StatusLengthUnchecked, Mode::Map, "R38", "R38"),
    (Fault::StatusCountUnchecked, Mode::Map, "R54", "R54"),
    (
        Fault::OtherWidthAccepted,
        Mode::Read,
        "R19",
        "R19/*-read-other-command",
    ),
    (
        Fault::WriteErrorIgnored,
        Mode::Write,
        "R107",
        "R107/*-write-eio",
    ),
    (Fault::EndIsSuccess, Mode::Read, "X7", "X7"),
    (Fault::HangsAtEnd, Mode::Read, "X3", "X3/simple-read-close"),
    (
        Fault::CrashesAtEnd,
        Mode::Read,
        "X3",
        "X3/simple-read-close",
    ),
    (Fault::ClosesOnShutdown, Mode::Read, "T36", "T36"),
];

#[test]
fn every_fault_is_found_by_a_case_that_names_the_duty() {
    search::every(4, FAULTS, |(fault, mode, duty, pattern)| {
        let results = check(*fault, *mode, &[pattern], Duration::from_secs(2));
        (format!("{fault:?}"), duty, results)
    });
}

#[test]
fn no_fault_is_omitted() {
    for fault in Fault::ALL.iter().filter(|fault| **fault != Fault::None) {
        let tested = FAULTS.iter().any(|(one, ..)| one == fault);
        assert!(tested, "{fault:?}");
    }
}
