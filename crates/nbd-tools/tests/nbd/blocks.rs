//! Requests and replies off the minimum block size.

use std::fs;

use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use serde_json::{Value, json};

use crate::fake::{BLOCK_STATUS, Export, Fake};
use crate::nbd::run_nbd;

const EINVAL: u32 = 22;

/// A server with blocks of 512 bytes, whose file has a hole of 1000 bytes and ends
/// with 24 bytes of data. `whole` says whether it describes those, too.
fn off_the_block(size: u64, whole: bool) -> Fake {
    Fake::start(move |peer| {
        peer.handshake(Export::new(size).minimum(512))?;
        loop {
            let request = peer.request()?;
            if (request.offset | u64::from(request.length)) % 512 != 0 {
                peer.fail(&request, EINVAL)?;
                continue;
            }
            let hole = 1000u32.saturating_sub(request.offset as u32);
            match request.command {
                BLOCK_STATUS if whole && request.offset > 0 => {
                    peer.status(&request, &[(hole, 3), (24, 0)])?;
                }
                BLOCK_STATUS => peer.status(&request, &[(hole, 3)])?,
                _ => peer.done(&request)?,
            }
        }
    })
}

fn extents(map: &Value) -> Vec<(u64, u64, u64)> {
    let number = |extent: &Value, key| extent[key].as_u64().expect("a number");
    let extents = map.as_array().expect("an array").iter();
    extents
        .map(|extent| {
            (
                number(extent, "offset"),
                number(extent, "length"),
                number(extent, "type"),
            )
        })
        .collect()
}

#[test]
fn block_status_that_ends_within_a_block() {
    let folder = tempfile::tempdir().expect("a folder");
    let copied = folder.path().join("copied");
    for whole in [true, false] {
        let server = off_the_block(1024, whole);
        let uri = server.uri();
        let map = run_nbd(["map", &uri, "--json"]).json();
        assert_eq!(extents(&map), [(0, 1000, 3), (1000, 24, 0)], "{whole}");
        run_nbd(["copy".as_ref(), uri.as_ref(), copied.as_os_str()]).ok();
        let expected = [[0; 512], [1; 512]].concat();
        assert!(fs::read(&copied).expect("a copy") == expected, "{whole}");
    }
}

/// The last 488 bytes of an export are less than a block.
#[test]
fn an_export_that_ends_within_a_block() {
    let folder = tempfile::tempdir().expect("a folder");
    let copied = folder.path().join("copied");
    let server = off_the_block(1000, false);
    let uri = server.uri();
    let text = ["last 488 of 1000 bytes", "512"];

    let ended = run_nbd(["map", &uri, "--json"]);
    let map: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!(extents(&map), [(0, 512, 3)]);
    ended.refused(&text);

    let ended = run_nbd(["read", &uri]);
    assert!(ended.stdout == [1; 512]);
    ended.refused(&text);
    run_nbd(["read", &uri, "--length", "512"]).ok();

    run_nbd(["copy".as_ref(), uri.as_ref(), copied.as_os_str()]).refused(&text);
    assert!(!copied.exists(), "the destination is not created");
    let info = run_nbd(["info", &uri, "--json"]).json();
    assert_eq!(info["exports"][0]["export-size"], json!(1000));
}

#[test]
fn a_write_off_the_minimum_block_size() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (input, served) = (path("input"), path("served"));
    let new = noise(1, 5_000_000);
    let old = noise(2, 8 * MIB as usize);
    fs::write(&input, &new).expect("input");
    let input = input.to_str().expect("UTF-8");
    let file = format!("file={}", served.display());
    for (offset, length) in [
        (0, 5_000_000),
        (4096, 5_000_000),
        (100, 5_000_000),
        (5000, 10),
        (4000, 200),
    ] {
        fs::write(&served, &old).expect("old data");
        let peer = Peer::nbdkit(&[
            "--filter=blocksize-policy",
            "file",
            &file,
            "blocksize-minimum=4096",
            "blocksize-preferred=4096",
            "blocksize-maximum=1M",
            "blocksize-error-policy=error",
        ]);
        let uri = peer.uri("");
        fs::write(input, &new[..length]).expect("input");
        let offset_text = offset.to_string();
        let args = ["write", &uri, "--input", input, "--offset", &offset_text];
        run_nbd(args).refused(&["4096", "--pad"]);
        assert!(
            fs::read(&served).expect("the file") == old,
            "nothing is written"
        );

        run_nbd(args.iter().chain(&["--pad"])).ok();
        let mut expected = old.clone();
        expected[offset..offset + length].copy_from_slice(&new[..length]);
        assert!(
            fs::read(&served).expect("the file") == expected,
            "{offset} {length}"
        );
    }
}
