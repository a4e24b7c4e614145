//! What the tests know of the machine.

use crate::{lpi, runner::Skip, workers};
use arrayvec::ArrayVec;
use umbra_host::{
    hypercall::{Hvc, Hypervisor, Version, VlInfo},
    kernel::{MAX_CPUS, exception, machine::Machine, power, smp, sync::Once},
};
use umbra_patterns::regs::{self, sme};
use umbra_shared::{
    call::{Counter, Features, INTERFACE_VERSION, Policy},
    sme::Storage,
    vcpu::VcpuFeatures,
    vl::{Vq, VqSet},
};

/// The machine and the hyp below.
pub struct Context {
    pub machine: &'static Machine,
    pub cpus: usize,
    pub version: Version,
    /// Vector lengths that hyp lets guests have: common to the CPUs that were up when it booted.
    pub guests: VqSet,
    /// Those of them with which a guest runs on every CPU: without what a late CPU lacks.
    pub common: VqSet,
    /// CPUs that were not up when hyp booted.
    pub late: ArrayVec<usize, MAX_CPUS>,
    /// The largest VL of a CPU that was: host images hold no more.
    image_vq: Option<Vq>,
    /// Each CPU's number at hyp.
    at_hyp: [u64; MAX_CPUS],
    /// Each CPU's vector lengths, those of a late one as hyp found them when it came.
    pub vqs: [VqSet; MAX_CPUS],
    /// The same of streaming mode: what guests may have, what runs everywhere, what each CPU has, and
    /// the largest that host images hold.
    pub guests_streaming: VqSet,
    pub common_streaming: VqSet,
    pub svqs: [VqSet; MAX_CPUS],
    image_svq: Option<Vq>,
}

static CONTEXT: Once<Context> = Once::new();

/// The machine.
pub fn context() -> &'static Context {
    CONTEXT.get().expect("set before the first test")
}

/// Looks at the machine and starts its CPUs.
pub fn init(machine: &'static Machine) {
    lpi::init(machine);
    let mut umbra = false;
    exception::count_undefined(|| umbra = Hvc::is_umbra());
    assert!(umbra, "there is no Umbra below this kernel");
    let version = Hvc.version().expect("VERSION");
    assert_eq!(version.interface, INTERFACE_VERSION);
    regs::enable();
    let VlInfo { vqs: guests, svqs: guests_streaming, .. } = Hvc.vl_info(None).expect("VL_INFO");
    let cpus = machine.cpus.len();
    let mut at_hyp = [0; MAX_CPUS];
    let mut late = ArrayVec::new();
    for (cpu, number) in at_hyp[..cpus].iter_mut().enumerate() {
        *number = (0..cpus as u64)
            .find(|&n| vl_info(n).affinity == machine.cpus[cpu])
            .expect("hyp knows all CPUs");
        let info = vl_info(*number);
        if !info.online {
            let nothing = (VqSet::EMPTY, VqSet::EMPTY);
            assert_eq!((info.vqs, info.svqs), nothing, "nobody has seen CPU {cpu}");
            late.push(cpu);
        }
    }
    let sets = || at_hyp[..cpus].iter().map(|&n| vl_info(n).vqs);
    let streaming = || at_hyp[..cpus].iter().map(|&n| vl_info(n).svqs);
    let image_vq = sets().filter_map(VqSet::max).max();
    let image_svq = streaming().filter_map(VqSet::max).max();
    workers::start(machine);
    let (mut vqs, mut svqs) = ([VqSet::EMPTY; MAX_CPUS], [VqSet::EMPTY; MAX_CPUS]);
    vqs.iter_mut().zip(sets()).for_each(|(to, from)| *to = from);
    svqs.iter_mut().zip(streaming()).for_each(|(to, from)| *to = from);
    let common = VqSet::common(sets().chain([guests]));
    let common_streaming = VqSet::common(streaming().chain([guests_streaming]));
    CONTEXT.call_once(|| Context {
        machine,
        cpus,
        version,
        guests,
        common,
        late,
        image_vq,
        at_hyp,
        vqs,
        guests_streaming,
        common_streaming,
        svqs,
        image_svq,
    });
}

fn vl_info(number: u64) -> VlInfo {
    Hvc.vl_info(Some(number)).expect("VL_INFO")
}

impl Context {
    /// The FP policy of protected VMs, as the loader's words have it.
    pub fn protected_policy(&self) -> Policy {
        match self.machine.argument("umbra.protected-fp") {
            Some("lazy") => Policy::Lazy,
            _ => Policy::Scrub,
        }
    }

