//! KVM's numbers and structures, as Linux's `include/uapi/linux/kvm.h` and arm64's `asm/kvm.h` have them
//! (`module/abi.c` holds them against those).

#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `_IO`, `_IOR`, `_IOW` and `_IOWR` of type KVMIO, with the bytes of their argument.
const fn number(direction: u32, number: u32, bytes: u32) -> u32 {
    direction << 30 | bytes << 16 | 0xae << 8 | number
}
const fn io(n: u32) -> u32 {
    number(0, n, 0)
}
const fn iow(n: u32, bytes: u32) -> u32 {
    number(1, n, bytes)
}
const fn ior(n: u32, bytes: u32) -> u32 {
    number(2, n, bytes)
}
const fn iowr(n: u32, bytes: u32) -> u32 {
    number(3, n, bytes)
}

#[allow(missing_docs, reason = "the constants are KVM's names")]
mod numbers {
    use super::{io, ior, iow, iowr};

    pub const KVM_GET_API_VERSION: u32 = io(0x00);
    pub const KVM_CREATE_VM: u32 = io(0x01);
    pub const KVM_CHECK_EXTENSION: u32 = io(0x03);
    pub const KVM_GET_VCPU_MMAP_SIZE: u32 = io(0x04);
    pub const KVM_CREATE_VCPU: u32 = io(0x41);
    pub const KVM_SET_USER_MEMORY_REGION: u32 = iow(0x46, 32);
    pub const KVM_SET_USER_MEMORY_REGION2: u32 = iow(0x49, 160);
    pub const KVM_IRQ_LINE: u32 = iow(0x61, 8);
    pub const KVM_SET_GSI_ROUTING: u32 = iow(0x6a, 8);
    pub const KVM_IRQFD: u32 = iow(0x76, 32);
    pub const KVM_IOEVENTFD: u32 = iow(0x79, 64);
    pub const KVM_RUN: u32 = io(0x80);
    pub const KVM_SET_SIGNAL_MASK: u32 = iow(0x8b, 4);
    pub const KVM_GET_MP_STATE: u32 = ior(0x98, 4);
    pub const KVM_SET_MP_STATE: u32 = iow(0x99, 4);
    pub const KVM_GET_VCPU_EVENTS: u32 = ior(0x9f, 64);
    pub const KVM_SET_VCPU_EVENTS: u32 = iow(0xa0, 64);
    pub const KVM_GET_ONE_REG: u32 = iow(0xab, 16);
    pub const KVM_SET_ONE_REG: u32 = iow(0xac, 16);
    pub const KVM_ARM_VCPU_INIT: u32 = iow(0xae, 32);
    pub const KVM_ARM_PREFERRED_TARGET: u32 = ior(0xaf, 32);
    pub const KVM_GET_REG_LIST: u32 = iowr(0xb0, 8);
    pub const KVM_ARM_SET_COUNTER_OFFSET: u32 = iow(0xb5, 16);
    pub const KVM_ARM_VCPU_FINALIZE: u32 = iow(0xc2, 4);
    pub const KVM_GET_STATS_FD: u32 = io(0xce);
    pub const KVM_CREATE_GUEST_MEMFD: u32 = iowr(0xd4, 64);
    pub const KVM_CREATE_DEVICE: u32 = iowr(0xe0, 12);
    pub const KVM_SET_DEVICE_ATTR: u32 = iow(0xe1, 24);
    pub const KVM_GET_DEVICE_ATTR: u32 = iow(0xe2, 24);
    pub const KVM_HAS_DEVICE_ATTR: u32 = iow(0xe3, 24);

    pub const KVM_API_VERSION: i64 = 12;

