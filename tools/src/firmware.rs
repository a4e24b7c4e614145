//! The EL3 test firmware: what machine it is to make, written into its file.
//!
//! The firmware is compiled once; its [`FirmwareConfig`] is a hole in the file that is filled in for
//! each machine. So the file that QEMU gets says what the machine is, and a machine can be started
//! again by hand with nothing but that file.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use umbra_shared::firmware::{
    FIRMWARE_CONFIG_OFFSET, FIRMWARE_CPUS, FIRMWARE_MAGIC, FIRMWARE_TABLES_BYTES,
    FIRMWARE_TABLES_OFFSET, FIRMWARE_VERSION, FirmwareConfig, FirmwareExtras, SUSPEND_EXTENDED,
    SUSPEND_ORIGINAL, TREE_ODD, TREE_PLAIN,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::board::Board;
use crate::{elf, image, workspace};

/// Vector lengths, in bytes, that a CPU of the SVE2 era may have, and that streaming mode may.
const ALLOWED: [u16; 5] = [16, 32, 64, 128, 256];

/// What the firmware's random numbers follow from, where it has any.
const TRNG_SEED: u64 = 0x7e57_5eed;

/// How CPU_SUSPEND's power_state is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SuspendFormat {
    /// Power-down is bit 16.
    #[default]
    Original,
    /// Extended StateID: power-down is bit 30.
    Extended,
}

/// What the firmware is to make of the machine.
#[derive(Clone, Debug)]
pub struct Setup {
    smp: u32,
    /// Empty: all that the CPUs have.
    vls: Vec<u16>,
    /// Likewise in streaming mode.
    svls: Vec<u16>,
    late: BTreeSet<u32>,
    suspend: SuspendFormat,
    board: Board,
    /// What is refused and delayed follows from it; 0: nothing is.
    trouble: u64,
    /// EL2 is given a device tree that has everything.
    odd_tree: bool,
    /// There is a TRNG.
    trng: bool,
    /// What it does that not all firmware does.
    extras: FirmwareExtras,
}

/// The EL3 firmware of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Its file.
    pub file: PathBuf,
    /// Where it looks for the image for EL2.
    pub boot_address: u64,
}

impl Setup {
    /// Vector lengths in bytes (none: all that the CPUs have), and CPUs that come late.
    pub fn new(vls: &[u16], late: &[u32], suspend: SuspendFormat, smp: u32) -> Result<Self> {
        ensure!(
            (1..=FIRMWARE_CPUS as u32).contains(&smp),
            "the EL3 firmware runs 1 to {FIRMWARE_CPUS} CPUs, not {smp}"
        );
        check_lengths("--vls", vls, smp)?;
        for &cpu in late {
            ensure!(
                (1..smp).contains(&cpu),
                "--late {cpu}: allowed are the CPUs from 1 to {} (--smp {smp}); CPU 0 boots",
                smp.saturating_sub(1)
            );
        }
        Ok(Self {
            smp,
            vls: vls.to_vec(),
            svls: Vec::new(),
            late: late.iter().copied().collect(),
            suspend,
            board: Board::VIRT,
            trouble: 0,
            odd_tree: false,
            trng: false,
            extras: FirmwareExtras::empty(),
        })
    }

    /// The same with calls refused and delayed as follows from this seed; 0: none.
    #[must_use]
    pub fn troubled(self, seed: u64) -> Self {
        Self { trouble: seed, ..self }
    }

    /// The same with things that not all firmware does.
    #[must_use]
    pub fn with(self, extras: FirmwareExtras) -> Self {
        Self { extras, ..self }
    }

    /// The same with a device tree that has everything, if `odd`.
    #[must_use]
    pub fn with_odd_tree(self, odd: bool) -> Self {
        Self { odd_tree: odd, ..self }
    }

    /// The same with a TRNG, if `trng`.
    #[must_use]
    pub fn with_trng(self, trng: bool) -> Self {
        Self { trng, ..self }
    }

