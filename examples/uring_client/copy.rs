//! The copy, and the ring with what it owns.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use nbd_codec::client::{Config, ConnectEvent, Connector};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Framing, Limits, Negotiated, SessionError, Step};
use ring::{Entry, EntryBuilder, Ring};

const IN_FLIGHT: usize = 32;
const LENGTH: u64 = 256 << 10;

/// As many more are being written to the file.
const BUFFERS: usize = 2 * IN_FLIGHT;

const PAGE: usize = 4096;

/// Copies the export at `address` to a file.
pub fn run(address: &str, export: &str, path: &str) -> Result<(), Box<dyn Error>> {
    let ring = Ring::new(64).map_err(|error| format!("no io_uring: {error}"))?;
    let file = File::create(path)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let negotiated = handshake(&mut stream, &mut inbox, export)?;
    file.set_len(negotiated.size)?;
    Copy::new(ring, stream, file, inbox, negotiated).run()
}

/// A read in flight, and the buffer for its data.
struct Job {
    offset: u64,
    length: usize,
    /// A page longer than needed, so that the data can begin at a page.
    memory: Vec<u8>,
}

impl Job {
    fn new() -> Self {
        Self {
            offset: 0,
            length: 0,
            memory: vec![0; LENGTH as usize + PAGE],
        }
    }

    fn data(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(PAGE);
        &mut self.memory[start..start + self.length]
    }

    /// The buffer for a part of it; `offset` is from the start of the export.
    fn place(&mut self, offset: u64, length: u64) -> &mut [u8] {
        let at = (offset - self.offset) as usize;
        &mut self.data()[at..at + length as usize]
    }
}

/// What the kernel is to do, with everything it needs for it. A buffer is owned by
/// an operation, by a job, or is spare.
enum Operation {
    Send {
        socket: Arc<TcpStream>,
        requests: Vec<u8>,
        sent: usize,
    },
    /// Receives a payload into its buffer, if one is due, and the headers that follow.
    Receive {
        socket: Arc<TcpStream>,
        payload: Option<Payload>,
        inbox: Inbox<Vec<u8>>,
        /// At most how many bytes of headers.
        limit: usize,
    },
    Write {
        file: Arc<File>,
        job: Job,
        written: usize,
    },
}

/// A part of the payload of the command in this slot.
struct Payload {
    slot: usize,
    job: Job,
    offset: u64,
    length: u64,
}

impl ring::Submit for Operation {
    fn entry<'f>(&'f mut self, builder: EntryBuilder<'f>) -> Entry<'f> {
        match self {
            Self::Send {
                socket,
                requests,
                sent,
            } => builder.send((**socket).as_fd(), &requests[*sent..]),
            Self::Receive {
                socket,
                payload,
                inbox,
                limit,
            } => {
                let space = inbox.space();
                let limit = space.len().min(*limit);
                let place = match payload {
                    Some(payload) => payload.job.place(payload.offset, payload.length),
                    None => &mut [],
                };
                builder.receive((**socket).as_fd(), place, &mut space[..limit])
            }
            Self::Write { file, job, written } => {
                let offset = job.offset + *written as u64;
                builder.write((**file).as_fd(), offset, &job.data()[*written..])
            }
        }
    }
}

struct Copy {
    ring: Ring<Operation>,
    socket: Arc<TcpStream>,
    file: Arc<File>,
    session: Transmission<[Slot; IN_FLIGHT]>,
    /// One for each slot; `slot_index` of a cookie is the slot of its command.
    jobs: [Option<Job>; IN_FLIGHT],
    spare: Vec<Job>,
    /// Headers, and data that arrived with a header; `None` while the kernel receives
    /// into it.
    inbox: Option<Inbox<Vec<u8>>>,
    /// The offset of the next read.
    next: u64,
    sending: bool,
    writing: usize,
}

