//! Page tables: hyp's stage 1, the host's stage 2, guests' stage 2.
//!
//! aarch64-paging walks and edits; the TLB rules are ours. For hyp's stage 1 it issues a DSB before and
//! a DSB and ISB after the invalidation of a live mapping, and calls `invalidate_va` between them for
//! each leaf. Of a stage 2 it is never told that it is live: a TLBI there is for the VMID that is loaded,
//! and a block is not to be split under a walk. Both are decided in [`crate::memory::stage2`].

use crate::arch::end;
use crate::arch::sysreg::{dsb_ish, isb, read_vttbr_el2, write_vttbr_el2};
use crate::memory::frames::Tables;
use crate::memory::stage2::{Entry, Leaf, Mark, Piece, Stage2, Table, Tlb, Vttbr};
use crate::world::errata::{SME_SYNC_FUNCTION, Workarounds};
use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{
    El23Attributes, PhysicalAddress, Stage2Attributes, VirtualAddress,
};
use aarch64_paging::paging::{Constraints, MemoryRegion, TranslationRegime};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::BLOCK_PAGES;

/// Bytes of a block of level 2, the only ones that are made while anybody looks.
const BLOCK_BYTES: u64 = BLOCK_PAGES * PAGE_SIZE as u64;
/// The level of pages.
const LEAF_LEVEL: usize = 3;

/// Hyp's stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypRegime;

impl TranslationRegime for HypRegime {
    type Attributes = El23Attributes;
    type Asid = ();
    type VaRange = ();

    fn invalidate_va(va: VirtualAddress) {
        let drop = || {
            // SAFETY: dropping translations is always sound.
            unsafe { asm!("tlbi vae2is, {}", in(reg) va.0 >> 12, options(nostack)) };
        };
        drop();
        if Tlbs.repeats() {
            dsb_ish();
            drop();
        }
    }

    unsafe fn activate(_: PhysicalAddress, (): (), (): ()) -> usize {
        unreachable!("TTBR0_EL2 is set in boot.S");
    }

    unsafe fn deactivate(_: usize, (): (), (): ()) {
        unreachable!("hyp runs on its tables until the machine is reset");
    }
}

/// EL1&0 stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Regime;

impl TranslationRegime for Stage2Regime {
    type Attributes = Stage2Attributes;
    type Asid = ();
    type VaRange = ();

    fn invalidate_va(_: VirtualAddress) {
        unreachable!(
            "tables of stage 2 are never marked active: `memory::stage2` sees to the TLBs"
        );
    }

    unsafe fn activate(_: PhysicalAddress, (): (), (): ()) -> usize {
        unreachable!("VTTBR_EL2 carries a VMID and is written at world switches");
    }

    unsafe fn deactivate(_: usize, (): (), (): ()) {
        unreachable!("VTTBR_EL2 carries a VMID and is written at world switches");
    }
}

fn region(start: u64, end: u64) -> MemoryRegion {
    MemoryRegion::new(start as usize, end as usize)
}

/// What some CPU of the machine needs of whoever changes tables, on whichever CPU.
static WORKAROUNDS: AtomicU32 = AtomicU32::new(0);

/// A CPU that needs this is there from now on.
pub fn work_around(workarounds: Workarounds) {
    WORKAROUNDS.fetch_or(workarounds.bits(), Ordering::Relaxed);
}

/// The TLBs of EL1&0, as this CPU can reach them.
#[derive(Clone, Copy, Debug)]
pub struct Tlbs;

impl Tlb for Tlbs {
    fn loaded(&self) -> Vttbr {
        Vttbr::from_bits(read_vttbr_el2())
    }

    fn load(&self, vttbr: Vttbr) {
        write_vttbr_el2(vttbr.bits());
        isb();
    }

    fn stores_done(&self) {
        dsb_ish();
    }

    fn drop_stage2(&self, ipa: u64) {
        // SAFETY: dropping translations is always sound.
        unsafe { asm!("tlbi ipas2e1is, {}", in(reg) ipa >> 12, options(nostack, preserves_flags)) };
    }

    fn drop_stage1(&self) {
        // SAFETY: dropping translations is always sound.
        unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    }

    fn drop_both(&self) {
        // SAFETY: dropping translations is always sound.
        unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    }

    fn drop_own_stage1(&self) {
        // SAFETY: dropping translations and instructions is always sound.
        unsafe { asm!("tlbi vmalle1", "ic iallu", options(nostack, preserves_flags)) };
    }

    fn dropped(&self) {
        dsb_ish();
        isb();
    }

