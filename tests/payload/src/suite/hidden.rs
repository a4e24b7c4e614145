//! What a guest must not find: registers that trap, and what the ID registers say of them.

use crate::{
    context::{context, need_sve},
    instruction::{self as insn, SysReg, reg, sysreg},
    puppet::{Event, Machine, Puppet},
    runner::Skip,
    tests,
};
use umbra_host::kernel::{exception, timer};
use umbra_patterns::regs::sme;

tests![
    hidden_registers_are_undefined,
    r41_implementation_defined_registers_are_undefined,
    streaming_priority_is_hidden_or_zero,
    debug_registers_read_as_zero,
    what_is_nothing_to_a_guest_reads_as_nothing,
    the_physical_counter_is_there,
    id_registers_hide_what_is_hidden,
    sve_shows_in_the_id_registers_of_those_who_have_it,
    mpidr_is_the_vcpus,
    undefined_has_the_right_syndrome,
    sme_is_undefined,
    r26_sve_without_sve_is_undefined,
    smc_is_not_supported,
];

/// Registers that the machine may have and a guest must not, by what hides them.
const HIDDEN: &[(&str, &[(&str, SysReg)])] = &[
    (
        "CNTHCTL_EL2.EL1PCEN",
        &[
            ("CNTP_CTL_EL0", reg(3, 3, 14, 2, 1)),
            ("CNTP_CVAL_EL0", reg(3, 3, 14, 2, 2)),
            ("CNTP_TVAL_EL0", reg(3, 3, 14, 2, 0)),
        ],
    ),
    ("MDCR_EL2.TPMCR", &[("PMCR_EL0", reg(3, 3, 9, 12, 0))]),
    (
        "MDCR_EL2.TPM",
        &[
            ("PMCNTENSET_EL0", reg(3, 3, 9, 12, 1)),
            ("PMCNTENCLR_EL0", reg(3, 3, 9, 12, 2)),
            ("PMOVSCLR_EL0", reg(3, 3, 9, 12, 3)),
            ("PMSWINC_EL0", reg(3, 3, 9, 12, 4)),
            ("PMSELR_EL0", reg(3, 3, 9, 12, 5)),
            ("PMCEID0_EL0", reg(3, 3, 9, 12, 6)),
            ("PMCEID1_EL0", reg(3, 3, 9, 12, 7)),
            ("PMCCNTR_EL0", reg(3, 3, 9, 13, 0)),
            ("PMXEVTYPER_EL0", reg(3, 3, 9, 13, 1)),
            ("PMXEVCNTR_EL0", reg(3, 3, 9, 13, 2)),
            ("PMUSERENR_EL0", reg(3, 3, 9, 14, 0)),
            ("PMOVSSET_EL0", reg(3, 3, 9, 14, 3)),
            ("PMINTENSET_EL1", reg(3, 0, 9, 14, 1)),
            ("PMINTENCLR_EL1", reg(3, 0, 9, 14, 2)),
            ("PMMIR_EL1", reg(3, 0, 9, 14, 6)),
            ("PMCCFILTR_EL0", reg(3, 3, 14, 15, 7)),
            ("PMEVCNTR0_EL0", reg(3, 3, 14, 8, 0)),
            ("PMEVTYPER0_EL0", reg(3, 3, 14, 12, 0)),
        ],
    ),
    (
        "MDCR_EL2.TPMS",
        &[
            ("PMSCR_EL1", reg(3, 0, 9, 9, 0)),
            ("PMSICR_EL1", reg(3, 0, 9, 9, 2)),
            ("PMSIRR_EL1", reg(3, 0, 9, 9, 3)),
            ("PMSFCR_EL1", reg(3, 0, 9, 9, 4)),
            ("PMSEVFR_EL1", reg(3, 0, 9, 9, 5)),
            ("PMSLATFR_EL1", reg(3, 0, 9, 9, 6)),
            ("PMSIDR_EL1", reg(3, 0, 9, 9, 7)),
            ("PMBLIMITR_EL1", reg(3, 0, 9, 10, 0)),
            ("PMBPTR_EL1", reg(3, 0, 9, 10, 1)),
            ("PMBSR_EL1", reg(3, 0, 9, 10, 3)),
            ("PMBIDR_EL1", reg(3, 0, 9, 10, 7)),
        ],
    ),
    (
        "MDCR_EL2.E2TB",
        &[
            ("TRBLIMITR_EL1", reg(3, 0, 9, 11, 0)),
            ("TRBPTR_EL1", reg(3, 0, 9, 11, 1)),
            ("TRBBASER_EL1", reg(3, 0, 9, 11, 2)),
            ("TRBSR_EL1", reg(3, 0, 9, 11, 3)),
        ],
    ),
    ("MDCR_EL2.TTRF", &[("TRFCR_EL1", reg(3, 0, 1, 2, 1))]),
    (
        "CPTR_EL2.TTA",
        &[
            ("TRCPRGCTLR", reg(2, 1, 0, 1, 0)),
            ("TRCSTATR", reg(2, 1, 0, 3, 0)),
            ("TRCIDR0", reg(2, 1, 0, 8, 7)),
        ],
    ),
    (
        "CPTR_EL2.TAM",
        &[
            ("AMCR_EL0", reg(3, 3, 13, 2, 0)),
            ("AMCFGR_EL0", reg(3, 3, 13, 2, 1)),
            ("AMCGCR_EL0", reg(3, 3, 13, 2, 2)),
            ("AMUSERENR_EL0", reg(3, 3, 13, 2, 3)),
            ("AMCNTENCLR0_EL0", reg(3, 3, 13, 2, 4)),
            ("AMCNTENSET0_EL0", reg(3, 3, 13, 2, 5)),
            ("AMCNTENSET1_EL0", reg(3, 3, 13, 3, 1)),
            ("AMEVCNTR00_EL0", reg(3, 3, 13, 4, 0)),
            ("AMEVTYPER00_EL0", reg(3, 3, 13, 6, 0)),
            ("AMEVCNTR10_EL0", reg(3, 3, 13, 12, 0)),
        ],
    ),
    ("CPTR_EL2.TSM", &[("SMCR_EL1", reg(3, 0, 1, 2, 6)), ("SVCR", reg(3, 3, 4, 2, 2))]),
    (
        "HCR_EL2.TLOR",
        &[
            ("LORSA_EL1", reg(3, 0, 10, 4, 0)),
            ("LOREA_EL1", reg(3, 0, 10, 4, 1)),
            ("LORN_EL1", reg(3, 0, 10, 4, 2)),
            ("LORC_EL1", reg(3, 0, 10, 4, 3)),
            ("LORID_EL1", reg(3, 0, 10, 4, 7)),
        ],
    ),
    (
        "HCR_EL2.TERR, FIEN",
        &[
            ("ERRIDR_EL1", reg(3, 0, 5, 3, 0)),
            ("ERRSELR_EL1", reg(3, 0, 5, 3, 1)),
            ("ERXFR_EL1", reg(3, 0, 5, 4, 0)),
            ("ERXCTLR_EL1", reg(3, 0, 5, 4, 1)),
            ("ERXSTATUS_EL1", reg(3, 0, 5, 4, 2)),
            ("ERXADDR_EL1", reg(3, 0, 5, 4, 3)),
            ("ERXPFGF_EL1", reg(3, 0, 5, 4, 4)),
            ("ERXPFGCTL_EL1", reg(3, 0, 5, 4, 5)),
            ("ERXPFGCDN_EL1", reg(3, 0, 5, 4, 6)),
            ("ERXMISC0_EL1", reg(3, 0, 5, 5, 0)),
            ("ERXMISC1_EL1", reg(3, 0, 5, 5, 1)),
            ("ERXMISC2_EL1", reg(3, 0, 5, 5, 2)),
            ("ERXMISC3_EL1", reg(3, 0, 5, 5, 3)),
        ],
    ),
    (
        "HCR_EL2.EnSCXT",
        &[("SCXTNUM_EL1", reg(3, 0, 13, 0, 7)), ("SCXTNUM_EL0", reg(3, 3, 13, 0, 7))],
    ),
    (
        "HCR_EL2.ATA",
        &[
            ("GCR_EL1", reg(3, 0, 1, 0, 6)),
            ("RGSR_EL1", reg(3, 0, 1, 0, 5)),
            ("TFSR_EL1", reg(3, 0, 5, 6, 0)),
            ("TFSRE0_EL1", reg(3, 0, 5, 6, 1)),
        ],
    ),
    ("HCR_EL2.TIDCP", &[("an IMPLEMENTATION DEFINED register", reg(3, 0, 15, 2, 0))]),
    (
        "HCRX_EL2",
        &[
            ("TCR2_EL1", reg(3, 0, 2, 0, 3)),
            ("SCTLR2_EL1", reg(3, 0, 1, 0, 3)),
            ("GCSCR_EL1", reg(3, 0, 2, 5, 0)),
            ("GCSPR_EL1", reg(3, 0, 2, 5, 1)),
            ("GCSCRE0_EL1", reg(3, 0, 2, 5, 2)),
            ("GCSPR_EL0", reg(3, 3, 2, 5, 1)),
            ("ACCDATA_EL1", reg(3, 0, 13, 0, 5)),
            ("FPMR", reg(3, 3, 4, 4, 2)),
        ],
    ),
    (
        "HFGxTR_EL2",
        &[
            ("PIRE0_EL1", reg(3, 0, 10, 2, 2)),
            ("PIR_EL1", reg(3, 0, 10, 2, 3)),
            ("POR_EL1", reg(3, 0, 10, 2, 4)),
            ("POR_EL0", reg(3, 3, 10, 2, 4)),
            ("S2POR_EL1", reg(3, 0, 10, 2, 5)),
            ("MAIR2_EL1", reg(3, 0, 10, 2, 1)),
            ("AMAIR2_EL1", reg(3, 0, 10, 3, 1)),
            ("BRBCR_EL1", reg(2, 1, 9, 0, 0)),
            ("BRBFCR_EL1", reg(2, 1, 9, 0, 1)),
            ("BRBIDR0_EL1", reg(2, 1, 9, 2, 0)),
        ],
    ),
    (
        "MPAM2_EL2, MPAMHCR_EL2",
        &[
            ("MPAM1_EL1", reg(3, 0, 10, 5, 0)),
            ("MPAM0_EL1", reg(3, 0, 10, 5, 1)),
            ("MPAMSM_EL1", reg(3, 0, 10, 5, 3)),
        ],
    ),
    (
        "the exception level",
        &[
            ("SCTLR_EL12", reg(3, 5, 1, 0, 0)),
            ("SP_EL1", reg(3, 4, 4, 1, 0)),
            ("ELR_EL2", reg(3, 4, 4, 0, 1)),
            ("HCR_EL2", reg(3, 4, 1, 1, 0)),
            ("HSTR_EL2", reg(3, 4, 1, 1, 3)),
            ("MDCR_EL2", reg(3, 4, 1, 1, 1)),
            ("CPTR_EL2", reg(3, 4, 1, 1, 2)),
            ("ZCR_EL2", reg(3, 4, 1, 2, 0)),
            ("VTTBR_EL2", reg(3, 4, 2, 1, 0)),
            ("VBAR_EL2", reg(3, 4, 12, 0, 0)),
            ("ICC_SRE_EL2", reg(3, 4, 12, 9, 5)),
            ("ICH_HCR_EL2", reg(3, 4, 12, 11, 0)),
            ("TPIDR_EL2", reg(3, 4, 13, 0, 2)),
            ("CNTVOFF_EL2", reg(3, 4, 14, 0, 3)),
            ("SCR_EL3", reg(3, 6, 1, 1, 0)),
        ],
    ),
];

