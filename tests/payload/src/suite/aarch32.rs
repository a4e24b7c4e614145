//! Guests whose EL1 is AArch32: what they begin with, what is switched, their calls and interrupts. Their
//! traps are in [`super::aarch32_traps`], their VFP is in [`super::aarch32_fp`].

use super::aarch32_traps::USR;
use crate::{
    context::{context, need_aarch32},
    host,
    instruction::reg as reg64,
    instruction32::{self as insn, Cp, cp15, reg},
    interrupted::Interrupted,
    ledger,
    puppet::{self, Event, Puppet},
    puppet32::{self, Event32, Puppet32, Routine},
    runner::Skip,
    tests,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{gic, mmu, sysreg},
};
use umbra_shared::{
    call::{
        Policy, Start, UntrustedAffinity, UntrustedPa, UntrustedPages, VcpuConfig, VcpuIndex,
        VmConfig,
    },
    error::{Error, SUCCESS},
    exit::{Reason, RunFlags},
    guest::{GuestFunction, INVALID_PARAMETER, NOT_SUPPORTED},
    interrupt::{Entry, State},
    vcpu::{UntrustedFeatures, VcpuFeatures},
};

tests![
    aarch32_is_there_or_refused,
    aarch32_vcpu_create_checks_its_arguments,
    aarch32_reset_state,
    aarch32_hvc_carries_r0_to_r5,
    aarch32_registers_of_every_mode_survive_exits,
    aarch32_every_register_is_switched,
    aarch32_wfi_and_smc,
    aarch32_interrupts_and_timer,
    aarch32_sgi_is_the_hosts_to_deliver,
    aarch32_protected_guest_shares_and_relinquishes,
    aarch32_at_el0_ends_a_guest_of_aarch64,
];

pub(super) fn guest() -> Puppet32 {
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
        index: VcpuIndex(0),
        affinity: UntrustedAffinity(0),
        pages: UntrustedPages { start: UntrustedPa(ledger::take(count)), count },
        flag_page: UntrustedPa(flag_page),
        features: UntrustedFeatures(features),
        start: Start::At { entry, argument },
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
            guest.exec(register.write, register.mask);
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
    let guests = [&machine, &machine, &other].map(puppet32::vcpu);
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
    assert_eq!(guest.exec(insn::SMC, 0x8400_0000), 0x1_0001, "PSCI_VERSION");
    // SMC64's functions are not for AArch32.
    for function in [0xc400_0003, 0x8200_0000, 0x8600_0000, 0, u32::MAX] {
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
        let host = Interrupted::of(*guest);
        host.offer(Entry::new(intid, 0xa0, State::Pending));
        let unmask = [guest.area(), insn::UNMASK_IRQ, 0].map(u64::from);
        let event = host.resume([Routine::Exec.address(), unmask[0], unmask[1], unmask[2]]);
        let Event::Exit(exit) = event else { panic!("no event of an AArch32 guest's: {event:x?}") };
        assert_eq!(Event32::new(exit), Event32::Interrupt(intid.into()));
        assert_eq!(host.left()[..], [(intid, State::Active)]);
        let end = [guest.area(), reg::ICC_EOIR1.mcr(), intid.into()].map(u64::from);
        host.resume([Routine::Exec.address(), end[0], end[1], end[2]]);
        assert!(host.left().is_empty());
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
    // MCRR p15, 0, r0, r1, c12: ICC_SGI1R; with 1 ICC_ASGI1R, with 2 ICC_SGI0R.
    guest.at(0x0000_ff01);
    for which in 0..3 {
        let exit = guest.attempt(insn::mcrr(15, which, 12), 7 << 24 | 5).exit(Reason::Sgi);
        assert_eq!(exit.data[..2], [0xff01 << 32 | 7 << 24 | 5, which.into()]);
        guest.resume(RunFlags::empty(), [0; 4]).done();
    }
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
    let call64 = |function: u32| guest.exec(insn::HVC, function);
    let refused = INVALID_PARAMETER as u32;
    assert_eq!(call(GuestFunction::MemUnshare, page), refused);
    assert_eq!(call(GuestFunction::MemShare, page + 4), refused);
    assert_eq!(call(GuestFunction::MemShare, page), SUCCESS as u32);
    guest.at(page.into());
    guest.exec(insn::STR, 0x600d_f00d);
    let physical = guest.physical(page.into());
    sysreg::clean_to_poc(mmu::linear::<u8>(physical) as usize, 64);
    // SAFETY: a page of this test's, which the guest has just shared.
    assert_eq!(unsafe { mmu::linear::<u32>(physical).read_volatile() }, 0x600d_f00d);
    guest.at(page.into());
    let exit =
        guest.attempt(insn::HVC, GuestFunction::MemUnshare.id32() as u32).exit(Reason::Unshare);
    assert_eq!(exit.data, [page.into(), physical, 0, 0, 0, 0]);
    assert_eq!(guest.resume(RunFlags::empty(), [0; 4]).done()[0], SUCCESS as u32);
    guest.at(page.into());
    assert_eq!(guest.exec(insn::LDR, 0), 0x600d_f00d, "its content stays");
    // SMC64's function IDs are none of its own.
    assert_eq!(call64(GuestFunction::MemShare.id() as u32), NOT_SUPPORTED as u32);
    guest.at(page.into());
    let relinquish = GuestFunction::MemRelinquish.id32() as u32;
    let exit = guest.attempt(insn::HVC, relinquish).exit(Reason::Relinquished);
    assert_eq!(exit.data[..2], [u64::from(page), physical]);
    assert_eq!(guest.resume(RunFlags::empty(), [0; 4]).done()[0], SUCCESS as u32);
    Ok(())
}

/// An AArch64 guest goes to AArch32 at EL0, which its ID registers deny, and traps there: it can't go on.
pub(super) fn leave_for_aarch32(guest: &Puppet) -> Event {
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
    guest.attempt(0xd69f_03e0, 0)
}

fn aarch32_at_el0_ends_a_guest_of_aarch64() -> Result<(), Skip> {
    need_aarch32()?;
    let guest: Puppet = puppet::Machine::normal().started(None);
    match leave_for_aarch32(&guest) {
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
