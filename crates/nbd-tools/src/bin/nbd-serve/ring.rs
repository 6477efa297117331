//! An `io_uring` that owns what the kernel works on.
//!
//! What the kernel reads, writes and waits for belongs to an [`Operation`]:
//! sockets, files and memory. [`Ring::start`] takes an operation,
//! [`Ring::completed`] returns it when the kernel has completed it. In between the
//! program cannot access it. Operations that are pending when the ring is dropped
//! are never freed.
//!
//! This is the only module with `unsafe` in it, but for one call in `os`. Its
//! safety rests on one rule: a pending operation is in a box that only the kernel
//! accesses, and the number that the kernel returns for it is the address of that
//! box.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

/// The most slices that a system call accepts.
pub const MAX_SLICES: usize = 1024;

/// Something for the kernel to do, and everything it needs for it.
pub trait Operation: 'static {
    /// Says what to do; called once, when the operation is at its final address.
    /// What the entry borrows stays borrowed until the operation is completed.
    fn entry<'o>(&'o mut self, builder: EntryBuilder<'o>) -> Entry<'o>;
}

/// Makes entries, with memory for the structures that they point to.
pub struct EntryBuilder<'o> {
    slices: &'o mut Vec<libc::iovec>,
    message: &'o mut libc::msghdr,
}

/// What the kernel is to do with memory and a file of an operation.
pub struct Entry<'o> {
    entry: squeue::Entry,
    operation: PhantomData<&'o mut ()>,
}

impl<'o> EntryBuilder<'o> {
    /// Receives what there is into `first`, and what follows into `second`. Waits
    /// for at least one byte; the result is the number of bytes.
    pub fn receive(
        self,
        socket: BorrowedFd<'o>,
        first: &'o mut [u8],
        second: &'o mut [u8],
    ) -> Entry<'o> {
        if first.is_empty() {
            let (start, length) = (second.as_mut_ptr(), clip(second.len()));
            let entry = opcode::Recv::new(fd(socket), start, length).build();
            return Entry::new(entry);
        }
        self.slices.clear();
        for slice in [first, second] {
            self.slices.push(libc::iovec {
                iov_base: slice.as_mut_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        let message = ptr::from_mut(self.message(2));
        Entry::new(opcode::RecvMsg::new(fd(socket), message).build())
    }

    /// Sends `parts`, [`MAX_SLICES`] of them at most. Completes when all of them
    /// are sent; the result is the number of bytes.
    pub fn send(self, socket: BorrowedFd<'o>, parts: impl Iterator<Item = &'o [u8]>) -> Entry<'o> {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
        self.slices.clear();
        self.slices
            .extend(parts.take(MAX_SLICES).map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            }));
        if let [only] = self.slices[..] {
            let (start, length) = (only.iov_base.cast_const().cast(), clip(only.iov_len));
            let entry = opcode::Send::new(fd(socket), start, length).flags(flags.cast_signed());
            return Entry::new(entry.build());
        }
        let count = self.slices.len();
        let message = ptr::from_ref(self.message(count));
        Entry::new(
            opcode::SendMsg::new(fd(socket), message)
                .flags(flags)
                .build(),
        )
    }

    /// Reads from a file or an eventfd. The result is the number of bytes, zero at
    /// the end.
    pub fn read(self, file: BorrowedFd<'o>, offset: u64, into: &'o mut [u8]) -> Entry<'o> {
        let (start, length) = (into.as_mut_ptr(), clip(into.len()));
        let entry = opcode::Read::new(fd(file), start, length).offset(offset);
        Entry::new(entry.build())
    }

    /// Writes to a file. The result is the number of bytes.
    pub fn write(self, file: BorrowedFd<'o>, offset: u64, from: &'o [u8]) -> Entry<'o> {
        let entry = opcode::Write::new(fd(file), from.as_ptr(), clip(from.len())).offset(offset);
        Entry::new(entry.build())
    }

    fn message(self, slices: usize) -> &'o mut libc::msghdr {
        self.message.msg_iov = self.slices.as_mut_ptr();
        self.message.msg_iovlen = slices;
        self.message
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

pub struct Ring<O: Operation> {
    uring: IoUring,
    /// Completed, and not yet returned.
    completed: Vec<(O, io::Result<usize>)>,
    /// Memory of completed operations, to be reused.
    spare: Vec<Box<Pending<O>>>,
}

