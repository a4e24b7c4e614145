use super::*;
use proptest::prelude::*;

const BANKS: &[(u64, u64)] =
    &[(0x4000_0000, 0x4001_0000), (0x4001_0000, 0x4002_0000), (0x8000_0000, 0x8000_4000)];

fn table(entries: &mut [State]) -> Pages<'_> {
    Pages::new(BANKS, entries)
}

#[test]
fn lookup_knows_ram_from_the_rest() {
    let mut entries = vec![State::Host; count(BANKS)];
    let pages = table(&mut entries);
    assert_eq!(count(BANKS), 36);
    assert_eq!(pages.lookup(0x4000_0001), Err(Error::Unaligned));
    assert_eq!(pages.lookup(0x3fff_f000), Err(Error::NotMemory));
    assert_eq!(pages.lookup(!0xfff), Err(Error::NotMemory));
    assert!(pages.lookup(0x8000_3000).is_ok());
    assert_eq!(pages.lookup(0x8000_4000), Err(Error::NotMemory));
    for (pa, n) in [
        (0x8000_0000, 5),
        (0x8000_0000, u64::MAX),
        (0x8000_3000, 2),
        (0x8000_0000, 0),
        (0x4000_f000, 0x4_0000),
    ] {
        assert_eq!(pages.lookup_range(pa, n), Err(Error::NotMemory), "{pa:#x} {n}");
    }
    assert_eq!(pages.lookup_range(0x8000_0000, 4).map(PageRange::count), Ok(4));
}

#[test]
fn pages_from_any_address_on() {
    let mut entries = vec![State::Host; count(BANKS)];
    let pages = table(&mut entries);
    let first = |pa| pages.next_from(pa).map(Page::pa);
    assert_eq!(first(0), Some(0x4000_0000));
    assert_eq!(first(0x4000_0001), Some(0x4000_1000));
    assert_eq!(first(0x4001_f001), Some(0x8000_0000));
    assert_eq!(first(0x8000_3000), Some(0x8000_3000));
    for pa in [0x8000_3001, 0x8000_4000, u64::MAX - 4095, u64::MAX - 1, u64::MAX] {
        assert_eq!(first(pa), None, "{pa:#x}");
    }
}

#[test]
fn a_refused_donation_changes_nothing() {
    let mut entries = vec![State::Host; count(BANKS)];
    let mut pages = table(&mut entries);
    let flag = pages.lookup(0x4000_2000).unwrap();
    pages.share_flag_page(flag).unwrap();
    let range = pages.lookup_range(0x4000_0000, 4).unwrap();
    assert_eq!(pages.donate_to_vm(range, 3), Err(Error::Shared));
    assert_eq!(pages.state(pages.lookup(0x4000_0000).unwrap()), State::Host);
    pages.unshare_flag_page(flag).unwrap();
    pages.donate_to_vm(range, 3).unwrap();
    assert_eq!(pages.donate_to_vm(range, 3), Err(Error::NotOwned));
    assert_eq!(pages.share_flag_page(flag), Err(Error::NotOwned));
    assert_eq!(pages.reclaim(flag.alone(), 2), Err(Error::NotOwned));
    assert_eq!(pages.reclaim(flag.alone(), 3), Ok((State::Vm(3), flag.alone())));
    assert_eq!(pages.reclaim(flag.alone(), 3), Err(Error::NotOwned));
}

#[test]
fn a_range_comes_back_as_far_as_it_is_alike() {
    let mut entries = vec![State::Host; count(BANKS)];
    let mut pages = table(&mut entries);
    let range = |pages: &Pages<'_>, n: u64, count| {
        pages.lookup_range(0x4000_0000 + n * 4096, count).unwrap()
    };
    let (all, half) = (range(&pages, 0, 8), range(&pages, 4, 4));
    pages.give_to_guest(all, 1, true).unwrap();
    assert_eq!(pages.reclaim(half, 1), Ok((State::Guest(1), half)));
    assert_eq!(pages.give_to_guest(all, 1, true), Err(Error::NotOwned));
    assert_eq!(pages.state(half.first()), State::Host, "nothing has changed");
    pages.give_to_guest(half, 1, false).unwrap();
    assert_eq!(pages.unshare_with_guest(all, 1), Err(Error::NotOwned), "a part is no share");
    assert_eq!(pages.state(half.first()), State::SharedWithGuest(1), "nothing has changed");
    assert_eq!(pages.reclaim(all, 1), Ok((State::Guest(1), all.split_at(4).0)));
    assert_eq!(pages.unshare_with_guest(half, 2), Err(Error::NotOwned));
    assert_eq!(pages.unshare_with_guest(half, 1), Ok(()));
}

#[test]
fn ranges_are_cut_where_blocks_end() {
    let mut entries = vec![State::Host; count(BANKS)];
    let pages = table(&mut entries);
    let range = pages.lookup_range(0x4000_3000, 12).unwrap();
    let pieces: Vec<_> = range.cut_at(0x4000).map(|it| (it.start(), it.count())).collect();
    let expected = [(0x4000_3000, 1), (0x4000_4000, 4), (0x4000_8000, 4), (0x4000_c000, 3)];
    assert_eq!(pieces, expected);
    let again = range.cut_at(0x4000).reduce(PageRange::and);
    assert_eq!(again, Some(range));
}

