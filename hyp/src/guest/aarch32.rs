//! AArch32 at EL1: how its registers lie in AArch64's, what its traps mean, and what an exception
//! entry of its looks like.
//!
//! A guest's banked registers are X0-X30 to EL2 (Arm ARM D1.20.2, "Mapping of the general-purpose
//! registers between the Execution states"), its SPSR_svc, VBAR, DFSR and so on are the AArch64
//! registers of EL1, and syndromes name general-purpose registers by their AArch64 numbers. What
//! AArch64's EL1 lacks is in registers of EL2's: SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq, DACR32_EL2,
//! IFSR32_EL2, FPEXC32_EL2.
//!
//! Pure: the hardware side reads and writes the registers.

#![forbid(unsafe_code)]

use crate::guest::syndrome::{class, ec};

/// LR_abt as an X register.
pub const LR_ABT: usize = 20;
/// LR_und as an X register.
pub const LR_UND: usize = 22;

#[cfg(test)]
const MODE_SVC: u64 = 0x13;
const MODE_ABT: u64 = 0x17;
const MODE_UND: u64 = 0x1b;
/// T32.
const T: u64 = 1 << 5;
const F: u64 = 1 << 6;
const I: u64 = 1 << 7;
const A: u64 = 1 << 8;
/// Big-endian data.
const E: u64 = 1 << 9;
/// IT\[7:2\], and IT\[1:0\].
const IT: u64 = 0x3f << 10 | 3 << 25;
const GE: u64 = 0xf << 16;
/// In SPSR_EL2 only.
const SS: u64 = 1 << 21;
const PAN: u64 = 1 << 22;
const SSBS: u64 = 1 << 23;
/// In SPSR_EL2; in AArch32's own SPSRs it is where SPSR_EL2 has SS.
const DIT: u64 = 1 << 24;
const Q: u64 = 1 << 27;
/// N, Z, C, V.
pub const NZCV: u64 = 0xf << 28;

const SCTLR_V: u64 = 1 << 13;
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_EE: u64 = 1 << 25;
const SCTLR_TE: u64 = 1 << 30;
const SCTLR_DSSBS: u64 = 1 << 31;
const TTBCR_EAE: u64 = 1 << 31;
/// Where SCTLR.V puts the vectors.
const HIGH_VECTORS: u64 = 0xffff_0000;

/// IT\[7:0\]: the condition of the instruction in the upper half, and how many there are to come.
const fn it_state(pstate: u64) -> u64 {
    pstate >> 8 & 0xfc | pstate >> 25 & 3
}

/// PSTATE's bits for IT\[7:0\].
const fn it_bits(it: u64) -> u64 {
    (it & 0xfc) << 8 | (it & 3) << 25
}

/// Whether a condition holds with these flags (Arm ARM, ConditionHolds).
const fn holds(condition: u64, pstate: u64) -> bool {
    let (n, z) = (pstate >> 31 & 1 == 1, pstate >> 30 & 1 == 1);
    let (c, v) = (pstate >> 29 & 1 == 1, pstate >> 28 & 1 == 1);
    let result = match condition >> 1 & 7 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    result != (condition & 1 == 1)
}

/// Whether the instruction that trapped passes its condition. The CPU may trap one that doesn't, and
/// that is then a NOP.
pub const fn condition_passes(esr: u64, pstate: u64) -> bool {
    const CCKNOWNPASS: u64 = 1 << 19;
    let class = class(esr);
    // Classes below 0x10 have CV and COND; so has SMC, if it is not known to have passed.
    if class >= 0x10 && !(class == ec::SMC32 && esr & CCKNOWNPASS != 0) {
        return true;
    }
    let valid = esr >> 24 & 1 == 1;
    if valid {
        return holds(esr >> 20 & 0xf, pstate);
    }
    // T32 without CV: IT says it, if there is one.
    let it = it_state(pstate);
    pstate & T == 0 || it == 0 || holds(it >> 4, pstate)
}

/// PC and PSTATE behind an instruction that trapped with `esr` and was emulated.
pub const fn after_instruction(pc: u64, pstate: u64, esr: u64) -> (u64, u64) {
    let thumb = pstate & T != 0;
    let bytes = if thumb { crate::guest::syndrome::instruction_bytes(esr) } else { 4 };
    let it = it_state(pstate);
    // ITAdvance.
    let it = if it & 7 == 0 { 0 } else { it & 0xe0 | it << 1 & 0x1f };
    let pstate = pstate & !SS;
    let pstate = if thumb { pstate & !IT | it_bits(it) } else { pstate };
    (pc.wrapping_add(bytes) & 0xffff_ffff, pstate)
}

