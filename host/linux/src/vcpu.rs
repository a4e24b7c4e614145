//! A vCPU's file: KVM_RUN and what stands beside it.
//!
//! Whoever calls KVM_RUN is the vCPU's thread, an ordinary one. It is bound to a CPU, with preemption disabled, from
//! the load of the vCPU to its put, and leaves for every other task that wants the CPU, for signals, and for all that may
//! sleep. So hyp never has a vCPU loaded while Linux takes a CPU away, or puts it to sleep.

#![forbid(unsafe_code)]

mod one_reg;

use crate::{
    abi::{run as field, *},
    linux::{self, Mutex, NoPreemption, RunPage, Sleeper, User, with_room},
    machine::{Machine, Told},
    memory::{Backing, Faults, refused},
};
use alloc::vec::Vec;
use core::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
};
use umbra_host::{
    fp::{CpuRegisters, TaskFp},
    hypercall::{Hvc, Hypervisor},
    vcpu::{Answer, ExitHandler, HostCpu, MmioAnswer, Supplied, Vcpu as Inside, Wait},
    vgic::Interface,
    vm::VcpuSettings,
};
use umbra_shared::{
    call::{BLOCK_PAGES, Start, UntrustedAffinity, VcpuIndex},
    error::Error,
    exit::{MmioAccess, SystemEvent},
    guest::NOT_SUPPORTED,
    vcpu::VcpuFeatures,
    vl::{Vq, VqSet},
};

/// It is on no CPU.
const NOWHERE: i32 = -1;

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    sleeper: Sleeper,
    page: RunPage,
    /// The CPU that it is loaded on, or [`NOWHERE`].
    cpu: AtomicI32,
    /// Whether its guest, or its VMM, has turned it on.
    on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What KVM_ARM_VCPU_INIT has asked for.
    init: Option<Features>,
    /// KVM_REG_ARM64_SVE_VLS, if it was written.
    lengths: Option<VqSet>,
    /// What hyp has made, when all of that is known.
    inside: Option<Inside>,
    /// The MMIO access that the VMM is to answer.
    open: Option<MmioAccess>,
    /// What the next load answers with.
    answer: Option<MmioAnswer>,
    supplied: Option<Supplied>,
    /// Hyp let it be loaded the last time.
    was_loaded: bool,
    scratch: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Features {
    power_off: bool,
    sve: bool,
    pauth: bool,
}

impl Features {
    /// As KVM_ARM_VCPU_INIT has them, if the machine has them.
    fn of(init: &VcpuInit, machine: &Machine) -> Result<Self, Errno> {
        let has = |bit: u32| init.features[0] >> bit & 1 != 0;
        let known = [
            KVM_ARM_VCPU_POWER_OFF,
            KVM_ARM_VCPU_PSCI_0_2,
            KVM_ARM_VCPU_SVE,
            KVM_ARM_VCPU_PTRAUTH_ADDRESS,
            KVM_ARM_VCPU_PTRAUTH_GENERIC,
        ];
        let known = known.iter().fold(0, |all, bit| all | 1 << bit);
        if init.features[0] & !known != 0 || init.features[1..].iter().any(|&word| word != 0) {
            return Err(Errno::ENOENT);
        }
        let (address, generic) =
            (has(KVM_ARM_VCPU_PTRAUTH_ADDRESS), has(KVM_ARM_VCPU_PTRAUTH_GENERIC));
        let (sve, pauth) = (has(KVM_ARM_VCPU_SVE), address);
        let lacks =
            sve && machine.vector_lengths().max().is_none() || pauth && !machine.has_pauth();
        if init.target != KVM_ARM_TARGET_GENERIC_V8 || address != generic || lacks {
            return Err(Errno::EINVAL);
        }
        Ok(Self { power_off: has(KVM_ARM_VCPU_POWER_OFF), sve, pauth })
    }

    fn start(self) -> Start {
        if self.power_off { Start::Off } else { Start::At { entry: 0, argument: 0 } }
    }
}

/// Why the run loop has broken off.
#[derive(Debug)]
enum Stop {
    Leave,
    Wait(Wait),
    Mmio { address: u64, access: MmioAccess, data: u64 },
    Fault(u64),
    Tables,
    System { event: SystemEvent, kind: u64, cookie: u64 },
    Broken(u64),
}

