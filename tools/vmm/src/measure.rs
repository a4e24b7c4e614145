//! What a protected VM is measured by ([`umbra_shared::measurement`]), computed from its files: what its guest reads as RSI's initial
//! measurement (RIM) if its host has built what it was asked for.
//!
//! It is made of what `machine.rs` does with a protected VM, and of what hyp and the kernel module make of that:
//!
//! 1. the VM, with the bits of address that the machine has for it;
//! 2. vCPUs but the first, which are off, and then the first, with its entry and x0: when it runs it is known;
//! 3. pages in the order of their addresses: all of the 2 MiB of a memory file around each page that was touched, zeroes too.
//!
//! What is touched is found out by doing it: everything is put into memory by the code that does it for a VM ([`boot::load`]),
//! and that memory remembers what was written.
#![forbid(unsafe_code)]

use crate::arguments::Measure;
use crate::boot;
use crate::layout;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::BLOCK_PAGES;
use umbra_shared::measurement::{Record, Value, input};
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};
use umbra_shared::vl::Vq;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};

/// The measurement of the machine that these arguments ask for.
///
/// # Errors
///
/// A file can't be read, or is too large; there is no such machine.
pub fn measure(Measure { run, address_bits }: &Measure) -> Result<Value> {
    ensure!(run.protected, "what is measured is a protected VM (--protected)");
    ensure!(!run.own_memory, "how much of --own-memory there is Linux decides, by huge pages");
    let bytes = run.sve.context("--sve, which the machine decides otherwise")?;
    let vq = Vq::from_vl(bytes);
    ensure!(bytes == 0 || vq.is_some(), "{bytes} bytes are no vector length");
    let end = layout::RAM.checked_add(run.memory);
    let is_private = end.is_some_and(|end| end <= 1 << (address_bits - 1));
    ensure!(is_private, "so much memory has no addresses of a protected guest's own");

    let affinities: Vec<_> = (0..run.cpus.into()).map(boot::affinity).collect();
    let ranges = [(GuestAddress(layout::RAM), usize::try_from(run.memory)?)];
    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).context("memory")?;
    let start = boot::load(run, &memory, &affinities, 1 << (address_bits - 1))?;

    let mut rim = Rim([0; 32]);
    rim.enter(&Record::Create { ipa_width: (*address_bits).into() });
    let features = UntrustedFeatures::from(VcpuFeatures::sve(vq)).0;
    for (index, &affinity) in (0..).zip(&affinities).skip(1) {
        rim.enter(&Record::Vcpu { index, affinity, features, start: None });
    }
    let at_entry = Some([start.entry, start.tree]);
    rim.enter(&Record::Vcpu { index: 0, affinity: boot::affinity(0), features, start: at_entry });
    rim.enter_pages(&memory)?;
    Ok(rim.0)
}

/// A measurement that is being made.
struct Rim(Value);

impl Rim {
    fn enter(&mut self, record: &Record) {
        self.0 = Sha256::digest(input(&self.0, record)).into();
    }

    /// All that there is, in so far as it was touched.
    fn enter_pages(&mut self, memory: &GuestMemoryMmap<AtomicBitmap>) -> Result<()> {
        const BLOCK: usize = BLOCK_PAGES as usize * PAGE_SIZE;
        let mut page = [0; PAGE_SIZE];
        for region in memory.iter() {
            let bytes = usize::try_from(region.len())?;
            for block in (0..bytes).step_by(BLOCK) {
                let mut pages = (block..bytes.min(block + BLOCK)).step_by(PAGE_SIZE);
                if !pages.clone().any(|at| region.bitmap().dirty_at(at)) {
                    continue;
                }
                pages.try_for_each(|at| {
                    region.read_slice(&mut page, MemoryRegionAddress(at as u64))?;
                    let ipa = region.start_addr().0 + at as u64;
                    let content = Sha256::digest(page).into();
                    self.enter(&Record::Page { ipa, content });
                    anyhow::Ok(())
                })?;
            }
        }
        Ok(())
    }
}

