//! `cargo xtask bench`: what hyp costs, in executed instructions, against the floor and against Linux.
//!
//! The payload (`tests/payload/src/bench`) measures on a machine of one CPU that counts instructions
//! (`-icount shift=0,sleep=off`): the guest times its own round trips with its own counter. A second,
//! short run of the same is traced ([`trace`]): it says how much of each count is hyp's and how much its
//! host's, how many barriers, TLB invalidations and cache operations there were, and in which functions
//! the instructions went. The two must agree, or nothing is reported. [`floor`] says what the least
//! would be.
//!
//! Counts of different QEMU releases don't compare: `-cpu max` has more registers to switch in a later
//! one. Nor do those of different compilers, quite.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::code::{Code, World};
use self::floor::Features;
use self::row::{Fp, Named, Policy, Row};
use self::trace::Collector;
use crate::bounds::Bounds;
use crate::build::{self, Built};
use crate::console::{Fields, Line, Table, parse};
use crate::image;
use crate::qemu::{Machine, Qemu};
use crate::setup;
use crate::workspace;

pub mod code;
pub mod counts;
pub mod floor;
pub mod report;
pub mod row;
pub mod targets;
pub mod timeline;
pub mod trace;

/// Iterations of a traced run.
const TRACED: u64 = 2;
/// Numbers of CPUs of the machines on which growth is looked at.
const CPUS: [u32; 4] = [1, 2, 4, 8];

/// What `xtask bench` is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// A QEMU by name.
    pub qemu: Option<PathBuf>,
    /// Iterations of a measurement: a multiple of 16.
    pub iterations: u64,
    /// The selection that the tests look at, too.
    pub short: bool,
    /// Every row in the table, not a selection.
    pub all: bool,
    /// Print the rows as JSON to this file, or instead of the table if it has no name.
    pub json: Option<Option<PathBuf>>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// An earlier `--json` to compare with.
    pub baseline: Option<PathBuf>,
}

/// What a run of the payload said.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Measurements.
    pub rows: Vec<Row>,
    /// What it said of the machine.
    pub machine: Fields,
    /// Pages by purpose, if it looked.
    pub pages: Option<Fields>,
}

/// All that was found out.
pub struct Bench {
    /// QEMU's release.
    pub qemu: (u32, u32),
    /// The CPU.
    pub cpu: String,
    /// Measurements with floors and traces.
    pub rows: Vec<Row>,
    /// What runs on machines with more CPUs said.
    pub growth: Vec<Run>,
    /// Where the instructions go, of the rows that have a target.
    pub profiles: Vec<(String, Vec<(String, f64)>)>,
    /// Sizes of hyp's image.
    pub image: Vec<(String, u64)>,
}

/// Nanoseconds of virtual time per counter tick.
fn tick(machine: &Fields) -> Result<f64> {
    Ok(1e9 / Named(machine).need("frequency")? as f64)
}

/// The features of the machine that a run describes.
pub fn features(machine: &Fields) -> Features {
    Features::new(|name| Named(machine).number(name).ok().flatten().unwrap_or(0))
}

/// Takes the console's lines in.
#[derive(Default)]
struct Listener {
    fields: Vec<Fields>,
    verdict: Option<Result<(), String>>,
    tail: Vec<String>,
}

impl Listener {
    fn take(&mut self, line: &str) {
        match parse(line) {
            Line::Row(Table::Bench, fields) => self.fields.push(fields),
            Line::Verdict(verdict) => self.verdict = Some(verdict),
            _ => self.tail.push(line.to_owned()),
        }
    }

    /// The rows, if the payload was content.
    fn finish(self, failure: Option<String>) -> Result<Run> {
        let failure = failure.or_else(|| match &self.verdict {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(why.clone()),
            None => Some("the payload ended without a verdict".to_owned()),
        });
        if let Some(why) = failure {
            bail!("{why}\n{}", self.tail.join("\n"));
        }
        let is = |fields: &Fields, name: &str| Named(fields).get("name") == Some(name);
        let machine = self.fields.iter().find(|fields| is(fields, "machine"));
        let machine = machine.context("nothing is said of the machine")?.clone();
        let nanoseconds = tick(&machine)?;
        let features = features(&machine);
        let mut rows = Vec::new();
        for fields in &self.fields {
            if let Some(mut row) = Row::read(fields, nanoseconds)? {
                row.floor = floor::of(&row, &features);
                rows.push(row);
            }
        }
        let pages = self.fields.into_iter().find(|fields| is(fields, "pages"));
        Ok(Run { rows, machine, pages })
    }
}

