//! Tests that are skipped because something is missing. The test harness counts them
//! as passed, so they are noted in a file. The target `skipped` of each package, which
//! cargo runs after those that skip tests, prints it.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::{env, thread};

use rustix::process::{Pid, test_kill_process};

/// Reports that the test of this thread is skipped because something is missing, or
/// fails where peers are required.
pub fn skip(missing: &str) {
    let program = env::current_exe().expect("the path of this test");
    let target = program.file_stem().unwrap_or_default().to_string_lossy();
    // A hash follows the name.
    let target = target
        .rsplit_once('-')
        .map_or(&*target, |(target, _)| target);
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("{target} {test}: needs {missing}\n");
    assert!(
        env::var_os("NBD_CODEC_PEERS").is_none_or(|value| value != "required"),
        "NBD_CODEC_PEERS=required, and {line}"
    );
    let folder = folder(&program);
    fs::create_dir_all(&folder).expect("a folder for notes");
    let mut notes = OpenOptions::new();
    let notes = notes.create(true).append(true);
    let notes = notes.open(folder.join(parent_id().to_string()));
    let written = notes.and_then(|mut notes| notes.write_all(line.as_bytes()));
    written.expect("a note of the skipped test");
    // The test harness does not capture this: it would discard what a test
    // that passes writes with `eprintln`.
    let _ = io::stderr().write_all(format!("skipped: {line}").as_bytes());
}

/// Prints which tests were skipped since cargo was started.
pub fn report() {
    if env::args().any(|arg| arg == "--list") {
        return;
    }
    let folder = folder(&env::current_exe().expect("the path of this test"));
    remove_old(&folder);
    let notes = fs::read_to_string(folder.join(parent_id().to_string())).unwrap_or_default();
    let lines: BTreeSet<_> = notes.lines().collect();
    let tests: BTreeSet<_> = lines
        .iter()
        .map(|line| line.split(": needs ").next())
        .collect();
    println!("\n{} tests were skipped, or parts of them", tests.len());
    for line in lines {
        println!("    {line}");
    }
    println!();
}

/// The notes, in a file for each process that runs tests: cargo.
fn folder(program: &Path) -> PathBuf {
    let profile = program.ancestors().nth(2).expect("a build folder");
    profile.join("skipped-tests")
}

/// Removes the notes of processes that have ended.
fn remove_old(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let pid = pid.and_then(Pid::from_raw);
        if pid.is_none_or(|pid| test_kill_process(pid).is_err()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
