//! A Linux to boot: Debian's arm64 kernel of the release at hand, its newest, or a file of the user's.
//!
//! The system's package manager gets it, but nothing is installed and no foreign architecture is added:
//! apt works on package lists and a cache of its own below `target/linux`. Only the Image and some drivers are
//! kept.

mod modules;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::packages::{For, PrivateApt, SetupLock, Suite};
use crate::{image, workspace};

pub use modules::{CIPHERS, DEVICES, GUEST, HOST, Modules};

/// The package that depends on the release's kernel.
const META_PACKAGE: &str = "linux-image-arm64";
/// No kernel is larger, unpacked.
const LARGEST: u64 = 256 << 20;

/// Debian's release whose backports have the newest kernel.
const NEWEST_RELEASE: &str = "trixie";

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Debian {
    /// That of the release at hand.
    #[default]
    Release,
    /// The newest that there is for a release: that of the newest one's backports.
    Newest,
}

impl Debian {
    /// Where it comes from.
    ///
    /// # Errors
    ///
    /// This is no Debian.
    pub fn suite(self) -> Result<Suite> {
        let at_hand = Suite::at_hand()?;
        Ok(match self {
            Self::Release => at_hand,
            Self::Newest => Suite::of(NEWEST_RELEASE).backports(),
        })
    }

    /// Where its parts are kept.
    pub(crate) fn folder(self) -> Result<PathBuf> {
        Ok(workspace::kernel_dir().join(self.suite()?.to_string()))
    }
}

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// An arm64 `Image`.
    pub image: PathBuf,
    /// What it is: its package, or the file it came from.
    pub name: String,
    /// Its drivers, if it came with any.
    pub modules: Option<Modules>,
}

impl Kernel {
    /// The kernel in `file`: an `Image`, compressed with gzip or an EFI zboot image, or as it is.
    pub fn from_file(file: &Path) -> Result<Self> {
        let complain = || file.display().to_string();
        let data = fs::read(file).with_context(complain)?;
        let unpacked = unpack(data).with_context(complain)?;
        let image = workspace::image_dir().join("linux-kernel.image");
        image::write_whole(&image, &unpacked)?;
        Ok(Self { image, name: file.display().to_string(), modules: None })
    }

    /// A kernel of Debian's, fetched unless an earlier run has done so.
    pub fn debian(which: Debian) -> Result<Self> {
        let _lock = SetupLock::take()?;
        let suite = which
            .suite()
            .context("there is only Debian's to fetch: give one (an arm64 Image) with --kernel")?;
        let folder = which.folder()?;
        let (image, name) = (folder.join("Image"), folder.join("package"));
        let modules = Modules::in_folder(&folder.join("modules"));
        // The name is written last: with it, all is there.
        if let (true, true, Ok(name)) = (image.exists(), modules.exist(), fs::read_to_string(&name))
        {
            return Ok(Self { image, name, modules: Some(modules) });
        }
        eprintln!("fetching {suite}'s arm64 kernel into {}", folder.display());
        let apt = PrivateApt::new(&folder.join("apt"), &suite, For::Empty("arm64"))?;
        let package = kernel_package(&apt)?;
        // Newer releases have each in a package of its own.
        let parts = [Some(package.clone())].into_iter().chain(
            ["linux-binary-", "linux-modules-"]
                .map(|prefix| apt.dependency(&package, prefix).ok()?),
        );
        let (mut found, mut has_modules) = (None, false);
        for part in parts.flatten() {
            let deb = apt.download(&part)?;
            let taken = take_from(&deb, &mut found, &mut has_modules, &modules);
            fs::remove_file(&deb)?;
            taken.context(part)?;
        }
        let found = found.with_context(|| format!("{package} has no vmlinuz"))?;
        ensure!(has_modules, "{package} has no modules");
        image::write_whole(&image, &unpack(found).context(package.clone())?)?;
        image::write_whole(&name, package.as_bytes())?;
        Ok(Self { image, name: package, modules: Some(modules) })
    }
}

/// Takes of a package what is still missing.
fn take_from(
    deb: &Path,
    image: &mut Option<Vec<u8>>,
    has_modules: &mut bool,
    modules: &Modules,
) -> Result<()> {
    if image.is_none() {
        let is_there = named(deb, "/vmlinuz")?;
        let unpack = || archive(deb, &["-xO", "--wildcards", "*/vmlinuz*"]);
        *image = is_there.then(unpack).transpose()?;
    }
    if !*has_modules {
        *has_modules = modules.take_from(deb)?;
    }
    Ok(())
}

