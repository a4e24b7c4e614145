//! A VM by the kernel's interface itself: ioctls by their numbers (Linux's `include/uapi/linux/kvm.h`).

use std::ptr::{from_mut, from_ref, null_mut};

pub const GET_API_VERSION: u64 = 0xae00;
pub const CREATE_VM: u64 = 0xae01;
pub const CHECK_EXTENSION: u64 = 0xae03;
pub const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
pub const CREATE_VCPU: u64 = 0xae41;
pub const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
pub const SET_USER_MEMORY_REGION2: u64 = 0x40a0_ae49;
pub const IRQ_LINE: u64 = 0x4008_ae61;
pub const IRQ_LINE_STATUS: u64 = 0xc008_ae67;
pub const SET_GSI_ROUTING: u64 = 0x4008_ae6a;
pub const IRQFD: u64 = 0x4020_ae76;
pub const IOEVENTFD: u64 = 0x4040_ae79;
pub const RUN: u64 = 0xae80;
pub const SET_SIGNAL_MASK: u64 = 0x4004_ae8b;
pub const GET_MP_STATE: u64 = 0x8004_ae98;
pub const SET_MP_STATE: u64 = 0x4004_ae99;
pub const GET_VCPU_EVENTS: u64 = 0x8040_ae9f;
pub const SET_VCPU_EVENTS: u64 = 0x4040_aea0;
pub const ENABLE_CAP: u64 = 0x4068_aea3;
pub const GET_ONE_REG: u64 = 0x4010_aeab;
pub const SET_ONE_REG: u64 = 0x4010_aeac;
pub const VCPU_INIT: u64 = 0x4020_aeae;
pub const PREFERRED_TARGET: u64 = 0x8020_aeaf;
pub const GET_REG_LIST: u64 = 0xc008_aeb0;
pub const SET_COUNTER_OFFSET: u64 = 0x4010_aeb5;
pub const VCPU_FINALIZE: u64 = 0x4004_aec2;
pub const CREATE_GUEST_MEMFD: u64 = 0xc040_aed4;
pub const CREATE_DEVICE: u64 = 0xc00c_aee0;
pub const SET_DEVICE_ATTR: u64 = 0x4018_aee1;
pub const GET_DEVICE_ATTR: u64 = 0x4018_aee2;
pub const HAS_DEVICE_ATTR: u64 = 0x4018_aee3;

pub const RUNNABLE: u32 = 0;
pub const STOPPED: u32 = 5;
pub const EXIT_MMIO: u32 = 6;
pub const EXIT_SYSTEM_EVENT: u32 = 24;
pub const EXIT_MEMORY_FAULT: u32 = 39;

pub const PC: u64 = 0x6030_0000_0010_0040;
pub const SPSR_ABT: u64 = 0x6030_0000_0010_004a;
pub const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;

/// Guest memory, where its code begins, and a device.
pub const MEMORY: u64 = 0x8000_0000;
pub const BYTES: usize = 1 << 16;
pub const DEVICE: u64 = 0xa00_0000;
/// Its exception vectors, of which none is executed.
pub const VECTORS: u64 = MEMORY + 0x800;

/// A general-purpose register.
pub const fn x(n: u64) -> u64 {
    0x6030_0000_0010_0000 + 2 * n
}

/// A system register, by op0, op1, CRn, CRm, op2.
pub const fn sys([op0, op1, crn, crm, op2]: [u64; 5]) -> u64 {
    0x6030_0000_0013_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// What an ioctl gives, or errno.
pub type Answer = Result<i32, i32>;

pub fn ioctl(fd: i32, number: u64, argument: u64) -> Answer {
    // SAFETY: whatever the kernel writes goes where `argument` points, which its callers have from a reference.
    let result = unsafe { libc::ioctl(fd, number as _, argument) };
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: this thread's.
    Err(unsafe { *libc::__errno_location() })
}

pub fn with<T>(fd: i32, number: u64, argument: &T) -> Answer {
    ioctl(fd, number, from_ref(argument) as u64)
}

pub fn get<T>(fd: i32, number: u64, argument: &mut T) -> Answer {
    ioctl(fd, number, from_mut(argument) as u64)
}

pub struct Vm {
    pub fd: i32,
    memory: *mut u8,
}

impl Vm {
    pub fn new() -> Self {
        let kvm = open();
        let fd = ioctl(kvm, CREATE_VM, 0).expect("KVM_CREATE_VM");
        close(kvm);
        let memory = map(BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        let vm = Self { fd, memory };
        vm.slot(MEMORY, BYTES).expect("KVM_SET_USER_MEMORY_REGION");
        vm
    }

    pub fn slot(&self, at: u64, bytes: usize) -> Answer {
        with(self.fd, SET_USER_MEMORY_REGION, &[0, at, bytes as u64, self.memory as u64])
    }

    /// Instructions at an address, as far as a guest has not run them.
    pub fn code(&self, at: u64, words: &[u32]) {
        for (n, &word) in words.iter().enumerate() {
            let offset = (at - MEMORY) as usize + 4 * n;
            assert!(offset + 4 <= BYTES);
            // SAFETY: inside the memory, aligned.
            unsafe { self.memory.add(offset).cast::<u32>().write_volatile(word) };
        }
    }

    pub fn vcpu(&self, index: u64) -> Vcpu {
        let vcpu = Vcpu::new(self.fd, index);
        vcpu.init(false);
        vcpu
    }

    pub fn gic(&self) -> i32 {
        let mut device = [7_u32, 0, 0];
        get(self.fd, CREATE_DEVICE, &mut device).expect("KVM_CREATE_DEVICE");
        device[1] as i32
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        close(self.fd);
        unmap(self.memory, BYTES);
    }
}

pub fn open() -> i32 {
    // SAFETY: a path.
    unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR) }
}

