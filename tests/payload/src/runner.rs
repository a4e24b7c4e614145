//! Runs tests, and survives them.
//!
//! There is no unwinding here, so a panic leaves a test the way `longjmp` does: the frames between are
//! forgotten and no destructor runs. What a test holds is therefore never held by its frames but by
//! the [`ledger`].

use crate::{context, host, ledger, suite::NAMED_ONLY, workers};
use arrayvec::ArrayString;
use core::{
    arch::global_asm,
    cell::UnsafeCell,
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicPtr, Ordering},
};
use umbra_host::{
    emit,
    kernel::{
        MAX_CPUS, die,
        exception::{self, Frame},
        machine::Machine,
        pages, power, smp, sysreg, timer,
    },
};

/// The test can't be run on this machine, and why.
pub struct Skip(pub &'static str);

/// A test.
pub type Test = fn() -> Result<(), Skip>;

/// A test and its name.
pub type Named = (&'static str, Test);

/// Why a test failed, on one line.
pub type Message = ArrayString<400>;

/// Lists the tests of a module: each under its own name.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this module.
        pub const TESTS: &[$crate::runner::Named] = &[$((stringify!($name), $name)),*];
    };
}

global_asm!(include_str!("catch.S"), unexpected = sym unexpected);

/// SP, x19-x30.
type Buffer = [u64; 13];

// SAFETY: the routines of catch.S, written for these signatures.
unsafe extern "C" {
    fn umbra_catch(buffer: *mut Buffer, f: extern "C" fn(*mut u8), data: *mut u8) -> u64;
    fn umbra_throw(buffer: *mut Buffer) -> !;
    static umbra_unexpected: u8;
}

/// Where a panic on a CPU goes; null: nobody catches.
static CATCHERS: [AtomicPtr<Buffer>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];

/// What was said by a panic, per CPU.
struct Messages(UnsafeCell<[Message; MAX_CPUS]>);

// SAFETY: each CPU uses its own element only.
unsafe impl Sync for Messages {}

static MESSAGES: Messages =
    Messages(UnsafeCell::new([const { ArrayString::new_const() }; MAX_CPUS]));

fn message(cpu: usize) -> *mut Message {
    // Without a reference to the whole array, which other CPUs use too.
    MESSAGES.0.get().cast::<Message>().wrapping_add(cpu)
}

/// Runs `f`; its panic comes back as a message. Interrupts are as before either way.
pub fn catch<F: FnOnce()>(f: F) -> Result<(), Message> {
    extern "C" fn run<F: FnOnce()>(data: *mut u8) {
        // SAFETY: `data` is the `Option<F>` below, borrowed for the call.
        let f = unsafe { &mut *data.cast::<Option<F>>() };
        if let Some(f) = f.take() {
            f();
        }
    }
    let cpu = smp::cpu();
    let daif = sysreg::mask_interrupts();
    sysreg::restore_interrupts(daif);
    let mut buffer = [0; 13];
    let mut f = Some(f);
    let outer = CATCHERS[cpu].swap(&raw mut buffer, Ordering::SeqCst);
    // SAFETY: the buffer outlives the call; frames that a throw skips own nothing (module docs).
    let thrown = unsafe { umbra_catch(&raw mut buffer, run::<F>, (&raw mut f).cast()) };
    CATCHERS[cpu].store(outer, Ordering::SeqCst);
    sysreg::restore_interrupts(daif);
    if thrown == 0 {
        Ok(())
    } else {
        // SAFETY: this CPU's own message.
        Err(unsafe { *message(cpu) })
    }
}

/// This CPU has come up anew: whatever waited for its panics is gone with its stack.
pub fn forget_catchers() {
    CATCHERS[smp::cpu()].store(core::ptr::null_mut(), Ordering::SeqCst);
}

/// Everything on one line.
struct OneLine<'a>(&'a mut Message);

impl Write for OneLine<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            // What doesn't fit is cut.
            let _ = self.0.try_push(if c.is_control() { ' ' } else { c });
        }
        Ok(())
    }
}

/// The panic handler.
pub fn panicked(info: &PanicInfo) -> ! {
    sysreg::mask_interrupts();
    let cpu = smp::cpu();
    let catcher = CATCHERS[cpu].swap(core::ptr::null_mut(), Ordering::SeqCst);
    if catcher.is_null() {
        die(info);
    }
    // SAFETY: this CPU's own message.
    let text = unsafe { &mut *message(cpu) };
    text.clear();
    let _ = write!(OneLine(text), "{}", info.message());
    if let Some(at) = info.location() {
        let _ = write!(OneLine(text), " ({}:{}, CPU {cpu})", at.file(), at.line());
    }
    // SAFETY: set by a `catch` that has not returned.
    unsafe { umbra_throw(catcher) }
}

/// An exception in a test ends the test.
pub fn hook(frame: &mut Frame, esr: u64, far: u64) -> bool {
    if CATCHERS[smp::cpu()].load(Ordering::Relaxed).is_null() {
        return false;
    }
    emit!("@pc host {:#x}", frame.elr);
    frame.x[..3].copy_from_slice(&[esr, frame.elr, far]);
    frame.elr = &raw const umbra_unexpected as u64;
    true
}

extern "C" fn unexpected(esr: u64, elr: u64, far: u64) -> ! {
    panic!("unexpected exception: ESR {esr:#x} ELR {elr:#x} FAR {far:#x}")
}

/// Runs one test and cleans up behind it.
fn run(test: Test) -> Result<Option<Skip>, Message> {
    let free = pages::free_count();
    let mut skip = None;
    let result = catch(|| skip = test().err());
    let settled = workers::settle().and_then(|()| catch(|| ledger::settle(free)));
    host::settle();
    match result.and(settled) {
        Ok(()) => Ok(skip),
        Err(why) => Err(why),
    }
}

/// Tests of an area, and its name.
pub type Area = (&'static str, &'static [Named]);

/// Runs everything, or what `areas=AREA,AREA`, `without=AREA,AREA` and `only=NAME,NAME` on the command
/// line choose, and turns the machine off.
pub fn main(machine: &'static Machine, suites: &[Area]) -> ! {
    let listed = |word, name: &str| {
        machine.argument(word).map(|list| list.split(',').any(|one| one == name))
    };
    let wanted = |area| {
        let named = listed("areas", area).unwrap_or(!NAMED_ONLY.contains(&area));
        named && listed("without", area) != Some(true)
    };
    let suites = || suites.iter().filter(|(area, _)| wanted(area));
    let all = || {
        let all = suites().flat_map(|(_, tests)| *tests);
        all.filter(|(name, _)| listed("only", name) != Some(false))
    };
    exception::set_hook(hook);
    if let Err(why) = catch(|| context::init(machine)) {
        emit!("@verdict failed: {why}");
        power::off()
    }
    emit!("@tests {}", all().count());
    for (name, _) in all() {
        emit!("@test {name} listed");
    }
    let mut failed = 0;
    for (name, test) in all() {
        emit!("@test {name} begin");
        let began = timer::now();
        match run(*test) {
            Ok(None) => {
                log::info!("{} ms", (timer::now() - began) * 1000 / timer::frequency());
                emit!("@test {name} ok");
            }
            Ok(Some(Skip(why))) => emit!("@test {name} skipped: {why}"),
            Err(why) => {
                failed += 1;
                emit!("@test {name} failed: {why}");
            }
        }
    }
    match failed {
        0 => emit!("@verdict ok"),
        n => emit!("@verdict failed: {n} of {} tests", all().count()),
    }
    power::off()
}
