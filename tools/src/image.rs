//! Packing: hyp, a host payload, its initrd and command line become one arm64 `Image`.
//!
//! The layout is `umbra_shared::package`'s. Everything is at an offset that only depends on sizes,
//! so the loader needs to do nothing but put the file at a 2 MiB boundary. What is in memory but not
//! in the file (.bss) is written out as zeroes wherever something else follows it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use umbra_shared::PAGE_SIZE;
use umbra_shared::package::{
    COMMAND_LINE_BYTES, IMAGE_MAGIC, ImageHeader, PACKAGE_HEADER_OFFSET, PACKAGE_MAGIC,
    PAYLOAD_ALIGN, PackageHeader,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::elf::{self, Flat};

const BIG_ENDIAN_FLAG: u64 = 1;

/// What goes into a package.
pub struct Parts<'a> {
    /// hyp's ELF, flattened.
    pub hyp: &'a Flat,
    /// The host payload.
    pub host: &'a Flat,
    /// The host's initrd; empty for none.
    pub initrd: &'a [u8],
    /// The host's command line; words that begin with `umbra.` are for hyp.
    pub command_line: &'a str,
}

/// What `xtask image` is asked for.
pub struct Request {
    /// The host payload: an ELF file, or an arm64 `Image` such as Linux.
    pub host: PathBuf,
    /// The initrd, as it is.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub command_line: String,
    /// Where the package goes.
    pub output: PathBuf,
}

/// Packs files, with the hyp in `hyp_elf`.
pub fn pack_files(hyp_elf: &Path, request: &Request) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("could not read {}", path.display()));
    let hyp = elf::flatten_file(hyp_elf)?;
    let host = read_host(&request.host)?;
    let initrd = match &request.initrd {
        Some(path) => read(path)?,
        None => Vec::new(),
    };
    let package = pack(&Parts {
        hyp: &hyp,
        host: &host,
        initrd: &initrd,
        command_line: &request.command_line,
    })?;
    write_whole(&request.output, &package)
}

/// Writes a file so that whoever opens it finds all of it: a reader of the old one keeps that.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let complain = || format!("could not write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(complain)?;
    }
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, content).with_context(complain)?;
    fs::rename(&partial, path).with_context(complain)
}

/// Writes the package in `from` to `to`, with more words at the end of its command line.
pub fn add_to_command_line(from: &Path, words: &str, to: &Path) -> Result<()> {
    let mut package =
        fs::read(from).with_context(|| format!("could not read {}", from.display()))?;
    append_words(&mut package, words).with_context(|| from.display().to_string())?;
    write_whole(to, &package)
}

fn append_words(package: &mut [u8], words: &str) -> Result<()> {
    let header = package
        .get_mut(PACKAGE_HEADER_OFFSET..)
        .and_then(|rest| PackageHeader::mut_from_prefix(rest).ok())
        .map(|(header, _)| header)
        .filter(|header| header.magic == PACKAGE_MAGIC);
    let Some(header) = header else {
        bail!("not a package");
    };
    let used = usize::try_from(header.command_line_bytes)?;
    let mut line = String::from_utf8_lossy(header.command_line.get(..used).unwrap_or_default())
        .trim()
        .to_owned();
    if !line.is_empty() {
        line.push(' ');
    }
    line.push_str(words);
    ensure!(
        line.len() <= COMMAND_LINE_BYTES,
        "the command line would have {} bytes; at most {COMMAND_LINE_BYTES} fit",
        line.len()
    );
    header.command_line = [0; COMMAND_LINE_BYTES];
    header.command_line[..line.len()].copy_from_slice(line.as_bytes());
    header.command_line_bytes = line.len() as u64;
    Ok(())
}

/// Reads a host payload: an ELF file, or an arm64 `Image`.
pub fn read_host(path: &Path) -> Result<Flat> {
    let data = fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    host_payload(data).with_context(|| path.display().to_string())
}

fn host_payload(data: Vec<u8>) -> Result<Flat> {
    let mut flat = if elf::is_elf(&data) {
        elf::flatten(&data)?
    } else {
        let memory_bytes = data.len() as u64;
        Flat { bytes: data, memory_bytes }
    };
    let header = image_header(&flat.bytes)?;
    flat.memory_bytes = flat.memory_bytes.max(header.image_size);
    Ok(flat)
}