/// A machine that measures.
fn machine(cpu: &str, smp: u32) -> Machine {
    Machine { cpu: cpu.to_owned(), smp, icount: true, ..Machine::default() }
}

/// The test image with other words on its command line.
fn with_words(tests: &Built, words: &str, name: &str) -> Result<PathBuf> {
    let path = tests.image.with_file_name(format!("{name}.img"));
    // What is counted comes later; a wipe is a wait.
    image::add_to_command_line(&tests.image, &format!("{words} umbra.boot-wipe=off"), &path)?;
    Ok(path)
}

/// One measured run.
pub fn measure(qemu: &Qemu, tests: &Built, cpu: &str, smp: u32, words: &str) -> Result<Run> {
    let image = with_words(tests, &format!("bench {words}"), &format!("bench-{smp}"))?;
    let mut listener = Listener::default();
    let end =
        qemu.run(&machine(cpu, smp), &image, Bounds::default(), &mut |line| listener.take(line))?;
    listener.finish(end.failure())
}

/// One traced run of the same; the collector has the rows' counts then.
pub fn traced(
    qemu: &Qemu,
    tests: &Built,
    cpu: &str,
    words: &str,
    collector: &mut Collector,
) -> Result<Run> {
    let words = format!("bench {words} iterations={TRACED} trace");
    let image = with_words(tests, &words, "bench-traced")?;
    let mut listener = Listener::default();
    let result = trace::run(qemu, &machine(cpu, 1), &image, collector, &mut |line| {
        listener.take(line);
    });
    let failure = result.err().map(|error| format!("{error:#}"));
    listener.finish(failure)
}

/// Puts what the traced run saw beside what was measured. The same was measured, in the same order.
fn join(rows: &mut [Row], traced: &Run, collector: &Collector) -> Result<()> {
    if rows.len() != traced.rows.len() || rows.len() != collector.rows.len() {
        bail!(
            "{} rows were measured, {} traced, {} marked",
            rows.len(),
            traced.rows.len(),
            collector.rows.len()
        );
    }
    let mut differ = String::new();
    for ((row, other), counted) in rows.iter_mut().zip(&traced.rows).zip(&collector.rows) {
        if row.key() != other.key() {
            bail!("measured was {}, traced {}", row.key(), other.key());
        }
        let per_turn = counted.per_turn(other.iterations);
        let total: f64 = per_turn.worlds.iter().sum();
        if !agree(row, total) {
            let _ = write!(
                differ,
                "\n{}: {:.1} by the counter, {total:.1} by the trace",
                row.key(),
                row.instructions
            );
        }
        row.traced = Some(per_turn);
    }
    if differ.is_empty() { Ok(()) } else { bail!("the counts do not agree:{differ}") }
}

/// The counter's reading and the log are of the same instructions, but for the readings themselves and,
/// in a run of few turns, what is done once.
fn agree(row: &Row, traced: f64) -> bool {
    // The instruction that trapped was wanted anyway.
    let traced = if row.name == "first_touch" { traced - 1.0 } else { traced };
    let once = if row.name == "irq_exit" || row.iterations < 100 { 0.1 * traced } else { 0.0 };
    (row.instructions - traced).abs() <= 8.0 + 0.01 * traced + once
}

/// Where reports go.
pub fn folder() -> PathBuf {
    workspace::target_dir().join("bench")
}

/// Checks the counts of this build in.
pub fn update(qemu: Option<&Path>) -> Result<bool> {
    let qemu = setup::qemu(qemu)?;
    let toolchain = setup::toolchain()?;
    let tests = build::tests(&toolchain)?;
    counts::update(&qemu, &tests, &toolchain.rustc.release()?)?;
    Ok(true)
}

/// Builds, measures and reports; whether nothing has grown.
pub fn bench(request: &Request) -> Result<bool> {
    if request.iterations == 0 || !request.iterations.is_multiple_of(16) {
        bail!("--iterations: a multiple of 16, so that roundings cancel out");
    }
    let qemu = setup::qemu(request.qemu.as_deref())?;
    let toolchain = setup::toolchain()?;
    let tests = build::tests(&toolchain)?;
    let baseline = request.baseline.as_deref().map(read_baseline).transpose()?;
    let found = run(&qemu, &tests, request)?;

    let json = Value::Array(found.rows.iter().map(Row::json).collect());
    let pretty = format!("{json:#}\n");
    match &request.json {
        Some(None) => print!("{pretty}"),
        Some(Some(path)) => {
            std::fs::write(path, pretty).with_context(|| path.display().to_string())?;
        }
        None => {}
    }
    let quiet = matches!(request.json, Some(None));
    if !quiet {
        print!("{}", report::text(&found, request.all));
    }
    let path = match &request.report {
        Some(path) => path.clone(),
        None => folder().join("report.html"),
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, report::html(&found)).with_context(|| path.display().to_string())?;
    eprintln!("report: {}", build::shown(&path));
    match baseline {
        None => Ok(true),
        Some(baseline) => {
            let changes = compare(&found.rows, &baseline);
            let text = shown_changes(&changes);
            if quiet {
                eprint!("{text}")
            } else {
                print!("{text}")
            }
            Ok(changes.iter().all(|change| change.percent <= CHANGE))
        }
    }
}

