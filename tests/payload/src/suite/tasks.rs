//! The host's tasks around a vCPU: what an OS does with TIF_FOREIGN_FPSTATE, `fpsimd_last_state`,
//! kernel-mode FP and preemption, through the host library's traits.

use super::{POLICIES, aarch32};
use crate::{
    context::{context, need_aarch32},
    host,
    instruction::{FP, NOP},
    ledger,
    puppet::{Machine, Puppet},
    runner::Skip,
    tests,
};
use core::ops::DerefMut;
use umbra_host::{
    fp::{CpuRegisters, KernelModeFp, TaskFp, VcpuFp, with_kernel_neon},
    hypercall::{Exit, Hypervisor, Results},
    kernel::sync::Lock,
};
use umbra_patterns::{pattern::MAX_IMAGE_BYTES, regs};
use umbra_shared::{
    call::{Call, Policy},
    error::Error,
    exit::{Reason, RunFlags},
    flags::HypFlags,
    interrupt::{Entry, States},
};

tests![
    r20_tasks_softirqs_and_preemption,
    r33_a_third_task_finds_what_it_left_on_the_cpu,
    r33_kernel_mode_fp_that_elides_its_reload,
    r34_the_word_of_a_load_is_not_of_an_earlier_life,
    r34_a_refused_run_takes_nothing_away,
    r34_a_broken_vcpu_takes_nothing_away,
];

const TASKS: usize = 3;

/// Registers where an OS saves them.
struct Context {
    generation: u32,
    image: [u8; MAX_IMAGE_BYTES],
    status: (u32, u32),
}

impl Context {
    const fn new() -> Self {
        Self { generation: 0, image: [0; MAX_IMAGE_BYTES], status: (0, 0) }
    }

    fn fill(&mut self, generation: u32) {
        self.generation = generation;
        host::fill(generation);
    }

    fn save(&mut self) {
        self.status = regs::status();
        if context().sve() {
            regs::dump(&mut self.image);
        } else {
            regs::dump_fpsimd(self.image.first_chunk_mut().expect("as large"));
        }
    }

    fn load(&self) {
        if context().sve() {
            regs::load(&self.image);
        } else {
            regs::load_fpsimd(self.image.first_chunk().expect("as large"));
        }
        regs::set_status(self.status.0, self.status.1);
    }
}

/// A task of the host.
struct Task {
    user: Context,
    /// The kernel-mode FP that it was preempted in.
    kernel: Context,
    /// TIF_FOREIGN_FPSTATE.
    foreign: bool,
    /// TIF_KERNEL_FPSTATE.
    in_kernel: bool,
}

/// Whose state `fpsimd_last_state` points to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    User(usize),
    Kernel(usize),
}

/// One CPU's scheduler, by the rules of Linux's arch/arm64/kernel/fpsimd.c.
struct Os {
    tasks: [Task; TASKS],
    current: usize,
    last_state: Option<State>,
}

static OS: Lock<Os> = Lock::new(Os {
    tasks: [const {
        Task { user: Context::new(), kernel: Context::new(), foreign: true, in_kernel: false }
    }; TASKS],
    current: 0,
    last_state: None,
});

/// It, for a test.
fn os() -> impl DerefMut<Target = Os> {
    if OS.is_locked() {
        // SAFETY: tests run one after the other, and the one that held it has failed.
        unsafe { OS.force_unlock() };
    }
    OS.lock()
}

impl Os {
    /// Tasks that have all filled their registers, generation 1 and up, and been preempted; the last
    /// is current.
    fn start(&mut self) {
        self.last_state = None;
        for task in &mut self.tasks {
            (task.foreign, task.in_kernel) = (true, false);
        }
        for n in 0..TASKS {
            self.switch(n);
            self.tasks[n].user.fill(1 + n as u32);
            self.bind(n);
        }
    }

    fn current(&mut self) -> &mut Task {
        &mut self.tasks[self.current]
    }

