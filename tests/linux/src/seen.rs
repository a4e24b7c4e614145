//! What Linux found: each thing as a row of a table, and an error if it isn't what it has to be.

use core::ffi::CStr;

use crate::fail;
use crate::say::{self, CText, Text};
use crate::start::Start;
use crate::stress;
use crate::sys::{self, File};

/// Bytes of a text that are looked at: of the kernel's log, its end.
const TEXT_BYTES: usize = 256 << 10;

/// Lines of it that are shown when something went wrong.
const SHOWN_LINES: usize = 20;

/// Times that each CPU has to be in each idle state, and naps that it gets for it at most: the CPU may
/// be somebody else's at the end of one. How long each is.
const SLEEPS: u64 = 3;
const NAPS: u32 = 1000;
const NAP_MICROS: u64 = 10_000;

/// A row.
pub fn row(what: &str, is: &str) {
    say::line(format_args!("@seen what={what} is={is}"));
}

/// The first bytes of a file, as text without line ends and zeroes.
fn read<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a str> {
    let file = File::read_only(path).ok()?;
    let text = core::str::from_utf8(file.read(buffer)).ok()?;
    Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0'))
}

/// Reads the file at a path that is made up.
fn read_at<'a>(path: core::fmt::Arguments<'_>, buffer: &'a mut [u8]) -> Option<&'a str> {
    read(&CText::new(path).ok()?, buffer)
}

/// The file holds exactly this.
fn expect(what: &str, path: &CStr, wanted: &str) -> Result<(), Text> {
    let mut buffer = [0; 128];
    match read(path, &mut buffer) {
        Some(found) if found == wanted => {
            row(what, found);
            Ok(())
        }
        found => fail!("{what}: {:?} instead of {wanted}", found),
    }
}

/// Calls `f` with what `read` puts into a large buffer.
fn with_text<T>(
    read: impl for<'a> FnOnce(&'a mut [u8]) -> &'a [u8],
    f: impl FnOnce(&str) -> Result<T, Text>,
) -> Result<T, Text> {
    let Ok(memory) = sys::own_memory(TEXT_BYTES) else { fail!("no memory for a text") };
    let result = {
        // SAFETY: fresh memory of this process's own, given back when nothing refers to it any more.
        let buffer = unsafe { core::slice::from_raw_parts_mut(memory, TEXT_BYTES) };
        let text = read(buffer);
        // It begins somewhere, perhaps inside a character.
        let text = core::str::from_utf8(text).or_else(|e| {
            core::str::from_utf8(&text[e.error_len().unwrap_or(text.len()) + e.valid_up_to()..])
        });
        f(text.unwrap_or(""))
    };
    // SAFETY: as above.
    unsafe { sys::unmap(memory, TEXT_BYTES) };
    result
}

/// Calls `f` with the kernel's log.
pub fn with_log<T>(f: impl FnOnce(&str) -> Result<T, Text>) -> Result<T, Text> {
    with_text(sys::kernel_log, f)
}

/// The kernel's log says so.
pub fn expect_in_log(what: &str, is: &str, line: &str) -> Result<(), Text> {
    with_log(|log| {
        if !log.contains(line) {
            fail!("{what}: the kernel's log doesn't say {line:?}");
        }
        row(what, is);
        Ok(())
    })
}

/// Does something with a text file.
pub fn with_file<T>(path: &CStr, f: impl FnOnce(&str) -> Result<T, Text>) -> Result<T, Text> {
    let file = match File::read_only(path) {
        Ok(file) => file,
        Err(error) => fail!("no {path:?}: {error:?}"),
    };
    with_text(|buffer| file.read(buffer), f)
}

/// Does something with /proc/interrupts.
pub fn with_interrupts<T>(f: impl FnOnce(&str) -> Result<T, Text>) -> Result<T, Text> {
    with_file(c"/proc/interrupts", f)
}

/// The timer's interrupt comes, through a GICv3.
fn expect_interrupts() -> Result<(), Text> {
    with_interrupts(|text| {
        let Some(line) = text.lines().find(|line| line.contains("arch_timer")) else {
            fail!("no interrupt of the arch_timer");
        };
        if !line.contains("GICv3") {
            fail!("the timer's interrupt is not a GICv3's: {line}");
        }
        let count = line.split_whitespace().nth(1).unwrap_or("0");
        if count.parse().unwrap_or(0) == 0 {
            fail!("the timer's interrupt never came: {line}");
        }
        row("interrupts", "GICv3");
        row("timer-interrupts", count);
        Ok(())
    })
}

/// The end of the kernel's log: what stayed off the console.
pub fn show_log() {
    // Nothing here fails.
    let _ = with_log(|log| {
        let skip = log.lines().count().saturating_sub(SHOWN_LINES);
        log.lines().skip(skip).for_each(|line| say::line(format_args!("{line}")));
        Ok(())
    });
}

/// Devices of the board that reach all of memory: their nodes are disabled, and Linux has left them alone.
fn check_withheld(pci: Option<&str>) -> Result<(), Text> {
    if let Some(vendor) = pci {
        fail!("there is a PCI host bridge of {vendor}");
    }
    let base = "/sys/firmware/devicetree/base";
    for (what, node) in [
        ("PCI", "pcie@10000000"),
        ("fw_cfg", "fw-cfg@9020000"),
        ("virtio-mmio", "virtio_mmio@a000000"),
    ] {
        let mut buffer = [0; 32];
        match read_at(format_args!("{base}/{node}/status"), &mut buffer) {
            Some("disabled") => row(what, "disabled"),
            found => fail!("{node}: {found:?}, not disabled"),
        }
    }
    Ok(())
}