fn run(qemu: &Qemu, tests: &Built, request: &Request) -> Result<Bench> {
    let (major, minor) = qemu.version;
    let short = if request.short { "short" } else { "" };
    eprintln!("measuring on QEMU {major}.{minor}, {}", request.cpu);
    let words = format!("{short} iterations={}", request.iterations);
    let Run { mut rows, machine, .. } = measure(qemu, tests, &request.cpu, 1, &words)?;
    eprintln!("{} rows; tracing the same", rows.len());
    let mut collector = Collector::new(Code::read(tests)?, None);
    let other = traced(qemu, tests, &request.cpu, short, &mut collector)?;
    join(&mut rows, &other, &collector)?;
    let profiles = profiles(&rows, &other, &collector);
    let mut growth = vec![Run { rows: Vec::new(), machine, pages: None }];
    if !request.short {
        growth.clear();
        for cpus in CPUS {
            eprintln!("growth: {cpus} CPUs");
            let words = format!("growth iterations={}", request.iterations);
            growth.push(measure(qemu, tests, &request.cpu, cpus, &words)?);
        }
        rows.extend(growth.iter().flat_map(|run| run.rows.iter().cloned()));
    }
    let image = image_sizes(&tests.hyp)?;
    Ok(Bench { qemu: qemu.version, cpu: request.cpu.clone(), rows, growth, profiles, image })
}

/// Where hyp's instructions go, for the rows that targets are about.
fn profiles(
    rows: &[Row],
    traced: &Run,
    collector: &Collector,
) -> Vec<(String, Vec<(String, f64)>)> {
    let wanted = |row: &Row| {
        let plain = matches!(row.policy, None | Some(Policy::Lazy))
            && row.vm.as_deref().unwrap_or("normal") == "normal"
            && matches!(row.hints, None | Some(row::Hints::None))
            && matches!(row.vl_bytes, None | Some(64));
        let about = match row.name.as_str() {
            "exit_to_host" => row.guest_fp == Some(Fp::None) && row.host_fp == Some(Fp::None),
            "first_touch" => row.guest_fp == Some(Fp::Sve) && row.host_fp == Some(Fp::Sve),
            "el2_trap" | "null_hypercall" => true,
            _ => false,
        };
        plain && about
    };
    rows.iter()
        .zip(&traced.rows)
        .zip(&collector.rows)
        .filter(|((row, _), _)| wanted(row))
        .map(|((row, other), counted)| {
            let profile = trace::profile(counted, &collector.code, World::Hyp, other.iterations);
            (row.key(), profile)
        })
        .collect()
}

/// Bytes of hyp's image by what they are.
fn image_sizes(hyp: &Path) -> Result<Vec<(String, u64)>> {
    use object::{Object, ObjectSection, SectionKind};
    let data = std::fs::read(hyp)?;
    let file = object::File::parse(data.as_slice())?;
    let sum = |wanted: &dyn Fn(SectionKind) -> bool| {
        file.sections().filter(|s| wanted(s.kind()) && s.address() != 0).map(|s| s.size()).sum()
    };
    Ok(vec![
        ("code".to_owned(), sum(&|kind| kind == SectionKind::Text)),
        (
            "read-only data".to_owned(),
            sum(&|kind| matches!(kind, SectionKind::ReadOnlyData | SectionKind::ReadOnlyString)),
        ),
        (
            "data".to_owned(),
            sum(&|kind| matches!(kind, SectionKind::Data | SectionKind::UninitializedData)),
        ),
    ])
}

/// Percent by which a count may change unmarked.
pub const CHANGE: f64 = 2.0;

fn read_baseline(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let rows = value.as_array().with_context(|| format!("{}: not an array", path.display()))?;
    rows.iter()
        .map(Row::from_json)
        .collect::<Result<_>>()
        .with_context(|| path.display().to_string())
}

