//! The kernel module: Rust into one object, and that with its C half into a module, by Debian's headers for the kernel that
//! the tests boot or by somebody else's. And a small one for a protected guest, to read its measurement by.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image;
use crate::kernel::{Debian, Kernel};
use crate::packages::{self, For, PrivateApt, SetupLock};
use crate::process;
use crate::toolchain::Toolchain;
use crate::workspace::{self, TARGET};

/// The package of its Rust half.
pub const PACKAGE: &str = "umbra-module";
/// Its C half.
const SOURCES: &str = "host/linux/module";
/// The protected guest's.
const REALM_SOURCES: &str = "tests/linux/realm";
/// What C calls: all that is needed of the Rust half follows from these.
const ENTRIES: &[&str] = &[
    "umbra_init",
    "umbra_exit",
    "umbra_hibernate",
    "umbra_shutdown",
    "umbra_ioctl",
    "umbra_release",
    "umbra_read",
    "umbra_pages",
    "umbra_run_page",
    "umbra_irqfd",
    "umbra_may_map",
    "umbra_fault",
    "umbra_work",
];
/// The cross compiler's prefix, and its package.
const CROSS: &str = "aarch64-linux-gnu-";
const CROSS_PACKAGE: &str = "gcc-aarch64-linux-gnu";

/// Headers that modules are built with.
#[derive(Clone, Debug)]
pub struct Headers {
    folder: PathBuf,
}

impl Headers {
    /// Those in a folder that `make -C` takes.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        ensure!(folder.join("Makefile").exists(), "{} has no Makefile", folder.display());
        Ok(Self { folder })
    }

    /// Those of a kernel of Debian's, fetched unless an earlier run has done so.
    pub fn debian(which: Debian) -> Result<Self> {
        let kernel = Kernel::debian(which)?;
        let _lock = SetupLock::take()?;
        let image = kernel.name.trim();
        let version = image.strip_prefix("linux-image-").with_context(|| image.to_owned())?;
        let folder = which.folder()?.join("headers");
        let place = |root: &Path| root.join(format!("root/usr/src/linux-headers-{version}"));
        if !place(&folder).join("Makefile").exists() {
            eprintln!("fetching the headers of {image} into {}", folder.display());
            fetch(which, version, &folder)?;
        }
        Self::in_folder(&place(&folder))
    }
}

/// Unpacks the headers, what is common to all flavours, and the build tools of this machine.
fn fetch(which: Debian, version: &str, folder: &Path) -> Result<()> {
    let (suite, kernels) = (which.suite()?, which.folder()?);
    let target = PrivateApt::new(&kernels.join("apt"), &suite, For::Empty("arm64"))?;
    let here = PrivateApt::new(&kernels.join("apt-here"), &suite, For::ThisWithout("linux-"))?;
    let headers = format!("linux-headers-{version}");
    // Lists that are there will do, if the kernel's own package is in them.
    if target.dependency(&headers, "linux-headers-")?.is_none() {
        target.update()?;
    }
    here.update()?;
    let common = target.dependency(&headers, "linux-headers-")?.context("no common headers")?;
    let tools = target.dependency(&headers, "linux-kbuild-")?.context("no kbuild tools")?;
    let partial = folder.with_extension("partial");
    packages::extract(&partial, |debs| {
        let mut parts = vec![(&target, &*headers), (&target, &common), (&here, &tools)];
        if which != Debian::Release {
            parts.extend(LIBRARIES.map(|library| (&here, library)));
        }
        for (apt, package) in parts {
            let deb = apt.download(package)?;
            fs::rename(&deb, debs.join(deb.file_name().context("a package's name")?))?;
        }
        Ok(())
    })?;
    let root = partial.join("root");
    // Their Makefile says where packages are installed.
    let makefile = root.join(format!("usr/src/{headers}/Makefile"));
    let text = fs::read_to_string(&makefile)?;
    ensure!(text.contains("include /usr/src/"), "{} is none of Debian's", makefile.display());
    let text = text.replace("/usr/src/", "$(dir $(CURDIR))");
    fs::write(&makefile, text.replace("KBUILD_OUTPUT=", "KBUILD_OUTPUT:="))?;
    if which != Debian::Release {
        bring_libraries(&root, &folder.join("root"))?;
    }
    packages::put_in_place(&partial, folder)
}

/// What the build tools of another release need that this one's are too old for.
const LIBRARIES: [&str; 4] = ["libc6", "libelf1t64", "zlib1g", "libzstd1"];

