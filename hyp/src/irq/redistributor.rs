//! Redistributors: the host's accesses to their RD_base frames.
//!
//! It could read them as they are, with stage 2 read-only there. But of a store that stage 2 doesn't permit no CPU has to
//! say where it was (HPFAR_EL2 is UNKNOWN for permission faults), and hyp does without AT, which would find it
//! (speculated at the wrong moment it fills TLBs with mixtures of two worlds: [`crate::world::errata`]).
//!
//! Two registers name memory. The pending tables (GICR_PENDBASER) are hyp's own, one for each redistributor: what
//! the host writes there says no more than whether it begins with an empty one. (What it has put into a table
//! of its own is not looked at.) The configuration table (GICR_PROPBASER) is the host's: it changes bytes there all the
//! time, and tells the GIC with INV or GICR_INVLPIR, so a copy of hyp's would cost a trap and a look through the host's
//! memory for each; and all that the GIC ever does with it is to read, for interrupts that are the host's anyway.
//! What must not be is that a page of it becomes somebody else's: the GIC would go on reading it, and show what it
//! reads. So before the register is written all of its pages are checked to be the host's alone, and from then
//! on nobody can give them away ([`Machine::pin`]). All redistributors that have LPIs
//! on have one table, as the architecture wants it (IHI 0069, GICR_PROPBASER): the last that one was enabled with; those
//! that had another are off.
//!
//! GICR_CTLR.EnableLPIs is the host's, with tables that have been checked; GICR_WAKER is, and what invalidates or sets
//! single LPIs. The rest is not: what it could be for is either read-only or of memory (GICR_PARTIDR) or power, or
//! somebody's own. SGI_base has nothing of the kind and doesn't come here.

#![forbid(unsafe_code)]

mod wake;

use super::frames::MAX_REDISTRIBUTORS;
use super::machine::{Machine, Place, read32, read64, wait, write32, write64};
use super::registers::{FIRST_LPI, GICR_NORMAL, Width, gicr, merge, part};
use arrayvec::ArrayVec;
use thiserror::Error;

/// Bits of an LPI's INTID at the most: 57344 LPIs. What Linux uses, too.
pub const MAX_LPI_BITS: u32 = 16;
/// What a pending table is aligned to, and as much as hyp sets aside for one: 2^[`MAX_LPI_BITS`] bits fit.
pub const PENDING_BYTES: u64 = 64 << 10;

const PAGE: u64 = umbra_shared::PAGE_SIZE as u64;

/// A configuration table that has been checked: its pages are the host's for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Configuration {
    /// Physical address.
    pa: u64,
    /// Bits of an INTID.
    bits: u32,
    /// GICR_PROPBASER.
    register: u64,
}

/// Why a redistributor can't be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Stuck {
    #[error("LPIs are on and can't be turned off")]
    On,
    #[error("GICR_CTLR.RWP stays set")]
    Busy,
}

/// A redistributor.
#[derive(Debug)]
struct Redistributor {
    /// It has LPIs, and hyp has a table for them.
    pending: Option<u64>,
    /// GICR_TYPER.
    typer: u64,
    /// GICR_CTLR.IR.
    invalidates: bool,
    /// GICR_PROPBASER and GICR_PENDBASER as the host has written them.
    propbaser: u64,
    pendbaser: u64,
    /// GICR_PENDBASER when LPIs were last enabled.
    in_force: Option<u64>,
    configuration: Option<Configuration>,
}

/// All of them.
#[derive(Debug)]
pub struct Redistributors {
    all: ArrayVec<Redistributor, MAX_REDISTRIBUTORS>,
    lpi_bits: u32,
}

/// Pages of a configuration table for INTIDs of so many bits (at least 14).
const fn pages(bits: u32) -> u64 {
    ((1u64 << bits) - FIRST_LPI as u64).div_ceil(PAGE)
}

impl Redistributors {
    /// None.
    pub const fn new() -> Self {
        Self { all: ArrayVec::new_const(), lpi_bits: 0 }
    }

    /// LPIs have so many bits (14 to [`MAX_LPI_BITS`]; less: there are none). Boot only.
    pub const fn set_lpi_bits(&mut self, bits: u32) {
        self.lpi_bits = bits;
    }

    /// Bits of an LPI's INTID.
    pub const fn lpi_bits(&self) -> u32 {
        self.lpi_bits
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.all.len()
    }

