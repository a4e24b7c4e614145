//! A vCPU's part of the GIC's CPU interface as KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS names it, in the words of what hyp
//! keeps of it (Linux's `Documentation/virt/kvm/devices/arm-vgic-v3.rst`; IHI 0069, 12.2 and 12.4).

#![forbid(unsafe_code)]

use crate::abi::Errno;
use umbra_shared::register::system;

/// ICH_VMCR_EL2, ICH_AP0R0_EL2 and ICH_AP1R0_EL2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuInterface {
    /// Masks and enables, as the guest has them.
    pub vmcr: u64,
    /// Active priorities of group 0.
    pub ap0r0: u64,
    /// Active priorities of group 1.
    pub ap1r0: u64,
}

/// A register of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icc {
    /// ICC_PMR_EL1.
    Pmr,
    /// ICC_BPR0_EL1, ICC_BPR1_EL1.
    Bpr(usize),
    /// ICC_AP0Rn_EL1, ICC_AP1Rn_EL1: the group, and n.
    Ap(usize, u8),
    /// ICC_CTLR_EL1.
    Ctlr,
    /// ICC_SRE_EL1.
    Sre,
    /// ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1.
    Igrpen(usize),
}

const GROUP0_ENABLE: u32 = 0;
const GROUP1_ENABLE: u32 = 1;
const VCBPR: u32 = 4;
const VEOIM: u32 = 9;
const VBPR1: u32 = 18;
const VBPR0: u32 = 21;
const VPMR: u32 = 24;

/// ICC_CTLR_EL1: what is the guest's choice, and what it is shown.
const CBPR: u32 = 0;
const EOIMODE: u32 = 1;
const PRIBITS: u32 = 8;
const IDBITS: u32 = 11;
const SEIS_AND_A3V: u32 = 14;

/// System registers, and neither IRQ nor FIQ bypass.
const SRE_DFB_DIB: u64 = 7;
const SRE: u64 = 1;

const fn field(value: u64, at: u32, bits: u32) -> u64 {
    value >> at & ((1 << bits) - 1)
}

fn set(value: &mut u64, at: u32, bits: u32, to: u64) {
    let mask = (1 << bits) - 1;
    *value = *value & !(mask << at) | (to & mask) << at;
}

impl Icc {
    /// What an attribute names, if there is such a register. Op0 to Op2 are in its bits 15:0; 31:16 are nobody's.
    pub const fn of(attribute: u64) -> Option<Self> {
        const PMR: u16 = system(3, 0, 4, 6, 0);
        const BPR0: u16 = system(3, 0, 12, 8, 3);
        const AP0R0: u16 = system(3, 0, 12, 8, 4);
        const AP0R3: u16 = system(3, 0, 12, 8, 7);
        const AP1R0: u16 = system(3, 0, 12, 9, 0);
        const AP1R3: u16 = system(3, 0, 12, 9, 3);
        const BPR1: u16 = system(3, 0, 12, 12, 3);
        const CTLR: u16 = system(3, 0, 12, 12, 4);
        const SRE: u16 = system(3, 0, 12, 12, 5);
        const IGRPEN0: u16 = system(3, 0, 12, 12, 6);
        const IGRPEN1: u16 = system(3, 0, 12, 12, 7);
        Some(match attribute as u16 {
            PMR => Self::Pmr,
            BPR0 => Self::Bpr(0),
            number @ AP0R0..=AP0R3 => Self::Ap(0, (number - AP0R0) as u8),
            number @ AP1R0..=AP1R3 => Self::Ap(1, (number - AP1R0) as u8),
            BPR1 => Self::Bpr(1),
            CTLR => Self::Ctlr,
            SRE => Self::Sre,
            IGRPEN0 => Self::Igrpen(0),
            IGRPEN1 => Self::Igrpen(1),
            _ => return None,
        })
    }

    /// Whether there are so many registers of active priorities with so many priority bits.
    const fn is_there(n: u8, priority_bits: u8) -> bool {
        n == 0 || n < 1 << priority_bits.saturating_sub(5)
    }
}

