//! A defect as a file: what it is, which tests find it, and the diff.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use umbra_fuzz::program::Mode;

use crate::harness::{CONFIGURATIONS, Configuration};
use crate::linux;
use crate::remains;
use crate::workspace;

/// Where the patches are, in the checkout.
pub(super) const FOLDER: &str = "tests/plants";

/// A test that must find a defect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Test {
    /// By cargo on this machine.
    Unit { package: String, name: String },
    /// On QEMU.
    Target { configuration: String, name: String },
    /// A Linux above hyp.
    Linux { name: String },
    /// What is left when a machine has ended.
    Reset { name: String },
    /// Random programs in this mode.
    Fuzz(Mode),
    /// The same, of hypercalls above all, each judged by the executable specification.
    Judged(Mode),
    /// The search for FP instructions in hyp's image.
    I5,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit { package, name } => write!(f, "unit {package} {name}"),
            Self::Target { configuration, name } => write!(f, "target {configuration}::{name}"),
            Self::Linux { name } => write!(f, "linux {name}"),
            Self::Reset { name } => write!(f, "reset {name}"),
            Self::Fuzz(mode) => write!(f, "fuzz {mode}"),
            Self::Judged(mode) => write!(f, "judged {mode}"),
            Self::I5 => write!(f, "i5"),
        }
    }
}

impl Test {
    pub(super) fn parse(text: &str) -> Result<Self> {
        match *text.split_whitespace().collect::<Vec<_>>() {
            ["unit", package, name] => {
                Ok(Self::Unit { package: package.to_owned(), name: name.to_owned() })
            }
            ["target", test] => {
                let (configuration, name) =
                    test.split_once("::").context("target tests are CONFIGURATION::NAME")?;
                find_configuration(configuration)?;
                Ok(Self::Target { configuration: configuration.to_owned(), name: name.to_owned() })
            }
            ["linux", name] => {
                find_linux(name)?;
                Ok(Self::Linux { name: name.to_owned() })
            }
            ["reset", name] => {
                find_reset(name)?;
                Ok(Self::Reset { name: name.to_owned() })
            }
            ["fuzz", "replay"] => Ok(Self::Fuzz(Mode::Replay)),
            ["fuzz", "storm"] => Ok(Self::Fuzz(Mode::Storm)),
            ["judged", "replay"] => Ok(Self::Judged(Mode::Replay)),
            ["judged", "storm"] => Ok(Self::Judged(Mode::Storm)),
            ["i5"] => Ok(Self::I5),
            _ => bail!(
                "`Test: {text}`: neither `unit PACKAGE NAME` nor `target MACHINE::NAME` nor \
                 `fuzz replay|storm` nor `judged replay|storm` nor `linux NAME` nor `reset NAME` nor `i5`"
            ),
        }
    }
}

pub(super) fn find_configuration(name: &str) -> Result<&'static Configuration> {
    let found = CONFIGURATIONS.iter().find(|configuration| configuration.name == name);
    found.with_context(|| format!("no machine is called {name}"))
}

pub(super) fn find_linux(name: &str) -> Result<&'static linux::Configuration> {
    let found = linux::CONFIGURATIONS.iter().find(|configuration| configuration.name == name);
    found.with_context(|| format!("no Linux is called {name}"))
}

pub(super) fn find_reset(name: &str) -> Result<&'static remains::Case> {
    let found = remains::CASES.iter().find(|case| case.name == name);
    found.with_context(|| format!("no end of a machine is called {name}"))
}

/// A defect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plant {
    pub(super) name: String,
    pub(super) what: String,
    pub(super) row: String,
    pub(super) tests: Vec<Test>,
    pub(super) path: PathBuf,
}

impl Plant {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        let name = path.file_stem().context("no name")?.to_string_lossy().into_owned();
        let (mut what, mut row, mut tests) = (None, None, Vec::new());
        let mut lines = text.lines();
        for line in lines.by_ref() {
            if line.is_empty() {
                break;
            }
            let (key, value) = line.split_once(": ").with_context(|| {
                format!("`{line}` is no `Key: value`; the diff begins behind an empty line")
            })?;
            let value = value.trim();
            match key {
                "What" if what.is_none() => what = Some(value.to_owned()),
                "Row" if row.is_none() => row = Some(parse_row(value)?),
                "Test" => tests.push(Test::parse(value)?),
                "What" | "Row" => bail!("two lines `{key}`"),
                _ => bail!("`{key}` is none of What, Row, Test"),
            }
        }
        ensure!(!tests.is_empty(), "no `Test:` line");
        ensure!(lines.any(|line| line.starts_with("+++ ")), "no diff");
        Ok(Self {
            name,
            what: what.context("no `What:` line")?,
            row: row.context("no `Row:` line")?,
            tests,
            path: path.to_owned(),
        })
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let complain = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(complain)?;
        Self::parse(path, &text).with_context(complain)
    }

    /// Whether it is meant by a name on the command line.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name || self.row == name
    }
}

/// `r07`, or `-` for a defect that has no row.
pub(super) fn parse_row(value: &str) -> Result<String> {
    let number = value.strip_prefix('r').filter(|n| n.len() == 2 && n.parse::<u8>().is_ok());
    ensure!(value == "-" || number.is_some(), "`Row: {value}`: neither rNN nor -");
    Ok(value.to_owned())
}

/// All plants, or those that are named.
pub(super) fn select(names: &[String]) -> Result<Vec<Plant>> {
    let folder = workspace::root().join(FOLDER);
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut plants = paths.iter().map(|path| Plant::read(path)).collect::<Result<Vec<_>>>()?;
    for name in names {
        ensure!(plants.iter().any(|plant| plant.is(name)), "no plant is called {name}");
    }
    plants.retain(|plant| names.is_empty() || names.iter().any(|name| plant.is(name)));
    ensure!(!plants.is_empty(), "{FOLDER} holds no plants");
    Ok(plants)
}
