//! The command line options and their effects.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command as Program;

use nbd_codec::uri::{Transport, Uri};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::greeting::{Greeting, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::program::{Ended, run};
use nbd_test_support::skipped::skip;

use crate::nbd::run_nbd;
use crate::raw::{Raw, request};
use crate::running::{Disk, Serve, program};

fn run_serve(args: &[&str]) -> Ended {
    run(program().args(args))
}

/// The server ends with an error of one line.
#[track_caller]
fn refused(args: &[&str], texts: &[&str]) {
    run_serve(args).refused(texts);
}

/// The command line is invalid, which has its own exit code.
#[track_caller]
fn misused(args: &[&str], text: &str) {
    let ended = run_serve(args);
    assert_eq!(ended.code, Some(2), "{args:?}");
    assert!(ended.stderr.contains(text), "{text:?} in {}", ended.stderr);
}

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    refused(&["/no/such/file"], &["/no/such/file", "No such file"]);
    refused(&["/"], &["not a regular file or block device"]);
    refused(&["/dev/null"], &["not a regular file or block device"]);
    let sizes = ["--block-size", "512:4096:1M"];
    refused(
        &[&sizes[..], &["--memory", "1000"]].concat(),
        &["not a multiple", "512"],
    );
    let name = "x".repeat(4097);
    refused(&["--memory", "1M", "--export-name", &name], &["4096"]);
    refused(
        &["--memory", "1M", "--tcp", "127.0.0.1"],
        &["cannot listen on 127.0.0.1"],
    );

    misused(&["--memory", "1M", "--threads", "1"], "from 2 to 256");
    misused(
        &["--memory", "1M", "--max-clients", "0"],
        "from 1 to 1000000",
    );
    for time in ["0", "-1", "nan", "inf", "1e10", "1e19", "1e30"] {
        let time = format!("--handshake-timeout={time}");
        misused(&["--memory", "1M", &time], "--handshake-timeout");
    }
    refused(
        &["--memory", "1M", "--buffers", "79M"],
        &["--buffers", "at least 80M"],
    );
    misused(&[], "<FILE|--memory");
    misused(&["--memory", "1M", "file"], "cannot be used with");
    misused(&["--memory", "1Q"], "not a size");
    misused(
        &["--memory", "1M", "--block-size", "3:512:1M"],
        "power of two",
    );
    misused(&["--memory", "1M", "--block-size", "1:512"], "three sizes");
    misused(
        &["--memory", "1M", "--block-size", "1:512:1M:1"],
        "three sizes",
    );
    misused(
        &["--memory", "1M", "--block-size", "1:512:1G"],
        "at most 256M",
    );
    misused(
        &["--memory", "1M", "--unix", "x", "--tcp", "y"],
        "cannot be used with",
    );
}

#[test]
fn a_port_that_is_in_use_is_refused() {
    let serve = tcp(&["--memory", "1M"]);
    let address = address(&serve);
    refused(
        &["--memory", "1M", "--tcp", &address],
        &[&address, "in use"],
    );
}

fn tcp(args: &[&str]) -> Serve {
    let folder = tempfile::tempdir().expect("a folder");
    Serve::run(folder, &[&["--tcp", "127.0.0.1:0"], args].concat())
}

