//! What interrupts cost a guest: its timer's, one that the host has for it, and SGIs from vCPU to vCPU.
//!
//! The vCPUs take turns on one CPU: with two, counted instructions would be those of both and of whoever waits for
//! the other.

use super::{
    Measured, Plan, WARM_UP,
    guest::{self, GuestVm, Kind, Task},
    row,
};
use crate::own_gic::{self, Nobody};
use core::ops::ControlFlow;
use umbra_host::{
    emit,
    hypercall::{Hvc, Hypervisor},
    kernel::supply::Pages,
    vcpu::{Answer, ExitHandler, MmioAnswer, Supplied, Vcpu, Wait},
    vgic::{
        Interface, Line, SpiCell, VcpuCell, Vgic,
        registers::{GICD_ICFGR, Width},
    },
    vm::VcpuSettings,
};
use umbra_patterns::protocol::{ARGUMENT, Argument, BASE, BENCH, BENCH_NEXT, Mode, Routine};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex},
    exit::{MmioAccess, SystemEvent},
    flags::HostFlags,
    guest::{NOT_SUPPORTED, is_hosts},
    vcpu::VcpuFeatures,
};

/// What is made pending at each call.
const SPI: u16 = 32;

/// Why a vCPU stops.
enum Stop {
    /// It has measured so many ticks.
    Measured(u64),
    /// It waits for an interrupt.
    Waits,
}

/// Answers exits until the guest has measured, or waits for somebody else.
struct Exits<'g> {
    vgic: &'g Vgic<'g>,
    /// What else is to run, if it waits.
    others: bool,
}

impl ExitHandler for Exits<'_> {
    type Stop = Stop;

    #[inline]
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Stop, Answer> {
        match x[0] {
            BENCH => self.vgic.pulse(Line::Spi(SPI), &mut Nobody).expect("an SPI"),
            BENCH_NEXT => return ControlFlow::Break(Stop::Measured(x[1])),
            ARGUMENT => {}
            x0 if !is_hosts(x0) => return ControlFlow::Continue([NOT_SUPPORTED as u64, 0, 0, 0]),
            other => panic!("the guest calls {other:#x}"),
        }
        ControlFlow::Continue([0; 4])
    }

    fn wfi(&mut self, _: Wait) -> ControlFlow<Stop> {
        if self.others { ControlFlow::Break(Stop::Waits) } else { ControlFlow::Continue(()) }
    }

    fn mmio(&mut self, address: u64, _: MmioAccess, _: u64) -> ControlFlow<Stop, MmioAnswer> {
        panic!("the guest accessed {address:#x}")
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Stop, Supplied> {
        panic!("the guest accessed {address:#x}")
    }

    fn tables(&mut self) -> ControlFlow<Stop, Supplied> {
        panic!("a VM of one page in one place takes more tables")
    }

    fn cpu_off(&mut self) -> Stop {
        panic!("the guest has turned itself off")
    }

    fn system(&mut self, event: SystemEvent, _: u64, _: u64) -> Stop {
        panic!("the guest has ended: {event:?}")
    }

    fn broken(&mut self, esr: u64) -> Stop {
        panic!("the guest broke, ESR {esr:#x}")
    }
}

/// Runs a vCPU, with an order if it waits for one, until it stops.
fn run(vgic: &Vgic<'_>, vcpus: &mut [Vcpu], n: usize, order: Option<(Routine, u64)>) -> Stop {
    let others = vcpus.len() > 1;
    let registers = Hvc.vl_info(None).expect("VL_INFO").interface.registers;
    let mut gic = Interface::new(vgic, n, registers, Nobody).expect("it has that vCPU");
    let mut task = Task::<false> { hints: HostFlags::empty() };
    let mut loaded = vcpus[n].load(&Hvc, &mut task).expect("VCPU_LOAD");
    if let Some((routine, iterations)) = order {
        loaded.answer([routine as u64, iterations, 0, 0]);
    }
    let stop = loaded.run(&mut task, &mut gic, &mut Exits { vgic, others }).expect("VCPU_RUN");
    loaded.put(&mut task).expect("VCPU_PUT");
    stop
}

