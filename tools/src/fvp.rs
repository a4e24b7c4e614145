//! Arm's Base RevC model (an FVP): a second machine, on which SVE and asymmetry can be had without QEMU.
//!
//! Arm gives the model away, but only itself: we can't install it. Everything else is made here: the
//! EL3 test firmware for this board, the device tree that the model lacks ([`tree`]), the image, and a
//! command line. Vector lengths differ from CPU to CPU as they do on QEMU: the SVE plugin has one
//! length for all, its largest, and the firmware's ZCR_EL3.LEN is each CPU's own.
//!
//! Sources: Arm Fast Models FVP Reference Guide; Trusted Firmware-A, docs/plat/arm/fvp. The model itself
//! has not run any of this yet.

pub mod tree;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use libtest_mimic::Arguments;

use crate::board::Board;
use crate::bounds::{Bounds, End, run_bounded};
use crate::build::{self, TestParts};
use crate::firmware::{self, Firmware, Setup};
use crate::fuzz;
use crate::fuzz::batch::{Lab, Runner};
use crate::fuzz::script::MachineSpec;
use crate::harness;
use crate::image;
use crate::process;
use crate::setup;
use crate::transcript::Transcript;
use crate::watch;
use crate::workspace;
use umbra_fuzz::program::Mode;

const PROGRAM: &str = "FVP_Base_RevC-2xAEMvA";
/// Names the program, or its folder.
const VARIABLE: &str = "FVP";
const PLUGIN: &str = "ScalableVectorExtension.so";
/// Names the plugin, where it isn't where the model's package has it.
const PLUGIN_VARIABLE: &str = "FVP_SVE_PLUGIN";

/// The plugin's vector length in units of 64 bits: the architecture's largest.
const VECLEN: u32 = 256 / 8;
/// The streaming vector lengths that it has: bit n is 128 << n bits.
const SME_VECLENS: u32 = 0x1f;

/// A boot with some programs may take so long.
const FUZZ_BOUNDS: Bounds =
    Bounds { total: Duration::from_secs(7200), silence: Duration::from_secs(3600) };

/// CPUs in a cluster.
const CLUSTER: u32 = 4;
const CLUSTERS: u32 = 2;

/// Extensions of the architecture that each cluster has.
const ARCHITECTURE: [&str; 10] =
    ["v8-1", "v8-2", "v8-3", "v8-4", "v8-5", "v8-6", "v8-7", "v9-0", "v9-1", "v9-2"];

/// Everything that one start of the model takes.
#[derive(Clone, Debug)]
pub struct Session {
    /// CPUs.
    pub smp: u32,
    /// EL3.
    pub firmware: Firmware,
    /// The device tree.
    pub dtb: PathBuf,
    /// The packed image.
    pub image: PathBuf,
}

/// The model and its plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The program.
    pub program: PathBuf,
    /// The SVE plugin.
    pub plugin: PathBuf,
}

impl Model {
    /// The model to use, if there is one: the one that `FVP` names, or the one on PATH.
    pub fn find() -> Result<Option<Self>> {
        let program = match env::var_os(VARIABLE).map(PathBuf::from) {
            Some(named) => {
                let program = if named.is_dir() { named.join(PROGRAM) } else { named };
                ensure!(
                    program.is_file(),
                    "{VARIABLE} is set, but there is no {}",
                    program.display()
                );
                program
            }
            None => match process::find_on_path(PROGRAM) {
                Some(program) => program,
                None => return Ok(None),
            },
        };
        let plugin = match env::var_os(PLUGIN_VARIABLE) {
            Some(named) => PathBuf::from(named),
            None => plugin_beside(&program),
        };
        ensure!(
            plugin.is_file(),
            "no SVE plugin at {}: set {PLUGIN_VARIABLE} to the model's {PLUGIN}",
            plugin.display()
        );
        Ok(Some(Self { program, plugin }))
    }

    /// What is shown where there is none: names to be filled in.
    fn unknown() -> Self {
        Self { program: PathBuf::from(PROGRAM), plugin: PathBuf::from(PLUGIN) }
    }
}

/// The model's package has models/PLATFORM/ and plugins/PLATFORM/.
fn plugin_beside(program: &Path) -> PathBuf {
    let program = program.canonicalize().unwrap_or_else(|_| program.to_path_buf());
    let folder = program.parent().unwrap_or(Path::new("."));
    let platform = folder.file_name().unwrap_or_default();
    let package = folder.parent().and_then(Path::parent).unwrap_or(folder);
    package.join("plugins").join(platform).join(PLUGIN)
}

