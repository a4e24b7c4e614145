use super::*;
use crate::memory::pages::Pages;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Zero,
    Hosts,
    Secret,
}

/// A page of a memory with caches.
#[derive(Clone, Copy, Debug)]
struct Cell {
    host: bool,
    /// Something that a device of the host's has begun may still arrive.
    devices: bool,
    hyp: bool,
    guest: bool,
    /// It has been told that it has it alone.
    left: bool,
    /// What the caches hold.
    cached: Content,
    /// What one finds with caches off.
    memory: Content,
}

impl Cell {
    /// One that the host has just written, and executed from.
    const HOSTS: Self = Self {
        host: true,
        devices: true,
        hyp: false,
        guest: false,
        left: false,
        cached: Content::Hosts,
        memory: Content::Secret,
    };
}

/// Pages of such a memory. Each step asserts what must be so before it.
#[derive(Debug)]
struct Memory {
    cells: [Cell; PAGES],
    stale_instructions: bool,
    /// Guests see what is in caches.
    coherent: bool,
    /// How often it is asked before somebody waits.
    patience: usize,
    /// How often somebody has been asked.
    asked: std::cell::Cell<usize>,
    /// Pages wiped or cleaned since then, and the most of them.
    stretch: std::cell::Cell<usize>,
    longest: usize,
    /// Waits for devices.
    waits: usize,
}

const BASE: u64 = 0x4000_0000;
const PAGES: usize = 8;
const STRETCH: usize = 3;

impl Memory {
    const fn hosts() -> Self {
        Self {
            cells: [Cell::HOSTS; PAGES],
            stale_instructions: true,
            coherent: false,
            patience: usize::MAX,
            asked: std::cell::Cell::new(0),
            stretch: std::cell::Cell::new(0),
            longest: 0,
            waits: 0,
        }
    }

    fn of(&mut self, pages: PageRange) -> &mut [Cell] {
        let first = ((pages.start() - BASE) / 4096) as usize;
        &mut self.cells[first..first + pages.count()]
    }

    fn map_for_guest(&mut self, ready: &Ready) {
        assert!(!self.stale_instructions, "an instruction cache holds what was here before");
        let coherent = self.coherent;
        for cell in self.of(ready.pages()) {
            assert!(
                coherent || cell.memory == cell.cached,
                "mapped for a guest before it is clean to PoC"
            );
            assert_eq!(cell.devices, cell.host, "a device has not lost what its host has lost");
            assert!(!cell.hyp, "hyp keeps it");
            cell.guest = true;
        }
    }

    fn worked_on(&mut self, pages: PageRange) {
        self.stretch.set(self.stretch.get() + pages.count());
        self.longest = self.longest.max(self.stretch.get());
    }
}

impl Hands for Memory {
    const STRETCH: usize = STRETCH;

    fn take_from_host(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(cell.host);
            cell.host = false;
        }
    }

    fn devices_are_done(&mut self) {
        self.waits += 1;
        for cell in &mut self.cells {
            cell.devices = cell.host;
        }
    }

    fn give_to_host(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(!cell.hyp && !cell.guest, "the host gets what somebody else can still use");
            assert!(!cell.host, "the host gets what it has");
            assert_ne!(cell.cached, Content::Secret, "the host gets what is not its own");
            let own = cell.cached == Content::Hosts;
            assert!(own || cell.memory == cell.cached, "the wipe has not reached memory");
            (cell.host, cell.devices) = (true, true);
        }
    }

    fn leave_to_host(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(cell.host && cell.devices && !cell.hyp, "it was not the host's to use");
            cell.left = true;
        }
    }

    fn map_for_hyp(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(!cell.hyp);
            cell.hyp = true;
        }
    }

    fn unmap_for_hyp(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(cell.hyp);
            cell.hyp = false;
        }
    }

    fn wipe(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(cell.hyp);
            assert!(!cell.host && !cell.guest, "wiped while somebody can write it");
            assert!(!cell.devices, "wiped while a device can write it");
            cell.cached = Content::Zero;
        }
    }

    fn clean(&mut self, pages: PageRange) {
        for cell in self.of(pages) {
            assert!(cell.hyp);
            cell.memory = cell.cached;
        }
        self.worked_on(pages);
    }

    fn digest(&mut self, page: Page) -> Value {
        let cell = self.cells[((page.pa() - BASE) / 4096) as usize];
        assert!(cell.hyp && !cell.host && !cell.guest, "measured while somebody can write it");
        assert!(!cell.devices, "measured while a device can write it");
        [cell.cached as u8; 32]
    }

    fn write(&mut self, page: Page, _: usize, _: impl Iterator<Item = u64>) {
        for cell in self.of(page.alone()) {
            assert!(cell.hyp && cell.guest && !cell.host);
            assert_eq!(cell.memory, cell.cached, "written beside what the guest has in memory");
            cell.cached = Content::Zero;
        }
    }

    fn read(&mut self, page: Page, _: usize, _: &mut [u64]) {
        for cell in self.of(page.alone()) {
            assert!(cell.hyp && cell.guest && !cell.host);
            assert_eq!(cell.memory, cell.cached, "what is read is not what the guest has written");
        }
    }

    fn forget_instructions(&mut self) {
        self.stale_instructions = false;
    }

    fn guests_see_caches(&self) -> bool {
        self.coherent
    }

    fn is_waited_for(&self) -> bool {
        self.stretch.set(0);
        self.asked.set(self.asked.get() + 1);
        self.asked.get() >= self.patience
    }
}

