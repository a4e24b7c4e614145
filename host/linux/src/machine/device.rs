//! The GIC's file: KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and KVM_HAS_DEVICE_ATTR.

#![forbid(unsafe_code)]

use super::Machine;
use crate::{
    abi::*,
    gic::{DISTRIBUTOR_BYTES, REDISTRIBUTOR_BYTES, errno},
    icc::{CpuInterface, Icc},
    linux::User,
    memory::refused,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    vgic::Frame,
};
use umbra_shared::register::{Register, system};

const ICH_AP0R0: u16 = system(3, 4, 12, 8, 0);
const ICH_AP1R0: u16 = system(3, 4, 12, 9, 0);
const ICH_VMCR: u16 = system(3, 4, 12, 11, 7);

/// One of them.
pub fn attribute(machine: &Machine, command: u32, attr: &DeviceAttr) -> Result<(), Errno> {
    if attr.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let user = User(attr.addr as usize);
    match (attr.group, command) {
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_HAS_DEVICE_ATTR) => match attr.attr {
            KVM_VGIC_V3_ADDR_TYPE_DIST
            | KVM_VGIC_V3_ADDR_TYPE_REDIST
            | KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION => Ok(()),
            _ => Err(Errno::ENXIO),
        },
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_SET_DEVICE_ATTR) => {
            let value: u64 = user.read()?;
            let ipa_end = machine.ipa_end();
            machine.planned(|plan, _| plan.set_address(attr.attr, value, ipa_end))
        }
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_GET_DEVICE_ATTR) => {
            let index: u64 = user.read()?;
            user.write(&machine.planned(|plan, _| plan.address(attr.attr, index))?)
        }
        (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_HAS_DEVICE_ATTR) => Ok(()),
        (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_SET_DEVICE_ATTR) => {
            let intids: u32 = user.read()?;
            machine.planned(|plan, built| match built {
                true => Err(Errno::EBUSY),
                false => plan.set_intids(intids),
            })
        }
        (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_GET_DEVICE_ATTR) => {
            user.write(&machine.planned(|plan, _| Ok(plan.intids()))?)
        }
        // Without LPIs there are no such tables.
        (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_HAS_DEVICE_ATTR | KVM_SET_DEVICE_ATTR)
            if attr.attr == KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES =>
        {
            Ok(())
        }
        (KVM_DEV_ARM_VGIC_GRP_CTRL, _) if attr.attr != KVM_DEV_ARM_VGIC_CTRL_INIT => {
            Err(Errno::ENXIO)
        }
        (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_HAS_DEVICE_ATTR) => Ok(()),
        (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_SET_DEVICE_ATTR) => machine.init_gic(),
        (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, _) => {
            let register = Icc::of(attr.attr & 0xffff_ffff).ok_or(Errno::ENXIO)?;
            // Aff3 to Aff0, of which no vCPU has an Aff3.
            let affinity = attr.attr >> 32;
            match command {
                KVM_HAS_DEVICE_ATTR => Ok(()),
                KVM_SET_DEVICE_ATTR => {
                    let value = user.read()?;
                    with_cpu_interface(machine, affinity, |interface, bits| {
                        interface.write(register, value, bits)
                    })
                }
                _ => {
                    let read = |interface: &mut CpuInterface, bits| interface.read(register, bits);
                    user.write(&with_cpu_interface(machine, affinity, read)?)
                }
            }
        }
        (
            KVM_DEV_ARM_VGIC_GRP_DIST_REGS
            | KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
            | KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
            _,
        ) => state(machine, command, attr, user),
        _ => Err(Errno::ENXIO),
    }
}

