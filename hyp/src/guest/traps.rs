//! What a guest traps on: answered here, or handed to the host. What is different in AArch32 is in
//! [`crate::guest::traps32`].

use crate::arch::sysreg::*;
use crate::cpu::Cpu;
use crate::fp::TrapClass;
use crate::guest::exit::Exit;
use crate::guest::syndrome::{self, IdRead, SysReg, ec, pstate};
use crate::guest::traps32;
use crate::machine::machine;
use crate::vm::vcpu::{Open, Vcpu};
use crate::world::idregs;
use crate::world::switch::GuestRegs;
use umbra_shared::exit::Reason;

/// Handles a synchronous exception other than FP, calls and aborts, with the guest's EL1 still in the registers.
/// `None`: go on.
#[cold]
pub fn synchronous(vcpu: &mut Vcpu, esr: u64) -> Option<Exit> {
    match syndrome::class(esr) {
        ec::WFX => {
            step_over(vcpu, esr);
            Some(Exit::wfi())
        }
        ec::SYSREG => system_register(vcpu, esr),
        _ => {
            undefined(vcpu);
            None
        }
    }
}

// Called by umbra_guest_exit_sync (enter.S) for every synchronous exception but HVC, before anything of the
// host's is back: the traps that a guest takes often and that need nobody but hyp end here. All of the
// guest's registers are in its `regs`; ELR_EL2 and SPSR_EL2 are still its own. False: it is something
// else, or an interrupt waits for the host; nothing has been done then.
#[unsafe(no_mangle)]
extern "C" fn umbra_guest_trap(cpu: &mut Cpu, esr: u64) -> bool {
    let Some(loaded) = &mut cpu.loaded else { return false };
    let vcpu = loaded.vcpu();
    if read_isr_el1() != 0 {
        return false;
    }
    // AArch32 is for `run`: a guest that has it, and one that has it not and ends there.
    if syndrome::class(esr) != ec::SYSREG && pstate::is_aarch32(sys::read_spsr_el2().bits()) {
        return false;
    }
    let class = match syndrome::class(esr) {
        ec::SYSREG => return id_register(&mut vcpu.regs, esr),
        ec::FP => TrapClass::Fpsimd,
        ec::SVE => TrapClass::Sve,
        ec::SME => TrapClass::Sme,
        _ => return false,
    };
    cpu.fp.guest_opens(&vcpu.fp, class) && {
        cpu.fp.guest_trap(&mut cpu.hw, &mut vcpu.fp, class, &cpu.shared.stats);
        cpu.note_opening();
        true
    }
}

#[inline]
fn id_register(regs: &mut GuestRegs, esr: u64) -> bool {
    let Some(read) = IdRead::new(esr) else { return false };
    let Some(&value) = regs.id.get(read.index) else { return false };
    regs.set_x(read.register, value);
    let pc = sys::read_elr_el2().bits().wrapping_add(4);
    let old = sys::read_spsr_el2().bits();
    // SAFETY: the guest goes on behind the instruction that hyp executes for it.
    unsafe {
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(pc));
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(pstate::after_instruction(old)));
    }
    true
}

/// The guest's next instruction is the one behind that which trapped with `esr`.
pub fn step_over(vcpu: &mut Vcpu, esr: u64) {
    if vcpu.is_aarch32() {
        traps32::step_over(vcpu, esr);
        return;
    }
    vcpu.regs.pc = vcpu.regs.pc.wrapping_add(4);
    vcpu.regs.pstate = pstate::after_instruction(vcpu.regs.pstate);
}

/// An exception of the guest's own EL1, whose registers are live: UNDEFINED.
#[cold]
pub fn undefined(vcpu: &mut Vcpu) {
    if vcpu.is_aarch32() {
        traps32::undefined(vcpu);
        return;
    }
    write_elr_el1(vcpu.regs.pc);
    write_spsr_el1(vcpu.regs.pstate);
    write_esr_el1(syndrome::ESR_UNDEFINED);
    vcpu.regs.pc = syndrome::vector(read_vbar_el1(), vcpu.regs.pstate);
    vcpu.regs.pstate = pstate::on_exception(vcpu.regs.pstate, read_sctlr_el1());
}

