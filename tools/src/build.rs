//! Building the bare-metal binaries and the images made of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::console::Space;
use crate::elf;
use crate::image::{self, Parts};
use crate::symbols::Symbols;
use crate::toolchain::Toolchain;
use crate::workspace::{self, TARGET, TARGET32};
use crate::{cpio, process};

/// A binary for the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binary {
    /// Its package.
    pub package: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The features that turn it on: without it the package builds on a development machine.
    pub feature: &'static str,
    /// What it is built for.
    pub target: &'static str,
}

/// EL2.
pub const HYP: Binary = aarch64("umbra-hyp", "umbra-hyp", "image");
/// EL2 that writes its transitions down.
pub const HYP_LOG: Binary = aarch64("umbra-hyp", "umbra-hyp-log", "image,transition-log");
/// The demonstration's EL1 kernel.
pub const HOST: Binary = aarch64("umbra-host", "umbra-host", "kernel");
/// What runs in the virtual machines.
pub const GUEST: Binary = aarch64("umbra-guest", "umbra-guest", "payload");
/// What runs in AArch32 in the tests.
pub const GUEST32: Binary = Binary {
    package: "umbra-guest32",
    name: "umbra-guest32",
    feature: "payload",
    target: TARGET32,
};
/// The EL1 kernel that runs the on-target tests.
pub const PAYLOAD: Binary = aarch64("umbra-payload", "umbra-payload", "payload");
/// The user space of a Linux above hyp.
pub const LINUX: Binary = aarch64("umbra-linux", "umbra-linux", "payload");
/// EL3, in tests.
pub const FIRMWARE: Binary = aarch64("umbra-firmware", "umbra-firmware", "firmware");

/// All of them.
pub const BINARIES: &[Binary] = &[HYP, HYP_LOG, HOST, GUEST, GUEST32, PAYLOAD, LINUX, FIRMWARE];

const fn aarch64(package: &'static str, name: &'static str, feature: &'static str) -> Binary {
    Binary { package, name, feature, target: TARGET }
}

impl Binary {
    /// A cargo that does this with the binary.
    pub fn cargo(&self, toolchain: &Toolchain, verb: &str) -> Command {
        self.cargo_in(toolchain, verb, &workspace::root(), &workspace::bare_metal_dir())
    }

    /// The same for a checkout in `root`.
    pub fn cargo_in(&self, toolchain: &Toolchain, verb: &str, root: &Path, dir: &Path) -> Command {
        let mut command = toolchain.cargo_for(self.target, verb, root, dir);
        command.args(["--release", "--package", self.package]).args([
            "--bin",
            self.name,
            "--features",
            self.feature,
        ]);
        command
    }

    /// Where its ELF is when it is built into this target directory.
    pub fn file(&self, dir: &Path) -> PathBuf {
        dir.join(self.target).join("release").join(self.name)
    }
}

/// An image and the programs in it.
#[derive(Clone, Debug)]
pub struct Built {
    /// The packed file.
    pub image: PathBuf,
    /// hyp's ELF.
    pub hyp: PathBuf,
    /// The host payload's.
    pub host: PathBuf,
    /// The guest payload's.
    pub guest: PathBuf,
    /// That of what AArch32 guests run, where it is needed.
    pub guest32: Option<PathBuf>,
}

impl Built {
    /// Symbols for addresses on this image's console.
    pub fn symbols(&self) -> Symbols {
        Symbols::new([
            (Space::Hyp, self.hyp.clone()),
            (Space::Host, self.host.clone()),
            (Space::Guest, self.guest.clone()),
        ])
    }
}

/// Compiles one binary and returns its ELF.
pub fn binary(toolchain: &Toolchain, binary: Binary) -> Result<PathBuf> {
    let mut command = binary.cargo(toolchain, "build");
    process::run(&mut command).with_context(|| format!("could not build {}", binary.name))?;
    Ok(binary.file(&workspace::bare_metal_dir()))
}

/// Compiles the host library, as another OS would embed it, and returns its `rlib`. The release
/// profile leaves code generation to the final link; here there is none, so it is asked for.
pub fn host_library(toolchain: &Toolchain) -> Result<PathBuf> {
    let mut command = toolchain.cargo("rustc");
    command
        .args(["--release", "--package", HOST.package, "--lib"])
        .args(["--", "-Clinker-plugin-lto=no"]);
    process::run(&mut command).context("could not build the host library")?;
    let folder = workspace::bare_metal_dir().join(TARGET).join("release");
    Ok(folder.join(format!("lib{}.rlib", HOST.package.replace('-', "_"))))
}

