//! apt on package lists and a cache of its own, in one folder: the system's sources, lists and packages
//! stay as they are, nothing is installed and no foreign architecture is added.
//!
//! Its sources are the system's own mirrors, which this machine is known to reach.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::parse_archives;
use crate::process::{self, Running};

/// What Debian signs with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What is installed, as dpkg writes it down.
const DPKG_STATUS: &str = "/var/lib/dpkg/status";

/// Whom the packages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// A machine of this architecture that has nothing installed.
    Empty(&'static str),
    /// This machine, as if no package whose name begins so were installed.
    ThisWithout(&'static str),
}

/// A suite of Debian's: a release, or a part beside it, such as its backports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    release: String,
    part: Option<&'static str>,
}

impl Suite {
    /// The release of this machine.
    ///
    /// # Errors
    ///
    /// This is no Debian.
    pub fn at_hand() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
        match debian_suite(&text) {
            Some(release) => Ok(Self { release, part: None }),
            None => bail!("this is no Debian"),
        }
    }

    /// A release by its code name.
    pub fn of(release: &str) -> Self {
        Self { release: release.to_owned(), part: None }
    }

    /// What newer releases had that was built for this one.
    pub fn backports(self) -> Self {
        Self { part: Some("backports"), ..self }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)?;
        self.part.map_or(Ok(()), |part| write!(f, "-{part}"))
    }
}

/// apt for one folder.
pub struct PrivateApt {
    folder: PathBuf,
    architecture: String,
    suite: Suite,
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

impl PrivateApt {
    /// apt in `folder`, for a suite, which is preferred, and the release that it is beside.
    pub fn new(folder: &Path, suite: &Suite, whom: For) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg", "dpkg-deb", "tar"] {
            ensure!(process::find_on_path(tool).is_some(), "no {tool} to fetch packages with");
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let architecture = match whom {
            For::Empty(architecture) => architecture.to_owned(),
            For::ThisWithout(_) => {
                let native = Command::new("dpkg").arg("--print-architecture").output()?;
                String::from_utf8_lossy(&native.stdout).trim().to_owned()
            }
        };
        let status = match whom {
            For::Empty(_) => String::new(),
            For::ThisWithout(prefix) => without(&fs::read_to_string(DPKG_STATUS)?, prefix),
        };
        let apt = Self { folder: folder.to_path_buf(), architecture, suite: suite.clone() };
        fs::write(folder.join("status"), status)?;
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
        option("Dir::State::Status", &path("status"));
        option("Dir::Cache", &path("cache"));
        option("Dir::Etc::SourceList", &self.sources().display().to_string());
        option("Dir::Etc::SourceParts", "/dev/null");
        option("APT::Architecture", &self.architecture);
        option("APT::Architectures", &self.architecture);
        // A release's own updates are as good as the release.
        if self.suite.part.is_some() {
            option("APT::Default-Release", &self.suite.to_string());
        }
        // All of it belongs to this user.
        option("APT::Sandbox::User", "root");
        option("Debug::NoLocking", "1");
        option("Acquire::Languages", "none");
        for kind in ["DEP-11", "DEP-11-icons-small", "DEP-11-icons", "Contents-deb", "CNF"] {
            option(&format!("Acquire::IndexTargets::deb::{kind}::DefaultEnabled"), "false");
        }
        command
    }

    /// Runs apt-get in a folder, with what it says among our own messages.
    fn get_in(&self, folder: &Path, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("apt-get");
        command.arg("-q").args(arguments).current_dir(folder).stdout(std::io::stderr());
        // Not with its whole command line, of which the options above are the larger part.
        let status = Running::start(&mut command)?.child().wait()?;
        ensure!(status.success(), "apt-get {} failed ({status})", arguments.join(" "));
        Ok(())
    }

    /// Fetches the package lists. A source that fails need not be the one that matters.
    pub fn update(&self) -> Result<()> {
        self.get_in(&self.folder, &["update"])
    }

    /// The dependency of a package whose name begins so.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let depends = self.command("apt-cache").args(["depends", package]).output()?;
        Ok(parse_dependency(&String::from_utf8_lossy(&depends.stdout), prefix))
    }

    /// Fetches the archive of one package; whoever gets its path removes it.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        let debs = || -> Result<Vec<PathBuf>> {
            let entries = fs::read_dir(&self.folder)?.filter_map(|entry| Some(entry.ok()?.path()));
            let is_deb = |path: &PathBuf| path.extension().is_some_and(|end| end == "deb");
            Ok(entries.filter(is_deb).collect())
        };
        // What an earlier run has left here may be another one, or not whole.
        debs()?.iter().try_for_each(fs::remove_file)?;
        self.get_in(&self.folder, &["download", package])?;
        let found = debs()?.pop();
        match found {
            Some(deb) => Ok(deb),
            None => bail!("apt downloaded no package"),
        }
    }

    /// Fetches the archives of packages, and of what they need beyond what there is, into `debs`.
    pub fn download_all(&self, packages: &[&str], debs: &Path) -> Result<()> {
        let mut list = self.command("apt-get");
        list.args(["install", "-y", "--no-install-recommends", "--print-uris"]).args(packages);
        let archives = parse_archives(&process::stdout(&mut list)?);
        ensure!(!archives.is_empty(), "apt names no archive for {}", packages.join(" "));
        eprintln!("setting up: fetching {} of {}", archives.join(" "), self.suite);
        let mut arguments = vec!["download"];
        arguments.extend(archives.iter().map(String::as_str));
        self.get_in(debs, &arguments)
    }
}

