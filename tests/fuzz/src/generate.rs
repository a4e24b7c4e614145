//! Programs from seeds.
//!
//! The generator keeps books of what it has asked for, so that most events make sense where they come
//! and a program gets deep: vCPUs that exist are loaded where nothing is loaded, runs come between load
//! and put, a CPU that is off is turned on some time. A few events are left to chance altogether.
//!
//! The same seed, mode and [`Shape`] give the same program.

use crate::program::{CPUS, Event, Mode, Run, STEPS, Step, VCPUS, VMS, VcpuName};
use arrayvec::ArrayVec;
use fastrand::Rng;
use umbra_patterns::protocol::Command;
use umbra_shared::{
    call::{Policy, VmConfig},
    flags::HostFlags,
};

/// The machine that a program is made for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Largest VL of each CPU, bytes; 0: no SVE.
    vls: ArrayVec<u16, CPUS>,
    /// Largest SVL of each CPU, bytes; 0: no SME.
    svls: ArrayVec<u16, CPUS>,
    /// CPU_SUSPEND works.
    suspend: bool,
    /// EL1 can be AArch32.
    aarch32: bool,
}

impl Shape {
    /// CPUs with these largest VLs and SVLs in bytes (0: no SVE, no SME); further CPUs than [`CPUS`] are
    /// left alone.
    pub fn new(vls: &[u16], svls: &[u16], suspend: bool) -> Self {
        let first = |list: &[u16]| list.iter().copied().take(CPUS).collect();
        Self { vls: first(vls), svls: first(svls), suspend, aarch32: false }
    }

    /// The same with CPUs whose EL1 can be AArch32, or can't.
    pub fn aarch32(self, aarch32: bool) -> Self {
        Self { aarch32, ..self }
    }

    fn cpus(&self) -> usize {
        self.vls.len()
    }

    /// The largest VL that guests can have on every CPU.
    fn common(&self) -> u16 {
        self.vls.iter().copied().min().unwrap_or(0)
    }

    /// Likewise the largest SVL.
    fn common_streaming(&self) -> u16 {
        self.svls.iter().copied().min().unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    exists: bool,
    vcpus: u8,
}

/// The steps of one program.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    mode: Mode,
    shape: Shape,
    slots: [Slot; VMS],
    loaded: [Option<VcpuName>; CPUS],
    off: [bool; CPUS],
    left: usize,
    /// Steps that come first: somebody must be there to run.
    first: ArrayVec<Step, 16>,
    /// The CPU of the last step, which often does the next one too.
    cpu: u8,
}

/// All VLs that SVE may have, and 0, which is "as it is".
fn any_vl(rng: &mut Rng) -> u16 {
    match rng.u8(..8) {
        0 => 0,
        1 => 16 * rng.u16(1..17),
        _ => 16 << rng.u16(..5),
    }
}

impl Generator {
    /// The program of this seed.
    pub fn new(seed: u64, mode: Mode, shape: &Shape) -> Self {
        let mut rng = Rng::with_seed(seed);
        let left = match rng.u8(..4) {
            0 => rng.usize(20..60),
            1 | 2 => rng.usize(60..160),
            _ => rng.usize(160..STEPS - 32),
        };
        let mut this = Self {
            rng,
            mode,
            shape: shape.clone(),
            slots: [Slot::default(); VMS],
            loaded: [None; CPUS],
            off: [false; CPUS],
            left,
            first: ArrayVec::new(),
            cpu: 0,
        };
        for _ in 0..this.rng.u8(1..3) {
            let vm = this.vm();
            this.first.push(vm);
            for _ in 0..this.rng.u8(1..3) {
                if let Some(vcpu) = this.vcpu() {
                    this.first.push(vcpu);
                }
            }
        }
        this.first.reverse();
        this
    }

    fn slot(&mut self) -> u8 {
        self.rng.u8(..VMS as u8)
    }

    fn some_vcpu(&mut self) -> VcpuName {
        for _ in 0..8 {
            let vm = self.slot();
            let vcpus = self.slots[usize::from(vm)].vcpus;
            if vcpus != 0 {
                return VcpuName { vm, vcpu: self.rng.u8(..vcpus) };
            }
        }
        VcpuName { vm: self.slot(), vcpu: self.rng.u8(..VCPUS as u8) }
    }

    /// A vCPU that nobody has loaded, if one is found.
    fn free_vcpu(&mut self) -> Option<VcpuName> {
        (0..8).find_map(|_| {
            let name = self.some_vcpu();
            let exists = name.vcpu < self.slots[usize::from(name.vm)].vcpus;
            (exists && !self.loaded.contains(&Some(name))).then_some(name)
        })
    }

    fn vm(&mut self) -> Step {
        let empty = (0..VMS as u8).find(|&slot| !self.slots[usize::from(slot)].exists);
        let slot = match empty {
            Some(slot) => slot,
            None => self.slot(),
        };
        self.slots[usize::from(slot)].exists = true;
        let policy = match self.rng.u8(..5) {
            0 => Policy::Eager,
            1 => Policy::Scrub,
            _ => Policy::Lazy,
        };
        let event =
            Event::Vm(slot, VmConfig { policy, protected: self.rng.bool(), ..VmConfig::normal() });
        Step { cpu: self.cpu, event }
    }

