//! The command line of `cargo xtask`; the work is in the library.

mod arguments;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use arguments::{BootArgs, FirmwareArgs, MachineArgs, VmArgs};
use clap::{Args, Parser, Subcommand};
use umbra_tools::bench;
use umbra_tools::bounds::Bounds;
use umbra_tools::check;
use umbra_tools::doctor;
use umbra_tools::fuzz::script::Vls;
use umbra_tools::fuzz::{self, ModeChoice};
use umbra_tools::fvp;
use umbra_tools::gdb;
use umbra_tools::image;
use umbra_tools::kernel::Debian;
use umbra_tools::module::{self, Headers};
use umbra_tools::qemu::Machine;
use umbra_tools::{build, plants, setup, test};

/// Sets up, builds, boots, tests and checks Umbra.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Report which tools are there, which are missing and what to install. Changes nothing.
    Doctor,
    /// Install or fetch everything that the other verbs would when they need it first: tools, a newer QEMU
    /// beside the distribution's, Debian's Linux. The exit status is 0 only if all is there.
    Setup,
    /// Boot the demonstration on QEMU and show its table. Installs what is missing.
    ///
    /// The exit status is 0 only if the machine verified everything and powered off by itself.
    Boot(BootArgs),
    /// Run all tests: unit and property tests here, on-target tests on QEMU. Installs what is
    /// missing.
    Test(TestArgs),
    /// Run random programs over the whole system on random machines, and judge every register.
    ///
    /// A program that fails is made short and written down; `--replay` runs it again. Ends after a
    /// minute unless told otherwise; the exit status is 0 only if nothing failed.
    Fuzz(FuzzArgs),
    /// Count the instructions that exits, traps and hypercalls cost, against the floor and Linux's.
    ///
    /// Writes a report (HTML) beside the table. With `--baseline` the exit status is 0 only if nothing
    /// costs over 2 % more.
    Bench(BenchArgs),
    /// Write a timeline of world switches and FP moves that Perfetto's viewer opens.
    Trace(TraceArgs),
    /// Put known defects into a copy of the sources, one at a time, and require that the tests named
    /// for each fail.
    Plants(PlantsArgs),
    /// Pack hyp and a host payload of yours into one bootable file.
    Image(ImageArgs),
    /// Boot Debian above Umbra, load the module, and run a Debian guest by the tree's own monitor beside patterns in the
    /// host's registers. Lines of the guest's console begin with `guest: `.
    ///
    /// The exit status is 0 only if host and guest found all their registers, and every page came back.
    Vm(VmArgs),
    /// Build the kernel module by which a Linux above Umbra has /dev/kvm (`host/linux`). Fetches the headers of the
    /// kernel that the tests boot, unless others are named.
    Module(ModuleArgs),
    /// Boot the demonstration paused, and say how a debugger gets in.
    Gdb(GdbArgs),
    /// Boot, test or fuzz on Arm's Base RevC model instead of QEMU.
    ///
    /// The model is Arm's and free; get it from Arm, and put it on PATH or set FVP to it. Without it,
    /// everything is prepared, and the command line shown that would start it.
    #[command(subcommand)]
    Fvp(FvpVerb),
    /// Build the bare-metal binaries and pack the demonstration and test images.
    Build,
    /// Check formatting, lints, documentation, and that hyp has unsafe code and FP/SIMD/SVE
    /// instructions only where they belong.
    Check,
}

#[derive(Args)]
struct ModuleArgs {
    /// Headers of another arm64 kernel: a folder that `make -C` takes.
    #[arg(long, value_name = "DIR")]
    kernel_headers: Option<PathBuf>,
    /// Those of Debian's newest kernel.
    #[arg(long, conflicts_with = "kernel_headers")]
    newest: bool,
    /// A build that looks for protected guests' registers in the host, behind every exit: to be tested with, and slow.
    #[arg(long)]
    hunt: bool,
}

#[derive(Subcommand)]
enum FvpVerb {
    /// Boot the demonstration and show its table.
    Boot(FvpArgs),
    /// Run the on-target tests.
    Test(FvpTestArgs),
    /// Run the fuzzer.
    Fuzz(FuzzArgs),
}

