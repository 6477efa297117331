//! `STARTTLS`: both sides with each other and with programs of other projects.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nbd_test_support::certificates;
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::{Ended, example, run};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

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

/// The certificate authority without a client certificate.
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

/// TLS 1.2 is the oldest version that both sides must have.
#[test]
fn our_server_with_each_version_of_tls() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    for (version, number) in [(&TLS12, 0x0303), (&TLS13, 0x0304)] {
        let file = |name: &str| certificates.path().join(name);
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(file("ca-cert.pem")).expect("a certificate");
        roots.add(authority).expect("an authority");
        let own = CertificateDer::from_pem_file(file("client-cert.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(file("client-key.pem")).expect("a key");
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own], key)
            .expect("a configuration");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let tls = ClientConnection::new(Arc::new(config), name).expect("a client");

        let mut stream = raw(&server);
        let starttls = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";
        stream.write_all(starttls).expect("sent");
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).expect("an acknowledgement");
        let mut stream = StreamOwned::new(tls, stream);
        let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
        stream.write_all(list).expect("sent under TLS");
        stream.read_exact(&mut reply).expect("a reply under TLS");
        // NBD_REP_SERVER, in reply to LIST.
        assert_eq!(reply[8..16], *b"\0\0\0\x03\0\0\0\x02");
        let negotiated = stream.conn.protocol_version().map(u16::from);
        assert_eq!(negotiated, Some(number));
    }
}

#[test]
fn our_client_with_each_version_of_tls() {
    needs!("qemu-nbd");
    let certificates = certificates::folder();
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    let data = noise(7, SIZE as usize);
    fs::write(&image, &data).expect("an image");
    for version in ["VERS-TLS1.2", "VERS-TLS1.3"] {
        let dir = text(certificates.path());
        let only = format!("priority=NORMAL:-VERS-ALL:+{version}");
        let secret = format!("--object=tls-creds-x509,id=tls0,endpoint=server,dir={dir},{only}");
        let peer = Peer::qemu(&[&secret, "--tls-creds=tls0", "--format=raw"], &image);
        let bridge = Bridge::new(peer);
        let pulled = pull(&bridge.address(), "", certificates.path()).ok();
        assert!(pulled.stdout == data, "{version}");
    }
}

#[test]
fn invalid_certificates() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    // A server with a certificate of another authority, a client without one.
    let other = certificates::folder();
    let ended = pull(server.address(), "memory", other.path());
    assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
    assert!(ended.stderr.contains("InvalidCertificate"), "{ended:?}");
    let without = anonymous(certificates.path());
    let ended = pull(server.address(), "memory", without.path());
    assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
    // The server continues.
    pull(server.address(), "memory", certificates.path()).ok();
}

#[test]
fn plain_text_is_rejected() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let ended = run(example("blocking_client").args([server.address(), "memory"]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("ServerRequiresTls"), "{ended:?}");
    // A client that requires TLS, a server without it.
    let server = Example::start("tokio_server", &["127.0.0.1:0", "65536"]);
    let ended = pull(server.address(), "memory", certificates.path());
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("TlsRefused"), "{ended:?}");
}

/// Plain text that an attacker injects after STARTTLS is never handled as if the
/// client had sent it under TLS.
#[test]
fn plain_text_after_starttls() {
    let certificates = certificates::folder();
    let server = serve(certificates.path());
    let starttls = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";
    let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    let ack = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";

    // In one piece: the server closes the connection without a reply.
    let mut stream = raw(&server);
    stream
        .write_all(&[&starttls[..], list].concat())
        .expect("sent");
    assert_eq!(read_to_end(&mut stream), b"");

    // After the acknowledgement: it is not a TLS handshake.
    let mut stream = raw(&server);
    stream.write_all(starttls).expect("sent");
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, ack);
    stream.write_all(list).expect("sent");
    let received = read_to_end(&mut stream);
    // At most a TLS alert (record type 21) and the end.
    assert!(matches!(received.first(), None | Some(21)), "{received:?}");
    assert!(
        !received.windows(8).any(|part| part == &ack[..8]),
        "{received:?}"
    );

    pull(server.address(), "memory", certificates.path()).ok();
}

/// A connection, after the greeting.
fn raw(server: &Example) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).expect("a connection");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a limit");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream
}

/// Reads until the end. (A connection that is closed with unread input is reset.)
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    received
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
    let without = anonymous(certificates.path());
    let ended = pull(&bridge.address(), "", without.path());
    assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
}
