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
use std::thread;

use nbd_io::server::{Bytes, Config, Device, Export, Exports, ReadReply, Server};
use tokio::runtime::Builder;

/// A file, most of which is in the page cache: it is accessed directly.
struct FileDevice {
    file: File,
    size: u64,
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        let n = reply.remaining();
        self.file.read_exact_at(reply.buffer(n), offset)
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.file.write_all_at(&data, offset)
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [face, file, socket] = args.as_slice() else {
        return Err("usage: file_server tokio|blocking FILE SOCKET".into());
    };
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let size = file.metadata()?.len();
    let exports = Exports::new().with(Export::new("file", FileDevice { file, size }));
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
    let listener = tokio::net::UnixListener::from_std(listener)?;
    nbd_io::tokio::listen(listener, server).await
}
