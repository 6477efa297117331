//! Clients of other projects.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use nbd_io::server::{Config, Export, Exports};
use nbd_test_support::images::{assert_same, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::program::run;

use crate::support::{Disk, FACES, MIB, Running};

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn qemu_img_converts_there_and_back_and_sees_the_holes() {
    needs!("qemu-img");
    for face in FACES {
        let running = Running::disk(face, Disk::new(64 * MIB));
        let folder = tempfile::tempdir().expect("a folder");
        let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
        sparse(&image, 64 * MIB, &scattered(64 * MIB));
        let uri = running.uri("disk");
        let raw = ["convert", "-n", "-f", "raw", "-O", "raw"];
        run(Command::new("qemu-img")
            .args(raw)
            .args([path(&image), &uri]))
        .ok();
        run(Command::new("qemu-img").args(["compare", "-f", "raw", path(&image), &uri])).ok();
        File::create(&copy)
            .expect("a file")
            .set_len(64 * MIB)
            .expect("a size");
        run(Command::new("qemu-img").args(raw).args([&uri, path(&copy)])).ok();
        assert_same(&image, &copy);
        let map = ["map", "--output=json", "-f", "raw"];
        let map = run(Command::new("qemu-img").args(map).arg(&uri)).json();
        let map = map.as_array().expect("extents");
        let holes = map.iter().filter(|extent| extent["data"] == false).count();
        assert!(holes > 50, "{holes}");
    }
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    needs!("qemu-io");
    for face in FACES {
        let running = Running::disk(face, Disk::new(16 * MIB));
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", &running.uri("disk")]);
        for text in [
            "write -P 1 0 1M",
            "write -z 64k 64k",
            "write -z -u 256k 64k",
            "discard 512k 64k",
            "write -f -P 2 3 100000",
            "flush",
            "read -P 2 3 100000",
            "read -P 0 256k 64k",
            "read -P 1 128k 128k",
            "read -P 0 15M 1M",
        ] {
            command.args(["-c", text]);
        }
        let ended = run(&mut command).ok();
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(!text.contains("ailed"), "{text}");
    }
}

#[test]
fn qemu_img_keeps_many_in_flight() {
    needs!("qemu-img");
    for face in FACES {
        let running = Running::disk(face, Disk::new(16 * MIB));
        let bench = |args: &[&str]| {
            let mut command = Command::new("qemu-img");
            command.args(["bench", "-f", "raw", "-s", "8k", "-c", "3000"]);
            run(command.args(args).arg(running.uri("disk"))).ok();
        };
        bench(&["-w", "-d", "32", "--pattern=7"]);
        bench(&["-d", "64"]);
        // 3000 times 8 KiB exceed the size of the disk, so every byte was written.
        let data = running.client("disk").read(0, 16 << 20);
        assert!(data == Ok(vec![7; 16 << 20]));
    }
}

#[test]
fn nbdcopy_copies_over_four_connections() {
    needs!("nbdcopy");
    for face in FACES {
        let running = Running::disk(face, Disk::new(64 * MIB));
        let folder = tempfile::tempdir().expect("a folder");
        let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
        sparse(&image, 64 * MIB, &scattered(64 * MIB));
        let uri = running.uri("disk");
        let many = ["--connections=4", "--requests=32"];
        run(Command::new("nbdcopy")
            .args(many)
            .args([path(&image), &uri]))
        .ok();
        run(Command::new("nbdcopy").args(many).args([&uri, path(&copy)])).ok();
        assert_same(&image, &copy);
    }
}

#[test]
fn nbdinfo_sees_the_export_and_its_contexts_in_both_widths() {
    needs!("nbdinfo");
    for face in FACES {
        let running = Running::disk(face, Disk::new(MIB));
        running
            .client("disk")
            .write(4096, &[1; 4096])
            .expect("written");
        let info = run(Command::new("nbdinfo").args(["--json", &running.uri("disk")])).json();
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "disk");
        assert_eq!(export["export-size"], MIB);
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!(export["block_size_maximum"], 32 * MIB);
        for (context, expected) in [
            ("base:allocation", [(4096, 3), (4096, 0), (MIB - 8192, 3)]),
            ("test:data", [(4096, 0), (4096, 1 << 40), (MIB - 8192, 0)]),
        ] {
            let map = format!("--map={context}");
            let uri = running.uri("disk");
            let ended = run(Command::new("nbdinfo").args(["--json", &map, &uri]));
            if context == "test:data" && ended.code != Some(0) {
                // It needs extended headers, which older versions do not have.
                continue;
            }
            let extents = ended.json();
            let extents: Vec<_> = extents.as_array().expect("extents").iter().collect();
            let found: Vec<_> = extents
                .iter()
                .map(|it| (it["length"].as_u64().unwrap(), it["type"].as_u64().unwrap()))
                .collect();
            assert_eq!(found, expected, "{context}");
        }
    }
}

#[test]
fn fio_verifies_its_writes() {
    needs!("fio");
    for face in FACES {
        // So little memory that requests wait for it.
        for memory in [1 << 20, 256 << 20] {
            let exports = Exports::new().with(Export::new("disk", Disk::new(64 * MIB)));
            let running = Running::start(face, exports, Config::new().memory(memory));
            let folder = tempfile::tempdir().expect("a folder");
            let mut command = Command::new("fio");
            command.current_dir(folder.path());
            command.args(["--name=verify", "--ioengine=nbd", "--size=64M", "--minimal"]);
            command.args(["--rw=randwrite", "--bsrange=512-128k", "--iodepth=32"]);
            command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
            command.arg(format!("--uri={}", running.uri("disk")));
            run(&mut command).ok();
        }
    }
}
