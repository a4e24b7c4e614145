//! A VM on CPUs with list registers, above the one and the other: what its guest finds is the model's.

use super::{Told, model::Model};
use crate::vgic::{
    Frame, Line, SgiRegister, Vgic,
    registers::{Width, wants_rest},
};
use umbra_shared::interrupt::{Entry, MAX_ENTRIES, Signalled, State, States};

/// What happens to a VM.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Write {
        frame: Frame,
        at: u32,
        width: Width,
        value: u64,
    },
    Read {
        frame: Frame,
        at: u32,
        width: Width,
    },
    Sgi {
        from: usize,
        register: SgiRegister,
        value: u64,
    },
    Line {
        vcpu: usize,
        intid: u16,
        up: bool,
    },
    Pulse {
        intid: u16,
    },
    Resample {
        intid: u16,
        wanted: bool,
    },
    Power {
        vcpu: usize,
        on: bool,
    },
    Enter {
        vcpu: usize,
    },
    Leave {
        vcpu: usize,
    },
    Acknowledge {
        vcpu: usize,
    },
    /// Ends so many before anybody sees it.
    End {
        vcpu: usize,
        count: usize,
    },
}

/// A CPU interface with list registers (IHI 0069, chapter 6), of which the guest has all groups enabled and no mask.
#[derive(Clone, Debug, Default)]
struct Cpu {
    in_guest: bool,
    entries: Vec<Entry>,
    states: Vec<State>,
    eoi_count: u64,
    underflow: bool,
    /// What it has acknowledged, the active priorities: outlives runs.
    acknowledged: Vec<(u8, u16)>,
}

impl Cpu {
    fn running_priority(&self) -> u16 {
        self.acknowledged.last().map_or(0x100, |&(priority, _)| priority.into())
    }

    /// ICC_IAR: the pending one of the highest priority, if it preempts.
    fn acknowledge(&mut self) -> Option<u16> {
        let pending = (0..self.entries.len()).filter(|&n| self.states[n] == State::Pending);
        let n = pending.min_by_key(|&n| (self.entries[n].priority(), self.entries[n].intid()))?;
        let entry = self.entries[n];
        if u16::from(entry.priority()) >= self.running_priority() {
            return None;
        }
        self.states[n] = State::Active;
        self.acknowledged.push((entry.priority(), entry.intid()));
        Some(entry.intid())
    }

    /// ICC_EOIR of the one that it is at: which one.
    fn end(&mut self) -> Option<u16> {
        let (_, intid) = self.acknowledged.pop()?;
        let has = |&n: &usize| self.entries[n].intid() == intid && self.states[n].is_active();
        match (0..self.entries.len()).find(has) {
            Some(n) if self.states[n] == State::PendingActive => self.states[n] = State::Pending,
            Some(n) => self.states[n] = State::Done,
            None => self.eoi_count += 1,
        }
        Some(intid)
    }

    /// Whether a maintenance interrupt would stop it.
    fn maintenance(&self) -> bool {
        let valid = self.states.iter().filter(|&&state| state != State::Done).count();
        let ended =
            |n: usize| self.states[n] == State::Done && self.entries[n].contains(Entry::EOI);
        self.underflow && valid <= 1 || (0..self.entries.len()).any(ended)
    }
}

pub struct Machine<'a> {
    vgic: &'a Vgic<'a>,
    pub model: Model,
    cpus: Vec<Cpu>,
    lrs: usize,
}

impl<'a> Machine<'a> {
    pub fn new(vgic: &'a Vgic<'a>, affinities: &[u32], lrs: usize) -> Self {
        let cpus = vec![Cpu::default(); affinities.len()];
        Self { vgic, model: Model::new(affinities), cpus, lrs }
    }

    /// The same VM with another GIC, that has all of the state.
    pub fn moved_to(&self, vgic: &'a Vgic<'a>) -> Self {
        Self { vgic, model: self.model.clone(), cpus: self.cpus.clone(), lrs: self.lrs }
    }