    fn dropped_here(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("dsb nsh", "isb", options(nostack, preserves_flags)) };
    }

    fn repeats(&self) -> bool {
        WORKAROUNDS.load(Ordering::Relaxed) & Workarounds::REPEAT_TLBI.bits() != 0
    }

    fn streaming_done(&self) {
        if WORKAROUNDS.load(Ordering::Relaxed) & Workarounds::SME_SYNC.bits() != 0 {
            // It can't fail: whether firmware knows it was asked when the CPU came up that needs it.
            smccc::smc32(SME_SYNC_FUNCTION, [0; 7]);
        }
    }
}

/// How a range of hyp's addresses may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Instructions.
    Text,
    /// Constants.
    ReadOnly,
    /// Data.
    ReadWrite,
    /// Device registers.
    Device,
}

impl Use {
    fn attributes(self) -> El23Attributes {
        let normal = El23Attributes::ATTRIBUTE_INDEX_0 | El23Attributes::INNER_SHAREABLE;
        let kind = match self {
            Self::Text => normal | El23Attributes::READ_ONLY,
            Self::ReadOnly => normal | El23Attributes::READ_ONLY | El23Attributes::XN,
            Self::ReadWrite => normal | El23Attributes::XN,
            Self::Device => El23Attributes::ATTRIBUTE_INDEX_1 | El23Attributes::XN,
        };
        kind | El23Attributes::VALID | El23Attributes::ACCESSED | El23Attributes::USER_RES1
    }
}

/// Hyp's own translation.
#[derive(Debug)]
pub struct HypTables(Mapping<Tables, HypRegime>);

impl HypTables {
    /// Empty tables.
    pub fn new(tables: Tables) -> Self {
        Self(Mapping::new(tables, 0, HypRegime))
    }

    /// The root's physical address.
    pub fn root(&self) -> u64 {
        self.0.root_address().0 as u64
    }

    /// From now on changes are followed by TLB maintenance.
    pub fn mark_active(&self) {
        self.0.mark_active();
    }

    /// Maps `bytes` bytes at `va` to `pa`. The tables for it must be on the list.
    ///
    /// # Panics
    ///
    /// If there is a mapping already, which would be a bug of hyp.
    pub fn map(&mut self, va: usize, pa: u64, bytes: usize, how: Use) {
        self.0
            .map_range(
                &MemoryRegion::new(va, va + bytes),
                PhysicalAddress(pa as usize),
                how.attributes(),
                Constraints::NO_CONTIGUOUS_HINT,
            )
            .expect("a hyp mapping in its own place");
    }

    /// Unmaps what [`Self::map`] mapped, complete with TLB maintenance.
    ///
    /// # Panics
    ///
    /// If `bytes` is a part of a block, which would be a bug of hyp.
    pub fn unmap(&mut self, va: usize, bytes: usize) {
        self.0
            .map_range(
                &MemoryRegion::new(va, va + bytes),
                PhysicalAddress(0),
                El23Attributes::empty(),
                Constraints::empty(),
            )
            .expect("a hyp mapping in its own place");
    }

    /// The first mapped page of a range that `accept` wants.
    pub fn find_page(
        &self,
        start: usize,
        end: usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let mut found = None;
        // An error ends the walk.
        let _ =
            self.0.walk_range(&MemoryRegion::new(start, end), &mut |range, descriptor, level| {
                let va = range.start().0;
                if level == 3 && descriptor.is_valid() && accept(va) {
                    found = Some(va);
                    return Err(());
                }
                Ok(())
            });
        found
    }
}

/// What memory is mapped with, with this MemAttr.
const fn memory(mem_attr: Stage2Attributes) -> Stage2Attributes {
    Stage2Attributes::VALID
        .union(mem_attr)
        .union(Stage2Attributes::S2AP_ACCESS_RW)
        .union(Stage2Attributes::SH_INNER)
        .union(Stage2Attributes::ACCESS_FLAG)
}

const NORMAL: Stage2Attributes = memory(
    Stage2Attributes::MEMATTR_NORMAL_INNER_WB.union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB),
);

/// The same where HCR_EL2.FWB is set (FEAT_S2FWB, Arm ARM D8.6.6): Normal write-back, whatever stage 1 says.
/// MemAttr is 0b0110 then; without FWB it is 0b1111.
const FORCED: Stage2Attributes = memory(Stage2Attributes::from_bits_retain(0b0110 << 2));

const DEVICE: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::MEMATTR_DEVICE_nGnRE)
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::XN)
    .union(Stage2Attributes::ACCESS_FLAG);

/// What an invalid entry holds, of which walks ignore all but bit 0 (Arm ARM D8.3), by its mark.
const MARKS: [(Mark, Stage2Attributes); 2] =
    [(Mark::Enrolled, Stage2Attributes::SWFLAG_0), (Mark::Aliased, Stage2Attributes::SWFLAG_1)];

