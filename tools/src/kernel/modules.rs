//! Drivers of a Linux that are not in its Image: those that the tests need, and what these need in turn.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{archive, named};
use crate::image::write_whole;
use crate::workspace;

/// Disks and a network on PCI.
pub const DEVICES: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "nvme"];
/// What a guest's devices take, and a file system on one.
pub const GUEST: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    // What ext4 has asked for by an alias, where it is a module.
    "crc32c_generic",
    "ext4",
];
/// A network of a host's to its guests.
pub const HOST: &[&str] = &["tun"];
/// Ciphers of the kernel's for user space, which they do with FP registers.
pub const CIPHERS: &[&str] = &["af_alg", "algif_skcipher", "aes_ce_blk"];
/// All that are kept.
const WANTED: [&[&str]; 4] = [DEVICES, GUEST, HOST, CIPHERS];
/// Of which of them this is the folder. Written last: with it, all are there.
const LIST: &str = "kept";

/// A folder of modules.
#[derive(Clone, Debug)]
pub struct Modules {
    folder: PathBuf,
}

impl Modules {
    /// Those in `folder`, which need not exist.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Whether they are there.
    pub fn exist(&self) -> bool {
        fs::read_to_string(self.folder.join(LIST)).is_ok_and(|list| list == wanted())
    }

    /// Names and contents of some, and of what they need, each behind what it needs. One that isn't there is in the Image.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub fn read(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        ensure!(self.exist(), "the kernel's modules aren't in {}", self.folder.display());
        let mut files = HashMap::new();
        list(&self.folder, &mut files)?;
        in_order(wanted, &files)
    }

    /// Takes them from a package; whether it has any.
    ///
    /// # Errors
    ///
    /// It has some, but not those that are wanted.
    pub fn take_from(&self, deb: &Path) -> Result<bool> {
        if !named(deb, ".ko")? {
            return Ok(false);
        }
        let all = workspace::kernel_dir().join("unpacked");
        remove(&all)?;
        fs::create_dir_all(&all)?;
        let to = all.display().to_string();
        archive(deb, &["-x", "-C", &to, "--wildcards", "*/modules/*.ko*"])?;
        let mut files = HashMap::new();
        list(&all, &mut files)?;
        let kept = self.keep(&files);
        remove(&all)?;
        kept.map(|()| true)
    }

    fn keep(&self, files: &HashMap<String, PathBuf>) -> Result<()> {
        remove(&self.folder)?;
        fs::create_dir_all(&self.folder)?;
        for (name, content) in in_order(&WANTED.concat(), files)? {
            write_whole(&self.folder.join(format!("{name}.ko")), &content)?;
        }
        write_whole(&self.folder.join(LIST), wanted().as_bytes())
    }
}

/// What the folder's list holds.
fn wanted() -> String {
    WANTED.concat().join("\n") + "\n"
}

/// Modules and what they need, each behind what it needs.
fn in_order(wanted: &[&str], files: &HashMap<String, PathBuf>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut taken = Vec::new();
    for name in wanted {
        take(name, files, &mut taken, 0)?;
    }
    Ok(taken)
}

/// Takes what `name` needs, then itself.
fn take(
    name: &str,
    files: &HashMap<String, PathBuf>,
    taken: &mut Vec<(String, Vec<u8>)>,
    depth: usize,
) -> Result<()> {
    ensure!(depth < 16, "modules need each other in a circle");
    if taken.iter().any(|(other, _)| other == name) {
        return Ok(());
    }
    let Some(file) = files.get(name) else {
        // What a module needs may be in the Image, and so may a driver.
        return Ok(());
    };
    let content = decompressed(file)?;
    for needed in needs(&content) {
        take(&needed, files, taken, depth + 1)?;
    }
    taken.push((name.to_owned(), content));
    Ok(())
}

/// Modules below a folder, by name: what is `-` in a file's name is `_` in a module's.
fn list(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// A module's ELF file.
fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let program = match extension {
        "ko" => return Ok(fs::read(file)?),
        "xz" => "xz",
        "zst" => "zstd",
        other => bail!("a module compressed with {other}"),
    };
    let output = Command::new(program)
        .args(["-dc"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("no {program} to unpack modules with"))?;
    ensure!(output.status.success(), "{} can't be unpacked", file.display());
    Ok(output.stdout)
}

/// What a module needs: `depends=` in its .modinfo, whose strings end in zeroes.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_behind_what_it_needs() {
        let folder = std::env::temp_dir().join(format!("umbra-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, depends) in [("a", "b,c"), ("b", "c"), ("c", "in_the_image"), ("d", "")] {
            fs::write(folder.join(format!("{name}.ko")), format!("\0depends={depends}\0")).unwrap();
        }
        let mut files = HashMap::new();
        list(&folder, &mut files).unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            in_order(wanted, &files).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&["a", "b"]), ["c", "b", "a"]);
        assert_eq!(names(&["d", "in_the_image"]), ["d"]);
        fs::write(folder.join("c.ko"), "\0depends=a\0").unwrap();
        assert!(in_order(&["a"], &files).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_module_needs() {
        let module = |depends: &str| format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
        assert_eq!(needs(module("virtio,virtio-ring").as_bytes()), ["virtio", "virtio_ring"]);
        assert!(needs(module("").as_bytes()).is_empty());
        assert!(needs(b"no module").is_empty());
    }
}
