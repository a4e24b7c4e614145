//! Round trips, as the guest sees them.

use super::{Measured, Plan, WARM_UP, row, timed};
use crate::{context::context, own_gic, workers};
use core::{arch::asm, ops::ControlFlow};
use umbra_host::{
    emit,
    fp::{CpuRegisters, TaskFp},
    hypercall::Hvc,
    kernel::{
        gic, smp,
        supply::{self, Pages},
        sync::Once,
        sysreg,
    },
    vcpu::{Answer, ExitHandler, HostCpu, LoadedVcpu, MmioAnswer, Supplied, Vcpu},
    vgic::{VcpuCell, Vgic},
    vm::{Line, VcpuSettings, Vm},
};
use umbra_patterns::protocol::{ARGUMENT, Argument, BASE, BENCH, BENCH_NEXT, Mode, Routine};
use umbra_shared::{
    call::{Features, Policy, Start, UntrustedAffinity, VcpuIndex, VmConfig},
    exit::{MmioAccess, SystemEvent},
    flags::HostFlags,
    guest::{NOT_SUPPORTED, is_hosts},
    vcpu::VcpuFeatures,
    vl::Vq,
};

pub type GuestVm = Vm<[Line; LINES]>;
/// Pieces that its memory may be in.
pub const LINES: usize = 64;

/// What of the FP registers somebody uses in each turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fp {
    None,
    Fpsimd,
    Sve,
}

const NONE: u8 = Fp::None as u8;
const FPSIMD: u8 = Fp::Fpsimd as u8;
const SVE: u8 = Fp::Sve as u8;

impl Fp {
    const ALL: [Self; 3] = [Self::None, Self::Fpsimd, Self::Sve];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fpsimd => "fpsimd",
            Self::Sve => "sve",
        }
    }

    const fn hvc(self) -> Routine {
        match self {
            Self::None => Routine::HvcNone,
            Self::Fpsimd => Routine::HvcFpsimd,
            Self::Sve => Routine::HvcSve,
        }
    }

    const fn touch(self) -> Routine {
        match self {
            Self::None => Routine::TouchNone,
            Self::Fpsimd => Routine::TouchFpsimd,
            Self::Sve => Routine::TouchSve,
        }
    }
}

/// What the host says of its registers.
const HINTS: [(&str, HostFlags); 3] = [
    ("none", HostFlags::empty()),
    ("discarded", HostFlags::SVE_DISCARDED),
    ("foreign", HostFlags::FOREIGN_FPSTATE),
];

const POLICIES: [(&str, Policy); 3] =
    [("lazy", Policy::Lazy), ("eager", Policy::Eager), ("scrub", Policy::Scrub)];

/// The vector lengths of the table: 128, 256, 512 and 2048 bits, as far as guests have them.
pub fn lengths() -> impl Iterator<Item = Vq> {
    [1, 2, 4, 16].into_iter().filter_map(Vq::new).filter(|&vq| context().common.contains(vq))
}

/// The host's side of a run loop. `INTERRUPTS`: it interrupts itself before each entry.
pub struct Task<const INTERRUPTS: bool> {
    pub hints: HostFlags,
}

impl<const INTERRUPTS: bool> TaskFp for Task<INTERRUPTS> {
    #[inline]
    fn registers(&self) -> CpuRegisters {
        if self.hints.contains(HostFlags::FOREIGN_FPSTATE) {
            CpuRegisters::Saved
        } else if self.hints.contains(HostFlags::SVE_DISCARDED) {
            CpuRegisters::LiveFpsimd
        } else {
            CpuRegisters::Live
        }
    }
    fn flush_cpu_state(&mut self) {}
}

impl<const INTERRUPTS: bool> HostCpu for Task<INTERRUPTS> {
    #[inline]
    fn mask_interrupts(&mut self) {
        sysreg::mask_interrupts();
        if INTERRUPTS {
            workers::wake(smp::cpu());
        }
    }
    #[inline]
    fn unmask_interrupts(&mut self) {
        sysreg::unmask_interrupts();
    }
    fn mask_virtual_timer(&mut self, masked: bool) {
        gic::enable(gic::VIRTUAL_TIMER, !masked);
    }
    #[inline]
    fn must_leave(&self) -> bool {
        false
    }
}

