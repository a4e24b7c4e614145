//! Before and after a run of a vCPU: what goes into its list registers, and what became of it.

use super::{
    Events, Refused, Vgic,
    cell::{Cell, Control},
    word::Word,
};
use core::sync::atomic::Ordering::SeqCst;
use umbra_shared::interrupt::{Entry, MAX_ENTRIES, Signalled, State, States};

/// What goes into list registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// So many of the entries.
    pub count: usize,
    /// There were more: the guest has to be left when one of these or none is left (ICH_HCR_EL2.UIE).
    pub underflow: bool,
}

/// An interrupt that could go in. The smallest goes first: active ones before all others, then by priority and INTID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    waits: bool,
    priority: u8,
    intid: u16,
}

/// The best so many, in order.
struct Best {
    of: [Candidate; MAX_ENTRIES],
    count: usize,
    room: usize,
    /// There were others.
    more: bool,
    /// The first that waits.
    first: Option<Candidate>,
}

impl Best {
    fn new(room: usize) -> Self {
        let room = room.min(MAX_ENTRIES);
        Self { of: [Candidate::default(); MAX_ENTRIES], count: 0, room, more: false, first: None }
    }

    fn offer(&mut self, candidate: Candidate) {
        if candidate.waits && self.first.is_none_or(|first| candidate < first) {
            self.first = Some(candidate);
        }
        let at = self.of[..self.count].partition_point(|other| *other < candidate);
        if self.count == self.room {
            self.more = true;
            if at == self.room {
                return;
            }
        } else {
            self.count += 1;
        }
        self.of[at..self.count].rotate_right(1);
        self.of[at] = candidate;
    }

    /// What the run loop is told, all of it being in list registers. If others wait, one of them has EOI.
    fn flushed(&self, entries: &mut [Entry]) -> Flushed {
        let count = entries.len();
        if let Some(last) = count.checked_sub(1)
            && self.more
        {
            // Of these it ends that one last, or, where all are active, the first one first.
            let at = if entries[last].state() == State::Pending { last } else { 0 };
            entries[at] |= Entry::EOI;
        }
        // With two or more: all there is room for.
        Flushed { count, underflow: self.more && count > 1 }
    }

    /// What preempts all that is active takes the place of the least urgent of that. Not the only place there is: what is
    /// active would be ended without a list register at once, and nobody would learn of it.
    fn let_first_in(&mut self) {
        let Some(last) = self.count.checked_sub(1) else { return };
        if let Some(first) = self.first
            && last > 0
            && !self.of[last].waits
            && first.priority < self.of[0].priority
        {
            self.of[last] = first;
        }
    }
}

/// The states of entries of which nothing has become.
fn unchanged(entries: &[Entry]) -> States {
    let offered = entries.iter().take(MAX_ENTRIES).enumerate();
    offered.fold(States::default(), |states, (n, entry)| states.with(n, entry.state()))
}