/// An exception to EL1: what its registers become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// PC.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// LR of the mode that is entered.
    pub lr: u64,
    /// SPSR of that mode.
    pub spsr: u64,
}

impl Entry {
    /// UNDEFINED.
    pub const fn undefined(pc: u64, pstate: u64, sctlr: u64, vbar: u64) -> Self {
        let offset = if pstate & T != 0 { 2 } else { 4 };
        Self::new(MODE_UND, 0x04, pc.wrapping_add(offset), pstate, sctlr, vbar)
    }

    /// An abort of the access, or of the fetch, at `pc`.
    pub const fn abort(fetch: bool, pc: u64, pstate: u64, sctlr: u64, vbar: u64) -> Self {
        let (vector, offset) = if fetch { (0x0c, 4) } else { (0x10, 8) };
        Self::new(MODE_ABT, vector, pc.wrapping_add(offset), pstate, sctlr, vbar)
    }

    const fn new(mode: u64, vector: u64, lr: u64, old: u64, sctlr: u64, vbar: u64) -> Self {
        let base = if sctlr & SCTLR_V != 0 { HIGH_VECTORS } else { vbar & 0xffff_ffe0 };
        let dit = if old & DIT != 0 { SS } else { 0 };
        Self {
            pc: base + vector,
            pstate: on_exception(mode, old, sctlr),
            lr: lr & 0xffff_ffff,
            // In AArch32's own format.
            spsr: old & 0xffff_ffff & !(DIT | SS) | dit,
        }
    }
}

/// PSTATE after an exception to Undefined or Abort mode (AArch32.EnterMode).
const fn on_exception(mode: u64, old: u64, sctlr: u64) -> u64 {
    const fn bit(condition: bool, bit: u64) -> u64 {
        if condition { bit } else { 0 }
    }
    old & (NZCV | Q | GE | DIT | PAN | A | F)
        | bit(sctlr & SCTLR_SPAN == 0, PAN)
        | bit(sctlr & SCTLR_DSSBS != 0, SSBS)
        | bit(sctlr & SCTLR_EE != 0, E)
        | bit(sctlr & SCTLR_TE != 0, T)
        | bit(mode == MODE_ABT, A)
        | I
        | mode
}

/// DFSR or IFSR for a synchronous external abort, in the format that TTBCR.EAE selects.
pub const fn fsr_external_abort(ttbcr: u64, write: bool) -> u64 {
    const WNR: u64 = 1 << 11;
    const LPAE: u64 = 1 << 9;
    let status = if ttbcr & TTBCR_EAE != 0 { LPAE | 0x10 } else { 0x08 };
    status | if write { WNR } else { 0 }
}

/// DFAR and IFAR as FAR_EL1, with one of them replaced.
pub const fn far(old: u64, fetch: bool, address: u64) -> u64 {
    if fetch {
        old & 0xffff_ffff | address << 32
    } else {
        old & !0xffff_ffff | address & 0xffff_ffff
    }
}

/// What a coprocessor instruction that trapped accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// MCR, MRC on coprocessor 15: opc1, CRn, CRm, opc2.
    System(u8, u8, u8, u8),
    /// MCRR, MRRC on coprocessor 15: opc1, CRm.
    System64(u8, u8),
    /// MCR, MRC on coprocessor 14: opc1, CRn, CRm, opc2.
    Debug(u8, u8, u8, u8),
    /// MCRR, MRRC on coprocessor 14: opc1, CRm.
    Debug64(u8, u8),
    /// VMRS, VMSR of MVFR0, MVFR1 or MVFR2.
    Mvfr(u8),
}

/// A coprocessor instruction that trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coprocessor {
    /// What it accesses.
    pub access: Access,
    /// Xt; 31 is no register.
    pub register: u8,
    /// Xt2, if it moves two.
    pub second: u8,
    /// Towards the general-purpose registers.
    pub read: bool,
}

impl Coprocessor {
    /// Decodes the syndrome; `None`: no such class (LDC and STC among them), or no such VFP register.
    pub const fn new(esr: u64) -> Option<Self> {
        let (opc1, crn) = ((esr >> 14 & 7) as u8, (esr >> 10 & 0xf) as u8);
        let (crm, opc2) = ((esr >> 1 & 0xf) as u8, (esr >> 17 & 7) as u8);
        let access = match class(esr) {
            ec::CP15 => Access::System(opc1, crn, crm, opc2),
            ec::CP14 => Access::Debug(opc1, crn, crm, opc2),
            ec::CP15_64 => Access::System64((esr >> 16 & 0xf) as u8, crm),
            ec::CP14_64 => Access::Debug64((esr >> 16 & 0xf) as u8, crm),
            // VMRS and VMSR have the VFP register's number in CRn's place.
            ec::FP_ID if crn >= 5 && crn <= 7 => Access::Mvfr(7 - crn),
            _ => return None,
        };
        Some(Self {
            access,
            register: (esr >> 5 & 0x1f) as u8,
            second: (esr >> 10 & 0x1f) as u8,
            read: esr & 1 == 1,
        })
    }

