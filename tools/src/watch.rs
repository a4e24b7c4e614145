//! A machine that a person watches: its progress, its console if asked for, and what came of it.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bounds::{Bounds, End};
use crate::build;
use crate::console::{Line, parse};
use crate::firmware::Setup;
use crate::qemu::{Machine, Qemu};
use crate::report::Report;
use crate::symbols::Symbols;

/// Lines of the console that a failure shows.
const TAIL_LINES: usize = 60;

/// What a person asks for who boots something.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The machine.
    pub machine: Machine,
    /// What the EL3 firmware is to make of it; `None`: no firmware.
    pub firmware: Option<Setup>,
    /// How long it may take.
    pub bounds: Bounds,
    /// Show the console.
    pub verbose: bool,
    /// Who else than the machine says something there: such lines begin with a name and a colon. If anybody does, lines
    /// of the machine's own are shown behind `host: `.
    pub others: Vec<&'static str>,
    /// A QEMU by name.
    pub qemu: Option<PathBuf>,
    /// The command line of hyp and host.
    pub command_line: String,
}

/// What came of a machine.
pub struct Watched {
    /// What it said.
    pub report: Report,
    /// Every line of its console.
    pub console: Vec<String>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Runs a QEMU, with what it does on the screen.
pub fn watch(
    qemu: &Qemu,
    image: &Path,
    symbols: Symbols,
    machine: &Machine,
    request: &Request,
) -> Result<Watched> {
    eprintln!(
        "booting {} on QEMU {}.{} ({} × {}{})",
        build::shown(image),
        qemu.version.0,
        qemu.version.1,
        machine.smp,
        machine.cpu,
        if machine.icount { ", icount" } else { "" }
    );
    let run = |on_line: &mut dyn FnMut(&str)| qemu.run(machine, image, request.bounds, on_line);
    watch_with(Screen::new(symbols, request.verbose, request.others.clone()), run)
}

/// Shows what the demonstration does on the machine that `run` runs: it is to hand every line of the
/// console on. Whether the demonstration went well.
pub fn show(
    symbols: Symbols,
    verbose: bool,
    run: impl FnOnce(&mut dyn FnMut(&str)) -> Result<End>,
) -> Result<bool> {
    let Watched { report, failure, .. } =
        watch_with(Screen::new(symbols, verbose, Vec::new()), run)?;
    println!("{}", report.render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}

fn watch_with(
    mut screen: Screen,
    run: impl FnOnce(&mut dyn FnMut(&str)) -> Result<End>,
) -> Result<Watched> {
    let (mut report, mut console) = (Report::default(), Vec::new());
    let end = run(&mut |line| {
        let parsed = parse(line);
        console.push(line.to_owned());
        report.take(&parsed);
        screen.take(line, &parsed);
    })?;
    screen.finish();
    let failure = report.failure(&end);
    if failure.is_some() && !screen.verbose {
        eprintln!("the end of the console:");
        screen.print_tail();
    }
    Ok(Watched { report, console, failure })
}

/// What the person sees while the machine runs.
struct Screen {
    symbols: Symbols,
    verbose: bool,
    others: Vec<&'static str>,
    bar: ProgressBar,
    /// On something that is no terminal: tenths of the progress that were printed.
    tenths: Option<u64>,
    tail: VecDeque<String>,
}

impl Screen {
    fn new(symbols: Symbols, verbose: bool, others: Vec<&'static str>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if terminal {
            // The elapsed time is shown between two lines of the machine's, too.
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let tenths = (!terminal).then_some(0);
        Self { symbols, verbose, others, bar, tenths, tail: VecDeque::new() }
    }

    fn take(&mut self, line: &str, parsed: &Line<'_>) {
        match parsed {
            Line::Progress(done, total) => self.progress(*done, *total),
            Line::Row(..) => {}
            _ => self.text(line),
        }
    }

    fn text(&mut self, line: &str) {
        let mut shown = self.symbols.show(line);
        let said_by = line.split_once(": ").map(|(name, _)| name);
        if !self.others.is_empty() && !said_by.is_some_and(|name| self.others.contains(&name)) {
            shown.insert_str(0, "host: ");
        }
        if self.verbose {
            self.bar.suspend(|| println!("{shown}"));
        } else {
            if self.tail.len() == TAIL_LINES {
                self.tail.pop_front();
            }
            self.tail.push_back(shown);
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        match &mut self.tenths {
            None => {
                self.bar.set_length(total);
                self.bar.set_position(done);
            }
            Some(shown) => {
                let tenths = (done * 10).checked_div(total).unwrap_or(0);
                if tenths > *shown {
                    *shown = tenths;
                    eprintln!("{done}/{total}");
                }
            }
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn print_tail(&self) {
        for line in &self.tail {
            eprintln!("{line}");
        }
    }
}
