//! The generated register tag test of the world switch: every register that EL1 can write is given a
//! value of its own by the host and by two guests of different VMs and a sibling vCPU, in turn on one
//! CPU. All values survive, and nobody ever reads another's.
//!
//! Registers that the running kernel depends on (its translation, its vectors) can't be tagged in the
//! host; they have to be what they were. A register whose tag doesn't stick anywhere on this machine
//! (RAZ/WI) is not counted, but those marked `rw` must take it.

use crate::{
    context::context,
    instruction::{self as insn, SysReg, reg},
    puppet::{Event, Machine, Puppet},
    runner::Skip,
    tests,
};
use umbra_host::kernel::sysreg;
use umbra_patterns::{pattern::FPMR_BITS, regs::sme};
use umbra_shared::{call::Features, error::Error, exit::RunFlags};

tests![
    every_register_is_switched,
    every_register_starts_in_its_reset_state,
    disr_carries_nothing_from_guest_to_guest,
    a_deferred_error_of_the_hosts_is_the_hosts,
];

/// What the host does with a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InHost {
    /// Tags it.
    Tag,
    /// Needs it: it must stay as it is.
    Keep,
    /// May not have it: with SCR_EL3.FIQ group 0 is the secure world's. A guest has a group 0 of its own.
    Absent,
}

/// Who has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Pauth,
    Sve,
    Sme,
    Fpmr,
    /// Some machines only: whether it takes a tag is found out.
    Luck,
}

struct Register {
    name: &'static str,
    encoding: SysReg,
    /// Bits that take a tag.
    mask: u64,
    /// Bits that are set with it.
    set: u64,
    in_host: InHost,
    needs: Needs,
    read: fn() -> u64,
    write: fn(u64),
}

macro_rules! registers {
    ($($name:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal,
       $mask:expr, $set:expr, $in_host:ident, $needs:ident;)*) => {
        &[$(Register {
            name: $name,
            encoding: reg($op0, $op1, $crn, $crm, $op2),
            mask: $mask,
            set: $set,
            in_host: InHost::$in_host,
            needs: Needs::$needs,
            read: || {
                let value: u64;
                // SAFETY: reading it changes nothing.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, s", $op0, "_", $op1, "_c", $crn, "_c", $crm, "_", $op2),
                        out(reg) value,
                        options(nostack)
                    );
                }
                value
            },
            write: |value| {
                // SAFETY: only registers marked `Tag` are written, which the kernel doesn't use while
                // interrupts are masked.
                unsafe {
                    core::arch::asm!(
                        concat!("msr s", $op0, "_", $op1, "_c", $crn, "_c", $crm, "_", $op2, ", {}"),
                        "isb",
                        in(reg) value,
                        options(nostack)
                    );
                }
            },
        }),*]
    };
}

const ALL: u64 = u64::MAX;

