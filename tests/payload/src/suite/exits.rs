//! What a guest leaves by, and what the host finishes.

use crate::{
    host, instruction as insn, ledger,
    puppet::{Event, Machine, NOWHERE, Puppet, Routine},
    runner::Skip,
    tests,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::Function,
    error::Error,
    exit::{ExitInfo, Reason, RunFlags},
    register::{Register, system},
};

tests![
    hvc_carries_x0_to_x5_and_back,
    guest_registers_survive_exits,
    host_registers_survive_runs,
    mmio_reads_of_every_size,
    mmio_writes_of_every_size,
    mmio_and_the_zero_register,
    mmio_abort,
    mmio_retry,
    what_is_open_is_finished_without_a_step,
    what_cannot_be_emulated_is_a_fault,
    fetch_from_nowhere_is_a_fault,
    wfi_exits_behind_itself,
    answers_are_for_open_exits_only,
];

unsafe extern "C" {
    fn umbra_run_tagged(registers: *mut [u64; 31], function: u64, flags: u64);
}

fn guest() -> Puppet {
    Machine::normal().started(None)
}

/// Answers an exit; the guest goes on to the end of its routine.
#[track_caller]
fn finish(guest: &Puppet, flags: RunFlags, answer: [u64; 4]) -> [u64; 5] {
    match guest.resume(flags, answer) {
        Event::Done(x) => x,
        event => panic!("the routine does not end: {event:x?}"),
    }
}

/// An instruction that must exit as MMIO, at [`NOWHERE`] + 8.
#[track_caller]
fn mmio(guest: &Puppet, instruction: u32, value: u64) -> (ExitInfo, u64) {
    guest.at(NOWHERE + 8);
    let exit = guest.attempt(instruction, value).exit(Reason::Mmio);
    assert_eq!(exit.data[0], NOWHERE + 8, "address");
    (exit.info, exit.data[1])
}

fn hvc_carries_x0_to_x5_and_back() -> Result<(), Skip> {
    let guest = guest();
    let exit = guest.attempt(insn::HVC, 0x1111).exit(Reason::Hvc);
    assert_eq!(exit.data[0], 0x1111);
    let x = finish(&guest, RunFlags::empty(), [0xa0, 0xa1, 0xa2, 0xa3]);
    assert_eq!(&x[..4], [0xa0, 0xa1, 0xa2, 0xa3]);
    Ok(())
}

fn guest_registers_survive_exits() -> Result<(), Skip> {
    let guest = guest();
    guest.memory(guest.scratch(), 256).fill(0);
    guest.memory(guest.scratch(), 256);
    guest.begin(Routine::Registers, [guest.scratch(), 0, 0]).exit(Reason::Wfi);
    // An interrupt exit before the next instruction, and what the host finds in its registers then.
    let daif = host::pend_interrupt();
    let mut x = [0; 31];
    // SAFETY: as `Hypervisor::vcpu_run`; the routine stores 31 registers.
    unsafe { umbra_run_tagged(&raw mut x, Function::VcpuRun.id(), 0) };
    host::release_interrupt(daif);
    assert_eq!((x[0], x[1] & 0xff), (0, Reason::Irq as u64));
    for (n, &value) in x.iter().enumerate() {
        assert_ne!(value >> 48, 0x6757, "the host's x{n} holds the guest's x{}", value & 0xff);
    }
    finish(&guest, RunFlags::empty(), [1, 2, 3, 4]);
    let stored = guest.memory(guest.scratch(), 8 * 31);
    for (n, bytes) in stored.chunks(8).enumerate() {
        let value = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        assert_eq!(value, 0x6757 << 48 | n as u64, "guest x{n}");
    }
    Ok(())
}

fn host_registers_survive_runs() -> Result<(), Skip> {
    let _loaded = guest();
    let daif = umbra_host::kernel::sysreg::mask_interrupts();
    for _ in 0..16 {
        let mut x = [0; 31];
        // SAFETY: as above. The answer to the puppet's HVC is zero, so it jumps there and faults.
        unsafe { umbra_run_tagged(&raw mut x, Function::VcpuRun.id(), 0) };
        assert_eq!(x[0], 0, "VCPU_RUN");
        for (n, &value) in x.iter().enumerate().skip(18) {
            assert_eq!(value, 0x4057 << 48 | n as u64, "host x{n}");
        }
        assert!(x[8..18].iter().all(|&v| v >> 48 != 0x6757), "{x:x?}");
    }
    umbra_host::kernel::sysreg::restore_interrupts(daif);
    Ok(())
}

