//! A Linux to boot: Debian's arm64 kernel of the release at hand, or a file of the user's.
//!
//! The system's package manager gets it, but nothing is installed and no foreign architecture is added:
//! apt works on package lists and a cache of its own below `target/linux`. Only the Image is kept.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::packages::SetupLock;
use crate::process::Running;
use crate::{image, process, workspace};

/// The package that depends on the release's kernel.
const META_PACKAGE: &str = "linux-image-arm64";
/// What Debian signs with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// No kernel is larger, unpacked.
const LARGEST: u64 = 256 << 20;

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// An arm64 `Image`.
    pub image: PathBuf,
    /// What it is: its package, or the file it came from.
    pub name: String,
}

impl Kernel {
    /// The kernel in `file`: an `Image`, compressed with gzip or an EFI zboot image, or as it is.
    pub fn from_file(file: &Path) -> Result<Self> {
        let complain = || file.display().to_string();
        let data = fs::read(file).with_context(complain)?;
        let unpacked = unpack(data).with_context(complain)?;
        let image = workspace::image_dir().join("linux-kernel.image");
        image::write_whole(&image, &unpacked)?;
        Ok(Self { image, name: file.display().to_string() })
    }

    /// Debian's kernel for the release at hand, fetched unless an earlier run has done so.
    pub fn debian() -> Result<Self> {
        let _lock = SetupLock::take()?;
        let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let Some(suite) = debian_suite(&text) else {
            bail!("this is no Debian: give a kernel (an arm64 Image) with --kernel");
        };
        let folder = workspace::kernel_dir().join(&suite);
        let (image, name) = (folder.join("Image"), folder.join("package"));
        // The name is written last: with it, all is there.
        if let (true, Ok(name)) = (image.exists(), fs::read_to_string(&name)) {
            return Ok(Self { image, name });
        }
        for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            ensure!(process::find_on_path(tool).is_some(), "no {tool} to fetch a kernel with");
        }
        let apt = PrivateApt::new(&folder.join("apt"), &suite)?;
        let package = apt.kernel_package()?;
        let found = match apt.kernel_in(&package)? {
            Some(found) => found,
            // Newer releases have the file in a package of its own.
            None => {
                let binary = apt.dependency(&package, "linux-binary-")?;
                let binary = binary.with_context(|| format!("{package} has no vmlinuz"))?;
                apt.kernel_in(&binary)?.with_context(|| format!("{binary} has no vmlinuz"))?
            }
        };
        image::write_whole(&image, &unpack(found).context(package.clone())?)?;
        image::write_whole(&name, package.as_bytes())?;
        Ok(Self { image, name: package })
    }
}

/// The code name of a Debian release, from os-release.
fn debian_suite(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.strip_prefix('=')?.trim_matches('"').to_owned())
    };
    let plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME").filter(plain))?
}

