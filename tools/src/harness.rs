//! The on-target tests as `cargo test` sees them.
//!
//! One machine per [`Configuration`] boots the test payload and runs all of its tests; every pair
//! of configuration and test then shows as one test with a name, a result and its own part of the
//! console. The names come from the machine: it lists its tests before it runs the first, so a
//! machine that dies takes no test with it unseen. The test during which it died fails, those that
//! never ran fail, and so does `CONFIGURATION::boot`, which stands for the machine as a whole: it
//! came up, ran what it listed, found itself well and powered off.
//!
//! What is left of a machine that has ended ([`crate::remains`]) is one test each: `reset::NAME`.
//!
//! A Linux ([`crate::linux`]) is one test: `linux::NAME`. Where its kernel can't be had, it is ignored
//! and says why.

mod failures;
mod settings;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::board::Board;
use crate::bounds::Bounds;
use crate::build::Built;
use crate::firmware::{self, Setup, SuspendFormat};
use crate::fpcheck;
use crate::image;
use crate::kernel::{Debian, Kernel};
use crate::linux::{self, Programs, VirtualMachines};
use crate::process;
use crate::qemu::{Device, Machine, NEWER, Release, Smmu};
use crate::remains;
use crate::setup;
use crate::transcript::{self, Outcome, Transcript};

pub use failures::Failures;
pub use settings::{Emulators, Settings};

/// Machines that run at the same time: each keeps several of this machine's CPUs busy.
const MACHINES_AT_ONCE: usize = 2;

/// A machine that the tests run on.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// What its tests' names begin with.
    pub name: &'static str,
    /// QEMU's `-cpu`.
    pub cpu: &'static str,
    /// Number of CPUs.
    pub smp: u32,
    /// Vector length of each CPU in bytes, by the EL3 test firmware; empty: all that it has.
    pub vls: &'static [u16],
    /// Likewise in streaming mode.
    pub svls: &'static [u16],
    /// CPUs that the firmware refuses to start once.
    pub late: &'static [u32],
    /// Layout of the firmware's power_state.
    pub suspend: SuspendFormat,
    /// Words for hyp's command line.
    pub options: &'static str,
    /// Words for the test kernel's: which areas of its tests it runs; empty: all.
    pub areas: &'static str,
    /// With firmware: EL2 has memory from 2 GiB on only, and the image is there.
    pub high: bool,
    /// Not 0: firmware refuses and delays calls, which ones follows from this.
    pub trouble: u64,
    /// With firmware: the device tree has everything that one may have.
    pub odd_tree: bool,
    /// Memory has tags.
    pub mte: bool,
    /// The firmware has a TRNG.
    pub trng: bool,
    /// The oldest QEMU that it runs on, if the usual one need not do.
    pub needs: Option<Release>,
    /// The SMMU in front of PCIe.
    pub smmu: Smmu,
    /// Devices on PCIe.
    pub devices: &'static [Device],
}

