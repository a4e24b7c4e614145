//! Blocks: made, cut, joined, and what TLBs are told meanwhile.

use super::sim::ipa;
use super::*;
use umbra_shared::error::Error;

const BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;

impl Story {
    fn protected() -> Self {
        let mut story = Self::new();
        story.must(0, Ask::Create { page: 1, protected: true });
        story
    }

    fn normal() -> Self {
        let mut story = Self::new();
        story.must(0, Ask::Create { page: 1, protected: false });
        story
    }

    /// What translates a guest's page, and one of the host's.
    fn leaf(&self, vmid: u8, at: u64) -> Option<Leaf> {
        self.sim.world.borrow().walk(vmid, at)
    }

    /// Broadcast TLBIs of something; each is done twice where stores outlive one, as here.
    fn broadcasts<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> (R, usize) {
        let before = self.sim.world.borrow().broadcasts;
        let result = f(self);
        let now = self.sim.world.borrow().broadcasts;
        assert_eq!((now - before) % 2, 0);
        (result, (now - before) / 2)
    }

    fn spare(&self) -> i64 {
        self.sim.tables.get()[0] + self.sim.world.borrow().spare(1)
    }
}

fn block(at: u64, from: u64) -> Option<Leaf> {
    Some(Leaf { ipa: at, bytes: BLOCK_BYTES, pa: from })
}

#[test]
fn a_block_is_one_entry_on_both_sides() {
    let mut story = Story::protected();
    let map = Ask::Map { page: 2 * BLOCK, at: 0, count: BLOCK };
    // Stage 2 of the host, then its stage 1: once for all of it.
    assert_eq!(story.broadcasts(|story| story.must(0, map)), (BLOCK, 2));
    assert_eq!(story.leaf(1, ipa(3)), block(ipa(0), pa(2 * BLOCK)));
    assert_eq!(story.leaf(HOST, pa(2 * BLOCK)), None);
    // What is beside it the host has as it was.
    assert_eq!(story.leaf(HOST, pa(3 * BLOCK)), block(pa(3 * BLOCK), pa(3 * BLOCK)));
    story.must(0, Ask::Destroy);
    let back = Ask::Reclaim { page: 2 * BLOCK, count: BLOCK };
    // Nobody has anything of it.
    assert_eq!(story.broadcasts(|story| story.must(0, back)), (BLOCK, 0));
    assert_eq!(story.leaf(HOST, pa(2 * BLOCK)), block(pa(2 * BLOCK), pa(2 * BLOCK)));
}

/// Where one of the addresses is none of a block's, or a page is missing, there are pages.
#[test]
fn what_is_no_block_is_pages() {
    for (page, at, count) in
        [(2 * BLOCK + 1, 0, BLOCK), (2 * BLOCK, 0, BLOCK - 1), (2 * BLOCK, 1, BLOCK - 1)]
    {
        let mut story = Story::protected();
        story.must(0, Ask::Map { page, at, count });
        let leaf = Leaf { ipa: ipa(at), bytes: PAGE_BYTES, pa: pa(page) };
        assert_eq!(story.leaf(1, ipa(at)), Some(leaf), "{page} {at} {count}");
    }
}

/// Pages of two blocks of the host's: everything of its VMID goes, once.
#[test]
fn many_pages_are_one_broadcast() {
    let mut story = Story::protected();
    for page in [2 * BLOCK, 3 * BLOCK] {
        // Both are pages already.
        story.must(0, Ask::Map { page, at: 2 * BLOCK + page / BLOCK, count: 1 });
    }
    let map = Ask::Map { page: 2 * BLOCK + 4, at: 0, count: 4 };
    assert_eq!(story.broadcasts(|story| story.must(0, map)), (4, 5), "named, and stage 1");
    let more = Ask::Map { page: 3 * BLOCK + 1, at: BLOCK, count: 5 };
    assert_eq!(story.broadcasts(|story| story.must(0, more)), (5, 1), "everything");
    // Three pages and a block that is cut are four entries, however many pages the block has.
    let mut story = Story::protected();
    story.must(0, Ask::Map { page: 2 * BLOCK, at: 9, count: 1 });
    let map = Ask::Map { page: 3 * BLOCK - 3, at: 0, count: BLOCK };
    assert_eq!(story.broadcasts(|story| story.must(0, map)), (BLOCK, 5));
}

