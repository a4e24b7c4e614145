//! The machine: finding a QEMU, and running one that is bounded in every way.
//!
//! A machine that hangs, floods the console or never powers off ends all the same, and says how it
//! ended. Nothing here waits for a time to pass: threads wait for lines and for the end, and the
//! bounds are generous, for a loaded machine that emulates.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::firmware::Firmware;
use crate::packages::{self, Apt};
use crate::process::{self, Running};
use crate::workspace;
use anyhow::{Context, Result, bail};

const PROGRAM: &str = "qemu-system-aarch64";
const PACKAGE: &str = "qemu-system-arm";
/// The oldest release that has what we need of `-cpu max` and of the virt board.
const MINIMUM: (u32, u32) = (7, 2);
/// Overrides the search.
const VARIABLE: &str = "UMBRA_QEMU";
/// A console line is cut here: a machine that prints without line ends must not fill our memory.
const LINE_BYTES: u64 = 16 << 10;

/// Lines that may wait for us: beyond them the machine waits.
const CHANNEL_LINES: usize = 1024;

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
    /// No EL2: QEMU starts a kernel at EL1, for comparison.
    pub direct: Option<Direct>,
}

/// What a kernel that QEMU starts by itself is given.
#[derive(Clone, Debug)]
pub struct Direct {
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
            mte: false,
        }
    }
}

/// How long a machine may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From start to power-off.
    pub total: Duration,
    /// Without a line on the console.
    pub silence: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { total: Duration::from_secs(600), silence: Duration::from_secs(120) }
    }
}

impl Bounds {
    /// No bounds: for a machine that waits for a person.
    pub const NONE: Self = Self {
        total: Duration::from_secs(u32::MAX as u64),
        silence: Duration::from_secs(u32::MAX as u64),
    };
}

/// How a machine ended.
#[derive(Clone, Debug)]
pub enum End {
    /// By itself, with this status of the emulator.
    Exited(ExitStatus),
    /// It was killed after so much silence.
    Silent(Duration),
    /// It was killed after so much time.
    Late(Duration),
}

impl End {
    /// Why this is not a clean power-off, if it isn't.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Exited(status) if status.success() => None,
            Self::Exited(status) => Some(format!("the emulator ended with {status}")),
            Self::Silent(time) => {
                Some(format!("the console was silent for {} s: machine killed", time.as_secs()))
            }
            Self::Late(time) => {
                Some(format!("not powered off after {} s: machine killed", time.as_secs()))
            }
        }
    }
}

/// A QEMU that was found.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// Its release, major and minor.
    pub version: (u32, u32),
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
        let el2 = if machine.direct.is_some() { "off" } else { "on" };
        let board =
            format!("virt,virtualization={el2},gic-version=3,dtb-randomness=off{secure}{mte}{ram}");
        command
            .args(["-M", &board])
            .args(["-cpu", &machine.cpu])
            .args(["-smp", &machine.smp.to_string()])
            .args(["-m", &format!("{}G", machine.memory)])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-serial", "stdio", "-net", "none", "-no-reboot"]);
        if let Some(file) = &machine.memory_file {
            let file = file.display().to_string().replace(',', ",,");
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
                // A comma in an option's value is doubled.
                let file = image.display().to_string().replace(',', ",,");
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

enum Message {
    Line(String),
    /// An output is closed.
    Closed,
    Exited(std::io::Result<ExitStatus>),
}

/// Runs an emulator to its end, or to the end of its bounds.
pub(crate) fn run_bounded(
    command: &mut Command,
    bounds: Bounds,
    on_line: &mut dyn FnMut(&str),
) -> Result<End> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running::start(command)?;
    let child = Arc::clone(running.child());
    let (sender, receiver) = sync_channel(CHANNEL_LINES);
    let mut open = 0;
    if let Some(output) = child.take_stdout() {
        open += 1;
        read_lines(output, sender.clone());
    }
    if let Some(output) = child.take_stderr() {
        open += 1;
        read_lines(output, sender.clone());
    }
    thread::spawn(move || {
        // The receiver is only gone when nobody wants to know any more.
        let _ = sender.send(Message::Exited(child.wait()));
    });

    let start = Instant::now();
    let mut last_line = start;
    let mut end = None;
    let mut exited = false;
    while open > 0 || !exited {
        let now = Instant::now();
        let left = bounds
            .total
            .saturating_sub(now - start)
            .min(bounds.silence.saturating_sub(now - last_line));
        // After the end there is only the rest of the output to read, which is in the pipe.
        let left = if end.is_some() { Duration::from_secs(10) } else { left };
        match receiver.recv_timeout(left) {
            Ok(Message::Line(line)) => {
                last_line = Instant::now();
                on_line(&line);
            }
            Ok(Message::Closed) => open -= 1,
            Ok(Message::Exited(status)) => {
                exited = true;
                let status = status?;
                end.get_or_insert(End::Exited(status));
            }
            Err(_) if end.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = running.child().kill();
                end = Some(if start.elapsed() >= bounds.total {
                    End::Late(bounds.total)
                } else {
                    End::Silent(bounds.silence)
                });
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    end.context("the emulator's end was not seen")
}

/// Sends the lines of `output` from a thread of its own.
fn read_lines(output: impl Read + Send + 'static, sender: SyncSender<Message>) {
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut output).take(LINE_BYTES).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if sender.send(Message::Line(text.to_owned())).is_err() {
                break;
            }
        }
        let _ = sender.send(Message::Closed);
    });
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
    let libraries: Vec<String> = packages::library_folders(&folder.join("root"))
        .iter()
        .map(|folder| format!("$root/{}", folder.display()))
        .collect();
    let script = format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(readlink -f \"$0\")\")/root\n\
         export LD_LIBRARY_PATH=\"{}\"\n\
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

fn version(path: &Path) -> Result<(u32, u32)> {
    let text = process::stdout(Command::new(path).arg("--version"))?;
    parse_version(&text)
        .with_context(|| format!("{} does not give a QEMU version: {text}", path.display()))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let rest = text.trim_start().strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, total: u64, silence: u64) -> (End, Vec<String>) {
        let mut lines = Vec::new();
        let bounds =
            Bounds { total: Duration::from_millis(total), silence: Duration::from_millis(silence) };
        let mut command = Command::new("sh");
        let end = run_bounded(command.args(["-c", script]), bounds, &mut |line| {
            lines.push(line.to_owned());
        });
        (end.unwrap(), lines)
    }

    #[test]
    fn all_lines_arrive_and_the_status_is_told() {
        let (end, lines) = shell("printf 'a\\r\\nb\\nrest'; exit 3", 60_000, 60_000);
        assert_eq!(lines, ["a", "b", "rest"]);
        assert!(end.failure().unwrap().contains('3'), "{end:?}");
        let (end, _) = shell("exit 0", 60_000, 60_000);
        assert_eq!(end.failure(), None);
    }

    #[test]
    fn silence_and_lateness_end_the_machine() {
        let (end, lines) = shell("echo begun; exec sleep 1000", 60_000, 500);
        assert!(matches!(end, End::Silent(_)), "{end:?}");
        assert_eq!(lines, ["begun"]);
        let (end, _) = shell("while :; do echo more; done", 500, 60_000);
        assert!(matches!(end, End::Late(_)), "{end:?}");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (_, lines) = shell("head -c 40000 /dev/zero | tr '\\0' x", 60_000, 60_000);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines.concat().len(), 40_000);
    }

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
