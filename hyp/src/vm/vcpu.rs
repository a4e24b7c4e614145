//! A vCPU as its CPU has it: what of it is where while it runs, what its last exit left open, and its reset state.

#![forbid(unsafe_code)]

use crate::fp::VcpuFp;
use crate::fp::hw::Image;
use crate::machine::machine;
use crate::memory::hw::flag_page;
use crate::memory::pages::VmId;
use crate::memory::stage2::Vttbr;
use crate::vm::hardware::{Boot, NewVcpu};
use crate::world::aarch32::{Aarch32Regs, PSTATE_E, PSTATE_SVC_MASKED, PSTATE_T32};
use crate::world::features::HCR_RW;
use crate::world::idregs;
use crate::world::interrupts::{Timer, VirtualGic};
use crate::world::switch::{self, El1Context, GuestRegs, PSTATE_EL1H_MASKED, SCTLR_EE};
use core::sync::atomic::{AtomicBool, Ordering};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{MAX_VCPUS, MAX_VMS, Start};
use umbra_shared::flags::FlagShadowPage;
use umbra_shared::vcpu::VcpuFeatures;

/// What the guest waits for the host to finish.
///
/// Linux keeps this as flags of the vCPU, among them INCREMENT_PC, which lies inside EXCEPT_MASK on
/// purpose: a vCPU either has an exception pending or is to step over an instruction, and one word says
/// which. A hypervisor that takes its host's word for none of it needs no such overlap: what is open is
/// one value of a type, hyp alone writes it, and stepping over belongs to finishing it. The only flags
/// that host and hyp share are those of [`umbra_shared::flags`], whose words are asserted at compile
/// time to have no bit in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Open {
    /// Nothing.
    #[default]
    Nothing,
    /// An HVC: x0-x3 are the host's to set.
    Hvc,
    /// A load: the register that takes it.
    Read {
        /// Xt; 31 is XZR
        register: u8,
        /// bytes accessed
        bytes: u8,
        /// in big-endian order
        big_endian: bool,
        /// sign-extend
        sign: bool,
        /// to 64 bits
        wide: bool,
        /// ESR_EL2, for an abort
        esr: u64,
        /// guest address, for an abort
        far: u64,
    },
    /// A store: nothing to write, but the instruction is still to be stepped over.
    Write {
        /// ESR_EL2, for an abort
        esr: u64,
        /// guest address, for an abort
        far: u64,
    },
    /// An access to nothing: tried again, unless the host aborts it.
    Fault {
        /// ESR_EL2, for an abort
        esr: u64,
        /// guest address, for an abort
        far: u64,
    },
    /// A call of the guest's that the host must bring memory or tables for, or know of: the guest makes it again,
    /// unless the host says that it fails. Or one for the host itself.
    Call(Waits),
    /// The guest is to make that call again, in this run. Once it has left, whatever for, its host may use anew what it was told
    /// of: it can't know whether the call has been made, and asks.
    Again,
    /// The guest can't go on.
    Broken {
        /// ESR_EL2
        esr: u64,
    },
}

/// What a guest's call waits for. (Apart from [`Open`], which most exits look at.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// What the host is to bring, or to know of.
    Again {
        /// ESR_EL2 of the HVC or SMC, which is the next instruction
        esr: u64,
    },
    /// The host's answer to a call by RSI, in the flag-shadow page: where the guest has its registers.
    HostCall {
        /// guest-physical address
        ipa: u64,
    },
}

/// A vCPU, in the first of its donated pages.
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu {
    /// General-purpose registers.
    pub regs: GuestRegs,
    /// EL1.
    pub el1: El1Context,
    /// Virtual timer.
    pub timer: Timer,
    /// GIC CPU interface.
    pub gic: VirtualGic,
    /// FP.
    pub fp: VcpuFp<Image>,
    /// Its number in the VM.
    index: usize,
    /// VMPIDR_EL2.
    pub vmpidr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// What the last exit left open.
    pub open: Open,
    /// HCR_EL2 while it runs: with API and APK from its first use of pointer authentication on.
    pub hcr: u64,
    /// Its VM is a protected one.
    pub protected: bool,
    /// Pages that its guest has enrolled, where it found one last, by the page's low bits. They stay enrolled for
    /// as long as the VM lives.
    pub devices: [u64; DEVICES],
    /// How often something had been taken from its VM's stage 2, when that was last asked.
    pub(super) broken: u32,
    /// What it was made with.
    pub(super) features: VcpuFeatures,
    /// What AArch32 adds to EL1, while the vCPU is loaded nowhere.
    pub(super) aarch32: Aarch32Regs,
    /// Its flag-shadow page.
    pub flags: &'static FlagShadowPage,
}

