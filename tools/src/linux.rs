//! Linux as Umbra's host: packed, booted, watched, and compared with a Linux that has no hypervisor.
//!
//! The kernel is anybody's ([`crate::kernel`]); the one program of its initrd is ours (`tests/linux`).
//! That program says what it found and did, hyp says at the end what it did (`umbra.stats`), and
//! [`verify`] holds one against the other: a Linux that ran on something else than Umbra is no success.

mod devices;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bounds::Bounds;
use crate::build::{self, HYP, LINUX};
use crate::console::{Fields, Space, Table, parse};
use crate::firmware::{self, Setup, SuspendFormat};
use crate::image::{self, Parts};
use crate::kernel::Kernel;
use crate::module::{self, Headers};
use crate::qemu::{Direct, Machine, NEWER, Qemu, Release, Smmu};
use crate::report::{Columns, Report, table, value};
use crate::symbols::Symbols;
use crate::toolchain::Toolchain;
use crate::transcript::Outcome;
use crate::watch::{Request, Watched, watch};
use crate::{cpio, elf, setup, vmm, workspace};

pub use devices::Content;

/// What a Linux is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel; `None`: Debian's.
    pub kernel: Option<PathBuf>,
    /// How long the patterns run at least, in seconds of the machine's time.
    pub seconds: u64,
    /// How often each vector length is used, and each thing that disturbs happens, on each CPU: it
    /// takes as long as it takes.
    pub times: u64,
    /// Processes per CPU.
    pub processes: u32,
    /// End with a reset instead of a power-off.
    pub reboot: bool,
    /// Use disks and a network, instead of the patterns.
    pub content: Option<Content>,
    /// Run virtual machines beside the patterns.
    pub virtual_machines: bool,
    /// See that the devices of the board that reach memory are withheld, instead of the patterns.
    pub withheld: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kernel: None,
            seconds: 60,
            times: 1,
            processes: 3,
            reboot: false,
            content: None,
            virtual_machines: false,
            withheld: false,
        }
    }
}

impl Options {
    /// Whether hyp takes the host's registers away all the time, for there are patterns in them. Beside virtual machines it
    /// doesn't: what it has taken already no guest displaces, and no wrong word of the module's can lose.
    fn displaces(&self) -> bool {
        self.content.is_none() && !self.withheld && !self.virtual_machines
    }

    /// The words for our program.
    fn words(&self, cpus: u32) -> String {
        let Self { seconds, times, processes, reboot, .. } = self;
        let end = if *reboot { " reboot" } else { "" };
        let words = format!("umbra cpus={cpus} times={times}");
        match &self.content {
            Some(content) => format!("{words} devices {}{end}", content.words()),
            None if self.withheld => format!("{words} withheld{end}"),
            None if self.virtual_machines => {
                format!("{words} vm seconds={seconds} processes={processes}{end}")
            }
            None => format!("{words} seconds={seconds} processes={processes}{end}"),
        }
    }
}

/// What a Linux runs virtual machines with.
#[derive(Clone, Debug)]
pub struct VirtualMachines {
    /// The kernel module ([`crate::module`]).
    pub module: PathBuf,
    /// The monitor ([`crate::vmm`]).
    pub vmm: PathBuf,
    /// Random ioctls.
    pub ioctls: PathBuf,
}

impl VirtualMachines {
    /// Builds them, for the kernel that the tests boot.
    pub fn build(toolchain: &Toolchain) -> Result<Self> {
        Self::build_in(toolchain, &workspace::root(), &workspace::target_dir())
    }

    /// The same for a checkout in `root`, with a target directory of its own.
    pub fn build_in(toolchain: &Toolchain, root: &Path, target: &Path) -> Result<Self> {
        let headers = Headers::debian()?;
        let module = module::build_in(toolchain, &headers, root, &target.join("module"))?;
        let programs = target.join("vmm");
        let program = |package| vmm::build_in(package, root, &programs);
        Ok(Self { module, vmm: program(vmm::MONITOR)?, ioctls: program(vmm::IOCTLS)? })
    }
}

/// The programs around a kernel, compiled.
#[derive(Clone, Debug)]
pub struct Programs {
    /// hyp's ELF.
    pub hyp: PathBuf,
    /// The ELF of Linux's first program.
    pub init: PathBuf,
    /// Those for virtual machines, or why there are none.
    pub virtual_machines: Result<VirtualMachines, String>,
}

