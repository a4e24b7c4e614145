//! What goes into list registers, and what comes of it.

use super::*;

const DONE: State = State::Done;
const PENDING: State = State::Pending;
const ACTIVE: State = State::Active;

#[test]
fn a_level_is_pending_again_while_its_line_is_up() {
    let (vgic, told) = four();
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    let (listed, underflow, entries) = flush(&vgic, 0, 4);
    assert_eq!((&listed[..], underflow), (&[(32, PENDING)][..], false));
    assert!(entries[0].contains(Entry::EOI), "the line is asked at the end");
    vgic.sync(0, &entries, states(&[ACTIVE]), told).unwrap();
    assert!(!vgic.has_interrupt(0, Signalled::ALL), "active, and so not pending");
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, ACTIVE)], "not pending while it is active");
    vgic.sync(0, &entries, states(&[DONE]), told).unwrap();
    assert!(vgic.has_interrupt(0, Signalled::ALL));
    vgic.set_line(Line::Spi(32), false, told).unwrap();
    assert!(!vgic.has_interrupt(0, Signalled::ALL));
    assert_eq!(peek(&vgic, 0, 4), []);
}

#[test]
fn an_edge_is_taken_once_and_again_if_it_comes_again() {
    let (vgic, told) = four();
    edge(&vgic, 32);
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, PENDING)]);
    assert!(!entries[0].contains(Entry::EOI));
    told.kicked();
    // While it is in the list register: whether it was acknowledged nobody knows yet.
    vgic.pulse(Line::Spi(32), told).unwrap();
    assert_eq!(told.kicked(), [], "the line is up already");
    vgic.pulse(Line::Spi(32), told).unwrap();
    assert_eq!(told.kicked(), [0]);
    vgic.sync(0, &entries, states(&[ACTIVE]), told).unwrap();
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, State::PendingActive)]);
    // Ended and acknowledged again.
    vgic.sync(0, &entries, states(&[ACTIVE]), told).unwrap();
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, ACTIVE)]);
    vgic.sync(0, &entries, states(&[DONE]), told).unwrap();
    assert_eq!(peek(&vgic, 0, 4), []);
}

#[test]
fn an_edge_that_was_not_acknowledged_is_one_edge_with_the_next() {
    let (vgic, told) = four();
    edge(&vgic, 32);
    vgic.pulse(Line::Spi(32), told).unwrap();
    let (_, _, entries) = flush(&vgic, 0, 4);
    vgic.pulse(Line::Spi(32), told).unwrap();
    vgic.cancel(0, &entries, told).unwrap();
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, PENDING)]);
    vgic.sync(0, &entries, states(&[DONE]), told).unwrap();
    assert_eq!(peek(&vgic, 0, 4), []);
}

#[test]
fn what_is_taken_back_in_the_list_register_is_gone() {
    let (vgic, told) = four();
    for (intid, register) in [(32, 0x284), (33, 0x184)] {
        edge(&vgic, intid);
        vgic.pulse(Line::Spi(intid), told).unwrap();
        let (_, _, entries) = flush(&vgic, 0, 4);
        told.kicked();
        vgic.write_distributor(register, Width::Word, 1 << (intid - 32), told);
        assert_eq!(told.kicked(), [0], "{register:#x}");
        vgic.sync(0, &entries, states(&[PENDING]), told).unwrap();
        assert_eq!(peek(&vgic, 0, 4), [], "{register:#x}");
    }
    // Disabled, it is still pending.
    assert_eq!(vgic.read_distributor(0x204, Width::Word), 2);
    vgic.write_distributor(0x104, Width::Word, 2, told);
    assert_eq!(told.kicked(), [0]);
    assert_eq!(peek(&vgic, 0, 4), [(33, PENDING)]);
}

