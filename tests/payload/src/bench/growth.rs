//! What must stay flat: the cost of an exit with many VMs and CPUs about, and the memory of each.

use super::{
    Plan,
    guest::{self, GuestVm},
    ranges,
};
use crate::context::context;
use arrayvec::ArrayVec;
use umbra_host::{
    emit,
    hypercall::Hvc,
    kernel::{supply::Pages, sync::Lock},
    vcpu::Vcpu,
    vm::Line,
};
use umbra_patterns::protocol::Routine;
use umbra_shared::{PAGE_SIZE, call::VmConfig};

/// Numbers of VMs at which the exits of the last one are measured.
const STEPS: [usize; 3] = [1, 8, 64];
const MOST: usize = STEPS[STEPS.len() - 1];

/// Too many for a stack.
static VMS: Lock<ArrayVec<(GuestVm, Vcpu), MOST>> = Lock::new(ArrayVec::new_const());

pub fn measure(plan: Plan, image: &[u8]) {
    let mut vms = VMS.lock();
    for count in STEPS {
        while vms.len() < count {
            let mut vm = guest::vm(image, VmConfig::normal());
            let vcpu = guest::vcpu(&mut vm, 0, context().largest());
            vms.push((vm, vcpu));
        }
        let cpus = context().cpus;
        let Some((_, vcpu)) = vms.last_mut() else { continue };
        let measured = guest::plain(vcpu, Routine::HvcNone, plan.iterations);
        emit!("@bench name=exit_growth cpus={cpus} vms={count} {measured}");
    }
    while let Some((vm, vcpu)) = vms.pop() {
        guest::destroy(vm, [vcpu]);
    }
    memory(image);
    ranges::build();
}

/// Pages that a VM takes, by what they are for. `memory` is that of the guest itself.
fn memory(image: &[u8]) {
    let empty = GuestVm::create([Line::FREE; guest::LINES], &Hvc, &mut Pages, VmConfig::normal())
        .expect("VM_CREATE");
    let per_vm = empty.pages_out();
    guest::destroy(empty, []);
    let mut vm = guest::vm(image, VmConfig::normal());
    let with_memory = vm.pages_out();
    let memory = image.len().div_ceil(PAGE_SIZE) as u64;
    let vcpu = guest::vcpu(&mut vm, 0, context().largest());
    let per_vcpu = vm.pages_out() - with_memory;
    emit!(
        "@bench name=pages cpus={} per_vm={per_vm} guest_memory={memory} tables_added={} \
         per_vcpu={per_vcpu}",
        context().cpus,
        with_memory - per_vm - memory,
    );
    guest::destroy(vm, [vcpu]);
}
