//! What a guest sees of its machine: a row for each thing, to be compared with what it sees on another hypervisor.

use core::arch::asm;

use crate::fail;
use crate::say::{self, Text};
use crate::seen;
use crate::start::Start;

macro_rules! id_registers {
    ($($name:literal $register:literal),*) => {
        /// ID registers as Linux shows them to programs (Documentation/arm64/cpu-feature-registers.rst).
        fn id_registers() {
            $({
                let value: u64;
                // SAFETY: Linux emulates it at EL0.
                unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack)) };
                say::line(format_args!("@seen what={} is={value:#x}", $name));
            })*
        }
    };
}

id_registers! {
    "ID_AA64PFR0_EL1" "s3_0_c0_c4_0", "ID_AA64PFR1_EL1" "s3_0_c0_c4_1",
    "ID_AA64ZFR0_EL1" "s3_0_c0_c4_4", "ID_AA64SMFR0_EL1" "s3_0_c0_c4_5",
    "ID_AA64ISAR0_EL1" "s3_0_c0_c6_0", "ID_AA64ISAR1_EL1" "s3_0_c0_c6_1",
    "ID_AA64ISAR2_EL1" "s3_0_c0_c6_2", "ID_AA64MMFR0_EL1" "s3_0_c0_c7_0",
    "ID_AA64MMFR1_EL1" "s3_0_c0_c7_1", "ID_AA64MMFR2_EL1" "s3_0_c0_c7_2",
    "MIDR_EL1" "s3_0_c0_c0_0", "REVIDR_EL1" "s3_0_c0_c0_6",
    "CTR_EL0" "ctr_el0", "DCZID_EL0" "dczid_el0", "CNTFRQ_EL0" "cntfrq_el0"
}

/// Lines of the kernel's log that begin so, behind its time.
const LOG: [(&str, &str); 4] = [
    ("PSCI", "psci: PSCIv"),
    ("SMCCC", "psci: SMC Calling Convention"),
    ("SPIs", "GICv3: "),
    ("exception-level", "CPU: All CPU(s) started at"),
];

/// All of it.
pub fn run(start: &Start) -> Result<(), Text> {
    seen::release();
    seen::file_row("CPUs", c"/sys/devices/system/cpu/online")?;
    seen::file_row("clock", c"/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    seen::lengths(start)?;
    let [hwcap, hwcap2] = start.capabilities();
    say::line(format_args!("@seen what=HWCAP is={hwcap:#x}"));
    say::line(format_args!("@seen what=HWCAP2 is={hwcap2:#x}"));
    id_registers();
    for (what, begin) in LOG {
        seen::with_log(|log| {
            match log.lines().find_map(|line| line.split_once(begin)) {
                Some((_, rest)) => say::line(format_args!("@seen what={what} is={}", words(rest))),
                None => fail!("the kernel's log doesn't say {begin:?}"),
            }
            Ok(())
        })?;
    }
    memory()
}

/// Where memory is. Not how much of it is free: where Linux puts itself is random, and how many tables that takes with it.
fn memory() -> Result<(), Text> {
    seen::with_file(c"/proc/iomem", |text| {
        let mut banks = Text::new();
        for line in text.lines().filter(|line| line.ends_with(" : System RAM")) {
            let comma = if banks.is_empty() { "" } else { "," };
            let (range, _) = line.split_once(' ').unwrap_or((line, ""));
            banks = say::text(format_args!("{banks}{comma}{range}"));
        }
        if banks.is_empty() {
            fail!("/proc/iomem has no memory");
        }
        seen::row("memory", &banks);
        Ok(())
    })
}

/// A row's value has no spaces.
fn words(text: &str) -> Text {
    let mut out = Text::new();
    for word in text.split_whitespace() {
        let dash = if out.is_empty() { "" } else { "-" };
        out = say::text(format_args!("{out}{dash}{word}"));
    }
    out
}
