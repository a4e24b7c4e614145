//! What a run of the fuzzer has reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};
use umbra_fuzz::coverage::{HostMode, Kind, Live, Pair};
use umbra_spec::judge::Report;

use super::batch::{Outcome, Verdict};
use super::script::Script;

/// Counts over all boots.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Machines booted.
    pub boots: u64,
    /// Programs that passed.
    pub passed: u64,
    /// Programs that failed.
    pub failed: u64,
    /// Steps of the programs that were begun.
    pub steps: u64,
    coverage: BTreeMap<Pair, u64>,
    /// What the specification has judged, if it has.
    judged: Option<Report>,
}

impl Summary {
    /// Takes a boot in, and returns its lines for the record: one for each program that was begun.
    pub fn take(&mut self, script: &Script, outcome: &Outcome) -> Vec<Value> {
        self.boots += 1;
        for (pair, count) in &outcome.coverage {
            *self.coverage.entry(*pair).or_default() += count;
        }
        if let Some(report) = &outcome.report {
            self.judged.get_or_insert_default().add(report);
        }
        let begun = script.programs.iter().zip(&outcome.verdicts);
        begun
            .map(|(program, verdict)| {
                self.steps += program.steps.len() as u64;
                let mut line = json!({
                    "seed": format!("{:#x}", program.seed),
                    "mode": program.mode.to_string(),
                    "machine": script.machine.to_string(),
                    "steps": program.steps.len(),
                });
                match verdict {
                    Verdict::Passed { digest } => {
                        self.passed += 1;
                        line["verdict"] = json!("passed");
                        line["digest"] = json!(format!("{digest:#x}"));
                    }
                    Verdict::Failed { step, why } => {
                        self.failed += 1;
                        line["verdict"] = json!("failed");
                        line["step"] = json!(step);
                        line["why"] = json!(why);
                    }
                }
                line
            })
            .collect()
    }

    /// Programs that were begun.
    pub fn programs(&self) -> u64 {
        self.passed + self.failed
    }

    /// Events that were counted.
    pub fn events(&self) -> u64 {
        self.coverage.values().sum()
    }

    /// Different triples of event, live state and pair of vector lengths.
    pub fn triples(&self) -> usize {
        self.coverage.len()
    }

    fn pairs(&self) -> BTreeMap<(Kind, Live), u64> {
        let mut pairs = BTreeMap::new();
        for (pair, count) in &self.coverage {
            *pairs.entry((pair.kind, pair.live)).or_default() += count;
        }
        pairs
    }

    /// The pairs of event and live state that never came.
    pub fn never(&self) -> Vec<(Kind, Live)> {
        let pairs = self.pairs();
        let all = Kind::ALL.iter().flat_map(|&kind| Live::ALL.map(|live| (kind, live)));
        all.filter(|pair| !pairs.contains_key(pair)).collect()
    }

