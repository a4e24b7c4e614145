//! The fuzzer as a test: so many programs from a seed that doesn't change, and the promise that replay
//! mode makes.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use libtest_mimic::Trial;
use umbra_fuzz::program::Mode;

use super::batch::{Lab, OnQemu, Runner, Verdict};
use super::script::{MachineSpec, PROGRAMS, Script, at};
use crate::build::Built;
use crate::harness::{self, Settings};
use crate::qemu::Qemu;
use crate::transcript::Outcome;

/// Where the seeds of the test runs begin.
pub const SEED: u64 = 0x5eed_0000;
/// CPUs of the machines.
const CPUS: u32 = 4;

/// Boots random machines and runs `boots` times some programs on them, until one fails: then
/// says which and why. `name` is for the boots' files.
pub fn sample<R: Runner>(
    lab: &Lab<R>,
    mode: Mode,
    seed: u64,
    boots: u64,
    name: &str,
) -> Result<Option<String>> {
    let mut rng = Rng::with_seed(seed);
    for boot in 0..boots {
        let machine = MachineSpec::random(&mut rng, CPUS);
        let first = seed + boot * PROGRAMS as u64;
        let script = script(lab, machine, mode, first);
        let outcome = lab.run(&script, name)?;
        if let (Some((step, why)), Some(program)) =
            (outcome.failure(), script.programs.get(outcome.verdicts.len().max(1) - 1))
        {
            let tail: Vec<_> = outcome.tail.iter().map(String::as_str).collect();
            return Ok(Some(format!(
                "program {:#x} {mode}{} on {}: {why}\n{}",
                program.seed,
                at(program, step),
                script.machine,
                tail.join("\n")
            )));
        }
    }
    Ok(None)
}

fn script<R>(lab: &Lab<R>, machine: MachineSpec, mode: Mode, first: u64) -> Script {
    Script::generate(machine, mode, first..first + PROGRAMS as u64, lab.calls)
}

/// Two boots of the same programs in replay mode are the same run: every step ends at the same
/// instruction with the same outcome.
fn repeats<R: Runner>(lab: &Lab<R>) -> Result<()> {
    let machine = "--vls 32,256,64,128".parse::<MachineSpec>()?;
    let script = script(lab, machine, Mode::Replay, SEED);
    let digests = |name: &str| -> Result<Vec<u64>> {
        let outcome = lab.run(&script, name)?;
        let digest = |verdict: &Verdict| match verdict {
            Verdict::Passed { digest } => Ok(*digest),
            Verdict::Failed { why, .. } => bail!("{why}"),
        };
        outcome.verdicts.iter().map(digest).collect()
    };
    let (first, second) = (digests("fuzz-first")?, digests("fuzz-second")?);
    if first != second {
        bail!("two runs of the same programs differ:\n{first:x?}\n{second:x?}");
    }
    Ok(())
}

/// The whole of a test binary's `main`.
pub fn main() -> ExitCode {
    harness::run_trials("fuzzing needs", |settings, _| trials(settings))
}

fn trials(settings: Settings) -> Result<Vec<Trial>> {
    let qemu = Qemu::find(Some(&settings.qemu))?.context("no QEMU")?;
    let newer = settings.newer()?;
    let logged = Built { hyp: settings.hyp_log, ..settings.tests.clone() };
    let devices = match &newer {
        Ok(newer) => {
            Some(Arc::new(Lab::on_qemu(newer.clone(), logged.clone(), settings.firmware.clone())?))
        }
        Err(_) => None,
    };
    let judged = Arc::new(Lab::on_qemu(qemu.clone(), logged, settings.firmware.clone())?);
    let unjudged = Lab::on_qemu(qemu.clone(), settings.tests.clone(), settings.firmware.clone())?;
    let unjudged = Arc::new(Lab { calls: true, ..unjudged });
    let lab = Arc::new(Lab::on_qemu(qemu, settings.tests, settings.firmware)?);
    let outcome = |result: Result<Option<String>>| match result {
        Ok(None) => Outcome::Ok,
        Ok(Some(why)) => Outcome::Failed(why),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    let run = |lab: &Arc<Lab<OnQemu>>, name: &str, mode: Mode, boots: u64| {
        let (lab, name) = (Arc::clone(lab), format!("fuzz-{name}"));
        harness::trial(name.replacen('-', "::", 1), move || {
            outcome(sample(&lab, mode, SEED, boots, &name))
        })
    };
    let repeat = {
        let lab = Arc::clone(&lab);
        harness::trial("fuzz::a_replay_repeats_exactly".to_owned(), move || {
            outcome(repeats(&lab).map(|()| None))
        })
    };
    let devices = match devices {
        Some(devices) => run(&devices, "judged_devices", Mode::Storm, 8),
        None => {
            let why = newer.err().unwrap_or_default();
            harness::trial("fuzz::judged_devices".to_owned(), || Outcome::Skipped(why))
        }
    };
    Ok(vec![
        devices,
        run(&lab, "replay", Mode::Replay, 24),
        run(&lab, "storm", Mode::Storm, 24),
        run(&unjudged, "calls", Mode::Storm, 8),
        run(&judged, "judged_replay", Mode::Replay, 16),
        run(&judged, "judged_storm", Mode::Storm, 24),
        repeat,
    ])
}
