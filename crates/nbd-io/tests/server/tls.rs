//! TLS: forced, or as the client and the export will.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number;
use nbd_codec::wire::request::CompactRequest;
use nbd_io::server::{Config, Export, Exports, TlsMode};
use nbd_test_support::images::{assert_same, scattered, sparse};
use nbd_test_support::peer::poll_for;
use nbd_test_support::program::{Ended, run};
use nbd_test_support::{certificates, needs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig as TlsConfig, ClientConnection, RootCertStore, ServerConfig};
use rustls::{StreamOwned, SupportedProtocolVersion};

use crate::hostile::Counted;
use crate::support::{Disk, FACES, Face, MIB, Running};

fn server_config(folder: &Path) -> Arc<ServerConfig> {
    let file = |name| folder.join(name);
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(file("ca-cert.pem")).expect("a certificate");
    roots.add(authority).expect("an authority");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .expect("a verifier");
    let chain = vec![CertificateDer::from_pem_file(file("server-cert.pem")).expect("one")];
    let key = PrivateKeyDer::from_pem_file(file("server-key.pem")).expect("a key");
    let config = ServerConfig::builder().with_client_cert_verifier(verifier);
    Arc::new(
        config
            .with_single_cert(chain, key)
            .expect("a configuration"),
    )
}

const STARTTLS: &[u8] = b"IHAVEOPT\0\0\0\x05\0\0\0\0";
const LIST: &[u8] = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
const ACK: &[u8] = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";

fn forced(face: Face, folder: &Path, config: Config) -> Running {
    let exports = Exports::new().with(Export::new("disk", Disk::new(MIB)));
    Running::start(
        face,
        exports,
        config.tls(server_config(folder), TlsMode::Forced),
    )
}

/// A connection, after the greeting and the flags of the client.
fn greeted(running: &Running) -> UnixStream {
    let mut stream = running.connect();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream.write_all(&[0, 0, 0, 3]).expect("sent");
    stream
}

/// A connection under TLS, in the handshake of NBD.
fn secure(
    running: &Running,
    folder: &Path,
    version: &'static SupportedProtocolVersion,
) -> StreamOwned<ClientConnection, UnixStream> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(folder.join("ca-cert.pem"));
    roots
        .add(authority.expect("a certificate"))
        .expect("an authority");
    let config = TlsConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = greeted(running);
    stream.write_all(STARTTLS).expect("sent");
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).expect("an acknowledgement");
    assert_eq!(reply, ACK);
    StreamOwned::new(tls, stream)
}

/// Asks for the size; `tls` is a folder of certificates.
fn size(running: &Running, export: &str, tls: Option<&Path>) -> Ended {
    let scheme = if tls.is_some() {
        "nbds+unix"
    } else {
        "nbd+unix"
    };
    let socket = running.socket();
    let mut uri = format!("{scheme}:///{export}?socket={}", socket.display());
    if let Some(folder) = tls {
        uri += &format!(
            "&tls-certificates={}&tls-hostname=localhost",
            folder.display()
        );
    }
    run(Command::new("nbdinfo").args(["--size", &uri]))
}

fn exports() -> Exports {
    Exports::new()
        .with(Export::new("open", Disk::new(MIB)))
        .with(Export::new("safe", Disk::new(MIB)).requires_tls())
}

#[test]
fn selective_tls_is_for_exports_that_require_it() {
    needs!("nbdinfo");
    let folder = certificates::folder();
    for face in FACES {
        let config = Config::new().tls(server_config(folder.path()), TlsMode::Selective);
        let running = Running::start(face, exports(), config);
        size(&running, "open", None).ok();
        size(&running, "open", Some(folder.path())).ok();
        size(&running, "safe", Some(folder.path())).ok();
        assert_ne!(size(&running, "safe", None).code, Some(0));
        let uri = running.uri("");
        let list = run(Command::new("nbdinfo").args(["--json", "--list", &uri])).json();
        assert_eq!(list["exports"].as_array().expect("exports").len(), 1);
    }
}

#[test]
fn forced_tls_is_for_all() {
    needs!("nbdinfo");
    let folder = certificates::folder();
    for face in FACES {
        let config = Config::new().tls(server_config(folder.path()), TlsMode::Forced);
        let running = Running::start(face, exports(), config);
        assert_ne!(size(&running, "open", None).code, Some(0));
        size(&running, "open", Some(folder.path())).ok();
    }
}

