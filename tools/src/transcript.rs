//! One machine's console, taken apart into tests.

use crate::console::{Event, Line, parse};

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Ok,
    /// It does not apply to this machine, and why.
    Skipped(String),
    /// It failed: why, and its part of the console.
    Failed(String),
}

/// The name of the test that stands for the machine as a whole.
pub const BOOT: &str = "boot";

/// Lines of the console that the boot's failure shows.
const TAIL_LINES: usize = 60;

/// A console, line by line.
#[derive(Debug, Default)]
pub struct Transcript {
    announced: Option<usize>,
    verdict: Option<Result<(), String>>,
    tests: Vec<Test>,
    /// Index of the test that runs now.
    running: Option<usize>,
    console: Vec<String>,
    /// What went against the protocol.
    errors: Vec<String>,
}

#[derive(Debug)]
struct Test {
    name: String,
    begun: bool,
    result: Option<Event>,
    console: Vec<String>,
}

impl Transcript {
    /// Takes one line in; `show` turns it into what people read.
    pub fn take(&mut self, line: &str, show: impl FnOnce(&str) -> String) {
        match parse(line) {
            Line::Tests(count) => self.announced = Some(count),
            Line::Verdict(verdict) if !matches!(self.verdict, Some(Err(_))) => {
                self.verdict = Some(verdict);
            }
            Line::Test(name, event) => self.event(name, event),
            Line::Text(_) | Line::Pc(..) => {
                let shown = show(line);
                if let Some(running) = self.running {
                    self.tests[running].console.push(shown.clone());
                }
                self.console.push(shown);
                return;
            }
            _ => {}
        }
        self.console.push(line.to_owned());
    }

    fn event(&mut self, name: &str, event: Event) {
        let known = self.tests.iter().position(|test| test.name == name);
        match (event, known) {
            (Event::Listed, None) => self.tests.push(Test {
                name: name.to_owned(),
                begun: false,
                result: None,
                console: Vec::new(),
            }),
            (Event::Listed, Some(_)) => self.errors.push(format!("{name} is listed twice")),
            (_, None) => self.errors.push(format!("{name} was not listed")),
            (Event::Begin, Some(index)) => {
                if let Some(running) = self.running {
                    let other = &self.tests[running].name;
                    self.errors.push(format!("{name} began during {other}"));
                }
                if std::mem::replace(&mut self.tests[index].begun, true) {
                    self.errors.push(format!("{name} ran twice"));
                }
                self.running = Some(index);
            }
            (result, Some(index)) => {
                self.running = None;
                let test = &mut self.tests[index];
                if !test.begun && !matches!(result, Event::Skipped(_)) {
                    self.errors.push(format!("{name} ended before it began"));
                }
                if test.result.is_some() {
                    self.errors.push(format!("{name} ended twice"));
                }
                // A failure is not taken back.
                if !matches!(test.result, Some(Event::Failed(_))) {
                    test.result = Some(result);
                }
            }
        }
    }

    /// All tests with their outcomes, the boot first. `failure` is why the machine did not end well
    /// by itself, as far as can be told from outside.
    pub fn into_outcomes(self, failure: Option<String>) -> Vec<(String, Outcome)> {
        let problems = self.problems(failure);
        let ended = match problems.first() {
            Some(problem) => problem.as_str(),
            None => "the machine powered off",
        };
        let mut outcomes = vec![];
        for test in &self.tests {
            let outcome = match &test.result {
                Some(Event::Ok) => Outcome::Ok,
                Some(Event::Skipped(why)) => Outcome::Skipped(why.clone()),
                Some(Event::Failed(why)) => failed(why, &test.console),
                _ if test.begun => {
                    failed(&format!("died during this test: {ended}"), &test.console)
                }
                _ => failed(&format!("never ran: {ended}"), &[]),
            };
            outcomes.push((test.name.clone(), outcome));
        }
        let boot = if problems.is_empty() {
            Outcome::Ok
        } else {
            let tail = self.console.len().saturating_sub(TAIL_LINES);
            failed(&problems.join("\n"), &self.console[tail..])
        };
        outcomes.insert(0, (BOOT.to_owned(), boot));
        outcomes
    }