/// A debug register: MDCR_EL2.TDA, TDOSA, TDRA. What is trapped reads as zero.
struct Debug {
    name: &'static str,
    register: SysReg,
    writable: bool,
    /// By the host, from which it is not trapped.
    read: fn(),
}

macro_rules! debug {
    ($($name:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal, $writable:literal;)*) => {
        &[$(Debug {
            name: $name,
            register: reg($op0, $op1, $crn, $crm, $op2),
            writable: $writable,
            read: || {
                // SAFETY: reads a debug register, where there is one; nobody debugs this kernel.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, s", $op0, "_", $op1, "_c", $crn, "_c", $crm, "_", $op2),
                        out(reg) _,
                        options(nostack)
                    );
                }
            },
        }),*]
    };
}

const DEBUG: &[Debug] = debug! {
    "MDSCR_EL1" 2 0 0 2 2, true;
    "DBGBVR0_EL1" 2 0 0 0 4, true;
    "DBGBCR0_EL1" 2 0 0 0 5, true;
    "DBGWVR0_EL1" 2 0 0 0 6, true;
    "DBGWCR0_EL1" 2 0 0 0 7, true;
    "DBGBVR1_EL1" 2 0 0 1 4, true;
    "DBGBCR1_EL1" 2 0 0 1 5, true;
    "MDCCINT_EL1" 2 0 0 2 0, true;
    "OSDTRRX_EL1" 2 0 0 0 2, true;
    "OSDTRTX_EL1" 2 0 0 3 2, true;
    "OSECCR_EL1" 2 0 0 6 2, true;
    "MDRAR_EL1" 2 0 1 0 0, false;
    "OSLSR_EL1" 2 0 1 1 4, false;
    "OSDLR_EL1" 2 0 1 3 4, true;
    "DBGPRCR_EL1" 2 0 1 4 4, true;
    "DBGCLAIMSET_EL1" 2 0 7 8 6, true;
    "DBGCLAIMCLR_EL1" 2 0 7 9 6, true;
    "DBGAUTHSTATUS_EL1" 2 0 7 14 6, false;
    "MDCCSR_EL0" 2 3 0 1 0, false;
};