impl Vgic<'_> {
    /// What `vcpu` is to have in its list registers, of which it has as many as there are entries (16 at most). Until its
    /// [`sync`](Self::sync) these are nobody else's.
    ///
    /// Active ones go in first, and of those the ones of the highest priority: the guest ends them in that
    /// order, so what it ends without a list register (ICH_HCR_EL2.EOIcount) are the first of the others. If they leave no
    /// room, the last of them goes out for what preempts them all: that is ended before it. A level
    /// has EOI set, so that it is pending again as soon as it is ended, and is not pending while it is active: its line
    /// is asked again then, as KVM does.
    ///
    /// If others wait the guest is left when it has ended the last of those that wait here, by EOI: underflow alone would
    /// leave what preempts two active ones waiting for their end. With one list register underflow would be asked for all
    /// the time, and is not; and nothing preempts what is active in it.
    ///
    /// A second flush without a sync is refused. `None`: other CPUs change what is due while it is looked at; nothing is in
    /// list registers, and there is nothing to sync. The host's interrupts go first, then it is tried again.
    pub fn flush(
        &self,
        vcpu: usize,
        entries: &mut [Entry],
        events: &mut impl Events,
    ) -> Result<Option<Flushed>, Refused> {
        let own = self.vcpus.get(vcpu).ok_or(Refused::NoVcpu)?;
        if own.in_guest.swap(true, SeqCst) {
            return Err(Refused::Busy);
        }
        if own.due.is_empty() {
            return Ok(Some(Flushed::default()));
        }
        let (best, count) = self.fill(vcpu, entries, events);
        if count == best.count || !best.more {
            return Ok(Some(best.flushed(&mut entries[..count])));
        }
        self.leave_disturbed(vcpu, &entries[..count], events);
        Ok(None)
    }

    /// Another CPU has changed one of what was to go in, by a register's write, and there are others that wait: who made those
    /// pending has kicked this vCPU before, and nobody will again. It is not looked at once more here, where interrupts are
    /// masked: who changes something may do so all the time.
    #[cold]
    fn leave_disturbed(&self, vcpu: usize, entries: &[Entry], events: &mut impl Events) {
        self.give_back(vcpu, entries, unchanged(entries), events);
        if let Some(own) = self.vcpus.get(vcpu) {
            own.in_guest.store(false, SeqCst);
        }
    }

    /// Takes the best of what is due: what it has been, and how many of it are in list registers now.
    fn fill(&self, vcpu: usize, entries: &mut [Entry], events: &mut impl Events) -> (Best, usize) {
        let own = &self.vcpus[vcpu];
        let mut best = Best::new(entries.len());
        for intid in own.due.iter() {
            let Some(cell) = self.cell(vcpu, intid) else { continue };
            let word = cell.get();
            if self.drop_if_idle(vcpu, intid, cell, word, events) {
                continue;
            }
            if word.is_active_at(vcpu) && word.holder().is_none() {
                // Active by a register write, and now here, wherever it is routed to later.
                cell.update(|word| Some(word.adopted(vcpu)));
            }
            let state = self.state_for(vcpu, word);
            if state != State::Done {
                let (waits, priority) = (!state.is_active(), word.priority());
                best.offer(Candidate { waits, priority, intid });
            }
        }
        best.let_first_in();
        let mut count = 0;
        for candidate in &best.of[..best.count] {
            if let Some(entry) = self.claim(vcpu, candidate.intid, best.more) {
                entries[count] = entry;
                count += 1;
            }
        }
        (best, count)
    }

    /// Takes an INTID out of the set if it is nothing of this vCPU's any longer. Whether it was.
    fn drop_if_idle(
        &self,
        vcpu: usize,
        intid: u16,
        cell: &Cell,
        word: Word,
        events: &mut impl Events,
    ) -> bool {
        // With what decides of 1 of N as it is then: who changes that looks for what waits, and may have come before.
        let concerns = |word: Word| {
            word.is_active_at(vcpu)
                || word.is_wanted()
                    && !word.contains(Word::ACTIVE)
                    && word.is_routed_to(vcpu)
                    && self.vcpus[vcpu].control().takes(word)
        };
        if concerns(word) {
            return false;
        }
        self.vcpus[vcpu].due.remove_unless(intid, || concerns(cell.get()));
        // It had ceased to be one of the N, and the interrupt came to it before.
        let word = cell.get();
        if word.contains(Word::IRM) && !concerns(word) {
            self.move_one_of_n(vcpu, intid, word, events);
        }
        true
    }

    /// In which state a list register of `vcpu`'s would have it. Done: in none.
    fn state_for(&self, vcpu: usize, word: Word) -> State {
        let active = word.is_active_at(vcpu);
        if word.contains(Word::FLIGHT) || word.contains(Word::ACTIVE) && !active {
            return State::Done;
        }
        let pending = self.is_forwarded(vcpu, word, true) && !(active && word.is_level());
        match (pending, active) {
            (false, false) => State::Done,
            (true, false) => State::Pending,
            (false, true) => State::Active,
            (true, true) => State::PendingActive,
        }
    }

    /// Whether the distributor and this vCPU's redistributor would let it through.
    fn is_forwarded(&self, vcpu: usize, word: Word, awake: bool) -> bool {
        let control = self.vcpus[vcpu].control();
        let sleeps = awake && control.contains(Control::PROCESSOR_SLEEP);
        word.is_wanted()
            && self.is_group_enabled(word)
            && word.is_routed_to(vcpu)
            && control.takes(word)
            && !sleeps
    }

    /// Takes it for a list register of `vcpu`'s, if it still is one for it. If others wait, what is pending again while it
    /// is active waits with them: the guest would take it before one of a higher priority.
    fn claim(&self, vcpu: usize, intid: u16, others_wait: bool) -> Option<Entry> {
        let mut entry = None;
        self.cell(vcpu, intid)?.update(|word| {
            let state = self.state_for(vcpu, word);
            if state == State::Done {
                return None;
            }
            let state = match state {
                State::PendingActive if others_wait => State::Active,
                state => state,
            };
            let (new, offered) = word.offered(vcpu, intid, state);
            entry = Some(offered);
            Some(new)
        })?;
        entry
    }

    /// What became of the entries of the last [`flush`](Self::flush) of `vcpu`.
    ///
    /// EOIcount says how many the guest ended without a list register and not which: the first by the priorities that they
    /// have now. A guest that has more active than there are list registers, and changes their priorities or
    /// deactivates them in another order (ICC_DIR_EL1), finds others active than it left.
    pub fn sync(
        &self,
        vcpu: usize,
        entries: &[Entry],
        states: States,
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        let own = self.vcpus.get(vcpu).ok_or(Refused::NoVcpu)?;
        // Those without a list register first, while the others can be told from them.
        for _ in 0..states.eoi_count() {
            if !self.end_first(vcpu, events) {
                break;
            }
        }
        self.give_back(vcpu, entries, states, events);
        own.in_guest.store(false, SeqCst);
        Ok(())
    }

    /// They are in list registers no longer, and this is what became of them.
    fn give_back(&self, vcpu: usize, entries: &[Entry], states: States, events: &mut impl Events) {
        for (n, &entry) in entries.iter().take(MAX_ENTRIES).enumerate() {
            let (intid, state) = (entry.intid(), states.get(n));
            let Some(cell) = self.cell(vcpu, intid) else { continue };
            let back = cell.update(|word| {
                let own = word.contains(Word::FLIGHT) && word.holder() == Some(vcpu);
                own.then(|| word.returned(entry, state))
            });
            if let Some((old, new)) = back {
                if old.contains(Word::RESAMPLE) && old.is_end(state) {
                    events.resample(vcpu, intid);
                }
                self.settle(vcpu, intid, old, new, Some(vcpu), events);
            }
        }
    }

    /// The run did not take place: hyp refused it, or the host thought better of it.
    pub fn cancel(
        &self,
        vcpu: usize,
        entries: &[Entry],
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        self.sync(vcpu, entries, unchanged(entries), events)
    }

    /// Ends the active interrupt of the highest priority that no list register has. False: there is none.
    fn end_first(&self, vcpu: usize, events: &mut impl Events) -> bool {
        let unlisted = |word: Word| word.is_active_at(vcpu) && !word.contains(Word::FLIGHT);
        let words = self.vcpus[vcpu].due.iter().filter_map(|intid| {
            Some((intid, self.cell(vcpu, intid)?.get())).filter(|&(_, word)| unlisted(word))
        });
        let Some((intid, _)) = words.min_by_key(|&(intid, word)| (word.priority(), intid)) else {
            return false;
        };
        let Some(cell) = self.cell(vcpu, intid) else { return false };
        if let Some((old, new)) = cell.update(|word| unlisted(word).then(|| word.ended())) {
            if old.contains(Word::RESAMPLE) && old.is_level() {
                events.resample(vcpu, intid);
            }
            self.settle(vcpu, intid, old, new, Some(vcpu), events);
        }
        true
    }

    /// Whether a flush would look at anything. A run without a flush needs no sync.
    #[inline]
    pub fn is_due(&self, vcpu: usize) -> bool {
        self.vcpus.get(vcpu).is_some_and(|own| !own.due.is_empty())
    }

    /// Whether a vCPU that waits (WFI) has something to do: an interrupt that is pending, enabled and of an enabled group,
    /// and that its interface would signal, as the exit said. One whose redistributor is asleep is to be woken
    /// for it (IHI 0069, chapter 11: a wake request).
    pub fn has_interrupt(&self, vcpu: usize, signalled: Signalled) -> bool {
        let Some(own) = self.vcpus.get(vcpu) else { return false };
        own.due.iter().any(|intid| {
            self.cell(vcpu, intid).is_some_and(|cell| {
                let word = cell.get();
                let free = !word.intersects(Word::ACTIVE | Word::FLIGHT);
                let group1 = word.contains(Word::GROUP1);
                free && signalled.is_signalled(group1, word.priority())
                    && self.is_forwarded(vcpu, word, false)
            })
        })
    }
}