fn address(serve: &Serve) -> String {
    let uri: Uri = serve.uri().parse().expect("a URI");
    match uri.transport() {
        Transport::Tcp { host, port } => format!("{host}:{port}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn port_0_chooses_a_free_port() {
    let serve = tcp(&["--memory", "1M", "--export-name", "a disk/1"]);
    let uri: Uri = serve.uri().parse().expect("a URI");
    assert_eq!(uri.export(), "a disk/1");
    let mut stream = TcpStream::connect(address(&serve)).expect("a connection");
    let mut greeting = [0; NewstyleGreeting::SIZE];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(greeting[..8], *b"NBDMAGIC");
    drop(stream);
    // Not verbose: no output.
    assert_eq!(serve.stop(), "");
}

#[test]
fn the_uri_of_a_listener_on_all_addresses_is_localhost() {
    let folder = tempfile::tempdir().expect("a folder");
    let serve = Serve::run(folder, &["--tcp", "0.0.0.0:0", "--memory", "1M"]);
    assert!(
        serve.uri().starts_with("nbd://127.0.0.1:"),
        "{}",
        serve.uri()
    );
    TcpStream::connect(address(&serve)).expect("a connection");
}

#[test]
fn read_only_rejects_writes() {
    let serve = Disk::File.serve(1, &["--read-only"]);
    let mut client = Raw::ready(&serve);
    client.send(&request(Command::WRITE, 0, 512));
    client.send(&[1; 512]);
    assert_eq!(client.reply(), ErrorValue::EPERM);
    for command in [Command::TRIM, Command::WRITE_ZEROES] {
        client.send(&request(command, 0, 512));
        assert_eq!(client.reply(), ErrorValue::EPERM);
    }
    client.send(&request(Command::FLUSH, 0, 0));
    assert_eq!(client.reply(), ErrorValue::NONE);
    client.send(&request(Command::READ, 0, 512));
    assert_eq!(client.reply(), ErrorValue::NONE);
    assert_eq!(client.receive(512), [0; 512]);
}

#[test]
fn errors_of_the_file_are_reported_to_operator_and_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| {
        let path = folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    };
    let (socket, disk) = (path("socket"), path("disk"));
    nbd_test_support::images::sparse(disk.as_ref(), MIB, &[]);
    // Not verbose.
    let serve = Serve::run(folder, &["--unix", &socket, &disk]);
    let mut client = Raw::ready(&serve);
    nbd_test_support::images::sparse(disk.as_ref(), 1000, &[]);
    client.send(&request(Command::READ, 4096, 512));
    assert_eq!(client.reply(), ErrorValue::EIO);
    // The server continues.
    client.send(&request(Command::READ, 0, 512));
    assert_eq!(client.reply(), ErrorValue::NONE);
    assert_eq!(client.receive(512), [0; 512]);
    assert_eq!(
        serve.stop(),
        "nbd-serve: NBD_CMD_READ: the file has been truncated\n"
    );
}

#[test]
fn a_file_that_cannot_be_written_is_served_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    std::fs::write(&file, noise(1, 4096)).expect("a file");
    let mode = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(&file, mode).expect("no permission to write");
    let serve = Serve::start_in(folder, &["--read-only", "disk"]);
    let mut client = Raw::ready(&serve);
    client.send(&request(Command::READ, 0, 4096));
    assert_eq!(client.reply(), ErrorValue::NONE);
    assert_eq!(client.receive(4096), noise(1, 4096));
}

#[test]
fn block_sizes_are_enforced() {
    let serve = Disk::Memory.serve(1, &["--block-size", "4K:4K:64K"]);
    let mut client = Raw::ready(&serve);
    for (offset, length, expected) in [
        (0, 512, ErrorValue::EINVAL),
        (512, 4096, ErrorValue::EINVAL),
        (0, 65536 + 4096, ErrorValue::EINVAL),
        (0, 4096, ErrorValue::NONE),
    ] {
        client.send(&request(Command::WRITE, offset, length));
        client.send(&noise(offset, length as usize));
        assert_eq!(client.reply(), expected, "{offset} {length}");
    }
}

