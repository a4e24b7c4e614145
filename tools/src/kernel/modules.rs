//! Drivers of a Linux that are not in its Image: those that the tests need, and what they need.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::archive;
use crate::image::write_whole;
use crate::workspace;

/// The drivers that are kept.
const WANTED: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "nvme"];
/// The list of them, each behind what it needs. Written last: with it, all are there.
const LIST: &str = "list";

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
        self.folder.join(LIST).exists()
    }

    /// Names and contents, each behind what it needs.
    ///
    /// # Errors
    ///
    /// They aren't there.
    pub fn read(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let list = fs::read_to_string(self.folder.join(LIST)).context("the kernel's modules")?;
        let read = |name: &str| {
            let file = self.folder.join(format!("{name}.ko"));
            let content = fs::read(&file).with_context(|| file.display().to_string())?;
            anyhow::Ok((name.to_owned(), content))
        };
        list.lines().map(read).collect()
    }

    /// Takes them from a package; whether it has any.
    ///
    /// # Errors
    ///
    /// It has some, but not those that are wanted.
    pub fn take_from(&self, deb: &Path) -> Result<bool> {
        let all = workspace::kernel_dir().join("unpacked");
        remove(&all)?;
        fs::create_dir_all(&all)?;
        let to = all.display().to_string();
        archive(deb, &["-x", "-C", &to, "--wildcards", "*/modules/*.ko*"])?;
        let mut files = HashMap::new();
        list(&all, &mut files)?;
        let taken = if files.is_empty() { Ok(false) } else { self.keep(&files).map(|()| true) };
        remove(&all)?;
        taken
    }

    fn keep(&self, files: &HashMap<String, PathBuf>) -> Result<()> {
        remove(&self.folder)?;
        fs::create_dir_all(&self.folder)?;
        let mut order = Vec::new();
        for name in WANTED {
            self.keep_one(name, files, &mut order, 0)?;
        }
        write_whole(&self.folder.join(LIST), (order.join("\n") + "\n").as_bytes())
    }

    /// Keeps what `name` needs, then itself.
    fn keep_one(
        &self,
        name: &str,
        files: &HashMap<String, PathBuf>,
        order: &mut Vec<String>,
        depth: usize,
    ) -> Result<()> {
        ensure!(depth < 16, "modules need each other in a circle");
        if order.iter().any(|kept| kept == name) {
            return Ok(());
        }
        let Some(file) = files.get(name) else {
            // What a module needs may be in the Image, and so may a driver.
            return Ok(());
        };
        let content = decompressed(file)?;
        for needed in needs(&content) {
            self.keep_one(&needed, files, order, depth + 1)?;
        }
        write_whole(&self.folder.join(format!("{name}.ko")), &content)?;
        order.push(name.to_owned());
        Ok(())
    }
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
    fn what_a_module_needs() {
        let module = |depends: &str| format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
        assert_eq!(needs(module("virtio,virtio-ring").as_bytes()), ["virtio", "virtio_ring"]);
        assert!(needs(module("").as_bytes()).is_empty());
        assert!(needs(b"no module").is_empty());
    }
}