    fn vcpu(&mut self) -> Option<Step> {
        let vm = (0..8).find_map(|_| {
            let vm = self.slot();
            let slot = self.slots[usize::from(vm)];
            (slot.exists && usize::from(slot.vcpus) < VCPUS).then_some(vm)
        })?;
        if self.rng.u8(..6) == 0 {
            let slot = &mut self.slots[usize::from(vm)];
            let name = VcpuName { vm, vcpu: slot.vcpus };
            slot.vcpus += u8::from(self.shape.aarch32);
            return Some(Step { cpu: self.cpu, event: Event::Vcpu32(name) });
        }
        let common = self.shape.common();
        let vl = match self.rng.u8(..16) {
            // Perhaps one that is refused.
            0 => any_vl(&mut self.rng),
            1..4 => 0,
            4..8 => common,
            _ if common == 0 => 0,
            _ => 16 << self.rng.u16(..=common.ilog2() as u16 - 4),
        };
        let streaming = self.shape.common_streaming();
        let svl = match self.rng.u8(..16) {
            0 => any_vl(&mut self.rng),
            1..6 => 0,
            6..10 => streaming,
            _ if streaming == 0 => 0,
            _ => 16 << self.rng.u16(..=streaming.ilog2() as u16 - 4),
        };
        let given =
            |length: u16, largest| length == 0 || (length <= largest && length.is_power_of_two());
        let slot = &mut self.slots[usize::from(vm)];
        let name = VcpuName { vm, vcpu: slot.vcpus };
        if given(vl, common) && given(svl, streaming) {
            slot.vcpus += 1;
        }
        Some(Step { cpu: self.cpu, event: Event::Vcpu(name, vl, svl) })
    }

    fn choose_cpu(&mut self) {
        // In a storm the lines of a CPU are its own anyway.
        if self.mode == Mode::Storm || self.rng.u8(..3) == 0 {
            self.cpu = self.rng.u8(..self.shape.cpus() as u8);
        }
        if self.off[usize::from(self.cpu)] {
            self.cpu = 0;
        }
    }

    fn step(&mut self) -> Step {
        self.choose_cpu();
        let cpu = usize::from(self.cpu);
        let dice = self.rng.u8(..100);
        let event = match self.loaded[cpu] {
            Some(_) => match dice {
                0..52 => Event::Run(self.run()),
                52..62 => {
                    self.loaded[cpu] = None;
                    Event::Put
                }
                62..92 => self.host_event(),
                _ => return self.rare_event(),
            },
            None => match dice {
                0..40 => match self.free_vcpu() {
                    Some(name) => {
                        self.loaded[cpu] = Some(name);
                        Event::Load(name)
                    }
                    None => return self.vcpu().unwrap_or_else(|| self.vm()),
                },
                40..48 => return self.vm_event(),
                48..88 => self.host_event(),
                _ => return self.rare_event(),
            },
        };
        Step { cpu: self.cpu, event }
    }

    fn run(&mut self) -> Run {
        let streaming = self.shape.common_streaming() != 0;
        let rng = &mut self.rng;
        let command = match rng.u8(..if streaming { 29 } else { 20 }) {
            0..5 => Command::Fill(any_vl(rng)),
            5 | 6 => Command::FillFpsimd,
            7..10 => Command::Check,
            10 | 11 => Command::SetVl(any_vl(rng)),
            12..14 => Command::Churn(rng.u16(1..4)),
            14 | 15 => Command::Spin(rng.u16(1..200)),
            16 => Command::Wfi,
            17 => Command::Mmio,
            18 => Command::Timer(rng.u16(1..4000)),
            20..23 => Command::Mode(rng.u16(..4)),
            23 | 24 => Command::SetSvl(16 << rng.u16(..5)),
            25 | 26 => Command::FillZa,
            27.. => Command::CloseSve(u16::from(rng.u8(..4) != 0)),
            _ => Command::Nop,
        };
        let mut hint = HostFlags::empty();
        hint.set(HostFlags::FOREIGN_FPSTATE, rng.u8(..5) == 0);
        hint.set(HostFlags::SVE_DISCARDED, rng.u8(..5) == 0);
        Run { command, hint, once: rng.u8(..3) == 0 }
    }

    fn host_event(&mut self) -> Event {
        let streaming = self.shape.common_streaming() != 0;
        let rng = &mut self.rng;
        match rng.u8(..if streaming { 29 } else { 20 }) {
            20..23 => Event::Mode(rng.u8(..4)),
            23 | 24 => Event::SetSvl(16 << rng.u16(..5)),
            25 | 26 => Event::FillZa,
            27.. => Event::CloseSve(u8::from(rng.u8(..4) != 0)),
            0..4 => Event::Fill(any_vl(rng)),
            4 | 5 => Event::FillFpsimd,
            6..10 => Event::Check,
            10..12 => Event::SetVl(16 << rng.u16(..5)),
            12 | 13 => Event::Kernel,
            14..18 => Event::Tick { after: 1 << rng.u32(4..20), kernel: rng.bool() },
            _ => Event::Poke(rng.u8(..self.shape.cpus() as u8)),
        }
    }

