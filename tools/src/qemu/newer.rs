//! A newer QEMU beside the distribution's, for the machines that need one.
//!
//! Where the distribution's is new enough it is that one. On Debian it is the backports', unpacked below
//! `target/tools` ([`packages::PrivateApt`]): nothing is installed, and the system's sources stay as they
//! are.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::{PACKAGE, PROGRAM, Qemu, Release, version, write_launcher};
use crate::packages::{self, For, PrivateApt, Suite};
use crate::workspace;

/// The oldest release whose virt board has an SMMU with a stage 2 (`virt-9.2` and newer boards).
pub const NEWER: Release = (9, 2);
/// Overrides the search.
const VARIABLE: &str = "UMBRA_QEMU_NEW";

/// A QEMU of [`NEWER`] or later, or why there is none.
pub type Newer = Result<Qemu, String>;

impl Qemu {
    /// A QEMU that is new enough for every machine, if there is one: `UMBRA_QEMU_NEW`, `usual`, or what
    /// an earlier run unpacked. One that was asked for by name must do.
    ///
    /// # Errors
    ///
    /// The one that was asked for doesn't run, or is too old.
    pub fn find_newer(usual: Option<&Self>) -> Result<Option<Self>> {
        if let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) {
            let version = version(&path)?;
            ensure!(
                version >= NEWER,
                "{} is QEMU {}.{}; {VARIABLE} has to be {}.{} at least",
                path.display(),
                version.0,
                version.1,
                NEWER.0,
                NEWER.1
            );
            return Ok(Some(Self { path, version }));
        }
        if let Some(usual) = usual.filter(|usual| usual.version >= NEWER) {
            return Ok(Some(usual.clone()));
        }
        let mut found: Vec<_> = unpacked().collect();
        found.sort_by_key(|qemu| qemu.version);
        Ok(found.pop())
    }

    /// As [`Self::find_newer`], fetching one if there is none.
    ///
    /// # Errors
    ///
    /// There is none, and none can be had here: why not, and what to do.
    pub fn set_up_newer(usual: Option<&Self>) -> Result<Self> {
        if let Some(qemu) = Self::find_newer(usual)? {
            return Ok(qemu);
        }
        fetch().with_context(Self::advice_on_newer)?;
        Self::find_newer(usual)?.with_context(Self::advice_on_newer)
    }

    /// What to do where it can't be fetched.
    pub fn advice_on_newer() -> String {
        format!(
            "for machines with an SMMU: QEMU {}.{} or newer; set {VARIABLE} to its {PROGRAM}",
            NEWER.0, NEWER.1
        )
    }
}

/// Those that earlier runs have unpacked.
fn unpacked() -> impl Iterator<Item = Qemu> {
    let folders = fs::read_dir(workspace::tools_dir()).into_iter().flatten().flatten();
    folders
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let release = name.strip_prefix("qemu-");
            release.is_some_and(|release| release.chars().all(|c| c.is_ascii_digit()))
        })
        .filter_map(|entry| {
            let path = entry.path().join(PROGRAM);
            let version = version(&path).ok()?;
            (version >= NEWER).then_some(Qemu { path, version })
        })
}

/// Unpacks the backports' into a folder that is named by its release.
fn fetch() -> Result<()> {
    let suite = Suite::at_hand()?.backports();
    let tools = workspace::tools_dir();
    eprintln!("setting up: a newer QEMU from {suite}, into {}", tools.display());
    // As if no QEMU were installed: of one source, it is one release.
    let whom = For::ThisWithout("qemu");
    let apt = PrivateApt::new(&tools.join("apt"), &suite, whom)?;
    let updated = apt.update();
    let partial = tools.join("qemu-new.partial");
    packages::extract(&partial, |debs| {
        let downloaded = apt.download_all(&[PACKAGE], debs);
        // What is told is what failed first.
        updated.and(downloaded)
    })?;
    write_launcher(&partial)?;
    let found = version(&partial.join(PROGRAM))?;
    if found < NEWER {
        bail!("{suite} has QEMU {}.{}, which is too old", found.0, found.1);
    }
    packages::put_in_place(&partial, &tools.join(format!("qemu-{}", found.0)))
}
