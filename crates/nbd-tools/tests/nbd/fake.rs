//! A server that does what real servers do not: it is made of raw messages.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED_REPLY: u32 = 8;
pub const LIST_META_CONTEXT: u32 = 9;
pub const SET_META_CONTEXT: u32 = 10;
pub const EXTENDED_HEADERS: u32 = 11;

pub const ACK: u32 = 1;
pub const SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const META_CONTEXT: u32 = 4;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const BLOCK_STATUS: u16 = 7;

/// HAS_FLAGS and SEND_FLUSH.
const FLAGS: u16 = 5;

/// Accepts any number of connections, until the test ends.
pub struct Fake {
    socket: PathBuf,
    _folder: TempDir,
}

impl Fake {
    /// Runs `talk` for each connection, in a thread of its own. What it returns
    /// is not examined: a client may close the connection at any time.
    pub fn start(talk: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let talk = Arc::new(talk);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let talk = Arc::clone(&talk);
                let mut peer = Peer {
                    stream: stream.expect("a client"),
                    structured: false,
                    zeroes: true,
                };
                thread::spawn(move || talk(&mut peer));
            }
        });
        Self {
            socket,
            _folder: folder,
        }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

/// What is served, and how it is negotiated.
#[derive(Clone, Copy)]
pub struct Export {
    pub size: u64,
    pub minimum: Option<u32>,
    /// Whether there are structured replies, and `base:allocation` with number 1.
    pub structured: bool,
}

impl Export {
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            minimum: None,
            structured: true,
        }
    }

    pub const fn minimum(mut self, minimum: u32) -> Self {
        self.minimum = Some(minimum);
        self
    }

    pub const fn simple(mut self) -> Self {
        self.structured = false;
        self
    }
}

/// A compact request.
#[derive(Debug)]
pub struct Request {
    pub command: u16,
    cookie: [u8; 8],
    pub offset: u64,
    pub length: u32,
}

/// The server's side of a connection.
pub struct Peer {
    stream: UnixStream,
    structured: bool,
    zeroes: bool,
}

impl Peer {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.stream.write_all(&parts.concat())
    }

    /// Sends the greeting, and receives the client flags.
    pub fn greet(&mut self) -> io::Result<()> {
        self.send(&[b"NBDMAGICIHAVEOPT", &[0, 3]])?;
        let flags: [u8; 4] = self.take()?;
        self.zeroes = flags[3] & 2 == 0;
        Ok(())
    }

    /// Receives an option and its data.
    pub fn option(&mut self) -> io::Result<(u32, Vec<u8>)> {
        assert_eq!(&self.take::<8>()?, b"IHAVEOPT");
        let option = u32::from_be_bytes(self.take()?);
        let mut data = vec![0; u32::from_be_bytes(self.take()?) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((option, data))
    }

    pub fn reply(&mut self, option: u32, reply: u32, data: &[u8]) -> io::Result<()> {
        let length = data.len() as u32;
        self.send(&[
            &0x0003_e889_0455_65a9u64.to_be_bytes(),
            &option.to_be_bytes(),
            &reply.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ])
    }

    /// Answers an option ordinarily; returns whether transmission begins.
    pub fn answer(&mut self, option: u32, export: Export) -> io::Result<bool> {
        let size = export.size.to_be_bytes();
        let flags = FLAGS.to_be_bytes();
        match option {
            EXPORT_NAME => {
                let zeroes = if self.zeroes { 124 } else { 0 };
                self.send(&[&size, &flags, &vec![0; zeroes]])?;
                return Ok(true);
            }
            GO | INFO => {
                self.reply(option, REP_INFO, &[&[0, 0], &size[..], &flags].concat())?;
                if let Some(minimum) = export.minimum {
                    let sizes = [minimum, minimum.max(4096), 1 << 25].map(u32::to_be_bytes);
                    self.reply(option, REP_INFO, &[&[0, 3], &sizes.concat()[..]].concat())?;
                }
                self.reply(option, ACK, &[])?;
                return Ok(option == GO);
            }
            LIST => {
                self.reply(option, SERVER, &[0; 4])?;
                self.reply(option, ACK, &[])?;
            }
            STRUCTURED_REPLY if export.structured => {
                self.structured = true;
                self.reply(option, ACK, &[])?;
            }
            SET_META_CONTEXT | LIST_META_CONTEXT if self.structured => {
                let context = [&[0, 0, 0, 1], &b"base:allocation"[..]].concat();
                self.reply(option, META_CONTEXT, &context)?;
                self.reply(option, ACK, &[])?;
            }
            ABORT => {
                self.reply(option, ACK, &[])?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            _ => self.reply(option, ERR_UNSUP, &[])?,
        }
        Ok(false)
    }

    /// An ordinary handshake; ends when transmission begins.
    pub fn handshake(&mut self, export: Export) -> io::Result<()> {
        self.greet()?;
        loop {
            let (option, _) = self.option()?;
            if self.answer(option, export)? {
                return Ok(());
            }
        }
    }

    /// Receives a request and its payload, which is discarded; fails at DISC.
    pub fn request(&mut self) -> io::Result<Request> {
        assert_eq!(self.take::<4>()?, 0x2560_9513u32.to_be_bytes());
        self.take::<2>()?;
        let request = Request {
            command: u16::from_be_bytes(self.take()?),
            cookie: self.take()?,
            offset: u64::from_be_bytes(self.take()?),
            length: u32::from_be_bytes(self.take()?),
        };
        match request.command {
            WRITE => {
                let mut payload = vec![0; request.length as usize];
                self.stream.read_exact(&mut payload)?;
            }
            DISC => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
        Ok(request)
    }

    /// Answers a request other than block status; a read gets bytes of 1.
    pub fn done(&mut self, request: &Request) -> io::Result<()> {
        let data = match request.command {
            READ => vec![1; request.length as usize],
            _ => Vec::new(),
        };
        if !self.structured {
            let magic = 0x6744_6698u32.to_be_bytes();
            return self.send(&[&magic, &[0; 4], &request.cookie, &data]);
        }
        match request.command {
            READ => self.chunk(
                request,
                1,
                &[&request.offset.to_be_bytes()[..], &data].concat(),
            ),
            _ => self.chunk(request, 0, &[]),
        }
    }

    /// Answers a block status request with lengths and flags.
    pub fn status(&mut self, request: &Request, extents: &[(u32, u32)]) -> io::Result<()> {
        let mut body = vec![0, 0, 0, 1];
        for (length, flags) in extents {
            body.extend(length.to_be_bytes());
            body.extend(flags.to_be_bytes());
        }
        self.chunk(request, 5, &body)
    }

    /// Answers with an error.
    pub fn fail(&mut self, request: &Request, error: u32) -> io::Result<()> {
        self.chunk(
            request,
            0x8001,
            &[&error.to_be_bytes()[..], &[0, 0]].concat(),
        )
    }

    /// Answers with one chunk.
    pub fn chunk(&mut self, request: &Request, kind: u16, body: &[u8]) -> io::Result<()> {
        self.send(&[
            &0x668e_33efu32.to_be_bytes(),
            &[0, 1],
            &kind.to_be_bytes(),
            &request.cookie,
            &(body.len() as u32).to_be_bytes(),
            body,
        ])
    }

    /// From now on, what the client sends fails.
    pub fn stop_receiving(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Read)
    }
}
