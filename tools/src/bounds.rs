//! How long a machine may take: the bounds that only a hang reaches, and what runs within them.
//!
//! What can be seen of a hang from outside is silence: a machine that does something says so on its
//! console, test by test. But a machine is silent, too, while this computer is somebody else's, and a
//! second on the clock then says nothing. So two things stand between a bound and the clock:
//!
//! - Time passes for a machine as it gets CPUs. Linux counts for each thread how long it stood in line
//!   for one (`Threads`); an emulator's thread that stands in line is a CPU of the machine that stands
//!   still, and maybe the one that the others wait for. So of a second the worst-served thread's waiting
//!   is taken away, and what is left counts. A machine that sleeps stands in no line: for it, all of the
//!   second counts, and one that spins for ever ends by the same bound. CPU time alone would see only
//!   the second, the clock alone would blame the neighbours on both. Where nothing is counted
//!   (no Linux) the clock is what there is.
//! - Bounds are for the computer on which they were written. How much slower this one is, is measured
//!   once, by a fixed piece of work in CPU time of its own (`slowness`), and they grow with it.
//!
//! The bound on the whole is there for a machine that talks for ever.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::Running;

/// A console line is cut here: a machine that prints without line ends must not fill our memory.
const LINE_BYTES: u64 = 16 << 10;
/// Lines that may wait for us: beyond them the machine waits.
const CHANNEL_LINES: usize = 1024;
/// Between two looks at a machine that says nothing.
const LOOK: Duration = Duration::from_secs(1);
/// Of the time on the clock, at least this part counts, however busy the computer is.
const LEAST: u32 = 8;
/// After a machine's end there is only the rest of its output to read, which is in the pipe.
const REST: Duration = Duration::from_secs(120);

/// How long a machine may take, in time of its own (see the module's text).
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From start to power-off.
    pub total: Duration,
    /// Without a line on the console.
    pub silence: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { total: Duration::from_secs(1800), silence: Duration::from_secs(120) }
    }
}

impl Bounds {
    /// No bounds: for a machine that waits for a person.
    pub const NONE: Self = Self {
        total: Duration::from_secs(u32::MAX as u64),
        silence: Duration::from_secs(u32::MAX as u64),
    };

    /// For so many times as much work.
    pub fn times(self, factor: u32) -> Self {
        Self { total: self.total * factor, silence: self.silence * factor }
    }

    /// What they are on this computer.
    fn here(self) -> Self {
        let slowness = slowness();
        Self { total: self.total.mul_f64(slowness), silence: self.silence.mul_f64(slowness) }
    }
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
            Self::Silent(time) => Some(format!(
                "the console was silent for {} s of the machine's time: machine killed",
                time.as_secs()
            )),
            Self::Late(time) => Some(format!(
                "not powered off after {} s of the machine's time: machine killed",
                time.as_secs()
            )),
        }
    }
}

/// How much slower this computer is than the one on which the bounds were written, measured once; one
/// if it isn't. CPU time of this thread: how busy the computer is has no part in it.
fn slowness() -> f64 {
    static SLOWNESS: OnceLock<f64> = OnceLock::new();
    // The best of some: neighbours use the same caches.
    *SLOWNESS
        .get_or_init(|| slowness_of((0..5).map(|_| cpu_time_of_work()).min().unwrap_or(STEPS_TOOK)))
}

/// Dependent steps: multiplication, shift, and a table that no first-level cache holds.
const STEPS: u64 = 4_000_000;
/// What they took there.
const STEPS_TOOK: Duration = Duration::from_millis(40);
/// Beyond this it is not the computer.
const SLOWEST: f64 = 20.0;

fn slowness_of(took: Duration) -> f64 {
    (took.as_secs_f64() / STEPS_TOOK.as_secs_f64()).clamp(1.0, SLOWEST)
}

fn cpu_time_of_work() -> Duration {
    let mut table = vec![0u64; 1 << 17];
    let begin = thread_time();
    let mut x = 1u64;
    for step in 0..STEPS {
        x = (x ^ x >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step;
        let at = (x >> 47) as usize;
        x = x.wrapping_add(table[at]);
        table[at] = x;
    }
    black_box(x);
    thread_time().saturating_sub(begin)
}

fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// What the kernel says of a program's threads, and of its children's: how long each stood in line for
/// a CPU so far (`/proc/PID/task/TID/schedstat`).
#[derive(Debug, Default)]
struct Threads(HashMap<u32, Duration>);

impl Threads {
    fn read(process: u32) -> Self {
        let mut all = Self::default();
        all.add(process);
        all
    }

    fn add(&mut self, process: u32) {
        // What is not there has ended, or there is no such file: then nobody waited.
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return };
        for task in tasks.flatten() {
            let folder = task.path();
            let id = task.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let Some(id) = id else { continue };
            if let Some(waited) = read_waited(&folder) {
                self.0.insert(id, waited);
            }
            let children = fs::read_to_string(folder.join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                self.add(child);
            }
        }
    }

    /// The longest that any thread stood in line since `before`.
    fn waited_since(&self, before: &Self) -> Duration {
        let waited = |(id, now): (&u32, &Duration)| {
            now.saturating_sub(before.0.get(id).copied().unwrap_or_default())
        };
        self.0.iter().map(waited).max().unwrap_or_default()
    }
}

