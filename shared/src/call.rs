//! Hypercalls: SMCCC 1.2 fast calls in the vendor-specific hypervisor service range, made with
//! `HVC #0`.
//!
//! x0 carries the function ID, x1-x7 the arguments; x0 returns [`SUCCESS`](crate::error::SUCCESS) or
//! an [`Error`] code, x1-x8 the results. Registers x18-x30 are preserved; x0-x17 are not.
//! Bit 16 of a function ID is SMCCC 1.3's "no live SVE state" hint and never selects a function.
//!
//! # Ranges
//!
//! VM_MAP, VM_UNMAP and VM_RECLAIM take any number of pages but none (INVALID_ARGUMENT), do some of them, one at
//! least, and say how many; the caller asks again for the rest. A call
//!
//! - goes no further than the block of [`BLOCK_PAGES`] that its first page lies in, of guest-physical addresses for
//!   VM_MAP and VM_UNMAP, of physical ones for VM_RECLAIM, and has no opinion on what lies behind;
//! - stops when an interrupt waits for the CPU, after [`MASKED_INSTRUCTIONS`] at the most;
//! - if it is VM_MAP, checks every page of that block that is asked for, and does nothing if one is refused;
//! - if it is VM_UNMAP, stops where the next page lies elsewhere in memory, or there is none;
//! - if it is VM_RECLAIM, stops where the next page is not the VM's: a guest may have given it back.
//!
//! An error changes nothing. [`BLOCK_PAGES`] that begin at a multiple of their size, in both address spaces, and are
//! put in place by one call, are one entry of the guest's stage 2, until a part of them changes hands. Taking
//! such a part away takes a table (NO_TABLES).
//!
//! [`Call`] is the typed form: the host encodes one, hyp decodes what it was given. Decoding checks
//! what can be checked without hyp's records (reserved bits, ranges); addresses and handles stay
//! untrusted types until hyp has looked them up.

mod config;

pub use config::*;

use crate::error::Error;
use crate::flag_set;
use crate::numbered::numbered;
use crate::register::UntrustedRegister;
use crate::vcpu::UntrustedFeatures;
use config::PLACE_RESERVED;

/// Bits that make a function ID ours: fast call (31), SMC64 (30), owner 6 (29:24).
const FUNCTION_BASE: u64 = 0xc600_0000;
/// SMCCC 1.3 §2.1: "the caller has no live SVE state". A hint; masked before matching.
pub const SVE_HINT: u64 = 1 << 16;

/// SMCCC's vendor-hypervisor UID query (32-bit convention), answered in w0-w3.
pub const VENDOR_UID_FUNCTION: u64 = 0x8600_ff01;
/// Umbra's UID as four little-endian words: 2f5a7c1e-9b04-4d36-8ee1-75d6a2c0b319.
pub const VENDOR_UID: [u32; 4] = [0x1e7c_5a2f, 0x364d_049b, 0xd675_e18e, 0x19b3_c0a2];

/// The interface version that VERSION reports: major << 16 | minor.
pub const INTERFACE_VERSION: u32 = 1;

flag_set! {
    /// What the machine and this hyp offer, as VERSION reports it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// All CPUs have SVE; guests can have it at the common vector lengths.
        const SVE = 1 << 0;
        /// All CPUs have SME; guests can have it at the common streaming vector lengths.
        const SME = 1 << 1;
        /// The CPUs have pointer authentication; guests have it, with keys of their own.
        const PAUTH = 1 << 2;
        /// The host is held to the common vector lengths (`host-vl=common`).
        const HOST_VL_COMMON = 1 << 3;
        /// EL1 can be AArch32; guests can.
        const AARCH32 = 1 << 4;
        /// The CPUs have SME2: ZT0, for the host and for guests with SME.
        const SME2 = 1 << 5;
        /// The CPUs have FPMR, for the host and for guests.
        const FPMR = 1 << 6;
        /// Protected VMs have the lazy FP policy (`protected-fp=lazy`), not [`Policy::Scrub`].
        const PROTECTED_FP_LAZY = 1 << 7;
        /// Protected VMs can be made: no device of the host's reaches them. Without it
        /// [`Error::NotIsolated`](crate::error::Error::NotIsolated) says so.
        const PROTECTED_VMS = 1 << 8;
    }
}

