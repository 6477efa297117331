//! The two drivers of `serve`: a test of what it does is run with each, first
//! with threads.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use nbd_test_support::program::{run, skip};

use crate::running::program;

thread_local! {
    static RINGS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the test on this thread is about the rings.
pub fn rings() -> bool {
    RINGS.get()
}

/// What a server that is started is told.
pub fn argument() -> &'static str {
    match rings() {
        true => "--driver=uring",
        false => "--driver=threads",
    }
}

/// Runs a test with rings, where the system permits them.
pub fn with_rings(test: fn()) {
    if !*PERMITTED {
        return skip("io_uring");
    }
    RINGS.set(true);
    test();
}

/// Whether a server may have a ring: it gets beyond it, to a folder that it
/// cannot make a socket in.
static PERMITTED: LazyLock<bool> = LazyLock::new(|| {
    let mut command = program();
    command.args(["--memory=1M", "--driver=uring", "--unix=/dev/null/socket"]);
    let ended = run(&mut command);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let refused = ended.stderr.contains("cannot serve with io_uring");
    assert_ne!(refused, ended.stderr.contains("/dev/null/socket"));
    !refused
});

/// Makes of each test one more, called `name::with_rings`.
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

/// Every test with a server of its own is one of them.
#[test]
fn no_test_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nbd_serve");
    for file in fs::read_dir(folder).expect("the folder of these tests") {
        let path = file.expect("a file").path();
        let text = fs::read_to_string(&path).expect("text");
        let Some((_, rest)) = text.split_once("\nwith_rings_too!(") else {
            continue;
        };
        let (list, tests) = rest.split_once(");").expect("the end of the list");
        let listed: Vec<_> = list.split(',').map(str::trim).collect();
        for test in tests.split("#[test]\nfn ").skip(1) {
            let (name, body) = test.split_once('(').expect("a function");
            let body = body.split("\n}").next().unwrap_or_default();
            let calls = ["Serve::", ".serve(", "tcp("];
            let serves = calls.iter().any(|call| body.contains(call));
            // Unless it says itself which driver it is about.
            let serves = serves && !body.contains("--driver");
            assert!(
                !serves || listed.contains(&name),
                "{name} in {}",
                path.display()
            );
        }
    }
}
