//! Building the bare-metal binaries and the images made of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::console::Space;
use crate::elf;
use crate::image::{self, Parts};
use crate::symbols::Symbols;
use crate::toolchain::Toolchain;
use crate::workspace::{self, TARGET};
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
}

/// EL2.
pub const HYP: Binary = Binary { package: "umbra-hyp", name: "umbra-hyp", feature: "image" };
/// EL2 that writes its transitions down.
pub const HYP_LOG: Binary =
    Binary { package: "umbra-hyp", name: "umbra-hyp-log", feature: "image,transition-log" };
/// The demonstration's EL1 kernel.
pub const HOST: Binary = Binary { package: "umbra-host", name: "umbra-host", feature: "kernel" };
/// What runs in the virtual machines.
pub const GUEST: Binary =
    Binary { package: "umbra-guest", name: "umbra-guest", feature: "payload" };
/// The EL1 kernel that runs the on-target tests.
pub const PAYLOAD: Binary =
    Binary { package: "umbra-payload", name: "umbra-payload", feature: "payload" };
/// The user space of a Linux above hyp.
pub const LINUX: Binary =
    Binary { package: "umbra-linux", name: "umbra-linux", feature: "payload" };
/// EL3, in tests.
pub const FIRMWARE: Binary =
    Binary { package: "umbra-firmware", name: "umbra-firmware", feature: "firmware" };

/// All of them.
pub const BINARIES: &[Binary] = &[HYP, HYP_LOG, HOST, GUEST, PAYLOAD, LINUX, FIRMWARE];

impl Binary {
    /// Adds the arguments that make cargo work on this binary.
    pub fn select(&self, command: &mut Command) {
        command.args(["--release", "--package", self.package]).args([
            "--bin",
            self.name,
            "--features",
            self.feature,
        ]);
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
    let mut command = toolchain.cargo("build");
    binary.select(&mut command);
    process::run(&mut command).with_context(|| format!("could not build {}", binary.name))?;
    Ok(workspace::bare_metal_dir().join(TARGET).join("release").join(binary.name))
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
    pack(toolchain, HOST, "demo", command_line)
}

/// The on-target tests.
pub fn tests(toolchain: &Toolchain) -> Result<Built> {
    pack(toolchain, PAYLOAD, "tests", "")
}

/// The same above a hyp that writes its transitions down.
pub fn logged_tests(toolchain: &Toolchain) -> Result<Built> {
    let built = Built {
        image: workspace::image_dir().join("logged-tests.img"),
        hyp: binary(toolchain, HYP_LOG)?,
        host: binary(toolchain, PAYLOAD)?,
        guest: binary(toolchain, GUEST)?,
    };
    pack_built(&built, "")?;
    Ok(built)
}

/// hyp with `host` above it, and the guest payload in the initrd.
fn pack(toolchain: &Toolchain, host: Binary, name: &str, command_line: &str) -> Result<Built> {
    eprintln!("building for {TARGET} with {toolchain}");
    let built = Built {
        image: workspace::image_dir().join(format!("{name}.img")),
        hyp: binary(toolchain, HYP)?,
        host: binary(toolchain, host)?,
        guest: binary(toolchain, GUEST)?,
    };
    pack_built(&built, command_line)?;
    Ok(built)
}

/// Packs what was compiled.
pub fn pack_built(built: &Built, command_line: &str) -> Result<()> {
    let guest = elf::flatten_file(&built.guest)?;
    let package = image::pack(&Parts {
        hyp: &elf::flatten_file(&built.hyp)?,
        host: &image::read_host(&built.host)?,
        initrd: &cpio::archive(&[("guest", &with_bss(guest))]),
        command_line,
    })?;
    image::write_whole(&built.image, &package)
}

/// A test image in parts, for packing with other programs each time.
pub struct TestParts {
    hyp: elf::Flat,
    payload: elf::Flat,
    guest: Vec<u8>,
}

impl TestParts {
    /// The parts of what was compiled.
    pub fn read(built: &Built) -> Result<Self> {
        Ok(Self {
            hyp: elf::flatten_file(&built.hyp)?,
            payload: image::read_host(&built.host)?,
            guest: with_bss(elf::flatten_file(&built.guest)?),
        })
    }

    /// Packs them with `programs` for the fuzzer, and writes the image.
    pub fn pack_fuzz(&self, programs: &str, path: &Path) -> Result<()> {
        let files = [("guest", self.guest.as_slice()), ("programs", programs.as_bytes())];
        let package = image::pack(&Parts {
            hyp: &self.hyp,
            host: &self.payload,
            initrd: &cpio::archive(&files),
            command_line: "fuzz",
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