/// Linux under the run loop. Hyp is never told that the CPU's registers hold nothing: TIF_FOREIGN_FPSTATE is of the
/// current task, and the registers may be those of another that counts on finding them (`umbra_host::fp`). That they are
/// the current task's, which is in a system call, is known while the flag is clear.
struct Os;

impl TaskFp for Os {
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

impl HostCpu for Os {
    fn mask_interrupts(&mut self) {
        linux::irq_disable();
    }

    fn unmask_interrupts(&mut self) {
        linux::irq_enable();
    }

    fn mask_virtual_timer(&mut self, masked: bool) {
        linux::mask_virtual_timer(masked);
    }
}

struct Handler<'a> {
    machine: &'a Machine,
    vcpu: &'a Vcpu,
    no_preemption: &'a NoPreemption,
}

impl ExitHandler for Handler<'_> {
    type Stop = Stop;

    fn interrupt(&mut self) -> ControlFlow<Stop> {
        let leaves = linux::must_leave() || self.machine.is_closed();
        if leaves { ControlFlow::Break(Stop::Leave) } else { ControlFlow::Continue(()) }
    }

    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Stop, Answer> {
        // What is meant for a hypervisor hyp has answered; nobody else is there.
        ControlFlow::Continue([NOT_SUPPORTED as u64, x[1], x[2], x[3]])
    }

    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Stop, MmioAnswer> {
        match self.machine.access(address, access, data, self.no_preemption) {
            Some(answer) => ControlFlow::Continue(answer),
            None => ControlFlow::Break(Stop::Mmio { address, access, data }),
        }
    }

    fn wfi(&mut self, wait: Wait) -> ControlFlow<Stop> {
        ControlFlow::Break(Stop::Wait(wait))
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Stop, Supplied> {
        ControlFlow::Break(Stop::Fault(address))
    }

    fn tables(&mut self) -> ControlFlow<Stop, Supplied> {
        ControlFlow::Break(Stop::Tables)
    }

    fn cpu_on(&mut self, index: VcpuIndex) -> ControlFlow<Stop> {
        self.machine.turned_on(index.0 as u32);
        ControlFlow::Continue(())
    }

    fn cpu_off(&mut self) -> Stop {
        // While it is loaded: from its put on another vCPU can turn it on again, and that comes after this.
        self.vcpu.on.store(false, SeqCst);
        self.machine.set_power(self.vcpu.index, false);
        Stop::Leave
    }

    fn system(&mut self, event: SystemEvent, kind: u64, cookie: u64) -> Stop {
        Stop::System { event, kind, cookie }
    }

    fn broken(&mut self, esr: u64) -> Stop {
        Stop::Broken(esr)
    }
}

