//! One VM, and what is done to it.

use crate::kvm::*;
use fastrand::Rng;
use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Threads of a round, and ioctls of each.
const THREADS: usize = 4;
const IOCTLS: usize = 400;
/// Files that all threads know: places, not owners.
const FILES: usize = 24;
/// KVM_VM_TYPE_ARM_PROTECTED, and GUEST_MEMFD_FLAG_MMAP with GUEST_MEMFD_FLAG_INIT_SHARED.
const PROTECTED: u64 = 1 << 31;
const MAPPED: u64 = 3;
/// User memory that slots are made of: 4 MiB.
const USER_BYTES: usize = 4 << 20;

/// KVM's ioctls on arm64, by number, direction and bytes.
const NUMBERS: &[u64] = &[
    GET_API_VERSION,
    CREATE_VM,
    CHECK_EXTENSION,
    GET_VCPU_MMAP_SIZE,
    CREATE_VCPU,
    SET_USER_MEMORY_REGION,
    IRQ_LINE,
    IRQ_LINE_STATUS,
    SET_GSI_ROUTING,
    IRQFD,
    IOEVENTFD,
    RUN,
    SET_SIGNAL_MASK,
    GET_MP_STATE,
    SET_MP_STATE,
    ENABLE_CAP,
    GET_ONE_REG,
    SET_ONE_REG,
    VCPU_INIT,
    PREFERRED_TARGET,
    GET_REG_LIST,
    VCPU_FINALIZE,
    CREATE_DEVICE,
    SET_DEVICE_ATTR,
    GET_DEVICE_ATTR,
    HAS_DEVICE_ATTR,
    SET_USER_MEMORY_REGION2,
    CREATE_GUEST_MEMFD,
    SET_COUNTER_OFFSET,
    GET_VCPU_EVENTS,
    SET_VCPU_EVENTS,
];

/// What has come of it.
#[derive(Debug, Default)]
pub struct Done {
    calls: AtomicU64,
    successes: AtomicU64,
    runs: AtomicU64,
}

impl Done {
    /// And this.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in [
            (&self.calls, &other.calls),
            (&self.successes, &other.successes),
            (&self.runs, &other.runs),
        ] {
            to.fetch_add(from.load(Relaxed), Relaxed);
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, successes, runs } = self;
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        write!(f, "{} ioctls, {} that succeeded, {} runs", get(calls), get(successes), get(runs))
    }
}

/// Signals interrupt what a thread is in, and do nothing else.
pub fn signals_interrupt() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a handler that does nothing, without SA_RESTART.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
    }
}

struct Round {
    files: [AtomicI32; FILES],
    memory: usize,
    done: Done,
}

/// A round from its beginning to the end of all its files.
pub fn run(seed: u64) -> Done {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: memory of its own.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), USER_BYTES, access, flags, -1, 0) };
    let round = Round {
        files: [const { AtomicI32::new(-1) }; FILES],
        memory: memory as usize,
        done: Done::default(),
    };
    // Some rounds begin with a machine that is ready to run.
    let mut rng = Rng::with_seed(seed);
    round.begin(&mut rng);
    let names = [const { AtomicU64::new(0) }; THREADS];
    std::thread::scope(|scope| {
        let (round, names) = (&round, &names);
        let work = |n: usize| {
            move || {
                // SAFETY: this thread's name.
                names[n].store(unsafe { libc::pthread_self() } as u64, Relaxed);
                round.work(&mut Rng::with_seed(seed << 8 | n as u64));
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(work(n))).collect();
        // No KVM_RUN stays: a guest may go round and round.
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(3));
            for name in names.iter().map(|name| name.load(Relaxed)).filter(|&name| name != 0) {
                // SAFETY: it is not joined yet, so it has its name still.
                unsafe { libc::pthread_kill(name as libc::pthread_t, libc::SIGALRM) };
            }
        }
    });
    for file in &round.files {
        let fd = file.swap(-1, Relaxed);
        if fd >= 0 {
            // SAFETY: it may have been closed already: then it is an error.
            unsafe { libc::close(fd) };
        }
    }
    // SAFETY: nobody uses it.
    unsafe { libc::munmap(memory, USER_BYTES) };
    round.done
}

impl Round {
    fn ioctl(&self, fd: i32, number: u64, argument: u64) -> i32 {
        self.done.calls.fetch_add(1, Relaxed);
        // SAFETY: whatever the kernel writes goes into buffers of `argument`'s caller or into the round's memory.
        let result = unsafe { libc::ioctl(fd, number as _, argument) };
        if result >= 0 {
            self.done.successes.fetch_add(1, Relaxed);
        }
        if number == RUN {
            self.done.runs.fetch_add(1, Relaxed);
        }
        result
    }

