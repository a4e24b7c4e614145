//! The bootable file: hyp, the host payload, its initrd and command line in one arm64 Linux `Image`.
//!
//! ```text
//! 0          arm64 Image header (64 bytes; Linux Documentation/arch/arm64/booting.rst), hyp's entry
//! 64         [`PackageHeader`]
//! ...        hyp, padded to its size in memory (with .bss and stacks)
//! host       host payload: itself an arm64 Image, at a 2 MiB boundary
//! initrd     at a page boundary behind the host's size in memory
//! (dtb)      2 MiB in memory, not in the file, for the DTB that the host gets
//! ```
//!
//! hyp is linked with an empty header; `cargo xtask image` fills it in. All offsets are bytes from
//! the start of the file, which is where the loader puts it in memory: 2 MiB aligned.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset of the [`PackageHeader`]: right behind the Image header.
pub const PACKAGE_HEADER_OFFSET: usize = 64;

/// "UMBRAPKG" in memory order.
pub const PACKAGE_MAGIC: u64 = u64::from_le_bytes(*b"UMBRAPKG");

/// What a payload is aligned to: the 2 MiB that the arm64 boot protocol asks for.
pub const PAYLOAD_ALIGN: u64 = 2 << 20;

/// Bytes of command line that fit, without a terminating zero.
pub const COMMAND_LINE_BYTES: usize = 1024;

/// Where things lie in the file.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PackageHeader {
    /// [`PACKAGE_MAGIC`]; zero in a hyp that was not packed.
    pub magic: u64,
    /// Bytes of the whole package in memory.
    pub package_bytes: u64,
    /// Bytes of hyp in memory, with .bss: a multiple of [`PAYLOAD_ALIGN`].
    pub hyp_bytes: u64,
    /// Offset of the host payload.
    pub host_offset: u64,
    /// Bytes of the host payload in memory (its Image header's image_size).
    pub host_bytes: u64,
    /// Offset of the initrd; 0 if there is none.
    pub initrd_offset: u64,
    /// Bytes of the initrd.
    pub initrd_bytes: u64,
    /// Where hyp writes the DTB it hands to the host: a 2 MiB boundary behind everything else, with
    /// [`PAYLOAD_ALIGN`] bytes of room that belong to the package in memory but not in the file.
    pub dtb_offset: u64,
    /// Bytes used of `command_line`.
    pub command_line_bytes: u64,
    /// Command line for the host; words that begin with `umbra.` are for hyp.
    pub command_line: [u8; COMMAND_LINE_BYTES],
}

/// The arm64 Linux Image header.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ImageHeader {
    /// First instruction.
    pub code0: u32,
    /// Second instruction.
    pub code1: u32,
    /// Bytes from a 2 MiB boundary to where the image wants to be.
    pub text_offset: u64,
    /// Bytes the image needs in memory, from its start.
    pub image_size: u64,
    /// Bit 0: big-endian. Bits 2:1: page size, 1 = 4 KiB. Bit 3: may lie anywhere in memory.
    pub flags: u64,
    /// Reserved.
    pub res2: u64,
    /// Reserved.
    pub res3: u64,
    /// Reserved.
    pub res4: u64,
    /// [`IMAGE_MAGIC`].
    pub magic: u32,
    /// Reserved (PE header offset).
    pub res5: u32,
}

/// "ARM\x64".
pub const IMAGE_MAGIC: u32 = 0x644d_5241;

static_assertions::const_assert_eq!(size_of::<ImageHeader>(), PACKAGE_HEADER_OFFSET);
