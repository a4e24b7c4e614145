//! VCPU_RUN: from the host into a guest and back. No allocation, no formatting, and no lock but for a guest's calls.

use crate::arch::exception::HostFrame;
use crate::arch::log::{self, Transition};
use crate::arch::sysreg::sys;
use crate::arch::sysreg::{dsb_nsh, read_isr_el1};
use crate::cpu::Cpu;
use crate::fp::{GuestTrap, TrapClass};
use crate::guest::access;
use crate::guest::calls::{self, Outcome};
use crate::guest::exit::Exit;
use crate::guest::rsi;
use crate::guest::syndrome::{self, SysReg, ec, pstate};
use crate::guest::traps;
use crate::guest::traps32;
use crate::vm::vcpu::{Open, Vcpu, Waits};
use crate::world::interrupts;
use crate::world::switch::{self, El1Context, GuestRegs, World};
use umbra_shared::call::Counter;
use umbra_shared::error::Error;
use umbra_shared::exit::{ExitInfo, Reason, RunFlags};
use umbra_shared::guest::{NOT_SUPPORTED, is_hosts};
use umbra_shared::record::Kind;

core::arch::global_asm!(
    include_str!("enter.S"),
    EC_HVC64 = const ec::HVC64,
);

// SAFETY: enter.S defines it with this signature; to it a `Cpu` is an address only.
#[allow(improper_ctypes, reason = "it goes through to Rust code again")]
unsafe extern "C" {
    fn umbra_guest_enter(regs: *mut GuestRegs, cpu: *mut Cpu) -> u64;
}

/// How the guest left (enter.S).
const LEFT_SYNCHRONOUS: u64 = 0;
const LEFT_IRQ: u64 = 1;

/// A run with one of these has interrupts for the guest, or should.
const OFFERS: RunFlags = RunFlags::ENTRIES.union(RunFlags::UNDERFLOW);
/// What most runs have none of.
const UNUSUAL: RunFlags = OFFERS.union(RunFlags::FINISH_ONLY);

/// Handles the hypercall: `frame` holds the host's x0-x17 and takes the results.
pub fn run(cpu: &mut Cpu, frame: &mut HostFrame) {
    cpu.opened = 0;
    let mut seen = Seen { flags: frame.x[1], ..Seen::default() };
    if seen.flags & OFFERS.bits() != 0 {
        log::forget();
        cpu.log(|| {
            let [.., x6, x7, x8, x9, x10, x11, x12, x13, _, _, _, _] = frame.x;
            Transition {
                function: x13,
                result: interrupts::interface().register(),
                ..Transition::new(Kind::Offer, [x6, x7, x8, x9, x10, x11, x12])
            }
        });
    }
    match run_loaded(cpu, frame, &mut seen) {
        Ok(()) => frame.x[0] = 0,
        Err(error) => frame.x[0] = error.code() as u64,
    }
    log::forget();
    cpu.log(|| Transition {
        result: frame.x[0],
        results: [frame.x[1], frame.x[2], frame.x[3]],
        ..Transition::new(
            Kind::Run,
            [seen.flags, seen.hint, cpu.opened, seen.word, seen.states, 0, 0],
        )
    });
}

/// What the log is told of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    flags: u64,
    hint: u64,
    word: u64,
    states: u64,
}