fn mmio_reads_of_every_size() -> Result<(), Skip> {
    let guest = guest();
    let data = 0x8182_8384_8586_8788;
    for (instruction, bytes, expected) in [
        (insn::LDRB, 1, 0x88),
        (insn::LDRH, 2, 0x8788),
        (insn::LDR32, 4, 0x8586_8788),
        (insn::LDR64, 8, data),
        (insn::LDRSB32, 1, 0xffff_ff88),
        (insn::LDRSB64, 1, 0xffff_ffff_ffff_ff88),
        (insn::LDRSH32, 2, 0xffff_8788),
        (insn::LDRSH64, 2, 0xffff_ffff_ffff_8788),
        (insn::LDRSW, 4, 0xffff_ffff_8586_8788),
    ] {
        let (info, _) = mmio(&guest, instruction, u64::MAX);
        let access = info.mmio_access();
        assert_eq!((access.bytes, access.write), (bytes, false), "{instruction:#x}");
        let x = finish(&guest, RunFlags::empty(), [data, 0, 0, 0]);
        assert_eq!(x[0], expected, "{instruction:#010x}");
    }
    // A positive value is not extended with ones.
    mmio(&guest, insn::LDRSB64, u64::MAX);
    assert_eq!(finish(&guest, RunFlags::empty(), [0xff7f, 0, 0, 0])[0], 0x7f);
    Ok(())
}

fn mmio_writes_of_every_size() -> Result<(), Skip> {
    let guest = guest();
    let value = 0x8182_8384_8586_8788;
    for (instruction, bytes, expected) in [
        (insn::STRB, 1, 0x88),
        (insn::STRH, 2, 0x8788),
        (insn::STR32, 4, 0x8586_8788),
        (insn::STR64, 8, value),
    ] {
        let (info, data) = mmio(&guest, instruction, value);
        let access = info.mmio_access();
        assert_eq!((access.bytes, access.write, data), (bytes, true, expected));
        // A write takes nothing back.
        assert_eq!(finish(&guest, RunFlags::empty(), [1, 2, 3, 4])[0], value);
    }
    Ok(())
}

fn mmio_and_the_zero_register() -> Result<(), Skip> {
    let guest = guest();
    mmio(&guest, insn::LDR64_XZR, 77);
    assert_eq!(finish(&guest, RunFlags::empty(), [u64::MAX; 4])[0], 77);
    let (info, data) = mmio(&guest, insn::STR64_XZR, 77);
    assert_eq!((info.mmio_access().write, data), (true, 0));
    finish(&guest, RunFlags::empty(), [0; 4]);
    Ok(())
}

fn mmio_abort() -> Result<(), Skip> {
    let guest = guest();
    for (instruction, write) in [(insn::LDR64, false), (insn::STR32, true)] {
        mmio(&guest, instruction, 5);
        let Event::Exception(e) = guest.resume(RunFlags::ABORT, [0; 4]) else {
            panic!("no exception in the guest");
        };
        assert_eq!((e.class(), e.esr & 0x3f), (0x25, 0x10), "ESR_EL1 {:#x}", e.esr);
        assert_eq!(e.esr >> 6 & 1 == 1, write, "WnR");
        assert_eq!((e.far, e.elr), (NOWHERE + 8, guest.instruction_address()));
        assert_eq!(e.spsr & 0x3df, 0x3c5);
    }
    assert_eq!(guest.exec(insn::NOP, 3), 3);
    Ok(())
}

fn mmio_retry() -> Result<(), Skip> {
    let guest = guest();
    mmio(&guest, insn::LDR64, 5);
    // Nothing there yet: the same exit again.
    let again = guest.resume(RunFlags::RETRY, [1; 4]).exit(Reason::Mmio);
    assert_eq!(again.data[0], NOWHERE + 8);
    let page = ledger::take(1);
    // SAFETY: a page of the test's.
    unsafe { umbra_host::kernel::mmu::linear::<u64>(page).add(1).write(0x1234_5678_9abc) };
    Hvc.vm_map(guest.machine.vm, page, NOWHERE).expect("VM_MAP");
    assert_eq!(finish(&guest, RunFlags::RETRY, [0; 4])[0], 0x1234_5678_9abc);
    Ok(())
}

