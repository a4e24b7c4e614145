//! One machine, booted to carry out some programs.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use anyhow::{Context, Result};
use umbra_fuzz::coverage::Pair;
use umbra_fuzz::program::Mode;
use umbra_spec::judge::Report;

use super::oracle::{self, Place};
use super::script::{MachineSpec, Program, Script};
use crate::bounds::Bounds;
use crate::build::{Built, TestParts};
use crate::console::{Line, parse};
use crate::firmware;
use crate::qemu::{Device, Machine, NEWER, Qemu, Smmu};
use crate::workspace;

/// Lines of the console that are kept for a failure.
const TAIL_LINES: usize = 60;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Passed {
        /// Two runs of a program in replay mode have the same.
        digest: u64,
    },
    /// Badly, or the machine died of it.
    Failed {
        /// Number of the step in the program.
        step: Option<usize>,
        /// What was found.
        why: String,
    },
}

/// What came of a boot.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The programs that were begun, in their order. Only the last one can have failed.
    pub verdicts: Vec<Verdict>,
    /// How often each event met each state.
    pub coverage: BTreeMap<Pair, u64>,
    /// The console's last lines.
    pub tail: VecDeque<String>,
    /// What the specification has judged.
    pub report: Option<Report>,
}

impl Outcome {
    /// The last program that was begun fails for this reason, too.
    fn fail(&mut self, why: &str) {
        let verdict = match self.verdicts.pop() {
            Some(Verdict::Failed { step, why: other }) => {
                Verdict::Failed { step, why: format!("{why}; {other}") }
            }
            _ => Verdict::Failed { step: None, why: why.to_owned() },
        };
        self.verdicts.push(verdict);
    }

    /// Why the last program that was begun failed, if it did.
    pub fn failure(&self) -> Option<(Option<usize>, &str)> {
        match self.verdicts.last() {
            Some(Verdict::Failed { step, why }) => Some((*step, why)),
            _ => None,
        }
    }
}

