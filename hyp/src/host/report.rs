//! `umbra.stats`: the counters of all CPUs as `@cpu` lines, for hosts that never ask for them; and what the SMMUs have
//! aborted.

#![forbid(unsafe_code)]

use crate::arch::console::emergency;
use crate::machine::{SHARED, Shared, machine};
use crate::memory::hw;
use core::fmt;
use core::sync::atomic::Ordering;
use umbra_shared::call::Counter;
use umbra_shared::vl::VqSet;

/// Vector lengths in bytes, with commas; `none`: no SVE.
struct Vls(VqSet);

impl fmt::Display for Vls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (n, vq) in self.0.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { "" } else { "," }, vq.vl_bytes())?;
        }
        Ok(())
    }
}

/// What the host can no longer disturb: it has asked for its end.
pub fn counters() {
    for (n, shared) in SHARED[..machine().cpus].iter().enumerate() {
        row(n, shared);
    }
    let aborts = hw::with(|memory| memory.devices.as_mut().map(|devices| devices.smmus().events()));
    if let Some(aborts) = aborts {
        emergency(format_args!("@seen what=SMMU-aborts is={aborts}\n"));
    }
    let held = hw::with(|memory| memory.pages_of_vms());
    emergency(format_args!("@seen what=pages-of-VMs is={held}\n"));
}

fn row(n: usize, shared: &Shared) {
    let get = |counter: Counter| shared.stats.get(counter as u64);
    emergency(format_args!(
        "\n@cpu cpu={n} mpidr={:#x} vls={} image={} runs={} host_traps={} saves_full={} \
         saves_fpsimd={} loads={} bytes={} host_aborts={} stage2_retries={} \
         gic_traps={} host_junk={}\n",
        shared.mpidr.load(Ordering::Relaxed),
        Vls(shared.vqs()),
        shared.image_bytes.load(Ordering::Relaxed),
        get(Counter::Runs),
        get(Counter::HostFpTraps),
        get(Counter::HostSavesFull),
        get(Counter::HostSavesFpsimd),
        get(Counter::HostLoads),
        get(Counter::BytesMoved),
        get(Counter::HostAborts),
        get(Counter::Stage2Retries),
        get(Counter::GicTraps),
        get(Counter::HostJunk),
    ));
}
