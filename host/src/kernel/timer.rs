//! The generic timer: the virtual one (CNTV), as a kernel that may run as a guest uses it.

use super::{
    MAX_CPUS, smp,
    sysreg::{mrs, msr},
};
use core::sync::atomic::{AtomicU64, Ordering};

static PERIOD: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static TICKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The counter (CNTVCT_EL0), in ticks; read after everything before it has been executed.
pub fn now() -> u64 {
    // SAFETY: a barrier; the counter may otherwise be read early.
    unsafe { core::arch::asm!("isb", options(nostack)) };
    mrs!("cntvct_el0")
}

/// Ticks per second.
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0")
}

pub(super) fn init_cpu() {
    // SAFETY: CNTV_CTL_EL0 = 0 stops the timer.
    unsafe { msr!("cntv_ctl_el0", 0) };
}

/// Lets this CPU's timer interrupt every `period` counter ticks; 0 stops it.
pub fn set_tick(period: u64) {
    PERIOD[smp::cpu()].store(period, Ordering::Relaxed);
    arm(period);
}

/// The periodic interrupts that `cpu` has seen.
pub fn ticks(cpu: usize) -> u64 {
    TICKS[cpu].load(Ordering::Relaxed)
}

fn arm(period: u64) {
    let deadline = mrs!("cntvct_el0") + period;
    // SAFETY: the timer is this kernel's, and its interrupt is handled below.
    unsafe {
        if period == 0 {
            msr!("cntv_ctl_el0", 0);
        } else {
            msr!("cntv_cval_el0", deadline);
            msr!("cntv_ctl_el0", 1);
        }
    }
}

pub(super) fn interrupt() {
    let cpu = smp::cpu();
    TICKS[cpu].fetch_add(1, Ordering::Relaxed);
    arm(PERIOD[cpu].load(Ordering::Relaxed));
}

/// Waits until `done`, at most `seconds`. Says whether it was.
pub fn wait_until(seconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + seconds * frequency();
    while !done() {
        if now() > end {
            return false;
        }
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack)) };
    }
    true
}
