//! What can be said of a machine that is booted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use umbra_tools::boot::{self, Host};
use umbra_tools::bounds::Bounds;
use umbra_tools::firmware::{Setup, SuspendFormat};
use umbra_tools::kernel::Debian;
use umbra_tools::linux;
use umbra_tools::qemu::Machine;
use umbra_tools::watch;

#[derive(Args)]
pub struct MachineArgs {
    /// Number of CPUs.
    #[arg(long, default_value_t = 4)]
    pub smp: u32,
    /// QEMU's name of the CPU, with properties: max,sve-max-vq=2 for example.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Run deterministically, one instruction per nanosecond of virtual time.
    #[arg(long)]
    icount: bool,
    /// The QEMU to use.
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Command line of hyp (words that begin with `umbra.`) and host.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
}

impl MachineArgs {
    pub fn machine(&self) -> Machine {
        Machine { cpu: self.cpu.clone(), smp: self.smp, icount: self.icount, ..Machine::default() }
    }
}

#[derive(Args)]
pub struct FirmwareArgs {
    /// Vector length of each CPU in bytes, 32,256,64,128 for example: boots through the EL3 test
    /// firmware, which limits each CPU's. Powers of two from 16 to 256, as many as there are CPUs.
    #[arg(long, value_name = "BYTES,...", allow_hyphen_values = true)]
    vls: Option<String>,
    /// The same for streaming mode (SME).
    #[arg(long, value_name = "BYTES,...", allow_hyphen_values = true)]
    svls: Option<String>,
    /// CPUs that the EL3 test firmware refuses to start at hyp's boot and starts later, 3 for
    /// example.
    #[arg(long, value_name = "CPU,...", allow_hyphen_values = true)]
    late: Option<String>,
    /// Layout of CPU_SUSPEND's power_state in the EL3 test firmware.
    #[arg(long, value_name = "FORMAT")]
    suspend: Option<SuspendFormat>,
}

impl FirmwareArgs {
    fn setup(&self, smp: u32) -> Result<Option<Setup>> {
        let lengths = self.vls.is_some() || self.svls.is_some();
        if lengths || self.late.is_some() || self.suspend.is_some() {
            return self.any_setup(smp).map(Some);
        }
        Ok(None)
    }

    /// What the firmware is to do where there always is one.
    pub fn any_setup(&self, smp: u32) -> Result<Setup> {
        let (vls, svls) = (self.vls.as_deref(), self.svls.as_deref());
        Setup::parse(vls, svls, self.late.as_deref(), self.suspend.unwrap_or_default(), smp)
    }
}

#[derive(Args)]
pub struct BootArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    firmware: FirmwareArgs,
    /// Show the machine's console.
    #[arg(long, short)]
    verbose: bool,
    /// Seconds of its own time (not of its wait for a CPU) after which the machine is killed; for a Linux, beyond those of --seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Boot this packed file (see `image`) instead of building the demonstration.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cmdline", "host"])]
    image: Option<PathBuf>,
    /// What runs above hyp. A Linux fills all registers in user space; with --icount it is measured
    /// above Umbra and without it.
    #[arg(long, value_enum, default_value = "demo")]
    host: HostKind,
    /// The Linux to boot: an arm64 Image, as it is or compressed. Otherwise Debian's for the release
    /// at hand is fetched.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The Linux to boot is Debian's newest, of the newest release's backports.
    #[arg(long, conflicts_with = "kernel")]
    newest: bool,
    /// A Linux uses a disk, by virtio and by NVMe, and a network, both behind an SMMU, instead of filling
    /// registers: this file as it is (what is written to it is forgotten), or one that is made.
    /// Needs QEMU 9.2 or newer, which is fetched if it can be.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    disk: Option<Option<PathBuf>>,
    /// How long a Linux fills registers at least, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Processes per CPU that do so.
    #[arg(long, default_value_t = 3)]
    processes: u32,
    /// A Linux ends with a reset instead of a power-off.
    #[arg(long)]
    reboot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HostKind {
    /// The demonstration's small kernel, with guests.
    Demo,
    /// An unmodified Linux.
    Linux,
}

impl BootArgs {
    fn bounds(&self) -> Bounds {
        let working = if self.host == HostKind::Linux { self.seconds } else { 0 };
        let total = Duration::from_secs(self.timeout.saturating_add(working));
        Bounds { total, ..Bounds::default() }
    }

