//! The other CPUs: each waits for work, does it, and waits again.
//!
//! They wait in WFI, so that an emulated machine on few real CPUs doesn't spend them on waiting.

use crate::{
    context::context,
    host,
    runner::{Message, catch, forget_catchers},
    streaming,
};
use arm_gic::IntId;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use umbra_host::kernel::{MAX_CPUS, gic, machine::Machine, power, smp, sync::Lock, sysreg, timer};
use umbra_patterns::regs;

/// Seconds that work on another CPU may take.
const PATIENCE: u64 = 60;

/// Wakes a worker.
const WAKE: IntId = IntId::sgi(1);
/// Something for the interrupt handler to do.
pub const POKE: IntId = IntId::sgi(2);

type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// A piece of work, on the stack of the CPU that wants it done.
struct Job<'a>(Work<'a>);

static JOBS: [AtomicPtr<Job>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
/// No job but the order to go off.
const OFF: *const Job<'static> = core::ptr::without_provenance(1);
/// No job but the order to suspend.
const SUSPEND: *const Job<'static> = core::ptr::without_provenance(2);

/// The order to suspend.
#[derive(Clone, Copy)]
struct Suspend {
    power_state: u32,
    /// Ticks until the timer wakes it; `None`: no timer does.
    timer: Option<u64>,
    /// Interrupts that the CPU had taken before the order's own: with that pending it would wake at
    /// once.
    taken: u64,
}

static SUSPENDS: [Lock<Option<Suspend>>; MAX_CPUS] = [const { Lock::new(None) }; MAX_CPUS];
/// What CPU_SUSPEND or CPU_OFF returned, where it did.
static RETURNED: [Lock<Option<Returned>>; MAX_CPUS] = [const { Lock::new(None) }; MAX_CPUS];

/// Its answer.
pub type Returned = Result<(), smccc::psci::Error>;

/// How a CPU comes back from CPU_SUSPEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// At its entry point, as from CPU_ON.
    Anew,
    /// Behind the call.
    Returned(Returned),
}

/// A suspended CPU, to be waited for.
pub struct Suspended {
    cpu: usize,
    ready: usize,
}

static FAILURES: [Lock<Option<Message>>; MAX_CPUS] = [const { Lock::new(None) }; MAX_CPUS];
static READY: AtomicUsize = AtomicUsize::new(0);

/// Starts them all.
pub fn start(machine: &Machine) {
    gic::enable(WAKE, true);
    gic::enable(POKE, true);
    if let Err(cpu) = smp::start(machine, work) {
        panic!("CPU {cpu} did not come up");
    }
    let others = machine.cpus.len() - 1;
    assert!(
        timer::wait_until(PATIENCE, || READY.load(Ordering::Acquire) == others),
        "a CPU does not get ready"
    );
}

/// What a CPU does from its start on; also after CPU_OFF and CPU_ON. A CPU that goes off in the middle
/// of a piece of work begins with it again: the work has to know how far it is.
pub fn work(cpu: usize) {
    forget_catchers();
    // Hyp has the only way from EL2 to here.
    assert_eq!(sysreg::current_el(), 1, "CPU {cpu} starts at another exception level");
    regs::enable();
    gic::enable(WAKE, true);
    gic::enable(POKE, true);
    READY.fetch_add(1, Ordering::Release);
    loop {
        let daif = sysreg::mask_interrupts();
        let job = JOBS[cpu].load(Ordering::Acquire);
        if job.is_null() {
            sysreg::wait_for_interrupt();
            sysreg::restore_interrupts(daif);
            continue;
        }
        sysreg::restore_interrupts(daif);
        if core::ptr::eq(job, OFF) {
            JOBS[cpu].store(core::ptr::null_mut(), Ordering::Release);
            // Only if it is refused.
            let returned = power::cpu_off();
            *RETURNED[cpu].lock() = Some(returned);
            continue;
        }
        if core::ptr::eq(job, SUSPEND) {
            JOBS[cpu].store(core::ptr::null_mut(), Ordering::Release);
            let order = SUSPENDS[cpu].lock().take().expect("an order comes with its words");
            let returned = suspend_here(cpu, order);
            *RETURNED[cpu].lock() = Some(returned);
            continue;
        }
        // SAFETY: whoever put it there waits until the pointer is null again.
        let work = unsafe { (*job).0 };
        if let Err(message) = catch(|| work(cpu)) {
            *FAILURES[cpu].lock() = Some(message);
        }
        JOBS[cpu].store(core::ptr::null_mut(), Ordering::Release);
    }
}

fn suspend_here(cpu: usize, order: Suspend) -> Returned {
    assert!(timer::wait_until(PATIENCE, || gic::taken(cpu) > order.taken), "no wake-up call");
    let daif = sysreg::mask_interrupts();
    if let Some(ticks) = order.timer {
        host::set_timer(timer::now() + ticks, 1);
    }
    let returned = power::cpu_suspend(order.power_state, smp::entry(), cpu as u64);
    host::release_interrupt(daif);
    returned
}

