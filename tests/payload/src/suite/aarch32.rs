//! Guests whose EL1 is AArch32: what they begin with, what is switched, trapped and injected. Their VFP is
//! in [`super::aarch32_fp`].

use crate::{
    context::{context, need_aarch32},
    host,
    instruction::reg as reg64,
    instruction32::{self as insn, Cp, cp14, cp15, reg},
    ledger,
    puppet::{self, Event, NOWHERE, Puppet},
    puppet32::{self, Event32, Exception32, Puppet32, Routine},
    runner::Skip,
    tests,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{gic, mmu, sysreg},
};
use umbra_shared::{
    call::{Policy, UntrustedPa, UntrustedPages, VcpuConfig, VmConfig},
    error::{Error, SUCCESS},
    exit::{ExitInfo, Reason, RunFlags},
    guest::GuestFunction,
    vcpu::{UntrustedFeatures, VcpuFeatures},
};

tests![
    aarch32_is_there_or_refused,
    aarch32_vcpu_create_checks_its_arguments,
    aarch32_reset_state,
    aarch32_hvc_carries_r0_to_r5,
    aarch32_registers_of_every_mode_survive_exits,
    aarch32_every_register_is_switched,
    aarch32_mmio,
    aarch32_mmio_abort_is_a_data_abort,
    aarch32_fetch_abort_is_a_prefetch_abort,
    aarch32_undefined_in_a32_and_t32,
    aarch32_undefined_from_user_mode,
    aarch32_instructions_that_fail_their_condition_do_nothing,
    aarch32_hidden_registers_are_undefined,
    aarch32_debug_registers_read_as_zero,
    aarch32_id_registers,
    aarch32_wfi_and_smc,
    aarch32_interrupts_and_timer,
    aarch32_sgi_is_the_hosts_to_deliver,
    aarch32_protected_guest_shares_and_relinquishes,
    aarch32_at_el0_ends_a_guest_of_aarch64,
];

fn guest() -> Puppet32 {
    // Found out before a vCPU is loaded.
    puppet32::spsr_is_kept();
    puppet32::started(Policy::Lazy)
}

/// VCPU_CREATE in a new VM.
fn create(features: u64, entry: u64, argument: u64) -> Result<(), Error> {
    let vm = ledger::vm(VmConfig::default());
    let (flag_page, _) = puppet::flag_page();
    let count = VcpuFeatures::AARCH32.pages();
    let config = VcpuConfig {
        vm,
        pages: UntrustedPages { start: UntrustedPa(ledger::take(count)), count },
        flag_page: UntrustedPa(flag_page),
        features: UntrustedFeatures(features),
        entry,
        argument,
    };
    Hvc.vcpu_create(config).map(|_| ())
}

const AARCH32: u64 = 1 << 32;

fn aarch32_is_there_or_refused() -> Result<(), Skip> {
    let pfr0: u64;
    // SAFETY: reads an ID register.
    unsafe { core::arch::asm!("mrs {}, id_aa64pfr0_el1", out(reg) pfr0) };
    assert_eq!(context().aarch32(), pfr0 >> 4 & 0xf == 2, "ID_AA64PFR0_EL1.EL1 of every CPU");
    let expected = if context().aarch32() { Ok(()) } else { Err(Error::NoAarch32) };
    assert_eq!(create(AARCH32, puppet::BASE, 0), expected);
    Ok(())
}

fn aarch32_vcpu_create_checks_its_arguments() -> Result<(), Skip> {
    need_aarch32()?;
    let base = puppet::BASE;
    for (features, entry, argument) in [
        (AARCH32 | 1 << 33, base, 0),
        (AARCH32, base + 2, 0),
        (AARCH32, base + 1, 0),
        (AARCH32, 1 << 32 | base, 0),
        (AARCH32, 1 << 63, 0),
        (AARCH32, base, 1 << 32),
        (AARCH32, base, u64::MAX),
    ] {
        let what = (features, entry, argument);
        assert_eq!(create(features, entry, argument), Err(Error::InvalidArgument), "{what:x?}");
    }
    // SVE is for AArch64.
    let vl = context().guests.max().map_or(16, |vq| vq.vl_bytes() as u64);
    let expected = if context().sve() { Error::InvalidArgument } else { Error::NoSve };
    assert_eq!(create(AARCH32 | vl, base, 0), Err(expected));
    assert_eq!(create(AARCH32, 0xffff_fffc, u32::MAX.into()), Ok(()));
    Ok(())
}

