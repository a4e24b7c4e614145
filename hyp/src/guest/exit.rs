//! Exits to the host.

#![forbid(unsafe_code)]

use crate::world::interrupts;
use umbra_shared::exit::{ExitInfo, Reason};

/// An exit to the host: the reason and what goes with it into x2 and up.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Reason, and size and direction of an MMIO access.
    pub info: ExitInfo,
    /// x2-x7.
    pub data: [u64; 6],
}

impl Exit {
    /// An exit with data.
    pub const fn new(reason: Reason, data: [u64; 6]) -> Self {
        Self { info: ExitInfo::new(reason, 0), data }
    }

    /// The guest, whose registers are this CPU's, waits for an interrupt.
    pub fn wfi() -> Self {
        Self::new(Reason::Wfi, [interrupts::signalled().bits(), interrupts::deadline(), 0, 0, 0, 0])
    }
}
