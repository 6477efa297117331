//! A file as an export, on a Unix socket, with tokio or with threads.
//!
//! ```text
//! cargo run --release --example file_server -- tokio FILE SOCKET
//! cargo run --release --example file_server -- blocking FILE SOCKET
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

use nbd_io::server::{Bytes, Config, Device, Export, Exports, ReadReply, Server};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::task;
use tokio::time::sleep;

/// With tokio, reads of at least this many bytes run on other threads: several at a time,
/// and while the thread of the connection sends. A shorter one takes less time than to wake
/// another thread.
const LONG: usize = 64 << 10;

/// With tokio, how long a thread polls for the next request before it sleeps.
const POLL: Duration = Duration::from_micros(100);

/// If polling takes this long, another program has the processor meanwhile, and a thread that
/// sleeps would get it sooner.
const PREEMPTED: Duration = Duration::from_millis(1);

/// How long a thread does not poll after that.
const PAUSE: Duration = Duration::from_secs(1);

thread_local! {
    /// Notified of the requests of this thread.
    static REQUESTS: Arc<Notify> = Arc::default();
}

/// A file, most of which is in the page cache.
struct FileDevice {
    file: Arc<File>,
    size: u64,
    spare: Arc<Spare>,
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        REQUESTS.with(|it| it.notify_one());
        let n = reply.remaining();
        match Handle::try_current() {
            Ok(runtime) if n >= LONG => {
                let (file, spare) = (Arc::clone(&self.file), Arc::clone(&self.spare));
                let read = runtime.spawn_blocking(move || {
                    let mut buffer = spare.take(n);
                    file.read_exact_at(&mut buffer.data, offset)?;
                    io::Result::Ok(Bytes::from_owner(buffer))
                });
                reply.put_bytes(read.await??);
                Ok(())
            }
            _ => self.file.read_exact_at(reply.buffer(n), offset),
        }
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        REQUESTS.with(|it| it.notify_one());
        self.file.write_all_at(&data, offset)
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Memory of replies that were sent. New memory costs a page fault for each 4 KiB.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    /// At most this many buffers are kept.
    const BUFFERS: usize = 16;

    /// Longer buffers are not kept.
    const LONGEST: usize = 1 << 20;

    fn take(self: Arc<Self>, n: usize) -> Buffer {
        let mut data = self.lock().pop().unwrap_or_default();
        data.resize(n, 0);
        Buffer { data, spare: self }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The data of a reply.
struct Buffer {
    data: Vec<u8>,
    spare: Arc<Spare>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.spare.lock();
        if spare.len() < Spare::BUFFERS && self.data.capacity() <= Spare::LONGEST {
            spare.push(mem::take(&mut self.data));
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [face, file, socket] = args.as_slice() else {
        return Err("usage: file_server tokio|blocking FILE SOCKET".into());
    };
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let size = file.metadata()?.len();
    let device = FileDevice {
        file: Arc::new(file),
        size,
        spare: Arc::default(),
    };
    let exports = Exports::new().with(Export::new("file", device));
    let server = Server::new(exports, Config::new());
    let listener = UnixListener::bind(socket)?;
    let uri = format!("nbd+unix:///file?socket={socket}");
    if face == "blocking" {
        println!("{uri}");
        return Ok(nbd_io::blocking::listen(listener, &server)?);
    }
    // A runtime for each processor, all of which accept: a connection stays on its
    // thread. With the runtime of many threads each request wakes two of them.
    listener.set_nonblocking(true)?;
    let processors = thread::available_parallelism()?.get();
    let runtimes = (0..processors).map(|_| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok((runtime, listener.try_clone()?))
    });
    let runtimes = runtimes.collect::<io::Result<Vec<_>>>()?;
    let threads = runtimes.into_iter().map(|(runtime, listener)| {
        let server = server.clone();
        thread::spawn(move || runtime.block_on(listen(listener, &server)))
    });
    let threads: Vec<_> = threads.collect();
    println!("{uri}");
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(())
}

async fn listen(listener: UnixListener, server: &Server) -> io::Result<()> {
    task::spawn(poll_before_sleeping(REQUESTS.with(Arc::clone)));
    let listener = tokio::net::UnixListener::from_std(listener)?;
    nbd_io::tokio::listen(listener, server).await
}

/// Keeps the runtime of this thread from sleeping for a while after a request. On a virtual
/// machine a processor without work is halted. To wake it takes longer than a request, so a
/// client with one request in flight would wait for that most of the time.
async fn poll_before_sleeping(requests: Arc<Notify>) {
    loop {
        requests.notified().await;
        let began = Instant::now();
        while began.elapsed() < POLL {
            // The client may need this processor.
            thread::yield_now();
            task::yield_now().await;
        }
        if began.elapsed() > PREEMPTED {
            sleep(PAUSE).await;
        }
    }
}