#[test]
fn icpendr_leaves_the_line() {
    let (vgic, told) = four();
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    vgic.write_distributor(0x204, Width::Word, 1, told);
    vgic.write_distributor(0x284, Width::Word, 1, told);
    assert_eq!(vgic.read_distributor(0x204, Width::Word), 1, "the line is up");
    vgic.set_line(Line::Spi(32), false, told).unwrap();
    assert_eq!(vgic.read_distributor(0x204, Width::Word), 0, "and the latch is clear");
}

#[test]
fn active_ones_first_then_by_priority() {
    let (vgic, told) = four();
    // 32 to 35: 0xc0, 0x40, 0x80, 0x80.
    vgic.write_distributor(0x420, Width::Word, 0x8080_40c0, told);
    vgic.write_distributor(0x304, Width::Word, 1, told);
    for intid in 33..36 {
        vgic.set_line(Line::Spi(intid), true, told).unwrap();
    }
    let expected = [(32, ACTIVE), (33, PENDING), (34, PENDING), (35, PENDING)];
    for lrs in [4, 3, 2, 1] {
        let (listed, underflow, entries) = flush(&vgic, 0, lrs);
        assert_eq!(listed, expected[..lrs]);
        assert_eq!(underflow, lrs == 2 || lrs == 3, "{lrs}");
        assert!(entries[0].contains(Entry::EOI));
        vgic.cancel(0, &entries, told).unwrap();
    }
    assert_eq!(peek(&vgic, 0, 0), [], "no list registers");
}

#[test]
fn what_preempts_all_that_is_active_has_a_list_register() {
    let (vgic, told) = four();
    vgic.write_distributor(0x304, Width::Word, 0b11, told);
    vgic.set_line(Line::Spi(34), true, told).unwrap();
    // 34, 33, 32.
    for (priorities, two) in [
        (0x20_40_80, [(33, ACTIVE), (34, PENDING)]),
        (0x40_40_80, [(33, ACTIVE), (32, ACTIVE)]),
        (0x60_40_80, [(33, ACTIVE), (32, ACTIVE)]),
    ] {
        vgic.write_distributor(0x420, Width::Word, priorities, told);
        assert_eq!(peek(&vgic, 0, 1), two[..1], "{priorities:#x}: the only one");
        assert_eq!(peek(&vgic, 0, 2), two, "{priorities:#x}");
    }
    // Both are ended, and the one that no list register has.
    vgic.write_distributor(0x420, Width::Word, 0x20_40_80, told);
    let (_, _, entries) = flush(&vgic, 0, 2);
    vgic.set_line(Line::Spi(34), false, told).unwrap();
    vgic.sync(0, &entries, states(&[DONE, DONE]).with_eoi_count(1), told).unwrap();
    assert_eq!(peek(&vgic, 0, 4), []);
}

#[test]
fn what_is_pending_again_waits_with_the_others() {
    let (vgic, told) = four();
    edge(&vgic, 32);
    edge(&vgic, 33);
    vgic.write_distributor(0x304, Width::Word, 1, told);
    vgic.write_distributor(0x204, Width::Word, 0b11, told);
    assert_eq!(peek(&vgic, 0, 2), [(32, State::PendingActive), (33, PENDING)]);
    vgic.write_distributor(0x420, Width::Word, 0x40_80, told);
    // Ended, it would be taken again before 33, which is more urgent and not there.
    let (listed, _, entries) = flush(&vgic, 0, 1);
    assert_eq!(listed, [(32, ACTIVE)]);
    vgic.sync(0, &entries, states(&[DONE]), told).unwrap();
    assert_eq!(peek(&vgic, 0, 1), [(33, PENDING)]);
    assert_eq!(peek(&vgic, 0, 2), [(33, PENDING), (32, PENDING)]);
}

