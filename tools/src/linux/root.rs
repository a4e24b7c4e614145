//! A guest's disk: an ext4 file system with user space of the Debian release at hand, from its own packages.
//!
//! Nothing of them is configured: there is no init system in it, only what the first program needs that the tests
//! start there, and a shell for people. A list of checksums lies beside the files it is of.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::image::write_whole;
use crate::packages::{self, For, PrivateApt, SetupLock, Suite};
use crate::{process, workspace};

/// What people expect in a shell; what that needs comes along.
const PACKAGES: [&str; 7] =
    ["bash", "coreutils", "grep", "procps", "mount", "iproute2", "iputils-ping"];
/// What none of it needs, and is large.
const LEFT_OUT: [&str; 9] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/perl",
    "usr/share/perl5",
    "usr/lib/aarch64-linux-gnu/gconv",
    "usr/lib/aarch64-linux-gnu/perl",
];
/// Folders that are links into /usr in every Debian since bookworm, and not in all of its packages.
const MERGED: [&str; 3] = ["bin", "lib", "sbin"];
/// The list of checksums, as `sha256sum -c` reads it.
const SUMS: &str = "umbra/SHA256SUMS";
/// What the first program starts, if it isn't to be a shell: it says what this machine is, and reads every file.
const CHECK: &str = "umbra/check";
const CHECK_SCRIPT: &str = r#"#!/bin/bash
echo "@guest uname $(uname -srmo)"
echo "@guest cpuinfo $(grep -m1 ^Features /proc/cpuinfo)"
cd / && sha256sum --quiet -c umbra/SHA256SUMS && echo "@guest files $(wc -l < umbra/SHA256SUMS) right"
"#;
/// Bytes that the disk has beside its files: for what is written there, and the file system's own.
const SLACK: u64 = 24 << 20;

/// The disk, made unless an earlier run has made it.
///
/// # Errors
///
/// This is no Debian, or has no mke2fs and may not install it; packages that can't be had.
pub fn disk() -> Result<PathBuf> {
    mke2fs()?;
    let _lock = SetupLock::take()?;
    let suite = Suite::at_hand()?;
    let folder = workspace::kernel_dir().join(suite.to_string());
    let disk = folder.join("root.img");
    // What it was made of, written last: with it, all is there.
    let (made_of, recipe) = (folder.join("root.of"), recipe());
    if disk.exists() && fs::read_to_string(&made_of).is_ok_and(|found| found == recipe) {
        return Ok(disk);
    }
    eprintln!("making a disk with {suite}'s user space: {}", disk.display());
    let apt = PrivateApt::new(&folder.join("apt"), &suite, For::Empty("arm64"))?;
    let partial = folder.join("root.partial");
    packages::extract(&partial, |debs| {
        if apt.download_all(&PACKAGES, debs).is_ok() {
            return Ok(());
        }
        apt.update()?;
        apt.download_all(&PACKAGES, debs)
    })?;
    let root = partial.join("root");
    merge(&root)?;
    for left_out in LEFT_OUT {
        let path = root.join(left_out);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    write_whole(&root.join("etc/passwd"), b"root:x:0:0:root:/root:/bin/bash\n")?;
    write_whole(&root.join("etc/group"), b"root:x:0:\n")?;
    fs::create_dir_all(root.join("umbra"))?;
    write_whole(&root.join(CHECK), CHECK_SCRIPT.as_bytes())?;
    fs::set_permissions(root.join(CHECK), fs::Permissions::from_mode(0o755))?;
    let mut sums = Sums::default();
    sums.add(&root, Path::new("usr"))?;
    write_whole(&root.join(SUMS), sums.text.as_bytes())?;
    let made = folder.join("root.img.partial");
    let size = (sums.bytes + SLACK).next_multiple_of(1 << 20);
    let mut command = Command::new(MKE2FS);
    command.env("PATH", PATH).args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "umbra"]);
    // The same from the same files.
    command.args(["-E", "hash_seed=00000000-0000-0000-0000-000000000001,root_owner=0:0"]);
    command.args(["-U", "00000000-0000-0000-0000-000000000002", "-d"]).arg(&root).arg(&made);
    command.arg(format!("{}k", size >> 10));
    process::run(&mut command)?;
    // Neither stands beside another one's list.
    if made_of.exists() {
        fs::remove_file(&made_of)?;
    }
    fs::rename(&made, &disk)?;
    fs::remove_dir_all(&partial)?;
    write_whole(&made_of, recipe.as_bytes())?;
    Ok(disk)
}

