//! The machine: finding a QEMU, and running one that is bounded in every way ([`crate::bounds`]).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bounds::{Bounds, End, run_bounded};
use crate::firmware::Firmware;
use crate::packages::{self, Apt};
use crate::process;
use crate::workspace;
use anyhow::{Context, Result, bail};

mod devices;
mod newer;

pub use devices::{Attached, Device, Disk, Smmu};
pub use newer::{NEWER, Newer};

/// Major and minor.
pub type Release = (u32, u32);

const PROGRAM: &str = "qemu-system-aarch64";
const PACKAGE: &str = "qemu-system-arm";
/// The oldest release that has what we need of `-cpu max` and of the virt board.
const MINIMUM: Release = (7, 2);
/// Overrides the search.
const VARIABLE: &str = "UMBRA_QEMU";

/// What to emulate.
#[derive(Clone, Debug)]
pub struct Machine {
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// Deterministic: one instruction per nanosecond of virtual time, one CPU at a time.
    pub icount: bool,
    /// Wait for a debugger, and let it connect here.
    pub gdb_port: Option<u16>,
    /// The EL3 firmware (see [`crate::firmware`]); without one, QEMU itself is what starts CPUs, and
    /// all are alike.
    pub firmware: Option<Firmware>,
    /// GiB of memory, which begins at 1 GiB.
    pub memory: u32,
    /// A file that is its memory, for somebody to read when it is over.
    pub memory_file: Option<PathBuf>,
    /// Memory has tags (MTE).
    pub mte: bool,
    /// The board as it was in this release; `None`: as it is in the emulator's own.
    pub board: Option<Release>,
    /// The SMMU in front of PCIe.
    pub smmu: Smmu,
    /// Devices beside the board's own.
    pub devices: Vec<Device>,
    /// Its console is this terminal, every key of it.
    pub terminal: bool,
    /// QEMU starts a kernel by itself, for comparison.
    pub direct: Option<Direct>,
}

/// What a kernel that QEMU starts by itself is given.
#[derive(Clone, Debug)]
pub struct Direct {
    /// It begins at EL2; there is none otherwise.
    pub el2: bool,
    /// The initrd.
    pub initrd: PathBuf,
    /// The command line.
    pub command_line: String,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpu: "max".to_owned(),
            smp: 4,
            icount: false,
            gdb_port: None,
            firmware: None,
            direct: None,
            memory: 1,
            memory_file: None,
            terminal: false,
            mte: false,
            board: None,
            smmu: Smmu::None,
            devices: Vec::new(),
        }
    }
}

/// A QEMU that was found.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// Its release, major and minor.
    pub version: Release,
}

impl Qemu {
    /// The QEMU to use, if there is one that is new enough: `chosen`, `UMBRA_QEMU`, the one on
    /// PATH, or the one that an earlier run unpacked. One that was asked for by name must do.
    pub fn find(chosen: Option<&Path>) -> Result<Option<Self>> {
        let named =
            chosen.map(Path::to_path_buf).or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
        if let Some(path) = named {
            let path = if path.components().count() == 1 {
                process::find_on_path(&path.to_string_lossy()).unwrap_or(path)
            } else {
                env::current_dir()?.join(path)
            };
            let version = version(&path)?;
            if version < MINIMUM {
                bail!(
                    "{} is QEMU {}.{}; at least {}.{} is needed",
                    path.display(),
                    version.0,
                    version.1,
                    MINIMUM.0,
                    MINIMUM.1
                );
            }
            return Ok(Some(Self { path, version }));
        }
        let candidates = [process::find_on_path(PROGRAM), Some(unpacked_program())];
        Ok(candidates
            .into_iter()
            .flatten()
            .filter_map(|path| {
                let version = version(&path).ok()?;
                Some(Self { path, version })
            })
            .find(|qemu| qemu.version >= MINIMUM))
    }

    /// As [`Self::find`], installing QEMU if there is none.
    pub fn set_up(chosen: Option<&Path>) -> Result<Self> {
        if let Some(qemu) = Self::find(chosen)? {
            return Ok(qemu);
        }
        let Some(apt) = Apt::find() else {
            bail!("{}", Self::advice());
        };
        apt.ensure_known(PACKAGE)?;
        if apt.may_install() && apt.can_install(&[PACKAGE]) {
            apt.install(&[PACKAGE])?;
        } else {
            eprintln!(
                "setting up: {PACKAGE} can't be installed without removing a package or without \
                 more rights; unpacking it into {} instead",
                unpacked_folder().display()
            );
            apt.unpack(&[PACKAGE], &unpacked_folder(), write_launcher)
                .with_context(Self::advice)?;
        }
        Self::find(None)?.with_context(|| {
            format!("{PACKAGE} of this distribution is too old; {}", Self::advice())
        })
    }

    /// What to install by hand.
    pub fn advice() -> String {
        format!(
            "no {PROGRAM} {}.{} or newer: install QEMU's system emulator for Arm (Debian, Ubuntu: \
             {PACKAGE}; Fedora: qemu-system-aarch64; Arch: qemu-system-aarch64; Homebrew: qemu), \
             or set {VARIABLE} to it",
            MINIMUM.0, MINIMUM.1
        )
    }

