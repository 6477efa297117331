//! `STARTTLS`, both sides, against each other and against the programs of
//! others.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_test_support::certificates;
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::{Ended, example, run};

use crate::place::{Bridge, Example};

const SIZE: u64 = 4 * MIB;

fn serve(certificates: &Path) -> Example {
    let size = SIZE.to_string();
    Example::start("tls_server", &["127.0.0.1:0", &size, text(certificates)])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn pull(address: &str, export: &str, certificates: &Path) -> Ended {
    run(example("tls_client")
        .args([address, export])
        .arg(certificates))
}

/// The authority without a certificate for the client.
fn anonymous(certificates: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let name = "ca-cert.pem";
    fs::copy(certificates.join(name), folder.path().join(name)).expect("a copy");
    folder
}

#[test]
fn our_client_and_our_server() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let pulled = pull(server.address(), "memory", certificates.path()).ok();
    assert!(pulled.stdout == vec![0; SIZE as usize]);
}

#[test]
fn who_is_not_who_they_should_be() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    // A server of another authority, a client of none.
    let other = certificates::folder();
    let ended = pull(server.address(), "memory", other.path());
    assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
    assert!(ended.stderr.contains("InvalidCertificate"), "{ended:?}");
    let nobody = anonymous(certificates.path());
    let ended = pull(server.address(), "memory", nobody.path());
    assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
    // The server goes on.
    pull(server.address(), "memory", certificates.path()).ok();
}

#[test]
fn no_plain_text() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let ended = run(example("blocking_client").args([server.address(), "memory"]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("ServerRequiresTls"), "{ended:?}");
    // The other way round: a client that insists, a server that has none.
    let server = Example::start("tokio_server", &["127.0.0.1:0", "65536"]);
    let ended = pull(server.address(), "memory", certificates.path());
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("TlsRefused"), "{ended:?}");
}

/// What somebody put behind STARTTLS in plain text is never taken for what the
/// client said under TLS.
#[test]
fn plain_text_behind_starttls() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let starttls = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";
    let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    let ack = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";

    // In one piece: refused before it is acknowledged.
    let mut stream = raw(&server);
    stream
        .write_all(&[&starttls[..], list].concat())
        .expect("sent");
    assert_eq!(rest(&mut stream), b"");

    // Behind the acknowledgement: no handshake of TLS begins like that.
    let mut stream = raw(&server);
    stream.write_all(starttls).expect("sent");
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, ack);
    stream.write_all(list).expect("sent");
    let said = rest(&mut stream);
    // At most an alert of TLS (record type 21) and the end.
    assert!(matches!(said.first(), None | Some(21)), "{said:?}");
    assert!(!said.windows(8).any(|part| part == &ack[..8]), "{said:?}");

    pull(server.address(), "memory", certificates.path()).ok();
}

/// A connection behind the greeting.
fn raw(server: &Example) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).expect("a connection");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a limit");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream
}

/// Everything to the end. (A connection that is closed with input unread is
/// reset.)
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    said
}

#[test]
fn qemu_img_against_our_server() {
    needs!("qemu-img", "qemu-io");
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let (host, port) = server.address().rsplit_once(':').expect("a port");
    let secret = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        text(certificates.path())
    );
    let image = format!("driver=nbd,host={host},port={port},export=memory,tls-creds=tls0");
    let args = ["--object", &secret, "--image-opts"];
    let info = run(Command::new("qemu-img")
        .args(["info", "--output=json"])
        .args(args)
        .arg(&image));
    assert_eq!(info.json()["virtual-size"], SIZE);
    let mut command = Command::new("qemu-io");
    command
        .args(args)
        .args(["-c", "write -P 0x77 1M 2M", "-c", "read -P 0x77 1M 2M"]);
    run(command.args(["-c", "flush"]).arg(&image)).ok();
    let pulled = pull(server.address(), "memory", certificates.path())
        .ok()
        .stdout;
    let whole = [vec![0; 1 << 20], vec![0x77; 2 << 20], vec![0; 1 << 20]].concat();
    assert!(pulled == whole);
}

#[test]
fn libnbd_against_our_server() {
    needs!("nbdinfo", "nbdcopy");
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let uri = format!(
        "{}?tls-certificates={}",
        server.uri,
        text(certificates.path())
    );
    let info = run(Command::new("nbdinfo").args(["--json", &uri])).json();
    assert_eq!(info["TLS"], true);
    assert_eq!(info["exports"][0]["export-size"], SIZE);
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let data = noise(5, SIZE as usize);
    fs::write(&input, &data).expect("input");
    run(Command::new("nbdcopy").arg(&input).arg(&uri)).ok();
    run(Command::new("nbdcopy").arg(&uri).arg(&output)).ok();
    assert!(fs::read(&output).expect("output") == data);
}

#[test]
fn our_client_against_qemu_nbd() {
    needs!("qemu-nbd");
    let certificates = certificates::folder();
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let data = noise(6, SIZE as usize);
    fs::write(&image, &data).expect("an image");
    let dir = text(certificates.path());
    let secret =
        format!("--object=tls-creds-x509,id=tls0,endpoint=server,dir={dir},verify-peer=yes");
    let peer = Peer::qemu(&[&secret, "--tls-creds=tls0", "--format=raw"], &image);
    against(&Bridge::new(peer), &certificates, &data);
}

#[test]
fn our_client_against_nbdkit() {
    needs!("nbdkit");
    let certificates = certificates::folder();
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let data = noise(6, SIZE as usize);
    fs::write(&image, &data).expect("an image");
    let dir = format!("--tls-certificates={}", text(certificates.path()));
    let args = [
        "--tls=require",
        "--tls-verify-peer",
        &dir,
        "file",
        text(&image),
    ];
    against(&Bridge::new(Peer::nbdkit(&args)), &certificates, &data);
}

fn against(bridge: &Bridge, certificates: &tempfile::TempDir, data: &[u8]) {
    let pulled = pull(&bridge.address(), "", certificates.path()).ok();
    assert!(pulled.stdout == data);
    let nobody = anonymous(certificates.path());
    let ended = pull(&bridge.address(), "", nobody.path());
    assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
}
