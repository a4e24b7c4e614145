//! The machine of these tests: memory, page tables and CPUs, without hardware.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use umbra_hyp::fp::{Access, FpHw, Svcr, VcpuFp};
use umbra_hyp::memory::handover::{Hands, Ready};
use umbra_hyp::memory::pages::{Page, PageRange, Pages, VmId};
use umbra_hyp::vm::hardware::{self, Boot, Machine, NewVcpu, There};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{MAX_VMS, Policy};
use umbra_shared::measurement::Value;
use umbra_shared::vl::{Vq, VqSet};

pub const PAGE: u64 = PAGE_SIZE as u64;
pub const BASE: u64 = 0x4000_0000;
pub const PAGES: u64 = 64;
/// The last pages are hyp's and reserved.
pub const HYPS: u64 = 62;
pub const RESERVED: u64 = 63;
/// Pages of a block, and of a stretch.
pub const BLOCK_PAGES: u64 = 8;
pub const STRETCH: usize = 3;
/// A protected guest's alias bit.
pub const ALIAS_BIT: u64 = 1 << 39;
/// Tables that one mapping may take.
pub const TABLES_FOR_ONE: usize = 3;

/// What is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Zero,
    /// What the host wrote.
    Hosts,
    /// What hyp or a guest wrote.
    Of(VmId),
}

/// What stands for a page's SHA-256.
pub fn digest_of(pa: u64, content: Content) -> Value {
    let mut value = [0; 32];
    value[..8].copy_from_slice(&pa.to_le_bytes());
    value[8] = match content {
        Content::Zero => 0,
        Content::Hosts => 1,
        Content::Of(vm) => vm + 2,
    };
    value
}

/// Memory, as one lock guards it.
pub struct Memory {
    pub pages: Pages<'static>,
    /// Mapped for the host, for hyp.
    pub host: BTreeSet<u64>,
    pub hyp: BTreeSet<u64>,
    /// Where something of a device's may be under way that the host has begun.
    pub underway: BTreeSet<u64>,
    pub content: BTreeMap<u64, Content>,
    pub guests_see_caches: bool,
    /// What was in a page when the host got it last, and when a guest did.
    pub shown: BTreeMap<u64, Content>,
    pub arrived: BTreeMap<u64, Content>,
    /// What was written last, and where.
    pub written: Option<(u64, Vec<u64>)>,
    /// VMs in place of whose pages the host's kernel finds junk.
    pub junk: BTreeSet<VmId>,
    /// How often it is asked before an interrupt waits.
    pub patience: Cell<usize>,
}

impl Memory {
    /// It is a guest's alone, and hyp can use it.
    fn is_guests(&self, page: Page) {
        assert!(self.hyp.contains(&page.pa()) && !self.host.contains(&page.pa()));
        assert!(matches!(self.content[&page.pa()], Content::Of(_)), "not a guest's");
    }
}

impl hardware::Memory for Memory {
    fn pages(&mut self) -> &mut Pages<'static> {
        &mut self.pages
    }

    fn set_junk(&mut self, vm: VmId, junk: bool) {
        if junk {
            self.junk.insert(vm);
        } else {
            self.junk.remove(&vm);
        }
    }
}

impl Hands for Memory {
    const STRETCH: usize = STRETCH;

