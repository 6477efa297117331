//! Servers of a file, which are killed (SIGKILL) and started again under load: what was
//! answered is there, in the end and at any time before, and no call hangs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::poll_for;
use nbd_test_support::program::{example, tool};

use crate::disk::Disk;
use crate::image;
use crate::lost::patient;

#[test]
fn nbdkit_loses_nothing() {
    needs!("nbdkit");
    answered_is_kept("", nbdkit);
}

pub fn nbdkit(socket: &Path, image: &Path) -> Command {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]);
    command.arg(socket).arg("file").arg(image);
    command
}

#[test]
fn qemu_nbd_loses_nothing() {
    needs!("qemu-nbd");
    answered_is_kept("", |socket, image| {
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--format=raw", "--socket"]);
        command.arg(socket).arg(image);
        command
    });
}

#[test]
fn nbd_serve_loses_nothing() {
    answered_is_kept("", |socket, image| {
        let mut command = tool("nbd-serve");
        command.arg("--unix").arg(socket).arg(image);
        command
    });
}

#[test]
fn servers_of_this_crate_lose_nothing() {
    for face in ["tokio", "blocking"] {
        answered_is_kept("file", |socket, image| {
            let mut command = example("file_server");
            command.arg(face).arg(image).arg(socket);
            command
        });
    }
}

/// Twenty kills under the load of sixteen writers.
#[tokio::main]
async fn answered_is_kept(export: &str, command: impl Fn(&Path, &Path) -> Command) {
    let (folder, path) = image(16 * MIB);
    let socket = folder.path().join("socket");
    let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
    let mut server = Server::start(&socket, &mut command(&socket, &path));
    let options = patient().connections(2);
    let client = nbd_io::tokio::Client::connect_with(&uri, options.clone()).await;
    let client = client.expect("a client");
    let threads = nbd_io::blocking::Client::connect_with(&uri, options).expect("a client");
    let over = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));

    // Sixteen writers, each with its own MiB.
    let mut tasks = tokio::task::JoinSet::new();
    for region in 0..8 {
        let (client, over, written) = (client.clone(), over.clone(), written.clone());
        tasks.spawn(async move { load(client, region, &over, &written).await });
    }
    let workers: Vec<_> = (8..16)
        .map(|region| {
            let (client, over, written) = (threads.clone(), over.clone(), written.clone());
            thread::spawn(move || block_on(load(client, region, &over, &written)))
        })
        .collect();

    let mut done = 0;
    for _ in 0..20 {
        // Not before there is progress on the new server.
        let deadline = Instant::now() + Duration::from_secs(30);
        while written.load(Ordering::SeqCst) < done + 100 {
            assert!(Instant::now() < deadline, "nothing is written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(server);
        std::fs::remove_file(&socket).expect("the socket of a server that was killed");
        tokio::time::sleep(Duration::from_millis(10)).await;
        done = written.load(Ordering::SeqCst);
        server = Server::start(&socket, &mut command(&socket, &path));
    }
    over.store(true, Ordering::SeqCst);
    let mut expected = Vec::new();
    while let Some(region) = tasks.join_next().await {
        expected.push(region.expect("a task"));
    }
    for worker in workers {
        expected.push(worker.join().expect("a thread"));
    }
    client.flush().await.expect("a flush");
    let disk = std::fs::read(&path).expect("the image");
    for (region, content) in expected {
        assert!(
            disk[region << 20..][..1 << 20] == content,
            "region {region}"
        );
    }
}

/// Writes into a region of one MiB, and reads what was answered before; returns what has to be
/// in it.
async fn load<D: Disk>(
    disk: D,
    region: usize,
    over: &AtomicBool,
    written: &AtomicU64,
) -> (usize, Vec<u8>) {
    let start = (region as u64) << 20;
    let mut content = vec![0; 1 << 20];
    let mut n = region as u64;
    while !over.load(Ordering::SeqCst) {
        n += 16;
        let offset = n * 7919 % ((1 << 20) - 5000);
        let length = 1 + (n * 31 % 5000) as usize;
        let data = noise(n, length);
        disk.write_at(start + offset, &data).await.expect("a write");
        content[offset as usize..][..length].copy_from_slice(&data);
        written.fetch_add(1, Ordering::SeqCst);
        let from = n * 4241 % ((1 << 20) - 5000);
        let back = disk.read_at(start + from, 5000).await.expect("a read");
        assert!(
            back == content[from as usize..][..5000],
            "region {region} at {from}"
        );
        if n.is_multiple_of(64) {
            disk.flush().await.expect("a flush");
        }
    }
    (region, content)
}

/// Runs the calls of threads, which are never pending.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

/// A server, which a test kills.
pub struct Server(Child);

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(socket: &Path, command: &mut Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().expect("a server starts"));
        poll_for("a server that listens", || UnixStream::connect(socket).ok());
        server
    }
}

/// Ends it by SIGKILL. Its socket stays.
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