numbered! {
    /// Function numbers (the low 16 bits of a function ID).
    Function: u16, fn from_number;

    /// → x1 interface version, x2 [`Features`], x3 the bits that guest-physical addresses have at the most, x4 the number of
    /// protected guests' alias bit ([`crate::guest`]).
    Version = 0x00;
    /// x1 CPU index or [`ALL_CPUS`] → x1 set of VQs ([`VqSet`](crate::vl::VqSet) bits), x2 host
    /// image bytes, x3 number of CPUs, x4 MPIDR_EL1 affinity of the CPU, x5 1 if it is online at hyp,
    /// x6 set of streaming VQs, x7 its list registers ([`Interface`](crate::interrupt::Interface)); of all CPUs: what
    /// those that are online have in common.
    VlInfo = 0x01;
    /// x1 CPU index, x2 first counter → x1-x8 eight counters from there ([`Counter`]).
    Stats = 0x02;
    /// x1 address → x1 the first host page at or above it that hyp has mapped, or [`NO_PAGE`] if there
    /// is none below x2; x2 where to go on, [`NO_PAGE`] at the end of memory.
    NextSharedPage = 0x03;
    /// x1 page: share it with hyp as a flag-shadow page.
    ShareFlagPage = 0x10;
    /// x1 page: end that. BUSY while a vCPU uses it.
    UnshareFlagPage = 0x11;
    /// x1 first page, x2 number of pages (at least [`VM_PAGES`]), x3 [`VmConfig`] → x1 handle.
    VmCreate = 0x20;
    /// x1 VM, x2 first page, x3 number of pages: more pages for stage-2 tables.
    VmTopup = 0x21;
    /// x1 VM, x2 first page, x3 guest-physical address, x4 number of pages: put pages of memory in place; with their
    /// content, unless the VM is sealed: then they are zeroed once the host has lost them → x1 pages in place. See
    /// [ranges](crate::call#ranges).
    VmMap = 0x22;
    /// x1 VM: begin teardown. BUSY while one of its vCPUs is loaded: from then on no other is, nothing
    /// is added to the VM, and it is to be called again when all are put.
    VmDestroy = 0x23;
    /// x1 VM, x2 first page, x3 number of pages: get pages of a dying VM back, wiped → x1 pages still out, x2 pages
    /// back. At zero out the handle is gone. See [ranges](crate::call#ranges).
    VmReclaim = 0x24;
    /// x1 VM, x2 guest-physical address, x3 number of pages: take pages of a normal VM back → x1 the first page, x2
    /// how many, one behind the other. See [ranges](crate::call#ranges).
    VmUnmap = 0x25;
    /// x1 VM, a protected one with all its vCPUs and its payload in place: from now on it can run, and nothing
    /// of the host's choosing gets into it but answers to exits that are open.
    VmSeal = 0x26;
    /// x1 VM, x2 guest-physical address, of a protected one's lower half: what the guest has there, wherever it is shared → x1
    /// the page, x2 1 if the host has access to it, 0 if it is the guest's alone. NOT_MAPPED: nothing.
    VmLookup = 0x27;
    /// x1 VM, x2 first page, x3 number of pages (bits 15:0), its index (31:16) and its affinity (55:32: Aff2, Aff1,
    /// Aff0), x4 flag-shadow page, x5 [`UntrustedFeatures`], and bit 33 if it is off, x6 entry, x7 argument, both zero
    /// if it is off.
    VcpuCreate = 0x30;
    /// x1 VM, x2 vCPU: bind it to this CPU.
    VcpuLoad = 0x31;
    /// Run the loaded vCPU: see [`crate::exit`].
    VcpuRun = 0x32;
    /// Unbind the loaded vCPU from this CPU.
    VcpuPut = 0x33;
    /// x1 VM, a normal one, x2 vCPU, which is loaded nowhere, x3 zero, or bit 33 if it is to be off, x4 entry, x5
    /// argument: it is in its reset state.
    VcpuReset = 0x34;
    /// x1 VM, a normal one, x2 vCPU, which is loaded nowhere, x3 [`UntrustedRegister`] → x1, x2 its value.
    VcpuRead = 0x35;
    /// The same, x4 and x5 its new value.
    VcpuWrite = 0x36;
}

