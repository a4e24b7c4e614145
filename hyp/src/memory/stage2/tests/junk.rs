//! What the host's kernel finds in the place of a guest's pages.

use super::sim::JUNK;
use super::*;

/// On which CPU, and where.
fn touch(story: &mut Story, cpu: usize, page: u64) {
    story.must(0, Ask::Touch { page, kernel_on: Some(cpu) });
}

/// What is there, one of a CPU's.
fn found(story: &Story, page: u64) -> Option<u64> {
    story.sim.memory.borrow().host.lookup(pa(page)).map(|pa| (pa - JUNK) / PAGE_BYTES)
}

fn story() -> Story {
    let mut story = Story::new();
    story.must(0, Ask::CreateJunk { page: 0 });
    story.must(0, Ask::Topup { page: 8 });
    for (page, at) in [(9, 0), (10, 1), (11, 2), (12, 3)] {
        story.must(0, Ask::Map { page, at, count: 1 });
    }
    story
}

#[test]
fn a_cpu_replaces_its_own_by_turns() {
    let mut story = story();
    for (cpu, page) in [(0, 9), (0, 10), (1, 9), (1, 11), (0, 9)] {
        touch(&mut story, cpu, page);
    }
    assert_eq!([9, 10, 11, 12].map(|page| found(&story, page)), [Some(0), Some(1), Some(2), None]);
    touch(&mut story, 0, 12);
    assert_eq!([9, 10, 11, 12].map(|page| found(&story, page)), [None, Some(1), Some(2), Some(0)]);
    touch(&mut story, 0, 11);
    touch(&mut story, 0, 9);
    assert_eq!([9, 10, 11, 12].map(|page| found(&story, page)), [Some(1), None, Some(2), Some(0)]);
}

#[test]
fn it_goes_before_the_page_comes_back() {
    let mut story = story();
    touch(&mut story, 0, 9);
    touch(&mut story, 0, 10);
    story.must(0, Ask::Share { at: 0, alias: false });
    assert_eq!(story.sim.memory.borrow().host.lookup(pa(9)), Some(pa(9)));
    story.must(0, Ask::Unshare { at: 0, alias: false });
    assert_eq!(found(&story, 9), None, "it is taken as any other");
    story.must(0, Ask::Share { at: 1, alias: true });
    assert_eq!(story.sim.memory.borrow().host.lookup(pa(10)), Some(pa(10)));
    // Both are there for others.
    touch(&mut story, 0, 11);
    touch(&mut story, 0, 12);
    assert_eq!([9, 11, 12].map(|page| found(&story, page)), [None, Some(0), Some(1)]);
    story.must(0, Ask::Destroy);
    for page in [0, 1, 2, 3, 8, 9, 10, 11, 12] {
        story.must(0, Ask::Reclaim { page, count: 1 });
    }
    // A block of the host's, as if nothing had been.
    let block = story.sim.memory.borrow().host.entry(pa(8));
    assert_eq!(block, Entry::Leaf(Leaf { ipa: pa(8), bytes: BLOCK_BYTES, pa: pa(8) }));
}

/// A guest's whole block, under which the host has no table any more.
#[test]
fn it_comes_and_goes_in_a_block() {
    const BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;
    let mut story = Story::new();
    story.must(0, Ask::CreateJunk { page: 0 });
    assert_eq!(story.must(0, Ask::Map { page: 2 * BLOCK, at: BLOCK, count: BLOCK }), BLOCK);
    for n in 0..BLOCK {
        touch(&mut story, 1, 2 * BLOCK + n);
    }
    story.must(0, Ask::Destroy);
    assert_eq!(story.must(0, Ask::Reclaim { page: 2 * BLOCK, count: BLOCK }), BLOCK);
    assert_eq!(story.sim.memory.borrow().host.lookup(pa(3 * BLOCK - 1)), Some(pa(3 * BLOCK - 1)));
}

#[test]
fn it_is_for_the_kernel_and_where_it_was_asked_for() {
    let mut story = story();
    assert!(story.ask(0, Ask::Touch { page: 9, kernel_on: None }).is_err(), "a user");
    for page in [0, 8] {
        let hyps = story.ask(0, Ask::Touch { page, kernel_on: Some(0) });
        assert!(hyps.is_err(), "what hyp keeps of a VM");
    }
    story.must(1, Ask::Create { page: 16, protected: true });
    story.must(1, Ask::Map { page: 24, at: 0, count: 1 });
    assert!(story.ask(1, Ask::Touch { page: 24, kernel_on: Some(0) }).is_err(), "another VM's");
    assert_eq!(found(&story, 24), None);
    // The number that it had is another one's, who has not asked.
    story.must(0, Ask::Destroy);
    for page in [0, 1, 2, 3, 8, 9, 10, 11, 12] {
        story.must(0, Ask::Reclaim { page, count: 1 });
    }
    story.must(0, Ask::Create { page: 0, protected: true });
    story.must(0, Ask::Map { page: 9, at: 0, count: 1 });
    assert!(story.ask(0, Ask::Touch { page: 9, kernel_on: Some(0) }).is_err());
}
