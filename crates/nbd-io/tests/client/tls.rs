//! TLS by rustls.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nbd_io::client::{Error, Options};
use nbd_test_support::certificates;
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;

use crate::both;
use crate::disk::Disk;

both! {
    certificates_of_the_uri;
    a_configuration_of_the_caller;
    what_is_refused;
    clients_without_a_certificate;
    files_that_are_missing_or_invalid_are_named;
    a_server_that_hangs_up_at_starttls;
    a_server_that_pauses;
}

/// TLS 1.2 is the oldest version that both sides must have.
#[test]
fn each_version_of_tls_is_spoken() {
    needs!("qemu-nbd");
    let folder = certificates::folder();
    let (_folder, path) = crate::image(MIB);
    for version in ["VERS-TLS1.2", "VERS-TLS1.3"] {
        let secret = format!(
            "--object=tls-creds-x509,id=tls0,endpoint=server,dir={},verify-peer=yes,\
             priority=NORMAL:-VERS-ALL:+{version}",
            folder.path().display()
        );
        let peer = Peer::qemu(&[&secret, "--tls-creds=tls0", "--format=raw"], &path);
        let uri = with_certificates(&peer, folder.path());
        let options = Options::new().allow_local_files(true);
        let threads = nbd_io::blocking::Client::connect_with(&uri, options.clone());
        let data = noise(7, 500_000);
        let threads = threads.expect(version);
        threads.write_at(4321, &data).expect("a write");
        let read = async {
            let client = nbd_io::tokio::Client::connect_with(&uri, options).await?;
            client.read_at(4321, data.len()).await
        };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        assert!(runtime.block_on(read).expect(version) == data, "{version}");
    }
}

fn server(folder: &std::path::Path) -> Peer {
    let certificates = format!("--tls-certificates={}", folder.display());
    Peer::nbdkit(&[
        "--tls=require",
        &certificates,
        "--tls-verify-peer",
        "memory",
        "40M",
    ])
}

fn secure(peer: &Peer) -> String {
    let socket = peer.socket().display();
    format!("nbds+unix:///?socket={socket}&tls-hostname=localhost")
}

fn with_certificates(peer: &Peer, folder: &std::path::Path) -> String {
    format!("{}&tls-certificates={}", secure(peer), folder.display())
}

/// Long and short data, with a client certificate.
async fn certificates_of_the_uri<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let folder = certificates::folder();
    let peer = server(folder.path());
    let uri = with_certificates(&peer, folder.path());
    let error = D::open(&uri, Options::new()).await.err();
    assert!(matches!(error, Some(Error::Tls(_))), "{error:?}");
    let disk = D::open(&uri, Options::new().allow_local_files(true)).await?;
    assert!(disk.negotiated().tls);
    for (offset, length) in [(0, 1), (100, 5000), (1 << 20, 33 << 20)] {
        let data = noise(offset, length);
        disk.write_at(offset, &data).await?;
        assert!(disk.read_at(offset, length).await? == data);
    }
    disk.disconnect().await;
    Ok(())
}

/// The server trusts no client without a certificate, and the client no server without the
/// authority.
async fn a_configuration_of_the_caller<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let folder = certificates::folder();
    let peer = server(folder.path());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let options = Options::new().tls(Arc::new(config), None);
    let error = D::open(&secure(&peer), options).await.err();
    let error = error.map_or(String::new(), |error| error.to_string());
    assert!(error.contains("UnknownIssuer"), "{error}");
    Ok(())
}

/// Plain text where TLS is required, TLS where there is none, and what rustls has not.
async fn what_is_refused<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let folder = certificates::folder();
    let peer = server(folder.path());
    let error = D::open(&peer.uri(""), Options::new()).await.err();
    let error = error.map_or(String::new(), |error| error.to_string());
    assert!(error.starts_with("the server requires TLS"), "{error}");
    let plain = crate::memory("1M", &[]);
    let certificates = format!("&tls-certificates={}", folder.path().display());
    let options = Options::new().allow_local_files(true);
    let uri = format!("{}{certificates}", secure(&plain));
    let error = D::open(&uri, options.clone()).await.err();
    let error = error.map_or(String::new(), |error| error.to_string());
    assert!(
        error.starts_with("TLS is required, and the server refused"),
        "{error}"
    );
    for parameter in [
        "tls-type=psk",
        "tls-verify-peer=false",
        "tls-priority=NORMAL",
    ] {
        let uri = format!("{}{certificates}&{parameter}", secure(&peer));
        let error = D::open(&uri, options.clone()).await.err();
        assert!(
            matches!(error, Some(Error::Unsupported(_))),
            "{parameter}: {error:?}"
        );
    }
    let error = D::open(&secure(&peer), Options::new()).await.err();
    assert!(matches!(error, Some(Error::Tls(_))), "{error:?}");
    Ok(())
}

