//! The copy of the sources that defects are planted in, and tests run on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use umbra_fuzz::program::Mode;

use super::patch::{Plant, Test, find_configuration, find_linux, find_reset};
use super::verdict::{Verdict, libtest_verdict, tail, target_verdict};
use crate::bounds::wait_bounded;
use crate::build::{self, Binary, Built};
use crate::fpcheck;
use crate::fuzz::batch::Lab;
use crate::fuzz::sample;
use crate::harness::{self, Emulators};
use crate::image::write_whole;
use crate::kernel::{Debian, Kernel};
use crate::linux::{Programs, VirtualMachines};
use crate::process::{self, Running};
use crate::setup;
use crate::toolchain::{Toolchain, cargo};
use crate::transcript::Outcome;
use crate::workspace;

/// A defect may make a test run for ever: so much time of its own it gets.
pub(super) const UNIT_BOUND: Duration = Duration::from_secs(300);
/// Boots that the fuzzer gets to find a defect.
pub(super) const FUZZ_BOOTS: u64 = 20;
/// Of the names that fit on the payload's command line.
pub(super) const NAMES_BYTES: usize = 900;

/// The copy of the sources, and where it is built.
pub(super) struct Copy {
    tree: PathBuf,
    target: PathBuf,
    toolchain: Toolchain,
    qemu: Emulators,
}

impl Copy {
    pub(super) fn set_up(qemu: Option<&Path>) -> Result<Self> {
        let folder = workspace::target_dir().join("plants");
        let usual = setup::qemu(qemu)?;
        let newer = setup::newer_qemu(&usual);
        Ok(Self {
            tree: folder.join("tree"),
            target: folder.join("target"),
            qemu: Emulators { usual, newer },
            toolchain: setup::toolchain()?,
        })
    }

