//! Decoding what trapped (ESR_EL2) and computing what a lower EL's exception entry looks like.
//!
//! Pure: the hardware side reads and writes the registers.

#![forbid(unsafe_code)]

/// ESR_ELx.EC values that hyp knows (Arm ARM D24.2.40).
pub mod ec {
    /// WFI, WFE and kin.
    pub const WFX: u64 = 0x01;
    /// MCR or MRC on coprocessor 15, from AArch32.
    pub const CP15: u64 = 0x03;
    /// MCRR or MRRC on coprocessor 15.
    pub const CP15_64: u64 = 0x04;
    /// MCR or MRC on coprocessor 14.
    pub const CP14: u64 = 0x05;
    /// LDC or STC on coprocessor 14.
    pub const CP14_MEMORY: u64 = 0x06;
    /// Advanced SIMD and floating-point.
    pub const FP: u64 = 0x07;
    /// VMRS of an ID register, from AArch32.
    pub const FP_ID: u64 = 0x08;
    /// Pointer authentication.
    pub const PAUTH: u64 = 0x09;
    /// MCRR or MRRC on coprocessor 14.
    pub const CP14_64: u64 = 0x0c;
    /// HVC from AArch32.
    pub const HVC32: u64 = 0x12;
    /// SMC from AArch32.
    pub const SMC32: u64 = 0x13;
    /// HVC from AArch64.
    pub const HVC64: u64 = 0x16;
    /// SMC from AArch64.
    pub const SMC64: u64 = 0x17;
    /// MSR, MRS, system instructions.
    pub const SYSREG: u64 = 0x18;
    /// SVE.
    pub const SVE: u64 = 0x19;
    /// SME.
    pub const SME: u64 = 0x1d;
    /// Instruction abort from a lower EL.
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    /// Data abort from a lower EL.
    pub const DATA_ABORT: u64 = 0x24;
    /// SError.
    pub const SERROR: u64 = 0x2f;
}

/// The exception class.
pub const fn class(esr: u64) -> u64 {
    esr >> 26 & 0x3f
}

/// Bytes of the instruction that trapped (IL): a T32 instruction of the host's EL0 may have two.
pub const fn instruction_bytes(esr: u64) -> u64 {
    if esr >> 25 & 1 == 1 { 4 } else { 2 }
}

/// The syndrome of a data or instruction abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort(u64);

impl Abort {
    /// Wraps ESR_EL2.
    pub const fn new(esr: u64) -> Self {
        Self(esr)
    }

    /// DFSC or IFSC.
    const fn status(self) -> u64 {
        self.0 & 0x3f
    }

    /// A translation fault, at any level: -1 (FEAT_LPA2) and -2 (FEAT_D128) have codes of their own (Arm ARM D24.2.40,
    /// ISS encoding for an exception from a Data Abort, DFSC). Hyp's stage 2 begins below both, but of a walk of stage 1
    /// an implementation may say at which level of stage 1 it was.
    pub const fn is_translation(self) -> bool {
        // In this order, as nearly all are the first.
        self.0 & 0x3c == 0x04 || self.0 & 0x3e == 0x2a
    }

    /// A translation, access flag or permission fault, or an address size fault, at any level: what stage 2 causes.
    pub const fn is_stage2(self) -> bool {
        matches!(self.status(), 0x00..=0x0f | 0x29..=0x2c)
    }

    /// The access, if ISS says all that is needed to emulate it.
    pub const fn access(self) -> Option<Access> {
        let valid = self.0 >> 24 & 1 == 1;
        let cache_maintenance = self.0 >> 8 & 1 == 1;
        let table_walk = self.0 >> 7 & 1 == 1;
        if !valid || cache_maintenance || table_walk {
            return None;
        }
        Some(Access {
            size_log2: self.0 >> 22 & 3,
            sign: self.0 >> 21 & 1 == 1,
            register: (self.0 >> 16 & 0x1f) as u8,
            wide: self.0 >> 15 & 1 == 1,
            write: self.0 >> 6 & 1 == 1,
        })
    }
}

/// A load or store of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// log2 of the bytes.
    pub size_log2: u64,
    /// A load sign-extends.
    pub sign: bool,
    /// Xt; 31 is XZR.
    pub register: u8,
    /// A load extends to 64 bits, not 32.
    pub wide: bool,
    /// It is a store.
    pub write: bool,
}

