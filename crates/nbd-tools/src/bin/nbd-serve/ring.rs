//! An `io_uring` that owns what the kernel works on.
//!
//! What the kernel reads, writes and waits for belongs to a [`Flight`]: sockets,
//! files and memory. A flight is handed over with [`Ring::start`] and comes back
//! with [`Ring::landed`], when the kernel is done with it. In between nobody can
//! reach it. What has not come back when the ring goes is never freed.
//!
//! This is the only module with `unsafe` in it. Its safety rests on one rule:
//! a flight under way lies in a box that nobody but the kernel touches, and the
//! number the kernel gives back for it is the address of that box.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

/// The system takes no more slices at once.
pub const MOST_SLICES: usize = 1024;

/// Something for the kernel to do, and everything it needs for it.
pub trait Flight: 'static {
    /// Says what to do, once, when the flight has its place. What the order
    /// borrows stays borrowed until the flight has landed.
    fn order<'f>(&'f mut self, desk: Desk<'f>) -> Order<'f>;
}

/// Where orders are made.
pub struct Desk<'f> {
    slices: &'f mut Vec<libc::iovec>,
    message: &'f mut libc::msghdr,
}

/// What the kernel is to do with memory and a file of a flight.
pub struct Order<'f> {
    entry: squeue::Entry,
    flight: PhantomData<&'f mut ()>,
}

impl<'f> Desk<'f> {
    /// Receive what there is into `place`, and what is behind it into
    /// `behind`. Waits for something; lands with the number of bytes.
    pub fn receive(
        self,
        socket: BorrowedFd<'f>,
        place: &'f mut [u8],
        behind: &'f mut [u8],
    ) -> Order<'f> {
        if place.is_empty() {
            let (start, length) = (behind.as_mut_ptr(), clip(behind.len()));
            let entry = opcode::Recv::new(fd(socket), start, length).build();
            return Order::new(entry);
        }
        self.slices.clear();
        for slice in [place, behind] {
            self.slices.push(libc::iovec {
                iov_base: slice.as_mut_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        let message = ptr::from_mut(self.message(2));
        Order::new(opcode::RecvMsg::new(fd(socket), message).build())
    }

    /// Send `parts`, [`MOST_SLICES`] of them at most. Lands when all of it is
    /// sent, with the number of bytes.
    pub fn send(self, socket: BorrowedFd<'f>, parts: impl Iterator<Item = &'f [u8]>) -> Order<'f> {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
        self.slices.clear();
        self.slices
            .extend(parts.take(MOST_SLICES).map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            }));
        if let [only] = self.slices[..] {
            let (start, length) = (only.iov_base.cast_const().cast(), clip(only.iov_len));
            let entry = opcode::Send::new(fd(socket), start, length).flags(flags.cast_signed());
            return Order::new(entry.build());
        }
        let count = self.slices.len();
        let message = ptr::from_ref(self.message(count));
        Order::new(
            opcode::SendMsg::new(fd(socket), message)
                .flags(flags)
                .build(),
        )
    }

    /// Read from a file, or from a counter of events. Lands with the number of
    /// bytes; zero at the end.
    pub fn read(self, file: BorrowedFd<'f>, offset: u64, into: &'f mut [u8]) -> Order<'f> {
        let (start, length) = (into.as_mut_ptr(), clip(into.len()));
        let entry = opcode::Read::new(fd(file), start, length).offset(offset);
        Order::new(entry.build())
    }

    /// Write to a file. Lands with the number of bytes.
    pub fn write(self, file: BorrowedFd<'f>, offset: u64, from: &'f [u8]) -> Order<'f> {
        let entry = opcode::Write::new(fd(file), from.as_ptr(), clip(from.len())).offset(offset);
        Order::new(entry.build())
    }

    /// Make the data of a file permanent.
    pub fn sync_data(self, file: BorrowedFd<'f>) -> Order<'f> {
        let entry = opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC);
        Order::new(entry.build())
    }

    fn message(self, slices: usize) -> &'f mut libc::msghdr {
        self.message.msg_iov = self.slices.as_mut_ptr();
        self.message.msg_iovlen = slices;
        self.message
    }
}

