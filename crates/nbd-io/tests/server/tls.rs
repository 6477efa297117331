//! TLS: forced, or as the client and the export will.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nbd_io::server::{Config, Export, Exports, TlsMode};
use nbd_test_support::images::{assert_same, scattered, sparse};
use nbd_test_support::program::{Ended, run};
use nbd_test_support::{certificates, needs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

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
