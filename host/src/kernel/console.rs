//! The console: a PL011, as sink of the `log` crate.
//!
//! Two formats go out. What begins with `@` is for programs: one line, printed as it is. Everything
//! else is for people and gets the level and the CPU in front.

use super::{
    layout,
    machine::Machine,
    mmu,
    sync::Lock,
    sysreg::{cpu, mask_interrupts, restore_interrupts},
};
use arm_pl011_uart::{PL011Registers, Uart};
use core::{fmt, fmt::Write, ptr::NonNull};
use log::{LevelFilter, Log, Metadata, Record};
use safe_mmio::UniqueMmioPointer;

static UART: Lock<Option<Uart<'static>>> = Lock::new(None);

struct Console;

impl Log for Console {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let args = record.args();
        let machine_readable =
            args.as_str().is_some_and(|s| s.starts_with('@')) || record.target().starts_with('@');
        if machine_readable {
            print(format_args!("{args}\n"));
        } else {
            print(format_args!("[{} {}] {args}\n", cpu(), record.level()));
        }
    }

    fn flush(&self) {}
}

/// Prints, whole lines at a time as far as the caller passes whole lines.
pub fn print(args: fmt::Arguments) {
    // An interrupt handler that logs while this CPU holds the lock would wait for itself.
    let daif = mask_interrupts();
    if let Some(uart) = UART.lock().as_mut() {
        let mut crlf = Crlf(uart);
        // The UART itself cannot fail; a `Display` implementation that does loses its own text.
        let _ = crlf.write_fmt(args);
    }
    restore_interrupts(daif);
}

/// Waits until somebody types something, and drops it.
pub fn wait_for_input() {
    loop {
        let typed = UART.lock().as_mut().is_none_or(|uart| !matches!(uart.read_word(), Ok(None)));
        if typed {
            return;
        }
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack)) };
    }
}

/// Prints for a CPU that is about to stop, whoever holds the lock.
pub fn print_fatal(args: fmt::Arguments) {
    mask_interrupts();
    let mut uart = (0..1_000_000).find_map(|_| UART.try_lock());
    if uart.is_none() {
        // SAFETY: the holder had a million attempts' time for a line: it is this CPU, or stopped.
        unsafe { UART.force_unlock() };
        uart = UART.try_lock();
    }
    if let Some(uart) = uart.as_mut().and_then(|uart| uart.as_mut()) {
        let _ = Crlf(uart).write_fmt(args);
    }
}

/// Prints a line for programs: it should begin with `@`.
#[macro_export]
macro_rules! emit {
    ($($arg:tt)*) => {
        $crate::kernel::console::print(format_args!("{}\n", format_args!($($arg)*)))
    };
}

struct Crlf<'a>(&'a mut Uart<'static>);

impl fmt::Write for Crlf<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.0.write_word(b'\r');
            }
            self.0.write_word(byte);
        }
        Ok(())
    }
}

fn set(registers: NonNull<PL011Registers>) {
    // SAFETY: the pointer maps the registers of the PL011 that the device tree names, as device
    // memory, and this is the only user of them.
    let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    *UART.lock() = Some(uart);
}

/// Before the kernel's tables: through the boot window.
pub(super) fn early(pa: u64) {
    set(mmu::window_device(pa).cast());
    // Fails only if a logger is set already, which nobody else does.
    let _ = log::set_logger(&Console);
    log::set_max_level(LevelFilter::Info);
}

/// With the kernel's tables.
pub(super) fn init(machine: &Machine) {
    *UART.lock() = None;
    if let Some(uart) = &machine.uart {
        set(layout::device(uart.start));
    }
}
