//! The program `nbd-check`, as it is called.

mod faulty;

use std::process::Command;

use faulty::Fault;
use nbd_test_support::program::{Ended, run};

fn nbd_check(arguments: &[&str]) -> Ended {
    run(Command::new(env!("CARGO_BIN_EXE_nbd-check")).args(arguments))
}

fn stdout(ended: &Ended) -> String {
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

#[test]
fn list_needs_no_server() {
    let ended = nbd_check(&["server", "--list", "--section", "forcedtls"]);
    assert_eq!(ended.code, Some(0));
    let text = stdout(&ended);
    assert!(
        text.contains("L13/export-name (FORCEDTLS mode, MUST)"),
        "{text}"
    );
    assert!(!text.contains("B4/"), "{text}");
}

#[test]
fn the_exit_status_says_whether_something_failed() {
    let good = faulty::start(Fault::None).to_string();
    let bad = faulty::start(Fault::UnknownOptionInvalid).to_string();
    let case = ["--case", "B4/unknown-0"];
    for (uri, code) in [(&good, 0), (&bad, 1)] {
        let ended = nbd_check(&[&["server", uri], &case[..]].concat());
        assert_eq!(ended.code, Some(code), "{ended:?}");
    }
    let ended = nbd_check(&["server", "nbd+unix:///?socket=/nonexistent"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("cannot connect to /nonexistent"),
        "{ended:?}"
    );
    let ended = nbd_check(&["server", &good, "--case", "nothing"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("--case nothing matches no case"),
        "{ended:?}"
    );
}

#[test]
fn a_dry_run_says_what_would_run() {
    let uri = faulty::start(Fault::None).to_string();
    let ended = nbd_check(&["server", &uri, "--dry-run"]);
    let text = stdout(&ended);
    assert!(text.contains("run  B4/unknown-0"), "{text}");
    assert!(
        text.contains("skip R110/simple-write: it writes: needs --destructive"),
        "{text}"
    );
}

#[test]
fn files_are_written_and_joined() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let uri = faulty::start(Fault::UnknownOptionInvalid).to_string();
    let (json, junit, transcripts) = (path("a.json"), path("a.xml"), path("transcripts"));
    let ended = nbd_check(&[
        "server",
        &uri,
        "--case",
        "B4",
        "--json",
        &json,
        "--junit",
        &junit,
        "--transcripts",
        &transcripts,
        "--name",
        "faulty",
    ]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        std::fs::read_to_string(&junit)
            .expect("JUnit")
            .contains("<failure")
    );
    let page = path("page.html");
    let ended = nbd_check(&["report", &json, &json, "--html", &page]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let text = std::fs::read_to_string(&page).expect("a page");
    assert_eq!(text.matches("<h2>faulty</h2>").count(), 2);
    let transcript = format!("{transcripts}/B4_unknown-0.txt");
    let ended = nbd_check(&["replay", &transcript, &uri]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let good = faulty::start(Fault::None).to_string();
    let ended = nbd_check(&["replay", &transcript, &good]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(stdout(&ended).contains("differs"), "{ended:?}");
}

/// A server that ends is started again, and the case that ended it fails.
#[test]
fn a_server_that_ends_is_started_again() {
    let server = nbd_test_support::program::example("faulty");
    let server = server.get_program().to_str().expect("a path");
    let ended = nbd_check(&[
        "server",
        "--case",
        "T38/cut-list",
        "--case",
        "T38/cut-info",
        "--case",
        "B4/unknown-0",
        "--",
        server,
        "EndsWhenClientCloses",
        "{port}",
    ]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let text = stdout(&ended);
    assert!(text.contains("✗ T38/cut-info"), "{text}");
    assert!(text.contains("the server ended: exit status: 1"), "{text}");
    assert!(text.contains("2 pass, 1 fail"), "{text}");
    assert!(
        ended
            .stderr
            .contains("the server ended and was started again: once"),
        "{ended:?}"
    );
}

#[test]
fn a_command_that_starts_no_server_is_an_error() {
    for (command, error) in [
        (
            &["/nonexistent", "{socket}"][..],
            "cannot start /nonexistent",
        ),
        (&["true"][..], "where to listen"),
        (
            &["false", "{port}"][..],
            "the server ended before it listened: exit status: 1",
        ),
        (
            &["sh", "-c", "echo port in use >&2; exit 3", "{port}"][..],
            "the server ended before it listened: exit status: 3: port in use",
        ),
    ] {
        let ended = nbd_check(&[&["server", "--"], command].concat());
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(error), "{ended:?}");
    }
}

/// What is wrong, and what to write instead.
#[test]
fn wrong_arguments_are_named() {
    let serve = nbd_test_support::program::tool("nbd-serve");
    let serve = serve.get_program().to_str().expect("a path");
    for (arguments, error) in [
        (&["server"][..], "nbd-check server [OPTIONS] -- COMMAND"),
        (
            &["replay", "file"],
            "nbd-check replay [OPTIONS] TRANSCRIPT -- COMMAND",
        ),
        (&["server", "localhost:10809"], "begin with nbd://"),
        (
            &["server", "--list", "--case", "B4", "--case", "B44"],
            "--case B44 matches no case; --list shows all",
        ),
        (
            &["server", "--list", "--section", "basline"],
            "--section basline matches no case; --list shows all",
        ),
        (
            &["server", "--list", "--case", "B4", "--section", "forcedtls"],
            "no case matches both --section and --case",
        ),
        (
            &["server", "nbd+unix:///?socket=/nonexistent"],
            "nbd-check: the server cannot be tested: cannot connect to /nonexistent: No such file \
             or directory (os error 2)\n",
        ),
        (
            &[
                "server", "--export", "b", "--", serve, "--memory", "1M", "--unix", "{socket}",
            ],
            "the server cannot be tested with the export \"b\": GO: NBD_REP_ERR_UNKNOWN",
        ),
        (
            &["server", "nbd://localhost", "--deviations", "/nonexistent"],
            "cannot read /nonexistent: No such file",
        ),
        (
            &["replay", "/dev/null", "nbd://localhost"],
            "/dev/null is no transcript",
        ),
        (
            &["client", "--", "true", "{uri}"],
            "true negotiates nothing with a correct server",
        ),
    ] {
        let ended = nbd_check(arguments);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(error), "{error}\n{}", ended.stderr);
    }
}

/// Before the cases are run.
#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let uri = faulty::start(Fault::None).to_string();
    for option in ["--json", "--junit", "--html", "--transcripts"] {
        let case = ["server", &uri, "--case", "B4/unknown-0"];
        let ended = nbd_check(&[&case[..], &[option, "/dev/null/file"]].concat());
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert_eq!(stdout(&ended), "", "{option}");
        assert!(ended.stderr.contains("/dev/null/file: "), "{ended:?}");
    }
}

#[test]
fn clients_are_checked() {
    let ended = nbd_check(&["client", "--list", "--case", "R94"]);
    assert_eq!(ended.code, Some(0));
    assert!(stdout(&ended).contains("R94/structured-nothing"));
    let program = nbd_test_support::program::example("faulty_client");
    let program = program.get_program().to_str().expect("a path");
    let case = ["client", "--case", "R94/structured-nothing", "--"];
    for (fault, code) in [("None", 0), ("GapAccepted", 1)] {
        let ended = nbd_check(&[&case[..], &[program, fault, "read", "{port}"]].concat());
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(stdout(&ended).starts_with("NBD client: "), "{ended:?}");
    }
    let ended = nbd_check(&["client", "--", "true"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("where to connect"), "{ended:?}");
    let ended = nbd_check(&["client", "--", "false", "{uri}"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("cannot be tested"), "{ended:?}");
}

/// A known hang does not explain a crash.
#[test]
fn a_crash_is_explained_by_a_line_about_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("deviations").display().to_string();
    let program = nbd_test_support::program::example("faulty_client");
    let program = program.get_program().to_str().expect("a path");
    let case = ["client", "--case", "X3/simple-read-close", "--timeout", "1"];
    for (line, hang, crash) in [
        ("?*:X3  it does not end", 0, 1),
        ("?*:crash  it panics", 1, 0),
    ] {
        std::fs::write(&file, line).expect("a file");
        for (fault, code) in [("HangsAtEnd", hang), ("CrashesAtEnd", crash)] {
            let client = ["--", program, fault, "read", "{port}"];
            let ended = nbd_check(&[&case[..], &["--deviations", &file], &client].concat());
            assert_eq!(ended.code, Some(code), "{line}, {fault}: {ended:?}");
        }
    }
}

/// The transcript of a failure shows it again, and not to a client without the fault.
#[test]
fn transcripts_of_clients_are_played_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let transcripts = folder.path().display().to_string();
    let program = nbd_test_support::program::example("faulty_client");
    let program = program.get_program().to_str().expect("a path");
    let client = |fault| ["--", program, fault, "read", "{port}"];
    let case = ["client", "--case", "R94/structured-nothing"];
    let options = ["--transcripts", &transcripts];
    let ended = nbd_check(&[&case[..], &options, &client("GapAccepted")].concat());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let transcript = format!("{transcripts}/R94_structured-nothing.txt");
    for (fault, code, exit) in [("GapAccepted", 0, 0), ("None", 1, 1)] {
        let ended = nbd_check(&[&["replay", &transcript][..], &client(fault)].concat());
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let text = stdout(&ended);
        assert!(
            text.contains(&format!("# the client: exit status {exit}")),
            "{text}"
        );
        assert_eq!(text.contains("differs"), code == 1, "{text}");
    }
}
