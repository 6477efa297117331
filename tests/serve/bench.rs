//! `nbd bench`, whose numbers are another matter: that it does what it says.

use serde_json::json;

use crate::driver::with_rings_too;
use crate::program::run_nbd;
use crate::serve::{DISKS, Disk, FRAMINGS};

with_rings_too!(
    every_mode_in_every_framing,
    it_writes_only_when_told_to,
    what_cannot_be_measured_is_refused,
);

#[test]
fn every_mode_in_every_framing() {
    for framing in FRAMINGS {
        let serve = Disk::Memory.serve(8, &["--framing", framing]);
        for (mode, size, depth, connections) in [
            ("randread", 4096, 32, 1),
            ("randread", 512, 1, 3),
            ("randwrite", 4096, 300, 2),
            ("write", 1 << 18, 16, 1),
            ("read", 1 << 18, 16, 2),
            // More than is answered where it is read.
            ("read", 1 << 20, 4, 1),
        ] {
            let (size, depth, connections) =
                (size.to_string(), depth.to_string(), connections.to_string());
            let load = ["--mode", mode, "--size", &size, "--depth", &depth];
            let args = ["bench", serve.uri(), "--json", "--requests", "500"];
            let more = ["--connections", &connections];
            let found = run_nbd([&args[..], &load, &more].concat()).json();
            let number = |text: &str| text.parse::<u64>().expect("a number");
            assert_eq!(found["requests"], 500 * number(&connections), "{found}");
            assert_eq!(found["size"], number(&size));
            assert_eq!(found["mode"], mode);
            assert_eq!(found["framing"], framing);
            let latency = &found["latency_ns"];
            let times = ["p50", "p90", "p99", "p99.9", "max"].map(|name| &latency[name]);
            let times = times.map(|time| time.as_u64().expect("nanoseconds"));
            assert!(times.is_sorted() && times[0] > 0, "{times:?}");
        }
    }
}

#[test]
fn it_writes_only_when_told_to() {
    for disk in DISKS {
        let serve = disk.serve(1, &[]);
        let map = || run_nbd(["map", "--json", serve.uri()]).json();
        let empty = json!([
            { "offset": 0, "length": 1 << 20, "type": 3, "description": "hole,zero" },
        ]);
        let bench = ["bench", serve.uri(), "--requests", "600"];
        let quiet = run_nbd(bench).ok();
        assert_eq!(quiet.stderr, "");
        assert_eq!(map(), empty);
        let told = run_nbd([&bench[..], &["--mode", "write"]].concat()).ok();
        assert!(told.stderr.contains("destroys"), "{}", told.stderr);
        assert_eq!(map()[0]["description"], "data");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let serve = Disk::Memory.serve(1, &["--read-only", "--block-size", "512:4096:64K"]);
    for (args, why) in [
        (["--mode", "randwrite"], "read-only"),
        (["--size", "100"], "a multiple of 512"),
        (["--size", "0"], "a multiple of 512"),
        (["--size", "128K"], "at most 64K"),
    ] {
        run_nbd([&["bench", serve.uri()], &args[..]].concat()).refused(&[why]);
    }
}
