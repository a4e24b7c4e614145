//! The configuration as `cargo xtask` wrote it into the file, checked.

use thiserror::Error;
use umbra_shared::PAGE_SIZE;
use umbra_shared::firmware::{
    FIRMWARE_CPUS, FIRMWARE_MAGIC, FIRMWARE_VERSION, FirmwareConfig, FirmwareExtras,
    SUSPEND_EXTENDED, SUSPEND_ORIGINAL, TREE_ODD, TREE_PLAIN,
};
use umbra_shared::package::PAYLOAD_ALIGN;
use umbra_shared::vl::Vq;
use zerocopy::FromBytes;

/// Why a configuration can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ConfigError {
    #[error("the firmware was not configured (cargo xtask boot --vls)")]
    NotConfigured,
    #[error("the configuration has version {0}, not {FIRMWARE_VERSION}")]
    Version(u32),
    #[error("the configuration speaks of {0} CPUs; 1 to {FIRMWARE_CPUS} fit")]
    Cpus(u32),
    #[error("the configuration gives CPU {cpu} vectors of {bytes} bytes")]
    Vl { cpu: usize, bytes: u16 },
    #[error("the configuration gives CPU {cpu} streaming vectors of {bytes} bytes")]
    Svl { cpu: usize, bytes: u16 },
    #[error("the configuration knows no power_state format {0}")]
    SuspendFormat(u32),
    #[error("the configuration knows no tree {0}")]
    Tree(u32),
    #[error("the configuration has memory begin at {ram:#x} and the image at {boot_address:#x}")]
    Memory { ram: u64, boot_address: u64 },
    #[error("the configuration gives CPU {0} no affinity, or another CPU's")]
    Affinity(usize),
}

/// How CPU_SUSPEND's power_state is laid out (PSCI 1.1, 5.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendFormat {
    /// Power-down is bit 16.
    Original,
    /// Power-down is bit 30.
    Extended,
}

impl SuspendFormat {
    /// The power_state that powers a CPU down.
    pub const fn power_down(self) -> u32 {
        match self {
            Self::Original => 1 << 16,
            Self::Extended => 1 << 30,
        }
    }

    /// The power_state in which a CPU only waits.
    pub const STANDBY: u32 = 0;
}

/// Aff3 to Aff0 of MPIDR_EL1.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// A usable configuration.
#[derive(Clone, Debug)]
pub struct Config {
    raw: FirmwareConfig,
    /// How CPU_SUSPEND's power_state is laid out.
    pub suspend: SuspendFormat,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    ///
    /// If it can't be used.
    pub fn read(bytes: &[u8]) -> Result<Self, ConfigError> {
        let (raw, _) =
            FirmwareConfig::read_from_prefix(bytes).map_err(|_| ConfigError::NotConfigured)?;
        if raw.magic != FIRMWARE_MAGIC {
            return Err(ConfigError::NotConfigured);
        }
        if raw.version != FIRMWARE_VERSION {
            return Err(ConfigError::Version(raw.version));
        }
        if raw.cpus == 0 || raw.cpus as usize > FIRMWARE_CPUS {
            return Err(ConfigError::Cpus(raw.cpus));
        }
        let is_length = |bytes| bytes == 0 || Vq::from_vl(u64::from(bytes)).is_some();
        if let Some((cpu, bytes)) = first(&raw.vl_bytes, |bytes| !is_length(bytes)) {
            return Err(ConfigError::Vl { cpu, bytes });
        }
        // A streaming vector length is a power of two.
        let is_streaming = |bytes: u16| is_length(bytes) && bytes.count_ones() <= 1;
        if let Some((cpu, bytes)) = first(&raw.svl_bytes, |bytes| !is_streaming(bytes)) {
            return Err(ConfigError::Svl { cpu, bytes });
        }
        let suspend = match raw.suspend_format {
            SUSPEND_ORIGINAL => SuspendFormat::Original,
            SUSPEND_EXTENDED => SuspendFormat::Extended,
            other => return Err(ConfigError::SuspendFormat(other)),
        };
        if ![TREE_PLAIN, TREE_ODD].contains(&raw.tree) {
            return Err(ConfigError::Tree(raw.tree));
        }
        let (ram, boot_address) = (raw.ram, raw.boot_address);
        let aligned =
            ram.is_multiple_of(PAGE_SIZE as u64) && boot_address.is_multiple_of(PAYLOAD_ALIGN);
        if !aligned || ram >= boot_address {
            return Err(ConfigError::Memory { ram, boot_address });
        }
        let affinities = &raw.affinities[..raw.cpus as usize];
        for (cpu, affinity) in affinities.iter().enumerate() {
            if affinity & !AFFINITY != 0 || affinities[..cpu].contains(affinity) {
                return Err(ConfigError::Affinity(cpu));
            }
        }
        Ok(Self { raw, suspend })
    }

    /// Number of CPUs.
    pub fn cpus(&self) -> usize {
        self.raw.cpus as usize
    }

    /// Where the machine's device tree is.
    pub fn dtb(&self) -> u64 {
        self.raw.dtb
    }

    /// Where memory of EL2 and below begins, with the edited tree.
    pub fn ram(&self) -> u64 {
        self.raw.ram
    }

    /// Where the image for EL2 is.
    pub fn boot_address(&self) -> u64 {
        self.raw.boot_address
    }

    /// The control frame of the system counter, if it is to be started.
    pub fn counter(&self) -> Option<u64> {
        (self.raw.counter != 0).then_some(self.raw.counter)
    }

    /// The CPUs' affinities.
    pub fn affinities(&self) -> &[u64] {
        &self.raw.affinities[..self.cpus()]
    }

