//! The demonstration's course.

mod cpu;
mod gics;
mod guest;
mod offers;
mod vms;

use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};
use guest::Slot;
use umbra_host::{
    emit,
    hypercall::{Hvc, Hypervisor, Version},
    kernel::{MAX_CPUS, exception, initrd, machine::Machine, pages, smp, sync, timer},
    vgic::Vgic,
    vm::BuildError,
};
use umbra_patterns::{pattern::Mismatch, protocol::Failure};
use umbra_shared::{
    call::{Counter, Features, INTERFACE_VERSION},
    error::Error as HypError,
    vl::VqSet,
};

/// VMs that run side by side.
const VMS: usize = 2;

/// What went wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    NoUmbra,
    Interface(u32),
    NoGuest,
    Cpu(usize),
    UnknownCpu(usize),
    Gic,
    NoSgis(usize),
    Build(BuildError),
    Hyp(&'static str, HypError),
    Guest { vm: usize, vcpu: usize, failure: Failure },
    Broken { vm: usize, vcpu: usize, esr: u64 },
    Nothing { vm: usize, vcpu: usize, address: u64 },
    Stuck { vm: usize, vcpu: usize },
    NotOff { vm: usize, vcpu: usize },
    Dropped(usize),
    Host { cpu: usize, mismatch: Mismatch },
    HostVl { cpu: usize, expected: usize, found: usize },
    Ticks(usize),
    Runs { cpu: usize, counted: u64, told: u64 },
    Pages { before: usize, after: usize },
    Shared(u64),
    Timeout,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Self::NoUmbra => write!(f, "there is no Umbra below this kernel"),
            Self::Interface(v) => {
                write!(f, "hyp speaks interface {v:#x}, this host {INTERFACE_VERSION:#x}")
            }
            Self::NoGuest => {
                write!(f, "the initrd has no file `guest`, or there is no memory for it")
            }
            Self::Cpu(cpu) => write!(f, "CPU {cpu} did not come up"),
            Self::UnknownCpu(cpu) => write!(f, "hyp does not know CPU {cpu}"),
            Self::Gic => write!(f, "there can be no GIC for the guests"),
            Self::NoSgis(vm) => write!(f, "no vCPU of VM {vm} has had an SGI from another"),
            Self::Build(error) => write!(f, "VM: {error}"),
            Self::Hyp(what, error) => write!(f, "{what}: {error}"),
            Self::Guest { vm, vcpu, failure } => write!(f, "VM {vm} vCPU {vcpu}: {failure}"),
            Self::Broken { vm, vcpu, esr } => write!(f, "VM {vm} vCPU {vcpu} broke, ESR {esr:#x}"),
            Self::Nothing { vm, vcpu, address } => {
                write!(f, "VM {vm} vCPU {vcpu} accessed {address:#x}")
            }
            Self::Stuck { vm, vcpu } => write!(f, "VM {vm} vCPU {vcpu} makes no progress"),
            Self::NotOff { vm, vcpu } => write!(f, "VM {vm} vCPU {vcpu} did not finish"),
            Self::Dropped(cpu) => write!(f, "hyp dropped the live registers of CPU {cpu}"),
            Self::Host { cpu, mismatch } => write!(f, "host on CPU {cpu}: {mismatch}"),
            Self::HostVl { cpu, expected, found } => {
                write!(f, "host on CPU {cpu}: its VL was {expected}, now {found}")
            }
            Self::Runs { cpu, counted, told } => {
                write!(f, "CPU {cpu} entered guests {counted} times, STATS says {told}")
            }
            Self::Ticks(cpu) => write!(f, "CPU {cpu} lost its timer"),
            Self::Pages { before, after } => {
                write!(f, "{before} pages were free before, {after} are after")
            }
            Self::Shared(page) => write!(f, "hyp still maps the host's page {page:#x}"),
            Self::Timeout => write!(f, "the CPUs did not finish"),
        }
    }
}

