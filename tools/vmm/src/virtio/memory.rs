//! Guest memory, as devices see it.

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions};

/// Guest memory behind the addresses of queues: rings, descriptors and tables of them.
///
/// Devices have no other way to memory, so one function sees each address that a driver says.
#[derive(Clone, Debug)]
pub struct DeviceMemory(GuestMemoryMmap);

impl DeviceMemory {
    /// All of this memory.
    pub fn new(memory: GuestMemoryMmap) -> Self {
        Self(memory)
    }

    /// Where in guest-physical memory a device's address is. They are the same.
    fn physical(address: GuestAddress) -> GuestAddress {
        address
    }
}

impl GuestMemory for DeviceMemory {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, _access: Permissions) -> bool {
        GuestMemoryBackend::check_range(&self.0, Self::physical(address), count)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
        Ok(GuestMemoryBackend::get_slices(&self.0, Self::physical(address), count))
    }
}
