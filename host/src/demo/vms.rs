//! Building the VMs, and taking them down.

use super::{
    Plan, Trouble, VMS,
    guest::{self, OWNER},
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{
        MAX_CPUS,
        supply::{self, Pages},
    },
    vcpu::Vcpu,
    vm::{Line, VcpuSettings, Vm},
};
use umbra_patterns::protocol::{Argument, BASE, MAX_VCPUS, Mode};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex, VmConfig},
    vcpu::VcpuFeatures,
    vl::{Vq, VqSet},
};

const _: () = assert!(MAX_CPUS <= MAX_VCPUS);

pub type DemoVm = Vm<[Line; 64]>;

/// The vCPUs of all VMs.
pub type Vcpus = [[Option<Vcpu>; MAX_CPUS]; VMS];

/// What the VMs are: a normal one, and a protected one whose state never stays in the registers.
const CONFIGS: [VmConfig; VMS] = [VmConfig::normal(), VmConfig::protected()];

/// The largest VL of a vCPU: they differ, and the largest there is comes up often.
fn vl(common: VqSet, vm: usize, vcpu: usize) -> Option<Vq> {
    let count = common.iter().count();
    if count == 0 {
        return None;
    }
    let nth = if (vm + vcpu).is_multiple_of(2) { count - 1 } else { 7 * (vm + vcpu) % count };
    common.iter().nth(nth)
}

/// A VM with the guest in its memory.
pub fn vm(image: &[u8], config: VmConfig) -> Result<DemoVm, Trouble> {
    let mut vm = DemoVm::create([Line::FREE; 64], &Hvc, &mut Pages, config)?;
    let mapped = supply::image(image).ok_or(Trouble::NoGuest).and_then(|(first, count)| {
        vm.map(&Hvc, &mut Pages, first, count, BASE).map_err(|it| Trouble::from(it.error))
    });
    match mapped {
        Ok(()) => Ok(vm),
        Err(trouble) => {
            // What stopped the building is the trouble to report.
            let _ = vm.destroy(&Hvc, &mut Pages, []);
            Err(trouble)
        }
    }
}

pub fn build(image: &[u8], cpus: usize, sve: bool) -> Result<([DemoVm; VMS], Vcpus), Trouble> {
    let common = if sve { super::hyp("VL_INFO", Hvc.vl_info(None))?.vqs } else { VqSet::EMPTY };
    let mut vms = [vm(image, CONFIGS[0])?, vm(image, CONFIGS[1])?];
    let mut vcpus = Vcpus::default();
    for (n, vm) in vms.iter_mut().enumerate() {
        for (i, vcpu) in vcpus[n].iter_mut().take(cpus).enumerate() {
            let vq = vl(common, n, i);
            let owner = OWNER + (n as u16) * 16 + i as u16;
            let argument = Argument { vcpu: i as u8, owner, vq, svq: None, mode: Mode::Verify };
            guest::set_argument(n, i, argument.encode());
            // The guest brings its other CPUs up itself.
            let start = match i {
                0 => Start::At { entry: BASE, argument: argument.encode() },
                _ => Start::Off,
            };
            let settings = VcpuSettings {
                index: VcpuIndex(i as u64),
                affinity: UntrustedAffinity(i as u64),
                features: VcpuFeatures::sve(vq),
                start,
            };
            *vcpu = Some(vm.create_vcpu(&Hvc, &mut Pages, settings)?);
            guest::set_on(n, i, i == 0);
        }
        vm.seal(&Hvc)?;
    }
    Ok((vms, vcpus))
}

/// More pages for a VM's tables, which its guest's call takes.
pub fn topup(plan: &Plan, vm: usize) -> Result<(), Trouble> {
    match &mut *plan.vms[vm].lock() {
        Some(vm) => Ok(vm.topup(&Hvc, &mut Pages)?),
        None => Ok(()),
    }
}

pub fn destroy(plan: &Plan) -> Result<(), Trouble> {
    for (vm, slots) in plan.vms.iter().zip(&plan.slots) {
        let Some(vm) = vm.lock().take() else { continue };
        let vcpus = slots.iter().filter_map(|slot| slot.lock().vcpu.take());
        vm.destroy(&Hvc, &mut Pages, vcpus).map_err(|failure| failure.error)?;
    }
    Ok(())
}
