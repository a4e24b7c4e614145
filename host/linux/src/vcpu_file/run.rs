//! KVM_RUN.
//!
//! Whoever calls it is the vCPU's thread, an ordinary one. It is bound to a CPU, with preemption disabled, from
//! the load of the vCPU to its put, and leaves for every other task that wants the CPU, for signals, and for all that may
//! sleep. So hyp never has a vCPU loaded while Linux takes a CPU away, or puts it to sleep.

#[cfg(feature = "hunt")]
use crate::hunt::Hunter;
use crate::{
    abi::{run as field, *},
    linux::{self, NoPreemption, Signals},
    machine::Machine,
    memory::{Backing, Faults, refused},
    memory_file::Leaving,
    stats::Exit,
    vcpu::{NOWHERE, State, Vcpu},
};
use core::{ops::ControlFlow, sync::atomic::Ordering::SeqCst};
use umbra_host::{
    fp::{CpuRegisters, TaskFp},
    hypercall::{Hvc, Hypervisor},
    vcpu::{Answer, ExitHandler, HostCpu, LoadedVcpu, MmioAnswer, Supplied, Vcpu as Inside, Wait},
};
use umbra_shared::{
    PAGE_SIZE,
    call::VcpuIndex,
    error::Error,
    exit::{MmioAccess, SystemEvent},
    guest::NOT_SUPPORTED,
};

/// Why the run loop has broken off.
#[derive(Debug)]
enum Stop {
    Leave,
    Wait(Wait),
    Mmio { address: u64, access: MmioAccess, data: u64 },
    Fault(u64),
    Tables,
    Unshare(u64),
    Relinquished { address: u64, page: u64 },
    System { event: SystemEvent, kind: u64, cookie: u64 },
    Broken(u64),
}

/// Linux under the run loop. Hyp is never told that the CPU's registers hold nothing: TIF_FOREIGN_FPSTATE is of the
/// current task, and the registers may be those of another that counts on finding them (`umbra_host::fp`). That they are
/// the current task's, which is in a system call, is known while the flag is clear.
struct Os<'a> {
    machine: &'a Machine,
    vcpu: &'a Vcpu,
}

impl TaskFp for Os<'_> {
    fn registers(&self) -> CpuRegisters {
        if linux::foreign_fpstate() || linux::task_sme() {
            CpuRegisters::Live
        } else {
            CpuRegisters::LiveFpsimd
        }
    }

    fn flush_cpu_state(&mut self) {
        // Hyp keeps what it has not been told is worth nothing.
        debug_assert!(false, "the host's registers were kept");
    }
}

impl HostCpu for Os<'_> {
    fn mask_interrupts(&mut self) {
        linux::irq_disable();
    }

    fn unmask_interrupts(&mut self) {
        linux::irq_enable();
    }

    fn mask_virtual_timer(&mut self, masked: bool) {
        linux::mask_virtual_timer(masked);
    }

    fn must_leave(&self) -> bool {
        linux::must_leave() || self.machine.is_closed() || self.vcpu.has_requests()
    }
}

struct Handler<'a> {
    machine: &'a Machine,
    vcpu: &'a Vcpu,
    no_preemption: &'a NoPreemption,
}

impl Handler<'_> {
    fn count(&self, exit: Exit) {
        self.vcpu.counts().count(exit);
    }
}

