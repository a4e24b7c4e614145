//! Tests on targets that failed, and why, once more at the end of it all: cargo runs other tests behind them, which say
//! much.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

const FILE: &str = "UMBRA_TARGET_FAILURES";

/// A file that the processes of one `cargo test` write them into.
#[derive(Debug)]
pub struct Failures(PathBuf);

impl Failures {
    /// One without any.
    pub fn new() -> Result<Self> {
        let path = workspace::target_dir().join(format!("failures-{}", std::process::id()));
        File::create(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Puts it into the environment of `command`.
    pub fn export(&self, command: &mut Command) {
        command.env(FILE, &self.0);
    }

    /// All that failed.
    pub fn read(&self) -> Result<String> {
        fs::read_to_string(&self.0).with_context(|| self.0.display().to_string())
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        // What is left of it is in nobody's way.
        let _ = fs::remove_file(&self.0);
    }
}

/// One more, where somebody reads them.
pub(super) fn note(name: &str, why: &str) {
    let Some(path) = env::var_os(FILE) else { return };
    let file = OpenOptions::new().append(true).open(path);
    // One write: other tests end at the same time. The test fails however this ends.
    let _ = file.and_then(|mut file| {
        file.write_all(format!("---- {name} ----\n{}\n\n", why.trim_end()).as_bytes())
    });
}