/// CPACR_EL1
const CPACR: SysReg = reg(3, 0, 1, 0, 2);

/// A guest that has opened all it can to itself: CPACR_EL1's FPEN, ZEN and, though it can't know of
/// it, SMEN. What is still closed is closed by hyp.
fn guest() -> Puppet {
    let guest = Machine::normal().started(context().largest());
    guest.write(CPACR, 3 << 24 | 3 << 20 | 3 << 16);
    guest
}

fn hidden_registers_are_undefined() -> Result<(), Skip> {
    let guest = guest();
    // Guests have FPMR where there is one.
    let shown = |register: SysReg| register == sysreg::FPMR && sme::has_fpmr();
    for (by, registers) in HIDDEN {
        for (name, register) in registers.iter().filter(|(_, register)| !shown(*register)) {
            for word in [register.mrs(), register.msr()] {
                match guest.attempt(word, 0) {
                    Event::Exception(e) if e.is_undefined() => {}
                    // A write to a read-only register, or a read of what is not there, is UNDEFINED as
                    // well; nothing else will do.
                    event => panic!(
                        "{name} ({word:#010x}), which {by} hides, is there for a guest: {event:x?}"
                    ),
                }
            }
        }
    }
    Ok(())
}

/// A register or instruction that the implementer defines, and an access of the host's.
struct ImplementationDefined {
    name: &'static str,
    register: SysReg,
    read: fn(),
}

