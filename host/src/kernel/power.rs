//! PSCI: CPUs on and off, machine off.

use super::{machine::Conduit, sync::Once, sysreg};
use smccc::{Hvc, Smc, psci};

static CONDUIT: Once<Conduit> = Once::new();

pub(super) fn init(conduit: Conduit) {
    CONDUIT.call_once(|| conduit);
}

/// The conduit that the device tree names.
pub fn conduit() -> Option<Conduit> {
    CONDUIT.get().copied()
}

/// Turns a CPU on: it starts at the physical address `entry` with `context` in x0.
pub fn cpu_on(affinity: u64, entry: u64, context: u64) -> Result<(), psci::Error> {
    match conduit() {
        Some(Conduit::Hvc) => psci::cpu_on::<Hvc>(affinity, entry, context),
        Some(Conduit::Smc) => psci::cpu_on::<Smc>(affinity, entry, context),
        None => Err(psci::Error::NotSupported),
    }
}

/// Turns the calling CPU off. Returns only if that was refused.
pub fn cpu_off() -> Result<(), psci::Error> {
    match conduit() {
        Some(Conduit::Hvc) => psci::cpu_off::<Hvc>(),
        Some(Conduit::Smc) => psci::cpu_off::<Smc>(),
        None => Err(psci::Error::NotSupported),
    }
}

/// Whether a CPU is on, as PSCI sees it.
pub fn affinity_info(affinity: u64) -> Result<psci::AffinityState, psci::Error> {
    let level = psci::LowestAffinityLevel::All;
    match conduit() {
        Some(Conduit::Hvc) => psci::affinity_info::<Hvc>(affinity, level),
        Some(Conduit::Smc) => psci::affinity_info::<Smc>(affinity, level),
        None => Err(psci::Error::NotSupported),
    }
}

/// Turns the machine off.
pub fn off() -> ! {
    // Whatever it answers, what remains is to stop.
    let _ = match conduit() {
        Some(Conduit::Hvc) => psci::system_off::<Hvc>(),
        Some(Conduit::Smc) => psci::system_off::<Smc>(),
        None => Ok(()),
    };
    loop {
        sysreg::wait_for_interrupt();
    }
}

/// The end of a fatal error: turns the machine off, so that nobody waits for more.
pub fn stop() -> ! {
    sysreg::mask_interrupts();
    off()
}
