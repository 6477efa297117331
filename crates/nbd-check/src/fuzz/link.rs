//! A link in memory between a script and the program under test.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

/// The end of the script. Reading never waits: the program runs only while it is not
/// in a call of its own end.
#[derive(Clone, Default)]
pub(super) struct Link(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    to_program: VecDeque<u8>,
    from_program: VecDeque<u8>,
    closed: bool,
}

/// The most that a program may send without reading, in bytes.
const MOST: usize = 1 << 28;
/// How often a program may read after the end of the connection.
const ENDS: usize = 1000;

impl Link {
    /// Whether the program has sent bytes that were not read.
    pub(super) fn has_input(&self) -> bool {
        !self.0.borrow().from_program.is_empty()
    }

    /// The program has closed its end.
    pub(super) fn close(&self) {
        self.0.borrow_mut().closed = true;
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.borrow_mut();
        if state.from_program.is_empty() && !state.closed {
            return Err(ErrorKind::WouldBlock.into());
        }
        state.from_program.read(buffer)
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().to_program.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of the program under test: a stream in memory.
///
/// When the program reads and everything was read before, the script continues: it
/// checks what the program has written and sends the next message. So there are no
/// threads and no time limits, and a script always does the same. A program that reads
/// while it owes an answer is found at once.
pub struct Pipe<'a> {
    link: Link,
    /// Continues the script; false at its end.
    advance: &'a mut dyn FnMut() -> bool,
    pieces: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    ends: usize,
}

impl<'a> Pipe<'a> {
    pub(super) fn new(link: Link, pieces: &'a [u8], advance: &'a mut dyn FnMut() -> bool) -> Self {
        Self {
            link,
            advance,
            pieces: pieces.iter().cycle(),
            ends: 0,
        }
    }
}

impl Read for Pipe<'_> {
    /// # Panics
    ///
    /// If the program reads on and on after the end of the connection.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.link.0.borrow().to_program.is_empty() {
            if !(self.advance)() {
                self.ends += 1;
                assert!(self.ends < ENDS, "the program reads after the end, forever");
                return Ok(0);
            }
        }
        let most = match self.pieces.next() {
            None | Some(0) => buffer.len(),
            Some(size) => buffer.len().min((*size).into()),
        };
        let space = buffer.get_mut(..most).unwrap_or_default();
        self.link.0.borrow_mut().to_program.read(space)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.link.0.borrow_mut();
        if state.from_program.len() > MOST {
            return Err(ErrorKind::BrokenPipe.into());
        }
        state.from_program.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
