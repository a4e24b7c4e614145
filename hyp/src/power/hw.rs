//! The host's SMCs: PSCI as [`crate::power::psci`] decides it, put into effect.

#![forbid(unsafe_code)]

use crate::arch::MAX_CPUS;
use crate::arch::end;
use crate::arch::exception::HostFrame;
use crate::arch::lock::send_event;
use crate::arch::log::{self, Transition};
use crate::arch::reset::{boot_params_address, secondary_entry_address};
use crate::arch::sysreg::{read_cntv_ctl_el0, read_cntv_cval_el0};
use crate::cpu::Cpu;
use crate::machine::{SHARED, machine};
use crate::power::protect::{Protection, protect};
use crate::power::psci::{
    self, Action, HostEntry, Power, PowerCell, SMCCC_1_2, SMCCC_ARCH_FEATURES, SMCCC_VERSION,
    Start, WORKAROUNDS, affinity_info, error,
};
use arm_psci::{ErrorCode, FunctionId};
use core::sync::atomic::Ordering;
use smccc::smc64;
use umbra_shared::call::VENDOR_UID_FUNCTION;
use umbra_shared::record::Kind;

const NOT_SUPPORTED: i64 = -1;

/// Each CPU's power state, by number.
static CELLS: [PowerCell; MAX_CPUS] = [const { PowerCell::new(Power::Off) }; MAX_CPUS];

/// A CPU's power state.
pub fn cell(cpu: usize) -> &'static PowerCell {
    &CELLS[cpu]
}

/// Handles an SMC of the host; the PC is behind it already.
pub fn handle(cpu: &mut Cpu, frame: &mut HostFrame) {
    let regs = psci::registers(&frame.x);
    let function = regs[0] as u32;
    if u64::from(function) == VENDOR_UID_FUNCTION {
        psci::answer_uid(&mut frame.x);
        return;
    }
    let answer = if psci::is_psci(function) {
        psci_call(cpu, regs)
    } else if function == SMCCC_VERSION {
        SMCCC_1_2
    } else if function == SMCCC_ARCH_FEATURES {
        match regs[1] as u32 {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
            asked if WORKAROUNDS.contains(&asked) => firmware(regs),
            _ => NOT_SUPPORTED,
        }
    } else if WORKAROUNDS.contains(&function) {
        firmware(regs)
    } else {
        NOT_SUPPORTED
    };
    frame.x[0] = answer as u64;
}

/// Calls firmware with x0-x3. Returns its w0, sign included: everything hyp forwards answers there.
pub fn firmware(regs: [u64; 4]) -> i64 {
    let mut args = [0; 17];
    args[..3].copy_from_slice(&regs[1..]);
    let answer = smc64(regs[0] as u32, args)[0];
    i64::from(answer as i32)
}

fn psci_call(cpu: &mut Cpu, regs: [u64; 4]) -> i64 {
    match psci::decide(regs) {
        Action::Answer(answer) => answer,
        Action::Forward => firmware(regs),
        Action::End(call) => end_the_machine(call),
        Action::Features { function } => match function {
            SMCCC_VERSION => 0,
            _ if psci::may_exist(function) => firmware(regs),
            _ => NOT_SUPPORTED,
        },
        Action::CpuOn { target, entry } => cpu_on(target, entry),
        Action::CpuOff => cpu_off(cpu),
        Action::CpuSuspend { state, entry } => cpu_suspend(cpu, state, entry),
        Action::AffinityInfo { target } => match find(target) {
            Some(number) => match CELLS[number].state() {
                // Really off, or on its way there: firmware knows.
                Power::Off => firmware(regs),
                power => affinity_info(power),
            },
            None => error(ErrorCode::InvalidParameters),
        },
    }
}

/// The machine is reset or turned off: nothing of what hyp guards is left behind. Returns only if firmware
/// can't do it.
fn end_the_machine(call: [u64; 4]) -> i64 {
    let function = call[0] as u32;
    let features = u64::from(FunctionId::PsciFeatures as u32);
    if psci::may_lack(function) && firmware([features, u64::from(function), 0, 0]) < 0 {
        return NOT_SUPPORTED;
    }
    // Even where firmware wipes: whoever still runs meanwhile would write to memory that it is past.
    end::claim();
    end::stop_others();
    end::finish(call)
}

/// Has firmware wipe memory at every reset, if it can.
pub fn protect_memory(banks: &[(u64, u64)]) -> Protection {
    let protection = protect(firmware, banks);
    if let Protection::On { .. } = protection {
        end::leave_it_to_firmware();
    }
    protection
}

fn find(affinity: u64) -> Option<usize> {
    SHARED[..machine().cpus]
        .iter()
        .position(|shared| shared.mpidr.load(Ordering::Relaxed) == affinity)
}

fn cpu_on(target: u64, entry: HostEntry) -> i64 {
    let Some(number) = find(target) else { return error(ErrorCode::InvalidParameters) };
    let power = &CELLS[number];
    match power.claim(entry) {
        Err(code) => error(code),
        Ok(Start::Release) => {
            send_event();
            0
        }
        Ok(Start::Firmware) => {
            let id = FunctionId::CpuOn64 as u32;
            let answer = firmware([
                u64::from(id),
                target,
                secondary_entry_address(),
                boot_params_address(number),
            ]);
            if answer != 0 {
                power.give_up_claim();
            }
            answer
        }
    }
}

/// What is loaded is put: the CPU is about to lose its registers.
fn implicit_put(cpu: &mut Cpu) {
    log::forget();
    // There is nothing to put if no vCPU is loaded.
    let _ = cpu.put();
    cpu.log(|| Transition::new(Kind::ImplicitPut, [0; 7]));
}

/// CPU_OFF: an implicit put, then firmware. Returns only if firmware refuses.
fn cpu_off(cpu: &mut Cpu) -> i64 {
    implicit_put(cpu);
    cell(cpu.index()).set(Power::Off);
    end::leaves(cpu.index());
    let answer = firmware([u64::from(FunctionId::CpuOff as u32), 0, 0, 0]);
    end::arrived(cpu.index());
    cell(cpu.index()).set(Power::On);
    answer
}

fn cpu_suspend(cpu: &mut Cpu, state: u32, entry: HostEntry) -> i64 {
    let features = firmware([
        u64::from(FunctionId::PsciFeatures as u32),
        u64::from(FunctionId::CpuSuspend64 as u32),
        0,
        0,
    ]);
    if psci::loses_context(state, features) {
        implicit_put(cpu);
    }
    // Whatever firmware makes of the state: if it comes back through an entry, that is hyp's, never the
    // host's, and 64 bits wide even if the host called with 32.
    cell(cpu.index()).suspend(entry);
    cpu.suspended_timer = Some([read_cntv_ctl_el0(), read_cntv_cval_el0()]);
    end::leaves(cpu.index());
    let answer = firmware([
        u64::from(FunctionId::CpuSuspend64 as u32),
        u64::from(state),
        secondary_entry_address(),
        boot_params_address(cpu.index()),
    ]);
    end::arrived(cpu.index());
    cpu.suspended_timer = None;
    cell(cpu.index()).set(Power::On);
    answer
}
