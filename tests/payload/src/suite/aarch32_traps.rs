//! What a guest whose EL1 is AArch32 traps on, and what is injected into it.

use super::aarch32::guest;
use crate::{
    context::need_aarch32,
    instruction32::{self as insn, Cp, cp14, cp15, reg},
    ledger,
    puppet::NOWHERE,
    puppet32::{Event32, Exception32, Puppet32, Routine},
    runner::Skip,
    tests,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::exit::{ExitInfo, Reason, RunFlags};

tests![
    aarch32_mmio,
    aarch32_big_endian_mmio,
    aarch32_mmio_abort_is_a_data_abort,
    aarch32_fetch_abort_is_a_prefetch_abort,
    aarch32_aborts_from_every_mode,
    aarch32_undefined_in_a32_and_t32,
    aarch32_undefined_from_user_mode,
    aarch32_undefined_with_a_new_sctlr,
    aarch32_instructions_that_fail_their_condition_do_nothing,
    aarch32_hidden_registers_are_undefined,
    aarch32_debug_registers_read_as_zero,
    aarch32_id_registers,
];

/// An instruction that must exit as MMIO, at [`NOWHERE`] + 8.
#[track_caller]
fn mmio(guest: &Puppet32, instruction: u32, value: u32) -> (ExitInfo, u64) {
    guest.at(NOWHERE + 8);
    let exit = guest.attempt(instruction, value).exit(Reason::Mmio);
    assert_eq!(exit.data[0], NOWHERE + 8, "address");
    (exit.info, exit.data[1])
}

fn aarch32_mmio() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    let data = 0x8182_8384_8586_8788;
    for (instruction, bytes, expected) in [
        (insn::LDRB, 1, 0x88),
        (insn::LDRH, 2, 0x8788),
        (insn::LDR, 4, 0x8586_8788),
        (insn::LDRSB, 1, 0xffff_ff88),
        (insn::LDRSH, 2, 0xffff_8788),
    ] {
        let (info, _) = mmio(&guest, instruction, u32::MAX);
        let access = info.mmio_access();
        assert_eq!((access.bytes, access.write), (bytes, false), "{instruction:#x}");
        let r = guest.resume(RunFlags::empty(), [data, 0, 0, 0]).done();
        assert_eq!(r[0], expected, "{instruction:#010x}");
    }
    let value = 0x8586_8788;
    for (instruction, bytes, expected) in
        [(insn::STRB, 1, 0x88), (insn::STRH, 2, 0x8788), (insn::STR, 4, 0x8586_8788)]
    {
        let (info, data) = mmio(&guest, instruction, value);
        let access = info.mmio_access();
        assert_eq!((access.bytes, access.write, data), (bytes, true, expected));
        assert_eq!(guest.resume(RunFlags::empty(), [1, 2, 3, 4]).done()[0], value);
    }
    // T32: LDR r0, [r1], 16 bits wide, is stepped over by two bytes. Then ADDS r0, #1; BX LR.
    let code = [0x6808, 0x1c40, 0x4770];
    guest.run_thumb(&code, 0, NOWHERE as u32).exit(Reason::Mmio);
    assert_eq!(guest.resume(RunFlags::empty(), [41, 0, 0, 0]).done()[0], 42);
    // In an IT block: ITE EQ; LDREQ r0, [r1]; MOVNE r0, #7; BX LR, with Z set by CMP r0, r0.
    let code = [0x4280, 0xbf0c, 0x6808, 0x2007, 0x4770];
    guest.run_thumb(&code, 0, NOWHERE as u32).exit(Reason::Mmio);
    assert_eq!(guest.resume(RunFlags::empty(), [43, 0, 0, 0]).done()[0], 43, "IT is advanced");
    // What can't be emulated.
    guest.at(NOWHERE + 16);
    let exit = guest.attempt(insn::LDM, 9).exit(Reason::Fault);
    assert_eq!(exit.data[0], NOWHERE + 16);
    Hvc.vm_map(guest.machine.vm, ledger::take(1), NOWHERE).expect("VM_MAP");
    assert_eq!(guest.resume(RunFlags::empty(), [7; 4]).done()[0], 0);
    Ok(())
}

