//! The short bench as a test: the counts of this build against those that are checked in
//! (`tests/bench/counts.json`).
//!
//! Instructions are counted, so the same sources, compiler and QEMU give the same figures on any
//! machine. Another compiler may do with more or fewer, and another QEMU has another `-cpu max`: the
//! file names both, and where they differ nothing is compared. `cargo xtask bench --update` writes the
//! figures of this build into it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use libtest_mimic::{Completion, Failed, Trial};
use serde_json::{Map, Value, json};

use super::{CHANGE, Row, measure};
use crate::build::Built;
use crate::harness::{self, Settings};
use crate::qemu::Qemu;
use crate::workspace;

const CPU: &str = "max";
const WORDS: &str = "short iterations=320";

/// Instructions below which a difference says nothing: a tick of the counter is up to 16 of them, and what
/// is measured is the mean over some hundred turns.
const RESOLUTION: f64 = 0.5;

/// Where the counts are.
pub fn path() -> PathBuf {
    workspace::root().join("tests/bench/counts.json")
}

fn name_of((major, minor): (u32, u32)) -> String {
    format!("QEMU {major}.{minor}")
}

fn read() -> Result<Value> {
    let path = path();
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The short bench's rows.
fn rows(qemu: &Qemu, tests: &Built) -> Result<Vec<Row>> {
    Ok(measure(qemu, tests, CPU, 1, WORDS)?.rows)
}

/// Writes the counts of this build with this QEMU.
pub fn update(qemu: &Qemu, tests: &Built, compiler: &str) -> Result<()> {
    let rows = rows(qemu, tests)?;
    let counts: Map<String, Value> =
        rows.iter().map(|row| (row.key(), json!(row.instructions.round()))).collect();
    // Counts of another compiler go: they would never be compared again.
    let old = read().ok().filter(|old| old["compiler"] == compiler);
    let mut all = old.unwrap_or_else(|| json!({ "compiler": compiler }));
    all[name_of(qemu.version)] = Value::Object(counts);
    let path = path();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, format!("{all:#}\n")).with_context(|| path.display().to_string())?;
    println!("{} counts for {} and {compiler}", rows.len(), name_of(qemu.version));
    Ok(())
}

/// A count and what it should be.
#[derive(Clone, Debug, PartialEq)]
struct Checked {
    key: String,
    now: Option<f64>,
    counted: Option<f64>,
}

impl Checked {
    fn failure(&self) -> Option<String> {
        match (self.counted, self.now) {
            (Some(counted), Some(now)) => {
                let percent = 100.0 * (now - counted) / counted.max(1.0);
                ((now - counted).abs() > RESOLUTION && percent.abs() > CHANGE).then(|| {
                    format!(
                        "{now:.0} instructions, {counted:.0} are checked in: {percent:+.1} %. If that is \
                         meant, `cargo xtask bench --update` checks the new counts in."
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
            Checked { key, now: Some(row.instructions), counted }
        })
        .collect();
    for (key, counted) in counts {
        if !all.iter().any(|checked| checked.key == *key) {
            all.push(Checked { key: key.clone(), now: None, counted: counted.as_f64() });
        }
    }
    all
}

/// The counts to compare with, or why there are none.
fn applicable(
    all: &Value,
    compiler: &str,
    qemu: &str,
) -> Result<Result<Map<String, Value>, String>> {
    let of = all["compiler"].as_str().context("no compiler is named")?;
    if of != compiler {
        return Ok(Err(format!("the counts are of {of}; this is {compiler}")));
    }
    Ok(match all.get(qemu) {
        Some(Value::Object(counts)) if !counts.is_empty() => Ok(counts.clone()),
        Some(_) => bail!("the counts of {qemu} are none"),
        None => Err(format!("no counts of {qemu} are checked in")),
    })
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
    let counts = match applicable(&read()?, &settings.compiler, &name_of(qemu.version))? {
        Ok(counts) => counts,
        Err(why) => {
            let skip = move || Ok(Completion::ignored_with(why));
            return Ok(vec![Trial::ignorable_test("bench::counts", skip)]);
        }
    };
    let wanted = |filter: &str| counts.keys().any(|key| test_name(key).contains(filter));
    if !filter.is_none_or(wanted) {
        return Ok(Vec::new());
    }
    let rows = rows(&qemu, &settings.tests)?;
    Ok(check(&rows, &counts)
        .into_iter()
        .map(|checked| {
            Trial::test(test_name(&checked.key), move || match checked.failure() {
                None => Ok(()),
                Some(why) => Err(Failed::from(why)),
            })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, instructions: f64) -> Row {
        Row { name: name.to_owned(), instructions, ..Row::default() }
    }

    fn failures(rows: &[Row], counts: Value) -> Vec<String> {
        let Value::Object(counts) = counts else { panic!("no object") };
        check(rows, &counts)
            .iter()
            .filter(|checked| checked.failure().is_some())
            .map(|checked| checked.key.clone())
            .collect()
    }

    #[test]
    fn more_than_two_percent_either_way_fails_and_so_does_what_is_missing() {
        let rows = [row("same", 700.4), row("more", 720.0), row("less", 680.0), row("new", 1.0)];
        let counts = json!({ "same": 700, "more": 700, "less": 700, "gone": 3 });
        assert_eq!(failures(&rows, counts), ["more", "less", "new", "gone"]);
        assert_eq!(failures(&[row("same", 713.9)], json!({ "same": 700 })), [""; 0]);
    }

    #[test]
    fn another_compiler_or_qemu_is_a_reason() {
        let all = json!({ "compiler": "rustc 1", "QEMU 7.2": { "a": 1 } });
        assert!(applicable(&all, "rustc 1", "QEMU 7.2").unwrap().is_ok());
        assert!(applicable(&all, "rustc 2", "QEMU 7.2").unwrap().is_err());
        assert!(applicable(&all, "rustc 1", "QEMU 10.0").unwrap().is_err());
        assert!(applicable(&json!({}), "rustc 1", "QEMU 7.2").is_err());
        let empty = json!({ "compiler": "rustc 1", "QEMU 7.2": {} });
        assert!(applicable(&empty, "rustc 1", "QEMU 7.2").is_err());
    }

    #[test]
    fn the_counts_that_are_checked_in_can_be_read() {
        let all = read().unwrap();
        let counts = all[name_of((7, 2))].as_object().expect("counts for QEMU 7.2");
        for name in ["exit_to_host", "el2_trap", "null_hypercall", "first_touch"] {
            assert!(counts.keys().any(|key| key.starts_with(name)), "{name}");
        }
    }
}
