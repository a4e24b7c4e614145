//! The interrupt controller, a GICv3 of KVM's.

use crate::layout;
use anyhow::{Context, Result, ensure};
use kvm_bindings::*;
use kvm_ioctls::{DeviceFd, VmFd};

/// Makes it, for so many vCPUs, which are there already.
///
/// # Errors
///
/// KVM has none, or it has no room for them.
pub fn make(vm: &VmFd, vcpus: usize) -> Result<DeviceFd> {
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
    let gic = vm.create_device(&mut device).context("KVM_CREATE_DEVICE")?;
    let set = |group: u32, attr: u32, value: Option<&u64>| {
        let addr = value.map_or(0, |value| &raw const *value as u64);
        let attribute = kvm_device_attr { flags: 0, group, attr: attr.into(), addr };
        gic.set_device_attr(&attribute).with_context(|| format!("GIC: {group}, {attr}"))
    };
    let redistributors = layout::GICR_BYTES * vcpus as u64;
    ensure!(layout::GICR + redistributors <= layout::SERIAL, "too many vCPUs");
    let (group, kinds) =
        (KVM_DEV_ARM_VGIC_GRP_ADDR, (KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST));
    set(group, kinds.0, Some(&layout::GICD))?;
    set(group, kinds.1, Some(&layout::GICR))?;
    // The attribute has 32 bits, in the lower half.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&layout::INTIDS.into()))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
    Ok(gic)
}
