//! One file for each feature of the architecture: what Umbra does about it.
//!
//! A file says, as data ([`Feature`]), when a CPU has the feature, which of its ID register fields guests are
//! shown, which control bits each world runs under, and which registers it brings: switched, trapped or
//! constant. From that, and from nowhere else, come the control values of both worlds ([`super::controls`]),
//! what guests read from ID registers ([`super::idregs`]), the list of what `super::switch` moves beside
//! EL1's own registers, the table of registers ([`super::registers`]), and tests over every set of features.
//!
//! Who adds one: a variant of [`Name`], a file, a line in [`ALL`]. A field of an ID register that no file
//! decides about, a register in two files, a bit that two features set, fail a test.

#![forbid(unsafe_code)]

pub mod id;

mod aarch32;
mod amu;
mod base;
mod brbe;
mod csv2;
mod debug;
mod el2;
mod fgt;
mod fp;
mod fpmr;
mod fwb;
mod gcs;
mod gic;
mod hcx;
mod impdef;
mod instructions;
mod ls64;
mod mops;
mod mpam;
mod mte;
mod nmi;
mod pauth;
mod permissions;
mod pmu;
mod ras;
mod shown;
mod sme;
mod spe;
mod sve;
mod sysreg128;
mod timer;
mod trace;
mod translation;

use id::{Field, IdRegisters, Level};
use umbra_shared::vcpu::VcpuFeatures;

pub use base::HCR_RW;
pub use mpam::MPAMIDR_HAS_HCR;
pub use pauth::HCR_API_APK;

/// A feature, or what several have in common here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "each variant has a file that says what it is")]
pub enum Name {
    Base,
    El2,
    Aarch32,
    Fp,
    Sve,
    Sme,
    Sme2,
    SmeFa64,
    Fpmr,
    Pauth,
    Mte,
    Csv2,
    Ras,
    RasFaultInjection,
    Hcx,
    Fgt,
    Fgt2,
    Mpam,
    MpamTidr,
    MpamHcr,
    Amu,
    Debug,
    Pmu,
    PmuHpmd,
    Spe,
    Trace,
    TraceFilter,
    Brbe,
    Gic,
    Timer,
    Mops,
    Ls64,
    Gcs,
    Permissions,
    Sysreg128,
    Nmi,
    Translation,
    Instructions,
    ArmCore,
    Vhe,
    TraceIte,
    Hacdbs,
    Fwb,
    Shown64,
    Shown32,
    ShownSve,
    ShownSme,
}

/// Features.
pub const COUNT: usize = Name::ShownSme as usize + 1;

/// All of them, in the order of [`Name`].
pub const ALL: [Feature; COUNT] = [
    base::FEATURE,
    el2::FEATURE,
    aarch32::FEATURE,
    fp::FEATURE,
    sve::FEATURE,
    sme::SME,
    sme::SME2,
    sme::FA64,
    fpmr::FEATURE,
    pauth::FEATURE,
    mte::FEATURE,
    csv2::FEATURE,
    ras::RAS,
    ras::FAULT_INJECTION,
    hcx::FEATURE,
    fgt::FGT,
    fgt::FGT2,
    mpam::MPAM,
    mpam::TRAP_ID,
    mpam::HCR,
    amu::FEATURE,
    debug::FEATURE,
    pmu::PMU,
    pmu::HPMD,
    spe::FEATURE,
    trace::UNIT,
    trace::FILTER,
    brbe::FEATURE,
    gic::FEATURE,
    timer::FEATURE,
    mops::FEATURE,
    ls64::FEATURE,
    gcs::FEATURE,
    permissions::FEATURE,
    sysreg128::FEATURE,
    nmi::FEATURE,
    translation::FEATURE,
    instructions::FEATURE,
    impdef::FEATURE,
    el2::VHE,
    trace::ITE,
    translation::HACDBS,
    fwb::FEATURE,
    shown::AARCH64,
    shown::AARCH32,
    shown::SVE,
    shown::SME,
];

/// What Umbra does about a feature.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Itself.
    pub name: Name,
    /// What the Arm ARM calls it.
    pub arm: &'static str,
    /// Whether a CPU has it, by its ID registers.
    pub is_there: fn(&IdRegisters) -> bool,
    /// Its ID register fields, and what guests are shown.
    pub fields: &'static [Field],
    /// Other features' fields that tell of it, too.
    pub levels: &'static [Level],
    /// Control bits that it brings, per world.
    pub bits: &'static [Bits],
    /// Registers of EL2's that a CPU has with it.
    pub owns: &'static [Control],
    /// Registers of EL0's and EL1's that it brings.
    pub registers: &'static [Register],
    /// Which vCPUs can't be loaded on a CPU that comes late and lacks it.
    pub relied_on: Relied,
}

