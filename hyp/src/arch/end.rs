//! The end, as it is put into effect: all CPUs stopped, what is not the host's wiped, firmware called.
//!
//! No software that runs later finds a byte of a protected VM or of hyp. A CPU stops others
//! ([`stop_others`]) by taking away what they run on: every stage 2 loses its root's entries, every TLB
//! what it held. So a CPU at EL1 or EL0, the host's or a guest's, comes to hyp at its next fetch, whatever it
//! has masked, and stops there ([`stop_if_asked`]); no path that is counted asks. CPUs in WFE or WFI are
//! woken, by an event and by every SGI, to fetch. Those in firmware come back through hyp's entry, or
//! behind their call, and stop there. Then [`finish`] empties hyp's own translation, so that one which comes later than
//! that, or wakes later, fetches nothing and writes nothing; wipes, in memory; and calls firmware.
//!
//! It is done with a translation of all of RAM of its own, which is in force while RAM is wiped and
//! not otherwise: hyp has no memory of the host's or of a guest's mapped. The same wipes RAM at boot,
//! for resets that nobody has told hyp of.

use super::lock::send_event;
use super::percpu::PerCpu;
use super::reset::image_pa;
use super::stop::{Claim, Stopping, Who};
use super::sysreg::{dsb_sy, isb, write_icc_sgi1r_el1};
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use umbra_shared::call::MAX_VMS;

/// Banks of RAM: as many as `memory::pages` lets there be, which asserts so.
pub const END_BANKS: usize = 16;
/// Stage-2 roots, by VMID: the host's, and each VM's.
pub const END_ROOTS: usize = 1 + MAX_VMS;
/// Bytes of an owner in the table of owners, of which the first says which state it is.
pub const STATE_BYTES: usize = 2;
/// The states whose pages are wiped, as a set: those that neither the host nor hyp itself owns.
/// `memory::state` asserts that these are they.
pub const WIPED_STATES: u64 = 1 << 4 | 1 << 5 | 1 << 7;

/// How often the CPU that ends the machine looks whether the others have stopped. A number and no time:
/// a timer may be what is broken. A look is some ten instructions.
const LOOKS: u32 = 1 << 24;
/// After how many of them everything is emptied again.
const LOOKS_BETWEEN: u32 = 1 << 14;

core::arch::global_asm!(
    include_str!("end.S"),
    PLAN_BANKS = const offset_of!(Plan, banks),
    PLAN_HYP = const offset_of!(Plan, hyp),
    PLAN_ROOTS = const offset_of!(Plan, roots),
    PLAN_ROOTS_BYTES = const 8 * END_ROOTS,
    MAX_BANKS = const END_BANKS,
    STATE_BYTES = const STATE_BYTES,
    WIPED_STATES = const WIPED_STATES,
);

// SAFETY: symbols of end.S, of which only the addresses are used.
unsafe extern "C" {
    static umbra_end_close: u8;
    static umbra_end_zero: u8;
    static umbra_end_wipe: u8;
    static umbra_end_park: u8;
}

/// What is wiped at the end, and what stands in the way: end.S knows the offsets.
#[derive(Debug)]
#[repr(C, align(64))]
struct Plan {
    /// Start and end of each bank, and where the owner of its first page is: physical.
    banks: [[AtomicU64; 3]; END_BANKS],
    /// Start and end of hyp's own memory, the image's data last.
    hyp: [[AtomicU64; 2]; 2],
    /// Physical address of the root of each stage 2, by VMID; zero: none.
    roots: [AtomicU64; END_ROOTS],
}

static PLAN: Plan = Plan {
    banks: [const { [const { AtomicU64::new(0) }; 3] }; END_BANKS],
    hyp: [const { [const { AtomicU64::new(0) }; 2] }; 2],
    roots: [const { AtomicU64::new(0) }; END_ROOTS],
};

/// TTBR0_EL2 of the translation of all RAM; zero: it is too early for all this.
static RAM_TTBR: AtomicU64 = AtomicU64::new(0);

static STOPPING: Stopping = Stopping::new();

/// Firmware wipes RAM when the machine is reset (PSCI MEM_PROTECT).
static FIRMWARE_WIPES: AtomicBool = AtomicBool::new(false);

/// Boot only: what is wiped at the end. `banks` are in the order in which the table of owners has them,
/// whose first entry is at `owners`; `hyp` is hyp's own memory, the image's data last. All physical.
pub fn plan(banks: &[(u64, u64)], owners: u64, hyp: [(u64, u64); 2]) {
    let mut owner = owners;
    for (place, &(start, end)) in PLAN.banks.iter().zip(banks) {
        for (word, value) in place.iter().zip([start, end, owner]) {
            word.store(value, Ordering::Relaxed);
        }
        owner += (end - start) / umbra_shared::PAGE_SIZE as u64 * STATE_BYTES as u64;
    }
    for (place, (start, end)) in PLAN.hyp.iter().zip(hyp) {
        place[0].store(start, Ordering::Relaxed);
        place[1].store(end, Ordering::Relaxed);
    }
}

/// From now on all this can be done: `ttbr` translates all of RAM one to one, `.idmap` executable in it. For
/// the boot CPU, on the final tables, with the GIC's system registers open.
pub fn arm(ttbr: u64) {
    RAM_TTBR.store(ttbr, Ordering::SeqCst);
}

