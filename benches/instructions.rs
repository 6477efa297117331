//! Instructions per operation, counted by valgrind: they repeat exactly on a
//! noisy machine. `cargo bench --bench instructions [-- FILTER]`
//!
//! Each case runs twice, in processes of its own, with different counts. The
//! difference in instructions over the difference in counts is the cost of one
//! operation. The other columns are its limit, a bare loop that only calls
//! `from_be_bytes` on the same bytes, and the crate `nbd` 0.3.1, if that has the
//! operation.

#[path = "cases/mod.rs"]
mod cases;

use std::process::{Command, exit};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, count] = args.as_slice()
        && flag == "--case"
    {
        let count = count.parse().expect("a count");
        let case = cases::ALL.iter().find(|case| case.name == name);
        return (case.expect("a case of this name").run)(count);
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let chosen = |name: &str| filter.is_none_or(|filter| name.contains(filter.as_str()));
    println!(
        "{:<44} {:>12} {:>12} {:>12} {:>7} {:>12}",
        "operation", "instructions", "bare loop", "nbd 0.3.1", "ratio", "beyond"
    );
    for case in cases::ALL.iter().filter(|case| chosen(case.name)) {
        let taken = measure(case);
        let column_of = |name: Option<&str>| {
            let case = cases::ALL.iter().find(|case| Some(case.name) == name)?;
            Some(measure(case))
        };
        let (limit, other) = (column_of(case.limit), column_of(case.other));
        let column = |figure: Option<f64>| figure.map_or(String::new(), |it| format!("{it:.1}"));
        let line = format!(
            "{:<44} {taken:>12.1} {:>12} {:>12}",
            case.name,
            column(limit),
            column(other)
        );
        match limit.or(other) {
            Some(it) => println!("{line} {:>7.2} {:>12.1}", taken / it, taken - it),
            None => println!("{}", line.trim_end()),
        }
    }
}

fn measure(case: &cases::Case) -> f64 {
    let (few, many) = (case.count, case.count * 3);
    let (a, b) = (count(case.name, few), count(case.name, many));
    (b - a) as f64 / (many - few) as f64
}

/// Instructions of a whole process that runs a case `count` times.
fn count(name: &str, count: u64) -> u64 {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(["--case", name, &count.to_string()])
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            exit(1);
        }
        Err(error) => {
            eprintln!("instructions: valgrind cannot be run ({error}); install it");
            exit(1);
        }
    };
    let text = String::from_utf8_lossy(&output.stderr);
    let total = text
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))
        .and_then(|number| number.trim().parse().ok());
    total.unwrap_or_else(|| {
        eprintln!("instructions: no count in the output of valgrind:\n{text}");
        exit(1);
    })
}
