//! Scripts: a machine, and programs for it. What the fuzzer writes when a program fails, and what it
//! reads to run it again.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use fastrand::Rng;
use umbra_fuzz::generate::{Generator, Shape, random_vls};
use umbra_fuzz::program::{CPUS, Line, Mode, STEPS, Step};

use super::calls;
use crate::firmware::{Setup, SuspendFormat};

/// Programs of one boot.
pub const PROGRAMS: usize = 12;
/// Vector lengths of the machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vls {
    /// Every machine has its own.
    Random,
    /// These, in bytes.
    Fixed(Vec<u16>),
}

impl Vls {
    /// Those that are given.
    pub fn fixed(&self) -> Vec<u16> {
        match self {
            Self::Random => Vec::new(),
            Self::Fixed(vls) => vls.clone(),
        }
    }
}

impl FromStr for Vls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "random" {
            return Ok(Self::Random);
        }
        let numbers = text.split(',').map(|word| word.trim().parse::<u16>());
        numbers.collect::<Result<_, _>>().map(Self::Fixed).map_err(|_| {
            "`random`, or a vector length in bytes for each CPU, separated by commas".to_owned()
        })
    }
}

/// Where in a program, for a message: nothing if that isn't known.
pub fn at(program: &Program, step: Option<usize>) -> String {
    match step.and_then(|step| Some((step, program.steps.get(step)?))) {
        Some((n, step)) => format!(" at step {n}: {step}"),
        None => String::new(),
    }
}

/// A machine to fuzz on.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(no_binary_name = true)]
pub struct MachineSpec {
    /// QEMU's `-cpu`.
    #[arg(long, default_value = "max")]
    pub cpu: String,
    /// Number of CPUs.
    #[arg(long, default_value_t = 4)]
    pub smp: u32,
    /// Largest vector length of each CPU, bytes; none: no EL3 firmware, unless a CPU is late.
    #[arg(long, value_delimiter = ',')]
    pub vls: Vec<u16>,
    /// The same in streaming mode.
    #[arg(long, value_delimiter = ',')]
    pub svls: Vec<u16>,
    /// CPUs that come late.
    #[arg(long, value_delimiter = ',')]
    pub late: Vec<u32>,
    /// Layout of the firmware's power_state.
    #[arg(long, value_enum, default_value_t)]
    pub suspend: SuspendFormat,
}

impl FromStr for MachineSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let spec = Self::try_parse_from(text.split_whitespace())?;
        ensure!(
            (1..=CPUS as u32).contains(&spec.smp),
            "a program runs on 1 to {CPUS} CPUs, not {}",
            spec.smp
        );
        Ok(spec)
    }
}

impl fmt::Display for MachineSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--cpu {} --smp {}", self.cpu, self.smp)?;
        let list = |numbers: Vec<String>| numbers.join(",");
        if !self.vls.is_empty() {
            write!(f, " --vls {}", list(self.vls.iter().map(u16::to_string).collect()))?;
        }
        if !self.svls.is_empty() {
            write!(f, " --svls {}", list(self.svls.iter().map(u16::to_string).collect()))?;
        }
        if !self.late.is_empty() {
            write!(f, " --late {}", list(self.late.iter().map(u32::to_string).collect()))?;
        }
        if self.suspend != SuspendFormat::default()
            && let Some(value) = self.suspend.to_possible_value()
        {
            write!(f, " --suspend {}", value.get_name())?;
        }
        Ok(())
    }
}

impl MachineSpec {
    /// A machine by chance. Most have the EL3 firmware, which makes their CPUs differ.
    pub fn random(rng: &mut Rng, smp: u32) -> Self {
        let plain = |cpu: &str| Self {
            cpu: cpu.to_owned(),
            smp,
            vls: Vec::new(),
            svls: Vec::new(),
            late: Vec::new(),
            suspend: SuspendFormat::Original,
        };
        match rng.u8(..15) {
            0 => plain("max,sve=off,sme=off"),
            1 => plain("a64fx"),
            2 => plain("max"),
            3 => plain("max,sme_fa64=off"),
            4 => plain("max,sve-max-vq=2,sme256=on,sme1024=on"),
            5 => plain("max,sme=off"),
            _ => {
                let vls = random_vls(rng, smp as usize).to_vec();
                let late = if smp > 1 && rng.u8(..4) == 0 { vec![rng.u32(1..smp)] } else { vec![] };
                let suspend =
                    if rng.bool() { SuspendFormat::Original } else { SuspendFormat::Extended };
                let svls = match rng.bool() {
                    true => random_vls(rng, smp as usize).to_vec(),
                    false => Vec::new(),
                };
                Self { vls, svls, late, suspend, ..plain("max") }
            }
        }
    }

