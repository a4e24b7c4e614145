//! What guests see on Umbra beside what they see on Linux's own KVM: the same kernel, the same monitor, the same guests, on
//! the same board with EL2, once with Umbra there and once with Linux.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Options, Programs, UNHURRIED, command_line};
use crate::console::{Fields, Line, Table, parse};
use crate::kernel::Kernel;
use crate::qemu::Direct;
use crate::report::{Columns, value};

/// What QEMU gives a Linux that has EL2 for itself, and runs the same guests.
pub fn direct(
    programs: &Programs,
    kernel: &Kernel,
    options: &Options,
    cpus: u32,
    name: &str,
) -> Result<Direct> {
    let words = command_line(UNHURRIED, &format!("el2 cpus={cpus} vm scenarios"));
    programs.direct(kernel, &options.task, true, words, name)
}

/// What guests said: by guest and row.
pub type Said = BTreeMap<(String, String), String>;

/// Rows that may differ, and why.
const MAY_DIFFER: &[(&str, &str)] = &[
    ("SMCCC", "hyp has 1.2, which it can say of itself; KVM of Linux 6.1 says 1.1"),
    ("PSCI", "hyp has 1.1, as KVM of Linux 6.1; that of later ones has more"),
];

/// Guests that there must be.
pub const GUESTS: [&str; 6] =
    ["devices", "without-sve", "short-vectors", "eight-vcpus", "debian", "controlled"];

const COLUMNS: &Columns =
    &[("guest", "guest"), ("what", "sees"), ("umbra", "on Umbra"), ("kvm", "on Linux's KVM")];

/// Takes what guests said out of a console: lines that begin with a guest's name.
pub fn said(console: &[String]) -> Said {
    let mut said = Said::new();
    for line in console {
        let Some((guest, rest)) = line.split_once(": ") else { continue };
        if !GUESTS.contains(&guest) {
            continue;
        }
        let mut put = |what: &str, is: &str| {
            said.insert((guest.to_owned(), what.to_owned()), is.to_owned());
        };
        match parse(rest) {
            Line::Row(Table::Seen, fields) => {
                let field = |key| value(&fields, key).unwrap_or("?");
                put(field("what"), field("is"));
            }
            _ => {
                if let Some(status) = rest.strip_prefix("@ended ") {
                    put("exit-status", status);
                } else if let Some((what, is)) =
                    rest.strip_prefix("@guest ").and_then(|rest| rest.split_once(' '))
                {
                    put(what, is);
                }
            }
        }
    }
    said
}

/// A table of what both said, differences first, and what is wrong with it, if anything is.
pub fn compare(umbra: &Said, kvm: &Said) -> (String, Option<String>) {
    let keys: std::collections::BTreeSet<_> = umbra.keys().chain(kvm.keys()).collect();
    let cell = |said: &Said, key: &(String, String)| -> String {
        said.get(key).map_or("-", String::as_str).to_owned()
    };
    let row = |key: &&(String, String)| -> Fields {
        vec![
            ("guest".to_owned(), key.0.clone()),
            ("what".to_owned(), key.1.clone()),
            ("umbra".to_owned(), cell(umbra, key)),
            ("kvm".to_owned(), cell(kvm, key)),
        ]
    };
    let (same, other): (Vec<_>, Vec<_>) =
        keys.into_iter().partition(|key| umbra.get(*key) == kvm.get(*key));
    let rows: Vec<_> = other.iter().chain(&same).map(row).collect();
    let mut text = crate::report::table(COLUMNS, &rows.iter().collect::<Vec<_>>());
    text += &format!("{} rows alike, {} not\n", same.len(), other.len());
    let known = |what: &str| MAY_DIFFER.iter().any(|(known, _)| *known == what);
    let unknown = other.iter().find(|(_, what)| !known(what));
    let missing = GUESTS.iter().find(|guest| {
        let key = ((**guest).to_owned(), "exit-status".to_owned());
        !umbra.contains_key(&key) || !kvm.contains_key(&key)
    });
    let wrong = match (missing, unknown) {
        (Some(guest), _) => Some(format!("the guest {guest} did not come to its end on both")),
        (_, Some((guest, what))) => {
            Some(format!("the guest {guest} sees another {what} than on Linux's KVM"))
        }
        (None, None) => None,
    };
    (text, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(guest: &str, rows: &[&str]) -> Vec<String> {
        let all = GUESTS.iter().map(|guest| format!("{guest}: @ended 0"));
        all.chain(rows.iter().map(|row| format!("{guest}: {row}"))).collect()
    }

    #[test]
    fn what_guests_say_is_held_side_by_side() {
        let rows =
            ["@seen what=VLs is=16,32", "[  0.1] anything", "@guest uname Linux 6.1 aarch64"];
        let umbra = said(&console("devices", &rows));
        let key = |what: &str| ("devices".to_owned(), what.to_owned());
        assert_eq!(umbra[&key("VLs")], "16,32");
        assert_eq!(umbra[&key("uname")], "Linux 6.1 aarch64");
        assert_eq!(umbra.len(), GUESTS.len() + 2);
        assert_eq!(compare(&umbra, &umbra).1, None);
        let kvm = said(&console("devices", &["@seen what=VLs is=16", rows[2]]));
        let (text, wrong) = compare(&umbra, &kvm);
        assert!(wrong.unwrap().contains("another VLs"));
        assert!(text.contains("7 rows alike, 1 not"), "{text}");
        // One that is missing on one side differs; one that came to no end is named first.
        assert!(compare(&umbra, &said(&console("devices", &rows[..1]))).1.is_some());
        let mut ended = umbra.clone();
        ended.remove(&("debian".to_owned(), "exit-status".to_owned()));
        assert!(compare(&umbra, &ended).1.unwrap().contains("debian"));
    }

    #[test]
    fn lines_of_the_hosts_are_none_of_a_guests() {
        assert!(said(&["@seen what=VLs is=16".to_owned(), "x: @ended 0".to_owned()]).is_empty());
    }
}