/// All of them: every VL the emulator has, none, and CPUs of several generations.
pub const CONFIGURATIONS: &[Configuration] = &[
    configuration("max", "max", 4),
    without_streaming(configuration("max-1cpu", "max", 1)),
    // QEMU 7.2 aborts where a streaming length is narrowed to more than sve-max-vq.
    without_streaming(configuration("vq1", "max,sve-max-vq=1", 4)),
    without_streaming(configuration("vq2", "max,sve-max-vq=2", 4)),
    without_streaming(configuration("vq4", "max,sve-max-vq=4", 4)),
    configuration("no-sve", "max,sve=off,sme=off", 4),
    configuration("cortex-a57", "cortex-a57", 4),
    configuration("a64fx", "a64fx", 4),
    configuration("neoverse-n1", "neoverse-n1", 4),
    plain("asym", &[32, 256, 64, 128], &[], SuspendFormat::Original),
    plain("asym-narrow-boot", &[16, 256, 256, 128], &[], SuspendFormat::Extended),
    plain("asym-late", &[32, 64, 64, 256], &[3], SuspendFormat::Original),
    plain("asym-late-narrow", &[128, 64, 64, 16], &[3], SuspendFormat::Extended),
    // The loader can have a protected guest's registers stay on the CPU.
    Configuration {
        options: "umbra.host-vl=common umbra.protected-fp=lazy",
        ..plain("asym-common", &[32, 256, 64, 128], &[], SuspendFormat::Extended)
    },
    // One late CPU lacks what the others have, the other has more.
    common(plain("asym-common-late", &[64, 256, 16, 256], &[2, 3], SuspendFormat::Original)),
    // The same binaries where all RAM is somewhere else.
    high(plain("ram-high", &[256, 64, 256, 32], &[], SuspendFormat::Original)),
    // Streaming mode: none; without FFR; at lengths among which the shortest are not; on CPUs that
    // have nothing else; different on each CPU.
    areas(configuration("no-sme", "max,sme=off", 2), "areas=version,hidden,lifecycle,sme_host"),
    areas(configuration("no-fa64", "max,sme_fa64=off", 4), SME_AREAS),
    areas(configuration("svl-gaps", "max,sve-max-vq=4,sme256=on,sme1024=on", 4), SME_AREAS),
    areas(configuration("sme-no-sve", "max,sve=off", 4), SME_AREAS),
    streaming(
        asymmetric("asym-svl", &[64, 256, 64, 128], &[], SuspendFormat::Original),
        &[128, 64, 256, 64],
    ),
    streaming(
        common(asymmetric("asym-svl-common", &[256, 64, 128, 256], &[3], SuspendFormat::Extended)),
        &[64, 256, 64, 32],
    ),
    // Exceptions set PSTATE.TCO.
    Configuration {
        mte: true,
        ..areas(configuration("mte", "max", 2), "areas=levels,aborts,hidden")
    },
    // Firmware as firmware may be, in two ways. With the other format of power_state, the other seed.
    troubled(configuration("trouble", "max", 4), 0x5eed),
    troubled(asymmetric("asym-trouble", &[64, 32, 128], &[], SuspendFormat::Extended), 0xbad_f00d),
    // CPUs without a generator of their own.
    Configuration { trng: true, ..areas(configuration("trng", "neoverse-n1", 2), "areas=trng") },
    Configuration { odd_tree: true, ..areas(configuration("odd-tree", "max", 4), ODD_AREAS) },
    // PCIe behind an SMMU that has a stage 2; one that isn't there, whatever the tree says; none.
    with_devices(configuration("dma", "max", 4), Smmu::V3, "areas=dma"),
    with_devices(configuration("dma-bypass", "max", 2), Smmu::Bypassed, "areas=dma_open"),
    Configuration {
        needs: None,
        ..with_devices(configuration("dma-withheld", "max", 2), Smmu::None, WITHHELD)
    },
    // The same, which the host keeps.
    open("dma-auto", "umbra.dma=auto"),
    open("dma-unsafe", "umbra.dma=unsafe"),
];

/// What is of interest where devices are withheld.
const WITHHELD: &str = "areas=dma_withheld";

/// Devices that read and write memory as their driver tells them: one whose StreamID is the emulator's, one
/// whose StreamID is the driver's.
const MASTERS: &[Device] = &[Device::Edu, Device::EduBehindPort];

/// Devices reach memory, and nothing is done about it.
const fn open(name: &'static str, options: &'static str) -> Configuration {
    let configuration = configuration(name, "max", 2);
    Configuration {
        needs: None,
        options,
        ..with_devices(configuration, Smmu::None, "areas=dma_policy")
    }
}

/// There are devices that reach memory.
const fn with_devices(
    configuration: Configuration,
    smmu: Smmu,
    words: &'static str,
) -> Configuration {
    let needs = Some(NEWER);
    Configuration { smmu, devices: MASTERS, needs, areas: words, ..configuration }
}

/// Machines that wipe their memory when they boot: one as anybody's is; one where much must be left alone;
/// one with DC ZVA of another size.
const WIPES: &[&str] = &["max", "odd-tree", "cortex-a57"];

/// What is of interest where the device tree differs.
const ODD_AREAS: &str = "areas=version,pages,lifecycle,memory,reserved,fp_smp,storm";

/// Firmware refuses and delays calls, as follows from a seed.
const fn troubled(configuration: Configuration, seed: u64) -> Configuration {
    Configuration { trouble: seed, ..areas(configuration, "areas=trouble") }
}

/// What is of interest where only streaming mode differs.
const SME_AREAS: &str = "areas=version,hidden,fp_smp,power,host_vl,sme_host,sme_guest,sme_switch";

/// Only some areas of the tests, by words for the test kernel.
const fn areas(configuration: Configuration, areas: &'static str) -> Configuration {
    Configuration { areas, ..configuration }
}

/// Where streaming mode is as on other machines.
const fn without_streaming(configuration: Configuration) -> Configuration {
    areas(configuration, "without=sme_host,sme_guest,sme_switch")
}

/// CPUs that differ in vector length, and in nothing else.
const fn plain(
    name: &'static str,
    vls: &'static [u16],
    late: &'static [u32],
    suspend: SuspendFormat,
) -> Configuration {
    without_streaming(asymmetric(name, vls, late, suspend))
}

