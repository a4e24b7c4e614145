//! Interrupts through all list registers.

use crate::{
    context::context,
    instruction::{self as insn, sysreg},
    interrupted::{Interrupted, run_with},
    puppet::{Event, Machine},
    runner::Skip,
    tests,
};
use arrayvec::ArrayVec;
use umbra_host::{
    hypercall::{Hvc, Hypervisor, Version},
    kernel::smp,
};
use umbra_shared::{
    error::Error,
    exit::{Reason, RunFlags},
    interrupt::{Entry, Interface, MAX_ENTRIES, State},
};

tests![
    the_interface_is_told,
    every_list_register_holds_an_interrupt,
    the_most_urgent_comes_first,
    what_became_of_each_is_told,
    an_edge_ends_without_an_exit_and_a_level_with_one,
    underflow_stops_the_guest_when_one_is_left,
    ends_that_no_entry_had_are_counted,
    interrupts_of_both_groups,
    what_is_not_offered_again_is_gone,
    attack_what_no_list_register_may_hold,
];

/// This CPU's.
fn interface() -> Interface {
    Hvc.vl_info(Some(context().at_hyp(smp::cpu()))).expect("VL_INFO").interface
}

/// The finest priority that all CPUs have a bit for, and so the least number between two.
const STEP: u8 = 8;

fn pending(intid: u16, priority: u8) -> Entry {
    Entry::new(intid, priority, State::Pending)
}

fn the_interface_is_told() -> Result<(), Skip> {
    let mut all: Option<Interface> = None;
    for cpu in 0..context().cpus {
        let info = Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
        if info.online {
            let this = info.interface;
            // A GICv3 has 32 priorities or more for guests (IHI 0069, 4.8), and list registers at all.
            assert!((1..=MAX_ENTRIES).contains(&this.registers.into()), "CPU {cpu}: {this:?}");
            assert_eq!(this.priorities & 0xf8, 0xf8, "CPU {cpu}: {this:?}");
            all = Some(all.map_or(this, |all| all.common(this)));
        }
    }
    assert_eq!(Some(Hvc.vl_info(None).expect("VL_INFO").interface), all);
    let Version { interface, .. } = context().version;
    assert_eq!(interface, umbra_shared::call::INTERFACE_VERSION);
    Ok(())
}

fn every_list_register_holds_an_interrupt() -> Result<(), Skip> {
    let guest = Interrupted::new();
    let count = u16::from(interface().registers);
    for round in 0..3 {
        for n in 0..count {
            guest.offer(pending(100 * round + n, STEP * n as u8));
        }
        for n in 0..count {
            let intid = u64::from(100 * round + n);
            assert_eq!(guest.read(sysreg::ICC_IAR1), intid, "acknowledged");
            guest.write(sysreg::ICC_EOIR1, intid);
            assert_eq!(guest.left().len(), usize::from(count - n) - 1);
        }
        assert_eq!(guest.read(sysreg::ICC_IAR1), 1023, "nothing more");
    }
    Ok(())
}

fn the_most_urgent_comes_first() -> Result<(), Skip> {
    let guest = Interrupted::new();
    let count = interface().registers.min(8);
    // In no order.
    for n in 0..count {
        let priority = (n * 5 % count) * STEP;
        guest.offer(pending(40 + u16::from(priority), priority));
    }
    for n in 0..count {
        let priority = n * STEP;
        assert_eq!(guest.read(sysreg::ICC_RPR), 0xff, "none is active");
        assert_eq!(guest.read(sysreg::ICC_IAR1), 40 + u64::from(priority));
        assert_eq!(guest.read(sysreg::ICC_RPR), priority.into());
        guest.write(sysreg::ICC_EOIR1, 40 + u64::from(priority));
    }
    // One that the guest's mask keeps out waits.
    guest.write(sysreg::ICC_PMR, 0x40);
    guest.offer(pending(50, 0x40));
    assert_eq!(guest.read(sysreg::ICC_IAR1), 1023);
    guest.write(sysreg::ICC_PMR, 0x48);
    assert_eq!(guest.read(sysreg::ICC_IAR1), 50);
    guest.write(sysreg::ICC_EOIR1, 50);
    Ok(())
}