/// A device sees the bytes of a big-endian access in its own order, and the other way round.
fn aarch32_big_endian_mmio() -> Result<(), Skip> {
    need_aarch32()?;
    const SETEND_BE: u32 = 0xf101_0200;
    const SETEND_LE: u32 = 0xf101_0000;
    const BX_LR: u32 = 0xe12f_ff1e;
    let guest = guest();
    let access = |instruction: u32, value: u32| {
        let code = [SETEND_BE, instruction, SETEND_LE, BX_LR];
        guest.run_code(&code, value, NOWHERE as u32).exit(Reason::Mmio).data[1]
    };
    for (instruction, expected) in
        [(insn::STRB, 0x44), (insn::STRH, 0x4433), (insn::STR, 0x4433_2211)]
    {
        assert_eq!(access(instruction, 0x1122_3344), expected, "{instruction:#x}");
        guest.resume(RunFlags::empty(), [0; 4]).done();
    }
    for (instruction, expected) in [
        (insn::LDRB, 0x88),
        (insn::LDRH, 0x8877),
        (insn::LDR, 0x8877_6655),
        (insn::LDRSH, 0xffff_8877),
    ] {
        access(instruction, 0);
        let r = guest.resume(RunFlags::empty(), [0x1122_3344_5566_7788, 0, 0, 0]).done();
        assert_eq!(r[0], expected, "{instruction:#x}");
    }
    Ok(())
}

#[track_caller]
fn aborted(guest: &Puppet32) -> Exception32 {
    match guest.resume(RunFlags::ABORT, [0; 4]) {
        Event32::Exception(e) => e,
        event => panic!("no exception in the guest: {event:x?}"),
    }
}

fn aarch32_mmio_abort_is_a_data_abort() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    // TTBCR.EAE selects the format of DFSR.
    for (ttbcr, status) in [(0, 0x008), (1 << 31, 0x210)] {
        guest.exec(reg::TTBCR.mcr(), ttbcr);
        for (instruction, write) in [(insn::LDR, 0), (insn::STRB, 1 << 11)] {
            mmio(&guest, instruction, 5);
            let e = aborted(&guest);
            assert_eq!((e.vector, e.cpsr & 0x1ff), (4, 0x1d7), "Abort mode, A and I masked");
            assert_eq!((e.fsr, e.far), (status | write, NOWHERE as u32 + 8));
            assert_eq!(e.lr, guest.area() + 8);
            e.assert_spsr(0x1ff, 0x1d3);
        }
    }
    assert_eq!(guest.exec(insn::NOP, 3), 3);
    Ok(())
}

/// MRC of DFAR.
const DFAR: Cp = cp15(6, 0, 0, 0);

fn aarch32_fetch_abort_is_a_prefetch_abort() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    guest.exec(DFAR.mcr(), 0x1234_5678);
    let nowhere = NOWHERE as u32 + 0x1000;
    // From A32 and from T32: LR is the same.
    for target in [nowhere, nowhere | 1] {
        let exit = guest.attempt(insn::BX_R0, target).exit(Reason::Fault);
        assert_eq!(exit.data[0], nowhere.into());
        let e = aborted(&guest);
        assert_eq!((e.vector, e.cpsr & 0x1ff), (3, 0x1d7));
        assert_eq!((e.fsr, e.far, e.lr), (0x008, nowhere, nowhere + 4));
        e.assert_spsr(0x3f, 0x13 | (target & 1) << 5);
        assert_eq!(guest.exec(DFAR.mrc(), 0), 0x1234_5678, "the other half of FAR_EL1");
    }
    Ok(())
}

/// User mode's aborts say that they are User mode's, and privileged modes' that they are theirs: in SPSR,
/// for DFSR and IFSR have no room for it.
fn aarch32_aborts_from_every_mode() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    let (low, nowhere) = (NOWHERE as u32 & 0xffff, NOWHERE as u32);
    // MOVW r1, MOVT r1
    let address = [0xe300_1000 | (low >> 12) << 16 | low & 0xfff, 0xe340_1000 | nowhere >> 16];
    for mode in [USR, 0x1f, 0x13, 0x12] {
        for (instruction, write) in [(insn::LDR, 0), (insn::STR, 1 << 11)] {
            guest.write_code(&[address[0], address[1], instruction, insn::BX_LR]);
            guest.begin(Routine::Modes, [guest.area(), mode, 0]).exit(Reason::Mmio);
            let e = aborted(&guest);
            assert_eq!((e.vector, e.cpsr & 0x1ff), (4, 0x1d7), "from mode {mode:#x}");
            assert_eq!((e.fsr, e.far), (0x008 | write, nowhere), "from mode {mode:#x}");
            assert_eq!(e.lr, guest.area() + 8 + 8, "from mode {mode:#x}");
            e.assert_spsr(0x1f, mode);
        }
        // BX r1
        guest.write_code(&[address[0], address[1], 0xe12f_ff11]);
        guest.begin(Routine::Modes, [guest.area(), mode, 0]).exit(Reason::Fault);
        let e = aborted(&guest);
        let found = (e.vector, e.cpsr & 0x1ff, e.fsr, e.far, e.lr);
        assert_eq!(found, (3, 0x1d7, 0x008, nowhere, nowhere + 4), "from mode {mode:#x}");
        e.assert_spsr(0x1f, mode);
    }
    Ok(())
}

