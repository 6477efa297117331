//! Exports by name: listed, hidden, forbidden, made on demand.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nbd_codec::client::Config as ClientConfig;
use nbd_io::server::{Config, Export, Exports, Peer};
use nbd_test_support::needs;
use nbd_test_support::program::run;

use crate::support::{Disk, FACES, Face, MIB, Running, connect};

fn exports() -> Exports {
    Exports::new()
        .with(Export::new("hidden", Disk::new(MIB)).hidden())
        .with(Export::new("disk", Disk::new(2 * MIB)).description("for all"))
        .with(Export::new("forbidden", Disk::new(MIB)).access(|client| client.peer != Peer::Unix))
        .with(
            Export::new("fixed", Disk::new(3 * MIB))
                .read_only()
                .single_connection(),
        )
}

fn size_of(running: &Running, export: &str) -> io::Result<u64> {
    connect(&mut running.connect(), ClientConfig::new(export)).map(|negotiated| negotiated.size)
}

#[test]
fn hidden_exports_are_had_by_name_only() {
    needs!("nbdinfo");
    for face in FACES {
        let running = Running::start(face, exports(), Config::new());
        let list = run(Command::new("nbdinfo").args(["--json", "--list", &running.uri("")])).json();
        let list = list["exports"].as_array().expect("exports").clone();
        let names: Vec<_> = list
            .iter()
            .map(|export| export["export-name"].as_str())
            .collect();
        assert_eq!(names, [Some("disk"), Some("fixed")]);
        assert_eq!(list[0]["description"], "for all");
        assert_eq!(list[0]["can_multi_conn"], true);
        assert_eq!(list[1]["is_read_only"], true);
        assert_eq!(list[1]["can_multi_conn"], false);
        assert_eq!(list[1]["can_trim"], false);

        assert_eq!(size_of(&running, "hidden").expect("it is there"), MIB);
        // The default is the first that is listed.
        assert_eq!(size_of(&running, "").expect("the default"), 2 * MIB);
    }
}

#[test]
fn a_forbidden_export_is_as_one_that_does_not_exist() {
    for face in FACES {
        let running = Running::start(face, exports(), Config::new());
        let forbidden = size_of(&running, "forbidden").expect_err("it is forbidden");
        let absent = size_of(&running, "absent").expect_err("it is absent");
        assert_eq!(forbidden.kind(), io::ErrorKind::NotFound);
        assert_eq!(forbidden.to_string(), absent.to_string());
    }
}

#[test]
fn an_export_is_made_on_demand_once_for_a_connection() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let exports = Exports::new().on_demand(move |name, _| {
        let count = Arc::clone(&count);
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let size: u64 = name.strip_prefix("size-")?.parse().ok()?;
            count.fetch_add(1, Ordering::SeqCst);
            Some(Export::new(name, Disk::new(size)))
        }
    });
    let running = Running::start(Face::Tokio, exports, Config::new());
    let contexts = [nbd_codec::client::MetaContextQuery::narrow(
        "base:allocation",
    )];
    // SET_META_CONTEXT asks about it, then GO.
    let config = ClientConfig::new("size-12345").contexts(&contexts);
    let negotiated = connect(&mut running.connect(), config).expect("it is made");
    assert_eq!(negotiated.size, 12345);
    assert_eq!(negotiated.contexts.len(), 1);
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_eq!(size_of(&running, "size-1").expect("another"), 1);
    assert_eq!(made.load(Ordering::SeqCst), 2);
    let absent = size_of(&running, "other").expect_err("not made");
    assert_eq!(absent.kind(), io::ErrorKind::NotFound);
}