impl ExitHandler for Handler<'_> {
    type Stop = Stop;

    fn interrupt(&mut self) -> ControlFlow<Stop> {
        self.count(Exit::Interrupt);
        let os = Os { machine: self.machine, vcpu: self.vcpu };
        if os.must_leave() { ControlFlow::Break(Stop::Leave) } else { ControlFlow::Continue(()) }
    }

    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Stop, Answer> {
        self.count(Exit::Hvc);
        // What is meant for a hypervisor hyp has answered; nobody else is there.
        ControlFlow::Continue([NOT_SUPPORTED as u64, x[1], x[2], x[3]])
    }

    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Stop, MmioAnswer> {
        let address = self.machine.without_alias(address);
        match self.machine.access(address, access, data, self.no_preemption) {
            Some(answer) => {
                self.count(Exit::MmioKernel);
                ControlFlow::Continue(answer)
            }
            None => ControlFlow::Break(Stop::Mmio { address, access, data }),
        }
    }

    fn wfi(&mut self, wait: Wait) -> ControlFlow<Stop> {
        self.count(Exit::Wfi);
        ControlFlow::Break(Stop::Wait(wait))
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Stop, Supplied> {
        self.count(Exit::Fault);
        ControlFlow::Break(Stop::Fault(address))
    }

    fn tables(&mut self) -> ControlFlow<Stop, Supplied> {
        self.count(Exit::Tables);
        ControlFlow::Break(Stop::Tables)
    }

    fn unshare(&mut self, address: u64, _: u64) -> ControlFlow<Stop, Supplied> {
        self.count(Exit::Sharing);
        ControlFlow::Break(Stop::Unshare(address))
    }

    fn relinquished(&mut self, address: u64, page: u64) -> ControlFlow<Stop> {
        self.count(Exit::Sharing);
        ControlFlow::Break(Stop::Relinquished { address, page })
    }

    fn cpu_on(&mut self, index: VcpuIndex) -> ControlFlow<Stop> {
        self.count(Exit::Power);
        self.machine.turned_on(index.0 as u32);
        ControlFlow::Continue(())
    }

    fn cpu_off(&mut self) -> Stop {
        self.count(Exit::Power);
        // While it is loaded: from its put on another vCPU can turn it on again, and that comes after this.
        self.vcpu.on.store(false, SeqCst);
        self.machine.set_power(self.vcpu.index, false);
        Stop::Leave
    }

    fn system(&mut self, event: SystemEvent, kind: u64, cookie: u64) -> Stop {
        self.count(Exit::Power);
        Stop::System { event, kind, cookie }
    }

    fn broken(&mut self, esr: u64) -> Stop {
        Stop::Broken(esr)
    }
}

