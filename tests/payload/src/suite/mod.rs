//! The tests, by area.

mod exits;
mod fp_switch;
mod hidden;
mod interrupts;
mod lifecycle;
mod memory;
mod pages;
mod registers;
mod version;

use crate::runner::Named;

/// All of them, in the order in which they run.
pub const ALL: &[&[Named]] = &[
    version::TESTS,
    pages::TESTS,
    lifecycle::TESTS,
    memory::TESTS,
    registers::TESTS,
    hidden::TESTS,
    exits::TESTS,
    interrupts::TESTS,
    fp_switch::TESTS,
];