/// The order of hyp's table (`hyp/src/world/registers.md`): name, encoding, mask, bits set, in the host, who has it.
static REGISTERS: &[Register] = registers! {
    "SP_EL0" 3 0 4 1 0, ALL, 0, Tag, Nothing;
    "ELR_EL1" 3 0 4 0 1, 0x7fff_ffff_fffc, 0, Tag, Nothing;
    "SPSR_EL1" 3 0 4 0 0, 0xf000_03c0, 0, Tag, Nothing;
    "SCTLR_EL1" 3 0 1 0 0, 1 << 26 | 1 << 18 | 1 << 16 | 1 << 15 | 1 << 14 | 1 << 9 | 1 << 4, 0, Keep, Nothing;
    "CPACR_EL1" 3 0 1 0 2, 1 << 21, 1 << 20, Keep, Nothing;
    "TTBR0_EL1" 3 0 2 0 0, !1, 0, Keep, Nothing;
    "TTBR1_EL1" 3 0 2 0 1, !1, 0, Keep, Nothing;
    "TCR_EL1" 3 0 2 0 2, 0x10_007f_003f, 0, Keep, Nothing;
    "MAIR_EL1" 3 0 10 2 0, ALL, 0, Keep, Nothing;
    "AMAIR_EL1" 3 0 10 3 0, ALL, 0, Keep, Luck;
    "VBAR_EL1" 3 0 12 0 0, 0xffff_ffff_f800, 0, Keep, Nothing;
    "ESR_EL1" 3 0 5 2 0, 0xffff_ffff, 0, Tag, Nothing;
    "FAR_EL1" 3 0 6 0 0, ALL, 0, Tag, Nothing;
    "AFSR0_EL1" 3 0 5 1 0, ALL, 0, Tag, Luck;
    "AFSR1_EL1" 3 0 5 1 1, ALL, 0, Tag, Luck;
    "CONTEXTIDR_EL1" 3 0 13 0 1, 0xffff_ffff, 0, Tag, Nothing;
    "PAR_EL1" 3 0 7 4 0, 0xffff_ffff_f000, 0, Tag, Nothing;
    "TPIDR_EL1" 3 0 13 0 4, ALL, 0, Keep, Nothing;
    "TPIDR_EL0" 3 3 13 0 2, ALL, 0, Tag, Nothing;
    "TPIDRRO_EL0" 3 3 13 0 3, ALL, 0, Tag, Nothing;
    "CNTKCTL_EL1" 3 0 14 1 0, 0x3fb, 0, Tag, Nothing;
    "CSSELR_EL1" 3 2 0 0 0, 0xf, 0, Tag, Nothing;
    "MDSCR_EL1" 2 0 0 2 2, 1 << 12, 0, Tag, Luck;
    "APIAKeyLo_EL1" 3 0 2 1 0, ALL, 0, Tag, Pauth;
    "APIAKeyHi_EL1" 3 0 2 1 1, ALL, 0, Tag, Pauth;
    "APIBKeyLo_EL1" 3 0 2 1 2, ALL, 0, Tag, Pauth;
    "APIBKeyHi_EL1" 3 0 2 1 3, ALL, 0, Tag, Pauth;
    "APDAKeyLo_EL1" 3 0 2 2 0, ALL, 0, Tag, Pauth;
    "APDAKeyHi_EL1" 3 0 2 2 1, ALL, 0, Tag, Pauth;
    "APDBKeyLo_EL1" 3 0 2 2 2, ALL, 0, Tag, Pauth;
    "APDBKeyHi_EL1" 3 0 2 2 3, ALL, 0, Tag, Pauth;
    "APGAKeyLo_EL1" 3 0 2 3 0, ALL, 0, Tag, Pauth;
    "APGAKeyHi_EL1" 3 0 2 3 1, ALL, 0, Tag, Pauth;
    "TPIDR2_EL0" 3 3 13 0 5, ALL, 0, Tag, Sme;
    "CNTV_CVAL_EL0" 3 3 14 3 2, ALL, 0, Tag, Nothing;
    "CNTV_CTL_EL0" 3 3 14 3 1, 1, 2, Tag, Nothing;
    "ICC_PMR_EL1" 3 0 4 6 0, 0xf8, 0, Keep, Nothing;
    "ICC_BPR1_EL1" 3 0 12 12 3, 7, 0, Keep, Luck;
    "ICC_BPR0_EL1" 3 0 12 8 3, 7, 0, Absent, Luck;
    "ICC_IGRPEN1_EL1" 3 0 12 12 7, 1, 0, Keep, Nothing;
    "ICC_IGRPEN0_EL1" 3 0 12 12 6, 1, 0, Absent, Luck;
    "ICC_CTLR_EL1" 3 0 12 12 4, 2, 0, Keep, Nothing;
    "ICC_AP0R0_EL1" 3 0 12 8 4, 0x8000_0000, 0, Absent, Luck;
    "ICC_AP1R0_EL1" 3 0 12 9 0, 0x8000_0000, 0, Keep, Luck;
    "ZCR_EL1" 3 0 1 2 0, 0xf, 0, Tag, Sve;
    "SMCR_EL1" 3 0 1 2 6, 0xf, 0, Tag, Sme;
    "FPMR" 3 3 4 4 2, FPMR_BITS, 0, Tag, Fpmr;
};

const COUNT: usize = REGISTERS.len();

/// Bits in which neighbours always differ; every mask has one of them.
const ALTERNATE: u64 = 0x8620_c013_0022_8213;

