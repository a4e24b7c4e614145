//! The short bench as a test: the counts of this build against those that are checked in
//! (`tests/bench/counts`).
//!
//! Instructions are counted, so the same sources, compiler and QEMU give the same figures on any
//! machine. Another compiler may do with more or fewer, and another QEMU has another `-cpu max`: so each
//! [`Pair`] of the two has a file of its own, and is held to it within [`CHANGE`] percent. A pair without
//! a file is held to the nearest one's within [`WIDE`] percent, and every test's name says so: a guard
//! that sees less is still one. `cargo xtask bench --update` writes the file of the pair at hand.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Map, Value};

use super::{CHANGE, Row, measure};
use crate::build::Built;
use crate::harness::{self, Settings};
use crate::qemu::Qemu;
use crate::toolchain;
use crate::transcript::Outcome;
use crate::workspace;

const CPU: &str = "max";
const WORDS: &str = "short iterations=320";

/// Percent by which counts may differ from those of another pair: the ten registers more of QEMU 10's
/// CPU are 2.5, another compiler's ways rarely as much.
pub const WIDE: f64 = 10.0;

/// Instructions that a tick of the counter is, at most: of so many, where in a tick the first turn begins and the last
/// one ends is chance.
const TICK: f64 = 16.0;
/// Instructions a turn below which a difference says nothing, however many turns there were.
const RESOLUTION: f64 = 0.5;
/// The same from pair to pair: the shortest loops are two instructions.
const WIDE_RESOLUTION: f64 = 4.0;

/// A release, major and minor.
type Release = (u32, u32);

/// What the counts depend on beside the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The compiler's release.
    pub rustc: Release,
    /// The emulator's.
    pub qemu: Release,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rustc, qemu } = self;
        write!(f, "rustc {}.{}, QEMU {}.{}", rustc.0, rustc.1, qemu.0, qemu.1)
    }
}

impl Pair {
    fn new(compiler: &str, qemu: &Qemu) -> Result<Self> {
        let rustc = toolchain::parse_version(compiler);
        let rustc = rustc.with_context(|| format!("no compiler's release: {compiler}"))?;
        Ok(Self { rustc, qemu: qemu.version })
    }

    fn file_name(&self) -> String {
        let Self { rustc, qemu } = self;
        format!("rustc-{}.{}-qemu-{}.{}.json", rustc.0, rustc.1, qemu.0, qemu.1)
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("rustc-")?.strip_suffix(".json")?;
        let (rustc, qemu) = rest.split_once("-qemu-")?;
        let release = |text: &str| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        Some(Self { rustc: release(rustc)?, qemu: release(qemu)? })
    }

    /// How far another pair's counts are from ours: QEMU's CPU matters more than the compiler.
    fn distance(&self, other: &Self) -> [u32; 4] {
        let apart = |a: Release, b: Release| [a.0.abs_diff(b.0), a.1.abs_diff(b.1)];
        let ([a, b], [c, d]) = (apart(self.qemu, other.qemu), apart(self.rustc, other.rustc));
        [a, b, c, d]
    }

    fn nearest(&self, known: &[Self]) -> Option<Self> {
        known.iter().copied().min_by_key(|other| self.distance(other))
    }
}

/// Where the counts are.
pub fn folder() -> PathBuf {
    workspace::root().join("tests/bench/counts")
}

/// The pairs that have counts.
fn known() -> Result<Vec<Pair>> {
    let folder = folder();
    let entries = folder.read_dir().with_context(|| folder.display().to_string())?;
    entries
        .map(|entry| {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            Pair::from_file_name(&name).with_context(|| format!("{name}: not a pair's name"))
        })
        .collect()
}

fn read(pair: &Pair) -> Result<Map<String, Value>> {
    let path = folder().join(pair.file_name());
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let counts: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    ensure!(!counts.is_empty(), "{}: no counts", path.display());
    Ok(counts)
}

/// The short bench's rows.
fn rows(qemu: &Qemu, tests: &Built) -> Result<Vec<Row>> {
    Ok(measure(qemu, tests, CPU, 1, WORDS)?.rows)
}

