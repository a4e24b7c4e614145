//! `xtask fuzz`: random programs over the whole system, on random machines, until time is up or one
//! fails; then that one is made short and written down.
//!
//! What a program is, and how seeds become programs, is in `tests/fuzz`; what carries them out and
//! judges is the payload's `fuzz` module (`tests/payload`). Here: [`script`] (machines and programs as
//! files), [`batch`] (a boot), [`shrink`], [`summary`]; [`sample`] is the fuzzer as a test.

pub mod batch;
pub mod calls;
pub mod oracle;
pub mod sample;
pub mod script;
pub mod shrink;
pub mod summary;

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use fastrand::Rng;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use umbra_fuzz::coverage::Pair;
use umbra_fuzz::program::Mode;

use crate::build;
use crate::setup;
use crate::workspace;

use batch::{Lab, Outcome, Runner};
use script::{MachineSpec, PROGRAMS, Program, Script, Vls, at};
use shrink::Booting;
use summary::Summary;

/// Boots that a failing program gets to fail again.
const ATTEMPTS: usize = 5;
/// How long a failing program is made shorter.
const SHRINKING: Duration = Duration::from_secs(600);

/// How programs are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    /// One step after the other, with counted instructions: a run repeats exactly.
    Replay,
    /// All CPUs at the same time.
    Storm,
    /// Now this, now that.
    #[default]
    Both,
}

/// What `xtask fuzz` is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where seeds begin; `None`: anywhere.
    pub seed: Option<u64>,
    /// Stop after so long.
    pub minutes: Option<u64>,
    /// Stop after so many programs.
    pub iterations: Option<u64>,
    /// Programs of hypercalls above all, every transition judged by the specification.
    pub calls: bool,
    /// Order of the programs' steps.
    pub mode: ModeChoice,
    /// Vector lengths.
    pub vls: Vls,
    /// Those of streaming mode.
    pub svls: Vls,
    /// CPUs of a machine.
    pub smp: u32,
    /// QEMU's `-cpu`, with vector lengths that are given.
    pub cpu: String,
    /// Machines at the same time.
    pub jobs: usize,
    /// A QEMU by name.
    pub qemu: Option<PathBuf>,
    /// Run this script instead.
    pub replay: Option<PathBuf>,
    /// Where results go.
    pub output: Option<PathBuf>,
}

/// Runs the fuzzer; whether nothing failed.
pub fn fuzz(request: &Request) -> Result<bool> {
    let usual = setup::qemu(request.qemu.as_deref())?;
    // Of calls, those where devices take part say more.
    let qemu = match request.qemu {
        None if request.calls => setup::newer_qemu(&usual).unwrap_or(usual),
        _ => usual,
    };
    let toolchain = setup::toolchain()?;
    let built =
        if request.calls { build::logged_tests(&toolchain)? } else { build::tests(&toolchain)? };
    let lab = Lab::on_qemu(qemu, built, build::binary(&toolchain, build::FIRMWARE)?)?;
    on(&lab, request)
}

/// Fuzzes in a lab, which may have another machine than QEMU; whether nothing failed.
pub fn on<R: Runner>(lab: &Lab<R>, request: &Request) -> Result<bool> {
    match &request.replay {
        Some(path) => replay(lab, path),
        None => search(lab, request),
    }
}

/// Runs the programs of a file; whether none fails.
pub fn replay<R: Runner>(lab: &Lab<R>, path: &Path) -> Result<bool> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let script: Script = text.parse().with_context(|| path.display().to_string())?;
    let outcome = lab.run(&script, "fuzz-replay")?;
    for (program, verdict) in script.programs.iter().zip(&outcome.verdicts) {
        match verdict {
            batch::Verdict::Passed { digest } => {
                println!(
                    "program {:#x} {}: passed, digest {digest:#x}",
                    program.seed, program.mode
                );
            }
            batch::Verdict::Failed { step, why } => {
                for line in &outcome.tail {
                    eprintln!("{line}");
                }
                println!(
                    "program {:#x} {}: FAILED{}",
                    program.seed,
                    program.mode,
                    at(program, *step)
                );
                println!("  {why}");
            }
        }
    }
    let mut summary = Summary::default();
    summary.take(&script, &outcome);
    print!("{}", summary.render());
    Ok(outcome.failure().is_none())
}