impl Vcpu {
    /// KVM_RUN.
    pub(super) fn run(&self, machine: &Machine, state: &mut State) -> Result<i64, Errno> {
        let features = state.init.ok_or(Errno::ENOEXEC)?;
        if state.features().is_none() {
            debug_assert!(features.sve);
            return Err(Errno::EPERM);
        }
        machine.ready_gic()?;
        if let Some(access) = state.open.take() {
            state.answer = Some(self.answer(access));
        }
        let _signals = state.signals.map(Signals::block);
        loop {
            if linux::signal_pending() || self.page.byte(field::IMMEDIATE_EXIT) != 0 {
                return self.interrupted(machine, state);
            }
            if machine.is_closed() {
                return Err(Errno::EIO);
            }
            if linux::work_before_a_guest().is_err() {
                return self.interrupted(machine, state);
            }
            self.settle(machine, state)?;
            if machine.is_protected() {
                match self.begin(machine, state) {
                    Err(Errno::EINTR) => return self.interrupted(machine, state),
                    begun => begun?,
                }
            }
            let awake = || self.on.load(SeqCst) || machine.is_closed();
            if !awake() && self.sleeper.sleep(None, awake).is_err() {
                return self.interrupted(machine, state);
            }
            let mut entered = self.enter(machine, state, false);
            // Hyp says that it is off. Whom its guest turns on after that is turned on here after this; and before,
            // it can be loaded now.
            if matches!(entered, Err(Error::PoweredOff))
                && !state.was_loaded
                && self.on.swap(false, SeqCst)
            {
                machine.set_power(self.index, false);
                entered = self.enter(machine, state, true);
                if !state.was_loaded && !matches!(entered, Err(Error::PoweredOff)) {
                    // What has failed says nothing of that: it is asked again when it runs again.
                    self.on.store(true, SeqCst);
                    machine.set_power(self.index, true);
                }
            }
            // Its guest has run since it was to lose a page, and has taken it or thought better of it.
            let is_open = state.inside.as_ref().is_some_and(Inside::is_open);
            match &entered {
                Ok(Stop::Leave) if is_open => {}
                Ok(_) => state.leaving = None,
                Err(_) => {}
            }
            let stop = match entered {
                Ok(stop) => stop,
                Err(Error::PoweredOff) => {
                    if state.was_loaded {
                        // Its machine has turned itself off while it was in there: only a reset, which can't come now,
                        // turns it on.
                        self.on.store(false, SeqCst);
                    }
                    continue;
                }
                Err(Error::VlMismatch) => {
                    self.page.set_doubleword(field::FAIL_ENTRY_REASON, 0);
                    self.page.set_word(field::FAIL_ENTRY_CPU, 0);
                    return Ok(self.exit(KVM_EXIT_FAIL_ENTRY));
                }
                Err(error) => return Err(refused(error)),
            };
            match stop {
                Stop::Leave => {}
                Stop::Wait(wait) => {
                    let done = || {
                        let gic = machine.gic();
                        let number = gic.and_then(|gic| gic.number(self.index));
                        let (Some(gic), Some(number)) = (gic, number) else { return true };
                        machine.is_closed()
                            || self.has_requests()
                            || gic.vgic().has_interrupt(number, wait.signalled)
                    };
                    if self.sleeper.sleep(wait.deadline, done).is_err() {
                        return self.interrupted(machine, state);
                    }
                }
                Stop::Mmio { address, access, data } => {
                    // If it can't be had now the guest tries again when it runs again.
                    state.answer = Some(MmioAnswer::Retry);
                    // What a protected guest lets out is no memory.
                    if !machine.is_protected()
                        && machine.supply(address, &mut state.scratch)? == Backing::Memory
                    {
                        self.counts().count(Exit::Fault);
                        continue;
                    }
                    self.counts().count(Exit::MmioUser);
                    state.answer = None;
                    state.open = Some(access);
                    return Ok(self.exit_mmio(address, access, data));
                }
                Stop::Fault(address) => match machine.supply(address, &mut state.scratch) {
                    Ok(Backing::Memory) => {}
                    Ok(Backing::Nothing) => state.supplied = Some(Supplied::Abort),
                    // If it is run again it tries again.
                    Err(_) if machine.is_protected() => return Err(self.exit_fault(address)),
                    Err(error) => return Err(error),
                },
                Stop::Unshare(address) => {
                    let address = machine.without_alias(address);
                    let place = machine.memory(|memory| memory.place(address))?;
                    state.leaving = place
                        .and_then(|place| place.file)
                        .map(|(file, page)| Leaving::new(file, self.index, page));
                }
                Stop::Relinquished { address, page } => {
                    let address = machine.without_alias(address);
                    machine.memory(|memory| memory.returned(address, page))?;
                }
                Stop::Tables => machine.memory(|memory| memory.topup())??,
                Stop::System { event, kind, cookie } => {
                    // As KVM: none of them runs any more until the VMM says so.
                    machine.power_off();
                    self.settle(machine, state)?;
                    return Ok(self.exit_system(event, kind, cookie));
                }
                Stop::Broken(esr) => {
                    // KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
                    self.page.set_word(field::INTERNAL_SUBERROR, 4);
                    self.page.set_word(field::INTERNAL_NDATA, 1);
                    self.page.set_doubleword(field::INTERNAL_DATA, esr);
                    return Ok(self.exit(KVM_EXIT_INTERNAL_ERROR));
                }
            }
        }
    }

    /// Runs it on this CPU until something is to be done that may sleep. `was_off`: the GIC thinks that it is off.
    fn enter(&self, machine: &Machine, state: &mut State, was_off: bool) -> Result<Stop, Error> {
        state.was_loaded = false;
        let inside = state.inside.as_mut().ok_or(Error::BadVcpu)?;
        let Some(mut interface) = machine.interface(self.index) else { return Err(Error::BadVcpu) };
        let no_preemption = NoPreemption::begin();
        // Before its interrupts are looked at: who sends one later finds it here.
        self.cpu.store(no_preemption.cpu(), SeqCst);
        let mut handler = Handler { machine, vcpu: self, no_preemption: &no_preemption };
        let mut os = Os { machine, vcpu: self };
        #[cfg(not(feature = "hunt"))]
        let hyp = &Hvc;
        #[cfg(feature = "hunt")]
        let hyp =
            &Hunter::new(machine.is_protected(), &mut state.left, inside.flag_page(), &self.page);
        let result = (|| {
            let mut loaded = inside.load(hyp, &mut os)?;
            self.on.store(true, SeqCst);
            if was_off {
                machine.set_power(self.index, true);
            }
            state.was_loaded = true;
            answer_all(&mut loaded, &mut state.answer, &mut state.supplied);
            let stop = loaded.run(&mut os, &mut interface, &mut handler)?;
            loaded.put(&mut os)?;
            Ok(stop)
        })();
        self.cpu.store(NOWHERE, SeqCst);
        result
    }

