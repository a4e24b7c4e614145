//! The host's own side in tests: its FP registers and its timer.

use crate::context::{Counters, context};
use umbra_host::kernel::{MAX_CPUS, gic, smp, sync::Lock, sysreg, timer};
use umbra_patterns::{
    pattern::{Kept, Mismatch},
    regs::{self, Bench, Width},
    tag::Tag,
};
use umbra_shared::call::Counter;

/// Owners of the host's tags: + CPU.
pub const OWNER: u16 = 0x100;

/// Owners of guests' tags: + a number that the test chooses.
pub const GUEST_OWNER: u16 = 0x200;

/// Every owner, so that a stray lane can be named.
pub const KNOWN: [Tag; MAX_CPUS + 16] = {
    let mut known = [Tag { owner: 0, generation: 0 }; MAX_CPUS + 16];
    let mut n = 0;
    while n < known.len() {
        known[n].owner =
            if n < MAX_CPUS { OWNER + n as u16 } else { GUEST_OWNER + (n - MAX_CPUS) as u16 };
        n += 1;
    }
    known
};

static BENCHES: [Lock<Bench>; MAX_CPUS] = [const { Lock::new(Bench::new()) }; MAX_CPUS];

/// The tag of this CPU's host.
pub fn tag(generation: u32) -> Tag {
    Tag { owner: OWNER + smp::cpu() as u16, generation }
}

/// All of the register file that this machine has.
pub fn width() -> Width {
    if context().sve() { Width::Sve } else { Width::Fpsimd }
}

/// Fills this CPU's registers at the VL in force.
pub fn fill(generation: u32) {
    BENCHES[smp::cpu()].lock().fill(tag(generation), width());
}

/// What is not as [`fill`] left it.
pub fn find(generation: u32, kept: Kept) -> Result<(), Mismatch> {
    BENCHES[smp::cpu()].lock().check(tag(generation), width(), kept, &KNOWN)
}

/// The registers are as [`fill`] left them.
#[track_caller]
pub fn check(generation: u32) {
    check_kept(generation, Kept::All);
}

/// So much of them is, and the rest is zero or what it was.
#[track_caller]
pub fn check_kept(generation: u32, kept: Kept) {
    if let Err(mismatch) = find(generation, kept) {
        panic!("host: {mismatch}");
    }
}

/// The registers hold zeroes, FPSR and FPCR included.
#[track_caller]
pub fn check_zero() {
    assert_eq!(regs::status(), (0, 0), "host: FPSR, FPCR");
    if let Err(mismatch) = BENCHES[smp::cpu()].lock().check_zero(width(), &KNOWN) {
        panic!("host: {mismatch}");
    }
}

/// The registers are in their reset state, for all of the VL: nothing of anybody's.
#[track_caller]
pub fn check_reset() {
    if context().sve() {
        assert_eq!(regs::zcr() & 0xf, 0, "host: ZCR_EL1.LEN after reset");
    }
    full_vl();
    check_zero();
}

/// Selects the CPU's largest VL.
pub fn full_vl() {
    if context().sve() {
        regs::set_vl(umbra_shared::vl::Vq::MAX);
    }
}

/// Makes the host's state live, so that counting begins from a known state.
pub fn make_live() {
    let (fpsr, fpcr) = regs::status();
    regs::set_status(fpsr, fpcr);
}

/// Traps that `f` took from the host.
pub fn traps(f: impl FnOnce()) -> u64 {
    let before = Counters::now();
    f();
    before.since(Counter::HostFpTraps)
}

/// Makes this CPU's timer interrupt pending and keeps it so: interrupts are masked from here on.
/// Returns DAIF for [`release_interrupt`].
pub fn pend_interrupt() -> u64 {
    let daif = sysreg::mask_interrupts();
    set_timer(0, 1);
    daif
}

/// Takes that interrupt away.
pub fn release_interrupt(daif: u64) {
    set_timer(0, 0);
    sysreg::restore_interrupts(daif);
}

/// CNTV_CVAL_EL0, CNTV_CTL_EL0.
pub fn set_timer(deadline: u64, control: u64) {
    // SAFETY: the timer's interrupt is handled, or masked by the caller.
    unsafe {
        core::arch::asm!(
            "msr cntv_ctl_el0, xzr",
            "msr cntv_cval_el0, {}",
            "msr cntv_ctl_el0, {}",
            "isb",
            in(reg) deadline,
            in(reg) control,
            options(nostack)
        );
    }
}

/// After a test: nobody holds a bench, the registers hold nothing, the VL is the largest, no timer runs.
pub fn settle() {
    timer::set_tick(0);
    // A test that failed may have closed it.
    gic::enable(gic::VIRTUAL_TIMER, true);
    for bench in &BENCHES {
        if bench.is_locked() {
            // SAFETY: the test that held it is over.
            unsafe { bench.force_unlock() };
        }
    }
    regs::enable();
    full_vl();
    regs::set_status(0, 0);
}