/// Writes the counts of this build with this QEMU.
pub fn update(qemu: &Qemu, tests: &Built, compiler: &str) -> Result<()> {
    let pair = Pair::new(compiler, qemu)?;
    let rows = rows(qemu, tests)?;
    let counts: Map<String, Value> =
        rows.iter().map(|row| (row.key(), Value::from(row.instructions.round() as u64))).collect();
    std::fs::create_dir_all(folder())?;
    let path = folder().join(pair.file_name());
    std::fs::write(&path, format!("{:#}\n", Value::Object(counts)))
        .with_context(|| path.display().to_string())?;
    println!("{} counts for {pair}", rows.len());
    Ok(())
}

/// A count and what it should be.
#[derive(Clone, Debug, PartialEq)]
struct Checked {
    key: String,
    /// Of which `now` is the mean.
    turns: u64,
    now: Option<f64>,
    counted: Option<f64>,
}

/// What counts are held to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    /// To the counts of this pair.
    to: Pair,
    /// Which is the one at hand.
    exactly: bool,
}

impl Held {
    /// What the pair at hand is held to, if there are any counts.
    fn of(pair: Pair, known: &[Pair]) -> Option<Self> {
        pair.nearest(known).map(|to| Self { to, exactly: to == pair })
    }

    /// Percent, and instructions.
    fn bounds(&self) -> (f64, f64) {
        if self.exactly { (CHANGE, RESOLUTION) } else { (WIDE, WIDE_RESOLUTION) }
    }

    /// For the tests' names, if it isn't what it should be.
    fn note(&self) -> Option<String> {
        (!self.exactly).then(|| format!("within {WIDE} % of {}, the nearest", self.to))
    }
}

impl Checked {
    fn failure(&self, held: &Held) -> Option<String> {
        let (most, resolution) = held.bounds();
        let resolution = resolution.max(TICK / self.turns.max(1) as f64);
        match (self.counted, self.now) {
            (Some(counted), Some(now)) => {
                let percent = 100.0 * (now - counted) / counted.max(1.0);
                ((now - counted).abs() > resolution && percent.abs() > most).then(|| {
                    format!(
                        "{now:.0} instructions, {counted:.0} are checked in for {}: {percent:+.1} %. If \
                         that is meant, `cargo xtask bench --update` checks the new counts in.",
                        held.to
                    )
                })
            }
            (Some(_), None) => Some("no longer measured".to_owned()),
            (None, _) => Some("no count is checked in: `cargo xtask bench --update`".to_owned()),
        }
    }
}

fn check(rows: &[Row], counts: &Map<String, Value>) -> Vec<Checked> {
    let mut all: Vec<Checked> = rows
        .iter()
        .map(|row| {
            let key = row.key();
            let counted = counts.get(&key).and_then(Value::as_f64);
            Checked { key, turns: row.iterations, now: Some(row.instructions), counted }
        })
        .collect();
    for (key, counted) in counts {
        if !all.iter().any(|checked| checked.key == *key) {
            all.push(Checked { key: key.clone(), turns: 0, now: None, counted: counted.as_f64() });
        }
    }
    all
}

fn test_name(key: &str) -> String {
    format!("bench::{key}")
}

/// The whole of a test binary's `main`.
pub fn main() -> ExitCode {
    harness::run_trials("counting instructions needs", |settings, filter| trials(&settings, filter))
}

fn trials(settings: &Settings, filter: Option<&str>) -> Result<Vec<Trial>> {
    let qemu = Qemu::find(Some(&settings.qemu))?.context("no QEMU")?;
    let pair = Pair::new(&settings.compiler, &qemu)?;
    let held = Held::of(pair, &known()?).context("no counts are checked in at all")?;
    let counts = read(&held.to)?;
    let wanted = |filter: &str| counts.keys().any(|key| test_name(key).contains(filter));
    if !filter.is_none_or(wanted) {
        return Ok(Vec::new());
    }
    if let Some(note) = held.note() {
        eprintln!("no counts of {pair} are checked in: {note}, count");
    }
    let rows = rows(&qemu, &settings.tests)?;
    Ok(check(&rows, &counts).into_iter().map(|checked| trial(checked, held)).collect())
}