    pub const KVM_CAP_IRQCHIP: u64 = 0;
    pub const KVM_CAP_USER_MEMORY: u64 = 3;
    pub const KVM_CAP_NR_VCPUS: u64 = 9;
    pub const KVM_CAP_NR_MEMSLOTS: u64 = 10;
    pub const KVM_CAP_MP_STATE: u64 = 14;
    pub const KVM_CAP_DESTROY_MEMORY_REGION_WORKS: u64 = 21;
    pub const KVM_CAP_IRQ_ROUTING: u64 = 25;
    pub const KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: u64 = 30;
    pub const KVM_CAP_IRQFD: u64 = 32;
    pub const KVM_CAP_IOEVENTFD: u64 = 36;
    pub const KVM_CAP_MAX_VCPUS: u64 = 66;
    pub const KVM_CAP_ONE_REG: u64 = 70;
    pub const KVM_CAP_IRQFD_RESAMPLE: u64 = 82;
    pub const KVM_CAP_ARM_PSCI: u64 = 87;
    pub const KVM_CAP_DEVICE_CTRL: u64 = 89;
    pub const KVM_CAP_ARM_PSCI_0_2: u64 = 102;
    pub const KVM_CAP_CHECK_EXTENSION_VM: u64 = 105;
    pub const KVM_CAP_IOEVENTFD_ANY_LENGTH: u64 = 122;
    pub const KVM_CAP_MAX_VCPU_ID: u64 = 128;
    pub const KVM_CAP_IMMEDIATE_EXIT: u64 = 136;
    pub const KVM_CAP_ARM_VM_IPA_SIZE: u64 = 165;
    pub const KVM_CAP_ARM_SVE: u64 = 170;
    pub const KVM_CAP_ARM_PTRAUTH_ADDRESS: u64 = 171;
    pub const KVM_CAP_ARM_PTRAUTH_GENERIC: u64 = 172;
    pub const KVM_CAP_ARM_IRQ_LINE_LAYOUT_2: u64 = 174;
    pub const KVM_CAP_ARM_INJECT_EXT_DABT: u64 = 178;
    pub const KVM_CAP_BINARY_STATS_FD: u64 = 203;
    pub const KVM_CAP_COUNTER_OFFSET: u64 = 227;
    pub const KVM_CAP_USER_MEMORY2: u64 = 231;
    pub const KVM_CAP_MEMORY_FAULT_INFO: u64 = 232;
    pub const KVM_CAP_GUEST_MEMFD: u64 = 234;
    pub const KVM_CAP_GUEST_MEMFD_FLAGS: u64 = 244;

    pub const KVM_VM_TYPE_ARM_IPA_SIZE_MASK: u64 = 0xff;
    pub const KVM_VM_TYPE_ARM_PROTECTED: u64 = 1 << 31;

    pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;
    pub const GUEST_MEMFD_FLAG_MMAP: u64 = 1 << 0;
    pub const GUEST_MEMFD_FLAG_INIT_SHARED: u64 = 1 << 1;

    pub const KVM_EXIT_MMIO: u32 = 6;
    pub const KVM_EXIT_FAIL_ENTRY: u32 = 9;
    pub const KVM_EXIT_INTR: u32 = 10;
    pub const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
    pub const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
    pub const KVM_EXIT_MEMORY_FAULT: u32 = 39;
    pub const KVM_MEMORY_EXIT_FLAG_PRIVATE: u64 = 1 << 3;

    pub const KVM_SYSTEM_EVENT_SHUTDOWN: u32 = 1;
    pub const KVM_SYSTEM_EVENT_RESET: u32 = 2;
    pub const KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2: u64 = 1 << 0;

    pub const KVM_MP_STATE_RUNNABLE: u32 = 0;
    pub const KVM_MP_STATE_STOPPED: u32 = 5;

    pub const KVM_ARM_TARGET_GENERIC_V8: u32 = 5;
    pub const KVM_ARM_VCPU_POWER_OFF: u32 = 0;
    pub const KVM_ARM_VCPU_PSCI_0_2: u32 = 2;
    pub const KVM_ARM_VCPU_SVE: u32 = 4;
    pub const KVM_ARM_VCPU_PTRAUTH_ADDRESS: u32 = 5;
    pub const KVM_ARM_VCPU_PTRAUTH_GENERIC: u32 = 6;

    pub const KVM_DEV_TYPE_ARM_VGIC_V3: u32 = 7;
    pub const KVM_CREATE_DEVICE_TEST: u32 = 1;
    pub const KVM_DEV_ARM_VGIC_GRP_ADDR: u32 = 0;
    pub const KVM_DEV_ARM_VGIC_GRP_DIST_REGS: u32 = 1;
    pub const KVM_DEV_ARM_VGIC_GRP_NR_IRQS: u32 = 3;
    pub const KVM_DEV_ARM_VGIC_GRP_CTRL: u32 = 4;
    pub const KVM_DEV_ARM_VGIC_GRP_REDIST_REGS: u32 = 5;
    pub const KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: u32 = 6;
    pub const KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: u32 = 7;
    pub const KVM_DEV_ARM_VGIC_CTRL_INIT: u64 = 0;
    pub const KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES: u64 = 3;
    pub const KVM_VGIC_V3_ADDR_TYPE_DIST: u64 = 2;
    pub const KVM_VGIC_V3_ADDR_TYPE_REDIST: u64 = 3;
    pub const KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: u64 = 5;

    pub const KVM_IRQFD_FLAG_DEASSIGN: u32 = 1 << 0;
    pub const KVM_IRQFD_FLAG_RESAMPLE: u32 = 1 << 1;
    pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1 << 0;
    pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 1 << 2;
    pub const KVM_IRQ_ROUTING_IRQCHIP: u32 = 1;

    pub const KVM_ARM_IRQ_TYPE_SPI: u32 = 1;
    pub const KVM_ARM_IRQ_TYPE_PPI: u32 = 2;
}