/// Bytes that an entry of this level maps.
const fn entry_bytes(level: usize) -> u64 {
    (PAGE_SIZE as u64) << (9 * (LEAF_LEVEL - level))
}

/// The mark of an entry that is invalid.
fn mark_of(flags: Stage2Attributes) -> Option<Mark> {
    MARKS.iter().find(|&&(_, of)| of == flags).map(|&(mark, _)| mark)
}

/// The shape of stage 2 on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Shape {
    /// Bits of the intermediate physical address space.
    pub ipa_bits: u32,
    /// Level of the root table.
    pub root_level: usize,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// The largest ID_AA64MMFR0_EL1.PARange that fits.
    pub pa_range: u64,
}

impl Stage2Shape {
    /// For a machine with `pa_bits` of physical address. The host needs 40 bits (PCI on QEMU's virt
    /// lies that high), which with one root table means starting at level 0; that needs more than 42
    /// physical bits (Arm ARM D8.2.7). Machines with fewer get 39 bits, one level-1 root.
    pub const fn new(pa_bits: u32) -> Self {
        let (ipa_bits, root_level, sl0, pa_range) = if pa_bits > 42 {
            (40, 0, 2, 2)
        } else if pa_bits < 39 {
            (pa_bits, 1, 1, if pa_bits >= 36 { 1 } else { 0 })
        } else {
            (39, 1, 1, 1)
        };
        let ps = match pa_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            _ => 5,
        };
        // RES1; PS; TG0 = 4 KiB; inner shareable write-back tables; SL0; T0SZ.
        let vtcr =
            1 << 31 | ps << 16 | 3 << 12 | 1 << 10 | 1 << 8 | sl0 << 6 | (64 - ipa_bits) as u64;
        Self { ipa_bits, root_level, vtcr, pa_range }
    }

    /// The alias bit of protected guests: the highest address bit that ID_AA64MMFR0_EL1.PARange shows them, by which
    /// they find it.
    pub const fn alias_bit(&self) -> u64 {
        1 << match self.pa_range {
            0 => 31,
            1 => 35,
            _ => 39,
        }
    }
}

/// The tables of a stage 2. What is done to them while they are in use is decided in
/// [`crate::memory::stage2`].
#[derive(Debug)]
pub struct Stage2Tables {
    mapping: Mapping<Tables, Stage2Regime>,
    /// What memory is mapped with.
    normal: Stage2Attributes,
}

impl Stage2Tables {
    /// Empty tables; the root comes from `tables`.
    pub fn new(tables: Tables, shape: Stage2Shape) -> Self {
        Self { mapping: Mapping::new(tables, shape.root_level, Stage2Regime), normal: NORMAL }
    }

    /// For a world that runs with HCR_EL2.FWB set; empty as yet.
    #[must_use]
    pub fn forcing_write_back(self) -> Self {
        Self { normal: FORCED, ..self }
    }

    /// The level at which the walk for an address ends, and what it finds.
    fn end_of_walk(&self, ipa: u64) -> (usize, Entry) {
        let mut found = (0, Entry::Nothing);
        let ipa = ipa & !(PAGE_SIZE as u64 - 1);
        // One page: one entry.
        let range = region(ipa, ipa + PAGE_SIZE as u64);
        let _ = self.mapping.walk_range(&range, &mut |_, descriptor, level| {
            let entry = if descriptor.is_valid() {
                let bytes = entry_bytes(level);
                let pa = descriptor.output_address().0 as u64;
                Entry::Leaf(Leaf { ipa: ipa & !(bytes - 1), bytes, pa })
            } else {
                mark_of(descriptor.flags()).map_or(Entry::Nothing, Entry::Marked)
            };
            found = (level, entry);
            Ok(())
        });
        found
    }

    /// A stage 2 of these, under this VMID.
    pub fn with_vmid(self, vmid: u8) -> Stage2<Self> {
        let root = self.mapping.root_address().0 as u64;
        end::stage2_root(vmid, root);
        let vttbr = Vttbr::new(vmid, root);
        Stage2::new(self, vttbr)
    }

    /// Maps a range of RAM one to one for the host, with blocks of 2 MiB at the most, so that one that
    /// is broken is soon made again.
    ///
    /// # Panics
    ///
    /// If a range lies outside the address space: boot only.
    pub fn map_identity_ram(&mut self, start: u64, end: u64) {
        let mut from = start;
        while from < end {
            let to = end.min((from & !(BLOCK_BYTES - 1)) + BLOCK_BYTES);
            self.map(from, from, to - from, NORMAL, Constraints::NO_CONTIGUOUS_HINT);
            from = to;
        }
    }