impl Vcpu {
    /// One that nothing is known of yet.
    pub fn new(index: u32) -> Result<Self, Errno> {
        let mut scratch = with_room(BLOCK_PAGES as usize)?;
        scratch.resize(BLOCK_PAGES as usize, 0);
        let state = State {
            init: None,
            lengths: None,
            inside: None,
            open: None,
            answer: None,
            supplied: None,
            was_loaded: false,
            scratch,
        };
        Ok(Self {
            index,
            sleeper: Sleeper::new()?,
            page: RunPage::new()?,
            cpu: AtomicI32::new(NOWHERE),
            on: AtomicBool::new(false),
            state: Mutex::new(state)?,
        })
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its kvm_run page.
    pub fn page(&self) -> &RunPage {
        &self.page
    }

    /// What hyp has of it, while it has a file, for an end that can't wait; `None`: its thread is somewhere else.
    pub fn take_inside(&self) -> Option<Option<Inside>> {
        self.kick();
        Some(self.state.try_lock()?.inside.take())
    }

    /// What hyp has of it, for the end.
    pub fn into_inside(self) -> Option<Inside> {
        let mut state = self.state;
        state.get_mut().inside.take()
    }

    /// It has to come out of its guest, if it is in there, or to look again, if it sleeps. In any context.
    pub fn kick(&self) {
        match self.cpu.load(SeqCst) {
            NOWHERE => self.sleeper.wake(),
            cpu => linux::stop(cpu),
        }
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }

    /// Its guest has turned it on.
    pub fn turn_on(&self) {
        self.on.store(true, SeqCst);
        self.sleeper.wake();
    }

    /// An ioctl of its file.
    pub fn ioctl(&self, machine: &Machine, command: u32, argument: usize) -> Result<i64, Errno> {
        let mut state = self.state.lock_killable()?;
        let user = User(argument);
        match command {
            KVM_RUN if argument != 0 => Err(Errno::EINVAL),
            KVM_RUN => self.run(machine, &mut state),
            KVM_ARM_VCPU_INIT => self.init(machine, &mut state, &user.read()?).map(|()| 0),
            _ if state.init.is_none() => Err(Errno::ENOEXEC),
            KVM_ARM_VCPU_FINALIZE => {
                let feature: u32 = user.read()?;
                self.finalize(machine, &mut state, feature).map(|()| 0)
            }
            KVM_GET_ONE_REG => {
                let register: OneReg = user.read()?;
                let to = User(register.addr as usize);
                self.read_register(machine, &state, register.id, to).map(|()| 0)
            }
            KVM_SET_ONE_REG => {
                let register: OneReg = user.read()?;
                let from = User(register.addr as usize);
                self.write_register(machine, &mut state, register.id, from).map(|()| 0)
            }
            KVM_GET_REG_LIST => self.list_registers(machine, &state, user).map(|()| 0),
            KVM_GET_MP_STATE => {
                let on = self.on.load(SeqCst);
                let state = if on { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_STOPPED };
                user.write(&state).map(|()| 0)
            }
            KVM_SET_MP_STATE => {
                let on = match user.read()? {
                    KVM_MP_STATE_RUNNABLE => true,
                    KVM_MP_STATE_STOPPED => false,
                    _ => return Err(Errno::EINVAL),
                };
                if on == self.on.load(SeqCst) {
                    return Ok(0);
                }
                let start = if on { Start::At { entry: 0, argument: 0 } } else { Start::Off };
                self.reset(machine, &mut state, start).map(|()| 0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    /// KVM_ARM_VCPU_INIT: at first what it has, later its reset.
    fn init(&self, machine: &Machine, state: &mut State, init: &VcpuInit) -> Result<(), Errno> {
        let features = Features::of(init, machine)?;
        match state.init {
            None => {
                if !features.sve {
                    self.create(machine, state, features, None)?;
                }
                state.init = Some(features);
                self.on.store(!features.power_off, SeqCst);
                machine.set_power(self.index, !features.power_off);
                Ok(())
            }
            Some(before) => {
                if (before.sve, before.pauth) != (features.sve, features.pauth) {
                    return Err(Errno::EINVAL);
                }
                state.init = Some(features);
                if state.inside.is_none() {
                    self.on.store(!features.power_off, SeqCst);
                    return Ok(());
                }
                self.reset(machine, state, features.start())
            }
        }
    }

    fn reset(&self, machine: &Machine, state: &mut State, start: Start) -> Result<(), Errno> {
        let inside = state.inside.as_mut().ok_or(Errno::EPERM)?;
        match machine.interface(self.index) {
            Some(mut interface) => inside.reset(&Hvc, &mut interface, start).map_err(refused)?,
            None => Hvc.vcpu_reset(inside.vm(), inside.index(), start).map_err(refused)?,
        }
        (state.open, state.answer, state.supplied) = (None, None, None);
        let on = start != Start::Off;
        self.on.store(on, SeqCst);
        machine.set_power(self.index, on);
        Ok(())
    }

    /// KVM_ARM_VCPU_FINALIZE.
    fn finalize(&self, machine: &Machine, state: &mut State, feature: u32) -> Result<(), Errno> {
        let has_sve = state.init.is_some_and(|features| features.sve);
        if feature != KVM_ARM_VCPU_SVE || !has_sve {
            return Err(Errno::EINVAL);
        }
        if state.inside.is_some() {
            return Err(Errno::EPERM);
        }
        let lengths = state.lengths.unwrap_or(machine.vector_lengths());
        let features = state.init.ok_or(Errno::ENOEXEC)?;
        self.create(machine, state, features, lengths.max())
    }

    fn create(
        &self,
        machine: &Machine,
        state: &mut State,
        features: Features,
        vq: Option<Vq>,
    ) -> Result<(), Errno> {
        let start = features.start();
        let settings = VcpuSettings {
            index: VcpuIndex(self.index.into()),
            affinity: UntrustedAffinity(crate::gic::affinity(self.index).into()),
            features: VcpuFeatures::sve(vq),
            start,
        };
        state.inside = Some(machine.memory(|memory| memory.create_vcpu(settings))??);
        Ok(())
    }

    /// KVM_RUN.
    fn run(&self, machine: &Machine, state: &mut State) -> Result<i64, Errno> {
        let features = state.init.ok_or(Errno::ENOEXEC)?;
        if state.inside.is_none() {
            debug_assert!(features.sve);
            return Err(Errno::EPERM);
        }
        machine.gic_or_build()?;
        if let Some(access) = state.open.take() {
            state.answer = Some(self.answer(access));
        }
        loop {
            if linux::signal_pending() || self.page.byte(field::IMMEDIATE_EXIT) != 0 {
                return self.interrupted();
            }
            if machine.is_closed() {
                return Err(Errno::EIO);
            }
            linux::cond_resched();
            let awake = || self.on.load(SeqCst) || machine.is_closed();
            if !awake() && self.sleeper.sleep(None, awake).is_err() {
                return self.interrupted();
            }
            let stop = match self.enter(machine, state) {
                Ok(stop) => stop,
                // Its machine has turned itself off while it was in there: only a reset, which can't come now, turns it on.
                Err(Error::PoweredOff) if state.was_loaded => {
                    self.on.store(false, SeqCst);
                    continue;
                }
                // Hyp says that it is off. Whom its guest turns on after that is turned on here after this; and before,
                // it can be loaded now.
                Err(Error::PoweredOff) if self.on.swap(false, SeqCst) => {
                    match self.enter(machine, state) {
                        Ok(stop) => stop,
                        Err(_) => continue,
                    }
                }
                Err(Error::PoweredOff) => continue,
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
                        machine.is_closed() || gic.vgic().has_interrupt(number, wait.signalled)
                    };
                    if self.sleeper.sleep(wait.deadline, done).is_err() {
                        return self.interrupted();
                    }
                }
                Stop::Mmio { address, access, data } => {
                    // If it can't be had now the guest tries again when it runs again.
                    state.answer = Some(MmioAnswer::Retry);
                    if machine.supply(address, &mut state.scratch)? == Backing::Memory {
                        continue;
                    }
                    state.answer = None;
                    state.open = Some(access);
                    return Ok(self.exit_mmio(address, access, data));
                }
                Stop::Fault(address) => {
                    if machine.supply(address, &mut state.scratch)? == Backing::Nothing {
                        state.supplied = Some(Supplied::Abort);
                    }
                }
                Stop::Tables => machine.memory(|memory| memory.topup())??,
                Stop::System { event, kind, cookie } => {
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

    /// Runs it on this CPU until something is to be done that may sleep.
    fn enter(&self, machine: &Machine, state: &mut State) -> Result<Stop, Error> {
        state.was_loaded = false;
        let inside = state.inside.as_mut().ok_or(Error::BadVcpu)?;
        let Some(mut interface) = machine.interface(self.index) else { return Err(Error::BadVcpu) };
        let no_preemption = NoPreemption::begin();
        // Before its interrupts are looked at: who sends one later finds it here.
        self.cpu.store(no_preemption.cpu(), SeqCst);
        let mut handler = Handler { machine, vcpu: self, no_preemption: &no_preemption };
        let result = (|| {
            let mut loaded = inside.load(&Hvc, &mut Os)?;
            self.on.store(true, SeqCst);
            state.was_loaded = true;
            if let Some(answer) = state.answer.take() {
                loaded.answer_mmio(answer);
            }
            if let Some(supplied) = state.supplied.take() {
                loaded.answer_supply(supplied);
            }
            let stop = loaded.run(&mut Os, &mut interface, &mut handler)?;
            loaded.put(&mut Os)?;
            Ok(stop)
        })();
        self.cpu.store(NOWHERE, SeqCst);
        result
    }

    fn interrupted(&self) -> Result<i64, Errno> {
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

/// A vCPU's part of its GIC.
pub type GicInterface<'a> = Interface<'a, Told<'a>>;
