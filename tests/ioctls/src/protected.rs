//! Protected VMs by one thread, and their memory in a process that has mapped it: KVM's interface (Linux's
//! `Documentation/virt/kvm/api.rst`, 4.140 and 4.142; `virt/kvm/arm/pkvm.rst`), and what Umbra makes of memory files.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::code::*;
use crate::kvm::*;
use crate::memory::{Memory, copy_from};

/// All of them, or a panic that says which. What goes on at once goes on for longer with more rounds.
pub fn all(rounds: u64) {
    what_is_no_memory_file_is_refused();
    slots_have_pages_of_files();
    of_registers_two_are_the_hosts_to_choose();
    one_vcpu_begins();
    memory_is_the_guests_unless_it_shares_it();
    a_page_that_is_given_back_comes_back_empty();
    memory_that_nobody_has_touched_is_shared_empty();
    pages_are_copied_while_the_guest_takes_them_back(8 * rounds);
    files_are_closed_in_any_order();
}

pub const PROTECTED: u64 = 1 << 31 | 40;
/// What a guest shares is in the upper half of its addresses.
pub const ALIAS: u64 = 1 << 39;
/// Pages that guests do something with, in their memory; and how much of that they have.
const PAGE: u64 = MEMORY + 0x20_0000;
const BYTES: usize = 4 << 20;
/// GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
const MAPPED: u64 = 3;
/// Calls of a protected guest's: KVM's.
pub const MEM_SHARE: u64 = 0xc600_0003;
pub const MEM_UNSHARE: u64 = 0xc600_0004;
pub const MEM_RELINQUISH: u64 = 0xc600_0009;
const SYSTEM_OFF: u64 = 0x8400_0008;
pub const SECRET: u64 = 0x5ec2_e7a1_5ec2_e7a1;

fn file(vm: i32, bytes: usize, flags: u64) -> Answer {
    let mut create = [bytes as u64, flags, 0, 0, 0, 0, 0, 0];
    get(vm, CREATE_GUEST_MEMFD, &mut create)
}

/// A slot of pages of a file's.
fn slot(vm: i32, [slot, at, bytes]: [u64; 3], file: i32, offset: u64) -> Answer {
    let mut region = [0_u64; 20];
    region[..6].copy_from_slice(&[slot | 1 << 34, at, bytes, 0, offset, u64::from(file as u32)]);
    with(vm, SET_USER_MEMORY_REGION2, &region)
}

pub fn protected() -> i32 {
    let kvm = open();
    let vm = ioctl(kvm, CREATE_VM, PROTECTED).expect("KVM_CREATE_VM of a protected VM");
    close(kvm);
    vm
}

/// A protected VM with memory, which this process has mapped.
struct Private {
    vm: i32,
    file: i32,
    memory: Memory,
}

impl Private {
    fn new() -> Self {
        let vm = protected();
        let file = file(vm, BYTES, MAPPED).expect("KVM_CREATE_GUEST_MEMFD");
        let memory = Memory::new(BYTES, libc::MAP_SHARED, file);
        slot(vm, [0, MEMORY, BYTES as u64], file, 0).expect("KVM_SET_USER_MEMORY_REGION2");
        Self { vm, file, memory }
    }

    /// With instructions at its beginning, and the vCPU that begins there.
    fn with_code(code: &Code) -> (Self, Vcpu) {
        let vm = Self::new();
        let vcpu = vm.memory.begin(vm.vm, code);
        (vm, vcpu)
    }

    /// How a process that reads there ends: a signal, if any.
    #[track_caller]
    fn touch(&self, address: u64) -> i32 {
        self.memory.touch(address, None)
    }

    /// No process of this host's finds anything there: neither by itself, nor does the kernel for one.
    #[track_caller]
    fn assert_private(&self, address: u64) {
        assert_eq!(self.touch(address), libc::SIGBUS, "{address:#x}");
        assert_eq!(copy_from(self.memory.at(address)), Err(libc::EFAULT), "{address:#x}");
    }

    /// Both do.
    #[track_caller]
    fn assert_shared(&self, address: u64, content: u64) {
        assert_eq!(
            (self.touch(address), copy_from(self.memory.at(address))),
            (0, Ok(8)),
            "{address:#x}"
        );
        assert_eq!(self.memory.read(address), content, "{address:#x}");
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        close(self.file);
        close(self.vm);
    }
}