/// The server refuses the client after the TLS handshake of the client is over.
async fn clients_without_a_certificate<D: Disk>() -> Result<(), Error> {
    require!("nbdkit", "qemu-nbd");
    let folder = certificates::folder();
    let anonymous = tempfile::tempdir().expect("a folder");
    let authority = "ca-cert.pem";
    let copy = anonymous.path().join(authority);
    std::fs::copy(folder.path().join(authority), copy).expect("a copy");
    let (_image, path) = crate::image(MIB);
    let secret = format!(
        "--object=tls-creds-x509,id=tls0,endpoint=server,dir={},verify-peer=yes",
        folder.path().display()
    );
    let qemu = Peer::qemu(&[&secret, "--tls-creds=tls0", "--format=raw"], &path);
    for peer in [server(folder.path()), qemu] {
        let options = Options::new().allow_local_files(true);
        let uri = with_certificates(&peer, anonymous.path());
        assert!(D::open(&uri, options.clone()).await.is_err());
        let uri = with_certificates(&peer, folder.path());
        D::open(&uri, options).await?.read_at(0, 512).await?;
    }
    Ok(())
}

async fn files_that_are_missing_or_invalid_are_named<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let own = certificates::folder();
    let peer = server(own.path());
    for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        for invalid in [false, true] {
            let folder = certificates::folder();
            let path = folder.path().join(file);
            if invalid {
                std::fs::write(&path, "not PEM\n").expect("written");
            } else {
                std::fs::remove_file(&path).expect("removed");
            }
            // Without a certificate of its own the client has none, which is no error.
            let named = invalid || file != "client-cert.pem";
            let options = Options::new().allow_local_files(true);
            let uri = with_certificates(&peer, folder.path());
            let error = D::open(&uri, options).await.err();
            let error = error.map_or(String::new(), |error| error.to_string());
            assert_eq!(error.contains(file), named, "{invalid}: {error}");
        }
    }
    Ok(())
}

/// It knows no options but a few, and closes the connection at others.
async fn a_server_that_hangs_up_at_starttls<D: Disk>() -> Result<(), Error> {
    let certificates = certificates::folder();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    // The thread ends with the process.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"NBDMAGICIHAVEOPT\0\x03");
            let _ = stream.read_exact(&mut [0; 4 + 16]);
        }
    });
    let uri = format!(
        "nbds+unix:///?socket={}&tls-hostname=localhost&tls-certificates={}",
        path.display(),
        certificates.path().display()
    );
    let options = Options::new().allow_local_files(true);
    let error = D::open(&uri, options).await.err();
    let error = error.map_or(String::new(), |error| error.to_string());
    assert!(error.contains("NBD_OPT_STARTTLS"), "{error}");
    Ok(())
}

/// Within the timeout, and for longer than a thread waits to write at a time.
async fn a_server_that_pauses<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let certificates = certificates::folder();
    let peer = server(certificates.path());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let socket = peer.socket().to_owned();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut server = UnixStream::connect(socket).expect("the server");
        let replies = (server.try_clone(), client.try_clone());
        crate::pump(replies.0.expect("a clone"), replies.1.expect("a clone"));
        let mut buffer = vec![0; 1 << 16];
        let (mut sent, mut pause) = (0, 1 << 19);
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            sent += n;
            if sent >= pause {
                thread::sleep(Duration::from_secs(1));
                pause = usize::MAX;
            }
            server.write_all(&buffer[..n]).expect("forwarded");
        }
    });
    let uri = format!(
        "nbds+unix:///?socket={}&tls-hostname=localhost&tls-certificates={}",
        path.display(),
        certificates.path().display()
    );
    let options = Options::new().allow_local_files(true);
    let disk = D::open(&uri, options.timeout(Duration::from_secs(3))).await?;
    let data = noise(3, 4 << 20);
    disk.write_at(0, &data).await?;
    assert!(disk.read_at(0, data.len()).await? == data);
    Ok(())
}
