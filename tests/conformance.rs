//! `docs/conformance.md`: every test that it names must exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The least number of rows of each series. Rows may be added; a removed row is
/// an error.
const LEAST: &[(&str, usize)] = &[
    ("C", 3),
    ("P", 1),
    ("H", 19),
    ("T", 38),
    ("L", 36),
    ("S", 25),
    ("M", 19),
    ("O", 121),
    ("R", 159),
    ("E", 12),
    ("B", 15),
    // History.
    ("X", 39),
];

/// The words with which a cell of "How it is held" begins.
const WAYS: &[&str] = &["type", "check", "made", "driver", "not held"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> String {
    fs::read_to_string(root().join("docs/conformance.md")).expect("docs/conformance.md")
}

/// A row of the document.
struct Row<'d> {
    /// As `H12`.
    number: &'d str,
    /// The cells between number and tests.
    cells: Vec<&'d str>,
    /// The last cell.
    tests: &'d str,
}

impl<'d> Row<'d> {
    fn read(line: &'d str) -> Option<Self> {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let mut cells: Vec<_> = inner.split(" | ").map(str::trim).collect();
        let tests = cells.pop()?;
        if cells.is_empty() || cells[0] == "#" {
            None
        } else {
            Some(Self {
                number: cells.remove(0),
                cells,
                tests,
            })
        }
    }

    /// The series and the number.
    fn position(&self) -> Option<(&'d str, usize)> {
        let at = self.number.find(|c: char| c.is_ascii_digit())?;
        let (series, number) = self.number.split_at(at);
        Some((series, number.parse().ok()?))
    }

    /// Whether the row may lack a test: its duty is a driver's, or not held.
    fn may_lack_a_test(&self) -> bool {
        match self.cells.as_slice() {
            [_, whose, how] => whose.contains("driver") || how.contains("not held"),
            _ => false,
        }
    }

    fn faults(&self, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut faults = Vec::new();
        match self.cells.as_slice() {
            cells if cells.iter().any(|cell| cell.is_empty()) => faults.push("an empty cell"),
            [_, _, how] if !WAYS.iter().any(|way| how.starts_with(way)) => {
                faults.push("no way of holding");
            }
            [_, _, _] => {}
            // History.
            [_, _] if self.number.starts_with('X') => {}
            _ => faults.push("not the cells of a row"),
        }
        let mut faults: Vec<String> = faults.into_iter().map(str::to_owned).collect();
        let names: Vec<_> = match self.tests {
            "-" => Vec::new(),
            tests => tests.split(", ").collect(),
        };
        if names.is_empty() && !self.may_lack_a_test() {
            faults.push("no test".to_owned());
        }
        for name in names {
            match name
                .strip_prefix('`')
                .and_then(|name| name.strip_suffix('`'))
            {
                Some(name) if exists(name) => {}
                _ => faults.push(format!("no test is called {name}")),
            }
        }
        let number = self.number;
        faults
            .into_iter()
            .map(|fault| format!("{number}: {fault}"))
            .collect()
    }
}

/// The faults of a document.
fn faults(document: &str, least: &[(&str, usize)], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    let mut series = BTreeMap::new();
    let mut before = "";
    for row in document.lines().filter_map(Row::read) {
        match row.position() {
            Some((letters, number)) => {
                let count = series.entry(letters).or_insert(0);
                // A series is numbered without gaps, and its rows are together.
                if number != *count + 1 || (*count > 0 && letters != before) {
                    faults.push(format!("{}: out of order", row.number));
                }
                *count = number;
                before = letters;
            }
            None => faults.push(format!("{}: not a number", row.number)),
        }
        faults.extend(row.faults(exists));
    }
    for (letters, least) in least {
        let count = series.remove(letters).unwrap_or(0);
        if count < *least {
            faults.push(format!("{letters}: {count} rows of at least {least}"));
        }
    }
    for letters in series.keys() {
        faults.push(format!("{letters}: a series that LEAST lacks"));
    }
    faults
}

/// Whether `target::module::test` (or `target::test`) is a test that is compiled,
/// in any package of the workspace.
fn is_test(root: &Path, name: &str) -> bool {
    let members = fs::read_dir(root.join("crates")).expect("crates/");
    let members = members.map(|member| member.expect("a package").path());
    std::iter::once(root.to_owned())
        .chain(members)
        .any(|package| has_target_with(&package.join("tests"), name))
}