    fn take_from_host(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.host.remove(&page.pa()), "taken from a host that has it not");
            self.underway.insert(page.pa());
        }
    }

    fn devices_are_done(&mut self) {
        self.underway.clear();
    }

    fn give_to_host(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(!self.hyp.contains(&page.pa()), "hyp still has it mapped");
            assert!(self.host.insert(page.pa()), "given to a host that has it");
            self.shown.insert(page.pa(), self.content[&page.pa()]);
        }
    }

    fn leave_to_host(&mut self, pages: PageRange) {
        assert!(pages.pages().all(|page| self.host.contains(&page.pa())));
    }

    fn map_for_hyp(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.hyp.insert(page.pa()));
        }
    }

    fn unmap_for_hyp(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.hyp.remove(&page.pa()));
        }
    }

    fn wipe(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(!self.underway.contains(&page.pa()), "wiped while a device can write it");
            assert!(self.hyp.contains(&page.pa()) && !self.host.contains(&page.pa()));
            self.content.insert(page.pa(), Content::Zero);
        }
    }

    fn clean(&mut self, pages: PageRange) {
        for page in pages.pages() {
            let device = self.underway.contains(&page.pa());
            assert!(!device, "handed on while a device can write it");
            assert!(self.hyp.contains(&page.pa()));
        }
    }

    fn digest(&mut self, page: Page) -> Value {
        assert!(self.hyp.contains(&page.pa()) && !self.host.contains(&page.pa()));
        assert!(!self.underway.contains(&page.pa()), "measured while a device can write it");
        digest_of(page.pa(), self.content[&page.pa()])
    }

    fn write(&mut self, page: Page, at: usize, words: impl Iterator<Item = u64>) {
        self.is_guests(page);
        self.written = Some((page.pa() + at as u64, words.collect()));
    }

    fn read(&mut self, page: Page, at: usize, words: &mut [u64]) {
        self.is_guests(page);
        words.fill(page.pa() + at as u64);
    }

    fn forget_instructions(&mut self) {}

    fn guests_see_caches(&self) -> bool {
        self.guests_see_caches
    }

    fn is_waited_for(&self) -> bool {
        let left = self.patience.get();
        self.patience.set(left.saturating_sub(1));
        left == 0
    }
}

/// A VM's stage 2.
#[derive(Debug, Default)]
pub struct Tables {
    pub vm: VmId,
    pub maps: BTreeMap<u64, u64>,
    /// Where blocks are.
    pub blocks: BTreeSet<u64>,
    pub enrolled: BTreeSet<u64>,
    /// Where pages are that are at their aliases.
    pub hidden: BTreeSet<u64>,
    /// Tables below the root, as four levels make them.
    pub used: BTreeSet<(u32, u64)>,
}

/// A vCPU: its FP part, and where it lies.
pub type VcpuCell = std::rc::Rc<RefCell<VcpuFp<()>>>;

pub struct Target {
    pub memory: RefCell<Memory>,
    pub given: RefCell<[usize; MAX_VMS]>,
    pub vqs: VqSet,
    pub svqs: VqSet,
    pub protects: bool,
    pub protected_policy: Policy,
    pub forgotten: Cell<u32>,
    /// vCPUs that run no more.
    pub stopped: RefCell<BTreeSet<(VmId, usize)>>,
}

impl Target {
    fn use_tables(&self, tables: &mut Tables, ipa: u64, down_to: u32) {
        for level in 1..=down_to {
            if tables.used.insert((level, ipa >> (12 + 3 * (4 - level)))) {
                self.given.borrow_mut()[usize::from(tables.vm)] -= 1;
            }
        }
    }

    /// The table of pages around an address is free, if there is one.
    fn free_table(&self, tables: &mut Tables, ipa: u64) {
        if tables.used.remove(&(3, ipa >> 15)) {
            self.given.borrow_mut()[usize::from(tables.vm)] += 1;
        }
    }
}

impl Machine for Target {
    type Memory = Memory;
    type Tables = Tables;
    type Vcpu = VcpuCell;

    fn memory<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> R {
        f(&mut self.memory.borrow_mut())
    }

    fn ipa_bits(&self) -> u32 {
        40
    }

    fn alias_bit(&self) -> u64 {
        ALIAS_BIT
    }

    fn guest_vqs(&self) -> VqSet {
        self.vqs
    }

    fn guest_svqs(&self) -> VqSet {
        self.svqs
    }

    fn aarch32(&self) -> bool {
        true
    }

    fn protects(&self) -> bool {
        self.protects
    }

    fn protected_policy(&self) -> Policy {
        self.protected_policy
    }

    fn now(&self) -> u64 {
        1
    }

    fn add_tables(&self, vm: VmId, pages: PageRange) {
        let mut memory = self.memory.borrow_mut();
        for page in pages.pages() {
            assert_eq!(memory.content[&page.pa()], Content::Zero, "tables out of pages not wiped");
            memory.content.insert(page.pa(), Content::Of(vm));
        }
        self.given.borrow_mut()[usize::from(vm)] += pages.count();
    }