#[inline(always)]
fn run_loaded(cpu: &mut Cpu, frame: &mut HostFrame, seen: &mut Seen) -> Result<(), Error> {
    let stats = &cpu.shared.stats;
    let loaded = cpu.loaded.as_mut().ok_or(Error::NotLoaded)?;
    let stopped = loaded.is_stopped();
    let vcpu = loaded.vcpu();
    let flags = RunFlags::from_bits(frame.x[1]).ok_or(Error::InvalidArgument)?;

    // Everything that can be refused comes before anything that changes.
    if stopped {
        return match vcpu.open {
            Open::Broken { esr } => {
                frame.x[1] = ExitInfo::new(Reason::Broken, 0).register();
                frame.x[2] = esr;
                Ok(())
            }
            _ => Err(Error::PoweredOff),
        };
    }
    // An error that the host has deferred, or masked, is not the guest's to answer for, nor hyp's to take away.
    if cpu.world.host_error_waits() {
        return Err(Error::Busy);
    }
    if flags.intersects(UNUSUAL) {
        if flags.contains(RunFlags::FINISH_ONLY) {
            return finish_only(vcpu, frame, flags);
        }
        offer(vcpu, frame, flags)?;
    }
    let hint = vcpu.flags.snapshot_hint().decode();
    seen.hint = hint.bits();
    cpu.hw.set_base(cpu.world.cptr_guest());
    cpu.fp.enter(&mut cpu.hw, &vcpu.fp, hint, stats);

    match vcpu.open {
        Open::Nothing => {}
        // What most exits are.
        Open::Hvc => {
            let [_, _, x2, x3, x4, x5, ..] = frame.x;
            [vcpu.regs.x[0], vcpu.regs.x[1], vcpu.regs.x[2], vcpu.regs.x[3]] = [x2, x3, x4, x5];
            vcpu.open = Open::Nothing;
        }
        _ => vcpu.open = complete(vcpu, flags, &frame.x),
    }
    stats.add(Counter::Runs, 1);

    // Walks that the host's EL1 has begun end before their registers become the guest's: out of
    // context, a walk must not use both (Arm ARM D8.1.5, R_LFHQG; Linux: `__kvm_vcpu_run`).
    dsb_nsh();
    switch::switch_el1(&cpu.world, &mut cpu.host, &vcpu.el1);
    if switch::uses_pauth(vcpu.hcr) {
        switch::switch_pauth(&cpu.world, &mut cpu.host, &vcpu.el1);
    }
    let host_timer = interrupts::enter_timer(&vcpu.timer);
    vcpu.gic.enter(flags);
    cpu.world.enter_guest(vcpu.hcr, vcpu.vmpidr, vcpu.vttbr);

    // SAFETY: return state for the ERET into the guest, which runs under its own stage 2 at EL1 or EL0:
    // `pstate` came from SPSR_EL2 or was made by `on_exception`.
    let set_return = |regs: &GuestRegs| unsafe {
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(regs.pc));
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(regs.pstate));
    };
    set_return(&vcpu.regs);
    let mut regs = &raw mut vcpu.regs;
    let (vcpu, info) = loop {
        // SAFETY: everything of the guest's but its general-purpose registers is in place, and the guest
        // vectors are in force. They store to `regs`, which are the loaded vCPU's, and hand `cpu`,
        // exclusively borrowed until they return, to `umbra_guest_trap`.
        let left = unsafe { umbra_guest_enter(regs, cpu) };
        let vcpu = cpu.loaded.as_mut().ok_or(Error::NotLoaded)?.vcpu();
        vcpu.regs.pc = sys::read_elr_el2().bits();
        vcpu.regs.pstate = sys::read_spsr_el2().bits();
        if left == LEFT_SYNCHRONOUS {
            let esr = sys::read_esr_el2().bits();
            // What most exits are.
            if syndrome::class(esr) == ec::HVC64
                && is_hosts(vcpu.regs.x[0])
                && !pstate::is_aarch32(vcpu.regs.pstate)
            {
                vcpu.open = Open::Hvc;
                let [x0, x1, x2, x3, x4, x5, ..] = vcpu.regs.x;
                set_data(frame, [x0, x1, x2, x3, x4, x5]);
                break (vcpu, ExitInfo::new(Reason::Hvc, 0));
            }
        }
        if left == LEFT_IRQ {
            set_data(frame, [0; 6]);
            break (vcpu, ExitInfo::new(Reason::Irq, 0));
        }
        let exit = rare(cpu, left);
        let vcpu = cpu.loaded.as_mut().ok_or(Error::NotLoaded)?.vcpu();
        if let Some(exit) = exit {
            set_data(frame, exit.data);
            break (vcpu, exit.info);
        }
        set_return(&vcpu.regs);
        regs = &raw mut vcpu.regs;
    };

    cpu.hw.set_base(0);
    let fp_flags = cpu.fp.exit(&mut cpu.hw, &mut vcpu.fp, stats);
    vcpu.flags.publish(fp_flags);
    seen.word = fp_flags.bits();
    // Likewise the guest's; and errors of its accesses are its own.
    dsb_nsh();
    if let Some(disr) = cpu.world.take_serror() {
        // What it left for is told all the same: the next run answers that it can't go on.
        broken(vcpu, syndrome::pending_serror(disr));
    }
    cpu.world.leave_guest(cpu.host_vttbr);
    let states = vcpu.gic.leave();
    let vtimer = interrupts::leave_timer(&mut vcpu.timer, host_timer);
    switch::switch_el1(&cpu.world, &mut vcpu.el1, &cpu.host);
    if switch::uses_pauth(vcpu.hcr) {
        switch::switch_pauth(&cpu.world, &mut vcpu.el1, &cpu.host);
    }

    // The ERET to the host needs its own return state: it called HVC.
    // SAFETY: saved from these registers at the host's HVC.
    unsafe {
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(frame.elr));
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(frame.spsr));
    }
    let mut info = info.register();
    if vtimer {
        info |= ExitInfo::VTIMER;
    }
    frame.x[1] = info;
    if let Some(states) = states {
        frame.x[8] = states.register();
        seen.states = frame.x[8];
    }
    Ok(())
}