#[test]
fn the_rest_of_a_guests_block_stays() {
    for (at, count) in [(0, 1), (3, 2), (BLOCK - 1, 1), (0, BLOCK - 1), (1, BLOCK - 1)] {
        let mut story = Story::normal();
        story.must(0, Ask::Map { page: 2 * BLOCK, at: 0, count: BLOCK });
        let tables = story.spare();
        let unmap = Ask::Unmap { at, count };
        // One entry: stage 2, stage 1. `call` has seen to it that the guest was told to ask again.
        assert_eq!(story.broadcasts(|story| story.must(0, unmap)), (count, 2), "{at} {count}");
        for n in 0..BLOCK {
            let page = Leaf { ipa: ipa(n), bytes: PAGE_BYTES, pa: pa(2 * BLOCK + n) };
            let expected = (!(at..at + count).contains(&n)).then_some(page);
            assert_eq!(story.leaf(1, ipa(n)), expected, "{at} {count}: {n}");
        }
        assert_eq!(story.spare(), tables - 1, "it takes a table");
    }
    // All of it leaves nothing, and takes no table.
    let mut story = Story::normal();
    story.must(0, Ask::Map { page: 2 * BLOCK, at: 0, count: BLOCK });
    let tables = story.spare();
    story.must(0, Ask::Unmap { at: 0, count: BLOCK });
    assert_eq!((story.leaf(1, ipa(0)), story.spare()), (None, tables));
}

#[test]
fn a_cut_without_a_table_changes_nothing() {
    let mut story = Story::normal();
    for at in 0..3 {
        story.must(0, Ask::Map { page: (2 + at) * BLOCK, at: at * BLOCK, count: BLOCK });
    }
    let mut tables = story.sim.tables.get();
    tables[0] -= story.spare();
    story.sim.tables.set(tables);
    let (refused, broadcasts) =
        story.broadcasts(|story| story.ask(0, Ask::Unmap { at: 1, count: 2 }));
    assert_eq!((refused, broadcasts), (Err(Error::NoTables), 0));
    assert_eq!(story.leaf(1, ipa(1)), block(ipa(0), pa(2 * BLOCK)));
    // A guest of its own accord: the host is to bring a table.
    assert_eq!(story.ask(0, Ask::Relinquish { at: 1, alias: false }), Err(Error::NoTables));
    assert_eq!(story.must(0, Ask::Unmap { at: 0, count: BLOCK }), BLOCK);
    story.must(0, Ask::Topup { page: 0 });
    assert_eq!(story.must(0, Ask::Unmap { at: BLOCK + 1, count: 2 }), 2);
}

/// A table that is empty is in a block's place: it goes first, and is the VM's again when no walk uses it.
#[test]
fn a_block_takes_the_place_of_an_empty_table() {
    let mut story = Story::normal();
    let tables = story.spare();
    story.must(0, Ask::Map { page: 2 * BLOCK + 1, at: 1, count: 2 });
    story.must(0, Ask::Unmap { at: 1, count: 2 });
    assert_eq!(story.spare(), tables - 1, "it stays");
    let map = Ask::Map { page: 2 * BLOCK, at: 0, count: BLOCK };
    assert_eq!(story.broadcasts(|story| story.must(0, map)), (BLOCK, 1));
    assert_eq!(story.leaf(1, ipa(0)), block(ipa(0), pa(2 * BLOCK)));
    assert_eq!(story.spare(), tables);
}