impl Order<'_> {
    fn new(entry: squeue::Entry) -> Self {
        let flight = PhantomData;
        Self { entry, flight }
    }
}

fn fd(fd: BorrowedFd<'_>) -> Fd {
    Fd(fd.as_raw_fd())
}

/// Lengths have 32 bits here. Of what is longer, a part is done.
fn clip(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(1 << 30)
}

pub struct Ring<F: Flight> {
    uring: IoUring,
    /// What has landed, and nobody has asked for yet.
    home: Vec<(F, io::Result<usize>)>,
    /// Places of flights that have landed, to be used again.
    spare: Vec<Box<Place<F>>>,
}

/// Most places that are kept.
const MOST_SPARE: usize = 256;

struct Place<F> {
    flight: Option<F>,
    slices: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl<F: Flight> Ring<F> {
    /// A ring for this thread and no other.
    ///
    /// # Errors
    ///
    /// Where there is no `io_uring`, or it is not permitted, or it does not
    /// know all that is needed (Linux 5.11 does).
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
            opcode::Fsync::CODE,
        ];
        let params = uring.params();
        let known = needed.iter().all(|code| probe.is_supported(*code));
        if !(known && params.is_feature_ext_arg() && params.is_feature_nodrop()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            uring,
            home: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Takes a flight over. It sets out with the next [`wait`](Self::wait), or
    /// earlier.
    ///
    /// # Errors
    ///
    /// The ring is full and nothing can be done about it; the flight is lost.
    pub fn start(&mut self, flight: F) -> io::Result<()> {
        let mut place = self.spare.pop().unwrap_or_else(|| {
            Box::new(Place {
                flight: None,
                slices: Vec::new(),
                // SAFETY: a message without name, slices and control data; all
                // its fields are numbers and pointers.
                message: unsafe { std::mem::zeroed() },
            })
        });
        place.flight = Some(flight);
        // From here on the box is only reached through this pointer, and by
        // nobody but the kernel until it comes back.
        let place = Box::into_raw(place);
        // SAFETY: it comes from a box, and nobody else has it.
        let Place {
            flight,
            slices,
            message,
        } = unsafe { &mut *place };
        let Some(flight) = flight else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let order = flight.order(Desk { slices, message });
        let entry = order.entry.user_data(place.expose_provenance() as u64);
        loop {
            // SAFETY: all that the entry points to (memory, slices, message)
            // was borrowed from the place, and the descriptor from the flight
            // in it, which keeps it open. The place stays as it is until
            // `landed` gets its address back from the kernel; if it never does
            // it is never freed.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            // It is full. What sets out makes room, and what has landed must
            // not keep it from that.
            let result = self.enter(0, None);
            self.reap();
            if let Err(error) = result {
                // SAFETY: the pointer comes from a box, and the kernel has not
                // seen it.
                drop(unsafe { Box::from_raw(place) });
                return Err(error);
            }
        }
    }

    /// Lets all flights set out and waits until one lands, or for so long.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let want = usize::from(self.home.is_empty());
        self.enter(want, timeout)
    }

    /// Takes back all flights that have landed, each with its result.
    pub fn landed(&mut self, landed: &mut Vec<(F, io::Result<usize>)>) {
        self.reap();
        landed.append(&mut self.home);
    }

    fn reap(&mut self) {
        for entry in self.uring.completion() {
            let address = usize::try_from(entry.user_data()).unwrap_or(0);
            let place = ptr::with_exposed_provenance_mut::<Place<F>>(address);
            // SAFETY: every entry that was pushed has the address of a box as
            // its number, and the kernel completes each of them once: none of
            // them is of a kind that is completed again and again. So the box
            // is ours again, and here for the first time.
            let mut place = unsafe { Box::from_raw(place) };
            let result = match entry.result() {
                error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                count => Ok(count.cast_unsigned() as usize),
            };
            if let Some(flight) = place.flight.take() {
                self.home.push((flight, result));
            }
            if self.spare.len() < MOST_SPARE {
                self.spare.push(place);
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
            // Time is over, or something else is to be done first: to take
            // back what has landed.
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