    /// For the record: everything.
    pub fn json(&self) -> Value {
        let coverage: Vec<Value> = self
            .coverage
            .iter()
            .map(|(pair, count)| {
                json!({
                    "event": pair.kind.name(),
                    "live": pair.live.name(),
                    "host_vl": pair.host.vl_bytes(),
                    "guest_vl": pair.guest.map(|class| class.vl_bytes()),
                    "host_mode": pair.mode.name(),
                    "count": count,
                })
            })
            .collect();
        let never = self.never();
        let never: Vec<Value> =
            never.iter().map(|(kind, live)| json!([kind.name(), live.name()])).collect();
        let judged = self.judged.as_ref().map(|report| {
            let answers: Vec<Value> = report
                .answers
                .iter()
                .map(|((call, answer), count)| json!([call, answer, count]))
                .collect();
            json!({
                "transitions": report.transitions,
                "calls": report.calls,
                "accepted": report.accepted,
                "answers": answers,
            })
        });
        json!({
            "judged": judged,
            "summary": {
                "boots": self.boots,
                "programs": self.programs(),
                "failed": self.failed,
                "steps": self.steps,
                "events": self.events(),
                "triples": self.triples(),
                "never": never,
            },
            "coverage": coverage,
        })
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let pairs = self.pairs();
        let lengths: BTreeSet<_> =
            self.coverage.keys().filter_map(|pair| Some((pair.host, pair.guest?))).collect();
        let _ = writeln!(
            out,
            "{} programs ({} failed) of {} steps in {} boots; {} events; {} different (event, live \
             state, VL pair), {} VL pairs",
            self.programs(),
            self.failed,
            self.steps,
            self.boots,
            self.events(),
            self.triples(),
            lengths.len()
        );
        let _ =
            writeln!(out, "\n{:16}{:>12}{:>12}{:>12}", "event \\ live", "host", "guest", "nobody");
        for &kind in Kind::ALL {
            let _ = write!(out, "{:16}", kind.name());
            for live in Live::ALL {
                match pairs.get(&(kind, live)) {
                    Some(count) => {
                        let _ = write!(out, "{count:>12}");
                    }
                    None => out.push_str("           -"),
                }
            }
            out.push('\n');
        }
        out.push_str(&self.render_modes());
        if let Some(report) = &self.judged {
            out.push_str(&render_judged(report));
        }
        let never = self.never();
        if !never.is_empty() {
            let names: Vec<_> = never
                .iter()
                .map(|(kind, live)| format!("{} while {}", kind.name(), live.name()))
                .collect();
            let _ = writeln!(out, "\nnever reached: {}", names.join(", "));
        }
        out
    }
}

impl Summary {
    /// How often an event met whose registers, in which mode of the host.
    fn render_modes(&self) -> String {
        let mut modes: BTreeMap<(HostMode, Live), u64> = BTreeMap::new();
        for (pair, count) in &self.coverage {
            *modes.entry((pair.mode, pair.live)).or_default() += count;
        }
        let mut out =
            format!("\n{:16}{:>12}{:>12}{:>12}\n", "host's mode", "host", "guest", "nobody");
        for mode in HostMode::ALL {
            let _ = write!(out, "{:16}", mode.name());
            for live in Live::ALL {
                let _ = write!(out, "{:>12}", modes.get(&(mode, live)).copied().unwrap_or(0));
            }
            out.push('\n');
        }
        out
    }
}

/// Which calls met which answers.
fn render_judged(report: &Report) -> String {
    let mut out = format!(
        "\njudged by the specification: {} transitions, among them {} calls, {} % of which did what \
         they were asked; {} pairs of call and answer\n",
        report.transitions,
        report.calls,
        100 * report.accepted / report.calls.max(1),
        report.answers.len()
    );
    let mut calls: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((call, answer), count) in &report.answers {
        calls.entry(call).or_default().push(format!("{answer} {count}"));
    }
    for (call, answers) in calls {
        let _ = writeln!(out, "{call:24}{}", answers.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_and_what_was_not() {
        let script: Script =
            "machine --smp 1\nprogram 0x1 replay\n0 check\nprogram 0x2 replay\n0 put\n"
                .parse()
                .unwrap();
        let mut outcome = Outcome::default();
        outcome.verdicts.push(Verdict::Passed { digest: 3 });
        outcome.verdicts.push(Verdict::Failed { step: Some(0), why: "Z0".to_owned() });
        for text in ["check host 256 - sm", "check host 16 - -", "put guest 64 64 za"] {
            outcome.coverage.insert(Pair::parse(text).unwrap(), 5);
        }
        let mut summary = Summary::default();
        let lines = summary.take(&script, &outcome);
        assert_eq!(lines[0]["verdict"], "passed");
        assert_eq!(lines[1]["why"], "Z0");
        assert_eq!(lines[1]["step"], 0);
        assert_eq!((summary.programs(), summary.failed, summary.events()), (2, 1, 15));
        assert_eq!(summary.triples(), 3);
        let never = summary.never();
        assert!(!never.contains(&(Kind::Check, Live::Host)));
        assert!(never.contains(&(Kind::Check, Live::Guest)));
        assert_eq!(never.len(), 3 * Kind::ALL.len() - 2);
        assert!(summary.render().contains("put while host"));
        assert_eq!(summary.json()["summary"]["programs"], 2);
    }
}
