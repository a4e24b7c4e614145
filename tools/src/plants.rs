//! `xtask plants`: do the tests notice the defects that they are there for?
//!
//! A test that never fails proves nothing, and whether it can fail is not seen by looking at it. So
//! every defect that the tests claim to find is kept as a small patch in `tests/plants`, preceded by
//! lines that say what it is and which tests find it:
//!
//! ```text
//! What: the host's clamp is not put back when its registers are loaded
//! Row: r07
//! Test: unit umbra-hyp fp::tests::everybody_finds_what_they_left
//! Test: target max::r07_kernel_fp_between_exit_and_put
//! ```
//!
//! Each is applied to a copy of the sources, never to the checkout. The copy must still compile (a
//! compiler's error is not a test's finding), and each of the named tests must run and fail. Before
//! that they are run once on the copy as it is and must pass, so that a failure means the defect. A
//! patch that no longer applies is an error: the code has moved on, and the claim with it.
//!
//! The copy stays for the next time, as does its target directory, and only files that differ are
//! written, so that cargo compiles no more than a defect touches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use umbra_fuzz::program::Mode;

use crate::build::{self, Binary, Built};
use crate::fpcheck;
use crate::fuzz::sample;
use crate::harness::{self, CONFIGURATIONS, Configuration};
use crate::image::write_whole;
use crate::kernel::Kernel;
use crate::linux::{self, Programs};
use crate::process::{self, Running};
use crate::qemu::Qemu;
use crate::setup;
use crate::toolchain::{Toolchain, cargo};
use crate::transcript::Outcome;
use crate::workspace::{self, TARGET};

/// Where the patches are, in the checkout.
const FOLDER: &str = "tests/plants";

/// A defect may make a test run for ever.
const UNIT_BOUND: Duration = Duration::from_secs(300);

/// Boots that the fuzzer gets to find a defect.
const FUZZ_BOOTS: u64 = 20;

/// Of the names that fit on the payload's command line.
const NAMES_BYTES: usize = 900;

/// What is asked for.
pub struct Request {
    /// Plants or rows; none: all.
    pub names: Vec<String>,
    /// Whether the tests must first pass on the sources as they are.
    pub baseline: bool,
    /// A QEMU that was asked for.
    pub qemu: Option<PathBuf>,
}

/// A test that must find a defect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Test {
    /// By cargo on this machine.
    Unit { package: String, name: String },
    /// On QEMU.
    Target { configuration: String, name: String },
    /// A Linux above hyp.
    Linux { name: String },
    /// Random programs in this mode.
    Fuzz(Mode),
    /// The same, of hypercalls above all, each judged by the executable specification.
    Judged(Mode),
    /// The search for FP instructions in hyp's image.
    I5,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit { package, name } => write!(f, "unit {package} {name}"),
            Self::Target { configuration, name } => write!(f, "target {configuration}::{name}"),
            Self::Linux { name } => write!(f, "linux {name}"),
            Self::Fuzz(mode) => write!(f, "fuzz {mode}"),
            Self::Judged(mode) => write!(f, "judged {mode}"),
            Self::I5 => write!(f, "i5"),
        }
    }
}

impl Test {
    fn parse(text: &str) -> Result<Self> {
        match *text.split_whitespace().collect::<Vec<_>>() {
            ["unit", package, name] => {
                Ok(Self::Unit { package: package.to_owned(), name: name.to_owned() })
            }
            ["target", test] => {
                let (configuration, name) =
                    test.split_once("::").context("target tests are CONFIGURATION::NAME")?;
                find_configuration(configuration)?;
                Ok(Self::Target { configuration: configuration.to_owned(), name: name.to_owned() })
            }
            ["linux", name] => {
                find_linux(name)?;
                Ok(Self::Linux { name: name.to_owned() })
            }
            ["fuzz", "replay"] => Ok(Self::Fuzz(Mode::Replay)),
            ["fuzz", "storm"] => Ok(Self::Fuzz(Mode::Storm)),
            ["judged", "replay"] => Ok(Self::Judged(Mode::Replay)),
            ["judged", "storm"] => Ok(Self::Judged(Mode::Storm)),
            ["i5"] => Ok(Self::I5),
            _ => bail!(
                "`Test: {text}`: neither `unit PACKAGE NAME` nor `target MACHINE::NAME` nor \
                 `fuzz replay|storm` nor `judged replay|storm` nor `linux NAME` nor `i5`"
            ),
        }
    }
}

