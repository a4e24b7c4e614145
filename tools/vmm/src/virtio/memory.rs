//! Guest memory, as devices see it.

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions};

/// Guest memory behind the addresses of queues: rings, descriptors and tables of them.
///
/// Devices have no other way to memory, so one function sees each address that a driver says.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    memory: GuestMemoryMmap,
    alias: u64,
}

impl DeviceMemory {
    /// All of this memory. A protected guest, and no other, says by the bit `alias` that it shares what is behind an address,
    /// which is where it is without.
    pub fn new(memory: GuestMemoryMmap, alias: u64) -> Self {
        Self { memory, alias }
    }

    /// Where in guest-physical memory a device's address is.
    const fn physical(&self, address: GuestAddress) -> GuestAddress {
        GuestAddress(address.0 & !self.alias)
    }

    /// Whether addresses aren't what drivers that know of no such thing take them for.
    pub const fn is_translated(&self) -> bool {
        self.alias != 0
    }
}

impl GuestMemory for DeviceMemory {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, _access: Permissions) -> bool {
        GuestMemoryBackend::check_range(&self.memory, self.physical(address), count)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
        Ok(GuestMemoryBackend::get_slices(&self.memory, self.physical(address), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn what_is_shared_is_where_it_is_without_the_alias() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        memory.write_slice(b"shared", GuestAddress(0x1100)).unwrap();
        const ALIAS: u64 = 1 << 39;
        let read = |device: &DeviceMemory, address| {
            let slices = GuestMemory::get_slices(device, address, 6, Permissions::Read);
            let slice = slices.unwrap().next().unwrap().ok()?;
            let mut bytes = [0; 6];
            slice.copy_to(&mut bytes);
            Some(bytes)
        };
        let (normal, protected) =
            (DeviceMemory::new(memory.clone(), 0), DeviceMemory::new(memory, ALIAS));
        assert!(!normal.is_translated() && protected.is_translated());
        for device in [&normal, &protected] {
            assert_eq!(read(device, GuestAddress(0x1100)), Some(*b"shared"));
        }
        assert_eq!(read(&protected, GuestAddress(ALIAS | 0x1100)), Some(*b"shared"));
        assert_eq!(read(&normal, GuestAddress(ALIAS | 0x1100)), None);
        assert_eq!(read(&protected, GuestAddress(ALIAS << 1 | 0x1100)), None);
        let fits =
            |address| protected.check_range(GuestAddress(address), 0x1000, Permissions::Write);
        assert!(fits(ALIAS | 0x1000) && !fits(ALIAS | 0x1001));
    }
}