#[test]
fn without_tls_an_export_that_requires_it_is_refused() {
    needs!("nbdinfo");
    for face in FACES {
        let running = Running::start(face, exports(), Config::new());
        size(&running, "open", None).ok();
        assert_ne!(size(&running, "safe", None).code, Some(0));
    }
}

#[test]
fn the_access_check_has_the_certificates_of_the_client() {
    needs!("nbdinfo");
    let folder = certificates::folder();
    let anonymous = tempfile::tempdir().expect("a folder");
    let file = |folder: &Path, name| folder.join(name);
    std::fs::copy(
        file(folder.path(), "ca-cert.pem"),
        file(anonymous.path(), "ca-cert.pem"),
    )
    .expect("a copy");
    let path = folder.path().join("client-cert.pem");
    let known = CertificateDer::from_pem_file(path).expect("a certificate");
    for face in FACES {
        let known = known.clone();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let exports =
            Exports::new().with(Export::new("safe", Disk::new(MIB)).access(move |client| {
                let permitted = client.certificates.first() == Some(&known);
                log.lock().unwrap().push((client.tls, permitted));
                permitted
            }));
        let config = Config::new().tls(server_config(folder.path()), TlsMode::Forced);
        let running = Running::start(face, exports, config);
        size(&running, "safe", Some(folder.path())).ok();
        assert!(seen.lock().unwrap().iter().all(|it| *it == (true, true)));
        assert_ne!(size(&running, "safe", Some(anonymous.path())).code, Some(0));
        assert_eq!(seen.lock().unwrap().last(), Some(&(true, false)));
    }
}

#[test]
fn nbdcopy_copies_through_tls_over_four_connections() {
    needs!("nbdcopy");
    let folder = certificates::folder();
    for face in [Face::Tokio, Face::Threads] {
        let config = Config::new().tls(server_config(folder.path()), TlsMode::Forced);
        let exports = Exports::new().with(Export::new("disk", Disk::new(32 * MIB)));
        let running = Running::start(face, exports, config);
        let images = tempfile::tempdir().expect("a folder");
        let (image, copy) = (images.path().join("image"), images.path().join("copy"));
        sparse(&image, 32 * MIB, &scattered(32 * MIB));
        let uri = format!(
            "nbds+unix:///disk?socket={}&tls-certificates={}&tls-hostname=localhost",
            running.socket().display(),
            folder.path().display()
        );
        let many = ["--connections=4", "--requests=32"];
        run(Command::new("nbdcopy").args(many).arg(&image).arg(&uri)).ok();
        run(Command::new("nbdcopy").args(many).arg(&uri).arg(&copy)).ok();
        assert_same(&image, &copy);
    }
}

/// TLS 1.2 is the oldest version that both sides must have.
#[test]
fn each_version_of_tls_is_served() {
    let folder = certificates::folder();
    for face in FACES {
        let running = forced(face, folder.path(), Config::new());
        for (version, number) in [(&TLS12, 0x0303), (&TLS13, 0x0304)] {
            let mut stream = secure(&running, folder.path(), version);
            stream.write_all(LIST).expect("sent under TLS");
            let mut reply = [0; 20];
            stream.read_exact(&mut reply).expect("a reply under TLS");
            // NBD_REP_SERVER, in reply to LIST.
            assert_eq!(reply[8..16], *b"\0\0\0\x03\0\0\0\x02");
            let negotiated = stream.conn.protocol_version().map(u16::from);
            assert_eq!(negotiated, Some(number), "{face:?}");
        }
    }
}

/// Otherwise a client cannot tell the end from an attack that cuts the connection.
#[test]
fn the_end_of_a_session_is_authenticated() {
    let folder = certificates::folder();
    let disc = CompactRequest {
        flags: CommandFlags::NONE,
        command: number::Command::DISC,
        cookie: number::Cookie(1),
        offset: 0,
        length: 0,
    };
    let export = b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
    let disconnect = [&export[..], &disc.encode()].concat();
    let abort = b"IHAVEOPT\0\0\0\x02\0\0\0\0";
    for face in FACES {
        let running = forced(face, folder.path(), Config::new());
        // The size and the flags; the acknowledgement.
        for (message, reply) in [(&abort[..], 20), (&disconnect[..], 10)] {
            let mut stream = secure(&running, folder.path(), &TLS13);
            stream.write_all(message).expect("sent");
            let mut received = Vec::new();
            let end = stream.read_to_end(&mut received);
            assert!(matches!(end, Ok(n) if n == reply), "{face:?}: {end:?}");
        }
    }
}