    fn enter(&mut self, v: usize, told: &mut Told) {
        let mut entries = [Entry::default(); MAX_ENTRIES];
        let flushed = self
            .vgic
            .flush(v, &mut entries[..self.lrs], told)
            .unwrap()
            .expect("nobody disturbs it");
        assert!(flushed.count <= self.lrs && (flushed.count > 1 || !flushed.underflow));
        let cpu = &mut self.cpus[v];
        cpu.entries = entries[..flushed.count].to_vec();
        cpu.states = cpu.entries.iter().map(|entry| entry.state()).collect();
        (cpu.underflow, cpu.eoi_count, cpu.in_guest) = (flushed.underflow, 0, true);
        for entry in &self.cpus[v].entries {
            let intid = entry.intid();
            let has = |cpu: &&Cpu| cpu.in_guest && cpu.entries.iter().any(|e| e.intid() == intid);
            assert_eq!(entry.contains(Entry::GROUP1), self.model.get(v, intid).group1);
            assert_eq!(entry.priority(), self.model.get(v, intid).priority);
            let twice = intid >= 32 && self.cpus.iter().filter(has).count() > 1;
            assert!(!twice, "{intid} is in list registers of two vCPUs");
        }
    }

    fn leave(&mut self, v: usize, told: &mut Told) {
        let cpu = &mut self.cpus[v];
        let states = cpu.states.iter().enumerate();
        let states = states.fold(States::default(), |all, (n, &state)| all.with(n, state));
        let states = states.with_eoi_count(cpu.eoi_count);
        cpu.in_guest = false;
        let entries = core::mem::take(&mut cpu.entries);
        cpu.states.clear();
        self.vgic.sync(v, &entries, states, told).unwrap();
    }

    fn again(&mut self, v: usize, told: &mut Told) {
        self.leave(v, told);
        self.enter(v, told);
    }

    /// One thing happens, everybody who is kicked looks again, and the guest finds what it must.
    pub fn step(&mut self, op: Op) {
        let waits = |machine: &Self, v: usize| {
            !machine.cpus[v].in_guest && machine.vgic.has_interrupt(v, Signalled::ALL)
        };
        let before: Vec<_> = (0..self.cpus.len()).map(|v| waits(self, v)).collect();
        let mut told = Told::default();
        let rest = match op {
            Op::Write { at, .. } => wants_rest(at.into(), true),
            Op::Read { at, .. } => wants_rest(at.into(), false),
            _ => false,
        };
        let inside: Vec<_> = (0..self.cpus.len()).filter(|&v| self.cpus[v].in_guest).collect();
        if rest {
            inside.iter().for_each(|&v| self.leave(v, &mut told));
        }
        self.apply(op, &mut told);
        if rest {
            inside.iter().for_each(|&v| self.enter(v, &mut told));
        }
        let mut seen = 0;
        while let Some(&v) = told.kicks.get(seen) {
            seen += 1;
            assert!(seen < 1000, "kicks without end");
            if self.cpus[v].in_guest {
                self.again(v, &mut told);
            }
        }
        let awake = |v| {
            let left = matches!(op, Op::Leave { vcpu } if vcpu == v);
            waits(self, v) && (before[v] || left || told.kicks.contains(&v))
        };
        // Of the N one is enough: it has it, or has no room, or comes for it.
        let has = |v: usize, id| {
            let cpu = &self.cpus[v];
            let full = cpu.in_guest && cpu.entries.len() == self.lrs;
            full || awake(v) || cpu.entries.iter().any(|entry| entry.intid() == id)
        };
        for v in 0..self.cpus.len() {
            let forwarded = self.model.all_forwarded(v);
            let one_of_n = |&id: &u16| id >= 32 && self.model.get(v, id).one_of_n();
            for &id in forwarded.iter().filter(|id| one_of_n(id)) {
                let one = (0..self.cpus.len()).any(|u| self.model.forwarded(u, id) && has(u, id));
                assert!(one, "nobody comes for {id}");
            }
            if !self.cpus[v].in_guest {
                let own = forwarded.iter().any(|id| !one_of_n(id));
                assert!(waits(self, v) || !own, "{v} sleeps through {forwarded:?}");
                assert!(!waits(self, v) || !forwarded.is_empty(), "{v} wakes for nothing");
                assert!(awake(v) || !own, "{v} is not woken for {forwarded:?}");
            }
        }
    }

