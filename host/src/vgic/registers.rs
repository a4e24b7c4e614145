//! Registers of a distributor and of redistributors: where they are, and what is in them (IHI 0069, 12.8 to 12.11).

/// GICD_CTLR, as it is with GICD_CTLR.DS set.
pub const GICD_CTLR: u32 = 0x0000;
/// Read-only: what the distributor has.
pub const GICD_TYPER: u32 = 0x0004;
/// Read-only: who made it.
pub const GICD_IIDR: u32 = 0x0008;
/// The first of the group registers, a bit for each INTID. In SGI_base as well, as are the next nine.
pub const GICD_IGROUPR: u32 = 0x0080;
/// The first of those that enable.
pub const GICD_ISENABLER: u32 = 0x0100;
/// The first of those that disable.
pub const GICD_ICENABLER: u32 = 0x0180;
/// The first of those that make pending.
pub const GICD_ISPENDR: u32 = 0x0200;
/// The first of those that make pending no more.
pub const GICD_ICPENDR: u32 = 0x0280;
/// The first of those that activate.
pub const GICD_ISACTIVER: u32 = 0x0300;
/// The first of those that deactivate.
pub const GICD_ICACTIVER: u32 = 0x0380;
/// The first of the priorities, a byte for each INTID.
pub const GICD_IPRIORITYR: u32 = 0x0400;
/// Behind the last of them.
pub const GICD_IPRIORITYR_END: u32 = 0x0800;
/// The first of the configurations, two bits for each INTID.
pub const GICD_ICFGR: u32 = 0x0c00;
/// Behind the last of them.
pub const GICD_ICFGR_END: u32 = 0x0d00;
/// The route of INTID 0, if there were one: 64 bits for each INTID.
pub const GICD_IROUTER: u32 = 0x6000;
/// Behind the last of them.
pub const GICD_IROUTER_END: u32 = 0x8000;
/// Read-only, in each frame: which architecture it has.
pub const GICD_PIDR2: u32 = 0xffe8;

/// GICR_CTLR.
pub const GICR_CTLR: u32 = 0x0000;
/// Read-only: who made it.
pub const GICR_IIDR: u32 = 0x0004;
/// Read-only, 64 bits: whose it is.
pub const GICR_TYPER: u32 = 0x0008;
/// Its upper half.
pub const GICR_TYPER_HIGH: u32 = 0x000c;
/// GICR_WAKER.
pub const GICR_WAKER: u32 = 0x0014;
/// Read-only: which architecture it has.
pub const GICR_PIDR2: u32 = 0xffe8;
/// SGI_base, behind RD_base. What is in it is where the distributor has it for its first INTIDs.
pub const SGI_BASE: u32 = 0x1_0000;
/// PIDR2 of that frame.
pub const SGI_PIDR2: u32 = SGI_BASE + GICR_PIDR2;

/// A distributor's frame.
pub const DISTRIBUTOR_BYTES: u32 = 0x1_0000;
/// A redistributor's two: RD_base and SGI_base.
pub const REDISTRIBUTOR_BYTES: u32 = 0x2_0000;

/// GICD_CTLR.EnableGrp0.
pub const CTLR_ENABLE_GRP0: u32 = 1 << 0;
/// GICD_CTLR.EnableGrp1.
pub const CTLR_ENABLE_GRP1: u32 = 1 << 1;
/// GICD_CTLR.ARE.
pub const CTLR_ARE: u32 = 1 << 4;
/// GICD_CTLR.DS.
pub const CTLR_DS: u32 = 1 << 6;

/// GICD_TYPER.IDbits: INTIDs have ten bits, as there are no LPIs.
pub const TYPER_ID_BITS: u32 = 9 << 19;
/// GICD_TYPER.RSS: SGIs reach Aff0 from 16 on.
pub const TYPER_RSS: u32 = 1 << 26;

/// GICR_TYPER.Last.
pub const TYPER_LAST: u64 = 1 << 4;
/// GICR_TYPER.DPGS: GICR_CTLR has DPG0 and DPG1NS.
pub const TYPER_DPGS: u64 = 1 << 5;

/// GICR_WAKER.ProcessorSleep.
pub const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
/// GICR_WAKER.ChildrenAsleep.
pub const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

/// GICD_IIDR and GICR_IIDR: ProductID 'U', revision 0, Implementer Arm's, as of other software GICs.
pub const IIDR: u32 = 0x55 << 24 | 0x43b;
/// PIDR2: ArchRev 3, JEDEC, and the upper bits of Arm's number.
pub const PIDR2: u32 = 0x3b;

/// GICD_IROUTER.Interrupt_Routing_Mode.
pub const IROUTER_IRM: u32 = 1 << 31;
/// GICD_IROUTER.Aff2 to Aff0.
pub const IROUTER_AFFINITY: u32 = 0xff_ffff;

