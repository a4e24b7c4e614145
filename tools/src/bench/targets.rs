//! What is aimed at, and whether it is reached.

use super::floor::{self, Features};
use super::row::{Fp, Hints, Policy, Row};
use umbra_shared::call::MASKED_INSTRUCTIONS;
use umbra_shared::measurement::MEASURED_INSTRUCTIONS;

/// An aim and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What.
    pub name: String,
    /// At most so many instructions.
    pub aim: f64,
    /// So many there are.
    pub measured: f64,
}

impl Target {
    /// Whether it is reached. Averages carry the counter's readings: a tenth of an instruction at most.
    pub fn is_met(&self) -> bool {
        self.measured <= self.aim + 0.5
    }
}

fn is(row: &Row, name: &str, guest: Fp, host: Fp) -> bool {
    row.name == name
        && row.policy.is_none_or(|policy| policy == Policy::Lazy)
        && row.vm.as_deref().is_none_or(|vm| vm == "normal")
        && row.hints.is_none_or(|hints| hints == Hints::None)
        && row.guest_fp.is_none_or(|fp| fp == guest)
        && row.host_fp.is_none_or(|fp| fp == host)
}

/// All targets, as far as the rows have something on them.
pub fn all(rows: &[Row], features: &Features) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |name: &str, aim: f64, measured: Option<f64>| {
        if let Some(measured) = measured {
            targets.push(Target { name: name.to_owned(), aim, measured });
        }
    };
    // The largest of what there is at the different vector lengths.
    let worst = |name: &str, guest: Fp, host: Fp, of: &dyn Fn(&Row) -> Option<f64>| {
        rows.iter().filter(|row| is(row, name, guest, host)).filter_map(of).reduce(f64::max)
    };
    let count = |row: &Row| Some(row.instructions);
    let exit = worst("exit_to_host", Fp::None, Fp::None, &count);
    let hyp = worst("exit_to_host", Fp::None, Fp::None, &|row| Some(row.traced?.worlds[0]));
    add("exit to the host and back", 700.0, exit);
    add("  of that, hyp", 450.0, hyp);
    for fp in [Fp::Fpsimd, Fp::Sve] {
        let with = worst("exit_to_host", fp, Fp::None, &count);
        let more = with.zip(exit).map(|(with, without)| with - without);
        add(&format!("  more if the guest uses {}", fp.name()), 10.0, more);
    }
    let trap = worst("el2_trap", Fp::None, Fp::None, &count);
    if let Some(trap) = trap {
        for guest in [Fp::Fpsimd, Fp::Sve] {
            let first = rows
                .iter()
                .filter(|row| is(row, "first_touch", guest, Fp::Sve))
                .max_by(|a, b| a.instructions.total_cmp(&b.instructions));
            if let Some(row) = first {
                let aim = 1.5 * f64::from(floor::first_touch_moves(row, features)) + trap;
                add(&format!("first touch of {}", guest.name()), aim, Some(row.instructions));
            }
        }
    }
    add("trap handled at EL2 alone", 110.0, trap);
    add("null hypercall", 90.0, worst("null_hypercall", Fp::None, Fp::None, &count));
    let page = |name: &str, vm: &str| {
        let of = |row: &&Row| row.name == name && row.vm.as_deref() == Some(vm);
        rows.iter().find(of).map(|row| row.instructions)
    };
    add("a page of 2 MiB, put in place for a normal VM", 60.0, page("map_range", "normal"));
    add("  for a protected VM, zeroed", 700.0, page("map_range", "protected"));
    add("  reclaimed of a protected VM", 700.0, page("reclaim_range", "protected"));
    let masked = rows.iter().filter(|row| row.name.starts_with("masked_"));
    let longest = masked.map(|row| row.instructions).reduce(f64::max);
    add("  before it is asked whether an interrupt waits", MASKED_INSTRUCTIONS as f64, longest);
    let measured = page("measured_vm_map", "protected");
    add("  measured, while a protected VM is built", MEASURED_INSTRUCTIONS as f64, measured);
    let calls = rows.iter().filter(|row| row.name == "build_512_mib");
    let calls = calls.map(|row| row.iterations as f64).reduce(f64::max);
    add("calls for a guest of 512 MiB", 300.0, calls);
    targets
}

/// Linux 7.2.13 on QEMU 10.0.2 (`-M virt,virtualization=on,gic-version=3,dtb-randomness=off -cpu max -smp 1
/// -icount shift=0,sleep=off`, `arm64.nomops`, vGICv3), measured from inside the guest: what the same
/// takes there. Compare with QEMU 10.0 only.
pub struct Linux {
    /// What.
    pub name: &'static str,
    /// KVM nVHE: in all, and EL2's part.
    pub kvm: Option<(u32, u32)>,
    /// pKVM, normal VM.
    pub pkvm: Option<(u32, u32)>,
    /// pKVM, protected VM.
    pub protected: Option<(u32, u32)>,
}

/// The rows of that table.
pub const LINUX: &[Linux] = &[
    Linux {
        name: "exit to the host (HVC), no FP",
        kvm: Some((2139, 1224)),
        pkvm: Some((3788, 2932)),
        protected: Some((3813, 2957)),
    },
    Linux {
        name: "the same, guest uses FPSIMD",
        kvm: Some((2190, 1242)),
        pkvm: Some((4243, 3386)),
        protected: Some((4269, 3412)),
    },
    Linux {
        name: "the same, guest uses SVE",
        kvm: Some((2217, 1269)),
        pkvm: Some((4380, 3523)),
        protected: None,
    },
    Linux { name: "trap handled at EL2 alone", kvm: None, pkvm: None, protected: Some((463, 460)) },
    Linux {
        name: "MMIO exit to user space",
        kvm: Some((7184, 1927)),
        pkvm: Some((9220, 4095)),
        protected: Some((9171, 4049)),
    },
];

/// The release that those figures are for.
pub const LINUX_QEMU: (u32, u32) = (10, 0);

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, guest: Fp, host: Fp, instructions: f64) -> Row {
        Row {
            name: name.to_owned(),
            policy: Some(Policy::Lazy),
            vm: Some("normal".to_owned()),
            hints: Some(Hints::None),
            vl_bytes: Some(64),
            guest_fp: Some(guest),
            host_fp: Some(host),
            instructions,
            ..Row::default()
        }
    }

    #[test]
    fn targets_are_those_of_the_worst_row() {
        let features = Features { sve: true, ..Features::default() };
        let rows = [
            row("exit_to_host", Fp::None, Fp::None, 690.0),
            row("exit_to_host", Fp::None, Fp::None, 701.0),
            row("exit_to_host", Fp::Sve, Fp::None, 708.0),
            row("exit_to_host", Fp::None, Fp::Sve, 9000.0),
            row("el2_trap", Fp::None, Fp::None, 100.0),
            row("first_touch", Fp::Sve, Fp::Sve, 290.0),
        ];
        let targets = all(&rows, &features);
        let find = |name: &str| targets.iter().find(|target| target.name.contains(name)).unwrap();
        assert!(!find("exit to the host").is_met());
        assert_eq!(find("uses sve").measured, 7.0);
        assert!(find("uses sve").is_met() && find("EL2 alone").is_met());
        // 10 + 2 * 56.
        assert_eq!(find("first touch").aim, 1.5 * 122.0 + 100.0);
        assert!(!find("first touch").is_met() || find("first touch").aim >= 290.0);
        assert!(targets.iter().all(|target| !target.name.contains("null")));
    }
}