impl Session {
    /// Writes the firmware (its ELF is `program`) for `setup`, and the device tree, beside `image`. `name`
    /// is part of the files' names.
    pub fn prepare(program: &Path, setup: &Setup, image: &Path, name: &str) -> Result<Self> {
        let smp = setup.cpus();
        ensure!(
            (1..=tree::MAX_CPUS).contains(&smp),
            "the model has 1 to {} CPUs, not {smp}",
            tree::MAX_CPUS
        );
        let setup = setup.clone().on(Board::FVP);
        let firmware = firmware::configure(program, &setup, &format!("fvp-{name}"))?;
        let dtb = workspace::image_dir().join(format!("fvp-{name}.dtb"));
        image::write_whole(&dtb, &tree::tree(smp))?;
        Ok(Self { smp, firmware, dtb, image: image.to_path_buf() })
    }

    /// The command that runs it, console on standard output.
    pub fn command(&self, model: &Model) -> Command {
        let mut command = Command::new(&model.program);
        command.arg(format!("--plugin={}", model.plugin.display()));
        let mut set = |name: &str, value: &dyn std::fmt::Display| {
            command.args(["-C", &format!("{name}={value}")]);
        };
        for (name, value) in [
            ("veclen", VECLEN),
            ("has_sve2", 1),
            ("has_sme", 1),
            ("sme_veclens_implemented", SME_VECLENS),
            // CPTR_EL3 is the firmware's to open.
            ("enable_at_reset", 0),
        ] {
            set(&format!("SVE.ScalableVectorExtension.{name}"), &value);
        }
        for cluster in 0..CLUSTERS {
            let cores = self.smp.saturating_sub(cluster * CLUSTER).min(CLUSTER);
            set(&format!("cluster{cluster}.NUM_CORES"), &cores);
            for extension in ARCHITECTURE {
                set(&format!("cluster{cluster}.has_arm_{extension}"), &1);
            }
        }
        // All CPUs start in the firmware, as on QEMU.
        set("pctl.startup", &"0.*.*.*");
        set("cache_state_modelled", &0);
        set("bp.secure_memory", &0);
        set("bp.refcounter.non_arch_start_at_default", &1);
        set("bp.ve_sysregs.exit_on_shutdown", &1);
        set("bp.vis.disable_visualisation", &1);
        set("bp.pl011_uart0.out_file", &"-");
        set("bp.pl011_uart0.unbuffered_output", &1);
        set("bp.pl011_uart0.untimed_fifos", &1);
        for terminal in 0..4 {
            set(&format!("bp.terminal_{terminal}.start_telnet"), &0);
        }
        set("bp.secureflashloader.fname", &self.firmware.file.display());
        for (file, address) in
            [(&self.dtb, Board::FVP.dtb), (&self.image, self.firmware.boot_address)]
        {
            command.args(["--data", &format!("cluster0.cpu0={}@{address:#x}", file.display())]);
        }
        command
    }

    /// Runs it to its end; `on_line` gets every console line, and what the model itself has to say.
    /// Without a model the error says what to get, and how it would be started.
    pub fn run(&self, bounds: Bounds, on_line: &mut dyn FnMut(&str)) -> Result<End> {
        let Some(model) = Model::find()? else {
            bail!("{}", self.advice());
        };
        run_bounded(&mut self.command(&model), bounds, on_line)
    }

    fn advice(&self) -> String {
        format!(
            "no {PROGRAM}: get Arm's free \"Armv-A Base RevC AEM FVP\" (Arm Ecosystem FVPs, on \
             developer.arm.com), and put it on PATH or set {VARIABLE} to it\n\
             device tree: {}\n\
             command: {}",
            self.dtb.display(),
            process::line(&self.command(&Model::unknown()))
        )
    }
}

/// What `xtask fvp boot` is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the firmware is to make of the machine.
    pub setup: Setup,
    /// The command line of hyp and host.
    pub command_line: String,
    /// How long it may take.
    pub bounds: Bounds,
    /// Show the console.
    pub verbose: bool,
}

/// Builds and runs the demonstration; whether it went well.
pub fn boot(request: &Request) -> Result<bool> {
    let toolchain = setup::toolchain()?;
    let built = build::demo(&toolchain, &request.command_line)?;
    let firmware = build::binary(&toolchain, build::FIRMWARE)?;
    let session = Session::prepare(&firmware, &request.setup, &built.image, "boot")?;
    eprintln!("EL3 firmware: {}", request.setup);
    watch::show(built.symbols(), request.verbose, |on_line| session.run(request.bounds, on_line))
}

