//! A host of several tasks on two CPUs, by the rules of Linux's arch/arm64/kernel/fpsimd.c, above a hyp
//! that does what the specification says and publishes its word when the real one does.
//!
//! A register file is a number: each write is one that nobody has written before, and the reset state
//! is 0.

use super::*;
use std::boxed::Box;
use umbra_shared::call::Policy;
use umbra_spec::fp::{Fp, Held, Image, Live};

pub const CPUS: usize = 2;
pub const TASKS: usize = 5;

/// Where a file is saved: what `fpsimd_last_state` points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A task's own.
    User(usize),
    /// That of the kernel-mode FP which the task is in.
    Kernel(usize),
}

/// One of these.
#[derive(Clone, Copy, Default)]
struct Context {
    /// What its owner has written last.
    written: u64,
    memory: u64,
    /// `fpsimd_cpu`, `kernel_fpsimd_cpu`.
    cpu: Option<usize>,
}

#[derive(Clone, Copy, Default)]
struct Task {
    user: Context,
    kernel: Context,
    /// TIF_FOREIGN_FPSTATE.
    foreign: bool,
    /// TIF_KERNEL_FPSTATE.
    in_kernel: bool,
}

/// What hyp keeps with a vCPU.
#[derive(Clone, Copy)]
pub struct Guest {
    pub page: &'static FlagShadowPage,
    pub policy: Policy,
    pub broken: bool,
}

struct Cpu {
    registers: u64,
    fp: Fp,
    /// The host's file in hyp's memory, if `fp` says that there is one.
    image: u64,
    loaded: Option<usize>,
    last_state: Option<State>,
    current: usize,
    masked: bool,
}

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Hyp refuses it.
    Refused,
    /// The guest runs, and uses FP or leaves it alone.
    Exit { fp: bool },
    /// It runs for the last time.
    Breaks { fp: bool },
}

pub struct Machine {
    cpus: [Cpu; CPUS],
    tasks: [Task; TASKS],
    pub guests: Vec<Guest>,
    written: u64,
    /// What the next runs come to.
    pub outcome: Outcome,
}

/// No SVE and no SME.
const HELD: Held = Held { vq: 0, svq: 0 };

impl Machine {
    /// Each CPU with a task that has never used FP, and no vCPU.
    pub fn new() -> Self {
        let cpu = |current| Cpu {
            registers: 0,
            fp: Fp::RESET,
            image: 0,
            loaded: None,
            last_state: None,
            current,
            masked: false,
        };
        Self {
            cpus: [cpu(0), cpu(1)],
            tasks: [Task { foreign: true, ..Task::default() }; TASKS],
            guests: Vec::new(),
            written: 0,
            outcome: Outcome::Refused,
        }
    }

    /// The host touches the registers: hyp's trap, if it took them away.
    fn registers(&mut self, cpu: usize) -> &mut u64 {
        let this = &mut self.cpus[cpu];
        if this.fp.live != Live::Host {
            this.registers = if this.fp.image == Image::None { 0 } else { this.image };
            this.fp = this.fp.host_trap(false, HELD);
            if let Some(guest) = this.loaded {
                self.guests[guest].page.publish(this.fp.word());
            }
        }
        &mut this.registers
    }

    fn write(&mut self, cpu: usize) -> u64 {
        self.written += 1;
        *self.registers(cpu) = self.written;
        self.written
    }

    fn context(&mut self, state: State) -> &mut Context {
        match state {
            State::User(task) => &mut self.tasks[task].user,
            State::Kernel(task) => &mut self.tasks[task].kernel,
        }
    }

    fn save(&mut self, cpu: usize, state: State) {
        self.context(state).memory = *self.registers(cpu);
    }

    /// The state on the CPU is `state`'s.
    fn bind(&mut self, cpu: usize, state: State) {
        self.cpus[cpu].last_state = Some(state);
        self.context(state).cpu = Some(cpu);
    }

    fn has(&mut self, cpu: usize, state: State) -> bool {
        self.cpus[cpu].last_state == Some(state) && self.context(state).cpu == Some(cpu)
    }

    /// `fpsimd_save_user_state`.
    fn save_user_state(&mut self, cpu: usize) {
        let current = self.cpus[cpu].current;
        if !self.tasks[current].foreign {
            self.save(cpu, State::User(current));
        }
    }

    /// `fpsimd_flush_cpu_state`.
    fn flush_cpu_state(&mut self, cpu: usize) {
        self.cpus[cpu].last_state = None;
        self.tasks[self.cpus[cpu].current].foreign = true;
    }

    /// `fpsimd_save_kernel_state`.
    fn save_kernel_state(&mut self, cpu: usize) {
        let state = State::Kernel(self.cpus[cpu].current);
        self.save(cpu, state);
        self.bind(cpu, state);
    }

