//! The board: a UART, reports to the debugger, and the stack.
//!
//! All unsafe code is here.

use core::arch::{asm, global_asm};
use core::convert::Infallible;
use core::num::NonZeroUsize;
use core::panic::PanicInfo;
use core::ptr::{read_volatile, write_volatile};

use nbd_codec::wire::Sink;

use crate::Inbox;

// What the compiler calls to copy, fill and clear memory. Its own functions do it by
// words, in 400 bytes; nothing here is so long that it would matter.
global_asm!(
    ".macro function name",
    ".thumb_func",
    ".global \\name",
    "\\name:",
    ".endm",
    // (to, from, length)
    "function __aeabi_memcpy",
    "function __aeabi_memcpy4",
    "function __aeabi_memcpy8",
    "subs r2, #1",
    "bmi 1f",
    "ldrb r3, [r1], #1",
    "strb r3, [r0], #1",
    "b __aeabi_memcpy",
    "1: bx lr",
    // (to, length)
    "function __aeabi_memclr",
    "function __aeabi_memclr4",
    "function __aeabi_memclr8",
    "movs r2, #0",
    // (to, length, byte)
    "function __aeabi_memset",
    "function __aeabi_memset4",
    "function __aeabi_memset8",
    "subs r1, #1",
    "bmi 1f",
    "strb r2, [r0], #1",
    "b __aeabi_memset",
    "1: bx lr",
);

/// UART0, a PL011, polled.
pub struct Uart(());

const UART0: usize = 0x4000_c000;
/// Data.
const DR: *mut u32 = UART0 as *mut u32;
/// Flags: busy, receive queue empty, send queue full.
const FR: *mut u32 = (UART0 + 0x18) as *mut u32;
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
/// Line control: words of 8 bits. The queues of 16 bytes stay off: enabling them
/// empties them, and by then the emulator has received the peer's first byte.
const LCRH: *mut u32 = (UART0 + 0x2c) as *mut u32;
const LCRH_8N1: u32 = 3 << 5;
/// Control: enable, transmit, receive.
const CR: *mut u32 = (UART0 + 0x30) as *mut u32;
const CR_ON: u32 = 1 | 1 << 8 | 1 << 9;

impl Uart {
    /// Enables the UART.
    ///
    /// # Safety
    ///
    /// There must be only one `Uart` at a time.
    pub unsafe fn start() -> Self {
        // SAFETY: registers of the board's UART0, which only `Uart` uses.
        unsafe {
            write_volatile(LCRH, LCRH_8N1);
            write_volatile(CR, CR_ON);
        }
        Self(())
    }

    fn wait_while(&self, flag: u32) {
        // SAFETY: as in `start`; reading the flags changes nothing.
        while unsafe { read_volatile(FR) } & flag != 0 {}
    }

    pub fn read_byte(&mut self) -> u8 {
        self.wait_while(FR_RXFE);
        // SAFETY: as in `start`. The upper bits are error flags.
        unsafe { read_volatile(DR) as u8 }
    }

    pub fn read(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.read_byte();
        }
    }

    /// Reads the `n` bytes of a `Step::Read`.
    pub fn fill(&mut self, inbox: &mut Inbox, n: NonZeroUsize) {
        let read = |space: &mut [u8]| {
            self.read(space);
            Ok::<_, Infallible>(space.len())
        };
        let Ok(_) = inbox.fill(n, read);
    }

    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.wait_while(FR_TXFF);
            // SAFETY: as in `start`.
            unsafe { write_volatile(DR, u32::from(*byte)) };
        }
    }

    /// Waits until the last byte is sent.
    pub fn drain(&mut self) {
        self.wait_while(FR_BUSY);
    }
}

/// Messages need no send buffer: they are sent as they are encoded.
impl Sink for Uart {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
}

/// Calls the debugger (Arm semihosting).
///
/// # Safety
///
/// `argument` must be the argument of `operation`.
unsafe fn semihosting(operation: u32, argument: *const u32) {
    // SAFETY: the caller keeps the contract of the operation.
    unsafe { asm!("bkpt 0xab", inout("r0") operation => _, in("r1") argument) };
}

/// Reports a figure to the debugger, as a line: `name 0123abcd`.
pub fn report(name: &str, value: u32) {
    for byte in name.bytes().chain([b' ']) {
        report_byte(byte);
    }
    for place in (0..8).rev() {
        let digit = (value >> (place * 4)) as u8 & 15;
        report_byte(digit + if digit < 10 { b'0' } else { b'a' - 10 });
    }
    report_byte(b'\n');
}

/// Sends bytes to the debugger.
pub fn report_bytes(bytes: &[u8]) {
    for byte in bytes {
        report_byte(*byte);
    }
}

fn report_byte(byte: u8) {
    let word = u32::from(byte);
    // SAFETY: SYS_WRITEC writes the byte that the argument points to.
    unsafe { semihosting(0x03, &word) };
}

/// Ends the program with a status.
pub fn exit(status: u32) -> ! {
    let block = [0x2_0026, status];
    loop {
        // SAFETY: SYS_EXIT_EXTENDED takes a reason (the program ended) and a
        // status.
        unsafe { semihosting(0x20, block.as_ptr()) };
    }
}

/// Nothing panics: the linker removes this function.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}

unsafe extern "C" {
    /// The ends of free memory; the stack grows downwards from the second.
    static mut __sheap: u32;
    static mut _stack_start: u32;
}

const PAINT: u32 = 0x5aa5_c33c;

/// Fills the memory that the stack may grow into with a pattern.
pub fn paint_stack() {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, sp", out(reg) sp) };
    let mut at = &raw mut __sheap;
    // This function's own frame is above its stack pointer.
    while (at as usize) < sp {
        // SAFETY: the memory between the statics and the stack is unused.
        unsafe {
            write_volatile(at, PAINT);
            at = at.add(1);
        }
    }
}

/// The deepest stack since it was painted, in bytes.
pub fn deepest_stack() -> u32 {
    let mut at = &raw const __sheap;
    let end = &raw const _stack_start;
    // SAFETY: as in `paint_stack`; memory that the stack has used is read as
    // words.
    while at < end && unsafe { read_volatile(at) } == PAINT {
        at = at.wrapping_add(1);
    }
    (end as usize - at as usize) as u32
}