/// The CPU interface of the vCPU with this affinity, while it is in nobody's hands (EBUSY); what it is afterwards is
/// written back. `f` also gets the bits that a priority has.
fn with_cpu_interface<R>(
    machine: &Machine,
    affinity: u64,
    f: impl FnOnce(&mut CpuInterface, u8) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let gic = machine.gic().ok_or(Errno::EBUSY)?;
    let number = gic.vgic().vcpu_of(affinity).ok_or(Errno::EINVAL)?;
    let index = gic.index(number).ok_or(Errno::EINVAL)?;
    let state = machine.vcpu(index).and_then(|vcpu| vcpu.state.try_lock()).ok_or(Errno::EBUSY)?;
    let inside = state.inside.as_ref().ok_or(Errno::EBUSY)?;
    let name = |register: u16| Register::System(register).encode();
    let read = |register| {
        let value = Hvc.vcpu_read(inside.vm(), inside.index(), name(register));
        value.map(|[value, _]| value).map_err(refused)
    };
    let before =
        CpuInterface { vmcr: read(ICH_VMCR)?, ap0r0: read(ICH_AP0R0)?, ap1r0: read(ICH_AP1R0)? };
    let mut interface = before;
    let result = f(&mut interface, machine.offer.priority_bits)?;
    for (register, before, now) in [
        (ICH_VMCR, before.vmcr, interface.vmcr),
        (ICH_AP0R0, before.ap0r0, interface.ap0r0),
        (ICH_AP1R0, before.ap1r0, interface.ap1r0),
    ] {
        if now != before {
            let written = Hvc.vcpu_write(inside.vm(), inside.index(), name(register), [now, 0]);
            written.map_err(refused)?;
        }
    }
    Ok(result)
}

/// INTIDs that KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO can name.
const LEVEL_INTIDS: u64 = 1 << 10;

/// The state of the GIC, for who saves and restores a VM.
fn state(machine: &Machine, command: u32, attr: &DeviceAttr, user: User) -> Result<(), Errno> {
    let offset = attr.attr & 0xffff_ffff;
    let Some(gic) = machine.gic() else {
        // What there will be can be asked before.
        let end = match attr.group {
            KVM_DEV_ARM_VGIC_GRP_DIST_REGS => DISTRIBUTOR_BYTES,
            KVM_DEV_ARM_VGIC_GRP_REDIST_REGS => REDISTRIBUTOR_BYTES,
            _ => LEVEL_INTIDS,
        };
        return match command {
            KVM_HAS_DEVICE_ATTR if offset < end => Ok(()),
            KVM_HAS_DEVICE_ATTR => Err(Errno::ENXIO),
            _ => Err(Errno::EBUSY),
        };
    };
    let vgic = gic.vgic();
    // Aff3 to Aff0 in bits 63:32, of which no vCPU has an Aff3.
    let mpidr = attr.attr >> 32;
    let vcpu = || vgic.vcpu_of(mpidr).ok_or(Errno::EINVAL);
    let told = &mut machine.told();
    if attr.group == KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO {
        // Bits 31:10 say what, of which there is the level of lines alone; 9:0 the INTID.
        if offset >> 10 != 0 {
            return Err(Errno::EINVAL);
        }
        let (vcpu, first) = (vcpu()?, (offset & 0x3ff) as u16);
        return match command {
            KVM_SET_DEVICE_ATTR => vgic.write_lines(vcpu, first, user.read()?, told).map_err(errno),
            KVM_GET_DEVICE_ATTR => user.write(&vgic.read_lines(vcpu, first).map_err(errno)?),
            _ => vgic.read_lines(vcpu, first).map(drop).map_err(errno),
        };
    }
    let frame = match attr.group {
        KVM_DEV_ARM_VGIC_GRP_DIST_REGS => Frame::Distributor,
        _ => Frame::Redistributor(vcpu()?),
    };
    match command {
        KVM_SET_DEVICE_ATTR => vgic.write_state(frame, offset, user.read()?, told).map_err(errno),
        KVM_GET_DEVICE_ATTR => user.write(&vgic.read_state(frame, offset).map_err(errno)?),
        _ => vgic.read_state(frame, offset).map(drop).map_err(errno),
    }
}
