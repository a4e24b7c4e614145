//! Facts of the machine, known before the host runs, and what each CPU shows the others of itself.

#![forbid(unsafe_code)]

use crate::arch::MAX_CPUS;
use crate::arch::stats::Stats;
use crate::fp::lengths::Lengths;
use crate::memory::tables::Stage2Shape;
use crate::world::features::Features;
use crate::world::features::id::{IdRegisters, REGISTERS};
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use spin::Once;
use umbra_shared::call::Policy;
use umbra_shared::interrupt::Interface;
use umbra_shared::sme::Storage;
use umbra_shared::vl::VqSet;

/// What is the same on all CPUs, known once all have been looked at.
#[derive(Debug)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Protected VMs can be made: no device reaches what its host doesn't, or the loader has said to do without
    /// (`umbra.dma=unsafe`).
    pub protects: bool,
    /// The host's registers go to memory at every WFI and DC ZVA (`umbra.displace`).
    pub displace: bool,
    /// The counters are printed when the host ends the machine (`umbra.stats`).
    pub stats: bool,
    /// When the FP registers of protected VMs move (`umbra.protected-fp`).
    pub protected_policy: Policy,
    /// Vector lengths.
    pub lengths: Lengths,
    /// Streaming vector lengths.
    pub streaming: Lengths,
    /// What the host's registers take.
    pub host_storage: Storage,
    /// ID registers: what all CPUs have in common that were up at boot.
    pub id: IdRegisters,
    /// What every CPU has that was up at boot.
    pub features: Features,
    /// Firmware has entropy (DEN0098).
    pub firmware_trng: bool,
    /// HCR_EL2 that a guest begins with.
    pub guest_hcr: u64,
    /// Stage 2.
    pub stage2: Stage2Shape,
    /// VTTBR_EL2 of the host.
    pub host_vttbr: u64,
}

/// Set before the host runs.
pub static MACHINE: Once<Machine> = Once::new();

/// The machine.
///
/// # Panics
///
/// Before boot has looked at all CPUs.
pub fn machine() -> &'static Machine {
    MACHINE.get().expect("the machine is known before the host runs")
}

/// What other CPUs may look at.
#[derive(Debug)]
pub struct Shared {
    /// Counters.
    pub stats: Stats,
    /// MPIDR_EL1 affinity.
    pub mpidr: AtomicU64,
    /// Set of VQs.
    vqs: AtomicU16,
    /// Set of streaming VQs.
    svqs: AtomicU16,
    /// [`Features`].
    features: AtomicU64,
    /// Its ID registers.
    id: [AtomicU64; REGISTERS],
    /// Its list registers ([`Interface`]).
    interface: AtomicU64,
    /// It has been up at EL2.
    online: AtomicBool,
    /// Bytes of its host image.
    pub image_bytes: AtomicU64,
}

impl Shared {
    const fn new() -> Self {
        Self {
            stats: Stats::new(),
            mpidr: AtomicU64::new(0),
            vqs: AtomicU16::new(0),
            svqs: AtomicU16::new(0),
            features: AtomicU64::new(0),
            id: [const { AtomicU64::new(0) }; REGISTERS],
            interface: AtomicU64::new(0),
            online: AtomicBool::new(false),
            image_bytes: AtomicU64::new(0),
        }
    }

    /// What the CPU has found out about itself; it has been up at EL2.
    pub fn publish(
        &self,
        features: Features,
        id: &IdRegisters,
        mpidr: u64,
        vqs: VqSet,
        svqs: VqSet,
        interface: Interface,
    ) {
        for (shared, &register) in self.id.iter().zip(&id.registers) {
            shared.store(register, Ordering::Relaxed);
        }
        self.vqs.store(vqs.bits(), Ordering::Relaxed);
        self.svqs.store(svqs.bits(), Ordering::Relaxed);
        self.features.store(features.bits(), Ordering::Relaxed);
        self.mpidr.store(mpidr, Ordering::Relaxed);
        self.interface.store(interface.register(), Ordering::Relaxed);
        self.online.store(true, Ordering::Release);
    }

    /// Its vector lengths.
    pub fn vqs(&self) -> VqSet {
        VqSet::from_bits(self.vqs.load(Ordering::Relaxed))
    }

    /// Its streaming vector lengths.
    pub fn svqs(&self) -> VqSet {
        VqSet::from_bits(self.svqs.load(Ordering::Relaxed))
    }

    /// Its list registers.
    pub fn interface(&self) -> Interface {
        Interface::from_register(self.interface.load(Ordering::Relaxed))
    }

    /// What it has.
    pub fn features(&self) -> Features {
        Features::from_bits(self.features.load(Ordering::Relaxed))
    }

    /// Its ID registers; of what is beside them, nothing.
    pub fn id(&self) -> IdRegisters {
        let registers = core::array::from_fn(|n| self.id[n].load(Ordering::Relaxed));
        IdRegisters { registers, ..IdRegisters::default() }
    }

    /// Whether it has been up at EL2.
    pub fn online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }
}

/// All CPUs', by number.
pub static SHARED: [Shared; MAX_CPUS] = [const { Shared::new() }; MAX_CPUS];
