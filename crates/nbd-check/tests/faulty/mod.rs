//! A server with faults: each of them is one switch. Without any it keeps to the
//! specification.

mod handshake;
mod transmission;

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use nbd_codec::uri::Uri;

/// The size of the export in bytes.
pub const SIZE: u64 = 1 << 20;
/// The unit of allocation in bytes.
pub const BLOCK: u64 = 4096;

nbd_test_support::faults! {
    /// What is wrong with a server.
    None
    // Handshake.
    ClientFlagsUnchecked
    UndefinedHandshakeFlag
    AlwaysZeroes
    ExportNameAcceptsAll
    AbortWithoutReply
    UnknownOptionCloses
    UnknownOptionInvalid
    OptionDataNotDrained
    ListWithData
    ListDataNotDrained
    ListNameTooLong
    ListNameWithNul
    InfoWithoutExport
    InfoTwice
    UnknownInfoRefused
    NameLengthUnchecked
    GoUnlikeInfo
    ZeroesAfterGo
    MinimumNotAPowerOfTwo
    FlagsWithoutHasFlags
    DfWithoutStructured
    StartTlsRefusedByTlsReqd
    PlainTextAfterStartTls
    EndsWhenClientCloses
    // Contexts.
    ContextsWithoutStructured
    ContextsNotReplaced
    ContextIdsEqual
    WildcardSelects
    UnknownNamespaceRefused
    QueryLengthUnchecked
    // Transmission.
    WrongCookie
    StructuredNotNegotiated
    SimpleReadInStructured
    ExtendedOffsetWrong
    UndefinedReplyFlag
    NoneWithoutDone
    DataOutsideRequest
    DataOverlaps
    DataShort
    HoleEmpty
    DfFragments
    DfRefused
    ErrorZero
    ErrorMessageTooLong
    ErrorWithData
    OffsetWraps
    PayloadNotDrained
    CommandPayloadNotDrained
    UnknownCommandCloses
    UnknownFlagAccepted
    FuaRefused
    NoHoleRefused
    CacheFlagsAccepted
    FlushRefused
    FastZeroWrites
    ZeroesRefusedAsSlow
    ZeroesDoNothing
    WritesLost
    TrimsTooMuch
    CacheChangesData
    ConnectionsHaveCaches
    ReadOnlyWrites
    DataReportedAsZero
    StatusWithoutContext
    StatusEmptyExtent
    StatusTooManyExtents
    StatusOneContextMissing
    StatusRequestOneIgnored
    StatusNarrowInExtended
    StatusWideInStructured
    StatusCountWrong
    StatusUpperBits
    FilterIdsUnchecked
    DiscIgnored
    DiscLosesWrites
}

/// What all connections share.
pub struct Server {
    pub fault: Fault,
    disk: Mutex<Disk>,
}

/// The content of the export.
#[derive(Clone)]
pub struct Disk {
    pub bytes: Vec<u8>,
    /// Which blocks are allocated; the others are zero.
    pub allocated: Vec<bool>,
}

impl Server {
    pub fn new(fault: Fault) -> Self {
        let blocks = (SIZE / BLOCK) as usize;
        let mut disk = Disk {
            bytes: vec![0; SIZE as usize],
            allocated: vec![false; blocks],
        };
        // Data, then a hole, by turns.
        for block in (0..blocks).step_by(2) {
            disk.allocated[block] = true;
            disk.bytes[block * BLOCK as usize..][..BLOCK as usize].fill(0x11 + (block % 100) as u8);
        }
        let disk = Mutex::new(disk);
        Self { fault, disk }
    }

    pub fn read_only(&self) -> bool {
        self.fault == Fault::ReadOnlyWrites
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(&mut self.disk.lock().expect("no thread panics with the disk"))
    }
}

/// Starts a server; returns its URI. It ends with the process.
#[allow(dead_code, reason = "the example serves in the main thread")]
pub fn start(fault: Fault) -> Uri {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || run(&listener, fault));
    Uri::tcp(Ipv4Addr::LOCALHOST, port, "").expect("a URI")
}

/// Serves clients; returns if the fault ends the server.
pub fn run(listener: &TcpListener, fault: Fault) {
    accept(listener, &Arc::new(Server::new(fault)));
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(server);
        let mut stream = stream;
        let serving = thread::spawn(move || serve(&mut stream, &shared));
        if server.has(Fault::EndsWhenClientCloses) {
            // As a program whose assertion failed: it does not serve any more.
            if let Ok(Err(())) = serving.join() {
                return;
            }
        }
    }
}

/// Serves a connection; an error if the client closed within a message.
pub fn serve(stream: &mut dyn Stream, server: &Server) -> std::result::Result<(), ()> {
    let mut wire = Wire { stream };
    let session = match handshake::run(&mut wire, server) {
        Ok(Some(session)) => session,
        Err(error) if error.kind() == ErrorKind::Other => return Err(()),
        _ => return Ok(()),
    };
    let _ = transmission::run(&mut wire, server, session);
    Ok(())
}

/// What a connection is made of.
pub trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// A connection.
pub struct Wire<'a> {
    stream: &'a mut dyn Stream,
}

impl Wire<'_> {
    pub fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }
}