/// Uses FP as the host would: nothing, a V register, a Z register.
#[inline]
fn touch<const TOUCH: u8>() {
    match TOUCH {
        FPSIMD => {
            // SAFETY: no compiled code has anything in V0.
            unsafe { asm!(".arch_extension simd", "add v0.16b, v0.16b, v0.16b", options(nostack)) }
        }
        SVE => {
            // SAFETY: no compiled code has anything in Z0; the machine has SVE.
            unsafe {
                asm!(
                    ".arch_extension sve",
                    "add z0.b, z0.b, z0.b",
                    ".arch_extension nosve",
                    options(nostack)
                );
            }
        }
        _ => {}
    }
}

/// Answers exits until the guest has measured.
struct Exits<const TOUCH: u8> {
    interrupts: u64,
}

impl<const TOUCH: u8> Exits<TOUCH> {
    #[cold]
    fn other_hvc(x0: u64, x1: u64) -> ControlFlow<u64, Answer> {
        match x0 {
            BENCH_NEXT => ControlFlow::Break(x1),
            // It is alone, and no protected guest.
            ARGUMENT => ControlFlow::Continue([0; 4]),
            x0 if !is_hosts(x0) => ControlFlow::Continue([NOT_SUPPORTED as u64, 0, 0, 0]),
            other => panic!("the guest calls {other:#x} {x1:#x}"),
        }
    }
}

impl<const TOUCH: u8> ExitHandler for Exits<TOUCH> {
    /// The guest's ticks.
    type Stop = u64;

    #[inline]
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<u64, Answer> {
        if x[0] == BENCH {
            touch::<TOUCH>();
            return ControlFlow::Continue([0; 4]);
        }
        Self::other_hvc(x[0], x[1])
    }

    #[inline]
    fn mmio(&mut self, _: u64, _: MmioAccess, _: u64) -> ControlFlow<u64, MmioAnswer> {
        touch::<TOUCH>();
        ControlFlow::Continue(MmioAnswer::Read(0))
    }

    #[inline]
    fn interrupt(&mut self) -> ControlFlow<u64> {
        touch::<TOUCH>();
        self.interrupts = self.interrupts.wrapping_sub(1);
        if self.interrupts == 0 { ControlFlow::Break(0) } else { ControlFlow::Continue(()) }
    }

    fn fault(&mut self, address: u64) -> ControlFlow<u64, Supplied> {
        panic!("the guest accessed {address:#x}")
    }

    fn tables(&mut self) -> ControlFlow<u64, Supplied> {
        panic!("a VM of one page in one place takes more tables")
    }

    fn cpu_off(&mut self) -> u64 {
        panic!("the guest has turned itself off")
    }

    fn system(&mut self, event: SystemEvent, _: u64, _: u64) -> u64 {
        panic!("the guest has ended: {event:?}")
    }

    fn broken(&mut self, esr: u64) -> u64 {
        panic!("the guest broke, ESR {esr:#x}")
    }
}

/// A VM with the guest in its memory.
pub fn vm(image: &[u8], config: VmConfig) -> GuestVm {
    let mut vm = GuestVm::create([Line::FREE; LINES], &Hvc, &mut Pages, config).expect("VM_CREATE");
    let (first, count) = supply::image(image).expect("a guest's image and memory for it");
    vm.map(&Hvc, &mut Pages, first, count, BASE).expect("VM_MAP");
    vm
}

/// A vCPU that measures, put.
pub fn vcpu(vm: &mut GuestVm, index: u8, vq: Option<Vq>) -> Vcpu {
    let argument = Argument { vcpu: index, owner: 0, vq, svq: None, mode: Mode::Bench };
    let start = Start::At { entry: BASE, argument: argument.encode() };
    let settings = VcpuSettings {
        index: VcpuIndex(0),
        affinity: UntrustedAffinity(0),
        features: VcpuFeatures::sve(vq),
        start,
    };
    let mut vcpu = vm.create_vcpu(&Hvc, &mut Pages, settings).expect("VCPU_CREATE");
    vm.seal(&Hvc).expect("VM_SEAL");
    let mut bench = Bench::load(&mut vcpu, HostFlags::empty());
    // To where it asks for its first order.
    bench.run::<NONE>();
    bench.put();
    vcpu
}