fn owners() -> Pages<'static> {
    let entries = Box::leak(vec![State::Host; PAGES].into_boxed_slice());
    Pages::new(&[(BASE, BASE + (PAGES * 4096) as u64)], entries)
}

fn all() -> PageRange {
    owners().lookup_range(BASE, PAGES as u64).unwrap()
}

const ARRIVALS: [Arrival; 3] = [Arrival::Shared, Arrival::Kept, Arrival::Zeroed];

/// What is measured is measured page by page.
fn stretch(arrival: Arrival) -> usize {
    if arrival == Arrival::Kept { 1 } else { STRETCH }
}

fn prepare(memory: &mut Memory, arrival: Arrival) -> (Ready, usize) {
    let mut owned = 0;
    let own = |memory: &mut Memory, part: PageRange| {
        // Before anything is done to it.
        assert!(memory.of(part).iter().all(|cell| !cell.hyp));
        owned += part.count();
    };
    let mut measured = Vec::new();
    let ready = prepare_for_guest(memory, all(), arrival, own, |page, value| {
        assert_eq!(value, [Content::Hosts as u8; 32], "what the host has left there");
        measured.push(page);
    });
    // What it keeps, all of it, in order; of what it gets from hyp or shares nothing.
    let kept: Vec<_> = ready.pages().pages().filter(|_| arrival == Arrival::Kept).collect();
    assert_eq!(measured, kept);
    (ready, owned)
}

#[test]
fn r31_a_guest_sees_a_page_only_when_it_is_clean() {
    for arrival in ARRIVALS {
        let mut memory = Memory::hosts();
        let (ready, owned) = prepare(&mut memory, arrival);
        memory.map_for_guest(&ready);
        assert_eq!((ready.pages(), owned), (all(), PAGES));
        // Nothing of the host's choosing gets into a protected guest that is sealed.
        let expected = if arrival == Arrival::Zeroed { Content::Zero } else { Content::Hosts };
        for cell in memory.cells {
            assert_eq!(cell.memory, expected, "{arrival:?}");
            assert_eq!((cell.host, cell.hyp), (arrival == Arrival::Shared, false));
        }
        let waits = usize::from(arrival != Arrival::Shared);
        assert_eq!(memory.waits, waits, "devices are waited for once");
    }
}

/// With FEAT_S2FWB a page that the host keeps is left as it is; what it loses is wiped and cleaned all the same.
#[test]
fn what_is_shared_with_a_guest_that_sees_caches_is_left_as_it_is() {
    for arrival in ARRIVALS {
        let mut memory = Memory { coherent: true, ..Memory::hosts() };
        let (ready, _) = prepare(&mut memory, arrival);
        memory.map_for_guest(&ready);
        let left = arrival == Arrival::Shared;
        assert_eq!(memory.longest, if left { 0 } else { stretch(arrival) });
        assert!(memory.cells.iter().all(|cell| left || cell.memory == cell.cached));
    }
}

/// Whenever somebody waits: what is done by then is the guest's, what is not is the host's.
#[test]
fn who_is_waited_for_stops_behind_a_stretch() {
    for (arrival, patience) in ARRIVALS.into_iter().flat_map(|it| (1..5).map(move |n| (it, n))) {
        let mut memory = Memory { patience, ..Memory::hosts() };
        let (ready, owned) = prepare(&mut memory, arrival);
        memory.map_for_guest(&ready);
        let done = (patience * stretch(arrival)).min(PAGES);
        assert_eq!((ready.pages().count(), owned), (done, done), "{arrival:?} {patience}");
        assert_eq!(ready.pages().start(), BASE);
        assert_eq!(memory.longest, stretch(arrival));
        for (n, cell) in memory.cells.iter().enumerate() {
            let guests = n < done;
            assert_eq!(cell.guest, guests);
            assert_eq!(cell.host, !guests || arrival == Arrival::Shared);
            assert_eq!(cell.devices, cell.host);
            if !guests {
                assert_eq!(cell.cached, Content::Hosts, "wiped, and given back");
            }
        }
    }
}