    /// The command that runs `image` on `machine`, console on standard output.
    pub fn command(&self, machine: &Machine, image: &Path) -> Command {
        let mut command = Command::new(&self.path);
        let secure = if machine.firmware.is_some() { ",secure=on" } else { "" };
        let ram = if machine.memory_file.is_some() { ",memory-backend=ram" } else { "" };
        let mte = if machine.mte { ",mte=on" } else { "" };
        let has_el2 = machine.direct.as_ref().is_none_or(|direct| direct.el2);
        let el2 = if has_el2 { "on" } else { "off" };
        let release = machine.board.map(|(major, minor)| format!("-{major}.{minor}"));
        let release = release.unwrap_or_default();
        let smmu = machine.smmu.options();
        let board = format!(
            "virt{release},virtualization={el2},gic-version=3,dtb-randomness=off{secure}{mte}{ram}{smmu}"
        );
        command
            .args(["-M", &board])
            .args(["-cpu", &machine.cpu])
            .args(["-smp", &machine.smp.to_string()])
            .args(["-m", &format!("{}G", machine.memory)])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-net", "none", "-no-reboot"]);
        if machine.terminal {
            command.args(["-chardev", "stdio,id=terminal,signal=off"]);
            command.args(["-serial", "chardev:terminal"]);
        } else {
            command.args(["-serial", "stdio"]);
        }
        devices::add(&mut command, &machine.devices);
        if let Some(file) = &machine.memory_file {
            let file = doubled_commas(file);
            let size = machine.memory;
            command.arg("-object");
            command
                .arg(format!("memory-backend-file,id=ram,size={size}G,share=on,mem-path={file}"));
        }
        if machine.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
        } else {
            command.args(["-accel", "tcg,thread=multi"]);
        }
        if let Some(port) = machine.gdb_port {
            command.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
        }
        if let Some(direct) = &machine.direct {
            command.arg("-initrd").arg(&direct.initrd).args(["-append", &direct.command_line]);
        }
        match &machine.firmware {
            None => {
                command.arg("-kernel").arg(image);
            }
            Some(firmware) => {
                let file = doubled_commas(image);
                let address = firmware.boot_address;
                command.arg("-bios").arg(&firmware.file).arg("-device");
                command.arg(format!("loader,file={file},addr={address:#x},force-raw=on"));
            }
        }
        command
    }

    /// Runs `image` to its end; `on_line` gets every console line, and what QEMU itself has to say.
    pub fn run(
        &self,
        machine: &Machine,
        image: &Path,
        bounds: Bounds,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<End> {
        run_bounded(&mut self.command(machine, image), bounds, on_line)
    }
}

/// A path as an option's value.
fn doubled_commas(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn unpacked_folder() -> PathBuf {
    workspace::tools_dir().join("qemu")
}

fn unpacked_program() -> PathBuf {
    unpacked_folder().join(PROGRAM)
}

/// A program beside the unpacked files that runs their QEMU with their libraries and firmware.
fn write_launcher(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let root = folder.join("root");
    let libraries: Vec<String> = packages::library_folders(&root)
        .iter()
        .map(|folder| format!("$root/{}", folder.display()))
        .collect();
    // An installed QEMU of another release has modules where this one was built to look for them, and
    // would end at the first. With this folder beside the program that place is below it, where there
    // are none (QEMU's `get_relocated_path`).
    fs::create_dir_all(root.join("usr/bin/qemu-bundle"))?;
    let script = format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(readlink -f \"$0\")\")/root\n\
         export LD_LIBRARY_PATH=\"{}\"\n\
         export QEMU_MODULE_DIR=\"$root/usr/bin/qemu-bundle\"\n\
         exec \"$root/usr/bin/{PROGRAM}\" -L \"$root/usr/share/qemu\" \"$@\"\n",
        libraries.join(":")
    );
    let path = folder.join(PROGRAM);
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let version = version(&path).context("the unpacked QEMU does not run")?;
    eprintln!("setting up: unpacked QEMU {}.{}", version.0, version.1);
    Ok(())
}

fn version(path: &Path) -> Result<Release> {
    let text = process::stdout(Command::new(path).arg("--version"))?;
    parse_version(&text)
        .with_context(|| format!("{} does not give a QEMU version: {text}", path.display()))
}

fn parse_version(text: &str) -> Option<Release> {
    let rest = text.trim_start().strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_runs_in_the_secure_world() {
        let qemu = Qemu { path: PathBuf::from("qemu"), version: (10, 0) };
        let line = |firmware| {
            let machine = Machine { firmware, ..Machine::default() };
            let command = qemu.command(&machine, Path::new("a,b.img"));
            let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
            arguments.join(" ")
        };
        let plain = line(None);
        assert!(plain.contains("-kernel a,b.img") && !plain.contains("secure"), "{plain}");
        let firmware = Firmware { file: PathBuf::from("el3.bin"), boot_address: 0x4020_0000 };
        let firm = line(Some(firmware));
        assert!(firm.contains(",secure=on") && firm.contains("-bios el3.bin"), "{firm}");
        assert!(firm.contains("loader,file=a,,b.img,addr=0x40200000,force-raw=on"), "{firm}");
    }

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u15)\nCopyright";
        assert_eq!(parse_version(debian), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("something else"), None);
    }
}
