//! The two drivers of `nbd-serve`: most tests run with each of them.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use nbd_test_support::program::run;
use nbd_test_support::skipped::skip;

use crate::running::program;

thread_local! {
    static RINGS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the test on this thread uses `io_uring`.
pub fn rings() -> bool {
    RINGS.get()
}

/// The argument for a server that the test starts.
pub fn argument() -> &'static str {
    if rings() {
        "--driver=uring"
    } else {
        "--driver=threads"
    }
}

/// Runs a test with `io_uring`, if the system permits it.
pub fn with_rings(test: fn()) {
    if !*PERMITTED {
        return skip("io_uring");
    }
    RINGS.set(true);
    test();
}

/// Whether a server may use `io_uring`: then it fails later, at a folder in which
/// it cannot make a socket.
static PERMITTED: LazyLock<bool> = LazyLock::new(|| {
    let mut command = program();
    command.args(["--memory=1M", "--driver=uring", "--unix=/dev/null/socket"]);
    let ended = run(&mut command);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let refused = ended.stderr.contains("cannot serve with io_uring");
    assert_ne!(refused, ended.stderr.contains("/dev/null/socket"));
    !refused
});

/// Defines for each test another one, called `name::with_rings`.
macro_rules! with_rings_too {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn with_rings() {
                $crate::driver::with_rings(super::$name);
            }
        }
    )*};
}
pub(crate) use with_rings_too;

/// All tests that start a server are in the lists of `with_rings_too`.
#[test]
fn no_test_is_omitted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nbd_serve");
    for file in fs::read_dir(folder).expect("the folder of these tests") {
        let path = file.expect("a file").path();
        let text = fs::read_to_string(&path).expect("text");
        let Some((_, after)) = text.split_once("\nwith_rings_too!(") else {
            continue;
        };
        let (list, tests) = after.split_once(");").expect("the end of the list");
        let listed: Vec<_> = list.split(',').map(str::trim).collect();
        for test in tests.split("#[test]\nfn ").skip(1) {
            let (name, body) = test.split_once('(').expect("a function");
            let body = body.split("\n}").next().unwrap_or_default();
            let calls = ["Serve::", ".serve(", "tcp("];
            let serves = calls.iter().any(|call| body.contains(call));
            // Unless the test chooses a driver itself.
            let serves = serves && !body.contains("--driver");
            assert!(
                !serves || listed.contains(&name),
                "{name} in {}",
                path.display()
            );
        }
    }
}