fn give(cpu: usize, job: &Job) {
    let job = (&raw const *job).cast_mut().cast::<Job<'static>>();
    JOBS[cpu].store(job, Ordering::Release);
    wake(cpu);
}

/// Interrupts a CPU.
pub fn wake(cpu: usize) {
    interrupt(cpu, WAKE);
}

/// Sends a CPU an SGI.
pub fn interrupt(cpu: usize, intid: IntId) {
    gic::send_sgi(context().machine.cpus[cpu], intid);
}

/// Waits for the CPUs to finish. One that doesn't is beyond help.
fn wait(cpus: core::ops::Range<usize>) {
    let finished = timer::wait_until(PATIENCE, || {
        cpus.clone().all(|cpu| JOBS[cpu].load(Ordering::Acquire).is_null())
    });
    if !finished {
        log::error!("@fatal another CPU does not finish its part of the test");
        umbra_host::kernel::power::off();
    }
}

fn failure(cpus: core::ops::Range<usize>) -> Option<Message> {
    cpus.filter_map(|cpu| FAILURES[cpu].lock().take()).next()
}

/// Tells a CPU to turn itself off (PSCI CPU_OFF).
pub fn off(cpu: usize) {
    *RETURNED[cpu].lock() = None;
    JOBS[cpu].store(OFF.cast_mut(), Ordering::Release);
    wake(cpu);
}

/// What CPU_OFF returned to a CPU that was told to go [`off`], if it was refused.
pub fn refused(cpu: usize) -> Option<Returned> {
    *RETURNED[cpu].lock()
}

/// How often CPUs have come up and got ready.
pub fn arrivals() -> usize {
    READY.load(Ordering::Acquire)
}

/// Turns a CPU on again (CPU_ON) and waits until it works. It comes in as it came the first time.
pub fn on_again(cpu: usize) {
    let ready = READY.load(Ordering::Acquire);
    let on = power::cpu_on(context().machine.cpus[cpu], smp::entry(), cpu as u64);
    assert!(on.is_ok(), "CPU_ON: {on:?}");
    assert!(
        timer::wait_until(PATIENCE, || READY.load(Ordering::Acquire) > ready),
        "CPU {cpu} does not come back"
    );
}

/// Tells a CPU to suspend itself (PSCI CPU_SUSPEND) until its timer, `timer` ticks from then, or an
/// interrupt ([`wake`]).
pub fn suspend(cpu: usize, power_state: u32, timer: Option<u64>) -> Suspended {
    *RETURNED[cpu].lock() = None;
    let suspended = Suspended { cpu, ready: READY.load(Ordering::Acquire) };
    *SUSPENDS[cpu].lock() = Some(Suspend { power_state, timer, taken: gic::taken(cpu) });
    JOBS[cpu].store(SUSPEND.cast_mut(), Ordering::Release);
    wake(cpu);
    suspended
}

impl Suspended {
    /// How it came back, if it has.
    pub fn resumed(&self) -> Option<Resumed> {
        if READY.load(Ordering::Acquire) > self.ready {
            return Some(Resumed::Anew);
        }
        RETURNED[self.cpu].lock().map(Resumed::Returned)
    }

    /// Waits until it has come back.
    pub fn wait(&self) -> Resumed {
        let mut resumed = None;
        timer::wait_until(PATIENCE, || {
            resumed = self.resumed();
            resumed.is_some()
        });
        resumed.unwrap_or_else(|| panic!("CPU {} does not wake up", self.cpu))
    }
}

/// Runs `f` on a CPU and waits for it. Its panic is ours.
pub fn on(cpu: usize, f: impl Fn() + Sync) {
    if cpu == smp::cpu() {
        return f();
    }
    let work = |_| f();
    let job = Job(&work);
    give(cpu, &job);
    wait(cpu..cpu + 1);
    if let Some(message) = failure(cpu..cpu + 1) {
        panic!("{message}");
    }
}

/// Runs `f` on all CPUs at the same time, this one included, and waits for all.
pub fn on_all(f: impl Fn(usize) + Sync) {
    let job = Job(&f);
    let others = 1..context().cpus;
    for cpu in others.clone() {
        give(cpu, &job);
    }
    // Caught, for the others still work with what is on this stack.
    let mine = catch(|| f(0));
    wait(others.clone());
    let theirs = failure(others);
    if let Some(message) = mine.err().or(theirs) {
        panic!("{message}");
    }
}

/// After a test: no CPU works any more, none has a vCPU loaded.
pub fn settle() -> Result<(), Message> {
    use umbra_host::hypercall::{Hvc, Hypervisor};
    catch(|| {
        on_all(|_| {
            timer::set_tick(0);
            // NOT_LOADED is the rule.
            let _ = Hvc.vcpu_put();
            streaming::settle();
        });
    })
}
