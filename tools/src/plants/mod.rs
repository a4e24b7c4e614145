//! `xtask plants`: do the tests notice the defects that they are there for?
//!
//! A test that never fails proves nothing, and whether it can fail is not seen by looking at it. So
//! every defect that the tests claim to find is kept as a small patch in `tests/plants`, preceded by
//! lines that say what it is and which tests find it:
//!
//! ```text
//! What: the host's clamp is not put back when its registers are loaded
//! Row: r07
//! Test: unit umbra-hyp fp::tests::everybody_finds_what_they_left
//! Test: target max::r07_kernel_fp_between_exit_and_put
//! ```
//!
//! Each is applied to a copy of the sources, never to the checkout. The copy must still compile (a
//! compiler's error is not a test's finding), and each of the named tests must run and fail. Before
//! that they are run once on the copy as it is and must pass, so that a failure means the defect. A
//! patch that no longer applies is an error: the code has moved on, and the claim with it.
//!
//! The copy stays for the next time, as does its target directory, and only files that differ are
//! written, so that cargo compiles no more than a defect touches.

mod copy;
mod patch;
mod verdict;

use std::path::PathBuf;

use anyhow::{Result, bail};

use copy::Copy;
use patch::{Plant, select};

/// What is asked for.
pub struct Request {
    /// Plants or rows; none: all.
    pub names: Vec<String>,
    /// Whether the tests must first pass on the sources as they are.
    pub baseline: bool,
    /// A QEMU that was asked for.
    pub qemu: Option<PathBuf>,
}
/// A line of the table.
struct Row<'a> {
    plant: &'a Plant,
    caught: Vec<String>,
    wrong: Vec<String>,
}

impl Row<'_> {
    fn cells(&self) -> [String; 4] {
        let found = format!("{} of {}", self.caught.len(), self.plant.tests.len());
        let first = self.caught.first().map_or("NOT CAUGHT", String::as_str);
        let by = if self.wrong.is_empty() { first.to_owned() } else { format!("WRONG; {first}") };
        [self.plant.row.clone(), self.plant.name.clone(), found, by]
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let mut cells = vec![["row", "plant", "caught", "by"].map(str::to_owned)];
    cells.extend(rows.iter().map(Row::cells));
    let widths: [usize; 3] =
        std::array::from_fn(|n| cells.iter().map(|row| row[n].len()).max().unwrap_or(0));
    let line = |row: &[String; 4], what: &str| {
        let [a, b, c] = widths;
        format!("{:a$}  {:b$}  {:c$}  {}{what}\n", row[0], row[1], row[2], row[3])
    };
    let mut out = line(&cells[0], "");
    for (row, cells) in rows.iter().zip(&cells[1..]) {
        out += &line(cells, &format!("  ({})", row.plant.what));
    }
    out
}

/// Plants what is asked for and prints the table; whether every defect was found by every test named
/// for it.
pub fn plants(request: &Request) -> Result<bool> {
    let plants = select(&request.names)?;
    let copy = Copy::set_up(request.qemu.as_deref())?;
    copy.refresh()?;
    if request.baseline {
        let wrong = copy.baseline(&plants)?;
        if !wrong.is_empty() {
            bail!("the tests must pass before a defect is planted:\n{}", wrong.join("\n"));
        }
    }
    let mut rows = Vec::new();
    for (n, plant) in plants.iter().enumerate() {
        eprintln!("[{}/{}] {}: {}", n + 1, plants.len(), plant.name, plant.what);
        let (caught, wrong) = match copy.plant(plant) {
            Ok(found) => found,
            Err(error) => (Vec::new(), vec![format!("{error:#}")]),
        };
        for what in &wrong {
            eprintln!("  WRONG: {what}");
        }
        rows.push(Row { plant, caught, wrong });
    }
    copy.refresh()?;
    print!("{}", table(&rows));
    let wrong: Vec<_> = rows.iter().filter(|row| !row.wrong.is_empty()).collect();
    println!("{} plants, {} caught", rows.len(), rows.len() - wrong.len());
    for row in &wrong {
        println!("{}: {}", row.plant.name, row.wrong.join("; "));
    }
    Ok(wrong.is_empty())
}

#[cfg(test)]
mod tests {
    use super::patch::*;
    use super::verdict::*;
    use crate::transcript::Outcome;
    use std::collections::BTreeSet;
    use std::path::Path;

