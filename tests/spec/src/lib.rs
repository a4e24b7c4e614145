//! The executable specification of hyp: who owns each page, what VMs and vCPUs there are, what is
//! loaded and whose FP registers are live on each CPU; and for every transition, what it must answer
//! and what it changes.
//!
//! It is written to be read: no locks, no hardware, no page tables, nothing that has to be fast. A
//! [`Spec`] takes the transitions of a machine one after the other, in the order in which they took
//! effect ([`umbra_shared::record`]), computes each one by itself, and names the first difference.
//! The idea is that of pKVM's "ghost" specification (Sewell et al., "Ghost in the Android Shell",
//! SOSP 2025), which leaves FP and SVE out; here they are part of it.
//!
//! - [`memory`]: pages and their owners;
//! - [`vm`]: VMs and vCPUs;
//! - [`fp`]: a CPU's registers, and what hints do;
//! - [`dma`]: accesses of devices;
//! - [`calls`]: every hypercall of the host's;
//! - [`guest`]: every call of a guest's, those of RSI in [`rsi`];
//! - [`judge`]: records against all of that.
//!
//! It judges hyp's decisions on a development machine (`tests/logic/main.rs`) and whole machines in the
//! fuzzer (`cargo xtask fuzz --calls`).

#![forbid(unsafe_code)]

pub mod calls;
pub mod dma;
pub mod fp;
pub mod guest;
pub mod judge;
pub mod memory;
pub mod offer;
pub mod register;
pub mod rsi;
pub mod vm;

use std::collections::BTreeMap;

use umbra_shared::call::Policy;
use umbra_shared::vl::VqSet;

/// What does not change while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// CPUs.
    pub cpus: usize,
    /// Vector lengths that guests can have; empty: no SVE.
    pub guest_vqs: VqSet,
    /// Streaming vector lengths that guests can have; empty: no SME.
    pub guest_svqs: VqSet,
    /// EL1 can be AArch32.
    pub aarch32: bool,
    /// When the FP registers of protected VMs move, whatever their host asks for.
    pub protected_policy: Policy,
    /// Protected VMs can be made.
    pub protects: bool,
    /// Bits of a guest's address space.
    pub ipa_bits: u32,
    /// A protected guest's alias bit.
    pub alias_bit: u64,
    /// Level of a guest's root table: 0 or 1.
    pub root_level: u32,
    /// Pages of a block, which is as far as a call with a range goes.
    pub block_pages: u64,
    /// Pages that such a call does before it looks whether an interrupt waits.
    pub stretch: u64,
}

/// A CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Its vector lengths.
    pub vqs: VqSet,
    /// Its streaming vector lengths.
    pub svqs: VqSet,
    /// What its host is held to.
    pub held: fp::Held,
    /// The vCPU loaded on it: slot of the VM, index.
    pub loaded: Option<(u8, usize)>,
    /// Its FP registers; `None` until it has come out of reset.
    pub fp: Option<fp::Fp>,
    /// The interrupts that its next run is offered.
    pub offer: Option<offer::Offer>,
}

/// The state of everything.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What doesn't change.
    pub platform: Platform,
    /// Pages.
    pub memory: memory::Memory,
    /// VMs, by slot.
    pub vms: Vec<vm::Vm>,
    /// CPUs, by hyp's number.
    pub cpus: Vec<Cpu>,
    /// Accesses of devices that are under way, by the CPU that has told them to.
    accesses: BTreeMap<usize, dma::Access>,
}

/// VMs at a time.
pub const VMS: usize = 255;
/// vCPUs of a VM.
pub const VCPUS: usize = 64;

impl Spec {
    /// Where an address of a protected guest's upper half has its page while that is private.
    pub fn private_address(&self, ipa: u64) -> Option<u64> {
        let bit = self.platform.alias_bit;
        (ipa / bit == 1).then(|| ipa - bit)
    }

    /// A machine on which nothing has happened yet.
    pub fn new(platform: Platform, memory: memory::Memory) -> Self {
        let cpus = vec![Cpu::default(); platform.cpus];
        let vms = vec![vm::Vm::default(); VMS];
        Self { platform, memory, vms, cpus, accesses: BTreeMap::new() }
    }
}
