//! Exceptions of an AArch64 guest at every level: at EL0 and at EL1 with either stack pointer, with each
//! bit of PSTATE and of SCTLR_EL1 that an exception looks at, set and clear.
//!
//! What hyp injects must be what the CPU would have done itself. What that is stands here a second time,
//! after the Arm ARM's AArch64.TakeException, and is asked of the CPU, too: of an instruction that nobody
//! knows. (QEMU clears the flags and DIT at an exception of the CPU's own, which the Arm ARM leaves alone.)
//! SCTLR_EL1 and PSTATE change in the entry in which the guest traps, so that what hyp keeps of a
//! guest's EL1 from the last exit is stale.
//!
//! In which PSTATE a handler begins is seen by a second exception: its first instruction is a load of
//! nothing, which the host refuses ([`Guest::handler`]).

use crate::{
    context::context,
    instruction::{self as insn, reg, sysreg},
    puppet::{Event, Exception, IMAGE, Machine, NOWHERE, Puppet, Routine},
    runner::Skip,
    tests,
};
use umbra_host::hypercall::Exit;
use umbra_shared::exit::{Reason, RunFlags};

tests![
    exceptions_save_and_make_the_right_pstate,
    aborts_have_the_syndrome_of_their_level,
    emulated_instructions_leave_pstate_as_it_is,
    sve_of_a_guest_without_is_undefined_at_every_level,
    an_undefined_finds_the_vectors_of_its_entry,
];

/// SPSR_EL1.M: where a guest runs, and the number of the vector for its synchronous exceptions.
pub(super) const LEVELS: [(&str, u64, u64); 3] = [("EL0", 0, 8), ("EL1t", 4, 0), ("EL1h", 5, 4)];

const EL1H: u64 = 5;
pub(super) const DAIF: u64 = 0xf << 6;
pub(super) const SSBS: u64 = 1 << 12;
const ALLINT: u64 = 1 << 13;
const SS: u64 = 1 << 21;
pub(super) const PAN: u64 = 1 << 22;
pub(super) const UAO: u64 = 1 << 23;
pub(super) const DIT: u64 = 1 << 24;
pub(super) const TCO: u64 = 1 << 25;
const NZCV: u64 = 0xf << 28;

/// Values for the rest of PSTATE: each bit alone (BTYPE's values too), none, all.
pub(super) const BITS: [u64; 20] = [
    0,
    1 << 28,
    1 << 29,
    1 << 30,
    1 << 31,
    TCO,
    DIT,
    UAO,
    PAN,
    SS,
    ALLINT,
    SSBS,
    1 << 10,
    2 << 10,
    3 << 10,
    1 << 6,
    1 << 7,
    1 << 8,
    1 << 9,
    NZCV | TCO | DIT | UAO | PAN | SS | ALLINT | SSBS | 3 << 10 | DAIF,
];

/// SCTLR_EL1: RES1 bits, and nTWI, so that WFI at EL0 is hyp's. Without SPAN.
const SCTLR: u64 = 0x3050_0980 | 1 << 16;
pub(super) const SPAN: u64 = 1 << 23;
pub(super) const SPINTMASK: u64 = 1 << 62;
pub(super) const DSSBS: u64 = 1 << 44;

/// CNTKCTL_EL1, and its EL0PTEN: EL1 leaves the physical timer to EL0.
const CNTKCTL: insn::SysReg = reg(3, 0, 14, 1, 0);
const EL0PTEN: u64 = 1 << 9;
/// SCTLR_EL1
const SCTLR_EL1: insn::SysReg = reg(3, 0, 1, 0, 0);
/// VBAR_EL1
const VBAR: insn::SysReg = reg(3, 0, 12, 0, 0);
/// CNTP_CTL_EL0, which hyp hides from EL1 and EL0.
const HIDDEN: u32 = reg(3, 3, 14, 2, 1).mrs();
/// UDF #0
const UDF: u32 = 0;
/// LDR x4, [x19]
const LOOK: u32 = 0xf940_0264;

macro_rules! id {
    ($name:literal, $low:literal) => {{
        let value: u64;
        // SAFETY: reads an ID register.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value) };
        value >> $low & 0xf
    }};
}

/// What of PSTATE this CPU has, beyond the first architecture's.
pub(super) struct Has {
    pub(super) pan: bool,
    pub(super) uao: bool,
    pub(super) dit: bool,
    pub(super) ssbs: bool,
    pub(super) bti: bool,
    pub(super) mte: bool,
    pub(super) nmi: bool,
}

