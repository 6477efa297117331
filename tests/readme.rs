//! What README shows is what runs: its Rust code is part of the crate's
//! documentation, where it is run against hostile replies.

#[test]
fn the_code_in_readme_is_the_code_that_runs() {
    let docs: String = include_str!("../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    let readme = include_str!("../README.md");
    let blocks: Vec<_> = readme.split("```rust\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let (code, _) = block.split_once("```").expect("the end of a code block");
        assert!(
            docs.contains(code),
            "not in the crate's documentation:\n{code}"
        );
    }
}

/// Its relative links point to files that are in the package.
#[test]
fn the_links_in_readme_are_in_the_package() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml");
    let links = include_str!("../README.md").split("](").skip(1);
    for link in links
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link)
    {
        if link.starts_with("https://") {
            continue;
        }
        assert!(root.join(link).is_file(), "{link} is missing");
        let top = link.split('/').next().unwrap_or(link);
        let included = manifest.contains(&format!("\"{top}")) || top.starts_with("LICENSE-");
        assert!(included, "{link} is not in the package");
    }
}
