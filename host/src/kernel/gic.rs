//! GICv3: the distributor once, then each CPU its own redistributor and CPU interface.
//!
//! Redistributors are found by affinity (GICR_TYPER), not by counting: hardware lists them in an order
//! of its own. Each sits in a lock that only its own CPU takes, so masking a PPI around a vCPU run
//! waits for nobody.

use super::{MAX_CPUS, layout, machine::Machine, sync::Lock, sync::Once, sysreg, timer};
use arm_gic::{
    IntId, InterruptGroup,
    gicv3::{
        GicCpuInterface, GicDistributor, GicRedistributor, GicRedistributorIterator, SgiTarget,
        SgiTargetGroup,
    },
};
use core::sync::atomic::{AtomicU64, Ordering};
use safe_mmio::UniqueMmioPointer;

/// Maintenance interrupt of hyp's list registers: a guest completed its interrupt. It is asserted
/// while the guest runs only; the handler has nothing to do.
pub const MAINTENANCE: IntId = IntId::ppi(9);
/// CNTHP, by which hyp keeps this CPU's timer deadline while a guest runs: nothing to do either, the
/// virtual timer itself follows.
pub const HYP_TIMER: IntId = IntId::ppi(10);
/// The virtual timer.
pub const VIRTUAL_TIMER: IntId = IntId::ppi(11);

/// A vCPU that runs on the CPU is to come out: the SGI has done so, and there is nothing else to do.
pub const KICK: IntId = IntId::sgi(7);

/// What a binary does for an interrupt.
pub type Handler = fn(IntId);

static HANDLER: Once<Handler> = Once::new();
static REDISTRIBUTORS: [Lock<Option<GicRedistributor<'static>>>; MAX_CPUS] =
    [const { Lock::new(None) }; MAX_CPUS];
static TAKEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Sets the handler for all interrupts that the kernel doesn't handle, and for the timer's after the
/// kernel has; the first caller wins.
pub fn set_handler(handler: Handler) {
    HANDLER.call_once(|| handler);
}

/// The distributor and the redistributors of all our CPUs.
pub(super) fn init(machine: &Machine) {
    // SAFETY: the device tree names these registers, they are mapped as device memory, and no other
    // driver uses them.
    let registers = unsafe { UniqueMmioPointer::new(layout::device(machine.gicd.start)) };
    GicDistributor::new(registers).configure_default_settings();
    // SAFETY: as above; the frames are contiguous up to the one marked last.
    let all = unsafe { GicRedistributorIterator::new(layout::device(machine.gicr.start)) };
    let all = all.unwrap_or_else(|error| panic!("GIC redistributor: {error}"));
    for redistributor in all {
        let affinity = redistributor.typer().core_mpidr();
        if let Some(cpu) = machine.cpus.iter().position(|&a| a == affinity) {
            *REDISTRIBUTORS[cpu].lock() = Some(redistributor);
        }
    }
}

/// The calling CPU's redistributor and CPU interface.
pub(super) fn init_cpu(cpu: usize) {
    GicCpuInterface::enable_system_register_el1();
    if let Some(redistributor) = REDISTRIBUTORS[cpu].lock().as_mut() {
        // Refused if it is awake already.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
    } else {
        panic!("no GIC redistributor has affinity {:#x}", sysreg::affinity());
    }
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    for intid in [MAINTENANCE, HYP_TIMER, VIRTUAL_TIMER, KICK] {
        enable(intid, true);
    }
}

/// Enables or disables a private interrupt of the calling CPU. A disabled one is off when this
/// returns.
pub fn enable(intid: IntId, on: bool) {
    let daif = sysreg::mask_interrupts();
    if let Some(redistributor) = REDISTRIBUTORS[sysreg::cpu()].lock().as_mut() {
        if let Err(error) = redistributor.enable_interrupt(intid, on) {
            panic!("{intid:?}: {error}");
        }
        if !on {
            redistributor.wait_for_pending_write();
        }
    }
    sysreg::restore_interrupts(daif);
}

/// Sends the CPU with this affinity an SGI.
///
/// # Panics
///
/// If it is no SGI, or no affinity.
pub fn send_sgi(affinity: u64, intid: IntId) {
    let byte = |shift: u32| (affinity >> shift) as u8;
    let target = SgiTarget::List {
        affinity3: byte(32),
        affinity2: byte(16),
        affinity1: byte(8),
        target_list: 1 << (affinity & 0xf),
    };
    let sent = GicCpuInterface::send_sgi(intid, target, SgiTargetGroup::CurrentGroup1);
    assert!(sent.is_ok(), "SGI to {affinity:#x}");
}

/// Interrupts that `cpu` has taken so far.
pub fn taken(cpu: usize) -> u64 {
    TAKEN[cpu].load(Ordering::Relaxed)
}

pub(super) fn handle() {
    GicCpuInterface::handle_interrupt(InterruptGroup::Group1, |intid| {
        TAKEN[sysreg::cpu()].fetch_add(1, Ordering::Relaxed);
        if intid == VIRTUAL_TIMER {
            timer::interrupt();
        }
        if ![MAINTENANCE, HYP_TIMER, KICK].contains(&intid)
            && let Some(handler) = HANDLER.get()
        {
            handler(intid);
        }
    });
}
