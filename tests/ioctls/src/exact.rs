//! Calls on one VM by one thread, that must do what KVM's do (Linux's `Documentation/virt/kvm/api.rst` and
//! `devices/arm-vgic-v3.rst`).

use std::ptr::{from_mut, null_mut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::kvm::*;

/// All of them, or a panic that says which.
pub fn all() {
    power_is_all_that_mp_state_changes();
    an_access_is_finished_without_a_step();
    an_abort_is_for_the_access_that_is_open();
    banked_spsrs_are_kept();
    the_clock_is_the_vms();
    the_gics_addresses_may_follow();
    the_cpu_interface_is_read_and_written();
    a_system_that_is_off_has_no_vcpu_that_is_on();
    signals_are_blocked_as_asked();
    a_slot_moves();
}

const LDRSB_X0_X1: u32 = 0x3980_0020;
const LDR_X0_X1: u32 = 0xf940_0020;
const STR_W2_X1: u32 = 0xb900_0022;
const HVC: u32 = 0xd400_0002;
/// B .
const STAY: u32 = 0x1400_0000;

fn power_is_all_that_mp_state_changes() {
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    vcpu.set(x(5), 0x5555);
    vcpu.set(PC, MEMORY + 0x40);
    for state in [STOPPED, RUNNABLE, RUNNABLE, STOPPED, STOPPED, RUNNABLE] {
        vcpu.set_state(state);
        assert_eq!((vcpu.state(), vcpu.get(x(5)), vcpu.get(PC)), (state, 0x5555, MEMORY + 0x40));
    }
    assert_eq!(with(vcpu.fd, SET_MP_STATE, &1_u32), Err(libc::EINVAL));
    // It runs where it was.
    vm.code(MEMORY + 0x40, &[STR_W2_X1, STAY]);
    vcpu.set(x(1), DEVICE);
    assert_eq!(vcpu.run_to_mmio(), (4, true, 0));
    // KVM_ARM_VCPU_INIT resets, whether it is to be on or off.
    for off in [true, false] {
        vcpu.set(x(5), 0x5555);
        vcpu.init(off);
        assert_eq!((vcpu.get(x(5)), vcpu.get(PC)), (0, 0));
        assert_eq!(vcpu.state(), if off { STOPPED } else { RUNNABLE });
    }
}

fn an_access_is_finished_without_a_step() {
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    vm.code(MEMORY, &[LDRSB_X0_X1, STR_W2_X1, STAY]);
    vcpu.set(PC, MEMORY);
    vcpu.set(x(1), DEVICE);
    vcpu.set(x(2), 0x1_2345_6789);
    assert_eq!(vcpu.run_to_mmio(), (1, false, 0));
    assert_eq!(vcpu.get(PC), MEMORY, "the VMM has not answered yet");
    vcpu.set_data(0x1185);
    for _ in 0..2 {
        vcpu.leave_at_once();
        assert_eq!((vcpu.get(x(0)), vcpu.get(PC)), (0xffff_ffff_ffff_ff85, MEMORY + 4));
    }
    assert_eq!(vcpu.run_to_mmio(), (4, true, 0x2345_6789));
    vcpu.leave_at_once();
    assert_eq!(vcpu.get(PC), MEMORY + 8, "behind the store");
}

fn an_abort_is_for_the_access_that_is_open() {
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    let abort = |vcpu: &Vcpu| with(vcpu.fd, SET_VCPU_EVENTS, &[1_u64 << 16, 0, 0, 0, 0, 0, 0, 0]);
    let mut events = [!0_u64; 8];
    get(vcpu.fd, GET_VCPU_EVENTS, &mut events).expect("KVM_GET_VCPU_EVENTS");
    assert_eq!(events, [0; 8]);
    with(vcpu.fd, SET_VCPU_EVENTS, &events).expect("nothing is pending");
    // An SError, a pad, what is reserved.
    for bad in [[1, 0], [1 << 24, 0], [0, 1 << 32]] {
        let events = [bad[0], 0, 0, bad[1], 0, 0, 0, 0_u64];
        assert_eq!(with(vcpu.fd, SET_VCPU_EVENTS, &events), Err(libc::EINVAL), "{bad:x?}");
    }
    assert_eq!(abort(&vcpu), Err(libc::EINVAL), "no access is open");
    vm.code(MEMORY, &[LDR_X0_X1, STAY]);
    vcpu.set(PC, MEMORY);
    vcpu.set(x(0), 0x77);
    vcpu.set(x(1), DEVICE);
    vcpu.set(sys([3, 0, 12, 0, 0]), VECTORS);
    vcpu.run_to_mmio();
    abort(&vcpu).expect("KVM_SET_VCPU_EVENTS");
    vcpu.leave_at_once();
    // VBAR_EL1 + 0x200, ELR_EL1, FAR_EL1, and of ESR_EL1 EC and DFSC: a synchronous external abort.
    assert_eq!((vcpu.get(PC), vcpu.get(x(0))), (VECTORS + 0x200, 0x77));
    assert_eq!((vcpu.get(0x6030_0000_0010_0046), vcpu.get(sys([3, 0, 6, 0, 0]))), (MEMORY, DEVICE));
    let esr = vcpu.get(sys([3, 0, 5, 2, 0]));
    assert_eq!((esr >> 26, esr & 0x3f), (0x25, 0x10), "{esr:#x}");
}

fn banked_spsrs_are_kept() {
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    let all = (0..4).map(|n| SPSR_ABT + 2 * n);
    for (n, id) in (0..).zip(all.clone()) {
        vcpu.set(id, 0x1d3 + n);
    }
    assert!((0..).zip(all.clone()).all(|(n, id)| vcpu.get(id) == 0x1d3 + n));
    vcpu.init(false);
    assert!(all.map(|id| vcpu.get(id)).all(|value| value == 0));
}

fn the_clock_is_the_vms() {
    let vm = Vm::new();
    let vcpus = [vm.vcpu(0), vm.vcpu(1)];
    // A day at the most ahead of it.
    let is_near = |value: u64, expected: u64| (expected..expected + (1 << 48)).contains(&value);
    for count in [1 << 50, 1 << 60, 5] {
        vcpus[1].set(TIMER_CNT, count);
        for vcpu in &vcpus {
            let found = vcpu.get(TIMER_CNT);
            assert!(is_near(found, count), "{found:#x}");
        }
    }
    // One that comes later has it, too.
    vcpus[0].set(TIMER_CNT, 1 << 55);
    let late = vm.vcpu(2);
    assert!(is_near(late.get(TIMER_CNT), 1 << 55));
    assert_eq!(with(vm.fd, SET_COUNTER_OFFSET, &[0_u64, 1]), Err(libc::EINVAL));
    with(vm.fd, SET_COUNTER_OFFSET, &[1_u64 << 58, 0]).expect("KVM_ARM_SET_COUNTER_OFFSET");
    let expected = 0_u64.wrapping_sub(1 << 58);
    for vcpu in vcpus.iter().chain([&late]) {
        assert!(is_near(vcpu.get(TIMER_CNT), expected));
        vcpu.set(TIMER_CNT, 0);
        assert!(is_near(vcpu.get(TIMER_CNT), expected), "it is set for good");
    }
}

fn attribute<T>(gic: i32, number: u64, group: u64, attr: u64, value: &mut T) -> Answer {
    with(gic, number, &[group << 32, attr, from_mut(value) as u64])
}

fn the_gics_addresses_may_follow() {
    let vm = Vm::new();
    let gic = vm.gic();
    let set =
        |group, attr, mut value: u64| attribute(gic, SET_DEVICE_ATTR, group, attr, &mut value);
    assert_eq!(set(4, 0, 0), Err(libc::ENODEV), "no vCPU");
    let vcpus = [vm.vcpu(0), vm.vcpu(1)];
    vm.code(MEMORY, &[LDR_X0_X1, STAY]);
    vcpus[0].set(PC, MEMORY);
    vcpus[0].set(x(1), DEVICE);
    assert_eq!(vcpus[0].run(), Err(libc::ENXIO), "no frame");
    // KVM_VGIC_V3_ADDR_TYPE_DIST.
    assert_eq!(set(0, 2, 0x800_0000), Ok(0));
    assert_eq!(set(4, 0, 0), Ok(0));
    assert_eq!(set(4, 0, 0), Ok(0), "it is there already");
    assert_eq!(ioctl(vm.fd, CREATE_VCPU, 2), Err(libc::EBUSY));
    assert_eq!(vcpus[0].run(), Err(libc::ENXIO), "no redistributor");
    // KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: one, then as many as there are vCPUs.
    assert_eq!(set(0, 5, 1 << 52 | 0x80a_0000), Ok(0));
    assert_eq!(vcpus[0].run(), Err(libc::ENXIO), "one redistributor");
    assert_eq!(set(0, 5, 1 << 52 | 0x90a_0000 | 1), Ok(0));
    assert_eq!(set(0, 2, 0x800_0000), Err(libc::EEXIST));
    vcpus[0].run_to_mmio();
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    let gic = vm.gic();
    for (attr, mut value) in [(2, 0x800_0000_u64), (3, 0x80a_0000)] {
        assert_eq!(attribute(gic, SET_DEVICE_ATTR, 0, attr, &mut value), Ok(0));
    }
    assert_eq!(vcpu.run(), Err(libc::EBUSY), "without KVM_DEV_ARM_VGIC_CTRL_INIT");
    // SAFETY: nobody else has it.
    unsafe { libc::close(gic) };
    // KVM_VGIC_V3_ADDR_TYPE_REDIST has no size: the second frame lies over the distributor, or behind all addresses.
    for [distributor, redistributors] in
        [[0x800_0000, 0x7fe_0000], [0x800_0000, (1_u64 << 40) - 0x2_0000]]
    {
        let vm = Vm::new();
        let vcpus = [vm.vcpu(0), vm.vcpu(1)];
        let gic = vm.gic();
        let set =
            |group, attr, mut value: u64| attribute(gic, SET_DEVICE_ATTR, group, attr, &mut value);
        assert_eq!(set(0, 2, distributor), Ok(0));
        // KVM looks at once, if there are vCPUs.
        let said = set(0, 3, redistributors);
        assert_eq!(set(4, 0, 0), Ok(0));
        assert_eq!(said.and_then(|_| vcpus[0].run()), Err(libc::EINVAL), "{redistributors:#x}");
        // SAFETY: nobody else has it.
        unsafe { libc::close(gic) };
    }
}

fn the_cpu_interface_is_read_and_written() {
    const GROUP: u64 = 6;
    let vm = Vm::new();
    let gic = vm.gic();
    let vcpus = [vm.vcpu(0), vm.vcpu(1)];
    let access = |number, attr, value: &mut u64| attribute(gic, number, GROUP, attr, value);
    assert_eq!(access(GET_DEVICE_ATTR, 0xc230, &mut 0), Err(libc::EBUSY), "there is no GIC");
    assert_eq!(attribute(gic, SET_DEVICE_ATTR, 4, 0, &mut 0_u64), Ok(0));
    let read = |attr| {
        let mut value = 0;
        access(GET_DEVICE_ATTR, attr, &mut value).map(|_| value)
    };
    // ICC_PMR_EL1, ICC_IGRPEN1_EL1 and ICC_AP1R0_EL1 of the second vCPU.
    for (attr, mut value) in [(0xc230, 0xf0), (0xc667, 1), (0xc648, 0x80)] {
        let second = 1 << 32 | attr;
        assert_eq!(access(SET_DEVICE_ATTR, second, &mut value), Ok(0));
        assert_eq!((read(second), read(attr)), (Ok(value), Ok(0)), "{attr:#x}");
    }
    drop(vcpus);
    // ICC_SRE_EL1 takes whatever has SRE, and ICC_CTLR_EL1 what it has.
    assert_eq!(access(SET_DEVICE_ATTR, 0xc665, &mut 1), Ok(0));
    assert_eq!(read(0xc665), Ok(7));
    assert_eq!(access(SET_DEVICE_ATTR, 0xc665, &mut 6), Err(libc::EINVAL));
    let mut control = read(0xc664).expect("ICC_CTLR_EL1");
    assert_eq!(access(SET_DEVICE_ATTR, 0xc664, &mut control), Ok(0));
    assert_eq!(access(SET_DEVICE_ATTR, 0xc664, &mut (control | 7 << 8)), Err(libc::EINVAL));
    // ICC_IAR1_EL1 is none of them, and there is no third vCPU.
    assert_eq!(access(HAS_DEVICE_ATTR, 0xc660, &mut 0), Err(libc::ENXIO));
    assert_eq!(read(0xc660), Err(libc::ENXIO));
    assert_eq!(read(2 << 32 | 0xc230), Err(libc::EINVAL));
    // Nor one with an Aff3, of these registers or of a redistributor (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS).
    assert_eq!(read(1 << 56 | 0xc230), Err(libc::EINVAL));
    assert_eq!(attribute(gic, GET_DEVICE_ATTR, 5, 1 << 56, &mut 0_u32), Err(libc::EINVAL));
    assert_eq!(access(HAS_DEVICE_ATTR, 0xc230, &mut 0), Ok(0));
    // SAFETY: nobody else has it.
    unsafe { libc::close(gic) };
}

fn a_system_that_is_off_has_no_vcpu_that_is_on() {
    let vm = Vm::new();
    let vcpus = [vm.vcpu(0), vm.vcpu(1)];
    vm.code(MEMORY, &[HVC, STAY]);
    // SYSTEM_OFF; the other one goes round and round.
    vcpus[0].set(x(0), 0x8400_0008);
    vcpus[0].set(PC, MEMORY);
    vcpus[1].set(PC, MEMORY + 4);
    let name = &AtomicU64::new(0);
    std::thread::scope(|scope| {
        let other = &vcpus[1];
        let thread = scope.spawn(move || {
            // SAFETY: this thread's name.
            name.store(unsafe { libc::pthread_self() } as u64, Relaxed);
            other.run()
        });
        // It has a name, and is in its guest very soon: if not, it finds that it is off.
        while name.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(vcpus[0].run(), Ok(0));
        assert_eq!((vcpus[0].word(8), vcpus[0].word(32)), (EXIT_SYSTEM_EVENT, 1));
        assert_eq!(vcpus[0].state(), STOPPED);
        // It sleeps in KVM_RUN: had that ended by itself it would not be EINTR below.
        while !thread.is_finished() {
            // SAFETY: it is not joined yet, so it has its name still; the signal does nothing (`signals_interrupt`).
            unsafe { libc::pthread_kill(name.load(Relaxed) as libc::pthread_t, libc::SIGALRM) };
            std::thread::sleep(Duration::from_millis(10));
        }
        let result = thread.join().expect("its thread ends");
        assert_eq!((result, other.state()), (Err(libc::EINTR), STOPPED));
    });
    // Registers are what they were, and it goes on when it is told to.
    assert_eq!(vcpus[1].get(PC), MEMORY + 4);
    vm.code(MEMORY + 0x80, &[STR_W2_X1, STAY]);
    vcpus[1].set(PC, MEMORY + 0x80);
    vcpus[1].set(x(1), DEVICE);
    vcpus[1].set_state(RUNNABLE);
    vcpus[1].run_to_mmio();
}

fn signals_are_blocked_as_asked() {
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    vm.code(MEMORY, &[STR_W2_X1, STAY]);
    vcpu.set(PC, MEMORY);
    vcpu.set(x(1), DEVICE);
    assert_eq!(with(vcpu.fd, SET_SIGNAL_MASK, &[4_u32, 0, 0]), Err(libc::EINVAL));
    // SAFETY: sets of this thread's signals, and one that is pending and blocked.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut());
        libc::pthread_kill(libc::pthread_self(), libc::SIGALRM);
        // Blocked in KVM_RUN as everywhere: it runs.
        vcpu.run_to_mmio();
        // Not blocked there: it is interrupted, and the signal waits for who takes it (`sigtimedwait`).
        with(vcpu.fd, SET_SIGNAL_MASK, &[8_u32, 0, 0]).expect("KVM_SET_SIGNAL_MASK");
        assert_eq!(vcpu.run(), Err(libc::EINTR));
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut pending);
        assert_eq!(libc::sigismember(&raw const pending, libc::SIGALRM), 1, "it is pending");
        let mut now: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, &raw mut now);
        assert_eq!(libc::sigismember(&raw const now, libc::SIGALRM), 1, "the mask is the thread's");
    }
    assert_eq!(ioctl(vcpu.fd, SET_SIGNAL_MASK, 0), Ok(0));
}

fn a_slot_moves() {
    const ELSEWHERE: u64 = MEMORY + 0x100_0000;
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    vm.code(MEMORY, &[STR_W2_X1, STR_W2_X1, STAY]);
    vcpu.set(PC, MEMORY);
    vcpu.set(x(1), DEVICE);
    vcpu.run_to_mmio();
    assert_eq!(vm.slot(ELSEWHERE, BYTES / 2), Err(libc::EINVAL), "a slot has its size for good");
    assert_eq!(vm.slot(ELSEWHERE, BYTES), Ok(0));
    vcpu.leave_at_once();
    // The guest's code is there, and no longer here.
    vcpu.set(PC, ELSEWHERE + 4);
    vcpu.run_to_mmio();
    vcpu.leave_at_once();
    vcpu.set(x(1), MEMORY);
    vcpu.set(PC, ELSEWHERE);
    assert_eq!(vcpu.run(), Ok(0));
    assert_eq!((vcpu.word(8), vcpu.doubleword(32)), (EXIT_MMIO, MEMORY));
}