/// Builds and runs the on-target tests; whether all that `arguments` (libtest's) select passed.
pub fn test(request: &Request, arguments: &[String]) -> Result<bool> {
    let arguments =
        Arguments::from_iter(["fvp test"].into_iter().chain(arguments.iter().map(String::as_str)));
    let toolchain = setup::toolchain()?;
    let built = build::tests(&toolchain)?;
    let firmware = build::binary(&toolchain, build::FIRMWARE)?;
    let image = workspace::image_dir().join("tests-fvp.img");
    image::add_to_command_line(&built.image, &request.command_line, &image)?;
    let session = Session::prepare(&firmware, &request.setup, &image, "test")?;
    eprintln!("EL3 firmware: {}", request.setup);
    let mut symbols = built.symbols();
    let mut transcript = Transcript::default();
    let end = session.run(request.bounds, &mut |line| {
        transcript.take(line, |line| symbols.show(line));
    })?;
    let outcomes = transcript.into_outcomes(end.failure());
    let trials = outcomes
        .into_iter()
        .map(|(name, outcome)| harness::trial(format!("fvp::{name}"), || outcome))
        .collect();
    Ok(!libtest_mimic::run(&arguments, trials).has_failed())
}

/// The model as the fuzzer's machine.
struct OnFvp {
    /// The EL3 firmware's ELF.
    firmware: PathBuf,
}

impl Runner for OnFvp {
    /// There is one kind of CPU, with all that any of QEMU's has, and its runs repeat as they are: of the
    /// machine that is asked for, vector lengths and late CPUs count.
    fn boot(
        &self,
        spec: &MachineSpec,
        _mode: Mode,
        image: &Path,
        ram: Option<&Path>,
        name: &str,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Option<String>> {
        ensure!(ram.is_none(), "the model's memory can't be read from outside");
        let setup =
            Setup::new(&spec.vls, &spec.late, spec.suspend, spec.smp)?.streaming(&spec.svls)?;
        let session = Session::prepare(&self.firmware, &setup, image, name)?;
        Ok(session.run(FUZZ_BOUNDS, on_line)?.failure())
    }
}

/// Runs the fuzzer; whether nothing failed.
pub fn fuzz(request: &fuzz::Request) -> Result<bool> {
    ensure!(request.qemu.is_none(), "--qemu: this is not QEMU");
    ensure!(!request.calls, "--calls: the model's memory can't be read from outside");
    let toolchain = setup::toolchain()?;
    let built = build::tests(&toolchain)?;
    let runner = OnFvp { firmware: build::binary(&toolchain, build::FIRMWARE)? };
    fuzz::on(
        &Lab { runner, parts: TestParts::read(&built)?, built, log: None, calls: false },
        request,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(smp: u32) -> Session {
        Session {
            smp,
            firmware: Firmware { file: PathBuf::from("el3.bin"), boot_address: 0x8020_0000 },
            dtb: PathBuf::from("fvp.dtb"),
            image: PathBuf::from("demo.img"),
        }
    }

    #[test]
    fn the_command_has_everything() {
        let line = |smp| process::line(&session(smp).command(&Model::unknown()));
        let six = line(6);
        for part in [
            "--plugin=ScalableVectorExtension.so",
            "SVE.ScalableVectorExtension.veclen=32",
            "cluster0.NUM_CORES=4",
            "cluster1.NUM_CORES=2",
            "cluster1.has_arm_v9-2=1",
            "cache_state_modelled=0",
            "bp.secure_memory=0",
            "pctl.startup=0.*.*.*",
            "bp.pl011_uart0.out_file=-",
            "bp.secureflashloader.fname=el3.bin",
            "cluster0.cpu0=fvp.dtb@0x80000000",
            "cluster0.cpu0=demo.img@0x80200000",
        ] {
            assert!(six.contains(part), "{part} is not in {six}");
        }
        assert!(
            line(3).contains("cluster0.NUM_CORES=3") && line(3).contains("cluster1.NUM_CORES=0")
        );
        assert!(line(8).contains("cluster1.NUM_CORES=4"));
    }

    #[test]
    fn what_to_get_is_said_with_the_command() {
        let advice = session(4).advice();
        for part in [PROGRAM, "PATH", "set FVP", "fvp.dtb", "-C bp.secure_memory=0"] {
            assert!(advice.contains(part), "{part} is not in {advice}");
        }
    }

    #[test]
    fn the_plugin_is_where_the_package_has_it() {
        let program = Path::new("/opt/none/models/Linux64_GCC-9.3/FVP_Base_RevC-2xAEMvA");
        let plugin = "/opt/none/plugins/Linux64_GCC-9.3/ScalableVectorExtension.so";
        assert_eq!(plugin_beside(program), Path::new(plugin));
    }
}
