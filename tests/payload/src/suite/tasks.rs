//! The host's tasks around a vCPU: what an OS does with TIF_FOREIGN_FPSTATE, kernel-mode FP and
//! preemption, through the host library's traits.

use super::POLICIES;
use crate::{context::context, host, ledger, puppet::Machine, runner::Skip, tests};
use umbra_host::fp::{KernelModeFp, TaskFp, hint_of, with_kernel_neon};
use umbra_patterns::regs;
use umbra_shared::flags::HostFlags;

tests![r20_tasks_softirqs_and_preemption];

/// A task of the host, its registers where an OS keeps them.
struct Task {
    generation: u32,
    image: [u8; umbra_patterns::pattern::MAX_IMAGE_BYTES],
    status: (u32, u32),
    foreign: bool,
}

impl Task {
    /// A new task, which has filled its registers.
    fn running(generation: u32) -> Self {
        host::fill(generation);
        let image = [0; umbra_patterns::pattern::MAX_IMAGE_BYTES];
        Self { generation, image, status: (0, 0), foreign: false }
    }

    /// Its registers to memory (`fpsimd_save_user_state`), if they are not there already.
    fn save(&mut self) {
        if self.foreign {
            return;
        }
        self.status = regs::status();
        if context().sve() {
            regs::dump(&mut self.image);
        } else {
            regs::dump_fpsimd(self.image.first_chunk_mut().expect("as large"));
        }
        self.foreign = true;
    }

    /// Back to user space (`fpsimd_restore_current_state`), where it finds what it left.
    fn returns_to_user(&mut self) {
        if self.foreign {
            if context().sve() {
                regs::load(&self.image);
            } else {
                regs::load_fpsimd(self.image.first_chunk().expect("as large"));
            }
            regs::set_status(self.status.0, self.status.1);
            self.foreign = false;
        }
        host::check(self.generation);
    }
}

impl TaskFp for Task {
    fn foreign_fpstate(&self) -> bool {
        self.foreign
    }

    fn sve_discarded(&self) -> bool {
        false
    }

    fn set_foreign_fpstate(&mut self) {
        self.foreign = true;
    }
}

impl KernelModeFp for Task {
    fn kernel_neon_begin(&mut self) {
        self.save();
    }

    fn kernel_neon_end(&mut self) {}
}

/// Two VMM tasks on one CPU, a softirq that uses FP while the guest's state is live, put on preemption,
/// and the return of the first task: everybody finds their own, under every policy.
fn r20_tasks_softirqs_and_preemption() -> Result<(), Skip> {
    for policy in POLICIES {
        let machine = Machine::with_policy(policy);
        let guest = machine.started(context().largest());
        let mut first = Task::running(1);
        guest.hint(hint_of(&first));
        guest.fill(1);
        // A softirq between exit and put, the guest's registers still live.
        with_kernel_neon(&mut first, || host::fill(90));
        guest.hint(hint_of(&first));
        guest.check(1);
        guest.fill(2);
        // The first task is preempted: put; another VMM task runs the same vCPU on this CPU.
        first.save();
        guest.put();
        let mut second = Task::running(2);
        guest.load();
        guest.hint(hint_of(&second));
        guest.check(2);
        with_kernel_neon(&mut second, || host::fill(91));
        guest.hint(hint_of(&second));
        guest.fill(3);
        second.returns_to_user();
        guest.hint(hint_of(&second));
        guest.check(3);
        second.save();
        guest.put();
        first.returns_to_user();
        guest.load();
        guest.hint(hint_of(&first));
        guest.check(3);
        first.returns_to_user();
        first.save();
        second.returns_to_user();
        guest.hint(HostFlags::empty());
        guest.put();
        assert_eq!(ledger::destroy(machine.vm), 0);
    }
    Ok(())
}
