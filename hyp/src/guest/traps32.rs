//! What a guest in AArch32 traps on, as far as it differs from AArch64 ([`crate::guest::traps`]).

#![forbid(unsafe_code)]

use crate::arch::sysreg::*;
use crate::guest::aarch32::{self, Access, Coprocessor, Entry, LR_ABT, LR_UND, NZCV};
use crate::guest::exit::Exit;
use crate::guest::syndrome::{self, ec};
use crate::vm::vcpu::Vcpu;
use umbra_shared::exit::Reason;

/// Whether the instruction that trapped is executed at all.
pub fn condition_passes(vcpu: &Vcpu, esr: u64) -> bool {
    aarch32::condition_passes(esr, vcpu.regs.pstate)
}

/// Handles a synchronous exception other than FP, calls and aborts, with the guest's EL1 still in the registers.
/// `None`: go on.
#[cold]
pub fn synchronous(vcpu: &mut Vcpu, esr: u64) -> Option<Exit> {
    if !condition_passes(vcpu, esr) {
        step_over(vcpu, esr);
        return None;
    }
    match syndrome::class(esr) {
        ec::WFX => {
            step_over(vcpu, esr);
            Some(Exit::wfi())
        }
        _ => match Coprocessor::new(esr) {
            Some(instruction) => coprocessor(vcpu, esr, instruction),
            None => {
                undefined(vcpu);
                None
            }
        },
    }
}

fn coprocessor(vcpu: &mut Vcpu, esr: u64, i: Coprocessor) -> Option<Exit> {
    let id = i.id_register().and_then(|index| vcpu.regs.id.get(index).copied());
    let value = match i.access {
        // The ID registers (TID3).
        _ if id.is_some() => id.unwrap_or(0),
        // TCMTR, TLBTR, REVIDR, AIDR (TID1).
        Access::System(0, 0, 0, 2 | 3 | 6) | Access::System(1, 0, 0, 7) if i.read => 0,
        // ACTLR, ACTLR2.
        Access::System(0, 1, 0, 1 | 3) => 0,
        // ICC_SRE: system registers only, no bypass.
        Access::System(0, 12, 12, 5) => 7,
        // ICC_SGI1R, ICC_ASGI1R, ICC_SGI0R: the host has the distributor.
        Access::System64(which @ 0..=2, 12) if !i.read => {
            let half = |register| vcpu.register_width(vcpu.regs.x(register));
            let value = half(i.register) | half(i.second) << 32;
            step_over(vcpu, esr);
            return Some(Exit::new(Reason::Sgi, [value, which.into(), 0, 0, 0, 0]));
        }
        // DCISW, DCCSW, DCCISW (TSW): as in AArch64.
        Access::System(0, 7, 6 | 10 | 14, 2) if !i.read => 0,
        // Debug: nothing is there; reads as zero, writes ignored.
        Access::Debug(0, ..) | Access::Debug64(0, _) => 0,
        _ => {
            undefined(vcpu);
            return None;
        }
    };
    if i.read {
        vcpu.regs.set_x(i.register, value);
        match i.access {
            // MRRC's other half, which is zero in all that are answered here.
            Access::Debug64(..) => vcpu.regs.set_x(i.second, 0),
            // MRC of DBGDSCRint to the flags.
            Access::Debug(0, 0, 1, 0) if i.register == 31 => vcpu.regs.pstate &= !NZCV,
            _ => {}
        }
    }
    step_over(vcpu, esr);
    None
}

/// The guest's next instruction is the one behind that which trapped with `esr`.
pub fn step_over(vcpu: &mut Vcpu, esr: u64) {
    let (pc, pstate) = aarch32::after_instruction(vcpu.regs.pc, vcpu.regs.pstate, esr);
    vcpu.regs.pc = pc;
    vcpu.regs.pstate = pstate;
}

/// UNDEFINED, in the guest's Undefined mode; its EL1 is live.
#[cold]
pub fn undefined(vcpu: &mut Vcpu) {
    let regs = &mut vcpu.regs;
    let entry = Entry::undefined(regs.pc, regs.pstate, read_sctlr_el1(), read_vbar_el1());
    write_spsr_und(entry.spsr);
    regs.x[LR_UND] = entry.lr;
    regs.pc = entry.pc;
    regs.pstate = entry.pstate;
}

/// An external abort, in the guest's Abort mode, for an access that the host refused and that had trapped
/// with `esr`; EL1 is in memory, but for what AArch32 adds to it: that is in place while the vCPU is loaded.
#[cold]
pub fn external_abort(vcpu: &mut Vcpu, esr: u64, far: u64) {
    let fault = Fault::new(esr);
    let el1 = &mut vcpu.el1.regs;
    let status = aarch32::fsr_external_abort(el1.tcr_el1, fault.write);
    if fault.fetch {
        write_ifsr32_el2(status);
    } else {
        el1.esr_el1 = status;
    }
    el1.far_el1 = aarch32::far(el1.far_el1, fault.fetch, far);
    let (sctlr, vbar) = (el1.sctlr_el1, el1.vbar_el1);
    enter_abort(vcpu, fault, sctlr, vbar);
}

/// The same with the guest's EL1 live, for an access that nobody answers.
#[cold]
pub fn external_abort_now(vcpu: &mut Vcpu, esr: u64, far: u64) {
    let fault = Fault::new(esr);
    let status = aarch32::fsr_external_abort(read_tcr_el1(), fault.write);
    if fault.fetch {
        write_ifsr32_el2(status);
    } else {
        write_esr_el1(status);
    }
    write_far_el1(aarch32::far(read_far_el1(), fault.fetch, far));
    enter_abort(vcpu, fault, read_sctlr_el1(), read_vbar_el1());
}

/// What an access was that trapped.
#[derive(Clone, Copy, Debug)]
struct Fault {
    fetch: bool,
    write: bool,
}

impl Fault {
    const fn new(esr: u64) -> Self {
        let fetch = syndrome::class(esr) == ec::INSTRUCTION_ABORT;
        Self { fetch, write: !fetch && esr & 1 << 6 != 0 }
    }
}

fn enter_abort(vcpu: &mut Vcpu, fault: Fault, sctlr: u64, vbar: u64) {
    let regs = &mut vcpu.regs;
    let entry = Entry::abort(fault.fetch, regs.pc, regs.pstate, sctlr, vbar);
    write_spsr_abt(entry.spsr);
    regs.x[LR_ABT] = entry.lr;
    regs.pc = entry.pc;
    regs.pstate = entry.pstate;
}
