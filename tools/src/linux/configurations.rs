//! The machines on which the tests boot Linux.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Content, Guests, Options, Programs, Task, measured, scenarios, vms};
use crate::bounds::Bounds;
use crate::console::{Space, parse};
use crate::firmware::{self, Setup, SuspendFormat};
use crate::kernel::{Debian, Kernel};
use crate::qemu::{Machine, NEWER, Qemu, Release};
use crate::report::Report;
use crate::symbols::Symbols;
use crate::transcript::Outcome;

/// A machine on which the tests boot Linux.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// The test's name.
    pub name: &'static str,
    /// Vector length of each CPU in bytes, by the EL3 firmware; empty: no firmware.
    pub vls: &'static [u16],
    /// How it ends.
    pub reboot: bool,
    /// Its kernel, which its guests have as well.
    pub debian: Debian,
    /// It takes long, and is for who asks for it by name.
    pub long: bool,
    /// How often everything has to happen.
    times: u64,
    /// What it is for.
    purpose: Purpose,
}

/// The [`Task`] of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Patterns,
    Devices,
    VirtualMachines(Guests),
    Withheld,
}

/// Lines of the console that a failed test shows.
const TAIL_LINES: usize = 60;
/// CPUs of these machines.
const TEST_CPUS: u32 = 2;
/// CPUs of those with devices.
const DEVICE_CPUS: u32 = 4;
/// CPUs of those with virtual machines.
const VM_CPUS: u32 = 4;
/// How often everything has to happen.
const TEST_TIMES: u64 = 16;
/// The same with devices: CPUs that go and come, and readings of each disk meanwhile.
const DEVICE_TIMES: u64 = 2;
/// In a host of virtual machines.
const VM_TIMES: u64 = 2;
/// And so that it is a minute's work for four CPUs, and more.
const LONG_TIMES: u64 = 12;
/// How much longer than others a machine may take, and say nothing, that takes long.
const LONG_PATIENCE: u32 = 8;

/// All of them.
pub const CONFIGURATIONS: &[Configuration] = &[
    plain("keeps_every_register"),
    Configuration { vls: &[32, 64], reboot: true, ..plain("keeps_every_register_asym") },
    Configuration {
        purpose: Purpose::Devices,
        times: DEVICE_TIMES,
        ..plain("disk_and_network_behind_the_smmu")
    },
    vms(
        "vm_beside_the_patterns",
        Guests::Beside { guests: 1, rounds: 8, kills: 12, debian: false },
    ),
    vms("vm_as_on_linux_kvm", Guests::Scenarios),
    vms("protected_debian", Guests::Protected { beside: false, kills: 6, hunt: false }),
    long("vm_long_patterns", TWO_GUESTS),
    Configuration { vls: &[32, 256, 64, 128], ..long("vm_long_patterns_asym", TWO_GUESTS) },
    Configuration { debian: Debian::Newest, ..long("vm_long_patterns_newest", TWO_GUESTS) },
    Configuration {
        vls: &[32, 256, 64, 128],
        ..long("vm_long_protected", Guests::Protected { beside: true, kills: 6, hunt: false })
    },
    Configuration {
        debian: Debian::Newest,
        ..long(
            "vm_long_protected_newest",
            Guests::Protected { beside: true, kills: 6, hunt: false },
        )
    },
    Configuration {
        times: VM_TIMES,
        ..long("vm_long_protected_hunt", Guests::Protected { beside: false, kills: 2, hunt: true })
    },
    Configuration {
        times: 1,
        ..long(
            "vm_long_protected_kills",
            Guests::Protected { beside: false, kills: 100, hunt: false },
        )
    },
    Configuration {
        debian: Debian::Newest,
        ..long("vm_long_as_on_linux_kvm_newest", Guests::Scenarios)
    },
    Configuration {
        times: 1,
        ..long("vm_long_kills", Guests::Beside { guests: 1, rounds: 1, kills: 200, debian: false })
    },
    Configuration {
        times: 1,
        ..long("vm_long_ioctls", Guests::Beside { guests: 1, rounds: 600, kills: 2, debian: false })
    },
    Configuration { purpose: Purpose::Withheld, ..plain("does_without_devices_that_are_withheld") },
];

/// As many as two CPUs for each of four.
const TWO_GUESTS: Guests = Guests::Beside { guests: 2, rounds: 8, kills: 12, debian: false };

const fn plain(name: &'static str) -> Configuration {
    Configuration {
        name,
        vls: &[],
        reboot: false,
        debian: Debian::Release,
        long: false,
        times: TEST_TIMES,
        purpose: Purpose::Patterns,
    }
}

const fn vms(name: &'static str, guests: Guests) -> Configuration {
    Configuration { purpose: Purpose::VirtualMachines(guests), times: VM_TIMES, ..plain(name) }
}

const fn long(name: &'static str, guests: Guests) -> Configuration {
    Configuration { long: true, times: LONG_TIMES, ..vms(name, guests) }
}

