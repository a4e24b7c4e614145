//! What the host traps on.

use super::{calls, report};
use crate::arch::end;
use crate::arch::exception::HostFrame;
use crate::arch::lock::wait_for_interrupt;
use crate::arch::log::{self, Transition};
use crate::arch::sysreg::sys;
use crate::arch::sysreg::*;
use crate::cpu::Cpu;
use crate::fp::TrapClass;
use crate::guest::aarch32;
use crate::guest::run;
use crate::guest::syndrome::{self, Abort, SysReg, ec, pstate};
use crate::irq::{self, hw::Answer, registers::Width};
use crate::machine::machine;
use crate::memory::hw;
use crate::memory::stage2::{Fault, HostFault};
use crate::power::{self, psci};
use umbra_shared::call::{Counter, Function};
use umbra_shared::record::Kind;

// Called by host_sync (vectors.S): an HVC. What happens at every exit of a guest comes before everything else.
#[unsafe(no_mangle)]
extern "C" fn umbra_host_call(frame: &mut HostFrame) {
    // SAFETY: the outermost function of this exception.
    let cpu = unsafe { Cpu::current() };
    if Function::VcpuRun.is_in(frame.x[0]) {
        frame.elr = sys::read_elr_el2().bits();
        frame.spsr = sys::read_spsr_el2().bits();
        run::run(cpu, frame);
    } else if Function::Version.is_in(frame.x[0]) && !cfg!(feature = "transition-log") {
        // Also what a host asks to find out that somebody answers.
        frame.x[0] = 0;
        // Not as a slice: that would be a call of memcpy.
        let [x1, x2, x3, x4, x5, x6, x7, x8] = cpu.version;
        [frame.x[1], frame.x[2], frame.x[3], frame.x[4]] = [x1, x2, x3, x4];
        [frame.x[5], frame.x[6], frame.x[7], frame.x[8]] = [x5, x6, x7, x8];
    } else {
        calls::handle(cpu, frame);
        // It may have mapped something that the end of the machine has just emptied.
        end::stop_if_asked();
    }
}

// Called by host_sync: anything but an HVC and an abort.
#[unsafe(no_mangle)]
extern "C" fn umbra_host_trap(frame: &mut HostFrame, esr: u64) {
    // SAFETY: as above.
    let cpu = unsafe { Cpu::current() };
    rare(cpu, frame, esr);
    end::stop_if_asked();
}

// Called by host_sync: an abort, or what has its bit of EC; the frame has all registers.
#[unsafe(no_mangle)]
extern "C" fn umbra_host_abort(frame: &mut HostFrame, esr: u64) {
    // SAFETY: as above.
    let cpu = unsafe { Cpu::current() };
    match syndrome::class(esr) {
        ec::DATA_ABORT | ec::INSTRUCTION_ABORT => abort(cpu, frame, esr),
        _ => inject(syndrome::ESR_UNDEFINED, None),
    }
    end::stop_if_asked();
}

fn rare(cpu: &mut Cpu, frame: &mut HostFrame, esr: u64) {
    match syndrome::class(esr) {
        ec::SMC64 => {
            // Trapped before it executed (HCR_EL2.TSC).
            step_over(esr);
            if machine().stats && psci::ends_the_machine(psci::registers(&frame.x)[0] as u32) {
                report::counters();
            }
            power::hw::handle(cpu, frame);
        }
        ec::FP => floating_point(cpu, TrapClass::Fpsimd),
        ec::SVE => floating_point(cpu, TrapClass::Sve),
        ec::SME => floating_point(cpu, TrapClass::Sme),
        ec::WFX => wait(cpu, esr),
        ec::SYSREG if machine().displace && SysReg::new(esr).zeroes_a_block() => {
            zero_block(cpu);
        }
        // IMPLEMENTATION DEFINED registers (TIDCP), where a 32-bit EL0's accesses trap, too. The CPU may trap one
        // whose condition fails; that is a NOP.
        ec::CP15 | ec::CP15_64 if !aarch32::condition_passes(esr, sys::read_spsr_el2().bits()) => {
            step_over32(esr);
        }
        // Nothing else is trapped from the host, but for IMPLEMENTATION DEFINED registers and instructions, all
        // of which are UNDEFINED to it; a CPU that traps more than hyp asked for has an
        // instruction that the host can't have.
        _ => inject(syndrome::ESR_UNDEFINED, None),
    }
}

fn step_over(esr: u64) {
    let pc = sys::read_elr_el2().bits().wrapping_add(syndrome::instruction_bytes(esr));
    go_on(pc, pstate::after_instruction(sys::read_spsr_el2().bits()));
}

/// The same behind an instruction of a 32-bit EL0's that was a NOP.
fn step_over32(esr: u64) {
    let (pc, old) = (sys::read_elr_el2().bits(), sys::read_spsr_el2().bits());
    let (pc, pstate) = aarch32::after_instruction(pc, old, esr);
    go_on(pc, pstate);
}

fn go_on(pc: u64, pstate: u64) {
    // SAFETY: the host goes on behind the instruction that hyp executes for it, in the state that it was in.
    unsafe {
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(pc));
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(pstate));
    }
}