impl Function {
    /// The function ID to put into x0.
    pub const fn id(self) -> u64 {
        FUNCTION_BASE | self as u64
    }

    /// Whether x0 selects this function: [`Function::from_id`] for one that is asked for often.
    #[inline]
    pub const fn is_in(self, x0: u64) -> bool {
        x0 & 0xffff_ffff & !SVE_HINT == self.id()
    }

    /// The function that x0 selects. The upper half of x0 is ignored, as SMCCC prescribes (W0).
    pub const fn from_id(x0: u64) -> Option<Self> {
        let id = x0 & 0xffff_ffff & !SVE_HINT;
        if id & !0xffff != FUNCTION_BASE { None } else { Self::from_number(id as u16) }
    }
}

/// The CPU argument of VL_INFO that asks for what all CPUs have in common (and guests can have).
pub const ALL_CPUS: u64 = u64::MAX;

/// What NEXT_SHARED_PAGE answers when there is none.
pub const NO_PAGE: u64 = u64::MAX;

/// The fewest pages VM_CREATE takes: the stage-2 root and one table for each level below it.
pub const VM_PAGES: u64 = 4;

/// The most pages one call takes over: what bounds the time hyp spends with interrupts masked.
pub const MAX_PAGES_PER_CALL: u64 = 64;

/// Pages of a block: 2 MiB.
pub const BLOCK_PAGES: u64 = 512;

/// Instructions that a call with a range of pages executes with interrupts masked before it looks whether one waits,
/// at the most, on a CPU with cache lines of 64 bytes, what comes before and behind included (`tests/bench`, rows
/// `masked_vm_*`).
pub const MASKED_INSTRUCTIONS: u64 = 100_000;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// Per-CPU counters, as STATS numbers them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            /// Every counter, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

counters! {
    /// Entries into a guest.
    Runs;
    /// FP/SVE traps taken from a guest that made its state live.
    GuestFpTraps;
    /// FP/SVE/SME traps taken from the host.
    HostFpTraps;
    /// Whole images of the host's Z, P and FFR saved.
    HostSavesFull;
    /// Advanced SIMD images of the host saved (no SVE, or SVE_DISCARDED).
    HostSavesFpsimd;
    /// Saves of the host left out because of FOREIGN_FPSTATE.
    HostSavesAvoided;
    /// Images of the host loaded, or the reset state given to it.
    HostLoads;
    /// Guest images saved.
    GuestSaves;
    /// Guest images loaded.
    GuestLoads;
    /// Entries at which the guest's state was live already, so that nothing had to be loaded.
    GuestLoadsAvoided;
    /// Exits after which the host's state stayed where it was because nobody had displaced it, or
    /// was not brought back before the host asked for it.
    HostLoadsAvoided;
    /// Bytes of register files moved between registers and memory.
    BytesMoved;
    /// Host stage-2 faults answered by walking again.
    Stage2Retries;
    /// Aborts injected into the host.
    HostAborts;
    /// Times that ZA (and ZT0) of the host was saved.
    HostZaSaves;
    /// Times that it was loaded.
    HostZaLoads;
    /// Times that ZA (and ZT0) of a guest was saved.
    GuestZaSaves;
    /// Times that it was loaded.
    GuestZaLoads;
    /// Accesses of the host's to registers of the GIC that hyp carries out.
    GicTraps;
    /// Accesses of the host's kernel to what is a guest's alone that were given junk ([`VmConfig::junk`]).
    HostJunk;
}