    pub fn run(self) -> Result<bool> {
        let host = self.host()?;
        let request = watch::Request {
            machine: self.machine.machine(),
            firmware: self.firmware.setup(self.machine.smp)?,
            bounds: self.bounds(),
            verbose: self.verbose,
            others: Vec::new(),
            qemu: self.machine.qemu.clone(),
            command_line: self.machine.cmdline.clone(),
        };
        boot::boot(&host, &request)
    }

    fn host(&self) -> Result<Host> {
        ensure!(
            self.kernel.is_none() || self.host == HostKind::Linux,
            "--kernel needs --host linux"
        );
        ensure!(
            self.disk.is_none() || (self.host == HostKind::Linux && self.kernel.is_none()),
            "--disk needs --host linux, and a kernel that comes with its drivers: not --kernel"
        );
        let task = match &self.disk {
            Some(file) => linux::Task::Devices(linux::Content::prepare(file.as_deref())?),
            None => linux::Task::Patterns,
        };
        Ok(match (&self.image, self.host) {
            (Some(image), _) => Host::Image(image.clone()),
            (None, HostKind::Demo) => Host::Demo,
            (None, HostKind::Linux) => Host::Linux(linux::Options {
                kernel: self.kernel.clone(),
                debian: debian(self.newest),
                seconds: self.seconds,
                times: linux::Options::default().times,
                processes: self.processes,
                reboot: self.reboot,
                task,
            }),
        })
    }
}

fn debian(newest: bool) -> Debian {
    if newest { Debian::Newest } else { Debian::Release }
}

#[derive(Args)]
pub struct VmArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    firmware: FirmwareArgs,
    /// Host and guests have Debian's newest kernel, of the newest release's backports.
    #[arg(long)]
    newest: bool,
    /// How long the host's patterns run at least, in seconds of the machine's time.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seconds: u64,
    /// Processes with patterns, per CPU of the host's.
    #[arg(long, value_name = "N", default_value_t = 2)]
    processes: u32,
    /// Guests at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    guests: u32,
    /// Monitors that are killed.
    #[arg(long, value_name = "N", default_value_t = 12)]
    kills: u64,
    /// Rounds of random ioctls.
    #[arg(long, value_name = "N", default_value_t = 8)]
    rounds: u64,
    /// Guests of several kinds, one after the other, and the same on Linux's own KVM: what they see is compared.
    #[arg(long, conflicts_with_all = ["guests", "kills", "rounds"])]
    compare: bool,
    /// A guest with a shell of Debian's, on this terminal.
    #[arg(long, conflicts_with_all = ["guests", "kills", "rounds", "compare"])]
    interactive: bool,
    /// What it costs to boot a guest of Debian's newest kernel to user space, protected and not, beside Linux's own KVM: one CPU,
    /// instructions counted.
    #[arg(long, conflicts_with_all = ["guests", "kills", "rounds", "compare", "interactive", "protected"])]
    costs: bool,
    /// A protected guest, of Debian's newest kernel.
    #[arg(long, conflicts_with_all = ["guests", "rounds", "compare", "interactive"])]
    protected: bool,
    /// With a module that looks for the protected guest's registers in the host, behind every exit.
    #[arg(long, requires = "protected")]
    hunt: bool,
}

impl VmArgs {
    pub fn run(self) -> Result<bool> {
        let Self { guests, rounds, kills, hunt, .. } = self;
        let guests = match self {
            Self { compare: true, .. } => linux::Guests::Scenarios,
            Self { interactive: true, .. } => linux::Guests::Shell,
            Self { costs: true, .. } => linux::Guests::Costs,
            Self { protected: true, .. } => linux::Guests::Protected { beside: true, kills, hunt },
            _ => linux::Guests::Beside { guests, rounds, kills, debian: true },
        };
        let options = linux::Options {
            seconds: self.seconds,
            times: 2,
            processes: self.processes,
            debian: debian(self.newest),
            task: linux::Task::VirtualMachines(guests),
            ..linux::Options::default()
        };
        let request = watch::Request {
            firmware: self.firmware.setup(self.machine.smp)?,
            machine: self.machine.machine(),
            bounds: Bounds::default().times(linux::GUESTS_PATIENCE),
            verbose: true,
            others: linux::guest_names(),
            qemu: self.machine.qemu,
            command_line: self.machine.cmdline,
        };
        boot::boot(&Host::Linux(options), &request)
    }
}