/// What `owner`'s register `n` is tagged with: for small fields owners differ, too.
fn tag(owner: u64, n: usize) -> u64 {
    let word = (owner + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n as u64) << 17;
    (word & !ALTERNATE) | if owner & 1 == 0 { 0 } else { ALTERNATE }
}

impl Register {
    fn exists(&self) -> bool {
        match self.needs {
            Needs::Pauth => context().version.features.contains(Features::PAUTH),
            Needs::Sve => context().sve(),
            Needs::Sme => context().largest_streaming().is_some(),
            Needs::Fpmr => sme::has_fpmr(),
            Needs::Luck => true,
            Needs::Nothing => true,
        }
    }

    fn value(&self, old: u64, owner: u64, n: usize) -> u64 {
        old & !self.mask | tag(owner, n) & self.mask | self.set
    }
}

/// What somebody's registers hold: `None` for one that is not tagged.
type Expected = [Option<u64>; COUNT];

/// Tags a guest's register.
fn tag_guest(guest: &Puppet, owner: u64, n: usize, expected: &mut Expected) {
    let register = &REGISTERS[n];
    if !register.exists() {
        return;
    }
    guest.load();
    // The host may have a register that a guest hasn't.
    let there = register.needs != Needs::Luck
        || matches!(guest.attempt(register.encoding.mrs(), 0), Event::Done(_));
    if there {
        let value = register.value(guest.read(register.encoding), owner, n);
        guest.write(register.encoding, value);
        let found = guest.read(register.encoding) & register.mask;
        if register.needs != Needs::Luck {
            assert_eq!(found, value & register.mask, "guest: {} takes its tag", register.name);
        }
        expected[n] = Some(found);
    }
    guest.put();
}

fn check_guest(guest: &Puppet, owner: u64, expected: &Expected) {
    guest.load();
    for (register, expected) in REGISTERS.iter().zip(expected) {
        if let Some(expected) = *expected {
            let found = guest.read(register.encoding) & register.mask;
            assert_eq!(found, expected, "guest {owner}: {}", register.name);
        }
    }
    guest.put();
}

fn tag_host(n: usize, expected: &mut Expected) {
    let register = &REGISTERS[n];
    if !register.exists() || register.in_host == InHost::Absent {
        return;
    }
    let old = (register.read)();
    if register.in_host == InHost::Keep {
        expected[n] = Some(old);
        return;
    }
    let value = register.value(old, 0, n);
    (register.write)(value);
    let found = (register.read)() & register.mask;
    if register.needs != Needs::Luck {
        assert_eq!(found, value & register.mask, "host: {} takes its tag", register.name);
    }
    expected[n] = Some(found);
}

fn check_host(expected: &Expected) {
    for (register, expected) in REGISTERS.iter().zip(expected) {
        if let Some(expected) = *expected {
            let all = (register.read)();
            let found = if register.in_host == InHost::Keep { all } else { all & register.mask };
            assert_eq!(found, expected, "host: {}", register.name);
        }
    }
}

fn every_register_is_switched() -> Result<(), Skip> {
    let features = context().everything();
    let machine = Machine::normal();
    let vcpu = |machine: Machine| machine.vcpu_with(features);
    let guests = [vcpu(machine), vcpu(machine), vcpu(Machine::normal())];
    for guest in &guests {
        guest.loaded(|guest| guest.start());
    }
    // From here on the host's own ESR_EL1, ELR_EL1 and timer are tags: it takes no exception.
    let daif = sysreg::mask_interrupts();
    let mut saved = [0; COUNT];
    for (n, register) in REGISTERS.iter().enumerate().filter(|(_, r)| r.exists()) {
        if register.in_host == InHost::Tag {
            saved[n] = (register.read)();
        }
    }
    let mut host = [None; COUNT];
    let mut expected = [[None; COUNT]; 3];
    for n in 0..COUNT {
        tag_host(n, &mut host);
        for (owner, guest) in guests.iter().enumerate() {
            tag_guest(guest, owner as u64 + 1, n, &mut expected[owner]);
        }
    }
    for _ in 0..2 {
        for (owner, guest) in guests.iter().enumerate() {
            check_guest(guest, owner as u64 + 1, &expected[owner]);
            check_host(&host);
        }
    }
    for (n, register) in REGISTERS.iter().enumerate().filter(|(_, r)| r.exists()) {
        if register.in_host == InHost::Tag {
            (register.write)(saved[n]);
        }
    }
    sysreg::restore_interrupts(daif);
    // The tags of different owners do differ, or all this would prove nothing.
    let differ = REGISTERS.iter().enumerate().all(|(n, register)| {
        expected[0][n].is_none()
            || register.needs == Needs::Luck
            || expected[0][n] != expected[1][n] && expected[1][n] != expected[2][n]
    });
    assert!(differ, "two owners have the same tag");
    Ok(())
}

