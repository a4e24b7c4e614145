//! The tests, by area.

mod aarch32;
mod aarch32_fp;
mod aarch32_traps;
mod aborts;
mod alias;
mod blocks;
mod dma;
mod dma_open;
mod dma_policy;
mod dma_withheld;
mod exits;
mod fp_smp;
mod fp_switch;
mod fp_traps;
mod gic;
mod guest_power;
mod hidden;
mod host_call;
mod host_vl;
mod interrupts;
mod its;
mod junk;
mod levels;
mod lifecycle;
mod list_registers;
mod measurement;
mod memory;
mod mmio_guard;
mod on_demand;
mod one_reg;
pub mod pages;
mod power;
mod registers;
mod reserved;
mod rsi;
mod run_loop;
mod sealed;
mod sharing;
mod sme_guest;
mod sme_host;
mod sme_switch;
mod spellings;
mod storm;
mod tasks;
mod trng;
mod trouble;
mod unshare;
mod version;
mod vgic;
mod vgic_driver;
mod vgic_smp;

use crate::runner::Area;
use umbra_shared::call::Policy;

/// All of them.
const POLICIES: [Policy; 3] = [Policy::Lazy, Policy::Eager, Policy::Scrub];

/// Areas that are for machines of their own, which name them (`areas=AREA,AREA`).
pub const NAMED_ONLY: &[&str] = &["dma", "dma_open", "dma_policy", "dma_withheld"];

/// All of them, in the order in which they run.
pub const ALL: &[Area] = &[
    ("version", version::TESTS),
    ("spellings", spellings::TESTS),
    ("pages", pages::TESTS),
    ("lifecycle", lifecycle::TESTS),
    ("memory", memory::TESTS),
    ("blocks", blocks::TESTS),
    ("aborts", aborts::TESTS),
    ("reserved", reserved::TESTS),
    ("gic", gic::TESTS),
    ("its", its::TESTS),
    ("sealed", sealed::TESTS),
    ("mmio_guard", mmio_guard::TESTS),
    ("guest_power", guest_power::TESTS),
    ("sharing", sharing::TESTS),
    ("unshare", unshare::TESTS),
    ("alias", alias::TESTS),
    ("junk", junk::TESTS),
    ("rsi", rsi::TESTS),
    ("measurement", measurement::TESTS),
    ("host_call", host_call::TESTS),
    ("registers", registers::TESTS),
    ("one_reg", one_reg::TESTS),
    ("on_demand", on_demand::TESTS),
    ("hidden", hidden::TESTS),
    ("exits", exits::TESTS),
    ("levels", levels::TESTS),
    ("aarch32", aarch32::TESTS),
    ("aarch32_traps", aarch32_traps::TESTS),
    ("aarch32_fp", aarch32_fp::TESTS),
    ("interrupts", interrupts::TESTS),
    ("list_registers", list_registers::TESTS),
    ("run_loop", run_loop::TESTS),
    ("vgic", vgic::TESTS),
    ("vgic_smp", vgic_smp::TESTS),
    ("vgic_driver", vgic_driver::TESTS),
    ("fp_switch", fp_switch::TESTS),
    ("fp_traps", fp_traps::TESTS),
    ("fp_smp", fp_smp::TESTS),
    ("host_vl", host_vl::TESTS),
    ("trng", trng::TESTS),
    ("tasks", tasks::TESTS),
    ("power", power::TESTS),
    ("trouble", trouble::TESTS),
    ("sme_host", sme_host::TESTS),
    ("sme_guest", sme_guest::TESTS),
    ("sme_switch", sme_switch::TESTS),
    ("storm", storm::TESTS),
    ("dma", dma::TESTS),
    ("dma_open", dma_open::TESTS),
    ("dma_policy", dma_policy::TESTS),
    ("dma_withheld", dma_withheld::TESTS),
];