    /// Takes the next one over: its LPIs are off, and its tables are nobody's. `pending` is [`PENDING_BYTES`] of
    /// zeroes of hyp's own, aligned to as much, if it has LPIs.
    ///
    /// # Errors
    ///
    /// If LPIs are on that can't be turned off. Boot only; there is room for it.
    pub fn add(&mut self, machine: &mut impl Machine, pending: Option<u64>) -> Result<(), Stuck> {
        let place = Place::Redistributor(self.all.len());
        // One that hyp has no table for, too: RES0 where there are no LPIs.
        turn_off(machine, place)?;
        if let Some(pending) = pending {
            write64(machine, place, gicr::PROPBASER, 0);
            write64(machine, place, gicr::PENDBASER, pending | GICR_NORMAL);
        }
        self.all.push(Redistributor {
            pending,
            typer: read64(machine, place, gicr::TYPER),
            invalidates: read32(machine, place, gicr::CTLR) & gicr::INVALIDATE != 0,
            propbaser: 0,
            pendbaser: 0,
            in_force: None,
            configuration: None,
        });
        Ok(())
    }

    /// The host loads a register of number `n`, at `offset`, aligned to the width. Those that are there are as they are,
    /// but for the table that is hyp's, and GICv4.1, which nobody has. What is not there is zero, and is not looked at: how
    /// a GIC answers a load of nothing, or of two registers at once, would be hyp's to bear.
    pub fn load(&mut self, machine: &mut impl Machine, n: usize, offset: u32, width: Width) -> u64 {
        let Some(this) = self.all.get(n) else { return 0 };
        let place = Place::Redistributor(n);
        match (offset & !7, width) {
            (gicr::PENDBASER, _) => part(this.pendbaser & !gicr::PENDBASER_PTZ, offset, width),
            (gicr::TYPER, _) => part(this.typer & !gicr::TYPER_RVPEID, offset, width),
            (gicr::PROPBASER, _) => machine.read(place, offset, width),
            (_, Width::Word) if is_there(offset) => machine.read(place, offset, width),
            (_, Width::Doubleword) => {
                let mut word =
                    |at| if is_there(at) { machine.read(place, at, Width::Word) } else { 0 };
                word(offset) | word(offset + 4) << 32
            }
            _ => 0,
        }
    }

    /// The host stores to a register of number `n`, at `offset`, aligned to the width.
    pub fn store(
        &mut self,
        machine: &mut impl Machine,
        n: usize,
        offset: u32,
        width: Width,
        value: u64,
    ) {
        let lpi_bits = self.lpi_bits;
        let Some(this) = self.all.get_mut(n) else { return };
        let place = Place::Redistributor(n);
        let is_lpi = |value: u64| {
            let intid = value & 0xffff_ffff;
            intid >= u64::from(FIRST_LPI) && intid >> lpi_bits == 0
        };
        match (offset & !7, offset) {
            (_, gicr::CTLR) => self.set_ctlr(machine, n, value as u32),
            (_, gicr::WAKER) => {
                let waker = read32(machine, place, gicr::WAKER) & !gicr::PROCESSOR_SLEEP;
                write32(machine, place, offset, waker | value as u32 & gicr::PROCESSOR_SLEEP);
            }
            (_, gicr::STATUSR) => {
                write32(machine, place, offset, value as u32 & gicr::STATUSR_BITS);
            }
            // UNPREDICTABLE while LPIs are on.
            (gicr::PROPBASER | gicr::PENDBASER, _) if this.is_on(machine, n) => {}
            (gicr::PROPBASER, _) => {
                this.propbaser = merge(this.propbaser, offset, width, value);
                self.set_configuration(machine, n);
            }
            (gicr::PENDBASER, _) => {
                this.pendbaser = merge(this.pendbaser, offset, width, value);
            }
            // One INTID each, with nothing of a virtual PE's.
            (register @ (gicr::SETLPIR | gicr::CLRLPIR), _)
                if offset == register && this.sets() && is_lpi(value) =>
            {
                write64(machine, place, register, value & 0xffff_ffff);
            }
            (gicr::INVLPIR, gicr::INVLPIR) if this.forgets() && is_lpi(value) => {
                write64(machine, place, gicr::INVLPIR, value & 0xffff_ffff);
            }
            (gicr::INVALLR, gicr::INVALLR) if this.forgets() => {
                write64(machine, place, gicr::INVALLR, 0);
            }
            _ => {}
        }
    }

    /// GICR_PROPBASER has been written: into the hardware it comes if all of it is the host's.
    fn set_configuration(&mut self, machine: &mut impl Machine, n: usize) {
        let this = &mut self.all[n];
        let asked = (this.propbaser & gicr::PROPBASER_IDBITS) as u32 + 1;
        let bits = asked.min(self.lpi_bits);
        // Fewer than 14 bits: no LPIs.
        if this.pending.is_none() || bits < 14 {
            return;
        }
        let pa = this.propbaser & gicr::PROPBASER_ADDRESS;
        let register = this.propbaser & gicr::PROPBASER_ATTRIBUTES | pa | u64::from(bits - 1);
        if machine.pin(pa, pages(bits)) {
            this.configuration = Some(Configuration { pa, bits, register });
            write64(machine, Place::Redistributor(n), gicr::PROPBASER, register);
        }
    }

