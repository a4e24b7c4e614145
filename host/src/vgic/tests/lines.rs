//! Lines, SGIs, routes: who is told.

use super::*;

#[test]
fn a_line_kicks_whom_it_is_routed_to() {
    let (vgic, told) = four();
    vgic.write_distributor(0x6000 + 8 * 33, Width::Doubleword, 0x02_00_13, told);
    assert_eq!(told.kicked(), [], "nothing waits");
    vgic.set_line(Line::Spi(33), true, told).unwrap();
    assert_eq!(told.kicked(), [3]);
    assert!(vgic.has_interrupt(3, Signalled::ALL) && !vgic.has_interrupt(0, Signalled::ALL));
    vgic.set_line(Line::Ppi { vcpu: 2, intid: 27 }, true, told).unwrap();
    assert_eq!(told.kicked(), [2]);
    // Routed elsewhere, it goes there; where nobody is, nobody has it.
    vgic.write_distributor(0x6000 + 8 * 33, Width::Word, 0x00_01_00, told);
    assert_eq!(told.kicked(), [2]);
    assert!(!vgic.has_interrupt(3, Signalled::ALL));
    vgic.write_distributor(0x6000 + 8 * 33, Width::Word, 0x05, told);
    assert_eq!(told.kicked(), []);
    assert_eq!(vgic.read_distributor(0x6000 + 8 * 33, Width::Doubleword), 5);
    for v in 0..4 {
        assert!(!peek(&vgic, v, 4).contains(&(33, State::Pending)), "{v}");
    }
}

#[test]
fn what_has_no_line_is_refused() {
    let (vgic, told) = four();
    for line in [
        Line::Ppi { vcpu: 0, intid: 15 },
        Line::Ppi { vcpu: 0, intid: 32 },
        Line::Ppi { vcpu: 4, intid: 27 },
        Line::Spi(31),
        Line::Spi(64),
        Line::Spi(1023),
    ] {
        assert_eq!(vgic.set_line(line, true, told), Err(Refused::NoInterrupt), "{line:?}");
        assert_eq!(vgic.pulse(line, told), Err(Refused::NoInterrupt));
        assert_eq!(vgic.set_resample(line, true), Err(Refused::NoInterrupt));
    }
    assert_eq!(told.kicked(), []);
    assert_eq!(vgic.send_sgi(4, SgiRegister::Sgi1, 1 << 40, told), Err(Refused::NoVcpu));
    assert_eq!(vgic.set_power(4, false, told), Err(Refused::NoVcpu));
    let mut entries = [Entry::default(); 4];
    assert_eq!(vgic.flush(4, &mut entries, told), Err(Refused::NoVcpu));
    assert_eq!(vgic.sync(4, &[], States::default(), told), Err(Refused::NoVcpu));
    assert!(!vgic.has_interrupt(4, Signalled::ALL));
}

#[test]
fn an_sgi_to_all_is_not_its_senders() {
    let (vgic, told) = four();
    vgic.send_sgi(1, SgiRegister::Sgi1, 1 << 40 | 7 << 24, told).unwrap();
    assert_eq!(told.kicked(), [0, 2, 3]);
    for (v, expected) in [(0, 0x80), (1, 0), (2, 0x80), (3, 0x80)] {
        assert_eq!(vgic.read_redistributor(v, 0x1_0200, Width::Word), expected, "{v}");
    }
}

#[test]
fn an_sgi_reaches_the_affinities_it_names() {
    let (vgic, told) = four();
    for (value, whom) in [
        (0b11, &[0, 1][..]),
        (0b10, &[0]),
        (1 << 16 | 0b11, &[2]),
        (2 << 32 | 1 << 44 | 1 << 3, &[3]),
        (2 << 32 | 1 << 3, &[]),
        (1 << 44 | 0b11, &[]),
        (1 << 48 | 0b11, &[]),
        (0, &[]),
    ] {
        vgic.send_sgi(0, SgiRegister::Sgi1, value, told).unwrap();
        assert_eq!(told.kicked(), whom, "{value:#x}");
        for v in 0..4 {
            vgic.write_redistributor(v, 0x1_0280, Width::Word, 1, told);
        }
        told.kicked();
    }
}