/// Takes it all down.
pub fn destroy(vm: GuestVm, vcpus: impl IntoIterator<Item = Vcpu>) {
    if let Err(failure) = vm.destroy(&Hvc, &mut Pages, vcpus) {
        panic!("VM_DESTROY: {}", failure.error);
    }
}

/// The GIC of all of them: none of these guests has interrupts.
fn gic() -> &'static Vgic<'static> {
    static CELLS: [VcpuCell; 1] = [VcpuCell::new(0)];
    static GIC: Once<Vgic<'static>> = Once::new();
    GIC.call_once(|| own_gic::enabled(&CELLS, &[]))
}

/// A loaded vCPU that waits for orders, and the host that runs it.
struct Bench<'v> {
    loaded: LoadedVcpu<'v, Hvc>,
    task: Task<false>,
}

impl<'v> Bench<'v> {
    fn load(vcpu: &'v mut Vcpu, hints: HostFlags) -> Self {
        let mut task = Task { hints };
        Self { loaded: vcpu.load(&Hvc, &mut task).expect("VCPU_LOAD"), task }
    }

    fn run<const TOUCH: u8>(&mut self) -> u64 {
        let mut exits = Exits::<TOUCH> { interrupts: 0 };
        self.loaded.run(&mut self.task, &mut own_gic::first(gic()), &mut exits).expect("VCPU_RUN")
    }

    fn order<const TOUCH: u8>(&mut self, routine: Routine, iterations: u64) -> u64 {
        self.loaded.answer([routine as u64, iterations, 0, 0]);
        self.run::<TOUCH>()
    }

    /// Ticks of the guest's, for so many turns of a routine while the host does that with FP.
    fn measure(&mut self, routine: Routine, host: Fp, iterations: u64) -> Measured {
        let order = match host {
            Fp::None => Self::order::<NONE>,
            Fp::Fpsimd => Self::order::<FPSIMD>,
            Fp::Sve => Self::order::<SVE>,
        };
        order(self, routine, WARM_UP);
        row(iterations, || order(self, routine, iterations))
    }

    /// Turns in which an interrupt is pending at each entry: timed by the host, for the guest executes
    /// nothing. The guest takes no orders afterwards.
    fn interrupts(&mut self, iterations: u64) -> Measured {
        let mut task = Task::<true> { hints: self.task.hints };
        self.loaded.answer([Routine::Spin as u64, 0, 0, 0]);
        let mut run = |interrupts| {
            let mut exits = Exits::<NONE> { interrupts };
            self.loaded.run(&mut task, &mut own_gic::first(gic()), &mut exits).expect("VCPU_RUN")
        };
        run(WARM_UP);
        row(iterations, || timed(|| _ = run(iterations)))
    }

    fn put(self) {
        let Self { loaded, mut task } = self;
        loaded.put(&mut task).expect("VCPU_PUT");
    }
}

/// The names of a VM's kind.
#[derive(Clone, Copy)]
pub struct Kind {
    pub policy: &'static str,
    pub vm: &'static str,
    pub config: VmConfig,
}

impl Kind {
    /// A protected VM with its own policy, a normal one with its own.
    pub fn is_default(self) -> bool {
        self.config == VmConfig::normal() || self.config == VmConfig::protected()
    }
}

/// The policy of a protected VM is hyp's.
pub fn kinds() -> impl Iterator<Item = Kind> {
    let protected_policy = context().protected_policy();
    [("normal", false), ("protected", true)].into_iter().flat_map(move |(vm, protected)| {
        let there = move |&(_, policy): &(&str, Policy)| !protected || policy == protected_policy;
        POLICIES.into_iter().filter(there).map(move |(policy, value)| Kind {
            policy,
            vm,
            config: VmConfig { policy: value, protected, ..VmConfig::normal() },
        })
    })
}

