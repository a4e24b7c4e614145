//! What is in memory when the guest begins: its kernel, its initrd, the device tree.
//!
//! All of it follows from the command line, the files that it names and [`affinity`]'s rule: there is nothing random in it, and nothing of the
//! machine's. So what a protected VM is measured by can be computed elsewhere ([`crate::measure`]).
#![forbid(unsafe_code)]

use crate::arguments::Run;
use crate::devices;
use crate::layout;
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use umbra_shared::package::{IMAGE_MAGIC, ImageHeader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::{FromZeros, IntoBytes};

/// Where the first vCPU begins, and what it finds in x0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The kernel's first instruction.
    pub entry: u64,
    /// The device tree.
    pub tree: u64,
}

/// Puts everything into memory, and touches no page of it beside. `alias` is the bit by which a protected guest tells what it shares.
///
/// # Errors
///
/// A file can't be read, or is too large for this memory.
pub fn load<M: GuestMemoryBackend>(
    arguments: &Run,
    memory: &M,
    affinities: &[u64],
    alias: u64,
) -> Result<Start> {
    let complain = |path: &Path| path.display().to_string();
    let kernel = load_kernel(&arguments.kernel, memory);
    let (entry, kernel_end) = kernel.with_context(|| complain(&arguments.kernel))?;

    let tree_at = layout::RAM + arguments.memory - layout::GRANULE;
    let mut initrd = None;
    if let Some(path) = &arguments.initrd {
        let mut file = File::open(path).with_context(|| complain(path))?;
        let bytes = file.metadata()?.len();
        let end = tree_at / layout::GRANULE * layout::GRANULE;
        let at = end.checked_sub(bytes).map(|at| at / layout::GRANULE * layout::GRANULE);
        let at = at.filter(|&at| at >= kernel_end);
        let at = at.with_context(|| format!("no room for {}", path.display()))?;
        memory
            .read_exact_volatile_from(GuestAddress(at), &mut file, bytes as usize)
            .with_context(|| complain(path))?;
        initrd = Some((at, bytes));
    }
    ensure!(kernel_end <= tree_at, "no room for the device tree");
    let tree = Tree {
        command_line: &arguments.command_line(),
        cpus: affinities,
        memory: arguments.memory,
        initrd,
        virtio: devices::count(arguments),
        protected: arguments.protected,
        alias: if arguments.unaware { alias } else { 0 },
    };
    let blob = tree.write()?;
    ensure!(blob.len() as u64 <= layout::GRANULE, "the device tree has {} bytes", blob.len());
    memory.write_slice(&blob, GuestAddress(tree_at)).context("the device tree")?;
    Ok(Start { entry, tree: tree_at })
}

/// An arm64 `Image` (Linux Documentation/arch/arm64/booting.rst): where it begins, and where what it needs ends.
fn load_kernel<M: GuestMemoryBackend>(path: &Path, memory: &M) -> Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut header = ImageHeader::new_zeroed();
    file.read_exact(header.as_mut_bytes()).context("no arm64 Image")?;
    // One without its size is older than Linux 3.17, and begins elsewhere.
    let is_image = header.magic == IMAGE_MAGIC && header.image_size != 0;
    ensure!(is_image, "no arm64 Image");
    let entry = layout::RAM.checked_add(header.text_offset);
    let end = entry.and_then(|entry| entry.checked_add(header.image_size.max(bytes)));
    let (entry, end) = entry.zip(end).context("an Image without an end")?;
    file.rewind()?;
    memory.read_exact_volatile_from(GuestAddress(entry), &mut file, bytes as usize)?;
    Ok((entry, end))
}

/// The affinity by which KVM tells a vCPU from others (Linux, `reset_mpidr`): 16 to a cluster.
pub fn affinity(index: u64) -> u64 {
    (index >> 12 & 0xff) << 16 | (index >> 4 & 0xff) << 8 | index & 0xf
}
