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
//! - can make the switch cheaper by saying what it knows: if the registers hold nothing that is not in
//!   memory too, hyp need not save them ([`HostFlags::FOREIGN_FPSTATE`]); in a system call only V0-V31,
//!   FPSR and FPCR hold anything ([`HostFlags::SVE_DISCARDED`]).
//!
//! It is said in the vCPU's flag-shadow page ([`umbra_shared::flags`]), before each entry, with
//! interrupts masked: from then on nothing of the host runs that could change it. What it costs to
//! be wrong is the host's own: hyp takes the word as a hint and protects guests whatever it says.
//!
//! # Whose registers
//!
//! `TIF_FOREIGN_FPSTATE` is of one task, the registers are the CPU's. While the VMM task is current and its
//! flag set, they may be those of a task that was preempted: it has them in memory, but `fpsimd_last_state`
//! names it, and if it comes back to this CPU and nobody has taken them it goes on without reloading
//! them. The same is true of a kernel thread amid kernel-mode FP. So [`TaskFp`] asks for what the CPU
//! holds, whoever is current ([`CpuRegisters`]), and whenever hyp has kept nothing *nobody's* are there any
//! more: the OS forgets whose they were ([`TaskFp::flush_cpu_state`]), whatever the current task's flag is.
//! Where nothing was lost, because the guest left FP alone, the other task's registers stay and are
//! found.
//!
//! # What became of them
//!
//! Hyp's word says it after a run:
//!
//! | `GUEST_FP_LOADED` | `HOST_FP_PRESERVED` | what [`VcpuFp::vcpu_ctxsync_fp`] does |
//! |---|---|---|
//! | 0 | 1 | nothing: the registers hold the host's state |
//! | 1 | 1 | nothing: the first FP access of the host traps and finds its state |
//! | 1 | 0 | [`TaskFp::flush_cpu_state`]: the host had said FOREIGN, and meanwhile it is true |
//! | 0 | 0 | the same |
//!
//! A run that hyp refused has changed nothing and published nothing. The word is then what was published
//! last, for other registers perhaps (a CPU that was suspended has put its vCPU), and is not looked at.
//!
//! The names below are those of KVM's `arch/arm64/kvm/fpsimd.c`, so that a reader of one finds the
//! way in the other.

use crate::hypercall::Hypervisor;
use umbra_shared::{
    error::Error,
    flags::{FlagShadowPage, HostFlags, HypFlags},
};

/// What the CPU's FP registers hold of the host's: of any task's and of the kernel's, whoever is current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuRegisters {
    /// State that is nowhere else: hyp keeps it. On Linux it can only be the current task's
    /// (TIF_FOREIGN_FPSTATE is clear).
    Live,
    /// The same, of a task that is where the syscall ABI discards everything beyond V0-V31, FPSR and
    /// FPCR. Those registers then may read as zero after the run.
    LiveFpsimd,
    /// Nothing, or what its owner has in memory too, though it may count on finding it here
    /// (TIF_FOREIGN_FPSTATE of the current task is set): hyp need not keep it, and if it does not, who
    /// counts on it is told by [`TaskFp::flush_cpu_state`].
    Saved,
}

/// What the OS knows of the FP registers of the CPU that it runs on.
pub trait TaskFp {
    /// What they hold.
    fn registers(&self) -> CpuRegisters;

    /// The registers' content is gone. Forgets whose state was on this CPU, be it the current task's, that
    /// of another, or of kernel-mode FP that was preempted (Linux: `fpsimd_flush_cpu_state`, which clears
    /// `fpsimd_last_state` and sets TIF_FOREIGN_FPSTATE): none of them is gone on with before it has been
    /// loaded again. Called after each run of which nothing was kept, with interrupts masked. What
    /// can't be done with interrupts masked must have been done before another task runs.
    fn flush_cpu_state(&mut self);
}

/// How the OS's own kernel gets the FP registers for itself: a crypto routine, a softirq
/// (`kernel_neon_begin`/`kernel_neon_end`).
///
/// Under KVM this is where a guest's registers would have to be saved first, because they may be what is
/// on the CPU. Here they never are, as far as the host can see: what `kernel_neon_begin` reads to save
/// the current task is the task's, fetched back by hyp at that moment if a guest had displaced it.
pub trait KernelModeFp: TaskFp {
    /// Saves the current task's registers if nothing else holds them, and forgets whose state is on this
    /// CPU ([`TaskFp::flush_cpu_state`]): from here on the registers are the kernel's. Who preempts before
    /// the end saves them for it.
    fn kernel_neon_begin(&mut self);

    /// The registers hold nothing that matters any more; the task's come back when it returns to user
    /// space.
    fn kernel_neon_end(&mut self);
}

/// Runs `f` with the FP registers for the kernel itself.
///
/// # Panics
///
/// If `kernel_neon_begin` leaves a task's registers live: the next entry into a guest would have hyp keep
/// the kernel's leavings as if they were the task's.
pub fn with_kernel_neon<T: KernelModeFp, R>(task: &mut T, f: impl FnOnce() -> R) -> R {
    task.kernel_neon_begin();
    assert_eq!(
        task.registers(),
        CpuRegisters::Saved,
        "kernel_neon_begin saves the task's registers"
    );
    let result = f();
    task.kernel_neon_end();
    result
}

/// What hyp is to be told of the registers.
pub fn hint_of(task: &impl TaskFp) -> HostFlags {
    match task.registers() {
        CpuRegisters::Live => HostFlags::empty(),
        CpuRegisters::LiveFpsimd => HostFlags::SVE_DISCARDED,
        CpuRegisters::Saved => HostFlags::FOREIGN_FPSTATE,
    }
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

    /// The page.
    pub const fn page(&self) -> &'static FlagShadowPage {
        self.page
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

    /// After VCPU_RUN, interrupts still masked: learns what became of them. `run` is what hyp answered: of
    /// a run that it refused the word says nothing. `None`, then.
    #[inline]
    pub fn vcpu_ctxsync_fp<T>(
        &self,
        run: &Result<T, Error>,
        task: &mut impl TaskFp,
    ) -> Option<HypFlags> {
        if run.is_err() {
            return None;
        }
        let flags = self.page.sync();
        if !flags.contains(HypFlags::HOST_FP_PRESERVED) {
            task.flush_cpu_state();
        }
        Some(flags)
    }

    /// After VCPU_PUT, which hyp answered with `put`: its state has left the registers, the host's may
    /// have with it.
    pub fn vcpu_put_fp(&self, put: &Result<(), Error>, task: &mut impl TaskFp) -> Option<HypFlags> {
        self.vcpu_ctxsync_fp(put, task)
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
mod tests;
