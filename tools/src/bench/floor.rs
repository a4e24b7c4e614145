//! The floor: the fewest instructions that the architecture lets anybody do it in.
//!
//! A floor counts what must be executed for the state that must move, at one instruction per system
//! register access and half of one per register that is loaded or stored (LDP and STP take two). It
//! leaves out whatever an implementation adds: decisions that could have been taken elsewhere, calls,
//! checks beyond the ones that protect somebody, statistics. It is a yardstick and not a promise: nobody
//! writes a whole hypervisor as one straight line.
//!
//! # A round trip from guest to host and back
//!
//! What must be switched is the register table of hyp's `arch/world.rs`, whole: each of those registers
//! differs between two worlds, or may.
//!
//! | what | instructions | why |
//! |---|---|---|
//! | the guest's loop | 4 | MOV, HVC, SUBS, B.NE: it is measured, so it counts |
//! | two exceptions, two ERETs | 4 | one branch out of each vector |
//! | guest X0-X30 | 32 | 15 STP + 1 STR, and the reverse |
//! | host X18-X30 | 14 | SMCCC lets a call change X0-X17: 7 STP, 7 LDP |
//! | results and answer | 10 | X0-X7 to the host, X0-X3 to the guest (2 STP: they are loaded with the rest) |
//! | EL1's registers, 24 | 144 | each MRS, MSR, half an STP and half an LDP, twice |
//! | pointer-authentication keys, 10 | 60 | the same (FEAT_PAuth), if the guest uses them (`exit_with_pauth`): as long as they are trapped they need not be switched |
//! | TPIDR2_EL0 | 6 | the same (FEAT_SME) |
//! | TRFCR_EL1, BRBCR_EL1 | 4 each | the host's is kept, the guest's is zero (FEAT_TRF, FEAT_BRBE) |
//! | ELR_EL2, SPSR_EL2 | 12 | both worlds' |
//! | CNTV_CTL, CNTV_CVAL | 12 | both worlds' |
//! | CNTVOFF_EL2 | 3 | the guest's is loaded, the host's is zero |
//! | ICH_VMCR, AP0R0, AP1R0, LR0 | 12 | the guest's only: saved once, loaded once |
//! | ICH_HCR_EL2 | 3 | on, off |
//! | HCR, MDCR, CNTHCTL, ICC_SRE, VMPIDR, VTTBR, VBAR, CPTR | 24 | two constants each: two MSR, two halves of an LDP |
//! | HCRX_EL2 | 3 | the same (FEAT_HCX) |
//! | HFGRTR, HFGWTR, HFGITR, HDFGRTR, HDFGWTR | 15 | the same (FEAT_FGT) |
//! | the five of FEAT_FGT2 | 15 | the same |
//! | MPAM2_EL2 | 3 | the same (FEAT_MPAM) |
//! | VDISR_EL2 | 1 | zero at entry (FEAT_RAS) |
//! | SVCR | 2 | is the host streaming? (FEAT_SME, while the host's FP registers are live) |
//! | which exception is it, twice | 10 | ESR_EL2 read, class taken out, compared; the host's function ID compared |
//! | whose CPU, which vCPU | 5 | TPIDR_EL2 twice, a pointer, is one loaded |
//! | the flag-shadow page | 4 | the hint loaded and masked, hyp's word made and stored |
//! | the host's loop | 17 | function ID, flags and answer into X0-X5, HVC, interrupts off and on, its word stored, the exit's reason and the guest's call told apart, turn counted |
//!
//! No ISB, DSB or TLBI is needed: an exception and an ERET synchronise the context, and every VM has a
//! VMID of its own.
//!
//! # FP registers
//!
//! | what | instructions | why |
//! |---|---|---|
//! | V0-V31, FPSR, FPCR to memory or back | 19 | 16 STP, 2 MRS, 1 STP |
//! | Z0-Z31, P0-P15, FFR, FPSR, FPCR | 56 | 32 + 16 STR, RDFFR, STR, P0 again; 2 address, 2 MRS, 1 STP: at any VL |
//! | zeroing them | 51 | 32 DUP, 16 PFALSE, WRFFR, 2 MSR |
//! | ZCR_EL1, ZCR_EL2 | 10 | one saved, one loaded; the clamp written, ISB, RDVL compared |
//! | a trap on FP | 15 | vector, four scratch registers, class, CPTR opened, ISB, CPTR set, ERET |
//!
//! A guest that uses FP at each turn costs nothing as long as its host doesn't: its state is live. If the
//! host uses FP at each turn, too, both trap, and four register files move. `eager` and `scrub` have a
//! floor of their own: what they promise must be done at each exit.
//!
//! # Others
//!
//! A trap that EL2 answers alone takes 30 with the guest's loop of three: the vector, four scratch
//! registers, the class (4), the value (5), a computed branch to a MOV into any of 31 registers (4), the
//! next instruction's address and PSTATE (6), a look for pending interrupts (2), ERET. A null hypercall
//! takes 24 with its caller's loop of four: the vector, the class (4), the function ID (3), nine result
//! registers (11), ERET. What moves memory has no floor here: its cost is that of the memory.

