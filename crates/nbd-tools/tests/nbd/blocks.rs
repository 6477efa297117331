//! Requests and replies off the minimum block size.

use std::fs;

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
