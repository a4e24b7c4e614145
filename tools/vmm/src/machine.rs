//! The virtual machine: what it has, and how it is set up.
//!
//! vCPUs with PSCI, of which the first is on; all of SVE's vector lengths up to one; pointer authentication, if both
//! halves of it are there; a GICv3 and the generic timer; memory; a serial port. Addresses are in [`layout`].

use crate::arguments::Run;
use crate::console::Console;
use crate::layout;
use crate::report::{Counters, End, Report};
use crate::tree::Tree;
use crate::vcpu;
use anyhow::{Context, Result, ensure};
use kvm_bindings::*;
use kvm_ioctls::{Cap, DeviceFd, Kvm, VcpuFd, VmFd};
use linux_loader::loader::{KernelLoader, load_dtb, pe::PE};
use std::fs::File;
use std::io::{Cursor, Write};
use std::sync::{Arc, mpsc};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, ReadVolatile,
};
use vmm_sys_util::eventfd::EventFd;

/// MPIDR_EL1.
const MPIDR: u64 = 0x6030_0000_0013_c005;
/// KVM_REG_ARM64_SVE_VLS.
const VECTOR_LENGTHS: u64 = 0x6060_0000_0015_ffff;
/// x0 and PC.
const X0: u64 = 0x6030_0000_0010_0000;
const PC: u64 = 0x6030_0000_0010_0040;
/// The affinity fields of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Boots it, and waits for its end.
pub fn run(arguments: &Run) -> Result<End> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    ensure!(kvm.get_api_version() == 12, "/dev/kvm speaks API {}", kvm.get_api_version());
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    let memory = memory(&vm, arguments.memory)?;
    let counters = Arc::new(Counters::default());
    let vcpus = vcpus(&vm, arguments)?;
    let gic = gic(&vm, vcpus.len())?;

    let irq = EventFd::new(0).context("an eventfd")?;
    vm.register_irqfd(&irq, layout::SERIAL_SPI).context("KVM_IRQFD")?;
    let console = Console::new(irq, counters.clone());
    if arguments.console {
        console.listen()?;
    }

    let (entry, tree) = load(arguments, &memory, &vcpus)?;
    let first = vcpus.first().context("no vCPU")?;
    first.set_one_reg(PC, &entry.to_le_bytes()).context("PC")?;
    first.set_one_reg(X0, &tree.to_le_bytes()).context("x0")?;

    let (sender, ends) = mpsc::channel();
    let count = vcpus.len();
    for vcpu in vcpus {
        vcpu::start(vcpu, console.clone(), counters.clone(), sender.clone())?;
    }
    let end = ends.recv().context("all vCPUs are gone")?;
    std::io::stdout().flush()?;
    let report = Report { vcpus: count, counters, devices: Vec::new() };
    eprintln!("{}", report.line(&end));
    // The others run on until the process ends, which is now.
    drop(gic);
    Ok(end)
}

fn memory(vm: &VmFd, bytes: u64) -> Result<GuestMemoryMmap> {
    let ranges = [(GuestAddress(layout::RAM), bytes as usize)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).context("memory")?;
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is there until the process ends, and so is the VM.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(memory)
}

fn vcpus(vm: &VmFd, arguments: &Run) -> Result<Vec<VcpuFd>> {
    let mut preferred = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut preferred).context("KVM_ARM_PREFERRED_TARGET")?;
    let has_sve = vm.check_extension(Cap::ArmSve);
    ensure!(has_sve || arguments.sve.is_none_or(|bytes| bytes == 0), "there is no SVE");
    let sve = has_sve && arguments.sve != Some(0);
    let pauth =
        vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric);
    let mut features = vec![KVM_ARM_VCPU_PSCI_0_2];
    if sve {
        features.push(KVM_ARM_VCPU_SVE);
    }
    if pauth {
        features.extend([KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC]);
    }
    let features = features.iter().fold(0, |all, bit| all | 1 << bit);
    let each = (0..arguments.cpus).map(|index| {
        let vcpu = vm.create_vcpu(index.into()).context("KVM_CREATE_VCPU")?;
        let off = if index == 0 { 0 } else { 1 << KVM_ARM_VCPU_POWER_OFF };
        let mut init = preferred;
        init.features[0] = features | off;
        vcpu.vcpu_init(&init).context("KVM_ARM_VCPU_INIT")?;
        if sve {
            if let Some(bytes) = arguments.sve {
                limit_vector_lengths(&vcpu, bytes)?;
            }
            let feature = KVM_ARM_VCPU_SVE as i32;
            vcpu.vcpu_finalize(&feature).context("KVM_ARM_VCPU_FINALIZE")?;
        }
        Ok(vcpu)
    });
    each.collect()
}