/// A hypercall other than VCPU_RUN, with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Function::Version`]
    Version,
    /// [`Function::VlInfo`]; `None` asks for all CPUs.
    VlInfo {
        /// CPU index
        cpu: Option<u64>,
    },
    /// [`Function::Stats`]
    Stats {
        /// CPU index
        cpu: u64,
        /// number of the first counter
        first: u64,
    },
    /// [`Function::NextSharedPage`]
    NextSharedPage {
        /// where to begin
        from: UntrustedPa,
    },
    /// [`Function::ShareFlagPage`]
    ShareFlagPage {
        /// the page
        page: UntrustedPa,
    },
    /// [`Function::UnshareFlagPage`]
    UnshareFlagPage {
        /// the page
        page: UntrustedPa,
    },
    /// [`Function::VmCreate`]
    VmCreate {
        /// pages for stage-2 tables
        pages: UntrustedPages,
        /// what the VM is to be
        config: VmConfig,
    },
    /// [`Function::VmTopup`]
    VmTopup {
        /// the VM
        vm: VmHandle,
        /// pages for stage-2 tables
        pages: UntrustedPages,
    },
    /// [`Function::VmMap`]
    VmMap {
        /// the VM
        vm: VmHandle,
        /// the pages
        pages: UntrustedPages,
        /// where the guest finds the first
        ipa: UntrustedIpa,
    },
    /// [`Function::VmUnmap`]
    VmUnmap {
        /// the VM
        vm: VmHandle,
        /// where the guest has the first
        ipa: UntrustedIpa,
        /// how many
        count: u64,
    },
    /// [`Function::VmSeal`]
    VmSeal {
        /// the VM
        vm: VmHandle,
    },
    /// [`Function::VmLookup`]
    VmLookup {
        /// the VM
        vm: VmHandle,
        /// where the guest has the page
        ipa: UntrustedIpa,
    },
    /// [`Function::VmDestroy`]
    VmDestroy {
        /// the VM
        vm: VmHandle,
    },
    /// [`Function::VmReclaim`]
    VmReclaim {
        /// the VM
        vm: VmHandle,
        /// the pages
        pages: UntrustedPages,
    },
    /// [`Function::VcpuCreate`]
    VcpuCreate(VcpuConfig),
    /// [`Function::VcpuLoad`]
    VcpuLoad {
        /// the VM
        vm: VmHandle,
        /// the vCPU
        vcpu: VcpuIndex,
    },
    /// [`Function::VcpuPut`]
    VcpuPut,
    /// [`Function::VcpuReset`]
    VcpuReset {
        /// the VM
        vm: VmHandle,
        /// the vCPU
        vcpu: VcpuIndex,
        /// where it is to start
        start: Start,
    },
    /// [`Function::VcpuRead`]
    VcpuRead {
        /// the VM
        vm: VmHandle,
        /// the vCPU
        vcpu: VcpuIndex,
        /// which of its registers
        register: UntrustedRegister,
    },
    /// [`Function::VcpuWrite`]
    VcpuWrite {
        /// the VM
        vm: VmHandle,
        /// the vCPU
        vcpu: VcpuIndex,
        /// which of its registers
        register: UntrustedRegister,
        /// lower and upper half
        value: [u64; 2],
    },
}

/// Arguments of a call: x1-x7.
pub type Args = [u64; 7];