/// As hexadecimal digits, the first byte first.
pub fn hex(value: &Value) -> String {
    value.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Run;
    use std::path::{Path, PathBuf};
    use umbra_shared::package::{IMAGE_MAGIC, ImageHeader};
    use zerocopy::{FromZeros, IntoBytes};

    const PAGE: u64 = PAGE_SIZE as u64;
    const BLOCK: u64 = BLOCK_PAGES * PAGE;

    /// A folder of one test's own: tests run at the same time.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("umbra-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn write(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A kernel that needs two pages more than it has.
    fn kernel(pages: u64) -> Vec<u8> {
        let mut header = ImageHeader::new_zeroed();
        (header.magic, header.image_size) = (IMAGE_MAGIC, (pages + 2) * PAGE);
        let mut image = vec![7; (pages * PAGE) as usize];
        image[..size_of::<ImageHeader>()].copy_from_slice(header.as_bytes());
        image
    }

    fn arguments(kernel: &Path, initrd: &Path) -> Measure {
        let run = Run {
            kernel: kernel.to_owned(),
            initrd: Some(initrd.to_owned()),
            cmdline: "quiet".to_owned(),
            cpus: 2,
            memory: 32 << 20,
            sve: Some(64),
            protected: true,
            own_memory: false,
            unaware: false,
            disk: Vec::new(),
            net: Vec::new(),
            console: None,
            control: None,
        };
        Measure { run, address_bits: 40 }
    }

    #[test]
    fn it_is_the_chain_of_what_there_is() {
        let files = Files::new("rim-chain");
        let (image, initrd) = (kernel(3), vec![9; 5000]);
        let kernel = files.write("kernel", &image);
        let wanted = arguments(&kernel, &files.write("initrd", &initrd));
        // Without the code that computes it: memory as it lies, and what is in it.
        let tree_at = layout::RAM + (30 << 20);
        let initrd_at = tree_at - BLOCK;
        let tree = crate::tree::Tree {
            command_line: &wanted.run.command_line(),
            cpus: &[0, 1],
            memory: 32 << 20,
            initrd: Some((initrd_at, 5000)),
            virtio: 1,
            protected: true,
            alias: 0,
        };
        let mut value: Value = [0; 32];
        let mut enter = |record: &Record| value = Sha256::digest(input(&value, record)).into();
        enter(&Record::Create { ipa_width: 40 });
        let features = 64;
        enter(&Record::Vcpu { index: 1, affinity: 1, features, start: None });
        let start = Some([layout::RAM, tree_at]);
        enter(&Record::Vcpu { index: 0, affinity: 0, features, start });
        for (at, content) in
            [(layout::RAM, image), (initrd_at, initrd), (tree_at, tree.write().unwrap())]
        {
            let mut block = content;
            block.resize(BLOCK as usize, 0);
            for (n, page) in (0..).zip(block.chunks(PAGE_SIZE)) {
                let content = Sha256::digest(page).into();
                enter(&Record::Page { ipa: at + n * PAGE, content });
            }
        }
        assert_eq!(hex(&measure(&wanted).unwrap()), hex(&value));
    }

    #[test]
    fn whatever_is_built_counts() {
        let files = Files::new("rim-counts");
        let (plain, initrd) =
            (files.write("kernel", &kernel(3)), files.write("initrd", &[9; 5000]));
        let mut other = kernel(3);
        other[2 * PAGE_SIZE] ^= 1;
        let other = files.write("other", &other);
        let longer = files.write("longer", &[9; 5001]);
        let of = |change: &dyn Fn(&mut Measure)| {
            let mut wanted = arguments(&plain, &initrd);
            change(&mut wanted);
            hex(&measure(&wanted).unwrap())
        };
        let disk = || crate::arguments::Disk { path: "none".into(), read_only: true };
        let all = [
            of(&|_| {}),
            of(&|it| it.run.kernel = other.clone()),
            of(&|it| it.run.initrd = Some(longer.clone())),
            of(&|it| it.run.initrd = None),
            of(&|it| it.run.cmdline += " x"),
            of(&|it| it.run.cpus = 3),
            of(&|it| it.run.memory <<= 1),
            of(&|it| it.run.sve = Some(0)),
            of(&|it| it.run.disk = vec![disk()]),
            of(&|it| it.address_bits = 39),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(one), "{n}");
        }
        // What no guest finds in its memory doesn't.
        assert_eq!(all[0], of(&|it| it.run.control = Some("socket".into())));
    }

    #[test]
    fn what_is_no_machine_has_none() {
        let files = Files::new("rim-none");
        let (plain, initrd) =
            (files.write("kernel", &kernel(3)), files.write("initrd", &[9; 5000]));
        let refused = |change: &dyn Fn(&mut Measure)| {
            let mut wanted = arguments(&plain, &initrd);
            change(&mut wanted);
            assert!(measure(&wanted).is_err());
        };
        refused(&|it| it.run.protected = false);
        refused(&|it| it.run.own_memory = true);
        refused(&|it| it.run.sve = None);
        refused(&|it| it.run.sve = Some(17));
        refused(&|it| it.address_bits = 32);
        refused(&|it| it.run.kernel = initrd.clone());
        refused(&|it| it.run.initrd = Some("none".into()));
    }
}