impl Feature {
    /// One that every CPU has and that brings nothing.
    const fn new(name: Name, arm: &'static str) -> Self {
        Self {
            name,
            arm,
            is_there: |_| true,
            fields: &[],
            levels: &[],
            bits: &[],
            owns: &[],
            registers: &[],
            relied_on: Relied::ByNone,
        }
    }
}

/// Which vCPUs count on a feature of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relied {
    /// None: they aren't shown it, or are asked when they are made.
    ByNone,
    /// Those in AArch64.
    InAarch64,
    /// Those with SVE.
    WithSve,
    /// Those with SME.
    WithSme,
    /// Those in AArch32.
    InAarch32,
    /// All of them.
    ByAll,
}

impl Relied {
    /// Guests that a CPU without the feature can't run, in words.
    pub const fn whose(self) -> Option<&'static str> {
        match self {
            Self::ByNone => None,
            Self::InAarch64 => Some("AArch64 guests"),
            Self::WithSve => Some("guests with SVE"),
            Self::WithSme => Some("guests with SME"),
            Self::InAarch32 => Some("AArch32 guests"),
            Self::ByAll => Some("guests"),
        }
    }
}

/// A set of features. One bit each by construction: its number is the [`Name`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u64);

const _: () = assert!(COUNT <= 64);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(u64::MAX >> (64 - COUNT));

    /// What a CPU with these ID registers has.
    pub fn read(id: &IdRegisters) -> Self {
        ALL.iter().filter(|f| (f.is_there)(id)).fold(Self::NONE, |set, f| set.with(f.name))
    }

    /// The set in a word, for sharing.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of such a word.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// With this one, too.
    #[must_use]
    pub const fn with(self, name: Name) -> Self {
        Self(self.0 | 1 << name as u8)
    }

    /// Whether it is in the set.
    #[inline(always)]
    pub const fn has(self, name: Name) -> bool {
        self.0 >> name as u8 & 1 != 0
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What no guest runs without, of whichever kind.
    pub const SHOWN: Self = Self::NONE
        .with(Name::Shown64)
        .with(Name::Shown32)
        .with(Name::ShownSve)
        .with(Name::ShownSme);

    /// What is here and not there.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it has nothing.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are relied on so.
    const fn relied_on(how: Relied) -> Self {
        let (mut set, mut i) = (Self::NONE, 0);
        while i < COUNT {
            if ALL[i].relied_on as u8 == how as u8 {
                set = set.with(ALL[i].name);
            }
            i += 1;
        }
        set
    }

    /// Those of them that a vCPU counts on.
    pub const fn relied_on_by(self, vcpu: VcpuFeatures) -> Self {
        const IN_AARCH64: Features = Features::relied_on(Relied::InAarch64);
        const WITH_SVE: Features = Features::relied_on(Relied::WithSve);
        const WITH_SME: Features = Features::relied_on(Relied::WithSme);
        const IN_AARCH32: Features = Features::relied_on(Relied::InAarch32);
        const BY_ALL: Features = Features::relied_on(Relied::ByAll);
        let mut set = BY_ALL.0 | if vcpu.aarch32 { IN_AARCH32.0 } else { IN_AARCH64.0 };
        set |= if vcpu.vq.is_some() { WITH_SVE.0 } else { 0 };
        set |= if vcpu.svq.is_some() { WITH_SME.0 } else { 0 };
        Self(self.0 & set)
    }
}

/// A register of EL2's that says what a lower EL may do, or what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the variants are the Arm ARM's register names")]
pub enum Control {
    Hcr,
    Mdcr,
    Cptr,
    Cnthctl,
    IccSre,
    Hstr,
    Vdisr,
    Vsesr,
    Dbgvcr32,
    Hcrx,
    Hfgrtr,
    Hfgwtr,
    Hfgitr,
    Hdfgrtr,
    Hdfgwtr,
    Hafgrtr,
    Hfgrtr2,
    Hfgwtr2,
    Hfgitr2,
    Hdfgrtr2,
    Hdfgwtr2,
    Mpam2,
    Mpamhcr,
    Actlr,
    Hacr,
    Trfcr,
    Trcitecr,
    Brbcr,
    Pmscr,
    Gcscr,
    Smprimap,
    Scxtnum,
    Tfsr,
    Contextidr,
    CnthvCtl,
    Hacdbsbr,
}

