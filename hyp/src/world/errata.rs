//! Errata of cores that hyp must know of: which cores, and what is done.
//!
//! A world switch or a page that changes hands counts on what the architecture says of TLB maintenance and of
//! system registers. Where a core doesn't keep to it, somebody else's memory is at stake, so this is not left to
//! the host. Decided for each CPU when it comes up, by MIDR_EL1; what one CPU has counts for the machine.
//!
//! | what | cores | done |
//! |---|---|---|
//! | a store may outlive a broadcast TLBI and the DSB behind it | errata 1286807, 2441007, 2441009, 4118414 and its kin (CVE-2025-10263), Qualcomm 1009 | both again, on all CPUs (`memory::stage2`) |
//! | accesses in streaming mode and of ZA may outlive them | C1-Pro up to r1p2, 4193714 (CVE-2026-0995) | EL3 waits for them, or nobody has SME |
//! | an AT executed speculatively finds half of each world | Cortex-A55, -A57, -A72, -A76 (1530923, 1319537, 1319367, 1165522) | hyp's image has no AT (`cargo xtask check`) |
//! | a read of PAR_EL1 beside a device load and a store-exclusive hangs the CPU | Cortex-A77 up to r1p0, 1508412 | no guest runs there: one could hang the host, whatever hyp does |
//!
//! Sources: Linux, arch/arm64/kernel/cpu_errata.c and Documentation/arch/arm64/silicon-errata.rst; TF-A's advisories
//! TFV-16 and TFV-17.

#![forbid(unsafe_code)]

use super::midr::Midr;
use umbra_shared::flag_set;

flag_set! {
    /// What is to be done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Workarounds: u32 {
        /// Broadcast TLB maintenance is done twice.
        const REPEAT_TLBI = 1 << 0;
        /// EL3 waits for SME's accesses behind TLB maintenance.
        const SME_SYNC = 1 << 1;
        /// No AT in hyp.
        const NO_AT = 1 << 2;
        /// No guest runs on this CPU.
        const NO_GUESTS = 1 << 3;
    }
}

/// The function by which EL3 has every C1-Pro finish its accesses in streaming mode (TF-A, "CPU Monitor Service
/// Calls": SMC32, 0x8100_0010).
pub const SME_SYNC_FUNCTION: u32 = 0x8100_0010;

/// An erratum, on one range of revisions of one core.
#[derive(Clone, Copy, Debug)]
pub struct Erratum {
    /// The core, in words.
    pub core: &'static str,
    implementer: u8,
    part: u16,
    first: u8,
    last: u8,
    /// The implementer's number for it.
    pub number: &'static str,
    /// What is done.
    pub workarounds: Workarounds,
}

impl Erratum {
    const fn has(&self, midr: Midr) -> bool {
        midr.implementer() == self.implementer
            && midr.part() == self.part
            && self.first <= midr.revision()
            && midr.revision() <= self.last
    }
}

/// Of a core of Arm's.
const fn arm(
    core: &'static str,
    part: u16,
    (first, last): (u8, u8),
    number: &'static str,
    workarounds: Workarounds,
) -> Erratum {
    Erratum { core, implementer: Midr::ARM, part, first, last, number, workarounds }
}

const ALL_REVISIONS: (u8, u8) = (0, 0xff);
const TWICE: Workarounds = Workarounds::REPEAT_TLBI;

