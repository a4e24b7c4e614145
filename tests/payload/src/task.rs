//! The host's side of the library's run loop, for those that only want to run a vCPU.

use umbra_host::{
    fp::{CpuRegisters, TaskFp},
    kernel::{gic, sysreg},
    vcpu::HostCpu,
};
use umbra_shared::flags::HostFlags;

/// The task that is current on a CPU, for the library.
pub struct Task {
    hint: HostFlags,
    /// Hyp has told us that the registers are gone.
    pub gone: bool,
}

impl Task {
    /// One whose registers are worth this.
    pub const fn new(hint: HostFlags) -> Self {
        Self { hint, gone: false }
    }
}

impl TaskFp for Task {
    fn registers(&self) -> CpuRegisters {
        if self.gone || self.hint.contains(HostFlags::FOREIGN_FPSTATE) {
            CpuRegisters::Saved
        } else if self.hint.contains(HostFlags::SVE_DISCARDED) {
            CpuRegisters::LiveFpsimd
        } else {
            CpuRegisters::Live
        }
    }

    fn flush_cpu_state(&mut self) {
        self.gone = true;
    }
}

impl HostCpu for Task {
    fn mask_interrupts(&mut self) {
        sysreg::mask_interrupts();
    }

    fn unmask_interrupts(&mut self) {
        sysreg::unmask_interrupts();
    }

    fn mask_virtual_timer(&mut self, masked: bool) {
        gic::enable(gic::VIRTUAL_TIMER, !masked);
    }

    fn must_leave(&self) -> bool {
        false
    }
}
