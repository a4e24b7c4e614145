//! What VMs are made of, as the decisions of [`super::life`] know it: on the target the machine itself
//! (`slots`), in tests a machine in a vector.

#![forbid(unsafe_code)]

use crate::memory::handover::{Hands, Ready};
use crate::memory::pages::{Page, PageRange, Pages, VmId};
use umbra_shared::call::{Policy, Start};
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::VqSet;

/// Memory as one lock guards it: who owns each page, and what is done to one that changes hands.
pub trait Memory: Hands {
    /// The owners.
    fn pages(&mut self) -> &mut Pages<'static>;

    /// Whether a host's kernel is to find junk where a VM has memory of its own ([`crate::memory::junk`]).
    fn set_junk(&mut self, vm: VmId, junk: bool);
}

/// What is at a guest's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// Memory, at this physical address.
    Memory(u64),
    /// A device: the guest has enrolled the page.
    Device,
    /// Nothing, because the page is shared at its alias.
    Aliased,
    /// Nothing, by the guest's own word (RSI's EMPTY).
    Empty,
}

/// What VMs are made of.
pub trait Machine {
    /// Memory, behind its lock.
    type Memory: Memory;
    /// A VM's stage 2.
    type Tables;
    /// A vCPU in its donated pages.
    type Vcpu;

    /// Does something with memory, under its lock.
    fn memory<R>(&self, f: impl FnOnce(&mut Self::Memory) -> R) -> R;

    /// Bits of a guest's address space.
    fn ipa_bits(&self) -> u32;

    /// A protected guest's alias bit: addresses that have it and none above it are its upper half.
    fn alias_bit(&self) -> u64;

    /// Vector lengths that guests can have; empty: no SVE.
    fn guest_vqs(&self) -> VqSet;

    /// Streaming vector lengths that guests can have; empty: no SME.
    fn guest_svqs(&self) -> VqSet;

    /// Whether EL1 can be AArch32.
    fn aarch32(&self) -> bool;

    /// Whether protected VMs can be made.
    fn protects(&self) -> bool;

    /// When the FP registers of protected VMs move.
    fn protected_policy(&self) -> Policy;

    /// The physical counter.
    fn now(&self) -> u64;

    /// Pages of this VM's, mapped for hyp and zeroed, that its tables may be made of.
    fn add_tables(&self, vm: VmId, pages: PageRange);

    /// How many of them are left.
    fn tables_left(&self, vm: VmId) -> usize;

    /// Tables that a single mapping may take.
    fn tables_for_one(&self) -> usize;

    /// An empty stage 2 out of these pages, of which there are [`VM_PAGES`](umbra_shared::call::VM_PAGES) at least.
    fn new_tables(&self, vm: VmId) -> Self::Tables;

    /// The end of a VM's stage 2: afterwards no TLB holds anything of it, no walk begins in it, and
    /// the pages for tables are forgotten.
    fn drop_tables(&self, vm: VmId, tables: Self::Tables);

    /// Pages of a block, which a power of two is: a call goes no further than one.
    fn block_pages(&self) -> u64;

    /// What is at a guest's address.
    fn lookup(&self, tables: &Self::Tables, ipa: u64) -> There;

    /// Whether there is nothing at so many pages, neither memory nor a device. They are in one block.
    fn is_free(&self, tables: &Self::Tables, ipa: u64, count: u64) -> bool;

    /// Memory at a guest's address, and as how many pages it goes on behind it, of so many, which are in one block.
    fn run(&self, tables: &Self::Tables, ipa: u64, count: u64) -> Option<(u64, u64)>;

    /// Tables that it may take to take so many pages away, which are in one block.
    fn tables_to_unmap(&self, tables: &Self::Tables, ipa: u64, count: u64) -> usize;

    /// Maps pages where nothing is mapped. There are tables for it.
    fn map(&self, tables: &mut Self::Tables, ipa: u64, pages: Ready);

    /// Takes a mapping away, complete with TLB maintenance for the VM's VMID. There are tables for it.
    fn unmap(&self, tables: &mut Self::Tables, ipa: u64, count: u64);

    /// A guest has enrolled a page where nothing is mapped: no memory comes there any more. There are tables for
    /// it.
    fn enrol(&self, tables: &mut Self::Tables, ipa: u64);

    /// The page whose mapping was taken away here is shared at its alias: nothing else comes here. There is a table for
    /// it, which the page's mapping was in.
    fn hide(&self, tables: &mut Self::Tables, ipa: u64);

    /// It is no more.
    fn unhide(&self, tables: &mut Self::Tables, ipa: u64);

    /// The first of so many pages, which are in one block, that is shared at its alias.
    fn next_hidden(&self, tables: &Self::Tables, ipa: u64, count: u64) -> Option<u64>;

    /// Puts a vCPU that is loaded nowhere into its reset state, registers, timer, interrupts and FP: it keeps what
    /// it was made with.
    fn reset_vcpu(&self, vcpu: &Self::Vcpu, boot: Boot);

    /// Whether a vCPU that is loaded nowhere can't go on, whoever runs it.
    fn is_broken(&self, vcpu: &Self::Vcpu) -> bool;

    /// Whether a vCPU runs no more, which may be loaded, on any CPU.
    fn set_stopped(&self, vm: VmId, index: usize, stopped: bool);

    /// Makes a vCPU in its reset state. Its pages are mapped for hyp and zeroed, its flag-shadow page
    /// is pinned.
    fn new_vcpu(&self, tables: &Self::Tables, vcpu: &NewVcpu) -> Self::Vcpu;

    /// A vCPU is to run on this CPU where another of the same VM ran last: they share a VMID, but
    /// what this CPU keeps of its stage 1 and instructions is the other's.
    fn forget_sibling(&self, tables: &Self::Tables);
}

/// A vCPU about to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewVcpu {
    /// Its pages.
    pub pages: PageRange,
    /// Its flag-shadow page.
    pub flag_page: Page,
    /// Its number in the VM.
    pub index: usize,
    /// MPIDR_EL1's Aff2, Aff1 and Aff0.
    pub affinity: u32,
    /// What it has.
    pub features: VcpuFeatures,
    /// When its FP registers move.
    pub policy: Policy,
    /// Its VM is a protected one.
    pub protected: bool,
    /// Where it starts.
    pub start: Start,
    /// CNTVOFF_EL2.
    pub clock: u64,
}

/// How a vCPU begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// PC: with bit 0 set an AArch32 vCPU begins in T32.
    pub entry: u64,
    /// x0, r0.
    pub argument: u64,
    /// SCTLR_EL1.EE as whoever turned it on had it, and PSTATE.E of an AArch32 vCPU with it. (Linux's
    /// `kvm_psci_vcpu_on` takes an AArch32 caller's CPSR.E and sets that alone.)
    pub big_endian: bool,
}
