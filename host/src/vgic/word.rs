//! One interrupt: everything about it in one word, and what may become of that word.
//!
//! Nothing here is atomic: these are the values that [`Cell`](super::cell::Cell) exchanges.

use umbra_shared::{
    flag_set,
    interrupt::{Entry, State},
};

/// No vCPU, in the fields that name one.
const NOBODY: u64 = 0x3ff;

/// vCPUs are numbered in ten bits, of which one value is nobody.
pub const MAX_VCPUS: usize = NOBODY as usize;

flag_set! {
    /// All of an interrupt.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Word: u64 {
        /// GICD_ISENABLER.
        const ENABLED = 1 << 0;
        /// Pending whatever the line is: by an edge, by GICD_ISPENDR, by an SGI.
        const LATCH = 1 << 1;
        /// The line is up.
        const LINE = 1 << 2;
        /// GICD_ISACTIVER.
        const ACTIVE = 1 << 3;
        /// GICD_ICFGR: edge-triggered; otherwise it is level-sensitive.
        const EDGE = 1 << 4;
        /// GICD_IGROUPR.
        const GROUP1 = 1 << 5;
        /// GICD_IROUTER.Interrupt_Routing_Mode: 1 of N.
        const IRM = 1 << 6;
        /// Its holder's list registers have it.
        const FLIGHT = 1 << 7;
        /// They have it as pending, and what it is pending for is what they have.
        const OFFERED = 1 << 8;
        /// Its active state was written since, and the list register's is old.
        const WRITTEN = 1 << 9;
        /// The embedder wants to know when the guest ends it.
        const RESAMPLE = 1 << 10;
        /// It was a level when it went into the list register.
        const WAS_LEVEL = 1 << 11;
        /// GICD_IPRIORITYR.
        const PRIORITY = 0xff << 12;
        /// The vCPU that AFFINITY is.
        const TARGET = NOBODY << 20;
        /// The vCPU whose list registers have it, or that has acknowledged it.
        const HOLDER = NOBODY << 30;
        /// GICD_IROUTER.Aff2 to Aff0.
        const AFFINITY = 0xff_ffff << 40;
    }
}

impl Word {
    const PRIORITY_SHIFT: u32 = 12;
    const TARGET_SHIFT: u32 = 20;
    const HOLDER_SHIFT: u32 = 30;
    const AFFINITY_SHIFT: u32 = 40;

    /// Nobody's, of group 1 as firmware would have left it, with the highest priority and all else clear.
    pub(super) const RESET: Self = Self::GROUP1.union(Self::TARGET).union(Self::HOLDER);

    const fn field(self, mask: Self, shift: u32) -> u64 {
        self.intersection(mask).bits() >> shift
    }

    const fn with_field(self, mask: Self, shift: u32, value: u64) -> Self {
        let field = Self::from_bits_retain(value << shift).intersection(mask);
        self.difference(mask).union(field)
    }

    pub(super) const fn with(self, flag: Self, set: bool) -> Self {
        if set { self.union(flag) } else { self.difference(flag) }
    }

    pub(super) const fn priority(self) -> u8 {
        self.field(Self::PRIORITY, Self::PRIORITY_SHIFT) as u8
    }

    pub(super) const fn with_priority(self, priority: u8) -> Self {
        self.with_field(Self::PRIORITY, Self::PRIORITY_SHIFT, priority as u64)
    }

    /// Aff2, Aff1 and Aff0.
    pub(super) const fn affinity(self) -> u32 {
        self.field(Self::AFFINITY, Self::AFFINITY_SHIFT) as u32
    }

    /// Routed there; `target` is the vCPU there, if one is.
    pub(super) fn with_route(self, affinity: u32, target: Option<usize>) -> Self {
        self.with_field(Self::AFFINITY, Self::AFFINITY_SHIFT, affinity.into()).with_field(
            Self::TARGET,
            Self::TARGET_SHIFT,
            number(target),
        )
    }

    /// Whom it is routed to, if not to 1 of N.
    pub(super) fn target(self) -> Option<usize> {
        vcpu(self.field(Self::TARGET, Self::TARGET_SHIFT)).filter(|_| !self.contains(Self::IRM))
    }

    pub(super) fn holder(self) -> Option<usize> {
        vcpu(self.field(Self::HOLDER, Self::HOLDER_SHIFT))
    }

    fn with_holder(self, holder: Option<usize>) -> Self {
        self.with_field(Self::HOLDER, Self::HOLDER_SHIFT, number(holder))
    }

    pub(super) const fn is_level(self) -> bool {
        !self.contains(Self::EDGE)
    }

    /// GICD_ISPENDR, as a guest reads it.
    pub(super) const fn is_pending(self) -> bool {
        self.contains(Self::LATCH) || self.is_level() && self.contains(Self::LINE)
    }

    /// Pending and enabled.
    pub(super) const fn is_wanted(self) -> bool {
        self.is_pending() && self.contains(Self::ENABLED)
    }

