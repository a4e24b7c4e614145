//! One measurement: what was measured, and what came of it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::console::Fields;

/// An enum of words.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum $name {
                $($(#[$of])* $variant,)*
            }

            impl $name {
                /// Its name.
                pub const fn name(self) -> &'static str {
                    match self {
                        $(Self::$variant => $word,)*
                    }
                }
            }

            impl FromStr for $name {
                type Err = anyhow::Error;

                fn from_str(text: &str) -> Result<Self> {
                    match text {
                        $($word => Ok(Self::$variant),)*
                        _ => bail!("{text:?} is no {}", stringify!($name)),
                    }
                }
            }
        )*
    };
}

words! {
    /// When a VM's FP registers move.
    Policy {
        /// On first use, in both directions.
        Lazy = "lazy",
        /// The host's are back at each exit.
        Eager = "eager",
        /// The guest's are gone at each exit.
        Scrub = "scrub",
    }

    /// What of the FP registers somebody uses at each turn.
    Fp {
        /// Nothing.
        None = "none",
        /// A V register.
        Fpsimd = "fpsimd",
        /// A Z register.
        Sve = "sve",
    }

    /// What the host says of its own.
    Hints {
        /// Nothing: all must be kept.
        None = "none",
        /// SVE_DISCARDED.
        Discarded = "discarded",
        /// FOREIGN_FPSTATE.
        Foreign = "foreign",
    }
}

/// What a traced run saw of a row, per iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traced {
    /// Instructions at EL2, of the host, of the guest.
    pub worlds: [f64; 3],
    /// ISB.
    pub isb: f64,
    /// DSB.
    pub dsb: f64,
    /// TLBI.
    pub tlbi: f64,
    /// IC and DC.
    pub cache: f64,
}

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The VM's policy.
    pub policy: Option<Policy>,
    /// `normal` or `protected`.
    pub vm: Option<String>,
    /// The host's hints.
    pub hints: Option<Hints>,
    /// The vCPU's largest vector length; 0: no SVE.
    pub vl_bytes: Option<u64>,
    /// What the guest uses.
    pub guest_fp: Option<Fp>,
    /// What the host uses.
    pub host_fp: Option<Fp>,
    /// CPUs of the machine, where it matters.
    pub cpus: Option<u64>,
    /// VMs on it, where it matters.
    pub vms: Option<u64>,
    /// Turns.
    pub iterations: u64,
    /// Instructions per turn.
    pub instructions: f64,
    /// Bytes of FP registers moved per turn.
    pub bytes: f64,
    /// Register files saved per turn.
    pub saves: f64,
    /// Register files loaded per turn.
    pub loads: f64,
    /// Exits to the host per turn.
    pub exits: f64,
    /// The fewest instructions.
    pub floor: Option<u32>,
    /// What a traced run saw.
    pub traced: Option<Traced>,
}

/// Fields of a console row.
pub struct Named<'f>(pub &'f Fields);

impl Named<'_> {
    /// A value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// A number, decimal or `0x`.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|text| match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => text.parse(),
            })
            .transpose()
            .with_context(|| format!("{key} is no number"))
    }

    /// A number that must be there.
    pub fn need(&self, key: &str) -> Result<u64> {
        self.number(key)?.with_context(|| format!("a row without {key}"))
    }
}

impl Row {
    /// Reads a row of the console on a machine with so many nanoseconds per counter tick. One without
    /// `ticks` is no measurement.
    pub fn read(fields: &Fields, nanoseconds: f64) -> Result<Option<Self>> {
        let fields = Named(fields);
        let Some(ticks) = fields.number("ticks")? else {
            return Ok(None);
        };
        let iterations = fields.need("iterations")?;
        let per_turn = |n: u64| n as f64 / iterations.max(1) as f64;
        let name = fields.get("name").context("a row without a name")?.to_owned();
        let instructions = per_turn(ticks) * nanoseconds;
        Ok(Some(Self {
            // What two readings of the counter and one instruction cost anyway.
            instructions: if name == "first_touch" { instructions - 2.0 } else { instructions },
            name,
            policy: fields.get("policy").map(str::parse).transpose()?,
            vm: fields.get("vm").map(str::to_owned),
            hints: fields.get("hints").map(str::parse).transpose()?,
            vl_bytes: fields.number("vl")?,
            guest_fp: fields.get("guest_fp").map(str::parse).transpose()?,
            host_fp: fields.get("host_fp").map(str::parse).transpose()?,
            cpus: fields.number("cpus")?,
            vms: fields.number("vms")?,
            iterations,
            bytes: per_turn(fields.need("bytes")?),
            saves: per_turn(fields.need("saves")?),
            loads: per_turn(fields.need("loads")?),
            exits: per_turn(fields.need("exits")?),
            floor: None,
            traced: None,
        }))
    }

