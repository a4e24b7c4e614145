//! The generic timer: the virtual one (CNTV), as a kernel that may run as a guest uses it.

use super::{
    MAX_CPUS,
    sysreg::{cpu, mrs, msr},
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
    PERIOD[cpu()].store(period, Ordering::Relaxed);
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
    let cpu = cpu();
    TICKS[cpu].fetch_add(1, Ordering::Relaxed);
    arm(PERIOD[cpu].load(Ordering::Relaxed));
}

/// How long to wait for what may never come.
///
/// The counter goes on while a hypervisor or an emulator has this CPU stand still, and the CPU that is
/// waited for too. So time counts only as this CPU sees it pass: from one look to the next at most one
/// step, however long it stood still in between.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    step: u64,
    left: u64,
    last: u64,
}

impl Patience {
    /// For so many seconds, of somebody who looks so many times in each, or more often.
    pub fn new(seconds: u64, looks: u64) -> Self {
        Self { step: (frequency() / looks).max(1), left: seconds * frequency(), last: now() }
    }

    /// A look; whether it is over.
    pub fn is_over(&mut self) -> bool {
        let now = now();
        self.left = self.left.saturating_sub((now - self.last).min(self.step));
        self.last = now;
        self.left == 0
    }
}

/// Looks in a second that a CPU manages which does nothing else.
const LOOKS: u64 = 10_000;

/// Waits until `done`, at most `seconds` ([`Patience`]). Says whether it was.
pub fn wait_until(seconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let mut patience = Patience::new(seconds, LOOKS);
    while !done() {
        if patience.is_over() {
            return false;
        }
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack)) };
    }
    true
}