impl From<BuildError> for Trouble {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

/// The first trouble; everybody stops when there is one.
static TROUBLE: sync::Lock<Option<Trouble>> = sync::Lock::new(None);
static STOP: AtomicBool = AtomicBool::new(false);

fn report(trouble: Trouble) {
    log::error!("{trouble}");
    TROUBLE.lock().get_or_insert(trouble);
    STOP.store(true, Ordering::Release);
}

fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

/// What all CPUs need to know.
struct Plan {
    cpus: usize,
    sve: bool,
    /// Each CPU's number at hyp, and its vector lengths.
    at_hyp: [(u64, VqSet); MAX_CPUS],
    /// Each CPU's affinity.
    affinities: [u64; MAX_CPUS],
    /// List registers that all CPUs have.
    list_registers: u8,
    vms: [sync::Lock<Option<vms::DemoVm>>; VMS],
    gics: [Vgic<'static>; VMS],
    slots: [[sync::Lock<Slot>; MAX_CPUS]; VMS],
}

static PLAN: sync::Once<Plan> = sync::Once::new();

pub fn run(machine: &'static Machine) {
    match demonstrate(machine) {
        Ok(()) => {}
        Err(trouble) => report(trouble),
    }
    match &*TROUBLE.lock() {
        None => emit!("@verdict ok"),
        Some(trouble) => emit!("@verdict failed: {trouble}"),
    }
}

fn demonstrate(machine: &'static Machine) -> Result<(), Trouble> {
    // Without EL2 at all, HVC is UNDEFINED.
    let mut umbra = false;
    exception::count_undefined(|| umbra = Hvc::is_umbra());
    if !umbra {
        return Err(Trouble::NoUmbra);
    }
    let Version { interface, features, .. } = hyp("VERSION", Hvc.version())?;
    if interface != INTERFACE_VERSION {
        return Err(Trouble::Interface(interface));
    }
    let guest = initrd::file(machine, "guest").ok_or(Trouble::NoGuest)?;
    log::info!("Umbra, {} CPUs, {features:?}", machine.cpus.len());
    offers::show(features, &hyp("VL_INFO", Hvc.vl_info(None))?);
    let sve = features.contains(Features::SVE);
    let free = pages::free_count();

    // The others wait for the plan.
    let cpus = smp::start(machine, cpu::work).map_err(Trouble::Cpu)?;
    let at_hyp = at_hyp(machine)?;
    let (vms, vcpus) = vms::build(guest, cpus, sve)?;
    let slots = vcpus.map(|of_vm| of_vm.map(|vcpu| sync::Lock::new(Slot::new(vcpu))));
    let vms = vms.map(|vm| sync::Lock::new(Some(vm)));
    let interface = hyp("VL_INFO", Hvc.vl_info(None))?.interface;
    let priority_bits = interface.priorities.count_ones() as u8;
    let gic = |vm| gics::new(vm, cpus, priority_bits).ok_or(Trouble::Gic);
    let gics = [gic(0)?, gic(1)?];
    let mut affinities = [0; MAX_CPUS];
    affinities.iter_mut().zip(&machine.cpus).for_each(|(to, &from)| *to = from);
    let list_registers = interface.registers;
    let plan =
        PLAN.call_once(|| Plan { cpus, sve, at_hyp, affinities, list_registers, vms, gics, slots });
    cpu::work(0);
    let finished = timer::wait_until(120, || (1..cpus).all(smp::is_done));
    timer::set_tick(0);
    if !finished {
        return Err(Trouble::Timeout);
    }
    counters(machine, plan)?;
    vms::destroy(plan)?;
    if let Some(page) = hyp("NEXT_SHARED_PAGE", Hvc.next_shared_page(0))? {
        return Err(Trouble::Shared(page));
    }
    let after = pages::free_count();
    if after != free {
        return Err(Trouble::Pages { before: free, after });
    }
    Ok(())
}

fn hyp<T>(what: &'static str, result: Result<T, HypError>) -> Result<T, Trouble> {
    result.map_err(|error| Trouble::Hyp(what, error))
}

/// Finds each of our CPUs at hyp, which may count in another order.
fn at_hyp(machine: &Machine) -> Result<[(u64, VqSet); MAX_CPUS], Trouble> {
    let mut found = [(0, VqSet::EMPTY); MAX_CPUS];
    let count = hyp("VL_INFO", Hvc.vl_info(None))?.cpus;
    for (cpu, &affinity) in machine.cpus.iter().enumerate() {
        let mut known = false;
        for index in 0..count {
            let info = hyp("VL_INFO", Hvc.vl_info(Some(index)))?;
            if info.affinity == affinity {
                found[cpu] = (index, info.vqs);
                known = true;
            }
        }
        if !known {
            return Err(Trouble::UnknownCpu(cpu));
        }
    }
    Ok(found)
}

/// Vector lengths in bytes, with commas.
struct Vls(VqSet);

impl fmt::Display for Vls {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (n, vq) in self.0.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { "" } else { "," }, vq.vl_bytes())?;
        }
        Ok(())
    }
}

/// The `@cpu` and `@vcpu` lines.
fn counters(machine: &Machine, plan: &Plan) -> Result<(), Trouble> {
    for cpu in 0..plan.cpus {
        let (index, vqs) = plan.at_hyp[cpu];
        let info = hyp("VL_INFO", Hvc.vl_info(Some(index)))?;
        let stats = hyp("STATS", Hvc.stats(index))?;
        let get = |counter: Counter| stats[counter as usize];
        emit!(
            "@cpu cpu={cpu} mpidr={:#x} vls={} svls={} image={} runs={} guest_traps={} host_traps={} \
             saves_full={} saves_fpsimd={} saves_avoided={} loads={} guest_saves={} \
             guest_loads={} loads_avoided={} bytes={}",
            machine.cpus[cpu],
            Vls(vqs),
            Vls(info.svqs),
            info.image_bytes,
            get(Counter::Runs),
            get(Counter::GuestFpTraps),
            get(Counter::HostFpTraps),
            get(Counter::HostSavesFull),
            get(Counter::HostSavesFpsimd),
            get(Counter::HostSavesAvoided),
            get(Counter::HostLoads),
            get(Counter::GuestSaves),
            get(Counter::GuestLoads),
            get(Counter::GuestLoadsAvoided) + get(Counter::HostLoadsAvoided),
            get(Counter::BytesMoved),
        );
        if timer::ticks(cpu) == 0 {
            return Err(Trouble::Ticks(cpu));
        }
        let (counted, told) = (cpu::runs(cpu), get(Counter::Runs));
        if counted != told {
            return Err(Trouble::Runs { cpu, counted, told });
        }
    }
    for (vm, slots) in plan.slots.iter().enumerate() {
        let mut sgis = 0;
        for (vcpu, slot) in slots.iter().take(plan.cpus).enumerate() {
            let slot = slot.lock();
            emit!(
                "@vcpu vm={vm} vcpu={vcpu} vl={} verified={} migrations={} hvc={} mmio={} timer={} \
                 spis={} sgis={}",
                slot.vl_bytes(),
                slot.verified,
                slot.migrations,
                slot.hvc,
                slot.mmio,
                slot.timer,
                slot.spis,
                slot.sgis,
            );
            sgis += slot.sgis;
            if !slot.off && !stopped() {
                return Err(Trouble::NotOff { vm, vcpu });
            }
        }
        if plan.cpus > 1 && sgis == 0 && !stopped() {
            return Err(Trouble::NoSgis(vm));
        }
    }
    Ok(())
}