fn floating_point(cpu: &mut Cpu, class: TrapClass) {
    if !cpu.fp.host_opens(class) {
        // All that the machine has is open to the host already.
        inject(syndrome::ESR_UNDEFINED, None);
        return;
    }
    let stats = &cpu.shared.stats;
    match &mut cpu.loaded {
        Some(loaded) => {
            let vcpu = loaded.vcpu();
            let flags = cpu.fp.host_trap(&mut cpu.hw, Some(&mut vcpu.fp), class, stats);
            vcpu.flags.publish(flags);
        }
        None => {
            cpu.fp.host_trap(&mut cpu.hw, None, class, stats);
            if machine().displace {
                cpu.world.trap_host_displacement(true);
            }
        }
    }
    log::forget();
    cpu.log(|| {
        let sme = u64::from(class == TrapClass::Sme);
        Transition::new(Kind::HostFp, [sme, 0, 0, 0, 0, 0, 0])
    });
}

/// WFI or WFIT, trapped because of `umbra.displace` only.
fn wait(cpu: &mut Cpu, esr: u64) {
    cpu.fp.displace_host(&mut cpu.hw, &cpu.shared.stats);
    // WFIT's deadline is in a register of the host's; it may end early, and does.
    if !syndrome::wait_has_deadline(esr) {
        wait_for_interrupt();
    }
    step_over(esr);
}

/// DC ZVA, trapped because of `umbra.displace` only: how a program can ask for its registers to be taken
/// away. It is open to the host from here to its next use of FP, and zeroes by itself.
fn zero_block(cpu: &mut Cpu) {
    cpu.fp.displace_host(&mut cpu.hw, &cpu.shared.stats);
    cpu.world.trap_host_displacement(false);
}

fn abort(cpu: &mut Cpu, frame: &mut HostFrame, esr: u64) {
    // Where all CPUs come when nothing is mapped for them any more.
    end::stop_if_asked();
    let far = sys::read_far_el2().bits();
    let ipa = syndrome::fault_ipa(read_hpfar_el2(), far);
    let is_translation = Abort::new(esr).is_translation();
    if is_translation && let Some(registers) = irq::hw::find(ipa) {
        return gic(cpu, frame, esr, registers, ipa);
    }
    log::forget();
    let is_kernels = syndrome::is_kernels_data(esr, sys::read_spsr_el2().bits());
    let fault = if is_translation {
        let kernel_on = is_kernels.then(|| cpu.index());
        hw::with(|memory| memory.host_fault(Fault { pa: ipa, kernel_on }))
    } else {
        HostFault::Abort
    };
    // It may have been mapped again since.
    end::stop_if_asked();
    cpu.log(|| Transition {
        result: match fault {
            HostFault::Abort => 0,
            HostFault::Retry => 1,
            HostFault::Junk => 2,
        },
        ..Transition::new(Kind::HostFault, [ipa, is_kernels.into(), 0, 0, 0, 0, 0])
    });
    match fault {
        HostFault::Retry => cpu.shared.stats.add(Counter::Stage2Retries, 1),
        HostFault::Junk => cpu.shared.stats.add(Counter::HostJunk, 1),
        HostFault::Abort => {
            let from_el0 = refused(cpu);
            inject(syndrome::esr_host_abort(esr, far, from_el0), Some(far));
        }
    }
}

/// An access of the host's ends in an abort; whether it is EL0's.
fn refused(cpu: &Cpu) -> bool {
    cpu.shared.stats.add(Counter::HostAborts, 1);
    pstate::is_el0(sys::read_spsr_el2().bits())
}

fn external_abort(cpu: &Cpu, esr: u64) {
    let from_el0 = refused(cpu);
    inject(syndrome::esr_external_abort(esr, from_el0), Some(sys::read_far_el2().bits()));
}

/// An access to registers of the GIC that are not simply the host's.
fn gic(cpu: &mut Cpu, frame: &mut HostFrame, esr: u64, registers: irq::frames::Frame, ipa: u64) {
    cpu.shared.stats.add(Counter::GicTraps, 1);
    log::forget();
    let spsr = sys::read_spsr_el2().bits();
    let data = syndrome::class(esr) == ec::DATA_ABORT;
    let access = Abort::new(esr).access().filter(|_| data);
    let answer = access.map(|access| {
        let bytes = 1u8 << access.size_log2;
        let big_endian = pstate::is_big_endian(spsr, read_sctlr_el1());
        let store = access.write.then(|| {
            let value = syndrome::extend(frame.register(access.register), bytes, false, true);
            syndrome::device_order(value, bytes, big_endian)
        });
        let answer = irq::hw::access(registers, ipa, Width::of(bytes.into()), store);
        if let Answer::Loaded(value) = answer {
            let value = syndrome::device_order(value, bytes, big_endian);
            // An AArch32 register has 32 bits, whatever the syndrome says of it.
            let wide = access.wide && !pstate::is_aarch32(spsr);
            let value = syndrome::extend(value, bytes, access.sign, wide);
            frame.set_register(access.register, value);
        }
        answer
    });
    let done = !matches!(answer, None | Some(Answer::Abort));
    cpu.log(|| Transition {
        result: done.into(),
        ..Transition::new(Kind::Gic, [ipa, esr, 0, 0, 0, 0, 0])
    });
    if !done {
        external_abort(cpu, esr);
    } else if pstate::is_aarch32(spsr) {
        step_over32(esr);
    } else {
        step_over(esr);
    }
}

/// An exception in the host's EL1.
#[cold]
fn inject(esr: u64, far: Option<u64>) {
    let old = sys::read_spsr_el2().bits();
    write_elr_el1(sys::read_elr_el2().bits());
    write_spsr_el1(old);
    write_esr_el1(esr);
    if let Some(far) = far {
        write_far_el1(far);
    }
    // SAFETY: the host goes on at its own vector, at EL1.
    unsafe {
        let pc = syndrome::vector(read_vbar_el1(), old);
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(pc));
        let new = pstate::on_exception(old, read_sctlr_el1());
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(new));
    }
}
