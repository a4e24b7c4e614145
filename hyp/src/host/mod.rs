//! What the host traps on (`traps`): hypercalls (`calls`), aborts, FP, and its counters (`report`).

pub mod calls;
pub mod report;
pub mod traps;
