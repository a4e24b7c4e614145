//! VCPU_RUN: from the host into a guest and back. No lock, no allocation, no formatting.

use super::cpu::{Cpu, machine};
use super::guest::{self, Exit};
use super::log::{self, Transition};
use super::sysreg::{dsb_nsh, read_isr_el1};
use super::trap::HostFrame;
use super::vm::{Open, Vcpu};
use super::world;
use crate::arch::sysreg::sys;
use crate::fp::hw::Image;
use crate::fp::{CpuFp, GuestTrap, TrapClass};
use crate::memory::pages::VmId;
use crate::syndrome::{self, ec, pstate};
use umbra_shared::call::Counter;
use umbra_shared::error::Error;
use umbra_shared::exit::{ExitInfo, Reason, RunFlags};
use umbra_shared::guest::GuestFunction;
use umbra_shared::record::Kind;

/// How the guest left (switch.S).
const LEFT_SYNCHRONOUS: u64 = 0;
const LEFT_IRQ: u64 = 1;

/// Handles the hypercall: `frame` holds the host's x0-x17 and takes the results.
pub fn run(cpu: &mut Cpu, frame: &mut HostFrame) {
    let mut seen = Seen { flags: frame.x[1], ..Seen::default() };
    match run_loaded(cpu, frame, &mut seen) {
        Ok(()) => frame.x[0] = 0,
        Err(error) => frame.x[0] = error.code() as u64,
    }
    log::forget();
    log::write(&cpu.fp, cpu.loaded_name(), || Transition {
        result: frame.x[0],
        results: [frame.x[1], frame.x[2], frame.x[3]],
        ..Transition::new(Kind::Run, [seen.flags, seen.hint, seen.opened, seen.word, 0, 0, 0])
    });
}

/// What the log is told of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    flags: u64,
    hint: u64,
    opened: u64,
    word: u64,
}

