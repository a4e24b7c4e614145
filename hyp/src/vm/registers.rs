//! Single registers of a vCPU that is loaded nowhere: which there are, and which values they can have.

#![forbid(unsafe_code)]

use umbra_shared::error::Error;
use umbra_shared::register::{Register, UntrustedRegister, system};
use umbra_shared::sve::Layout;
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::Vq;

/// A value of 16 bytes: lower half, upper half.
pub type Value = [u64; 2];

/// System registers beside those that every world switch moves, by their numbers.
#[allow(missing_docs, reason = "the constants are the Arm ARM's register names")]
pub mod number {
    use super::system;

    pub const MDSCR_EL1: u16 = system(2, 0, 0, 2, 2);
    pub const MPIDR_EL1: u16 = system(3, 0, 0, 0, 5);
    pub const ZCR_EL1: u16 = system(3, 0, 1, 2, 0);
    pub const SMCR_EL1: u16 = system(3, 0, 1, 2, 6);
    pub const SVCR: u16 = system(3, 3, 4, 2, 2);
    pub const FPCR: u16 = system(3, 3, 4, 4, 0);
    pub const FPSR: u16 = system(3, 3, 4, 4, 1);
    pub const FPMR: u16 = system(3, 3, 4, 4, 2);
    pub const TPIDR2_EL0: u16 = system(3, 3, 13, 0, 5);
    pub const CNTV_CTL_EL0: u16 = system(3, 3, 14, 3, 1);
    pub const CNTV_CVAL_EL0: u16 = system(3, 3, 14, 3, 2);
    pub const CNTVOFF_EL2: u16 = system(3, 4, 14, 0, 3);
    pub const ICH_AP0R0_EL2: u16 = system(3, 4, 12, 8, 0);
    pub const ICH_AP1R0_EL2: u16 = system(3, 4, 12, 9, 0);
    pub const ICH_VMCR_EL2: u16 = system(3, 4, 12, 11, 7);
    pub const DACR32_EL2: u16 = system(3, 4, 3, 0, 0);
    pub const IFSR32_EL2: u16 = system(3, 4, 5, 0, 1);
    pub const FPEXC32_EL2: u16 = system(3, 4, 5, 3, 0);
    pub const SPSR_IRQ: u16 = system(3, 4, 4, 3, 0);
    pub const SPSR_ABT: u16 = system(3, 4, 4, 3, 1);
    pub const SPSR_UND: u16 = system(3, 4, 4, 3, 2);
    pub const SPSR_FIQ: u16 = system(3, 4, 4, 3, 3);
}

/// Which ID register this is: 8 * (CRm - 1) + op2.
pub const fn id_register(number: u16) -> Option<usize> {
    let (first, crm) = (system(3, 0, 0, 1, 0), number >> 3 & 0xf);
    if number >> 7 == first >> 7 && crm >= 1 && crm <= 7 {
        Some((number - first) as usize)
    } else {
        None
    }
}

/// Which key of pointer authentication this is: APIA, APIB, APDA, APDB, APGA, of each the lower and the upper half.
pub const fn pauth_key(number: u16) -> Option<usize> {
    let first = system(3, 0, 2, 1, 0);
    let (crm, op2) = (number >> 3 & 0xf, number & 7);
    let there = matches!((crm, op2), (1 | 2, 0..=3) | (3, 0 | 1));
    if number >> 7 == first >> 7 && there { Some((4 * (crm - 1) + op2) as usize) } else { None }
}