impl Configuration {
    /// Boots it, as a test.
    pub fn outcome(
        &self,
        qemu: &Qemu,
        programs: &Programs,
        firmware_elf: &Path,
        kernel: &Kernel,
    ) -> Outcome {
        let mut console = Vec::new();
        let ended = self.run(qemu, programs, firmware_elf, kernel, &mut console);
        let why = match ended {
            Ok(Outcome::Failed(why)) => why,
            Ok(well) => return well,
            Err(error) => format!("{error:#}"),
        };
        let tail = console.len().saturating_sub(TAIL_LINES);
        Outcome::Failed(format!("{why}\nconsole:\n{}", console[tail..].join("\n")))
    }

    fn run(
        &self,
        qemu: &Qemu,
        programs: &Programs,
        firmware_elf: &Path,
        kernel: &Kernel,
        console: &mut Vec<String>,
    ) -> Result<Outcome> {
        let (task, cpus) = match self.purpose {
            Purpose::Patterns => (Task::Patterns, TEST_CPUS),
            Purpose::Withheld => (Task::Withheld, TEST_CPUS),
            Purpose::VirtualMachines(guests) => (Task::VirtualMachines(guests), VM_CPUS),
            Purpose::Devices => (Task::Devices(Content::prepare(None)?), DEVICE_CPUS),
        };
        let bounds = Bounds::default().times(match self.purpose {
            _ if self.long => LONG_PATIENCE,
            Purpose::VirtualMachines(_) => vms::PATIENCE,
            _ => 1,
        });
        let times = self.times;
        let options = Options {
            times,
            processes: 2,
            seconds: 0,
            reboot: self.reboot,
            task,
            ..Options::default()
        };
        let name = format!("linux-{}", self.name);
        let image = programs.pack(kernel, &options, cpus, self.words(), &name)?;
        let mut machine = options.equip(Machine { smp: cpus, ..Machine::default() });
        if self.has_firmware() {
            let setup = Setup::new(self.vls, &[], SuspendFormat::default(), cpus)?;
            machine.firmware = Some(firmware::configure(firmware_elf, &setup, &name)?);
        }
        let mut symbols = Symbols::new([(Space::Hyp, programs.hyp.clone())]);
        let mut report = Report::default();
        let end = qemu.run(&machine, &image, bounds, &mut |line| {
            report.take(&parse(line));
            console.push(symbols.show(line));
        })?;
        let verified = || options.verify(&report, console, cpus);
        let failure = report.failure(&end).or_else(|| verified().err());
        if let Some(why) = failure {
            return Ok(Outcome::Failed(why));
        }
        let Purpose::VirtualMachines(guests) = self.purpose else { return Ok(Outcome::Ok) };
        if let Some(measured) = measured::compare(programs, guests, &name, console)? {
            console.extend(measured.table.lines().map(str::to_owned));
            return Ok(match (measured.wrong, measured.left_out) {
                (Some(why), _) => Outcome::Failed(why),
                (None, Some(why)) => Outcome::Skipped(format!("all is well but for this: {why}")),
                (None, None) => Outcome::Ok,
            });
        }
        if guests != Guests::Scenarios {
            return Ok(Outcome::Ok);
        }
        // And on Linux's own KVM.
        let above = scenarios::said(console);
        let direct = scenarios::direct(programs, kernel, &options, cpus, &name)?;
        let machine = Machine { direct: Some(direct), firmware: None, ..machine };
        let mut report = Report::default();
        console.clear();
        let end = qemu.run(&machine, &kernel.image, bounds, &mut |line| {
            report.take(&parse(line));
            console.push(line.to_owned());
        })?;
        if let Some(why) = report.failure(&end) {
            return Ok(Outcome::Failed(format!("on Linux's KVM: {why}")));
        }
        let (table, wrong) = scenarios::compare(&above, &scenarios::said(console));
        console.extend(table.lines().map(str::to_owned));
        Ok(wrong.map_or(Outcome::Ok, Outcome::Failed))
    }

    /// Hyp's words: what no SMMU stands in front of is withheld, whatever else there is.
    fn words(&self) -> &'static str {
        match self.purpose {
            Purpose::Patterns | Purpose::VirtualMachines(_) => "",
            Purpose::Devices | Purpose::Withheld => "umbra.dma=isolate",
        }
    }

    /// The oldest QEMU that it runs on, if the usual one need not do.
    pub fn needs(&self) -> Option<Release> {
        (self.purpose == Purpose::Devices).then_some(NEWER)
    }

    /// Whether it runs virtual machines.
    pub fn has_virtual_machines(&self) -> bool {
        matches!(self.purpose, Purpose::VirtualMachines(_))
    }

    /// The module by which its guests read what they are measured by, if they are, or why there is none.
    pub fn realm(&self) -> Option<Result<PathBuf, String>> {
        match self.purpose {
            Purpose::VirtualMachines(guests) => guests.realm(),
            _ => None,
        }
    }

    /// Whether the module of that is one that hunts.
    pub fn hunts(&self) -> bool {
        matches!(self.purpose, Purpose::VirtualMachines(guests) if guests.hunts())
    }

    /// Whether it has EL3 firmware.
    pub fn has_firmware(&self) -> bool {
        !self.vls.is_empty()
    }
}