/// apt for arm64, beside the system's: with lists and a cache of its own.
struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    fn new(folder: &Path, suite: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let apt = Self { folder: folder.to_path_buf() };
        // The system's own mirrors, which this machine is known to reach.
        let configured = process::stdout(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Identifier: Packages",
        ]));
        fs::write(apt.sources(), sources(&configured.unwrap_or_default(), suite))?;
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |part: &str| self.folder.join(part).display().to_string();
        option("Dir::State", &path(""));
        option("Dir::State::Lists", &path("lists"));
        option("Dir::State::Status", "/dev/null");
        option("Dir::Cache", &path("cache"));
        option("Dir::Etc::SourceList", &self.sources().display().to_string());
        option("Dir::Etc::SourceParts", "/dev/null");
        option("APT::Architecture", "arm64");
        option("APT::Architectures", "arm64");
        // All of it belongs to this user.
        option("APT::Sandbox::User", "root");
        option("Debug::NoLocking", "1");
        option("Acquire::Languages", "none");
        for kind in ["DEP-11", "DEP-11-icons-small", "DEP-11-icons", "Contents-deb", "CNF"] {
            option(&format!("Acquire::IndexTargets::deb::{kind}::DefaultEnabled"), "false");
        }
        command
    }

    /// Runs apt-get, with what it says among our own messages.
    fn get(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("apt-get");
        command.arg("-q").args(arguments).current_dir(&self.folder).stdout(std::io::stderr());
        // Not with its whole command line, of which the options above are the larger part.
        let status = Running::start(&mut command)?.child().wait()?;
        ensure!(status.success(), "apt-get {} failed ({status})", arguments.join(" "));
        Ok(())
    }

    /// The package of the release's current kernel.
    fn kernel_package(&self) -> Result<String> {
        eprintln!("fetching Debian's arm64 kernel into {}", self.folder.display());
        // A source that fails need not be the one that matters.
        let updated = self.get(&["update"]);
        match (self.dependency(META_PACKAGE, "linux-image-")?, updated) {
            (Some(package), _) => Ok(package),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => bail!("the package lists have no {META_PACKAGE}"),
        }
    }

    /// The dependency of a package whose name begins so.
    fn dependency(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let depends = self.command("apt-cache").args(["depends", package]).output()?;
        Ok(parse_dependency(&String::from_utf8_lossy(&depends.stdout), prefix))
    }

    /// The vmlinuz of a package, if it has one.
    fn kernel_in(&self, package: &str) -> Result<Option<Vec<u8>>> {
        self.get(&["download", package])?;
        let deb = fs::read_dir(&self.folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt downloaded no package")?;
        let mut archive = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&deb)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let content = archive.stdout.take().context("dpkg-deb has no output")?;
        // A pattern that matches nothing is an error to tar, and no file to us.
        let output = Command::new("tar")
            .args(["-xO", "--wildcards", "*/vmlinuz*"])
            .stdin(content)
            .stderr(Stdio::null())
            .output();
        let unpacked = archive.wait()?;
        let output = output?;
        fs::remove_file(&deb)?;
        ensure!(unpacked.success(), "{} can't be unpacked", deb.display());
        Ok((!output.stdout.is_empty()).then_some(output.stdout))
    }
}

/// A sources.list for a Debian release: `configured` has the system's own, one archive per line.
fn sources(configured: &str, suite: &str) -> String {
    let wanted = [suite.to_owned(), format!("{suite}-updates"), format!("{suite}-security")];
    let mut found: Vec<(String, String)> = configured
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
            let ours = component == "main" && wanted.iter().any(|suite| suite == release);
            ours.then(|| (uri.to_owned(), release.to_owned()))
        })
        .collect();
    if found.is_empty() {
        found.push(("http://deb.debian.org/debian".to_owned(), suite.to_owned()));
    }
    found.sort();
    found.dedup();
    found
        .iter()
        .map(|(uri, release)| format!("deb [signed-by={KEYRING}] {uri} {release} main\n"))
        .collect()
}

/// The package with this prefix among what `apt-cache depends` lists.
fn parse_dependency(text: &str, prefix: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(prefix))
        .map(str::to_owned)
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

    #[test]
    fn the_release_at_hand() {
        let text = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(debian_suite(text), Some("bookworm".to_owned()));
        assert_eq!(debian_suite("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(debian_suite("ID=debian\nVERSION_CODENAME=\"a b\"\n"), None);
        assert_eq!(debian_suite(""), None);
    }

    #[test]
    fn only_the_releases_own_archives_are_asked() {
        let configured = "http://m/debian/ bookworm main\nhttp://m/debian/ bookworm main\n\
            http://s/debian-security/ bookworm-security main\nhttp://other/ nodistro main\n\
            http://m/debian/ bookworm contrib\n";
        let list = sources(configured, "bookworm");
        assert_eq!(list.lines().count(), 2, "{list}");
        assert!(list.contains("http://s/debian-security/ bookworm-security main"));
        assert!(sources("", "trixie").contains("deb.debian.org/debian trixie main"));
    }

    #[test]
    fn the_kernels_package_is_found() {
        let text = "linux-image-arm64\n  Depends: linux-base-arm64\n  \
            Depends: linux-image-6.1.0-9-arm64\n";
        let found = parse_dependency(text, "linux-image-");
        assert_eq!(found, Some("linux-image-6.1.0-9-arm64".to_owned()));
        assert_eq!(parse_dependency("linux-image-arm64\n", "linux-image-"), None);
    }
}
