//! Reports: what is written is read again, and holds what was found.

mod faulty;

use std::time::Duration;

use faulty::Fault;
use nbd_check::report::{Report, Side, html, transcript_of};
use nbd_check::{Address, CaseResult, Deviations, Options, Outcome, Runner, Target, cases, replay};
use nbd_check::{tls, transcript};

/// A run that finds a failure, an advice that is not followed, and skips a case.
fn run(options: Options) -> (Report, Vec<CaseResult>, nbd_codec::uri::Uri) {
    let uri = faulty::start(Fault::UnknownFlagAccepted);
    let options = Options {
        timeout: Duration::from_secs(2),
        ..options
    };
    let target = Target::running(uri.clone()).expect("an address");
    let mut runner = Runner::new(target, options).expect("it can be tested");
    let patterns = [
        "E9/simple-read*",
        "B4/unknown-1",
        "R124/simple*",
        "R110/simple-write",
    ];
    let results: Vec<_> = cases::all()
        .iter()
        .filter(|case| patterns.iter().any(|pattern| case.matches(pattern)))
        .map(|case| runner.run(case))
        .collect();
    let (name, time) = ("a <server> & more", Duration::from_millis(1500));
    let report = Report::new(
        Side::Server,
        name,
        &runner.uri(),
        runner.server(),
        &results,
        time,
    );
    (report, results, uri)
}

#[test]
fn json_is_read_again() {
    let (report, ..) = run(Options::default());
    let text = report.json().to_string();
    let value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(Report::from_json(&value).expect("a report"), report);
    for outcome in [
        Outcome::Pass,
        Outcome::Fail,
        Outcome::NonStrict,
        Outcome::Skipped,
    ] {
        assert!(report.count(outcome) > 0, "{outcome}");
    }
    let error = Report::from_json(&serde_json::json!({"name": 1})).unwrap_err();
    assert_eq!(error.to_string(), "\"about\" is missing");
}

#[test]
fn text_has_section_requirement_expected_and_actual() {
    let (report, ..) = run(Options::default());
    let text = report.text(false);
    for part in [
        "Error values: 0 of 10 passed",
        "! E9/simple-read-bit-6 (SHOULD): An unknown command flag is answered EINVAL.",
        "Sent:     NBD_CMD_READ/0x40",
        "Expected: EINVAL; then READ succeeds",
        "Actual:   NBD_CMD_READ 512 + 512, 0x40 succeeded",
        "✗ R124/simple-cache-bit-6 (MUST)",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(
        !text.contains("B4/unknown-1"),
        "what passed is only counted"
    );
    assert!(report.text(true).contains("✓ B4/unknown-1 (MUST)"));
}

#[test]
fn junit_and_html_escape_what_they_contain() {
    let (report, ..) = run(Options::default());
    let junit = report.junit();
    assert!(junit.contains("<testsuites name=\"a &lt;server&gt; &amp; more\""));
    let failures = junit.matches("<failure ").count();
    assert_eq!(failures, report.count(Outcome::Fail));
    assert_eq!(junit.matches("<testcase ").count(), report.rows.len());
    let page = html(&[report.clone(), report.clone()]);
    assert!(page.contains("<th>a &lt;server&gt; &amp; more</th>"));
    assert!(!page.contains("<server>"));
    for loaded in ["src=", "http:", "https:", "@import"] {
        assert!(!page.contains(loaded), "the page loads {loaded}");
    }
    let id = "r1-R124/simple-cache-bit-6";
    assert!(
        page.contains(&format!("id=\"{id}\"")),
        "details of each report"
    );
    assert!(page.contains(&format!("href=\"#{id}\"")));
}

#[test]
fn strict_makes_advice_a_failure() {
    let strict = Options {
        strict: true,
        ..Options::default()
    };
    let (report, ..) = run(strict);
    assert_eq!(report.count(Outcome::NonStrict), 0);
    assert!(
        report
            .rows
            .iter()
            .any(|row| row.id == "E9/simple-read-bit-6" && row.outcome == Outcome::Fail)
    );
}

#[test]
fn a_known_deviation_is_no_failure_and_has_its_reason() {
    let deviations = Deviations::parse("R124/*  known since 2020\nB4  fixed long ago\n");
    let options = Options {
        deviations: deviations.expect("valid"),
        ..Options::default()
    };
    let (report, ..) = run(options);
    assert_eq!(report.count(Outcome::Fail), 0);
    let row = report
        .rows
        .iter()
        .find(|row| row.outcome == Outcome::Deviation);
    let row = row.expect("a deviation");
    assert_eq!(row.reason.as_deref(), Some("known since 2020"));
}

/// Without `--destructive` nothing is written.
#[test]
fn cases_that_write_need_permission() {
    let (report, ..) = run(Options::default());
    let write = report.rows.iter().find(|row| row.id == "R110/simple-write");
    let write = write.expect("the case");
    assert_eq!(write.outcome, Outcome::Skipped);
    assert_eq!(
        write.reason.as_deref(),
        Some("it writes: needs --destructive")
    );
}

#[test]
fn a_transcript_is_replayed() {
    let (_, results, uri) = run(Options::default());
    let result = results.iter().find(|one| one.outcome == Outcome::Fail);
    let text = transcript_of(result.expect("a failure"));
    let entries = transcript::parse(&text).expect("a transcript");
    let tls = tls::config(None).expect("TLS");
    let play = |uri| {
        let address = Address::of(uri).expect("an address");
        replay::replay(&entries, &address, Duration::from_secs(2), &tls).expect("a replay")
    };
    let same = play(&uri);
    assert!(same.differences.is_empty(), "{same:#?}");
    let lines = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&same.transcript), lines(&text));
    // Another server refuses the flag: the reply differs.
    let other = play(&faulty::start(Fault::None));
    assert!(!other.differences.is_empty());
}
