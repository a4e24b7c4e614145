//! Several CPUs. Numbers are the kernel's own: 0 is the boot CPU, the others follow in the order of
//! the device tree ([`cpu`]).

use super::{MAX_CPUS, machine::Machine, mmu, power, sync::Once, sysreg, timer};
use core::sync::atomic::{AtomicUsize, Ordering};

pub use super::sysreg::cpu;

/// What a CPU does once it is up.
pub type Work = fn(cpu: usize);

static WORK: Once<Work> = Once::new();
static DONE: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
static ONLINE: AtomicUsize = AtomicUsize::new(1);

unsafe extern "C" {
    static umbra_secondary: u8;
}

/// CPUs that are up, the boot CPU included.
pub fn online() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Starts every CPU of the machine and lets them all do `work`. Returns how many there are, the boot
/// CPU included, which has not started `work`. A CPU that doesn't come up is an error with its number.
pub fn start(machine: &Machine, work: Work) -> Result<usize, usize> {
    WORK.call_once(|| work);
    let entry = entry();
    for (cpu, &affinity) in machine.cpus.iter().enumerate().skip(1) {
        if let Err(error) = power::cpu_on(affinity, entry, cpu as u64) {
            log::error!("CPU {cpu} ({affinity:#x}): CPU_ON: {error}");
            return Err(cpu);
        }
        if !timer::wait_until(20, || online() > cpu) {
            return Err(cpu);
        }
    }
    Ok(machine.cpus.len())
}

/// The physical address at which a CPU comes up; its context is its number.
pub fn entry() -> u64 {
    mmu::image_pa(&raw const umbra_secondary as usize)
}

/// Whether `cpu` has finished its work.
pub fn is_done(cpu: usize) -> bool {
    DONE[cpu].load(Ordering::Acquire) != 0
}

pub(super) fn enter(cpu: usize) -> ! {
    ONLINE.fetch_add(1, Ordering::Release);
    let work = WORK.get().expect("set before the first CPU_ON");
    work(cpu);
    DONE[cpu].store(1, Ordering::Release);
    loop {
        sysreg::wait_for_interrupt();
    }
}
