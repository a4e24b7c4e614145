//! What one CPU does: its steps, with and without a vCPU loaded.

use super::{calls, cover, device, kernel_fp, order, ticks, vms};
use crate::{
    context::{context, effective_streaming},
    host,
    junk::Junk,
    runner,
    task::Task,
    workers,
};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use umbra_fuzz::{
    coverage::{HostMode, Kind, Live, Pair, VlClass},
    program::{Event, Run, Step, VcpuName},
};
use umbra_host::{
    fp::{CpuRegisters, TaskFp},
    hypercall::{Hvc, Hypervisor},
    kernel::{MAX_CPUS, power, smp, sync::Lock, sysreg},
};
use umbra_patterns::{
    pattern::Mismatch,
    protocol::Command,
    regs::{self, Registers, sme},
};
use umbra_shared::{
    call::Function,
    error::Error,
    exit::RunFlags,
    flags::{FlagShadowPage, HostFlags, HypFlags},
    vl::Vq,
};

/// Owners of the hosts' tags: + CPU.
const OWNER: u16 = 0x100;
/// Nanoseconds until the timer wakes a CPU that suspends itself.
const NAP: u64 = 20_000;
/// Calls with junk in a row.
const CALLS: usize = 12;

/// What the host of each CPU has in its registers.
static HOSTS: [Lock<Registers>; MAX_CPUS] =
    [const { Lock::new(Registers::new(0, None)) }; MAX_CPUS];

/// Whose registers are live on each CPU, as coverage counts it.
static LIVE: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];
/// The host has said that its registers are worth nothing, and has not written them since.
static GIVEN_UP: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// When this CPU comes up the next time, it comes out of reset.
static RESET: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// The step that is done when this CPU is back, plus 1.
static RESUMED: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
/// PSTATE.SM and PSTATE.ZA of each CPU's host, as coverage counts them.
static MODES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];
/// The host of each CPU has SVE closed at EL1 while in streaming mode.
static CLOSES_SVE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
static JUNK: AtomicU64 = AtomicU64::new(0);

fn set_live(live: Live) {
    LIVE[smp::cpu()].store(live as u8, Ordering::SeqCst);
}

/// The host has used its registers on this CPU.
pub fn touched() {
    set_live(Live::Host);
}

/// An entry follows whose hint is whatever a page happens to hold: the host's registers may be gone.
pub fn give_up() {
    let cpu = smp::cpu();
    HOSTS[cpu].lock().model().lose();
    GIVEN_UP[cpu].store(true, Ordering::SeqCst);
}

/// Whether a guest's registers are live on this CPU now.
pub fn guest_is_live(live: bool) {
    let was = LIVE[smp::cpu()].load(Ordering::SeqCst) == Live::Guest as u8;
    if live {
        set_live(Live::Guest);
    } else if was {
        set_live(Live::Nobody);
    }
}

/// The event meets this CPU's registers now. `guest`: the loaded vCPU's VL.
pub fn pair(kind: Kind, guest: Option<Option<Vq>>) -> Pair {
    let cpu = smp::cpu();
    Pair {
        kind,
        live: Live::ALL[usize::from(LIVE[cpu].load(Ordering::SeqCst))],
        host: VlClass::of(context().host_vqs(cpu).max()),
        guest: guest.map(VlClass::of),
        mode: HostMode::of(MODES[cpu].load(Ordering::SeqCst).into()),
    }
}

/// CPACR_EL1 for the mode that the host is in. Once it has given its registers up it may be in another.
fn open(cpu: usize, registers: &mut Registers) {
    if CLOSES_SVE[cpu].load(Ordering::SeqCst) && registers.streaming() {
        regs::enable_all_but_sve();
    } else {
        regs::enable();
    }
}

fn with_registers<R>(f: impl FnOnce(&mut Registers) -> R) -> R {
    let cpu = smp::cpu();
    let mut registers = HOSTS[cpu].lock();
    open(cpu, &mut registers);
    let result = f(&mut registers);
    open(cpu, &mut registers);
    MODES[cpu].store(registers.model().svcr() as u8, Ordering::SeqCst);
    drop(registers);
    touched();
    result
}

fn named(found: Result<(), Mismatch>) {
    if let Err(mismatch) = found {
        panic!("host: {mismatch}");
    }
}