    /// The registers are those of a task, which is current (`fpsimd_bind_task_to_cpu`).
    fn bind(&mut self, task: usize) {
        self.last_state = Some(State::User(task));
        self.tasks[task].foreign = false;
    }

    /// `fpsimd_save_user_state`.
    fn save_user_state(&mut self) {
        let task = self.current();
        if !task.foreign {
            task.user.save();
        }
    }

    /// `fpsimd_thread_switch`.
    fn switch(&mut self, next: usize) {
        if self.current().in_kernel {
            self.current().kernel.save();
            self.last_state = Some(State::Kernel(self.current));
        } else {
            self.save_user_state();
        }
        self.current = next;
        if self.current().in_kernel {
            if self.last_state != Some(State::Kernel(next)) {
                self.current().kernel.load();
            }
            self.flush_cpu_state();
        } else {
            self.tasks[next].foreign = self.last_state != Some(State::User(next));
        }
    }

    /// The current task returns to user space (`fpsimd_restore_current_state`), where it finds what it
    /// left.
    #[track_caller]
    fn returns_to_user(&mut self) {
        if self.current().foreign {
            self.current().user.load();
            self.bind(self.current);
        }
        host::check(self.current().user.generation);
    }

    /// The same, and leaves something else.
    #[track_caller]
    fn uses_registers(&mut self, generation: u32) {
        self.returns_to_user();
        self.current().user.fill(generation);
    }

    /// The current task begins kernel-mode FP in which it may be preempted.
    fn kernel_begins(&mut self, generation: u32) {
        self.kernel_neon_begin();
        self.current().in_kernel = true;
        self.current().kernel.fill(generation);
    }

    #[track_caller]
    fn kernel_ends(&mut self) {
        host::check(self.current().kernel.generation);
        self.current().in_kernel = false;
        self.kernel_neon_end();
    }

    /// What the library does around each entry, around entries between which nobody of the host uses FP.
    fn runs<R>(&mut self, fp: &VcpuFp, guest: impl FnOnce() -> R) -> R {
        self.tries(fp, || Ok(guest())).expect("not refused")
    }

    /// The same of one that hyp may refuse.
    fn tries<R>(
        &mut self,
        fp: &VcpuFp,
        run: impl FnOnce() -> Result<R, Error>,
    ) -> Result<R, Error> {
        fp.vcpu_ctxflush_fp(self);
        let result = run();
        fp.vcpu_ctxsync_fp(&result, self);
        result
    }

    fn loads(&mut self, fp: &VcpuFp, guest: &Puppet) {
        guest.load();
        fp.vcpu_load_fp(self);
    }

    fn puts(&mut self, fp: &VcpuFp, guest: &Puppet) {
        guest.put();
        fp.vcpu_put_fp(&Ok(()), self);
    }
}

impl TaskFp for Os {
    fn registers(&self) -> CpuRegisters {
        if self.tasks[self.current].foreign { CpuRegisters::Saved } else { CpuRegisters::Live }
    }

    fn flush_cpu_state(&mut self) {
        self.last_state = None;
        self.current().foreign = true;
    }
}

impl KernelModeFp for Os {
    fn kernel_neon_begin(&mut self) {
        self.save_user_state();
        self.flush_cpu_state();
    }

    fn kernel_neon_end(&mut self) {}
}

/// Hyp as it is asked to share a puppet's flag-shadow page, which is shared.
struct Shared;

impl Hypervisor for Shared {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        assert!(matches!(call, Call::ShareFlagPage { .. }), "{call:?}");
        Ok([0; 8])
    }

    fn vcpu_run_with(
        &self,
        _: RunFlags,
        _: [u64; 4],
        _: &[Entry],
    ) -> Result<(Exit, States), Error> {
        Err(Error::NotLoaded)
    }
}

/// The library's view of a puppet's page.
fn fp_of(guest: &Puppet) -> VcpuFp {
    VcpuFp::vcpu_run_map_fp(&Shared, guest.flags, guest.flag_page).expect("it is shared")
}