    /// The same with random lengths where none are given.
    pub fn completed(self, rng: &mut Rng, vls: &Vls, svls: &Vls) -> Self {
        let mut lengths = |given: &Vls, largest: u16, own: &[u16]| match given {
            Vls::Random if largest == 256 => random_vls(rng, self.smp as usize).to_vec(),
            _ => own.to_vec(),
        };
        let vls = lengths(vls, self.largest_vl(), &self.vls);
        let svls = lengths(svls, self.largest_svl(), &self.svls);
        Self { vls, svls, ..self }
    }

    /// Whether it has the EL3 firmware.
    pub fn has_firmware(&self) -> bool {
        !self.vls.is_empty() || !self.svls.is_empty() || !self.late.is_empty()
    }

    /// What the firmware is to make of it, if it has one.
    pub fn firmware(&self) -> Result<Option<Setup>> {
        if !self.has_firmware() {
            return Ok(None);
        }
        Setup::new(&self.vls, &self.late, self.suspend, self.smp)?.streaming(&self.svls).map(Some)
    }

    /// What a program for it may count on.
    pub fn shape(&self) -> Shape {
        let shape = Shape::new(&self.largest_vls(), &self.largest_svls(), self.has_firmware());
        // Of QEMU's 64-bit CPUs these have it.
        let model = self.cpu.split(',').next().unwrap_or_default();
        shape.aarch32(matches!(model, "max" | "cortex-a53" | "cortex-a57" | "cortex-a72"))
    }

    /// The largest SVL of each CPU, bytes; 0: no SME.
    fn largest_svls(&self) -> Vec<u16> {
        let each = || vec![self.largest_svl(); self.smp as usize];
        if self.svls.is_empty() { each() } else { self.svls.clone() }
    }

    /// The largest SVL of QEMU's CPU, bytes, as far as its name says it.
    fn largest_svl(&self) -> u16 {
        let words = || self.cpu.split(',');
        if words().next() != Some("max") || words().any(|word| word == "sme=off") {
            return 0;
        }
        // Of `sme256=on` and the like there are these only.
        let bits = |word: &str| word.strip_prefix("sme")?.strip_suffix("=on")?.parse::<u16>().ok();
        words().filter_map(bits).max().map_or(256, |bits| bits / 8)
    }

    /// The largest VL of each CPU, bytes; 0: no SVE.
    fn largest_vls(&self) -> Vec<u16> {
        let each = || vec![self.largest_vl(); self.smp as usize];
        if self.vls.is_empty() { each() } else { self.vls.clone() }
    }

    /// The largest VL of QEMU's CPU, bytes, as far as its name says it. A wrong guess makes programs
    /// ask for what they don't get, which is no failure.
    fn largest_vl(&self) -> u16 {
        let mut words = self.cpu.split(',');
        let model = words.next().unwrap_or_default();
        if words.clone().any(|word| word == "sve=off") {
            return 0;
        }
        let limit = words.find_map(|word| word.strip_prefix("sve-max-vq=")?.parse::<u16>().ok());
        match (model, limit) {
            ("max", Some(vq @ 1..=16)) => 16 * vq,
            ("max", _) => 256,
            ("a64fx", _) => 64,
            ("neoverse-v1", _) => 32,
            _ => 0,
        }
    }
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What it was made from.
    pub seed: u64,
    /// Its order.
    pub mode: Mode,
    /// Its steps.
    pub steps: Vec<Step>,
}

