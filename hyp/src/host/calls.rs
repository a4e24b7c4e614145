//! Hypercalls other than VCPU_RUN: decode, do, answer.

#![forbid(unsafe_code)]

use crate::arch::exception::HostFrame;
use crate::arch::log::{self, Transition};
use crate::cpu::Cpu;
use crate::machine::{MACHINE, SHARED, Shared, machine};
use crate::memory::hw;
use crate::power::psci;
use crate::vm::slots;
use crate::world::features::Name;
use umbra_shared::call::{
    Call, Features, INTERFACE_VERSION, NO_PAGE, Policy, SVE_HINT, UntrustedPa, VENDOR_UID_FUNCTION,
    VM_PAGES,
};
use umbra_shared::error::Error;
use umbra_shared::interrupt::Interface;
use umbra_shared::record::Kind;

/// x1-x8 of an answer.
pub type Results = [u64; 8];

const NOTHING: Results = [0; 8];

const fn one(x1: u64) -> Results {
    [x1, 0, 0, 0, 0, 0, 0, 0]
}

const fn two((x1, x2): (u64, u64)) -> Results {
    [x1, x2, 0, 0, 0, 0, 0, 0]
}

/// Handles the host's HVC.
pub fn handle(cpu: &mut Cpu, frame: &mut HostFrame) {
    if frame.x[0] & 0xffff_ffff & !SVE_HINT == VENDOR_UID_FUNCTION {
        psci::answer_uid(&mut frame.x);
        return;
    }
    log::forget();
    let function = frame.x[0];
    let mut args = [0; 7];
    args.copy_from_slice(&frame.x[1..8]);
    let record = |result: i64, results: Results| Transition {
        kind: Kind::Call,
        function,
        args,
        result: result as u64,
        results: [results[0], results[1], results[2]],
    };
    let (code, results) = match Call::decode(frame.x[0], &args) {
        Ok(call) => match perform(cpu, call) {
            Ok(results) => (0, results),
            Err(error) => (error.code(), explain(error, call)),
        },
        Err(error) => {
            // Not one of ours, or not meant: a caller of something else counts on its registers.
            frame.x[0] = error.code() as u64;
            cpu.log(|| record(error.code(), NOTHING));
            return;
        }
    };
    frame.x[0] = code as u64;
    frame.x[1..9].copy_from_slice(&results);
    cpu.log(|| record(code, results));
}

/// TOO_FEW_PAGES says in x1 how many it takes.
fn explain(error: Error, call: Call) -> Results {
    match (error, call) {
        (Error::TooFewPages, Call::VmCreate { .. }) => one(VM_PAGES),
        (Error::TooFewPages, Call::VcpuCreate(config)) => {
            slots::needs(&config).map_or(NOTHING, |features| one(features.pages()))
        }
        _ => NOTHING,
    }
}

