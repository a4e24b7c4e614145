//! A protected guest's calls for its host by RSI, with all of its registers; and those for a token, which nobody can make.

use super::sharing::{load, store, with_tables};
use crate::{
    ledger::{self, PAGE},
    puppet::{Event, Machine, NOWHERE, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::exception::probe_read,
};
use umbra_shared::{
    exit::{Reason, RunFlags},
    flags::CALL_REGISTERS,
    rsi::{
        ACCEPT, ERROR_INPUT, ERROR_STATE, ERROR_UNKNOWN, HOST_CALL_BYTES, Ripas, RsiFunction,
        SUCCESS,
    },
};

tests![
    host_call_carries_every_register_and_back,
    host_call_that_is_not_answered_changes_nothing,
    host_call_is_checked,
    host_call_writes_private_memory_alone,
    attestation_is_not_there,
];

fn register(round: u64, n: usize) -> u64 {
    0xca11_0000_0000_0000 + (round << 16) + n as u64
}

/// The guest's structure.
fn write(guest: &Puppet, ipa: u64, immediate: u64, round: u64) {
    store(guest, ipa, immediate);
    for n in 0..CALL_REGISTERS {
        store(guest, ipa + 8 + 8 * n as u64, register(round, n));
    }
}

#[track_caller]
fn assert_holds(guest: &Puppet, ipa: u64, immediate: u64, of: impl Fn(usize) -> u64) {
    assert_eq!(load(guest, ipa), immediate);
    for n in 0..CALL_REGISTERS {
        assert_eq!(load(guest, ipa + 8 + 8 * n as u64), of(n), "register {n}");
    }
}

/// The call, as the host hears of it.
#[track_caller]
fn call(guest: &Puppet, how: Routine, ipa: u64, immediate: u64, round: u64) {
    let event = guest.smccc(how, RsiFunction::HostCall.id(), [ipa, 7, 8]);
    let exit = event.exit(Reason::HostCall);
    assert_eq!(exit.data, [immediate, 0, 0, 0, 0, 0]);
    assert_eq!(guest.flags.registers(), core::array::from_fn(|n| register(round, n)));
}

fn host_call_carries_every_register_and_back() -> Result<(), Skip> {
    let guest = with_tables(PROTECTED);
    for (round, (how, offset)) in
        [(Routine::Smc, 0), (Routine::Hvc, HOST_CALL_BYTES), (Routine::Smc, PAGE - HOST_CALL_BYTES)]
            .into_iter()
            .enumerate()
    {
        let (ipa, round) = (guest.scratch() + offset, round as u64);
        let before = load(&guest, guest.scratch() + PAGE);
        write(&guest, ipa, 0x7_1234 + round, round);
        call(&guest, how, ipa, 0x1234 + round, round);
        guest.flags.set_registers(&core::array::from_fn(|n| !register(round, n)));
        if round == 1 {
            // It is finished whether the guest runs or not; what the host stores behind that is for nobody.
            guest.try_enter(RunFlags::FINISH_ONLY, [9; 4]).expect("VCPU_RUN");
            guest.flags.set_registers(&[9; CALL_REGISTERS]);
        }
        let event = guest.resume(RunFlags::empty(), [9; 4]);
        assert!(matches!(event, Event::Done([SUCCESS, at, 7, 8, _]) if at == ipa), "{event:x?}");
        assert_holds(&guest, ipa, 0x7_1234 + round, |n| !register(round, n));
        assert_eq!(load(&guest, guest.scratch() + PAGE), before);
    }
    guest.put();
    Ok(())
}

fn host_call_that_is_not_answered_changes_nothing() -> Result<(), Skip> {
    let guest = with_tables(PROTECTED);
    let ipa = guest.scratch();
    write(&guest, ipa, 5, 0);
    call(&guest, Routine::Smc, ipa, 5, 0);
    guest.flags.set_registers(&[9; CALL_REGISTERS]);
    let event = guest.resume(RunFlags::ABORT, [9; 4]);
    assert!(matches!(event, Event::Done([ERROR_UNKNOWN, ..])), "{event:x?}");
    assert_holds(&guest, ipa, 5, |n| register(0, n));
    guest.put();
    Ok(())
}

fn host_call_is_checked() -> Result<(), Skip> {
    let guest = with_tables(PROTECTED);
    let ipa = guest.scratch();
    let top = 1 << 39;
    for at in [ipa + 8, ipa + 0x80, ipa | top, top, 1 << 47, NOWHERE, !0xff] {
        let x = guest.answered(Routine::Smc, RsiFunction::HostCall.id(), [at, 7, 8]);
        assert_eq!(x, [ERROR_INPUT, at, 7, 8], "{at:#x}");
    }
    // RAM that has not come yet.
    let set = RsiFunction::IpaStateSet.id();
    let x = guest.answered(Routine::Smc, set, [NOWHERE, NOWHERE + PAGE, Ripas::Ram as u64]);
    assert_eq!(x[..3], [SUCCESS, NOWHERE + PAGE, ACCEPT]);
    let at = NOWHERE + HOST_CALL_BYTES;
    let event = guest.smccc(Routine::Hvc, RsiFunction::HostCall.id(), [at, 7, 8]);
    assert_eq!(event.exit(Reason::Fault).data, [NOWHERE, 0, 0, 0, 0, 0]);
    Hvc.vm_map(guest.machine.vm, ledger::take(1), NOWHERE).expect("VM_MAP");
    let exit = guest.resume(RunFlags::empty(), [9; 4]).exit(Reason::HostCall);
    assert_eq!(exit.data, [0; 6]);
    assert_eq!(guest.flags.registers(), [0; CALL_REGISTERS], "it arrived empty");
    assert!(matches!(guest.resume(RunFlags::empty(), [9; 4]), Event::Done([SUCCESS, ..])));
    guest.put();
    Ok(())
}

/// Another vCPU shares the page while the host has the call: its answer goes nowhere.
fn host_call_writes_private_memory_alone() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    Hvc.vm_topup(machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    a.load();
    a.start();
    let ipa = a.scratch();
    write(&a, ipa, 5, 0);
    call(&a, Routine::Smc, ipa, 5, 0);
    a.put();
    b.load();
    b.start();
    let set = [ipa, ipa + PAGE, Ripas::Empty as u64];
    let x = b.answered(Routine::Smc, RsiFunction::IpaStateSet.id(), set);
    assert_eq!(x[..3], [SUCCESS, ipa + PAGE, ACCEPT]);
    b.put();
    a.flags.set_registers(&[9; CALL_REGISTERS]);
    a.load();
    let event = a.resume(RunFlags::empty(), [9; 4]);
    assert!(matches!(event, Event::Done([SUCCESS, ..])), "{event:x?}");
    for offset in (0..HOST_CALL_BYTES).step_by(8) {
        assert_eq!(probe_read(a.physical(ipa) + offset), Ok(0));
    }
    a.put();
    Ok(())
}

fn attestation_is_not_there() -> Result<(), Skip> {
    let guest = with_tables(PROTECTED);
    let ipa = guest.scratch();
    let init = guest.answered(Routine::Smc, RsiFunction::AttestationTokenInit.id(), [5, 6, 7]);
    assert_eq!(init, [ERROR_UNKNOWN, 5, 6, 7]);
    for (args, error) in [
        ([ipa, 0, PAGE], ERROR_STATE),
        ([ipa, PAGE - 8, 8], ERROR_STATE),
        ([ipa + 8, 0, 8], ERROR_INPUT),
        ([ipa, PAGE, 0], ERROR_INPUT),
        ([ipa, 8, PAGE - 7], ERROR_INPUT),
        ([ipa, 8, u64::MAX], ERROR_INPUT),
        ([1 << 47, 0, 8], ERROR_INPUT),
    ] {
        let [x0, rest @ ..] =
            guest.answered(Routine::Smc, RsiFunction::AttestationTokenContinue.id(), args);
        assert_eq!((x0, rest), (error, args));
    }
    guest.put();
    Ok(())
}
