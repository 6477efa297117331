//! Every command, in every framing, with every server that supports writes.

use nbd_codec::client::Request;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Framing, Misuse};
use nbd_test_support::images::{MIB, noise, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;

use crate::driver::Client;
use crate::nbd::run_nbd;

const SIZE: u64 = 16 * MIB;

/// Writes, reads back, zeroes, trims, flushes.
fn exercise(peer: &Peer, export: &str, framing: Framing) {
    let mut client = Client::open(peer, export, framing);
    let negotiated = *client.negotiated();
    assert_eq!(negotiated.framing, framing);
    assert_eq!(negotiated.size, SIZE);
    let can = |flag| negotiated.flags.contains(flag);

    let data = noise(framing as u64, MIB as usize);
    client.done(Request::write(MIB, MIB), &data);
    assert!(client.done(Request::read(MIB, MIB), &[]) == data);

    // Zeroes in the middle, with a hole and without.
    for flags in [CommandFlags::NONE, CommandFlags::NO_HOLE] {
        client.done(
            Request::write_zeroes(MIB + 4096, 8192).with_flags(flags),
            &[],
        );
        let mut expected = data.clone();
        expected[4096..12288].fill(0);
        assert!(
            client.done(Request::read(MIB, MIB), &[]) == expected,
            "{flags}"
        );
        client.done(Request::write(MIB, MIB), &data);
    }
    if can(TransmissionFlags::SEND_FUA) {
        let request = Request::write(5 * MIB, 4096).with_flags(CommandFlags::FUA);
        client.done(request, &data[..4096]);
        assert!(client.done(Request::read(5 * MIB, 4096), &[]) == data[..4096]);
    }
    if can(TransmissionFlags::SEND_DF) && framing >= Framing::Structured {
        // Half data, half hole, in one chunk.
        let request = Request::read(2 * MIB - 4096, 8192).with_flags(CommandFlags::DF);
        let expected = [&data[data.len() - 4096..], &[0; 4096]].concat();
        assert!(client.done(request, &[]) == expected);
    }
    if can(TransmissionFlags::SEND_CACHE) {
        client.done(Request::cache(0, MIB), &[]);
    }
    client.done(Request::trim(MIB, 65536), &[]);
    client.done(Request::flush(), &[]);
    // The trimmed range is undefined; what follows is unchanged.
    let untrimmed = client.done(Request::read(MIB + 65536, MIB - 65536), &[]);
    assert!(untrimmed == data[65536..]);

    // Rejected by the state machine.
    let past_the_end = client.command(Request::read(SIZE, 4096), &[]);
    assert_eq!(past_the_end, Err(Misuse::OutOfBounds { size: SIZE }));
    client.disconnect();

    // A lenient client sends it, the server rejects it, and the session continues.
    let mut tester = Client::open(peer, export, framing).lenient();
    let past_the_end = tester.command(Request::read(SIZE, 4096), &[]);
    assert!(matches!(past_the_end, Ok(Err(_))), "{past_the_end:?}");
    let past_the_end = tester.command(Request::write(SIZE, 4096), &[0; 4096]);
    let expected = [ErrorValue::ENOSPC, ErrorValue::EINVAL, ErrorValue::EIO];
    assert!(
        matches!(past_the_end, Ok(Err(error)) if expected.contains(&error)),
        "{past_the_end:?}"
    );
    assert!(
        tester.done(Request::read(5 * MIB, 4096), &[]) == client_data(&data, &negotiated.flags)
    );
    tester.disconnect();
}

/// The data at 5 MiB.
fn client_data(data: &[u8], flags: &TransmissionFlags) -> Vec<u8> {
    if flags.contains(TransmissionFlags::SEND_FUA) {
        data[..4096].to_vec()
    } else {
        vec![0; 4096]
    }
}

#[test]
fn every_command_with_nbdkit() {
    needs!("nbdkit");
    for framing in [Framing::Simple, Framing::Structured] {
        let peer = Peer::nbdkit(&["memory", "16M"]);
        exercise(&peer, "", framing);
    }
}

#[test]
fn every_command_with_qemu_nbd() {
    needs!("qemu-nbd");
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        sparse(&image, SIZE, &[]);
        let peer = Peer::qemu(&["--format=raw", "--discard=unmap"], &image);
        exercise(&peer, "", framing);
    }
}

#[test]
fn every_command_with_nbd_server() {
    needs!("nbd-server");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, SIZE, &[]);
    let peer = Peer::nbd_server(&image);
    exercise(&peer, "disk", Framing::Simple);
}

#[test]
fn nbd_read_returns_what_nbd_write_wrote() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let data = noise(1, 5 * MIB as usize + 12345);
    std::fs::write(&input, &data).expect("input");
    let peer = Peer::nbdkit(&["memory", "16M"]);
    let uri = peer.uri("");
    for framing in ["simple", "structured", "extended"] {
        let common = ["--framing", framing, "--offset", "64K"];
        let path = input.to_str().expect("UTF-8");
        run_nbd(["write", &uri, "--input", path].iter().chain(&common)).ok();
        let length = data.len().to_string();
        let read = ["read", &uri, "--length", &length];
        assert!(run_nbd(read.iter().chain(&common)).ok().stdout == data);
        let path = output.to_str().expect("UTF-8");
        run_nbd(read.iter().chain(&["--output", path]).chain(&common)).ok();
        assert!(std::fs::read(&output).expect("output") == data);
    }
    // To the end, if no length is given.
    let end = run_nbd(["read", &uri, "--offset", "15M"]).ok().stdout;
    assert!(end == vec![0; MIB as usize]);

    run_nbd(["read", &uri, "--offset", "16M", "--length", "1"]).refused(&["exceed the export"]);
    let path = input.to_str().expect("UTF-8");
    run_nbd(["write", &uri, "--offset", "15M", "--input", path])
        .refused(&["only 1048576 after offset"]);
}

#[test]
fn options_that_a_command_does_not_use_are_refused() {
    let tap = "tap --listen nbd://127.0.0.1:0 --connect nbd://127.0.0.1";
    for command in [tap, "decode Cargo.toml", ""] {
        for option in ["--record r", "--timeout 1", "--no-go", "--framing simple"] {
            let args = command.split_whitespace().chain(option.split(' '));
            let (option, _) = option.split_once(' ').unwrap_or((option, ""));
            run_nbd(args).refused(&[option, "cannot be used with tap"]);
        }
    }
}
