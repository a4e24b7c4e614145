//! The log of a test build (`hyp/src/arch/log.rs`), read out of the machine's memory when it is over,
//! and judged by the executable specification (`tests/spec`).
//!
//! The machine's RAM is a file that QEMU maps. Hyp is told nothing of it, and the host in the machine
//! can no more reach the log than anything else of hyp's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSymbol};
use umbra_shared::record::Record;
use umbra_spec::judge::{self, Report};
use zerocopy::{FromZeros, IntoBytes};

/// Where QEMU's virt board has its RAM.
const RAM: u64 = 0x4000_0000;

/// Where the log is in hyp's image: offsets from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    log: u64,
    records: u64,
    count: u64,
}

impl Place {
    /// Of the log in this ELF file, if it has one.
    pub fn find(hyp: &Path) -> Result<Option<Self>> {
        let data = std::fs::read(hyp).with_context(|| hyp.display().to_string())?;
        let file = object::File::parse(data.as_slice())?;
        let symbol = |name: &str| file.symbols().find(|symbol| symbol.name() == Ok(name));
        let found = (symbol("umbra_image_begin"), symbol("UMBRA_LOG"), symbol("UMBRA_LOG_COUNT"));
        let (Some(begin), Some(log), Some(count)) = found else { return Ok(None) };
        Ok(Some(Self {
            log: log.address() - begin.address(),
            records: log.size() / size_of::<Record>() as u64,
            count: count.address() - begin.address(),
        }))
    }

    /// All records in the RAM of a machine where hyp was loaded at `load`.
    fn read(&self, ram: &Path, load: u64) -> Result<Vec<Record>> {
        let file = File::open(ram).with_context(|| ram.display().to_string())?;
        let base = load.checked_sub(RAM).context("hyp was loaded below the RAM")?;
        let mut count = 0u64;
        file.read_exact_at(count.as_mut_bytes(), base + self.count)?;
        ensure!(
            count <= self.records,
            "the log holds {} records, and there were {count}: run fewer programs at a time",
            self.records
        );
        let mut records = vec![Record::new_zeroed(); count as usize];
        file.read_exact_at(records.as_mut_bytes(), base + self.log)?;
        if let Some(n) = records.iter().position(|record| record.number == 0) {
            bail!("record {n} of {count} was taken and never written");
        }
        Ok(records)
    }

    /// Judges them. The first difference comes as text.
    pub fn judge(&self, ram: &Path, load: u64) -> Result<std::result::Result<Report, String>> {
        let records = self.read(ram, load)?;
        Ok(judge::judge(records).map_err(|difference| difference.to_string()))
    }
}

/// Where hyp says that it is, in its first line.
pub fn load_address(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("umbra: ")?;
    let (_, rest) = rest.split_once(" at 0x")?;
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_where_hyp_is() {
        let line = "umbra: 0.1.0 at 0x40200000, package 8192 KiB";
        assert_eq!(load_address(line), Some(0x4020_0000));
        assert_eq!(load_address("umbra: 4 CPUs, largest VL 64 bytes"), None);
        assert_eq!(load_address("x at 0x40200000"), None);
    }

    #[test]
    fn a_log_is_read_from_where_it_is() {
        let folder = crate::workspace::target_dir().join("tmp");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("oracle-test-ram");
        let place = Place { log: 0x1000, records: 4, count: 0x800 };
        let mut ram = vec![0u8; 0x3000];
        let record = Record { number: 7, what: 3, ..Record::new_zeroed() };
        ram[0x1000 + 0x200..][..8].copy_from_slice(&1u64.to_le_bytes());
        ram[0x200 + 0x1000..][..256].copy_from_slice(record.as_bytes());
        ram[0x200 + 0x800] = 1;
        std::fs::write(&path, &ram).unwrap();
        assert_eq!(place.read(&path, RAM + 0x200).unwrap(), [record]);
        // More than there is room for, and one that was never written.
        for (count, why) in [(5, "fewer programs"), (2, "never written")] {
            ram[0x200 + 0x800] = count;
            std::fs::write(&path, &ram).unwrap();
            let error = place.read(&path, RAM + 0x200).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
