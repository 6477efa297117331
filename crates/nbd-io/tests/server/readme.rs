//! What README shows is what runs: the code of a server is that of the documentation.

#[test]
fn the_server_in_readme_is_the_one_that_runs() {
    let docs: String = include_str!("../../src/server/mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .filter(|line| !line.starts_with("# "))
        .map(|line| format!("{line}\n"))
        .collect();
    let (_, server) = include_str!("../../README.md")
        .split_once("## A server")
        .expect("the server");
    let (_, code) = server.split_once("```rust\n").expect("its code");
    let (code, _) = code.split_once("```").expect("its end");
    // The one that runs listens on any free port.
    let code = &code.replace(":10809", ":0");
    assert!(docs.contains(code), "not in the documentation:\n{code}");
}
