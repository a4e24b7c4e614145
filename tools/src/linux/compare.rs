//! A Linux above Umbra beside one that has no hypervisor.

use anyhow::{Result, ensure};

use super::{Options, Programs, Task, command_line};
use crate::console::{Fields, Space, Table};
use crate::kernel::Kernel;
use crate::qemu::{Machine, Qemu, Smmu};
use crate::report::{Columns, Report, table, value};
use crate::symbols::Symbols;
use crate::watch::{Request, watch};

const COST_COLUMNS: &Columns = &[
    ("name", "instructions per"),
    ("direct", "at EL1 alone"),
    ("umbra", "above Umbra"),
    ("ratio", "ratio"),
];

/// What Umbra costs a Linux: the same kernel and program, above Umbra and started by QEMU at EL1 on a
/// machine without EL2, instructions counted, one CPU.
pub fn compare(
    qemu: &Qemu,
    request: &Request,
    programs: &Programs,
    kernel: &Kernel,
    options: &Options,
) -> Result<bool> {
    let with_vms = matches!(options.task, Task::VirtualMachines(_));
    ensure!(
        !with_vms,
        "--icount compares what a Linux without Umbra can do, too: no virtual machines"
    );
    ensure!(request.firmware.is_none(), "--icount compares with a machine without firmware");
    let machine = options.equip(Machine { smp: 1, ..request.machine.clone() });
    let mut arguments = "bench".to_owned();
    if let Task::Devices(content) = &options.task {
        arguments = format!("bench devices {}", content.words());
    }
    let extra = &request.command_line;
    let symbols = || Symbols::new([(Space::Hyp, programs.hyp.clone())]);

    eprintln!("{} above Umbra, one CPU, counting instructions", kernel.name);
    // What is compared is Linux's boot, not a wipe before it.
    let words = format!("umbra.stats umbra.boot-wipe=off {extra}");
    let image = programs.pack_with(
        kernel,
        &options.task,
        &command_line(words.trim_end(), &arguments),
        "linux-bench",
    )?;
    let above = watch(qemu, &image, symbols(), &machine, request)?;

    eprintln!("{} at EL1 without Umbra, one CPU, counting instructions", kernel.name);
    let words = command_line(extra, &arguments);
    let direct = programs.direct(kernel, &options.task, false, words, "linux-bench")?;
    // Without an SMMU: one that Linux has for itself costs it more than hyp's, which it doesn't see.
    let machine = Machine { direct: Some(direct), smmu: Smmu::None, ..machine };
    let alone = watch(qemu, &kernel.image, symbols(), &machine, request)?;

    let costs = costs(&above.report, &alone.report);
    let mut failure = above.failure.or(alone.failure);
    if costs.is_empty() {
        failure.get_or_insert_with(|| "nothing was measured".to_owned());
    }
    println!("{}", table(COST_COLUMNS, &costs.iter().collect::<Vec<_>>()));
    println!("{}", above.report.without(Table::Bench).render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}

/// The measurements that both made, side by side.
fn costs(above: &Report, alone: &Report) -> Vec<Fields> {
    let find = |report: &Report, name: &str| {
        let row = report.rows(Table::Bench).find(|row| value(row, "name") == Some(name))?;
        value(row, "instructions")?.parse::<f64>().ok()
    };
    above
        .rows(Table::Bench)
        .filter_map(|row| {
            let name = value(row, "name")?;
            let (with, without) = (find(above, name)?, find(alone, name)?);
            let ratio = (without > 0.0).then(|| format!("{:.4}", with / without))?;
            Some(vec![
                ("name".to_owned(), name.to_owned()),
                ("direct".to_owned(), without.to_string()),
                ("umbra".to_owned(), with.to_string()),
                ("ratio".to_owned(), ratio),
            ])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn costs_stand_side_by_side() {
        let above = report(&["@bench name=a instructions=110.0", "@bench name=b instructions=5"]);
        let alone = report(&["@bench name=a instructions=100.0"]);
        let costs = costs(&above, &alone);
        assert_eq!(costs.len(), 1);
        assert_eq!(value(&costs[0], "ratio"), Some("1.1000"));
    }
}
