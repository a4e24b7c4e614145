//! The demonstration's record: what came over the console, the tables at the end, the verdict.

use std::fmt::Write as _;

use crate::bounds::End;
use crate::console::{Fields, Line, Table};

/// What a run said, taken in line by line.
#[derive(Clone, Debug, Default)]
pub struct Report {
    rows: Vec<(Table, Fields)>,
    verdict: Option<Result<(), String>>,
}

/// Keys of the console's rows, in the order of the table's columns, and the columns' headings.
pub type Columns = [(&'static str, &'static str)];

const CPU_COLUMNS: &Columns = &[
    ("cpu", "CPU"),
    ("mpidr", "MPIDR"),
    ("vls", "VLs (bytes)"),
    ("svls", "SVLs (bytes)"),
    ("image", "image B"),
    ("runs", "runs"),
    ("guest_traps", "guest traps"),
    ("host_traps", "host traps"),
    ("saves_full", "full saves"),
    ("saves_fpsimd", "FPSIMD saves"),
    ("saves_avoided", "saves avoided"),
    ("loads", "loads"),
    ("guest_saves", "guest saves"),
    ("guest_loads", "guest loads"),
    ("loads_avoided", "loads avoided"),
    ("bytes", "bytes moved"),
    ("host_aborts", "aborts"),
    ("stage2_retries", "retries"),
];

const VCPU_COLUMNS: &Columns = &[
    ("vm", "VM"),
    ("vcpu", "vCPU"),
    ("vl", "VL (bytes)"),
    ("verified", "verified iterations"),
    ("migrations", "migrations"),
    ("hvc", "HVC exits"),
    ("mmio", "MMIO exits"),
    ("timer", "timer exits"),
    ("spis", "SPIs"),
    ("sgis", "SGIs"),
];

const OFFERS_COLUMNS: &Columns = &[("what", "machine offers"), ("is", "")];

const MASTER_COLUMNS: &Columns = &[("master", "device that reaches memory"), ("is", "")];

const SEEN_COLUMNS: &Columns = &[("what", "Linux sees"), ("is", "")];

const TASK_COLUMNS: &Columns = &[
    ("cpu", "CPU"),
    ("processes", "processes"),
    ("fills", "verified patterns"),
    ("signals", "signals"),
    ("forks", "forks"),
    ("preemptions", "preemptions"),
    ("migrations", "migrations"),
    ("hotplugs", "hot-plugs"),
];

/// The tables in the order in which they are shown.
const TABLES: &[(Table, &Columns)] = &[
    (Table::Master, MASTER_COLUMNS),
    (Table::Offers, OFFERS_COLUMNS),
    (Table::Seen, SEEN_COLUMNS),
    (Table::Task, TASK_COLUMNS),
    (Table::Cpu, CPU_COLUMNS),
    (Table::Vcpu, VCPU_COLUMNS),
];

impl Report {
    /// Takes one line in. The last verdict counts, but a failure stays one.
    pub fn take(&mut self, line: &Line<'_>) {
        match line {
            Line::Row(table, fields) => self.rows.push((*table, fields.clone())),
            Line::Verdict(verdict) if !matches!(self.verdict, Some(Err(_))) => {
                self.verdict = Some(verdict.clone());
            }
            _ => {}
        }
    }

    /// The rows of a table.
    pub fn rows(&self, table: Table) -> impl Iterator<Item = &Fields> {
        self.rows.iter().filter(move |(of, _)| *of == table).map(|(_, fields)| fields)
    }

    /// This without one of its tables.
    pub fn without(mut self, table: Table) -> Self {
        self.rows.retain(|(of, _)| *of != table);
        self
    }

    /// Why the run failed, from outside or by its own verdict; `None` if it went well.
    pub fn failure(&self, end: &End) -> Option<String> {
        end.failure().or_else(|| match self.verdict() {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(why.clone()),
            None => Some("the machine ended without a verdict".to_owned()),
        })
    }

    /// The machine's own verdict, if it came to one.
    pub fn verdict(&self) -> Option<&Result<(), String>> {
        self.verdict.as_ref()
    }

