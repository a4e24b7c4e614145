//! Whose interrupts came, on which CPU, and whether they are messages: a row for each device.

use super::MAX_CPUS;
use crate::fail;
use crate::say::{self, Text};
use crate::seen::{row, with_interrupts};

/// Whether a name is a device's.
type IsIts = fn(&str) -> bool;

/// Rows, and what of `/proc/interrupts` is theirs: by messages each queue has a name of its own.
const DEVICES: [(&str, IsIts); 3] = [
    ("interrupts-of-vda", |name| name.contains("-req.")),
    ("interrupts-of-nvme0n1", |name| name.starts_with("nvme0q") && !name.ends_with("q0")),
    ("interrupts-of-network", |name| name.contains("-input.") || name.contains("-output.")),
];
/// The same without messages: the line is the device's.
const LINES: [IsIts; 3] = [
    |name| name.starts_with("virtio"),
    |name| name.starts_with("nvme0q"),
    |name| name.starts_with("virtio"),
];

/// What came.
struct Counts {
    messages: bool,
    per_cpu: [u64; MAX_CPUS],
}

/// What `/proc/interrupts` has for names that `is_its` knows; only messages, or only lines.
fn counts(text: &str, cpus: u32, messages: bool, is_its: IsIts) -> Option<Counts> {
    let mut per_cpu = [0; MAX_CPUS];
    let mut found = false;
    for line in text.lines().filter(|line| line.contains("MSI") == messages) {
        let mut words = line.split_whitespace();
        // A number, and a colon.
        let first = words.next().unwrap_or_default();
        if !first.trim_end_matches(':').bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // Several devices may share a line.
        if !line.split([' ', ',']).any(is_its) {
            continue;
        }
        found = true;
        for (sum, word) in per_cpu[..cpus as usize].iter_mut().zip(words) {
            *sum += word.parse().unwrap_or(0);
        }
    }
    found.then_some(Counts { messages, per_cpu })
}

/// A row for each device: `MSI:` or `line:`, and how many on each CPU.
pub fn show(cpus: u32) -> Result<(), Text> {
    with_interrupts(|text| {
        for ((what, by_message), by_line) in DEVICES.into_iter().zip(LINES) {
            let found = counts(text, cpus, true, by_message);
            let Some(found) = found.or_else(|| counts(text, cpus, false, by_line)) else {
                fail!("{what}: there are none");
            };
            let mut list =
                say::text(format_args!("{}", if found.messages { "MSI:" } else { "line:" }));
            for (n, count) in found.per_cpu[..cpus as usize].iter().enumerate() {
                let comma = if n == 0 { "" } else { "," };
                list.push_str(&say::text(format_args!("{comma}{count}")));
            }
            row(what, &list);
        }
        Ok(())
    })
}
