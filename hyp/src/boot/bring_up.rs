//! A CPU out of reset: EL2 in hyp's state, its vector lengths read, and the host's life begun there.

use crate::arch::exception;
use crate::arch::log::{self, Transition};
use crate::arch::sysreg::{self, *};
use crate::cpu::Cpu;
use crate::fp::hw::Cpu as FpCpu;
use crate::fp::{Access, FpHw, Svcr};
use crate::host::calls;
use crate::machine::{MACHINE, machine};
use crate::memory::tables;
use crate::power::{
    self,
    psci::{HostEntry, Power},
};
use crate::world::errata::{self, Erratum, SME_SYNC_FUNCTION, Workarounds, may_use_sme};
use crate::world::features::id::{IdRegister, IdRegisters};
use crate::world::features::{Features, Name};
use crate::world::interrupts::{interface, virtual_interface_fits};
use crate::world::midr::Midr;
use crate::world::switch::{self, El1Context, PSTATE_EL1H_MASKED, World};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use umbra_shared::record::Kind;
use umbra_shared::vl::{Vq, VqSet};

/// Aff3 and Aff2..Aff0.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// This CPU's ID registers.
pub fn read_id_registers() -> IdRegisters {
    let registers = sysreg::read_id_registers();
    let midr = sys::read_midr_el1().bits();
    let mut id = IdRegisters { registers, midr, ..IdRegisters::default() };
    let features = Features::read(&id);
    // What tells of features that the CPU may lack is read only if it doesn't.
    if !features.has(Name::Aarch32) {
        id.registers[..IdRegister::Aa64Pfr0 as usize].fill(0);
    }
    if features.has(Name::Sme) {
        id.smidr = read_smidr_el1();
    }
    if features.has(Name::Mpam) {
        id.mpamidr = read_mpamidr_el1();
    }
    if features.has(Name::Pmu) {
        id.pmcr_n = sys::read_pmcr_el0().bits() >> 11 & 0x1f;
    }
    id
}

/// Brings EL2 of this CPU into hyp's state, from whatever reset or firmware left: every register
/// is set whole. Reads the CPU's vector lengths anew.
pub fn bring_up(cpu: &mut Cpu) {
    let id = read_id_registers();
    let features = Features::read(&id);
    cpu.hw = FpCpu::new(features);
    cpu.world = World::new(features, id.pmcr_n, sys::read_mpidr_el1().bits());
    cpu.world.init_host();
    cpu.hw.set_access(Access::Full);
    cpu.hw.sync();
    // Whatever is there is nobody's. Before any vector length is relied on: in streaming mode RDVL
    // gives another.
    if features.has(Name::Sme) {
        cpu.hw.stop(Svcr::all());
    }
    let workarounds = known_errata(cpu.index(), Midr::new(id.midr));
    let sme = features.has(Name::Sme) && sme_is_safe(workarounds);
    let (mut vqs, mut svqs) = (VqSet::EMPTY, VqSet::EMPTY);
    for vq in (0..16).rev().map(Vq::from_len) {
        if features.has(Name::Sve) {
            cpu.hw.set_clamp(vq);
            vqs = vqs.with(cpu.hw.vq());
        }
        if sme {
            cpu.hw.set_streaming_clamp(vq);
            svqs = svqs.with(cpu.hw.svq());
        }
    }
    let mpidr = sys::read_mpidr_el1().bits() & MPIDR_AFFINITY;
    let mut lacks = MACHINE.get().map_or(Features::NONE, |machine| id.lacks(&machine.id));
    let fits = virtual_interface_fits();
    if !fits {
        ::log::warn!("CPU {}: more active priorities than hyp switches: no guests", cpu.index());
    }
    if workarounds.contains(Workarounds::NO_GUESTS) || !fits {
        lacks = Features::SHOWN;
    }
    cpu.shared.publish(features.less(lacks), &id, mpidr, vqs, svqs, interface());
    cpu.hw.set_access(Access::Closed);
}

/// What this core's errata ask for, from now on. Each erratum is told of once.
fn known_errata(cpu: usize, midr: Midr) -> Workarounds {
    static TOLD: AtomicU64 = AtomicU64::new(0);
    for (n, erratum) in errata::of(midr) {
        if TOLD.fetch_or(1 << n, Ordering::Relaxed) >> n & 1 == 0 {
            let Erratum { core, number, workarounds, .. } = erratum;
            ::log::info!("CPU {cpu}: {core} erratum {number}: {workarounds:?}");
        }
    }
    let workarounds = errata::workarounds(midr);
    tables::work_around(workarounds.intersection(Workarounds::REPEAT_TLBI));
    workarounds
}

/// Whether SME's accesses end where TLB maintenance says so; by firmware's doing, if it must.
fn sme_is_safe(workarounds: Workarounds) -> bool {
    if !workarounds.contains(Workarounds::SME_SYNC) {
        return true;
    }
    let [answer, ..] = smccc::smc32(SME_SYNC_FUNCTION, [0; 7]);
    let safe = may_use_sme(workarounds, answer as i32);
    if safe {
        tables::work_around(Workarounds::SME_SYNC);
    } else {
        ::log::warn!("firmware doesn't work around that: nobody has SME here");
    }
    safe
}

/// Begins the host's life on this CPU: EL1 in its reset state.
pub fn start_host(cpu: &mut Cpu, entry: HostEntry) -> ! {
    let host = cpu.host_lengths();
    // SVE or SME of which the host may use no length, because other CPUs have none: closed for good.
    if host.vq.is_none() {
        cpu.hw.hide_sve();
    }
    if host.svq.is_none() {
        cpu.hw.hide_sme();
    }
    cpu.fp.reset(&mut cpu.hw, host);
    if machine().displace {
        cpu.world.trap_host_displacement(true);
    }
    cpu.loaded = None;
    log::forget();
    cpu.log(|| {
        let held = |vq: Option<Vq>| vq.map_or(0, |vq| vq.quadwords() as u64);
        let (vqs, svqs) = (cpu.shared.vqs().bits(), cpu.shared.svqs().bits());
        let args = [vqs.into(), held(host.vq), svqs.into(), held(host.svq), 0, 0, 0];
        Transition::new(Kind::Reset, args)
    });
    switch::switch_el1(&cpu.world, &mut cpu.host, &El1Context::reset());
    switch::switch_pauth(&cpu.world, &mut cpu.host, &El1Context::reset());
    cpu.version = calls::version();
    let [ctl, cval] = cpu.suspended_timer.take().unwrap_or_default();
    write_cntv_ctl_el0(0);
    write_cntv_cval_el0(cval);
    write_cntv_ctl_el0(ctl);
    cpu.host_vttbr = machine().host_vttbr;
    write_vttbr_el2(cpu.host_vttbr);
    // SAFETY: stage 2 of the host is complete; VTCR_EL2 matches its root level.
    unsafe { sys::write_vtcr_el2(sys::VtcrEl2::from_bits_retain(machine().stage2.vtcr)) };
    // SAFETY: return state for the ERET below.
    unsafe {
        sys::write_elr_el2(sys::ElrEl2::from_bits_retain(entry.pc));
        sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(PSTATE_EL1H_MASKED));
    }
    isb();
    // What a TLB holds after reset is anything, for every VMID.
    // SAFETY: dropping translations is always sound.
    unsafe { asm!("tlbi alle1", "ic iallu", "dsb nsh", "isb", options(nostack)) };
    power::hw::cell(cpu.index()).set(Power::On);
    // SAFETY: everything is set up; the stack is not needed any more.
    unsafe { exception::enter_host_fresh(entry.context, cpu.stack_top()) }
}