fn has_target_with(tests: &Path, name: &str) -> bool {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    match name.split("::").collect::<Vec<_>>().as_slice() {
        [target, test] => {
            let main = tests.join(target).join("main.rs");
            has_test(&read(tests.join(format!("{target}.rs"))), test) || has_test(&read(main), test)
        }
        [target, module, test] => {
            let folder = tests.join(target);
            let built = read(folder.join("main.rs"))
                .lines()
                .any(|line| line.trim() == format!("mod {module};"));
            built && has_test(&read(folder.join(format!("{module}.rs"))), test)
        }
        _ => false,
    }
}

/// Whether a source has a test of this name that is not ignored.
fn has_test(source: &str, name: &str) -> bool {
    let mut test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[ignore") {
            test = false;
        } else if line == "#[test]" {
            test = true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let found = line
                .strip_prefix("fn ")
                .and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| rest.starts_with('('));
            if test && found {
                return true;
            }
            test = false;
        }
    }
    false
}

#[test]
fn every_row_has_a_test_that_exists() {
    let root = root();
    let faults = faults(&document(), LEAST, &|name| is_test(&root, name));
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Every kind of fault is found in a document that has it.
#[test]
fn faults_are_found() {
    let good = "| A1 | duty | client | check: so | `t::m::one` |";
    let found = |second: &str, least| {
        let document = format!("| # | Duty | Whose | How it is held | Test |\n{good}\n{second}\n");
        faults(&document, &[("A", least)], &|name| name == "t::m::one")
    };
    let none: [&str; 0] = [];
    assert_eq!(found("", 1), none);
    assert_eq!(
        found("| A2 | duty | client's driver | driver: so | - |", 2),
        none
    );
    assert_eq!(found("| A2 | duty | client | not held: so | - |", 2), none);
    for (second, fault) in [
        ("", "A: 1 rows of at least 2"),
        (good, "A1: out of order"),
        (
            "| A3 | duty | client | type | `t::m::one` |",
            "A3: out of order",
        ),
        ("| A2 | duty | client | check | - |", "A2: no test"),
        (
            "| A2 | duty | client | check | `t::m::two` |",
            "A2: no test is called `t::m::two`",
        ),
        (
            "| A2 | duty | client | check | `t::m::one`, t::m::one |",
            "A2: no test is called t::m::one",
        ),
        (
            "| A2 | duty | client | hope | `t::m::one` |",
            "A2: no way of holding",
        ),
        (
            "| A2 | duty | client | `t::m::one` |",
            "A2: not the cells of a row",
        ),
        (
            "| A2 |  | client | check | `t::m::one` |",
            "A2: an empty cell",
        ),
        (
            "| B1 | duty | client | check | `t::m::one` |",
            "B: a series that LEAST lacks",
        ),
    ] {
        let found = found(second, 2);
        assert!(
            found.iter().any(|found| found == fault),
            "{fault}: {found:?}"
        );
    }
}

/// A test is a function with `#[test]` in a file that is compiled.
#[test]
fn only_compiled_tests_count() {
    let source = "/// Doc.\n#[test]\n#[rustfmt::skip]\nfn one() {}\nfn two() {}\n\
                  #[test]\n#[ignore]\nfn three() {}\n";
    for (name, is) in [
        ("one", true),
        ("on", false),
        ("two", false),
        ("three", false),
    ] {
        assert_eq!(has_test(source, name), is, "{name}");
    }
    let root = root();
    for (name, is) in [
        ("conformance::only_compiled_tests_count", true),
        ("nbd::tour::the_tour_shows_every_framing", true),
        ("server::tls::starttls_takes_no_data", true),
        ("server::script::transcripts_are_parsed", true),
        ("conformance::has_test", false),
        ("server::tls::no_such_test", false),
        ("server::starttls_takes_no_data", false),
        ("nothing::tls::starttls_takes_no_data", false),
        ("starttls_takes_no_data", false),
    ] {
        assert_eq!(is_test(&root, name), is, "{name}");
    }
}
