//! Protected VMs whose memory is their user's (KVM_SET_USER_MEMORY_REGION): what there is when they begin is their payload, and
//! afterwards the user finds what the guest shares, and the kernel for the user junk in place of the rest.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::code::*;
use crate::kvm::*;
use crate::memory::{Memory, copied, copy_from, copy_to};
use crate::protected::{ALIAS, MEM_RELINQUISH, MEM_SHARE, MEM_UNSHARE, SECRET, Sets, protected};

/// All of them, or a panic that says which. What goes on at once goes on for longer with more rounds.
pub fn all(rounds: u64) {
    slots_are_as_a_normal_vms_until_it_runs();
    for kind in [Kind::Own, Kind::Shared, Kind::File] {
        what_there_is_is_the_payload(kind);
        the_kernel_finds_junk(kind);
        what_is_given_back_is_the_users(kind);
    }
    what_is_in_a_file_is_there();
    signals_are_no_obstacle();
    a_page_twice_is_none();
    a_page_of_the_kernels_is_no_memory();
    the_kernel_copies_meanwhile(8 * rounds);
}

const BYTES: usize = 4 << 20;
/// Pages that guests do something with.
const DATA: u64 = MEMORY + 0x20_0000;

/// What the memory is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Anonymous, this process's own.
    Own,
    /// Anonymous, shared with children.
    Shared,
    /// A memfd's.
    File,
}

impl Kind {
    fn memory(self) -> Memory {
        match self {
            Self::Own => Memory::new(BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Self::Shared => Memory::new(BYTES, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
            Self::File => {
                let file = memfd();
                let memory = Memory::new(BYTES, libc::MAP_SHARED, file);
                close(file);
                memory
            }
        }
    }
}

/// A protected VM with memory of this process's.
struct Plain {
    vm: i32,
    memory: Memory,
}

impl Plain {
    fn new(memory: Memory) -> Self {
        let plain = Self { vm: protected(), memory };
        plain.slot();
        plain
    }

    fn slot(&self) {
        let region = [0, MEMORY, self.memory.bytes() as u64, self.memory.start() as u64];
        with(self.vm, SET_USER_MEMORY_REGION, &region).expect("KVM_SET_USER_MEMORY_REGION");
    }

    /// With instructions at its beginning, and the vCPU that begins there.
    fn begin(&self, code: &Code) -> Vcpu {
        self.memory.begin(self.vm, code)
    }

    /// How a process that has the same memory and reads there ends: a signal, if any. Of private memory a child has copies.
    #[track_caller]
    fn touch(&self, address: u64) -> i32 {
        self.memory.touch(address, Some(SECRET))
    }

    /// What the kernel reads there for its user.
    #[track_caller]
    fn copied(&self, address: u64) -> u64 {
        copied(self.memory.at(address))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        close(self.vm);
    }
}

/// A file in memory, of that size.
fn memfd() -> i32 {
    // SAFETY: a new file, or none.
    let file = unsafe { libc::memfd_create(c"guest".as_ptr(), 0) };
    // SAFETY: its size.
    assert!(file >= 0 && unsafe { libc::ftruncate(file, BYTES as i64) } == 0);
    file
}

fn slots_are_as_a_normal_vms_until_it_runs() {
    let (vm, memory) = (protected(), Kind::Own.memory());
    let set = |slot: u64, at: u64, bytes: u64, user: u64| {
        with(vm, SET_USER_MEMORY_REGION, &[slot, at, bytes, user])
    };
    let user = memory.start() as u64;
    assert_eq!(set(0, MEMORY, 0x1000, user), Ok(0));
    assert_eq!(set(0, MEMORY + 0x1000, 0x1000, user), Ok(0), "it moves");
    assert_eq!(set(1, MEMORY + 0x1000, 0x1000, user), Err(libc::EEXIST));
    assert_eq!(set(1, MEMORY, 0x800, user), Err(libc::EINVAL));
    assert_eq!(set(1, ALIAS | MEMORY, 0x1000, user), Err(libc::EFAULT));
    assert_eq!(set(1 << 34, MEMORY, 0x1000, user), Err(libc::EINVAL), "a file's, without one");
    assert_eq!(set(0, 0, 0, 0), Ok(0));
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(1, 1).stay();
    let plain = Plain { vm, memory };
    plain.slot();
    let vcpu = plain.begin(&code);
    vcpu.run_to_mmio();
    assert_eq!(set(0, MEMORY, 0, 0), Err(libc::EPERM));
    assert_eq!(set(1, 0, 0x1000, user), Err(libc::EPERM));
}

fn what_there_is_is_the_payload(kind: Kind) {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).load(2, DATA).fetch(5, 2).store(5, 1);
    code.load(2, DATA + 0x3000).fetch(5, 2).store(5, 1);
    // What nobody has touched, before and behind.
    code.load(2, DATA + 0x2000).fetch(5, 2).store(5, 1);
    code.load(2, DATA + 0x5000).fetch(5, 2).store(5, 1).stay();
    let plain = Plain::new(kind.memory());
    plain.memory.write(DATA, 77);
    plain.memory.write(DATA + 0x3000, 78);
    let vcpu = plain.begin(&code);
    for expected in [77, 78, 0, 0] {
        assert_eq!(vcpu.run_to_mmio(), (8, true, expected), "{kind:?}");
    }
    // What its user puts there afterwards is not what the guest finds.
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(1, 1).load(2, DATA + 0x4000).fetch(5, 2).store(5, 1).stay();
    let plain = Plain::new(kind.memory());
    let vcpu = plain.begin(&code);
    vcpu.run_to_mmio();
    plain.memory.write(DATA + 0x4000, 79);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "{kind:?}");
}

