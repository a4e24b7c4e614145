//! The system counter: on boards where it stands still at reset, EL3 starts it and tells CNTFRQ_EL0 its
//! frequency (Arm ARM, I5.6 "Generic Timer memory-mapped register descriptions").

use super::{fatal, sysreg};

const CNTCR: u64 = 0x0;
/// First entry of the table of frequencies: the counter's base frequency, hertz.
const CNTFID0: u64 = 0x20;
/// The counter counts.
const ENABLE: u32 = 1 << 0;
/// At the first frequency of the table.
const FIRST_FREQUENCY: u32 = 1 << 8;

/// Starts the counter with its control frame at `base`, and says what its frequency is.
pub fn start(base: u64) -> u64 {
    // SAFETY: the configuration says that the frame is there; it is mapped as Device, and only EL3 can
    // reach it.
    let hertz = unsafe {
        ((base + CNTCR) as *mut u32).write_volatile(FIRST_FREQUENCY | ENABLE);
        ((base + CNTFID0) as *const u32).read_volatile()
    };
    if hertz == 0 {
        fatal(format_args!("the system counter at {base:#x} does not say its frequency"));
    }
    u64::from(hertz)
}

/// Waits.
pub fn wait(microseconds: u32) {
    let ticks = u64::from(microseconds) * sysreg::read_cntfrq_el0() / 1_000_000;
    let since = sysreg::read_cntpct_el0();
    while sysreg::read_cntpct_el0().wrapping_sub(since) < ticks {}
}
