//! The tests, by area.

mod aarch32;
mod aarch32_fp;
mod exits;
mod fp_smp;
mod fp_switch;
mod fp_traps;
mod hidden;
mod host_vl;
mod interrupts;
mod lifecycle;
mod memory;
pub mod pages;
mod power;
mod registers;
mod sharing;
mod storm;
mod tasks;
mod version;

use crate::runner::Named;
use umbra_shared::call::Policy;

/// All of them.
const POLICIES: [Policy; 3] = [Policy::Lazy, Policy::Eager, Policy::Scrub];

/// All of them, in the order in which they run.
pub const ALL: &[&[Named]] = &[
    version::TESTS,
    pages::TESTS,
    lifecycle::TESTS,
    memory::TESTS,
    sharing::TESTS,
    registers::TESTS,
    hidden::TESTS,
    exits::TESTS,
    aarch32::TESTS,
    aarch32_fp::TESTS,
    interrupts::TESTS,
    fp_switch::TESTS,
    fp_traps::TESTS,
    fp_smp::TESTS,
    host_vl::TESTS,
    tasks::TESTS,
    power::TESTS,
    storm::TESTS,
];