/// Files in a package whose names have this in them.
pub(crate) fn named(deb: &Path, part: &str) -> Result<bool> {
    Ok(String::from_utf8_lossy(&archive(deb, &["-t"])?).lines().any(|name| name.contains(part)))
}

/// What tar says to the content of a package with these arguments. A pattern that matches nothing is an
/// error.
pub(crate) fn archive(deb: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let content = archive.stdout.take().context("dpkg-deb has no output")?;
    let output = Command::new("tar").args(arguments).stdin(content).output();
    let unpacked = archive.wait()?;
    let output = output?;
    let well = unpacked.success() && output.status.success();
    ensure!(
        well,
        "{} can't be unpacked: {}",
        deb.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The package of the release's current kernel.
fn kernel_package(apt: &PrivateApt) -> Result<String> {
    let updated = apt.update();
    match (apt.dependency(META_PACKAGE, "linux-image-")?, updated) {
        (Some(package), _) => Ok(package),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => bail!("the package lists have no {META_PACKAGE}"),
    }
}

/// An arm64 `Image` out of what distributions call vmlinuz.
fn unpack(data: Vec<u8>) -> Result<Vec<u8>> {
    if data.starts_with(&[0x1f, 0x8b]) {
        return gunzip(&data);
    }
    // The header of an EFI zboot image: Linux drivers/firmware/efi/libstub/zboot-header.S.
    if data.get(4..8) == Some(b"zimg") {
        let word = |at: usize| {
            let bytes = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_le_bytes).context("cut off in the zboot header")
        };
        let (offset, size) = (word(8)? as usize, word(12)? as usize);
        let payload = offset.checked_add(size).and_then(|end| data.get(offset..end));
        let payload = payload.context("the zboot header points beyond the file")?;
        let kind = data.get(24..56).context("cut off in the zboot header")?;
        let kind = kind.split(|&byte| byte == 0).next().unwrap_or_default();
        return match kind {
            b"gzip" => gunzip(payload),
            b"zstd" => unzstd(payload),
            other => bail!(
                "compressed with {}: only gzip and zstd are supported; unpack it first",
                String::from_utf8_lossy(other)
            ),
        };
    }
    Ok(data)
}

fn gunzip(data: &[u8]) -> Result<Vec<u8>> {
    read_all(flate2::read::GzDecoder::new(data)).context("gzip")
}

fn unzstd(data: &[u8]) -> Result<Vec<u8>> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(data);
    let decoder = decoder.map_err(|error| anyhow::anyhow!("zstd: {error}"))?;
    read_all(decoder).context("zstd")
}

fn read_all(reader: impl Read) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(LARGEST + 1).read_to_end(&mut out)?;
    ensure!(out.len() as u64 <= LARGEST, "more than {} MiB", LARGEST >> 20);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zboot(kind: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&64u32.to_le_bytes());
        file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file[24..24 + kind.len()].copy_from_slice(kind);
        file.extend_from_slice(payload);
        file
    }

    #[test]
    fn every_wrapping_is_taken_off() {
        let image: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(unpack(image.clone()).unwrap(), image);
        assert_eq!(unpack(gzip(&image)).unwrap(), image);
        assert_eq!(unpack(zboot(b"gzip", &gzip(&image))).unwrap(), image);
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let mut zstd = ruzstd::encoding::compress_to_vec(image.as_slice(), level);
        // Linux appends the size.
        zstd.extend_from_slice(&100_000u32.to_le_bytes());
        assert_eq!(unpack(zboot(b"zstd", &zstd)).unwrap(), image);
    }

    #[test]
    fn what_cannot_be_unpacked_is_named() {
        let error = |data: Vec<u8>| format!("{:#}", unpack(data).unwrap_err());
        assert!(error(zboot(b"lzma", b"x")).contains("compressed with lzma"));
        assert!(error(gzip(b"some text")[..12].to_vec()).contains("gzip"));
        let mut beyond = zboot(b"gzip", b"x");
        beyond[12] = 200;
        assert!(error(beyond).contains("beyond the file"));
        assert!(error(zboot(b"gzip", b"x")[..20].to_vec()).contains("zboot"));
    }
}