/// Selects a VL; 0 keeps the one in force. The CPU gives what its set says.
fn select(registers: &mut Registers, vl: u16) {
    if registers.streaming() {
        return;
    }
    let vqs = context().host_vqs(smp::cpu());
    if let (Some(asked), false) = (Vq::from_vl(vl.into()), vqs.is_empty()) {
        let given = registers.set_vq(asked);
        let expected = vqs.effective(asked).unwrap_or(Vq::MIN);
        assert_eq!(given, expected, "the VL that the host gets for {vl} bytes");
    }
}

/// The same of an SVL.
fn select_streaming(registers: &mut Registers, svl: u16) {
    let svqs = context().host_svqs(smp::cpu());
    if let (Some(asked), false) = (Vq::from_vl(svl.into()), svqs.is_empty()) {
        let given = registers.set_svq(asked);
        let expected = effective_streaming(svqs, asked);
        assert_eq!(Some(given), expected, "the SVL that the host gets for {svl} bytes");
    }
}

/// Before a program: everything is the host's, and known.
pub fn begin(cpu: usize, junk: u64) {
    JUNK.store(junk, Ordering::SeqCst);
    GIVEN_UP[cpu].store(false, Ordering::SeqCst);
    RESET[cpu].store(false, Ordering::SeqCst);
    RESUMED[cpu].store(0, Ordering::SeqCst);
    CLOSES_SVE[cpu].store(false, Ordering::SeqCst);
    kernel_fp::begin(cpu);
    with_registers(|registers| {
        registers.model().set_owner(OWNER + cpu as u16);
        registers.discover();
        select_streaming(registers, Vq::MAX.vl_bytes() as u16);
        select(registers, Vq::MAX.vl_bytes() as u16);
        registers.fill();
    });
}

/// After it: the host has what it left.
pub fn end(_: usize) {
    host::set_timer(0, 0);
    named(with_registers(Registers::check));
    if sme::has_sme() {
        named(with_registers(|registers| registers.set_svcr(0)));
    }
}

/// This CPU's part of the program. A CPU that comes up again begins here and goes on where it was.
pub fn run(cpu: usize) {
    if RESET[cpu].swap(false, Ordering::SeqCst) {
        CLOSES_SVE[cpu].store(false, Ordering::SeqCst);
        let vq = context().sve().then_some(Vq::MIN);
        let svq = context().host_svqs(cpu).iter().next();
        let mut registers = HOSTS[cpu].lock();
        registers.model().reset(vq, svq);
        if svq.is_some() {
            // The model has FFR in streaming mode, which SMCR_EL1 closes after reset.
            registers.set_svq(Vq::MIN);
        }
        drop(registers);
        MODES[cpu].store(0, Ordering::SeqCst);
        // There is nothing yet that hyp could keep.
        GIVEN_UP[cpu].store(true, Ordering::SeqCst);
        set_live(if svq.is_some() { Live::Host } else { Live::Nobody });
        resumed(cpu);
    }
    let mut at = None;
    if let Err(why) = runner::catch(|| steps(cpu, &mut at)) {
        order::fail(at, why);
        // Whatever was loaded would keep its VM from being destroyed, and us from the next program.
        let _ = Hvc.vcpu_put();
    }
    order::finish(cpu);
}

/// Why a vCPU is loaded no longer.
enum Leave {
    Put,
    Off,
    PowerDown,
    /// There are no steps left.
    End,
}

fn steps(cpu: usize, at: &mut Option<usize>) {
    while let Some((n, step)) = order::next(cpu) {
        *at = Some(n);
        cover(pair(Kind::of(&step.event), None));
        match step.event {
            Event::Load(name) => load(cpu, n, name, at),
            Event::Run(_) => {
                let refused = Hvc.vcpu_run(RunFlags::empty(), [0; 4]).err();
                assert_eq!(refused, Some(Error::NotLoaded), "VCPU_RUN with nothing loaded");
                order::done(cpu, n, 0);
            }
            Event::Put => {
                assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded), "VCPU_PUT with nothing loaded");
                order::done(cpu, n, 0);
            }
            Event::Off if cpu != 0 => off(cpu, n),
            Event::Suspend { power_down: true } => power_down(cpu, n),
            _ => {
                let outcome = other(cpu, step, None);
                order::done(cpu, n, outcome);
            }
        }
    }
}

fn off(cpu: usize, n: usize) -> ! {
    host::set_timer(0, 0);
    RESET[cpu].store(true, Ordering::SeqCst);
    // Nothing may interrupt a CPU that others believe to be off.
    sysreg::mask_interrupts();
    order::going_off(cpu);
    order::done(cpu, n, 0);
    let refused = power::cpu_off();
    panic!("CPU_OFF came back: {refused:?}");
}