    fn tables_left(&self, vm: VmId) -> usize {
        self.given.borrow()[usize::from(vm)]
    }

    fn tables_for_one(&self) -> usize {
        TABLES_FOR_ONE
    }

    fn new_tables(&self, vm: VmId) -> Tables {
        self.given.borrow_mut()[usize::from(vm)] -= 1;
        Tables { vm, ..Tables::default() }
    }

    fn drop_tables(&self, vm: VmId, tables: Tables) {
        assert_eq!(tables.vm, vm);
        self.given.borrow_mut()[usize::from(vm)] = 0;
    }

    fn lookup(&self, tables: &Tables, ipa: u64) -> There {
        match tables.maps.get(&ipa) {
            Some(&pa) => There::Memory(pa),
            None if tables.enrolled.contains(&ipa) => There::Device,
            None if tables.hidden.contains(&ipa) => There::Aliased,
            None => There::Nothing,
        }
    }

    fn enrol(&self, tables: &mut Tables, ipa: u64) {
        self.use_tables(tables, ipa, 3);
        assert!(tables.enrolled.insert(ipa) && !tables.maps.contains_key(&ipa));
    }

    fn hide(&self, tables: &mut Tables, ipa: u64) {
        let block = ipa & !(BLOCK_PAGES * PAGE - 1);
        assert!(tables.used.contains(&(3, ipa >> 15)) && !tables.blocks.contains(&block));
        assert!(tables.hidden.insert(ipa) && !tables.maps.contains_key(&ipa));
    }

    fn unhide(&self, tables: &mut Tables, ipa: u64) {
        assert!(tables.hidden.remove(&ipa), "nothing is at its alias");
    }

    fn next_hidden(&self, tables: &Tables, ipa: u64, count: u64) -> Option<u64> {
        tables.hidden.range(ipa..ipa + count * PAGE).next().copied()
    }

    fn reset_vcpu(&self, vcpu: &VcpuCell, boot: Boot) {
        assert!(boot.entry & 3 == 0 || vcpu.borrow().aarch32(), "a start that is none");
        vcpu.borrow_mut().reset(|()| ());
    }

    fn is_broken(&self, _: &VcpuCell) -> bool {
        false
    }

    fn set_stopped(&self, vm: VmId, index: usize, stopped: bool) {
        let mut all = self.stopped.borrow_mut();
        if stopped {
            all.insert((vm, index));
        } else {
            all.remove(&(vm, index));
        }
    }

    fn block_pages(&self) -> u64 {
        BLOCK_PAGES
    }

    fn is_free(&self, tables: &Tables, ipa: u64, count: u64) -> bool {
        (0..count).all(|n| self.lookup(tables, ipa + n * PAGE) == There::Nothing)
    }

    fn run(&self, tables: &Tables, ipa: u64, count: u64) -> Option<(u64, u64)> {
        let first = *tables.maps.get(&ipa)?;
        let next = |n: u64| tables.maps.get(&(ipa + n * PAGE)) == Some(&(first + n * PAGE));
        Some((first, (0..count).find(|&n| !next(n)).unwrap_or(count)))
    }

    fn tables_to_unmap(&self, tables: &Tables, ipa: u64, count: u64) -> usize {
        let block = ipa & !(BLOCK_PAGES * PAGE - 1);
        usize::from(tables.blocks.contains(&block) && count != BLOCK_PAGES)
    }