/// dpkg's status without the packages whose names begin so.
fn without(status: &str, prefix: &str) -> String {
    let name = format!("Package: {prefix}");
    status
        .split_inclusive("\n\n")
        .filter(|paragraph| !paragraph.trim_start().starts_with(&name))
        .collect()
}

/// A sources.list for a suite and its release: `configured` has the system's own, one archive per line. What isn't
/// configured is where the release is, and that where another is.
fn sources(configured: &str, suite: &Suite) -> String {
    let Suite { release, part } = suite;
    let beside = |part: &str| format!("{release}-{part}");
    let mut wanted = vec![release.clone(), beside("updates"), beside("security")];
    wanted.extend(part.map(beside));
    let mut found: Vec<(String, String)> = configured
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (uri, name, component) = (words.next()?, words.next()?, words.next()?);
            (component == "main").then(|| (uri.to_owned(), name.to_owned()))
        })
        .collect();
    // A release's name is one word; the security archive is another one, in its own place.
    let plain = |name: &str| !name.contains('-');
    let here = found.iter().find(|(_, name)| name == release);
    let here = here.or_else(|| found.iter().find(|(_, name)| plain(name)));
    let here = here.map_or("http://deb.debian.org/debian", |(uri, _)| uri).to_owned();
    found.retain(|(_, name)| wanted.contains(name));
    for name in [Some(release.clone()), part.map(beside)].into_iter().flatten() {
        if !found.iter().any(|(_, other)| *other == name) {
            found.push((here.clone(), name));
        }
    }
    found.sort();
    found.dedup();
    found
        .iter()
        .map(|(uri, suite)| format!("deb [signed-by={KEYRING}] {uri} {suite} main\n"))
        .collect()
}

/// The package with this prefix among what `apt-cache depends` lists.
fn parse_dependency(text: &str, prefix: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(prefix))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let list = sources(configured, &Suite::of("bookworm"));
        assert_eq!(list.lines().count(), 2, "{list}");
        assert!(list.contains("http://s/debian-security/ bookworm-security main"));
        let list = sources("", &Suite::of("trixie"));
        assert!(list.contains("deb.debian.org/debian trixie main"), "{list}");
    }

    #[test]
    fn backports_are_where_the_release_is_unless_configured() {
        let configured = "http://m/debian/ bookworm main\nhttp://s/d/ bookworm-security main\n";
        let suite = Suite::of("bookworm").backports();
        let list = sources(configured, &suite);
        assert!(list.contains("http://m/debian/ bookworm-backports main"), "{list}");
        let configured = format!("{configured}http://b/debian/ bookworm-backports main\n");
        let list = sources(&configured, &suite);
        assert!(list.contains("http://b/debian/ bookworm-backports main"), "{list}");
        assert_eq!(list.matches("backports").count(), 1, "{list}");
    }

    #[test]
    fn another_release_is_where_this_one_is() {
        let configured = "http://s/d/ bookworm-security main\nhttp://m/debian/ bookworm main\n";
        let suite = Suite::of("trixie").backports();
        assert_eq!(suite.to_string(), "trixie-backports");
        let list = sources(configured, &suite);
        assert_eq!(list.lines().count(), 2, "{list}");
        assert!(list.contains("http://m/debian/ trixie main"), "{list}");
        assert!(list.contains("http://m/debian/ trixie-backports main"), "{list}");
    }

    #[test]
    fn the_kernels_package_is_found() {
        let text = "linux-image-arm64\n  Depends: linux-base-arm64\n  \
            Depends: linux-image-6.1.0-9-arm64\n";
        let found = parse_dependency(text, "linux-image-");
        assert_eq!(found, Some("linux-image-6.1.0-9-arm64".to_owned()));
        assert_eq!(parse_dependency("linux-image-arm64\n", "linux-image-"), None);
    }

    #[test]
    fn what_is_to_be_fetched_is_not_there() {
        let status = "Package: libc6\nStatus: x\n\nPackage: qemu-utils\nX: y\n\nPackage: zlib\n\n";
        assert_eq!(without(status, "qemu"), "Package: libc6\nStatus: x\n\nPackage: zlib\n\n");
    }
}
