//! Virtual interrupts, as VCPU_RUN takes them and gives them back.
//!
//! An [`Entry`] is what a list register of the GIC's holds (`ICH_LR<n>_EL2`; IHI 0069, 12.4), in half a register.
//! [`RunFlags::ENTRIES`](crate::exit::RunFlags::ENTRIES) says how many there are; they are in x6 to x13, two to a register,
//! the lower half first; what is beyond them isn't looked at. Hyp keeps none of them: what the guest has not completed its
//! host offers again. After the run x8 has [`States`]: what became of each.
//!
//! Refused with INVALID_ARGUMENT, and nothing runs: more entries than the CPU has list registers
//! ([`Interface`], VL_INFO), reserved bits, an INTID from [`INTIDS`] on, one INTID twice, an entry that is neither pending
//! nor active, priority bits that the CPU lacks.

use crate::flag_set;

/// INTIDs that a guest can have by a list register: SGIs, PPIs and SPIs.
pub const INTIDS: u16 = 1020;

/// The most entries of one run. A CPU may have fewer list registers (ICH_VTR_EL2.ListRegs).
pub const MAX_ENTRIES: usize = 16;

flag_set! {
    /// An interrupt for a list register.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Entry: u64 {
        /// Bits 9:0: the INTID, below [`INTIDS`].
        const INTID = 0x3ff;
        /// Bits 23:16: the priority, of which the lower bits that ICH_VTR_EL2.PRIbits leaves out must be zero.
        const PRIORITY = 0xff << 16;
        /// It is of group 1; without, of group 0.
        const GROUP1 = 1 << 24;
        /// The guest is left when it ends the interrupt (`ICH_LR<n>_EL2.EOI`): a level that is still up is to be
        /// pending again.
        const EOI = 1 << 25;
        /// It is pending.
        const PENDING = 1 << 30;
        /// It is active.
        const ACTIVE = 1 << 31;
    }
}

impl Entry {
    const STATE_SHIFT: u32 = 30;

    /// An interrupt of group 1.
    pub const fn new(intid: u16, priority: u8, state: State) -> Self {
        Self::from_bits_retain(
            intid as u64 & Self::INTID.bits()
                | (priority as u64) << 16
                | Self::GROUP1.bits()
                | (state as u64) << Self::STATE_SHIFT,
        )
    }

    /// The INTID.
    pub const fn intid(self) -> u16 {
        (self.bits() & Self::INTID.bits()) as u16
    }

    /// The priority: lower is more urgent.
    pub const fn priority(self) -> u8 {
        (self.bits() >> 16) as u8
    }

    /// What is left of it, if anything is.
    pub const fn left(self, state: State) -> Option<Self> {
        let rest = self.bits() & !(3 << Self::STATE_SHIFT);
        match state {
            State::Done => None,
            _ => Some(Self::from_bits_retain(rest | (state as u64) << Self::STATE_SHIFT)),
        }
    }

    /// What is left of it to do.
    pub const fn state(self) -> State {
        State::from_field(self.bits() >> Self::STATE_SHIFT)
    }
}

flag_set! {
    /// What the guest's CPU interface signals to its vCPU: x2 of [`Reason::Wfi`](crate::exit::Reason), where
    /// ICH_VMCR_EL2 has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Signalled: u64 {
        /// Interrupts of group 0 (ICC_IGRPEN0_EL1).
        const GROUP0 = 1 << 0;
        /// Interrupts of group 1 (ICC_IGRPEN1_EL1).
        const GROUP1 = 1 << 1;
        /// Bits 31:24: those whose priority is a lower number (ICC_PMR_EL1).
        const PRIORITY_MASK = 0xff << 24;
    }
}

impl Signalled {
    /// All but those of the lowest priority there is.
    pub const ALL: Self = Self::GROUP0.union(Self::GROUP1).union(Self::PRIORITY_MASK);

    /// As ICH_VMCR_EL2 says it.
    pub const fn of(vmcr: u64) -> Self {
        Self::from_bits_truncate(vmcr)
    }

    /// Whether an interrupt that is pending is signalled: if not, a vCPU in WFI sleeps on.
    pub const fn is_signalled(self, group1: bool, priority: u8) -> bool {
        let group = if group1 { Self::GROUP1 } else { Self::GROUP0 };
        self.intersects(group) && (priority as u64) < self.bits() >> 24
    }
}

/// The State field of a list register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum State {
    /// The guest has completed it.
    #[default]
    Done = 0,
    /// Pending.
    Pending = 1,
    /// Active.
    Active = 2,
    /// Pending again while it is active.
    PendingActive = 3,
}

impl State {
    /// The state in bits 1:0.
    pub const fn from_field(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Done,
            1 => Self::Pending,
            2 => Self::Active,
            _ => Self::PendingActive,
        }
    }

    /// Whether it is pending.
    pub const fn is_pending(self) -> bool {
        self as u64 & 1 != 0
    }

    /// Whether it is active.
    pub const fn is_active(self) -> bool {
        self as u64 & 2 != 0
    }
}