/// A register that is trapped and hidden: CNTP_CTL.
const HIDDEN_ONE: Cp = cp15(14, 0, 2, 1);

/// The halfwords of a T32 instruction whose A32 word this is: coprocessor instructions have one encoding.
const fn thumb(word: u32) -> [u16; 2] {
    [(word >> 16) as u16, word as u16]
}

fn aarch32_undefined_in_a32_and_t32() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    // By hyp and by the CPU: just the same.
    for word in [HIDDEN_ONE.mrc(), insn::UDF] {
        let e = guest.undefined(word);
        assert_eq!((e.lr, e.cpsr & 0x1ff), (guest.area() + 4, 0x1db), "{word:#x}");
        e.assert_spsr(0x3ff, 0x1d3);
    }
    // With other flags and interrupts unmasked: SPSR says so.
    let [first, second] = thumb(HIDDEN_ONE.mrc());
    let e = guest.run_code(&[insn::MSR_FLAGS, HIDDEN_ONE.mrc(), insn::BX_LR], 0xa800_0000, 0);
    let Event32::Exception(e) = e else { panic!("{e:x?}") };
    assert!(e.is_undefined());
    assert_eq!(e.lr, guest.area() + 8);
    e.assert_spsr(u32::MAX, 0xa800_01d3);
    // T32, of 32 bits by hyp, of 16 by the CPU (UDF): LR is 2 behind where it begins.
    for code in [[0xbf00, first, second, 0x4770], [0xbf00, 0xde00, 0xbf00, 0x4770]] {
        let e = guest.run_thumb(&code, 0, 0);
        let Event32::Exception(e) = e else { panic!("{e:x?}") };
        assert!(e.is_undefined());
        assert_eq!(e.lr, guest.area() + 2 + 2, "{code:x?}");
        e.assert_spsr(0x3f, 0x33);
        assert_eq!(e.cpsr & 0x20, 0, "the handler is A32");
    }
    // In an IT block SPSR has its state: CMP r0, r0; ITT EQ; NOP; the instruction.
    let e = guest.run_thumb(&[0x4280, 0xbf04, 0xbf00, first, second, 0x4770], 0, 0);
    let Event32::Exception(e) = e else { panic!("{e:x?}") };
    assert!(e.is_undefined());
    assert_eq!(e.lr, guest.area() + 6 + 2);
    // EQ, the last one.
    e.assert_spsr(0x0600_fc20, 0x0820);
    Ok(())
}

pub(super) const USR: u32 = 0x10;

fn aarch32_undefined_from_user_mode() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    // WFI, which is let through to hyp (nTWI); then what a user has no access to is UNDEFINED.
    guest.write_code(&[insn::WFI, insn::VMRS_FPEXC, insn::BX_LR]);
    guest.begin(Routine::Modes, [guest.area(), USR, 0]).exit(Reason::Wfi);
    let e = guest.resume(RunFlags::empty(), [0; 4]);
    let Event32::Exception(e) = e else { panic!("{e:x?}") };
    assert!(e.is_undefined());
    assert_eq!((e.lr, e.spsr & 0x1f), (guest.area() + 8, USR), "from User mode");
    // The same from System and Abort mode for what hyp makes UNDEFINED.
    for mode in [0x1f, 0x17, 0x12] {
        guest.write_code(&[HIDDEN_ONE.mrc(), insn::BX_LR]);
        let e = guest.begin(Routine::Modes, [guest.area(), mode, 0]);
        let Event32::Exception(e) = e else { panic!("{e:x?}") };
        assert!(e.is_undefined());
        assert_eq!(e.lr, guest.area() + 4);
        e.assert_spsr(0x1f, mode);
    }
    Ok(())
}