fn what_is_no_memory_file_is_refused() {
    let kvm = open();
    let normal = ioctl(kvm, CREATE_VM, 40).expect("KVM_CREATE_VM");
    for kind in [1 << 31 | 31, 1 << 31 | 49, 1 << 32, 1 << 30] {
        assert_eq!(ioctl(kvm, CREATE_VM, kind), Err(libc::EINVAL), "{kind:#x}");
    }
    let vm = protected();
    // KVM_CAP_USER_MEMORY2, KVM_CAP_GUEST_MEMFD, KVM_CAP_GUEST_MEMFD_FLAGS.
    for (capability, there) in [(231, 1), (234, 1), (244, 3)] {
        assert_eq!(ioctl(vm, CHECK_EXTENSION, capability), Ok(there), "{capability}");
        assert_eq!(ioctl(kvm, CHECK_EXTENSION, capability), Ok(there), "{capability}");
        assert_eq!(ioctl(normal, CHECK_EXTENSION, capability), Ok(0), "{capability}");
    }
    // KVM_CAP_ARM_VM_IPA_SIZE: those that a guest finds.
    assert_eq!(ioctl(vm, CHECK_EXTENSION, 165), Ok(40));
    assert_eq!(file(normal, BYTES, MAPPED), Err(libc::ENOTTY));
    for (bytes, flags) in [(0, MAPPED), (4095, MAPPED), (4096, 1), (4096, 2), (4096, 4), (4096, 7)]
    {
        assert_eq!(file(vm, bytes, flags), Err(libc::EINVAL), "{bytes} {flags}");
    }
    assert_eq!(file(vm, usize::MAX & !4095, MAPPED), Err(libc::EINVAL));
    assert_eq!(file(vm, (ALIAS + 4096) as usize, MAPPED), Err(libc::ENOMEM));
    let largest = file(vm, ALIAS as usize, MAPPED).expect("as large as its addresses");
    close(largest);
    let mut reserved = [4096, 0, 0, 0, 0, 0, 0, 1_u64];
    assert_eq!(get(vm, CREATE_GUEST_MEMFD, &mut reserved), Err(libc::EINVAL));
    // One that nobody maps.
    let hidden = file(vm, 4096, 0).expect("a file that can't be mapped");
    let access = libc::PROT_READ;
    // SAFETY: a new mapping, if any.
    let failed = unsafe { libc::mmap(null_mut(), 4096, access, libc::MAP_SHARED, hidden, 0) };
    assert_eq!(failed, libc::MAP_FAILED);
    let shown = file(vm, 4096, MAPPED).expect("a file that can");
    // SAFETY: as above. A copy of its own would be another page than the guest's.
    let failed = unsafe { libc::mmap(null_mut(), 4096, access, libc::MAP_PRIVATE, shown, 0) };
    assert_eq!(failed, libc::MAP_FAILED);
    [kvm, normal, vm, hidden, shown].into_iter().for_each(close);
}

fn slots_have_pages_of_files() {
    let (vm, other) = (protected(), protected());
    let mine = file(vm, 0x4000, MAPPED).expect("a file");
    let others = file(other, 0x4000, MAPPED).expect("a file");
    for (what, region, file, offset, error) in [
        ("another VM's", [0, MEMORY, 0x4000], others, 0, libc::EINVAL),
        ("no file", [0, MEMORY, 0x4000], 0, 0, libc::EINVAL),
        ("none at all", [0, MEMORY, 0x4000], -1, 0, libc::EINVAL),
        ("beyond its end", [0, MEMORY, 0x4000], mine, 0x1000, libc::EINVAL),
        ("around the end of all", [0, MEMORY, 0x4000], mine, !0xfff, libc::EINVAL),
        ("half a page", [0, MEMORY, 0x1000], mine, 0x800, libc::EINVAL),
        ("in the upper half", [0, MEMORY | ALIAS, 0x4000], mine, 0, libc::EFAULT),
        ("into it", [0, ALIAS - 0x1000, 0x4000], mine, 0, libc::EFAULT),
    ] {
        assert_eq!(slot(vm, region, file, offset), Err(error), "{what}");
    }
    assert_eq!(slot(vm, [0, MEMORY, 0x2000], mine, 0), Ok(0));
    assert_eq!(slot(vm, [0, MEMORY, 0x2000], mine, 0), Err(libc::EINVAL), "it stays as it is");
    assert_eq!(slot(vm, [1, PAGE, 0x2000], mine, 0x1000), Err(libc::EINVAL), "a page twice");
    assert_eq!(slot(vm, [1, PAGE, 0x2000], mine, 0x2000), Ok(0));
    assert_eq!(slot(vm, [0, MEMORY, 0], -1, 0), Ok(0), "but it can go");
    assert_eq!(slot(vm, [2, MEMORY, 0x1000], mine, 0x1000), Ok(0), "and its pages be another's");
    [mine, others, vm, other].into_iter().for_each(close);
}

