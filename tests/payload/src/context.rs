//! What the tests know of the machine.

use crate::{runner::Skip, workers};
use umbra_host::{
    hypercall::{Hvc, Hypervisor, Version},
    kernel::{MAX_CPUS, exception, machine::Machine, smp, sync::Once},
};
use umbra_patterns::regs;
use umbra_shared::{
    call::{Counter, Features, INTERFACE_VERSION},
    vl::{Vq, VqSet},
};

/// The machine and the hyp below.
pub struct Context {
    pub machine: &'static Machine,
    pub cpus: usize,
    pub version: Version,
    /// Vector lengths that guests can have.
    pub common: VqSet,
    /// Each CPU's number at hyp.
    at_hyp: [u64; MAX_CPUS],
    /// Each CPU's vector lengths.
    pub vqs: [VqSet; MAX_CPUS],
}

static CONTEXT: Once<Context> = Once::new();

/// The machine.
pub fn context() -> &'static Context {
    CONTEXT.get().expect("set before the first test")
}

/// Looks at the machine and starts its CPUs.
pub fn init(machine: &'static Machine) {
    let mut umbra = false;
    exception::count_undefined(|| umbra = Hvc::is_umbra());
    assert!(umbra, "there is no Umbra below this kernel");
    let version = Hvc.version().expect("VERSION");
    assert_eq!(version.interface, INTERFACE_VERSION);
    regs::enable();
    let all = Hvc.vl_info(None).expect("VL_INFO");
    let mut at_hyp = [0; MAX_CPUS];
    let mut vqs = [VqSet::EMPTY; MAX_CPUS];
    for (cpu, &affinity) in machine.cpus.iter().enumerate() {
        let found = (0..all.cpus).find_map(|n| {
            let info = Hvc.vl_info(Some(n)).expect("VL_INFO");
            (info.affinity == affinity).then_some((n, info.vqs))
        });
        (at_hyp[cpu], vqs[cpu]) = found.expect("hyp knows all CPUs");
    }
    let cpus = machine.cpus.len();
    CONTEXT.call_once(|| Context { machine, cpus, version, common: all.vqs, at_hyp, vqs });
    workers::start(machine);
}

impl Context {
    /// A CPU's number at hyp.
    pub fn at_hyp(&self, cpu: usize) -> u64 {
        self.at_hyp[cpu]
    }

    /// Whether guests can have SVE.
    pub fn sve(&self) -> bool {
        self.version.features.contains(Features::SVE)
    }

    /// Whether the CPUs have SME.
    pub fn sme(&self) -> bool {
        self.version.features.contains(Features::SME)
    }

    /// The largest VL of guests; `None`: no SVE.
    pub fn largest(&self) -> Option<Vq> {
        self.common.max()
    }
}

/// The test needs SVE: the largest VL guests can have.
pub fn need_sve() -> Result<Vq, Skip> {
    context().largest().ok_or(Skip("no SVE"))
}

/// The test needs two vector lengths: the smallest and the largest.
pub fn need_two_vls() -> Result<(Vq, Vq), Skip> {
    let largest = need_sve()?;
    if largest == Vq::MIN { Err(Skip("one vector length only")) } else { Ok((Vq::MIN, largest)) }
}

/// The test needs several CPUs.
pub fn need_cpus(count: usize) -> Result<(), Skip> {
    if context().cpus < count { Err(Skip("too few CPUs")) } else { Ok(()) }
}

/// The test needs SME.
pub fn need_sme() -> Result<(), Skip> {
    if context().sme() { Ok(()) } else { Err(Skip("no SME")) }
}

/// Counters of a CPU.
pub struct Counters([u64; Counter::ALL.len()]);

impl Counters {
    /// Of this CPU, now.
    pub fn now() -> Self {
        Self(Hvc.stats(context().at_hyp(smp::cpu())).expect("STATS"))
    }

    /// How much one of them has grown since.
    pub fn since(&self, counter: Counter) -> u64 {
        Self::now().0[counter as usize] - self.0[counter as usize]
    }

    /// Several of them.
    pub fn deltas<const N: usize>(&self, counters: [Counter; N]) -> [u64; N] {
        let now = Self::now();
        counters.map(|counter| now.0[counter as usize] - self.0[counter as usize])
    }
}