/// SCTLR changes in the entry that traps: by hyp and by the CPU, the handler finds the same CPSR.
fn aarch32_undefined_with_a_new_sctlr() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    const ISB: u32 = 0xf57f_f06f;
    let old = guest.exec(reg::SCTLR.mrc(), 0);
    // SPAN, DSSBS.
    for bits in [0, 1 << 23, 1 << 31, 1 << 23 | 1 << 31] {
        let sctlr = old & !(1 << 23 | 1 << 31) | bits;
        // Each after the other state, so that what the last exit left is stale.
        let [own, hyps] = [insn::UDF, HIDDEN_ONE.mrc()].map(|instruction| {
            guest.exec(reg::SCTLR.mcr(), sctlr ^ (1 << 23 | 1 << 31));
            let code = [reg::SCTLR.mcr(), ISB, instruction, insn::BX_LR];
            match guest.run_code(&code, sctlr, 0) {
                Event32::Exception(e) if e.is_undefined() => e.cpsr,
                event => panic!("{instruction:#x}: {event:x?}"),
            }
        });
        // IT, J and the flags are nobody's to change; QEMU clears some of them itself.
        let mask = 0x00c0_03ff;
        assert_eq!(hyps & mask, own & mask, "CPSR with SCTLR {sctlr:#x}");
    }
    guest.exec(reg::SCTLR.mcr(), old);
    Ok(())
}

fn aarch32_instructions_that_fail_their_condition_do_nothing() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    let (z, eq) = (1 << 30, 0);
    let run = |instruction, flags| {
        let code = [insn::MSR_FLAGS, insn::conditional(instruction, eq), insn::BX_LR];
        guest.run_code(&code, flags, 0)
    };
    // A register that reads as 7 for all guests, one that is UNDEFINED.
    assert_eq!(run(reg::ICC_SRE.mrc(), z).done()[0], 7);
    assert_eq!(run(reg::ICC_SRE.mrc(), 0).done()[0], 0, "r0 stays");
    assert!(matches!(run(HIDDEN_ONE.mrc(), z), Event32::Exception(e) if e.is_undefined()));
    assert_eq!(run(HIDDEN_ONE.mrc(), 0).done()[0], 0);
    run(insn::WFI, z).exit(Reason::Wfi);
    assert_eq!(guest.resume(RunFlags::empty(), [0; 4]).done()[0], z);
    assert_eq!(run(insn::WFI, 0).done()[0], 0);
    // T32: CMP r0, r1; ITE EQ; the instruction; MOVNE r0, #9; BX LR.
    let [first, second] = thumb(reg::ICC_SRE.mrc());
    let code = [0x4288, 0xbf0c, first, second, 0x2009, 0x4770];
    assert_eq!(guest.run_thumb(&code, 5, 5).done()[0], 7, "EQ passes, NE does not");
    assert_eq!(guest.run_thumb(&code, 5, 6).done()[0], 9, "and the other way round");
    Ok(())
}

/// Registers that the machine may have and a guest must not, by the trap that hides them.
const HIDDEN: &[(&str, u32)] = &[
    ("CNTP_CTL", HIDDEN_ONE.mrc()),
    ("CNTP_TVAL", cp15(14, 0, 2, 0).mrc()),
    ("CNTP_CVAL", insn::mrrc(15, 2, 14)),
    ("CNTHCTL", cp15(14, 4, 1, 0).mrc()),
    ("PMCR", cp15(9, 0, 12, 0).mrc()),
    ("PMCNTENSET", cp15(9, 0, 12, 1).mcr()),
    ("PMCCNTR", cp15(9, 0, 13, 0).mrc()),
    ("PMCCNTR, 64 bits", insn::mrrc(15, 0, 9)),
    ("PMCCFILTR", cp15(14, 0, 15, 7).mrc()),
    ("ERRSELR", cp15(5, 0, 3, 1).mrc()),
    ("ERXSTATUS", cp15(5, 0, 4, 2).mrc()),
    ("AMCR", cp15(13, 0, 2, 0).mrc()),
    ("TRFCR", cp15(1, 0, 2, 1).mrc()),
    ("an IMPLEMENTATION DEFINED register, CRn 11", cp15(11, 0, 0, 0).mrc()),
    ("an IMPLEMENTATION DEFINED register, CRn 15", cp15(15, 0, 0, 0).mrc()),
    ("an IMPLEMENTATION DEFINED register, CRn 15, written", cp15(15, 0, 0, 0).mcr()),
    ("a trace register", cp14(0, 1, 0, 0).mrc()),
    ("HCR", cp15(1, 4, 1, 0).mrc()),
    ("VTTBR", insn::mrrc(15, 6, 2)),
    ("HSCTLR", cp15(1, 4, 0, 0).mrc()),
    ("SCR", cp15(1, 0, 1, 0).mrc()),
    ("MVBAR", cp15(12, 0, 0, 1).mrc()),
    ("ICC_HSRE", cp15(12, 4, 9, 5).mrc()),
    ("ICH_HCR", cp15(12, 4, 11, 0).mrc()),
    ("ID_PFR0, written", cp15(0, 0, 1, 0).mcr()),
];

