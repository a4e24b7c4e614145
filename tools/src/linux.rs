//! Linux as Umbra's host: packed, booted, watched, and compared with a Linux that has no hypervisor.
//!
//! The kernel is anybody's ([`crate::kernel`]); the one program of its initrd is ours (`tests/linux`).
//! That program says what it found and did, hyp says at the end what it did (`umbra.stats`), and
//! [`boot`] holds one against the other: a Linux that ran on something else than Umbra is no success.

mod compare;
mod configurations;
mod costs;
mod devices;
mod measured;
mod root;
mod scenarios;
mod vms;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build::{self, HYP, LINUX};
use crate::console::{Fields, Space, Table};
use crate::firmware;
use crate::image::{self, Parts};
use crate::kernel::{self, Debian, Kernel};
use crate::qemu::{Direct, Machine, Qemu};
use crate::report::{Report, value};
use crate::symbols::Symbols;
use crate::watch::{Request, Watched, watch};
use crate::{cpio, elf, setup, workspace};

pub use configurations::{CONFIGURATIONS, Configuration};
pub use devices::Content;
pub use root::disk as guest_disk;
pub use vms::{Guests, PATIENCE as GUESTS_PATIENCE, VirtualMachines, guest_names};

/// What a Linux is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel; `None`: one of Debian's.
    pub kernel: Option<PathBuf>,
    /// Which one.
    pub debian: Debian,
    /// How long the patterns run at least, in seconds of the machine's time.
    pub seconds: u64,
    /// How often each vector length is used, and each thing that disturbs happens, on each CPU: it
    /// takes as long as it takes.
    pub times: u64,
    /// Processes per CPU.
    pub processes: u32,
    /// End with a reset instead of a power-off.
    pub reboot: bool,
    /// What it does meanwhile.
    pub task: Task,
}

/// What a Linux is booted for.
#[derive(Clone, Debug)]
pub enum Task {
    /// Patterns in every register.
    Patterns,
    /// Disks and a network, behind an SMMU.
    Devices(Content),
    /// Virtual machines, by the kernel module and the tree's own monitor.
    VirtualMachines(Guests),
    /// It has to go without the devices that reach memory: nothing is in between.
    Withheld,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kernel: None,
            debian: Debian::Release,
            seconds: 60,
            times: 1,
            processes: 3,
            reboot: false,
            task: Task::Patterns,
        }
    }
}

impl Options {
    /// Whether hyp takes the host's registers away all the time, for there are patterns in them. Beside virtual machines it
    /// doesn't: what it has taken already no guest displaces, and no wrong word of the module's can lose.
    fn displaces(&self) -> bool {
        matches!(self.task, Task::Patterns)
    }

    /// The words for our program.
    fn words(&self, cpus: u32) -> String {
        let Self { seconds, times, processes, reboot, .. } = self;
        let patterns = format!("seconds={seconds} processes={processes}");
        let task = match &self.task {
            Task::Patterns => patterns,
            Task::Devices(content) => format!("devices {}", content.words()),
            Task::VirtualMachines(guests) => guests.words(&patterns),
            Task::Withheld => "withheld".to_owned(),
        };
        let end = if *reboot { " reboot" } else { "" };
        format!("umbra cpus={cpus} times={times} {task}{end}")
    }

    /// `machine` with what the task needs of it.
    fn equip(&self, machine: Machine) -> Machine {
        match &self.task {
            Task::Devices(content) => content.attach(&machine),
            Task::VirtualMachines(_) => {
                Machine { memory: machine.memory.max(vms::MEMORY), ..machine }
            }
            Task::Patterns | Task::Withheld => machine,
        }
    }

    /// What has to be left behind, above all that every Linux leaves; why it can't be, if it isn't.
    fn verify(&self, report: &Report, console: &[String], cpus: u32) -> Result<(), String> {
        // Behind the program's verdict, too: it may have been turned off.
        let bad = ["Kernel panic", "Internal error: ", "Oops"];
        if let Some(line) = console.iter().find(|line| bad.iter().any(|bad| line.contains(bad))) {
            return Err(format!("Linux says: {line}"));
        }
        verify(report, cpus, self.kernel.is_none(), self.displaces())?;
        match &self.task {
            Task::Patterns => Ok(()),
            Task::Devices(_) => devices::verify(report, cpus),
            Task::VirtualMachines(guests) => guests.verify(report),
            Task::Withheld => devices::verify_withheld(report, console),
        }
    }
}