/// A guest of this policy, loaded and in its loop, beside tasks of which the last is current.
fn started(os: &mut Os, policy: Policy) -> (Machine, Puppet, VcpuFp) {
    let machine = Machine::with_policy(policy);
    let guest = machine.started(context().largest());
    os.start();
    (machine, guest, fp_of(&guest))
}

/// The next test's pages are there again.
fn end(os: &mut Os, fp: &VcpuFp, machine: Machine, guest: &Puppet) {
    os.puts(fp, guest);
    for n in 0..TASKS {
        os.switch(n);
        os.returns_to_user();
    }
    assert_eq!(ledger::destroy(machine.vm), 0);
}

/// Two VMM tasks on one CPU, a softirq that uses FP while the guest's state is live, put on preemption,
/// and the return of the first task: everybody finds their own, under every policy.
fn r20_tasks_softirqs_and_preemption() -> Result<(), Skip> {
    let os = &mut *os();
    for policy in POLICIES {
        let (machine, guest, fp) = started(os, policy);
        os.switch(0);
        os.uses_registers(11);
        os.runs(&fp, || guest.fill(1));
        // A softirq between exit and put, the guest's registers still live.
        with_kernel_neon(os, || host::fill(90));
        os.runs(&fp, || guest.check(1));
        os.runs(&fp, || guest.fill(2));
        // The first task is preempted: put; another VMM task runs the same vCPU on this CPU.
        os.puts(&fp, &guest);
        os.switch(1);
        os.uses_registers(12);
        os.loads(&fp, &guest);
        os.runs(&fp, || guest.check(2));
        with_kernel_neon(os, || host::fill(91));
        os.runs(&fp, || guest.fill(3));
        os.uses_registers(13);
        os.runs(&fp, || guest.check(3));
        os.puts(&fp, &guest);
        os.switch(0);
        os.returns_to_user();
        os.loads(&fp, &guest);
        os.runs(&fp, || guest.check(3));
        os.uses_registers(14);
        end(os, &fp, machine, &guest);
    }
    Ok(())
}

/// A task is preempted and leaves its registers on the CPU; the VMM task's flag is set. The task goes on
/// without reloading if it can, and can't if a guest has used FP meanwhile.
fn r33_a_third_task_finds_what_it_left_on_the_cpu() -> Result<(), Skip> {
    let os = &mut *os();
    for policy in POLICIES {
        let (machine, guest, fp) = started(os, policy);
        for (instruction, runs) in [(FP, 1), (FP, 3), (NOP, 2)] {
            os.switch(0);
            os.uses_registers(20 + runs);
            os.switch(1);
            assert_eq!(os.registers(), CpuRegisters::Saved, "the VMM task's are in memory");
            for n in 0..runs {
                os.runs(&fp, || guest.exec(instruction, n.into()));
            }
            os.puts(&fp, &guest);
            os.switch(0);
            let reloads = os.current().foreign;
            os.returns_to_user();
            assert_eq!(reloads, instruction == FP, "{policy:?}");
            os.loads(&fp, &guest);
        }
        end(os, &fp, machine, &guest);
    }
    Ok(())
}

/// The same of a task that was preempted amid kernel-mode FP.
fn r33_kernel_mode_fp_that_elides_its_reload() -> Result<(), Skip> {
    let os = &mut *os();
    for policy in POLICIES {
        let (machine, guest, fp) = started(os, policy);
        for instruction in [FP, NOP] {
            os.switch(0);
            os.uses_registers(30);
            os.kernel_begins(92);
            os.switch(1);
            os.runs(&fp, || guest.exec(instruction, 0));
            os.puts(&fp, &guest);
            let reloads = os.last_state != Some(State::Kernel(0));
            os.switch(0);
            os.kernel_ends();
            assert_eq!(reloads, instruction == FP, "{policy:?}");
            os.returns_to_user();
            os.loads(&fp, &guest);
        }
        end(os, &fp, machine, &guest);
    }
    Ok(())
}

