//! How a test ended, as libtest or a machine says it.

use crate::transcript::Outcome;

/// How a test of a planted defect, or of none, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// It ran and failed, and what it said.
    Failed(String),
    /// It did not run, and why: that is neither.
    Nothing(String),
}
/// What libtest says of one test.
pub(super) fn libtest_verdict(output: &str, name: &str) -> Verdict {
    let line = output.lines().find_map(|line| {
        let rest = line.strip_prefix("test ")?.strip_prefix(name)?;
        // "test NAME ... ok", "test NAME - should panic ... ok"
        rest.starts_with(' ').then(|| rest.rsplit_once(" ... "))?
    });
    match line {
        Some((_, "ok")) => Verdict::Passed,
        Some((_, "FAILED")) => Verdict::Failed(panic_message(output)),
        Some((_, other)) => Verdict::Nothing(format!("it ended with `{other}`")),
        None => Verdict::Nothing(format!("it did not run to its end:\n{}", tail(output, 10))),
    }
}

/// The first line of what a test panicked with.
pub(super) fn panic_message(output: &str) -> String {
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    lines.nth(1).unwrap_or("(no message)").trim().to_owned()
}

/// What a machine says of one test. That it died before it got there is no finding.
pub(super) fn target_verdict(outcomes: &[(String, Outcome)], name: &str) -> Verdict {
    match outcomes.iter().find(|(test, _)| test == name) {
        Some((_, Outcome::Ok)) => Verdict::Passed,
        Some((_, Outcome::Failed(why))) if why.starts_with("never ran") => {
            Verdict::Nothing(why.clone())
        }
        Some((_, Outcome::Failed(why))) => {
            Verdict::Failed(why.lines().next().unwrap_or_default().to_owned())
        }
        Some((_, Outcome::Skipped(why))) => Verdict::Nothing(format!("skipped: {why}")),
        None => match outcomes.iter().find(|(test, _)| test == crate::transcript::BOOT) {
            Some((_, Outcome::Failed(why))) => {
                Verdict::Nothing(format!("the machine did not get that far: {}", tail(why, 10)))
            }
            _ => Verdict::Nothing("there is no such test".to_owned()),
        },
    }
}

pub(super) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
