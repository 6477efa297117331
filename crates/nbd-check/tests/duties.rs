//! The duties are those of `docs/conformance.md`, and of the side that is tested.

use nbd_check::client::CLIENT_DUTIES;
use nbd_check::{DUTIES, Duty, Level};

/// The row of a duty.
fn row<'a>(text: &'a str, duty: &Duty) -> &'a str {
    let start = format!("| {} |", duty.id);
    let row = text.lines().find(|line| line.starts_with(&start));
    row.unwrap_or_else(|| panic!("{} is not there", duty.id))
}

fn conformance() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
    std::fs::read_to_string(path).expect("docs/conformance.md")
}

#[test]
fn every_duty_is_one_of_the_server() {
    let text = conformance();
    for duty in DUTIES {
        // What the client does with it, the specification says; not what it is.
        let undefined = duty.level == Level::Undefined;
        let row = row(&text, duty);
        assert!(undefined || !row.contains("| client |"), "{row}");
    }
}

#[test]
fn every_duty_of_the_client_is_one_of_it() {
    let text = conformance();
    for duty in CLIENT_DUTIES {
        let row = row(&text, duty);
        let whose = [
            "| client |",
            "| client's driver |",
            "| both |",
            "| drivers |",
        ];
        // The mistakes of clients have no such column.
        let of_a_client = whose.iter().any(|whose| row.contains(whose));
        assert!(of_a_client || duty.id.starts_with('X'), "{row}");
        let all = DUTIES.iter().chain(CLIENT_DUTIES);
        assert_eq!(all.filter(|one| one.id == duty.id).count(), 1, "{row}");
    }
}