fn find_configuration(name: &str) -> Result<&'static Configuration> {
    let found = CONFIGURATIONS.iter().find(|configuration| configuration.name == name);
    found.with_context(|| format!("no machine is called {name}"))
}

fn find_linux(name: &str) -> Result<&'static linux::Configuration> {
    let found = linux::CONFIGURATIONS.iter().find(|configuration| configuration.name == name);
    found.with_context(|| format!("no Linux is called {name}"))
}

/// A defect.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plant {
    name: String,
    what: String,
    row: String,
    tests: Vec<Test>,
    path: PathBuf,
}

impl Plant {
    fn parse(path: &Path, text: &str) -> Result<Self> {
        let name = path.file_stem().context("no name")?.to_string_lossy().into_owned();
        let (mut what, mut row, mut tests) = (None, None, Vec::new());
        let mut lines = text.lines();
        for line in lines.by_ref() {
            if line.is_empty() {
                break;
            }
            let (key, value) = line.split_once(": ").with_context(|| {
                format!("`{line}` is no `Key: value`; the diff begins behind an empty line")
            })?;
            let value = value.trim();
            match key {
                "What" if what.is_none() => what = Some(value.to_owned()),
                "Row" if row.is_none() => row = Some(parse_row(value)?),
                "Test" => tests.push(Test::parse(value)?),
                "What" | "Row" => bail!("two lines `{key}`"),
                _ => bail!("`{key}` is none of What, Row, Test"),
            }
        }
        ensure!(!tests.is_empty(), "no `Test:` line");
        ensure!(lines.any(|line| line.starts_with("+++ ")), "no diff");
        Ok(Self {
            name,
            what: what.context("no `What:` line")?,
            row: row.context("no `Row:` line")?,
            tests,
            path: path.to_owned(),
        })
    }

    fn read(path: &Path) -> Result<Self> {
        let complain = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(complain)?;
        Self::parse(path, &text).with_context(complain)
    }

    /// Whether it is meant by a name on the command line.
    fn is(&self, name: &str) -> bool {
        self.name == name || self.row == name
    }
}

/// `r07`, or `-` for a defect that has no row.
fn parse_row(value: &str) -> Result<String> {
    let number = value.strip_prefix('r').filter(|n| n.len() == 2 && n.parse::<u8>().is_ok());
    ensure!(value == "-" || number.is_some(), "`Row: {value}`: neither rNN nor -");
    Ok(value.to_owned())
}

/// All plants, or those that are named.
fn select(names: &[String]) -> Result<Vec<Plant>> {
    let folder = workspace::root().join(FOLDER);
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut plants = paths.iter().map(|path| Plant::read(path)).collect::<Result<Vec<_>>>()?;
    for name in names {
        ensure!(plants.iter().any(|plant| plant.is(name)), "no plant is called {name}");
    }
    plants.retain(|plant| names.is_empty() || names.iter().any(|name| plant.is(name)));
    ensure!(!plants.is_empty(), "{FOLDER} holds no plants");
    Ok(plants)
}

/// How a test of a planted defect, or of none, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// It ran and failed, and what it said.
    Failed(String),
    /// It did not run, and why: that is neither.
    Nothing(String),
}

/// The copy of the sources, and where it is built.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
    toolchain: Toolchain,
    qemu: Qemu,
}

impl Copy {
    fn set_up(qemu: Option<&Path>) -> Result<Self> {
        let folder = workspace::target_dir().join("plants");
        Ok(Self {
            tree: folder.join("tree"),
            target: folder.join("target"),
            qemu: setup::qemu(qemu)?,
            toolchain: setup::toolchain()?,
        })
    }