#[test]
fn the_guest_is_left_in_time_for_what_waits() {
    let (vgic, told) = four();
    for intid in 32..36 {
        edge(&vgic, intid);
    }
    // 32 to 35: 0x60, 0x80, 0x20, 0x40.
    vgic.write_distributor(0x420, Width::Word, 0x40_20_80_60, told);
    vgic.write_distributor(0x304, Width::Word, 0b0011, told);
    vgic.write_distributor(0x204, Width::Word, 0b1100, told);
    let eoi = |lrs| {
        let (listed, underflow, entries) = flush(&vgic, 0, lrs);
        vgic.cancel(0, &entries, &mut Told::default()).unwrap();
        let intids: Vec<_> = listed.iter().map(|&(intid, _)| intid).collect();
        let eoi: Vec<_> = entries.iter().map(|entry| entry.contains(Entry::EOI)).collect();
        (intids, eoi, underflow)
    };
    assert_eq!(eoi(4), (vec![32, 33, 34, 35], vec![false; 4], false));
    // 35 preempts both that are active, of which neither has ended when 34 has.
    assert_eq!(eoi(3), (vec![32, 33, 34], vec![false, false, true], true));
    // All active, and nothing preempts the first.
    vgic.write_distributor(0x420, Width::Word, 0x60_70_80_60, told);
    assert_eq!(eoi(2), (vec![32, 33], vec![true, false], true));
}

#[test]
fn the_only_list_register_says_when_it_is_free() {
    let (vgic, told) = four();
    edge(&vgic, 32);
    vgic.pulse(Line::Spi(32), told).unwrap();
    let (_, _, entries) = flush(&vgic, 0, 1);
    assert!(!entries[0].contains(Entry::EOI), "nothing else waits");
    vgic.cancel(0, &entries, told).unwrap();
    vgic.set_line(Line::Spi(33), true, told).unwrap();
    let (listed, underflow, entries) = flush(&vgic, 0, 1);
    assert_eq!((&listed[..], underflow), (&[(32, PENDING)][..], false));
    assert!(entries[0].contains(Entry::EOI));
}

#[test]
fn ends_without_a_list_register_are_of_the_most_urgent() {
    let (vgic, told) = four();
    vgic.write_distributor(0x420, Width::Word, 0x20_40_60_80, told);
    vgic.write_distributor(0x304, Width::Word, 0xf, told);
    let (listed, underflow, entries) = flush(&vgic, 0, 2);
    assert_eq!((&listed[..], underflow), (&[(35, ACTIVE), (34, ACTIVE)][..], true));
    // It ends both, and one more.
    let states = states(&[DONE, DONE]).with_eoi_count(1);
    vgic.sync(0, &entries, states, told).unwrap();
    assert_eq!(vgic.read_distributor(0x304, Width::Word), 1, "32 is left");
    let (listed, _, entries) = flush(&vgic, 0, 2);
    assert_eq!(listed, [(32, ACTIVE)]);
    // More ends than there is to be ended.
    vgic.sync(0, &entries, States::default().with_eoi_count(31), told).unwrap();
    assert_eq!(vgic.read_distributor(0x304, Width::Word), 0);
}

#[test]
fn a_level_is_ended_by_what_the_list_register_had() {
    let (vgic, told) = four();
    for intid in [32, 33] {
        vgic.set_resample(Line::Spi(intid), true).unwrap();
    }
    edge(&vgic, 33);
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    vgic.set_line(Line::Spi(33), true, told).unwrap();
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, PENDING), (33, PENDING)]);
    // The other way round now.
    vgic.write_distributor(0xc08, Width::Word, 0b0010, told);
    vgic.sync(0, &entries, states(&[DONE, DONE]), told).unwrap();
    assert_eq!(told.resampled, [(0, 32)]);
    assert_eq!(vgic.read_lines(0, 32), Ok(0b10), "the line of the one that was a level is down");
}