    /// What was measured, as one word for each field: two runs' rows of the same key are compared.
    pub fn key(&self) -> String {
        let mut words = vec![self.name.clone()];
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push(format!("{name}={value}"));
            }
        };
        add("policy", self.policy.map(|p| p.name().to_owned()));
        add("vm", self.vm.clone());
        add("hints", self.hints.map(|h| h.name().to_owned()));
        add("vl", self.vl_bytes.map(|n| n.to_string()));
        add("guest", self.guest_fp.map(|fp| fp.name().to_owned()));
        add("host", self.host_fp.map(|fp| fp.name().to_owned()));
        add("cpus", self.cpus.map(|n| n.to_string()));
        add("vms", self.vms.map(|n| n.to_string()));
        words.join(" ")
    }

    /// Instructions by floor.
    pub fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.instructions / f64::from(floor))
    }

    /// The object of `--json`.
    pub fn json(&self) -> Value {
        let mut object = json!({
            "name": self.name,
            "policy": self.policy.map(Policy::name),
            "vm": self.vm,
            "hints": self.hints.map(Hints::name),
            "vl_bytes": self.vl_bytes,
            "guest_fp": self.guest_fp.map(Fp::name),
            "host_fp": self.host_fp.map(Fp::name),
            "cpus": self.cpus,
            "vms": self.vms,
            "iterations": self.iterations,
            "instructions": rounded(self.instructions),
            "floor": self.floor,
            "ratio": self.ratio().map(rounded),
            "bytes_moved": rounded(self.bytes),
            "saves": rounded(self.saves),
            "loads": rounded(self.loads),
            "exits": rounded(self.exits),
        });
        if let (Some(traced), Value::Object(object)) = (self.traced, &mut object) {
            let [hyp, host, guest] = traced.worlds;
            for (key, value) in [
                ("hyp_instructions", hyp),
                ("host_instructions", host),
                ("guest_instructions", guest),
                ("isb", traced.isb),
                ("dsb", traced.dsb),
                ("tlbi", traced.tlbi),
                ("cache", traced.cache),
            ] {
                object.insert(key.to_owned(), json!(rounded(value)));
            }
        }
        object
    }

    /// Reads such an object: what a comparison needs of it.
    pub fn from_json(value: &Value) -> Result<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let number = |key: &str| value.get(key).and_then(Value::as_u64);
        Ok(Self {
            name: text("name").context("no name")?.to_owned(),
            policy: text("policy").map(str::parse).transpose()?,
            vm: text("vm").map(str::to_owned),
            hints: text("hints").map(str::parse).transpose()?,
            vl_bytes: number("vl_bytes"),
            guest_fp: text("guest_fp").map(str::parse).transpose()?,
            host_fp: text("host_fp").map(str::parse).transpose()?,
            cpus: number("cpus"),
            vms: number("vms"),
            iterations: number("iterations").unwrap_or(0),
            instructions: value
                .get("instructions")
                .and_then(Value::as_f64)
                .context("no instructions")?,
            ..Self::default()
        })
    }
}

/// Two decimals: what the averages are good for.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A number as the tables show it: whole, unless it isn't.
pub struct Shown(pub f64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0 * 10.0).round() / 10.0;
        // What the readings of the counter add, spread over all turns, is less than that.
        if (self.0 - self.0.round()).abs() < 0.1 {
            f.pad(&format!("{:.0}", self.0))
        } else {
            f.pad(&format!("{tenths:.1}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Line, Table, parse};

    fn row(line: &str) -> Row {
        let Line::Row(Table::Bench, fields) = parse(line) else { panic!("{line}") };
        Row::read(&fields, 16.0).unwrap().unwrap()
    }

    const LINE: &str = "@bench name=exit_to_host policy=scrub vm=normal hints=foreign vl=64 \
                        guest_fp=sve host_fp=none ticks=400 iterations=10 bytes=20 saves=10 loads=5 exits=21";

    #[test]
    fn ticks_become_instructions_per_turn() {
        let row = row(LINE);
        assert_eq!(row.instructions, 640.0);
        assert_eq!((row.bytes, row.saves, row.loads, row.exits), (2.0, 1.0, 0.5, 2.1));
        assert_eq!((row.policy, row.hints), (Some(Policy::Scrub), Some(Hints::Foreign)));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let row = row(LINE);
        let again = Row::from_json(&row.json()).unwrap();
        assert_eq!(again.key(), row.key());
        assert_eq!(again.instructions, row.instructions);
    }

    #[test]
    fn a_row_without_ticks_is_no_measurement_and_a_garbled_one_is_an_error() {
        let read = |line: &str| {
            let Line::Row(_, fields) = parse(line) else { panic!("{line}") };
            Row::read(&fields, 1.0)
        };
        assert_eq!(read("@bench name=machine cpus=1").unwrap(), None);
        assert!(read("@bench name=x ticks=1").is_err());
        assert!(read("@bench name=x ticks=one iterations=1").is_err());
        assert!(read("@bench ticks=1 iterations=1 bytes=0 saves=0 loads=0 exits=0").is_err());
        assert!(read(&LINE.replace("scrub", "lazier")).is_err());
    }

    #[test]
    fn numbers_are_whole_unless_they_are_not() {
        assert_eq!(Shown(688.01).to_string(), "688");
        assert_eq!(Shown(688.46).to_string(), "688.5");
        assert_eq!(format!("{:>6}", Shown(3.0)), "     3");
    }
}