impl CpuInterface {
    /// The value of a register, with so many priority bits.
    ///
    /// # Errors
    ///
    /// EINVAL: an ICC_APnRm_EL1 that there is not with these.
    pub fn read(&self, register: Icc, priority_bits: u8) -> Result<u64, Errno> {
        let vmcr = |at, bits| field(self.vmcr, at, bits);
        Ok(match register {
            Icc::Pmr => vmcr(VPMR, 8),
            Icc::Bpr(0) => vmcr(VBPR0, 3),
            // With CBPR it is the other one's, plus one where there is room.
            Icc::Bpr(_) if vmcr(VCBPR, 1) != 0 => (vmcr(VBPR0, 3) + 1).min(7),
            Icc::Bpr(_) => vmcr(VBPR1, 3),
            Icc::Ap(_, n) if !Icc::is_there(n, priority_bits) => return Err(Errno::EINVAL),
            Icc::Ap(0, 0) => self.ap0r0,
            Icc::Ap(1, 0) => self.ap1r0,
            // Hyp's guests have 32 levels of preemption at the most.
            Icc::Ap(..) => 0,
            Icc::Ctlr => {
                vmcr(VCBPR, 1) << CBPR
                    | vmcr(VEOIM, 1) << EOIMODE
                    | u64::from(priority_bits.saturating_sub(1)) << PRIBITS
            }
            Icc::Sre => SRE_DFB_DIB,
            Icc::Igrpen(0) => vmcr(GROUP0_ENABLE, 1),
            Icc::Igrpen(_) => vmcr(GROUP1_ENABLE, 1),
        })
    }

