//! What README shows is what runs: its code is that of the documentation.

/// The code in README after this heading is in the documentation of this file.
fn runs(heading: &str, file: &str) {
    let docs: String = file
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .filter(|line| !line.starts_with("# "))
        .map(|line| format!("{line}\n"))
        .collect();
    let (_, rest) = include_str!("../README.md")
        .split_once(heading)
        .expect("the heading");
    let (_, code) = rest.split_once("```rust\n").expect("its code");
    let (code, _) = code.split_once("```").expect("its end");
    // The server that runs listens on any free port.
    let code = &code.replace(":10809", ":0");
    assert!(docs.contains(code), "not in the documentation:\n{code}");
}

#[test]
fn the_client_in_readme_is_the_one_that_runs() {
    runs("## A client", include_str!("../src/client/mod.rs"));
}

#[test]
fn the_server_in_readme_is_the_one_that_runs() {
    runs("## A server", include_str!("../src/server/mod.rs"));
}