/// Has the build tools below `root`, which will be at `place`, find the libraries that came with them.
fn bring_libraries(root: &Path, place: &Path) -> Result<()> {
    const LOADER: &str = "ld-linux-x86-64.so.2";
    const FOLDER: &str = "usr/lib/x86_64-linux-gnu";
    ensure!(root.join(FOLDER).join(LOADER).exists(), "no {LOADER} of this machine's architecture");
    let libraries = place.join(FOLDER);
    let tools = fs::read_dir(root.join("usr/lib"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let tools = tools.filter(|path| path.to_string_lossy().contains("/linux-kbuild-"));
    for scripts in tools.map(|path| path.join("scripts/mod")) {
        // All of them before any is renamed.
        let programs: Vec<_> =
            fs::read_dir(scripts)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        for program in programs {
            if !fs::read(&program)?.starts_with(b"\x7fELF") {
                continue;
            }
            let mut name = program.file_name().context("a program's name")?.to_owned();
            name.push(".elf");
            let real = program.with_file_name(&name);
            fs::rename(&program, &real)?;
            let real = place.join(real.strip_prefix(root)?);
            let (libraries, real) = (libraries.display(), real.display());
            let text = format!("{libraries}{real}");
            ensure!(!text.contains('\''), "{text}: a shell needs other quotes for that");
            let launcher = format!(
                "#!/bin/sh\nexec '{libraries}/{LOADER}' --library-path '{libraries}' --argv0 \"$0\" '{real}' \"$@\"\n"
            );
            image::write_whole(&program, launcher.as_bytes())?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// The cross compiler, which is installed if it may be.
pub fn compiler() -> Result<()> {
    let gcc = format!("{CROSS}gcc");
    if process::find_on_path(&gcc).is_some() && process::find_on_path("make").is_some() {
        return Ok(());
    }
    packages::install(&[CROSS_PACKAGE, "make"]).with_context(|| format!("no {gcc} or no make"))
}

/// Builds the module and returns it. `hunts`: one that looks for protected guests' registers in the host.
pub fn build(toolchain: &Toolchain, headers: &Headers, hunts: bool) -> Result<PathBuf> {
    let target = workspace::target_dir().join("module");
    build_in(toolchain, headers, hunts, &workspace::root(), &target)
}

/// The same for a checkout in `root`, with a target directory of its own.
pub fn build_in(
    toolchain: &Toolchain,
    headers: &Headers,
    hunts: bool,
    root: &Path,
    target: &Path,
) -> Result<PathBuf> {
    compiler()?;
    let _lock = lock(target)?;
    let object = rust_half(toolchain, hunts, root, target)?;
    let (build, hunt) = if hunts { ("-hunt", "y") } else { ("", "n") };
    let folder = copy_sources(headers, build, &root.join(SOURCES), target)?;
    fs::rename(&object, folder.join("umbra_rust.o"))?;
    // modpost looks for the command that made each object.
    fs::write(folder.join(".umbra_rust.o.cmd"), "")?;
    make(headers, &folder, &[format!("UMBRA_HUNT={hunt}")]).context("the module's C half")?;
    Ok(folder.join("umbra.ko"))
}

/// Builds the protected guest's module for its kernel's headers.
pub fn build_realm(headers: &Headers) -> Result<PathBuf> {
    compiler()?;
    let target = workspace::target_dir().join("realm");
    let _lock = lock(&target)?;
    let folder = copy_sources(headers, "", &workspace::root().join(REALM_SOURCES), &target)?;
    make(headers, &folder, &[]).context("the protected guest's module")?;
    Ok(folder.join("umbra_realm.ko"))
}

/// One at a time: what is built for one kernel is not taken away by who builds for another.
fn lock(target: &Path) -> Result<File> {
    fs::create_dir_all(target)?;
    let lock = File::create(target.join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// A module's C into a fresh folder, one for each kernel and build.
fn copy_sources(headers: &Headers, build: &str, sources: &Path, target: &Path) -> Result<PathBuf> {
    let mut name = headers.folder.file_name().context("the headers' name")?.to_owned();
    name.push(build);
    let folder = target.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(sources)? {
        let path = entry?.path();
        fs::copy(&path, folder.join(path.file_name().context("a file's name")?))?;
    }
    Ok(folder)
}

/// Has the kernel's Makefile build the module in `folder`, with these variables.
fn make(headers: &Headers, folder: &Path, variables: &[String]) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&headers.folder)
        .arg(format!("M={}", folder.display()))
        .args(["ARCH=arm64", &format!("CROSS_COMPILE={CROSS}"), &format!("CC={CROSS}gcc")])
        // Debian's Makefile asks whether it is cross compiling.
        .args(["DEB_BUILD_ARCH=amd64", "DEB_HOST_ARCH=arm64"])
        .arg("DEB_HOST_GNU_TYPE=aarch64-linux-gnu")
        // What the build machine would need beyond a compiler, and a module can do without.
        .args(["CONFIG_DEBUG_INFO_BTF_MODULES="])
        .args(variables)
        // A compiler older than the kernel's aligns functions by another option.
        .args(["CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=", "modules"])
        .stdout(std::io::stderr());
    eprintln!("building: {}", process::line(&make));
    process::run(&mut make)
}

/// The Rust half as one object with a section of each kind.
fn rust_half(toolchain: &Toolchain, hunts: bool, root: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo_for(TARGET, "build", root, target);
    cargo
        .args(["--release", "--package", PACKAGE])
        .args(["--config", "profile.release.lto='fat'"])
        // The module loader relocates ABS64, ADR_PREL_PG_HI21, ADD_ABS_LO12_NC, CALL26 and JUMP26, and no GOT; its kernel
        // unwinds by frame pointers.
        .env(
            "RUSTFLAGS",
            "-Crelocation-model=static -Cforce-unwind-tables=no -Cforce-frame-pointers=yes",
        );
    if hunts {
        cargo.args(["--features", "hunt"]);
    }
    process::run(&mut cargo).context("the module's Rust half")?;
    let library = target.join(TARGET).join("release");
    let library = library.join(format!("lib{}.a", PACKAGE.replace('-', "_")));
    let object = target.join("umbra_rust.o");
    let mut link = Command::new(format!("{CROSS}ld"));
    link.args(["-r", "--gc-sections", "--strip-debug", "-T"])
        .arg(root.join(SOURCES).join("merge.lds"))
        .args(ENTRIES.iter().flat_map(|entry| ["-u", entry]))
        .arg("-o")
        .arg(&object)
        .arg(&library);
    process::run(&mut link).context("the module's Rust half, as one object")?;
    Ok(object)
}