#[derive(Args)]
struct FvpArgs {
    /// Number of CPUs: up to 8, in clusters of four.
    #[arg(long, default_value_t = 4)]
    smp: u32,
    #[command(flatten)]
    firmware: FirmwareArgs,
    /// Command line of hyp (words that begin with `umbra.`) and host.
    #[arg(long, value_name = "TEXT", default_value = "")]
    cmdline: String,
    /// Show the machine's console.
    #[arg(long, short)]
    verbose: bool,
    /// Seconds after which the model is killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

#[derive(Args)]
struct FvpTestArgs {
    #[command(flatten)]
    machine: FvpArgs,
    /// Arguments for the test runner: a filter, `--exact` and so on.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl FvpArgs {
    fn request(self) -> Result<fvp::Request> {
        let total = Duration::from_secs(self.timeout);
        Ok(fvp::Request {
            setup: self.firmware.any_setup(self.smp)?,
            command_line: self.cmdline,
            // A model of everything is slow.
            bounds: Bounds { total, silence: total },
            verbose: self.verbose,
        })
    }
}

#[derive(Args)]
struct TestArgs {
    /// The QEMU to use.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Arguments for `cargo test`: a filter, or `-p PACKAGE`, `--test target`, `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Args)]
struct FuzzArgs {
    /// Where the seeds of programs and machines begin, decimal or 0x...; without, anywhere.
    #[arg(long, value_name = "SEED", value_parser = seed)]
    seed: Option<u64>,
    /// Stop after so many minutes.
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Stop after so many programs.
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
    /// Random hypercalls above all, from several CPUs at once, on a hyp that writes every transition
    /// down; all of them are judged by the executable specification (tests/spec).
    #[arg(long)]
    calls: bool,
    /// Order of a program's steps.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeChoice,
    /// `random`, or the largest vector length of each CPU in bytes.
    #[arg(long, value_name = "BYTES,...", default_value = "random")]
    vls: Vls,
    /// The same for streaming mode.
    #[arg(long, value_name = "BYTES,...", default_value = "random")]
    svls: Vls,
    /// Number of CPUs of a machine, up to 8.
    #[arg(long, default_value_t = 4)]
    smp: u32,
    /// QEMU's name of the CPU, if vector lengths are given.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Machines at the same time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// The QEMU to use.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Run the programs of this file instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "minutes", "iterations"])]
    replay: Option<PathBuf>,
    /// Folder for the record and for failing programs; target/fuzz if not given.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

impl FuzzArgs {
    fn request(self) -> fuzz::Request {
        fuzz::Request {
            seed: self.seed,
            minutes: self.minutes,
            iterations: self.iterations,
            calls: self.calls,
            mode: self.mode,
            vls: self.vls,
            svls: self.svls,
            smp: self.smp,
            cpu: self.cpu,
            jobs: self.jobs,
            qemu: self.qemu,
            replay: self.replay,
            output: self.output,
        }
    }
}

impl BenchArgs {
    fn run(self) -> Result<bool> {
        if self.update {
            return bench::update(self.qemu.as_deref());
        }
        bench::bench(&bench::Request {
            cpu: self.cpu,
            qemu: self.qemu,
            iterations: self.iterations,
            short: self.short,
            all: self.all,
            json: self.json,
            report: self.report,
            baseline: self.baseline,
        })
    }
}

fn seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

#[derive(Args)]
struct BenchArgs {
    /// QEMU's name of the CPU.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// The QEMU to use.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Turns of each measurement: a multiple of 16.
    #[arg(long, value_name = "N", default_value_t = 320)]
    iterations: u64,
    /// The selection that `cargo xtask test` looks at, too.
    #[arg(long)]
    short: bool,
    /// Show every row, not a selection, and where hyp's instructions go.
    #[arg(long)]
    all: bool,
    /// Print an array of objects instead of the table, or write it to a file beside it.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
    /// Where the report goes; target/bench/report.html if not given.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// An earlier `--json` to compare with: changes over 2 % are shown.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Check in the counts of this build, for this compiler and QEMU (a file in tests/bench/counts), and
    /// do nothing else.
    #[arg(long, conflicts_with_all = ["json", "report", "baseline", "all", "cpu", "iterations"])]
    update: bool,
}

#[derive(Args)]
struct TraceArgs {
    /// QEMU's name of the CPU.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// The QEMU to use.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Everything that `bench` measures, not its short selection.
    #[arg(long)]
    all: bool,
    /// Where the timeline goes; target/bench/trace.json if not given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Args)]
struct PlantsArgs {
    /// Defects to plant: file names in tests/plants without `.patch`, or rows of the table such as
    /// r07. All of them if none is given.
    names: Vec<String>,
    /// Don't run the tests on the sources as they are first.
    #[arg(long)]
    no_baseline: bool,
    /// The QEMU to use.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
}

#[derive(Args)]
struct ImageArgs {
    /// The host payload: an arm64 Image (such as Linux), or an ELF file that begins with its
    /// header.
    #[arg(long, value_name = "FILE")]
    host: PathBuf,
    /// The host's initrd.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Command line of hyp (words that begin with `umbra.`) and host.
    #[arg(long, value_name = "TEXT", default_value = "")]
    cmdline: String,
    /// Where the packed file goes.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
struct GdbArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Port on which the debugger connects.
    #[arg(long, default_value_t = 1234)]
    port: u16,
    /// Debug the on-target tests instead of the demonstration.
    #[arg(long)]
    tests: bool,
    /// Start gdb-multiarch here, and end the machine with it.
    #[arg(long)]
    start: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what was asked for; whether it went well.
fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Doctor => doctor::report(),
        Verb::Setup => setup::everything().map(|()| true),
        Verb::Boot(args) => args.run(),
        Verb::Test(args) => test::test(args.qemu.as_deref(), &args.arguments),
        Verb::Fuzz(args) => fuzz::fuzz(&args.request()),
        Verb::Bench(args) => args.run(),
        Verb::Trace(args) => bench::timeline(&bench::TraceRequest {
            cpu: args.cpu,
            qemu: args.qemu,
            output: args.output.unwrap_or_else(|| bench::folder().join("trace.json")),
            all: args.all,
        }),
        Verb::Plants(args) => plants::plants(&plants::Request {
            names: args.names,
            baseline: !args.no_baseline,
            qemu: args.qemu,
        }),
        Verb::Image(args) => {
            let toolchain = setup::toolchain()?;
            let hyp = build::binary(&toolchain, build::HYP)?;
            let request = image::Request {
                host: args.host,
                initrd: args.initrd,
                command_line: args.cmdline,
                output: args.output,
            };
            image::pack_files(&hyp, &request)?;
            println!("{}", request.output.display());
            Ok(true)
        }
        Verb::Gdb(args) => gdb::debug(&gdb::Request {
            machine: Machine { gdb_port: Some(args.port), ..args.machine.machine() },
            qemu: args.machine.qemu,
            command_line: args.machine.cmdline,
            tests: args.tests,
            start: args.start,
        }),
        Verb::Fvp(FvpVerb::Boot(args)) => fvp::boot(&args.request()?),
        Verb::Fvp(FvpVerb::Test(args)) => fvp::test(&args.machine.request()?, &args.arguments),
        Verb::Fvp(FvpVerb::Fuzz(args)) => fvp::fuzz(&args.request()),
        Verb::Vm(args) => args.run(),
        Verb::Module(args) => {
            let toolchain = setup::toolchain()?;
            let headers = match args.kernel_headers {
                Some(folder) => Headers::in_folder(&folder)?,
                None if args.newest => Headers::debian(Debian::Newest)?,
                None => Headers::debian(Debian::Release)?,
            };
            println!("{}", build::shown(&module::build(&toolchain, &headers, args.hunt)?));
            Ok(true)
        }
        Verb::Build => {
            let toolchain = setup::toolchain()?;
            for built in [build::demo(&toolchain, "")?, build::tests(&toolchain)?] {
                println!("{}", build::shown(&built.image));
            }
            println!("{}", build::shown(&build::binary(&toolchain, build::LINUX)?));
            Ok(true)
        }
        Verb::Check => check::check(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_for_cargo_test_pass_through() {
        let cli = Cli::parse_from(["xtask", "test", "max::r04", "--", "--nocapture"]);
        let Verb::Test(args) = cli.verb else {
            panic!("not the verb that was asked for");
        };
        assert_eq!(args.arguments, ["max::r04", "--", "--nocapture"]);
    }
}