/// What a load of `bytes` bytes puts into its register.
pub const fn extend(data: u64, bytes: u8, sign: bool, wide: bool) -> u64 {
    let bits = 8 * bytes as u32;
    let shift = 64 - bits;
    let value =
        if sign { ((data << shift) as i64 >> shift) as u64 } else { data << shift >> shift };
    if wide { value } else { value & 0xffff_ffff }
}

/// The data of an access of `bytes` bytes as a device sees it, or the other way round: a big-endian access
/// has its first byte in the register's uppermost of them. What lies above them in `data` doesn't matter.
pub const fn device_order(data: u64, bytes: u8, big_endian: bool) -> u64 {
    if big_endian { data.swap_bytes() >> (64 - 8 * bytes as u32) } else { data }
}

/// The IPA of a stage-2 fault: HPFAR_EL2.FIPA and the offset in FAR_EL2.
pub const fn fault_ipa(hpfar: u64, far: u64) -> u64 {
    (hpfar & 0xfff_ffff_fff0) << 8 | far & 0xfff
}

/// Whether a trapped wait (EC 0x01) has a deadline: WFIT, WFET (ISS.TI bit 1).
pub const fn wait_has_deadline(esr: u64) -> bool {
    esr & 2 != 0
}

/// A trapped MSR, MRS or system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysReg {
    /// Op0.
    pub op0: u8,
    /// Op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// Op2.
    pub op2: u8,
    /// Xt; 31 is XZR.
    pub register: u8,
    /// MRS.
    pub read: bool,
}

impl SysReg {
    /// Decodes ISS.
    pub const fn new(esr: u64) -> Self {
        Self {
            op0: (esr >> 20 & 3) as u8,
            op1: (esr >> 14 & 7) as u8,
            crn: (esr >> 10 & 0xf) as u8,
            crm: (esr >> 1 & 0xf) as u8,
            op2: (esr >> 17 & 7) as u8,
            register: (esr >> 5 & 0x1f) as u8,
            read: esr & 1 == 1,
        }
    }

    /// DC ZVA, DC GVA, DC GZVA: what HCR_EL2.TDZ traps.
    pub const fn zeroes_a_block(self) -> bool {
        matches!((self.op0, self.op1, self.crn, self.crm, self.op2), (1, 3, 7, 4, 1 | 3 | 4))
    }
}

impl SysReg {
    /// One of the keys of pointer authentication (AP*Key*_EL1).
    pub const fn is_pauth_key(self) -> bool {
        self.op0 == 3 && self.op1 == 0 && self.crn == 2 && self.crm >= 1 && self.crm <= 3
    }
}

/// An MRS of an ID register (op0 3, op1 0, CRn 0, CRm 1 to 7) that trapped with EC 0x18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRead {
    /// 8 * (CRm - 1) + op2.
    pub index: usize,
    /// Xt; 31 is XZR.
    pub register: u8,
}

impl IdRead {
    /// Decodes ISS; `None`: another access.
    #[inline]
    pub const fn new(esr: u64) -> Option<Self> {
        // op0, op1, CRn and the direction.
        const FIELDS: u64 = 3 << 20 | 7 << 14 | 0xf << 10 | 1;
        const READ: u64 = 3 << 20 | 1;
        let crm = esr >> 1 & 0xf;
        if esr & FIELDS != READ || crm < 1 || crm > 7 {
            return None;
        }
        let index = (8 * (crm - 1) + (esr >> 17 & 7)) as usize;
        Some(Self { index, register: (esr >> 5 & 0x1f) as u8 })
    }
}

/// The syndrome of an SError that was found pending: EC, IL and, where FEAT_RAS deferred it, DISR_EL1's IDS and
/// syndrome (Arm ARM, "DISR_EL1": bits 24, 12:9 and 5:0 are as in ESR_ELx). Without it nothing is known.
pub const fn pending_serror(disr: u64) -> u64 {
    ec::SERROR << 26 | 1 << 25 | disr & (1 << 24 | 0xf << 9 | 0x3f)
}

/// ESR_EL1 for UNDEFINED: EC 0, IL.
pub const ESR_UNDEFINED: u64 = 1 << 25;

