//! Data of a file that goes to a socket without being copied: meanwhile a pipe holds
//! its pages of the page cache.
//!
//! Errors of the file occur when the pipe is filled, which is before the header of the
//! reply is sent. A write to these pages that is executed before the client has received
//! the data, by whatever client or program, may change it. The read is still in flight
//! then, and NBD promises no order of commands in flight.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::os;

/// Less data than this is copied: at depth 1 that is faster.
pub const SHORTEST: usize = 32 << 10;

/// The size of a pipe, in bytes, and so the longest data. It is what Linux permits to
/// every user.
const SIZE: usize = 1 << 20;

/// The most pipes of the process, for all clients. They have a quarter of the pages that
/// Linux by default permits to the pipes of one user.
const MOST: usize = 16;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    empty: Vec::new(),
    unopened: MOST,
});

struct Pool {
    empty: Vec<Ends>,
    /// How many more may be opened.
    unopened: usize,
}

struct Ends {
    output: OwnedFd,
    input: OwnedFd,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pipe with data for one reply.
pub struct Pipe {
    /// `None` after it was dropped.
    ends: Option<Ends>,
    length: usize,
}

impl Pipe {
    /// Fills a pipe with a range of `file`. `None` if the data has to be copied: it is
    /// too short or too long, all pipes are in use, or the system refuses.
    ///
    /// # Errors
    ///
    /// Those of reading, and `UnexpectedEof`.
    pub fn fill(file: &File, offset: u64, length: usize) -> io::Result<Option<Self>> {
        // A page that is in use in part takes the place of a whole one.
        let before = (offset % 4096) as usize;
        if length < SHORTEST || length > SIZE - before {
            return Ok(None);
        }
        let Some(mut pipe) = Self::empty() else {
            return Ok(None);
        };
        let Some(ends) = &pipe.ends else {
            return Ok(None);
        };
        let mut offset = offset;
        while pipe.length < length {
            match os::splice_in(file, &mut offset, &ends.input, length - pipe.length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => pipe.length += n,
                Err(Errno::INTR) => {}
                // The pipe is full: some processors have larger pages.
                Err(Errno::AGAIN) => return Ok(None),
                // Not a file system that can do it.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(pipe))
    }

    fn empty() -> Option<Self> {
        let mut pool = pool();
        let ends = pool.empty.pop().or_else(|| {
            pool.unopened = pool.unopened.checked_sub(1)?;
            let opened = os::pipe(SIZE).ok();
            if opened.is_none() {
                pool.unopened += 1;
            }
            opened.map(|(output, input)| Ends { output, input })
        })?;
        Some(Self {
            ends: Some(ends),
            length: 0,
        })
    }

    /// How many bytes are in the pipe.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Moves what `socket` accepts to it, as one write would.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let Some(ends) = &self.ends else {
            return Ok(());
        };
        match os::splice_out(&ends.output, socket, self.length)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            n => {
                self.length -= n;
                Ok(())
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        let mut pool = pool();
        if self.length == 0 {
            pool.empty.push(ends);
        } else {
            // What is in it is lost with it.
            pool.unopened += 1;
            drop(pool);
            drop(ends);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const MIB: usize = 1 << 20;

    /// A file of 2 MiB, and its content.
    fn file() -> (File, Vec<u8>) {
        let mut file = tempfile::tempfile().expect("a file");
        let content: Vec<u8> = (0..2 * MIB / 4)
            .flat_map(|n| (n as u32).to_be_bytes())
            .collect();
        file.write_all(&content).expect("written");
        (file, content)
    }

    /// What arrives at the other end of a socket.
    fn sent(mut pipe: Pipe) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket");
        let length = pipe.length();
        let reader = std::thread::spawn(move || {
            let mut data = vec![0; length];
            theirs.read_exact(&mut data).expect("all of it");
            data
        });
        while pipe.length() > 0 {
            pipe.send(ours.as_fd()).expect("sent");
        }
        reader.join().expect("data")
    }

    /// One test, because all of them share the pipes of the process.
    #[test]
    fn data_errors_and_what_has_to_be_copied() {
        let (file, content) = file();
        let fill = |offset: usize, length| Pipe::fill(&file, offset as u64, length);
        for (offset, length) in [
            (0, SHORTEST),
            (4095, 256 << 10),
            (MIB, MIB),
            (1, MIB - 4097),
        ] {
            let pipe = fill(offset, length).expect("no error").expect("a pipe");
            assert!(
                sent(pipe) == content[offset..][..length],
                "{offset} {length}"
            );
        }
        // Too short, too long, and too long because it begins within a page.
        for (offset, length) in [(0, SHORTEST - 1), (0, SIZE + 1), (1, SIZE)] {
            assert!(fill(offset, length).expect("no error").is_none());
        }
        // The file ends within the range.
        let error = fill(2 * MIB - 4096, SHORTEST)
            .map(drop)
            .expect_err("an error");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // No file at all.
        let (socket, _peer) = UnixStream::pair().expect("a socket");
        let socket = File::from(OwnedFd::from(socket));
        let result = Pipe::fill(&socket, 0, SHORTEST);
        assert!(!matches!(result, Ok(Some(_))));
        // Pipes that were dropped with data in them were replaced: there are as many as
        // before, and all are empty.
        let pipes: Vec<_> = (0..MOST)
            .map(|_| fill(0, SHORTEST).expect("no error").expect("a pipe"))
            .collect();
        assert!(fill(0, SHORTEST).expect("no error").is_none(), "one more");
        for pipe in pipes {
            assert!(sent(pipe) == content[..SHORTEST]);
        }
        assert!(fill(0, SHORTEST).expect("no error").is_some());
    }
}
