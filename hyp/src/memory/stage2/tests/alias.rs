//! Pages at their aliases.

use super::super::machine::ALIAS_BIT;
use super::sim::ipa;
use super::*;
use umbra_shared::error::Error;
use umbra_shared::rsi::Ripas;

/// Pages of a guest's block become EMPTY and RAM again: while they are wiped nobody can write them, and nobody else's TLB
/// has them afterwards.
#[test]
fn pages_of_a_block_become_empty_and_ram() {
    const BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;
    let mut story = Story::new();
    story.must(0, Ask::Create { page: 0, protected: true });
    for page in 8..12 {
        story.must(0, Ask::Topup { page });
    }
    assert_eq!(story.must(0, Ask::Map { page: 3 * BLOCK, at: BLOCK, count: BLOCK }), BLOCK);
    let reach = |story: &Story, n: u64| story.sim.world.borrow().reach(pa(3 * BLOCK + n));
    for _ in 0..2 {
        let say = |at, count, ripas| Ask::Say { at: BLOCK + at, count, ripas };
        assert_eq!(story.must(0, say(2, 3, Ripas::Empty)), 3);
        for n in 0..BLOCK {
            let shared = (2..5).contains(&n);
            let who = if shared { BTreeSet::from([HOST, 1]) } else { BTreeSet::from([1]) };
            assert_eq!(reach(&story, n), who, "page {n}");
        }
        assert_eq!(story.must(0, say(0, BLOCK, Ripas::Ram)), 2, "as far as the first");
        for n in 2..5 {
            assert_eq!(story.must(0, say(n, BLOCK - n, Ripas::Ram)), 1);
            assert_eq!(reach(&story, n), BTreeSet::from([1]), "page {n}");
        }
        assert_eq!(story.must(0, say(0, BLOCK, Ripas::Ram)), BLOCK);
    }
}

/// One page of a guest's block is shared at its alias, comes back, and is given up from there.
#[test]
fn a_page_of_a_block_at_its_alias() {
    const BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;
    let mut story = Story::new();
    story.must(0, Ask::Create { page: 0, protected: true });
    story.must(0, Ask::Topup { page: 8 });
    assert_eq!(story.must(0, Ask::Map { page: 3 * BLOCK, at: BLOCK, count: BLOCK }), BLOCK);
    let at = BLOCK + 3;
    let walk = |story: &Story, alias: u64| {
        let world = story.sim.world.borrow();
        world
            .walk(1, ipa(at) | alias)
            .map(|leaf| (leaf.bytes, leaf.pa + (ipa(at) | alias) - leaf.ipa))
    };
    let page = pa(3 * BLOCK + 3);
    assert_eq!(walk(&story, 0), Some((BLOCK_BYTES, page)));
    for _ in 0..2 {
        story.must(0, Ask::Share { at, alias: true });
        assert_eq!((walk(&story, 0), walk(&story, ALIAS_BIT)), (None, Some((PAGE_BYTES, page))));
        assert_eq!(story.sim.world.borrow().reach(page), BTreeSet::from([HOST, 1]));
        assert_eq!(story.sim.world.borrow().reach(page + PAGE_BYTES), BTreeSet::from([1]));
        for refused in [
            Ask::Share { at, alias: false },
            Ask::Share { at, alias: true },
            Ask::Unshare { at, alias: false },
            Ask::Relinquish { at, alias: false },
        ] {
            assert_eq!(story.ask(0, refused), Err(Error::Shared), "{refused:?}");
        }
        let map = Ask::Map { page: 4 * BLOCK, at, count: 1 };
        assert_eq!(story.ask(0, map), Err(Error::IpaInUse));
        story.must(0, Ask::Unshare { at, alias: true });
        assert_eq!((walk(&story, 0), walk(&story, ALIAS_BIT)), (Some((PAGE_BYTES, page)), None));
        assert_eq!(story.sim.world.borrow().reach(page), BTreeSet::from([1]));
    }
    story.must(0, Ask::Share { at, alias: true });
    story.must(0, Ask::Relinquish { at, alias: true });
    assert_eq!((walk(&story, 0), walk(&story, ALIAS_BIT)), (None, None));
    story.must(0, Ask::Map { page: 4 * BLOCK, at, count: 1 });
}
