//! The GIC: interrupts are the non-secure world's (Group 1), but for the one SGI by which EL3 wakes
//! CPUs (Group 0).

use super::sysreg::{self, isb};
use umbra_firmware::tree::Facts;

/// The SGI that is EL3's own.
pub const SGI: u32 = 15;

const GICD_CTLR: u64 = 0x0;
const GICD_TYPER: u64 = 0x4;
const GICD_IGROUPR: u64 = 0x80;
const GICD_IGRPMODR: u64 = 0xd00;
/// Affinity routing in both states.
const ARE: u32 = 3 << 4;
/// Group 0, Group 1 non-secure, Group 1 secure.
const GROUPS: u32 = 7;
const WRITE_PENDING: u32 = 1 << 31;

const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;
const FRAME_BYTES: u64 = 0x1_0000;
/// From a redistributor to its frame of SGIs and PPIs.
const SGI_FRAME: u64 = FRAME_BYTES;
const GICR_IGROUPR0: u64 = SGI_FRAME + 0x80;
const GICR_ISENABLER0: u64 = SGI_FRAME + 0x100;
const GICR_IPRIORITYR3: u64 = SGI_FRAME + 0x40c;
const GICR_IGRPMODR0: u64 = SGI_FRAME + 0xd00;

fn read(address: u64) -> u32 {
    // SAFETY: only called with registers of the GIC that the device tree describes; reading those
    // that this module names has no effect.
    unsafe { (address as *const u32).read_volatile() }
}

fn write(address: u64, value: u32) {
    // SAFETY: only called with registers of the GIC that the device tree describes, which is EL3's to
    // set up.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Sets the distributor and all redistributors up. No other CPU runs below EL3 yet.
pub fn init(facts: &Facts) {
    let gicd = facts.distributor;
    write(gicd + GICD_CTLR, ARE);
    while read(gicd + GICD_CTLR) & WRITE_PENDING != 0 {}
    let words = u64::from(read(gicd + GICD_TYPER) & 0x1f) + 1;
    for word in 1..words {
        write(gicd + GICD_IGROUPR + 4 * word, u32::MAX);
        write(gicd + GICD_IGRPMODR + 4 * word, 0);
    }
    write(gicd + GICD_CTLR, ARE | GROUPS);
    while read(gicd + GICD_CTLR) & WRITE_PENDING != 0 {}
    for &(start, end) in &facts.redistributors {
        let mut frame = start;
        while frame < end {
            let typer = read(frame + GICR_TYPER);
            redistributor(frame);
            if typer & 1 << 4 != 0 {
                break; // the region's last
            }
            // With virtual LPIs there are two frames more.
            frame += FRAME_BYTES * if typer & 1 << 1 != 0 { 4 } else { 2 };
        }
    }
}

fn redistributor(frame: u64) {
    write(frame + GICR_WAKER, read(frame + GICR_WAKER) & !PROCESSOR_SLEEP);
    while read(frame + GICR_WAKER) & CHILDREN_ASLEEP != 0 {}
    write(frame + GICR_IGROUPR0, !(1 << SGI));
    write(frame + GICR_IGRPMODR0, 0);
    // The highest priority of all, in the byte of the last SGI.
    write(frame + GICR_IPRIORITYR3, read(frame + GICR_IPRIORITYR3) & 0x00ff_ffff);
    write(frame + GICR_ISENABLER0, 1 << SGI);
}

/// This CPU's interface, for EL3 itself.
pub fn init_cpu() {
    sysreg::write_icc_sre_el3(0xf);
    isb();
    sysreg::write_icc_pmr_el1(0xff);
    sysreg::write_icc_igrpen0_el1(1);
    isb();
}

/// Sends EL3's SGI to a CPU.
pub fn wake(affinity: u64) {
    let field = |shift: u32| affinity >> shift & 0xff;
    let (aff0, aff1, aff2, aff3) = (field(0), field(8), field(16), field(32));
    sysreg::dsb();
    sysreg::write_icc_sgi0r_el1(
        1 << (aff0 % 16)
            | aff1 << 16
            | u64::from(SGI) << 24
            | aff2 << 32
            | (aff0 / 16) << 44
            | aff3 << 48,
    );
    isb();
}

/// Acknowledges EL3's SGI, if it is pending; whether it was.
pub fn take_ours() -> bool {
    let id = sysreg::read_icc_iar0_el1();
    let ours = id == u64::from(SGI);
    if ours {
        sysreg::write_icc_eoir0_el1(id);
        isb();
    }
    ours
}

/// Only EL3's SGI ends a WFI from now on: what an off CPU's redistributor would let through.
pub fn only_ours() {
    sysreg::write_icc_igrpen1_el3(0);
    forget_active();
    sysreg::write_icc_pmr_el1(0xff);
    isb();
}

/// Every enabled interrupt ends a WFI: what a sleeping CPU's redistributor wakes it for.
pub fn everything() {
    sysreg::write_icc_igrpen1_el3(1);
    forget_active();
    sysreg::write_icc_pmr_el1(0xff);
    isb();
}

/// Whether an interrupt of the non-secure world is pending. It stays so.
pub fn wake_up_pending() -> bool {
    const IRQ_OR_FIQ: u64 = 3 << 6;
    take_ours();
    sysreg::read_isr_el1() & IRQ_OR_FIQ != 0
}

fn forget_active() {
    sysreg::write_icc_ap0r0_el1(0);
    sysreg::write_icc_ap1r0_el1(0);
    isb();
}

/// What the non-secure world takes for the reset state. Its 0 in ICC_PMR_EL1 is 0x80 here: with a mask
/// in the secure half, what it writes would be ignored.
pub fn forget() {
    sysreg::write_icc_igrpen1_el3(0);
    forget_active();
    sysreg::write_icc_pmr_el1(0x80);
    isb();
}