    fn problems(&self, failure: Option<String>) -> Vec<String> {
        let mut problems: Vec<_> = failure.into_iter().collect();
        match &self.verdict {
            Some(Ok(())) => {}
            Some(Err(why)) => problems.push(format!("verdict: {why}")),
            None => problems.push("the machine came to no verdict".to_owned()),
        }
        match self.announced {
            None | Some(0) => problems.push("the machine announced no tests".to_owned()),
            Some(count) if count != self.tests.len() => problems.push(format!(
                "the machine announced {count} tests and listed {}",
                self.tests.len()
            )),
            Some(_) => {}
        }
        let missing = self.tests.iter().filter(|test| test.result.is_none());
        let missing: Vec<_> = missing.map(|test| test.name.as_str()).collect();
        if !missing.is_empty() {
            problems.push(format!("no result of {}", missing.join(", ")));
        }
        problems.extend(self.errors.iter().cloned());
        problems
    }
}

fn failed(why: &str, console: &[String]) -> Outcome {
    let mut text = why.to_owned();
    if !console.is_empty() {
        text.push_str("\nconsole:\n");
        text.push_str(&console.join("\n"));
    }
    Outcome::Failed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(console: &str, failure: Option<&str>) -> Vec<(String, Outcome)> {
        let mut transcript = Transcript::default();
        for line in console.lines() {
            transcript.take(line, |line| line.replace("@pc", "shown"));
        }
        transcript.into_outcomes(failure.map(str::to_owned))
    }

    fn text<'a>(outcomes: &'a [(String, Outcome)], name: &str) -> &'a str {
        match outcomes.iter().find(|(n, _)| n == name) {
            Some((_, Outcome::Failed(text))) => text,
            other => panic!("{other:?}"),
        }
    }

    const LISTED: &str = "@tests 3\n@test a listed\n@test b listed\n@test c listed\n";

    #[test]
    fn a_good_run_passes_with_its_skipped_tests() {
        let console = format!(
            "{LISTED}@test a begin\n@test a ok\n@test b skipped: no SVE\n@test c begin\nx\n@test c ok\n@verdict ok\n"
        );
        let expected = [
            ("boot", Outcome::Ok),
            ("a", Outcome::Ok),
            ("b", Outcome::Skipped("no SVE".to_owned())),
            ("c", Outcome::Ok),
        ];
        let found = outcomes(&console, None);
        assert_eq!(found, expected.map(|(name, o)| (name.to_owned(), o)));
    }

    #[test]
    fn a_failed_test_has_its_own_part_of_the_console() {
        let console = format!(
            "{LISTED}@test a begin\nof a\n@test a ok\n@test b begin\nof b\n@pc hyp 0x1\n@test b failed: Z3\n@test b ok\n@test c begin\n@test c ok\n@verdict ok\n"
        );
        let found = outcomes(&console, None);
        let text_b = text(&found, "b");
        assert_eq!(text_b, "Z3\nconsole:\nof b\nshown hyp 0x1");
        assert!(text(&found, "boot").contains("b ended twice"));
    }

    #[test]
    fn a_machine_that_dies_fails_what_ran_what_never_ran_and_the_boot() {
        let console = format!("{LISTED}@test a begin\n@test a ok\n@test b begin\npanic\n");
        let found = outcomes(&console, Some("QEMU ended with 1"));
        assert_eq!(found[1].1, Outcome::Ok);
        assert!(text(&found, "b").contains("died during this test: QEMU ended with 1"));
        assert!(text(&found, "b").contains("panic"));
        assert!(text(&found, "c").contains("never ran"));
        let boot = text(&found, "boot");
        assert!(boot.contains("no verdict"), "{boot}");
        assert!(boot.contains("no result of b, c"), "{boot}");
    }

    #[test]
    fn nothing_said_is_nothing_passed() {
        let found = outcomes("", None);
        assert_eq!(found.len(), 1);
        assert!(text(&found, "boot").contains("announced no tests"));
    }

    #[test]
    fn what_breaks_the_protocol_fails_the_boot() {
        for (console, problem) in [
            ("@tests 2\n@test a listed\n", "announced 2 tests and listed 1"),
            ("@test a listed\n@test a listed\n", "a is listed twice"),
            ("@test a ok\n", "a was not listed"),
            ("@test a listed\n@test a ok\n", "a ended before it began"),
            ("@test a listed\n@test b listed\n@test a begin\n@test b begin\n", "b began during a"),
            ("@verdict failed: 2 of 3\n@verdict ok\n", "verdict: 2 of 3"),
        ] {
            let found = outcomes(console, None);
            let boot = text(&found, "boot");
            assert!(boot.contains(problem), "{boot}");
        }
    }
}
