//! What a guest reads from the ID registers (HCR_EL2.TID3 traps them).
//!
//! An allow-list: a field is shown only if a feature's file says so ([`super::features`]), which means that its
//! state is switched or that it has none. Everything else reads as zero, fields of later architectures included.
//!
//! AArch64's and AArch32's registers have one numbering. A guest finds those of its own execution state;
//! the others read as zero.

#![forbid(unsafe_code)]

use super::features::ALL;
use super::features::id::{Field, IdRegister, IdRegisters, REGISTERS, Shown};
use umbra_shared::vcpu::VcpuFeatures;

/// What one guest may use, of what the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// What it has.
    pub features: VcpuFeatures,
    /// Bits of its physical address space, as ID_AA64MMFR0_EL1.PARange encodes them.
    pub pa_range: u64,
}

/// What is decided about the fields of one register, added up.
#[derive(Clone, Copy, Debug)]
struct Masks {
    as_is: u64,
    with_sve: u64,
    with_sme: u64,
    with_either: u64,
    with_both: u64,
    constant: u64,
}

const MASKS: [Masks; REGISTERS] = {
    const NONE: Masks =
        Masks { as_is: 0, with_sve: 0, with_sme: 0, with_either: 0, with_both: 0, constant: 0 };
    let mut masks = [NONE; REGISTERS];
    let mut i = 0;
    while i < ALL.len() {
        let mut n = 0;
        while n < ALL[i].fields.len() {
            let field = ALL[i].fields[n];
            let (mask, of) = (field.mask() << field.low, &mut masks[field.of as usize]);
            match field.shown {
                Shown::AsIs => of.as_is |= mask,
                Shown::WithSve => of.with_sve |= mask,
                Shown::WithSme => of.with_sme |= mask,
                Shown::WithSveOrSme => of.with_either |= mask,
                Shown::WithSveAndSme => of.with_both |= mask,
                Shown::Is(value) => of.constant |= value << field.low,
                Shown::Hidden | Shown::AtMost(_) | Shown::PaRange => {}
            }
            n += 1;
        }
        i += 1;
    }
    masks
};

/// Those few fields of which a guest is shown something else than the machine has, by a computation.
const COMPUTED: [Option<Field>; 4] = {
    let (mut computed, mut count) = ([None; 4], 0);
    let mut i = 0;
    while i < ALL.len() {
        let mut n = 0;
        while n < ALL[i].fields.len() {
            let field = ALL[i].fields[n];
            if matches!(field.shown, Shown::AtMost(_) | Shown::PaRange) {
                computed[count] = Some(field);
                count += 1;
            }
            n += 1;
        }
        i += 1;
    }
    computed
};

/// What the guest reads from each register: CRm 1 to 7, op2 0 to 7.
pub fn table(id: &IdRegisters, guest: Guest) -> [u64; REGISTERS] {
    let (sve, sme) = (guest.features.vq.is_some(), guest.features.svq.is_some());
    let aarch64 = IdRegister::Aa64Pfr0 as usize;
    let own = if guest.features.aarch32 { 0..aarch64 } else { aarch64..REGISTERS };
    let mut table = [0; REGISTERS];
    for n in own.clone() {
        let of = &MASKS[n];
        let mut shown = of.as_is;
        shown |= if sve { of.with_sve } else { 0 };
        shown |= if sme { of.with_sme } else { 0 };
        shown |= if sve || sme { of.with_either } else { 0 };
        shown |= if sve && sme { of.with_both } else { 0 };
        table[n] = id.registers[n] & shown | of.constant;
    }
    for field in COMPUTED.iter().flatten().filter(|field| own.contains(&(field.of as usize))) {
        let here = id.get(field.of) >> field.low & field.mask();
        let value = match field.shown {
            Shown::AtMost(most) => here.min(most),
            Shown::PaRange => guest.pa_range,
            _ => 0,
        };
        table[field.of as usize] |= value << field.low;
    }
    table
}