#[test]
fn who_asked_learns_of_the_end_of_a_level() {
    let (vgic, told) = four();
    vgic.set_resample(Line::Spi(32), true).unwrap();
    vgic.set_resample(Line::Ppi { vcpu: 0, intid: 30 }, true).unwrap();
    for line in [Line::Spi(32), Line::Spi(33), Line::Ppi { vcpu: 0, intid: 30 }] {
        vgic.set_line(line, true, told).unwrap();
    }
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(30, PENDING), (32, PENDING), (33, PENDING)]);
    vgic.sync(0, &entries, states(&[DONE, ACTIVE, DONE]), told).unwrap();
    assert_eq!(told.resampled, [(0, 30)]);
    assert_eq!(vgic.read_lines(0, 0), Ok(0), "its line is down");
    // With one list register the others are ended without.
    let (listed, _, entries) = flush(&vgic, 0, 1);
    assert_eq!(listed, [(32, ACTIVE)]);
    vgic.write_distributor(0x304, Width::Word, 4, told);
    vgic.set_resample(Line::Spi(34), true).unwrap();
    vgic.set_line(Line::Spi(34), true, told).unwrap();
    told.resampled.clear();
    vgic.sync(0, &entries, states(&[DONE]).with_eoi_count(1), told).unwrap();
    assert_eq!(told.resampled, [(0, 34), (0, 32)]);
    assert_eq!(vgic.read_lines(0, 32), Ok(0b10), "33 was not asked for");
}

#[test]
fn an_active_spi_stays_with_who_has_it() {
    let (vgic, told) = four();
    edge(&vgic, 32);
    vgic.pulse(Line::Spi(32), told).unwrap();
    let (_, _, entries) = flush(&vgic, 0, 4);
    told.kicked();
    // Routed elsewhere meanwhile, and again pending: for the other one, when this one has ended it.
    vgic.write_distributor(0x6000 + 8 * 32, Width::Word, AFFINITIES[1].into(), told);
    assert_eq!(told.kicked(), [0]);
    vgic.sync(0, &entries, states(&[ACTIVE]), told).unwrap();
    vgic.pulse(Line::Spi(32), told).unwrap();
    told.kicked();
    assert_eq!(peek(&vgic, 1, 4), []);
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, ACTIVE)]);
    assert!(entries[0].contains(Entry::EOI), "its end is waited for");
    vgic.sync(0, &entries, states(&[DONE]), told).unwrap();
    assert_eq!(told.kicked(), [1]);
    assert_eq!(peek(&vgic, 1, 4), [(32, PENDING)]);
}

#[test]
fn an_active_state_that_is_written_outlives_the_list_register() {
    let (vgic, told) = four();
    vgic.write_distributor(0x304, Width::Word, 1, told);
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, ACTIVE)]);
    told.kicked();
    vgic.write_distributor(0x384, Width::Word, 1, told);
    assert_eq!(told.kicked(), [0]);
    vgic.sync(0, &entries, states(&[ACTIVE]), told).unwrap();
    assert_eq!(vgic.read_distributor(0x304, Width::Word), 0);
    assert_eq!(peek(&vgic, 0, 4), []);
}

#[test]
fn entries_that_were_never_offered_change_nothing() {
    let (vgic, told) = four();
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    let (_, _, entries) = flush(&vgic, 0, 4);
    // Another vCPU's, one that there is not, and one that is in no list register.
    let made = [32, 1000, 33].map(|intid| Entry::new(intid, 0, PENDING));
    vgic.sync(1, &made, states(&[ACTIVE, ACTIVE, ACTIVE]), told).unwrap();
    assert_eq!(vgic.read_distributor(0x304, Width::Word), 0);
    vgic.sync(0, &entries, states(&[ACTIVE]), told).unwrap();
    assert_eq!(vgic.read_distributor(0x304, Width::Word), 1);
}

#[test]
fn a_vcpu_is_flushed_once_before_it_is_synced() {
    let (vgic, told) = four();
    vgic.set_line(Line::Spi(32), true, told).unwrap();
    let (listed, _, entries) = flush(&vgic, 0, 4);
    assert_eq!(listed, [(32, PENDING)]);
    let mut again = [Entry::default(); 4];
    assert_eq!(vgic.flush(0, &mut again, told), Err(Refused::Busy));
    vgic.cancel(0, &entries, told).unwrap();
    assert_eq!(peek(&vgic, 0, 4), [(32, PENDING)], "nothing was lost by it");
}