/// Something that can run packed images: QEMU, or a model.
pub trait Runner: Sync {
    /// Boots `image` on a machine whose memory is the file `ram`, if there is to be one, and hands its
    /// console lines on; why it did not end well, if so.
    fn boot(
        &self,
        spec: &MachineSpec,
        mode: Mode,
        image: &std::path::Path,
        ram: Option<&std::path::Path>,
        name: &str,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Option<String>>;
}

/// QEMU.
pub struct OnQemu {
    /// The program.
    pub qemu: Qemu,
    /// The EL3 firmware's ELF.
    pub firmware: PathBuf,
}

impl OnQemu {
    /// Whether the machines have a device that reads and writes memory: this QEMU's SMMU has a stage 2.
    fn has_devices(&self) -> bool {
        self.qemu.version >= NEWER
    }
}

impl Runner for OnQemu {
    fn boot(
        &self,
        spec: &MachineSpec,
        mode: Mode,
        image: &std::path::Path,
        ram: Option<&std::path::Path>,
        name: &str,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Option<String>> {
        let firmware = match spec.firmware()? {
            Some(setup) => Some(firmware::configure(&self.firmware, &setup, name)?),
            None => None,
        };
        // A device to read and write memory, where there is an SMMU to hold it. It takes 100 ms for a copy,
        // which are 100 million instructions where time is counted in those.
        let (smmu, devices) = match self.has_devices() && mode == Mode::Storm {
            true => (Smmu::V3, vec![Device::Edu]),
            false => (Smmu::None, Vec::new()),
        };
        let machine = Machine {
            smmu,
            devices,
            cpu: spec.cpu.clone(),
            smp: spec.smp,
            // What makes a run repeat: one thread, and time that is instructions.
            icount: mode == Mode::Replay,
            firmware,
            memory_file: ram.map(std::path::Path::to_path_buf),
            ..Machine::default()
        };
        Ok(self.qemu.run(&machine, image, Bounds::default(), on_line)?.failure())
    }
}

/// Everything that boots share.
pub struct Lab<R> {
    /// What runs them.
    pub runner: R,
    /// What they are made of.
    pub parts: TestParts,
    /// The same, for symbols.
    pub built: Built,
    /// Where hyp writes its transitions down, if it does: then they are judged.
    pub log: Option<Place>,
    /// Every other program is one of hypercalls above all.
    pub calls: bool,
}

impl Lab<OnQemu> {
    /// With what was built. If that hyp writes its transitions down, they are judged, and then programs
    /// had better be calls.
    pub fn on_qemu(qemu: Qemu, built: Built, firmware: PathBuf) -> Result<Self> {
        let log = Place::find(&built.hyp)?;
        let (runner, parts) = (OnQemu { qemu, firmware }, TestParts::read(&built)?);
        Ok(Self { runner, parts, built, log, calls: log.is_some() })
    }
}

impl<R: Runner> Lab<R> {
    /// Boots a machine that carries out the script's programs, until one fails. All are of one mode.
    /// `name` names files: no two boots at the same time share it.
    pub fn run(&self, script: &Script, name: &str) -> Result<Outcome> {
        let image = workspace::image_dir().join(format!("{name}.img"));
        let text: String = script.programs.iter().map(Program::to_string).collect();
        self.parts.pack_fuzz(&text, &image)?;
        let mode = script.programs.first().map_or(Mode::Replay, |program| program.mode);
        let mut symbols = self.built.symbols();
        let mut listener = Listener::default();
        let mut load = None;
        let ram = self.log.map(|_| workspace::image_dir().join(format!("{name}.ram")));
        let failure =
            self.runner.boot(&script.machine, mode, &image, ram.as_deref(), name, &mut |line| {
                load = load.or(oracle::load_address(line));
                listener.take(line, |line| symbols.show(line));
            });
        // Each boot has an image of its own, some tens of megabytes in an hour.
        let _ = std::fs::remove_file(&image);
        let mut outcome = listener.outcome(failure?, script.programs.len());
        if let (Some(log), Some(ram)) = (self.log, ram) {
            let judged =
                load.context("hyp did not say where it is").and_then(|load| log.judge(&ram, load));
            let _ = std::fs::remove_file(&ram);
            match judged? {
                Ok(report) => outcome.report = Some(report),
                // What the programs themselves have noticed goes with it.
                Err(difference) => outcome.fail(&difference),
            }
        }
        Ok(outcome)
    }
}

/// Understands the console.
#[derive(Debug, Default)]
struct Listener {
    outcome: Outcome,
    /// A program is running.
    running: bool,
    verdict: Option<Result<(), String>>,
}

impl Listener {
    fn take(&mut self, line: &str, show: impl FnOnce(&str) -> String) {
        if let Some(rest) = line.strip_prefix("@fuzz ") {
            self.event(rest);
        } else if let Some((pair, count)) =
            line.strip_prefix("@cover ").and_then(|rest| rest.rsplit_once(' '))
        {
            if let (Some(pair), Ok(count)) = (Pair::parse(pair), count.parse::<u64>()) {
                *self.outcome.coverage.entry(pair).or_default() += count;
            }
            return;
        } else if let Line::Verdict(verdict) = parse(line) {
            self.verdict.get_or_insert(verdict);
        }
        if self.outcome.tail.len() == TAIL_LINES {
            self.outcome.tail.pop_front();
        }
        self.outcome.tail.push_back(show(line));
    }

    fn event(&mut self, text: &str) {
        let mut words = text.splitn(4, ' ');
        let (verb, _seed) = (words.next(), words.next());
        let verdict = match verb {
            Some("begin") => {
                self.running = true;
                return;
            }
            Some("ok") => {
                let digest = words.nth(1).and_then(|word| word.strip_prefix("0x"));
                let digest = digest.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                Verdict::Passed { digest: digest.unwrap_or_default() }
            }
            Some("failed") => Verdict::Failed {
                step: words.next().and_then(|word| word.parse().ok()),
                why: words.next().unwrap_or_default().to_owned(),
            },
            _ => return,
        };
        self.running = false;
        self.outcome.verdicts.push(verdict);
    }