fn what_became_of_each_is_told() -> Result<(), Skip> {
    let guest = Interrupted::new();
    if interface().registers < 2 {
        return Err(Skip("one list register"));
    }
    let left = |expected: &[(u16, State)]| assert_eq!(guest.left()[..], *expected);
    guest.offer(pending(60, 0x20));
    guest.offer(pending(61, 0x40));
    guest.exec(insn::NOP, 0);
    left(&[(60, State::Pending), (61, State::Pending)]);
    assert_eq!(guest.read(sysreg::ICC_IAR1), 60);
    left(&[(60, State::Active), (61, State::Pending)]);
    // Pending again while it is active.
    guest.withdraw();
    guest.offer(pending(61, 0x40));
    guest.offer(Entry::new(60, 0x20, State::PendingActive));
    guest.exec(insn::NOP, 0);
    left(&[(61, State::Pending), (60, State::PendingActive)]);
    guest.write(sysreg::ICC_EOIR1, 60);
    left(&[(61, State::Pending), (60, State::Pending)]);
    assert_eq!(guest.read(sysreg::ICC_IAR1), 60);
    guest.write(sysreg::ICC_EOIR1, 60);
    left(&[(61, State::Pending)]);
    // With EOImode the end has two steps, and it is active until the second.
    guest.write(sysreg::ICC_CTLR, 2);
    assert_eq!(guest.read(sysreg::ICC_IAR1), 61);
    guest.write(sysreg::ICC_EOIR1, 61);
    left(&[(61, State::Active)]);
    assert_eq!(guest.read(sysreg::ICC_RPR), 0xff, "the priority is dropped");
    guest.write(sysreg::ICC_DIR, 61);
    left(&[]);
    assert_eq!(guest.eois(), 0);
    Ok(())
}

fn an_edge_ends_without_an_exit_and_a_level_with_one() -> Result<(), Skip> {
    let guest = Interrupted::new();
    for (flags, stops) in [(Entry::empty(), false), (Entry::EOI, true)] {
        for n in 0..4 {
            guest.offer(pending(70 + n, 0xa0) | flags);
            assert_eq!(guest.read(sysreg::ICC_IAR1), u64::from(70 + n));
            guest.exec(insn::NOP, 0);
            guest.stops();
            guest.write(sysreg::ICC_EOIR1, u64::from(70 + n));
            assert_eq!(guest.stops() != 0, stops, "{flags:?}");
            assert!(guest.left().is_empty());
        }
    }
    Ok(())
}

fn underflow_stops_the_guest_when_one_is_left() -> Result<(), Skip> {
    let guest = Interrupted::new();
    let count = interface().registers;
    if count < 3 {
        return Err(Skip("fewer than three list registers"));
    }
    for wanted in [true, false] {
        guest.underflow(wanted);
        for n in 0..count {
            guest.offer(pending(80 + u16::from(n), STEP * n));
        }
        for n in 0..count {
            assert_eq!(guest.read(sysreg::ICC_IAR1), u64::from(80 + n));
            guest.stops();
            guest.write(sysreg::ICC_EOIR1, u64::from(80 + n));
            // Two of them are enough, and with one the host has nothing more to ask for.
            let last = n == count - 2;
            assert_eq!(guest.stops() != 0, wanted && last, "{n} of {count}");
        }
    }
    Ok(())
}

/// A host with more active interrupts than list registers offers some of them only.
fn ends_that_no_entry_had_are_counted() -> Result<(), Skip> {
    let guest = Interrupted::new();
    if interface().registers < 3 {
        return Err(Skip("fewer than three list registers"));
    }
    for (intid, priority) in [(90, 0x80), (91, 0x40)] {
        guest.offer(pending(intid, priority));
        assert_eq!(guest.read(sysreg::ICC_IAR1), u64::from(intid));
    }
    guest.withdraw();
    // Three others take their place.
    for n in 0..3 {
        guest.offer(pending(92 + n, 0xf0));
    }
    guest.exec(insn::NOP, 0);
    for wanted in [true, false] {
        guest.underflow(wanted);
        guest.stops();
        guest.write(sysreg::ICC_EOIR1, if wanted { 91 } else { 90 });
        assert_eq!(guest.eois(), 1);
        // Who has more to offer is told at once.
        assert_eq!(guest.stops() != 0, wanted);
    }
    guest.exec(insn::NOP, 0);
    assert_eq!(guest.eois(), 0, "each is told once");
    assert_eq!(guest.read(sysreg::ICC_RPR), 0xff, "all have ended");
    Ok(())
}