    /// The same with these streaming vector lengths, in bytes (none: all that the CPUs have).
    pub fn streaming(self, svls: &[u16]) -> Result<Self> {
        check_lengths("--svls", svls, self.smp)?;
        Ok(Self { svls: svls.to_vec(), ..self })
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> u32 {
        self.smp
    }

    /// The same on another board.
    #[must_use]
    pub fn on(self, board: Board) -> Self {
        Self { board, ..self }
    }

    /// From the command line: lists separated by commas.
    pub fn parse(
        vls: Option<&str>,
        svls: Option<&str>,
        late: Option<&str>,
        suspend: SuspendFormat,
        smp: u32,
    ) -> Result<Self> {
        let mut cpus = Vec::new();
        for word in late.into_iter().flat_map(|text| text.split(',')) {
            match word.trim().parse::<u32>() {
                Ok(cpu) => cpus.push(cpu),
                Err(_) => bail!("--late {word:?}: numbers of CPUs separated by commas are needed"),
            }
        }
        let (vls, svls) = (parse_lengths("--vls", vls)?, parse_lengths("--svls", svls)?);
        Self::new(&vls, &cpus, suspend, smp)?.streaming(&svls)
    }

    fn config(&self) -> FirmwareConfig {
        let mut config = FirmwareConfig::new_zeroed();
        config.magic = FIRMWARE_MAGIC;
        config.version = FIRMWARE_VERSION;
        config.cpus = self.smp;
        config.suspend_format = match self.suspend {
            SuspendFormat::Original => SUSPEND_ORIGINAL,
            SuspendFormat::Extended => SUSPEND_EXTENDED,
        };
        config.tree = if self.odd_tree { TREE_ODD } else { TREE_PLAIN };
        config.trouble = self.trouble;
        config.trng = if self.trng { TRNG_SEED } else { 0 };
        config.extras = self.extras.bits();
        config.dtb = self.board.dtb;
        config.ram = self.board.ram;
        config.boot_address = self.board.boot_address;
        config.counter = self.board.counter.unwrap_or(0);
        config.affinities = [u64::MAX; FIRMWARE_CPUS];
        for (cpu, affinity) in (0..self.smp).zip(&mut config.affinities) {
            *affinity = (self.board.affinity)(cpu);
        }
        config.vl_bytes[..self.vls.len()].copy_from_slice(&self.vls);
        config.svl_bytes[..self.svls.len()].copy_from_slice(&self.svls);
        for &cpu in &self.late {
            config.refusals[cpu as usize] = 1;
        }
        config
    }
}

fn bad_vl(option: &str, vl: &dyn fmt::Debug) -> String {
    let allowed = ALLOWED.map(|vl| vl.to_string()).join(", ");
    format!("{option}: {vl:?} is no vector length: allowed are {allowed} bytes (powers of two)")
}

/// Numbers separated by commas.
fn parse_lengths(option: &str, text: Option<&str>) -> Result<Vec<u16>> {
    let words = text.into_iter().flat_map(|text| text.split(','));
    let parse = |word: &str| match word.trim().parse() {
        Ok(vl) => Ok(vl),
        Err(_) => bail!("{}", bad_vl(option, &word)),
    };
    words.map(parse).collect()
}

/// None, or one for each CPU.
fn check_lengths(option: &str, lengths: &[u16], smp: u32) -> Result<()> {
    if let Some(bad) = lengths.iter().find(|vl| !ALLOWED.contains(vl)) {
        bail!("{}", bad_vl(option, bad));
    }
    ensure!(
        lengths.is_empty() || lengths.len() == smp as usize,
        "{option} gives {} vector lengths for {smp} CPUs (--smp {smp}): one for each is needed",
        lengths.len()
    );
    Ok(())
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |numbers: &mut dyn Iterator<Item = String>| numbers.collect::<Vec<_>>().join(",");
        match self.vls.as_slice() {
            [] => write!(f, "all of each CPU's vector lengths")?,
            vls => write!(f, "vectors of {} bytes", list(&mut vls.iter().map(u16::to_string)))?,
        }
        if !self.svls.is_empty() {
            let svls = list(&mut self.svls.iter().map(u16::to_string));
            write!(f, ", streaming vectors of {svls} bytes")?;
        }
        if !self.late.is_empty() {
            write!(f, ", late CPUs {}", list(&mut self.late.iter().map(u32::to_string)))?;
        }
        if self.trouble != 0 {
            write!(f, ", calls refused and delayed by seed {:#x}", self.trouble)?;
        }
        if self.odd_tree {
            write!(f, ", a device tree that has everything")?;
        }
        if self.trng {
            write!(f, ", a TRNG")?;
        }
        Ok(())
    }
}

/// Writes the file that goes into the board's flash: `program` (its ELF) with `setup` in it.
pub fn configure(program: &Path, setup: &Setup, name: &str) -> Result<Firmware> {
    let mut content = elf::flatten_file(program)?.bytes;
    patch(&mut content, setup)?;
    let file = workspace::image_dir().join(format!("firmware-{name}.bin"));
    image::write_whole(&file, &content)?;
    Ok(Firmware { file, boot_address: setup.board.boot_address })
}