/// Which Linux it is.
pub fn release() {
    let mut buffer = [0; 128];
    if let Some(release) = read(c"/proc/sys/kernel/osrelease", &mut buffer) {
        row("Linux", release);
    }
}

/// Everything that a Linux on this machine has to find.
pub fn check(start: &Start) -> Result<(), Text> {
    let mut buffer = [0; 128];
    release();
    let all = match start.number("cpus") {
        None | Some(1) => say::text(format_args!("0")),
        Some(n) => say::text(format_args!("0-{}", n - 1)),
    };
    expect("CPUs", c"/sys/devices/system/cpu/online", &all)?;
    match start.has("el2") {
        true => expect_in_log("exception-level", "EL2", "All CPU(s) started at EL2")?,
        false => expect_in_log("exception-level", "EL1", "All CPU(s) started at EL1")?,
    }
    expect("PSCI", c"/sys/firmware/devicetree/base/psci/method", "smc")?;
    expect_interrupts()?;
    let clock = c"/sys/devices/system/clocksource/clocksource0/current_clocksource";
    expect("clock", clock, "arch_sys_counter")?;
    match read(c"/sys/bus/pci/devices/0000:00:00.0/vendor", &mut buffer) {
        found if start.has("withheld") => check_withheld(found)?,
        Some(vendor) => row("PCI", vendor),
        None => fail!("no PCI host bridge"),
    }
    lengths(start)
}

/// Vector lengths, and whether there is SME.
pub fn lengths(start: &Start) -> Result<(), Text> {
    let mut lengths = Text::new();
    for vq in stress::vector_lengths(start)?.iter() {
        let comma = if lengths.is_empty() { "" } else { "," };
        lengths.push_str(&say::text(format_args!("{comma}{}", vq.vl_bytes())));
    }
    row("VLs", if lengths.is_empty() { "none" } else { &lengths });
    row("SME", if start.has_sme() { "yes" } else { "no" });
    Ok(())
}

/// What a file says, as a row.
pub fn file_row(what: &str, path: &CStr) -> Result<(), Text> {
    match read(path, &mut [0; 128]) {
        Some(found) => row(what, found),
        None => fail!("{what}: no {path:?}"),
    }
    Ok(())
}

/// What only shows at the end.
pub fn check_after(start: &Start) -> Result<(), Text> {
    suspends(start)?;
    // Nothing that a kernel says of how long something takes: the machine that emulates this one may be
    // busy. Who looks for that is `work`.
    with_log(|log| {
        for bad in ["WARNING: CPU", "BUG: ", "Internal error"] {
            // Of CPUs whose cache lines are longer than it allows for (A64FX), Linux says so anywhere.
            let known = |line: &str| line.contains("arch_setup_dma_ops");
            if let Some(line) = log.lines().find(|line| line.contains(bad) && !known(line)) {
                fail!("the kernel's log says: {line}");
            }
        }
        Ok(())
    })
}

/// CPU_SUSPEND, where the device tree has states for it: each CPU sleeps in each.
fn suspends(start: &Start) -> Result<(), Text> {
    let cpus = start.number("cpus").unwrap_or(1);
    // State 0 is Linux's own WFI.
    let states = (1..).take_while(|&state| usage(0, state).is_some()).count() as u64;
    for cpu in 0..cpus {
        if states != 0 && sys::set_affinity(1 << cpu).is_err() {
            fail!("CPU {cpu} is not there any more");
        }
        let mut counts = Text::new();
        for state in 1..=states {
            (0..=states).try_for_each(|other| allow(cpu, other, other == state))?;
            let before = usage(cpu, state).unwrap_or(0);
            let slept = || usage(cpu, state).unwrap_or(0) - before;
            let enough = (0..NAPS).any(|_| {
                sys::sleep_micros(NAP_MICROS);
                slept() >= SLEEPS
            });
            if !enough {
                fail!("CPU {cpu} slept {} times in idle state {state}, in {NAPS} naps", slept());
            }
            let comma = if counts.is_empty() { "" } else { "," };
            counts.push_str(&say::text(format_args!("{comma}{}", before + slept())));
        }
        if states != 0 {
            (0..=states).try_for_each(|state| allow(cpu, state, true))?;
            say::line(format_args!("@seen what=suspends-of-CPU-{cpu} is={counts}"));
        }
    }
    Ok(())
}

/// How often a CPU was in an idle state.
fn usage(cpu: u64, state: u64) -> Option<u64> {
    let mut buffer = [0; 32];
    let path = "/sys/devices/system/cpu";
    let usage = format_args!("{path}/cpu{cpu}/cpuidle/state{state}/usage");
    read_at(usage, &mut buffer)?.parse().ok()
}

/// Whether a CPU may go into an idle state.
fn allow(cpu: u64, state: u64, may: bool) -> Result<(), Text> {
    let path =
        CText::new(format_args!("/sys/devices/system/cpu/cpu{cpu}/cpuidle/state{state}/disable"))?;
    let written =
        File::write_only(&path).and_then(|file| file.write(if may { b"0" } else { b"1" }));
    if written.is_err() {
        fail!("CPU {cpu}: idle state {state} can't be switched");
    }
    Ok(())
}