impl Programs {
    /// The initrd, with the kernel's drivers if they are wanted, and with what virtual machines need.
    fn initrd(&self, kernel: &Kernel, with_drivers: bool, with_vms: bool) -> Result<Vec<u8>> {
        let init = std::fs::read(&self.init)?;
        let mut files = vec![("init".to_owned(), init)];
        if with_vms {
            let VirtualMachines { module, vmm, ioctls } =
                self.virtual_machines.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
            // The guest is the same kernel with the same program.
            let guest = cpio::archive(&[("init", &files[0].1)]);
            files.push(("guest-initrd".to_owned(), guest));
            for (name, path) in [
                ("umbra.ko", module),
                ("umbra-vmm", vmm),
                ("umbra-ioctls", ioctls),
                ("guest-kernel", &kernel.image),
            ] {
                let content = std::fs::read(path).with_context(|| path.display().to_string())?;
                files.push((name.to_owned(), content));
            }
        }
        if with_drivers {
            let modules =
                kernel.modules.as_ref().context("a kernel without its drivers")?.read()?;
            let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
            files.push(("modules".to_owned(), names.join("\n").into_bytes()));
            files.extend(modules.into_iter().map(|(name, module)| (format!("{name}.ko"), module)));
        }
        let files: Vec<_> = files.iter().map(|(name, file)| (name.as_str(), &file[..])).collect();
        Ok(cpio::archive(&files))
    }

    /// One bootable file of hyp and `kernel`, for a machine with so many CPUs.
    pub fn pack(
        &self,
        kernel: &Kernel,
        options: &Options,
        cpus: u32,
        extra: &str,
        name: &str,
    ) -> Result<PathBuf> {
        let displace = if options.displaces() { " umbra.displace" } else { "" };
        let words = format!("umbra.stats{displace} {UNHURRIED} {extra}");
        let command_line = command_line(words.trim_end(), &options.words(cpus));
        let with = (options.content.is_some(), options.virtual_machines);
        self.pack_with(kernel, with, &command_line, name)
    }

    fn pack_with(
        &self,
        kernel: &Kernel,
        (with_drivers, with_vms): (bool, bool),
        command_line: &str,
        name: &str,
    ) -> Result<PathBuf> {
        let package = image::pack(&Parts {
            hyp: &elf::flatten_file(&self.hyp)?,
            host: &image::read_host(&kernel.image)?,
            initrd: &self.initrd(kernel, with_drivers, with_vms)?,
            command_line,
        })?;
        let path = workspace::image_dir().join(format!("{name}.img"));
        image::write_whole(&path, &package)?;
        Ok(path)
    }
}

/// Linux doesn't complain of CPUs that get nowhere for some seconds (RCU's stalls, soft lockups, work
/// that waits): the machine that emulates them may be busy with others. Our program sees who is stuck.
const UNHURRIED: &str = "rcupdate.rcu_cpu_stall_suppress=1 nowatchdog workqueue.watchdog_thresh=0";

/// A kernel's command line: `words` are hyp's and the kernel's, `arguments` our program's.
fn command_line(words: &str, arguments: &str) -> String {
    let space = if words.is_empty() { "" } else { " " };
    format!("console=ttyAMA0 panic=-1{space}{words} -- {arguments}")
}

fn kernel(options: &Options) -> Result<Kernel> {
    match &options.kernel {
        Some(file) => Kernel::from_file(file),
        None => Kernel::debian(),
    }
}