fn the_kernel_finds_junk(kind: Kind) {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).load(2, DATA).load(3, DATA | ALIAS).load(4, SECRET);
    code.store(4, 2).store(0, 1).fetch(5, 2).store(5, 1);
    code.call(MEM_SHARE, DATA | ALIAS).store(0, 1).fetch(5, 3).store(5, 1);
    code.call(MEM_UNSHARE, DATA | ALIAS).store(0, 1).fetch(5, 2).store(5, 1).stay();
    let plain = Plain::new(kind.memory());
    plain.memory.write(DATA, 1);
    let vcpu = plain.begin(&code);
    vcpu.run_to_mmio();
    // Its users, before the kernel has been there.
    if kind != Kind::Own {
        assert_eq!(plain.touch(DATA), libc::SIGBUS, "{kind:?}");
    }
    assert_eq!(plain.copied(DATA), 0, "{kind:?}");
    for round in 0..3_u64 {
        // To no effect.
        copy_to(plain.memory.at(DATA), round + 1);
        assert_ne!(plain.touch(MEMORY + 0x1000), libc::SIGKILL);
        assert_ne!(plain.copied(DATA), SECRET);
    }
    assert_eq!(vcpu.run_to_mmio(), (8, true, SECRET), "{kind:?}: the guest's is as it was");
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    assert_eq!((plain.memory.read(DATA), plain.copied(DATA)), (SECRET, SECRET), "it is shared");
    plain.memory.write(DATA, 5);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 5));
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    assert_eq!(plain.copied(DATA), 0, "it is not any more");
    assert_eq!(vcpu.run_to_mmio(), (8, true, 5));
}

fn what_is_given_back_is_the_users(kind: Kind) {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).load(2, DATA).load(4, SECRET).store(4, 2).store(0, 1);
    code.call(MEM_RELINQUISH, DATA).store(0, 1).fetch(5, 2).store(5, 1).stay();
    let plain = Plain::new(kind.memory());
    let vcpu = plain.begin(&code);
    vcpu.run_to_mmio();
    assert_eq!(plain.copied(DATA), 0);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    assert_eq!(plain.memory.read(DATA), 0, "{kind:?}: without what the guest had there");
    plain.memory.write(DATA, 9);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "it comes again, empty");
}