/// x8 after a run with entries: a [`State`] each, entry 0's in bits 1:0, and in bits 36:32 how often the guest ended an
/// interrupt that no entry had (ICH_HCR_EL2.EOIcount): of those it is the active ones of the highest priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct States(u64);

impl States {
    const EOI_COUNT_SHIFT: u32 = 32;

    /// Reads the register form.
    pub const fn from_register(x8: u64) -> Self {
        Self(x8)
    }

    /// The register form.
    pub const fn register(self) -> u64 {
        self.0
    }

    /// With entry `n`'s.
    pub const fn with(self, n: usize, state: State) -> Self {
        Self(self.0 & !(3 << (2 * n)) | (state as u64) << (2 * n))
    }

    /// With the count of EOIs.
    pub const fn with_eoi_count(self, count: u64) -> Self {
        Self(self.0 & 0xffff_ffff | (count & 0x1f) << Self::EOI_COUNT_SHIFT)
    }

    /// Entry `n`'s, below [`MAX_ENTRIES`].
    pub const fn get(self, n: usize) -> State {
        State::from_field(self.0 >> (2 * n))
    }

    /// EOIs of interrupts that no entry had.
    pub const fn eoi_count(self) -> u8 {
        (self.0 >> Self::EOI_COUNT_SHIFT) as u8 & 0x1f
    }
}

/// A CPU's list registers, as VL_INFO tells of them: how many there are in bits 4:0, and in bits 15:8 which bits a
/// priority can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interface {
    /// List registers, [`MAX_ENTRIES`] at the most.
    pub registers: u8,
    /// The bits that a priority can have.
    pub priorities: u8,
}

impl Interface {
    /// That of a CPU with this ICH_VTR_EL2: ListRegs (4:0) is the number less one, and so is PRIbits (31:29).
    pub const fn of(ich_vtr_el2: u64) -> Self {
        let bits = (ich_vtr_el2 >> 29 & 7) as u32 + 1;
        // Numbers above 15 are reserved.
        let registers = (ich_vtr_el2 & 0xf) as u8 + 1;
        Self { registers, priorities: !(0xff_u32 >> bits) as u8 }
    }

    /// What two CPUs both have.
    pub const fn common(self, other: Self) -> Self {
        let registers =
            if self.registers < other.registers { self.registers } else { other.registers };
        Self { registers, priorities: self.priorities & other.priorities }
    }

    /// Reads the register form.
    pub const fn from_register(raw: u64) -> Self {
        Self { registers: raw as u8 & 0x1f, priorities: (raw >> 8) as u8 }
    }

    /// The register form.
    pub const fn register(self) -> u64 {
        self.registers as u64 | (self.priorities as u64) << 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_it_was_made_of() {
        for state in [State::Pending, State::Active, State::PendingActive] {
            let entry = Entry::new(1019, 0xf8, state);
            assert_eq!((entry.intid(), entry.priority(), entry.state()), (1019, 0xf8, state));
            assert!(entry.contains(Entry::GROUP1) && !entry.contains(Entry::EOI));
            assert_eq!(entry.contains(Entry::PENDING), state.is_pending());
            assert_eq!(entry.contains(Entry::ACTIVE), state.is_active());
            assert!(entry.bits() >> 32 == 0, "half a register");
        }
        let entry = Entry::new(7, 8, State::Pending) | Entry::EOI;
        let left = Entry::new(7, 8, State::Active) | Entry::EOI;
        assert_eq!((entry.left(State::Active), entry.left(State::Done)), (Some(left), None));
        assert_eq!(Entry::from_bits(1 << 10), None, "reserved bits are none of an entry's");
    }

    #[test]
    fn an_interface_is_what_ich_vtr_says() {
        let qemu = Interface::of(4 << 29 | 4 << 26 | 3);
        assert_eq!(qemu, Interface { registers: 4, priorities: 0xf8 });
        assert_eq!(Interface::of(7 << 29 | 15), Interface { registers: 16, priorities: 0xff });
        assert_eq!(Interface::from_register(qemu.register()), qemu);
        let other = Interface { registers: 16, priorities: 0xf0 };
        assert_eq!(qemu.common(other), Interface { registers: 4, priorities: 0xf0 });
        assert_eq!(other.common(qemu), qemu.common(other));
    }

    #[test]
    fn states_do_not_overlap() {
        let mut states = States::default();
        for n in 0..MAX_ENTRIES {
            states = states.with(n, State::from_field(n as u64));
        }
        states = states.with_eoi_count(31);
        for n in 0..MAX_ENTRIES {
            assert_eq!(states.get(n), State::from_field(n as u64));
        }
        assert_eq!(states.eoi_count(), 31);
        assert_eq!(states.with(3, State::Done).get(3), State::Done);
        assert_eq!(States::from_register(states.register()), states);
    }
}