    /// Its place among the ID registers ([`crate::world::idregs::table`]) if it reads one.
    pub const fn id_register(self) -> Option<usize> {
        match self.access {
            Access::System(0, 0, crm @ 1..=7, opc2) if self.read => {
                Some(8 * (crm as usize - 1) + opc2 as usize)
            }
            Access::Mvfr(n) if self.read => Some(16 + n as usize),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EL1_UND: u64 = 0x1b;

    /// ESR_EL2 of an instruction of 32 bits with a condition.
    fn esr(class: u64, condition: u64) -> u64 {
        class << 26 | 1 << 25 | 1 << 24 | condition << 20
    }

    #[test]
    fn conditions() {
        let (n, z, c, v) = (1 << 31, 1 << 30, 1 << 29, 1 << 28);
        for (condition, passes, fails) in [
            (0x0, z, 0),
            (0x1, 0, z),
            (0x2, c, 0),
            (0x3, 0, c),
            (0x4, n, 0),
            (0x5, 0, n),
            (0x6, v, 0),
            (0x7, 0, v),
            (0x8, c, c | z),
            (0x9, z, c),
            (0xa, n | v, n),
            (0xb, v, n | v),
            (0xc, 0, z),
            (0xd, z, 0),
        ] {
            for class in [ec::WFX, ec::CP15, ec::CP15_64, ec::CP14, ec::FP_ID] {
                assert!(condition_passes(esr(class, condition), passes), "{condition:#x}");
                assert!(!condition_passes(esr(class, condition), fails), "{condition:#x}");
            }
            // An abort has no condition; an SMC only if it may have failed it.
            assert!(condition_passes(esr(ec::DATA_ABORT, condition), fails));
            assert!(condition_passes(esr(ec::SMC32, condition), fails));
            assert!(!condition_passes(esr(ec::SMC32, condition) | 1 << 19, fails));
        }
        for flags in 0..16 {
            assert!(condition_passes(esr(ec::CP15, 0xe), flags << 28));
            assert!(condition_passes(esr(ec::CP15, 0xf), flags << 28));
        }
    }

    #[test]
    fn t32_without_a_condition_in_the_syndrome_has_it_in_it_state() {
        let esr = ec::CP15 << 26;
        // IT EQ, one instruction.
        let it_eq = T | it_bits(0x08);
        assert!(!condition_passes(esr, it_eq));
        assert!(condition_passes(esr, it_eq | 1 << 30));
        assert!(condition_passes(esr, T), "outside an IT block");
        assert!(condition_passes(esr, it_bits(0x08)), "A32 has none");
    }

    #[test]
    fn instructions_are_stepped_over() {
        let long = esr(ec::CP15, 0xe);
        let short = long & !(1 << 25);
        assert_eq!(after_instruction(0x8000, MODE_SVC, long), (0x8004, MODE_SVC));
        // A32 has instructions of one size only, whatever IL says.
        assert_eq!(after_instruction(0x8000, MODE_SVC | SS, short), (0x8004, MODE_SVC));
        assert_eq!(after_instruction(0x8000, MODE_SVC | T, long), (0x8004, MODE_SVC | T));
        assert_eq!(after_instruction(0x8000, MODE_SVC | T, short), (0x8002, MODE_SVC | T));
        assert_eq!(after_instruction(0xffff_fffc, MODE_SVC, long).0, 0);
        // ITTE EQ: two that want EQ, one that wants NE, and it is over.
        let mut pstate = MODE_SVC | T | it_bits(0x06);
        for expected in [0x0c, 0x18, 0] {
            pstate = after_instruction(0, pstate, short).1;
            assert_eq!(it_state(pstate), expected);
        }
        assert_eq!(pstate, MODE_SVC | T);
    }

    #[test]
    fn undefined_in_both_instruction_sets() {
        let entry = Entry::undefined(0x8000_1000, 0x6000_0013, 0, 0x4000);
        let pstate = 0x6000_0000 | PAN | I | EL1_UND;
        assert_eq!(
            entry,
            Entry { pc: 0x4004, pstate, lr: 0x8000_1004, spsr: 0x6000_0013 },
            "A32; PAN because SPAN is clear"
        );
        let sctlr = SCTLR_V | SCTLR_SPAN | SCTLR_TE | SCTLR_EE;
        let old = MODE_SVC | T | it_bits(0x55) | E;
        let entry = Entry::undefined(0x8000_1002, old, sctlr, 0x4000);
        assert_eq!((entry.pc, entry.lr, entry.spsr), (0xffff_0004, 0x8000_1004, old));
        assert_eq!(entry.pstate, T | E | I | EL1_UND, "IT is over");
    }

    #[test]
    fn aborts() {
        let vbar = 0x8000_0020;
        let data = Entry::abort(false, 0x100, 0x10, SCTLR_SPAN, vbar);
        assert_eq!((data.pc, data.lr, data.spsr), (0x8000_0030, 0x108, 0x10));
        assert_eq!(data.pstate, A | I | 0x17);
        let fetch = Entry::abort(true, 0x100, 0x10 | T, SCTLR_SPAN, vbar);
        assert_eq!((fetch.pc, fetch.lr, fetch.spsr), (0x8000_002c, 0x104, 0x30));
        assert_eq!(fsr_external_abort(0, true), 0x808);
        assert_eq!(fsr_external_abort(1 << 31, false), 0x210);
        assert_eq!(far(0x1111_1111_2222_2222, true, 0x3333_3333), 0x3333_3333_2222_2222);
        assert_eq!(far(0x1111_1111_2222_2222, false, 0x3333_3333), 0x1111_1111_3333_3333);
    }

    #[test]
    fn dit_is_elsewhere_in_an_spsr_of_aarch32() {
        let entry = Entry::undefined(0, MODE_SVC | DIT, SCTLR_SPAN, 0);
        assert_eq!(entry.spsr, MODE_SVC | 1 << 21);
        assert_eq!(entry.pstate & (DIT | SS), DIT);
        assert_eq!(Entry::undefined(0, MODE_SVC | SS, SCTLR_SPAN, 0).spsr, MODE_SVC);
    }

    #[test]
    fn coprocessor_accesses() {
        // MRC p15, 0, r3, c0, c1, 4 (ID_MMFR0).
        let id = esr(ec::CP15, 0xe) | 4 << 17 | 3 << 5 | 1 << 1 | 1;
        let access = Coprocessor::new(id).unwrap();
        assert_eq!(access.access, Access::System(0, 0, 1, 4));
        assert_eq!((access.register, access.read), (3, true));
        assert_eq!(access.id_register(), Some(4));
        assert_eq!(Coprocessor::new(id & !1).unwrap().id_register(), None, "a write");
        // MCRR p15, 0, r2, r3, c12 (ICC_SGI1R).
        let sgi = esr(ec::CP15_64, 0xe) | 3 << 10 | 2 << 5 | 12 << 1;
        let access = Coprocessor::new(sgi).unwrap();
        assert_eq!(access.access, Access::System64(0, 12));
        assert_eq!((access.register, access.second, access.read), (2, 3, false));
        // VMRS r0, MVFR0 and MVFR2; FPSID is none of them.
        for (number, index) in [(7, 16), (5, 18)] {
            let vmrs = esr(ec::FP_ID, 0xe) | number << 10 | 1;
            assert_eq!(Coprocessor::new(vmrs).unwrap().id_register(), Some(index));
        }
        assert_eq!(Coprocessor::new(esr(ec::FP_ID, 0xe) | 1), None);
        assert_eq!(Coprocessor::new(esr(ec::CP14_MEMORY, 0xe)), None);
    }

    proptest! {
        #[test]
        fn an_exception_is_always_a_privileged_mode_with_interrupts_masked(
            pc: u64, old: u64, sctlr: u64, vbar: u64, fetch: bool,
        ) {
            for entry in [
                Entry::undefined(pc, old, sctlr, vbar),
                Entry::abort(fetch, pc, old, sctlr, vbar),
            ] {
                prop_assert!(entry.pstate & 0x1f == MODE_UND || entry.pstate & 0x1f == MODE_ABT);
                prop_assert!(entry.pstate & I != 0 && entry.pstate & IT == 0);
                prop_assert!(entry.pstate >> 32 == 0 && entry.pc >> 32 == 0);
                prop_assert!(entry.lr >> 32 == 0 && entry.spsr >> 32 == 0);
            }
        }

        #[test]
        fn an_id_register_is_always_in_the_table(esr: u64) {
            if let Some(index) = Coprocessor::new(esr).and_then(Coprocessor::id_register) {
                prop_assert!(index < crate::world::features::id::REGISTERS);
            }
        }

        #[test]
        fn stepping_over_changes_nothing_but_pc_and_it(pc: u32, old: u32, esr: u64) {
            let (next, pstate) = after_instruction(pc.into(), old.into(), esr);
            prop_assert_eq!(pstate & !(IT | SS), u64::from(old) & !(IT | SS));
            prop_assert!([2, 4].contains(&(next as u32).wrapping_sub(pc)));
        }
    }
}