macro_rules! implementation_defined {
    ($($name:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal;)*) => {
        &[$(ImplementationDefined {
            name: $name,
            register: reg($op0, $op1, $crn, $crm, $op2),
            read: || {
                // SAFETY: a read of a register that says something of caches, if it is there.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, s", $op0, "_", $op1, "_c", $crn, "_c", $crm, "_", $op2),
                        out(reg) _,
                        options(nostack)
                    );
                }
            },
        }),*]
    };
}

/// What emulated Cortex-A57s and others have of them, and Cortex-A72's windows into its caches' RAMs.
const IMPLEMENTATION_DEFINED: &[ImplementationDefined] = implementation_defined! {
    "L2CTLR_EL1" 3 1 11 0 2;
    "L2ECTLR_EL1" 3 1 11 0 3;
    "L2ACTLR_EL1" 3 1 15 0 0;
    "CPUACTLR_EL1" 3 1 15 2 0;
    "CPUECTLR_EL1" 3 1 15 2 1;
    "CPUMERRSR_EL1" 3 1 15 2 2;
    "L2MERRSR_EL1" 3 1 15 2 3;
    "CPUECTLR_EL1 of Neoverse N1" 3 0 15 1 4;
    "IL1DATA0_EL1" 3 0 15 0 0;
    "DL1DATA0_EL1" 3 0 15 1 0;
};

/// HCR_EL2.TIDCP, in both worlds: some cores read their caches' RAMs by such registers.
fn r41_implementation_defined_registers_are_undefined() -> Result<(), Skip> {
    let guest = guest();
    for entry in IMPLEMENTATION_DEFINED {
        let name = entry.name;
        match guest.attempt(entry.register.mrs(), 0) {
            Event::Exception(e) if e.is_undefined() => {}
            // QEMU has the trap from 8.1 on.
            Event::Done(_) => return Err(Skip("the emulator does not trap such registers")),
            event => panic!("{name} of a guest: {event:x?}"),
        }
        assert_ne!(exception::count_undefined(entry.read), 0, "{name} is there for the host");
    }
    // RAMINDEX, with which such a read begins.
    // SAFETY: it only chooses what to read.
    let ram_index = || unsafe { core::arch::asm!("sys #0, c15, c4, #0, xzr", options(nostack)) };
    assert_ne!(exception::count_undefined(ram_index), 0, "SYS of the host");
    assert!(guest.undefined(reg(1, 0, 15, 4, 0).msr()).is_undefined());
    Ok(())
}