/// The interrupts that the run is to carry.
#[cold]
#[inline(never)]
fn offer(vcpu: &mut Vcpu, frame: &HostFrame, flags: RunFlags) -> Result<(), Error> {
    let words = frame.x[6..14].try_into().map_err(|_| Error::InvalidArgument)?;
    vcpu.gic.offer(flags, words)
}

/// A run that finishes what is open and enters no guest. Nothing of the guest's is in any register, and stays so.
#[cold]
#[inline(never)]
fn finish_only(vcpu: &mut Vcpu, frame: &mut HostFrame, flags: RunFlags) -> Result<(), Error> {
    if flags.intersects(OFFERS) {
        return Err(Error::InvalidArgument);
    }
    vcpu.open = match vcpu.open {
        Open::Hvc => {
            let [_, _, x2, x3, x4, x5, ..] = frame.x;
            for (x, answer) in vcpu.regs.x.iter_mut().zip([x2, x3, x4, x5]) {
                *x = answer;
            }
            Open::Nothing
        }
        // It is to be made again in a run, and only the first one counts.
        Open::Call(Waits::Again { .. }) if !flags.contains(RunFlags::ABORT) => vcpu.open,
        _ => complete(vcpu, flags, &frame.x),
    };
    set_data(frame, [0; 6]);
    frame.x[1] = ExitInfo::new(Reason::Irq, 0).register();
    Ok(())
}

/// x2-x7 for the host. Not as a slice: that would be a call of memcpy.
#[inline(always)]
fn set_data(frame: &mut HostFrame, [x2, x3, x4, x5, x6, x7]: [u64; 6]) {
    [frame.x[2], frame.x[3], frame.x[4]] = [x2, x3, x4];
    [frame.x[5], frame.x[6], frame.x[7]] = [x5, x6, x7];
}

/// Why a guest left, if not by an HVC for its host or an interrupt: what becomes of it. `None`: it goes on.
#[cold]
#[inline(never)]
fn rare(cpu: &mut Cpu, left: u64) -> Option<Exit> {
    let loaded = cpu.loaded.as_mut()?;
    let vm = loaded.vm();
    let vcpu = loaded.vcpu();
    let esr = sys::read_esr_el2().bits();
    // An SError while the guest ran is blamed on the guest, which can't go on. Nor can one in another
    // execution state than its EL1's: guests of AArch64 are shown no AArch32 at EL0.
    if left != LEFT_SYNCHRONOUS || pstate::is_aarch32(vcpu.regs.pstate) != vcpu.is_aarch32() {
        return Some(broken(vcpu, esr));
    }
    let class = match syndrome::class(esr) {
        ec::FP => TrapClass::Fpsimd,
        ec::SVE => TrapClass::Sve,
        ec::SME => TrapClass::Sme,
        ec::HVC64 | ec::HVC32 => return unless_interrupted(call(cpu, esr)),
        ec::SMC64 if !is_hosts(vcpu.regs.x[0]) => return unless_interrupted(call(cpu, esr)),
        ec::SMC32 if traps32::condition_passes(vcpu, esr) => {
            return unless_interrupted(call(cpu, esr));
        }
        class => {
            let exit = match class {
                // There is no firmware for a guest.
                ec::SMC64 => {
                    vcpu.regs.x[0] = NOT_SUPPORTED as u64;
                    traps::step_over(vcpu, esr);
                    None
                }
                ec::PAUTH => first_pauth(&cpu.world, &mut cpu.host, vcpu),
                ec::SYSREG if SysReg::new(esr).is_pauth_key() => {
                    first_pauth(&cpu.world, &mut cpu.host, vcpu)
                }
                ec::DATA_ABORT | ec::INSTRUCTION_ABORT => access::abort(vcpu, vm, esr),
                _ if vcpu.is_aarch32() => traps32::synchronous(vcpu, esr),
                _ => traps::synchronous(vcpu, esr),
            };
            return match &exit {
                Some(last) if last.info.reason() == Some(Reason::Broken) => {
                    Some(broken(vcpu, last.data[0]))
                }
                Some(_) => exit,
                None => unless_interrupted(None),
            };
        }
    };
    match cpu.fp.guest_trap(&mut cpu.hw, &mut vcpu.fp, class, &cpu.shared.stats) {
        GuestTrap::Opened => cpu.note_opening(),
        GuestTrap::Undefined => traps::undefined(vcpu),
    }
    None
}

