//! From an ELF file to the flat binary that a loader puts into memory.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{EM_AARCH64, EM_ARM, FileHeader32, FileHeader64, Machine, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// More than any image of ours could be: an ELF whose segments lie farther apart was linked wrong.
const MAX_BYTES: u64 = 256 << 20;

/// A program as it lies in memory, from its lowest address on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat {
    /// What is loaded.
    pub bytes: Vec<u8>,
    /// Bytes it occupies once it runs, with .bss: at least `bytes.len()`.
    pub memory_bytes: u64,
}

/// Whether `data` is an ELF file.
pub fn is_elf(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}

/// Reads `path` and flattens it.
pub fn flatten_file(path: &Path) -> Result<Flat> {
    let data = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    flatten(&data).with_context(|| path.display().to_string())
}

/// The same for a 32-bit Arm file.
pub fn flatten_file32(path: &Path) -> Result<Flat> {
    let data = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    flatten32(&data).with_context(|| path.display().to_string())
}

/// Lays the loadable segments of an AArch64 ELF out by physical address. The gaps are zero.
pub fn flatten(data: &[u8]) -> Result<Flat> {
    let header = FileHeader64::<Endianness>::parse(data).context("not a 64-bit ELF file")?;
    flatten_from(header, data, EM_AARCH64).context("not an AArch64 program")
}

/// The same for 32-bit Arm.
pub fn flatten32(data: &[u8]) -> Result<Flat> {
    let header = FileHeader32::<Endianness>::parse(data).context("not a 32-bit ELF file")?;
    flatten_from(header, data, EM_ARM).context("not an Arm program")
}

fn flatten_from<H>(header: &H, data: &[u8], machine: Machine) -> Result<Flat>
where
    H: FileHeader<Endian = Endianness>,
{
    let endian = header.endian()?;
    ensure!(
        header.e_machine(endian) == machine && endian == Endianness::Little,
        "another machine's, or big-endian"
    );
    let segments: Vec<_> = header
        .program_headers(endian, data)?
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_memsz(endian).into() > 0)
        .collect();
    let Some(base) = segments.iter().map(|segment| segment.p_paddr(endian).into()).min() else {
        bail!("nothing to load: no PT_LOAD segment");
    };
    let mut flat = Flat { bytes: Vec::new(), memory_bytes: 0 };
    for segment in segments {
        let start = segment.p_paddr(endian).into() - base;
        let end = start.checked_add(segment.p_memsz(endian).into());
        let Some(end) = end.filter(|&end| end <= MAX_BYTES) else {
            bail!("segments lie more than {} MiB apart", MAX_BYTES >> 20);
        };
        let Ok(content) = segment.data(endian, data) else {
            bail!("a segment lies outside the file");
        };
        flat.memory_bytes = flat.memory_bytes.max(end);
        // Only .bss: it takes memory, and nothing of the file.
        if content.is_empty() {
            continue;
        }
        let start = start as usize;
        let stop = start + content.len();
        if flat.bytes.len() < stop {
            flat.bytes.resize(stop, 0);
        }
        flat.bytes[start..stop].copy_from_slice(content);
    }
    flat.memory_bytes = flat.memory_bytes.max(flat.bytes.len() as u64);
    Ok(flat)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use object::write::elf::{FileHeader as WriteHeader, ProgramHeader as WriteSegment, Writer};

    /// An ELF file with these segments: physical address, content, bytes in memory.
    pub(crate) fn elf(machine: object::elf::Machine, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(Endianness::Little, machine != EM_ARM, &mut out);
        writer.reserve_file_header();
        writer.reserve_program_headers(segments.len() as u32);
        let offsets: Vec<_> = segments
            .iter()
            .map(|(_, content, _)| writer.reserve(content.len() as u64, 8))
            .collect();
        writer
            .write_file_header(&WriteHeader {
                os_abi: object::elf::OsAbi(0),
                abi_version: 0,
                e_type: object::elf::ET_EXEC,
                e_machine: machine,
                e_entry: 0,
                e_flags: object::elf::FileFlags(0),
            })
            .unwrap();
        writer.write_align_program_headers();
        for ((address, content, memory), offset) in segments.iter().zip(&offsets) {
            writer.write_program_header(&WriteSegment {
                p_type: PT_LOAD,
                p_flags: object::elf::ProgramFlags(7),
                p_offset: *offset,
                p_vaddr: 0xffff_0000,
                p_paddr: *address,
                p_filesz: content.len() as u64,
                p_memsz: *memory,
                p_align: 8,
            });
        }
        for (_, content, _) in segments {
            writer.write_align(8);
            writer.write(content);
        }
        out
    }

    #[test]
    fn segments_are_laid_out_by_address_with_zeroed_gaps() {
        let data = elf(EM_AARCH64, &[(0x1010, b"late", 0x40), (0x1000, b"early", 5)]);
        let flat = flatten(&data).unwrap();
        assert_eq!(flat.bytes, b"early\0\0\0\0\0\0\0\0\0\0\0late");
        assert_eq!(flat.memory_bytes, 0x50);
    }

    #[test]
    fn a_32_bit_program_is_laid_out_alike() {
        let data = elf(EM_ARM, &[(0x1010, b"late", 0x40), (0x1000, b"early", 5)]);
        let flat = flatten32(&data).unwrap();
        assert_eq!(flat.bytes, b"early\0\0\0\0\0\0\0\0\0\0\0late");
        assert_eq!(flat.memory_bytes, 0x50);
        assert!(flatten(&data).is_err() && flatten32(&elf(EM_AARCH64, &[(0, b"a", 1)])).is_err());
    }

    #[test]
    fn a_segment_of_bss_alone_takes_no_room_in_the_file() {
        let flat = flatten(&elf(EM_AARCH64, &[(0, b"code", 4), (0x1000, b"", 0x10)])).unwrap();
        assert_eq!(flat.bytes, b"code");
        assert_eq!(flat.memory_bytes, 0x1010);
    }

    #[test]
    fn what_cannot_be_loaded_is_refused() {
        let error = |data: &[u8]| format!("{:#}", flatten(data).unwrap_err());
        assert!(error(b"nothing of the kind").contains("not a 64-bit ELF"));
        assert!(error(&elf(object::elf::EM_X86_64, &[])).contains("AArch64"));
        assert!(error(&elf(EM_AARCH64, &[])).contains("nothing to load"));
        let far = elf(EM_AARCH64, &[(0, b"a", 1), (1 << 40, b"b", 1)]);
        assert!(error(&far).contains("apart"));
        let mut cut = elf(EM_AARCH64, &[(0, &[1; 100], 100)]);
        cut.truncate(cut.len() - 1);
        assert!(error(&cut).contains("outside the file"));
    }
}