/// All of them. Revisions are as in [`Midr::revision`].
pub const ERRATA: &[Erratum] = &[
    arm("Cortex-A55", 0xd05, ALL_REVISIONS, "2441007", TWICE),
    arm("Cortex-A510", 0xd46, (0, 0x11), "2441009", TWICE),
    arm("Cortex-A76", 0xd0b, (0, 0x30), "1286807", TWICE),
    arm("Cortex-A76", 0xd0b, ALL_REVISIONS, "4193800", TWICE),
    arm("Cortex-A76AE", 0xd0e, ALL_REVISIONS, "4193801", TWICE),
    arm("Cortex-A77", 0xd0d, ALL_REVISIONS, "4193798", TWICE),
    arm("Cortex-A78", 0xd41, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-A78AE", 0xd42, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-A78C", 0xd4b, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-A710", 0xd47, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-X1", 0xd44, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-X1C", 0xd4c, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-X2", 0xd48, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-X3", 0xd4e, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-X4", 0xd82, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Cortex-X925", 0xd85, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("C1-Ultra", 0xd8c, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("C1-Premium", 0xd90, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Neoverse N1", 0xd0c, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Neoverse N2", 0xd49, ALL_REVISIONS, "4193789", TWICE),
    arm("Neoverse V1", 0xd40, ALL_REVISIONS, "4118414's kin", TWICE),
    arm("Neoverse V2", 0xd4f, ALL_REVISIONS, "4193787", TWICE),
    arm("Neoverse V3", 0xd84, ALL_REVISIONS, "4193784", TWICE),
    arm("Neoverse V3AE", 0xd83, ALL_REVISIONS, "4193784", TWICE),
    Erratum {
        implementer: Midr::MICROSOFT,
        ..arm("Azure Cobalt 100", 0xd49, ALL_REVISIONS, "4193789", TWICE)
    },
    Erratum {
        implementer: Midr::NVIDIA,
        ..arm("Olympus", 0x010, ALL_REVISIONS, "T410-OLY-1029", TWICE)
    },
    Erratum { implementer: Midr::QUALCOMM, ..arm("Falkor v1", 0x800, (0, 0), "1009", TWICE) },
    Erratum {
        implementer: Midr::QUALCOMM,
        ..arm("Kryo 4xx Gold", 0x804, (0xce, 0xfe), "1286807", TWICE)
    },
    arm("C1-Pro", 0xd8b, (0, 0x12), "4193714", Workarounds::SME_SYNC),
    arm("Cortex-A55", 0xd05, (0, 0x20), "1530923", Workarounds::NO_AT),
    arm("Cortex-A57", 0xd07, ALL_REVISIONS, "1319537", Workarounds::NO_AT),
    arm("Cortex-A72", 0xd08, ALL_REVISIONS, "1319367", Workarounds::NO_AT),
    arm("Cortex-A76", 0xd0b, (0, 0x20), "1165522", Workarounds::NO_AT),
    Erratum {
        implementer: Midr::QUALCOMM,
        ..arm("Kryo 4xx Silver", 0x805, (0xde, 0xde), "1530923", Workarounds::NO_AT)
    },
    arm("Cortex-A77", 0xd0d, (0, 0x10), "1508412", Workarounds::NO_GUESTS),
];

/// Those that a core has, by their place in [`ERRATA`].
pub fn of(midr: Midr) -> impl Iterator<Item = (usize, &'static Erratum)> {
    ERRATA.iter().enumerate().filter(move |(_, erratum)| erratum.has(midr))
}

/// What is to be done on a core.
pub fn workarounds(midr: Midr) -> Workarounds {
    of(midr).fold(Workarounds::empty(), |all, (_, erratum)| all | erratum.workarounds)
}

/// Whether a CPU may use SME, where firmware answered the call with this: an error is negative.
pub const fn may_use_sme(workarounds: Workarounds, answer: i32) -> bool {
    !workarounds.contains(Workarounds::SME_SYNC) || answer >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn midr(implementer: u64, part: u64, variant: u64, revision: u64) -> Midr {
        Midr::new(implementer << 24 | variant << 20 | 0xf << 16 | part << 4 | revision)
    }

    /// Who needs what, at both ends of each range and beyond (r42, r43).
    #[test]
    fn r42_r43_cores_and_revisions() {
        let none = Workarounds::empty();
        let (twice, no_at) = (Workarounds::REPEAT_TLBI, Workarounds::NO_AT);
        for (implementer, part, variant, revision, expected) in [
            (0x41, 0xd03, 0, 4, none),
            (0x41, 0xd05, 0, 0, twice | no_at),
            (0x41, 0xd05, 2, 0, twice | no_at),
            (0x41, 0xd05, 2, 1, twice),
            (0x41, 0xd07, 1, 2, no_at),
            (0x41, 0xd08, 0, 3, no_at),
            (0x41, 0xd09, 0, 0, none),
            (0x41, 0xd0a, 3, 1, none),
            (0x41, 0xd0b, 2, 0, twice | no_at),
            (0x41, 0xd0b, 2, 1, twice),
            (0x41, 0xd0b, 4, 1, twice),
            (0x41, 0xd0c, 4, 1, twice),
            (0x41, 0xd0d, 0, 0, twice | Workarounds::NO_GUESTS),
            (0x41, 0xd0d, 1, 0, twice | Workarounds::NO_GUESTS),
            (0x41, 0xd0d, 1, 1, twice),
            (0x41, 0xd46, 1, 1, twice),
            (0x41, 0xd46, 1, 2, none),
            (0x41, 0xd49, 0, 3, twice),
            (0x6d, 0xd49, 0, 0, twice),
            (0x41, 0xd8b, 0, 0, Workarounds::SME_SYNC),
            (0x41, 0xd8b, 1, 2, Workarounds::SME_SYNC),
            (0x41, 0xd8b, 1, 3, none),
            (0x41, 0xd8c, 1, 0, twice),
            (0x41, 0xd90, 0, 1, twice),
            (0x4e, 0x010, 0, 0, twice),
            (0x4e, 0x004, 0, 0, none),
            (0x51, 0x800, 0, 0, twice),
            (0x51, 0x800, 1, 0, none),
            (0x51, 0x804, 0xc, 0xd, none),
            (0x51, 0x804, 0xc, 0xe, twice),
            (0x51, 0x804, 0xf, 0xe, twice),
            (0x51, 0x804, 0xf, 0xf, none),
            (0x51, 0x805, 0xd, 0xe, no_at),
            // QEMU's own, and somebody else's with the same part number.
            (0x00, 0x051, 0, 0, none),
            (0x42, 0xd0b, 0, 0, none),
            (0x46, 0x001, 1, 0, none),
        ] {
            let core = midr(implementer, part, variant, revision);
            assert_eq!(workarounds(core), expected, "{core:x?}");
        }
    }

    /// The list of CVE-2025-10263 (TF-A's TFV-17), whole: all revisions of each.
    #[test]
    fn r43_every_core_of_the_advisory() {
        for part in [
            0xd0b, 0xd0e, 0xd0d, 0xd44, 0xd4c, 0xd41, 0xd4b, 0xd42, 0xd47, 0xd48, 0xd4e, 0xd82,
            0xd85, 0xd0c, 0xd49, 0xd40, 0xd4f, 0xd84, 0xd83, 0xd8c, 0xd90,
        ] {
            for revision in 0..=0xff {
                let core = midr(0x41, part, revision >> 4, revision & 0xf);
                assert!(workarounds(core).contains(Workarounds::REPEAT_TLBI), "{core:x?}");
            }
        }
    }

    #[test]
    fn r42_sme_needs_firmware_that_waits() {
        let (sync, other) = (Workarounds::SME_SYNC, Workarounds::REPEAT_TLBI);
        assert!(may_use_sme(sync, 0) && may_use_sme(sync, 1));
        assert!(!may_use_sme(sync, -1) && !may_use_sme(sync, i32::MIN));
        assert!(may_use_sme(other, -1) && may_use_sme(Workarounds::empty(), -1));
    }

    #[test]
    fn every_erratum_can_be_told_apart() {
        assert!(ERRATA.len() <= 64, "a bit for each of those that were told of");
        for (n, erratum) in ERRATA.iter().enumerate() {
            assert!(erratum.first <= erratum.last && !erratum.workarounds.is_empty());
            let same =
                |other: &&Erratum| (other.core, other.number) == (erratum.core, erratum.number);
            assert_eq!(ERRATA.iter().position(|other| same(&other)), Some(n), "{}", erratum.core);
        }
    }
}