#[test]
fn a_block_is_whole_when_all_of_it_is_the_hosts_to_keep() {
    const BLOCK: u64 = 0x4000;
    let mut entries = vec![State::Host; count(BANKS)];
    let mut pages = table(&mut entries);
    let page = |pages: &Pages<'_>, pa| pages.lookup(pa).unwrap();
    let first = page(&pages, 0x4000_4000);
    for pa in (0x4000_4000..0x4000_8000).step_by(4096) {
        let whole = pages.lookup_range(0x4000_4000, 4).ok();
        assert_eq!(pages.whole_host_block(page(&pages, pa), BLOCK), whole, "{pa:#x}");
        let one = page(&pages, pa).alone();
        // A guest's; shared by it; back.
        pages.give_to_guest(one, 1, true).unwrap();
        assert_eq!(pages.whole_host_block(first, BLOCK), None, "{pa:#x} is a guest's");
        pages.share_by_guest(one.first(), 1).unwrap();
        assert_eq!(pages.whole_host_block(first, BLOCK), None, "{pa:#x} is shared");
        pages.reclaim(one, 1).unwrap();
        // A normal guest's is the host's, too.
        pages.give_to_guest(one, 1, false).unwrap();
        assert_eq!(pages.whole_host_block(first, BLOCK), whole, "{pa:#x}");
    }
    // No bank has all of a larger one.
    assert_eq!(pages.whole_host_block(page(&pages, 0x8000_1000), 2 * BLOCK), None);
    assert_eq!(pages.whole_host_block(page(&pages, 0x4000_f000), 8 * BLOCK), None);
}

#[test]
fn reserved_memory_is_nobodys_to_give() {
    let mut entries = vec![State::Host; count(BANKS)];
    let mut pages = table(&mut entries);
    // Half pages count as whole ones; what lies outside RAM is passed over.
    pages.reserve(0x4000_1800, 0x4000_2001);
    pages.reserve(0x1000, 0x3000);
    for (pa, free) in
        [(0x4000_0000, true), (0x4000_1000, false), (0x4000_2000, false), (0x4000_3000, true)]
    {
        let range = pages.lookup_range(pa, 1).unwrap();
        let refused = if free { Ok(()) } else { Err(Error::NotMemory) };
        assert_eq!(pages.check_donation(range), refused);
        assert!(pages.state(range.first()).host_has_access());
    }
}

#[test]
fn what_is_pinned_is_the_hosts_for_good() {
    let mut entries = vec![State::Host; count(BANKS)];
    let mut pages = table(&mut entries);
    pages.reserve(0x4000_1000, 0x4000_2000);
    let range = pages.lookup_range(0x4000_0000, 4).unwrap();
    let last = pages.lookup(0x4000_3000).unwrap();
    pages.share_flag_page(last).unwrap();
    assert_eq!(pages.pin(range), Err(Error::Shared));
    assert_eq!(pages.state(range.first()), State::Host, "nothing has changed");
    pages.unshare_flag_page(last).unwrap();
    assert_eq!(pages.pin(range), Ok(()));
    assert_eq!(pages.pin(range), Ok(()), "again");
    for page in range.pages() {
        assert_eq!(pages.state(page), State::Reserved);
        assert_eq!(pages.share_flag_page(page), Err(Error::NotMemory));
        assert_eq!(pages.give_to_guest(page.alone(), 1, true), Err(Error::NotMemory));
    }
    pages.take_for_hyp(0x4001_0000, 1).unwrap();
    let hyp = pages.lookup_range(0x4001_0000, 2).unwrap();
    assert_eq!(pages.pin(hyp), Err(Error::NotOwned));
}

#[test]
fn a_flag_page_in_use_stays() {
    let mut entries = vec![State::Host; count(BANKS)];
    let mut pages = table(&mut entries);
    let page = pages.lookup(0x4000_2000).unwrap();
    assert_eq!(pages.pin_flag_page(page), Err(Error::NotShared));
    assert_eq!(pages.unshare_flag_page(page), Err(Error::NotShared));
    pages.share_flag_page(page).unwrap();
    assert_eq!(pages.share_flag_page(page), Err(Error::Shared));
    pages.pin_flag_page(page).unwrap();
    assert_eq!(pages.pin_flag_page(page), Err(Error::Busy));
    assert_eq!(pages.unshare_flag_page(page), Err(Error::Busy));
    pages.unpin_flag_page(page);
    assert_eq!(pages.unshare_flag_page(page), Ok(()));
}

proptest! {
    /// Whatever calls come, a page is never both reachable for the host and somebody else's secret,
    /// and hyp's pages stay hyp's.
    #[test]
    fn ownership_is_exclusive(calls in prop::collection::vec((0u8..7, 0u64..36, 0u8..3), 0..200)) {
        let mut entries = vec![State::Host; count(BANKS)];
        let mut pages = table(&mut entries);
        pages.take_for_hyp(0x4000_0000, 4).unwrap();
        let address = |n: u64| if n < 32 { 0x4000_0000 + n * 4096 } else { 0x8000_0000 + (n - 32) * 4096 };
        for (call, n, vm) in calls {
            let page = pages.lookup(address(n)).unwrap();
            let before = pages.state(page);
            let done = match call {
                0 => pages.share_flag_page(page),
                1 => pages.unshare_flag_page(page),
                2 => pages.pin_flag_page(page),
                3 => pages.lookup_range(page.pa(), 1).and_then(|r| pages.donate_to_vm(r, vm)),
                4 => pages.give_to_guest(page.alone(), vm, true),
                5 => pages.give_to_guest(page.alone(), vm, false),
                _ => pages.reclaim(page.alone(), vm).map(|_| ()),
            };
            let after = pages.state(page);
            if done.is_err() {
                prop_assert_eq!(before, after);
            } else {
                prop_assert_ne!(before, State::Hyp);
                // Only the owner of a VM's page changes by reclaim; others start from the host.
                prop_assert!(before.host_has_access() || (call == 6 && after == State::Host));
            }
        }
        for n in 0..4 {
            prop_assert_eq!(pages.state(pages.lookup(address(n)).unwrap()), State::Hyp);
        }
    }
}
