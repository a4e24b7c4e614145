//! The system's packages, through apt: what is missing is installed, nothing is ever removed.
//!
//! A machine may hold a package that stands in the way of one we need (a backport that breaks an
//! older library, say). apt would then remove it; we don't let it (`--no-remove`), and unpack what
//! we need into a folder of our own instead, leaving the system as it is. The same serves a user
//! who may not install anything.

mod private;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{process, workspace};

pub use private::{For, PrivateApt, Suite};

/// Seconds to wait for another apt to finish.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=300";

/// apt on this machine, and who we are to it.
pub struct Apt {
    may_install: Option<Privilege>,
}

#[derive(Clone, Copy)]
enum Privilege {
    Root,
    Sudo,
}

impl Apt {
    /// apt, if this machine has it.
    pub fn find() -> Option<Self> {
        process::find_on_path("apt-get")?;
        process::find_on_path("dpkg-query")?;
        Some(Self { may_install: privilege() })
    }

    /// Whether packages may be installed: as root, or through a sudo that asks no password.
    pub fn may_install(&self) -> bool {
        self.may_install.is_some()
    }

    /// The version that would be installed; `None` if the package is unknown.
    pub fn candidate(&self, package: &str) -> Option<String> {
        let mut command = Command::new("apt-cache");
        command.env("LC_ALL", "C").args(["policy", package]);
        parse_candidate(&process::stdout(&mut command).ok()?)
    }

    /// Names of known packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        process::stdout(Command::new("apt-cache").args(["pkgnames", prefix]))
            .map(|text| text.lines().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// Fetches the package lists if they don't know `package`: a fresh container has none, and old
    /// ones lack what is new.
    pub fn ensure_known(&self, package: &str) -> Result<()> {
        if self.candidate(package).is_some() || !self.may_install() {
            return Ok(());
        }
        self.update()
    }

    fn update(&self) -> Result<()> {
        self.privileged(&["update"])
    }

    /// Whether `packages` can be installed without removing anything.
    pub fn can_install(&self, packages: &[&str]) -> bool {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "--simulate", "-y", "--no-remove"])
            .arg("--no-install-recommends")
            .args(packages);
        process::stdout(&mut command).is_ok()
    }

    /// Installs `packages`.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let mut arguments = vec!["install", "-y", "--no-remove", "--no-install-recommends"];
        arguments.extend(packages);
        match self.privileged(&arguments) {
            Ok(()) => Ok(()),
            // Old lists name files that the archive no longer has.
            Err(error) if self.may_install() => {
                eprintln!("{error}; trying again with fresh package lists");
                self.update()?;
                self.privileged(&arguments)
            }
            Err(error) => Err(error),
        }
    }

    fn privileged(&self, arguments: &[&str]) -> Result<()> {
        let mut command = match self.may_install {
            Some(Privilege::Root) => Command::new("apt-get"),
            Some(Privilege::Sudo) => {
                let mut command = Command::new("sudo");
                command.args(["-n", "apt-get"]);
                command
            }
            None => bail!(
                "this user may not install packages; run: sudo apt-get {}",
                arguments.join(" ")
            ),
        };
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-o", LOCK_TIMEOUT, "-q"])
            .args(arguments);
        eprintln!("setting up: {}", process::line(&command));
        // What apt says belongs with our own messages: standard output is for results.
        command.stdout(std::io::stderr());
        process::run(&mut command)
    }

    /// Unpacks `packages`, and what they need beyond what is installed, into `folder`/root, without
    /// touching the system. `finish` completes the folder before it gets its name, so that a folder
    /// with that name is always a complete one.
    pub fn unpack(
        &self,
        packages: &[&str],
        folder: &Path,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let partial = folder.with_extension("partial");
        extract(&partial, |debs| {
            let Err(error) = download(packages, debs) else { return Ok(()) };
            if !self.may_install() {
                return Err(error);
            }
            eprintln!("{error:#}; trying again with fresh package lists");
            self.update()?;
            download(packages, debs)
        })?;
        finish(&partial)?;
        put_in_place(&partial, folder)
    }
}

/// Installs what a step of ours needs.
///
/// # Errors
///
/// This is no Debian, this user may not install anything, or it can't be had without removing what is there.
pub fn install(needed: &[&str]) -> Result<()> {
    let _lock = SetupLock::take()?;
    let Some(apt) = Apt::find().filter(Apt::may_install) else {
        bail!("install {}", needed.join(" and "));
    };
    for package in needed {
        apt.ensure_known(package)?;
    }
    ensure!(apt.can_install(needed), "{} can't be had, or others would go", needed.join(" or "));
    apt.install(needed)
}