/// Controls.
pub const CONTROLS: usize = Control::Hacdbsbr as usize + 1;

impl Control {
    /// All of them.
    pub const ALL: [Self; CONTROLS] = [
        Self::Hcr,
        Self::Mdcr,
        Self::Cptr,
        Self::Cnthctl,
        Self::IccSre,
        Self::Hstr,
        Self::Vdisr,
        Self::Vsesr,
        Self::Dbgvcr32,
        Self::Hcrx,
        Self::Hfgrtr,
        Self::Hfgwtr,
        Self::Hfgitr,
        Self::Hdfgrtr,
        Self::Hdfgwtr,
        Self::Hafgrtr,
        Self::Hfgrtr2,
        Self::Hfgwtr2,
        Self::Hfgitr2,
        Self::Hdfgrtr2,
        Self::Hdfgwtr2,
        Self::Mpam2,
        Self::Mpamhcr,
        Self::Actlr,
        Self::Hacr,
        Self::Trfcr,
        Self::Trcitecr,
        Self::Brbcr,
        Self::Pmscr,
        Self::Gcscr,
        Self::Smprimap,
        Self::Scxtnum,
        Self::Tfsr,
        Self::Contextidr,
        Self::CnthvCtl,
        Self::Hacdbsbr,
    ];

    /// Whether a CPU with these features has the register.
    pub const fn exists(self, features: Features) -> bool {
        let (mut owned, mut i) = (false, 0);
        while i < COUNT {
            let mut n = 0;
            while n < ALL[i].owns.len() {
                owned |= ALL[i].owns[n] as u8 == self as u8 && features.has(ALL[i].name);
                n += 1;
            }
            i += 1;
        }
        // Two features share a register's existence here alone.
        owned && (!matches!(self, Self::Hafgrtr) || features.has(Name::Fgt))
    }
}

/// Bits of a control, by world.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// Of which register.
    pub of: Control,
    /// While the host runs.
    pub host: u64,
    /// While a guest runs.
    pub guest: u64,
    /// Also on a CPU whose ID registers don't tell of the feature: bits that open something, for a host that
    /// may know more of its CPU than hyp does. Where there is nothing to open they are RES0.
    pub always: bool,
    /// What the bits are called.
    pub what: &'static str,
}

impl Bits {
    const fn both(of: Control, bits: u64, what: &'static str) -> Self {
        Self { of, host: bits, guest: bits, always: false, what }
    }

    const fn host(of: Control, host: u64, what: &'static str) -> Self {
        Self { of, host, guest: 0, always: false, what }
    }

    const fn guest(of: Control, guest: u64, what: &'static str) -> Self {
        Self { of, host: 0, guest, always: false, what }
    }

    const fn always(self) -> Self {
        Self { always: true, ..self }
    }
}

/// A register of EL0's or EL1's, or a family of them, and what becomes of it at a world switch.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// Its name, or a family's.
    pub name: &'static str,
    /// What becomes of it.
    pub how: How,
}

/// What becomes of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Each world has its own, moved at each switch by `super::switch`.
    Switched(Optional),
    /// Each world has its own, moved by somebody else.
    SwitchedBy(&'static str),
    /// Trapped by these bits from guests, and hidden in the ID registers they read.
    Trapped(&'static str),
    /// The same for everybody, and read-only below EL2.
    Constant,
}

/// Registers that not every CPU has and that move at each switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the variants are the Arm ARM's register names")]
pub enum Optional {
    Tpidr2El0,
    TrfcrEl1,
    BrbcrEl1,
}

/// How many there are.
pub const OPTIONAL: usize = Optional::BrbcrEl1 as usize + 1;

impl Optional {
    /// All of them.
    pub const ALL: [Self; OPTIONAL] = [Self::Tpidr2El0, Self::TrfcrEl1, Self::BrbcrEl1];
}

/// Which feature each of them comes with, by the features' own word.
pub const OPTIONAL_OF: [Name; OPTIONAL] = {
    let (mut names, mut i) = ([Name::Base; OPTIONAL], 0);
    while i < COUNT {
        let mut n = 0;
        while n < ALL[i].registers.len() {
            if let How::Switched(register) = ALL[i].registers[n].how {
                assert!(matches!(names[register as usize], Name::Base), "in two files");
                names[register as usize] = ALL[i].name;
            }
            n += 1;
        }
        i += 1;
    }
    names
};

const fn register(name: &'static str, how: How) -> Register {
    Register { name, how }
}

#[cfg(test)]
mod tests;