/// SMPRI_EL1 has no trap but a fine-grained one; emulated machines without FEAT_FGT have a constant
/// zero there.
fn streaming_priority_is_hidden_or_zero() -> Result<(), Skip> {
    let guest = guest();
    let smpri = reg(3, 0, 1, 2, 4);
    match guest.attempt(smpri.msr(), u64::MAX) {
        Event::Exception(e) => assert!(e.is_undefined(), "{e:x?}"),
        Event::Done(_) => assert_eq!(guest.read(smpri), 0, "SMPRI_EL1"),
        event => panic!("SMPRI_EL1: {event:x?}"),
    }
    Ok(())
}

fn debug_registers_read_as_zero() -> Result<(), Skip> {
    let guest = guest();
    let mut seen = 0;
    for &Debug { name, register, writable, read } in DEBUG {
        // What the machine lacks is UNDEFINED before anything traps.
        if exception::count_undefined(read) != 0 {
            continue;
        }
        seen += 1;
        assert_eq!(guest.exec(register.mrs(), 0xdead), 0, "{name}");
        if writable {
            guest.write(register, u64::MAX);
            assert_eq!(guest.exec(register.mrs(), 0xdead), 0, "{name} after a write");
        }
    }
    assert!(seen >= 8, "only {seen} debug registers on this machine");
    Ok(())
}

/// HCR_EL2.TID1, TACR, TSW: what a CPU is inside, and its caches.
fn what_is_nothing_to_a_guest_reads_as_nothing() -> Result<(), Skip> {
    let guest = guest();
    let mine = actlr();
    for (name, register) in [
        ("REVIDR_EL1", reg(3, 0, 0, 0, 6)),
        ("AIDR_EL1", reg(3, 1, 0, 0, 7)),
        ("ACTLR_EL1", reg(3, 0, 1, 0, 1)),
    ] {
        assert_eq!(guest.exec(register.mrs(), 0xdead), 0, "{name}");
    }
    guest.write(reg(3, 0, 1, 0, 1), u64::MAX);
    assert_eq!(guest.exec(reg(3, 0, 1, 0, 1).mrs(), 0xdead), 0, "ACTLR_EL1 after a write");
    assert_eq!(actlr(), mine, "the host's ACTLR_EL1");
    // Where there is no SME at all, a CPU with FEAT_IDST traps it to EL1 by itself.
    match guest.attempt(sysreg::SMIDR.mrs(), 0) {
        Event::Exception(e) if e.is_undefined() || e.class() == 0x18 => {}
        event => panic!("SMIDR_EL1 is there for a guest: {event:x?}"),
    }
    // DC ISW, CSW, CISW: nothing happens, and it goes on behind them.
    for crm in [6, 10, 14] {
        assert_eq!(guest.exec(reg(1, 0, 7, crm, 2).msr(), 0x77), 0x77);
    }
    Ok(())
}

fn actlr() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { core::arch::asm!("mrs {}, actlr_el1", out(reg) value, options(nostack)) };
    value
}

/// CNTHCTL_EL2.EL1PCTEN is set: it is the same for everybody.
fn the_physical_counter_is_there() -> Result<(), Skip> {
    let guest = guest();
    let before = timer::now();
    let found = guest.read(reg(3, 3, 14, 0, 1));
    assert!((before..=timer::now()).contains(&found), "CNTPCT_EL0 {found}, not from {before} on");
    Ok(())
}