/// CPUs of these streaming vector lengths.
const fn streaming(configuration: Configuration, svls: &'static [u16]) -> Configuration {
    Configuration { svls, ..configuration }
}

/// EL2 has no memory below 2 GiB.
const fn high(configuration: Configuration) -> Configuration {
    Configuration { high: true, ..configuration }
}

/// The host is held to the common vector lengths.
const fn common(configuration: Configuration) -> Configuration {
    Configuration { options: "umbra.host-vl=common", ..configuration }
}

const fn configuration(name: &'static str, cpu: &'static str, smp: u32) -> Configuration {
    let suspend = SuspendFormat::Original;
    let (vls, svls, late) = (&[], &[], &[]);
    let (options, areas) = ("", "");
    let (high, trouble, odd_tree, mte, trng) = (false, 0, false, false, false);
    Configuration {
        name,
        cpu,
        smp,
        vls,
        svls,
        late,
        suspend,
        options,
        areas,
        high,
        trouble,
        odd_tree,
        mte,
        trng,
        needs: None,
        smmu: Smmu::None,
        devices: &[],
    }
}

const fn asymmetric(
    name: &'static str,
    vls: &'static [u16],
    late: &'static [u32],
    suspend: SuspendFormat,
) -> Configuration {
    let smp = vls.len() as u32;
    Configuration { vls, late, suspend, ..configuration(name, "max", smp) }
}

impl Configuration {
    /// Whether it has EL3 firmware.
    pub fn has_firmware(&self) -> bool {
        !self.vls.is_empty()
            || !self.svls.is_empty()
            || !self.late.is_empty()
            || self.trouble != 0
            || self.odd_tree
            || self.trng
    }

    /// What the EL3 firmware is to make of the machine, if there is to be one.
    fn firmware(&self) -> Result<Option<Setup>> {
        if !self.has_firmware() {
            return Ok(None);
        }
        let board = if self.high { Board::VIRT_HIGH } else { Board::VIRT };
        let setup = Setup::new(self.vls, self.late, self.suspend, self.smp)?;
        let setup = setup.streaming(self.svls)?.troubled(self.trouble);
        Ok(Some(setup.with_odd_tree(self.odd_tree).with_trng(self.trng).on(board)))
    }
}

/// The whole of a test binary's `main`: the tests that `trials` makes of what `xtask test` has built and of
/// the filter. A plain `cargo test` has built nothing; then `what` needs a machine.
pub fn run_trials(
    what: &str,
    trials: impl FnOnce(Settings, Option<&str>) -> Result<Vec<Trial>>,
) -> ExitCode {
    process::end_with_parent();
    let arguments = Arguments::from_args();
    let trials = match Settings::from_environment() {
        Ok(Some(settings)) => trials(settings, arguments.filter.as_deref()),
        Ok(None) => {
            println!("{what} a machine: run `cargo xtask test`");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    };
    match trials {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole of the on-target tests' `main`.
pub fn main() -> ExitCode {
    run_trials("on-target tests need", |settings, filter| trials(&settings, filter))
}

/// Boots the machines, and turns what they said into tests.
fn trials(settings: &Settings, filter: Option<&str>) -> Result<Vec<Trial>> {
    let emulators = Emulators::of(settings)?;
    let wanted = CONFIGURATIONS.iter().filter(|configuration| wants(filter, configuration.name));
    let mut queue: VecDeque<Job> = wanted.copied().map(Job::Tests).collect();
    queue.extend(linux_jobs(filter));
    let passes =
        |name: &str| filter.is_none_or(|filter| format!("{RESET}::{name}").contains(filter));
    queue
        .extend(remains::CASES.iter().filter(|case| passes(case.name)).map(|case| Job::End(*case)));
    let queue = Mutex::new(queue);
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..MACHINES_AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let found = match job {
                        Job::Tests(configuration) => (
                            configuration.name,
                            run(&emulators, &settings.tests, &settings.firmware, &configuration),
                        ),
                        Job::End(case) => {
                            eprintln!("booting {RESET}::{}", case.name);
                            let qemu = &emulators.usual;
                            let outcome = case.outcome(qemu, &settings.tests, &settings.firmware);
                            (RESET, vec![(case.name.to_owned(), outcome)])
                        }
                        Job::Linux(configuration, kernel) => {
                            let outcome = run_linux(&emulators, settings, &configuration, kernel);
                            (LINUX, vec![(configuration.name.to_owned(), outcome)])
                        }
                    };
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(found);
                }
            });
        }
    });
    let mut trials = image_trials(settings);
    for (name, found) in outcomes.into_inner().unwrap_or_else(PoisonError::into_inner) {
        for (test, outcome) in found {
            trials.push(trial(format!("{name}::{test}"), || outcome));
        }
    }
    trials.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(trials)
}