    fn map(&self, tables: &mut Tables, ipa: u64, ready: Ready) {
        let pages = ready.pages();
        let block = BLOCK_PAGES * PAGE;
        let aligned = [ipa, pages.start()].iter().all(|at| at.is_multiple_of(block));
        if pages.bytes() == block && aligned {
            self.free_table(tables, ipa);
            self.use_tables(tables, ipa, 2);
            tables.blocks.insert(ipa);
        } else {
            self.use_tables(tables, ipa, 3);
        }
        for (n, page) in pages.pages().enumerate() {
            let ipa = ipa + n as u64 * PAGE;
            assert!(!tables.enrolled.contains(&ipa), "memory where the guest has a device");
            assert!(
                !tables.hidden.contains(&ipa),
                "memory where the guest has a page at its alias"
            );
            assert_eq!(tables.maps.insert(ipa, page.pa()), None);
            // The guest writes there at once.
            let mut memory = self.memory.borrow_mut();
            assert!(!memory.hyp.contains(&page.pa()), "hyp keeps a guest's page mapped");
            let content = memory.content.insert(page.pa(), Content::Of(tables.vm));
            memory.arrived.extend(content.map(|content| (page.pa(), content)));
        }
    }

    fn unmap(&self, tables: &mut Tables, ipa: u64, count: u64) {
        let block = ipa & !(BLOCK_PAGES * PAGE - 1);
        let was_block = tables.blocks.remove(&block);
        if count == BLOCK_PAGES {
            self.free_table(tables, ipa);
        } else if was_block {
            self.use_tables(tables, ipa, 3);
        }
        for n in 0..count {
            assert!(tables.maps.remove(&(ipa + n * PAGE)).is_some());
        }
    }

    fn new_vcpu(&self, tables: &Tables, new: &NewVcpu) -> VcpuCell {
        let mut memory = self.memory.borrow_mut();
        for page in new.pages.pages() {
            assert_eq!(memory.content[&page.pa()], Content::Zero, "a vCPU in pages not wiped");
            memory.content.insert(page.pa(), Content::Of(tables.vm));
        }
        VcpuCell::new(RefCell::new(VcpuFp::new((), new.features, new.policy)))
    }

    fn forget_sibling(&self, _: &Tables) {
        self.forgotten.set(self.forgotten.get() + 1);
    }
}

/// A CPU with registers that nobody looks at, but for SVCR.
#[derive(Debug)]
pub struct NoRegisters {
    vq: Vq,
    svq: Vq,
    /// PSTATE.SM and PSTATE.ZA.
    pub svcr: Svcr,
}

impl NoRegisters {
    pub const fn new() -> Self {
        Self { vq: Vq::MIN, svq: Vq::MIN, svcr: Svcr::empty() }
    }
}

impl FpHw for NoRegisters {
    type Image = ();

    fn has_sve(&self) -> bool {
        true
    }
    fn has_sme(&self) -> bool {
        true
    }
    fn has_zt0(&self) -> bool {
        true
    }
    fn set_access(&mut self, _: Access) {}
    fn sync(&mut self) {}
    fn set_clamp(&mut self, clamp: Vq) {
        self.vq = clamp;
    }
    fn vq(&mut self) -> Vq {
        self.vq
    }
    fn zcr_el1(&mut self) -> u64 {
        0
    }
    fn set_zcr_el1(&mut self, _: u64) {}
    fn set_streaming_clamp(&mut self, clamp: Vq) {
        self.svq = clamp;
    }
    fn svq(&mut self) -> Vq {
        self.svq
    }
    fn smcr_el1(&mut self) -> u64 {
        0
    }
    fn set_smcr_el1(&mut self, _: u64) {}
    fn svcr(&mut self) -> Svcr {
        self.svcr
    }
    fn start(&mut self, bits: Svcr) {
        self.svcr |= bits;
    }
    fn stop(&mut self, bits: Svcr) {
        self.svcr -= bits;
    }
    fn save_sve(&mut self, (): &mut ()) -> Vq {
        self.vq
    }
    fn load_sve(&mut self, (): &(), _: Vq) {}
    fn save_streaming(&mut self, (): &mut ()) -> Vq {
        self.svq
    }
    fn load_streaming(&mut self, (): &(), _: Vq) {}
    fn save_fpsimd(&mut self, (): &mut ()) {}
    fn load_fpsimd(&mut self, (): &()) {}
    fn zero(&mut self) {}
    fn save_za(&mut self, (): &mut ()) {}
    fn load_za(&mut self, (): &()) {}
    fn zero_za(&mut self) {}
    fn fpexc(&mut self) -> u64 {
        0
    }
    fn set_fpexc(&mut self, _: u64) {}
}