/// A guest finds what hyp writes for it, with its caches off; and hyp what it wrote so.
#[test]
fn what_is_written_for_a_guest_reaches_memory() {
    let mut memory = Memory::hosts();
    let (ready, _) = prepare(&mut memory, Arrival::Kept);
    memory.map_for_guest(&ready);
    let page = all().first();
    write(&mut memory, page, 8, [7].into_iter());
    let cell = memory.cells[0];
    assert_eq!((cell.memory, cell.cached, cell.hyp), (Content::Zero, Content::Zero, false));
    read(&mut memory, page, 8, &mut [0; 3]);
}

#[test]
fn donated_pages_are_wiped_when_the_host_has_lost_them() {
    let mut memory = Memory::hosts();
    donate(&mut memory, all());
    for cell in memory.cells {
        assert_eq!((cell.host, cell.hyp, cell.cached), (false, true, Content::Zero));
    }
    assert_eq!(memory.waits, 1);
}

/// How many pages so many stretches have: one whose neighbour before it has been something else counts twice.
fn stretches(mix: usize, pages: usize, stretches: usize) -> usize {
    let mut cost = vec![];
    for n in 0..pages {
        if n != 0 && mix >> (2 * n) & 3 != mix >> (2 * (n - 1)) & 3 {
            cost.push(0);
        }
        cost.push(1);
    }
    let mut done = 0;
    let mut rest = &cost[..];
    for _ in 0..stretches {
        let (stretch, left) = rest.split_at(STRETCH.min(rest.len()));
        done += stretch.iter().sum::<usize>();
        // A change at its end is none any more.
        rest = left.strip_prefix(&[0]).unwrap_or(left);
    }
    done
}

/// A VM's pages as they come, of every kind and in every order; `mix` has two bits for each.
fn life(mix: usize, patience: usize) {
    const VM: u8 = 1;
    let mut memory = Memory::hosts();
    let mut owners = owners();
    for n in 0..PAGES {
        let (_, page) = all().split_at(n);
        let (page, _) = page.split_at(1);
        let (arrival, protected) = match mix >> (2 * n) & 3 {
            0 => {
                owners.donate_to_vm(page, VM).unwrap();
                donate(&mut memory, page);
                memory.of(page)[0].cached = Content::Secret;
                continue;
            }
            1 => (Arrival::Kept, true),
            2 => (Arrival::Shared, false),
            // Not the VM's.
            _ => continue,
        };
        owners.give_to_guest(page, VM, protected).unwrap();
        let ready = prepare_for_guest(&mut memory, page, arrival, |_, _| (), |_, _| ());
        memory.map_for_guest(&ready);
        if protected {
            memory.of(page)[0].cached = Content::Secret;
        }
        // The VM has lost all translations.
        memory.of(page)[0].guest = false;
    }
    let theirs = (0..PAGES).take_while(|n| mix >> (2 * n) & 3 != 3).count();
    memory.longest = 0;
    memory.asked.set(0);
    memory.stretch.set(0);
    memory.patience = patience;
    let done = reclaim(&mut memory, all(), |_, part| owners.reclaim(part, VM).ok());
    assert_eq!(done, stretches(mix, theirs, patience), "{mix:#x}");
    assert!(memory.longest <= STRETCH);
    for (n, cell) in memory.cells.iter().enumerate().take(done) {
        assert_eq!((cell.host, cell.hyp), (true, false), "{mix:#x}: page {n}");
        assert_eq!(cell.left, mix >> (2 * n) & 3 == 2, "{mix:#x}: page {n}");
    }
    for (n, page) in all().pages().enumerate() {
        let back = n < done || mix >> (2 * n) & 3 == 3;
        assert_eq!(owners.state(page) == State::Host, back, "{mix:#x}: page {n}");
    }
}

#[test]
fn r31_reclaimed_pages_are_wiped_in_memory() {
    // All of a kind, and every order of them within two stretches.
    for mix in [0, 0x5555, 0xaaaa, 0xffff].into_iter().chain((0..1 << 12).map(|mix| mix | 0x1000)) {
        for patience in 1..=3 {
            life(mix, patience);
        }
    }
}

#[test]
fn a_page_that_a_guest_gives_back_is_wiped() {
    let (page, _) = all().split_at(1);
    for was in [State::Guest(1), State::SharedByGuest(1), State::SharedWithGuest(1)] {
        let mut memory = Memory::hosts();
        let arrival =
            if let State::SharedWithGuest(_) = was { Arrival::Shared } else { Arrival::Kept };
        let ready = prepare_for_guest(&mut memory, page, arrival, |_, _| (), |_, _| ());
        memory.map_for_guest(&ready);
        if let State::SharedByGuest(_) = was {
            memory.cells[0].guest = false;
            share_with_host(&mut memory, page.first(), Passing::Kept);
        } else if arrival == Arrival::Kept {
            memory.cells[0].cached = Content::Secret;
        }
        memory.cells[0].guest = false;
        give_back(&mut memory, page.first(), was);
        assert_eq!((memory.cells[0].host, memory.cells[0].hyp), (true, false), "{was:?}");
    }
}
