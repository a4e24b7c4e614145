//! What has happened, as a line of JSON at the end, on standard error.
//!
//! | key | |
//! |---|---|
//! | `end` | why: `off`, `reset`, `stopped`, `broken: …`, `failed: …` |
//! | `vcpus` | how many there were |
//! | `protected` | of a protected one: what it is measured by beside its arguments, as `umbra-vmm measure` takes it: `address_bits`, `sve` |
//! | `began` | nanoseconds of CLOCK_MONOTONIC when its first vCPU began to run; 0: none has |
//! | `mmio_reads`, `mmio_writes` | exits for loads and stores that no eventfd took |
//! | `system_events` | exits because the guest turned itself off or reset itself |
//! | `interrupted` | exits because a signal came |
//! | `other_exits` | exits that a vCPU can't go on after |
//! | `console_bytes` | bytes that the guest has sent to the terminal, by whichever console |
//! | `exits` | of all vCPUs, as the hypervisor counts them if it does: `exits` and what they are by reason, by its names |
//! | `devices` | a list: `name`, then what follows |
//! | `reads`, `writes` | its share of the exits |
//! | `requests` | chains of descriptors that it has handled |
//! | `bytes` | bytes of data in them |
//! | `errors` | requests that failed, frames that were lost |
//! | `malformed` | how often it gave up and needed a reset |
#![forbid(unsafe_code)]

use crate::stats::Stats;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Says something on standard error. `eprintln!` panics if nobody reads that any more; a machine goes on.
pub fn say(what: impl fmt::Display) {
    // Where the test harness finds it.
    #[cfg(test)]
    eprintln!("{what}");
    #[cfg(not(test))]
    {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{what}");
    }
}

/// Says what goes wrong, like [`say`].
pub fn complain(what: fmt::Arguments<'_>) {
    say(format_args!("umbra-vmm: {what}"));
}

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest has turned itself off.
    Off,
    /// It has reset itself.
    Reset,
    /// The operator has stopped it: by the control socket, the terminal or a signal.
    Stopped,
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
            Self::Stopped => 4,
        })
    }

    fn text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Reset => "reset".to_owned(),
            Self::Stopped => "stopped".to_owned(),
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
    /// Exits because the guest turned itself off or reset itself.
    pub system_events: AtomicU64,
    /// Exits because a signal came.
    pub interrupted: AtomicU64,
    /// Exits that a vCPU can't go on after.
    pub others: AtomicU64,
    /// Bytes that the guest has sent to the terminal.
    pub console: AtomicU64,
    /// When the first of them began to run, in nanoseconds of CLOCK_MONOTONIC.
    pub began: AtomicU64,
}

impl Counters {
    /// One begins to run.
    pub fn begin(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let now = (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64);
        // It was another one, perhaps.
        let _ = self.began.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// One more.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

/// Counters of a device.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    name: String,
    reads: AtomicU64,
    writes: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    malformed: AtomicU64,
}

impl DeviceCounters {
    /// For a device of this name.
    pub fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A load from its registers.
    pub fn count_read(&self) {
        Counters::count(&self.reads);
    }

    /// A store to them.
    pub fn count_write(&self) {
        Counters::count(&self.writes);
    }

    /// A request.
    pub fn count_request(&self) {
        Counters::count(&self.requests);
    }

    /// So many bytes of data.
    pub fn count_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A request that failed.
    pub fn count_error(&self) {
        Counters::count(&self.errors);
    }

    /// It gives up.
    pub fn count_malformed(&self) {
        Counters::count(&self.malformed);
    }

    /// How often it gave up.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Relaxed)
    }

    /// How many requests failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    fn value(&self) -> Value {
        json!({
            "name": self.name,
            "reads": self.reads.load(Relaxed),
            "writes": self.writes.load(Relaxed),
            "requests": self.requests.load(Relaxed),
            "bytes": self.bytes.load(Relaxed),
            "errors": self.errors(),
            "malformed": self.malformed(),
        })
    }
}

/// What is decided for a protected machine, and it is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Bits of an address.
    pub address_bits: u32,
    /// The largest vector length in bytes; 0: no SVE.
    pub sve: u64,
}

/// All that is counted.
#[derive(Debug)]
pub struct Report {
    /// vCPUs.
    pub vcpus: usize,
    /// Of a protected one.
    pub protected: Option<Decided>,
    /// Of all of them.
    pub counters: Arc<Counters>,
    /// What the hypervisor counts of each vCPU.
    pub stats: Vec<Stats>,
    /// Of each device.
    pub devices: Vec<Arc<DeviceCounters>>,
}

impl Report {
    /// As it is now.
    pub fn value(&self) -> Value {
        let counters = &self.counters;
        let devices: Vec<_> = self.devices.iter().map(|device| device.value()).collect();
        let mut exits = BTreeMap::new();
        for (name, value) in self.stats.iter().filter_map(|stats| stats.exits().ok()).flatten() {
            *exits.entry(name).or_insert(0) += value;
        }
        let decided = |it: Decided| json!({ "address_bits": it.address_bits, "sve": it.sve });
        json!({
            "vcpus": self.vcpus,
            "protected": self.protected.map(decided),
            "began": counters.began.load(Relaxed),
            "mmio_reads": counters.reads.load(Relaxed),
            "mmio_writes": counters.writes.load(Relaxed),
            "system_events": counters.system_events.load(Relaxed),
            "interrupted": counters.interrupted.load(Relaxed),
            "other_exits": counters.others.load(Relaxed),
            "console_bytes": counters.console.load(Relaxed),
            "exits": exits,
            "devices": devices,
        })
    }

    /// The line at the end.
    pub fn line(&self, end: &End) -> String {
        let mut value = self.value();
        value["end"] = end.text().into();
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_its_keys() {
        let device = Arc::new(DeviceCounters::new("block0".to_owned()));
        device.count_request();
        device.count_bytes(512);
        let report = Report {
            vcpus: 2,
            protected: Some(Decided { address_bits: 40, sve: 256 }),
            counters: Arc::default(),
            stats: Vec::new(),
            devices: vec![device],
        };
        let line: Value = serde_json::from_str(&report.line(&End::Stopped)).unwrap();
        assert_eq!(line["end"], "stopped");
        assert_eq!(line["vcpus"], 2);
        assert_eq!(line["began"], 0);
        report.counters.begin();
        assert_ne!(report.value()["began"], 0);
        assert_eq!(line["protected"], json!({ "address_bits": 40, "sve": 256 }));
        assert_eq!(line["devices"][0]["name"], "block0");
        assert_eq!(line["devices"][0]["bytes"], 512);
        for key in ["mmio_reads", "mmio_writes", "interrupted", "console_bytes"] {
            assert_eq!(line[key], 0, "{key}");
        }
    }
}