    /// Gives a register a value.
    ///
    /// # Errors
    ///
    /// EINVAL: an ICC_APnRm_EL1 that there is not; more in ICC_CTLR_EL1 than there is; ICC_SRE_EL1 without SRE.
    pub fn write(&mut self, register: Icc, value: u64, priority_bits: u8) -> Result<(), Errno> {
        let vmcr = &mut self.vmcr;
        match register {
            Icc::Pmr => set(vmcr, VPMR, 8, value),
            Icc::Bpr(0) => set(vmcr, VBPR0, 3, value),
            Icc::Bpr(_) if field(*vmcr, VCBPR, 1) != 0 => {}
            Icc::Bpr(_) => set(vmcr, VBPR1, 3, value),
            Icc::Ap(_, n) if !Icc::is_there(n, priority_bits) => return Err(Errno::EINVAL),
            Icc::Ap(0, 0) => self.ap0r0 = value & 0xffff_ffff,
            Icc::Ap(1, 0) => self.ap1r0 = value & 0xffff_ffff,
            Icc::Ap(..) if value as u32 != 0 => return Err(Errno::EINVAL),
            Icc::Ap(..) => {}
            Icc::Ctlr => {
                let more = field(value, PRIBITS, 3) >= priority_bits.max(1).into();
                if more || field(value, IDBITS, 3) != 0 || field(value, SEIS_AND_A3V, 2) != 0 {
                    return Err(Errno::EINVAL);
                }
                set(vmcr, VCBPR, 1, field(value, CBPR, 1));
                set(vmcr, VEOIM, 1, field(value, EOIMODE, 1));
            }
            // As KVM: it is as it is, and who writes it need only agree that there are system registers.
            Icc::Sre if value & SRE == 0 => return Err(Errno::EINVAL),
            Icc::Sre => {}
            Icc::Igrpen(0) => set(vmcr, GROUP0_ENABLE, 1, value),
            Icc::Igrpen(_) => set(vmcr, GROUP1_ENABLE, 1, value),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What hyp takes of ICH_VMCR_EL2.
    const VMCR_BITS: u64 = 0xfffc_021f;

    #[test]
    fn attributes_are_kvms() {
        // Linux's KVM_DEV_ARM_VGIC_SYSREG, as QEMU has them (hw/intc/arm_gicv3_kvm.c).
        for (attribute, register) in [
            (0xc230, Icc::Pmr),
            (0xc643, Icc::Bpr(0)),
            (0xc644, Icc::Ap(0, 0)),
            (0xc647, Icc::Ap(0, 3)),
            (0xc648, Icc::Ap(1, 0)),
            (0xc64b, Icc::Ap(1, 3)),
            (0xc663, Icc::Bpr(1)),
            (0xc664, Icc::Ctlr),
            (0x1_c665, Icc::Sre),
            (0xc666, Icc::Igrpen(0)),
            (0xc667, Icc::Igrpen(1)),
        ] {
            assert_eq!(Icc::of(attribute), Some(register), "{attribute:#x}");
        }
        let all = (0..=0xffff).filter(|&n| Icc::of(n).is_some()).count();
        assert_eq!(all, 15, "and no others");
    }

    #[test]
    fn a_register_is_where_hyp_keeps_it() {
        let mut interface = CpuInterface::default();
        for (register, value, vmcr) in [
            (Icc::Igrpen(1), 1, 2),
            (Icc::Igrpen(0), 1, 3),
            (Icc::Pmr, 0xf0, 0xf000_0003),
            (Icc::Bpr(0), 2, 0xf040_0003),
            (Icc::Bpr(1), 3, 0xf04c_0003),
            (Icc::Ctlr, 0x402, 0xf04c_0203),
            (Icc::Ctlr, 0x401, 0xf04c_0013),
        ] {
            interface.write(register, value, 5).unwrap();
            assert_eq!(interface.vmcr, vmcr, "{register:?}");
            assert_eq!(interface.read(register, 5), Ok(value), "{register:?}");
        }
        // With CBPR the second one follows the first, and takes nothing.
        assert_eq!(interface.read(Icc::Bpr(1), 5), Ok(3));
        interface.write(Icc::Bpr(1), 7, 5).unwrap();
        assert_eq!(interface.vmcr, 0xf04c_0013);
        interface.write(Icc::Bpr(0), 7, 5).unwrap();
        assert_eq!(interface.read(Icc::Bpr(1), 5), Ok(7));
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let mut interface = CpuInterface::default();
        for (register, value, bits) in [
            (Icc::Sre, 6, 5),
            (Icc::Ctlr, 5 << 8, 5),
            (Icc::Ctlr, 4 << 8 | 1 << 11, 5),
            (Icc::Ctlr, 4 << 8 | 1 << 14, 5),
            (Icc::Ctlr, 4 << 8 | 1 << 15, 5),
            (Icc::Ap(0, 1), 0, 5),
            (Icc::Ap(1, 2), 0, 6),
            (Icc::Ap(1, 1), 1, 6),
        ] {
            assert_eq!(interface.write(register, value, bits), Err(Errno::EINVAL), "{register:?}");
        }
        assert_eq!(interface, CpuInterface::default());
        assert_eq!(interface.read(Icc::Ap(1, 1), 5), Err(Errno::EINVAL));
        assert_eq!(interface.read(Icc::Ap(1, 3), 7), Ok(0));
        for value in [1, 7, !0] {
            interface.write(Icc::Sre, value, 5).unwrap();
            assert_eq!(interface.read(Icc::Sre, 5), Ok(7));
        }
    }

    proptest! {
        /// Read and written elsewhere in QEMU's order, the interface is the same.
        #[test]
        fn a_copy_is_the_same(vmcr: u64, ap0r0: u32, ap1r0: u32, bits in 5u8..=8) {
            let from = CpuInterface {
                // VAckCtl and VFIQEn have no register here; VBPR1 is hidden by CBPR.
                vmcr: vmcr & VMCR_BITS & !0xc & !(u64::from(vmcr >> 4 & 1 != 0) * (7 << 18)),
                ap0r0: ap0r0.into(),
                ap1r0: ap1r0.into(),
            };
            let mut to = CpuInterface::default();
            let all = [
                Icc::Sre, Icc::Ctlr, Icc::Igrpen(0), Icc::Igrpen(1), Icc::Pmr, Icc::Bpr(0), Icc::Bpr(1),
                Icc::Ap(0, 0), Icc::Ap(1, 0),
            ];
            for register in all {
                to.write(register, from.read(register, bits).unwrap(), bits).unwrap();
            }
            prop_assert_eq!(from, to);
        }

        /// Whatever is written, hyp takes it.
        #[test]
        fn hyp_takes_what_is_written(writes in prop::collection::vec((0u64..1 << 16, any::<u64>()), 0..40)) {
            let mut interface = CpuInterface::default();
            for (attribute, value) in writes {
                if let Some(register) = Icc::of(attribute | 0xc600) {
                    let _ = interface.write(register, value, 5);
                }
            }
            prop_assert_eq!(interface.vmcr & !VMCR_BITS, 0);
            prop_assert_eq!((interface.ap0r0 | interface.ap1r0) >> 32, 0);
        }
    }
}
