//! Disks in an object store, of which every access takes 5 ms. The export "archive"
//! is hidden, and requires TLS if there are CERTIFICATES (a folder as for QEMU).
//!
//! ```text
//! cargo run --features tls --example object_store -- 127.0.0.1:10809 SIZE [CERTIFICATES]
//! ```

use std::{collections::HashMap, io, ops::Range, path::Path, sync::Arc, sync::Mutex};

use futures_util::future::try_join_all;
use nbd_io::server::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tokio::{net::TcpListener, sync::Semaphore};

const CHUNK: u32 = 128 << 10;
const IN_FLIGHT: usize = 64;

/// A disk in chunks of 128 KiB. What the store acknowledges is permanent.
struct ObjectDisk {
    size: u64,
    store: Mutex<HashMap<u64, Bytes>>,
    in_flight: Semaphore,
    /// Held while a part of a chunk is replaced; chunks share them.
    locks: [tokio::sync::Mutex<()>; 64],
}

impl ObjectDisk {
    fn new(size: u64) -> Self {
        Self {
            size,
            store: Mutex::default(),
            in_flight: Semaphore::new(IN_FLIGHT),
            locks: std::array::from_fn(|_| tokio::sync::Mutex::default()),
        }
    }

    async fn latency(&self) {
        let _permit = self.in_flight.acquire().await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    async fn get(&self, chunk: u64) -> Option<Bytes> {
        self.latency().await;
        self.store.lock().unwrap().get(&chunk).cloned()
    }

    /// Replaces a part of a chunk by `data`, or by zeroes.
    async fn put(&self, chunk: u64, part: Range<usize>, data: Option<Bytes>) -> io::Result<()> {
        let _lock = self.locks[chunk as usize % 64].lock().await;
        let mut value = data;
        if part.len() < CHUNK as usize {
            let old = self.get(chunk).await;
            let mut new = old.map_or_else(|| vec![0; CHUNK as usize], Vec::from);
            match value {
                Some(data) => new[part].copy_from_slice(&data),
                None => new[part].fill(0),
            }
            value = Some(new.into());
        }
        self.latency().await;
        let mut store = self.store.lock().unwrap();
        match value {
            Some(value) => drop(store.insert(chunk, value)),
            None => drop(store.remove(&chunk)),
        }
        Ok(())
    }
}

impl Device for ObjectDisk {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        let parts = chunks(offset, reply.remaining() as u64, CHUNK);
        let parts = parts.map(async |(chunk, part)| io::Result::Ok((self.get(chunk).await, part)));
        for (data, part) in try_join_all(parts).await? {
            match data {
                Some(data) => reply.put_bytes(data.slice(part)),
                None => reply.put_hole(part.len()),
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, mut data: Bytes) -> io::Result<()> {
        let parts = chunks(offset, data.len() as u64, CHUNK);
        let puts = parts.map(|(chunk, part)| {
            let data = data.split_to(part.len());
            self.put(chunk, part, Some(data))
        });
        try_join_all(puts).await.map(drop)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeroes(offset, length, true).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        let parts = chunks(offset, length, CHUNK);
        let puts = parts.map(|(chunk, part)| self.put(chunk, part, None));
        try_join_all(puts).await.map(drop)
    }

    async fn block_status(&self, _: &str, at: u64, n: u64, to: &mut Extents) -> io::Result<()> {
        let store = self.store.lock().unwrap();
        chunks(at, n, CHUNK).all(|(chunk, part)| {
            if store.contains_key(&chunk) {
                to.push_data(part.len() as u64)
            } else {
                to.push_hole(part.len() as u64)
            }
        });
        Ok(())
    }
}

fn tls(folder: &Path) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca-cert.pem"))?)?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let certificate = CertificateDer::from_pem_file(folder.join("server-cert.pem"))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("server-key.pem"))?;
    let config = ServerConfig::builder().with_client_cert_verifier(clients);
    Ok(config.with_single_cert(vec![certificate], key)?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, size, certificates @ ..] = args.as_slice() else {
        return Err("usage: object_store ADDR:PORT SIZE [CERTIFICATES]".into());
    };
    let disk = Export::new("disk", ObjectDisk::new(size.parse()?));
    let mut archive = Export::new("archive", ObjectDisk::new(size.parse()?)).hidden();
    let mut config = Config::new().in_flight(IN_FLIGHT);
    if let Some(folder) = certificates.first() {
        archive = archive.requires_tls();
        config = config.tls(Arc::new(tls(Path::new(folder))?), TlsMode::Selective);
    }
    let server = Server::new(Exports::new().with(disk).with(archive), config);
    let listener = TcpListener::bind(address).await?;
    println!("nbd://{}", listener.local_addr()?);
    Ok(nbd_io::tokio::listen(listener, &server).await?)
}