/// What a guest with SME reads from SMIDR_EL1: implementer and revision. Not SMPS, for the priorities are
/// the host's, nor which CPUs share an SMCU.
pub const fn smidr(id: &IdRegisters) -> u64 {
    id.smidr & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::features::id::IdRegister::*;
    use proptest::prelude::*;
    use umbra_shared::vl::Vq;

    fn everything() -> IdRegisters {
        let mut id =
            IdRegisters { registers: [0x1111_1111_1111_1111; REGISTERS], ..Default::default() };
        id.registers[Aa64Pfr0 as usize] |= 0x2000_0000_0000_0000 | 2 << 56;
        id.smidr = 0x1111_1111_1111_1111;
        id
    }

    const AARCH64: Guest = Guest { features: VcpuFeatures::FPSIMD, pa_range: 2 };
    const AARCH32: Guest = Guest { features: VcpuFeatures::AARCH32, pa_range: 2 };

    fn read(id: &IdRegisters, guest: Guest, register: IdRegister) -> u64 {
        table(id, guest)[register as usize]
    }

    fn field(id: &IdRegisters, guest: Guest, register: IdRegister, low: u32) -> u64 {
        read(id, guest, register) >> low & 0xf
    }

    fn with(sve: bool, sme: bool) -> Guest {
        let length = |has: bool| has.then_some(Vq::MIN);
        let features = VcpuFeatures { vq: length(sve), svq: length(sme), aarch32: false };
        Guest { features, pa_range: 2 }
    }

    #[test]
    fn what_is_trapped_is_hidden() {
        let id = everything();
        for (register, low, name) in [
            (Aa64Pfr0, 8, "EL2"),
            (Aa64Pfr0, 12, "EL3"),
            (Aa64Pfr0, 28, "RAS"),
            (Aa64Pfr0, 32, "SVE"),
            (Aa64Pfr0, 40, "MPAM"),
            (Aa64Pfr0, 44, "AMU"),
            (Aa64Pfr1, 8, "MTE"),
            (Aa64Pfr1, 12, "RAS_frac"),
            (Aa64Pfr1, 24, "SME"),
            (Aa64Pfr1, 44, "GCS"),
            (Aa64Pfr1, 32, "CSV2_frac"),
            (Aa64Isar1, 60, "LS64"),
            (Aa64Mmfr1, 8, "VH"),
        ] {
            assert_eq!(field(&id, AARCH64, register, low), 0, "{name}");
        }
        assert_eq!(field(&id, AARCH64, Aa64Pfr0, 56), 1, "CSV2 without SCXTNUM");
        assert_eq!(read(&id, AARCH64, Aa64Dfr0), 6, "no PMU, SPE, trace");
        assert_eq!(field(&id, AARCH64, Aa64Mmfr0, 0), 2, "its own address space");
    }

    #[test]
    fn sve_and_sme_are_shown_to_those_who_have_them() {
        let id = everything();
        for (sve, sme) in [(false, false), (false, true), (true, false), (true, true)] {
            let guest = with(sve, sme);
            assert_eq!(field(&id, guest, Aa64Pfr0, 32) != 0, sve);
            assert_eq!(field(&id, guest, Aa64Pfr1, 24) != 0, sme);
            assert_eq!(read(&id, guest, Aa64Zfr0) != 0, sve || sme);
            assert_eq!(read(&id, guest, Aa64Smfr0) != 0, sme);
        }
        assert_eq!(smidr(&id), 0x1111_0000);
    }

    /// Linux told user space of SVE instructions that a CPU with SME alone doesn't have (r47).
    #[test]
    fn r47_sme_alone_shows_no_instructions_of_sve() {
        let id = everything();
        for (low, name) in
            [(4, "AES"), (16, "BitPerm"), (32, "SHA3"), (40, "SM4"), (52, "F32MM"), (56, "F64MM")]
        {
            assert_eq!(field(&id, with(false, true), Aa64Zfr0, low), 0, "{name}");
            assert_eq!(field(&id, with(true, true), Aa64Zfr0, low), 1, "{name}");
        }
        for (low, name) in [(0, "SVEver"), (20, "BF16"), (44, "I8MM")] {
            assert_eq!(field(&id, with(false, true), Aa64Zfr0, low), 1, "{name}");
        }
    }

    #[test]
    fn fpmr_is_shown_where_it_is() {
        for fpmr in [0, 1] {
            let mut id = everything();
            id.registers[Aa64Pfr2 as usize] = fpmr << 32 | 0xf;
            id.registers[Aa64Fpfr0 as usize] = if fpmr == 1 { 7 << 29 } else { 0 };
            assert_eq!(read(&id, AARCH64, Aa64Pfr2), fpmr << 32);
            assert_eq!(read(&id, AARCH64, Aa64Fpfr0), id.get(Aa64Fpfr0));
        }
    }

    #[test]
    fn a_guest_finds_its_own_execution_state() {
        let id = everything();
        for n in 0..REGISTERS {
            let aarch32 = n < Aa64Pfr0 as usize;
            assert!(!aarch32 || table(&id, AARCH64)[n] == 0, "{n}");
            assert!(aarch32 || table(&id, AARCH32)[n] == 0, "{n}");
        }
    }

    #[test]
    fn what_is_trapped_is_hidden_in_aarch32() {
        let id = everything();
        for (register, low, name) in [
            (Pfr0, 12, "T32EE"),
            (Pfr0, 20, "AMU"),
            (Pfr0, 28, "RAS"),
            (Pfr1, 4, "Security"),
            (Pfr1, 12, "Virtualization"),
            (Dfr0, 24, "PerfMon"),
            (Dfr0, 12, "CopTrc"),
            (Dfr0, 28, "TraceFilt"),
            (Isar4, 12, "SMC"),
            (Mmfr4, 28, "EVT"),
            (Pfr2, 8, "RAS_frac"),
            (Dfr1, 0, "MTPMU"),
        ] {
            assert_eq!(field(&id, AARCH32, register, low), 0, "{name}");
        }
        for (register, low, name) in
            [(Pfr0, 0, "A32"), (Pfr1, 16, "GenTimer"), (Mvfr0, 0, "SIMDReg"), (Mvfr1, 8, "SIMDLS")]
        {
            assert_eq!(field(&id, AARCH32, register, low), 1, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_guest_is_never_shown_more_than_the_machine_has(
            registers in proptest::collection::vec(any::<u64>(), REGISTERS), sve: bool, sme: bool, aarch32: bool,
        ) {
            let mut id = IdRegisters::default();
            id.registers.copy_from_slice(&registers);
            let mut guest = with(sve && !aarch32, sme && !aarch32);
            guest.features.aarch32 = aarch32;
            let table = table(&id, guest);
            for (n, (shown, has)) in table.into_iter().zip(id.registers).enumerate() {
                let beside = match n {
                    // CSV2 may be lowered within its field; EL0 and EL1 are always there.
                    _ if n == Aa64Pfr0 as usize => 0x11 | 0xf << 56,
                    // HAFDBS may be lowered within its field.
                    _ if n == Aa64Mmfr1 as usize => 0xf,
                    _ if n == Aa64Mmfr0 as usize => 2,
                    _ if n == Aa64Dfr0 as usize || n == Dfr0 as usize => 6,
                    _ if n == Pfr0 as usize => 0xf << 16,
                    // What EL2 and EL3 are called in their absence.
                    _ if n == Pfr1 as usize => 1 << 20 | 1 << 24,
                    _ => 0,
                };
                prop_assert_eq!(shown & !(has | beside), 0, "{}", n);
            }
        }
    }
}
