//! ID registers: the raw ones of a CPU, and what is decided about each field.

#![forbid(unsafe_code)]

use super::{ALL, Features, Name};

/// ID registers: CRm 1 to 7, op2 0 to 7 of op0 3, op1 0, CRn 0; those of AArch32 (CRm 1 to 3) first. What the
/// architecture has not allocated there reads as zero.
pub const REGISTERS: usize = 7 * 8;

/// An ID register, by its place among [`REGISTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the variants are the Arm ARM's register names, less ID_ and _EL1")]
pub enum IdRegister {
    Pfr0 = 0,
    Pfr1 = 1,
    Dfr0 = 2,
    Afr0 = 3,
    Mmfr0 = 4,
    Mmfr1 = 5,
    Mmfr2 = 6,
    Mmfr3 = 7,
    Isar0 = 8,
    Isar1 = 9,
    Isar2 = 10,
    Isar3 = 11,
    Isar4 = 12,
    Isar5 = 13,
    Mmfr4 = 14,
    Isar6 = 15,
    Mvfr0 = 16,
    Mvfr1 = 17,
    Mvfr2 = 18,
    Pfr2 = 20,
    Dfr1 = 21,
    Mmfr5 = 22,
    Aa64Pfr0 = 24,
    Aa64Pfr1 = 25,
    Aa64Pfr2 = 26,
    Aa64Zfr0 = 28,
    Aa64Smfr0 = 29,
    Aa64Fpfr0 = 31,
    Aa64Dfr0 = 32,
    Aa64Dfr1 = 33,
    Aa64Isar0 = 40,
    Aa64Isar1 = 41,
    Aa64Isar2 = 42,
    Aa64Isar3 = 43,
    Aa64Mmfr0 = 48,
    Aa64Mmfr1 = 49,
    Aa64Mmfr2 = 50,
    Aa64Mmfr3 = 51,
    Aa64Mmfr4 = 52,
}

impl IdRegister {
    /// Whether it tells of AArch32.
    pub const fn is_aarch32(self) -> bool {
        (self as usize) < Self::Aa64Pfr0 as usize
    }
}

/// A CPU's ID registers.
#[derive(Clone, Copy, Debug)]
pub struct IdRegisters {
    /// In the order of [`IdRegister`]; those of AArch32 are zero where EL1 can't be AArch32.
    pub registers: [u64; REGISTERS],
    /// SMIDR_EL1, where there is SME.
    pub smidr: u64,
    /// PMCR_EL0.N, where there is an architected PMU.
    pub pmcr_n: u64,
    /// MPAMIDR_EL1, where there is MPAM.
    pub mpamidr: u64,
    /// MIDR_EL1: which core it is.
    pub midr: u64,
}

impl Default for IdRegisters {
    fn default() -> Self {
        Self { registers: [0; REGISTERS], smidr: 0, pmcr_n: 0, mpamidr: 0, midr: 0 }
    }
}

impl IdRegisters {
    /// A register.
    pub const fn get(&self, register: IdRegister) -> u64 {
        self.registers[register as usize]
    }

    /// A four-bit field of a register.
    pub const fn field(&self, register: IdRegister, low: u32) -> u64 {
        self.get(register) >> low & 0xf
    }

    /// Physical address bits, 32 to 48: what lies above 48 is not used.
    pub const fn pa_bits(&self) -> u32 {
        match self.field(IdRegister::Aa64Mmfr0, 0) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        }
    }

    /// What two CPUs have in common, field by field; of what is no field, what this one has.
    #[must_use]
    pub fn common(mut self, other: &Self) -> Self {
        for field in ALL.iter().flat_map(|feature| feature.fields) {
            let value = field.order.common(field.get(&self), field.get(other), field.width);
            let register = &mut self.registers[field.of as usize];
            *register = *register & !(field.mask() << field.low) | value << field.low;
        }
        self
    }

    /// Which guests of a machine with these ID registers find less on this CPU than they are shown.
    pub fn lacks(&self, machine: &Self) -> Features {
        let mut lacks = Features::NONE;
        for field in ALL.iter().flat_map(|feature| feature.fields) {
            let (shown, here) = (field.get(machine), field.get(self));
            if field.order.common(shown, here, field.width) == shown {
                continue;
            }
            let names: &[Name] = match field.shown {
                Shown::Hidden | Shown::Is(_) => &[],
                // Stage 2's size is the machine's for both.
                Shown::PaRange => &[Name::Shown64, Name::Shown32],
                _ if field.of.is_aarch32() => &[Name::Shown32],
                Shown::AsIs | Shown::AtMost(_) => &[Name::Shown64],
                Shown::WithSve => &[Name::ShownSve],
                Shown::WithSme => &[Name::ShownSme],
                Shown::WithSveOrSme | Shown::WithSveAndSme => &[Name::ShownSve, Name::ShownSme],
            };
            lacks = names.iter().fold(lacks, |lacks, &name| lacks.with(name));
        }
        lacks
    }

    /// As of a CPU without these features, which this one has: their fields say so, but not what they share with
    /// features that are there.
    #[must_use]
    pub fn without(mut self, missing: Features) -> Self {
        for feature in ALL.iter().filter(|feature| missing.has(feature.name)) {
            for field in feature.fields.iter().filter(|field| field.tells) {
                self.registers[field.of as usize] &= !(field.mask() << field.low);
            }
            for level in feature.levels {
                let now = self.field(level.of, level.low);
                let value = &mut self.registers[level.of as usize];
                *value &= !(0xf << level.low);
                *value |= now.min(level.without) << level.low;
            }
        }
        self
    }
}

