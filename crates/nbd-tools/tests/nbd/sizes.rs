//! Sizes at the limit of 64 bits.

use crate::fake::{BLOCK_STATUS, Export, Fake};
use crate::nbd::run_nbd;

#[test]
fn the_end_of_the_largest_exports() {
    for size in [u64::MAX, u64::MAX - 1023, 1 << 63] {
        let server = Fake::start(move |peer| {
            peer.handshake(Export::new(size))?;
            loop {
                let request = peer.request()?;
                match request.command {
                    BLOCK_STATUS => peer.status(&request, &[(request.length, 3)])?,
                    _ => peer.done(&request)?,
                }
            }
        });
        let uri = server.uri();
        for back in [1, 4, 300_000] {
            let offset = (size - back).to_string();
            let ended = run_nbd(["read", &uri, "--offset", &offset]).ok();
            assert!(
                ended.stdout == vec![1; back as usize],
                "{back} before {size}"
            );
            let length = back.to_string();
            let ended = run_nbd(["read", &uri, "--offset", &offset, "--length", &length]).ok();
            assert!(
                ended.stdout == vec![1; back as usize],
                "{back} before {size}"
            );
        }
        run_nbd([
            "read",
            &uri,
            "--offset",
            "18446744073709551615",
            "--length",
            "2",
        ])
        .refused(&["exceed the export"]);
        run_nbd(["bench", &uri, "--requests", "10"]).ok();
        run_nbd(["bench", &uri, "--size", "16383P", "--depth", "65535"])
            .refused(&["permits at most"]);
        let info = run_nbd(["info", &uri, "--json"]).json();
        assert_eq!(info["exports"][0]["export-size"], size);
    }
}