/// The idle state of this kind, if the machine has any.
fn idle_state(power_down: bool) -> Option<u32> {
    let bit = if power::suspend_is_extended() { 1 << 30 } else { 1 << 16 };
    let states = context().machine.idle_states.iter().copied();
    states.into_iter().find(|state| (state & bit != 0) == power_down)
}

/// Suspends this CPU until its timer; comes back here unless the state loses the CPU.
fn suspend(cpu: usize, state: u32) {
    let daif = sysreg::mask_interrupts();
    host::set_timer(umbra_host::kernel::timer::now() + ticks(NAP), 1);
    let returned = power::cpu_suspend(state, smp::entry(), cpu as u64);
    host::set_timer(0, 0);
    sysreg::restore_interrupts(daif);
    assert_eq!(returned, Ok(()), "CPU_SUSPEND");
}

fn power_down(cpu: usize, n: usize) {
    let Some(state) = idle_state(true).filter(|_| cpu != 0) else {
        return order::done(cpu, n, 1);
    };
    RESET[cpu].store(true, Ordering::SeqCst);
    // This stack may not come back; who comes back knows by this where it was.
    RESUMED[cpu].store(n + 1, Ordering::SeqCst);
    suspend(cpu, state);
    RESET[cpu].store(false, Ordering::SeqCst);
    set_live(Live::Nobody);
    resumed(cpu);
}

/// A step of this CPU that could not end before it went is over.
fn resumed(cpu: usize) {
    if let Some(n) = RESUMED[cpu].swap(0, Ordering::SeqCst).checked_sub(1) {
        order::done(cpu, n, 0);
    }
}

/// Everything that is not about the loaded vCPU. Returns what it led to.
fn other(cpu: usize, step: Step, loaded: Option<&FlagShadowPage>) -> u64 {
    match step.event {
        Event::Fill(vl) => {
            with_registers(|registers| {
                select(registers, vl);
                registers.fill();
            });
            GIVEN_UP[cpu].store(false, Ordering::SeqCst);
        }
        Event::FillFpsimd => {
            with_registers(Registers::fill_fpsimd);
            GIVEN_UP[cpu].store(false, Ordering::SeqCst);
        }
        Event::Check => {
            named(with_registers(Registers::check));
            GIVEN_UP[cpu].store(false, Ordering::SeqCst);
        }
        Event::SetVl(vl) => with_registers(|registers| select(registers, vl)),
        // Of what the CPU lacks.
        Event::Mode(_) | Event::SetSvl(_) | Event::FillZa | Event::CloseSve(_)
            if !sme::has_sme() =>
        {
            return 1;
        }
        Event::Mode(svcr) => {
            named(with_registers(|registers| registers.set_svcr(svcr.into())));
            GIVEN_UP[cpu].store(false, Ordering::SeqCst);
        }
        Event::SetSvl(svl) => with_registers(|registers| select_streaming(registers, svl)),
        Event::FillZa => {
            with_registers(Registers::fill_za);
            GIVEN_UP[cpu].store(false, Ordering::SeqCst);
        }
        Event::CloseSve(close) => {
            CLOSES_SVE[cpu].store(close != 0, Ordering::SeqCst);
            with_registers(|_| {});
        }
        Event::Kernel => {
            kernel_fp::in_task();
            touched();
        }
        Event::Tick { after, kernel } => {
            kernel_fp::at_next_tick(kernel);
            host::set_timer(umbra_host::kernel::timer::now() + ticks(after.into()), 1);
        }
        Event::Poke(target) => {
            let target = usize::from(target);
            if target < context().cpus {
                workers::interrupt(target, workers::POKE);
            }
        }
        Event::On(target) => return on(cpu, usize::from(target)),
        Event::Suspend { power_down: false } => {
            let Some(state) = idle_state(false) else { return 1 };
            suspend(cpu, state);
        }
        Event::Vm(slot, config) => return vms::create(slot.into(), config),
        Event::Vcpu(name, vl, svl) => return vms::create_vcpu(name, vl, svl),
        Event::Vcpu32(name) => return vms::create_vcpu32(name),
        Event::Destroy(slot) => return vms::destroy(slot.into()),
        Event::Junk(seed) => return junk(seed, loaded.is_some()),
        // Its vCPUs are not those of `load`, which a call must not put behind the books' back.
        Event::Call(_) | Event::Enter(_) if loaded.is_some() => return 1,
        Event::Call(call) => return calls::call(cpu, &call),
        Event::Enter(args) => return calls::enter(&args),
        Event::Write(page) => return calls::write(cpu, page),
        Event::Device { page, write } => return device::access(cpu, page, write),
        // Of the boot CPU, which stays on; and what the callers carry out.
        Event::Off
        | Event::Suspend { power_down: true }
        | Event::Load(_)
        | Event::Run(_)
        | Event::Put => return 1,
    }
    0
}

