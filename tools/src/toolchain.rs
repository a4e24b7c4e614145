//! Which compiler builds the bare-metal binaries, and with which `core` and linker.
//!
//! `rust-toolchain.toml` names one release, so that who has rustup gets the same compiler as everybody,
//! with the targets ([`TARGET`], and [`TARGET32`] for what AArch32 guests run). Not every machine has
//! rustup, or may download them. So, in this order: the active toolchain if it has the targets' `core`;
//! any toolchain with the library's source, from which cargo builds `core` (an unstable cargo feature,
//! which `RUSTC_BOOTSTRAP=1` opens on a stable toolchain); the targets, through rustup; the
//! distribution's compiler and source, installed. cargo itself is always the one that runs us: it need
//! not be of the same release as the compiler. `RUSTC` names another compiler.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::packages::Apt;
use crate::process;
use crate::workspace::{self, TARGET, TARGET32};

/// What the bare-metal binaries are built with.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: Rustc,
    /// Where its `core` comes from.
    pub core: Core,
    /// `rust-lld` or `ld.lld`.
    pub linker: PathBuf,
    /// Whether the compiler is the active toolchain's, so that clippy and rustdoc match it.
    pub active: bool,
}

/// Where `core` for the target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Installed with the toolchain.
    Installed,
    /// Built from the toolchain's library source.
    FromSource,
}

/// A compiler and where it keeps its libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rustc {
    /// The program.
    pub path: PathBuf,
    /// Its root folder.
    pub sysroot: PathBuf,
    /// Release: major and minor.
    pub version: (u32, u32),
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::Installed => "its own core",
            Core::FromSource => "core built from source",
        };
        write!(f, "{}, {core}", self.rustc)
    }
}

impl fmt::Display for Rustc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(f, "rustc {major}.{minor} ({})", self.path.display())
    }
}

impl Rustc {
    /// What it says of itself: release, commit and date.
    pub fn release(&self) -> Result<String> {
        let text = process::stdout(Command::new(&self.path).arg("--version"))?;
        Ok(text.trim().to_owned())
    }

    fn probe(program: &OsStr) -> Option<Self> {
        // In the checkout's root rustup applies the checkout's toolchain file.
        let ask = |argument: &[&str]| {
            let mut command = Command::new(program);
            command.current_dir(workspace::root()).args(argument);
            command.env_remove("LD_LIBRARY_PATH");
            process::stdout(&mut command).ok()
        };
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
        let version = parse_version(&ask(&["--version"])?)?;
        let own = sysroot.join("bin/rustc");
        let path = if own.exists() { own } else { program.into() };
        Some(Self { path, sysroot, version })
    }

    fn has_core(&self) -> bool {
        [TARGET, TARGET32].iter().all(|target| self.has_core_for(target))
    }

    fn has_core_for(&self, target: &str) -> bool {
        let folder = self.sysroot.join("lib/rustlib").join(target).join("lib");
        folder.read_dir().is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with("libcore") && name.ends_with(".rlib")
            })
        })
    }

    fn has_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    }
}

impl Toolchain {
    /// The toolchain that is there already, in the order of the module's text.
    pub fn find() -> Result<Self, Missing> {
        let (rustc, core, active) = find_compiler().ok_or(Missing::Compiler)?;
        let linker = find_linker(&rustc).ok_or(Missing::Linker)?;
        Ok(Self { rustc, core, linker, active })
    }

    /// As [`Self::find`], installing what is missing.
    pub fn set_up() -> Result<Self> {
        if let Err(Missing::Compiler) = Self::find() {
            install_compiler()?;
        }
        if let Err(Missing::Linker) = Self::find() {
            let Some(apt) = Apt::find() else {
                bail!("{}", Missing::Linker.advice());
            };
            apt.ensure_known("lld")?;
            apt.install(&["lld"])?;
        }
        Self::find().map_err(|missing| anyhow::anyhow!("{}", missing.advice()))
    }

    /// A cargo that builds for the target: `cargo VERB` with everything but the packages.
    pub fn cargo(&self, verb: &str) -> Command {
        self.cargo_for(TARGET, verb, &workspace::root(), &workspace::bare_metal_dir())
    }