    /// Whether it is active at this vCPU. What was made active by a register write is so
    /// where it is routed to, until a vCPU there is flushed.
    pub(super) fn is_active_at(self, vcpu: usize) -> bool {
        self.contains(Self::ACTIVE)
            && match self.holder() {
                Some(holder) => holder == vcpu,
                None => self.target().is_none_or(|target| target == vcpu),
            }
    }

    /// Whether it could be forwarded to this vCPU while it is pending.
    pub(super) fn is_routed_to(self, vcpu: usize) -> bool {
        self.contains(Self::IRM) || self.target() == Some(vcpu)
    }

    /// What a list register shows of it: if that changes, who has it in one has to come out.
    pub(super) fn shown(self) -> (bool, Self) {
        // A level is not pending in a list register while it is active there.
        let pending = self.is_wanted() && !(self.is_level() && self.contains(Self::ACTIVE));
        let rest = Self::ACTIVE | Self::GROUP1 | Self::IRM | Self::OFFERED | Self::PRIORITY;
        (pending, self & (rest | Self::TARGET))
    }

    /// The line goes up or down: an edge-triggered one is pending from the rise on.
    pub(super) fn line(self, up: bool) -> Self {
        let rises = up && !self.contains(Self::LINE);
        let new = self.with(Self::LINE, up);
        if rises && self.contains(Self::EDGE) { new.latched() } else { new }
    }

    /// Pending by the latch, and anew if a list register has it.
    pub(super) fn latched(self) -> Self {
        (self | Self::LATCH) - Self::OFFERED
    }

    /// GICD_ICPENDR: what is pending for its line stays so.
    pub(super) fn unlatched(self) -> Self {
        self - Self::LATCH - Self::OFFERED
    }

    /// GICD_ISACTIVER and GICD_ICACTIVER.
    pub(super) fn activated(self, active: bool) -> Self {
        if self.contains(Self::ACTIVE) == active {
            return self;
        }
        let new = self.with(Self::ACTIVE, active);
        match self.contains(Self::FLIGHT) {
            true => new | Self::WRITTEN,
            false => new.with_holder(None),
        }
    }

    /// Active at this vCPU for good, if it is active there.
    pub(super) fn adopted(self, vcpu: usize) -> Self {
        if self.is_active_at(vcpu) { self.with_holder(Some(vcpu)) } else { self }
    }

    /// Goes into a list register of `vcpu`'s, in this state.
    pub(super) fn offered(self, vcpu: usize, intid: u16, state: State) -> (Self, Entry) {
        let mut entry = Entry::new(intid, self.priority(), state);
        entry.set(Entry::GROUP1, self.contains(Self::GROUP1));
        // At its end a level's line is looked at, and what is pending for somebody else goes there.
        let held_back = self.is_pending() && !state.is_pending();
        entry.set(Entry::EOI, self.is_level() || held_back);
        let new = (self | Self::FLIGHT) - Self::WRITTEN;
        let new = new.with(Self::WAS_LEVEL, self.is_level());
        (new.with(Self::OFFERED, state.is_pending()).with_holder(Some(vcpu)), entry)
    }

    /// Comes back from the list register that `entry` was written to.
    pub(super) fn returned(self, entry: Entry, state: State) -> Self {
        let acknowledged = entry.state().is_pending() && !state.is_pending();
        let listed = Self::FLIGHT | Self::OFFERED | Self::WRITTEN | Self::WAS_LEVEL;
        let mut new = self - listed;
        if acknowledged && self.contains(Self::OFFERED) {
            new.remove(Self::LATCH);
        }
        if !self.contains(Self::WRITTEN) {
            new.set(Self::ACTIVE, state.is_active());
        }
        if self.is_end(state) {
            new = new.resampled();
        }
        new.settled()
    }

    /// Whether the guest has ended a level, by what is in the list register now. What it was when it went in counts:
    /// another vCPU may have written GICD_ICFGR meanwhile.
    pub(super) fn is_end(self, state: State) -> bool {
        self.contains(Self::WAS_LEVEL) && state == State::Done
    }

    /// Ended by the guest, with no list register.
    pub(super) fn ended(self) -> Self {
        let new = self - Self::ACTIVE;
        if new.is_level() { new.resampled().settled() } else { new.settled() }
    }

    /// The line is down until the device that is asked says otherwise.
    fn resampled(self) -> Self {
        if self.contains(Self::RESAMPLE) { self - Self::LINE } else { self }
    }

    /// Only what is active has a holder outside list registers.
    fn settled(self) -> Self {
        if self.contains(Self::ACTIVE) { self } else { self.with_holder(None) }
    }
}

fn number(vcpu: Option<usize>) -> u64 {
    vcpu.and_then(|vcpu| u64::try_from(vcpu).ok()).map_or(NOBODY, |vcpu| vcpu.min(NOBODY))
}

fn vcpu(number: u64) -> Option<usize> {
    usize::try_from(number).ok().filter(|_| number != NOBODY)
}
