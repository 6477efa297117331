//! TLS by rustls.

use std::sync::Arc;

use nbd_io::client::{Error, Options};
use nbd_test_support::certificates;
use nbd_test_support::images::noise;
use nbd_test_support::peer::Peer;

use crate::both;
use crate::disk::Disk;

both! {
    certificates_of_the_uri;
    a_configuration_of_the_caller;
    what_is_refused;
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

/// Long and short data, with a client certificate.
async fn certificates_of_the_uri<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let folder = certificates::folder();
    let peer = server(folder.path());
    let uri = format!(
        "{}&tls-certificates={}",
        secure(&peer),
        folder.path().display()
    );
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
