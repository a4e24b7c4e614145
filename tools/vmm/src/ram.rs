//! A VM and its memory.
//!
//! A normal VM's is this process's own. A protected one's is a file (guest_memfd), which this process fills before the VM runs, or
//! its own as well (`--own-memory`);
//! afterwards it finds there what the guest shares, and where it shares nothing an access is SIGBUS: who has a guest's
//! rings and buffers in private memory ends with it.

use crate::arguments::Run;
use crate::layout;
use anyhow::{Context, Result, ensure};
use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

/// Bits of guest-physical addresses, if KVM isn't asked for others.
const ADDRESS_BITS: u32 = 40;
/// KVM_VM_TYPE_ARM_PROTECTED.
const PROTECTED: u64 = 1 << 31;
/// GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED: this process fills it first.
const MAPPED_AT_FIRST: u64 = 1 << 0 | 1 << 1;

/// One whose addresses have as many bits as its memory needs; and of a protected one the bit by which its guest tells what it
/// shares, which is the highest that KVM_CAP_ARM_VM_IPA_SIZE says it has. A normal one's is 0.
///
/// # Errors
///
/// So many can't be had, or no protected one.
pub fn virtual_machine(kvm: &Kvm, arguments: &Run) -> Result<(VmFd, u64)> {
    let end = layout::RAM.checked_add(arguments.memory);
    let end = end.context("so much memory has no addresses")?;
    let needed = u64::BITS - (end - 1).leading_zeros();
    // KVM doesn't say if they can't be chosen.
    let limit = u32::try_from(kvm.get_host_ipa_limit()).ok().filter(|&limit| limit != 0);
    ensure!(
        needed <= limit.unwrap_or(ADDRESS_BITS),
        "so much memory needs {needed} bits of address, and a machine can't have them here"
    );
    let bits = limit.map_or(ADDRESS_BITS, |limit| needed.max(ADDRESS_BITS).min(limit));
    let kind = if arguments.protected { PROTECTED } else { 0 };
    let vm = match limit {
        None => kvm.create_vm_with_type(kind),
        Some(_) => kvm.create_vm_with_type(kind | u64::from(bits)),
    };
    let what = if arguments.protected { "a protected VM" } else { "a VM" };
    let vm = vm.with_context(|| format!("KVM_CREATE_VM of {what}"))?;
    if !arguments.protected {
        return Ok((vm, 0));
    }
    let bits = u32::try_from(vm.check_extension_int(Cap::ArmVmIPASize)).ok();
    let bits =
        bits.filter(|bits| (2..u64::BITS).contains(bits)).context("a VM without addresses")?;
    let alias = 1 << (bits - 1);
    ensure!(end <= alias, "so much memory has no addresses of a protected guest's own");
    Ok((vm, alias))
}

/// Its memory, from [`layout::RAM`] on.
///
/// # Errors
///
/// There is none, or none of a protected VM's kind.
pub fn memory(vm: &VmFd, arguments: &Run) -> Result<GuestMemoryMmap> {
    let of_file = arguments.protected && !arguments.own_memory;
    if of_file { private(vm, arguments.memory) } else { own(vm, arguments.memory) }
}

fn own(vm: &VmFd, bytes: u64) -> Result<GuestMemoryMmap> {
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

fn private(vm: &VmFd, bytes: u64) -> Result<GuestMemoryMmap> {
    let has = vm.check_extension(Cap::GuestMemfd) && vm.check_extension(Cap::UserMemory2);
    ensure!(has, "there is no memory for protected VMs (guest_memfd)");
    let create =
        kvm_create_guest_memfd { size: bytes, flags: MAPPED_AT_FIRST, ..Default::default() };
    let file = vm.create_guest_memfd(create).context("KVM_CREATE_GUEST_MEMFD")?;
    // SAFETY: it is new, and nobody else has it.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let bytes = usize::try_from(bytes).context("memory")?;
    // SAFETY: a mapping where there is none.
    let address =
        unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
    ensure!(address != libc::MAP_FAILED, "the VM's memory: {}", std::io::Error::last_os_error());
    // SAFETY: so many bytes that are mapped so, until the process ends.
    let region = unsafe { MmapRegion::<()>::build_raw(address.cast(), bytes, protection, flags) };
    let region = GuestRegionMmap::new(region.context("memory")?, GuestAddress(layout::RAM));
    let memory = GuestMemoryMmap::from_regions(vec![region.context("memory")?])?;
    let region = kvm_userspace_memory_region2 {
        slot: 0,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: layout::RAM,
        memory_size: bytes as u64,
        userspace_addr: address as u64,
        guest_memfd_offset: 0,
        guest_memfd: file.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: the mapping is there until the process ends, and so is the VM.
    unsafe { vm.set_user_memory_region2(region) }.context("KVM_SET_USER_MEMORY_REGION2")?;
    Ok(memory)
}
