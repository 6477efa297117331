//! What README shows is what runs: the code of a client is that of the documentation.

#[test]
fn the_client_in_readme_is_the_one_that_runs() {
    let docs: String = include_str!("../../src/client/mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .filter(|line| !line.starts_with("# "))
        .map(|line| format!("{line}\n"))
        .collect();
    let (_, client) = include_str!("../../README.md")
        .split_once("## A client")
        .expect("the client");
    let (_, code) = client.split_once("```rust\n").expect("its code");
    let (code, _) = code.split_once("```").expect("its end");
    assert!(docs.contains(code), "not in the documentation:\n{code}");
}