    fn vm_event(&mut self) -> Step {
        match self.rng.u8(..8) {
            0..3 => self.vm(),
            3..6 => self.vcpu().unwrap_or_else(|| self.vm()),
            _ => {
                let slot = self.slot();
                let busy = self.loaded.iter().flatten().any(|name| name.vm == slot);
                if !busy {
                    self.slots[usize::from(slot)] = Slot::default();
                }
                Step { cpu: self.cpu, event: Event::Destroy(slot) }
            }
        }
    }

    fn rare_event(&mut self) -> Step {
        let cpu = usize::from(self.cpu);
        let cpus = self.shape.cpus() as u8;
        let event = match self.rng.u8(..10) {
            0..2 if cpu != 0 => {
                self.off[cpu] = true;
                self.loaded[cpu] = None;
                Event::Off
            }
            2..4 => {
                let off = (1..cpus).find(|&n| self.off[usize::from(n)]);
                let target = off.unwrap_or_else(|| self.rng.u8(..cpus));
                self.off[usize::from(target)] = false;
                Event::On(target)
            }
            4..6 if cpu != 0 && self.shape.suspend => {
                let power_down = self.rng.bool();
                if power_down {
                    self.loaded[cpu] = None;
                }
                Event::Suspend { power_down }
            }
            6 => return self.vm_event(),
            // In a state where it makes no sense.
            7 => Event::Load(self.some_vcpu()),
            8 if self.loaded[cpu].is_none() => {
                if self.rng.bool() {
                    Event::Put
                } else {
                    Event::Run(self.run())
                }
            }
            _ => Event::Junk(self.rng.u64(..)),
        };
        Step { cpu: self.cpu, event }
    }
}

impl Iterator for Generator {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(step) = self.first.pop() {
            return Some(step);
        }
        self.left = self.left.checked_sub(1)?;
        Some(self.step())
    }
}

/// The vector lengths, largest of each CPU, that a random machine has: whatever the architecture
/// allows, and often alike, for symmetrical machines are the common ones.
pub fn random_vls(rng: &mut Rng, cpus: usize) -> ArrayVec<u16, CPUS> {
    let mut last = 16 << rng.u16(..5);
    (0..cpus.min(CPUS))
        .map(|_| {
            if rng.u8(..3) != 0 {
                last = 16 << rng.u16(..5);
            }
            last
        })
        .collect()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn program(seed: u64, mode: Mode) -> Vec<Step> {
        Generator::new(
            seed,
            mode,
            &Shape::new(&[64, 256, 16, 32], &[32, 64, 16, 128], true).aarch32(true),
        )
        .collect()
    }

    #[test]
    fn one_seed_is_one_program() {
        assert_eq!(program(7, Mode::Storm), program(7, Mode::Storm));
        assert_ne!(program(7, Mode::Storm), program(8, Mode::Storm));
    }

    #[test]
    fn programs_get_deep() {
        let (mut runs, mut steps) = (0, 0);
        for seed in 0..200 {
            let mut loaded = [None; CPUS];
            let mut off = [false; CPUS];
            let program = program(seed, Mode::Replay);
            assert!(program.len() <= STEPS);
            steps += program.len();
            for Step { cpu, event } in program {
                let cpu = usize::from(cpu);
                assert!(!off[cpu], "an event on a CPU that is off");
                match event {
                    Event::Load(name) if loaded[cpu].is_none() && !loaded.contains(&Some(name)) => {
                        loaded[cpu] = Some(name);
                    }
                    Event::Put | Event::Suspend { power_down: true } => loaded[cpu] = None,
                    Event::Off => {
                        off[cpu] = true;
                        loaded[cpu] = None;
                    }
                    Event::On(target) => off[usize::from(target)] = false,
                    Event::Run(_) => runs += usize::from(loaded[cpu].is_some()),
                    _ => {}
                }
            }
        }
        assert!(runs > steps / 5, "{runs} of {steps} steps run a guest");
    }

    #[test]
    fn a_machine_without_sve_has_guests_without() {
        let shape = Shape::new(&[0, 0], &[0, 0], false);
        for seed in 0..50 {
            for step in Generator::new(seed, Mode::Storm, &shape) {
                assert!(!matches!(step.event, Event::Suspend { .. }));
                assert!(!matches!(
                    step.event,
                    Event::Mode(_) | Event::SetSvl(_) | Event::FillZa | Event::CloseSve(_)
                ));
                assert!(step.cpu < 2);
            }
        }
    }

    #[test]
    fn random_machines_are_what_the_architecture_allows() {
        let mut rng = Rng::with_seed(3);
        for _ in 0..100 {
            let vls = random_vls(&mut rng, 4);
            assert_eq!(vls.len(), 4);
            assert!(vls.iter().all(|vl| [16, 32, 64, 128, 256].contains(vl)));
        }
    }
}