/// MRS r0, CPSR
const MRS_CPSR: u32 = 0xe10f_0000;

fn aarch32_reset_state() -> Result<(), Skip> {
    need_aarch32()?;
    // A vCPU that leaves something everywhere, then another in the same memory.
    for round in 0..2 {
        let guest = guest();
        assert_eq!(guest.exec(MRS_CPSR, 0) & 0x1ff, 0x1d3, "Supervisor mode, A, I, F masked, A32");
        assert_eq!(
            guest.exec(reg::SCTLR.mrc(), 0) & 0x4200_3007,
            0,
            "SCTLR: M, A, C, I, V, EE, TE"
        );
        assert_eq!(guest.exec(reg::MPIDR.mrc(), 0) & 0x8000_00ff, 0x8000_0000, "MPIDR");
        for register in REGISTERS.iter().filter(|r| r.reset && r.exists()) {
            let found = guest.exec(register.read, 0x5555_5555) & register.mask;
            assert_eq!(found, 0, "round {round}: {} at reset", register.name);
            guest.exec(register.write, u32::MAX & register.mask);
        }
        guest.put();
        assert_eq!(ledger::destroy(guest.machine.vm), 0);
    }
    Ok(())
}

fn aarch32_hvc_carries_r0_to_r5() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    // r0 and r1 are the caller's, r2 is r0 again, and r5 is zero.
    guest.at(0x8765_4321);
    let exit = guest.attempt(insn::HVC, 0xfedc_ba98).exit(Reason::Hvc);
    let [r0, r1, _, _, _, r5] = exit.data;
    assert_eq!((r0, r1, r5), (0xfedc_ba98, 0x8765_4321, 0));
    assert!(exit.data.iter().all(|r| r >> 32 == 0), "{:x?}", exit.data);
    // What does not fit r0-r3 is cut.
    let answer = [0x1_0000_00a0, 0xa1, 0xffff_ffff_0000_00a2, 0xa3];
    let r = guest.resume(RunFlags::empty(), answer).done();
    assert_eq!(r[..4], [0xa0, 0xa1, 0xa2, 0xa3]);
    Ok(())
}

fn aarch32_registers_of_every_mode_survive_exits() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    let other = puppet32::vcpu(&puppet32::machine(VmConfig::default()));
    let at = guest.0.scratch();
    guest.memory(at, 128).fill(0);
    guest.memory(at, 128);
    guest.begin(Routine::Registers, [guest.scratch(), 0, 0]).exit(Reason::Wfi);
    // Before its next instruction: an interrupt, and another that uses the same registers.
    let daif = host::pend_interrupt();
    guest.enter(RunFlags::empty(), [0; 4]).exit(Reason::Irq);
    host::release_interrupt(daif);
    guest.put();
    other.loaded(|other| {
        other.start();
        other.begin(Routine::Registers, [other.scratch(), 0, 0]).exit(Reason::Wfi);
    });
    guest.load();
    guest.resume(RunFlags::empty(), [1, 2, 3, 4]).done();
    let stored = guest.memory(at, 4 * 29);
    for (n, bytes) in stored.chunks(4).enumerate() {
        let value = u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        let n = n as u32;
        let expected = if n < 13 { 0x6751 << 16 | n } else { 0x6750 << 16 | (n - 12) };
        assert_eq!(value, expected, "word {n} of `registers`");
    }
    Ok(())
}

/// A register of an AArch32 EL1 that takes tags.
struct Register {
    name: &'static str,
    read: u32,
    write: u32,
    mask: u32,
    /// It is zero at reset, and nothing has written it since.
    reset: bool,
    /// An AArch64 register that shares its place: of its bits, those that take a tag there.
    aarch64: Option<(crate::instruction::SysReg, u64)>,
}

const fn cp(name: &'static str, cp: Cp, mask: u32, reset: bool) -> Register {
    Register { name, read: cp.mrc(), write: cp.mcr(), mask, reset, aarch64: None }
}

const fn shared(
    name: &'static str,
    cp: Cp,
    mask: u32,
    [op1, crn, crm, op2]: [u32; 4],
    mask64: u64,
) -> Register {
    Register {
        name,
        read: cp.mrc(),
        write: cp.mcr(),
        mask,
        reset: true,
        aarch64: Some((reg64(3, op1, crn, crm, op2), mask64)),
    }
}

const fn banked(name: &'static str, number: u32) -> Register {
    let (read, write) = (insn::mrs_banked(number), insn::msr_banked(number));
    Register { name, read, write, mask: 0xf000_01df, reset: true, aarch64: None }
}