    /// The same for a checkout in `root` and for this target, with a target directory of its own.
    pub fn cargo_for(&self, target: &str, verb: &str, root: &Path, target_dir: &Path) -> Command {
        let mut command = cargo();
        command
            .current_dir(root)
            .arg(verb)
            .args(["--target", target])
            .arg("--target-dir")
            .arg(target_dir)
            .env("RUSTC", &self.rustc.path)
            .env(linker_variable(target), &self.linker);
        if self.core == Core::FromSource {
            command
                .env("RUSTC_BOOTSTRAP", "1")
                // A report about the library's own code, which is not ours to change.
                .args(["--config", "future-incompat-report.frequency='never'"])
                .arg("-Zbuild-std=core,alloc,compiler_builtins")
                .arg("-Zbuild-std-features=compiler-builtins-mem");
        }
        command
    }
}

/// The cargo that runs us, in the checkout's root, without what this invocation put into the
/// environment: those settings are for the development machine, and for this package.
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "LD_LIBRARY_PATH",
    ] {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command
}

fn linker_variable(target: &str) -> String {
    let target = target.to_uppercase().replace('-', "_");
    format!("CARGO_TARGET_{target}_LINKER")
}

/// What stands between this machine and a bare-metal build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No compiler with the target's `core` or its source.
    Compiler,
    /// Neither `rust-lld` nor `ld.lld`.
    Linker,
}

impl Missing {
    /// What to do about it by hand.
    pub fn advice(self) -> String {
        match self {
            Self::Compiler => {
                let (major, minor) = minimum();
                format!(
                    "no compiler for {TARGET} and {TARGET32}: run `rustup target add {TARGET} {TARGET32}`, or \
                     `rustup component add rust-src`, or install a distribution's rustc \
                     {major}.{minor} or newer with its library source (Debian: rustc-web, \
                     rust-web-src)"
                )
            }
            Self::Linker => "no rust-lld or ld.lld: install the package `lld`".to_owned(),
        }
    }
}

fn find_compiler() -> Option<(Rustc, Core, bool)> {
    let active = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let active = Rustc::probe(&active).filter(|rustc| rustc.version >= minimum());
    if let Some(rustc) = active.as_ref().filter(|rustc| rustc.has_core()) {
        return Some((rustc.clone(), Core::Installed, true));
    }
    if let Some(rustc) = active.filter(Rustc::has_source) {
        return Some((rustc, Core::FromSource, true));
    }
    distribution_compilers()
        .into_iter()
        .chain(rustup_toolchains().map(|folder| folder.join("bin/rustc")))
        .filter(|path| path.exists())
        .filter_map(|path| Rustc::probe(path.as_os_str()))
        .find(|rustc| rustc.version >= minimum() && rustc.has_source())
        .map(|rustc| (rustc, Core::FromSource, false))
}

/// `/usr/bin/rustc`, and the versioned names that Ubuntu uses for newer ones.
fn distribution_compilers() -> Vec<PathBuf> {
    let folder = Path::new("/usr/bin");
    let mut compilers = vec![folder.join("rustc")];
    if let Ok(entries) = folder.read_dir() {
        let mut versioned: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("rustc-1."))
            .map(|entry| entry.path())
            .collect();
        versioned.sort();
        compilers.extend(versioned.into_iter().rev());
    }
    compilers
}

fn rustup_toolchains() -> impl Iterator<Item = PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let mut folders: Vec<_> = home
        .and_then(|home| home.join("toolchains").read_dir().ok())
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    folders.sort();
    folders.into_iter()
}

fn find_linker(rustc: &Rustc) -> Option<PathBuf> {
    let active = Rustc::probe(OsStr::new("rustc")).map(|rustc| rustc.sysroot);
    [Some(rustc.sysroot.clone()), active]
        .into_iter()
        .flatten()
        .chain(rustup_toolchains())
        .find_map(|sysroot| {
            let hosts = sysroot.join("lib/rustlib").read_dir().ok()?;
            hosts.flatten().map(|host| host.path().join("bin/rust-lld")).find(|file| file.exists())
        })
        .or_else(|| process::find_on_path("rust-lld"))
        .or_else(|| process::find_on_path("ld.lld"))
}