static_assertions::const_assert!(size_of::<Vcpu>() <= PAGE_SIZE);

/// Pages of devices that a vCPU remembers: a power of two.
pub const DEVICES: usize = 4;
/// No page.
const NO_DEVICE: u64 = u64::MAX;

impl Vcpu {
    /// One in its reset state. `image` holds zeroes.
    pub(super) fn new(new: &NewVcpu, image: Image, vttbr: Vttbr, broken: u32) -> Self {
        let mut vcpu = Self {
            regs: GuestRegs {
                x: [0; 31],
                pc: 0,
                pstate: 0,
                id: idregs::table(
                    &machine().id,
                    idregs::Guest { features: new.features, pa_range: machine().stage2.pa_range },
                ),
            },
            el1: El1Context::reset(),
            timer: Timer::with_offset(new.clock),
            gic: VirtualGic::default(),
            fp: VcpuFp::new(image, new.features, new.policy),
            index: new.index,
            // RES1.
            vmpidr: 1 << 31 | u64::from(new.affinity),
            vttbr: vttbr.bits(),
            open: Open::Nothing,
            hcr: 0,
            protected: new.protected,
            devices: [NO_DEVICE; DEVICES],
            broken,
            features: new.features,
            aarch32: Aarch32Regs::default(),
            flags: flag_page(new.flag_page),
        };
        // One that is off has a state of its own once it is turned on.
        let (entry, argument) = match new.start {
            Start::At { entry, argument } => (entry, argument),
            Start::Off => (0, 0),
        };
        vcpu.begin(Boot { entry, argument, big_endian: false });
        vcpu
    }

    /// Whether its EL1 is AArch32.
    #[inline]
    pub const fn is_aarch32(&self) -> bool {
        switch::is_aarch32(self.hcr)
    }

    /// Its reset state, as far as it is not the same for all vCPUs: everything else is as it was made. Its image
    /// holds zeroes.
    pub(super) fn begin(&mut self, boot: Boot) {
        let aarch32 = self.features.aarch32;
        let (el1, pstate) = if aarch32 {
            (El1Context::reset_aarch32(), PSTATE_SVC_MASKED)
        } else {
            (El1Context::reset(), PSTATE_EL1H_MASKED)
        };
        self.regs.x = [0; 31];
        self.regs.x[0] = if aarch32 { boot.argument & 0xffff_ffff } else { boot.argument };
        self.regs.pc = boot.entry;
        self.regs.pstate = pstate;
        self.el1 = el1;
        if aarch32 && boot.entry & 1 != 0 {
            self.regs.pc &= !1;
            self.regs.pstate |= PSTATE_T32;
        }
        if boot.big_endian {
            self.el1.regs.sctlr_el1 |= SCTLR_EE;
            if aarch32 {
                self.regs.pstate |= PSTATE_E;
            }
        }
        self.timer.reset();
        self.gic = VirtualGic::default();
        self.open = Open::Nothing;
        self.aarch32 = Aarch32Regs::default();
        let hcr = machine().guest_hcr;
        self.hcr = if aarch32 { hcr & !HCR_RW } else { hcr };
    }

    /// It runs no more. Of which VM it is its VMID says.
    pub fn stop(&self) {
        stopped(self.vm(), self.index % MAX_VCPUS).store(true, Ordering::Relaxed);
    }

    /// Its VM's number.
    pub const fn vm(&self) -> VmId {
        Vttbr::from_bits(self.vttbr).vmid() - 1
    }

    /// As much of a value as its registers hold.
    #[inline]
    pub const fn register_width(&self, value: u64) -> u64 {
        if self.is_aarch32() { value & 0xffff_ffff } else { value }
    }
}

/// vCPUs that run no more until they begin anew: they have turned themselves off, or their protected VM, which one
/// CPU may do while another runs them. A run that reads it too early ends at the next interrupt, and is the last.
/// Apart from the vCPUs, which are their CPUs' own while they are loaded.
static STOPPED: [[AtomicBool; MAX_VCPUS]; MAX_VMS] =
    [const { [const { AtomicBool::new(false) }; MAX_VCPUS] }; MAX_VMS];

/// Whether that vCPU runs no more.
pub(super) fn stopped(vm: VmId, index: usize) -> &'static AtomicBool {
    &STOPPED[usize::from(vm)][index]
}