const ALL: u32 = u32::MAX;
const SPSR_SVC: &str = "SPSR_svc";

/// Every register that an AArch32 EL1 can write and that can be tagged while the puppet runs, by hyp's table
/// (`world.rs`). FPEXC and the rest of VFP are in `aarch32_fp`.
static REGISTERS: &[Register] = &[
    banked("SPSR_abt", insn::SPSR_ABT),
    banked("SPSR_und", insn::SPSR_UND),
    banked("SPSR_irq", insn::SPSR_IRQ),
    banked("SPSR_fiq", insn::SPSR_FIQ),
    // Not on a machine that mixes it up ([`puppet32::spsr_is_kept`]).
    Register {
        name: SPSR_SVC,
        read: insn::MRS_SPSR,
        write: insn::MSR_SPSR,
        mask: 0xf000_01c0,
        reset: true,
        aarch64: Some((reg64(3, 0, 4, 0, 0), 0xf000_03c0)),
    },
    cp("DACR", cp15(3, 0, 0, 0), ALL, true),
    cp("IFSR", cp15(5, 0, 0, 1), 0x120f, true),
    shared("DFSR", cp15(5, 0, 0, 0), 0x3e0f, [0, 5, 2, 0], 0xffff_ffff),
    shared("DFAR", cp15(6, 0, 0, 0), ALL, [0, 6, 0, 0], u64::MAX),
    cp("IFAR", cp15(6, 0, 0, 2), ALL, true),
    shared("TTBR0", cp15(2, 0, 0, 0), 0xffff_c000, [0, 2, 0, 0], 0xffff_fffe),
    shared("TTBR1", cp15(2, 0, 0, 1), 0xffff_c000, [0, 2, 0, 1], 0xffff_fffe),
    shared("TTBCR", cp15(2, 0, 0, 2), 7, [0, 2, 0, 2], 0x7f_003f),
    shared("PRRR", cp15(10, 0, 2, 0), ALL, [0, 10, 2, 0], u64::MAX),
    cp("NMRR", cp15(10, 0, 2, 1), ALL, true),
    shared("CONTEXTIDR", cp15(13, 0, 0, 1), ALL, [0, 13, 0, 1], 0xffff_ffff),
    shared("TPIDRURW", cp15(13, 0, 0, 2), ALL, [3, 13, 0, 2], u64::MAX),
    shared("TPIDRURO", cp15(13, 0, 0, 3), ALL, [3, 13, 0, 3], u64::MAX),
    shared("TPIDRPRW", cp15(13, 0, 0, 4), ALL, [0, 13, 0, 4], u64::MAX),
    shared("PAR", cp15(7, 0, 4, 0), 0xffff_f000, [0, 7, 4, 0], 0xffff_ffff_f000),
    shared("CNTKCTL", cp15(14, 0, 1, 0), 0x3fb, [0, 14, 1, 0], 0x3fb),
    shared("CSSELR", cp15(0, 2, 0, 0), 0xf, [2, 0, 0, 0], 0xf),
    cp("CPACR", reg::CPACR, 1 << 22, false),
    cp("VBAR", reg::VBAR, 0xffff_ffe0, false),
    cp("SCTLR", reg::SCTLR, 1 << 18 | 1 << 16 | 1 << 5, false),
    cp("ICC_PMR", reg::ICC_PMR, 0xf8, false),
    cp("ICC_IGRPEN1", reg::ICC_IGRPEN1, 1, false),
    cp("CNTV_CTL", reg::CNTV_CTL, 2, true),
];

const COUNT: usize = REGISTERS.len();

impl Register {
    fn exists(&self) -> bool {
        self.name != SPSR_SVC || puppet32::spsr_is_kept()
    }
}

/// Bits in which neighbours always differ; every mask has one of them.
const ALTERNATE: u32 = 0xa55a_a9f3;

/// What an owner's register is tagged with: small fields of neighbours differ, too.
fn tag(owner: usize, n: usize) -> u32 {
    let word = (owner as u32 + 1).wrapping_mul(0x9e37_79b9) ^ (n as u32) << 17;
    word & !ALTERNATE | if owner & 1 == 0 { 0 } else { ALTERNATE }
}

