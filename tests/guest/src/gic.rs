//! The guest's GIC, with arm-gic as its driver: SGIs, its timer's PPI, and an SPI of the device's.

use crate::{TIMER_INTERRUPTS, fail, vcpu};
use arm_gic::{
    IntId, InterruptGroup, Trigger,
    gicv3::{GicCpuInterface, GicDistributor, GicRedistributor, Group, SgiTarget, SgiTargetGroup},
};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use safe_mmio::UniqueMmioPointer;
use umbra_patterns::protocol::{
    DEVICE_SPI, Failure, GICD, GICR, GICR_BYTES, LOWER, MAX_VCPUS, RAISE,
};

/// The virtual timer's.
const TIMER: IntId = IntId::ppi(11);
/// What a vCPU sends itself.
const OWN: IntId = IntId::sgi(1);
/// What a vCPU sends all others.
const OTHERS: IntId = IntId::sgi(2);
/// The device's.
const DEVICE: IntId = IntId::spi(DEVICE_SPI as u32 - 32);

/// Interrupts that each vCPU has handled. Plain loads and stores only.
static HANDLED: [[AtomicU64; 3]; MAX_VCPUS] =
    [const { [const { AtomicU64::new(0) }; 3] }; MAX_VCPUS];

fn count(which: usize) -> &'static AtomicU64 {
    &HANDLED[vcpu()][which]
}

fn add(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn at<T>(address: u64) -> UniqueMmioPointer<'static, T> {
    let Some(registers) = NonNull::new(address as *mut T) else {
        fail(Failure::Garbled(address));
    };
    // SAFETY: the host has a GIC there, and this is its driver. The MMU is off: it is device memory.
    unsafe { UniqueMmioPointer::new(registers) }
}

fn must<T, E>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|_| fail(Failure::Garbled(u64::from_le_bytes(*b"arm-gic!"))))
}

/// The distributor, once: the device's interrupt is this vCPU's.
pub fn begin() {
    let mut distributor = GicDistributor::new(at(GICD));
    distributor.configure_default_settings();
    must(distributor.set_group(DEVICE, Group::Group1NS));
    must(distributor.set_trigger(DEVICE, Trigger::Level));
    must(distributor.set_routing(DEVICE, Some(0)));
    must(distributor.enable_interrupt(DEVICE, true));
}

/// The calling vCPU's redistributor and CPU interface.
pub fn begin_vcpu() {
    let mut redistributor = GicRedistributor::new(at(GICR + GICR_BYTES * vcpu() as u64));
    if redistributor.typer().core_mpidr() != vcpu() as u64 {
        fail(Failure::Garbled(redistributor.typer().core_mpidr()));
    }
    // Refused if it is awake already.
    let _ = redistributor.mark_core_awake();
    redistributor.configure_default_settings();
    for intid in [TIMER, OWN, OTHERS] {
        must(redistributor.enable_interrupt(intid, true));
    }
    GicCpuInterface::enable_system_register_el1();
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    // SAFETY: the vectors are in place.
    unsafe { asm!("isb", "msr daifclr, #2", options(nostack)) };
}

/// Handles an interrupt.
pub extern "C" fn irq() {
    GicCpuInterface::handle_interrupt(InterruptGroup::Group1, |intid| {
        if intid == TIMER {
            // The line must be down before the interrupt is completed.
            // SAFETY: CNTV_CTL_EL0 = 0 stops the timer.
            unsafe { asm!("msr cntv_ctl_el0, xzr", "isb", options(nostack)) };
            add(&TIMER_INTERRUPTS[vcpu()]);
        } else if intid == OWN {
            add(count(0));
        } else if intid == OTHERS {
            add(count(1));
        } else if intid == DEVICE {
            store(LOWER);
            add(count(2));
        }
    });
}

fn store(address: u64) {
    // SAFETY: a register of the host's device.
    unsafe { asm!("str wzr, [{}]", in(reg) address, options(nostack)) };
}

/// How often the calling vCPU looks for an interrupt that must come. Each time it may be anybody's turn.
const LOOKS: u64 = 1 << 24;

fn wait_for(which: usize, before: u64) {
    for _ in 0..LOOKS {
        if count(which).load(Ordering::Relaxed) > before {
            return;
        }
        core::hint::spin_loop();
    }
    fail(Failure::NoInterrupt(which as u64));
}

/// Sends itself an SGI, which must arrive, and all others one.
pub fn send_sgis() {
    let before = count(0).load(Ordering::Relaxed);
    let own =
        SgiTarget::List { affinity3: 0, affinity2: 0, affinity1: 0, target_list: 1 << vcpu() };
    must(GicCpuInterface::send_sgi(OWN, own, SgiTargetGroup::CurrentGroup1));
    must(GicCpuInterface::send_sgi(OTHERS, SgiTarget::All, SgiTargetGroup::CurrentGroup1));
    wait_for(0, before);
}

/// Has the device raise its interrupt, which must arrive at the first vCPU.
pub fn raise() {
    if vcpu() == 0 {
        let before = count(2).load(Ordering::Relaxed);
        store(RAISE);
        wait_for(2, before);
    }
}

/// SGIs that others have sent to the calling vCPU.
pub fn from_others() -> u64 {
    count(1).load(Ordering::Relaxed)
}