    /// Maps a range of RAM one to one for devices, in single pages.
    ///
    /// # Panics
    ///
    /// As [`Self::map_identity_ram`].
    pub fn map_identity_pages(&mut self, start: u64, end: u64) {
        if start < end {
            self.fill(start, start, end - start);
        }
    }

    /// The root's physical address, for those who are no CPUs.
    pub fn root(&self) -> u64 {
        self.mapping.root_address().0 as u64
    }

    /// Maps a range of anything but RAM one to one for the host.
    ///
    /// # Panics
    ///
    /// As [`Self::map_identity_ram`].
    pub fn map_identity_device(&mut self, start: u64, end: u64) {
        self.map(start, start, end.saturating_sub(start), DEVICE, Constraints::NO_CONTIGUOUS_HINT);
    }

    fn map(
        &mut self,
        ipa: u64,
        pa: u64,
        bytes: u64,
        attributes: Stage2Attributes,
        constraints: Constraints,
    ) {
        if bytes != 0 {
            self.mapping
                .map_range(
                    &region(ipa, ipa + bytes),
                    PhysicalAddress(pa as usize),
                    attributes,
                    constraints,
                )
                .expect("inside the address space, in tables that no TLB rule is checked for");
        }
    }
}

impl Table for Stage2Tables {
    const BLOCK: u64 = BLOCK_BYTES;

    fn entry(&self, ipa: u64) -> Entry {
        self.end_of_walk(ipa).1
    }

    fn is_free(&self, piece: Piece) -> bool {
        let range = region(piece.ipa, piece.ipa + piece.bytes);
        // An error ends the walk.
        let walk = self.mapping.walk_range(&range, &mut |_, descriptor, _| {
            let is_something = descriptor.is_valid() || mark_of(descriptor.flags()).is_some();
            if is_something { Err(()) } else { Ok(()) }
        });
        walk.is_ok()
    }

    fn find(&self, piece: Piece, mark: Mark) -> Option<u64> {
        let range = region(piece.ipa, piece.ipa + piece.bytes);
        let mut found = None;
        // An error ends the walk.
        let _ = self.mapping.walk_range(&range, &mut |part, descriptor, _| {
            if !descriptor.is_valid() && mark_of(descriptor.flags()) == Some(mark) {
                found = Some(part.start().0 as u64);
                return Err(());
            }
            Ok(())
        });
        found
    }

    fn has_pages(&self, ipa: u64) -> bool {
        self.end_of_walk(ipa).0 == LEAF_LEVEL
    }

    fn run(&self, piece: Piece) -> Option<(u64, u64)> {
        let range = region(piece.ipa, piece.ipa + piece.bytes);
        let (mut first, mut end) = (None, piece.ipa);
        let _ = self.mapping.walk_range(&range, &mut |part, descriptor, level| {
            let from = part.start().0 as u64;
            let pa = descriptor.output_address().0 as u64 + from % entry_bytes(level);
            let first = *first.get_or_insert(pa);
            if !descriptor.is_valid() || pa.wrapping_sub(first) != from - piece.ipa {
                return Err(());
            }
            end = part.end().0 as u64;
            Ok(())
        });
        let count = (end - piece.ipa) / PAGE_SIZE as u64;
        first.filter(|_| count != 0).map(|first| (first, count))
    }

    fn clear(&mut self, piece: Piece) {
        let whole = piece.bytes == BLOCK_BYTES;
        // Where there is neither a table nor a block nothing is written: aarch64-paging would make tables for it.
        match self.end_of_walk(piece.ipa) {
            (LEAF_LEVEL, _) => {}
            (_, Entry::Leaf(_)) if whole => {}
            _ => return,
        }
        let nothing = Stage2Attributes::empty();
        self.map(piece.ipa, 0, piece.bytes, nothing, Constraints::empty());
    }

    fn mark(&mut self, ipa: u64, mark: Mark) {
        for (_, flags) in MARKS.into_iter().filter(|&(of, _)| of == mark) {
            self.map(ipa, 0, PAGE_SIZE as u64, flags, Constraints::NO_BLOCK_MAPPINGS);
        }
    }

    fn unmark(&mut self, ipa: u64) {
        let nothing = Stage2Attributes::empty();
        self.map(ipa, 0, PAGE_SIZE as u64, nothing, Constraints::NO_BLOCK_MAPPINGS);
    }

    fn fill(&mut self, ipa: u64, pa: u64, bytes: u64) {
        let pages = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        self.map(ipa, pa, bytes, self.normal, pages);
    }

    fn fill_block(&mut self, ipa: u64, pa: u64) {
        self.map(ipa, pa, BLOCK_BYTES, self.normal, Constraints::NO_CONTIGUOUS_HINT);
    }
}