fn aarch32_every_register_is_switched() -> Result<(), Skip> {
    need_aarch32()?;
    let machine = puppet32::machine(VmConfig::default());
    let other = puppet32::machine(VmConfig::default());
    let guests = [&machine, &machine, &other].map(|machine| puppet32::vcpu(machine));
    let aarch64 = puppet::Machine::normal().vcpu(context().largest());
    guests.iter().for_each(|guest| guest.loaded(|guest| guest.start()));
    aarch64.loaded(|guest| guest.start());
    let mut expected = [[0; COUNT]; 3];
    let registers = || REGISTERS.iter().enumerate().filter(|(_, register)| register.exists());
    for (n, register) in registers() {
        for (owner, guest) in guests.iter().enumerate() {
            guest.load();
            let old = guest.exec(register.read, 0) & !register.mask;
            guest.exec(register.write, old | tag(owner, n) & register.mask);
            expected[owner][n] = guest.exec(register.read, 0) & register.mask;
            assert_eq!(expected[owner][n], tag(owner, n) & register.mask, "{}", register.name);
            guest.put();
        }
        assert_ne!(expected[0][n], expected[1][n], "tags of {} differ", register.name);
        assert_ne!(expected[1][n], expected[2][n], "tags of {} differ", register.name);
    }
    let tag64 = |n: usize| tag(1, n) as u64 * 0x1_0000_0001;
    aarch64.loaded(|guest| {
        for (n, register) in registers() {
            if let Some((register, mask)) = register.aarch64 {
                guest.write(register, tag64(n) & mask);
            }
        }
    });
    for _ in 0..2 {
        for (owner, guest) in guests.iter().enumerate() {
            guest.loaded(|guest| {
                for (n, register) in registers() {
                    let found = guest.exec(register.read, 0) & register.mask;
                    assert_eq!(found, expected[owner][n], "guest {owner}: {}", register.name);
                }
            });
        }
        aarch64.loaded(|guest| {
            for (n, register) in registers() {
                if let Some((encoding, mask)) = register.aarch64 {
                    let found = guest.read(encoding) & mask;
                    assert_eq!(found, tag64(n) & mask, "AArch64 guest: {}", register.name);
                }
            }
        });
    }
    Ok(())
}

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

const USR: u32 = 0x10;

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

fn aarch32_wfi_and_smc() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    for n in 0..3 {
        guest.attempt(insn::WFI, n).exit(Reason::Wfi);
        assert_eq!(guest.resume(RunFlags::empty(), [9; 4]).done()[0], n);
    }
    // T32's WFI has 16 bits.
    guest.run_thumb(&[0xbf30, 0x1c40, 0x4770], 7, 0).exit(Reason::Wfi);
    assert_eq!(guest.resume(RunFlags::empty(), [9; 4]).done()[0], 8);
    for function in [0x8400_0000, 0x8000_0000, 0, u32::MAX] {
        assert_eq!(guest.exec(insn::SMC, function), u32::MAX, "SMC {function:#x}");
    }
    Ok(())
}

fn aarch32_interrupts_and_timer() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    guest.exec(reg::ICC_PMR.mcr(), 0xf8);
    guest.exec(reg::ICC_IGRPEN1.mcr(), 1);
    for intid in [27, 42, 1019] {
        guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
        let exit = guest.try_enter(RunFlags::inject(intid), [0; 4]).expect("VCPU_RUN");
        assert!(exit.info.virq_in_flight(), "in flight");
        let event = guest.attempt(insn::UNMASK_IRQ, 0);
        assert_eq!(event, Event32::Interrupt(intid.into()));
        guest.exec(reg::ICC_EOIR1.mcr(), intid.into());
        assert_eq!(guest.exec(cp15(12, 0, 12, 0).mrc(), 0), 1023, "ICC_IAR1: nothing more");
    }
    // The virtual timer, through CNTV_CVAL (MCRR p15, 3, r0, r1, c14).
    gic::enable(gic::VIRTUAL_TIMER, false);
    guest.at(0);
    guest.exec(insn::mcrr(15, 3, 14), 0);
    let fires = |control| {
        guest.exec(reg::CNTV_CTL.mcr(), control);
        let exit = guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
        guest.resume(RunFlags::empty(), [0; 4]).done();
        exit.info.vtimer()
    };
    assert!(!fires(0), "off");
    assert!(fires(1), "due");
    assert_eq!(guest.exec(reg::CNTV_CTL.mrc(), 0) & 7, 5, "ISTATUS");
    assert!(!fires(3), "masked by the guest");
    gic::enable(gic::VIRTUAL_TIMER, true);
    guest.exec(reg::CNTV_CTL.mcr(), 0);
    Ok(())
}