/// Everything: by kind of VM, then vector length, then who uses FP.
pub fn measure(plan: Plan, image: &[u8]) {
    for kind in kinds() {
        // The rest is for the curious.
        if plan.short && !kind.is_default() {
            continue;
        }
        let lengths = lengths().filter(|vq| !plan.short || vq.vl_bytes() == 64).map(Some);
        // Each vCPU in a VM of its own: a protected one gets no second one once it has run.
        for vq in [None].into_iter().chain(lengths) {
            if plan.short && vq.is_none() && context().sve() {
                continue;
            }
            let mut vm = vm(image, kind.config);
            let mut vcpu = vcpu(&mut vm, 0, vq);
            of_vcpu(plan, kind, &mut vcpu, vq);
            destroy(vm, [vcpu]);
        }
        // vCPUs of their own: one is of no use afterwards, the other's keys are switched from then on.
        for what in [pauth, interrupts] {
            let mut vm = vm(image, kind.config);
            let mut vcpu = vcpu(&mut vm, 0, None);
            what(plan.iterations, kind, &mut vcpu);
            destroy(vm, [vcpu]);
        }
    }
}

fn of_vcpu(plan: Plan, kind: Kind, vcpu: &mut Vcpu, vq: Option<Vq>) {
    let Kind { policy, vm, .. } = kind;
    let vl = vq.map_or(0, Vq::vl_bytes);
    let n = plan.iterations;
    let host_uses = |fp: &Fp| *fp != Fp::Sve || context().sve();
    let guest_uses = |fp: &Fp| *fp != Fp::Sve || vq.is_some();
    for (hints, flags) in HINTS {
        if plan.short && !flags.is_empty() {
            continue;
        }
        let mut bench = Bench::load(vcpu, flags);
        for guest in Fp::ALL.into_iter().filter(guest_uses) {
            for host in Fp::ALL.into_iter().filter(host_uses) {
                if plan.short && host == Fp::Fpsimd {
                    continue;
                }
                let (guest_fp, host_fp) = (guest.name(), host.name());
                let fields = format_args!(
                    "policy={policy} vm={vm} hints={hints} vl={vl} guest_fp={guest_fp} host_fp={host_fp}"
                );
                let measured = bench.measure(guest.hvc(), host, n);
                emit!("@bench name=exit_to_host {fields} {measured}");
                if guest != Fp::None && host != Fp::None {
                    let measured = bench.measure(guest.touch(), host, n);
                    emit!("@bench name=first_touch {fields} {measured}");
                }
            }
        }
        if flags.is_empty() {
            others(n, kind, &mut bench, vl);
        }
        bench.put();
    }
}

/// Exits of other kinds, and traps that are no exits.
fn others(n: u64, kind: Kind, bench: &mut Bench, vl: usize) {
    let Kind { policy, vm, .. } = kind;
    let fields =
        format_args!("policy={policy} vm={vm} hints=none vl={vl} guest_fp=none host_fp=none");
    for (name, routine) in
        [("mmio_exit", Routine::Mmio), ("el2_trap", Routine::Trap), ("smc", Routine::Smc)]
    {
        emit!("@bench name={name} {fields} {}", bench.measure(routine, Fp::None, n));
    }
    // What the counter's two readings cost by themselves.
    emit!("@bench name=touch_nothing {fields} {}", bench.measure(Routine::TouchNone, Fp::None, n));
}

/// Exits of a guest that uses pointer authentication.
fn pauth(n: u64, kind: Kind, vcpu: &mut Vcpu) {
    if !context().version.features.contains(Features::PAUTH) {
        return;
    }
    let Kind { policy, vm, .. } = kind;
    let mut bench = Bench::load(vcpu, HostFlags::empty());
    emit!(
        "@bench name=exit_with_pauth policy={policy} vm={vm} hints=none vl=0 guest_fp=none host_fp=none {}",
        bench.measure(Routine::HvcPauth, Fp::None, n)
    );
    bench.put();
}

/// Exits by interrupt.
fn interrupts(n: u64, kind: Kind, vcpu: &mut Vcpu) {
    let Kind { policy, vm, .. } = kind;
    let mut bench = Bench::load(vcpu, HostFlags::empty());
    emit!(
        "@bench name=irq_exit policy={policy} vm={vm} hints=none vl=0 guest_fp=none host_fp=none {}",
        bench.interrupts(n)
    );
    bench.put();
}

/// The plain round trip of a vCPU, for [`super::growth`].
pub fn plain(vcpu: &mut Vcpu, routine: Routine, n: u64) -> Measured {
    let mut bench = Bench::load(vcpu, HostFlags::empty());
    let measured = bench.measure(routine, Fp::None, n);
    bench.put();
    measured
}