fn read_waited(task: &Path) -> Option<Duration> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    parse_waited(&text)
}

/// Nanoseconds on a CPU, nanoseconds in line for one, and turns.
fn parse_waited(text: &str) -> Option<Duration> {
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// The bounds of one machine, and how far it is.
#[derive(Debug)]
struct Watch {
    bounds: Bounds,
    lived: Duration,
    silent: Duration,
}

impl Watch {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, lived: Duration::ZERO, silent: Duration::ZERO }
    }

    fn line(&mut self) {
        self.silent = Duration::ZERO;
    }

    /// So much time passed on the clock, of which the machine stood still for so long. Its end, if that
    /// was too much.
    fn passes(&mut self, clock: Duration, waited: Duration) -> Option<End> {
        let own = clock.saturating_sub(waited).max(clock / LEAST);
        self.lived += own;
        self.silent += own;
        if self.lived >= self.bounds.total {
            Some(End::Late(self.bounds.total))
        } else if self.silent >= self.bounds.silence {
            Some(End::Silent(self.bounds.silence))
        } else {
            None
        }
    }
}

/// The clock of a program that runs: how much of it is over, and how much of that it stood in line.
struct Clock {
    process: u32,
    looked: Instant,
    threads: Threads,
}

impl Clock {
    fn of(process: u32) -> Self {
        Self { process, looked: Instant::now(), threads: Threads::read(process) }
    }

    /// When it is time for the next look.
    fn left(&self) -> Duration {
        LOOK.saturating_sub(self.looked.elapsed())
    }

    /// What passed since the last look, if it is time for one.
    fn look(&mut self) -> Option<(Duration, Duration)> {
        let passed = self.looked.elapsed();
        if passed < LOOK {
            return None;
        }
        let threads = Threads::read(self.process);
        let waited = threads.waited_since(&self.threads);
        self.looked += passed;
        self.threads = threads;
        Some((passed, waited))
    }
}

enum Message {
    Line(String),
    /// An output is closed.
    Closed,
    Exited(std::io::Result<ExitStatus>),
}

/// Runs an emulator to its end, or to the end of its bounds; `on_line` gets every line that it prints.
pub(crate) fn run_bounded(
    command: &mut Command,
    bounds: Bounds,
    on_line: &mut dyn FnMut(&str),
) -> Result<End> {
    let mut watch = Watch::new(bounds.here());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running::start(command)?;
    let child = Arc::clone(running.child());
    let mut clock = Clock::of(child.id());
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

    let mut end = None;
    let mut rest: Option<Instant> = None;
    let mut exited = false;
    while open > 0 || !exited {
        let left = match rest {
            Some(until) => until.saturating_duration_since(Instant::now()),
            None => clock.left(),
        };
        match receiver.recv_timeout(left) {
            Ok(Message::Line(line)) => {
                watch.line();
                on_line(&line);
            }
            Ok(Message::Closed) => open -= 1,
            Ok(Message::Exited(status)) => {
                exited = true;
                let status = status?;
                end.get_or_insert(End::Exited(status));
            }
            Err(RecvTimeoutError::Timeout) if end.is_none() => {}
            Err(_) => break,
        }
        if end.is_none()
            && let Some((passed, waited)) = clock.look()
        {
            end = watch.passes(passed, waited);
            if end.is_some() {
                let _ = running.child().kill();
            }
        }
        if end.is_some() {
            rest.get_or_insert_with(|| Instant::now() + REST);
        }
    }
    end.context("the emulator's end was not seen")
}