/// Who has written a file need not have accessed its mapping.
fn what_is_in_a_file_is_there() {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).load(2, DATA + 8).fetch(5, 2).store(5, 1).stay();
    let file = memfd();
    let plain = Plain::new(Memory::new(BYTES, libc::MAP_SHARED, file));
    let word = SECRET.to_le_bytes();
    // SAFETY: eight bytes.
    let written =
        unsafe { libc::pwrite(file, word.as_ptr().cast(), 8, (DATA - MEMORY + 8) as i64) };
    assert_eq!(written, 8);
    close(file);
    assert_eq!(plain.begin(&code).run_to_mmio(), (8, true, SECRET));
}

/// Who gets more signals than its slots can be looked through in between gets on all the same.
fn signals_are_no_obstacle() {
    /// As much as is looked through in many times the time between two signals.
    const EMPTY: usize = 512 << 20;
    /// More than come while that is done, however slow this machine is: for hangs only.
    const MOST: usize = 1_000_000;
    const LAST: u64 = MEMORY + EMPTY as u64 - 8;
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).load(2, LAST).fetch(5, 2).store(5, 1).stay();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let plain = Plain::new(Memory::new(EMPTY, flags, -1));
    let vcpu = plain.begin(&code);
    plain.memory.write(LAST, 80);
    let every = |microseconds| {
        let time = libc::timeval { tv_sec: 0, tv_usec: microseconds };
        let timer = libc::itimerval { it_interval: time, it_value: time };
        // SAFETY: SIGALRM has a handler, which does nothing.
        assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, null_mut()) }, 0);
    };
    every(10_000);
    let interrupted = (0..MOST).take_while(|_| vcpu.run() == Err(libc::EINTR)).count();
    every(0);
    assert!((1..MOST).contains(&interrupted), "interrupted {interrupted} times");
    assert_eq!((vcpu.word(8), vcpu.doubleword(32)), (EXIT_MMIO, DEVICE));
    assert_eq!(vcpu.doubleword(40), 80);
}

/// A page of the user's at two places of a guest's: the VM never runs.
fn a_page_twice_is_none() {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(1, 1).stay();
    let file = memfd();
    let plain = Plain::new(Memory::new(BYTES, libc::MAP_SHARED, file));
    let again = map(BYTES, libc::MAP_SHARED, file);
    let second = [1, MEMORY + BYTES as u64, BYTES as u64, again as u64];
    assert_eq!(with(plain.vm, SET_USER_MEMORY_REGION, &second), Ok(0));
    let vcpu = plain.begin(&code);
    assert_eq!([vcpu.run(), vcpu.run()], [Err(libc::EFAULT), Err(libc::EIO)]);
    close(file);
    unmap(again, BYTES);
}

/// A page that a driver has mapped for its user and uses itself: kvm_run.
fn a_page_of_the_kernels_is_no_memory() {
    const SECOND: u64 = MEMORY + BYTES as u64;
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(1, 1).load(2, SECOND).fetch(5, 2).store(5, 1).stay();
    let plain = Plain::new(Kind::Own.memory());
    let vcpu = plain.begin(&code);
    let run = map(4096, libc::MAP_SHARED, vcpu.fd);
    assert_eq!(with(plain.vm, SET_USER_MEMORY_REGION, &[1, SECOND, 4096, run as u64]), Ok(0));
    vcpu.run_to_mmio();
    assert_eq!([vcpu.run(), vcpu.run()], [Err(libc::EFAULT); 2]);
    assert_eq!(vcpu.word(8), EXIT_MEMORY_FAULT);
    unmap(run, 4096);
}

/// The kernel copies from pages, and to them, while the guest shares them and takes them back.
fn the_kernel_copies_meanwhile(rounds: u64) {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).load(2, DATA).load(3, DATA | ALIAS).load(4, SECRET);
    let again = code.here();
    code.store(4, 2).call(MEM_SHARE, DATA | ALIAS).store(0, 1);
    code.call(MEM_UNSHARE, DATA | ALIAS).store(0, 1).branch(again);
    let plain = Plain::new(Kind::Shared.memory());
    let vcpu = plain.begin(&code);
    let done = AtomicBool::new(false);
    let place = plain.memory.at(DATA) as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                assert_eq!(copy_from(place as *const u64), Ok(8));
            }
        });
        let _end = Sets(&done);
        for _ in 0..rounds {
            assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "shared");
            assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "and taken back");
        }
    });
}