impl Has {
    pub(super) fn new() -> Self {
        Self {
            pan: id!("id_aa64mmfr1_el1", 20) != 0,
            uao: id!("id_aa64mmfr2_el1", 4) != 0,
            dit: id!("id_aa64pfr0_el1", 48) != 0,
            ssbs: id!("id_aa64pfr1_el1", 4) != 0,
            bti: id!("id_aa64pfr1_el1", 0) != 0,
            // Without tags in memory (1), emulators have no TCO.
            mte: id!("id_aa64pfr1_el1", 8) >= 2,
            nmi: id!("id_aa64pfr1_el1", 36) != 0,
        }
    }

    /// What an ERET with this SPSR makes PSTATE, where nobody steps.
    pub(super) fn returned(&self, spsr: u64) -> u64 {
        let bit = |has, bit: u64| if has { spsr & bit } else { 0 };
        spsr & (NZCV | DAIF | 0x1f)
            | bit(self.pan, PAN)
            | bit(self.uao, UAO)
            | bit(self.dit, DIT)
            | bit(self.ssbs, SSBS)
            | bit(self.bti, 3 << 10)
            | bit(self.mte, TCO)
            | bit(self.nmi, ALLINT)
    }

    /// PSTATE after an exception to EL1 (AArch64.TakeException).
    pub(super) fn taken(&self, old: u64, sctlr: u64) -> u64 {
        let set = |condition, bit: u64| if condition { bit } else { 0 };
        let pan = if sctlr & SPAN == 0 { PAN } else { old & PAN };
        old & NZCV
            | set(self.dit, old & DIT)
            | set(self.pan, pan)
            | set(self.ssbs && sctlr & DSSBS != 0, SSBS)
            | set(self.mte, TCO)
            | set(self.nmi && sctlr & SPINTMASK == 0, ALLINT)
            | DAIF
            | EL1H
    }
}

/// A way to an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the CPU itself.
    Undefined,
    /// By hyp: a register that is hidden.
    Hidden,
    /// The host refuses a load.
    Load,
    /// A store.
    Store,
    /// A fetch.
    Fetch,
}

const WAYS: [Way; 5] = [Way::Undefined, Way::Hidden, Way::Load, Way::Store, Way::Fetch];

impl Way {
    const fn instruction(self) -> u32 {
        match self {
            Self::Undefined | Self::Fetch => UDF,
            Self::Hidden => HIDDEN,
            Self::Load => insn::LDR64,
            Self::Store => insn::STR32,
        }
    }

    /// ESR_EL1 of the exception from EL0 or EL1.
    const fn esr(self, el0: bool) -> u64 {
        let (class, iss) = match self {
            Self::Undefined | Self::Hidden => (0, 0),
            // DFSC, IFSC: synchronous external abort. WnR.
            Self::Load => (if el0 { 0x24 } else { 0x25 }, 0x10),
            Self::Store => (if el0 { 0x24 } else { 0x25 }, 0x10 | 1 << 6),
            Self::Fetch => (if el0 { 0x20 } else { 0x21 }, 0x10),
        };
        class << 26 | 1 << 25 | iss
    }
}

/// A puppet and where it goes.
struct Guest(Puppet);

impl Guest {
    fn new(machine: Machine) -> Self {
        let guest = machine.started(None);
        guest.write(CNTKCTL, EL0PTEN);
        guest.at(NOWHERE);
        // Vectors that look about before they go to the puppet's own.
        for n in 0..16 {
            let at = guest.area() + IMAGE + 0x80 * n;
            let target = guest.vectors() + 0x80 * n;
            let offset = target.wrapping_sub(at + 4) / 4;
            guest.write_words(at, &[LOOK, 0x1400_0000 | offset as u32 & 0x03ff_ffff]);
        }
        Self(guest)
    }

    /// Where the code is that traps, for this way.
    fn pc(&self, way: Way) -> u64 {
        if way == Way::Fetch { NOWHERE + 0x1000 } else { self.0.area() }
    }

    /// Goes there with this SPSR and SCTLR_EL1, up to the exception or what comes before.
    fn go(&self, way: Way, spsr: u64, sctlr: u64) -> Event {
        self.leave_another(sctlr);
        self.0.write_code(&[way.instruction()]);
        let event = self.0.begin(Routine::Leave, [self.pc(way), spsr, sctlr]);
        match way {
            Way::Undefined | Way::Hidden => event,
            Way::Load | Way::Store => {
                self.nothing_there(event.exit(Reason::Mmio), NOWHERE);
                self.0.resume(RunFlags::ABORT, [0; 4])
            }
            Way::Fetch => {
                self.nothing_there(event.exit(Reason::Fault), NOWHERE + 0x1000);
                self.0.resume(RunFlags::ABORT, [0; 4])
            }
        }
    }