pub use numbers::*;

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[allow(missing_docs, reason = "the fields are KVM's")]
        #[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
        #[repr(C)]
        pub struct $name {
            $(pub $field: $type,)*
        }
    )*};
}

structures! {
    /// `struct kvm_userspace_memory_region`
    MemoryRegion { slot: u32, flags: u32, guest_phys_addr: u64, memory_size: u64, userspace_addr: u64, }
    /// `struct kvm_userspace_memory_region2`
    MemoryRegion2 { region: MemoryRegion, guest_memfd_offset: u64, guest_memfd: u32, pad1: u32, pad2: [u64; 14], }
    /// `struct kvm_create_guest_memfd`
    CreateGuestMemfd { size: u64, flags: u64, reserved: [u64; 6], }
    /// `struct kvm_irq_level`
    IrqLevel { irq: u32, level: u32, }
    /// `struct kvm_irqfd`
    Irqfd { fd: u32, gsi: u32, flags: u32, resamplefd: u32, pad: [u8; 16], }
    /// `struct kvm_ioeventfd`
    Ioeventfd { datamatch: u64, addr: u64, len: u32, fd: i32, flags: u32, pad: [u8; 36], }
    /// `struct kvm_irq_routing`, without its entries
    IrqRouting { nr: u32, flags: u32, }
    /// `struct kvm_irq_routing_entry`
    IrqRoutingEntry { gsi: u32, kind: u32, flags: u32, pad: u32, irqchip: u32, pin: u32, rest: [u32; 6], }
    /// `struct kvm_one_reg`
    OneReg { id: u64, addr: u64, }
    /// `struct kvm_vcpu_events`
    VcpuEvents {
        serror_pending: u8, serror_has_esr: u8, ext_dabt_pending: u8, pad: [u8; 5], serror_esr: u64,
        reserved: [u32; 12],
    }
    /// `struct kvm_arm_counter_offset`
    CounterOffset { counter_offset: u64, reserved: u64, }
    /// `struct kvm_vcpu_init`
    VcpuInit { target: u32, features: [u32; 7], }
    /// `struct kvm_create_device`
    CreateDevice { kind: u32, fd: u32, flags: u32, }
    /// `struct kvm_device_attr`
    DeviceAttr { flags: u32, group: u32, attr: u64, addr: u64, }
}

/// What of `struct kvm_run` is used, by its offsets in bytes.
#[allow(missing_docs, reason = "the constants are KVM's names")]
pub mod run {
    pub const IMMEDIATE_EXIT: usize = 1;
    pub const EXIT_REASON: usize = 8;
    pub const MMIO_PHYS_ADDR: usize = 32;
    pub const MMIO_DATA: usize = 40;
    pub const MMIO_LEN: usize = 48;
    pub const MMIO_IS_WRITE: usize = 52;
    pub const SYSTEM_EVENT_TYPE: usize = 32;
    pub const SYSTEM_EVENT_NDATA: usize = 36;
    pub const SYSTEM_EVENT_DATA: usize = 40;
    pub const MEMORY_FAULT_FLAGS: usize = 32;
    pub const MEMORY_FAULT_GPA: usize = 40;
    pub const MEMORY_FAULT_SIZE: usize = 48;
    pub const FAIL_ENTRY_REASON: usize = 32;
    pub const FAIL_ENTRY_CPU: usize = 40;
    pub const INTERNAL_SUBERROR: usize = 32;
    pub const INTERNAL_NDATA: usize = 36;
    pub const INTERNAL_DATA: usize = 40;
}

/// Linux's error numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

#[allow(missing_docs, reason = "the constants are Linux's names")]
impl Errno {
    pub const EPERM: Self = Self(1);
    pub const ENOENT: Self = Self(2);
    pub const EINTR: Self = Self(4);
    pub const EIO: Self = Self(5);
    pub const ENXIO: Self = Self(6);
    pub const E2BIG: Self = Self(7);
    pub const ENOEXEC: Self = Self(8);
    pub const EBADF: Self = Self(9);
    pub const EAGAIN: Self = Self(11);
    pub const ENOMEM: Self = Self(12);
    pub const EFAULT: Self = Self(14);
    pub const EBUSY: Self = Self(16);
    pub const EEXIST: Self = Self(17);
    pub const ENODEV: Self = Self(19);
    pub const EINVAL: Self = Self(22);
    pub const ENOTTY: Self = Self(25);
    pub const ENOSPC: Self = Self(28);
    pub const EOPNOTSUPP: Self = Self(95);

    /// What a function of C's has returned: an error, if it is negative.
    pub fn check(value: i64) -> Result<u64, Self> {
        u64::try_from(value).map_err(|_| Self(value.unsigned_abs() as i32))
    }
}