/// The most operations whose memory is kept.
const MAX_SPARE: usize = 256;

struct Pending<O> {
    operation: Option<O>,
    slices: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl<O: Operation> Ring<O> {
    /// A ring that only this thread may use.
    ///
    /// # Errors
    ///
    /// If `io_uring` is not available or not permitted, or lacks a feature that is
    /// needed (Linux 5.11 has them).
    pub fn new(entries: u32) -> io::Result<Self> {
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries);
        let uring = match modern {
            // Linux before 6.1.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries)?,
            result => result?,
        };
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Recv::CODE,
            opcode::RecvMsg::CODE,
            opcode::Send::CODE,
            opcode::SendMsg::CODE,
            opcode::Read::CODE,
            opcode::Write::CODE,
        ];
        let params = uring.params();
        let known = needed.iter().all(|code| probe.is_supported(*code));
        if !(known && params.is_feature_ext_arg() && params.is_feature_nodrop()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            uring,
            completed: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Takes an operation. The kernel begins with it at the next
    /// [`wait`](Self::wait), or earlier.
    ///
    /// # Errors
    ///
    /// If the ring is full and the kernel takes no entries; the operation is lost.
    pub fn start(&mut self, operation: O) -> io::Result<()> {
        let mut pending = self.spare.pop().unwrap_or_else(|| {
            Box::new(Pending {
                operation: None,
                slices: Vec::new(),
                // SAFETY: zero is a valid value of all fields: they are numbers
                // and pointers.
                message: unsafe { std::mem::zeroed() },
            })
        });
        pending.operation = Some(operation);
        // From here on only the kernel uses the box, through its address, until
        // `reap` gets that back.
        let pending = Box::into_raw(pending);
        // SAFETY: it comes from a box, and there is no other reference.
        let Pending {
            operation,
            slices,
            message,
        } = unsafe { &mut *pending };
        let Some(operation) = operation else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let entry = operation.entry(EntryBuilder { slices, message });
        let entry = entry.entry.user_data(pending.expose_provenance() as u64);
        loop {
            // SAFETY: all that the entry points to (memory, slices, message) is
            // borrowed from the box, and so is the descriptor, which the
            // operation keeps open. The box is neither moved nor freed until
            // `reap` gets its address from the kernel; if that never happens, it
            // is never freed.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            // The queue is full: the kernel takes what is in it, if there is space
            // for completions.
            let result = self.enter(0, None);
            self.reap();
            if let Err(error) = result {
                // SAFETY: the pointer comes from a box, and the kernel has not
                // seen it.
                drop(unsafe { Box::from_raw(pending) });
                return Err(error);
            }
        }
    }

    /// Hands all operations to the kernel, and waits until one is completed, or
    /// `timeout` has passed.
    ///
    /// # Errors
    ///
    /// Those of the system call.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let want = usize::from(self.completed.is_empty());
        self.enter(want, timeout)
    }

    /// Moves all completed operations to `completed`, each with its result.
    pub fn completed(&mut self, completed: &mut Vec<(O, io::Result<usize>)>) {
        self.reap();
        completed.append(&mut self.completed);
    }

    fn reap(&mut self) {
        for entry in self.uring.completion() {
            let address = usize::try_from(entry.user_data()).unwrap_or(0);
            let pending = ptr::with_exposed_provenance_mut::<Pending<O>>(address);
            // SAFETY: the address is the one that `start` has put into the entry,
            // and the kernel completes each entry once: no entry is of a kind
            // that completes repeatedly. So the box is no longer in use, and this
            // is the only place that takes it back.
            let mut pending = unsafe { Box::from_raw(pending) };
            let result = match entry.result() {
                error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                count => Ok(count.cast_unsigned() as usize),
            };
            if let Some(operation) = pending.operation.take() {
                self.completed.push((operation, result));
            }
            if self.spare.len() < MAX_SPARE {
                self.spare.push(pending);
            }
        }
    }

    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.uring.submitter();
        let result = match timeout {
            None => submitter.submit_and_wait(want),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timeout))
            }
        };
        match result {
            Ok(_) => Ok(()),
            // The timeout has passed, or a signal arrived, or the kernel first wants
            // its completions to be reaped.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