/// Waits for a program that says nothing to end, and kills it when it has had so much time; whether it
/// had to.
pub(crate) fn wait_bounded(running: &Running, total: Duration) -> Result<(ExitStatus, bool)> {
    let mut watch = Watch::new(Bounds { total, silence: total }.here());
    let mut clock = Clock::of(running.child().id());
    let child = Arc::clone(running.child());
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || {
        // As above.
        let _ = sender.send(child.wait());
    });
    let mut late = false;
    loop {
        match receiver.recv_timeout(clock.left()) {
            Ok(status) => return Ok((status?, late)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(error) => return Err(error).context("a program's end was not seen"),
        }
        if let Some((passed, waited)) = clock.look()
            && watch.passes(passed, waited).is_some()
        {
            late = true;
            // It may end just now.
            let _ = running.child().kill();
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn bounds(total: u32, silence: u32) -> Bounds {
        Bounds { total: total * S, silence: silence * S }
    }

    fn shell(script: &str, bounds: Bounds) -> (End, Vec<String>) {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        let end = run_bounded(command.args(["-c", script]), bounds, &mut |line| {
            lines.push(line.to_owned());
        });
        (end.unwrap(), lines)
    }

    #[test]
    fn all_lines_arrive_and_the_status_is_told() {
        let (end, lines) = shell("printf 'a\\r\\nb\\nrest'; exit 3", Bounds::NONE);
        assert_eq!(lines, ["a", "b", "rest"]);
        assert!(end.failure().unwrap().contains('3'), "{end:?}");
        let (end, _) = shell("exit 0", Bounds::NONE);
        assert_eq!(end.failure(), None);
    }

    #[test]
    fn silence_and_lateness_end_the_machine() {
        let (end, _) = shell("exec sleep 1000", bounds(1000, 1));
        assert!(matches!(end, End::Silent(_)), "{end:?}");
        let (end, lines) = shell("while :; do echo more; done", bounds(1, 1000));
        assert!(matches!(end, End::Late(_)), "{end:?}");
        assert_eq!(lines[0], "more");
        let running = Running::start(Command::new("sleep").arg("1000")).unwrap();
        let (status, late) = wait_bounded(&running, S).unwrap();
        assert!(late && !status.success());
        let running = Running::start(&mut Command::new("true")).unwrap();
        let (status, late) = wait_bounded(&running, 1000 * S).unwrap();
        assert!(!late && status.success());
    }

    #[test]
    fn a_line_begins_the_silence_anew_but_not_the_whole() {
        let mut watch = Watch::new(bounds(10, 4));
        for _ in 0..3 {
            assert!(watch.passes(3 * S, Duration::ZERO).is_none());
            watch.line();
        }
        assert!(matches!(watch.passes(S, Duration::ZERO), Some(End::Late(_))));
        let mut watch = Watch::new(bounds(10, 4));
        assert!(watch.passes(3 * S, Duration::ZERO).is_none());
        assert!(matches!(watch.passes(S, Duration::ZERO), Some(End::Silent(_))));
    }

    #[test]
    fn who_stands_in_line_is_not_silent() {
        let mut watch = Watch::new(bounds(1000, 4));
        for _ in 0..30 {
            assert!(watch.passes(S, S - S / 10).is_none(), "three seconds of its own");
        }
        assert!((0..10).any(|_| watch.passes(S, S - S / 10).is_some()));
        // Something always counts, whatever the kernel says.
        let mut watch = Watch::new(bounds(1000, 4));
        assert!((0..5 * LEAST).any(|_| watch.passes(S, 2 * S).is_some()));
    }

    #[test]
    fn the_worst_served_thread_counts() {
        let threads = |list: &[(u32, u64)]| {
            Threads(list.iter().map(|&(id, ms)| (id, Duration::from_millis(ms))).collect())
        };
        let before = threads(&[(1, 500), (2, 40), (3, 7)]);
        let now = threads(&[(1, 510), (2, 340), (4, 20)]);
        assert_eq!(now.waited_since(&before), Duration::from_millis(300));
        assert_eq!(parse_waited("123 4567 8\n"), Some(Duration::from_nanos(4567)));
        assert_eq!(parse_waited(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn children_count_as_the_program_does() {
        // Both are there when the word is.
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo there; wait"]).stdout(Stdio::piped());
        let running = Running::start(&mut command).unwrap();
        let mut word = [0; 6];
        running.child().take_stdout().unwrap().read_exact(&mut word).unwrap();
        let threads = Threads::read(running.child().id());
        let count = threads.0.len();
        // A kernel without the files says nothing of either.
        assert!(count == 2 || count == 0, "{threads:?}");
        let ids: Vec<_> = threads.0.keys().filter(|&&id| id != running.child().id()).collect();
        for id in ids {
            let _ = Command::new("kill").arg(id.to_string()).status();
        }
    }

    #[test]
    fn a_slow_computer_has_more_time_and_a_fast_one_no_less() {
        assert_eq!(slowness_of(STEPS_TOOK / 2), 1.0);
        assert_eq!(slowness_of(3 * STEPS_TOOK), 3.0);
        assert_eq!(slowness_of(1000 * STEPS_TOOK), SLOWEST);
        assert!(cpu_time_of_work() > Duration::ZERO);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (_, lines) = shell("head -c 40000 /dev/zero | tr '\\0' x", Bounds::NONE);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines.concat().len(), 40_000);
    }
}
