//! The two drivers of `serve`: a test of what it does is run with each.

use std::cell::Cell;
use std::sync::LazyLock;

use crate::program::{example, run, skip};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Threads,
    Uring,
}

thread_local! {
    static DRIVER: Cell<Option<Driver>> = const { Cell::new(None) };
}

/// Which one the test on this thread is about.
pub fn current() -> Option<Driver> {
    DRIVER.get()
}

impl Driver {
    /// What a server that is started is told.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Threads => "--driver=threads",
            Self::Uring => "--driver=uring",
        }
    }

    /// Runs a test with this one, where the system has it.
    pub fn run(self, test: fn()) {
        if self == Self::Uring && !*PERMITTED {
            return skip("io_uring");
        }
        DRIVER.set(Some(self));
        test();
    }
}

/// Whether a server may have a ring: it gets beyond it, to a folder that it
/// cannot make a socket in.
static PERMITTED: LazyLock<bool> = LazyLock::new(|| {
    let mut command = example("serve");
    command.args(["--memory=1M", "--driver=uring", "--unix=/dev/null/socket"]);
    let ended = run(&mut command);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let refused = ended.stderr.contains("cannot serve with io_uring");
    assert_ne!(refused, ended.stderr.contains("/dev/null/socket"));
    !refused
});

/// Makes two tests of each function, called `name::threads` and `name::uring`.
macro_rules! with_each_driver {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn threads() {
                $crate::driver::Driver::Threads.run(super::$name);
            }

            #[test]
            fn uring() {
                $crate::driver::Driver::Uring.run(super::$name);
            }
        }
    )*};
}
pub(crate) use with_each_driver;