fn interrupts_of_both_groups() -> Result<(), Skip> {
    let guest = Interrupted::new();
    guest.write(sysreg::ICC_IGRPEN0, 1);
    guest.offer(pending(33, 0x40) - Entry::GROUP1);
    assert_eq!(guest.read(sysreg::ICC_IAR1), 1023, "it is none of group 1");
    assert_eq!(guest.read(sysreg::ICC_IAR0), 33);
    guest.write(sysreg::ICC_EOIR0, 33);
    guest.offer(pending(34, 0x40));
    assert_eq!(guest.read(sysreg::ICC_IAR0), 1023, "it is none of group 0");
    assert_eq!(guest.take(), 34);
    guest.write(sysreg::ICC_EOIR1, 34);
    assert!(guest.left().is_empty());
    Ok(())
}

/// What a run had is in no list register after it, for the same guest or another.
fn what_is_not_offered_again_is_gone() -> Result<(), Skip> {
    let guests = [Interrupted::new(), {
        Hvc.vcpu_put().expect("VCPU_PUT");
        Interrupted::new()
    }];
    let [first, second] = &guests;
    for (one, other) in [(second, first), (first, second), (second, second)] {
        for n in 0..interface().registers {
            one.offer(pending(200 + u16::from(n), 0xa0));
        }
        one.exec(insn::NOP, 0);
        assert_eq!(one.withdraw().len(), interface().registers.into());
        one.puppet().put();
        other.puppet().load();
        assert_eq!(other.read(sysreg::ICC_IAR1), 1023);
        other.puppet().exec(insn::UNMASK_IRQ, 0);
        assert_eq!(other.puppet().exec(insn::NOP, 7), 7);
        other.puppet().exec(insn::MASK_IRQ, 0);
    }
    Ok(())
}

/// Nothing runs, and nothing of it is there later, whatever else was right about it.
fn attack_what_no_list_register_may_hold() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    guest.write(sysreg::ICC_PMR, 0xf8);
    guest.write(sysreg::ICC_IGRPEN1, 1);
    guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
    let Interface { registers, priorities } = interface();
    let good = pending(40, 0xa0);
    let bits = |bits| Entry::from_bits_retain(bits);
    let refused = |flags, entries: &[Entry]| {
        let result = run_with(flags, [0; 4], entries);
        assert_eq!(result.err(), Some(Error::InvalidArgument), "{flags:?} {entries:x?}");
    };
    let none = RunFlags::empty();
    let mut bad: ArrayVec<Entry, 32> = (1020..1024).map(|intid| pending(intid, 0xa0)).collect();
    bad.push(Entry::new(41, 0xa0, State::Done));
    // Reserved bits of an entry; an upper half that is another's.
    bad.extend((10..16).chain(26..30).map(|n| bits((good.bits() + 1) | (1 << n))));
    bad.extend((0..8).filter(|n| priorities >> n & 1 == 0).map(|n| pending(41, 1 << n)));
    for entry in bad {
        refused(none, &[entry]);
        if registers > 1 {
            refused(none, &[good, entry]);
            refused(none, &[entry, good]);
        }
    }
    if registers > 1 {
        refused(none, &[good, good]);
        refused(none, &[good, Entry::new(40, 0, State::Active) | Entry::EOI]);
    }
    let all: ArrayVec<Entry, MAX_ENTRIES> = (0..16).map(|n| pending(n, 0)).collect();
    if usize::from(registers) < all.len() {
        refused(none, &all[..usize::from(registers) + 1]);
        refused(none, &all);
    }
    refused(RunFlags::UNDERFLOW, &[good]);
    // More than there are registers for, and UNDERFLOW with nothing.
    for x1 in [17 << 8, 31 << 8, RunFlags::UNDERFLOW.bits()] {
        let (x0, _) = Hvc::raw(
            umbra_shared::call::Function::VcpuRun.id(),
            [x1, 0, 0, 0, 0, good.bits(), good.bits()],
        );
        assert_eq!(x0, Error::InvalidArgument.code() as u64, "{x1:#x}");
    }
    // It is still where it was, and finds none.
    assert!(matches!(guest.resume(none, [0; 4]), Event::Done(_)));
    assert_eq!(guest.read(sysreg::ICC_IAR1), 1023);
    Ok(())
}