/// The packages of the distribution that bring a compiler, its source and a cargo.
fn distribution_packages(apt: &Apt) -> Option<Vec<String>> {
    let mut families = vec![
        ["rustc-web", "cargo-web", "rust-web-src"].map(str::to_owned),
        ["rustc", "cargo", "rust-src"].map(str::to_owned),
    ];
    let mut minors: Vec<u32> = apt
        .names("rustc-1.")
        .iter()
        .filter_map(|name| name.strip_prefix("rustc-1.")?.parse().ok())
        .collect();
    minors.sort_unstable();
    families.extend(minors.into_iter().rev().map(|minor| {
        [format!("rustc-1.{minor}"), format!("cargo-1.{minor}"), format!("rust-1.{minor}-src")]
    }));
    families
        .into_iter()
        .find(|[rustc, _, source]| {
            apt.candidate(source).is_some()
                && apt
                    .candidate(rustc)
                    .and_then(|version| parse_version(&version))
                    .is_some_and(|version| version >= minimum())
        })
        .map(Vec::from)
}

/// Whether rustup had the targets for the toolchain that runs us.
fn install_targets() -> bool {
    if env::var_os("RUSTUP_TOOLCHAIN").is_none() || process::find_on_path("rustup").is_none() {
        return false;
    }
    let mut command = Command::new("rustup");
    command.current_dir(workspace::root());
    command.args(["target", "add", TARGET, TARGET32]);
    eprintln!("setting up: {}", process::line(&command));
    command.stdout(std::io::stderr());
    match process::run(&mut command) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("setting up: {error:#}");
            false
        }
    }
}

fn install_compiler() -> Result<()> {
    if install_targets() {
        return Ok(());
    }
    if let Some(apt) = Apt::find() {
        if distribution_packages(&apt).is_none() {
            apt.ensure_known("rust-web-src")?;
        }
        if let Some(packages) = distribution_packages(&apt) {
            let packages: Vec<_> = packages.iter().map(String::as_str).collect();
            if apt.may_install() && apt.can_install(&packages) {
                return apt.install(&packages);
            }
        }
    }
    bail!("{}", Missing::Compiler.advice())
}

/// Installs rustfmt and clippy if cargo doesn't have them.
pub fn set_up_components() -> Result<()> {
    let missing: Vec<_> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(verb, _)| process::stdout(cargo().args([verb, "--version"])).is_err())
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    // rustup names the toolchain it runs; a distribution's cargo takes the distribution's.
    if env::var_os("RUSTUP_TOOLCHAIN").is_some() {
        let mut command = Command::new("rustup");
        command.current_dir(workspace::root());
        command.args(["component", "add"]).args(&missing);
        eprintln!("setting up: {}", process::line(&command));
        command.stdout(std::io::stderr());
        return process::run(&mut command);
    }
    let Some(apt) = Apt::find() else {
        bail!("install {} for your cargo", missing.join(" and "));
    };
    apt.ensure_known("rustfmt")?;
    let web = process::stdout(Command::new("dpkg-query").args(["-W", "cargo-web"])).is_ok();
    let packages: Vec<_> = missing
        .into_iter()
        .map(|component| match (component, web) {
            ("rustfmt", true) => "rustfmt-web",
            ("rustfmt", false) => "rustfmt",
            (_, true) => "rust-web-clippy",
            (_, false) => "rust-clippy",
        })
        .collect();
    apt.install(&packages)
}

/// The oldest release that builds this workspace: its `rust-version`.
fn minimum() -> (u32, u32) {
    parse_version(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default()
}

/// Major and minor release in `rustc 1.96.0 (…)`, in `1.96.0+dfsg1-1`, or in `1.90`.
pub fn parse_version(text: &str) -> Option<(u32, u32)> {
    let text = text.strip_prefix("rustc ").unwrap_or(text);
    // Debian's epoch.
    let text = text.split_once(':').map_or(text, |(_, rest)| rest);
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_compilers_and_packages() {
        assert_eq!(parse_version("rustc 1.96.0 (ac68faa20 2026-05-25)"), Some((1, 96)));
        assert_eq!(parse_version("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(parse_version("2:1.85-1"), Some((1, 85)));
        assert_eq!(parse_version("1.90"), Some((1, 90)));
        assert_eq!(parse_version("rustc"), None);
        assert!(minimum() >= (1, 85));
    }

    #[test]
    fn the_linker_variable_is_the_one_that_cargo_reads() {
        let variable = linker_variable(TARGET);
        assert_eq!(variable, "CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER");
    }
}