impl Call {
    /// The function ID for x0 and the arguments for x1-x7.
    pub const fn encode(&self) -> (u64, Args) {
        let (function, args) = match *self {
            Self::Version => (Function::Version, [0; 7]),
            Self::VlInfo { cpu } => (
                Function::VlInfo,
                [if let Some(cpu) = cpu { cpu } else { ALL_CPUS }, 0, 0, 0, 0, 0, 0],
            ),
            Self::Stats { cpu, first } => (Function::Stats, [cpu, first, 0, 0, 0, 0, 0]),
            Self::NextSharedPage { from } => (Function::NextSharedPage, [from.0, 0, 0, 0, 0, 0, 0]),
            Self::ShareFlagPage { page } => (Function::ShareFlagPage, [page.0, 0, 0, 0, 0, 0, 0]),
            Self::UnshareFlagPage { page } => {
                (Function::UnshareFlagPage, [page.0, 0, 0, 0, 0, 0, 0])
            }
            Self::VmCreate { pages, config } => {
                (Function::VmCreate, [pages.start.0, pages.count, config.encode(), 0, 0, 0, 0])
            }
            Self::VmTopup { vm, pages } => {
                (Function::VmTopup, [vm.0, pages.start.0, pages.count, 0, 0, 0, 0])
            }
            Self::VmMap { vm, pages, ipa } => {
                (Function::VmMap, [vm.0, pages.start.0, ipa.0, pages.count, 0, 0, 0])
            }
            Self::VmUnmap { vm, ipa, count } => {
                (Function::VmUnmap, [vm.0, ipa.0, count, 0, 0, 0, 0])
            }
            Self::VmSeal { vm } => (Function::VmSeal, [vm.0, 0, 0, 0, 0, 0, 0]),
            Self::VmLookup { vm, ipa } => (Function::VmLookup, [vm.0, ipa.0, 0, 0, 0, 0, 0]),
            Self::VmDestroy { vm } => (Function::VmDestroy, [vm.0, 0, 0, 0, 0, 0, 0]),
            Self::VmReclaim { vm, pages } => {
                (Function::VmReclaim, [vm.0, pages.start.0, pages.count, 0, 0, 0, 0])
            }
            Self::VcpuCreate(c) => {
                let (off, entry, argument) = c.start.encode();
                let (first, place) = (c.pages.start.0, c.place());
                let features = c.features.0 | off;
                (
                    Function::VcpuCreate,
                    [c.vm.0, first, place, c.flag_page.0, features, entry, argument],
                )
            }
            Self::VcpuLoad { vm, vcpu } => (Function::VcpuLoad, [vm.0, vcpu.0, 0, 0, 0, 0, 0]),
            Self::VcpuPut => (Function::VcpuPut, [0; 7]),
            Self::VcpuReset { vm, vcpu, start } => {
                let (off, entry, argument) = start.encode();
                (Function::VcpuReset, [vm.0, vcpu.0, off, entry, argument, 0, 0])
            }
            Self::VcpuRead { vm, vcpu, register } => {
                (Function::VcpuRead, [vm.0, vcpu.0, register.0, 0, 0, 0, 0])
            }
            Self::VcpuWrite { vm, vcpu, register, value: [low, high] } => {
                (Function::VcpuWrite, [vm.0, vcpu.0, register.0, low, high, 0, 0])
            }
        };
        (function.id(), args)
    }