fn aarch32_hidden_registers_are_undefined() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    for &(name, word) in HIDDEN {
        match guest.attempt(word, 0) {
            Event32::Exception(e) if e.is_undefined() => {}
            event => panic!("{name} ({word:#010x}) is there for a guest: {event:x?}"),
        }
    }
    Ok(())
}

fn aarch32_debug_registers_read_as_zero() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    for (name, register, writable) in [
        ("DBGDIDR", cp14(0, 0, 0, 0), false),
        ("DBGDSCRint", cp14(0, 0, 1, 0), false),
        ("DBGDSCRext", cp14(0, 0, 2, 2), true),
        ("DBGVCR", cp14(0, 0, 7, 0), true),
        ("DBGBVR0", cp14(0, 0, 0, 4), true),
        ("DBGBCR0", cp14(0, 0, 0, 5), true),
        ("DBGOSLSR", cp14(1, 0, 1, 4), false),
        ("DBGOSDLR", cp14(1, 0, 3, 4), true),
        ("DBGDRAR", cp14(1, 0, 0, 0), false),
    ] {
        assert_eq!(guest.exec(register.mrc(), 0xdead), 0, "{name}");
        if writable {
            guest.exec(register.mcr(), u32::MAX);
            assert_eq!(guest.exec(register.mrc(), 0xdead), 0, "{name} after a write");
        }
    }
    Ok(())
}

macro_rules! host_id {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads an ID register.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value) };
        value as u32
    }};
}

fn aarch32_id_registers() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    let id = |crm, op2| guest.exec(cp15(0, 0, crm, op2).mrc(), 0xdead_beef);
    // What the machine has of what needs no state.
    assert_eq!(id(2, 0), host_id!("s3_0_c0_c2_0"), "ID_ISAR0");
    assert_eq!(id(1, 0) & 0xfff, host_id!("s3_0_c0_c1_0") & 0xfff, "ID_PFR0: A32, T32, Jazelle");
    for (n, machine) in [
        (0, host_id!("s3_0_c0_c3_0")),
        (1, host_id!("s3_0_c0_c3_1")),
        (2, host_id!("s3_0_c0_c3_2")),
    ] {
        let vmrs = insn::VMRS_MVFR0 - (n << 16);
        for _ in 0..2 {
            assert_eq!(guest.exec(vmrs, 0xdead_beef), machine, "MVFR{n}");
        }
    }
    // And not what is hidden.
    for (name, value, low) in [
        ("ID_PFR0.AMU", id(1, 0), 20),
        ("ID_PFR0.RAS", id(1, 0), 28),
        ("ID_PFR1.Security", id(1, 1), 4),
        ("ID_PFR1.Virtualization", id(1, 1), 12),
        ("ID_DFR0.CopTrc", id(1, 2), 12),
        ("ID_DFR0.PerfMon", id(1, 2), 24),
        ("ID_ISAR4.SMC", id(2, 4), 12),
    ] {
        assert_eq!(value >> low & 0xf, 0, "{name}");
    }
    // The whole space is readable; what is not there is zero.
    for (crm, op2) in (4..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
        assert_eq!(id(crm, op2), 0, "c0, c{crm}, {op2}");
    }
    for (name, register) in [
        ("TCMTR", cp15(0, 0, 0, 2)),
        ("TLBTR", cp15(0, 0, 0, 3)),
        ("REVIDR", cp15(0, 0, 0, 6)),
        ("AIDR", cp15(0, 1, 0, 7)),
        ("ACTLR", reg::ACTLR),
    ] {
        assert_eq!(guest.exec(register.mrc(), 0xdead_beef), 0, "{name}");
    }
    guest.exec(reg::ACTLR.mcr(), u32::MAX);
    assert_eq!(guest.exec(reg::ACTLR.mrc(), 1), 0, "ACTLR after a write");
    // Set and way: nothing happens.
    for crm in [6, 10, 14] {
        guest.exec(cp15(7, 0, crm, 2).mcr(), 0);
    }
    Ok(())
}
