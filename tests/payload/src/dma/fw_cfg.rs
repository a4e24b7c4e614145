//! QEMU's fw_cfg (docs/specs/fw_cfg): told where a description is, it reads that, writes an item to where
//! the description says, and writes to the description that it is done. All of it at once.

use crate::{context::context, ledger, runner::Skip};
use umbra_host::kernel::{
    exception::{Fault, probe_read, probe_write, probe_write_virtual},
    layout,
};

/// The register that takes an address, big endian.
const ADDRESS: u64 = 0x10;
/// Of a description: choose the item, write it to memory.
const SELECT: u32 = 8;
const READ: u32 = 2;
/// The first item: the text `QEMU`, and zeroes behind it.
const SIGNATURE: u64 = 0x554d_4551;

/// The device.
#[derive(Clone, Copy, Debug)]
pub struct FwCfg {
    registers: u64,
    /// A page of the test's.
    scratch: u64,
}

/// It, if the machine has one, whether this kernel may use it or not.
pub fn find() -> Result<FwCfg, Skip> {
    let device = context().machine.masters.fw_cfg.as_ref().ok_or(Skip("no fw_cfg"))?;
    Ok(FwCfg { registers: device.range.start, scratch: ledger::take(1) })
}

impl FwCfg {
    /// Has it write [`Self::written`] to an address.
    ///
    /// # Errors
    ///
    /// The device was out of reach.
    pub fn write_to(&self, pa: u64) -> Result<(), Fault> {
        let control = (SELECT | READ).to_be();
        let bytes = 8u32.to_be();
        // SAFETY: a page of the test's.
        unsafe {
            probe_write(self.scratch, u64::from(control) | u64::from(bytes) << 32)?;
            probe_write(self.scratch + 8, pa.to_be())?;
        }
        self.read_description_at(self.scratch)
    }

    /// Has it read a description at an address, and write there what came of it.
    ///
    /// # Errors
    ///
    /// The device was out of reach.
    pub fn read_description_at(&self, pa: u64) -> Result<(), Fault> {
        let register = layout::device::<u64>(self.registers + ADDRESS);
        // SAFETY: what is written is a register of the device's. What it does to memory is what the test
        // is about.
        unsafe {
            // What it is to read has been written before it is told.
            core::arch::asm!("dsb sy", options(nostack));
            probe_write_virtual(register.as_ptr() as u64, pa.to_be())
        }
    }

    /// Whether what it was told last is done: its description has changed.
    pub fn is_done(&self) -> bool {
        probe_read(self.scratch).is_ok_and(|word| word as u32 == 0)
    }

    /// What it writes.
    pub const fn written() -> u64 {
        SIGNATURE
    }
}