/// Whether there are protected VMs: KVM_CAP_GUEST_MEMFD.
pub fn has_protected() -> bool {
    let kvm = open();
    let has = ioctl(kvm, CHECK_EXTENSION, 234);
    close(kvm);
    has == Ok(1)
}

/// A descriptor that nobody else has.
pub fn close(fd: i32) {
    // SAFETY: as above.
    unsafe { libc::close(fd) };
}

/// A mapping that nobody else has.
pub fn unmap(memory: *mut u8, bytes: usize) {
    // SAFETY: `map` made it.
    unsafe { libc::munmap(memory.cast(), bytes) };
}

pub fn map(bytes: usize, flags: i32, fd: i32) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let memory = unsafe { libc::mmap(null_mut(), bytes, access, flags, fd, 0) };
    assert_ne!(memory, libc::MAP_FAILED);
    memory.cast()
}

pub struct Vcpu {
    pub fd: i32,
    run: *mut u8,
}

// SAFETY: a descriptor, and a page whose words are read and written as the kernel does.
unsafe impl Sync for Vcpu {}

impl Vcpu {
    /// One that has not been initialised.
    pub fn new(vm: i32, index: u64) -> Self {
        let fd = ioctl(vm, CREATE_VCPU, index).expect("KVM_CREATE_VCPU");
        Self { fd, run: map(4096, libc::MAP_SHARED, fd) }
    }

    pub fn init(&self, off: bool) {
        let init = [5_u32, 1 << 2 | u32::from(off), 0, 0, 0, 0, 0, 0];
        with(self.fd, VCPU_INIT, &init).expect("KVM_ARM_VCPU_INIT");
    }

    #[track_caller]
    pub fn get(&self, id: u64) -> u64 {
        let mut value = 0_u64;
        let register = [id, from_mut(&mut value) as u64];
        with(self.fd, GET_ONE_REG, &register).unwrap_or_else(|e| panic!("GET of {id:#x}: {e}"));
        value
    }

    #[track_caller]
    pub fn set(&self, id: u64, value: u64) {
        let register = [id, from_ref(&value) as u64];
        with(self.fd, SET_ONE_REG, &register).unwrap_or_else(|e| panic!("SET of {id:#x}: {e}"));
    }

    pub fn state(&self) -> u32 {
        let mut state = !0;
        get(self.fd, GET_MP_STATE, &mut state).expect("KVM_GET_MP_STATE");
        state
    }

    pub fn set_state(&self, state: u32) {
        with(self.fd, SET_MP_STATE, &state).expect("KVM_SET_MP_STATE");
    }

    pub fn run(&self) -> Answer {
        ioctl(self.fd, RUN, 0)
    }

    /// KVM_RUN with `immediate_exit`.
    #[track_caller]
    pub fn leave_at_once(&self) {
        self.poke(1, 1);
        assert_eq!(self.run(), Err(libc::EINTR));
        self.poke(1, 0);
    }

    /// Runs until an access of so many bytes leaves; whether it is a store, and of what.
    #[track_caller]
    pub fn run_to_mmio(&self) -> (u32, bool, u64) {
        assert_eq!(self.run(), Ok(0));
        assert_eq!((self.word(8), self.doubleword(32)), (EXIT_MMIO, DEVICE));
        (self.word(48), self.word(52) & 0xff != 0, self.doubleword(40))
    }

    pub fn word(&self, offset: usize) -> u32 {
        // SAFETY: inside kvm_run, aligned.
        unsafe { self.run.add(offset).cast::<u32>().read_volatile() }
    }

    pub fn doubleword(&self, offset: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.run.add(offset).cast::<u64>().read_volatile() }
    }

    pub fn set_data(&self, data: u64) {
        // SAFETY: as above.
        unsafe { self.run.add(40).cast::<u64>().write_volatile(data) };
    }

    pub fn poke(&self, offset: usize, value: u8) {
        // SAFETY: as above.
        unsafe { self.run.add(offset).write_volatile(value) };
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        unmap(self.run, 4096);
        close(self.fd);
    }
}