/// How the values of two CPUs compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Fields of four bits in which more is more.
    Unsigned,
    /// The same, with 0xf for "not there".
    Signed,
    /// Fields of four bits in which less is more.
    Inverse,
    /// Each bit is something by itself.
    Flags,
    /// Two that differ have nothing in common.
    Exact,
}

impl Order {
    /// What two CPUs have in common, of `width` bits.
    pub const fn common(self, a: u64, b: u64, width: u32) -> u64 {
        if matches!(self, Self::Flags) {
            return a & b;
        }
        let (mut common, mut low) = (0, 0);
        while low < width {
            let mask = if width - low < 4 { (1 << (width - low)) - 1 } else { 0xf };
            let (a, b) = (a >> low & mask, b >> low & mask);
            let least = match self {
                Self::Exact if a != b => 0,
                // Beside "not there" no value is less.
                Self::Signed if a == 0xf || b == 0xf => 0xf,
                Self::Inverse if a < b => b,
                Self::Inverse => a,
                _ if a < b => a,
                _ => b,
            };
            common |= least << low;
            low += 4;
        }
        common
    }
}

/// A field of an ID register, and what guests are shown of it.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The register.
    pub of: IdRegister,
    /// Its lowest bit.
    pub low: u32,
    /// Bits.
    pub width: u32,
    /// What the Arm ARM calls it.
    pub name: &'static str,
    /// What guests are shown.
    pub shown: Shown,
    /// It is zero on a CPU without the feature.
    pub tells: bool,
    /// How two CPUs' values compare.
    pub order: Order,
}

/// A field of four bits that is another feature's: above this value it tells of this one, too.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// The register.
    pub of: IdRegister,
    /// The field's lowest bit.
    pub low: u32,
    /// The greatest value of a CPU without the feature.
    pub without: u64,
}

/// What guests are shown of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Zero, which in all such fields says "not there".
    Hidden,
    /// What the machine has.
    AsIs,
    /// That, but no more than this.
    AtMost(u64),
    /// This, whatever the machine has.
    Is(u64),
    /// What the machine has, if the vCPU has SVE.
    WithSve,
    /// If it has SME.
    WithSme,
    /// If it has either.
    WithSveOrSme,
    /// If it has both.
    WithSveAndSme,
    /// The size of the guest's physical address space.
    PaRange,
}

impl Field {
    /// Of four bits.
    pub const fn new(of: IdRegister, low: u32, name: &'static str, shown: Shown) -> Self {
        Self { of, low, width: 4, name, shown, tells: true, order: Order::Unsigned }
    }

    /// One in which 0xf says "not there".
    pub const fn signed(self) -> Self {
        Self { order: Order::Signed, ..self }
    }

    /// One in which less is more.
    pub const fn inverse(self) -> Self {
        Self { order: Order::Inverse, ..self }
    }

    /// One in which each bit is by itself.
    pub const fn flags(self) -> Self {
        Self { order: Order::Flags, ..self }
    }

    /// One in which different values have nothing in common.
    pub const fn exact(self) -> Self {
        Self { order: Order::Exact, ..self }
    }

    /// Of another width.
    pub const fn wide(self, width: u32) -> Self {
        Self { width, ..self }
    }

    /// One that a CPU without the feature may have, too.
    pub const fn beside(self) -> Self {
        Self { tells: false, ..self }
    }

    /// Its value.
    pub const fn get(&self, id: &IdRegisters) -> u64 {
        id.get(self.of) >> self.low & self.mask()
    }

    /// As many ones as it has bits.
    pub const fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.width)
    }
}