impl Copy {
    fn new(
        ring: Ring<Operation>,
        socket: TcpStream,
        file: File,
        inbox: Inbox<Vec<u8>>,
        negotiated: Negotiated,
    ) -> Self {
        Self {
            ring,
            socket: Arc::new(socket),
            file: Arc::new(file),
            session: Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT),
            jobs: Default::default(),
            spare: (0..BUFFERS).map(|_| Job::new()).collect(),
            inbox: Some(inbox),
            next: 0,
            sending: false,
            writing: 0,
        }
    }

    fn run(mut self) -> Result<(), Box<dyn Error>> {
        loop {
            self.submit()?;
            self.receive()?;
            if self.session.in_flight() == 0 && self.writing == 0 {
                let header = self.session.disconnect()?;
                return Ok((&*self.socket).write_all(header.as_bytes())?);
            }
            // One system call for all of it.
            self.ring.wait()?;
            for (operation, result) in self.ring.completed() {
                self.complete(operation, result?)?;
            }
        }
    }

    /// Submits reads while there are slots and buffers.
    fn submit(&mut self) -> Result<(), Box<dyn Error>> {
        let size = self.session.negotiated().size;
        let maximum = LENGTH.min(self.session.negotiated().constraints().maximum.into());
        if self.sending {
            return Ok(());
        }
        let mut requests = Vec::new();
        while self.next < size && self.session.in_flight() < IN_FLIGHT {
            let Some(mut job) = self.spare.pop() else {
                break;
            };
            let length = maximum.min(size - self.next);
            let header = self.session.submit(Request::read(self.next, length))?;
            requests.extend_from_slice(header.as_bytes());
            (job.offset, job.length) = (self.next, length as usize);
            self.jobs[slot_index(header.cookie())] = Some(job);
            self.next += length;
        }
        if !requests.is_empty() {
            self.sending = true;
            let socket = Arc::clone(&self.socket);
            let sent = 0;
            self.ring.start(Operation::Send {
                socket,
                requests,
                sent,
            })?;
        }
        Ok(())
    }

    /// Handles what has arrived, and receives what the session needs next.
    fn receive(&mut self) -> Result<(), Box<dyn Error>> {
        while self.session.in_flight() > 0 {
            let Some(inbox) = &self.inbox else {
                return Ok(());
            };
            match inbox.receive(&mut self.session)? {
                Step::Event(TransmissionEvent::Done { cookie, result }) => {
                    result.map_err(SessionError::from)?;
                    if let Some(job) = self.jobs[slot_index(cookie)].take() {
                        self.writing += 1;
                        let file = Arc::clone(&self.file);
                        let written = 0;
                        self.ring.start(Operation::Write { file, job, written })?;
                    }
                }
                Step::Event(_) => {}
                // A hole, or data that arrived with its header.
                Step::Content(content) => {
                    if let Some(job) = &mut self.jobs[slot_index(content.cookie())] {
                        let start = job.offset;
                        assert!(content.copy_to(start, job.data()));
                    }
                }
                Step::Read(n) => self.start_receive(None, n.get())?,
                // A payload is followed by a header, which is received with it, so that
                // a reply takes one operation instead of two.
                Step::ReadPayload {
                    cookie,
                    offset,
                    length,
                } => {
                    let slot = slot_index(cookie);
                    let job = self.jobs[slot].take().ok_or("a payload without a read")?;
                    let payload = Payload {
                        slot,
                        job,
                        offset,
                        length,
                    };
                    let header = match self.session.negotiated().framing {
                        Framing::Simple => 16,
                        Framing::Structured => 20 + 8,
                        Framing::Extended => 32 + 8,
                    };
                    self.start_receive(Some(payload), header)?;
                }
                other => return Err(SessionError::from(other.unexpected()).into()),
            }
        }
        Ok(())
    }

    fn start_receive(&mut self, payload: Option<Payload>, limit: usize) -> io::Result<()> {
        let Some(inbox) = self.inbox.take() else {
            return Ok(());
        };
        let socket = Arc::clone(&self.socket);
        self.ring.start(Operation::Receive {
            socket,
            payload,
            inbox,
            limit,
        })
    }

    /// An operation is completed. If it was partial, the remainder is started.
    fn complete(&mut self, operation: Operation, n: usize) -> Result<(), Box<dyn Error>> {
        match operation {
            Operation::Send {
                socket,
                requests,
                mut sent,
            } => {
                sent += n;
                self.sending = sent < requests.len();
                if self.sending {
                    self.ring.start(Operation::Send {
                        socket,
                        requests,
                        sent,
                    })?;
                }
            }
            Operation::Receive {
                payload, mut inbox, ..
            } => {
                if n == 0 {
                    self.session.end_of_input()?;
                }
                let mut placed = 0;
                if let Some(payload) = payload {
                    placed = n.min(payload.length as usize);
                    self.session.advance(placed as u64)?;
                    self.jobs[payload.slot] = Some(payload.job);
                }
                if n > placed {
                    inbox.filled(n - placed)?;
                }
                self.inbox = Some(inbox);
            }
            Operation::Write {
                file,
                job,
                mut written,
            } => {
                written += n;
                if n == 0 {
                    return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                }
                if written < job.length {
                    self.ring.start(Operation::Write { file, job, written })?;
                } else {
                    self.writing -= 1;
                    self.spare.push(job);
                }
            }
        }
        Ok(())
    }
}