fn recipe() -> String {
    format!("{}\nwithout {}\n{CHECK_SCRIPT}", PACKAGES.join(" "), LEFT_OUT.join(" "))
}

const MKE2FS: &str = "mke2fs";
/// Where it is, and a user's PATH need not say so.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

fn mke2fs() -> Result<()> {
    const PACKAGE: &str = "e2fsprogs";
    if PATH.split(':').any(|folder| Path::new(folder).join(MKE2FS).exists()) {
        return Ok(());
    }
    packages::install(&[PACKAGE]).with_context(|| format!("no {MKE2FS}"))
}

/// Makes links of the folders that should be some.
fn merge(root: &Path) -> Result<()> {
    for name in MERGED {
        let (folder, merged) = (root.join(name), root.join("usr").join(name));
        fs::create_dir_all(&merged)?;
        if folder.is_dir() && !folder.is_symlink() {
            let mut copy = Command::new("cp");
            process::run(
                copy.args(["-a", "--remove-destination"]).arg(folder.join(".")).arg(&merged),
            )?;
            fs::remove_dir_all(&folder)?;
        }
        if !folder.is_symlink() {
            symlink(format!("usr/{name}"), &folder)
                .with_context(|| folder.display().to_string())?;
        }
    }
    Ok(())
}

/// Checksums of files, and how much room these take.
#[derive(Debug, Default)]
struct Sums {
    text: String,
    bytes: u64,
}

impl Sums {
    /// Adds all below `path`, which is a folder in `root`, in the order of their names.
    fn add(&mut self, root: &Path, path: &Path) -> Result<()> {
        let mut names: Vec<_> = fs::read_dir(root.join(path))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let path = path.join(name);
            let place = root.join(&path);
            if place.is_symlink() {
                continue;
            }
            if place.is_dir() {
                self.add(root, &path)?;
                continue;
            }
            let content = fs::read(&place).with_context(|| place.display().to_string())?;
            // A block is the least.
            self.bytes += (content.len() as u64).next_multiple_of(4096) + 512;
            let path = path.to_str().context("a file's name")?;
            ensure!(
                !path.contains(['\\', '\n']),
                "{path:?} has a name that sha256sum writes otherwise"
            );
            let digest = Sha256::digest(&content);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            self.text += &format!("{hex}  {path}\n");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_as_sha256sum_has_them() {
        let root = std::env::temp_dir().join(format!("umbra-root-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/b")).unwrap();
        fs::write(root.join("usr/b/empty"), "").unwrap();
        fs::write(root.join("usr/a"), "abc").unwrap();
        symlink("a", root.join("usr/link")).unwrap();
        let mut sums = Sums::default();
        sums.add(&root, Path::new("usr")).unwrap();
        fs::remove_dir_all(&root).unwrap();
        // FIPS 180-2, B.1, and of nothing.
        assert_eq!(
            sums.text,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  usr/a\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  usr/b/empty\n"
        );
        assert_eq!(sums.bytes, 4096 + 2 * 512);
    }

    #[test]
    fn folders_become_links() {
        let root = std::env::temp_dir().join(format!("umbra-merge-{}", std::process::id()));
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("bin/a"), "1").unwrap();
        fs::write(root.join("usr/bin/b"), "2").unwrap();
        merge(&root).unwrap();
        let found = fs::read_to_string(root.join("bin/b")).unwrap()
            + &fs::read_to_string(root.join("usr/bin/a")).unwrap();
        let link = fs::read_link(root.join("sbin")).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!((found.as_str(), link), ("21", PathBuf::from("usr/sbin")));
    }
}
