//! What the machine says on its console, and the part of it that is meant for us.
//!
//! hyp and the kernels above it print plain text. A line that begins with `@` is for this program:
//!
//! ```text
//! @progress DONE TOTAL
//! @cpu key=value ...              one row of the CPU table; likewise @vcpu and @bench, and from a
//!                                 Linux @seen (what it found) and @task (what its processes did);
//!                                 @offers is what hyp says of the machine
//! @verdict ok | @verdict failed: WHY
//! @fatal WHY                      as a failed verdict, from a program that can't go on
//! @tests N                        how many on-target tests there are; then, for each,
//! @test NAME listed
//! @test NAME begin
//! @test NAME ok | @test NAME failed: WHY | @test NAME skipped: WHY
//! @pc hyp|host|guest 0xADDR       a code address, shown with its function and source line
//! ```
//!
//! A line that begins with `@` and is none of these stays text: a garbled verdict is no verdict.

/// One line of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// For people.
    Text(&'a str),
    /// So much of so much is done.
    Progress(u64, u64),
    /// A row of a table.
    Row(Table, Fields),
    /// What the machine thinks of itself; the reason if it failed.
    Verdict(Result<(), String>),
    /// How many tests there are.
    Tests(usize),
    /// What happened to a test.
    Test(&'a str, Event),
    /// A code address.
    Pc(Space, u64),
}

/// How hyp's lines about masters begin.
const MASTER: &str = "umbra: master ";

/// The tables of the final report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Devices that reach memory, as hyp tells of them when it boots.
    Master,
    /// What the machine offers.
    Offers,
    /// Physical CPUs.
    Cpu,
    /// Virtual CPUs.
    Vcpu,
    /// Measurements.
    Bench,
    /// What a Linux found.
    Seen,
    /// What a Linux's processes did, per CPU.
    Task,
}

/// Keys and values of a row, in the order in which they came.
pub type Fields = Vec<(String, String)>;

/// What happened to an on-target test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It exists.
    Listed,
    /// It runs from here on.
    Begin,
    /// It passed.
    Ok,
    /// It failed, and why.
    Failed(String),
    /// It does not apply to this machine, and why.
    Skipped(String),
}

/// Whose code an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// EL2.
    Hyp,
    /// The host kernel.
    Host,
    /// A guest.
    Guest,
}

impl Space {
    /// Its name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hyp => "hyp",
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }
}

/// Reads one line.
pub fn parse(line: &str) -> Line<'_> {
    parse_command(line).unwrap_or(Line::Text(line))
}

fn parse_command(line: &str) -> Option<Line<'_>> {
    if let Some((master, is)) = line.strip_prefix(MASTER).and_then(|rest| rest.split_once(": ")) {
        let field = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        return Some(Line::Row(Table::Master, vec![field("master", master), field("is", is)]));
    }
    let command = line.strip_prefix('@')?;
    let (verb, rest) = command.split_once(' ')?;
    let rest = rest.trim();
    Some(match verb {
        "progress" => {
            let (done, total) = rest.split_once(' ')?;
            Line::Progress(done.parse().ok()?, total.trim().parse().ok()?)
        }
        "offers" => Line::Row(Table::Offers, fields(rest)?),
        "cpu" => Line::Row(Table::Cpu, fields(rest)?),
        "vcpu" => Line::Row(Table::Vcpu, fields(rest)?),
        "bench" => Line::Row(Table::Bench, fields(rest)?),
        "seen" => Line::Row(Table::Seen, fields(rest)?),
        "task" => Line::Row(Table::Task, fields(rest)?),
        "verdict" => Line::Verdict(match rest.split_once(':') {
            None if rest == "ok" => Ok(()),
            Some(("failed", why)) => Err(why.trim().to_owned()),
            _ => return None,
        }),
        "fatal" => Line::Verdict(Err(rest.to_owned())),
        "tests" => Line::Tests(rest.parse().ok()?),
        "test" => {
            let (name, event) = rest.split_once(' ')?;
            Line::Test(name, parse_event(event.trim())?)
        }
        "pc" => {
            let (space, address) = rest.split_once(' ')?;
            let space = match space {
                "hyp" => Space::Hyp,
                "host" => Space::Host,
                "guest" => Space::Guest,
                _ => return None,
            };
            let digits = address.trim().strip_prefix("0x")?;
            Line::Pc(space, u64::from_str_radix(digits, 16).ok()?)
        }
        _ => return None,
    })
}

