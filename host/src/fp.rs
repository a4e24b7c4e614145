//! The host's part in whose FP registers are live: saying what its own are worth.
//!
//! # TIF_FOREIGN_FPSTATE
//!
//! Linux keeps a task's FP registers in the CPU beyond the task's time on it, in the hope that nobody
//! else needs them meanwhile. `TIF_FOREIGN_FPSTATE` in a task's `thread_info` says that the hope has
//! failed: the CPU's registers hold somebody else's content, and before the task returns to user space
//! they have to be loaded from its `task_struct`. While the flag is clear, the registers are the only
//! current copy.
//!
//! # What a VMM task does to it under KVM
//!
//! KVM displaces the VMM task's registers with the guest's. In `kvm_arch_vcpu_load_fp` it saves the
//! task's registers ("`fpsimd_save_and_flush_cpu_state`"), whether or not the guest will touch FP at
//! all; from then on the flag is set for the task, and FP state of the guest hangs on the CPU like a
//! task's (`fpsimd_bind_state_to_cpu`) so that a context switch or a softirq that wants the registers
//! saves the *guest's*. pKVM in addition has to save and restore the host's SVE state at EL2, because
//! it may not trust the host with the guest's.
//!
//! # What changes here
//!
//! Hyp owns the save areas, those of guests and that of the host. It displaces the host's registers on
//! the guest's first FP instruction and no sooner, and brings them back on the host's first one. So
//! the host
//!
//! - saves nothing at load: `TIF_FOREIGN_FPSTATE` stays as it is across a run, its registers *appear*
//!   to be there all the time;
//! - never sees a guest's registers, so it has no guest state to bind, to flush or to save on a
//!   context switch: kernel-mode FP, a softirq, or another task's registers coming in are ordinary FP
//!   instructions that trap to hyp once, and find the host's own state;
//! - can make the switch cheaper by saying what it knows: with `TIF_FOREIGN_FPSTATE` set the registers
//!   hold nothing that matters, so hyp need not save them
//!   ([`HostFlags::FOREIGN_FPSTATE`]); in a system call only V0-V31, FPSR and FPCR hold anything
//!   ([`HostFlags::SVE_DISCARDED`]).
//!
//! It is said in the vCPU's flag-shadow page ([`umbra_shared::flags`]), before each entry, with
//! interrupts masked: from then on nothing of the host runs that could change it. What it costs to
//! be wrong is the host's own: hyp takes the word as a hint and protects guests whatever it says.
//!
//! After a run hyp's word says what became of the registers:
//!
//! | `GUEST_FP_LOADED` | `HOST_FP_PRESERVED` | what [`VcpuFp::vcpu_ctxsync_fp`] does |
//! |---|---|---|
//! | 0 | 1 | nothing: the registers hold the host's state |
//! | 1 | 1 | nothing: the first FP access of the host traps and finds its state |
//! | 1 | 0 | [`TaskFp::set_foreign_fpstate`]: the host had said FOREIGN, and meanwhile it is true |
//! | 0 | 0 | the same |
//!
//! The names below are those of KVM's `arch/arm64/kvm/fpsimd.c`, so that a reader of one finds the
//! way in the other.

use crate::hypercall::Hypervisor;
use umbra_shared::{
    error::Error,
    flags::{FlagShadowPage, HostFlags, HypFlags},
};

/// What the OS knows of the current task's FP registers.
pub trait TaskFp {
    /// TIF_FOREIGN_FPSTATE of the current task.
    fn foreign_fpstate(&self) -> bool;

    /// Whether the current task is where the syscall ABI discards everything beyond V0-V31, FPSR and
    /// FPCR. Those registers then read as zero after the run.
    fn sve_discarded(&self) -> bool;

    /// Sets TIF_FOREIGN_FPSTATE and forgets that any task's state is on this CPU
    /// (`fpsimd_flush_cpu_state`): the registers' content is gone. Called with interrupts masked.
    fn set_foreign_fpstate(&mut self);
}

/// How the OS's own kernel gets the FP registers for itself: a crypto routine, a softirq
/// (`kernel_neon_begin`/`kernel_neon_end`).
///
/// Under KVM this is where a guest's registers would have to be saved first, because they may be what is
/// on the CPU. Here they never are, as far as the host can see: what `kernel_neon_begin` reads to save
/// the current task is the task's, fetched back by hyp at that moment if a guest had displaced it.
pub trait KernelModeFp: TaskFp {
    /// Saves the current task's registers unless TIF_FOREIGN_FPSTATE says that they are saved already,
    /// and sets it: from here on the registers are the kernel's. Nothing may preempt until the end.
    fn kernel_neon_begin(&mut self);

    /// The registers hold nothing that matters any more; the task's come back when it returns to user
    /// space.
    fn kernel_neon_end(&mut self);
}

