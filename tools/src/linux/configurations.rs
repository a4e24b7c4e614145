//! The machines on which the tests boot Linux.

use std::path::Path;

use anyhow::Result;

use super::{Content, Options, Programs, Task};
use crate::bounds::Bounds;
use crate::console::{Space, parse};
use crate::firmware::{self, Setup, SuspendFormat};
use crate::kernel::Kernel;
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
    /// What it is for.
    purpose: Purpose,
}

/// The [`Task`] of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Patterns,
    Devices,
    VirtualMachines,
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
/// How often everything has to happen in a host of virtual machines.
const VM_TIMES: u64 = 2;
/// How often everything has to happen there.
const TEST_TIMES: u64 = 16;
/// The same with devices: CPUs that go and come, and readings of each disk meanwhile.
const DEVICE_TIMES: u64 = 2;

/// All of them.
pub const CONFIGURATIONS: &[Configuration] = &[
    plain("keeps_every_register"),
    Configuration { vls: &[32, 64], reboot: true, ..plain("keeps_every_register_asym") },
    Configuration { purpose: Purpose::Devices, ..plain("disk_and_network_behind_the_smmu") },
    Configuration { purpose: Purpose::VirtualMachines, ..plain("vm_beside_the_patterns") },
    Configuration { purpose: Purpose::Withheld, ..plain("does_without_devices_that_are_withheld") },
];

const fn plain(name: &'static str) -> Configuration {
    Configuration { name, vls: &[], reboot: false, purpose: Purpose::Patterns }
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
            Ok(None) => return Outcome::Ok,
            Ok(Some(why)) => why,
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
    ) -> Result<Option<String>> {
        let (task, times, cpus) = match self.purpose {
            Purpose::Patterns => (Task::Patterns, TEST_TIMES, TEST_CPUS),
            Purpose::Withheld => (Task::Withheld, TEST_TIMES, TEST_CPUS),
            Purpose::VirtualMachines => (Task::VirtualMachines, VM_TIMES, VM_CPUS),
            Purpose::Devices => (Task::Devices(Content::prepare(None)?), DEVICE_TIMES, DEVICE_CPUS),
        };
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
        let end = qemu.run(&machine, &image, Bounds::default(), &mut |line| {
            report.take(&parse(line));
            console.push(symbols.show(line));
        })?;
        let verified = || options.verify(&report, console, cpus);
        Ok(report.failure(&end).or_else(|| verified().err()))
    }

    /// Hyp's words: what no SMMU stands in front of is withheld, whatever else there is.
    fn words(&self) -> &'static str {
        match self.purpose {
            Purpose::Patterns | Purpose::VirtualMachines => "",
            Purpose::Devices | Purpose::Withheld => "umbra.dma=isolate",
        }
    }

    /// The oldest QEMU that it runs on, if the usual one need not do.
    pub fn needs(&self) -> Option<Release> {
        (self.purpose == Purpose::Devices).then_some(NEWER)
    }

    /// Whether it runs virtual machines.
    pub fn has_virtual_machines(&self) -> bool {
        self.purpose == Purpose::VirtualMachines
    }

    /// Whether it has EL3 firmware.
    pub fn has_firmware(&self) -> bool {
        !self.vls.is_empty()
    }
}
