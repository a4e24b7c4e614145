//! The console: only for what ends the machine.

use super::{KNOWN, Known, hang, power_off};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

/// The PL011; zero: none known.
static UART: AtomicUsize = AtomicUsize::new(0);

/// The device tree named a PL011. It is turned on for whoever runs below, too: not every board does so
/// at reset.
pub fn init(address: usize) {
    const INTEGER_BAUD: usize = 0x24;
    const FRACTIONAL_BAUD: usize = 0x28;
    const LINE_CONTROL: usize = 0x2c;
    const CONTROL: usize = 0x30;
    // 115200 baud of a 24 MHz clock, 8 bits with FIFOs, transmitter and receiver: an emulated one does
    // not look at the speed.
    const SETTINGS: [(usize, u32); 4] =
        [(INTEGER_BAUD, 13), (FRACTIONAL_BAUD, 1), (LINE_CONTROL, 7 << 4), (CONTROL, 0x301)];
    for (register, value) in SETTINGS {
        // SAFETY: the device tree's PL011, mapped as Device.
        unsafe { ((address + register) as *mut u32).write_volatile(value) };
    }
    UART.store(address, Ordering::Relaxed);
}

struct Uart(usize);

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const FLAGS: usize = 0x18;
        const TRANSMIT_FULL: u32 = 1 << 5;
        let (data, flags) = (self.0 as *mut u32, (self.0 + FLAGS) as *mut u32);
        for byte in text.bytes() {
            // SAFETY: the device tree's PL011, mapped as Device.
            unsafe {
                while flags.read_volatile() & TRANSMIT_FULL != 0 {}
                data.write_volatile(u32::from(byte));
            }
        }
        Ok(())
    }
}

/// Says why nothing can go on, and turns the machine off.
pub fn fatal(why: fmt::Arguments<'_>) -> ! {
    let uart = UART.load(Ordering::Relaxed);
    if uart != 0 {
        // Nothing can be done about a console that fails.
        let _ = write!(Uart(uart), "\r\n@fatal firmware: {why}\r\n");
    }
    if KNOWN.set.load(Ordering::Acquire) {
        // SAFETY: `set`: nobody writes it any more.
        if let Some(Known { facts, .. }) = unsafe { &*KNOWN.value.get() } {
            power_off(facts);
        }
    }
    hang()
}