/// The host's block is whole when the last of its pages is back, in whichever order they come, and whoever had them.
#[test]
fn the_hosts_block_is_whole_again() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut story = Story::protected();
        story.must(0, Ask::Map { page: 2 * BLOCK, at: 0, count: 3 });
        story.must(0, Ask::Share { at: 1, alias: false });
        story.must(0, Ask::Destroy);
        for (n, page) in order.into_iter().enumerate() {
            assert_eq!(
                story.leaf(HOST, pa(2 * BLOCK + 7)).map(|leaf| leaf.bytes),
                Some(PAGE_BYTES)
            );
            let back = Ask::Reclaim { page: 2 * BLOCK + page, count: 1 };
            // Pages and their table go before the block comes.
            let joins = usize::from(n == 2);
            assert_eq!(story.broadcasts(|story| story.must(0, back)), (1, joins), "{order:?}");
        }
        assert_eq!(story.leaf(HOST, pa(2 * BLOCK)), block(pa(2 * BLOCK), pa(2 * BLOCK)));
    }
}

/// What a guest shares is about to be taken back: no block is made of it, to be broken again.
#[test]
fn what_a_guest_shares_makes_no_block() {
    let mut story = Story::protected();
    story.must(0, Ask::Map { page: 2 * BLOCK, at: 0, count: 1 });
    assert_eq!(story.broadcasts(|story| story.must(0, Ask::Share { at: 0, alias: false })), (1, 0));
    // A page, by name.
    assert_eq!(
        story.broadcasts(|story| story.must(0, Ask::Unshare { at: 0, alias: false })),
        (1, 2)
    );
}

/// An interrupt waits: what is done by then is the guest's, the rest the host's, and the next call goes on.
#[test]
fn a_call_that_is_stopped_goes_on() {
    let mut story = Story::protected();
    story.must(0, Ask::Patience(0));
    let mut done = 0;
    while done < BLOCK {
        let map = Ask::Map { page: 2 * BLOCK + done, at: done, count: BLOCK - done };
        // It is not sealed: each page is measured.
        assert_eq!(story.must(0, map), 1);
        done += 1;
        for n in 0..BLOCK {
            let (guest, host) = (story.leaf(1, ipa(n)), story.leaf(HOST, pa(2 * BLOCK + n)));
            assert_eq!((guest.is_some(), host.is_some()), (n < done, n >= done), "page {n}");
        }
    }
    story.must(0, Ask::Destroy);
    let mut done = 0;
    while done < BLOCK {
        done += story.must(0, Ask::Reclaim { page: 2 * BLOCK + done, count: u64::MAX });
        let whole = story.leaf(HOST, pa(2 * BLOCK)).is_some_and(|leaf| leaf.bytes == BLOCK_BYTES);
        assert_eq!(whole, done == BLOCK, "{done}");
    }
}

/// Pages of a block that TLBs hold, without a break.
#[test]
#[should_panic(expected = "holds two entries for one address")]
fn the_machine_wants_a_guests_block_broken_first() {
    let world = World::new(RAM, GUEST);
    let mut table = SimTable::new(&world, 1);
    table.fill_block(ipa(0), pa(0));
    SimTlb(Rc::clone(&world)).stores_done();
    table.clear(Piece { ipa: ipa(0), bytes: BLOCK_BYTES });
    SimTlb(Rc::clone(&world)).stores_done();
    table.fill(ipa(1), pa(1), PAGE_BYTES);
}

/// A block where walks still use a table of pages, which held nothing.
#[test]
#[should_panic(expected = "walks still use the table in its place")]
fn the_machine_wants_a_table_forgotten_first() {
    let world = World::new(RAM, GUEST);
    let mut table = SimTable::new(&world, 1);
    table.mark(ipa(0), Mark::Enrolled);
    table.clear(Piece { ipa: ipa(0), bytes: BLOCK_BYTES });
    SimTlb(Rc::clone(&world)).stores_done();
    table.fill_block(ipa(0), pa(0));
}
