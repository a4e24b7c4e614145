//! Exceptions at EL1: interrupts, faults that are expected, and faults that are the end.

use super::{
    MAX_CPUS, console, gic,
    layout::{STACK_SHIFT, linear},
    power,
    sync::Once,
    sysreg::{cpu, mrs, msr},
};
use core::{
    arch::{asm, global_asm},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

const EMERGENCY_BYTES: usize = 8192;

#[repr(C, align(16))]
struct Emergency([u8; EMERGENCY_BYTES]);

static mut EMERGENCY: Emergency = Emergency([0; EMERGENCY_BYTES]);

global_asm!(
    include_str!("vectors.S"),
    FRAME_BYTES = const size_of::<Frame>(),
    STACK_SHIFT = const STACK_SHIFT,
    EMERGENCY_BYTES = const EMERGENCY_BYTES,
    emergency = sym EMERGENCY,
    sync = sym sync,
    irq = sym irq,
    fatal = sym fatal,
    overflow = sym overflow,
);

unsafe extern "C" {
    static umbra_probe_load: u8;
    static umbra_probe_store: u8;
    static umbra_probe_fixup: u8;
}

/// What an exception interrupted.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct Frame {
    /// x0-x30
    pub x: [u64; 31],
    /// ELR_EL1: where to go on.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
}

/// ESR_ELx.EC of an undefined instruction.
pub const EC_UNKNOWN: u64 = 0x00;
/// ESR_ELx.EC of a data abort from the same exception level.
pub const EC_DATA_ABORT: u64 = 0x25;

/// A synchronous exception that a test wants to see. True: the frame has been mended, go on.
pub type Hook = fn(frame: &mut Frame, esr: u64, far: u64) -> bool;

static HOOK: Once<Hook> = Once::new();

/// Installs the hook for synchronous exceptions; the first caller wins.
pub fn set_hook(hook: Hook) {
    HOOK.call_once(|| hook);
}

struct Undefined {
    expected: AtomicBool,
    seen: AtomicUsize,
}

static UNDEFINED: [Undefined; MAX_CPUS] =
    [const { Undefined { expected: AtomicBool::new(false), seen: AtomicUsize::new(0) } }; MAX_CPUS];

/// Runs `f` and says how many of its instructions were UNDEFINED on this CPU; each was skipped.
pub fn count_undefined(f: impl FnOnce()) -> usize {
    let mine = &UNDEFINED[cpu()];
    mine.seen.store(0, Ordering::Relaxed);
    mine.expected.store(true, Ordering::SeqCst);
    f();
    mine.expected.store(false, Ordering::SeqCst);
    mine.seen.load(Ordering::Relaxed)
}

extern "C" fn sync(frame: &mut Frame, kind: u64) {
    let (esr, far) = (mrs!("esr_el1"), mrs!("far_el1"));
    let ec = esr >> 26 & 0x3f;
    let probe = [&raw const umbra_probe_load as u64, &raw const umbra_probe_store as u64];
    if ec == EC_DATA_ABORT && probe.contains(&frame.elr) {
        frame.elr = &raw const umbra_probe_fixup as u64;
        return;
    }
    let mine = &UNDEFINED[cpu()];
    if ec == EC_UNKNOWN && mine.expected.load(Ordering::Relaxed) {
        mine.seen.fetch_add(1, Ordering::Relaxed);
        frame.elr += 4;
        return;
    }
    if HOOK.get().is_some_and(|hook| hook(frame, esr, far)) {
        return;
    }
    fatal(frame, kind)
}

extern "C" fn irq(_frame: &mut Frame, _kind: u64) {
    gic::handle();
}

extern "C" fn fatal(frame: &Frame, kind: u64) -> ! {
    const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];
    report(KINDS[kind as usize & 3], frame.elr, Some(frame));
    power::stop()
}

extern "C" fn overflow() -> ! {
    report("stack overflow", mrs!("elr_el1"), None);
    power::stop()
}