/// An external abort for an access that the host refused, which had trapped with `esr`; EL1 is in
/// memory.
#[cold]
pub fn external_abort(vcpu: &mut Vcpu, esr: u64, far: u64) {
    if vcpu.is_aarch32() {
        traps32::external_abort(vcpu, esr, far);
        return;
    }
    let from_el0 = pstate::is_el0(vcpu.regs.pstate);
    let el1 = &mut vcpu.el1.regs;
    el1.elr_el1 = vcpu.regs.pc;
    el1.spsr_el1 = vcpu.regs.pstate;
    el1.esr_el1 = syndrome::esr_external_abort(esr, from_el0);
    el1.far_el1 = far;
    vcpu.regs.pc = syndrome::vector(el1.vbar_el1, vcpu.regs.pstate);
    vcpu.regs.pstate = pstate::on_exception(vcpu.regs.pstate, el1.sctlr_el1);
}

/// The same with the guest's EL1 live, for an access that nobody answers.
#[cold]
pub fn external_abort_now(vcpu: &mut Vcpu, esr: u64, far: u64) {
    write_elr_el1(vcpu.regs.pc);
    write_spsr_el1(vcpu.regs.pstate);
    write_esr_el1(syndrome::esr_external_abort(esr, pstate::is_el0(vcpu.regs.pstate)));
    write_far_el1(far);
    vcpu.regs.pc = syndrome::vector(read_vbar_el1(), vcpu.regs.pstate);
    vcpu.regs.pstate = pstate::on_exception(vcpu.regs.pstate, read_sctlr_el1());
}

/// The host finished what the last exit left open.
#[inline(never)]
pub fn complete_read(vcpu: &mut Vcpu, data: u64) {
    if let Open::Read { register, bytes, big_endian, sign, wide, esr, .. } = vcpu.open {
        let data = syndrome::device_order(data, bytes, big_endian);
        vcpu.regs.set_x(register, syndrome::extend(data, bytes, sign, wide));
        step_over(vcpu, esr);
    }
}

/// A store that had trapped with `esr` is done.
pub fn complete_write(vcpu: &mut Vcpu, esr: u64) {
    step_over(vcpu, esr);
}

fn system_register(vcpu: &mut Vcpu, esr: u64) -> Option<Exit> {
    let r = SysReg::new(esr);
    let value = match (r.op0, r.op1, r.crn, r.crm, r.op2) {
        // The ID registers, AArch32's included (TID3).
        (3, 0, 0, 1..=7, _) if r.read => {
            let id = IdRead::new(esr).and_then(|read| vcpu.regs.id.get(read.index));
            id.copied().unwrap_or(0)
        }
        // SMIDR_EL1 (TID1), of those who have SME.
        (3, 1, 0, 0, 6) if r.read && vcpu.fp.svq().is_some() => idregs::smidr(&machine().id),
        // REVIDR_EL1, AIDR_EL1 (TID1).
        (3, 0, 0, 0, 6) | (3, 1, 0, 0, 7) if r.read => 0,
        // ACTLR_EL1.
        (3, 0, 1, 0, 1) => 0,
        // ICC_SRE_EL1: system registers only, no bypass.
        (3, 0, 12, 12, 5) => 7,
        // ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1: the host has the distributor.
        (3, 0, 12, 11, 5..=7) if !r.read => {
            let value = vcpu.regs.x(r.register);
            step_over(vcpu, esr);
            let which = u64::from(r.op2) - 5;
            return Some(Exit::new(Reason::Sgi, [value, which, 0, 0, 0, 0]));
        }
        // DC ISW, CSW, CISW (TSW): set and way mean nothing to a guest. Its memory was cleaned when it
        // got it, and nobody else writes it through another attribute.
        (1, 0, 7, 6 | 10 | 14, 2) => 0,
        // Debug: nothing is there; reads as zero, writes ignored. Trace and BRBE (op1 1) are UNDEFINED.
        (2, 0 | 3, ..) => 0,
        _ => {
            undefined(vcpu);
            return None;
        }
    };
    if r.read {
        vcpu.regs.set_x(r.register, value);
    }
    step_over(vcpu, esr);
    None
}