    /// The most that this CPU's vector length may be; `None`: all that it has.
    pub fn vq(&self, cpu: usize) -> Option<Vq> {
        Vq::from_vl(u64::from(*self.raw.vl_bytes.get(cpu)?))
    }

    /// The most that this CPU's streaming vector length may be; `None`: all that it has.
    pub fn svq(&self, cpu: usize) -> Option<Vq> {
        Vq::from_vl(u64::from(*self.raw.svl_bytes.get(cpu)?))
    }

    /// Whether EL2 is given the tree that has everything.
    pub fn has_odd_tree(&self) -> bool {
        self.raw.tree == TREE_ODD
    }

    /// What it does that not all firmware does.
    pub fn extras(&self) -> FirmwareExtras {
        FirmwareExtras::from_bits_truncate(self.raw.extras)
    }

    /// What [`crate::trouble`] comes from; zero: there is none.
    pub fn trouble(&self) -> u64 {
        self.raw.trouble
    }

    /// What its TRNG's numbers follow from; 0: there is none.
    pub fn trng(&self) -> u64 {
        self.raw.trng
    }

    /// How many CPU_ON calls for this CPU are denied.
    pub fn refusals(&self, cpu: usize) -> u8 {
        self.raw.refusals.get(cpu).copied().unwrap_or(0)
    }
}

/// The first CPU with such bytes.
fn first(list: &[u16; FIRMWARE_CPUS], bad: impl Fn(u16) -> bool) -> Option<(usize, u16)> {
    list.iter().copied().enumerate().find(|&(_, bytes)| bad(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    fn raw() -> FirmwareConfig {
        let mut raw = FirmwareConfig::new_zeroed();
        raw.magic = FIRMWARE_MAGIC;
        raw.version = FIRMWARE_VERSION;
        raw.cpus = 2;
        raw.vl_bytes[0] = 32;
        raw.svl_bytes[1] = 64;
        raw.refusals[1] = 1;
        raw.tree = TREE_ODD;
        raw.trouble = 7;
        raw.extras = FirmwareExtras::MEM_PROTECT.bits();
        raw.dtb = 0x4000_0000;
        raw.ram = 0x8000_0000;
        raw.boot_address = 0x8020_0000;
        raw.affinities = [u64::MAX; FIRMWARE_CPUS];
        raw.affinities[..2].copy_from_slice(&[0, 0x100]);
        raw
    }

    #[test]
    fn a_configuration_is_read() {
        let config = Config::read(raw().as_bytes()).unwrap();
        assert_eq!(config.cpus(), 2);
        assert_eq!(config.vq(0), Vq::new(2));
        assert_eq!(config.vq(1), None);
        assert_eq!((config.svq(0), config.svq(1)), (None, Vq::new(4)));
        assert_eq!((config.refusals(0), config.refusals(1)), (0, 1));
        assert_eq!(config.suspend, SuspendFormat::Original);
        assert_eq!((config.dtb(), config.ram()), (0x4000_0000, 0x8000_0000));
        assert_eq!(config.boot_address(), 0x8020_0000);
        assert_eq!(config.affinities(), [0, 0x100]);
        assert_eq!(config.counter(), None);
        assert_eq!((config.has_odd_tree(), config.trouble()), (true, 7));
        assert_eq!(config.extras(), FirmwareExtras::MEM_PROTECT);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |change: fn(&mut FirmwareConfig)| {
            let mut raw = raw();
            change(&mut raw);
            Config::read(raw.as_bytes()).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(|raw| raw.magic = 0), ConfigError::NotConfigured);
        assert_eq!(with(|raw| raw.version = 9), ConfigError::Version(9));
        assert_eq!(with(|raw| raw.cpus = 0), ConfigError::Cpus(0));
        assert_eq!(with(|raw| raw.cpus = 65), ConfigError::Cpus(65));
        assert_eq!(with(|raw| raw.vl_bytes[1] = 24), ConfigError::Vl { cpu: 1, bytes: 24 });
        assert_eq!(with(|raw| raw.vl_bytes[1] = 512), ConfigError::Vl { cpu: 1, bytes: 512 });
        assert_eq!(with(|raw| raw.svl_bytes[0] = 8), ConfigError::Svl { cpu: 0, bytes: 8 });
        assert_eq!(with(|raw| raw.svl_bytes[9] = 48), ConfigError::Svl { cpu: 9, bytes: 48 });
        assert_eq!(with(|raw| raw.suspend_format = 2), ConfigError::SuspendFormat(2));
        assert_eq!(with(|raw| raw.tree = 2), ConfigError::Tree(2));
        let (ram, boot_address) = (0x8000_0000, 0x8020_0000);
        for (error, change) in [
            (
                ConfigError::Memory { ram: ram + 1, boot_address },
                (|raw| raw.ram += 1) as fn(&mut FirmwareConfig),
            ),
            (ConfigError::Memory { ram, boot_address: ram }, |raw| raw.boot_address = raw.ram),
            (ConfigError::Memory { ram, boot_address: boot_address + 4096 }, |raw| {
                raw.boot_address += 4096
            }),
            (ConfigError::Affinity(1), |raw| raw.affinities[1] = 0),
            (ConfigError::Affinity(1), |raw| raw.affinities[1] = u64::MAX),
            (ConfigError::Affinity(0), |raw| raw.affinities[0] = 1 << 31),
        ] {
            assert_eq!(with(change), error);
        }
        assert_eq!(Config::read(&[0; 8]).map(|_| ()), Err(ConfigError::NotConfigured));
    }
}