    fn apply(&mut self, op: Op, told: &mut Told) {
        match op {
            Op::Write { frame, at, width, value } => {
                let value = self.sensible(frame, at, value);
                let (at64, vgic) = (at.into(), self.vgic);
                match frame {
                    Frame::Distributor => vgic.write_distributor(at64, width, value, told),
                    Frame::Redistributor(v) => {
                        vgic.write_redistributor(v, at64, width, value, told);
                    }
                }
                self.model.write(frame, at, width, value);
            }
            Op::Read { frame, at, width } => {
                let value = match frame {
                    Frame::Distributor => self.vgic.read_distributor(at.into(), width),
                    Frame::Redistributor(v) => self.vgic.read_redistributor(v, at.into(), width),
                };
                let expected = self.model.read(frame, at, width);
                assert_eq!(value, expected, "{frame:?} {at:#x} {width:?}: {value:#x}");
            }
            Op::Sgi { from, register, value } => {
                self.vgic.send_sgi(from, register, value, told).unwrap();
                self.model.sgi(from, register, value);
            }
            Op::Line { vcpu, intid, up } => {
                let line = if intid < 32 { Line::Ppi { vcpu, intid } } else { Line::Spi(intid) };
                self.vgic.set_line(line, up, told).unwrap();
                self.model.get_mut(vcpu, intid).set_line(up);
            }
            Op::Pulse { intid } => {
                self.vgic.pulse(Line::Spi(intid), told).unwrap();
                let i = self.model.get_mut(0, intid);
                i.set_line(true);
                i.set_line(false);
            }
            Op::Resample { intid, wanted } => {
                self.vgic.set_resample(Line::Spi(intid), wanted).unwrap();
                self.model.get_mut(0, intid).resample = wanted;
            }
            Op::Power { vcpu, on } => {
                self.vgic.set_power(vcpu, on, told).unwrap();
                self.model.off[vcpu] = !on;
            }
            Op::Enter { vcpu } if !self.cpus[vcpu].in_guest => self.enter(vcpu, told),
            Op::Leave { vcpu } if self.cpus[vcpu].in_guest => self.leave(vcpu, told),
            Op::Acknowledge { vcpu } if self.cpus[vcpu].in_guest => {
                self.acknowledge(vcpu);
            }
            Op::End { vcpu, count } if self.cpus[vcpu].in_guest => self.end(vcpu, count, told),
            Op::Enter { .. } | Op::Leave { .. } | Op::Acknowledge { .. } | Op::End { .. } => {}
        }
    }

    /// The guest acknowledges: it gets what the architecture says. Whether it got something.
    fn acknowledge(&mut self, v: usize) -> bool {
        let running = self.cpus[v].running_priority();
        let mut forwarded = self.model.all_forwarded(v);
        if self.model.asleep[v] {
            forwarded.clear();
        }
        let key = |id| (self.model.get(v, id).priority, id);
        forwarded.retain(|&id| u16::from(key(id).0) < running);
        // Any of the N may have those of 1 of N.
        let own = |id: &&u16| **id < 32 || !self.model.get(v, **id).one_of_n();
        let best = forwarded.iter().filter(own).copied().min_by_key(|&id| key(id));
        match self.cpus[v].acknowledge() {
            Some(got) => {
                assert!(forwarded.contains(&got), "{got} is not pending at {v}: {forwarded:?}");
                assert!(best.is_none_or(|best| key(got) <= key(best)), "{got} and not {best:?}");
                self.model.acknowledge(v, got);
                true
            }
            None => {
                // In the only list register is what is active.
                let full = self.lrs == 1 && self.cpus[v].states.iter().any(|s| s.is_active());
                assert!(best.is_none() || full, "{v} does not get {best:?}");
                false
            }
        }
    }