fn patch(file: &mut [u8], setup: &Setup) -> Result<()> {
    let hole = file.get_mut(FIRMWARE_CONFIG_OFFSET..);
    let Some((hole, _)) = hole.and_then(|rest| FirmwareConfig::mut_from_prefix(rest).ok()) else {
        bail!("the firmware is too small for its configuration");
    };
    ensure!(
        *hole == FirmwareConfig::new_zeroed(),
        "the firmware has no empty configuration at byte {FIRMWARE_CONFIG_OFFSET}"
    );
    hole.as_mut_bytes().copy_from_slice(setup.config().as_bytes());
    let tables = FIRMWARE_TABLES_OFFSET..FIRMWARE_TABLES_OFFSET + FIRMWARE_TABLES_BYTES;
    let Some(tables) = file.get_mut(tables).filter(|bytes| bytes.iter().all(|&byte| byte == 0))
    else {
        bail!("the firmware has no room for its tables at byte {FIRMWARE_TABLES_OFFSET}");
    };
    tables.copy_from_slice(&setup.board.tables());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<&str> {
        (!text.is_empty()).then_some(text)
    }

    fn parse(vls: &str, late: &str) -> Result<Setup> {
        Setup::parse(some(vls), None, some(late), SuspendFormat::Extended, 4)
    }

    fn parse_streaming(vls: &str, svls: &str) -> Result<Setup> {
        Setup::parse(some(vls), some(svls), None, SuspendFormat::Original, 4)
    }

    #[test]
    fn streaming_lengths_are_their_own() {
        let setup = parse_streaming("", "16,64,32,128").unwrap();
        let config = setup.config();
        assert_eq!(config.vl_bytes[..4], [0; 4]);
        assert_eq!(config.svl_bytes[..5], [16, 64, 32, 128, 0]);
        assert!(setup.to_string().ends_with("streaming vectors of 16,64,32,128 bytes"), "{setup}");
        let config = parse_streaming("32,32,64,64", "16,16,256,16").unwrap().config();
        assert_eq!(config.vl_bytes[..4], [32, 32, 64, 64]);
        assert_eq!(config.svl_bytes[..4], [16, 16, 256, 16]);
        for svls in ["48,16,16,16", "16,16", "x"] {
            let error = parse_streaming("", svls).unwrap_err().to_string();
            assert!(error.contains("--svls"), "{error}");
        }
    }

    #[test]
    fn trouble_and_an_odd_tree_are_said() {
        let setup = parse("", "").unwrap();
        assert_eq!((setup.config().trouble, setup.config().tree), (0, TREE_PLAIN));
        let setup = setup.troubled(0x5eed).with_odd_tree(true);
        assert_eq!((setup.config().trouble, setup.config().tree), (0x5eed, TREE_ODD));
        let said = setup.to_string();
        assert!(said.contains("seed 0x5eed") && said.contains("tree"), "{said}");
    }

    #[test]
    fn a_machine_is_written_into_the_file() {
        let setup = parse("32,256,64,128", "3").unwrap();
        let mut file = vec![0; 0x3000];
        patch(&mut file, &setup).unwrap();
        let (config, _) = FirmwareConfig::read_from_prefix(&file[64..]).unwrap();
        assert_eq!(config.magic, FIRMWARE_MAGIC);
        assert_eq!(config.cpus, 4);
        assert_eq!(config.suspend_format, SUSPEND_EXTENDED);
        assert_eq!(config.vl_bytes[..5], [32, 256, 64, 128, 0]);
        assert_eq!(config.refusals[..4], [0, 0, 0, 1]);
        assert_eq!(config.affinities[..5], [0, 1, 2, 3, u64::MAX]);
        assert_eq!((config.dtb, config.boot_address), (0x4000_0000, 0x4020_0000));
        assert_eq!(file[0x1000..], Board::VIRT.tables());
        // On another board only the board differs.
        let mut other = vec![0; 0x3000];
        patch(&mut other, &setup.clone().on(Board::FVP)).unwrap();
        let (other, _) = FirmwareConfig::read_from_prefix(&other[64..]).unwrap();
        assert_eq!(other.affinities[..5], [0, 0x100, 0x200, 0x300, u64::MAX]);
        assert_eq!((other.ram, other.counter), (0x8000_0000, 0x2a43_0000));
        assert_eq!(other.vl_bytes, config.vl_bytes);
        // Twice is a mistake, and so is what is no firmware.
        assert!(patch(&mut file, &setup).is_err());
        assert!(patch(&mut [0; 100], &setup).is_err());
        assert!(patch(&mut [0; 4096], &setup).is_err());
        assert_eq!(setup.to_string(), "vectors of 32,256,64,128 bytes, late CPUs 3");
    }

    #[test]
    fn what_the_architecture_forbids_is_refused_with_what_it_allows() {
        for vl in ["0", "24", "48", "512", "-16", "x", "", "65552"] {
            let error = parse(&format!("32,{vl},64,128"), "").unwrap_err().to_string();
            assert!(error.contains("allowed are 16, 32, 64, 128, 256 bytes"), "{error}");
        }
        for vls in ["32,256,64", "32,256,64,128,16"] {
            let error = parse(vls, "").unwrap_err().to_string();
            assert!(error.contains("4 CPUs") && error.contains("one for each"), "{error}");
        }
        for late in ["0", "4"] {
            let error = parse("", late).unwrap_err().to_string();
            assert!(error.contains("from 1 to 3"), "{error}");
        }
        assert!(parse("", "x").is_err());
        assert!(Setup::new(&[], &[], SuspendFormat::Original, 65).is_err());
    }
}