use super::row::{Fp, Hints, Policy, Row};

/// What of the machine a floor depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_PAuth.
    pub pauth: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_TRF.
    pub trace_filter: bool,
    /// FEAT_BRBE.
    pub brbe: bool,
}

impl Features {
    /// Reads ID registers; `id` gives the value of one by its name without `id_aa64` and `_el1`.
    pub fn new(id: impl Fn(&str) -> u64) -> Self {
        let field = |name: &str, low: u32| id(name) >> low & 0xf;
        Self {
            sve: field("pfr0", 32) != 0,
            sme: field("pfr1", 24) != 0,
            pauth: field("isar1", 4) != 0 || field("isar1", 8) != 0 || field("isar2", 12) != 0,
            hcx: field("mmfr1", 40) != 0,
            fgt: field("mmfr0", 56) != 0,
            fgt2: field("mmfr0", 56) >= 2,
            mpam: field("pfr0", 40) != 0 || field("pfr1", 16) != 0,
            ras: field("pfr0", 28) != 0,
            trace_filter: field("dfr0", 40) != 0,
            brbe: field("dfr0", 52) != 0,
        }
    }
}

/// A register that both worlds have, there and back.
const SWITCHED: u32 = 6;
/// A register of EL2 that is a constant in each world, or is saved and loaded once.
const CONTROL: u32 = 3;
/// A register that is the host's, and zero meanwhile.
const HOSTS: u32 = 4;
/// EL1's registers that every CPU has.
const EL1: u32 = 24;
const PAUTH_KEYS: u32 = 10;

const FPSIMD: u32 = 19;
const SVE: u32 = 56;
const ZERO: u32 = 51;
const ZERO_FPSIMD: u32 = 34;
const ZCR: u32 = 10;
const FP_TRAP: u32 = 15;

const EL2_TRAP: u32 = 30;
const NULL_HYPERCALL: u32 = 24;

/// The round trip by HVC, without FP.
pub fn exit_to_host(f: &Features, guest_uses_pauth: bool) -> u32 {
    let if_has = |has: bool, count: u32| if has { count } else { 0 };
    4 + 4
        + 32
        + 14
        + 10
        + EL1 * SWITCHED
        + if_has(f.pauth && guest_uses_pauth, PAUTH_KEYS * SWITCHED)
        + if_has(f.sme, SWITCHED)
        + if_has(f.trace_filter, HOSTS)
        + if_has(f.brbe, HOSTS)
        // ELR_EL2, SPSR_EL2; CNTV_CTL, CNTV_CVAL.
        + 4 * SWITCHED
        + CONTROL
        // The virtual CPU interface, and its control.
        + 4 * CONTROL
        + CONTROL
        + 8 * CONTROL
        + if_has(f.hcx, CONTROL)
        + if_has(f.fgt, 5 * CONTROL)
        + if_has(f.fgt2, 5 * CONTROL)
        + if_has(f.mpam, CONTROL)
        + if_has(f.ras, 1)
        + if_has(f.sme, 2)
        + 10
        + 5
        + 4
        + 17
}

/// The register files that must move.
struct Moves<'r> {
    features: &'r Features,
    row: &'r Row,
}