/// An HVC of a guest's for its host: x0-x5, r0-r5.
fn hosts_call(vcpu: &mut Vcpu) -> Exit {
    vcpu.open = Open::Hvc;
    let [x0, x1, x2, x3, x4, x5, ..] = vcpu.regs.x;
    Exit::new(Reason::Hvc, [x0, x1, x2, x3, x4, x5].map(|x| vcpu.register_width(x)))
}

#[cold]
fn broken(vcpu: &mut Vcpu, esr: u64) -> Exit {
    vcpu.stop();
    // What a protected guest was about to do is in the rest.
    let esr = if vcpu.protected { syndrome::class(esr) << 26 } else { esr };
    vcpu.open = Open::Broken { esr };
    Exit::new(Reason::Broken, [esr, 0, 0, 0, 0, 0])
}

/// A guest's first use of pointer authentication: from now on its keys are switched with the rest of
/// EL1, and it executes the instruction again. UNDEFINED if there is none, or none that was trapped.
#[cold]
fn first_pauth(world: &World, host: &mut El1Context, vcpu: &mut Vcpu) -> Option<Exit> {
    match world.hcr_with_pauth(vcpu.hcr) {
        Some(hcr) => {
            vcpu.hcr = hcr;
            switch::set_hcr(hcr);
            switch::switch_pauth(world, host, &vcpu.el1);
        }
        None => traps::undefined(vcpu),
    }
    None
}

/// However often a guest does what hyp answers, the host's interrupts get through.
#[inline]
fn unless_interrupted(exit: Option<Exit>) -> Option<Exit> {
    let waits = exit.is_none() && read_isr_el1() != 0;
    if waits { Some(Exit::new(Reason::Irq, [0; 6])) } else { exit }
}

/// A call of the guest's, by HVC or SMC.
#[cold]
#[inline(never)]
fn call(cpu: &mut Cpu, esr: u64) -> Option<Exit> {
    let fp = &cpu.fp;
    let loaded = cpu.loaded.as_mut()?;
    let (vm, index, name) = (loaded.vm(), loaded.index(), loaded.name());
    if loaded.is_stopped() {
        // Its VM has ended meanwhile: it comes out, and goes in no more.
        return Some(Exit::new(Reason::Irq, [0; 6]));
    }
    let vcpu = loaded.vcpu();
    log::forget();
    let (function, [x1, x2, x3]) = calls::request(vcpu);
    let made_again = calls::is_again(vcpu);
    let outcome = calls::call(vcpu, vm, index, esr);
    let (exit, again) = match outcome {
        Outcome::NotHyps => return Some(hosts_call(vcpu)),
        Outcome::Answered(exit) => (exit, false),
        Outcome::Again(exit) => (Some(exit), true),
    };
    let [x0, r1, r2, r3, ..] = vcpu.regs.x;
    let aarch32 = vcpu.is_aarch32();
    log::write(
        || (fp.record(), name),
        || Transition {
            function: function.into(),
            // r0 holds half of it.
            result: if aarch32 { x0 as i32 as u64 } else { x0 },
            results: [r1, r2, r3],
            ..Transition::new(
                Kind::GuestCall,
                [
                    x1,
                    x2,
                    x3,
                    exit.map_or(0, |exit| exit.info.register() + 1),
                    again.into(),
                    made_again.into(),
                    0,
                ],
            )
        },
    );
    exit
}

/// Finishes what the last exit left open, with the host's x2-x5; not an HVC. What is open while the guest runs.
#[inline(never)]
fn complete(vcpu: &mut Vcpu, flags: RunFlags, x: &[u64; 18]) -> Open {
    match vcpu.open {
        Open::Read { esr, far, .. } | Open::Write { esr, far } | Open::Fault { esr, far }
            if flags.contains(RunFlags::ABORT) =>
        {
            traps::external_abort(vcpu, esr, far);
        }
        Open::Call(Waits::HostCall { ipa }) => {
            rsi::host_called(vcpu, ipa, !flags.contains(RunFlags::ABORT));
        }
        Open::Call(Waits::Again { esr }) if flags.contains(RunFlags::ABORT) => {
            calls::fail(vcpu, esr);
        }
        Open::Read { .. } | Open::Write { .. } if flags.contains(RunFlags::RETRY) => {}
        Open::Read { .. } => traps::complete_read(vcpu, x[2]),
        Open::Write { esr, .. } => traps::complete_write(vcpu, esr),
        // In this run the guest makes it again, or never: its host has seen it leave without.
        Open::Call(_) => return Open::Again,
        Open::Nothing | Open::Again | Open::Hvc | Open::Fault { .. } | Open::Broken { .. } => {}
    }
    Open::Nothing
}