/// Leaves a vCPU the vector lengths up to this one, which must be one of them.
fn limit_vector_lengths(vcpu: &VcpuFd, bytes: u64) -> Result<()> {
    let mut all = [0; 64];
    vcpu.get_one_reg(VECTOR_LENGTHS, &mut all).context("KVM_REG_ARM64_SVE_VLS")?;
    let set = u16::from_le_bytes([all[0], all[1]]);
    let bit = (bytes / 16).checked_sub(1).filter(|&bit| bytes.is_multiple_of(16) && bit < 16);
    let bit = bit.with_context(|| format!("{bytes} bytes are no vector length"))?;
    ensure!(set >> bit & 1 != 0, "vectors of {bytes} bytes can't be had here");
    let mut some = [0; 64];
    some[..2].copy_from_slice(&(set & (u16::MAX >> (15 - bit))).to_le_bytes());
    vcpu.set_one_reg(VECTOR_LENGTHS, &some).context("KVM_REG_ARM64_SVE_VLS")?;
    Ok(())
}

fn gic(vm: &VmFd, vcpus: usize) -> Result<DeviceFd> {
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

/// Puts everything into memory. Returns where the first vCPU begins, and where the tree is.
fn load(arguments: &Run, memory: &GuestMemoryMmap, vcpus: &[VcpuFd]) -> Result<(u64, u64)> {
    let complain = |path: &std::path::Path| path.display().to_string();
    let mut kernel = File::open(&arguments.kernel).with_context(|| complain(&arguments.kernel))?;
    let loaded = PE::load(memory, Some(GuestAddress(layout::RAM)), &mut kernel, None);
    let loaded = loaded.with_context(|| complain(&arguments.kernel))?;

    let tree_at = layout::RAM + arguments.memory - layout::GRANULE;
    let mut initrd = None;
    if let Some(path) = &arguments.initrd {
        let mut file = File::open(path).with_context(|| complain(path))?;
        let bytes = file.metadata()?.len();
        let end = tree_at / layout::GRANULE * layout::GRANULE;
        let at = end.checked_sub(bytes).map(|at| at / layout::GRANULE * layout::GRANULE);
        let at = at.filter(|&at| at >= loaded.kernel_end);
        let at = at.with_context(|| format!("no room for {}", path.display()))?;
        read_exactly(memory, at, &mut file, bytes as usize).with_context(|| complain(path))?;
        initrd = Some((at, bytes));
    }
    ensure!(loaded.kernel_end <= tree_at, "no room for the device tree");
    let affinities = vcpus.iter().map(|vcpu| {
        let mut mpidr = [0; 8];
        vcpu.get_one_reg(MPIDR, &mut mpidr).context("MPIDR_EL1")?;
        Ok(u64::from_le_bytes(mpidr) & AFFINITY)
    });
    let tree = Tree {
        command_line: &arguments.cmdline,
        cpus: &affinities.collect::<Result<Vec<_>>>()?,
        memory: arguments.memory,
        initrd,
    };
    let mut blob = Cursor::new(tree.write()?);
    load_dtb(memory, GuestAddress(tree_at), &mut blob).context("the device tree")?;
    Ok((loaded.kernel_load.0, tree_at))
}

fn read_exactly(
    memory: &GuestMemoryMmap,
    at: u64,
    from: &mut impl ReadVolatile,
    bytes: usize,
) -> Result<()> {
    memory.read_exact_volatile_from(GuestAddress(at), from, bytes)?;
    Ok(())
}