/// A count that is not what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Of which row.
    pub key: String,
    /// What it was.
    pub before: f64,
    /// What it is.
    pub now: f64,
    /// By how much.
    pub percent: f64,
}

/// The rows that changed by more than [`CHANGE`] percent.
pub fn compare(rows: &[Row], baseline: &[Row]) -> Vec<Change> {
    rows.iter()
        .filter_map(|row| {
            let key = row.key();
            let before = baseline.iter().find(|old| old.key() == key)?.instructions;
            let percent = 100.0 * (row.instructions - before) / before.max(1.0);
            let now = row.instructions;
            (percent.abs() > CHANGE).then_some(Change { key, before, now, percent })
        })
        .collect()
}

fn shown_changes(changes: &[Change]) -> String {
    let mut text = String::new();
    if changes.is_empty() {
        let _ = writeln!(text, "\nnothing changed by more than {CHANGE} %");
    } else {
        let _ = writeln!(text, "\nchanged by more than {CHANGE} %:");
    }
    for Change { key, before, now, percent } in changes {
        let _ = writeln!(text, "{percent:+6.1} %  {before:9.1} -> {now:9.1}  {key}");
    }
    text
}

/// What `xtask trace` is asked for.
#[derive(Clone, Debug, Default)]
pub struct TraceRequest {
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// A QEMU by name.
    pub qemu: Option<PathBuf>,
    /// Where the timeline goes.
    pub output: PathBuf,
    /// Everything that the bench measures, not a selection.
    pub all: bool,
}

/// Writes a timeline of a traced run.
pub fn timeline(request: &TraceRequest) -> Result<bool> {
    let qemu = setup::qemu(request.qemu.as_deref())?;
    let tests = build::tests(&setup::toolchain()?)?;
    let short = if request.all { "" } else { "short" };
    let mut collector = Collector::new(Code::read(&tests)?, Some(timeline::Timeline::default()));
    let run = traced(&qemu, &tests, &request.cpu, short, &mut collector)?;
    let names: Vec<_> = run.rows.iter().map(Row::key).collect();
    let timeline = collector.timeline.take().context("a timeline was asked for")?;
    let trace = timeline.finish(&names, &collector.code);
    if let Some(folder) = request.output.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&request.output, trace.to_string())
        .with_context(|| request.output.display().to_string())?;
    println!(
        "{}: {} measurements, {} instructions; open it in ui.perfetto.dev or chrome://tracing",
        build::shown(&request.output),
        names.len(),
        trace["otherData"]["instructions"]
    );
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, instructions: f64) -> Row {
        Row { name: name.to_owned(), instructions, iterations: 1600, ..Row::default() }
    }

    #[test]
    fn changes_over_two_percent_are_marked_in_both_directions() {
        let before = [row("a", 100.0), row("b", 100.0), row("c", 100.0), row("gone", 1.0)];
        let now = [row("a", 101.9), row("b", 102.1), row("c", 97.0), row("new", 5.0)];
        let changes = compare(&now, &before);
        let keys: Vec<_> = changes.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(keys, ["b", "c"]);
        assert!(shown_changes(&changes).contains("+2.1 %"), "{}", shown_changes(&changes));
        assert!(shown_changes(&[]).contains("nothing changed"));
    }

    #[test]
    fn a_count_that_the_trace_does_not_see_is_noticed() {
        assert!(agree(&row("exit_to_host", 700.1), 700.0));
        assert!(!agree(&row("exit_to_host", 750.0), 700.0));
        assert!(agree(&row("first_touch", 300.0), 301.0));
    }

    #[test]
    fn a_run_without_a_good_verdict_is_none() {
        let mut listener = Listener::default();
        listener.take("@bench name=machine frequency=62500000 pfr1=0x1000000");
        listener.take(
            "@bench name=null_hypercall ticks=10 iterations=2 bytes=0 saves=0 loads=0 exits=0",
        );
        assert!(Listener::default().finish(None).is_err());
        let mut good = Listener { verdict: Some(Ok(())), ..Listener::default() };
        good.fields.clone_from(&listener.fields);
        let run = good.finish(None).unwrap();
        assert_eq!(run.rows[0].instructions, 80.0);
        assert_eq!(run.rows[0].floor, Some(24));
        assert!(features(&run.machine).sme);
        listener.verdict = Some(Err("lost".to_owned()));
        assert!(listener.finish(None).unwrap_err().to_string().contains("lost"));
    }
}