    fn keep(&self, rng: &mut Rng, fd: i32) {
        if fd < 0 {
            return;
        }
        // Seldom in the place of one of `begin`'s.
        let first = if rng.u8(..8) == 0 { 0 } else { 8 };
        let before = self.files[rng.usize(first..FILES)].swap(fd, Relaxed);
        if before >= 0 {
            // SAFETY: another thread may be using it: that is the point.
            unsafe { libc::close(before) };
        }
    }

    /// A VM with memory, vCPUs and a GIC.
    fn begin(&self, rng: &mut Rng) {
        // SAFETY: a path.
        let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR) };
        // A protected one, perhaps, if there are any, with a file or without.
        let mut vm = if rng.bool() { self.ioctl(kvm, CREATE_VM, PROTECTED) } else { -1 };
        let is_protected = vm >= 0;
        if is_protected && rng.bool() {
            self.give_file(rng, vm);
        } else {
            if !is_protected {
                vm = self.ioctl(kvm, CREATE_VM, 0);
            }
            let region = [0_u64, MEMORY, USER_BYTES as u64, self.memory as u64];
            self.ioctl(vm, SET_USER_MEMORY_REGION, region.as_ptr() as u64);
        }
        // What is there is a protected one's payload.
        self.ioctl(vm, PREFERRED_TARGET, self.memory as u64 + rng.u64(..64) * 0x1_0000);
        self.files[0].store(kvm, Relaxed);
        self.files[1].store(vm, Relaxed);
        for n in 0..2 {
            let vcpu = self.ioctl(vm, CREATE_VCPU, n);
            let init = [5_u32, 1 << 2 | (n as u32 & u32::from(rng.bool())), 0, 0, 0, 0, 0, 0];
            self.ioctl(vcpu, VCPU_INIT, init.as_ptr() as u64);
            let pc = MEMORY + rng.u64(..64) * 4;
            let register = [PC, &raw const pc as u64];
            self.ioctl(vcpu, SET_ONE_REG, register.as_ptr() as u64);
            self.files[2 + n as usize].store(vcpu, Relaxed);
        }
        let mut device = [7_u32, 0, 0];
        self.ioctl(vm, CREATE_DEVICE, device.as_mut_ptr() as u64);
        let gic = device[1] as i32;
        for (group, attr, value) in [(0, 2, 0x800_0000_u64), (0, 3, 0x80a_0000), (4, 0, 0)] {
            if rng.u8(..8) != 0 {
                let attribute = [group << 32, attr, &raw const value as u64];
                self.ioctl(gic, SET_DEVICE_ATTR, attribute.as_ptr() as u64);
            }
        }
        self.files[4].store(gic, Relaxed);
        for file in &self.files[5..8] {
            // SAFETY: makes a descriptor.
            file.store(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) }, Relaxed);
        }
    }

    /// Its memory, which is in the round's own.
    fn give_file(&self, rng: &mut Rng, vm: i32) {
        let create = [USER_BYTES as u64, MAPPED, 0, 0, 0, 0, 0, 0];
        let file = self.ioctl(vm, CREATE_GUEST_MEMFD, create.as_ptr() as u64);
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        let at = self.memory as *mut libc::c_void;
        // SAFETY: the round's own memory, which no Rust code refers to.
        unsafe { libc::mmap(at, USER_BYTES, access, flags, file, 0) };
        let mut region = [0_u64; 20];
        region[..6].copy_from_slice(&[1 << 34, MEMORY, USER_BYTES as u64, 0, 0, file as u64]);
        self.ioctl(vm, SET_USER_MEMORY_REGION2, region.as_ptr() as u64);
        self.keep(rng, file);
    }

    fn work(&self, rng: &mut Rng) {
        for _ in 0..IOCTLS {
            // A file of the machine that `begin` made, mostly.
            let which = if rng.u8(..4) == 0 { rng.usize(..FILES) } else { rng.usize(..8) };
            let fd = self.files[which].load(Relaxed);
            match rng.u8(..40) {
                0 => self.keep(rng, -1),
                1 if which >= 8 || rng.u8(..6) == 0 => {
                    // SAFETY: another thread may be using it.
                    unsafe { libc::close(fd) };
                }
                // SAFETY: descriptors.
                2 => self.keep(rng, unsafe { libc::dup(fd) }),
                3 => {
                    // SAFETY: makes a descriptor.
                    let event = unsafe { libc::eventfd(rng.u32(..2), libc::EFD_NONBLOCK) };
                    self.keep(rng, event);
                }
                4 => {
                    let one = 1_u64;
                    // SAFETY: eight bytes, to an eventfd or to whatever it is.
                    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
                }
                5 => self.disturb_memory(rng),
                6 => self.disturb_run(rng, fd),
                7 => self.begin_again(rng),
                8..12 => {
                    let vcpu = self.files[rng.usize(2..4)].load(Relaxed);
                    self.ioctl(vcpu, RUN, 0);
                }
                _ => self.random(rng, fd),
            }
        }
    }

    fn begin_again(&self, rng: &mut Rng) {
        let kvm = self.files[0].load(Relaxed);
        let kind = [0, PROTECTED, self.word(rng), 0][rng.usize(..4)];
        let vm = self.ioctl(kvm, CREATE_VM, kind);
        self.keep(rng, vm);
    }

    fn disturb_memory(&self, rng: &mut Rng) {
        let at = (self.memory + rng.usize(..USER_BYTES / 4096) * 4096) as *mut libc::c_void;
        let bytes = 4096 << rng.u8(..4);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let left = self.memory + USER_BYTES - at as usize;
        // SAFETY: inside the round's own memory, which no Rust code refers to.
        unsafe {
            match rng.u8(..3) {
                0 => libc::madvise(at, bytes.min(left), libc::MADV_DONTNEED),
                1 => libc::mprotect(at, bytes.min(left), if rng.bool() { access } else { 0 }),
                _ => {
                    libc::mmap(at, bytes.min(left), access, flags, -1, 0);
                    0
                }
            }
        };
    }

    /// kvm_run, mapped and written.
    fn disturb_run(&self, rng: &mut Rng, fd: i32) {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (offset, bytes) = if rng.u8(..8) == 0 { (4096, 8192) } else { (0, 4096) };
        // SAFETY: a mapping of its own.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, offset)
        };
        if page == libc::MAP_FAILED {
            return;
        }
        for _ in 0..8 {
            let value = self.word(rng);
            // By the kernel: the file may be a protected VM's memory, which is gone when that runs, and a store would be SIGBUS.
            let from = libc::iovec { iov_base: (&raw const value).cast_mut().cast(), iov_len: 8 };
            let place = page.cast::<u64>().wrapping_add(rng.usize(..16));
            let to = libc::iovec { iov_base: place.cast(), iov_len: 8 };
            // SAFETY: inside the mapping; what isn't there is an error.
            unsafe {
                libc::process_vm_writev(libc::getpid(), &raw const from, 1, &raw const to, 1, 0)
            };
        }
        // SAFETY: as above.
        unsafe { libc::munmap(page, bytes) };
    }

    fn random(&self, rng: &mut Rng, fd: i32) {
        let number = match rng.u8(..20) {
            0 => 0xae00 | rng.u64(..256),
            1 => rng.u64(..),
            _ => NUMBERS[rng.usize(..NUMBERS.len())],
        };
        let mut buffer: Vec<u64> = (0..64).map(|_| self.word(rng)).collect();
        // What it writes to lies behind it.
        let address = buffer.as_mut_ptr() as u64;
        if rng.bool() {
            buffer[rng.usize(..4)] = address + 64;
        }
        // To the file that it is for, mostly, and with what it takes.
        let place = match number & 0xff {
            0x00..=0x04 => 0,
            0x80..=0x9f | 0xa0 | 0xac | 0xae | 0xb0 | 0xc2 => rng.usize(2..4),
            0xe1..=0xe3 => 4,
            0xab if rng.bool() => rng.usize(2..4),
            _ => 1,
        };
        let fd = if rng.u8(..8) == 0 { fd } else { self.files[place].load(Relaxed) };
        self.shape(rng, number, &mut buffer);
        let argument = match rng.u8(..10) {
            // A mask that keeps SIGALRM out would keep a guest in that goes round and round.
            _ if number == SET_SIGNAL_MASK => address,
            0 => self.word(rng),
            1 => rng.u64(..64),
            _ => address,
        };
        // A list of registers, or what an attribute is read into, must not be longer than the buffer.
        if number == GET_REG_LIST {
            buffer[0] = rng.u64(..60);
        }
        let result = self.ioctl(fd, number, argument);
        match number {
            CREATE_VM | CREATE_VCPU | CREATE_GUEST_MEMFD => self.keep(rng, result),
            CREATE_DEVICE if result >= 0 && argument == address => {
                self.keep(rng, (buffer[0] >> 32) as i32);
            }
            _ => {}
        }
    }

    /// Most of what an ioctl takes.
    fn shape(&self, rng: &mut Rng, number: u64, buffer: &mut [u64]) {
        let page = |rng: &mut Rng| rng.u64(..USER_BYTES as u64 / 4096) << 12;
        let event = |rng: &mut Rng| self.files[rng.usize(5..8)].load(Relaxed) as u32;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let address = buffer.as_ptr() as u64;
        let words: &[u64] = &match number {
            // A slot: made, or deleted.
            SET_USER_MEMORY_REGION => {
                let bytes = if rng.bool() { 0 } else { 4096 << rng.u32(..10) };
                let slot = rng.u64(..4);
                [slot, MEMORY + page(rng) * (slot + 1), bytes, self.memory as u64 + page(rng)]
            }
            SET_USER_MEMORY_REGION2 => {
                let bytes = if rng.bool() { 0 } else { 4096 << rng.u32(..10) };
                let slot = rng.u64(..4);
                let file = self.files[rng.usize(..FILES)].load(Relaxed);
                buffer[4] = page(rng);
                buffer[5] = u64::from(file as u32);
                buffer[6..20].fill(0);
                [slot | rng.u64(..2) << 34, MEMORY + page(rng) * (slot + 1), bytes, 0]
            }
            CREATE_GUEST_MEMFD => {
                buffer[2..8].fill(0);
                [4096 << rng.u32(..12), [0, MAPPED, 1, 2][rng.usize(..4)], 0, 0]
            }
            IRQ_LINE => [pair(1 << 24 | rng.u32(30..100), rng.u32(..2)), 0, 0, 0],
            SET_GSI_ROUTING => [rng.u64(..2), pair(rng.u32(..40), 1), 0, pair(0, rng.u32(..64))],
            IRQFD => [pair(event(rng), rng.u32(..40)), pair(rng.u32(..4), event(rng)), 0, 0],
            IOEVENTFD => {
                let length = [0, 1, 2, 4, 8][rng.usize(..5)];
                [rng.u64(..4), 0x900_0000, pair(length, event(rng)), rng.u64(..8) & 5]
            }
            GET_ONE_REG | SET_ONE_REG => [self.word(rng), address + 64, 0, 0],
            SET_SIGNAL_MASK => {
                let set = rng.u64(..) & !(1 << (libc::SIGALRM - 1));
                buffer[0] = pair(if rng.u8(..4) == 0 { rng.u32(..16) } else { 8 }, set as u32);
                buffer[1] = set >> 32;
                return;
            }
            // An abort, or what there is not.
            SET_VCPU_EVENTS => [[0, 0, 0, 1 << 16, 1][rng.usize(..5)], 0, 0, 0],
            SET_COUNTER_OFFSET => [self.word(rng), 0, 0, 0],
            VCPU_INIT => [pair(5, rng.u32(..0x80) & 0x75), 0, 0, 0],
            SET_MP_STATE => [[0, 5][rng.usize(..2)], 0, 0, 0],
            CREATE_DEVICE => [7, rng.u64(..2), 0, 0],
            SET_DEVICE_ATTR | GET_DEVICE_ATTR | HAS_DEVICE_ATTR => {
                let group = [0, 1, 3, 4, 5, 6, 7][rng.usize(..7)];
                let attribute = match group {
                    0 => rng.u64(2..6),
                    // ICC_BPR0_EL1 to ICC_IGRPEN1_EL1 of one of the vCPUs, most of which there are not.
                    6 => rng.u64(..3) << 32 | 0xc640 | rng.u64(..0x40),
                    _ => rng.u64(..0x80) * 4,
                };
                [pair(0, group), attribute, address + 64, 0]
            }
            _ => return,
        };
        for (to, &word) in buffer.iter_mut().zip(words) {
            if rng.u8(..12) != 0 {
                *to = word;
            }
        }
    }

    /// A word that may mean something.
    fn word(&self, rng: &mut Rng) -> u64 {
        let half = |rng: &mut Rng| match rng.u8(..8) {
            0 => 0,
            1 => rng.u32(..16),
            2 => 1 << rng.u32(..32),
            3 => self.files[rng.usize(..FILES)].load(Relaxed) as u32,
            4 => rng.u32(..0x400),
            5 => u32::MAX,
            _ => rng.u32(..),
        };
        match rng.u8(..12) {
            0 => 0,
            1 => MEMORY + (rng.u64(..USER_BYTES as u64 / 4096) << 12),
            2 => self.memory as u64 + (rng.u64(..USER_BYTES as u64 / 4096) << 12),
            3 => 4096 << rng.u64(..20),
            4 => 0x6030_0000_0010_0000 + rng.u64(..0x60) * 2,
            5 => 0x6030_0000_0013_c000 + rng.u64(..0x2000),
            6 => 0x6080_0000_0015_0000 + (rng.u64(..64) << 5),
            7 => 0x800_0000 + (rng.u64(..64) << 16),
            8 => self.memory as u64 + rng.u64(..USER_BYTES as u64 - 4096),
            _ => u64::from(half(rng)) << 32 | u64::from(half(rng)),
        }
    }
}