fn image_header(bytes: &[u8]) -> Result<ImageHeader> {
    if bytes.starts_with(b"\x1f\x8b") {
        bail!("compressed with gzip: unpack it first");
    }
    let header = ImageHeader::read_from_prefix(bytes).map(|(header, _)| header);
    let Some(header) = header.ok().filter(|header| header.magic == IMAGE_MAGIC) else {
        bail!("not an arm64 Image: the magic \"ARM\\x64\" is not at byte 56");
    };
    ensure!(header.image_size != 0, "its Image header gives no image_size");
    ensure!(
        header.text_offset == 0,
        "its Image header asks for text_offset {:#x}; only 0 is supported",
        header.text_offset
    );
    ensure!(header.flags & BIG_ENDIAN_FLAG == 0, "a big-endian kernel is not supported");
    Ok(header)
}

/// Packs `parts` into one file.
pub fn pack(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let mut outer = image_header(&parts.hyp.bytes).context("hyp")?;
    let empty = parts
        .hyp
        .bytes
        .get(PACKAGE_HEADER_OFFSET..)
        .and_then(|rest| PackageHeader::read_from_prefix(rest).ok());
    match empty {
        None => bail!("hyp: too small for the package header"),
        Some((header, _)) if header == PackageHeader::new_zeroed() => {}
        Some(_) => bail!("hyp: no empty package header at byte {PACKAGE_HEADER_OFFSET}"),
    }
    image_header(&parts.host.bytes).context("host payload")?;
    let command_line = parts.command_line.as_bytes();
    ensure!(
        command_line.len() <= COMMAND_LINE_BYTES,
        "the command line has {} bytes; at most {COMMAND_LINE_BYTES} fit",
        command_line.len()
    );
    ensure!(!command_line.contains(&0), "the command line contains a zero byte");

    let page = PAGE_SIZE as u64;
    let hyp_bytes = parts.hyp.memory_bytes.max(outer.image_size).next_multiple_of(PAYLOAD_ALIGN);
    let host_offset = hyp_bytes;
    let host_end = (host_offset + parts.host.memory_bytes).next_multiple_of(page);
    let initrd_bytes = parts.initrd.len() as u64;
    let file_bytes = (host_end + initrd_bytes).next_multiple_of(page);
    let dtb_offset = file_bytes.next_multiple_of(PAYLOAD_ALIGN);
    let package_bytes = dtb_offset + PAYLOAD_ALIGN;

    let mut header = PackageHeader {
        magic: PACKAGE_MAGIC,
        package_bytes,
        hyp_bytes,
        host_offset,
        host_bytes: parts.host.memory_bytes,
        initrd_offset: if initrd_bytes == 0 { 0 } else { host_end },
        initrd_bytes,
        dtb_offset,
        command_line_bytes: command_line.len() as u64,
        command_line: [0; COMMAND_LINE_BYTES],
    };
    header.command_line[..command_line.len()].copy_from_slice(command_line);
    outer.image_size = package_bytes;

    let mut package = parts.hyp.bytes.clone();
    package[..PACKAGE_HEADER_OFFSET].copy_from_slice(outer.as_bytes());
    let header_end = PACKAGE_HEADER_OFFSET + size_of::<PackageHeader>();
    package[PACKAGE_HEADER_OFFSET..header_end].copy_from_slice(header.as_bytes());
    package.resize(host_offset as usize, 0);
    package.extend_from_slice(&parts.host.bytes);
    // Without the host's .bss in the file, the memory behind a loaded package may hold anything.
    package.resize(host_end as usize, 0);
    package.extend_from_slice(parts.initrd);
    package.resize(file_bytes as usize, 0);
    Ok(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(image_size: u64, file_bytes: usize) -> Vec<u8> {
        let mut header = ImageHeader::new_zeroed();
        header.magic = IMAGE_MAGIC;
        header.image_size = image_size;
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(file_bytes, 0);
        bytes
    }

    fn hyp(memory_bytes: u64) -> Flat {
        let mut bytes = image(0x1000, 0x1000);
        bytes[0xfff] = 0x99;
        Flat { bytes, memory_bytes }
    }

    fn packed(hyp: &Flat, host: Vec<u8>, initrd: &[u8], command_line: &str) -> Result<Vec<u8>> {
        let host = host_payload(host)?;
        pack(&Parts { hyp, host: &host, initrd, command_line })
    }

    #[test]
    fn a_package_parses_back() {
        let mut host = image(0x5001, 0x3000);
        host[0x2fff] = 0x77;
        let package = packed(&hyp((2 << 20) + 1), host.clone(), b"initrd", "a umbra.b=1").unwrap();
        let (outer, rest) = ImageHeader::read_from_prefix(&package).unwrap();
        let (header, _) = PackageHeader::read_from_prefix(rest).unwrap();
        assert_eq!(outer.magic, IMAGE_MAGIC);
        assert_eq!(outer.image_size, header.package_bytes);
        assert_eq!(header.magic, PACKAGE_MAGIC);
        // Room for the device tree lies in memory, behind the file.
        assert_eq!(header.dtb_offset, (package.len() as u64).next_multiple_of(2 << 20));
        assert_eq!(header.package_bytes, header.dtb_offset + (2 << 20));
        assert_eq!(header.hyp_bytes, 4 << 20);
        assert_eq!(header.host_offset, 4 << 20);
        assert_eq!(header.host_bytes, 0x5001);
        let at = header.host_offset as usize;
        assert_eq!(package[at..at + host.len()], host);
        assert_eq!(header.initrd_offset, (4 << 20) + 0x6000);
        assert_eq!(package[0xfff], 0x99);
        let at = header.initrd_offset as usize;
        assert_eq!(header.initrd_bytes, 6);
        assert_eq!(&package[at..at + 6], b"initrd");
        assert!(package[at + 6..].iter().all(|&byte| byte == 0));
        let used = header.command_line_bytes as usize;
        assert_eq!(&header.command_line[..used], b"a umbra.b=1");
        // The host's .bss is zero.
        let bss = header.host_offset as usize + host.len()..header.initrd_offset as usize;
        assert!(package[bss].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn words_are_added_to_the_command_line() {
        let line = |package: &[u8]| {
            let header = &package[PACKAGE_HEADER_OFFSET..];
            let header = PackageHeader::read_from_prefix(header).unwrap().0;
            let line = &header.command_line[..header.command_line_bytes as usize];
            String::from_utf8(line.to_vec()).unwrap()
        };
        for (before, after) in [("", "umbra.x=1"), ("only=a", "only=a umbra.x=1")] {
            let mut package = packed(&hyp(0x1000), image(0x1000, 0x1000), b"", before).unwrap();
            append_words(&mut package, "umbra.x=1").unwrap();
            assert_eq!(line(&package), after);
        }
        let mut full = packed(&hyp(0x1000), image(0x1000, 0x1000), b"", &"x".repeat(1020)).unwrap();
        assert!(append_words(&mut full, "y=12").is_err());
        append_words(&mut full, "y=1").unwrap();
        assert_eq!(line(&full).len(), 1024);
        assert!(append_words(&mut image(0x1000, 0x1000), "y").is_err());
    }

    #[test]
    fn without_initrd_the_offset_is_zero() {
        let package = packed(&hyp(0x1000), image(0x1000, 0x1000), b"", "").unwrap();
        let header = PackageHeader::read_from_prefix(&package[PACKAGE_HEADER_OFFSET..]).unwrap().0;
        assert_eq!((header.initrd_offset, header.initrd_bytes), (0, 0));
        assert_eq!(package.len(), (2 << 20) + 0x1000);
        assert_eq!(header.dtb_offset, 4 << 20);
    }

    #[test]
    fn an_elf_host_counts_its_bss() {
        let content = image(0x1000, 0x1000);
        let file = elf::tests::elf(object::elf::EM_AARCH64, &[(0x4000, &content, 0x9000)]);
        let flat = host_payload(file).unwrap();
        assert_eq!((flat.bytes.len(), flat.memory_bytes), (0x1000, 0x9000));
    }

    #[test]
    fn bad_input_is_refused_with_its_reason() {
        let error = |hyp: &Flat, host: Vec<u8>, command_line: &str| {
            let error = packed(hyp, host, b"", command_line).unwrap_err();
            format!("{error:#}")
        };
        let good = || image(0x1000, 0x1000);
        let small = hyp(0x1000);
        assert!(error(&small, vec![0; 0x1000], "").contains("not an arm64 Image"));
        assert!(error(&small, Vec::new(), "").contains("not an arm64 Image"));
        assert!(error(&small, b"\x1f\x8b\x08".to_vec(), "").contains("gzip"));
        assert!(error(&small, image(0, 0x1000), "").contains("image_size"));
        let mut offset = good();
        offset[9] = 0x80;
        assert!(error(&small, offset, "").contains("text_offset"));
        let mut big_endian = good();
        big_endian[24] = 1;
        assert!(error(&small, big_endian, "").contains("big-endian"));
        assert!(error(&small, good(), &"x".repeat(1025)).contains("1025"));
        assert!(error(&small, good(), "a\0b").contains("zero byte"));
        let no_magic = Flat { bytes: vec![0; 0x1000], memory_bytes: 0x1000 };
        assert!(error(&no_magic, good(), "").contains("hyp: not an arm64 Image"));
        let mut used = hyp(0x1000);
        used.bytes[PACKAGE_HEADER_OFFSET] = 1;
        assert!(error(&used, good(), "").contains("no empty package header"));
        let mut short = hyp(0x1000);
        short.bytes.truncate(100);
        assert!(error(&short, good(), "").contains("too small"));
    }
}
