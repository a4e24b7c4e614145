//! Who gets an interrupt, and who is told when one has changed.

use super::{
    Events, Refused, Vgic,
    cell::{Control, PRIVATE, VcpuCell},
    word::Word,
};

impl Vgic<'_> {
    /// Changes an interrupt and tells whom it concerns. `vcpu`: whose, if it is a private one.
    pub(super) fn change(
        &self,
        vcpu: usize,
        intid: u16,
        events: &mut impl Events,
        mut change: impl FnMut(Word) -> Word,
    ) -> Result<(), Refused> {
        let cell = self.cell(vcpu, intid).ok_or(Refused::NoInterrupt)?;
        let changed = cell.update(|old| Some(change(old)).filter(|&new| new != old));
        if let Some((old, new)) = changed {
            self.settle(vcpu, intid, old, new, None, events);
        }
        Ok(())
    }

    /// An interrupt has changed: it goes to whom it now concerns, and they are told. `by`: the vCPU that gave it back,
    /// which is about to look for itself.
    pub(super) fn settle(
        &self,
        vcpu: usize,
        intid: u16,
        old: Word,
        new: Word,
        by: Option<usize>,
        events: &mut impl Events,
    ) {
        let differs = old.shown() != new.shown();
        if new.contains(Word::FLIGHT) {
            if let Some(holder) = new.holder()
                && differs
            {
                events.kick(holder);
            }
            return;
        }
        let Some(place) = self.place(vcpu, intid, new, by) else { return };
        let waits = new.is_wanted() && !new.contains(Word::ACTIVE);
        if waits && (differs || old.contains(Word::FLIGHT)) && by != Some(place) {
            events.kick(place);
        }
    }

    /// Puts it where the next flush of whom it concerns finds it.
    fn place(&self, vcpu: usize, intid: u16, word: Word, by: Option<usize>) -> Option<usize> {
        let active = word.contains(Word::ACTIVE);
        if !active && !word.is_wanted() {
            return None;
        }
        let one = match active {
            true => word.holder().or(word.target()),
            false => word.target(),
        };
        if intid < PRIVATE || one.is_some() || !word.contains(Word::IRM) {
            let place = if intid < PRIVATE { vcpu } else { one? };
            self.vcpus.get(place)?.due.insert(intid);
            return Some(place);
        }
        // 1 of N. Who is no longer one of them passes on what it has, and who becomes one takes what there is: so
        // what is said of a vCPU must hold when it has the interrupt.
        loop {
            let first = by.unwrap_or(usize::from(intid) % self.vcpus.len());
            let (before, after) = self.vcpus.split_at_checked(first)?;
            let takes = |vcpu: &VcpuCell| vcpu.control().takes(word);
            let chosen = after.iter().chain(before).position(takes)?;
            let place = (first + chosen) % self.vcpus.len();
            self.vcpus[place].due.insert(intid);
            if takes(&self.vcpus[place]) {
                return Some(place);
            }
        }
    }

    /// Sets what decides whether a vCPU is one of the N.
    pub(super) fn set_control(
        &self,
        vcpu: usize,
        mask: Control,
        flags: Control,
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        let cell = self.vcpus.get(vcpu).ok_or(Refused::NoVcpu)?;
        let (old, new) = cell.set_control(mask, flags);
        if old == new {
            return Ok(());
        }
        for (intid, spi) in (PRIVATE..).zip(self.spis) {
            let word = spi.0.get();
            if old.takes(word) != new.takes(word) {
                self.move_one_of_n(vcpu, intid, word, events);
            }
        }
        // What waits for it to be awake, and what it should no longer have in list registers.
        if !cell.due.is_empty() {
            events.kick(vcpu);
        }
        Ok(())
    }

    /// An interrupt of 1 of N goes to one of those who are.
    pub(super) fn move_one_of_n(
        &self,
        vcpu: usize,
        intid: u16,
        word: Word,
        events: &mut impl Events,
    ) {
        let waits = word.is_wanted() && !word.intersects(Word::ACTIVE | Word::FLIGHT);
        if waits && let Some(place) = self.place(vcpu, intid, word, None) {
            events.kick(place);
        }
    }

    /// A vCPU is off, or on again: while it is off no interrupt of 1 of N goes to it. All are on at first.
    pub fn set_power(
        &self,
        vcpu: usize,
        on: bool,
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        let flags = if on { Control::empty() } else { Control::OFF };
        self.set_control(vcpu, Control::OFF, flags, events)
    }
}