/// A guest uses FP while the registers hold nothing worth keeping; then it is put.
fn drops(os: &mut Os, fp: &VcpuFp, guest: &Puppet) {
    with_kernel_neon(os, || host::fill(93));
    os.runs(fp, || guest.exec(FP, 0));
    assert!(!guest.flags.sync().contains(HypFlags::HOST_FP_PRESERVED));
    os.puts(fp, guest);
    assert!(guest.flags.sync().is_empty());
}

/// VCPU_LOAD says what of the host is there now.
fn r34_the_word_of_a_load_is_not_of_an_earlier_life() -> Result<(), Skip> {
    let os = &mut *os();
    for policy in POLICIES {
        let machine = Machine::with_policy(policy);
        let guest = machine.vcpu(context().largest());
        let fp = fp_of(&guest);
        os.start();
        assert!(guest.flags.sync().is_empty(), "a page of which nothing has been said");
        os.loads(&fp, &guest);
        assert_eq!(guest.flags.sync(), HypFlags::HOST_FP_PRESERVED);
        os.runs(&fp, || guest.start());
        os.switch(0);
        drops(os, &fp, &guest);
        os.loads(&fp, &guest);
        assert!(guest.flags.sync().is_empty(), "nothing is kept");
        os.puts(&fp, &guest);
        os.uses_registers(40);
        os.loads(&fp, &guest);
        assert_eq!(guest.flags.sync(), HypFlags::HOST_FP_PRESERVED, "what it has loaded since");
        // And what may be in hyp's memory alone.
        os.runs(&fp, || guest.exec(FP, 0));
        os.puts(&fp, &guest);
        os.loads(&fp, &guest);
        assert_eq!(guest.flags.sync(), HypFlags::HOST_FP_PRESERVED);
        os.returns_to_user();
        end(os, &fp, machine, &guest);
    }
    Ok(())
}

/// The registers are gone with an earlier run; the task has loaded them again, and no run comes between.
fn r34_a_refused_run_takes_nothing_away() -> Result<(), Skip> {
    let os = &mut *os();
    for policy in POLICIES {
        let (machine, guest, fp) = started(os, policy);
        os.switch(0);
        for generation in 50..53 {
            drops(os, &fp, &guest);
            os.uses_registers(generation);
            // Not loaded, and loaded.
            for _ in 0..2 {
                let refused = os.tries(&fp, || guest.try_enter(RunFlags::UNDERFLOW, [0; 4]));
                assert!(matches!(refused, Err(Error::NotLoaded | Error::InvalidArgument)));
                let found = os.registers();
                os.returns_to_user();
                assert_eq!(found, CpuRegisters::Live, "{policy:?}");
                if refused.err() == Some(Error::NotLoaded) {
                    os.loads(&fp, &guest);
                }
            }
        }
        end(os, &fp, machine, &guest);
    }
    Ok(())
}

/// A vCPU that can't go on answers without having run: the word is that of its load.
fn r34_a_broken_vcpu_takes_nothing_away() -> Result<(), Skip> {
    let os = &mut *os();
    for policy in POLICIES {
        need_aarch32()?;
        let (machine, guest, fp) = started(os, policy);
        os.switch(0);
        with_kernel_neon(os, || host::fill(94));
        os.runs(&fp, || {
            guest.exec(FP, 0);
            aarch32::leave_for_aarch32(&guest).exit(Reason::Broken);
        });
        os.puts(&fp, &guest);
        os.uses_registers(60);
        os.loads(&fp, &guest);
        let run = || guest.try_enter(RunFlags::empty(), [0; 4]);
        let again = os.tries(&fp, run).expect("VCPU_RUN");
        assert_eq!(again.info.reason(), Some(Reason::Broken));
        let found = os.registers();
        os.returns_to_user();
        assert_eq!(found, CpuRegisters::Live, "{policy:?}");
        end(os, &fp, machine, &guest);
    }
    Ok(())
}