fn on(cpu: usize, target: usize) -> u64 {
    if target >= context().cpus {
        return 1;
    }
    if order::turn_on(target) {
        return 0;
    }
    // Whether another CPU is on is its own affair; these two are.
    for target in [0, cpu] {
        let affinity = context().machine.cpus[target];
        let refused = power::cpu_on(affinity, smp::entry(), target as u64);
        assert_eq!(refused, Err(smccc::psci::Error::AlreadyOn), "CPU_ON of a CPU that is on");
    }
    2
}

fn junk(seed: u64, loaded: bool) -> u64 {
    let mut junk = Junk::new(seed, JUNK.load(Ordering::SeqCst), super::JUNK_PAGES);
    // A loaded vCPU is not to be run or put behind its owner's back.
    let wanted = |f: Function| !loaded || !matches!(f, Function::VcpuRun | Function::VcpuPut);
    let harmless = |f: Function| wanted(f) && f != Function::VcpuRun;
    let done = (0..CALLS).filter(|_| junk.call(harmless)).count();
    if !loaded {
        // Junk may have loaded a vCPU that junk made.
        let _ = Hvc.vcpu_put();
    }
    done as u64
}

fn load(cpu: usize, n: usize, name: VcpuName, at: &mut Option<usize>) {
    if let Some(first) = vms::seal(name) {
        bring_up(cpu, first);
    }
    let mut driven = match vms::take(name) {
        vms::Taken::Here(driven) => driven,
        vms::Taken::Nowhere => return order::done(cpu, n, 1),
        vms::Taken::Elsewhere(vm, index) => {
            match Hvc.vcpu_load(vm, index) {
                // It has just been put.
                Ok(()) if order::is_storm() => {
                    assert_eq!(Hvc.vcpu_put(), Ok(()), "VCPU_PUT after a load");
                }
                Ok(()) => panic!("a vCPU is loaded twice"),
                Err(Error::Busy | Error::VlMismatch | Error::Dying) => {}
                // Handed back by somebody who found it off.
                Err(Error::PoweredOff) if order::is_storm() => {}
                // Put, handed back, and its VM destroyed meanwhile.
                Err(Error::BadVm) if order::is_storm() => {}
                Err(error) => panic!("VCPU_LOAD of a loaded vCPU: {error}"),
            }
            return order::done(cpu, n, 2);
        }
    };
    let fits = vms::fits(driven.vcpu.features(), cpu);
    let mut task = Task::new(HostFlags::empty());
    let guest = driven.vcpu.features().vq;
    let on = vms::is_on(name);
    let left = match driven.vcpu.load(&Hvc, &mut task) {
        Ok(mut loaded) => {
            // In a storm the guest may have turned it on, and its host not know yet.
            assert!(on || vms::is_on(name) || order::is_storm(), "VCPU_LOAD of a vCPU that is off");
            assert!(fits, "VCPU_LOAD of a vCPU whose vector length this CPU lacks");
            order::done(cpu, n, 0);
            let mut entry = vms::Entry::of(&mut driven.book, driven.flags, &driven.gic);
            let left = loaded_steps(cpu, &mut loaded, &mut entry, at, guest);
            match left {
                Leave::Put | Leave::End => {
                    let mut task = Task::new(HostFlags::FOREIGN_FPSTATE);
                    if let Err(error) = loaded.put(&mut task) {
                        panic!("VCPU_PUT: {error}");
                    }
                    if live_from_word(driven.flags) != Some(Live::Host) {
                        set_live(Live::Nobody);
                    }
                }
                // Hyp puts it when the CPU goes.
                Leave::Off | Leave::PowerDown => core::mem::forget(loaded),
            }
            Some(left)
        }
        Err(error) => {
            let expected = match error {
                Error::VlMismatch => !fits,
                Error::Busy => order::is_storm(),
                Error::Dying | Error::BadVm => vms::is_dying(name),
                Error::PoweredOff => !on,
                // It was made after it had been looked for, to seal its VM.
                Error::NotSealed => order::is_storm(),
                _ => false,
            };
            assert!(expected, "VCPU_LOAD: {error}");
            order::done(cpu, n, 3);
            None
        }
    };
    vms::give_back(name, driven);
    let at = at.unwrap_or(n);
    match left {
        Some(Leave::Put) => order::done(cpu, at, 0),
        Some(Leave::Off) => off(cpu, at),
        Some(Leave::PowerDown) => power_down(cpu, at),
        Some(Leave::End) | None => {}
    }
}