fn parse_event(event: &str) -> Option<Event> {
    Some(match event.split_once(':') {
        None => match event {
            "listed" => Event::Listed,
            "begin" => Event::Begin,
            "ok" => Event::Ok,
            _ => return None,
        },
        Some(("failed", why)) => Event::Failed(why.trim().to_owned()),
        Some(("skipped", why)) => Event::Skipped(why.trim().to_owned()),
        Some(_) => return None,
    })
}

/// `key=value` words. A value has no blanks; a word without `=` makes the line no row.
fn fields(text: &str) -> Option<Fields> {
    text.split_whitespace()
        .map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_read() {
        let pairs = |pairs: &[(&str, &str)]| -> Fields {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        assert_eq!(parse("@progress 3 10"), Line::Progress(3, 10));
        assert_eq!(
            parse("@cpu cpu=0 vls=16,32"),
            Line::Row(Table::Cpu, pairs(&[("cpu", "0"), ("vls", "16,32")]))
        );
        assert_eq!(parse("@vcpu vm=1"), Line::Row(Table::Vcpu, pairs(&[("vm", "1")])));
        assert_eq!(
            parse("@bench name=no-fp instructions=600.5"),
            Line::Row(Table::Bench, pairs(&[("name", "no-fp"), ("instructions", "600.5")]))
        );
        assert_eq!(
            parse("@seen what=CPUs is=0-3"),
            Line::Row(Table::Seen, pairs(&[("what", "CPUs"), ("is", "0-3")]))
        );
        assert_eq!(
            parse("@offers what=FPMR is=yes"),
            Line::Row(Table::Offers, pairs(&[("what", "FPMR"), ("is", "yes")]))
        );
        let covered = [("master", "/pcie@10000000"), ("is", "covered by /smmuv3@9050000")];
        assert_eq!(
            parse("umbra: master /pcie@10000000: covered by /smmuv3@9050000"),
            Line::Row(Table::Master, pairs(&covered))
        );
        assert_eq!(parse("@task cpu=1"), Line::Row(Table::Task, pairs(&[("cpu", "1")])));
        assert_eq!(parse("@verdict ok"), Line::Verdict(Ok(())));
        assert_eq!(
            parse("@verdict failed: vCPU 3: Z7 differs"),
            Line::Verdict(Err("vCPU 3: Z7 differs".to_owned()))
        );
        assert_eq!(
            parse("@fatal cpu 0 stack overflow: FAR 0x10"),
            Line::Verdict(Err("cpu 0 stack overflow: FAR 0x10".to_owned()))
        );
        assert_eq!(parse("@tests 40"), Line::Tests(40));
        assert_eq!(parse("@test a::b listed"), Line::Test("a::b", Event::Listed));
        assert_eq!(parse("@test a begin"), Line::Test("a", Event::Begin));
        assert_eq!(parse("@test a ok"), Line::Test("a", Event::Ok));
        assert_eq!(
            parse("@test a failed: 1 != 2"),
            Line::Test("a", Event::Failed("1 != 2".to_owned()))
        );
        assert_eq!(
            parse("@test a skipped: no SVE"),
            Line::Test("a", Event::Skipped("no SVE".to_owned()))
        );
        assert_eq!(
            parse("@pc hyp 0x4020_0000".replace('_', "").as_str()),
            Line::Pc(Space::Hyp, 0x4020_0000)
        );
    }

    #[test]
    fn what_is_not_quite_a_command_stays_text() {
        for line in [
            "",
            "@",
            "plain",
            " @verdict ok",
            "@verdict",
            "@verdict okay",
            "@verdict ok: yes",
            "@verdict o@progress 1 2",
            "@progress 1",
            "@progress one two",
            "@cpu cpu",
            "@test a maybe",
            "@test a",
            "@pc el3 0x10",
            "@pc hyp 10",
            "@unknown x",
        ] {
            assert_eq!(parse(line), Line::Text(line), "{line}");
        }
    }
}