impl Moves<'_> {
    fn zcr(&self) -> u32 {
        if self.features.sve { ZCR } else { 0 }
    }

    fn zero(&self) -> u32 {
        if self.features.sve { ZERO } else { ZERO_FPSIMD }
    }

    /// A guest's state, one way.
    fn guest(&self) -> u32 {
        if self.row.vl_bytes == Some(0) { FPSIMD } else { SVE }
    }

    fn save_host(&self) -> u32 {
        match self.row.hints {
            Some(Hints::Foreign) => 0,
            Some(Hints::Discarded) => FPSIMD,
            _ if !self.features.sve => FPSIMD,
            _ => SVE,
        }
    }

    fn load_host(&self) -> u32 {
        match self.row.hints {
            Some(Hints::Foreign) => self.zero(),
            _ if !self.features.sve => FPSIMD,
            // The rest reads as zero.
            Some(Hints::Discarded) => self.zero() + FPSIMD,
            _ => SVE,
        }
    }

    /// The guest's trap; with the host's state live, or nobody's.
    fn guest_trap(&self, host_live: bool) -> u32 {
        let save = if host_live { self.save_host() } else { 0 };
        FP_TRAP + self.zcr() + save + self.guest()
    }

    /// The host's trap; with the guest's state live, or nobody's.
    fn host_trap(&self, guest_live: bool) -> u32 {
        let save = if guest_live { self.guest() } else { 0 };
        FP_TRAP + self.zcr() + save + self.load_host()
    }

    /// What a turn moves.
    fn turn(&self) -> u32 {
        let host = self.row.host_fp != Some(Fp::None);
        if self.row.guest_fp == Some(Fp::None) {
            return 0;
        }
        match self.row.policy {
            Some(Policy::Eager) => {
                // CPTR opened, ISB; saved, loaded.
                self.guest_trap(true) + 3 + self.zcr() + self.guest() + self.load_host()
            }
            Some(Policy::Scrub) => {
                let away = 3 + self.guest() + self.zero();
                away + self.guest_trap(host) + if host { self.host_trap(false) } else { 0 }
            }
            _ if host => self.guest_trap(true) + self.host_trap(true),
            _ => 0,
        }
    }
}

/// The floor of a row; `None`: it has none.
pub fn of(row: &Row, features: &Features) -> Option<u32> {
    let moves = Moves { features, row };
    let use_of_fp = u32::from(row.guest_fp.is_some_and(|fp| fp != Fp::None))
        + u32::from(row.host_fp.is_some_and(|fp| fp != Fp::None));
    match row.name.as_str() {
        "exit_to_host" => Some(exit_to_host(features, false) + use_of_fp + moves.turn()),
        "exit_growth" => Some(exit_to_host(features, false)),
        "exit_with_pauth" => Some(exit_to_host(features, true)),
        "el2_trap" => Some(EL2_TRAP),
        "null_hypercall" => Some(NULL_HYPERCALL),
        // The host's state is live when the guest traps, whatever the policy: it has just used it.
        "first_touch" => Some(moves.guest_trap(true)),
        _ => None,
    }
}

/// The register files that a first touch moves, without the trap: what the target is a multiple of.
pub fn first_touch_moves(row: &Row, features: &Features) -> u32 {
    let moves = Moves { features, row };
    moves.guest_trap(true) - FP_TRAP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up() {
        let none = Features::default();
        assert_eq!(exit_to_host(&none, true), 310);
        let max_7_2 = Features { sve: true, sme: true, pauth: true, hcx: true, ras: true, ..none };
        assert_eq!(exit_to_host(&max_7_2, true), 310 + 60 + 6 + 3 + 1 + 2);
        assert_eq!(exit_to_host(&max_7_2, false), 310 + 6 + 3 + 1 + 2);
    }

    #[test]
    fn a_turn_moves_what_its_policy_says() {
        let features = Features { sve: true, ..Features::default() };
        let row = |policy, guest, host, hints| Row {
            name: "exit_to_host".to_owned(),
            policy: Some(policy),
            hints: Some(hints),
            vl_bytes: Some(64),
            guest_fp: Some(guest),
            host_fp: Some(host),
            ..Row::default()
        };
        let turn = |policy, guest, host, hints| {
            let row = row(policy, guest, host, hints);
            Moves { features: &features, row: &row }.turn()
        };
        let none = Hints::None;
        assert_eq!(turn(Policy::Lazy, Fp::Sve, Fp::None, none), 0);
        assert_eq!(turn(Policy::Eager, Fp::None, Fp::Sve, none), 0);
        assert_eq!(turn(Policy::Lazy, Fp::Sve, Fp::Sve, none), 2 * (15 + 10) + 4 * 56);
        let foreign = turn(Policy::Lazy, Fp::Sve, Fp::Sve, Hints::Foreign);
        assert_eq!(foreign, 2 * (15 + 10) + 2 * 56 + 51);
        let scrub = turn(Policy::Scrub, Fp::Fpsimd, Fp::None, none);
        assert_eq!(scrub, 3 + 56 + 51 + 15 + 10 + 56);
        let eager = turn(Policy::Eager, Fp::Fpsimd, Fp::None, none);
        assert_eq!(eager, 15 + 10 + 2 * 56 + 3 + 10 + 2 * 56);
    }
}