/// How wide an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits, which none of these registers takes.
    Halfword,
    /// 32 bits.
    Word,
    /// 64 bits.
    Doubleword,
}

impl Width {
    /// Of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        Some(match bytes {
            1 => Self::Byte,
            2 => Self::Halfword,
            4 => Self::Word,
            8 => Self::Doubleword,
            _ => return None,
        })
    }

    /// Its bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Halfword => 2,
            Self::Word => 4,
            Self::Doubleword => 8,
        }
    }
}

/// Registers with a bit for each of 32 INTIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    Group,
    Enable { set: bool },
    Pending { set: bool },
    Active { set: bool },
}

/// A 32-bit register that the distributor and SGI_base have at the same offset, and the first INTID in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Banked {
    Bits(Bits, u16),
    /// A byte each for four.
    Priority(u16),
    /// Two bits each for 16.
    Configuration(u16),
}

impl Banked {
    /// The first INTID in it.
    pub(super) const fn first(self) -> u16 {
        match self {
            Self::Bits(_, first) | Self::Priority(first) | Self::Configuration(first) => first,
        }
    }
}

/// What is at this offset, a multiple of 4.
pub(super) const fn banked(offset: u32) -> Option<Banked> {
    const fn index(offset: u32, first: u32) -> u16 {
        ((offset - first) & 0xffff) as u16
    }
    Some(match offset {
        GICD_IGROUPR..0x400 => {
            // 32 registers of each kind, of four bytes.
            let kind = match offset & !0x7f {
                GICD_IGROUPR => Bits::Group,
                GICD_ISENABLER => Bits::Enable { set: true },
                GICD_ICENABLER => Bits::Enable { set: false },
                GICD_ISPENDR => Bits::Pending { set: true },
                GICD_ICPENDR => Bits::Pending { set: false },
                GICD_ISACTIVER => Bits::Active { set: true },
                _ => Bits::Active { set: false },
            };
            Banked::Bits(kind, index(offset, offset & !0x7f) * 8)
        }
        GICD_IPRIORITYR..GICD_IPRIORITYR_END => Banked::Priority(index(offset, GICD_IPRIORITYR)),
        GICD_ICFGR..GICD_ICFGR_END => Banked::Configuration(index(offset, GICD_ICFGR) * 4),
        _ => return None,
    })
}

/// The INTID whose GICD_IROUTER is there, and whether it is the upper half.
pub(super) const fn route(offset: u32) -> Option<(u16, bool)> {
    match offset {
        GICD_IROUTER..GICD_IROUTER_END => {
            let at = offset - GICD_IROUTER;
            Some(((at / 8) as u16, at & 4 != 0))
        }
        _ => None,
    }
}

/// Whether an access there wants all vCPUs out of the guest.
///
/// What a vCPU has acknowledged and ended since it was entered is known when it leaves: until then pending and active states
/// read as they were, and a write to an active state counts only if it changes what is known. An embedder that has
/// all of the VM's vCPUs leave before such an access, as KVM does for active states, gives the guest what the architecture
/// says.
pub const fn wants_rest(offset: u64, write: bool) -> bool {
    let first = if write { GICD_ISACTIVER } else { GICD_ISPENDR };
    let at = offset & 0xffff;
    at >= first as u64 && at < GICD_IPRIORITYR as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banked_registers_are_where_the_architecture_has_them() {
        let bits = |kind, first| Some(Banked::Bits(kind, first));
        for (offset, register) in [
            (0x7c, None),
            (0x80, bits(Bits::Group, 0)),
            (0xfc, bits(Bits::Group, 992)),
            (0x104, bits(Bits::Enable { set: true }, 32)),
            (0x188, bits(Bits::Enable { set: false }, 64)),
            (0x200, bits(Bits::Pending { set: true }, 0)),
            (0x2fc, bits(Bits::Pending { set: false }, 992)),
            (0x300, bits(Bits::Active { set: true }, 0)),
            (0x3fc, bits(Bits::Active { set: false }, 992)),
            (0x420, Some(Banked::Priority(32))),
            (0x7f8, Some(Banked::Priority(1016))),
            (0x800, None),
            (0xc08, Some(Banked::Configuration(32))),
            (0xcfc, Some(Banked::Configuration(1008))),
            (0xd00, None),
        ] {
            assert_eq!(banked(offset), register, "{offset:#x}");
        }
        assert_eq!(route(0x6100), Some((32, false)));
        assert_eq!(route(0x7fdc), Some((1019, true)));
        assert_eq!((route(0x5ffc), route(0x8000)), (None, None));
        assert!(wants_rest(0x300, true) && wants_rest(0x1_0380, true) && wants_rest(0x200, false));
        assert!(!wants_rest(0x2fc, true) && !wants_rest(0x400, true) && !wants_rest(0x1fc, false));
    }
}