    const GOOD: &str = "What: FFR is at a constant offset\nRow: r02\n\
        Test: unit umbra-hyp fp::tests::one\nTest: target vq4::r02_two\n\
        Test: linux keeps_every_register\nTest: judged storm\nTest: i5\n\n\
        --- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";

    fn error(text: &str) -> String {
        format!("{:#}", Plant::parse(Path::new("p/r02-x.patch"), text).unwrap_err())
    }

    #[test]
    fn a_plant_says_what_it_is() {
        let plant = Plant::parse(Path::new("p/r02-x.patch"), GOOD).unwrap();
        assert_eq!((plant.name.as_str(), plant.row.as_str()), ("r02-x", "r02"));
        assert_eq!(plant.what, "FFR is at a constant offset");
        let tests: Vec<_> = plant.tests.iter().map(Test::to_string).collect();
        assert_eq!(
            tests,
            [
                "unit umbra-hyp fp::tests::one",
                "target vq4::r02_two",
                "linux keeps_every_register",
                "judged storm",
                "i5"
            ]
        );
        assert!(plant.is("r02") && plant.is("r02-x") && !plant.is("r0"));
    }

    #[test]
    fn a_bad_header_is_an_error() {
        assert!(error(&GOOD.replace("What:", "Why:")).contains("Why"));
        assert!(error(&GOOD.replace("What: FFR is at a constant offset\n", "")).contains("What"));
        assert!(error(&GOOD.replace("Row: r02", "Row: seven")).contains("rNN"));
        assert!(error(&GOOD.replace("Row: r02", "Row: r02\nRow: r03")).contains("two"));
        assert!(error(&GOOD.replace("vq4::", "pdp11::")).contains("pdp11"));
        assert!(error(&GOOD.replace("linux keeps", "linux loses")).contains("loses"));
        assert!(error(&GOOD.replace("judged storm", "judged wind")).contains("wind"));
        assert!(error(&GOOD.replace("Test: i5", "Test: maybe")).contains("maybe"));
        assert!(error("What: x\nRow: -\n\n+++ b/x\n").contains("Test"));
        assert!(error(&GOOD.replace("+++ ", "*** ")).contains("no diff"));
        assert!(error(&GOOD.replace("\n\n---", "\n---")).contains("empty line"));
    }

    #[test]
    fn only_a_failure_of_that_test_counts() {
        let output = "running 3 tests\ntest a::b ... FAILED\ntest a::bc ... ok\n\
            test a::d - should panic ... ok\ntest a::e ... ignored\n\
            thread 'a::b' panicked at x.rs:1:\n  it is wrong\n";
        assert_eq!(libtest_verdict(output, "a::b"), Verdict::Failed("it is wrong".to_owned()));
        assert_eq!(libtest_verdict(output, "a::bc"), Verdict::Passed);
        assert_eq!(libtest_verdict(output, "a::d"), Verdict::Passed);
        assert!(matches!(libtest_verdict(output, "a::e"), Verdict::Nothing(_)));
        assert!(matches!(libtest_verdict(output, "a"), Verdict::Nothing(_)));
        assert!(matches!(libtest_verdict("error: could not compile", "a::b"), Verdict::Nothing(_)));
    }

    #[test]
    fn a_machine_that_dies_early_finds_nothing() {
        let outcomes = [
            ("boot".to_owned(), Outcome::Failed("hyp panicked".to_owned())),
            ("a".to_owned(), Outcome::Failed("died during this test: silence".to_owned())),
            ("b".to_owned(), Outcome::Failed("never ran: silence".to_owned())),
            ("c".to_owned(), Outcome::Ok),
            ("d".to_owned(), Outcome::Skipped("no SVE".to_owned())),
        ];
        assert!(matches!(target_verdict(&outcomes, "a"), Verdict::Failed(_)));
        assert_eq!(target_verdict(&outcomes, "c"), Verdict::Passed);
        for name in ["b", "d", "x"] {
            assert!(matches!(target_verdict(&outcomes, name), Verdict::Nothing(_)), "{name}");
        }
        assert!(matches!(target_verdict(&[], "x"), Verdict::Nothing(_)));
    }

    #[test]
    fn every_plant_in_the_checkout_can_be_read() {
        let plants = select(&[]).unwrap();
        let rows: BTreeSet<_> = plants.iter().map(|plant| plant.row.as_str()).collect();
        assert!(rows.contains("r01"), "{rows:?}");
        assert!(select(&["no such plant".to_owned()]).is_err());
    }
}
