//! Files in the initial RAM disk, a newc cpio archive.

use super::{layout, machine::Machine};

/// The content of the file `name`.
pub fn file(machine: &Machine, name: &str) -> Option<&'static [u8]> {
    let range = machine.initrd.clone()?;
    let bytes = (range.end - range.start) as usize;
    // SAFETY: the initrd is RAM in the linear map, reserved in the page allocator, and nobody writes
    // to it.
    let archive = unsafe { core::slice::from_raw_parts(layout::linear::<u8>(range.start), bytes) };
    cpio_reader::iter_files(archive)
        .find(|entry| entry.name().trim_start_matches("./") == name)
        .map(|entry| entry.file())
}