    fn outcome(mut self, failure: Option<String>, programs: usize) -> Outcome {
        let reported = self.outcome.failure().is_some();
        let problem = match (failure, self.verdict) {
            (Some(why), _) => Some(why),
            (None, Some(Err(why))) => Some(why),
            (None, None) => Some("the machine came to no verdict".to_owned()),
            (None, Some(Ok(()))) if self.running || self.outcome.verdicts.len() < programs => {
                Some("the machine did not carry out all programs".to_owned())
            }
            (None, Some(Ok(()))) => None,
        };
        // Whatever is wrong with the machine is the fault of the program that ran last.
        if let (Some(why), false) = (problem, reported) {
            if !self.running {
                self.outcome.verdicts.pop();
            }
            self.outcome.verdicts.push(Verdict::Failed { step: None, why });
        }
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(console: &str, failure: Option<&str>, programs: usize) -> Outcome {
        let mut listener = Listener::default();
        for line in console.lines() {
            listener.take(line, str::to_owned);
        }
        listener.outcome(failure.map(str::to_owned), programs)
    }

    #[test]
    fn a_good_boot_has_digests_and_coverage() {
        let console = "@fuzz begin 0x1\nx\n@fuzz ok 0x1 30 0xbeef\n@fuzz begin 0x2\n@fuzz ok 0x2 4 0x1\n\
                       @cover fill host 256 - sm 7\n@cover fill host 256 - sm 2\n@cover put guest 64 16 - 1\n@verdict ok";
        let outcome = listen(console, None, 2);
        assert_eq!(outcome.failure(), None);
        assert_eq!(outcome.verdicts[0], Verdict::Passed { digest: 0xbeef });
        assert_eq!(outcome.coverage[&Pair::parse("fill host 256 - sm").unwrap()], 9);
        assert_eq!(outcome.coverage.len(), 2);
    }

    #[test]
    fn a_failed_program_says_where_and_why() {
        let console = "@fuzz begin 0x1\n@fuzz ok 0x1 30 0x5\n@fuzz begin 0x2\n\
                       @fuzz failed 0x2 17 host: Z3 byte 4: expected a b (c)\n@verdict failed: a program failed";
        let outcome = listen(console, None, 5);
        assert_eq!(outcome.verdicts.len(), 2);
        assert_eq!(outcome.failure(), Some((Some(17), "host: Z3 byte 4: expected a b (c)")));
    }

    #[test]
    fn a_machine_that_dies_fails_the_program_that_ran() {
        let console = "@fuzz begin 0x1\n@fuzz ok 0x1 30 0x5\n@fuzz begin 0x2\n@fatal hyp: abort\n";
        let outcome = listen(console, None, 2);
        assert_eq!(outcome.verdicts.len(), 2);
        assert_eq!(outcome.failure(), Some((None, "hyp: abort")));
        let outcome = listen("@fuzz begin 0x1\n", Some("silent"), 2);
        assert_eq!(outcome.failure(), Some((None, "silent")));
        // Between programs: of the last one.
        let outcome = listen("@fuzz begin 0x1\n@fuzz ok 0x1 30 0x5\n@fatal x\n", None, 2);
        assert_eq!(outcome.verdicts.len(), 1);
        assert!(outcome.failure().is_some());
    }

    #[test]
    fn silence_and_missing_programs_are_failures() {
        assert!(listen("", None, 1).failure().is_some());
        assert!(listen("@verdict ok\n", None, 1).failure().is_some());
        assert!(
            listen("@fuzz begin 0x1\n@fuzz ok 0x1 3 0x5\n@verdict ok\n", None, 2)
                .failure()
                .is_some()
        );
    }
}
