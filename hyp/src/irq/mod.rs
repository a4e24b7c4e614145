//! The GIC, as far as it is a master: what can make it read or write memory is hyp's.
//!
//! An ITS and the redistributors' LPIs work on tables in memory: whoever names them reads and writes any
//! address through them, stage 2 or not. So the host has neither their addresses nor their commands. It finds
//! the registers where they are, and in them, and in commands, whatever it likes to write; what comes of that is
//! decided here:
//!
//! | file | what |
//! |---|---|
//! | [`frames`] | which registers are whose |
//! | [`redistributor`] | RD_base frames: LPIs' two tables |
//! | [`its`] | an ITS: registers, queue, tables, and what if it loses them |
//! | [`command`] | its commands, the host's and hyp's |
//! | [`itts`] | room for ITTs, and whose they are |
//! | [`registers`], [`machine`] | names; what is needed of a machine |
//! | `hw` | the target's side |
//!
//! | of the host's | is |
//! |---|---|
//! | GITS_BASER, GITS_CBASER, an ITT's address in MAPD | remembered or forgotten; the tables are hyp's |
//! | its queue | read by hyp, each command once, if the page is the host's |
//! | GICR_PENDBASER | remembered; the tables are hyp's |
//! | GICR_PROPBASER | its own memory, which it then can't give away |
//! | RDbase in MAPC, SYNC, MOVALL | one that there is |
//!
//! The distributor and SGI_base frames name no memory and are the host's. So is sending: devices write
//! GITS_TRANSLATER, which is a page in their own stage 2 (`hw::doorbells`), and no CPU does. Of GICv4 the host
//! finds nothing: an ITS's TYPER doesn't say so, commands about virtual interrupts are errors, and VLPI frames read
//! as zero (they must be there: GICR_TYPER.VLPIS says where the next redistributor is).
//!
//! # What it costs
//!
//! In hyp's pool 64 KiB for each CPU, for its pending table, and 1 MiB for each ITS: at most 64 KiB for either table, the
//! rest for ITTs and what of the table of devices is in use. A host's store or load that comes here is a trap;
//! that is when an interrupt is mapped, moved, masked or unmasked, and when a CPU comes or goes. An interrupt that is
//! taken costs nothing.
//!
//! # The end
//!
//! What the GIC still writes when the machine has ended are tables of its own in hyp's pool, which is wiped: with the
//! table of devices zeroed nothing is translated, and what a redistributor has kept of pending bits is all
//! that can come to lie there. Nothing of a VM is among it. The configuration table that is still read is the
//! host's.

pub mod command;
pub mod frames;
#[cfg(target_os = "none")]
pub mod hw;
pub mod its;
pub mod itts;
pub mod machine;
pub mod redistributor;
pub mod registers;
#[cfg(test)]
mod tests;