#[test]
fn a_register_for_group_0_sends_nothing_of_group_1() {
    let (vgic, told) = four();
    vgic.write_redistributor(0, 0x1_0080, Width::Word, !1, told);
    for (register, to_0, to_1) in [
        (SgiRegister::Sgi0, true, false),
        (SgiRegister::Asgi1, true, false),
        (SgiRegister::Sgi1, true, true),
    ] {
        vgic.send_sgi(3, register, 0b10, told).unwrap();
        vgic.send_sgi(3, register, 1 << 24 | 0b10, told).unwrap();
        let pending = vgic.read_redistributor(0, 0x1_0200, Width::Word);
        assert_eq!(pending, u64::from(to_0) | u64::from(to_1) << 1, "{register:?}");
        vgic.write_redistributor(0, 0x1_0280, Width::Word, 3, told);
    }
}

#[test]
fn one_of_n_goes_to_who_takes_it() {
    let (vgic, told) = four();
    let has = |v| vgic.has_interrupt(v, Signalled::ALL);
    vgic.write_distributor(0x6000 + 8 * 32, Width::Word, 1 << 31, told);
    // Three are none of the N, each in its way.
    vgic.write_redistributor(0, 0, Width::Word, 1 << 25, told);
    vgic.write_redistributor(1, 0x14, Width::Word, 2, told);
    vgic.set_power(2, false, told).unwrap();
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    assert_eq!(told.kicked(), [3]);
    assert_eq!([0, 1, 2, 3].map(has), [false, false, false, true]);
    // The last one goes, and nobody has it until somebody comes back.
    vgic.set_power(3, false, told).unwrap();
    assert_eq!([0, 1, 2, 3].map(has), [false; 4]);
    told.kicked();
    vgic.write_redistributor(1, 0x14, Width::Word, 0, told);
    assert!(told.kicked().contains(&1) && has(1));
    // It goes on from one who ceases to be one of them.
    vgic.set_power(2, true, told).unwrap();
    told.kicked();
    vgic.write_redistributor(1, 0, Width::Word, 1 << 25, told);
    assert!(told.kicked().contains(&2) && has(2) && !has(1));
    // DPG0 is of group 0, and this is of group 1.
    vgic.write_redistributor(2, 0, Width::Word, 1 << 24, told);
    assert!(has(2));
    assert_eq!(peek(&vgic, 2, 1), [(32, State::Pending)]);
}

#[test]
fn a_redistributor_that_sleeps_wakes_its_vcpu_and_forwards_nothing() {
    let (vgic, told) = four();
    vgic.write_redistributor(0, 0x14, Width::Word, 2, told);
    assert_eq!(vgic.read_redistributor(0, 0x14, Width::Word), 6, "ChildrenAsleep at once");
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    assert!(vgic.has_interrupt(0, Signalled::ALL) && told.kicked() == [0]);
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, []);
    vgic.sync(0, &entries, States::default(), told).unwrap();
    vgic.write_redistributor(0, 0x14, Width::Word, 0, told);
    assert_eq!(told.kicked(), [0]);
    assert_eq!(peek(&vgic, 0, 4), [(32, State::Pending)]);
}

#[test]
fn a_group_that_is_disabled_waits_and_kicks_when_it_is_enabled() {
    let (vgic, told) = four();
    vgic.write_distributor(0, Width::Word, 1, told);
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    assert!(!vgic.has_interrupt(0, Signalled::ALL));
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, []);
    vgic.sync(0, &entries, States::default(), told).unwrap();
    told.kicked();
    vgic.write_distributor(0, Width::Word, 3, told);
    assert_eq!(told.kicked(), [0]);
    // Of group 0 it is in its entry.
    vgic.write_distributor(0x84, Width::Word, 0, told);
    let (_, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(entries[0].intid(), 32);
    assert!(!entries[0].contains(Entry::GROUP1));
}