/// What the machines work on together.
struct Shared {
    rng: Rng,
    seed: u64,
    /// Programs that have been given out.
    given: u64,
    summary: Summary,
    record: File,
    failure: Option<(Script, Outcome)>,
    error: Option<anyhow::Error>,
    bar: ProgressBar,
    tenths: u64,
}

fn search<R: Runner>(lab: &Lab<R>, request: &Request) -> Result<bool> {
    let seed = request.seed.unwrap_or_else(|| Rng::new().u64(..) >> 16);
    fixed(request).firmware()?;
    fixed(request).to_string().parse::<MachineSpec>()?;
    ensure!(request.jobs > 0, "--jobs 0: at least one machine is needed");
    let folder = request.output.clone().unwrap_or_else(|| workspace::target_dir().join("fuzz"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("{seed:x}.jsonl"));
    let record = File::create(&path).with_context(|| path.display().to_string())?;
    eprintln!("fuzzing with --seed {seed:#x}, {} machines at a time", request.jobs);
    let deadline = match (request.minutes, request.iterations) {
        (Some(minutes), _) => Some(Instant::now() + Duration::from_secs(60 * minutes)),
        (None, None) => Some(Instant::now() + Duration::from_secs(60)),
        (None, Some(_)) => None,
    };
    let shared = Mutex::new(Shared {
        rng: Rng::with_seed(seed),
        seed,
        given: 0,
        summary: Summary::default(),
        record,
        failure: None,
        error: None,
        bar: bar(),
        tenths: 0,
    });
    let start = Instant::now();
    thread::scope(|scope| {
        for job in 0..request.jobs {
            let shared = &shared;
            scope.spawn(move || work(lab, request, shared, job, start, deadline));
        }
    });
    let mut shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    shared.bar.finish_and_clear();
    if let Some(error) = shared.error {
        return Err(error);
    }
    let failed = match shared.failure.take() {
        Some((script, outcome)) => {
            let written = investigate(lab, &script, &outcome, &folder)?;
            writeln!(
                shared.record,
                "{}",
                serde_json::json!({ "script": written.display().to_string() })
            )?;
            true
        }
        None => false,
    };
    writeln!(shared.record, "{}", shared.summary.json())?;
    print!("{}", shared.summary.render());
    let seconds = start.elapsed().as_secs();
    println!("{seconds} s, seed {seed:#x}, record in {}", build::shown(&path));
    Ok(!failed)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar
}

fn fixed(request: &Request) -> MachineSpec {
    MachineSpec {
        cpu: request.cpu.clone(),
        smp: request.smp,
        vls: request.vls.fixed(),
        svls: request.svls.fixed(),
        late: Vec::new(),
        suspend: crate::firmware::SuspendFormat::Original,
    }
}

/// The programs of the next boot; `None`: it is over.
fn next(shared: &mut Shared, request: &Request, deadline: Option<Instant>) -> Option<Script> {
    let over = deadline.is_some_and(|deadline| Instant::now() >= deadline)
        || request.iterations.is_some_and(|iterations| shared.given >= iterations)
        || shared.failure.is_some()
        || shared.error.is_some();
    if over {
        return None;
    }
    let machine = match (&request.vls, &request.svls) {
        (Vls::Random, Vls::Random) => MachineSpec::random(&mut shared.rng, request.smp),
        // What is not given is random.
        _ => fixed(request).completed(&mut shared.rng, &request.vls, &request.svls),
    };
    let mode = match request.mode {
        ModeChoice::Replay => Mode::Replay,
        ModeChoice::Storm => Mode::Storm,
        ModeChoice::Both if shared.rng.bool() => Mode::Replay,
        ModeChoice::Both => Mode::Storm,
    };
    let left = request.iterations.map_or(u64::MAX, |iterations| iterations - shared.given);
    let count = left.min(PROGRAMS as u64);
    let seeds = shared.seed + shared.given..shared.seed + shared.given + count;
    shared.given += count;
    Some(Script::generate(machine, mode, seeds, request.calls))
}

fn work<R: Runner>(
    lab: &Lab<R>,
    request: &Request,
    shared: &Mutex<Shared>,
    job: usize,
    start: Instant,
    deadline: Option<Instant>,
) {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(script) = next(&mut lock(), request, deadline) else { return };
        let outcome = lab.run(&script, &format!("fuzz-{job}"));
        let mut shared = lock();
        match outcome {
            Err(error) => {
                shared.error.get_or_insert(error);
            }
            Ok(outcome) => {
                if let Err(error) = shared.report(&script, &outcome, request, start, deadline) {
                    shared.error.get_or_insert(error);
                }
                if outcome.failure().is_some() {
                    shared.failure.get_or_insert((script, outcome));
                }
            }
        }
    }
}