    fn end(&mut self, v: usize, count: usize, told: &mut Told) {
        let mut expected = Vec::new();
        for _ in 0..count {
            let Some(intid) = self.cpus[v].end() else { break };
            if self.model.end(v, intid) {
                expected.push((v, intid));
            }
        }
        if count > 1 || self.cpus[v].maintenance() {
            self.again(v, told);
        }
        expected.sort_unstable();
        told.resampled.sort_unstable();
        assert_eq!(told.resampled, expected, "who is told of ends");
    }

    /// What software leaves alone, if it knows what it does: the configuration of what is enabled or active (IHI 0069,
    /// GICD_ICFGR), the active state of what it is about to end itself, and with few list registers priorities of what
    /// is active, and active states, by which its order of ends would be another than that of the priorities.
    fn sensible(&self, frame: Frame, at: u32, value: u64) -> u64 {
        let few = self.lrs < MAX_ENTRIES;
        let bank = at & 0xffff;
        match (bank, frame) {
            (0xc00..0xd00, Frame::Distributor) => {
                let first = ((bank - 0xc00) * 4) as u16;
                (0..16).fold(value, |value, n| {
                    let id = first + n;
                    let i = (32..64).contains(&id).then(|| self.model.get(0, id));
                    match i.filter(|i| i.enabled || i.active) {
                        Some(i) => value & !(3 << (2 * n)) | u64::from(i.edge) << (2 * n + 1),
                        None => value,
                    }
                })
            }
            (0x300..0x400, _) if few => 0,
            // As many as there are list registers can be active, or nothing else is seen.
            (0x300..0x380, _) => value & 0xc800_0007,
            // What it has acknowledged it ends, and nothing else deactivates it before.
            (0x380..0x400, _) => {
                let first = ((bank - 0x380) * 8) as u16;
                let all = self.cpus.iter().flat_map(|cpu| &cpu.acknowledged);
                let here = all.filter(|(_, id)| (first..first + 32).contains(id));
                here.fold(value, |value, (_, id)| value & !(1 << (id - first)))
            }
            // One and the same for all, then.
            (0x400..0x800, _) if few && self.model_has_active() => {
                self.model.read(frame, at & !3, Width::Word) >> (8 * (at & 3))
            }
            _ => value,
        }
    }

    fn model_has_active(&self) -> bool {
        let m = &self.model;
        m.spis.iter().chain(m.private.iter().flatten()).any(|i| i.active)
    }

    /// Everything is ended, no line is up, and nothing that could be taken is left; all registers are the model's.
    pub fn finish(mut self) {
        for v in 0..self.cpus.len() {
            self.step(Op::Enter { vcpu: v });
            for _ in 0..self.cpus[v].acknowledged.len() {
                self.step(Op::End { vcpu: v, count: 1 });
            }
            for intid in 16..32 {
                self.step(Op::Line { vcpu: v, intid, up: false });
            }
        }
        for intid in 32..64 {
            self.step(Op::Line { vcpu: 0, intid, up: false });
        }
        for _ in 0..200 {
            let mut some = false;
            for vcpu in 0..self.cpus.len() {
                while self.acknowledge(vcpu) {
                    some = true;
                    self.step(Op::End { vcpu, count: 1 });
                }
            }
            if !some {
                break;
            }
        }
        for v in (0..self.cpus.len()).filter(|&v| !self.model.asleep[v]) {
            assert_eq!(self.model.all_forwarded(v), [], "{v} has not got them");
        }
        self.read_all();
    }

    /// Every register that there is, in 32 bits.
    pub fn read_all(&mut self) {
        for v in 0..self.cpus.len() {
            self.step(Op::Leave { vcpu: v });
        }
        let mut read = |frame, at| {
            let op = Op::Read { frame, at, width: Width::Word };
            self.apply(op, &mut Told::default());
        };
        for at in (0..0xe00).chain(0x6000..0x6400).step_by(4) {
            read(Frame::Distributor, at);
        }
        for v in 0..super::AFFINITIES.len() {
            for at in (0..0x80).chain(0x1_0000..0x1_0e00).step_by(4) {
                read(Frame::Redistributor(v), at);
            }
        }
    }
}
