//! The console: a PL011, which the host uses as well. Hyp writes while it boots, and when it dies.

use crate::arch::Lock;
use crate::arch::layout::DEVICE_BASE;
use crate::arch::patience::{self, Patience};
use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use core::fmt::Write;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use log::{LevelFilter, Log, Metadata, Record};

struct Console;

static STATE: patience::Uart = patience::Uart::new();
static UART: Lock<Option<Uart<'static>>> = Lock::new(None);
/// Where the UART is mapped now; zero: nowhere.
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// The UART is mapped at `address`: the console works from now on.
///
/// # Safety
///
/// `address` must be a PL011's registers, mapped as Device memory in hyp for good (or until this is
/// called again).
pub unsafe fn init(address: usize) {
    ADDRESS.store(address, Ordering::Relaxed);
    *UART.lock() = uart();
    // A second call finds the logger set, which is what it wants.
    let _ = log::set_logger(&Console);
    log::set_max_level(LevelFilter::Info);
}

/// The address of the console in the final tables.
pub const FINAL_ADDRESS: usize = DEVICE_BASE;

fn uart() -> Option<Uart<'static>> {
    let registers = NonNull::new(ADDRESS.load(Ordering::Relaxed) as *mut PL011Registers)?;
    // SAFETY: `init`'s caller promises that the registers are mapped there. The host writes the same
    // device; a UART's data register doesn't mind.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// A message under way. The host has the device too and may have stopped it: what doesn't fit in time is
/// lost, with the rest of the message.
struct Lines<'a>(&'a mut Uart<'static>, Patience<'static>);

impl Write for Lines<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.byte(b'\r')?;
            }
            self.byte(byte)?;
        }
        Ok(())
    }
}

impl Lines<'_> {
    fn byte(&mut self, byte: u8) -> core::fmt::Result {
        let Self(uart, patience) = self;
        if !patience.wait(|| uart.is_tx_fifo_full()) {
            return Err(core::fmt::Error);
        }
        uart.write_word(byte);
        Ok(())
    }
}

impl Log for Console {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(uart) = UART.lock().as_mut() {
            // Nothing can be done about a console that fails.
            let _ = writeln!(Lines(uart, STATE.message()), "umbra: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// The last words, of hyp or of a machine: takes the UART whoever holds it, because that may be a CPU
/// that died.
pub fn emergency(args: core::fmt::Arguments<'_>) {
    if let Some(mut uart) = uart() {
        let _ = Lines(&mut uart, STATE.message()).write_fmt(args);
    }
}