#[test]
fn the_deadline_of_a_handshake_is_one_under_tls_too() {
    let folder = certificates::folder();
    for face in FACES {
        let time = Duration::from_millis(600);
        let running = forced(face, folder.path(), Config::new().handshake_timeout(time));
        // Silence instead of TLS, and options under TLS without an end.
        let mut silent = greeted(&running);
        silent.write_all(STARTTLS).expect("sent");
        let began = Instant::now();
        let mut stream = secure(&running, folder.path(), &TLS13);
        let mut reply = [0; 64];
        while stream.write_all(LIST).is_ok() && stream.read(&mut reply).is_ok_and(|n| n > 0) {
            assert!(began.elapsed() < Duration::from_secs(20), "{face:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(began.elapsed() >= time / 2, "{face:?}");
        assert!(read_to_end(&mut silent).starts_with(ACK));
        size(&running, "disk", Some(folder.path())).ok();
    }
}

#[test]
fn clients_that_do_not_read_share_a_bounded_memory_under_tls_too() {
    let folder = certificates::folder();
    for face in FACES {
        let device = Counted::default();
        let exports = Exports::new().with(Export::new("disk", device.clone()));
        let config = Config::new().memory(16 << 20);
        let config = config.tls(server_config(folder.path()), TlsMode::Forced);
        let running = Running::start(face, exports, config);
        let read = CompactRequest {
            flags: CommandFlags::NONE,
            command: number::Command::READ,
            cookie: number::Cookie(1),
            offset: 0,
            length: 1 << 20,
        };
        let clients = (0..8).map(|_| {
            let mut stream = secure(&running, folder.path(), &TLS13);
            let option = b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
            stream.write_all(option).expect("EXPORT_NAME is sent");
            stream.read_exact(&mut [0; 10]).expect("the export");
            stream.write_all(&read.encode().repeat(64)).expect("sent");
            stream
        });
        let clients: Vec<_> = clients.collect();
        poll_for("memory in use", || {
            (device.live.load(Ordering::SeqCst) >= 4 << 20).then_some(())
        });
        // Nevertheless another one is served.
        size(&running, "disk", Some(folder.path())).ok();
        assert!(device.most.load(Ordering::SeqCst) <= 16 << 20, "{face:?}");
        drop(clients);
    }
}

/// Plain text that an attacker injects after STARTTLS is never handled as if the
/// client had sent it under TLS.
#[test]
fn plain_text_after_starttls_is_rejected() {
    let folder = certificates::folder();
    for face in FACES {
        let running = forced(face, folder.path(), Config::new());
        // In one piece: the server closes the connection without a reply.
        let mut stream = greeted(&running);
        let both = [STARTTLS, LIST].concat();
        stream.write_all(&both).expect("sent");
        assert_eq!(read_to_end(&mut stream), b"", "{face:?}");

        // After the acknowledgement: it is not a TLS handshake.
        let mut stream = greeted(&running);
        stream.write_all(STARTTLS).expect("sent");
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).expect("an acknowledgement");
        assert_eq!(reply, ACK);
        stream.write_all(LIST).expect("sent");
        let received = read_to_end(&mut stream);
        // At most a TLS alert (record type 21) and the end.
        assert!(matches!(received.first(), None | Some(21)), "{received:?}");
        let replied = received.windows(8).any(|part| part == &ACK[..8]);
        assert!(!replied, "{received:?}");

        let mut stream = secure(&running, folder.path(), &TLS13);
        stream.write_all(LIST).expect("others are served");
        stream.read_exact(&mut reply).expect("others are served");
    }
}

/// Reads until the end. (A connection that is closed with unread input is reset.)
fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    received
}

#[test]
fn qemu_writes_and_reads_through_tls() {
    needs!("qemu-io", "qemu-img");
    let folder = certificates::folder();
    for face in FACES {
        let running = forced(face, folder.path(), Config::new());
        let secret = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={}",
            folder.path().display()
        );
        let image = format!(
            "driver=nbd,path={},export=disk,tls-creds=tls0,tls-hostname=localhost",
            running.socket().display()
        );
        let args = ["--object", &secret, "--image-opts"];
        let mut info = Command::new("qemu-img");
        let info = run(info.args(["info", "--output=json"]).args(args).arg(&image));
        assert_eq!(info.json()["virtual-size"], MIB);
        let mut command = Command::new("qemu-io");
        command
            .args(args)
            .args(["-c", "write -P 0x77 100k 700k", "-c", "flush"])
            .args(["-c", "read -P 0x77 100k 700k", "-c", "read -P 0 0 100k"]);
        run(command.arg(&image)).ok();
    }
}