/// ID_AA64\<..\>: CRm, Op2, the lowest bits of the fields that a guest must find zero.
const HIDDEN_FIELDS: &[(&str, u32, u32, &[u32])] = &[
    ("ID_AA64PFR0_EL1 (EL2, EL3, RAS, MPAM, AMU, RME)", 4, 0, &[8, 12, 28, 40, 44, 52]),
    ("ID_AA64PFR1_EL1 (MTE, SME, CSV2_frac, NMI, GCS)", 4, 1, &[8, 12, 16, 24, 32, 36, 44]),
    ("ID_AA64SMFR0_EL1", 4, 5, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    ("ID_AA64DFR0_EL1 (trace, PMU, SPE, TRBE, BRBE)", 5, 0, &[4, 8, 32, 36, 40, 44, 48, 52]),
    ("ID_AA64MMFR0_EL1 (FGT, ECV)", 7, 0, &[56, 60]),
    ("ID_AA64MMFR1_EL1 (VH, LO, HCX)", 7, 1, &[8, 16, 40]),
    ("ID_AA64MMFR2_EL1 (NV)", 7, 2, &[24]),
];

fn id_registers_hide_what_is_hidden() -> Result<(), Skip> {
    let guest = guest();
    for &(name, crm, op2, fields) in HIDDEN_FIELDS {
        let value = guest.read(reg(3, 0, 0, crm, op2));
        for &low in fields {
            assert_eq!(value >> low & 0xf, 0, "{name}: field at bit {low} of {value:#x}");
        }
    }
    // The whole space is readable, AArch32's part of it included.
    for crm in 1..8 {
        for op2 in 0..8 {
            let value = guest.read(reg(3, 0, 0, crm, op2));
            assert!(crm > 3 || value == 0, "AArch32 ID register {crm},{op2}: {value:#x}");
        }
    }
    Ok(())
}

fn sve_shows_in_the_id_registers_of_those_who_have_it() -> Result<(), Skip> {
    need_sve()?;
    for vq in [None, context().largest()] {
        let guest = Machine::normal().started(vq);
        assert_eq!(guest.read(reg(3, 0, 0, 4, 0)) >> 32 & 0xf != 0, vq.is_some());
        if vq.is_none() {
            assert_eq!(guest.read(reg(3, 0, 0, 4, 4)), 0, "ID_AA64ZFR0_EL1");
        }
        guest.put();
    }
    Ok(())
}

fn mpidr_is_the_vcpus() -> Result<(), Skip> {
    let machine = Machine::normal();
    for n in 0..3 {
        let guest = machine.started(None);
        assert_eq!(guest.read(sysreg::MPIDR) & 0xff_00ff_ffff, n);
        guest.put();
    }
    Ok(())
}

fn undefined_has_the_right_syndrome() -> Result<(), Skip> {
    let guest = guest();
    let hidden = HIDDEN[0].1[0].1.mrs();
    // By hyp (a trapped register) and by the CPU (an unallocated instruction): just the same.
    for word in [hidden, 0] {
        let e = guest.undefined(word);
        assert_eq!(e.esr, 1 << 25, "ESR_EL1");
        assert_eq!(e.elr, guest.instruction_address(), "ELR_EL1");
        assert_eq!(e.spsr & 0x3df, 0x3c5, "SPSR_EL1: EL1h, masked");
    }
    // With interrupts unmasked before it, SPSR says so, and the handler runs masked again.
    guest.exec(insn::UNMASK_IRQ, 0);
    let e = guest.undefined(hidden);
    assert_eq!(e.spsr & 0x3c0, 0x340, "SPSR_EL1: I clear");
    assert_eq!(guest.read(reg(3, 3, 4, 2, 1)) & 0x3c0, 0x3c0, "DAIF in the handler");
    Ok(())
}

fn sme_is_undefined() -> Result<(), Skip> {
    let guest = guest();
    for word in [insn::SMSTART_SM, insn::SMSTART_ZA, insn::SMSTOP] {
        // Before and after its FP state is live.
        guest.undefined(word);
        guest.exec(insn::FP, 0);
        guest.undefined(word);
    }
    Ok(())
}

fn r26_sve_without_sve_is_undefined() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    for _ in 0..2 {
        for word in [insn::SVE, insn::RDVL, sysreg::ZCR.mrs(), sysreg::ZCR.msr()] {
            guest.undefined(word);
        }
        guest.exec(insn::FP, 0);
    }
    guest.fill(3);
    guest.undefined(insn::SVE);
    guest.check(3);
    Ok(())
}

fn smc_is_not_supported() -> Result<(), Skip> {
    let guest = guest();
    // SiP, OEM and Trusted OS calls, a yielding one, none at all; of PSCI and its neighbours hyp has some.
    for function in [0x8200_0000, 0xc300_0001, 0xb200_0000, 0x0400_0000, 0x8600_0000, 0, u64::MAX] {
        assert_eq!(guest.exec(insn::SMC, function), u64::MAX, "SMC {function:#x}");
    }
    Ok(())
}