    /// The tables and the verdict line. `failure` is why the run failed although the machine may say
    /// otherwise: it did not power off, say.
    pub fn render(&self, failure: Option<&str>) -> String {
        let mut out = String::new();
        for (which, columns) in TABLES {
            let rows: Vec<_> = self.rows(*which).collect();
            if !rows.is_empty() {
                out.push_str(&table(columns, &rows));
                out.push('\n');
            }
        }
        match failure {
            None => out.push_str("verdict: ok\n"),
            Some(why) => {
                let _ = writeln!(out, "verdict: FAILED: {why}");
            }
        }
        out
    }
}

/// A table with the known columns that some row has, then any key that is not known.
pub fn table(columns: &Columns, rows: &[&Fields]) -> String {
    let has = |key: &str| rows.iter().copied().flatten().any(|(k, _)| k == key);
    let mut shown: Vec<(&str, &str)> = columns.iter().copied().filter(|(k, _)| has(k)).collect();
    for (key, _) in rows.iter().copied().flatten() {
        if !shown.iter().any(|(k, _)| k == key) {
            shown.push((key, key));
        }
    }
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| shown.iter().map(|(key, _)| cell(row, key)).collect()).collect();
    // A heading of several words takes several lines, so that many columns fit a terminal.
    let headings: Vec<Vec<&str>> =
        shown.iter().map(|(_, heading)| heading.split(' ').collect()).collect();
    let height = headings.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..shown.len())
        .map(|i| {
            let heading = headings[i].iter().map(|word| word.len());
            let column = cells.iter().map(|row| row[i].len());
            heading.chain(column).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    let mut line = |words: Vec<&str>| {
        let mut text = String::new();
        for (word, width) in words.iter().zip(&widths) {
            let _ = write!(text, "{word:>width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    for level in 0..height {
        // Headings stand on the rule: the short ones start lower.
        line(
            headings
                .iter()
                .map(|words| {
                    (level + words.len()).checked_sub(height).map_or("", |word| words[word])
                })
                .collect(),
        );
    }
    let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    line(rules.iter().map(String::as_str).collect());
    for row in &cells {
        line(row.iter().map(String::as_str).collect());
    }
    out
}

/// The value of a key in a row.
pub fn value<'a>(row: &'a Fields, key: &str) -> Option<&'a str> {
    row.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}

fn cell(row: &Fields, key: &str) -> String {
    let value = row.iter().find(|(k, _)| k == key);
    match value {
        None => "-".to_owned(),
        Some((_, list)) if ["vls", "svls", "is"].contains(&key) => vector_lengths(list),
        Some((_, value)) => value.clone(),
    }
}

/// Shortens a run of vector lengths with every multiple of 16 in it: `16..256` instead of 16
/// numbers.
fn vector_lengths(list: &str) -> String {
    let Ok(lengths) = list.split(',').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>() else {
        return list.to_owned();
    };
    match lengths.as_slice() {
        [first, .., last]
            if lengths.len() > 2 && lengths.windows(2).all(|pair| pair[1] == pair[0] + 16) =>
        {
            format!("{first}..{last}")
        }
        _ => list.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::parse;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.take(&parse(line));
        }
        report
    }

    #[test]
    fn the_table_has_known_columns_first_and_dashes_for_gaps() {
        let report = report(&[
            "@cpu extra=x vls=16,32,48,64 cpu=0 loads_avoided=1000",
            "@cpu cpu=10 vls=16,32,64",
            "@vcpu vm=1 vl=64",
            "@verdict ok",
        ]);
        let text = report.render(None);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("          VLs    loads"), "{text}");
        assert_eq!(lines.next(), Some("CPU   (bytes)  avoided  extra"));
        assert_eq!(lines.next(), Some("---  --------  -------  -----"));
        assert_eq!(lines.next(), Some("  0    16..64     1000      x"));
        assert_eq!(lines.next(), Some(" 10  16,32,64        -      -"));
        assert!(text.contains("1       64"), "{text}");
        assert!(text.ends_with("verdict: ok\n"), "{text}");
    }

    #[test]
    fn a_failure_is_not_taken_back() {
        let report = report(&["@verdict failed: Z3", "@verdict ok"]);
        assert_eq!(report.verdict(), Some(&Err("Z3".to_owned())));
        assert!(report.render(Some("Z3")).ends_with("verdict: FAILED: Z3\n"));
        assert_eq!(Report::default().verdict(), None);
    }
}
