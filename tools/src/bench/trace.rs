//! A traced run: every instruction that a short run of the payload executes, from QEMU's log.
//!
//! QEMU starts as always. When the payload says that it is ready, QEMU's monitor is told to translate
//! one instruction at a time and to log each that it executes (`exec,nochain`), and the payload to go
//! on. The log is read as it comes and never stored. What lies between the payload's marks is counted,
//! by world, by function, and by what kind of instruction it is: so the counts of a measurement with
//! the counter can be told apart, and checked.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::code::{Class, Code, Mark, Place, World};
use super::row::Traced;
use super::timeline::Timeline;
use crate::bounds::{Bounds, run_bounded};
use crate::qemu::{Machine, Qemu};
use crate::workspace;

/// What was counted between a row's marks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// By world.
    pub worlds: [u64; 3],
    /// ISB, DSB, TLBI, cache operations.
    pub kinds: [u64; 4],
    /// Instructions by function.
    pub profile: HashMap<usize, u64>,
}

impl Counted {
    fn add(&mut self, place: Place) {
        self.worlds[place.world as usize] += 1;
        let kind = match place.class {
            Class::Isb => Some(0),
            Class::Dsb => Some(1),
            Class::Tlbi => Some(2),
            Class::Cache => Some(3),
            Class::Other => None,
        };
        if let Some(kind) = kind {
            self.kinds[kind] += 1;
        }
        *self.profile.entry(place.function).or_default() += 1;
    }

    /// Per iteration.
    pub fn per_turn(&self, iterations: u64) -> Traced {
        let per = |n: u64| n as f64 / iterations.max(1) as f64;
        let [isb, dsb, tlbi, cache] = self.kinds.map(per);
        Traced { worlds: self.worlds.map(per), isb, dsb, tlbi, cache }
    }
}

/// Reads the log.
pub struct Collector {
    /// The programs.
    pub code: Code,
    /// Rows so far.
    pub rows: Vec<Counted>,
    /// A timeline, if one is wanted.
    pub timeline: Option<Timeline>,
    /// The instruction that was logged last: it may yet turn out not to have been executed.
    last: Option<u64>,
    in_row: bool,
    in_window: bool,
}

impl Collector {
    /// One that has read nothing.
    pub fn new(code: Code, timeline: Option<Timeline>) -> Self {
        Self { code, rows: Vec::new(), timeline, last: None, in_row: false, in_window: false }
    }

    /// Takes a line; whether it is one of the log.
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(pc) = executed(line) {
            let before = self.last.replace(pc);
            self.count(before);
            return true;
        }
        if line.starts_with("Stopped execution of TB chain") {
            self.last = None;
            return true;
        }
        // "cpu_io_recompile" and its like: the instruction is executed again, and logged again.
        false
    }

    /// The log is over.
    pub fn finish(&mut self) {
        let last = self.last.take();
        self.count(last);
    }

    fn count(&mut self, pc: Option<u64>) {
        let Some(place) = pc.and_then(|pc| self.code.place(pc)) else { return };
        match place.mark {
            Some(Mark::Row) => {
                self.rows.push(Counted::default());
                (self.in_row, self.in_window) = (true, false);
                if let Some(timeline) = &mut self.timeline {
                    timeline.row(self.rows.len() - 1);
                }
            }
            Some(Mark::RowEnd) => {
                self.in_row = false;
                if let Some(timeline) = &mut self.timeline {
                    timeline.row_end();
                }
            }
            Some(Mark::Begin) => self.in_window = true,
            Some(Mark::End) => self.in_window = false,
            None => {}
        }
        if self.in_row
            && self.in_window
            && let Some(row) = self.rows.last_mut()
        {
            row.add(place);
        }
        if let Some(timeline) = &mut self.timeline {
            timeline.take(place, &self.code);
        }
    }

    /// Whether it stopped at a mark.
    pub fn is_whole(&self) -> bool {
        !self.in_row
    }
}

/// The address in `Trace 0: 0x7f… [0000000000104404/ffffffffc0009800/00000121/ff020201] symbol`.
fn executed(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("Trace ")?;
    let (_, rest) = rest.split_once('/')?;
    let (pc, _) = rest.split_once('/')?;
    u64::from_str_radix(pc, 16).ok()
}

/// Runs `image`, which must wait for input when it says `@ready`. `on_line` gets what is not the log.
pub fn run(
    qemu: &Qemu,
    machine: &Machine,
    image: &Path,
    collector: &mut Collector,
    on_line: &mut dyn FnMut(&str),
) -> Result<()> {
    let socket = Socket::new()?;
    let mut command = qemu.command(machine, image);
    command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", socket.path));
    let one = if qemu.version >= (8, 1) { "one-insn-per-tb" } else { "singlestep" };
    let mut monitor = None;
    let mut trouble = None;
    let end = run_bounded(&mut command, Bounds::default(), &mut |line| {
        if collector.take(line) {
            return;
        }
        if line == "@ready" {
            match tell(&socket.path, one) {
                // Kept: at its end QEMU would forget what it hasn't read.
                Ok(stream) => monitor = Some(stream),
                Err(error) => trouble = Some(error),
            }
        } else {
            on_line(line);
        }
    })?;
    collector.finish();
    if let Some(error) = trouble {
        return Err(error.context("QEMU's monitor"));
    }
    if let Some(why) = end.failure() {
        bail!("{why}");
    }
    if monitor.is_none() || !collector.is_whole() {
        bail!("the traced run ended before it was measured");
    }
    Ok(())
}

fn tell(path: &str, one: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    // In order. A break is something typed.
    write!(stream, "{one} on\nlog exec,nochain\nchardev-send-break serial0\n")?;
    Ok(stream)
}

/// A name for the monitor's socket: short, for such names are, and gone in the end.
struct Socket {
    path: String,
}

impl Socket {
    fn new() -> Result<Self> {
        let folder = workspace::target_dir().join("bench");
        std::fs::create_dir_all(&folder)?;
        let name = format!("monitor-{}", std::process::id());
        let path = folder.join(name).display().to_string();
        // sun_path has 108 bytes.
        if path.len() > 107 || path.contains(',') {
            bail!("{path}: too long a name for QEMU's monitor, or one with a comma");
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(path);
            }
            _ => {}
        }
        Ok(Self { path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The functions that took most, per turn.
pub fn profile(
    counted: &Counted,
    code: &Code,
    world: World,
    iterations: u64,
) -> Vec<(String, f64)> {
    let mut by_name: HashMap<&str, u64> = HashMap::new();
    for (&function, &count) in &counted.profile {
        if code.world(function) == Some(world) {
            *by_name.entry(code.name(function)).or_default() += count;
        }
    }
    let mut all: Vec<_> = by_name
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count as f64 / iterations.max(1) as f64))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executed_instruction_is_read_from_the_log() {
        let line = "Trace 0: 0x7f354836bb80 [0000000000104404/ffffffffc0009800/00000121/ff020201] ";
        assert_eq!(executed(line), Some(0xffff_ffff_c000_9800));
        assert_eq!(executed("Trace 0: nothing"), None);
        assert_eq!(executed("[0 INFO] plain"), None);
    }

    #[test]
    fn a_stopped_instruction_does_not_count() {
        let mut collector = Collector::new(Code::default(), None);
        let trace = "Trace 0: 0x1 [0000000000000000/0000000000001000/0/0] ";
        assert!(collector.take(trace));
        assert!(collector.take("Stopped execution of TB chain before 0x1 [0000000000001000] "));
        assert_eq!(collector.last, None);
        assert!(!collector.take("@verdict ok"));
    }
}
