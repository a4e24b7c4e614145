//! A protected guest, whose kernel knows that it is one, and a host that is after its memory.

use core::ffi::CStr;

use umbra_patterns::realm::DEBIAN;

use super::{ends, monitor, network, wait_until};
use crate::fail;
use crate::say::{self, CText, Text};
use crate::seen;
use crate::sys::{self, Ended, Errno, File, Pid, others};

const NAME: &str = "protected";
/// One whose kernel knows nothing of realms, and has a console alone.
const UNAWARE: &str = "unaware";
const UNAWARE_MACHINE: [&CStr; 6] =
    [c"--protected", c"--unaware", c"--memory", c"192M", c"--cpus", c"2"];
/// One whose memory is its monitor's own, which its kernel shares with its disk from there.
const OWN: &str = "own-memory";
const OWN_MACHINE: [&CStr; 6] =
    [c"--protected", c"--own-memory", c"--memory", c"256M", c"--disk", c"/guest-root"];
/// From one try to read its memory to the next, in bytes.
const STEP: usize = 1 << 20;
/// What no mapping of page frames lets anybody do: EFAULT.
const REFUSED: Errno = Errno(14);

/// It comes up, with SVE, disk and network, keeps its patterns while its host looks for its memory, and goes. Another one's monitor
/// crashes, a third is not aware of what it is, and a fourth has its monitor's memory.
pub fn run(rounds: u64) -> Result<(), Text> {
    let echo = network::begin()?;
    let line = monitor::command_line(DEBIAN.command_line)?;
    let mut looked = Ok(());
    let well = monitor::well_to_its_end(NAME, DEBIAN.machine, &line, 0, |monitor, line| {
        if line.starts_with("@seen what=Linux") {
            looked = look(monitor.pid);
        }
    });
    looked?;
    well?;
    network::end(echo)?;
    crash()?;
    let line = monitor::console_line(&[c"cpus=2 times=1 processes=1"])?;
    monitor::well_to_its_end(UNAWARE, &UNAWARE_MACHINE, &line, 0, |_, _| {})?;
    seen::row(UNAWARE, "console-only");
    let line = monitor::console_line(&[c"realm root"])?;
    monitor::well_to_its_end(OWN, &OWN_MACHINE, &line, 0, |_, _| {})?;
    seen::row(OWN, "well");
    ends::ioctls(rounds)
}

/// Where a monitor has its guest's memory.
fn mapping(monitor: Pid) -> Result<(usize, usize), Text> {
    let maps = CText::new(format_args!("/proc/{monitor}/maps"))?;
    seen::with_file(&maps, |text| {
        let Some(line) = text.lines().find(|line| line.contains("guest-memory")) else {
            fail!("the monitor has no memory of its guest mapped");
        };
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        match range.map(|(start, end)| (number(start), number(end))) {
            Some((Some(start), Some(end))) => Ok((start, end)),
            _ => fail!("a mapping that can't be read: {line}"),
        }
    })
}

/// What root can look at from outside: the monitor's mapping, by process_vm_readv and by its file of memory; RAM in /dev/mem and
/// /proc/kcore. None of it may show the guest's memory, and none may end this kernel.
fn look(monitor: Pid) -> Result<(), Text> {
    let (start, end) = mapping(monitor)?;
    let path = CText::new(format_args!("/proc/{monitor}/mem"))?;
    let Ok(memory) = File::read_only(&path) else { fail!("no /proc/{monitor}/mem") };
    let mut tried = 0;
    for address in (start..end).step_by(STEP) {
        let mut buffer = [0; 64];
        match others::read_memory_of(monitor, address, &mut buffer) {
            Err(REFUSED) => {}
            other => fail!("process_vm_readv of a protected guest's memory: {other:?}"),
        }
        if memory.read_at(&mut buffer, address as u64).is_ok() {
            fail!("a protected guest's memory can be read in /proc/{monitor}/mem");
        }
        tried += 1;
    }
    say::line(format_args!("@seen what=reads-of-its-memory is={tried}-refused"));
    kernel_memory()
}

/// Samples all RAM as /proc/kcore shows it: what is a guest's reads as zeroes, or not at all.
fn kernel_memory() -> Result<(), Text> {
    /// PT_LOAD, in an ELF header's table of programs.
    const LOAD: u32 = 1;
    let Ok(core) = File::read_only(c"/proc/kcore") else {
        seen::row("kcore", "none");
        return Ok(());
    };
    let mut header = [0; 4096];
    let header = core.read(&mut header);
    let number = |at: usize| -> u64 {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    // e_phoff, and e_phnum among others.
    let (table, count) = (number(32) as usize, number(56) & 0xffff);
    let mut samples = 0;
    for n in 0..count as usize {
        let at = table + n * 56;
        // p_offset, p_paddr, p_filesz: RAM has a physical address.
        let (offset, physical, bytes) = (number(at + 8), number(at + 24), number(at + 32));
        let is_ram = number(at) as u32 == LOAD && physical != 0 && physical < 1 << 48;
        if !is_ram {
            continue;
        }
        for place in (0..bytes).step_by(STEP) {
            let mut buffer = [0; 64];
            // It need not be there.
            samples += u64::from(core.read_at(&mut buffer, offset + place).is_ok());
        }
    }
    say::line(format_args!("@seen what=kcore is={samples}-samples"));
    Ok(())
}

/// A monitor whose guest runs crashes, and leaves its core behind: without its guest's memory.
fn crash() -> Result<(), Text> {
    const CORE: &CStr = c"/core";
    /// Bytes of it at most, of a guest that has 512 MiB.
    const LARGEST: u64 = 64 << 20;
    let pattern = File::write_only(c"/proc/sys/kernel/core_pattern");
    if pattern.and_then(|file| file.write(b"/core")).is_err() {
        fail!("no pattern for cores");
    }
    let line = monitor::console_line(&[c"realm wait"])?;
    let ended = monitor::to_its_end(NAME, DEBIAN.machine, &line, |monitor, line| {
        if line.starts_with("@seen what=waits") {
            let limited = others::unlimited_core_of(monitor.pid);
            if let Err(error) = limited {
                fail!("RLIMIT_CORE: {error:?}");
            }
            sys::kill(monitor.pid, sys::SIGABRT);
        }
        Ok(())
    })?;
    if ended != Ended::Signal(sys::SIGABRT) {
        fail!("a monitor that was aborted: {ended:?}");
    }
    wait_until("a core", || Ok(others::bytes_of(CORE).is_ok()))?;
    match others::bytes_of(CORE) {
        Ok(bytes) if bytes < LARGEST => {
            say::line(format_args!("@seen what=core is={}-KiB", bytes >> 10));
            Ok(())
        }
        other => fail!("the core of a monitor: {other:?}"),
    }
}
