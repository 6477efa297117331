//! Clients that stop reading, on streams that say when.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie};
use nbd_codec::wire::request::CompactRequest;
use nbd_io::server::{Config, Device, Export, Exports, Peer, ReadReply, Server};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::timeout;

use crate::support::{MIB, TIME, runtime};

/// The flags of the client, and EXPORT_NAME for the default export.
const HELLO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";

/// What the server sends in the handshake: the greeting, the size and the flags.
const HANDSHAKE: usize = 18 + 10;

fn request(command: Command, offset: u64, length: u32) -> [u8; 28] {
    let request = CompactRequest {
        flags: CommandFlags::NONE,
        command,
        cookie: Cookie(offset),
        offset,
        length,
    };
    request.encode()
}

/// Reads at offset 0 take a while.
struct Late;

impl Device for Late {
    fn size(&self) -> u64 {
        MIB
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        if offset == 0 {
            thread::sleep(Duration::from_millis(100));
        }
        reply.put_hole(reply.remaining());
        Ok(())
    }
}

fn server(config: Config) -> Server {
    Server::new(Exports::new().with(Export::new("", Late)), config)
}

/// The connection of a client that stops reading within a reply. After the stall timeout
/// of the server it reads again.
struct Stalling {
    /// What the client sends; `None` after the connection was shut down.
    input: Mutex<Option<Vec<u8>>>,
    shut_down: Condvar,
    output: Mutex<Output>,
}

struct Output {
    /// How many bytes the client reads before it stops.
    left: usize,
    timed_out: bool,
    /// What the server sent after its write had timed out.
    late: Vec<u8>,
}

/// The end of the server.
struct ServerEnd(Arc<Stalling>);

impl nbd_io::blocking::Stream for ServerEnd {
    fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        let mut input = self.0.input.lock().unwrap();
        while input.as_ref().is_some_and(Vec::is_empty) {
            input = self.0.shut_down.wait(input).unwrap();
        }
        let Some(bytes) = &mut *input else {
            return Ok(0);
        };
        let n = bytes.len().min(space.len());
        space[..n].copy_from_slice(&bytes[..n]);
        bytes.drain(..n);
        Ok(n)
    }

    fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        let mut output = self.0.output.lock().unwrap();
        if output.timed_out {
            output.late.extend(&bytes);
            return Ok(bytes.len());
        }
        let n = bytes.len().min(output.left);
        output.left -= n;
        if n > 0 {
            return Ok(n);
        }
        output.timed_out = true;
        drop(output);
        // Until then another thread has a reply to send.
        thread::sleep(Duration::from_millis(200));
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn set_timeouts(&self, _: Option<Duration>, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shut_down(&self, _: Shutdown) -> io::Result<()> {
        // The system runs another thread first.
        thread::sleep(Duration::from_millis(50));
        *self.0.input.lock().unwrap() = None;
        self.0.shut_down.notify_all();
        Ok(())
    }
}

/// A client that sends `requests`, reads `part` bytes of the replies, and stops. Returns
/// how the connection ended, and what the server sent later.
fn stall(requests: &[[u8; 28]], part: usize) -> (io::Result<()>, Vec<u8>) {
    let stalling = Arc::new(Stalling {
        input: Mutex::new(Some([HELLO, &requests.concat()].concat())),
        shut_down: Condvar::new(),
        output: Mutex::new(Output {
            left: HANDSHAKE + part,
            timed_out: false,
            late: Vec::new(),
        }),
    });
    let stream = ServerEnd(Arc::clone(&stalling));
    let (sender, ended) = channel();
    thread::spawn(move || {
        let peer = Peer::Other("stalls".into());
        let end = nbd_io::blocking::serve(stream, peer, &server(Config::new()));
        sender.send(end).expect("the test waits");
    });
    let end = ended.recv_timeout(TIME).expect("it ends");
    let late = std::mem::take(&mut stalling.output.lock().unwrap().late);
    (end, late)
}

/// The client would take it for the data of the first reply.
#[test]
fn no_reply_follows_a_part_of_another_one() {
    let reads = [0, 4096].map(|offset| request(Command::READ, offset, 8192));
    // A reply of the thread that receives, while another one reads.
    let invalid = [reads[0], request(Command(77), 4096, 0)];
    for (requests, part) in [(&invalid, 8), (&reads, 16 + 1000)] {
        let (end, late) = stall(requests, part);
        assert_eq!(late.len(), 0, "bytes after {part}");
        let error = end.expect_err("the client stopped reading");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

/// A stream that accepts everything but its end: under TLS that is a message, for which
/// the socket may have no room.
struct Endless(DuplexStream);

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, space)
    }
}

impl AsyncWrite for Endless {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[test]
fn closing_a_connection_is_bounded() {
    runtime("stalls").block_on(async {
        let (ours, mut client) = duplex(1 << 16);
        let server = server(Config::new().stall_timeout(Duration::from_millis(100)));
        let peer = Peer::Other("stalls".into());
        let serving = nbd_io::tokio::serve(Endless(ours), peer, &server);
        let requests = [HELLO, &request(Command::DISC, 0, 0)].concat();
        client.write_all(&requests).await.expect("sent");
        let end = timeout(TIME, serving).await.expect("it ends");
        let error = end.expect_err("the client does not read");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    });
}
