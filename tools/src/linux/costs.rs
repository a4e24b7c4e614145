//! What it costs to boot a guest: the same one, of one vCPU, as a protected and as a normal one above Umbra, and on Linux's own KVM;
//! instructions counted (`tests/linux/src/vm/costs.rs`), on the same QEMU and board, below the same host kernel.

use anyhow::{Result, ensure};

use super::{Guests, Options, Programs, Task, UNHURRIED, command_line, vms};
use crate::console::{Fields, Line, Table, parse};
use crate::kernel::Kernel;
use crate::qemu::{Machine, Qemu};
use crate::report::{Columns, table, value};
use crate::symbols::Symbols;
use crate::watch::{Request, Watched, watch};

const COLUMNS: &Columns = &[
    ("guest", "guest"),
    ("million", "million instructions"),
    ("ratio", "ratio"),
    ("before", "before its clock"),
    ("behind", "behind it"),
    ("behind_ratio", "ratio"),
];

/// Boots them and shows what they took; whether all went well.
pub fn compare(
    qemu: &Qemu,
    request: &Request,
    programs: &Programs,
    kernel: &Kernel,
    options: &Options,
) -> Result<bool> {
    ensure!(request.firmware.is_none(), "what boots cost is compared without firmware");
    const NAME: &str = "linux-costs";
    let machine = Machine { smp: 1, icount: true, ..request.machine.clone() };
    let machine = options.equip(machine);
    eprintln!("a guest above Umbra and {}, one CPU, counting instructions", kernel.name);
    let image = programs.pack(kernel, options, 1, &request.command_line, NAME)?;
    let symbols = Symbols::new([(crate::console::Space::Hyp, programs.hyp.clone())]);
    let Watched { report, console, failure } = watch(qemu, &image, symbols, &machine, request)?;
    let failure = failure.or_else(|| options.verify(&report, &console, 1).err());

    eprintln!("the same on {}'s own KVM", kernel.name);
    let words = command_line(UNHURRIED, "el2 cpus=1 vm costs");
    let task = Task::VirtualMachines(Guests::Costs);
    let direct = programs.direct(kernel, &task, true, words, NAME)?;
    let machine = Machine { direct: Some(direct), ..machine };
    let kvm = watch(qemu, &kernel.image, Symbols::default(), &machine, request)?;
    let failure = failure.or(kvm.failure);

    let all = [
        ("Linux's KVM", cost("normal", &kvm.console)),
        ("Umbra, normal", cost("normal", &console)),
        ("Umbra, protected", cost("protected", &console)),
    ];
    println!("to a guest's user space, on QEMU {}.{}:", qemu.version.0, qemu.version.1);
    println!("{}", costs(&all));
    println!("exits, to its end, above Umbra:\n{}", vms::exits(&console).unwrap_or_default());
    println!("and on Linux's KVM:\n{}", vms::exits(&kvm.console).unwrap_or_default());
    let missing = all.iter().find(|(_, cost)| cost.is_none());
    let failure =
        failure.or_else(|| missing.map(|(name, _)| format!("{name}: nothing was counted")));
    println!("{}", report.render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}

/// Instructions of a boot: all from the first KVM_RUN to user space, and those of them since the guest's clock has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    all: u64,
    behind: u64,
}

/// Of this guest, if it has come to its end: its own words, its host's, and its monitor's at its end. With one instruction to a
/// nanosecond.
fn cost(guest: &str, console: &[String]) -> Option<Cost> {
    let (mut user_space, mut reached, mut idle, mut began) = (None, None, None, None);
    for line in console {
        let Some((_, line)) = line.split_once(": ").filter(|(name, _)| *name == guest) else {
            continue;
        };
        if let Line::Row(Table::Seen, fields) = parse(line) {
            let number = || value(&fields, "is")?.parse::<u64>().ok();
            match value(&fields, "what") {
                Some("user-space") => user_space = number(),
                Some("reached") => reached = number(),
                Some("idle") => idle = number(),
                _ => {}
            }
        } else if let Ok(report) = serde_json::from_str::<serde_json::Value>(line) {
            began = report["began"].as_u64().filter(|&began| began != 0);
        }
    }
    let all = reached?.checked_sub(began?)?.checked_sub(idle?)?;
    // The CPU has nothing to do before it for no longer than that: what there was of it was the guest's.
    let behind = user_space?.checked_sub(idle?)?;
    Some(Cost { all, behind })
}

/// The first is what others are compared with.
fn costs(all: &[(&str, Option<Cost>)]) -> String {
    let first = all.first().and_then(|(_, cost)| *cost);
    let million = |count: u64| format!("{:.1}", count as f64 / 1e6);
    let row = |(name, cost): &(&str, Option<Cost>)| -> Option<Fields> {
        let cost = (*cost)?;
        let ratio = |of: fn(&Cost) -> u64| {
            let ratio = first.map(|first| of(&cost) as f64 / of(&first).max(1) as f64);
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"))
        };
        let fields = [
            ("guest", (*name).to_owned()),
            ("million", million(cost.all)),
            ("ratio", ratio(|cost| cost.all)),
            ("before", million(cost.all.saturating_sub(cost.behind))),
            ("behind", million(cost.behind)),
            ("behind_ratio", ratio(|cost| cost.behind)),
        ];
        Some(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let rows: Vec<_> = all.iter().filter_map(row).collect();
    table(COLUMNS, &rows.iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_from_the_first_run_to_user_space_without_idle_time() {
        let console =
            |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let lines = [
            "normal: @seen what=user-space is=500",
            r#"normal: {"began":1000,"end":"off"}"#,
            "normal: @seen what=reached is=1700",
            "normal: @seen what=idle is=50",
            "protected: @seen what=idle is=70",
        ];
        let of = Cost { all: 650, behind: 450 };
        assert_eq!(cost("normal", &console(&lines)), Some(of));
        assert_eq!(cost("protected", &console(&lines)), None);
        for without in 0..4 {
            let mut lines = lines.to_vec();
            lines.remove(without);
            assert_eq!(cost("normal", &console(&lines)), None, "{without}");
        }
        let text =
            costs(&[("a", Some(of)), ("b", Some(Cost { all: 1300, behind: 450 })), ("c", None)]);
        assert!(text.contains("2.000") && text.contains("1.000"), "{text}");
    }
}