/// Runs `f` with the FP registers for the kernel itself.
///
/// # Panics
///
/// If `kernel_neon_begin` leaves TIF_FOREIGN_FPSTATE clear: the next entry into a guest would have
/// hyp keep the kernel's leavings as if they were the task's.
pub fn with_kernel_neon<T: KernelModeFp, R>(task: &mut T, f: impl FnOnce() -> R) -> R {
    task.kernel_neon_begin();
    assert!(task.foreign_fpstate(), "kernel_neon_begin sets TIF_FOREIGN_FPSTATE");
    let result = f();
    task.kernel_neon_end();
    result
}

/// What hyp is to be told of the registers while `task` is the current one.
pub fn hint_of(task: &impl TaskFp) -> HostFlags {
    let mut flags = HostFlags::empty();
    flags.set(HostFlags::FOREIGN_FPSTATE, task.foreign_fpstate());
    flags.set(HostFlags::SVE_DISCARDED, task.sve_discarded());
    flags
}

/// A vCPU's flag-shadow page, shared with hyp.
#[derive(Debug)]
pub struct VcpuFp {
    page: &'static FlagShadowPage,
    pa: u64,
}

impl VcpuFp {
    /// Once per vCPU: shares `page`, which lies at `pa`, with hyp.
    pub fn vcpu_run_map_fp<H: Hypervisor>(
        hyp: &H,
        page: &'static FlagShadowPage,
        pa: u64,
    ) -> Result<Self, Error> {
        hyp.share_flag_page(pa)?;
        Ok(Self { page, pa })
    }

    /// The physical address of the page.
    pub fn address(&self) -> u64 {
        self.pa
    }

    /// The vCPU has been bound to this CPU. KVM saves the task's registers here; we have nothing to
    /// do but to begin with a word that is true.
    pub fn vcpu_load_fp(&self, task: &impl TaskFp) {
        self.vcpu_ctxflush_fp(task);
    }

    /// Right before an entry, interrupts masked: says what the registers are worth.
    #[inline]
    pub fn vcpu_ctxflush_fp(&self, task: &impl TaskFp) {
        self.page.flush(hint_of(task));
    }

    /// After an exit, interrupts still masked: learns what became of them.
    #[inline]
    pub fn vcpu_ctxsync_fp(&self, task: &mut impl TaskFp) -> HypFlags {
        let flags = self.page.sync();
        if !flags.contains(HypFlags::HOST_FP_PRESERVED) && !task.foreign_fpstate() {
            task.set_foreign_fpstate();
        }
        flags
    }

    /// The vCPU has been unbound: its state has left the registers, the host's may have with it.
    pub fn vcpu_put_fp(&self, task: &mut impl TaskFp) -> HypFlags {
        self.vcpu_ctxsync_fp(task)
    }

    /// Ends the sharing. BUSY while the vCPU lives; then the page comes back with the error.
    pub fn vcpu_run_unmap_fp<H: Hypervisor>(self, hyp: &H) -> Result<u64, (Self, Error)> {
        match hyp.unshare_flag_page(self.pa) {
            Ok(()) => Ok(self.pa),
            Err(error) => Err((self, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Task {
        foreign: bool,
        discarded: bool,
    }

    impl TaskFp for Task {
        fn foreign_fpstate(&self) -> bool {
            self.foreign
        }
        fn sve_discarded(&self) -> bool {
            self.discarded
        }
        fn set_foreign_fpstate(&mut self) {
            self.foreign = true;
        }
    }

    fn shared() -> VcpuFp {
        VcpuFp { page: Box::leak(Box::new(FlagShadowPage::new())), pa: 0x1000 }
    }

    #[test]
    fn the_word_follows_the_task() {
        let fp = shared();
        for (foreign, discarded) in [(false, false), (true, false), (false, true), (true, true)] {
            fp.vcpu_ctxflush_fp(&Task { foreign, discarded });
            let said = fp.page.snapshot_hint().decode();
            assert_eq!(said.contains(HostFlags::FOREIGN_FPSTATE), foreign);
            assert_eq!(said.contains(HostFlags::SVE_DISCARDED), discarded);
        }
    }

    #[test]
    fn every_value_of_hyps_word() {
        let fp = shared();
        for loaded in [HypFlags::empty(), HypFlags::GUEST_FP_LOADED] {
            for preserved in [HypFlags::empty(), HypFlags::HOST_FP_PRESERVED] {
                for foreign in [false, true] {
                    fp.page.publish(loaded | preserved);
                    let mut task = Task { foreign, discarded: false };
                    assert_eq!(fp.vcpu_ctxsync_fp(&mut task), loaded | preserved);
                    assert_eq!(task.foreign, foreign || preserved.is_empty());
                }
            }
        }
    }
}
