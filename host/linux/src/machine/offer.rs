//! What there is for VMs: hyp's offer, and what KVM_CHECK_EXTENSION makes of it.

#![forbid(unsafe_code)]

use super::wires::MAX_ROUTES;
use crate::{abi::*, memory::refused, slots::MAX_SLOTS};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::{Features, MAX_VCPUS},
    vl::VqSet,
};

/// What hyp and its CPUs have for guests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub lengths: VqSet,
    pub registers: u8,
    pub priority_bits: u8,
    pub pauth: bool,
    pub ipa_bits: u32,
    pub cpus: u64,
    /// Protected VMs can be made, and have two halves of addresses.
    pub protected: bool,
    pub alias_bit: u64,
}

impl Offer {
    pub(super) fn ask() -> Result<Self, Errno> {
        let info = Hvc.vl_info(None).map_err(refused)?;
        let version = Hvc.version().map_err(refused)?;
        Ok(Self {
            lengths: info.vqs,
            registers: info.interface.registers,
            priority_bits: info.interface.priorities.count_ones() as u8,
            pauth: version.features.contains(Features::PAUTH),
            ipa_bits: version.ipa_bits,
            cpus: info.cpus,
            protected: version.features.contains(Features::PROTECTED_VMS)
                && version.alias_bit < 1 << version.ipa_bits,
            alias_bit: version.alias_bit,
        })
    }
}

/// KVM_CHECK_EXTENSION, of a VM that is protected or not, or of what there can be (`None`).
pub fn extension(capability: u64, protected: Option<bool>) -> i64 {
    let offer = Offer::ask().ok();
    let has = |wanted: fn(&Offer) -> bool| i64::from(offer.as_ref().is_some_and(wanted));
    let can_be_protected = offer.as_ref().is_some_and(|offer| offer.protected);
    let has_files = protected.unwrap_or(can_be_protected);
    match capability {
        KVM_CAP_IRQCHIP
        | KVM_CAP_USER_MEMORY
        | KVM_CAP_MP_STATE
        | KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | KVM_CAP_IRQFD
        | KVM_CAP_IRQFD_RESAMPLE
        | KVM_CAP_IOEVENTFD
        | KVM_CAP_IOEVENTFD_ANY_LENGTH
        | KVM_CAP_ONE_REG
        | KVM_CAP_ARM_PSCI
        | KVM_CAP_ARM_PSCI_0_2
        | KVM_CAP_DEVICE_CTRL
        | KVM_CAP_CHECK_EXTENSION_VM
        | KVM_CAP_IMMEDIATE_EXIT
        | KVM_CAP_BINARY_STATS_FD
        | KVM_CAP_ARM_IRQ_LINE_LAYOUT_2
        | KVM_CAP_ARM_INJECT_EXT_DABT => 1,
        KVM_CAP_COUNTER_OFFSET => i64::from(protected != Some(true)),
        KVM_CAP_USER_MEMORY2 | KVM_CAP_MEMORY_FAULT_INFO | KVM_CAP_GUEST_MEMFD => has_files.into(),
        KVM_CAP_GUEST_MEMFD_FLAGS if has_files => {
            (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED) as i64
        }
        KVM_CAP_IRQ_ROUTING => MAX_ROUTES.into(),
        KVM_CAP_NR_MEMSLOTS => i64::from(MAX_SLOTS),
        KVM_CAP_NR_VCPUS => offer.map_or(0, |offer| offer.cpus as i64),
        KVM_CAP_MAX_VCPUS | KVM_CAP_MAX_VCPU_ID => MAX_VCPUS as i64,
        // Of a protected VM those that its guest finds, the highest of which tells what it shares.
        KVM_CAP_ARM_VM_IPA_SIZE if protected == Some(true) => {
            offer.map_or(0, |offer| i64::from(offer.alias_bit.trailing_zeros()) + 1)
        }
        KVM_CAP_ARM_VM_IPA_SIZE => offer.map_or(0, |offer| offer.ipa_bits.into()),
        KVM_CAP_ARM_SVE => has(|offer| offer.lengths.max().is_some()),
        KVM_CAP_ARM_PTRAUTH_ADDRESS | KVM_CAP_ARM_PTRAUTH_GENERIC => has(|offer| offer.pauth),
        _ => 0,
    }
}
