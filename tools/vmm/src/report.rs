//! What has happened, as a line of JSON at the end.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest has turned itself off.
    Off,
    /// It has reset itself.
    Reset,
    /// A vCPU can't go on.
    Broken(String),
    /// The monitor can't.
    Failed(String),
}

impl End {
    /// As an exit status.
    pub fn status(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Off => 0,
            Self::Failed(_) => 1,
            Self::Reset => 2,
            Self::Broken(_) => 3,
        })
    }

    fn text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Reset => "reset".to_owned(),
            Self::Broken(why) => format!("broken: {why}"),
            Self::Failed(why) => format!("failed: {why}"),
        }
    }
}

/// Counters of all vCPUs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Exits for loads.
    pub reads: AtomicU64,
    /// Exits for stores.
    pub writes: AtomicU64,
    /// Exits because a signal came.
    pub interrupted: AtomicU64,
    /// Bytes that the guest has sent to its console.
    pub console: AtomicU64,
}

impl Counters {
    /// One more.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// All of it, as one line.
    pub fn line(&self, end: &End, vcpus: usize) -> String {
        serde_json::json!({
            "end": end.text(),
            "vcpus": vcpus,
            "mmio_reads": self.reads.load(Relaxed),
            "mmio_writes": self.writes.load(Relaxed),
            "interrupted": self.interrupted.load(Relaxed),
            "console_bytes": self.console.load(Relaxed),
        })
        .to_string()
    }
}
