//! Runs after the tests that may skip: prints which did.

fn main() {
    nbd_test_support::skipped::report();
}