/// The root of the stage 2 with this VMID; zero: there is none any more.
pub fn stage2_root(vmid: u8, root: u64) {
    if let Some(place) = PLAN.roots.get(usize::from(vmid)) {
        place.store(root, Ordering::SeqCst);
    }
}

/// Firmware has been told to wipe RAM whenever the machine is reset, and covers all of it.
pub fn leave_it_to_firmware() {
    FIRMWARE_WIPES.store(true, Ordering::SeqCst);
}

fn me() -> Who {
    Who::new(PerCpu::current_index())
}

/// A CPU has come out of reset, or back from firmware. It stops here if the machine ends.
pub fn arrived(cpu: usize) {
    STOPPING.arrive(cpu);
    stop_if_asked();
}

/// A CPU goes to firmware for long, and writes nothing until it has [`arrived`].
pub fn leaves(cpu: usize) {
    STOPPING.leave(cpu);
}

/// Stops this CPU for good if another ends the machine.
#[inline]
pub fn stop_if_asked() {
    if STOPPING.must_stop(me()) {
        park();
    }
}

/// Claims the end for this CPU; whether it was this CPU's before. Does not return if it is another's.
pub fn claim() -> Claim {
    let claim = STOPPING.claim(me());
    if claim == Claim::Anothers {
        park();
    }
    claim
}

/// Every stage 2 is emptied, and no TLB holds anything of one. `ttbr` translates all of RAM.
fn close(ttbr: u64) {
    // SAFETY: interrupts are masked. The routine is mapped there by hyp's tables and by `ttbr`'s, it brings
    // hyp's back, and in between uses no stack. What it writes are roots of stage 2, which nobody else
    // uses for anything; a walk that is under way there ends in a fault.
    unsafe {
        asm!(
            "blr {routine}",
            routine = in(reg) image_pa(&raw const umbra_end_close),
            inout("x0") image_pa(&raw const PLAN) => _,
            inout("x1") ttbr => _,
            clobber_abi("C"),
        );
    }
}

/// Stops all other CPUs, for the one that has [claimed](claim) the end. None of them writes to memory
/// any more; one that doesn't answer has nothing to write to.
pub fn stop_others() {
    let ttbr = RAM_TTBR.load(Ordering::SeqCst);
    if ttbr == 0 {
        return;
    }
    close(ttbr);
    // Those that wait fetch again, whether they wait for an event or an interrupt, masked or not. Which
    // SGIs the host has enabled is its own affair: one of them will be.
    const ALL_BUT_ME: u64 = 1 << 40;
    for intid in 0..16 {
        write_icc_sgi1r_el1(ALL_BUT_ME | intid << 24);
    }
    isb();
    send_event();
    for look in 1..=LOOKS {
        if STOPPING.awaited(me()) == 0 {
            break;
        }
        // A CPU that was in the middle of a hypercall may have mapped something since, for itself or for others; it
        // stops at the hypercall's end.
        if look % LOOKS_BETWEEN == 0 {
            close(ttbr);
        }
        // SAFETY: a hint.
        unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
    }
    close(ttbr);
}

/// Wipes what is not the host's, then calls firmware with x0-x3. For the CPU that has stopped all others,
/// or that is past that. Firmware that returns finds nobody to return to.
pub fn finish(call: [u64; 4]) -> ! {
    let ttbr = RAM_TTBR.load(Ordering::SeqCst);
    if ttbr == 0 {
        let mut args = [0; 17];
        args[..3].copy_from_slice(&call[1..]);
        let _ = smccc::smc64(call[0] as u32, args);
        park();
    }
    // SAFETY: nothing of hyp's is needed any more: the routine is mapped there by both translations, has
    // all it needs in registers and in the plan, and ends the machine.
    unsafe {
        asm!(
            "br {routine}",
            routine = in(reg) image_pa(&raw const umbra_end_wipe),
            in("x0") image_pa(&raw const PLAN),
            in("x1") ttbr,
            in("x2") call[0],
            in("x3") call[1],
            in("x4") call[2],
            in("x5") call[3],
            in("x6") u64::from(FIRMWARE_WIPES.load(Ordering::SeqCst)),
            options(noreturn)
        );
    }
}

/// Zeroes RAM from `start` to `end`, whole pages, and cleans it to the point of coherency.
///
/// # Safety
///
/// Nobody uses it, and hyp has it not mapped.
pub unsafe fn zero(start: u64, end: u64) {
    // SAFETY: interrupts are masked; the routine is mapped there by both translations and uses no stack
    // while the other one is in force. Memory is nobody's, as the caller promises.
    unsafe {
        asm!(
            "blr {routine}",
            routine = in(reg) image_pa(&raw const umbra_end_zero),
            inout("x0") start => _,
            inout("x1") end => _,
            inout("x2") RAM_TTBR.load(Ordering::SeqCst) => _,
            clobber_abi("C"),
        );
    }
}

/// Stops this CPU for good.
fn park() -> ! {
    // What it has written is in memory before anybody hears that it has stopped.
    dsb_sy();
    STOPPING.stop(me());
    // SAFETY: the code there is mapped one to one by all of hyp's tables, needs no memory, and doesn't
    // come back.
    unsafe {
        asm!(
            "br {park}",
            park = in(reg) image_pa(&raw const umbra_end_park),
            options(noreturn)
        );
    }
}