    /// Leaves once with all of SCTLR_EL1 otherwise that an exception looks at: what hyp has of it then is
    /// stale in the next entry, which sets this value and traps.
    fn leave_another(&self, sctlr: u64) {
        self.0.write(SCTLR_EL1, sctlr ^ (SPAN | DSSBS | SPINTMASK));
    }

    fn nothing_there(&self, exit: Exit, address: u64) {
        assert_eq!(exit.data[0], address, "address");
    }

    /// The exception that comes of it.
    fn exception(&self, way: Way, spsr: u64, sctlr: u64) -> Exception {
        self.0.write(VBAR, self.0.vectors());
        match self.go(way, spsr, sctlr) {
            Event::Exception(e) => e,
            event => panic!("{way:?} with SPSR {spsr:#x}: no exception but {event:x?}"),
        }
    }

    /// PSTATE at the first instruction of its handler.
    fn handler(&self, way: Way, spsr: u64, sctlr: u64) -> u64 {
        self.0.write(VBAR, self.0.area() + IMAGE);
        self.nothing_there(self.go(way, spsr, sctlr).exit(Reason::Mmio), NOWHERE);
        // The second exception has the first one's PSTATE in SPSR; its own handler looks in vain.
        let again = self.0.resume(RunFlags::ABORT, [0; 4]).exit(Reason::Mmio);
        self.nothing_there(again, NOWHERE);
        match self.0.resume(RunFlags::empty(), [0; 4]) {
            Event::Exception(Exception { spsr, vector: 4, .. }) => spsr,
            event => panic!("{way:?} with SPSR {spsr:#x}: {event:x?}"),
        }
    }
}

/// Calls `f` for every level, SPSR and SCTLR_EL1.
fn everywhere(mut f: impl FnMut(&str, u64, u64, u64)) {
    for (level, mode, vector) in LEVELS {
        for bits in BITS {
            for sctlr in [0, SPAN, DSSBS, SPAN | DSSBS | SPINTMASK] {
                f(level, mode | bits, vector, SCTLR | sctlr);
            }
        }
    }
}

fn exceptions_save_and_make_the_right_pstate() -> Result<(), Skip> {
    let (guest, has) = (Guest::new(Machine::normal()), Has::new());
    for way in WAYS {
        everywhere(|level, spsr, vector, sctlr| {
            let before = has.returned(spsr);
            let e = guest.exception(way, spsr, sctlr);
            assert_eq!(e.spsr, before, "{way:?} at {level}: SPSR_EL1 (SCTLR_EL1 {sctlr:#x})");
            assert_eq!(e.vector, vector, "{way:?} at {level}: vector");
            let own = if way == Way::Undefined { NZCV | DIT } else { 0 };
            let found = guest.handler(way, spsr, sctlr) & !own;
            let expected = has.taken(before, sctlr) & !own;
            assert_eq!(
                found, expected,
                "{way:?} at {level} with PSTATE {before:#x}, SCTLR_EL1 {sctlr:#x}: PSTATE in the \
                 handler is {found:#x}, not {expected:#x}"
            );
        });
    }
    Ok(())
}

fn aborts_have_the_syndrome_of_their_level() -> Result<(), Skip> {
    let guest = Guest::new(Machine::normal());
    for way in WAYS {
        for (level, mode, vector) in LEVELS {
            let e = guest.exception(way, DAIF | mode, SCTLR | SPAN);
            assert_eq!(e.esr, way.esr(mode == 0), "{way:?} at {level}: ESR_EL1");
            assert_eq!((e.elr, e.vector), (guest.pc(way), vector), "{way:?} at {level}");
            match way {
                Way::Load | Way::Store => assert_eq!(e.far, NOWHERE, "{way:?} at {level}: FAR_EL1"),
                Way::Fetch => assert_eq!(e.far, guest.pc(way), "{way:?} at {level}: FAR_EL1"),
                Way::Undefined | Way::Hidden => {}
            }
        }
    }
    Ok(())
}