impl Program {
    /// The program of a seed.
    pub fn generate(seed: u64, mode: Mode, shape: &Shape) -> Self {
        Self { seed, mode, steps: Generator::new(seed, mode, shape).collect() }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {:#x} {}", self.seed, self.mode)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// A machine and programs for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The machine.
    pub machine: MachineSpec,
    /// The programs.
    pub programs: Vec<Program>,
}

impl Script {
    /// The programs of some seeds for a machine; with `calls`, every other one is of hypercalls above
    /// all.
    pub fn generate(machine: MachineSpec, mode: Mode, seeds: Range<u64>, calls: bool) -> Self {
        let shape = machine.shape();
        let (vls, svls) = (machine.largest_vls(), machine.largest_svls());
        let program = |seed: u64| match calls && seed.is_multiple_of(2) {
            false => Program::generate(seed, mode, &shape),
            true => Program { seed, mode, steps: calls::generate(seed, &vls, &svls) },
        };
        let programs = seeds.map(program).collect();
        Self { machine, programs }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "machine {}", self.machine)?;
        self.programs.iter().try_for_each(|program| write!(f, "{program}"))
    }
}

impl FromStr for Script {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut machine = None;
        let mut programs: Vec<Program> = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let place = || format!("line {}: {line:?}", n + 1);
            match Line::parse(line).map_err(anyhow::Error::new).with_context(place)? {
                Line::Blank => {}
                Line::Machine(words) => {
                    machine = Some(words.parse::<MachineSpec>().with_context(place)?);
                }
                Line::Program { seed, mode } => {
                    programs.push(Program { seed, mode, steps: Vec::new() });
                }
                Line::Step(step) => {
                    let Some(program) = programs.last_mut() else {
                        bail!("{}: a step before any `program SEED MODE`", place());
                    };
                    program.steps.push(step);
                    ensure!(program.steps.len() <= STEPS, "{}: more than {STEPS} steps", place());
                }
            }
        }
        let machine = machine.context("no line `machine ...`")?;
        ensure!(!programs.is_empty(), "no line `program SEED MODE`");
        for program in &programs {
            let outside = program.steps.iter().find(|step| u32::from(step.cpu) >= machine.smp);
            if let Some(step) = outside {
                bail!("step `{step}`: the machine has {} CPUs", machine.smp);
            }
        }
        machine.firmware()?;
        Ok(Self { machine, programs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read_as_written() {
        let mut rng = Rng::with_seed(5);
        for seed in 0..40 {
            let machine = MachineSpec::random(&mut rng, 4);
            let mode = if seed % 2 == 0 { Mode::Replay } else { Mode::Storm };
            let programs = vec![
                Program::generate(seed, mode, &machine.shape()),
                Program::generate(seed + 1000, mode, &machine.shape()),
            ];
            let script = Script { machine, programs };
            assert_eq!(script.to_string().parse::<Script>().unwrap(), script);
        }
    }

    #[test]
    fn what_is_no_script_is_refused_with_its_line() {
        let fails = |text: &str| format!("{:#}", text.parse::<Script>().unwrap_err());
        assert!(fails("program 0x1 storm\n0 check\n").contains("machine"));
        assert!(fails("machine --smp 2\n0 check\n").contains("line 2"));
        assert!(fails("machine --smp 2\nprogram 0x1 storm\n2 check\n").contains("2 CPUs"));
        assert!(fails("machine --smp 2\nprogram 0x1 storm\n1 chek\n").contains("line 3"));
        assert!(fails("machine --smp 2 --vls 48,16\nprogram 0x1 storm\n").contains("allowed are"));
        assert!(fails("machine --smp 9\nprogram 0x1 storm\n").contains("1 to 8"));
        assert!(fails("machine --speed 9\nprogram 0x1 storm\n").contains("--speed"));
    }

    #[test]
    fn the_largest_vector_length_is_in_the_cpus_name() {
        let largest =
            |cpu: &str| format!("--cpu {cpu}").parse::<MachineSpec>().unwrap().largest_vl();
        assert_eq!(largest("max"), 256);
        assert_eq!(largest("max,sve-max-vq=2"), 32);
        assert_eq!(largest("max,sve=off,sme=off"), 0);
        assert_eq!(largest("a64fx"), 64);
        assert_eq!(largest("cortex-a57"), 0);
        let largest =
            |cpu: &str| format!("--cpu {cpu}").parse::<MachineSpec>().unwrap().largest_svl();
        assert_eq!(largest("max"), 256);
        assert_eq!(largest("max,sme_fa64=off"), 256);
        assert_eq!(largest("max,sme256=on,sme1024=on"), 128);
        assert_eq!((largest("max,sve=off,sme=off"), largest("a64fx")), (0, 0));
    }
}