#[test]
fn blocks_of_the_minimum_size_are_either_data_or_hole() {
    needs!("nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("disk");
    nbd_test_support::images::sparse(&image, MIB, &[(65536 + 8192, 4096), (3 * 65536, 131_072)]);
    let sizes = ["--block-size", "64K:64K:1M"];
    let serve = Serve::start_in(folder, &[&sizes[..], &["disk"]].concat());
    let mut nbdinfo = Program::new("nbdinfo");
    let map = run(nbdinfo.args(["--map", "--json", serve.uri()])).json();
    let extents = map.as_array().expect("an array").iter();
    let extents: Vec<_> = extents
        .map(|extent| ["offset", "length", "type"].map(|key| extent[key].as_u64()))
        .collect();
    let expected = [
        (0, 65536, 3),
        (65536, 65536, 0),
        (131_072, 65536, 3),
        (196_608, 131_072, 0),
        (327_680, 720_896, 3),
    ];
    let expected = expected.map(|(offset, length, kind)| [offset, length, kind].map(Some));
    assert_eq!(extents, expected);
}

#[test]
fn oldstyle_needs_no_options() {
    let serve = Disk::Memory.serve(1, &["--oldstyle"]);
    let mut client = Raw::connect(&serve);
    let bytes = client.receive(OldstyleGreeting::SIZE);
    let Ok(Some(Greeting::Oldstyle(greeting))) = Greeting::decode(&mut &bytes[..]) else {
        panic!("{}", bytes.escape_ascii());
    };
    assert_eq!(greeting.size, MIB);
    let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_TRIM;
    assert!(greeting.flags.contains(flags), "{}", greeting.flags);
    client.send(&request(Command::WRITE, 4096, 4096));
    client.0.write_all(&noise(1, 4096)).expect("a payload");
    assert_eq!(client.reply(), ErrorValue::NONE);
    client.send(&request(Command::READ, 4096, 4096));
    assert_eq!(client.reply(), ErrorValue::NONE);
    assert_eq!(client.receive(4096), noise(1, 4096));
}

#[test]
fn oldstyle_with_other_clients() {
    needs!("nbdinfo", "nbdcopy", "qemu-io");
    let serve = Disk::Memory.serve(1, &["--oldstyle"]);
    let info = run(Program::new("nbdinfo").args(["--json", serve.uri()])).json();
    assert_eq!(info["protocol"], "oldstyle", "{info}");
    assert_eq!(info["exports"][0]["export-size"], MIB, "{info}");
    let back = serve.folder().join("back");
    let commands = [
        "-c",
        "write -P 9 64k 64k",
        "-c",
        "flush",
        "-c",
        "read -P 9 64k 64k",
    ];
    run(Program::new("qemu-io")
        .args(["-f", "raw"])
        .args(commands)
        .arg(serve.uri()))
    .ok();
    run(Program::new("nbdcopy").arg(serve.uri()).arg(&back)).ok();
    let bytes = std::fs::read(&back).expect("a copy");
    assert!(bytes[..65536].iter().all(|byte| *byte == 0));
    assert!(bytes[65536..131_072].iter().all(|byte| *byte == 9));
}

/// Reads of every size and block status fail alike, whether or not the server knew
/// data there.
#[test]
fn a_file_truncated_by_another_process_is_an_error() {
    for known in [false, true] {
        let serve = Disk::File.serve(4, &[]);
        let disk = serve.folder().join("disk");
        std::fs::write(&disk, noise(1, 4 << 20)).expect("data");
        if known {
            run_nbd(["map", serve.uri()]).ok();
        }
        let file = std::fs::File::options().write(true).open(&disk);
        file.expect("the disk").set_len(1 << 20).expect("its size");
        for length in ["4096", "65536", "262144", "1M"] {
            for framing in ["simple", "extended"] {
                let args = ["read", serve.uri(), "--offset", "2M", "--length", length];
                let ended = run_nbd([&args[..], &["--framing", framing]].concat());
                assert_eq!(ended.code, Some(1), "{length} bytes, {framing}, {known}");
            }
        }
        let ended = run_nbd(["map", serve.uri()]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        serve.has_reported("truncated");
        // What is left can be read.
        run_nbd(["read", serve.uri(), "--length", "1M"]).ok();
    }
}

#[test]
fn repeated_lines_are_counted() {
    let serve = Disk::File.serve(1, &[]);
    let file = std::fs::File::options()
        .write(true)
        .open(serve.folder().join("disk"));
    file.expect("the disk").set_len(0).expect("its size");
    let mut client = Raw::ready(&serve);
    for _ in 0..10 {
        client.send(&[request(Command::READ, 0, 512); 50].concat());
        for _ in 0..50 {
            assert_eq!(client.reply(), ErrorValue::EIO);
        }
    }
    let log = serve.stop();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("truncated"))
        .collect();
    assert!(lines.len() < 5, "{log}");
    let more = lines.iter().filter_map(|line| {
        let (_, count) = line.split_once("(repeated ")?;
        count.split(' ').next()?.parse::<u32>().ok()
    });
    assert_eq!(more.sum::<u32>(), 499, "{log}");
}

/// In a network of its own, with a link-local address.
#[test]
fn an_address_with_a_scope_is_kept_in_the_uri() {
    needs!("unshare", "ip");
    let inside = "ip link set lo up && ip -6 addr add fe80::77/64 dev lo nodad && exec \"$@\"";
    let unshare = ["-r", "-n", "sh", "-c", inside, "sh"];
    if run(Program::new("unshare").args(unshare).arg("true")).code != Some(0) {
        return skip("a network namespace");
    }
    for (address, uri) in [
        ("[fe80::77%lo]:10905", "nbd://[fe80::77%25lo]:10905/"),
        ("[fe80::77%1]:10905", "nbd://[fe80::77%251]:10905/"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Program::new("unshare");
        command.args(unshare).arg(program().get_program());
        command.args(["--memory=1M", "--tcp", address]);
        let serve = Serve::spawn(folder, &mut command);
        assert_eq!(serve.uri(), uri);
        serve.stop();
    }
    refused(
        &["--memory", "1M", "--tcp", "[fe80::77%nothing]:0"],
        &["cannot listen on [fe80::77%nothing]:0"],
    );
}

#[test]
fn memory_is_given_back_after_a_trim() {
    let serve = Serve::start(&["--memory", "1G"]);
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", serve.id()));
        let text = text.expect("its state");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|it| it.parse::<u64>().ok())
            .expect("a number")
            / 1024
    };
    let mut client = Raw::ready(&serve);
    // In random order, so that adjacent memory is of pages that are far from each other.
    let data = vec![7; 64 << 10];
    for n in 0..2400 {
        client.send(&request(Command::WRITE, (n * 997 % 2400) << 16, 64 << 10));
        client.send(&data);
        assert_eq!(client.reply(), ErrorValue::NONE);
    }
    assert!(resident() > 140, "{} MiB", resident());
    for mib in 0..150 {
        client.send(&request(Command::TRIM, mib << 20, 1 << 20));
        assert_eq!(client.reply(), ErrorValue::NONE);
    }
    assert!(resident() < 40, "{} MiB", resident());
}
