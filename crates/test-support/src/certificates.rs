//! Certificates, generated when a test needs them, in the layout that QEMU,
//! libnbd and nbdkit share.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// A folder with a certificate authority, a certificate for a server on this
/// machine, and one for a client.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut params = params(&[], "an authority of tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key");
    let own = params.self_signed(&key).expect("a certificate");
    fs::write(folder.path().join("ca-cert.pem"), own.pem()).expect("written");
    let authority = Issuer::new(params, key);

    let names = ["localhost", "127.0.0.1"];
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    issue(&authority, folder.path(), "server", &names, usage);
    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    issue(&authority, folder.path(), "client", &["client.test"], usage);
    folder
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

/// Writes `<role>-cert.pem` and `<role>-key.pem`.
fn issue(
    authority: &Issuer<'_, KeyPair>,
    folder: &Path,
    role: &str,
    names: &[&str],
    usage: ExtendedKeyUsagePurpose,
) {
    let mut params = params(names, role);
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let path = |what| folder.join(format!("{role}-{what}.pem"));
    fs::write(path("cert"), certificate.pem()).expect("written");
    fs::write(path("key"), key.serialize_pem()).expect("written");
}