/// The bits that a system register can have, where a guest that executes MSR can't give it more either: what EL2 takes
/// from it goes into a register of EL2's, or is looked at. The others take what they are given, as from a guest.
pub const fn bits(number: u16) -> u64 {
    match number {
        // ENABLE and IMASK; ISTATUS is the timer's.
        number::CNTV_CTL_EL0 => 3,
        // LEN.
        number::ZCR_EL1 => 0xf,
        // LEN, EZT0, FA64.
        number::SMCR_EL1 => 0xf | 3 << 30,
        // VENG0, VENG1, VAckCtl, VFIQEn, VCBPR, VEOIM, VBPR1, VBPR0, VPMR (IHI 0069, 12.4.9).
        number::ICH_VMCR_EL2 => 0xfffc_021f,
        // A guest's accesses read as zero and write nothing (MDCR_EL2.TDA): the breakpoints and watchpoints that it would
        // enable are its host's.
        number::MDSCR_EL1 => 0,
        number::ICH_AP0R0_EL2 | number::ICH_AP1R0_EL2 => 0xffff_ffff,
        _ => !0,
    }
}

/// PSTATE in AArch64: NZCV, TCO, DIT, UAO, PAN, SS, IL, ALLINT, SSBS, BTYPE, D, A, I, F, and M\[3:0\].
const PSTATE_AARCH64: u64 = 0xf << 28
    | 1 << 25
    | 1 << 24
    | 1 << 23
    | 1 << 22
    | 3 << 20
    | 1 << 13
    | 1 << 12
    | 3 << 10
    | 0xf << 6
    | 0xf;

/// PSTATE in AArch32, as SPSR_EL2 has it: NZCV, Q, IT, DIT, SSBS, PAN, SS, IL, GE, E, A, I, F, T and M\[4:0\].
const PSTATE_AARCH32: u64 = 0xffff_ffff;

/// Whether a guest can be entered with this PSTATE: at EL1 or EL0, in the state that its EL1 has. With any other ERET
/// would be an illegal return, or lead to EL2.
pub const fn is_guests_pstate(pstate: u64, aarch32: bool) -> bool {
    let mode = pstate & 0x1f;
    if aarch32 {
        // User, FIQ, IRQ, Supervisor, Abort, Undefined, System.
        let modes = [0x10, 0x11, 0x12, 0x13, 0x17, 0x1b, 0x1f];
        let mut n = 0;
        while n < modes.len() {
            if mode == modes[n] {
                return pstate & !PSTATE_AARCH32 == 0;
            }
            n += 1;
        }
        false
    } else {
        // EL0t, EL1t, EL1h.
        matches!(mode, 0 | 4 | 5) && pstate & !PSTATE_AARCH64 == 0
    }
}

/// The register, if a vCPU with these features has it; `streaming`: its vector registers are those of streaming mode.
/// Whether it has a system register is for those to say who have them.
///
/// # Errors
///
/// BAD_REGISTER.
pub fn find(
    raw: UntrustedRegister,
    features: VcpuFeatures,
    streaming: bool,
) -> Result<Register, Error> {
    let register = raw.decode().ok_or(Error::BadRegister)?;
    let vq = length(features, streaming);
    let there = match register {
        Register::Z { quadword, .. } => usize::from(quadword) < vq.map_or(1, Vq::quadwords),
        Register::P { quadword, .. } => {
            vq.is_some_and(|vq| 16 * usize::from(quadword) < Layout::new(vq).p_bytes())
        }
        _ => true,
    };
    if there { Ok(register) } else { Err(Error::BadRegister) }
}

/// The length that its image is written at.
pub const fn length(features: VcpuFeatures, streaming: bool) -> Option<Vq> {
    if streaming { features.svq } else { features.vq }
}