    /// What x0-x7 ask for. VCPU_RUN is none of these calls: its registers mean something else, and
    /// hyp takes it before it gets here.
    pub const fn decode(x0: u64, a: &Args) -> Result<Self, Error> {
        let Some(function) = Function::from_id(x0) else { return Err(Error::NotSupported) };
        Ok(match function {
            Function::Version => Self::Version,
            Function::VlInfo => {
                Self::VlInfo { cpu: if a[0] == ALL_CPUS { None } else { Some(a[0]) } }
            }
            Function::Stats => Self::Stats { cpu: a[0], first: a[1] },
            Function::NextSharedPage => Self::NextSharedPage { from: UntrustedPa(a[0]) },
            Function::ShareFlagPage => Self::ShareFlagPage { page: UntrustedPa(a[0]) },
            Function::UnshareFlagPage => Self::UnshareFlagPage { page: UntrustedPa(a[0]) },
            Function::VmCreate => Self::VmCreate {
                pages: UntrustedPages { start: UntrustedPa(a[0]), count: a[1] },
                config: match VmConfig::decode(a[2]) {
                    Ok(config) => config,
                    Err(error) => return Err(error),
                },
            },
            Function::VmTopup => Self::VmTopup {
                vm: VmHandle(a[0]),
                pages: UntrustedPages { start: UntrustedPa(a[1]), count: a[2] },
            },
            Function::VmMap => Self::VmMap {
                vm: VmHandle(a[0]),
                pages: UntrustedPages { start: UntrustedPa(a[1]), count: a[3] },
                ipa: UntrustedIpa(a[2]),
            },
            Function::VmUnmap => {
                Self::VmUnmap { vm: VmHandle(a[0]), ipa: UntrustedIpa(a[1]), count: a[2] }
            }
            Function::VmSeal => Self::VmSeal { vm: VmHandle(a[0]) },
            Function::VmLookup => Self::VmLookup { vm: VmHandle(a[0]), ipa: UntrustedIpa(a[1]) },
            Function::VmDestroy => Self::VmDestroy { vm: VmHandle(a[0]) },
            Function::VmReclaim => Self::VmReclaim {
                vm: VmHandle(a[0]),
                pages: UntrustedPages { start: UntrustedPa(a[1]), count: a[2] },
            },
            Function::VcpuCreate if a[2] & PLACE_RESERVED != 0 => {
                return Err(Error::InvalidArgument);
            }
            Function::VcpuCreate => Self::VcpuCreate(VcpuConfig {
                vm: VmHandle(a[0]),
                index: VcpuIndex(a[2] >> 16 & 0xffff),
                affinity: UntrustedAffinity(a[2] >> 32 & 0xff_ffff),
                pages: UntrustedPages { start: UntrustedPa(a[1]), count: a[2] & 0xffff },
                flag_page: UntrustedPa(a[3]),
                features: UntrustedFeatures(a[4] & !Start::OFF),
                start: match Start::decode(a[4], a[5], a[6]) {
                    Ok(start) => start,
                    Err(error) => return Err(error),
                },
            }),
            Function::VcpuLoad => Self::VcpuLoad { vm: VmHandle(a[0]), vcpu: VcpuIndex(a[1]) },
            Function::VcpuPut => Self::VcpuPut,
            Function::VcpuReset => {
                if a[2] & !Start::OFF != 0 {
                    return Err(Error::InvalidArgument);
                }
                Self::VcpuReset {
                    vm: VmHandle(a[0]),
                    vcpu: VcpuIndex(a[1]),
                    start: match Start::decode(a[2], a[3], a[4]) {
                        Ok(start) => start,
                        Err(error) => return Err(error),
                    },
                }
            }
            Function::VcpuRead => Self::VcpuRead {
                vm: VmHandle(a[0]),
                vcpu: VcpuIndex(a[1]),
                register: UntrustedRegister(a[2]),
            },
            Function::VcpuWrite => Self::VcpuWrite {
                vm: VmHandle(a[0]),
                vcpu: VcpuIndex(a[1]),
                register: UntrustedRegister(a[2]),
                value: [a[3], a[4]],
            },
            Function::VcpuRun => return Err(Error::NotSupported),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_round_trip_with_and_without_the_hint() {
        for &f in Function::ALL {
            assert_eq!(Function::from_id(f.id()), Some(f));
            assert_eq!(Function::from_id(f.id() | SVE_HINT), Some(f));
            assert_eq!(Function::from_id(f.id() | 0xdead_0000_0000_0000), Some(f));
            // SMC32, another owner, a yielding call: not ours.
            assert_eq!(Function::from_id(f.id() & !(1 << 30)), None);
            assert_eq!(Function::from_id(f.id() ^ 1 << 24), None);
            assert_eq!(Function::from_id(f.id() & !(1 << 31)), None);
        }
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(x0: u64, number in 0u64..0x40, args: Args) {
            for x0 in [x0, FUNCTION_BASE | number] {
                if let Ok(call) = Call::decode(x0, &args) {
                    let (id, again) = call.encode();
                    prop_assert_eq!(Call::decode(id, &again), Ok(call));
                }
            }
        }

        #[test]
        fn reserved_config_bits_are_refused(raw in prop_oneof![any::<u64>(), 0u64..0x400]) {
            match VmConfig::decode(raw) {
                Ok(config) => prop_assert_eq!(config.encode(), raw),
                Err(error) => prop_assert_eq!(error, Error::InvalidArgument),
            }
        }
    }
}
