//! What is in memory when the guest begins: its kernel, its initrd, the device tree.
#![forbid(unsafe_code)]

use crate::arguments::Run;
use crate::layout;
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use linux_loader::loader::{KernelLoader, load_dtb, pe::PE};
use std::fs::File;
use std::io::Cursor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Puts everything into memory. Returns where the first vCPU begins, and where the tree is.
///
/// # Errors
///
/// A file can't be read, or is too large for this memory.
pub fn load(
    arguments: &Run,
    memory: &GuestMemoryMmap,
    affinities: &[u64],
    virtio: usize,
) -> Result<(u64, u64)> {
    let complain = |path: &std::path::Path| path.display().to_string();
    let mut kernel = File::open(&arguments.kernel).with_context(|| complain(&arguments.kernel))?;
    let loaded = PE::load(memory, Some(GuestAddress(layout::RAM)), &mut kernel, None);
    let loaded = loaded.with_context(|| complain(&arguments.kernel))?;

    let tree_at = layout::RAM + arguments.memory - layout::GRANULE;
    let mut initrd = None;
    if let Some(path) = &arguments.initrd {
        let mut file = File::open(path).with_context(|| complain(path))?;
        let bytes = file.metadata()?.len();
        let end = tree_at / layout::GRANULE * layout::GRANULE;
        let at = end.checked_sub(bytes).map(|at| at / layout::GRANULE * layout::GRANULE);
        let at = at.filter(|&at| at >= loaded.kernel_end);
        let at = at.with_context(|| format!("no room for {}", path.display()))?;
        memory
            .read_exact_volatile_from(GuestAddress(at), &mut file, bytes as usize)
            .with_context(|| complain(path))?;
        initrd = Some((at, bytes));
    }
    ensure!(loaded.kernel_end <= tree_at, "no room for the device tree");
    let tree = Tree {
        command_line: &arguments.command_line(),
        cpus: affinities,
        memory: arguments.memory,
        initrd,
        virtio,
        protected: arguments.protected,
    };
    let mut blob = Cursor::new(tree.write()?);
    load_dtb(memory, GuestAddress(tree_at), &mut blob).context("the device tree")?;
    Ok((loaded.kernel_load.0, tree_at))
}
