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

/// Suspends the calling CPU. Returns if that was refused, or from a standby state; out of a power-down
/// state it starts at the physical address `entry` with `context` in x0.
pub fn cpu_suspend(state: u32, entry: u64, context: u64) -> Result<(), psci::Error> {
    match conduit() {
        Some(Conduit::Hvc) => psci::cpu_suspend::<Hvc>(state, entry, context),
        Some(Conduit::Smc) => psci::cpu_suspend::<Smc>(state, entry, context),
        None => Err(psci::Error::NotSupported),
    }
}

/// Whether CPU_SUSPEND's power_state is in the extended format (PSCI_FEATURES): then bit 30 is the
/// one that says power-down, otherwise bit 16.
pub fn suspend_is_extended() -> bool {
    const CPU_SUSPEND: u32 = 0xc400_0001;
    let features = match conduit() {
        Some(Conduit::Hvc) => psci::psci_features::<Hvc>(CPU_SUSPEND),
        Some(Conduit::Smc) => psci::psci_features::<Smc>(CPU_SUSPEND),
        None => Err(psci::Error::NotSupported),
    };
    features.is_ok_and(|features| features & 1 << 1 != 0)
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