/// Where a part of the register file is in its image: offset and bytes.
pub fn place(register: Register, vq: Option<Vq>) -> Option<(usize, usize)> {
    match (register, vq) {
        (Register::Z { n, .. }, None) => Some((16 * usize::from(n), 16)),
        (Register::Z { n, quadword }, Some(vq)) => {
            Some((Layout::new(vq).z(n.into()) + 16 * usize::from(quadword), 16))
        }
        (Register::P { n, quadword }, Some(vq)) => {
            let (layout, n) = (Layout::new(vq), usize::from(n));
            let start = if n == 16 { layout.ffr() } else { layout.p(n) };
            let skipped = 16 * usize::from(quadword);
            Some((start + skipped, (layout.p_bytes() - skipped).min(16)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_row() {
        assert_eq!(id_register(system(3, 0, 0, 1, 0)), Some(0));
        assert_eq!(id_register(system(3, 0, 0, 7, 7)), Some(55));
        for other in [number::MPIDR_EL1, system(3, 0, 0, 8, 0), system(3, 1, 0, 1, 0), 0] {
            assert_eq!(id_register(other), None, "{other:#x}");
        }
        let keys: Vec<_> = (0..=u16::MAX).filter_map(pauth_key).collect();
        assert_eq!(keys, (0..10).collect::<Vec<_>>(), "each is one key's half");
    }

    #[test]
    fn no_pstate_leads_out_of_the_guest() {
        for pstate in [0x3c5, 0, 4, 5, 0xf000_03c4, 1 << 13 | 1 << 12 | 5] {
            assert!(is_guests_pstate(pstate, false), "{pstate:#x}");
            assert!(!is_guests_pstate(pstate, true), "{pstate:#x}");
        }
        // EL2, EL3, reserved modes, AArch32, bits that are none.
        for mode in (0..32).filter(|mode| ![0, 4, 5].contains(mode)) {
            assert!(!is_guests_pstate(mode, false), "mode {mode:#x}");
        }
        for bit in [14, 15, 16, 19, 26, 27, 32, 34, 63] {
            assert!(!is_guests_pstate(5 | 1 << bit, false), "bit {bit}");
        }
        let modes: Vec<_> = (0..32).filter(|&mode| is_guests_pstate(mode, true)).collect();
        assert_eq!(modes, [0x10, 0x11, 0x12, 0x13, 0x17, 0x1b, 0x1f], "not Monitor, not Hyp");
        assert!(!is_guests_pstate(0x13 | 1 << 32, true) && is_guests_pstate(0x13 | 1 << 24, true));
    }

    #[test]
    fn a_register_file_has_its_length() {
        let there = |register: Register, features, streaming| {
            find(register.encode(), features, streaming).is_ok()
        };
        let vq = |quadwords| Vq::new(quadwords);
        let z = |quadword| Register::Z { n: 31, quadword };
        let p = |quadword| Register::P { n: 16, quadword };
        let plain = VcpuFeatures::FPSIMD;
        assert!(
            there(z(0), plain, false) && !there(z(1), plain, false) && !there(p(0), plain, false)
        );
        let sve = VcpuFeatures::sve(vq(3));
        assert!(there(z(2), sve, false) && !there(z(3), sve, false));
        assert!(there(p(0), sve, false) && !there(p(1), sve, false));
        let largest = VcpuFeatures::sve(Some(Vq::MAX));
        assert!(there(z(15), largest, false) && there(p(1), largest, false));
        let sme = VcpuFeatures { vq: vq(1), svq: vq(4), aarch32: false };
        assert!(there(z(3), sme, true) && !there(z(1), sme, false));
        assert!(there(Register::Pc, plain, false) && there(Register::X(30), plain, false));
        assert_eq!(find(UntrustedRegister(31 << 8), plain, false), Err(Error::BadRegister));
    }

    /// Every byte of an image is in one place, and none is in two.
    #[test]
    fn places_cover_the_image() {
        for vq in [None, vq_of(1), vq_of(3), Some(Vq::MAX)] {
            let features = VcpuFeatures::sve(vq);
            let bytes = vq.map_or(512, |vq| Layout::new(vq).image_bytes());
            let mut seen = vec![0; bytes];
            for number in (0..5u64 << 32).step_by(1 << 32) {
                for low in 0..0x2200 {
                    let Ok(register) = find(UntrustedRegister(number | low), features, false)
                    else {
                        continue;
                    };
                    if let Some((offset, count)) = place(register, vq) {
                        seen[offset..offset + count].iter_mut().for_each(|byte| *byte += 1);
                    }
                }
            }
            assert!(seen.iter().all(|&count| count == 1), "{vq:?}");
        }
    }

    fn vq_of(quadwords: u64) -> Option<Vq> {
        Vq::new(quadwords)
    }
}
