//! Devices: what one of the host's reads or writes is what the host could.
//!
//! Hyp doesn't see an access of a device, so the test kernel says when one begins, and how it ended. In between
//! pages change hands on other CPUs: what must have been possible is that it ended so.

use umbra_shared::record::DeviceNote;

use crate::Spec;

/// An access that has begun on a CPU's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The page.
    page: u64,
    /// At some time since it began, the host had access.
    may: bool,
    /// At some time it had none.
    may_not: bool,
}

impl Spec {
    /// The test kernel's word.
    pub(crate) fn device_note(&mut self, cpu: usize, note: DeviceNote) -> Result<(), String> {
        let access = match note {
            DeviceNote::Begins { pa } => {
                let page = pa / 4096;
                self.accesses.insert(cpu, Access { page, may: false, may_not: false });
                self.time_passes();
                return Ok(());
            }
            DeviceNote::Reached | DeviceNote::Refused | DeviceNote::Unknown => {
                self.accesses.remove(&cpu).ok_or("no access of a device has begun")?
            }
        };
        let page = access.page;
        match note {
            DeviceNote::Reached if !access.may => {
                Err(format!("a device reached page {page:#x}, which was not the host's"))
            }
            DeviceNote::Refused if !access.may_not => {
                Err(format!("a device was refused page {page:#x}, which was the host's"))
            }
            _ => Ok(()),
        }
    }

    /// Something has changed, or has begun: what accesses under way may have met.
    pub(crate) fn time_passes(&mut self) {
        for access in self.accesses.values_mut() {
            let host = self.memory.get(access.page).is_some_and(|owner| owner.host_has_access());
            access.may |= host;
            access.may_not |= !host;
        }
    }
}