    /// What the host can use of a CPU's vector lengths: no more than its image holds, or with
    /// `umbra.host-vl=common` than all CPUs have.
    pub fn host_vqs(&self, cpu: usize) -> VqSet {
        let limit = if self.host_vl_common() { self.guests.max() } else { self.image_vq };
        let held = self.vqs[cpu].iter().filter(|&vq| Some(vq) <= limit);
        held.fold(VqSet::EMPTY, VqSet::with)
    }

    /// The same of its streaming vector lengths.
    pub fn host_svqs(&self, cpu: usize) -> VqSet {
        let common = self.guests_streaming.max();
        let limit = if self.host_vl_common() { common } else { self.image_svq };
        let held = self.svqs[cpu].iter().filter(|&svq| Some(svq) <= limit);
        held.fold(VqSet::EMPTY, VqSet::with)
    }

    /// Bytes of a host image.
    pub fn image_bytes(&self) -> u64 {
        Storage::new(self.image_vq, self.image_svq).bytes() as u64
    }

    /// Whether the command line holds the host to the common vector lengths.
    pub fn host_vl_common(&self) -> bool {
        self.machine.argument("umbra.host-vl") == Some("common")
    }

    /// The largest VL that a host image holds.
    pub fn image_vq(&self) -> Option<Vq> {
        self.image_vq
    }

    /// A CPU's number at hyp.
    pub fn at_hyp(&self, cpu: usize) -> u64 {
        self.at_hyp[cpu]
    }

    /// Whether guests can have SVE.
    pub fn sve(&self) -> bool {
        self.version.features.contains(Features::SVE)
    }

    /// Whether guests can be AArch32.
    pub fn aarch32(&self) -> bool {
        self.version.features.contains(Features::AARCH32)
    }

    /// The largest SVL of a guest that runs on every CPU; `None`: no SME.
    pub fn largest_streaming(&self) -> Option<Vq> {
        self.common_streaming.max()
    }

    /// All that a vCPU can have that runs on every CPU.
    pub fn everything(&self) -> VcpuFeatures {
        VcpuFeatures { vq: self.largest(), svq: self.largest_streaming(), aarch32: false }
    }

    /// The largest VL of a guest that runs on every CPU; `None`: no SVE.
    pub fn largest(&self) -> Option<Vq> {
        self.common.max()
    }
}

/// The test needs SVE: the largest VL of a guest that runs on every CPU.
pub fn need_sve() -> Result<Vq, Skip> {
    context().largest().ok_or(Skip("no SVE"))
}

/// The test needs two vector lengths: the smallest and the largest.
pub fn need_two_vls() -> Result<(Vq, Vq), Skip> {
    let largest = need_sve()?;
    if largest == Vq::MIN { Err(Skip("one vector length only")) } else { Ok((Vq::MIN, largest)) }
}

/// The test needs a CPU_SUSPEND that works. QEMU's own never wakes up; where there is one, the device
/// tree lists idle states: the standby one and the one that powers down.
pub fn need_suspend() -> Result<(u32, u32), Skip> {
    need_cpus(2)?;
    let power_down = if power::suspend_is_extended() { 1 << 30 } else { 1 << 16 };
    let state = |down: bool| {
        let states = context().machine.idle_states.iter().copied();
        states.into_iter().find(|state| (state & power_down != 0) == down)
    };
    state(false).zip(state(true)).ok_or(Skip("no idle states"))
}

/// The test needs several CPUs.
pub fn need_cpus(count: usize) -> Result<(), Skip> {
    if context().cpus < count { Err(Skip("too few CPUs")) } else { Ok(()) }
}

/// The test needs an EL1 that can be AArch32.
pub fn need_aarch32() -> Result<(), Skip> {
    if context().aarch32() { Ok(()) } else { Err(Skip("no AArch32 at EL1")) }
}

/// The test needs SME: the largest SVL of a guest that runs on every CPU.
pub fn need_sme() -> Result<Vq, Skip> {
    context().largest_streaming().ok_or(Skip("no SME"))
}

/// The test needs FPMR, which QEMU has since 10.1.
pub fn need_fpmr() -> Result<(), Skip> {
    if sme::has_fpmr() { Ok(()) } else { Err(Skip("no FPMR")) }
}

/// What a streaming vector length comes to where these are: unlike SVE's, the smallest may be more than
/// was asked for.
pub fn effective_streaming(svqs: VqSet, asked: Vq) -> Option<Vq> {
    svqs.effective(asked).or_else(|| svqs.iter().next())
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
