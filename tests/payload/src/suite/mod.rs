//! The tests, by area.

mod fp_switch;
mod lifecycle;
mod memory;
mod pages;
mod version;

use crate::runner::Named;

/// All of them, in the order in which they run.
pub const ALL: &[&[Named]] =
    &[version::TESTS, pages::TESTS, lifecycle::TESTS, memory::TESTS, fp_switch::TESTS];