    /// `fpsimd_load_kernel_state`, which does without if the CPU holds it.
    fn load_kernel_state(&mut self, cpu: usize) {
        let state = State::Kernel(self.cpus[cpu].current);
        if !self.has(cpu, state) {
            *self.registers(cpu) = self.context(state).memory;
        }
    }

    /// A context switch (`fpsimd_thread_switch`), if the task is nowhere else.
    pub fn switch(&mut self, cpu: usize, next: usize) {
        if self.cpus.iter().any(|cpu| cpu.current == next) {
            return;
        }
        if self.tasks[self.cpus[cpu].current].in_kernel {
            self.save_kernel_state(cpu);
        } else {
            self.save_user_state(cpu);
        }
        self.cpus[cpu].current = next;
        if self.tasks[next].in_kernel {
            self.load_kernel_state(cpu);
            self.flush_cpu_state(cpu);
        } else {
            self.tasks[next].foreign = !self.has(cpu, State::User(next));
        }
    }

    /// The current task returns to user space (`fpsimd_restore_current_state`), finds its registers as it
    /// left them and writes others.
    pub fn user(&mut self, cpu: usize) {
        let current = self.cpus[cpu].current;
        if self.tasks[current].in_kernel {
            return;
        }
        if self.tasks[current].foreign {
            *self.registers(cpu) = self.tasks[current].user.memory;
            self.bind(cpu, State::User(current));
            self.tasks[current].foreign = false;
        }
        let found = *self.registers(cpu);
        assert_eq!(found, self.tasks[current].user.written, "task {current} on CPU {cpu}");
        self.tasks[current].user.written = self.write(cpu);
    }

    /// A softirq uses FP (`kernel_neon_begin`, `kernel_neon_end`).
    pub fn softirq(&mut self, cpu: usize) {
        let in_kernel = self.tasks[self.cpus[cpu].current].in_kernel;
        if in_kernel {
            self.save_kernel_state(cpu);
        } else {
            self.save_user_state(cpu);
        }
        self.flush_cpu_state(cpu);
        self.write(cpu);
        if in_kernel {
            self.load_kernel_state(cpu);
        }
    }

    /// The current task begins kernel-mode FP, or ends it: what it wrote is still there.
    pub fn kernel(&mut self, cpu: usize) {
        let current = self.cpus[cpu].current;
        if self.tasks[current].in_kernel {
            let found = *self.registers(cpu);
            assert_eq!(found, self.tasks[current].kernel.written, "kernel-mode FP of {current}");
        } else {
            self.save_user_state(cpu);
            self.flush_cpu_state(cpu);
            self.tasks[current].kernel.written = self.write(cpu);
        }
        self.tasks[current].in_kernel ^= true;
    }

    /// The CPU goes to sleep and loses everything. Linux has saved the current task's registers and
    /// flushed (CPU_PM_ENTER); hyp puts the vCPU.
    pub fn suspend(&mut self, cpu: usize) {
        if self.tasks[self.cpus[cpu].current].in_kernel {
            return;
        }
        self.save_user_state(cpu);
        self.flush_cpu_state(cpu);
        let _ = self.put(cpu);
        let this = &mut self.cpus[cpu];
        (this.fp, this.registers) = (Fp::RESET, 0);
    }

    /// Whether the current task can enter a guest: not amid kernel-mode FP.
    pub fn can_run(&self, cpu: usize) -> bool {
        !self.tasks[self.cpus[cpu].current].in_kernel
    }

    fn load(&mut self, cpu: usize, guest: usize) -> Result<(), Error> {
        if self.cpus.iter().any(|cpu| cpu.loaded == Some(guest)) || self.cpus[cpu].loaded.is_some()
        {
            return Err(Error::Busy);
        }
        self.cpus[cpu].loaded = Some(guest);
        self.guests[guest].page.publish(self.cpus[cpu].fp.word());
        Ok(())
    }

    fn put(&mut self, cpu: usize) -> Result<(), Error> {
        let this = &mut self.cpus[cpu];
        let guest = this.loaded.take().ok_or(Error::NotLoaded)?;
        this.fp = this.fp.put();
        self.guests[guest].page.publish(this.fp.word());
        Ok(())
    }