    fn set_ctlr(&mut self, machine: &mut impl Machine, n: usize, value: u32) {
        let place = Place::Redistributor(n);
        let dpg = value & gicr::DPG;
        let on = self.all[n].is_on(machine, n);
        let enable = match (on, value & gicr::ENABLE_LPIS != 0) {
            (false, true) => self.give_tables(machine, n),
            (_, enable) => enable,
        };
        write32(machine, place, gicr::CTLR, dpg | if enable { gicr::ENABLE_LPIS } else { 0 });
    }

    /// Before LPIs are enabled: the redistributor has tables, whatever became of its registers while its CPU was
    /// off, and none that has LPIs on has another configuration table. `false`: the host has none for it, or one that has
    /// another can't be turned off.
    fn give_tables(&mut self, machine: &mut impl Machine, n: usize) -> bool {
        let this = &self.all[n];
        let (Some(pending), Some(configuration)) = (this.pending, this.configuration) else {
            return false;
        };
        let same =
            |other: Configuration| (other.pa, other.bits) == (configuration.pa, configuration.bits);
        let others = self.all.iter().enumerate().filter(|(other, _)| *other != n);
        for (other, redistributor) in others {
            let differs = redistributor.configuration.is_some_and(|other| !same(other));
            // Those of CPUs that are off, say, while a kernel begins anew with a table of its own.
            if differs
                && redistributor.is_on(machine, other)
                && turn_off(machine, Place::Redistributor(other)).is_err()
            {
                return false;
            }
        }
        let place = Place::Redistributor(n);
        // The tables are in use until it has done with the last change.
        if !wait(machine, place, gicr::CTLR, |ctlr| ctlr & gicr::RWP == 0) {
            return false;
        }
        let this = &mut self.all[n];
        let empty = this.pendbaser & gicr::PENDBASER_PTZ != 0
            || this.in_force.is_none_or(|before| before != this.pendbaser);
        if empty {
            machine.zero(pending, PENDING_BYTES);
        }
        this.in_force = Some(this.pendbaser & !gicr::PENDBASER_PTZ);
        let ptz = if empty { gicr::PENDBASER_PTZ } else { 0 };
        write64(machine, place, gicr::PENDBASER, pending | GICR_NORMAL | ptz);
        if read64(machine, place, gicr::PENDBASER) & gicr::PENDBASER_ADDRESS != pending {
            return false;
        }
        write64(machine, place, gicr::PROPBASER, configuration.register);
        true
    }
}

/// Whether a register of 32 bits is there to be read, beside those of 64 (IHI 0069, table of the RD_base frame).
const fn is_there(offset: u32) -> bool {
    const IDENTIFICATION: core::ops::RangeInclusive<u32> = 0xffd0..=0xfffc;
    matches!(offset, gicr::CTLR | gicr::IIDR | gicr::STATUSR | gicr::WAKER | gicr::SYNCR)
        || (offset >= *IDENTIFICATION.start() && offset <= *IDENTIFICATION.end())
}

/// Turns a redistributor's LPIs off, if they are on.
fn turn_off(machine: &mut impl Machine, place: Place) -> Result<(), Stuck> {
    let ctlr = read32(machine, place, gicr::CTLR);
    if ctlr & gicr::ENABLE_LPIS != 0 {
        write32(machine, place, gicr::CTLR, ctlr & gicr::DPG);
    }
    if !wait(machine, place, gicr::CTLR, |ctlr| ctlr & gicr::RWP == 0) {
        return Err(Stuck::Busy);
    }
    let on = read32(machine, place, gicr::CTLR) & gicr::ENABLE_LPIS != 0;
    if on { Err(Stuck::On) } else { Ok(()) }
}

impl Redistributor {
    /// Whether it has GICR_SETLPIR and GICR_CLRLPIR. (Without DirectLPI they are IMPLEMENTATION DEFINED.)
    const fn sets(&self) -> bool {
        self.pending.is_some() && self.typer & gicr::TYPER_DIRECT_LPI != 0
    }

    /// Whether it has GICR_INVLPIR and GICR_INVALLR.
    const fn forgets(&self) -> bool {
        let has = self.typer & (gicr::TYPER_DIRECT_LPI | gicr::TYPER_RVPEID) != 0;
        self.pending.is_some() && (has || self.invalidates)
    }

    /// Whether its LPIs are on, by what the hardware says.
    fn is_on(&self, machine: &mut impl Machine, n: usize) -> bool {
        let mut ctlr = || read32(machine, Place::Redistributor(n), gicr::CTLR);
        self.pending.is_some() && ctlr() & gicr::ENABLE_LPIS != 0
    }
}

impl Default for Redistributors {
    fn default() -> Self {
        Self::new()
    }
}