/// A machine to boot.
enum Job {
    /// With the test payload.
    Tests(Configuration),
    /// With a Linux, or why there is none.
    Linux(linux::Configuration, Result<Kernel, String>),
    /// With a secret, to the end.
    End(remains::Case),
}

/// What the names of the tests of a machine's end begin with.
const RESET: &str = "reset";

/// What the names of the tests of a Linux begin with.
const LINUX: &str = "linux";

/// The Linuxes that pass the filter; the kernel is fetched only if there are any.
fn linux_jobs(filter: Option<&str>) -> Vec<Job> {
    let passes =
        |name: &str| filter.is_none_or(|filter| format!("{LINUX}::{name}").contains(filter));
    let wanted = linux::CONFIGURATIONS.iter().filter(|one| passes(one.name));
    let asked =
        |name: &str| filter.is_some_and(|filter| filter.contains(LONG) && name.contains(LONG));
    let mut kernels = BTreeMap::new();
    let mut kernel = |one: &linux::Configuration| {
        if one.long && !asked(one.name) {
            return Err("it takes long: ask for it by name".to_owned());
        }
        let kernel = kernels.entry(one.debian).or_insert_with(|| {
            Kernel::debian(one.debian).map_err(|error| {
                let why = format!("no Linux to boot: {error:#}");
                eprintln!("skipping {LINUX}: {why}");
                why
            })
        });
        kernel.clone()
    };
    wanted.map(|one| Job::Linux(*one, kernel(one))).collect()
}

/// In the names of Linuxes that take long, and only in those.
const LONG: &str = "long";

/// Boots a Linux to its end.
fn run_linux(
    emulators: &Emulators,
    settings: &Settings,
    configuration: &linux::Configuration,
    kernel: Result<Kernel, String>,
) -> Outcome {
    let kernel = match kernel {
        Ok(kernel) => kernel,
        Err(why) => return Outcome::Skipped(why),
    };
    let qemu = match emulators.for_release(configuration.needs()) {
        Ok(qemu) => qemu,
        Err(why) => return Outcome::Skipped(why),
    };
    let start = Instant::now();
    eprintln!("booting {LINUX} ({}, {})", configuration.name, kernel.name);
    let virtual_machines = match configuration.debian {
        _ if !configuration.has_virtual_machines() => Ok(None),
        Debian::Release if !configuration.hunts() => settings.virtual_machines.clone().map(Some),
        // Only for who asks for them: what can't be built then is no reason to leave them out.
        other => {
            let built = setup::toolchain().and_then(|toolchain| {
                VirtualMachines::build(&toolchain, other, configuration.hunts())
            });
            match built {
                Ok(built) => Ok(Some(built)),
                Err(error) => return Outcome::Failed(format!("no virtual machines: {error:#}")),
            }
        }
    };
    let programs = match virtual_machines {
        Ok(virtual_machines) => Programs {
            hyp: settings.tests.hyp.clone(),
            init: settings.linux.clone(),
            virtual_machines,
            realm: configuration.realm(),
        },
        Err(why) => return Outcome::Skipped(why),
    };
    let outcome = configuration.outcome(qemu, &programs, &settings.firmware, &kernel);
    eprintln!("{LINUX} ended after {:.1} s", start.elapsed().as_secs_f32());
    outcome
}

/// Whether any test of this configuration can pass the filter. A filter without `::` may match a
/// test's name on any machine.
fn wants(filter: Option<&str>, name: &str) -> bool {
    filter
        .and_then(|filter| filter.split_once("::"))
        .is_none_or(|(machine, _)| name.ends_with(machine) || !is_machine(machine))
}

/// What stands before `::` may also be a module in a test's own name. The other test binaries' boot no
/// machine here.
fn is_machine(text: &str) -> bool {
    [IMAGE, LINUX, RESET, "fuzz", "bench"].contains(&text)
        || CONFIGURATIONS.iter().any(|configuration| configuration.name.ends_with(text))
}

/// What the names of the checks of the built images begin with.
const IMAGE: &str = "image";

/// The machine of a configuration, its firmware written.
fn machine(firmware: &Path, configuration: &Configuration) -> Result<Machine> {
    let firmware = match configuration.firmware()? {
        Some(setup) => Some(firmware::configure(firmware, &setup, configuration.name)?),
        None => None,
    };
    Ok(Machine {
        cpu: configuration.cpu.to_owned(),
        smp: configuration.smp,
        firmware,
        memory: if configuration.high { 3 } else { 1 },
        mte: configuration.mte,
        smmu: configuration.smmu,
        devices: configuration.devices.to_vec(),
        ..Machine::default()
    })
}