impl Shared {
    fn report(
        &mut self,
        script: &Script,
        outcome: &Outcome,
        request: &Request,
        start: Instant,
        deadline: Option<Instant>,
    ) -> Result<()> {
        for line in self.summary.take(script, outcome) {
            writeln!(self.record, "{line}")?;
        }
        let elapsed = start.elapsed().as_secs_f64();
        let summary = &self.summary;
        let message = format!(
            "{} programs ({:.1}/s), {} events, {} of {} triples, {} failed",
            summary.programs(),
            summary.programs() as f64 / elapsed.max(1.0),
            summary.events(),
            summary.triples(),
            Pair::COUNT,
            summary.failed
        );
        self.bar.set_message(message.clone());
        if !std::io::stderr().is_terminal() {
            let tenths = match (request.iterations, deadline) {
                (Some(iterations), _) => 10 * summary.programs() / iterations.max(1),
                (None, Some(deadline)) => {
                    (10.0 * elapsed / (deadline - start).as_secs_f64()) as u64
                }
                (None, None) => 0,
            };
            if tenths > self.tenths {
                self.tenths = tenths;
                eprintln!("{elapsed:.0} s: {message}");
            }
        }
        Ok(())
    }
}

/// Makes the failing program short, and writes it down.
fn investigate<R: Runner>(
    lab: &Lab<R>,
    script: &Script,
    outcome: &Outcome,
    folder: &Path,
) -> Result<PathBuf> {
    let last = outcome.verdicts.len().max(1) - 1;
    let (step, why) = outcome.failure().unwrap_or((None, ""));
    let program = &script.programs[last];
    for line in &outcome.tail {
        eprintln!("{line}");
    }
    println!("program {:#x} {} FAILED{}\n  {why}", program.seed, program.mode, at(program, step));
    println!("on {}", script.machine);
    let path = folder.join(format!("{:x}.fuzz", program.seed));
    // First of all what is known to fail.
    let whole = Script { programs: script.programs[..=last].to_vec(), ..script.clone() };
    write_script(&path, &whole, why)?;
    let alone = Script { programs: vec![program.clone()], ..script.clone() };
    let again = |script: &Script| -> Result<bool> {
        let attempts = if program.mode == Mode::Storm { ATTEMPTS } else { 1 };
        for _ in 0..attempts {
            if lab.run(script, "fuzz-again")?.failure().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if !again(&alone)? {
        let note = if again(&whole)? {
            "it needs the programs before it"
        } else {
            "it did not fail again"
        };
        println!("{note}: all of that boot's programs are in {}", build::shown(&path));
        return Ok(path);
    }
    eprintln!("making it shorter ({} steps)", program.steps.len());
    let mut judge = Booting {
        lab,
        machine: script.machine.clone(),
        mode: program.mode,
        seed: program.seed,
        deadline: Instant::now() + SHRINKING,
        why: why.to_owned(),
    };
    let steps = shrink::shrink(program.steps.clone(), &mut judge)?;
    let why = judge.why;
    let short = Script { programs: vec![Program { steps, ..program.clone() }], ..script.clone() };
    write_script(&path, &short, &why)?;
    println!("\n{short}\n  {why}");
    println!("run it again: cargo xtask fuzz --replay {}", build::shown(&path));
    Ok(path)
}

fn write_script(path: &Path, script: &Script, why: &str) -> Result<()> {
    let mut text = String::new();
    for line in why.lines() {
        text.push_str(&format!("# {line}\n"));
    }
    text.push_str(&script.to_string());
    fs::write(path, text).with_context(|| path.display().to_string())
}