/// Instructions that hyp or the host carries out for a guest, and whether EL0 has them.
const EMULATED: [(&str, u32, bool); 8] = [
    ("WFI", insn::WFI, true),
    ("a load", insn::LDR64, true),
    ("a store", insn::STR64, true),
    ("SMC", insn::SMC, false),
    ("an ID register", sysreg::PFR1.mrs(), false),
    ("a debug register", reg(2, 0, 0, 2, 2).mrs(), false),
    ("ACTLR_EL1", reg(3, 0, 1, 0, 1).msr(), false),
    ("an SGI", sysreg::ICC_SGI1R.msr(), false),
];

/// BTYPE and SS are gone behind an instruction that was carried out; the rest of PSTATE stays, and the
/// next instruction traps with it.
fn emulated_instructions_leave_pstate_as_it_is() -> Result<(), Skip> {
    let (guest, has) = (Guest::new(Machine::normal()), Has::new());
    guest.0.write(VBAR, guest.0.vectors());
    for (name, instruction, at_el0) in EMULATED {
        everywhere(|level, spsr, _, sctlr| {
            if spsr & 0xf == 0 && !at_el0 {
                return;
            }
            guest.0.write_code(&[instruction, HIDDEN]);
            let pc = guest.0.area();
            let mut event = guest.0.begin(Routine::Leave, [pc, spsr, sctlr]);
            if let Event::Exit(_) = event {
                event = guest.0.resume(RunFlags::empty(), [0; 4]);
            }
            let Event::Exception(e) = event else {
                panic!("{name} at {level} with SPSR {spsr:#x}: {event:x?}");
            };
            assert_eq!(e.elr, pc + 4, "{name} at {level}: it goes on behind it");
            let expected = has.returned(spsr) & !(3 << 10);
            assert_eq!(e.spsr, expected, "{name} at {level}: PSTATE behind it");
        });
    }
    Ok(())
}

/// The FP engine's own way to an UNDEFINED.
fn sve_of_a_guest_without_is_undefined_at_every_level() -> Result<(), Skip> {
    if !context().sve() {
        return Err(Skip("no SVE"));
    }
    let (guest, has) = (Guest::new(Machine::normal()), Has::new());
    everywhere(|level, spsr, vector, sctlr| {
        for (look, vbar) in [(false, guest.0.vectors()), (true, guest.0.area() + IMAGE)] {
            guest.0.write(VBAR, vbar);
            guest.leave_another(sctlr);
            guest.0.write_code(&[insn::SVE]);
            let mut event = guest.0.begin(Routine::Leave, [guest.0.area(), spsr, sctlr]);
            if look {
                event.exit(Reason::Mmio);
                guest.0.resume(RunFlags::ABORT, [0; 4]).exit(Reason::Mmio);
                event = guest.0.resume(RunFlags::empty(), [0; 4]);
            }
            let Event::Exception(e) = event else { panic!("SVE at {level}: {event:x?}") };
            let before = has.returned(spsr);
            if look {
                assert_eq!(e.spsr, has.taken(before, sctlr), "{level}: PSTATE in the handler");
            } else {
                let found = (e.esr, e.spsr, e.vector);
                assert_eq!(found, (1 << 25, before, vector), "SVE at {level}: ESR, SPSR, vector");
            }
        }
    });
    Ok(())
}

/// VBAR_EL1 changes in the entry that traps, too.
fn an_undefined_finds_the_vectors_of_its_entry() -> Result<(), Skip> {
    let guest = Guest::new(Machine::normal());
    let look = guest.0.area() + IMAGE;
    let (low, high) = (look as u32 & 0xffff, (look >> 16) as u32);
    for word in [UDF, HIDDEN, insn::SVE] {
        if word == insn::SVE && !context().sve() {
            continue;
        }
        guest.0.write(VBAR, guest.0.vectors());
        // MOVZ x0, MOVK x0, MSR VBAR_EL1, x0.
        let code = [0xd280_0000 | low << 5, 0xf2a0_0000 | high << 5, VBAR.msr(), word];
        guest.0.write_code(&code);
        let leave = [guest.0.area(), DAIF | EL1H, SCTLR | SPAN];
        guest.0.begin(Routine::Leave, leave).exit(Reason::Mmio);
        let event = guest.0.resume(RunFlags::empty(), [0; 4]);
        let Event::Exception(e) = event else { panic!("{word:#x}: {event:x?}") };
        assert_eq!((e.esr, e.elr), (1 << 25, guest.0.area() + 12), "{word:#x}");
    }
    Ok(())
}
