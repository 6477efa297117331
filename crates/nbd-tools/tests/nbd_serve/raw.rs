//! A client that sends any bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Once;
use std::time::Duration;

use nbd_codec::wire::flags::{ClientFlags, CommandFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting};
use nbd_codec::wire::number::{Command, Cookie, ErrorValue, InfoType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest};
use nbd_codec::wire::reply::SimpleReply;
use nbd_codec::wire::request::CompactRequest;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::running::Serve;

/// The longest time a reply may take.
const LIMIT: Duration = Duration::from_secs(20);

pub struct Raw(pub UnixStream);

impl Raw {
    /// Connects, and sends nothing.
    pub fn connect(serve: &Serve) -> Self {
        allow_many_files();
        let stream = UnixStream::connect(serve.socket()).expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        stream.set_write_timeout(Some(LIMIT)).expect("a timeout");
        Self(stream)
    }

    /// Connects and negotiates simple framing.
    pub fn ready(serve: &Serve) -> Self {
        let mut raw = Self::connect(serve);
        raw.send(&ClientFlags::KNOWN.encode());
        let mut bytes = Vec::new();
        let option = OptionRequest::ExportName("".into());
        option.encode(&mut bytes).expect("an option");
        raw.send(&bytes);
        raw.receive(NewstyleGreeting::SIZE + ExportNameReply::SIZE);
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the server receives");
    }

    pub fn receive(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0
            .read_exact(&mut bytes)
            .expect("the server sends more");
        bytes
    }

    /// The error of the next simple reply.
    pub fn reply(&mut self) -> ErrorValue {
        let bytes = self.receive(SimpleReply::SIZE);
        let reply = SimpleReply::decode(&mut &bytes[..]);
        reply.expect("a reply").expect("all of it").error
    }

    /// What there is to read; empty if the server has closed the connection.
    pub fn read_some(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let n = self.0.read(&mut bytes).unwrap_or(0);
        bytes.truncate(n);
        bytes
    }

    /// Reads until the server closes the connection.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => {}
            // The server had not read all that was sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection stays open: {error}"),
        }
        bytes
    }
}

/// Raises the limit of this process: tests with hundreds of clients run side by side.
fn allow_many_files() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let current = maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    });
}

pub fn request(command: Command, offset: u64, length: u32) -> [u8; CompactRequest::SIZE] {
    CompactRequest {
        flags: CommandFlags::NONE,
        command,
        cookie: Cookie(offset),
        offset,
        length,
    }
    .encode()
}

/// All that a client sends in a handshake with every option.
pub fn handshake() -> Vec<u8> {
    let contexts = || MetaContextRequest {
        export: "".into(),
        queries: (&["base:allocation"][..]).into(),
    };
    let export = || InfoRequest {
        export: "".into(),
        requests: (&[InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE][..]).into(),
    };
    let mut bytes = ClientFlags::KNOWN.encode().to_vec();
    for option in [
        OptionRequest::List,
        OptionRequest::StartTls,
        OptionRequest::StructuredReply,
        OptionRequest::ListMetaContext(contexts()),
        OptionRequest::SetMetaContext(contexts()),
        OptionRequest::Info(export()),
        OptionRequest::Go(export()),
    ] {
        option.encode(&mut bytes).expect("an option");
    }
    bytes
}