    /// Makes the tree what the checkout is now.
    fn refresh(&self) -> Result<()> {
        fs::create_dir_all(&self.tree).with_context(|| self.tree.display().to_string())?;
        let root = workspace::root();
        let listed = process::stdout(Command::new("git").current_dir(&root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        let files: BTreeSet<&Path> = listed
            .split_terminator('\0')
            .map(Path::new)
            .filter(|p| root.join(p).is_file())
            .collect();
        for path in &files {
            let (from, to) = (root.join(path), self.tree.join(path));
            let content = fs::read(&from).with_context(|| from.display().to_string())?;
            if !same(&to, &content)? {
                write_whole(&to, &content)?;
            }
        }
        for path in all_files(&self.tree)? {
            if !files.contains(path.strip_prefix(&self.tree)?) {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    fn apply(&self, plant: &Plant) -> Result<()> {
        let mut command = Command::new("git");
        command
            .current_dir(&self.tree)
            // The tree lies inside a checkout but is none.
            .env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree))
            .arg("apply")
            .arg(&plant.path);
        process::stdout(&mut command).map(drop)
    }

    /// Runs a cargo command to its end and returns its output; an error if it runs too long.
    fn capture(&self, command: &mut Command) -> Result<(bool, String)> {
        let log = self.target.join("plants.log");
        fs::create_dir_all(&self.target)?;
        let file = fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let running = Running::start(command)?;
        let (done, ended) = mpsc::channel::<()>();
        let child = running.child().clone();
        let watch = thread::spawn(move || {
            // The sender is dropped when the child has ended.
            let late = ended.recv_timeout(UNIT_BOUND) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                // It may end just now.
                let _ = child.kill();
            }
            late
        });
        let status = running.child().wait();
        drop(done);
        let late = watch.join().map_err(|_| anyhow!("the watch over a child panicked"))?;
        ensure!(!late, "not done after {} s: {}", UNIT_BOUND.as_secs(), process::line(command));
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok((status?.success(), text))
    }

    /// The command whose failure is a compile error.
    fn compile(&self, mut command: Command) -> Result<()> {
        match self.capture(&mut command)? {
            (true, _) => Ok(()),
            (false, text) => bail!("does not compile:\n{}", tail(&text, 40)),
        }
    }

    fn unit(&self, package: &str, arguments: &[&str]) -> Command {
        let mut command = cargo();
        command
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUST_BACKTRACE", "0")
            .args(["test", "--quiet", "--package", package, "--lib"])
            .args(arguments);
        command
    }

    fn binary(&self, binary: Binary) -> Result<PathBuf> {
        let target = self.target.join("umbra");
        let mut command = self.toolchain.cargo_for("build", &self.tree, &target);
        command.arg("--quiet");
        binary.select(&mut command);
        self.compile(command)?;
        Ok(target.join(TARGET).join("release").join(binary.name))
    }

    /// The test image, with a payload that runs these tests only.
    fn image(&self, tests: &[&str]) -> Result<Built> {
        let built = Built {
            image: self.target.join("tests.img"),
            hyp: self.binary(build::HYP)?,
            host: self.binary(build::PAYLOAD)?,
            guest: self.binary(build::GUEST)?,
        };
        build::pack_built(&built, &format!("only={}", tests.join(",")))?;
        Ok(built)
    }

    fn run_units(&self, package: &str, names: &[&str]) -> Result<Vec<Verdict>> {
        self.compile(self.unit(package, &["--no-run"]))?;
        // Without --quiet for libtest, which would print dots.
        let mut arguments = vec!["--", "--exact", "--format=pretty"];
        arguments.extend(names);
        let (_, text) = self.capture(&mut self.unit(package, &arguments))?;
        Ok(names.iter().map(|name| libtest_verdict(&text, name)).collect())
    }

    fn run_targets(&self, configuration: &str, names: &[&str]) -> Result<Vec<Verdict>> {
        let built = self.image(names)?;
        let configuration = find_configuration(configuration)?;
        let firmware = match configuration.has_firmware() {
            true => self.binary(build::FIRMWARE)?,
            false => PathBuf::new(),
        };
        let outcomes = harness::run(&self.qemu, &built, &firmware, configuration);
        Ok(names.iter().map(|name| target_verdict(&outcomes, name)).collect())
    }

    fn run_linux(&self, name: &str) -> Result<Verdict> {
        let kernel = match Kernel::debian() {
            Ok(kernel) => kernel,
            Err(error) => return Ok(Verdict::Nothing(format!("no Linux to boot: {error:#}"))),
        };
        let programs = Programs { hyp: self.binary(build::HYP)?, init: self.binary(build::LINUX)? };
        let configuration = find_linux(name)?;
        let firmware = match configuration.has_firmware() {
            true => self.binary(build::FIRMWARE)?,
            false => PathBuf::new(),
        };
        let bounds = harness::BOUNDS;
        Ok(match configuration.outcome(&self.qemu, &programs, &firmware, &kernel, bounds) {
            Outcome::Ok => Verdict::Passed,
            Outcome::Skipped(why) => Verdict::Nothing(why),
            Outcome::Failed(why) => {
                Verdict::Failed(why.lines().next().unwrap_or_default().to_owned())
            }
        })
    }

    /// Random programs on this hyp.
    fn run_fuzz(&self, hyp: Binary, mode: Mode) -> Result<Verdict> {
        let built = Built {
            image: self.target.join("tests.img"),
            hyp: self.binary(hyp)?,
            host: self.binary(build::PAYLOAD)?,
            guest: self.binary(build::GUEST)?,
        };
        let lab = sample::lab(self.qemu.clone(), built, self.binary(build::FIRMWARE)?)?;
        Ok(match sample::sample(&lab, mode, sample::SEED, FUZZ_BOOTS, "fuzz-plant")? {
            None => Verdict::Passed,
            Some(why) => Verdict::Failed(why.lines().next().unwrap_or_default().to_owned()),
        })
    }

    fn run(&self, test: &Test) -> Result<Verdict> {
        let one = |mut verdicts: Vec<Verdict>| verdicts.pop().context("one test, one verdict");
        match test {
            Test::Unit { package, name } => self.run_units(package, &[name]).and_then(one),
            Test::Target { configuration, name } => {
                self.run_targets(configuration, &[name]).and_then(one)
            }
            Test::Linux { name } => self.run_linux(name),
            Test::Fuzz(mode) => self.run_fuzz(build::HYP, *mode),
            Test::Judged(mode) => self.run_fuzz(build::HYP_LOG, *mode),
            Test::I5 => {
                let hyp = self.binary(build::HYP)?;
                Ok(match fpcheck::check_hyp(&hyp) {
                    Ok(_) => Verdict::Passed,
                    Err(error) => Verdict::Failed(tail(&format!("{error:#}"), 1)),
                })
            }
        }
    }

    /// All tests of these plants on the sources as they are. Returns those that don't pass.
    fn baseline(&self, plants: &[Plant]) -> Result<Vec<String>> {
        let all: BTreeSet<&Test> = plants.iter().flat_map(|plant| &plant.tests).collect();
        let (mut units, mut targets) = (BTreeMap::new(), BTreeMap::new());
        let mut wrong = Vec::new();
        let mut judge = |test: String, verdict: Verdict| match verdict {
            Verdict::Passed => {}
            Verdict::Failed(why) => {
                wrong.push(format!("{test} fails without any defect: {why}"));
            }
            Verdict::Nothing(why) => wrong.push(format!("{test}: {why}")),
        };
        for test in &all {
            match test {
                Test::Unit { package, name } => {
                    units.entry(package.as_str()).or_insert_with(Vec::new).push(name.as_str());
                }
                Test::Target { configuration, name } => {
                    let names = targets.entry(configuration.as_str()).or_insert_with(Vec::new);
                    names.push(name.as_str());
                }
                Test::Linux { .. } | Test::Fuzz(_) | Test::Judged(_) | Test::I5 => {
                    judge(test.to_string(), self.run(test)?)
                }
            }
        }
        for (package, names) in &units {
            eprintln!("without a defect: {} tests of {package}", names.len());
            for (name, verdict) in names.iter().zip(self.run_units(package, names)?) {
                judge(format!("unit {package} {name}"), verdict);
            }
        }
        for (configuration, names) in &targets {
            eprintln!("without a defect: {} tests on {configuration}", names.len());
            for names in parts(names) {
                for (name, verdict) in names.iter().zip(self.run_targets(configuration, names)?) {
                    judge(format!("target {configuration}::{name}"), verdict);
                }
            }
        }
        Ok(wrong)
    }

    /// Plants one defect and runs its tests. Returns those that found it, and what is wrong.
    fn plant(&self, plant: &Plant) -> Result<(Vec<String>, Vec<String>)> {
        self.refresh()?;
        self.apply(plant).context("the patch does not apply any more")?;
        let (mut caught, mut wrong) = (Vec::new(), Vec::new());
        for test in &plant.tests {
            eprintln!("  {test}");
            match self.run(test)? {
                Verdict::Failed(why) => {
                    eprintln!("    fails, as it must: {why}");
                    caught.push(test.to_string());
                }
                Verdict::Passed => wrong.push(format!("{test} does not notice")),
                Verdict::Nothing(why) => wrong.push(format!("{test}: {why}")),
            }
        }
        Ok((caught, wrong))
    }
}

fn same(path: &Path, content: &[u8]) -> Result<bool> {
    match fs::read(path) {
        Ok(old) => Ok(old == content),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn all_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(all_files(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Names in parts that fit on a command line.
fn parts<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a [&'a str]> {
    let longest = names.iter().map(|name| name.len() + 1).max().unwrap_or(1);
    names.chunks((NAMES_BYTES / longest).max(1))
}

/// What libtest says of one test.
fn libtest_verdict(output: &str, name: &str) -> Verdict {
    let line = output.lines().find_map(|line| {
        let rest = line.strip_prefix("test ")?.strip_prefix(name)?;
        // "test NAME ... ok", "test NAME - should panic ... ok"
        rest.starts_with(' ').then(|| rest.rsplit_once(" ... "))?
    });
    match line {
        Some((_, "ok")) => Verdict::Passed,
        Some((_, "FAILED")) => Verdict::Failed(panic_message(output)),
        Some((_, other)) => Verdict::Nothing(format!("it ended with `{other}`")),
        None => Verdict::Nothing(format!("it did not run to its end:\n{}", tail(output, 10))),
    }
}

/// The first line of what a test panicked with.
fn panic_message(output: &str) -> String {
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    lines.nth(1).unwrap_or("(no message)").trim().to_owned()
}

/// What a machine says of one test. That it died before it got there is no finding.
fn target_verdict(outcomes: &[(String, Outcome)], name: &str) -> Verdict {
    match outcomes.iter().find(|(test, _)| test == name) {
        Some((_, Outcome::Ok)) => Verdict::Passed,
        Some((_, Outcome::Failed(why))) if why.starts_with("never ran") => {
            Verdict::Nothing(why.clone())
        }
        Some((_, Outcome::Failed(why))) => {
            Verdict::Failed(why.lines().next().unwrap_or_default().to_owned())
        }
        Some((_, Outcome::Skipped(why))) => Verdict::Nothing(format!("skipped: {why}")),
        None => match outcomes.iter().find(|(test, _)| test == crate::transcript::BOOT) {
            Some((_, Outcome::Failed(why))) => {
                Verdict::Nothing(format!("the machine did not get that far: {}", tail(why, 10)))
            }
            _ => Verdict::Nothing("there is no such test".to_owned()),
        },
    }
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A line of the table.
struct Row<'a> {
    plant: &'a Plant,
    caught: Vec<String>,
    wrong: Vec<String>,
}

impl Row<'_> {
    fn cells(&self) -> [String; 4] {
        let found = format!("{} of {}", self.caught.len(), self.plant.tests.len());
        let first = self.caught.first().map_or("NOT CAUGHT", String::as_str);
        let by = if self.wrong.is_empty() { first.to_owned() } else { format!("WRONG; {first}") };
        [self.plant.row.clone(), self.plant.name.clone(), found, by]
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let mut cells = vec![["row", "plant", "caught", "by"].map(str::to_owned)];
    cells.extend(rows.iter().map(Row::cells));
    let widths: [usize; 3] =
        std::array::from_fn(|n| cells.iter().map(|row| row[n].len()).max().unwrap_or(0));
    let line = |row: &[String; 4], what: &str| {
        let [a, b, c] = widths;
        format!("{:a$}  {:b$}  {:c$}  {}{what}\n", row[0], row[1], row[2], row[3])
    };
    let mut out = line(&cells[0], "");
    for (row, cells) in rows.iter().zip(&cells[1..]) {
        out += &line(cells, &format!("  ({})", row.plant.what));
    }
    out
}

/// Plants what is asked for and prints the table; whether every defect was found by every test named
/// for it.
pub fn plants(request: &Request) -> Result<bool> {
    let plants = select(&request.names)?;
    let copy = Copy::set_up(request.qemu.as_deref())?;
    copy.refresh()?;
    if request.baseline {
        let wrong = copy.baseline(&plants)?;
        if !wrong.is_empty() {
            bail!("the tests must pass before a defect is planted:\n{}", wrong.join("\n"));
        }
    }
    let mut rows = Vec::new();
    for (n, plant) in plants.iter().enumerate() {
        eprintln!("[{}/{}] {}: {}", n + 1, plants.len(), plant.name, plant.what);
        let (caught, wrong) = match copy.plant(plant) {
            Ok(found) => found,
            Err(error) => (Vec::new(), vec![format!("{error:#}")]),
        };
        for what in &wrong {
            eprintln!("  WRONG: {what}");
        }
        rows.push(Row { plant, caught, wrong });
    }
    copy.refresh()?;
    print!("{}", table(&rows));
    let wrong: Vec<_> = rows.iter().filter(|row| !row.wrong.is_empty()).collect();
    println!("{} plants, {} caught", rows.len(), rows.len() - wrong.len());
    for row in &wrong {
        println!("{}: {}", row.plant.name, row.wrong.join("; "));
    }
    Ok(wrong.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "What: FFR is at a constant offset\nRow: r02\n\
        Test: unit umbra-hyp fp::tests::one\nTest: target vq4::r02_two\n\
        Test: linux keeps_every_register\nTest: judged storm\nTest: i5\n\n\
        --- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";

    fn error(text: &str) -> String {
        format!("{:#}", Plant::parse(Path::new("p/r02-x.patch"), text).unwrap_err())
    }

    #[test]
    fn a_plant_says_what_it_is() {
        let plant = Plant::parse(Path::new("p/r02-x.patch"), GOOD).unwrap();
        assert_eq!((plant.name.as_str(), plant.row.as_str()), ("r02-x", "r02"));
        assert_eq!(plant.what, "FFR is at a constant offset");
        let tests: Vec<_> = plant.tests.iter().map(Test::to_string).collect();
        assert_eq!(
            tests,
            [
                "unit umbra-hyp fp::tests::one",
                "target vq4::r02_two",
                "linux keeps_every_register",
                "judged storm",
                "i5"
            ]
        );
        assert!(plant.is("r02") && plant.is("r02-x") && !plant.is("r0"));
    }

    #[test]
    fn a_bad_header_is_an_error() {
        assert!(error(&GOOD.replace("What:", "Why:")).contains("Why"));
        assert!(error(&GOOD.replace("What: FFR is at a constant offset\n", "")).contains("What"));
        assert!(error(&GOOD.replace("Row: r02", "Row: seven")).contains("rNN"));
        assert!(error(&GOOD.replace("Row: r02", "Row: r02\nRow: r03")).contains("two"));
        assert!(error(&GOOD.replace("vq4::", "pdp11::")).contains("pdp11"));
        assert!(error(&GOOD.replace("linux keeps", "linux loses")).contains("loses"));
        assert!(error(&GOOD.replace("judged storm", "judged wind")).contains("wind"));
        assert!(error(&GOOD.replace("Test: i5", "Test: maybe")).contains("maybe"));
        assert!(error("What: x\nRow: -\n\n+++ b/x\n").contains("Test"));
        assert!(error(&GOOD.replace("+++ ", "*** ")).contains("no diff"));
        assert!(error(&GOOD.replace("\n\n---", "\n---")).contains("empty line"));
    }

    #[test]
    fn only_a_failure_of_that_test_counts() {
        let output = "running 3 tests\ntest a::b ... FAILED\ntest a::bc ... ok\n\
            test a::d - should panic ... ok\ntest a::e ... ignored\n\
            thread 'a::b' panicked at x.rs:1:\n  it is wrong\n";
        assert_eq!(libtest_verdict(output, "a::b"), Verdict::Failed("it is wrong".to_owned()));
        assert_eq!(libtest_verdict(output, "a::bc"), Verdict::Passed);
        assert_eq!(libtest_verdict(output, "a::d"), Verdict::Passed);
        assert!(matches!(libtest_verdict(output, "a::e"), Verdict::Nothing(_)));
        assert!(matches!(libtest_verdict(output, "a"), Verdict::Nothing(_)));
        assert!(matches!(libtest_verdict("error: could not compile", "a::b"), Verdict::Nothing(_)));
    }

    #[test]
    fn a_machine_that_dies_early_finds_nothing() {
        let outcomes = [
            ("boot".to_owned(), Outcome::Failed("hyp panicked".to_owned())),
            ("a".to_owned(), Outcome::Failed("died during this test: silence".to_owned())),
            ("b".to_owned(), Outcome::Failed("never ran: silence".to_owned())),
            ("c".to_owned(), Outcome::Ok),
            ("d".to_owned(), Outcome::Skipped("no SVE".to_owned())),
        ];
        assert!(matches!(target_verdict(&outcomes, "a"), Verdict::Failed(_)));
        assert_eq!(target_verdict(&outcomes, "c"), Verdict::Passed);
        for name in ["b", "d", "x"] {
            assert!(matches!(target_verdict(&outcomes, name), Verdict::Nothing(_)), "{name}");
        }
        assert!(matches!(target_verdict(&[], "x"), Verdict::Nothing(_)));
    }

    #[test]
    fn every_plant_in_the_checkout_can_be_read() {
        let plants = select(&[]).unwrap();
        let rows: BTreeSet<_> = plants.iter().map(|plant| plant.row.as_str()).collect();
        assert!(rows.contains("r01"), "{rows:?}");
        assert!(select(&["no such plant".to_owned()]).is_err());
    }
}
