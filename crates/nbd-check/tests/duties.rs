//! The duties are those of `docs/conformance.md`, and the server's.

use nbd_check::{DUTIES, Level};

#[test]
fn every_duty_is_one_of_the_server() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
    let text = std::fs::read_to_string(path).expect("docs/conformance.md");
    for duty in DUTIES {
        let start = format!("| {} |", duty.id);
        let row = text.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("{} is not there", duty.id));
        // What the client does with it, the specification says; not what it is.
        let undefined = duty.level == Level::Undefined;
        assert!(undefined || !row.contains("| client |"), "{row}");
    }
}