fn of_registers_two_are_the_hosts_to_choose() {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(0, 1).stay();
    let (vm, vcpu) = Private::with_code(&code);
    let set = |id: u64, value: u64| with(vcpu.fd, SET_ONE_REG, &[id, &raw const value as u64]);
    let read = |id: u64| {
        let mut value = 0_u64;
        with(vcpu.fd, GET_ONE_REG, &[id, &raw mut value as u64]).map(|_| value)
    };
    let (pstate, vbar) = (0x6030_0000_0010_0042, sys([3, 0, 12, 0, 0]));
    assert_eq!(set(x(0), SECRET), Ok(0));
    assert_eq!((read(x(0)), read(PC), read(x(7))), (Ok(SECRET), Ok(MEMORY), Ok(0)));
    assert_eq!(read(pstate), Ok(0x3c5));
    // As it is at reset.
    assert_eq!((set(pstate, 0x3c5), set(x(7), 0)), (Ok(0), Ok(0)));
    for (id, value) in [(x(1), 1), (pstate, 0x3c4), (vbar, 0), (TIMER_CNT, 0)] {
        assert_eq!(set(id, value), Err(libc::EPERM), "{id:#x}");
    }
    assert_eq!(set(PC, MEMORY + 2), Err(libc::EINVAL));
    assert_eq!(read(vbar), Err(libc::EPERM));
    let mpidr = read(sys([3, 0, 0, 0, 5]));
    let mut list = [255_u64; 256];
    get(vcpu.fd, GET_REG_LIST, &mut list).expect("KVM_GET_REG_LIST");
    let listed = &list[1..][..list[0] as usize];
    assert!(listed.contains(&PC) && listed.contains(&x(0)) && !listed.contains(&vbar));
    assert_eq!(with(vm.vm, SET_COUNTER_OFFSET, &[0_u64, 0]), Err(libc::EPERM));
    let late = Vcpu::new(vm.vm, 1);
    // The device that the guest accesses in its upper half.
    assert_eq!(vcpu.run_to_mmio(), (8, true, SECRET));
    for id in [x(0), PC, x(7), pstate] {
        assert_eq!((set(id, 0), read(id)), (Err(libc::EPERM), Err(libc::EPERM)), "{id:#x}");
    }
    assert_eq!(read(sys([3, 0, 0, 0, 5])), mpidr, "which nobody hides");
    assert_eq!(with(vcpu.fd, SET_MP_STATE, &STOPPED), Err(libc::EPERM));
    let init = [5_u32, 1 << 2, 0, 0, 0, 0, 0, 0];
    assert_eq!(with(vcpu.fd, VCPU_INIT, &init), Err(libc::EPERM));
    assert_eq!(slot(vm.vm, [0, MEMORY, 0], -1, 0), Err(libc::EPERM));
    assert_eq!(slot(vm.vm, [1, PAGE, 0x1000], vm.file, 0), Err(libc::EPERM));
    assert_eq!(with(late.fd, VCPU_INIT, &init), Err(libc::EPERM), "there are no more");
}

fn one_vcpu_begins() {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(0, 1).stay();
    let (vm, first) = Private::with_code(&code);
    let second = Vcpu::new(vm.vm, 1);
    second.init(false);
    assert_eq!((first.run(), second.run()), (Err(libc::EPERM), Err(libc::EPERM)), "two would");
    second.init(true);
    first.set_state(STOPPED);
    assert_eq!(first.run(), Err(libc::EPERM), "nobody would");
    first.set_state(RUNNABLE);
    second.leave_at_once();
    // Until then all is as it was.
    vm.assert_shared(MEMORY, u64::from(code.words()[0]) | u64::from(code.words()[1]) << 32);
    first.run_to_mmio();
    assert_eq!((first.state(), second.state()), (RUNNABLE, STOPPED));
}