/// The handshake, with the most capable framing that both sides support. It is
/// short, so it uses blocking calls.
fn handshake(
    stream: &mut TcpStream,
    inbox: &mut Inbox<Vec<u8>>,
    export: &str,
) -> io::Result<Negotiated> {
    let mut connector = Connector::new(Config::new(export))?;
    let (mut out, mut failed) = (Vec::new(), None);
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Failed { reason, .. }) => failed = Some(reason),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::Finished => break,
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
    match failed {
        Some(reason) => Err(reason.into()),
        None => Ok(connector
            .into_negotiated()
            .map_err(|_| SessionError::NotReady)?),
    }
}

/// An `io_uring` that owns what the kernel works on: sockets, files and memory,
/// all in an operation that implements [`Submit`](ring::Submit). [`Ring::start`] takes an operation,
/// [`Ring::completed`] returns it when the kernel has completed it. In between
/// the program cannot access it. Operations that are pending when the ring is
/// dropped are never freed.
#[expect(
    unsafe_code,
    reason = "the kernel's accesses are unknown to the compiler"
)]
mod ring {
    use std::io;
    use std::marker::PhantomData;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::ptr;

    use io_uring::types::Fd;
    use io_uring::{IoUring, opcode, squeue};

    /// Something for the kernel to do, and everything it needs for it.
    pub trait Submit: 'static {
        /// Says what to do; called once, when the operation is at its final
        /// address. What the entry borrows stays borrowed until the operation
        /// is completed.
        fn entry<'f>(&'f mut self, builder: EntryBuilder<'f>) -> Entry<'f>;
    }

    /// What the kernel is to do with memory and a file of an operation.
    pub struct Entry<'f> {
        entry: squeue::Entry,
        operation: PhantomData<&'f mut ()>,
    }

    /// Makes entries, with memory for the structures that they point to.
    pub struct EntryBuilder<'f> {
        slices: &'f mut [libc::iovec; 2],
        message: &'f mut libc::msghdr,
    }

    impl<'f> EntryBuilder<'f> {
        /// Receives what there is into `first`, and what follows into `second`.
        pub fn receive(
            self,
            socket: BorrowedFd<'f>,
            first: &'f mut [u8],
            second: &'f mut [u8],
        ) -> Entry<'f> {
            *self.slices = [first, second].map(|slice| libc::iovec {
                iov_base: slice.as_mut_ptr().cast(),
                iov_len: slice.len(),
            });
            self.message.msg_iov = self.slices.as_mut_ptr();
            self.message.msg_iovlen = self.slices.len();
            let message = ptr::from_mut(self.message);
            Entry::new(opcode::RecvMsg::new(fd(socket), message).build())
        }

        pub fn send(self, socket: BorrowedFd<'f>, data: &'f [u8]) -> Entry<'f> {
            let entry = opcode::Send::new(fd(socket), data.as_ptr(), clip(data.len()));
            Entry::new(entry.flags(libc::MSG_NOSIGNAL).build())
        }

        pub fn write(self, file: BorrowedFd<'f>, offset: u64, data: &'f [u8]) -> Entry<'f> {
            let entry = opcode::Write::new(fd(file), data.as_ptr(), clip(data.len()));
            Entry::new(entry.offset(offset).build())
        }
    }

    impl Entry<'_> {
        fn new(entry: squeue::Entry) -> Self {
            let operation = PhantomData;
            Self { entry, operation }
        }
    }

    fn fd(fd: BorrowedFd<'_>) -> Fd {
        Fd(fd.as_raw_fd())
    }

    /// Lengths have 32 bits here. Of a longer buffer, the first part is used.
    fn clip(length: usize) -> u32 {
        u32::try_from(length).unwrap_or(1 << 30)
    }

    pub struct Ring<O: Submit> {
        uring: IoUring,
        /// Completed, and not yet returned.
        completed: Vec<(O, io::Result<usize>)>,
    }

    struct Pending<O> {
        operation: O,
        slices: [libc::iovec; 2],
        message: libc::msghdr,
    }

    impl<O: Submit> Ring<O> {
        pub fn new(entries: u32) -> io::Result<Self> {
            Ok(Self {
                uring: IoUring::new(entries)?,
                completed: Vec::new(),
            })
        }

        /// Takes an operation. The kernel begins with it at the next
        /// [`wait`](Self::wait), or earlier.
        pub fn start(&mut self, operation: O) -> io::Result<()> {
            // From here on only the kernel uses the box, through its address,
            // until `reap` gets that back.
            let pending = Box::into_raw(Box::new(Pending {
                operation,
                // SAFETY: zero is a valid value of all fields of both: they
                // are numbers and pointers.
                slices: unsafe { std::mem::zeroed() },
                message: unsafe { std::mem::zeroed() },
            }));
            // SAFETY: it comes from a box, and there is no other reference.
            let Pending {
                operation,
                slices,
                message,
            } = unsafe { &mut *pending };
            let entry = operation.entry(EntryBuilder { slices, message });
            let entry = entry.entry.user_data(pending.expose_provenance() as u64);
            loop {
                // SAFETY: all that the entry points to (memory, slices,
                // message) is borrowed from the box, and so is the file or
                // socket, which the operation keeps open. The box is neither
                // moved nor freed until `reap` gets its address from the
                // kernel.
                if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                    return Ok(());
                }
                // The queue is full: the kernel takes what is in it.
                let result = self.enter(0);
                self.reap();
                if let Err(error) = result {
                    // SAFETY: the pointer comes from a box, and the kernel has
                    // not seen it.
                    drop(unsafe { Box::from_raw(pending) });
                    return Err(error);
                }
            }
        }

        /// Hands all operations to the kernel, and waits until one is
        /// completed.
        pub fn wait(&mut self) -> io::Result<()> {
            let want = usize::from(self.completed.is_empty());
            self.enter(want)
        }

        /// Returns all completed operations, each with its result.
        pub fn completed(&mut self) -> Vec<(O, io::Result<usize>)> {
            self.reap();
            std::mem::take(&mut self.completed)
        }

        fn reap(&mut self) {
            for entry in self.uring.completion() {
                let address = usize::try_from(entry.user_data()).unwrap_or(0);
                let pending = ptr::with_exposed_provenance_mut::<Pending<O>>(address);
                // SAFETY: the address is the one that `start` has put into the
                // entry, and the kernel completes each entry once. So the box
                // is no longer in use, and it is freed here only.
                let pending = unsafe { Box::from_raw(pending) };
                let result = match entry.result() {
                    error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                    count => Ok(count.cast_unsigned() as usize),
                };
                self.completed.push((pending.operation, result));
            }
        }

        fn enter(&self, want: usize) -> io::Result<()> {
            match self.uring.submitter().submit_and_wait(want) {
                // Interrupted, or the kernel first wants its completions to be
                // reaped.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                    ) =>
                {
                    Ok(())
                }
                result => result.map(drop),
            }
        }
    }
}