/// Has the first vCPU measure that, while whoever else there is takes turns with it.
fn measured(vgic: &Vgic<'_>, vcpus: &mut [Vcpu], routine: Routine, iterations: u64) -> u64 {
    let mut stop = run(vgic, vcpus, 0, Some((routine, iterations)));
    loop {
        if let Stop::Measured(ticks) = stop {
            return ticks;
        }
        run(vgic, vcpus, 1, None);
        stop = run(vgic, vcpus, 0, None);
    }
}

fn measure_one(vgic: &Vgic<'_>, vcpus: &mut [Vcpu], routine: Routine, turns: u64) -> Measured {
    measured(vgic, vcpus, routine, WARM_UP);
    row(turns, || measured(vgic, vcpus, routine, turns))
}

fn vcpu(vm: &mut GuestVm, n: u8) -> Vcpu {
    let argument = Argument { vcpu: n, owner: 0, vq: None, svq: None, mode: Mode::Bench };
    let settings = VcpuSettings {
        index: VcpuIndex(n.into()),
        affinity: UntrustedAffinity(n.into()),
        features: VcpuFeatures::FPSIMD,
        start: Start::At { entry: BASE, argument: argument.encode() },
    };
    vm.create_vcpu(&Hvc, &mut Pages, settings).expect("VCPU_CREATE")
}

/// Everything, each kind of VM's.
pub fn measure(plan: Plan, image: &[u8]) {
    let cells = [VcpuCell::new(0), VcpuCell::new(1)];
    let spis = [const { SpiCell::new() }; 32];
    for kind in guest::kinds().filter(|kind| !plan.short || kind.is_default()) {
        let vgic = own_gic::enabled(&cells, &spis);
        // Edge-triggered: each pulse is one interrupt.
        let at = u64::from(GICD_ICFGR) + 8;
        vgic.write_distributor(at, Width::Word, 0xaaaa_aaaa, &mut Nobody);
        let mut vm = guest::vm(image, kind.config);
        let mut vcpus = [vcpu(&mut vm, 0)];
        vm.seal(&Hvc).expect("VM_SEAL");
        run(&vgic, &mut vcpus, 0, None);
        for (name, routine) in [
            ("timer_tick", Routine::Tick),
            ("timer_tick_idle", Routine::IdleTick),
            ("interrupt", Routine::Interrupt),
        ] {
            report(name, kind, measure_one(&vgic, &mut vcpus, routine, plan.iterations));
        }
        guest::destroy(vm, vcpus);
        if !kind.config.protected {
            ipi(plan, kind, image, &vgic);
        }
    }
}

/// Of a protected VM the second vCPU is its guest's to turn on, and the rest is the same.
fn ipi(plan: Plan, kind: Kind, image: &[u8], vgic: &Vgic<'_>) {
    let mut vm = guest::vm(image, kind.config);
    let mut vcpus = [vcpu(&mut vm, 0), vcpu(&mut vm, 1)];
    vm.seal(&Hvc).expect("VM_SEAL");
    for n in 0..2 {
        run(vgic, &mut vcpus, n, None);
    }
    run(vgic, &mut vcpus, 1, Some((Routine::IpiAnswer, 0)));
    // There and back are two.
    let Measured { ticks, iterations, moves } =
        measure_one(vgic, &mut vcpus, Routine::Ipi, plan.iterations);
    report("ipi", kind, Measured { ticks, iterations: 2 * iterations, moves });
    guest::destroy(vm, vcpus);
}

fn report(name: &str, kind: Kind, measured: Measured) {
    let Kind { policy, vm, .. } = kind;
    emit!(
        "@bench name={name} policy={policy} vm={vm} hints=none vl=0 guest_fp=none host_fp=none {measured}"
    );
}