/// ESR_EL1 for a synchronous external abort on an access that trapped with `esr`.
pub const fn esr_external_abort(esr: u64, from_el0: bool) -> u64 {
    let instruction = class(esr) == ec::INSTRUCTION_ABORT;
    let class = match (instruction, from_el0) {
        (true, true) => 0x20,
        (true, false) => 0x21,
        (false, true) => 0x24,
        (false, false) => 0x25,
    };
    let write = if instruction { 0 } else { esr & 1 << 6 };
    // IL as it was; DFSC/IFSC 0b010000.
    class << 26 | esr & 1 << 25 | write | 0x10
}

/// ESR_EL1 for the host's access to memory that is not its own, which trapped with `esr` and has this address. A
/// synchronous external abort; but of an access to its kernel's half of addresses a permission fault at level 3: Linux reads over the
/// end of a page where it may (`load_unaligned_zeropad`) and mends a fault there by its table of exceptions, which it asks for no
/// external abort (`do_sea`). For an address that user space has mapped it would ask for the page again, for ever.
pub const fn esr_host_abort(esr: u64, far: u64, from_el0: bool) -> u64 {
    /// VA\[55\]: the half of TTBR1_EL1.
    const UPPER: u64 = 1 << 55;
    let abort = esr_external_abort(esr, from_el0);
    let is_kernels = !from_el0 && far & UPPER != 0 && class(esr) == ec::DATA_ABORT;
    // DFSC 0b001111.
    if is_kernels { abort & !0x3f | 0x0f } else { abort }
}

/// Whether an abort from this PSTATE is one of an access to data by EL1: no fetch, and not of a walk of its stage 1 (S1PTW).
pub const fn is_kernels_data(esr: u64, spsr: u64) -> bool {
    const S1PTW: u64 = 1 << 7;
    class(esr) == ec::DATA_ABORT && esr & S1PTW == 0 && !pstate::is_el0(spsr)
}

/// PSTATE fields in SPSR format.
pub mod pstate {
    /// Exception level and stack pointer: M\[3:0\], and M\[4] for AArch32.
    pub const MODE: u64 = 0x1f;
    /// EL1 with SP_EL1.
    pub const EL1H: u64 = 5;
    /// D, A, I, F.
    pub const DAIF: u64 = 0xf << 6;
    /// Branch target type.
    pub const BTYPE: u64 = 3 << 10;
    /// Software step.
    pub const SS: u64 = 1 << 21;
    const SSBS: u64 = 1 << 12;
    const ALLINT: u64 = 1 << 13;
    const PAN: u64 = 1 << 22;
    const DIT: u64 = 1 << 24;
    const TCO: u64 = 1 << 25;
    const NZCV: u64 = 0xf << 28;
    const SCTLR_SPAN: u64 = 1 << 23;
    const SCTLR_DSSBS: u64 = 1 << 44;
    const SCTLR_SPINTMASK: u64 = 1 << 62;

    /// PSTATE after an exception to EL1 (Arm ARM D1.3.1, AArch64.TakeException).
    pub const fn on_exception(old: u64, sctlr_el1: u64) -> u64 {
        let pan = if sctlr_el1 & SCTLR_SPAN == 0 { PAN } else { old & PAN };
        let ssbs = if sctlr_el1 & SCTLR_DSSBS != 0 { SSBS } else { 0 };
        let allint = if sctlr_el1 & SCTLR_SPINTMASK == 0 { ALLINT } else { 0 };
        // The CPU sets TCO where it has MTE and ALLINT where it has NMI, whatever its ID registers show;
        // elsewhere both are RES0.
        old & (NZCV | DIT) | TCO | allint | pan | ssbs | DAIF | EL1H
    }

    /// EL0, in either execution state.
    pub const fn is_el0(pstate: u64) -> bool {
        pstate & 0xf == 0
    }

    /// AArch32 state.
    pub const fn is_aarch32(pstate: u64) -> bool {
        pstate & 0x10 != 0
    }

    /// Whether data accesses are big-endian: PSTATE.E in AArch32, SCTLR_EL1.EE or E0E in AArch64.
    pub const fn is_big_endian(pstate: u64, sctlr_el1: u64) -> bool {
        let bit = if is_aarch32(pstate) {
            pstate >> 9
        } else if is_el0(pstate) {
            sctlr_el1 >> 24
        } else {
            sctlr_el1 >> 25
        };
        bit & 1 == 1
    }

    /// PSTATE behind an instruction that was emulated.
    pub const fn after_instruction(old: u64) -> u64 {
        old & !(BTYPE | SS)
    }
}