fn aarch32_sgi_is_the_hosts_to_deliver() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = guest();
    // MCRR p15, 0, r0, r1, c12: ICC_SGI1R.
    guest.at(0x0000_ff01);
    let exit = guest.attempt(insn::mcrr(15, 0, 12), 7 << 24 | 5).exit(Reason::Sgi);
    assert_eq!(exit.data[0], 0xff01 << 32 | 7 << 24 | 5);
    guest.resume(RunFlags::empty(), [0; 4]).done();
    // ICC_ASGI1R and ICC_SGI0R: nothing happens.
    guest.exec(insn::mcrr(15, 1, 12), 5);
    guest.exec(insn::mcrr(15, 2, 12), 5);
    assert_eq!(guest.exec(reg::ICC_SRE.mrc(), 0), 7);
    guest.exec(reg::ICC_SRE.mcr(), 0);
    assert_eq!(guest.exec(reg::ICC_SRE.mrc(), 0), 7, "ICC_SRE after a write");
    Ok(())
}

fn aarch32_protected_guest_shares_and_relinquishes() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = puppet32::started_in(VmConfig::protected());
    let page = guest.scratch();
    let call = |function: GuestFunction, address: u32| {
        guest.at(address.into());
        guest.exec(insn::HVC, function.id32() as u32)
    };
    let code = |error: Error| error.code() as u32;
    assert_eq!(call(GuestFunction::MemUnshare, page), code(Error::NotShared));
    assert_eq!(call(GuestFunction::MemShare, page + 4), code(Error::Unaligned));
    assert_eq!(call(GuestFunction::MemShare, page), SUCCESS as u32);
    guest.at(page.into());
    guest.exec(insn::STR, 0x600d_f00d);
    let physical = guest.physical(page.into());
    sysreg::clean_to_poc(mmu::linear::<u8>(physical) as usize, 64);
    // SAFETY: a page of this test's, which the guest has just shared.
    assert_eq!(unsafe { mmu::linear::<u32>(physical).read_volatile() }, 0x600d_f00d);
    assert_eq!(call(GuestFunction::MemUnshare, page), SUCCESS as u32);
    guest.at(page.into());
    assert_eq!(guest.exec(insn::LDR, 0), 0x600d_f00d, "its content stays");
    // SMC64's function IDs are the host's business, as every other HVC.
    let id = GuestFunction::MemShare.id() as u32;
    let exit = guest.attempt(insn::HVC, id).exit(Reason::Hvc);
    assert_eq!(exit.data[0], id.into());
    guest.resume(RunFlags::empty(), [0; 4]).done();
    guest.at(page.into());
    let relinquish = GuestFunction::MemRelinquish.id32() as u32;
    let exit = guest.attempt(insn::HVC, relinquish).exit(Reason::Relinquished);
    assert_eq!(exit.data[..2], [u64::from(page), physical]);
    assert_eq!(guest.resume(RunFlags::empty(), [0; 4]).done()[0], SUCCESS as u32);
    Ok(())
}

/// An AArch64 guest goes to AArch32 at EL0, which its ID registers deny, and traps there.
fn aarch32_at_el0_ends_a_guest_of_aarch64() -> Result<(), Skip> {
    need_aarch32()?;
    let guest: Puppet = puppet::Machine::normal().started(None);
    let code = guest.memory(guest.scratch(), 8);
    code[..4].copy_from_slice(&insn::WFI.to_le_bytes());
    // B .
    code[4..].copy_from_slice(&0xeaff_fffe_u32.to_le_bytes());
    sysreg::clean_to_poc(code.as_ptr() as usize, code.len());
    let (elr, spsr, sctlr) = (reg64(3, 0, 4, 0, 1), reg64(3, 0, 4, 0, 0), reg64(3, 0, 1, 0, 0));
    // nTWI: WFI at EL0 is not EL1's to trap.
    guest.write(sctlr, guest.read(sctlr) | 1 << 16);
    guest.write(elr, guest.scratch());
    guest.write(spsr, u64::from(USR) | 0x1c0);
    // ERET
    match guest.attempt(0xd69f_03e0, 0) {
        Event::Exit(exit) => {
            assert_eq!(exit.info.reason(), Some(Reason::Broken), "{exit:x?}");
            assert_eq!(exit.data[0] >> 26, 0x01, "ESR_EL2: WFI");
        }
        event => panic!("a guest of AArch64 goes on in AArch32: {event:x?}"),
    }
    let again = guest.try_enter(RunFlags::empty(), [0; 4]).expect("VCPU_RUN");
    assert_eq!(again.info.reason(), Some(Reason::Broken), "and it stays so");
    Ok(())
}