fn memory_is_the_guests_unless_it_shares_it() {
    let (mut code, data) = (Code::default(), PAGE + 0x1000);
    code.load(1, DEVICE | ALIAS).load(2, data).load(3, data | ALIAS).load(4, SECRET);
    // What was there, then a secret of its own.
    code.fetch(5, 2).store(5, 1).store(4, 2).store(0, 1);
    // Shared: what the host writes there.
    code.call(MEM_SHARE, data | ALIAS).store(0, 1).fetch(5, 3).store(5, 1);
    code.call(MEM_UNSHARE, data | ALIAS).store(0, 1).fetch(5, 2).store(5, 1);
    // And again.
    code.call(MEM_SHARE, data | ALIAS).store(0, 1).call(SYSTEM_OFF, 0).stay();
    let (vm, vcpu) = Private::with_code(&code);
    vm.memory.write(data, 77);
    assert_eq!(vm.touch(data), 0, "while it is built");
    assert_eq!(vcpu.run_to_mmio(), (8, true, 77), "the payload");
    for address in [MEMORY, data, PAGE] {
        vm.assert_private(address);
    }
    vcpu.run_to_mmio();
    vm.assert_private(data);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    vm.assert_shared(data, SECRET);
    vm.assert_private(data + 0x1000);
    vm.assert_private(data - 0x1000);
    vm.memory.write(data, 78);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 78));
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    vm.assert_private(data);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 78), "it takes back what is there");
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    vm.assert_shared(data, 78);
    assert_eq!((vcpu.run(), vcpu.word(8), vcpu.word(32)), (Ok(0), EXIT_SYSTEM_EVENT, 1));
    // It has ended, and is there until its files are closed: what it shares it shares.
    vm.assert_shared(data, 78);
    vm.assert_private(MEMORY);
}

fn a_page_that_is_given_back_comes_back_empty() {
    let (mut code, data) = (Code::default(), PAGE + 0x3000);
    code.load(1, DEVICE | ALIAS).load(2, data).load(4, SECRET);
    code.store(4, 2).call(MEM_RELINQUISH, data).store(0, 1).fetch(5, 2).store(5, 1);
    code.call(MEM_SHARE, data | ALIAS).store(0, 1).stay();
    let (vm, vcpu) = Private::with_code(&code);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    vm.assert_private(data);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "another page");
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    vm.assert_shared(data, 0);
}

fn memory_that_nobody_has_touched_is_shared_empty() {
    let (mut code, data) = (Code::default(), PAGE + 0x7000);
    code.load(1, DEVICE | ALIAS).load(2, data | ALIAS).call(MEM_SHARE, data | ALIAS).store(0, 1);
    code.fetch(5, 2).store(5, 1).call(MEM_SHARE, (MEMORY + BYTES as u64) | ALIAS).store(0, 1);
    code.stay();
    let (vm, vcpu) = Private::with_code(&code);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    vm.assert_shared(data, 0);
    vm.assert_private(data + 0x1000);
    assert_eq!(vcpu.run_to_mmio(), (8, true, 0));
    assert_eq!(vcpu.run_to_mmio(), (8, true, -3_i64 as u64), "what is in no slot");
}

/// Set when it goes.
pub struct Sets<'a>(pub &'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// The kernel copies from a page while the guest shares it and takes it back, again and again: it gets it, or EFAULT, and nothing
/// else happens to it.
fn pages_are_copied_while_the_guest_takes_them_back(rounds: u64) {
    let (mut code, data) = (Code::default(), PAGE + 0x5000);
    code.load(1, DEVICE | ALIAS).load(3, data | ALIAS);
    let again = code.here();
    // What MEM_SHARE answers comes before the page is used: a call that has failed says so.
    code.call(MEM_SHARE, data | ALIAS).store(0, 1).load(4, SECRET).store(4, 3);
    code.call(MEM_UNSHARE, data | ALIAS).store(0, 1).branch(again);
    let (vm, vcpu) = Private::with_code(&code);
    let (done, got, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let place = vm.memory.at(data) as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                match copy_from(place as *const u64) {
                    Ok(8) => got.fetch_add(1, SeqCst),
                    Err(libc::EFAULT) => refused.fetch_add(1, SeqCst),
                    other => panic!("{other:?}"),
                };
            }
        });
        // The other thread ends, whatever is wrong here.
        let _end = Sets(&done);
        let (mut taken, enough) = (0, rounds / 2);
        while taken < rounds || got.load(SeqCst) < enough || refused.load(SeqCst) < enough {
            assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "shared");
            assert_eq!(vcpu.run_to_mmio(), (8, true, 0), "and taken back");
            taken += 1;
        }
    });
}

fn files_are_closed_in_any_order() {
    let mut code = Code::default();
    code.load(1, DEVICE | ALIAS).store(0, 1).stay();
    for order in 0..6 {
        let (vm, vcpu) = Private::with_code(&code);
        if order % 2 == 0 {
            vcpu.run_to_mmio();
        }
        let (fd, file, memory) = (vm.vm, vm.file, vm.memory.start());
        std::mem::forget(vm);
        let mut vcpu = Some(vcpu);
        let steps = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]][order / 2];
        for step in steps {
            match step {
                0 => close(fd),
                1 => close(file),
                2 => unmap(memory, BYTES),
                _ => drop(vcpu.take()),
            }
        }
    }
}