/// The image that a configuration boots: the tests' own, or one with more on its command line.
fn image(tests: &Path, configuration: &Configuration) -> Result<PathBuf> {
    let mut words = [configuration.options, configuration.areas].join(" ");
    // Wiping takes a machine's time, and all of its memory of this one: some do it, the rest is told not to.
    if !WIPES.contains(&configuration.name) {
        words += " umbra.boot-wipe=off";
    }
    // What the test kernel can't find out.
    if configuration.trouble != 0 {
        words += &format!(" trouble={:#x}", configuration.trouble);
    }
    if configuration.odd_tree {
        words += " tree=odd";
    }
    if configuration.trng {
        words += " trng=firmware";
    }
    if words.trim().is_empty() {
        return Ok(tests.to_path_buf());
    }
    let path = tests.with_file_name(format!("tests-{}.img", configuration.name));
    image::add_to_command_line(tests, words.trim(), &path)?;
    Ok(path)
}

/// Boots one machine to its end: its tests, the boot among them, and how they ended. `elf` is the
/// EL3 firmware, for those that have it.
pub fn run(
    emulators: &Emulators,
    tests: &Built,
    elf: &Path,
    configuration: &Configuration,
) -> Vec<(String, Outcome)> {
    let qemu = match emulators.for_release(configuration.needs) {
        Ok(qemu) => qemu,
        // What its tests are called nobody knows but the machine: it is told by the one that stands for it.
        Err(why) => {
            eprintln!("skipping {}: {why}", configuration.name);
            return vec![(transcript::BOOT.to_owned(), Outcome::Skipped(why))];
        }
    };
    let start = Instant::now();
    eprintln!("booting {} ({})", configuration.name, configuration.cpu);
    let mut symbols = tests.symbols();
    let mut transcript = Transcript::default();
    let end = machine(elf, configuration).and_then(|machine| {
        let image = image(&tests.image, configuration)?;
        qemu.run(&machine, &image, Bounds::default(), &mut |line| {
            transcript.take(line, |line| symbols.show(line));
        })
    });
    let failure = match end {
        Ok(end) => end.failure(),
        Err(error) => Some(format!("{error:#}")),
    };
    let seconds = start.elapsed().as_secs_f32();
    eprintln!("{} ended after {seconds:.1} s", configuration.name);
    transcript.into_outcomes(failure)
}

/// One test as `cargo test` shows it.
pub(crate) fn trial(name: String, outcome: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::ignorable_test(name.clone(), move || match outcome() {
        Outcome::Ok => Ok(Completion::Completed),
        Outcome::Skipped(why) => Ok(Completion::ignored_with(why)),
        Outcome::Failed(output) => {
            failures::note(&name, &output);
            Err(Failed::from(output))
        }
    })
}

/// I5 on the images that were built.
fn image_trials(settings: &Settings) -> Vec<Trial> {
    let (hyp, host) = (settings.tests.hyp.clone(), settings.host_library.clone());
    let check = |result: Result<fpcheck::Summary>| match result {
        Ok(_) => Outcome::Ok,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    vec![
        trial(format!("{IMAGE}::i5_r27_hyp_uses_fp_only_in_its_routines"), move || {
            check(fpcheck::check_hyp(&hyp))
        }),
        trial(format!("{IMAGE}::i5_host_library_has_no_fp_code"), move || {
            check(fpcheck::check_library(&host))
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_can_be_made() {
        for configuration in CONFIGURATIONS {
            let firmware = configuration.firmware().unwrap();
            let with = ["asym", "ram", "trouble", "odd", "trng"];
            let with = with.iter().any(|name| configuration.name.starts_with(name));
            assert_eq!(firmware.is_some(), with);
        }
    }

    #[test]
    fn a_filter_boots_only_the_machines_it_names() {
        assert!(wants(None, "max"));
        assert!(wants(Some("r04"), "max"));
        assert!(wants(Some("max::r04"), "max"));
        assert!(!wants(Some("max::r04"), "max-1cpu"));
        assert!(!wants(Some("no-sve::"), "max"));
        assert!(!wants(Some("image::i5"), "max"));
        assert!(!wants(Some("linux::keeps"), "max"));
        assert!(!wants(Some("fuzz::storm"), "max"));
        assert!(!wants(Some("reset::r40"), "max"));
        assert!(!wants(Some("bench::"), "max"));
        // A module of the payload, not a machine.
        assert!(wants(Some("fp::lazy"), "max"));
    }
}