/// Boots a Linux under Umbra to the end of its program; whether it went well.
///
/// With devices it needs a newer QEMU, and gets one if it can be had.
pub fn boot(qemu: &Qemu, request: &Request, options: &Options) -> Result<bool> {
    let newer = match &options.content {
        Some(_) => Some(setup::newer_qemu(qemu).map_err(anyhow::Error::msg)?),
        None => None,
    };
    let qemu = newer.as_ref().unwrap_or(qemu);
    let toolchain = setup::toolchain()?;
    let kernel = kernel(options)?;
    let programs = Programs {
        hyp: build::binary(&toolchain, HYP)?,
        init: build::binary(&toolchain, LINUX)?,
        virtual_machines: match options.virtual_machines {
            true => Ok(VirtualMachines::build(&toolchain)?),
            false => Err("not built".to_owned()),
        },
    };
    if request.machine.icount {
        return compare(qemu, request, &programs, &kernel, options);
    }
    let cpus = request.machine.smp;
    let image = programs.pack(&kernel, options, cpus, &request.command_line, "linux")?;
    let mut machine = request.machine.clone();
    if let Some(content) = &options.content {
        machine = content.attach(&machine);
    }
    if let Some(setup) = &request.firmware {
        let program = build::binary(&toolchain, build::FIRMWARE)?;
        machine.firmware = Some(firmware::configure(&program, setup, "boot")?);
        eprintln!("EL3 firmware: {setup}");
    }
    match &options.content {
        Some(_) => eprintln!("{} above Umbra, with devices", kernel.name),
        None => eprintln!("{} above Umbra for {} s", kernel.name, options.seconds),
    }
    let symbols = Symbols::new([(Space::Hyp, programs.hyp.clone())]);
    let Watched { report, failure } = watch(qemu, &image, symbols, &machine, request)?;
    let displaced = options.displaces();
    let verified = verify(&report, cpus, options.kernel.is_none(), displaced);
    let verified = verified.and_then(|()| match &options.content {
        Some(_) => devices::verify(&report, cpus),
        None if options.virtual_machines => verify_vms(&report),
        None => Ok(()),
    });
    let failure = failure.or_else(|| verified.err());
    println!("{}", report.render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}

/// What a Linux that ran above Umbra has to have left behind; why it can't have, if it didn't. Not every
/// kernel lets programs at physical memory; one that `must_reach` it does. Where registers are `displaced` they
/// have moved through hyp on every CPU.
pub fn verify(report: &Report, cpus: u32, must_reach: bool, displaced: bool) -> Result<(), String> {
    let rows: Vec<_> = report.rows(Table::Cpu).collect();
    if rows.len() != cpus as usize {
        return Err(format!("hyp told of {} CPUs, not of {cpus}: is it there?", rows.len()));
    }
    let number = |row: &Fields, key: &str| {
        value(row, key).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    };
    for row in &rows {
        let saves = number(row, "saves_full") + number(row, "saves_fpsimd");
        if displaced && (saves == 0 || number(row, "host_traps") < saves) {
            let cpu = value(row, "cpu").unwrap_or("?");
            return Err(format!("CPU {cpu}: Linux's registers never moved through hyp"));
        }
    }
    let seen = |what: &str| {
        let row = report.rows(Table::Seen).find(|row| value(row, "what") == Some(what));
        row.and_then(|row| value(row, "is"))
    };
    let tried = seen("hyp's-memory").is_some_and(|is| is.ends_with("SIGBUS"));
    let refused = rows.iter().any(|row| number(row, "host_aborts") != 0);
    if tried != refused || (!tried && must_reach) {
        return Err("no access to hyp's memory was tried and refused".to_owned());
    }
    // At boot Linux settles on what all CPUs have.
    let mut sets = rows.iter().map(|row| lengths(value(row, "vls").unwrap_or("none")));
    let first = sets.next().unwrap_or_default();
    let all = sets.fold(first, |all, set| all.into_iter().filter(|l| set.contains(l)).collect());
    match seen("VLs").map(lengths) {
        Some(found) if found == all => Ok(()),
        found => Err(format!("Linux offers the vector lengths {found:?}, the CPUs have {all:?}")),
    }
}

/// What a Linux that ran virtual machines has to have left behind.
fn verify_vms(report: &Report) -> Result<(), String> {
    let runs = report.rows(Table::Cpu).filter_map(|row| value(row, "runs")?.parse::<u64>().ok());
    if runs.sum::<u64>() == 0 {
        return Err("hyp has run no guest".to_owned());
    }
    for (what, is) in [("guest", "2-vCPUs"), ("ioctls", "endured"), ("pages", "all-back")] {
        let mut rows = report.rows(Table::Seen);
        if !rows.any(|row| value(row, "what") == Some(what) && value(row, "is") == Some(is)) {
            return Err(format!("{what} was not {is}"));
        }
    }
    Ok(())
}

fn lengths(list: &str) -> Vec<u32> {
    list.split(',').filter_map(|length| length.parse().ok()).collect()
}

const COST_COLUMNS: &Columns = &[
    ("name", "instructions per"),
    ("direct", "at EL1 alone"),
    ("umbra", "above Umbra"),
    ("ratio", "ratio"),
];

/// What Umbra costs a Linux: the same kernel and program, above Umbra and started by QEMU at EL1 on a
/// machine without EL2, instructions counted, one CPU.
fn compare(
    qemu: &Qemu,
    request: &Request,
    programs: &Programs,
    kernel: &Kernel,
    options: &Options,
) -> Result<bool> {
    ensure!(request.firmware.is_none(), "--icount compares with a machine without firmware");
    let mut machine = Machine { smp: 1, ..request.machine.clone() };
    let mut arguments = "bench".to_owned();
    if let Some(content) = &options.content {
        machine = content.attach(&machine);
        arguments = format!("bench devices {}", content.words());
    }
    let with_drivers = options.content.is_some();
    let extra = &request.command_line;
    let symbols = || Symbols::new([(Space::Hyp, programs.hyp.clone())]);

    eprintln!("{} above Umbra, one CPU, counting instructions", kernel.name);
    // What is compared is Linux's boot, not a wipe before it.
    let words = format!("umbra.stats umbra.boot-wipe=off {extra}");
    let image = programs.pack_with(
        kernel,
        (with_drivers, false),
        &command_line(words.trim_end(), &arguments),
        "linux-bench",
    )?;
    let above = watch(qemu, &image, symbols(), &machine, request)?;

    eprintln!("{} at EL1 without Umbra, one CPU, counting instructions", kernel.name);
    let initrd = workspace::image_dir().join("linux-bench.initrd");
    image::write_whole(&initrd, &programs.initrd(kernel, with_drivers, false)?)?;
    let direct = Direct { initrd, command_line: command_line(extra, &arguments) };
    // Without an SMMU: one that Linux has for itself costs it more than hyp's, which it doesn't see.
    let machine = Machine { direct: Some(direct), smmu: Smmu::None, ..machine };
    let alone = watch(qemu, &kernel.image, symbols(), &machine, request)?;

    let costs = costs(&above.report, &alone.report);
    let mut failure = above.failure.or(alone.failure);
    if costs.is_empty() {
        failure.get_or_insert_with(|| "nothing was measured".to_owned());
    }
    println!("{}", table(COST_COLUMNS, &costs.iter().collect::<Vec<_>>()));
    println!("{}", above.report.without(Table::Bench).render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}

/// The measurements that both made, side by side.
fn costs(above: &Report, alone: &Report) -> Vec<Fields> {
    let find = |report: &Report, name: &str| {
        let row = report.rows(Table::Bench).find(|row| value(row, "name") == Some(name))?;
        value(row, "instructions")?.parse::<f64>().ok()
    };
    above
        .rows(Table::Bench)
        .filter_map(|row| {
            let name = value(row, "name")?;
            let (with, without) = (find(above, name)?, find(alone, name)?);
            let ratio = (without > 0.0).then(|| format!("{:.4}", with / without))?;
            Some(vec![
                ("name".to_owned(), name.to_owned()),
                ("direct".to_owned(), without.to_string()),
                ("umbra".to_owned(), with.to_string()),
                ("ratio".to_owned(), ratio),
            ])
        })
        .collect()
}

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
    pub purpose: Purpose,
}

/// What a Linux is booted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Patterns in every register.
    Patterns,
    /// Disks and a network, behind an SMMU.
    Devices,
    /// Virtual machines beside the patterns, by the kernel module and the tree's own monitor.
    VirtualMachines,
    /// It has to go without the devices that reach memory: nothing is in between.
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
/// GiB of memory of a machine that runs virtual machines.
pub const VM_MEMORY: u32 = 2;
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
        let options = Options {
            seconds: 0,
            times: TEST_TIMES,
            processes: 2,
            reboot: self.reboot,
            ..Options::default()
        };
        let (options, cpus) = match self.purpose {
            Purpose::Patterns => (options, TEST_CPUS),
            Purpose::Withheld => (Options { withheld: true, ..options }, TEST_CPUS),
            Purpose::VirtualMachines => {
                (Options { virtual_machines: true, times: VM_TIMES, ..options }, VM_CPUS)
            }
            Purpose::Devices => {
                let content = Some(Content::prepare(None)?);
                (Options { content, times: DEVICE_TIMES, ..options }, DEVICE_CPUS)
            }
        };
        let name = format!("linux-{}", self.name);
        let image = programs.pack(kernel, &options, cpus, self.words(), &name)?;
        let mut machine = Machine { smp: cpus, ..Machine::default() };
        if let Some(content) = &options.content {
            machine = content.attach(&machine);
        }
        if options.virtual_machines {
            machine.memory = VM_MEMORY;
        }
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
        let verified = || {
            verify(&report, cpus, true, options.displaces())?;
            match self.purpose {
                Purpose::Patterns => Ok(()),
                Purpose::VirtualMachines => verify_vms(&report),
                Purpose::Devices => devices::verify(&report, cpus),
                Purpose::Withheld => devices::verify_withheld(&report, console),
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        lines.iter().for_each(|line| report.take(&parse(line)));
        report
    }

    const SEEN: &str = "@seen what=VLs is=16,32";
    const HELD: &str = "@seen what=hyp's-memory is=0x1..0x2:SIGBUS";
    const CPU0: &str =
        "@cpu cpu=0 vls=16,32 host_traps=9 saves_full=8 saves_fpsimd=0 host_aborts=6";
    const CPU1: &str = "@cpu cpu=1 vls=16,32,64 host_traps=3 saves_full=3 host_aborts=0";

    #[test]
    fn a_linux_above_umbra_is_told_from_one_that_is_not() {
        let check = |lines: &[&str]| verify(&report(lines), 2, true, true);
        assert_eq!(check(&[SEEN, HELD, CPU0, CPU1]), Ok(()));
        assert!(check(&[SEEN, HELD]).unwrap_err().contains("is it there"));
        assert!(check(&[SEEN, HELD, CPU0]).unwrap_err().contains("1 CPUs"));
        let idle = CPU1.replace("saves_full=3", "saves_full=0");
        assert!(check(&[SEEN, HELD, CPU0, &idle]).unwrap_err().contains("CPU 1"));
        for seen in ["@seen what=VLs is=16,32,64", "@seen what=VLs is=16", "@seen what=x is=16,32"]
        {
            assert!(check(&[seen, HELD, CPU0, CPU1]).unwrap_err().contains("[16, 32]"));
        }
        let without = |cpu: &str| cpu.replace("16,32,64", "none").replace("16,32", "none");
        let rows = ["@seen what=VLs is=none", HELD, &without(CPU0), &without(CPU1)];
        assert_eq!(check(&rows), Ok(()));
    }

    #[test]
    fn accesses_to_hyps_memory_are_refused_by_hyp() {
        let calm = CPU0.replace("host_aborts=6", "host_aborts=0");
        let check = |rows: &[&str], must| verify(&report(rows), 2, must, true).is_ok();
        // SIGBUS without hyp, an abort that nobody asked for, and nothing tried.
        assert!(!check(&[SEEN, HELD, &calm, CPU1], true));
        assert!(!check(&[SEEN, CPU0, CPU1], false));
        assert!(!check(&[SEEN, &calm, CPU1], true));
        assert!(check(&[SEEN, &calm, CPU1], false));
    }

    #[test]
    fn costs_stand_side_by_side() {
        let above = report(&["@bench name=a instructions=110.0", "@bench name=b instructions=5"]);
        let alone = report(&["@bench name=a instructions=100.0"]);
        let costs = costs(&above, &alone);
        assert_eq!(costs.len(), 1);
        assert_eq!(value(&costs[0], "ratio"), Some("1.1000"));
    }

    #[test]
    fn hyps_words_stand_before_our_programs() {
        let options = Options { reboot: true, ..Options::default() };
        assert_eq!(
            command_line("umbra.stats", &options.words(4)),
            "console=ttyAMA0 panic=-1 umbra.stats -- umbra cpus=4 times=1 seconds=60 processes=3 reboot"
        );
        assert_eq!(command_line("", "bench"), "console=ttyAMA0 panic=-1 -- bench");
    }
}