fn every_register_starts_in_its_reset_state() -> Result<(), Skip> {
    let features = context().everything();
    // A vCPU that leaves tags everywhere, then another in the same memory.
    for round in 0..2 {
        let machine = Machine::normal();
        let guest = machine.vcpu_with(features);
        guest.loaded(|guest| guest.start());
        guest.load();
        for register in REGISTERS.iter().filter(|r| r.exists()) {
            // What the puppet itself has set by now, and what is never zero.
            if ["VBAR_EL1", "CPACR_EL1"].contains(&register.name) || register.needs == Needs::Luck {
                continue;
            }
            let found = guest.read(register.encoding) & register.mask & !0x30d0_0980;
            assert_eq!(found, 0, "round {round}: {} at reset", register.name);
        }
        guest.put();
        let mut ignored = [None; COUNT];
        for n in 0..COUNT {
            tag_guest(&guest, 1, n, &mut ignored);
        }
        assert_eq!(crate::ledger::destroy(machine.vm), 0);
    }
    Ok(())
}

/// The host's DISR_EL1.
fn host_disr() -> u64 {
    let value;
    // SAFETY: the caller knows that the register is there.
    unsafe { core::arch::asm!("mrs {}, s3_0_c12_c1_1", out(reg) value, options(nostack)) };
    value
}

fn set_host_disr(value: u64) {
    // SAFETY: as above; what it says nobody believes here.
    unsafe { core::arch::asm!("msr s3_0_c12_c1_1, {}", "isb", in(reg) value, options(nostack)) };
}

/// An error that the host has deferred is neither the guest's to answer for nor hyp's to take away: the guest
/// doesn't run until the host has looked at it.
fn a_deferred_error_of_the_hosts_is_the_hosts() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    let there = guest.attempt(DISR.mrs(), 0);
    if !matches!(there, Event::Done(_)) {
        return Err(Skip("no RAS extension"));
    }
    let daif = sysreg::mask_interrupts();
    set_host_disr(1 << 31 | 0x11);
    let kept = host_disr();
    let refused = guest.try_enter(RunFlags::empty(), [0; 4]).err();
    let after = host_disr();
    set_host_disr(0);
    sysreg::restore_interrupts(daif);
    // Under firmware that has SErrors for itself the register is not the host's to write.
    if kept == 0 {
        guest.put();
        return Err(Skip("DISR_EL1 is firmware's"));
    }
    assert_eq!(refused, Some(Error::Busy));
    assert_eq!(after, kept, "DISR_EL1 of the host");
    guest.start();
    assert_eq!(guest.exec(insn::NOP, 5), 5, "the guest goes on");
    guest.put();
    Ok(())
}

/// DISR_EL1, which is VDISR_EL2 for guests.
const DISR: SysReg = reg(3, 0, 12, 1, 1);

fn disr_carries_nothing_from_guest_to_guest() -> Result<(), Skip> {
    let machine = Machine::normal();
    let guests = [machine.vcpu(None), machine.vcpu(None), Machine::normal().vcpu(None)];
    for guest in &guests {
        guest.loaded(|guest| guest.start());
    }
    for writer in &guests {
        let written = writer.loaded(|guest| guest.attempt(DISR.msr(), 1 << 31 | 0x5e));
        if !matches!(written, Event::Done(_)) {
            return Err(Skip("no RAS extension"));
        }
        for reader in &guests {
            let found = reader.loaded(|guest| guest.read(DISR));
            assert_eq!(found, 0, "{reader:?} reads what {writer:?} wrote");
        }
    }
    Ok(())
}