/// Unpacks what `download` puts into the folder that it gets into `partial`/root, and nothing else.
pub fn extract(partial: &Path, download: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    remove(partial)?;
    let (debs, root) = (partial.join("debs"), partial.join("root"));
    fs::create_dir_all(&debs)?;
    fs::create_dir_all(&root)?;
    download(&debs)?;
    for deb in fs::read_dir(&debs)? {
        let mut extract = Command::new("dpkg-deb");
        process::run(extract.arg("-x").arg(deb?.path()).arg(&root))?;
    }
    remove(&debs)
}

/// A complete folder gets its name.
pub fn put_in_place(partial: &Path, folder: &Path) -> Result<()> {
    remove(folder)?;
    fs::rename(partial, folder).with_context(|| format!("could not create {}", folder.display()))
}

/// Fetches the archives of `packages`, and of what they need beyond what is installed.
fn download(packages: &[&str], folder: &Path) -> Result<()> {
    let mut list = Command::new("apt-get");
    list.args(["install", "-y", "--no-install-recommends", "--print-uris"])
        .args(["-o", "Debug::NoLocking=1"])
        .args(packages);
    let archives = parse_archives(&process::stdout(&mut list)?);
    if archives.is_empty() {
        bail!("apt names no archive for {}", packages.join(" "));
    }
    let mut download = Command::new("apt-get");
    download
        .current_dir(folder)
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .args(archives)
        .stdout(std::io::stderr());
    eprintln!("setting up: {}", process::line(&download));
    process::run(&mut download)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("could not remove {}", folder.display()))?;
    }
    Ok(())
}

fn privilege() -> Option<Privilege> {
    if rustix::process::geteuid().is_root() {
        return Some(Privilege::Root);
    }
    process::find_on_path("sudo")?;
    process::output(Command::new("sudo").args(["-n", "true"]))
        .is_ok_and(|output| output.status.success())
        .then_some(Privilege::Sudo)
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// `package:arch=version` of every archive that `apt-get --print-uris` lists.
fn parse_archives(uris: &str) -> Vec<String> {
    uris.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| {
            let name = line.split_whitespace().nth(1)?.strip_suffix(".deb")?;
            let mut parts = name.split('_');
            let (package, version, arch) = (parts.next()?, parts.next()?, parts.next()?);
            // Only the epoch's colon is escaped in these names.
            let version = version.replace("%3a", ":");
            Some(if arch == "all" {
                format!("{package}={version}")
            } else {
                format!("{package}:{arch}={version}")
            })
        })
        .collect()
}

/// Serialises set-up between several runs of this program on one checkout. Held until dropped.
pub struct SetupLock(#[expect(dead_code, reason = "held for its lock")] File);

impl SetupLock {
    /// Waits for the lock.
    pub fn take() -> Result<Self> {
        let folder = workspace::tools_dir();
        fs::create_dir_all(&folder)?;
        let file = File::create(folder.join("lock"))?;
        file.lock()?;
        Ok(Self(file))
    }
}

/// A folder of unpacked libraries: where the dynamic linker must look.
pub fn library_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for base in ["usr/lib", "lib"] {
        let Ok(entries) = fs::read_dir(root.join(base)) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.path().is_dir() && entry.file_name().to_string_lossy().contains("-linux-") {
                folders.push(Path::new(base).join(entry.file_name()));
            }
        }
    }
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archives_of_an_install_are_read() {
        let text = "Reading package lists...\n\
            The following packages will be REMOVED:\n  qemu-utils\n\
            'http://a/libc_2.8.0-3_amd64.deb' libcacard0_1%3a2.8.0-3_amd64.deb 91068 MD5Sum:4d\n\
            'http://a/q.deb' qemu-system-data_1%3a7.2+dfsg-7+deb12u18_all.deb 1297476 MD5Sum:ad\n";
        assert_eq!(
            parse_archives(text),
            ["libcacard0:amd64=1:2.8.0-3", "qemu-system-data=1:7.2+dfsg-7+deb12u18"]
        );
    }

    #[test]
    fn a_package_without_candidate_is_unknown() {
        let text = |version: &str| format!("x:\n  Installed: (none)\n  Candidate: {version}\n");
        assert_eq!(parse_candidate(&text("1:7.2")), Some("1:7.2".to_owned()));
        assert_eq!(parse_candidate(&text("(none)")), None);
        assert_eq!(parse_candidate(""), None);
    }
}