fn report(what: &str, elr: u64, frame: Option<&Frame>) {
    let (esr, far) = (mrs!("esr_el1"), mrs!("far_el1"));
    console::print_fatal(format_args!(
        "@fatal cpu {} {what}: ESR_EL1 {esr:#x} (EC {:#x}) FAR_EL1 {far:#x} SPSR_EL1 {:#x}\n\
         @pc host {elr:#x}\n",
        cpu(),
        esr >> 26 & 0x3f,
        mrs!("spsr_el1"),
    ));
    if let Some(frame) = frame {
        console::print_fatal(format_args!("@pc host {:#x}\n", frame.x[30]));
        for (n, x) in frame.x.iter().enumerate() {
            let end = if n % 4 == 3 { '\n' } else { ' ' };
            console::print_fatal(format_args!("x{n}={x:#x}{end}"));
        }
        console::print_fatal(format_args!("\n"));
    }
}

/// The access faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// ESR_EL1 of the data abort.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
}

impl Fault {
    /// Whether it is what hyp gives for memory that is not the host's: of an access to the kernel's half of addresses a permission
    /// fault at level 3, and otherwise a synchronous external abort that is not on a walk.
    pub fn is_refusal(self) -> bool {
        let code = if self.far & 1 << 55 != 0 { 0x0f } else { 0x10 };
        self.esr >> 26 & 0x3f == EC_DATA_ABORT && self.esr & 0x3f == code
    }
}

/// Reads 8 bytes of RAM at a physical address, which hyp may refuse.
pub fn probe_read(pa: u64) -> Result<u64, Fault> {
    probe(linear::<u64>(pa), &raw const umbra_probe_load, 0)
}

/// Reads 8 bytes at a virtual address, wherever that leads.
pub fn probe_read_virtual(va: u64) -> Result<u64, Fault> {
    let address = core::ptr::with_exposed_provenance_mut(va as usize);
    probe(address, &raw const umbra_probe_load, 0)
}

/// Writes 8 bytes at a virtual address, which hyp may refuse.
///
/// # Safety
///
/// If memory of the kernel's is there, it must not be in use.
pub unsafe fn probe_write_virtual(va: u64, value: u64) -> Result<(), Fault> {
    let address = core::ptr::with_exposed_provenance_mut(va as usize);
    probe(address, &raw const umbra_probe_store, value).map(|_| ())
}

/// Writes 8 bytes of RAM at a physical address, which hyp may refuse.
///
/// # Safety
///
/// If the memory is the kernel's, it must not be in use.
pub unsafe fn probe_write(pa: u64, value: u64) -> Result<(), Fault> {
    probe(linear::<u64>(pa), &raw const umbra_probe_store, value).map(|_| ())
}

fn probe(address: *mut u64, routine: *const u8, value: u64) -> Result<u64, Fault> {
    let (result, failed): (u64, u64);
    let daif = super::sysreg::mask_interrupts();
    // SAFETY: the routines access exactly the 8 bytes at x0; a fault on them comes back as x1 = 1.
    // Callers answer for what a store overwrites.
    unsafe {
        asm!(
            "blr {routine}",
            routine = in(reg) routine,
            inout("x0") address => result,
            inout("x1") value => failed,
            out("x30") _,
            options(nostack),
        );
    }
    // With interrupts masked since, no other exception came between.
    let fault = Fault { esr: mrs!("esr_el1"), far: mrs!("far_el1") };
    super::sysreg::restore_interrupts(daif);
    if failed == 0 { Ok(result) } else { Err(fault) }
}

/// Points the vectors of this CPU somewhere else, for payloads that bring their own.
///
/// # Safety
///
/// `vectors` must be the 2 KiB-aligned address of sixteen exception vectors.
pub unsafe fn set_vectors(vectors: u64) {
    // SAFETY: as promised.
    unsafe { msr!("vbar_el1", vectors) };
}
