//! The tests, by area.

mod fp_switch;
mod version;

use crate::runner::Named;

/// All of them, in the order in which they run.
pub const ALL: &[&[Named]] = &[version::TESTS, fp_switch::TESTS];