#[inline(always)]
fn run_loaded(cpu: &mut Cpu, frame: &mut HostFrame, seen: &mut Seen) -> Result<(), Error> {
    let stats = &cpu.shared.stats;
    let loaded = cpu.loaded.as_mut().ok_or(Error::NotLoaded)?;
    let (vm, name) = (loaded.vm(), loaded.name());
    let vcpu = loaded.vcpu();
    let flags = RunFlags::from_bits(frame.x[1]).ok_or(Error::InvalidArgument)?;

    // Everything that can be refused comes before anything that changes.
    if let Open::Broken { esr } = vcpu.open {
        frame.x[1] = ExitInfo::new(Reason::Broken, 0).register();
        frame.x[2] = esr;
        return Ok(());
    }
    if flags.contains(RunFlags::VIRQ) {
        if flags.intid() >= 1020 {
            return Err(Error::InvalidArgument);
        }
        if vcpu.gic.in_flight() {
            return Err(Error::Busy);
        }
    }
    let hint = vcpu.flags.snapshot_hint().decode();
    seen.hint = hint.bits();
    cpu.hw.set_base(cpu.world.cptr_guest());
    if let Err(error) = cpu.fp.enter(&mut cpu.hw, &vcpu.fp, hint, stats) {
        cpu.hw.set_base(0);
        return Err(error);
    }

    if vcpu.open != Open::Nothing {
        complete(vcpu, flags, &frame.x);
    }
    if flags.contains(RunFlags::VIRQ) {
        vcpu.gic.inject(flags.intid());
    }
    stats.add(Counter::Runs, 1);

    // Walks that the host's EL1 has begun end before their registers become the guest's: out of
    // context, a walk must not use both (Arm ARM D8.1.5, R_LFHQG; Linux: `__kvm_vcpu_run`).
    dsb_nsh();
    world::switch_el1(&cpu.world, &mut cpu.host, &vcpu.el1);
    let host_timer = world::enter_timer(&vcpu.timer);
    vcpu.gic.enter();
    cpu.world.enter_guest(vcpu.vmpidr, vcpu.vttbr);

    let exit = loop {
        // SAFETY: return state for the ERET into the guest, which runs under its own stage 2 at EL1
        // or EL0: `pstate` came from SPSR_EL2 or was made by `on_exception`.
        unsafe {
            sys::write_elr_el2(sys::ElrEl2::from_bits_retain(vcpu.regs.pc));
            sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(vcpu.regs.pstate));
        }
        let left = world::enter_guest(&mut vcpu.regs);
        vcpu.regs.pc = sys::read_elr_el2().bits();
        vcpu.regs.pstate = sys::read_spsr_el2().bits();
        if left == LEFT_IRQ {
            break Exit::new(Reason::Irq, [0; 6]);
        }
        let esr = sys::read_esr_el2().bits();
        if left != LEFT_SYNCHRONOUS {
            // An SError while the guest ran: it is blamed on the guest, which can't go on.
            break Exit::new(Reason::Broken, [esr, 0, 0, 0, 0, 0]);
        }
        // Guests are AArch64 at EL1 and are shown no AArch32 at EL0: nothing here steps over T32.
        if pstate::is_aarch32(vcpu.regs.pstate) {
            break Exit::new(Reason::Broken, [esr, 0, 0, 0, 0, 0]);
        }
        let class = match syndrome::class(esr) {
            ec::FP => TrapClass::Fpsimd,
            ec::SVE => TrapClass::Sve,
            ec::SME => TrapClass::Sme,
            // What most exits are.
            ec::HVC64 if GuestFunction::from_id(vcpu.regs.x[0]).is_none() => {
                let [x0, x1, x2, x3, x4, x5, ..] = vcpu.regs.x;
                vcpu.open = Open::Hvc;
                break Exit::new(Reason::Hvc, [x0, x1, x2, x3, x4, x5]);
            }
            class => {
                let exit = if class == ec::HVC64 {
                    memory_call(&cpu.fp, name, vcpu, vm)
                } else {
                    guest::synchronous(vcpu, &machine().id, esr)
                };
                match exit {
                    Some(exit) => break exit,
                    // However often a guest does what is answered here, the host's interrupts get
                    // through.
                    None if read_isr_el1() != 0 => break Exit::new(Reason::Irq, [0; 6]),
                    None => continue,
                }
            }
        };
        match cpu.fp.guest_trap(&mut cpu.hw, &mut vcpu.fp, class, stats) {
            GuestTrap::Opened => seen.opened += 1,
            GuestTrap::Undefined => guest::undefined(vcpu),
        }
    };

    if exit.info.reason() == Some(Reason::Broken) {
        vcpu.open = Open::Broken { esr: exit.data[0] };
    }
    cpu.hw.set_base(0);
    let fp_flags = cpu.fp.exit(&mut cpu.hw, &mut vcpu.fp, stats);
    vcpu.flags.publish(fp_flags);
    seen.word = fp_flags.bits();
    // Likewise the guest's.
    dsb_nsh();
    cpu.world.leave_guest(cpu.host_vttbr);
    vcpu.gic.leave();
    let vtimer = world::leave_timer(&mut vcpu.timer, host_timer);
    world::switch_el1(&cpu.world, &mut vcpu.el1, &cpu.host);

    // The ERET to the host needs its own return state: it called HVC.
    // SAFETY: saved from these registers at the host's HVC.
    unsafe {
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(frame.elr));
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(frame.spsr));
    }
    let mut info = exit.info.register();
    if vtimer {
        info |= ExitInfo::VTIMER;
    }
    if vcpu.gic.in_flight() {
        info |= ExitInfo::VIRQ_IN_FLIGHT;
    }
    frame.x[1] = info;
    frame.x[2..8].copy_from_slice(&exit.data);
    Ok(())
}

/// A call of the guest's about its memory.
#[cold]
fn memory_call(fp: &CpuFp<Image>, name: u64, vcpu: &mut Vcpu, vm: VmId) -> Option<Exit> {
    log::forget();
    let [function, ipa, ..] = vcpu.regs.x;
    let exit = guest::memory_call(vcpu, vm);
    log::write(fp, name, || Transition {
        function,
        result: vcpu.regs.x[0],
        ..Transition::new(Kind::GuestCall, [ipa, 0, 0, 0, 0, 0, 0])
    });
    exit
}

/// Finishes what the last exit left open, with the host's x2-x5.
fn complete(vcpu: &mut Vcpu, flags: RunFlags, x: &[u64; 18]) {
    match vcpu.open {
        Open::Hvc => vcpu.regs.x[..4].copy_from_slice(&x[2..6]),
        Open::Read { esr, far, .. } | Open::Write { esr, far } | Open::Fault { esr, far }
            if flags.contains(RunFlags::ABORT) =>
        {
            guest::external_abort(vcpu, esr, far);
        }
        Open::Read { .. } | Open::Write { .. } if flags.contains(RunFlags::RETRY) => {}
        Open::Read { .. } => guest::complete_read(vcpu, x[2]),
        Open::Write { .. } => guest::complete_write(vcpu),
        Open::Nothing | Open::Fault { .. } | Open::Broken { .. } => {}
    }
    vcpu.open = Open::Nothing;
}