/// Where EL1 takes a synchronous exception from a context with this PSTATE.
pub const fn vector(vbar_el1: u64, old_pstate: u64) -> u64 {
    let offset = match old_pstate & pstate::MODE {
        0b00101 => 0x200,
        0b00100 => 0x000,
        mode if mode & 0x10 != 0 => 0x600,
        _ => 0x400,
    };
    (vbar_el1 & !0x7ff) + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_serror_has_what_was_deferred_and_no_more() {
        assert_eq!(pending_serror(0), 0xbe00_0000);
        // A (63) says that there is one, and is no part of it.
        assert_eq!(pending_serror(1 << 63 | 0x111), 0xbe00_0011);
        assert_eq!(pending_serror(u64::MAX), 0xbf00_1e3f);
    }

    #[test]
    fn reads_of_id_registers_are_told_from_other_accesses() {
        for iss in 0..1u64 << 22 {
            let r = SysReg::new(iss);
            let id = r.read && (r.op0, r.op1, r.crn) == (3, 0, 0) && (1..=7).contains(&r.crm);
            let expected = id.then(|| IdRead {
                index: usize::from(8 * (r.crm - 1) + r.op2),
                register: r.register,
            });
            assert_eq!(IdRead::new(iss), expected, "{iss:#x}");
        }
    }
    use proptest::prelude::*;

    #[test]
    fn loads_extend_as_the_instruction_says() {
        assert_eq!(extend(0xffff_ff80, 1, false, true), 0x80);
        assert_eq!(extend(0x80, 1, true, true), 0xffff_ffff_ffff_ff80);
        assert_eq!(extend(0x80, 1, true, false), 0xffff_ff80);
        assert_eq!(extend(u64::MAX, 8, true, true), u64::MAX);
        assert_eq!(extend(u64::MAX, 8, false, true), u64::MAX);
        assert_eq!(extend(u64::MAX, 4, false, true), 0xffff_ffff);
    }

    #[test]
    fn a_device_has_its_bytes_in_one_order() {
        for (bytes, swapped) in
            [(1, 0x88), (2, 0x8877), (4, 0x8877_6655), (8, 0x8877_6655_4433_2211)]
        {
            let data = 0x1122_3344_5566_7788 & u64::MAX >> (64 - 8 * u32::from(bytes));
            assert_eq!(device_order(data, bytes, true), swapped);
            assert_eq!(device_order(swapped, bytes, true), data);
            assert_eq!(device_order(0x1122_3344_5566_7788, bytes, true), swapped);
            assert_eq!(device_order(data, bytes, false), data);
        }
        let (ee, e0e) = (1 << 25, 1 << 24);
        assert!(pstate::is_big_endian(0x3c5, ee) && !pstate::is_big_endian(0x3c5, e0e));
        assert!(pstate::is_big_endian(0, e0e) && !pstate::is_big_endian(0, ee));
        assert!(pstate::is_big_endian(0x213, 0) && !pstate::is_big_endian(0x13, ee | e0e));
    }

    #[test]
    fn what_cannot_be_emulated_is_not() {
        let load = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 5 << 16 | 0x06;
        let access = Abort::new(load).access().unwrap();
        assert_eq!((access.size_log2, access.register, access.write), (2, 5, false));
        assert!(Abort::new(load).is_translation());
        assert_eq!(Abort::new(load & !(1 << 24)).access(), None);
        assert_eq!(Abort::new(load | 1 << 8).access(), None);
        assert_eq!(Abort::new(load | 1 << 7).access(), None);
        assert!(!Abort::new(0x24 << 26 | 0x10).is_stage2());
    }

    #[test]
    fn of_a_kernels_aborts_those_of_its_data_are_told() {
        // A store, a load, cache maintenance, an access that ISS says nothing of.
        let data = 0x24 << 26 | 1 << 25 | 7;
        for iss in [1 << 6, 0, 1 << 8 | 1 << 6, 1 << 24] {
            for el1 in [0x3c5, 0x3c4, 5] {
                assert!(is_kernels_data(data | iss, el1));
                assert!(!is_kernels_data(data | iss | 1 << 7, el1), "a walk");
            }
            assert!(!is_kernels_data(data | iss, 0x3c0) && !is_kernels_data(data | iss, 0x10));
        }
        assert!(!is_kernels_data(0x20 << 26 | 1 << 25 | 7, 0x3c5), "a fetch");
    }

    #[test]
    fn faults_are_told_at_every_level() {
        // Of a walk of stage 1 (S1PTW), as Linux with 52-bit addresses meets it on QEMU 7.2.
        let walk = Abort::new(0x20 << 26 | 1 << 25 | 1 << 7 | 0x2b);
        assert!(walk.is_translation() && walk.is_stage2());
        let of = |is: fn(Abort) -> bool| -> Vec<u64> {
            (0..64).filter(|&status| is(Abort::new(0x24 << 26 | 0xffc0 | status))).collect()
        };
        assert_eq!(of(Abort::is_translation), [4, 5, 6, 7, 0x2a, 0x2b]);
        let below: Vec<u64> = (0..16).chain(0x29..0x2d).collect();
        assert_eq!(of(Abort::is_stage2), below);
    }

    #[test]
    fn traps_from_t32_are_stepped_over_too() {
        assert_eq!(instruction_bytes(0x17 << 26 | 1 << 25), 4);
        assert_eq!(instruction_bytes(0x01 << 26), 2);
    }

    #[test]
    fn exception_entry() {
        assert_eq!(vector(0x8000_0800, 0x3c5), 0x8000_0a00);
        assert_eq!(vector(0x8000_0000, 0x3c4), 0x8000_0000);
        assert_eq!(vector(0x8000_0000, 0), 0x8000_0400);
        assert_eq!(vector(0x8000_0000, 0x10), 0x8000_0600);
        // Flags and DIT stay; BTYPE, SS, IL and UAO go; interrupts are masked, TCO is set; PAN is unless
        // SPAN, ALLINT unless SPINTMASK, SSBS if DSSBS.
        let old = 0xf << 28 | 1 << 24 | 1 << 23 | 3 << 20 | 3 << 10;
        let kept = 0xf << 28 | 1 << 24 | 1 << 25 | 0x3c5;
        let (pan, ssbs, allint) = (1 << 22, 1 << 12, 1 << 13);
        let (span, dssbs, spintmask) = (1 << 23, 1 << 44, 1 << 62);
        for sctlr in [0, span, dssbs, spintmask, span | dssbs | spintmask] {
            for before in [0, pan, ssbs, allint, pan | ssbs | allint] {
                let expected = kept
                    | if sctlr & span == 0 { pan } else { before & pan }
                    | if sctlr & dssbs != 0 { ssbs } else { 0 }
                    | if sctlr & spintmask == 0 { allint } else { 0 };
                let found = pstate::on_exception(old | before, sctlr);
                assert_eq!(found, expected, "{before:#x} {sctlr:#x}");
            }
        }
        assert_eq!(pstate::on_exception(0, span | spintmask), 1 << 25 | 0x3c5);
        assert_eq!(fault_ipa(0x0080_0000, 0xffff_1abc), 0x8000_0abc);
    }

    proptest! {
        #[test]
        fn sysreg_fields(esr: u64) {
            let r = SysReg::new(esr);
            prop_assert!(r.op0 < 4 && r.op1 < 8 && r.op2 < 8 && r.crn < 16 && r.crm < 16 && r.register < 32);
        }

        #[test]
        fn an_exception_always_enters_el1h_masked(old: u64, sctlr: u64) {
            prop_assert_eq!(pstate::on_exception(old, sctlr) & (pstate::MODE | pstate::DAIF), 0x3c5);
        }
    }

    #[test]
    fn what_displacement_traps_is_told_from_the_rest() {
        // DC ZVA, X0: EC 0x18, op0 = 1, op1 = 3, CRn = 7, CRm = 4, op2 = 1.
        let zva = 0x18 << 26 | 1 << 20 | 1 << 17 | 3 << 14 | 7 << 10 | 4 << 1;
        assert!(SysReg::new(zva).zeroes_a_block());
        // DC CVAC, and a register of the statistical profiler.
        assert!(!SysReg::new(zva & !(0xf << 1) | 0xa << 1).zeroes_a_block());
        assert!(!SysReg::new(0x18 << 26 | 3 << 20 | 9 << 10 | 9 << 1).zeroes_a_block());
        assert!(wait_has_deadline(1 << 26 | 2) && wait_has_deadline(1 << 26 | 3));
        assert!(!wait_has_deadline(1 << 26) && !wait_has_deadline(1 << 26 | 1));
    }
}