/// The first vCPU of a VM that has just been sealed turns the others on, if this CPU can run it. Else that is done
/// when it is loaded where it can be.
fn bring_up(cpu: usize, first: VcpuName) {
    let vms::Taken::Here(mut driven) = vms::take(first) else { return };
    let features = driven.vcpu.features();
    let mut task = Task::new(HostFlags::empty());
    if let Ok(mut loaded) = driven.vcpu.load(&Hvc, &mut task) {
        let mut entry = vms::Entry::of(&mut driven.book, driven.flags, &driven.gic);
        let run = Run { command: Command::Check, hint: HostFlags::empty(), once: false };
        enter(cpu, &mut loaded, &mut entry, run, features.vq);
        let mut task = Task::new(HostFlags::FOREIGN_FPSTATE);
        if let Err(error) = loaded.put(&mut task) {
            panic!("VCPU_PUT: {error}");
        }
        if live_from_word(driven.flags) != Some(Live::Host) {
            set_live(Live::Nobody);
        }
    }
    vms::give_back(first, driven);
}

/// Steps with a vCPU loaded, until it is no longer. The last step is not done yet.
fn loaded_steps(
    cpu: usize,
    loaded: &mut vms::Loaded<'_>,
    entry: &mut vms::Entry<'_>,
    at: &mut Option<usize>,
    guest: Option<Vq>,
) -> Leave {
    while let Some((n, step)) = order::next(cpu) {
        *at = Some(n);
        cover(pair(Kind::of(&step.event), Some(guest)));
        match step.event {
            Event::Put => return Leave::Put,
            Event::Off if cpu != 0 => return Leave::Off,
            Event::Suspend { power_down: true } if cpu != 0 && idle_state(true).is_some() => {
                return Leave::PowerDown;
            }
            Event::Load(name) => {
                vms::load_another(name);
                order::done(cpu, n, 0);
            }
            Event::Run(run) => {
                let outcome = enter(cpu, loaded, entry, run, guest);
                order::done(cpu, n, outcome);
            }
            _ => {
                let outcome = other(cpu, step, Some(entry.flags));
                order::done(cpu, n, outcome);
            }
        }
    }
    Leave::End
}

/// Whose registers are live, as far as hyp's word says it.
fn live_from_word(flags: &FlagShadowPage) -> Option<Live> {
    let word = flags.sync();
    if word.contains(HypFlags::GUEST_FP_LOADED) {
        Some(Live::Guest)
    } else if word.contains(HypFlags::HOST_FP_PRESERVED) {
        None
    } else {
        Some(Live::Nobody)
    }
}

/// One run of the loaded vCPU.
fn enter(
    cpu: usize,
    loaded: &mut vms::Loaded<'_>,
    entry: &mut vms::Entry<'_>,
    run: Run,
    guest: Option<Vq>,
) -> u64 {
    let mut task = Task::new(run.hint);
    for (flag, kind) in [
        (HostFlags::FOREIGN_FPSTATE, Kind::HintForeign),
        (HostFlags::SVE_DISCARDED, Kind::HintDiscarded),
    ] {
        if run.hint.contains(flag) {
            cover(pair(kind, Some(guest)));
        }
    }
    {
        let mut registers = HOSTS[cpu].lock();
        // What is said at the first entry holds whatever comes of the run.
        match task.registers() {
            CpuRegisters::Live => {}
            CpuRegisters::LiveFpsimd => registers.model().discard(),
            CpuRegisters::Saved => {
                registers.model().lose();
                GIVEN_UP[cpu].store(true, Ordering::SeqCst);
            }
        }
    }
    let outcome = entry.run(loaded, &mut task, run, &|kind, flags| {
        if let Some(live) = live_from_word(flags) {
            set_live(live);
        }
        cover(pair(kind, Some(guest)));
    });
    if let Some(live) = live_from_word(entry.flags) {
        set_live(live);
    }
    let lost = task.gone && !run.hint.contains(HostFlags::FOREIGN_FPSTATE);
    assert!(
        !lost || GIVEN_UP[cpu].load(Ordering::SeqCst),
        "hyp has dropped registers that the host had not given up"
    );
    outcome
}