    fn run(&mut self, cpu: usize) -> Result<Exit, Error> {
        let this = &mut self.cpus[cpu];
        let guest = &mut self.guests[this.loaded.ok_or(Error::NotLoaded)?];
        if guest.broken {
            return exit(Reason::Broken, 0, [0; 2]);
        }
        let (reason, uses) = match self.outcome {
            Outcome::Refused => return Err(Error::Busy),
            Outcome::Exit { fp } => (Reason::Irq, fp),
            Outcome::Breaks { fp } => (Reason::Broken, fp),
        };
        guest.broken = reason == Reason::Broken;
        let hint = guest.page.snapshot_hint().decode();
        let foreign = hint.contains(HostFlags::FOREIGN_FPSTATE);
        let before = this.fp;
        let kept = !foreign && (before.live == Live::Host || before.image != Image::None);
        let opened = u64::from(uses && before.live != Live::Guest);
        if opened == 1 && before.live == Live::Host {
            this.image = this.registers;
        }
        if uses {
            self.written += 1;
            this.registers = self.written;
        }
        let after = before.run(hint, opened, VcpuFeatures::FPSIMD, guest.policy, HELD);
        let [after] = after[..] else { panic!("without SME there is one state: {after:?}") };
        if after.live == Live::Host && (opened == 1 || before.live != Live::Host) {
            // It was brought back.
            this.registers = if kept { this.image } else { 0 };
        }
        this.fp = after;
        guest.page.publish(after.word());
        exit(reason, 0, [0; 2])
    }
}

/// A CPU of it: hyp as the library calls it there, and the OS as the library asks it.
#[derive(Clone, Copy)]
pub struct Here<'m> {
    pub machine: &'m RefCell<Machine>,
    pub cpu: usize,
}

impl Hypervisor for Here<'_> {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        let mut machine = self.machine.borrow_mut();
        match call {
            Call::VcpuLoad { vcpu, .. } => machine.load(self.cpu, vcpu.0 as usize)?,
            Call::VcpuPut => machine.put(self.cpu)?,
            Call::ShareFlagPage { .. } => {}
            other => panic!("{other:?}"),
        }
        Ok([0; 8])
    }

    fn vcpu_run_with(
        &self,
        _: RunFlags,
        _: [u64; 4],
        _: &[Entry],
    ) -> Result<(Exit, States), Error> {
        let mut machine = self.machine.borrow_mut();
        assert!(machine.cpus[self.cpu].masked);
        machine.run(self.cpu).map(|exit| (exit, States::default()))
    }
}

impl TaskFp for Here<'_> {
    fn registers(&self) -> CpuRegisters {
        let machine = self.machine.borrow();
        let current = machine.cpus[self.cpu].current;
        if machine.tasks[current].foreign { CpuRegisters::Saved } else { CpuRegisters::Live }
    }

    fn flush_cpu_state(&mut self) {
        let mut machine = self.machine.borrow_mut();
        assert!(machine.cpus[self.cpu].masked);
        machine.flush_cpu_state(self.cpu);
    }
}

impl HostCpu for Here<'_> {
    fn mask_interrupts(&mut self) {
        self.machine.borrow_mut().cpus[self.cpu].masked = true;
    }
    fn unmask_interrupts(&mut self) {
        self.machine.borrow_mut().cpus[self.cpu].masked = false;
    }
    fn mask_virtual_timer(&mut self, _: bool) {}
    fn must_leave(&self) -> bool {
        false
    }
}

impl<'m> Here<'m> {
    /// A new vCPU of this policy.
    pub fn vcpu(&self, policy: Policy) -> Vcpu {
        let page: &'static FlagShadowPage = Box::leak(Box::new(FlagShadowPage::new()));
        let fp = VcpuFp::vcpu_run_map_fp(self, page, 0x1000).expect("nobody refuses it");
        let guests = &mut self.machine.borrow_mut().guests;
        guests.push(Guest { page, policy, broken: false });
        let index = VcpuIndex(guests.len() as u64 - 1);
        Vcpu::new(VmHandle(1), index, fp, VcpuFeatures::FPSIMD)
    }

    /// One run of the vCPU by the current task, which comes to this.
    pub fn run(&mut self, loaded: &mut LoadedVcpu<'_, Self>, outcome: Outcome) {
        if self.machine.borrow().can_run(self.cpu) {
            self.machine.borrow_mut().outcome = outcome;
            // Nothing comes to its interrupts here.
            let mut gic = super::interface(super::gic());
            let _ = loaded.run(self, &mut gic, &mut Once);
        }
    }
}

/// Leaves at the first exit.
pub struct Once;

impl ExitHandler for Once {
    type Stop = ();
    fn interrupt(&mut self) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<(), Answer> {
        panic!("HVC {x:?}")
    }
    fn mmio(&mut self, address: u64, _: MmioAccess, _: u64) -> ControlFlow<(), MmioAnswer> {
        panic!("MMIO {address:#x}")
    }
    fn tables(&mut self) -> ControlFlow<(), Supplied> {
        ControlFlow::Break(())
    }

    fn cpu_off(&mut self) {}

    fn system(&mut self, _: SystemEvent, _: u64, _: u64) {}

    fn fault(&mut self, address: u64) -> ControlFlow<(), Supplied> {
        panic!("fault {address:#x}")
    }
    fn broken(&mut self, _: u64) {}
}