    /// Finishes what is open and has its answer: whoever reads the guest's registers from here on finds it behind that
    /// (KVM's api.rst, `immediate_exit`). One that is off is so when it is on again.
    fn finish(&self, machine: &Machine, state: &mut State) {
        // Of a page that its guest is about to take back there is nothing to finish: it is told so in its own time.
        let can_finish = |inside: &&mut Inside| inside.is_open() && state.leaving.is_none();
        let Some(inside) = state.inside.as_mut().filter(can_finish) else { return };
        let _no_preemption = NoPreemption::begin();
        let mut os = Os { machine, vcpu: self };
        if let Ok(mut loaded) = inside.load(&Hvc, &mut os) {
            answer_all(&mut loaded, &mut state.answer, &mut state.supplied);
            // What hyp refuses is open when it runs.
            let _ = loaded.finish();
            let _ = loaded.put(&mut os);
        }
    }

    fn interrupted(&self, machine: &Machine, state: &mut State) -> Result<i64, Errno> {
        self.finish(machine, state);
        self.counts().count(Exit::Signal);
        self.exit(KVM_EXIT_INTR);
        Err(Errno::EINTR)
    }

    fn exit(&self, reason: u32) -> i64 {
        self.page.set_word(field::EXIT_REASON, reason);
        0
    }

    fn exit_mmio(&self, address: u64, access: MmioAccess, data: u64) -> i64 {
        self.page.set_doubleword(field::MMIO_PHYS_ADDR, address);
        self.page.set_doubleword(field::MMIO_DATA, if access.write { data } else { 0 });
        self.page.set_word(field::MMIO_LEN, access.bytes.into());
        self.page.set_word(field::MMIO_IS_WRITE, access.write.into());
        self.exit(KVM_EXIT_MMIO)
    }

    /// A protected guest's page can't be had.
    fn exit_fault(&self, address: u64) -> Errno {
        self.page.set_doubleword(field::MEMORY_FAULT_FLAGS, KVM_MEMORY_EXIT_FLAG_PRIVATE);
        self.page.set_doubleword(field::MEMORY_FAULT_GPA, address);
        self.page.set_doubleword(field::MEMORY_FAULT_SIZE, PAGE_SIZE as u64);
        self.exit(KVM_EXIT_MEMORY_FAULT);
        Errno::EFAULT
    }

    /// What the VMM has made of an MMIO access.
    fn answer(&self, access: MmioAccess) -> MmioAnswer {
        if access.write {
            return MmioAnswer::Written;
        }
        let bits = u32::from(access.bytes) * 8;
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        MmioAnswer::Read(self.page.doubleword(field::MMIO_DATA) & mask)
    }

    fn exit_system(&self, event: SystemEvent, kind: u64, cookie: u64) -> i64 {
        debug_assert!(cookie == 0 || event == SystemEvent::Reset2);
        let (number, flags) = match event {
            SystemEvent::Off => (KVM_SYSTEM_EVENT_SHUTDOWN, 0),
            SystemEvent::Reset => (KVM_SYSTEM_EVENT_RESET, 0),
            SystemEvent::Reset2 => {
                (KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2)
            }
        };
        debug_assert!(kind == 0 || event == SystemEvent::Reset2);
        self.page.set_word(field::SYSTEM_EVENT_TYPE, number);
        self.page.set_word(field::SYSTEM_EVENT_NDATA, 1);
        self.page.set_doubleword(field::SYSTEM_EVENT_DATA, flags);
        self.exit(KVM_EXIT_SYSTEM_EVENT)
    }
}

/// Answers what the last exit left open, of which at most one is there.
fn answer_all<H: Hypervisor>(
    loaded: &mut LoadedVcpu<'_, H>,
    answer: &mut Option<MmioAnswer>,
    supplied: &mut Option<Supplied>,
) {
    if let Some(answer) = answer.take() {
        loaded.answer_mmio(answer);
    }
    if let Some(supplied) = supplied.take() {
        loaded.answer_supply(supplied);
    }
}