/// The programs around a kernel, compiled.
#[derive(Clone, Debug)]
pub struct Programs {
    /// hyp's ELF.
    pub hyp: PathBuf,
    /// The ELF of Linux's first program.
    pub init: PathBuf,
    /// Those for virtual machines, if they are built.
    pub virtual_machines: Option<VirtualMachines>,
    /// The module by which protected guests read what they are measured by, or why there is none; `None`: there are no such
    /// guests.
    pub realm: Option<Result<PathBuf, String>>,
}

impl Programs {
    /// The initrd of the image `name`, with what the task needs: the kernel's drivers, or virtual machines.
    fn initrd(&self, kernel: &Kernel, task: &Task, name: &str) -> Result<Vec<u8>> {
        let init = ("init".to_owned(), std::fs::read(&self.init)?);
        let mut files = vec![init.clone()];
        match task {
            Task::Patterns | Task::Withheld => {}
            Task::VirtualMachines(guests) => {
                let vms = self.virtual_machines.as_ref().context("nothing for guests is built")?;
                // The guest has the same program, and mostly the same kernel.
                if let Some(unaware) = guests.unaware_kernel()? {
                    // It has no devices, and needs no drivers.
                    let none = [init.clone(), ("modules".to_owned(), Vec::new())];
                    files.push(("unaware-initrd".to_owned(), archive(&none)));
                    files.push(("unaware-kernel".to_owned(), std::fs::read(&unaware.image)?));
                }
                let (mut guest, other) = (vec![init], guests.kernel()?);
                let guest_kernel = other.as_ref().unwrap_or(kernel);
                guest.extend(drivers(guest_kernel, &[kernel::GUEST, kernel::CIPHERS].concat())?);
                if let Some(Ok(module)) = &self.realm {
                    guest.push(("umbra_realm.ko".to_owned(), std::fs::read(module)?));
                }
                let guest = archive(&guest);
                if self.realm.is_some() {
                    image::write_whole(&guest_initrd(name), &guest)?;
                }
                files.push(("guest-initrd".to_owned(), guest));
                files.extend(guests.disks()?);
                files.extend(drivers(kernel, &[kernel::HOST, kernel::CIPHERS].concat())?);
                for (name, path) in
                    vms.files().into_iter().chain([("guest-kernel", &*guest_kernel.image)])
                {
                    let content =
                        std::fs::read(path).with_context(|| path.display().to_string())?;
                    files.push((name.to_owned(), content));
                }
            }
            Task::Devices(_) => {
                files.extend(drivers(kernel, kernel::DEVICES)?);
            }
        }
        Ok(archive(&files))
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
        let own = match options.task {
            Task::VirtualMachines(guests) => guests.kernel_words(),
            _ => "",
        };
        let words = format!("umbra.stats{displace} {UNHURRIED} {own} {extra}");
        let command_line = command_line(words.trim_end(), &options.words(cpus));
        self.pack_with(kernel, &options.task, &command_line, name)
    }

    fn pack_with(
        &self,
        kernel: &Kernel,
        task: &Task,
        command_line: &str,
        name: &str,
    ) -> Result<PathBuf> {
        let package = image::pack(&Parts {
            hyp: &elf::flatten_file(&self.hyp)?,
            host: &image::read_host(&kernel.image)?,
            initrd: &self.initrd(kernel, task, name)?,
            command_line,
        })?;
        let path = workspace::image_dir().join(format!("{name}.img"));
        image::write_whole(&path, &package)?;
        Ok(path)
    }

    /// What QEMU gives a Linux that it starts without Umbra, and with EL2 if that is `el2`.
    fn direct(
        &self,
        kernel: &Kernel,
        task: &Task,
        el2: bool,
        command_line: String,
        name: &str,
    ) -> Result<Direct> {
        let initrd = workspace::image_dir().join(format!("{name}.initrd"));
        image::write_whole(&initrd, &self.initrd(kernel, task, name)?)?;
        Ok(Direct { el2, initrd, command_line })
    }
}

/// Where the initrd is kept of protected guests in the image `name`, to compute from what they are measured by.
fn guest_initrd(name: &str) -> PathBuf {
    workspace::image_dir().join(format!("{name}-guest.initrd"))
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(name, file)| (name.as_str(), &file[..])).collect();
    cpio::archive(&files)
}

/// Drivers of a kernel's for an initrd, and in `modules` the order in which they are loaded.
fn drivers(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let modules = kernel.modules.as_ref().context("a kernel without its drivers")?;
    let modules = modules.read(wanted)?;
    let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
    let list = ("modules".to_owned(), names.join("\n").into_bytes());
    let files = modules.into_iter().map(|(name, module)| (format!("{name}.ko"), module));
    Ok([list].into_iter().chain(files).collect())
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
        None => Kernel::debian(options.debian),
    }
}