fn trial(checked: Checked, held: Held) -> Trial {
    let name = test_name(&checked.key);
    let trial = harness::trial(name, move || match checked.failure(&held) {
        // Another release's CPU may have what the nearest one's lacks.
        Some(_) if checked.counted.is_none() && !held.exactly => {
            Outcome::Skipped(format!("{} has no such count", held.to))
        }
        None => Outcome::Ok,
        Some(why) => Outcome::Failed(why),
    });
    match held.note() {
        Some(note) => trial.with_kind(note),
        None => trial,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(name: &str, instructions: f64) -> Row {
        Row { name: name.to_owned(), iterations: 320, instructions, ..Row::default() }
    }

    const HERE: Pair = Pair { rustc: (1, 95), qemu: (7, 2) };

    fn failures(rows: &[Row], counts: Value, exactly: bool) -> Vec<String> {
        let Value::Object(counts) = counts else { panic!("no object") };
        let held = Held { to: HERE, exactly };
        check(rows, &counts)
            .iter()
            .filter(|checked| checked.failure(&held).is_some())
            .map(|checked| checked.key.clone())
            .collect()
    }

    #[test]
    fn more_than_two_percent_either_way_fails_and_so_does_what_is_missing() {
        let rows = [row("same", 700.4), row("more", 720.0), row("less", 680.0), row("new", 1.0)];
        let counts = json!({ "same": 700, "more": 700, "less": 700, "gone": 3 });
        assert_eq!(failures(&rows, counts.clone(), true), ["more", "less", "new", "gone"]);
        assert_eq!(failures(&[row("same", 713.9)], json!({ "same": 700 }), true), [""; 0]);
        // A tick more of one turn is no more of it; two are, and one that is the mean of many.
        let once = |name, instructions| Row { iterations: 1, ..row(name, instructions) };
        let rows_of_one = [once("one", 480.0), once("two", 496.0), row("mean", 480.0)];
        let counted = json!({ "one": 464, "two": 464, "mean": 464 });
        assert_eq!(failures(&rows_of_one, counted, true), ["two", "mean"]);
        // From pair to pair ten, and some instructions.
        assert_eq!(failures(&rows, counts, false), ["new", "gone"]);
        let rows = [row("more", 771.0), row("less", 629.0), row("loop", 6.0), row("few", 9.0)];
        let counts = json!({ "more": 700, "less": 700, "loop": 2, "few": 2 });
        assert_eq!(failures(&rows, counts, false), ["more", "less", "few"]);
    }

    #[test]
    fn an_unknown_pair_is_held_to_the_nearest_and_says_so() {
        let pair = |rustc, qemu| Pair { rustc: (1, rustc), qemu };
        let known = [pair(95, (7, 2)), pair(96, (7, 2)), pair(95, (10, 0))];
        let held = |pair| Held::of(pair, &known).unwrap();
        for known in known {
            assert_eq!(held(known), Held { to: known, exactly: true });
            assert_eq!(held(known).note(), None);
        }
        let far = held(pair(97, (7, 2)));
        assert_eq!(far, Held { to: known[1], exactly: false });
        assert!(far.note().unwrap().contains("rustc 1.96, QEMU 7.2"), "{far:?}");
        // QEMU's release first.
        assert_eq!(held(pair(96, (10, 1))).to, known[2]);
        assert_eq!(held(pair(90, (8, 0))).to, known[0]);
        assert_eq!(Held::of(HERE, &[]), None);
    }

    #[test]
    fn files_are_named_by_their_pair() {
        assert_eq!(HERE.file_name(), "rustc-1.95-qemu-7.2.json");
        assert_eq!(Pair::from_file_name(&HERE.file_name()), Some(HERE));
        for name in ["rustc-1.95.json", "rustc-1-qemu-7.2.json", "x", "rustc-1.95-qemu-7.2"] {
            assert_eq!(Pair::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_counts_that_are_checked_in_can_be_read() {
        let known = known().unwrap();
        for pair in &known {
            let counts = read(pair).unwrap();
            for name in ["exit_to_host", "el2_trap", "null_hypercall", "first_touch"] {
                assert!(counts.keys().any(|key| key.starts_with(name)), "{pair}: {name}");
            }
            assert!(counts.values().all(|count| count.as_u64().is_some()), "{pair}");
        }
        // The compiler that everybody gets has its own.
        let path = workspace::root().join("rust-toolchain.toml");
        let text = std::fs::read_to_string(path).unwrap();
        let channel = text.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap();
        let rustc = toolchain::parse_version(channel.trim_matches('"')).expect("an exact release");
        assert!(known.contains(&Pair { rustc, qemu: HERE.qemu }), "rustc {rustc:?}");
    }
}