/// The demonstration.
pub fn demo(toolchain: &Toolchain, command_line: &str) -> Result<Built> {
    pack(toolchain, HOST, None, "demo", command_line)
}

/// The on-target tests.
pub fn tests(toolchain: &Toolchain) -> Result<Built> {
    pack(toolchain, PAYLOAD, Some(GUEST32), "tests", "")
}

/// The same above a hyp that writes its transitions down.
pub fn logged_tests(toolchain: &Toolchain) -> Result<Built> {
    let built = Built {
        image: workspace::image_dir().join("logged-tests.img"),
        hyp: binary(toolchain, HYP_LOG)?,
        host: binary(toolchain, PAYLOAD)?,
        guest: binary(toolchain, GUEST)?,
        guest32: Some(binary(toolchain, GUEST32)?),
    };
    pack_built(&built, "")?;
    Ok(built)
}

/// hyp with `host` above it, and the guest payloads in the initrd.
fn pack(
    toolchain: &Toolchain,
    host: Binary,
    guest32: Option<Binary>,
    name: &str,
    command_line: &str,
) -> Result<Built> {
    eprintln!("building for {TARGET} with {toolchain}");
    let built = Built {
        image: workspace::image_dir().join(format!("{name}.img")),
        hyp: binary(toolchain, HYP)?,
        host: binary(toolchain, host)?,
        guest: binary(toolchain, GUEST)?,
        guest32: guest32.map(|guest| binary(toolchain, guest)).transpose()?,
    };
    pack_built(&built, command_line)?;
    Ok(built)
}

/// The word for programs that use no device but a UART, on machines where something reaches memory that no SMMU
/// holds. A word behind it counts instead.
const ISOLATE: &str = "umbra.dma=isolate";

/// Packs what was compiled.
pub fn pack_built(built: &Built, command_line: &str) -> Result<()> {
    let command_line = &format!("{ISOLATE} {command_line}");
    let (guest, guest32) = guests(built)?;
    let mut files = vec![("guest", guest.as_slice())];
    files.extend(guest32.iter().map(|guest| ("guest32", guest.as_slice())));
    let package = image::pack(&Parts {
        hyp: &elf::flatten_file(&built.hyp)?,
        host: &image::read_host(&built.host)?,
        initrd: &cpio::archive(&files),
        command_line: command_line.trim_end(),
    })?;
    image::write_whole(&built.image, &package)
}

/// The guest payloads as they lie in an initrd.
fn guests(built: &Built) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let guest32 = built.guest32.as_deref().map(elf::flatten_file32).transpose()?;
    Ok((with_bss(elf::flatten_file(&built.guest)?), guest32.map(with_bss)))
}

/// A test image in parts, for packing with other programs each time.
pub struct TestParts {
    hyp: elf::Flat,
    payload: elf::Flat,
    guest: Vec<u8>,
    guest32: Option<Vec<u8>>,
}

impl TestParts {
    /// The parts of what was compiled.
    pub fn read(built: &Built) -> Result<Self> {
        let (guest, guest32) = guests(built)?;
        let (hyp, payload) = (elf::flatten_file(&built.hyp)?, image::read_host(&built.host)?);
        Ok(Self { hyp, payload, guest, guest32 })
    }

    /// Packs them with `programs` for the fuzzer, and writes the image.
    pub fn pack_fuzz(&self, programs: &str, path: &Path) -> Result<()> {
        let mut files = vec![("guest", self.guest.as_slice()), ("programs", programs.as_bytes())];
        files.extend(self.guest32.iter().map(|guest| ("guest32", guest.as_slice())));
        let package = image::pack(&Parts {
            hyp: &self.hyp,
            host: &self.payload,
            initrd: &cpio::archive(&files),
            // Many boots, and no secrets.
            command_line: &format!("{ISOLATE} fuzz umbra.boot-wipe=off"),
        })?;
        image::write_whole(path, &package)
    }
}

/// A guest payload is copied to its memory as it lies in the archive, so its .bss is in there too.
fn with_bss(flat: elf::Flat) -> Vec<u8> {
    let mut bytes = flat.bytes;
    bytes.resize(flat.memory_bytes as usize, 0);
    bytes
}

/// The file as one would name it in the checkout.
pub fn shown(path: &Path) -> String {
    let root = workspace::root();
    path.strip_prefix(&root).unwrap_or(path).display().to_string()
}