/// KVM_RUN with `immediate_exit`: the host finds the guest behind its access, which has executed nothing else.
fn what_is_open_is_finished_without_a_step() -> Result<(), Skip> {
    let guest = guest();
    let register = |register: Register| {
        let [value, _] =
            Hvc.vcpu_read(guest.machine.vm, guest.index, register.encode()).expect("VCPU_READ");
        value
    };
    let finish_only = |flags: RunFlags, answer| {
        let exit = guest.try_enter(flags | RunFlags::FINISH_ONLY, answer).expect("VCPU_RUN");
        assert_eq!((exit.info.reason(), exit.data), (Some(Reason::Irq), [0; 6]));
        guest.put();
    };
    for (instruction, flags, behind, x0) in [
        (insn::LDRSB64, RunFlags::empty(), 4, 0xffff_ffff_ffff_ff85),
        (insn::STR32, RunFlags::empty(), 4, 77),
        (insn::LDR64, RunFlags::RETRY, 0, 77),
    ] {
        mmio(&guest, instruction, 77);
        for offers in [RunFlags::UNDERFLOW, RunFlags::empty().with_entries(1)] {
            let refused = guest.try_enter(flags | RunFlags::FINISH_ONLY | offers, [1; 4]);
            assert_eq!(refused, Err(Error::InvalidArgument), "{instruction:#x}");
        }
        finish_only(flags, [0x1185, 0, 0, 0]);
        let expected = guest.instruction_address() + behind;
        assert_eq!((register(Register::Pc), register(Register::X(0))), (expected, x0));
        guest.load();
        // Nothing is open any more, but what is tried again.
        if flags.contains(RunFlags::RETRY) {
            guest.resume(RunFlags::empty(), [1; 4]).exit(Reason::Mmio);
            finish(&guest, RunFlags::empty(), [3, 0, 0, 0]);
        } else {
            assert_eq!(finish(&guest, RunFlags::ABORT, [1; 4])[0], x0);
        }
    }
    // An abort is taken, and its handler not begun.
    mmio(&guest, insn::LDR64, 5);
    finish_only(RunFlags::ABORT, [0; 4]);
    let far = register(Register::System(system(3, 0, 6, 0, 0)));
    assert_eq!((far, register(Register::X(0))), (NOWHERE + 8, 5));
    guest.load();
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Exception(_)));
    // A call is answered, and with nothing open nothing happens.
    finish_only(RunFlags::empty(), [Routine::Nothing.address(), 0, 0, 0]);
    guest.load();
    finish_only(RunFlags::ABORT, [9; 4]);
    assert_eq!(register(Register::X(0)), Routine::Nothing.address());
    guest.load();
    assert!(matches!(guest.resume(RunFlags::empty(), [1; 4]), Event::Done(_)));
    guest.put();
    Ok(())
}

fn what_cannot_be_emulated_is_a_fault() -> Result<(), Skip> {
    let guest = guest();
    guest.at(NOWHERE + 16);
    let exit = guest.attempt(insn::LDP, 9).exit(Reason::Fault);
    assert_eq!(exit.data[0], NOWHERE + 16);
    // It stays so until there is memory.
    let exit = guest.resume(RunFlags::empty(), [7; 4]).exit(Reason::Fault);
    assert_eq!(exit.data[0], NOWHERE + 16);
    Hvc.vm_map(guest.machine.vm, ledger::take(1), NOWHERE).expect("VM_MAP");
    assert_eq!(finish(&guest, RunFlags::empty(), [7; 4])[0], 0);
    Ok(())
}

fn fetch_from_nowhere_is_a_fault() -> Result<(), Skip> {
    let guest = guest();
    let exit = guest.attempt(insn::BR, NOWHERE + 0x1000).exit(Reason::Fault);
    assert_eq!(exit.data[0], NOWHERE + 0x1000);
    let exit = guest.resume(RunFlags::empty(), [0; 4]).exit(Reason::Fault);
    assert_eq!(exit.data[0], NOWHERE + 0x1000);
    // A page of returns, and the guest is back in its loop.
    let page = ledger::take(1);
    let words = umbra_host::kernel::mmu::linear::<u32>(page);
    // SAFETY: a page of the test's.
    unsafe { words.write(0xd65f_03c0) };
    Hvc.vm_map(guest.machine.vm, page, NOWHERE + 0x1000).expect("VM_MAP");
    finish(&guest, RunFlags::empty(), [0; 4]);
    Ok(())
}

fn wfi_exits_behind_itself() -> Result<(), Skip> {
    let guest = guest();
    for n in 0..3 {
        guest.attempt(insn::WFI, n).exit(Reason::Wfi);
        assert_eq!(finish(&guest, RunFlags::empty(), [9; 4])[0], n);
    }
    Ok(())
}

fn answers_are_for_open_exits_only() -> Result<(), Skip> {
    let guest = guest();
    // After WFI and after an interrupt the host's x2-x5 go nowhere, nor do ABORT and RETRY.
    guest.attempt(insn::WFI, 42).exit(Reason::Wfi);
    let daif = host::pend_interrupt();
    guest.enter(RunFlags::ABORT | RunFlags::RETRY, [1; 4]).exit(Reason::Irq);
    guest.enter(RunFlags::ABORT, [2; 4]).exit(Reason::Irq);
    host::release_interrupt(daif);
    assert_eq!(finish(&guest, RunFlags::RETRY, [3; 4])[0], 42);
    // An interrupt between an MMIO exit's answer and the guest's next instruction: answered once.
    guest.at(NOWHERE);
    guest.attempt(insn::LDR64, 0).exit(Reason::Mmio);
    let daif = host::pend_interrupt();
    guest.enter(RunFlags::empty(), [0x77, 0, 0, 0]).exit(Reason::Irq);
    host::release_interrupt(daif);
    assert_eq!(finish(&guest, RunFlags::empty(), [0x88; 4])[0], 0x77);
    Ok(())
}