fn perform(cpu: &mut Cpu, call: Call) -> Result<Results, Error> {
    match call {
        Call::Version => Ok(cpu.version),
        Call::VlInfo { cpu } => vl_info(cpu),
        Call::Stats { cpu, first } => {
            let shared = usize::try_from(cpu)
                .ok()
                .and_then(|n| SHARED[..machine().cpus].get(n))
                .ok_or(Error::BadCpu)?;
            Ok(core::array::from_fn(|n| shared.stats.get(first.saturating_add(n as u64))))
        }
        Call::NextSharedPage { from } => {
            let (found, rest) = hw::with(|memory| memory.next_host_page_mapped(from.0));
            Ok(two((found.unwrap_or(NO_PAGE), rest.unwrap_or(NO_PAGE))))
        }
        Call::ShareFlagPage { page } => share(page).map(|()| NOTHING),
        Call::UnshareFlagPage { page } => unshare(page).map(|()| NOTHING),
        Call::VmCreate { pages, config } => slots::create(pages, config).map(|vm| one(vm.0)),
        Call::VmTopup { vm, pages } => slots::topup(vm, pages).map(|()| NOTHING),
        Call::VmMap { vm, pages, ipa } => slots::map(vm, pages, ipa).map(one),
        Call::VmUnmap { vm, ipa, count } => slots::unmap(vm, ipa, count).map(two),
        Call::VmSeal { vm } => slots::seal(vm).map(|()| NOTHING),
        Call::VmLookup { vm, ipa } => {
            slots::find(vm, ipa).map(|(pa, shared)| two((pa, shared.into())))
        }
        Call::VmDestroy { vm } => slots::destroy(vm).map(|()| NOTHING),
        Call::VmReclaim { vm, pages } => slots::reclaim(vm, pages).map(two),
        Call::VcpuCreate(config) => slots::create_vcpu(&config).map(|()| NOTHING),
        Call::VcpuLoad { vm, vcpu } => cpu.load(vm, vcpu).map(|()| NOTHING),
        Call::VcpuPut => cpu.put().map(|()| NOTHING),
        Call::VcpuRead { vm, vcpu, register } => {
            slots::read_register(vm, vcpu, register).map(|halves| two(halves.into()))
        }
        Call::VcpuWrite { vm, vcpu, register, value } => {
            slots::write_register(vm, vcpu, register, value).map(|()| NOTHING)
        }
        Call::VcpuReset { vm, vcpu, start } => slots::reset_vcpu(vm, vcpu, start).map(|()| NOTHING),
    }
}

/// What VERSION answers, on every CPU.
pub fn version() -> Results {
    let machine = machine();
    let mut features = Features::empty();
    features.set(Features::SVE, !machine.lengths.common.is_empty());
    let sme = !machine.streaming.common.is_empty();
    features.set(Features::SME, sme);
    features.set(Features::SME2, sme && machine.features.has(Name::Sme2));
    features.set(Features::FPMR, machine.features.has(Name::Fpmr));
    features.set(Features::PAUTH, machine.features.has(Name::Pauth));
    features.set(Features::AARCH32, machine.features.has(Name::Aarch32));
    features.set(Features::HOST_VL_COMMON, machine.lengths.host_common);
    features.set(Features::PROTECTED_FP_LAZY, machine.protected_policy == Policy::Lazy);
    features.set(Features::PROTECTED_VMS, machine.protects);
    let mut results = one(u64::from(INTERFACE_VERSION));
    results[1] = features.bits();
    results[2] = machine.stage2.ipa_bits.into();
    results[3] = machine.stage2.alias_bit().trailing_zeros().into();
    results
}

fn vl_info(cpu: Option<u64>) -> Result<Results, Error> {
    let machine = MACHINE.get().ok_or(Error::BadCpu)?;
    let cpus = machine.cpus as u64;
    let Some(cpu) = cpu else {
        let (vqs, svqs) = (machine.lengths.common.bits(), machine.streaming.common.bits());
        let online = SHARED[..machine.cpus].iter().filter(|shared| shared.online());
        let interface = online.map(Shared::interface).reduce(Interface::common);
        let interface = interface.map_or(0, Interface::register);
        return Ok([vqs.into(), 0, cpus, 0, 1, svqs.into(), interface, 0]);
    };
    let shared = usize::try_from(cpu)
        .ok()
        .and_then(|n| SHARED[..machine.cpus].get(n))
        .ok_or(Error::BadCpu)?;
    use core::sync::atomic::Ordering::Relaxed;
    Ok([
        u64::from(shared.vqs().bits()),
        shared.image_bytes.load(Relaxed),
        cpus,
        shared.mpidr.load(Relaxed),
        u64::from(shared.online()),
        u64::from(shared.svqs().bits()),
        shared.interface().register(),
        0,
    ])
}

fn share(page: UntrustedPa) -> Result<(), Error> {
    hw::with(|memory| {
        let page = memory.pages.lookup(page.0)?;
        memory.share_flag_page(page)
    })
}

fn unshare(page: UntrustedPa) -> Result<(), Error> {
    hw::with(|memory| {
        let page = memory.pages.lookup(page.0)?;
        memory.unshare_flag_page(page)
    })
}