    /// Makes the tree what the checkout is now.
    pub(super) fn refresh(&self) -> Result<()> {
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

    pub(super) fn apply(&self, plant: &Plant) -> Result<()> {
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
    pub(super) fn capture(&self, command: &mut Command) -> Result<(bool, String)> {
        let log = self.target.join("plants.log");
        fs::create_dir_all(&self.target)?;
        let file = fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let running = Running::start(command)?;
        let (status, late) = wait_bounded(&running, UNIT_BOUND)?;
        ensure!(!late, "not done after {} s: {}", UNIT_BOUND.as_secs(), process::line(command));
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok((status.success(), text))
    }

    /// The command whose failure is a compile error.
    pub(super) fn compile(&self, mut command: Command) -> Result<()> {
        match self.capture(&mut command)? {
            (true, _) => Ok(()),
            (false, text) => bail!("does not compile:\n{}", tail(&text, 40)),
        }
    }

    pub(super) fn unit(&self, package: &str, arguments: &[&str]) -> Command {
        let mut command = cargo();
        command
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUST_BACKTRACE", "0")
            .args(["test", "--quiet", "--package", package, "--lib", "--tests", "--no-fail-fast"])
            .args(arguments);
        command
    }

    pub(super) fn binary(&self, binary: Binary) -> Result<PathBuf> {
        let target = self.target.join("umbra");
        let mut command = binary.cargo_in(&self.toolchain, "build", &self.tree, &target);
        command.arg("--quiet");
        self.compile(command)?;
        Ok(binary.file(&target))
    }

    /// The test image, with a payload that runs these tests only.
    pub(super) fn image(&self, tests: &[&str]) -> Result<Built> {
        let built = Built {
            image: self.target.join("tests.img"),
            hyp: self.binary(build::HYP)?,
            host: self.binary(build::PAYLOAD)?,
            guest: self.binary(build::GUEST)?,
            guest32: Some(self.binary(build::GUEST32)?),
        };
        build::pack_built(&built, &format!("only={}", tests.join(",")))?;
        Ok(built)
    }

    pub(super) fn run_units(&self, package: &str, names: &[&str]) -> Result<Vec<Verdict>> {
        self.compile(self.unit(package, &["--no-run"]))?;
        // Without --quiet for libtest, which would print dots.
        let mut arguments = vec!["--", "--exact", "--format=pretty"];
        arguments.extend(names);
        let (_, text) = self.capture(&mut self.unit(package, &arguments))?;
        Ok(names.iter().map(|name| libtest_verdict(&text, name)).collect())
    }

    pub(super) fn run_targets(&self, configuration: &str, names: &[&str]) -> Result<Vec<Verdict>> {
        let built = self.image(names)?;
        let configuration = find_configuration(configuration)?;
        let firmware = match configuration.has_firmware() {
            true => self.binary(build::FIRMWARE)?,
            false => PathBuf::new(),
        };
        let outcomes = harness::run(&self.qemu, &built, &firmware, configuration);
        Ok(names.iter().map(|name| target_verdict(&outcomes, name)).collect())
    }

    pub(super) fn run_linux(&self, name: &str) -> Result<Verdict> {
        let kernel = match Kernel::debian(Debian::Release) {
            Ok(kernel) => kernel,
            Err(error) => return Ok(Verdict::Nothing(format!("no Linux to boot: {error:#}"))),
        };
        let configuration = find_linux(name)?;
        let programs = Programs {
            hyp: self.binary(build::HYP)?,
            init: self.binary(build::LINUX)?,
            virtual_machines: match configuration.has_virtual_machines() {
                true => Some(VirtualMachines::build_in(
                    &self.toolchain,
                    Debian::Release,
                    configuration.hunts(),
                    &self.tree,
                    &self.target,
                )?),
                false => None,
            },
            realm: configuration.realm(),
        };
        let qemu = match self.qemu.for_release(configuration.needs()) {
            Ok(qemu) => qemu,
            Err(why) => return Ok(Verdict::Nothing(why)),
        };
        let firmware = match configuration.has_firmware() {
            true => self.binary(build::FIRMWARE)?,
            false => PathBuf::new(),
        };
        Ok(match configuration.outcome(qemu, &programs, &firmware, &kernel) {
            Outcome::Ok => Verdict::Passed,
            Outcome::Skipped(why) => Verdict::Nothing(why),
            Outcome::Failed(why) => {
                Verdict::Failed(why.lines().next().unwrap_or_default().to_owned())
            }
        })
    }

    /// A machine to its end.
    pub(super) fn run_reset(&self, name: &str) -> Result<Verdict> {
        let (built, firmware) = (self.image(&[])?, self.binary(build::FIRMWARE)?);
        Ok(match find_reset(name)?.outcome(&self.qemu.usual, &built, &firmware) {
            Outcome::Ok => Verdict::Passed,
            Outcome::Skipped(why) => Verdict::Nothing(why),
            Outcome::Failed(why) => {
                Verdict::Failed(why.lines().next().unwrap_or_default().to_owned())
            }
        })
    }

    /// Random programs on this hyp.
    pub(super) fn run_fuzz(&self, hyp: Binary, mode: Mode) -> Result<Verdict> {
        let built = Built {
            image: self.target.join("tests.img"),
            hyp: self.binary(hyp)?,
            host: self.binary(build::PAYLOAD)?,
            guest: self.binary(build::GUEST)?,
            guest32: Some(self.binary(build::GUEST32)?),
        };
        let lab = Lab::on_qemu(self.qemu.usual.clone(), built, self.binary(build::FIRMWARE)?)?;
        Ok(match sample::sample(&lab, mode, sample::SEED, FUZZ_BOOTS, "fuzz-plant")? {
            None => Verdict::Passed,
            Some(why) => Verdict::Failed(why.lines().next().unwrap_or_default().to_owned()),
        })
    }

    pub(super) fn run(&self, test: &Test) -> Result<Verdict> {
        let one = |mut verdicts: Vec<Verdict>| verdicts.pop().context("one test, one verdict");
        match test {
            Test::Unit { package, name } => self.run_units(package, &[name]).and_then(one),
            Test::Target { configuration, name } => {
                self.run_targets(configuration, &[name]).and_then(one)
            }
            Test::Linux { name } => self.run_linux(name),
            Test::Reset { name } => self.run_reset(name),
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
    pub(super) fn baseline(&self, plants: &[Plant]) -> Result<Vec<String>> {
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
                Test::Linux { .. }
                | Test::Reset { .. }
                | Test::Fuzz(_)
                | Test::Judged(_)
                | Test::I5 => judge(test.to_string(), self.run(test)?),
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
    pub(super) fn plant(&self, plant: &Plant) -> Result<(Vec<String>, Vec<String>)> {
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

pub(super) fn same(path: &Path, content: &[u8]) -> Result<bool> {
    match fs::read(path) {
        Ok(old) => Ok(old == content),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

pub(super) fn all_files(folder: &Path) -> Result<Vec<PathBuf>> {
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
pub(super) fn parts<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a [&'a str]> {
    let longest = names.iter().map(|name| name.len() + 1).max().unwrap_or(1);
    names.chunks((NAMES_BYTES / longest).max(1))
}
