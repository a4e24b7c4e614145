//! How long hyp waits for its console: by count, not by the clock, which may be what is broken.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

/// How often a UART is looked at that takes no byte. A look is a read of a device, at least 50 ns; a
/// byte at 9600 baud is a millisecond. A UART that has taken nothing for so many is not slow but
/// stopped: the host has the device too.
pub const LOOKS: u32 = 1 << 18;

/// Whether the UART is worth waiting for, as far as the last message could tell.
#[derive(Debug)]
pub struct Uart {
    stopped: AtomicBool,
}

/// The patience that is left for one message.
#[derive(Debug)]
pub struct Patience<'a> {
    uart: &'a Uart,
    left: u32,
}

impl Uart {
    /// One that works.
    #[must_use]
    pub const fn new() -> Self {
        Self { stopped: AtomicBool::new(false) }
    }

    /// For a message. One that was found stopped has to take the first byte at once.
    pub fn message(&self) -> Patience<'_> {
        let left = if self.stopped.load(Ordering::Relaxed) { 1 } else { LOOKS };
        Patience { uart: self, left }
    }
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Patience<'_> {
    /// Waits until a byte fits, which `is_full` tells. If it doesn't, the rest of the message is lost.
    pub fn wait(&mut self, mut is_full: impl FnMut() -> bool) -> bool {
        while self.left > 0 {
            if !is_full() {
                self.uart.stopped.store(false, Ordering::Relaxed);
                self.left = LOOKS;
                return true;
            }
            self.left -= 1;
        }
        self.uart.stopped.store(true, Ordering::Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Sends messages of 100 bytes to a UART that says when it is full. Returns the bytes that got out.
    fn send(uart: &Uart, looks: &Cell<u64>, full: impl Fn(u64) -> bool) -> usize {
        let mut patience = uart.message();
        (0..100)
            .filter(|_| {
                patience.wait(|| {
                    looks.set(looks.get() + 1);
                    full(looks.get())
                })
            })
            .count()
    }

    #[test]
    fn a_stopped_uart_costs_one_wait_for_all_messages() {
        let (uart, looks) = (Uart::new(), Cell::new(0));
        assert_eq!(send(&uart, &looks, |_| true), 0);
        assert_eq!(looks.get(), u64::from(LOOKS));
        for _ in 0..100 {
            assert_eq!(send(&uart, &looks, |_| true), 0);
        }
        assert_eq!(looks.get(), u64::from(LOOKS) + 100);
    }

    #[test]
    fn one_that_goes_on_again_is_used_again() {
        let (uart, looks) = (Uart::new(), Cell::new(0));
        assert_eq!(send(&uart, &looks, |_| true), 0);
        assert_eq!(send(&uart, &looks, |_| false), 100);
        assert_eq!(send(&uart, &looks, |look| look % 1000 != 0), 100);
    }

    #[test]
    fn a_slow_uart_gets_everything_out() {
        let (uart, looks) = (Uart::new(), Cell::new(0));
        assert_eq!(send(&uart, &looks, |look| look % u64::from(LOOKS - 1) != 0), 100);
    }

    #[test]
    fn one_that_stops_in_the_middle_loses_the_rest() {
        let (uart, looks) = (Uart::new(), Cell::new(0));
        assert_eq!(send(&uart, &looks, |look| look > 40), 40);
        assert_eq!(looks.get(), 40 + u64::from(LOOKS));
    }
}