/// Boots a Linux under Umbra to the end of its program; whether it went well.
///
/// With devices it needs a newer QEMU, and gets one if it can be had.
pub fn boot(qemu: &Qemu, request: &Request, options: &Options) -> Result<bool> {
    let newer = match &options.task {
        Task::Devices(_) => Some(setup::newer_qemu(qemu).map_err(anyhow::Error::msg)?),
        _ => None,
    };
    let qemu = newer.as_ref().unwrap_or(qemu);
    let toolchain = setup::toolchain()?;
    let kernel = kernel(options)?;
    let programs = Programs {
        hyp: build::binary(&toolchain, HYP)?,
        init: build::binary(&toolchain, LINUX)?,
        virtual_machines: match &options.task {
            Task::VirtualMachines(guests) => {
                Some(VirtualMachines::build(&toolchain, options.debian, guests.hunts())?)
            }
            _ => None,
        },
        realm: match &options.task {
            Task::VirtualMachines(guests) => guests.realm(),
            _ => None,
        },
    };
    if matches!(options.task, Task::VirtualMachines(Guests::Costs)) {
        return costs::compare(qemu, request, &programs, &kernel, options);
    }
    if request.machine.icount {
        return compare::compare(qemu, request, &programs, &kernel, options);
    }
    let cpus = request.machine.smp;
    let image = programs.pack(&kernel, options, cpus, &request.command_line, "linux")?;
    let mut machine = options.equip(request.machine.clone());
    if let Some(setup) = &request.firmware {
        let program = build::binary(&toolchain, build::FIRMWARE)?;
        machine.firmware = Some(firmware::configure(&program, setup, "boot")?);
        eprintln!("EL3 firmware: {setup}");
    }
    if matches!(options.task, Task::VirtualMachines(Guests::Shell)) {
        eprintln!("a Debian guest of {} above Umbra; Ctrl-A x ends it", kernel.name);
        return vms::interact(qemu, &Machine { terminal: true, ..machine }, &image);
    }
    match &options.task {
        Task::Devices(_) => eprintln!("{} above Umbra, with devices", kernel.name),
        _ => eprintln!("{} above Umbra for {} s", kernel.name, options.seconds),
    }
    let symbols = Symbols::new([(Space::Hyp, programs.hyp.clone())]);
    let Watched { report, console, failure } = watch(qemu, &image, symbols, &machine, request)?;
    let mut failure = failure.or_else(|| options.verify(&report, &console, cpus).err());
    if let Some(exits) = vms::exits(&console) {
        println!("{exits}");
    }
    if let Task::VirtualMachines(guests) = options.task
        && failure.is_none()
        && let Some(measured) = measured::compare(&programs, guests, "linux", &console)?
    {
        let both = format!(
            "measurements that protected guests read, and from their files:\n{}",
            measured.table
        );
        println!("{}", measured.left_out.unwrap_or(both));
        failure = measured.wrong;
    }
    if failure.is_none() && matches!(options.task, Task::VirtualMachines(Guests::Scenarios)) {
        eprintln!("the same guests on {}'s own KVM", kernel.name);
        let direct = scenarios::direct(&programs, &kernel, options, cpus, "linux-kvm")?;
        let machine = Machine { direct: Some(direct), firmware: None, ..machine };
        // There is no hyp.
        let kvm = watch(qemu, &kernel.image, Symbols::default(), &machine, request)?;
        let (table, wrong) =
            scenarios::compare(&scenarios::said(&console), &scenarios::said(&kvm.console));
        if let Some(exits) = vms::exits(&kvm.console) {
            println!("on Linux's KVM:\n{exits}");
        }
        println!("{table}");
        failure = kvm.failure.or(wrong);
    }
    println!("{}", report.render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}

/// What a Linux that ran above Umbra has to have left behind; why it can't have, if it didn't. Not every
/// kernel lets programs at physical memory; one that `must_reach` it does. Where registers are `displaced` they
/// have moved through hyp on every CPU.
fn verify(report: &Report, cpus: u32, must_reach: bool, displaced: bool) -> Result<(), String> {
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

fn lengths(list: &str) -> Vec<u32> {
    list.split(',').filter_map(|length| length.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::parse;

    pub fn report(lines: &[&str]) -> Report {
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
    fn hyps_words_stand_before_our_programs() {
        let options = Options { reboot: true, ..Options::default() };
        assert_eq!(
            command_line("umbra.stats", &options.words(4)),
            "console=ttyAMA0 panic=-1 umbra.stats -- umbra cpus=4 times=1 seconds=60 processes=3 reboot"
        );
        assert_eq!(command_line("", "bench"), "console=ttyAMA0 panic=-1 -- bench");
    }
}
