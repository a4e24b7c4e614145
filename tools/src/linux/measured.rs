//! What protected guests are measured by, as they read it themselves, beside what follows from their files alone.
//!
//! Files are the guest's kernel and its initrd, as `xtask` has them, and arguments those of [`umbra_patterns::realm`]; vector length and
//! bits of address are the machine's to decide, and its monitor says in its report what they are. Nothing else is taken from there.

use std::ffi::{CStr, OsString};
use std::path::Path;

use anyhow::Result;
use umbra_patterns::realm::{BESIDE, DEBIAN, Guest};

use super::{Guests, Programs, guest_initrd, vms};
use crate::console::{Fields, Line, Table, parse};
use crate::report::{Columns, table, value};
use crate::vmm;

/// What came of it.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Both, side by side.
    pub table: String,
    /// Why guests can't say what they are measured by, if they can't: nothing is compared then.
    pub left_out: Option<String>,
    /// What is wrong, if anything is.
    pub wrong: Option<String>,
}

const COLUMNS: &Columns = &[("guest", "guest"), ("read", "read"), ("computed", "computed")];

/// Compares, for guests that are protected, if all of them came to their end. `name` is the image's that they were in.
///
/// # Errors
///
/// It can't be computed.
pub fn compare(
    programs: &Programs,
    guests: Guests,
    name: &str,
    console: &[String],
) -> Result<Option<Comparison>> {
    let (Guests::Protected { beside, .. }, Some(module)) = (guests, &programs.realm) else {
        return Ok(None);
    };
    if let Err(why) = module {
        let left_out = Some(format!("no guest says what it is measured by: {why}"));
        return Ok(Some(Comparison { left_out, ..Comparison::default() }));
    }
    let kernel = guests.kernel()?.map(|kernel| kernel.image).unwrap_or_default();
    let initrd = guest_initrd(name);
    let guests = [DEBIAN, BESIDE];
    let guests = &guests[..if beside { 2 } else { 1 }];
    let said = said(console);
    let computed = guests.iter().zip(&said);
    let computed =
        computed.map(|(guest, said)| vmm::measure(arguments(guest, said, &kernel, &initrd)));
    let computed = computed.collect::<Result<Vec<_>>>()?;
    Ok(Some(judge(guests.len(), &said, &computed)))
}

/// What a guest has said of itself, and its monitor at its end.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    rim: String,
    address_bits: u64,
    sve: u64,
}

/// Of all that came to their end, in that order.
fn said(console: &[String]) -> Vec<Said> {
    let (mut all, mut rim) = (Vec::new(), None);
    for line in console {
        let own = line.split_once(": ").filter(|(guest, _)| vms::PROTECTED.contains(guest));
        let Some((_, line)) = own else { continue };
        if let Line::Row(Table::Seen, fields) = parse(line)
            && value(&fields, "what") == Some("rim")
        {
            rim = value(&fields, "is").map(str::to_owned);
        }
        let report = serde_json::from_str::<serde_json::Value>(line).unwrap_or_default();
        let decided = |key| report["protected"][key].as_u64();
        if let (Some(address_bits), Some(sve)) = (decided("address_bits"), decided("sve")) {
            all.push(Said { rim: rim.take().unwrap_or_default(), address_bits, sve });
        }
    }
    all
}

/// What `umbra-vmm measure` is asked.
fn arguments(guest: &Guest, said: &Said, kernel: &Path, initrd: &Path) -> Vec<OsString> {
    let text = |text: &CStr| text.to_string_lossy().into_owned();
    let command_line: Vec<_> = guest.command_line.iter().map(|&part| text(part)).collect();
    let mut all: Vec<OsString> = guest.machine.iter().map(|&part| text(part).into()).collect();
    all.extend(["--kernel".into(), kernel.into(), "--initrd".into(), initrd.into()]);
    all.extend(["--cmdline".into(), command_line.join(" ").into()]);
    all.extend(["--address-bits".into(), said.address_bits.to_string().into()]);
    all.extend(["--sve".into(), said.sve.to_string().into()]);
    all
}

fn judge(guests: usize, said: &[Said], computed: &[String]) -> Comparison {
    let row = |(said, computed): (&Said, &String)| -> Fields {
        vec![
            ("guest".to_owned(), vms::PROTECTED[0].to_owned()),
            ("read".to_owned(), said.rim.clone()),
            ("computed".to_owned(), computed.clone()),
        ]
    };
    let rows: Vec<_> = said.iter().zip(computed).map(row).collect();
    let differ = said.iter().zip(computed).any(|(said, computed)| said.rim != *computed);
    let wrong = if said.len() < guests {
        Some(format!("{} of {guests} protected guests said what they are measured by", said.len()))
    } else if differ {
        Some("a protected guest is measured by something else than its files".to_owned())
    } else {
        None
    };
    let table = table(COLUMNS, &rows.iter().collect::<Vec<_>>());
    Comparison { table, left_out: None, wrong }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"protected: {"end":"off","protected":{"address_bits":40,"sve":256}}"#;

    fn console(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn it_is_the_guests_word_and_the_monitors() {
        let lines = [
            "@seen what=rim is=00",
            "protected: @seen what=rim is=ab",
            r#"debian: {"end":"off","protected":null}"#,
            REPORT,
            // This one comes to no end.
            "protected: @seen what=rim is=cd",
            "protected: @seen what=rim is=ef",
            REPORT,
            REPORT,
        ];
        let of = |rim: &str| Said { rim: rim.to_owned(), address_bits: 40, sve: 256 };
        assert_eq!(said(&console(&lines)), [of("ab"), of("ef"), of("")]);
    }

    #[test]
    fn what_differs_or_is_not_said_is_wrong() {
        let said = said(&console(&["protected: @seen what=rim is=ab", REPORT]));
        let judge = |guests, computed: &str| judge(guests, &said, &[computed.to_owned()]).wrong;
        assert_eq!(judge(1, "ab"), None);
        assert!(judge(1, "ac").unwrap().contains("something else"));
        assert!(judge(2, "ab").unwrap().contains("1 of 2"));
        assert!(super::judge(1, &[], &[]).wrong.is_some());
    }

    #[test]
    fn the_monitor_is_asked_for_the_same_guest() {
        let said = Said { rim: String::new(), address_bits: 40, sve: 256 };
        let all = arguments(&BESIDE, &said, Path::new("k"), Path::new("i"));
        let all: Vec<_> = all.iter().map(|word| word.to_str().unwrap()).collect();
        let line = "quiet panic=-1 rcupdate.rcu_cpu_stall_suppress=1 nowatchdog -- guest realm \
            ciphers cpus=2 times=8 processes=2";
        assert_eq!(
            all,
            [
                "--protected",
                "--memory",
                "256M",
                "--cpus",
                "2",
                "--kernel",
                "k",
                "--initrd",
                "i",
                "--cmdline",
                line,
                "--address-bits",
                "40",
                "--sve",
                "256"
            ]
        );
    }
}
