//! What an exit costs: instructions executed per round trip, guest to host and back.
//!
//! With QEMU's `-icount shift=0` one instruction is one nanosecond of virtual time, so the counter
//! (CNTVCT) counts instructions in units of 10^9 / CNTFRQ. The guest does nothing but HVC (and one FP
//! instruction), the host nothing but to enter it again.

use super::{Trouble, vms::vm};
use core::ops::ControlFlow;
use umbra_host::{
    emit,
    fp::TaskFp,
    hypercall::Hvc,
    hypercall::Hypervisor,
    kernel::{gic, supply::Pages, sysreg, timer},
    vcpu::{Answer, ExitHandler, HostCpu, MmioAnswer, Vcpu},
    vm::VcpuSettings,
};
use umbra_patterns::protocol::{Argument, BASE, Failure, Mode};
use umbra_shared::{call::VmConfig, exit::MmioAccess};

/// Round trips before the measurement, and in it.
const WARM_UP: u64 = 200;
const MEASURED: u64 = 4000;

/// A host without FP state of interest.
struct Idle;

impl TaskFp for Idle {
    fn foreign_fpstate(&self) -> bool {
        false
    }
    fn sve_discarded(&self) -> bool {
        false
    }
    fn set_foreign_fpstate(&mut self) {}
}

impl HostCpu for Idle {
    #[inline]
    fn mask_interrupts(&mut self) {
        sysreg::mask_interrupts();
    }
    #[inline]
    fn unmask_interrupts(&mut self) {
        sysreg::unmask_interrupts();
    }
    fn mask_virtual_timer(&mut self, masked: bool) {
        gic::enable(gic::VIRTUAL_TIMER, !masked);
    }
}

/// Counts HVC exits down.
struct Count(u64);

impl ExitHandler for Count {
    type Stop = Option<Failure>;

    #[inline]
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Self::Stop, Answer> {
        self.0 -= 1;
        if self.0 == 0 { ControlFlow::Break(None) } else { ControlFlow::Continue([x[0], 0, 0, 0]) }
    }
    fn mmio(&mut self, address: u64, _: MmioAccess, _: u64) -> ControlFlow<Self::Stop, MmioAnswer> {
        ControlFlow::Break(Some(Failure::Garbled(address)))
    }
    fn fault(&mut self, address: u64) -> ControlFlow<Self::Stop> {
        ControlFlow::Break(Some(Failure::Garbled(address)))
    }
    fn broken(&mut self, esr: u64) -> Self::Stop {
        Some(Failure::Exception { esr, elr: 0, far: 0 })
    }
}

/// Ticks for the measured round trips.
fn measure(vcpu: &mut Vcpu) -> Result<u64, Trouble> {
    let mut loaded = super::hyp("VCPU_LOAD", vcpu.load(&Hvc, &mut Idle))?;
    let mut run = |count| match super::hyp("VCPU_RUN", loaded.run(&mut Idle, &mut Count(count)))? {
        None => Ok(()),
        Some(failure) => Err(Trouble::Guest { vm: 0, vcpu: 0, failure }),
    };
    run(WARM_UP)?;
    let start = timer::now();
    run(MEASURED)?;
    let ticks = timer::now() - start;
    super::hyp("VCPU_PUT", loaded.put(&mut Idle))?;
    Ok(ticks)
}

fn case(guest: &[u8], mode: Mode, name: &str, sve: bool) -> Result<(), Trouble> {
    let vq = if sve { super::hyp("VL_INFO", Hvc.vl_info(None))?.vqs.max() } else { None };
    let mut vm = vm(guest, VmConfig::default())?;
    let argument = Argument { vcpu: 0, owner: 1, vq, mode };
    let settings = VcpuSettings { vq, entry: BASE, argument: argument.encode() };
    let (vcpu, result) = match vm.create_vcpu(&Hvc, &mut Pages, settings) {
        Ok(mut vcpu) => {
            let result = measure(&mut vcpu);
            (Some(vcpu), result)
        }
        Err(error) => (None, Err(error.into())),
    };
    vm.destroy(&Hvc, &mut Pages, vcpu).map_err(|failure| failure.error)?;
    // One instruction is one nanosecond.
    let instructions = result? * (1_000_000_000 / timer::frequency()) / MEASURED;
    emit!("@bench name={name} instructions={instructions}");
    Ok(())
}

pub fn run(guest: &[u8], sve: bool) -> Result<(), Trouble> {
    case(guest, Mode::BenchNone, "exit_no_fp", sve)?;
    case(guest, Mode::BenchFpsimd, "exit_fp", sve)?;
    if sve {
        case(guest, Mode::BenchSve, "exit_sve", sve)?;
    }
    Ok(())
}
