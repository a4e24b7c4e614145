//! What is left in memory when a machine has ended that guarded a secret (`tests/payload/src/remains.rs`),
//! as tests: `reset::NAME`.
//!
//! The machine's RAM is a file, of which the machine knows nothing. After its end, however that came, no
//! word of the secret may be in it, and nothing of what hyp says is wiped at the end. To see that the
//! search would find something, one machine is killed, and its RAM searched before the next boots on it.
//!
//! One of the host's CPUs says all the time that it is alive. From hyp's first last word on it must not.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use umbra_shared::firmware::{FirmwareExtras, secret};

use crate::bounds::{Bounds, End};
use crate::build::Built;
use crate::firmware::{self, Setup, SuspendFormat};
use crate::image;
use crate::qemu::{Machine, Qemu};
use crate::transcript::Outcome;
use crate::workspace;

/// Where QEMU's virt board has its RAM.
const RAM: u64 = 0x4000_0000;
/// Words that are looked for, and that lie beside each other in a guest's memory.
const WORDS: u64 = 256;
/// CPUs of the machines.
const CPUS: u32 = 4;
/// What a CPU says all the time that has nothing else to do.
const ALIVE: &str = "@end alive";
/// A machine that is to be killed is when it has said nothing for so long.
const SILENCE: Duration = Duration::from_secs(15);

/// A machine that ends.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The test's name.
    pub name: &'static str,
    /// How it ends.
    way: &'static str,
    /// Its firmware; `None`: QEMU's own.
    firmware: Option<Firmware>,
    /// Words for hyp.
    options: &'static str,
    /// What it boots with afterwards, on the same memory; `None`: it doesn't.
    again: Option<&'static str>,
    /// Whether the secret is there in the end.
    left: bool,
}

/// The EL3 test firmware's ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Firmware {
    /// As it comes.
    Plain,
    /// It wipes memory at a reset.
    Protects,
    /// A call hurts the caller.
    Hurts,
    /// It keeps a suspended CPU until the machine ends.
    Late,
}

impl Firmware {
    const fn extras(self) -> FirmwareExtras {
        match self {
            Self::Plain => FirmwareExtras::empty(),
            Self::Protects => FirmwareExtras::MEM_PROTECT,
            Self::Hurts => FirmwareExtras::RETURNS_NOWHERE,
            Self::Late => FirmwareExtras::RETURNS_LATE,
        }
    }
}

const NO_WIPE: &str = "umbra.boot-wipe=off";

/// All of them.
pub const CASES: &[Case] = &[
    case("r40_attack_memory_survives_a_system_reset", "reset"),
    case("r40_attack_memory_survives_a_power_off", "off"),
    // QEMU's own firmware has none: the host is told, and then does without.
    case("r40_attack_memory_survives_a_refused_system_reset2", "reset2"),
    with(case("r40_attack_memory_survives_a_system_reset2", "reset2"), Firmware::Plain),
    with(case("r40_attack_memory_survives_a_panic", "panic"), Firmware::Hurts),
    with(case("r40_attack_memory_survives_firmwares_own_reset", "reset"), Firmware::Protects),
    // A CPU that is back at EL2 when all is wiped writes nothing there, not even to its stack.
    with(case("r40_attack_memory_survives_a_cpu_that_comes_late", "late"), Firmware::Late),
    // What nobody is told of.
    Case {
        again: Some(""),
        ..case("r40_attack_memory_survives_a_reset_that_nobody_announces", "killed")
    },
    Case {
        again: Some(NO_WIPE),
        left: true,
        ..case("without_a_wipe_at_boot_memory_is_as_it_was", "killed")
    },
];

const fn case(name: &'static str, way: &'static str) -> Case {
    Case { name, way, firmware: None, options: NO_WIPE, again: None, left: false }
}

const fn with(case: Case, firmware: Firmware) -> Case {
    Case { firmware: Some(firmware), ..case }
}

impl Case {
    /// Boots it to its end, and looks.
    pub fn outcome(&self, qemu: &Qemu, tests: &Built, firmware: &Path) -> Outcome {
        let mut said = String::new();
        match self.run(qemu, tests, firmware, &mut said) {
            Ok(()) => Outcome::Ok,
            Err(why) => Outcome::Failed(format!("{why:#}\n{said}")),
        }
    }

    fn run(&self, qemu: &Qemu, tests: &Built, elf: &Path, said: &mut String) -> Result<()> {
        let ram = Ram::new(self.name)?;
        let firmware = match self.firmware {
            Some(kind) => {
                let setup = Setup::new(&[], &[], SuspendFormat::Original, CPUS)?;
                Some(firmware::configure(elf, &setup.with(kind.extras()), self.name)?)
            }
            None => None,
        };
        let machine =
            Machine { smp: CPUS, firmware, memory_file: Some(ram.0.clone()), ..Machine::default() };
        let mut wiped = Vec::new();
        let mut boot = |way: &str, options: &str| -> Result<()> {
            let path = workspace::image_dir().join(format!("tests-{}.img", self.name));
            image::add_to_command_line(&tests.image, &format!("end={way} {options}"), &path)?;
            let mut symbols = tests.symbols();
            let mut ready = false;
            let mut bounds = Bounds::default();
            if way == "killed" {
                bounds.silence = SILENCE;
            }
            let end = qemu.run(&machine, &path, bounds, &mut |line| {
                ready |= line == format!("@end ready {way}");
                wiped.extend(wiped_ranges(line));
                said.push_str(&symbols.show(line));
                said.push('\n');
            })?;
            ensure!(ready || way == "look", "the machine did not come to its end");
            match end {
                End::Exited(status) if status.success() && way != "killed" => Ok(()),
                End::Silent(_) if way == "killed" => Ok(()),
                end => anyhow::bail!("the machine did not end as it should: {end:?}"),
            }
        };
        boot(self.way, self.options)?;
        if let Some(options) = self.again {
            let found = ram.secrets()?;
            ensure!(found >= 2 * WORDS, "{found} words of the secret: they should still be there");
            boot("look", options)?;
        }
        let behind = said.lines().skip_while(|line| !line.contains("umbra: fatal: "));
        let alive = behind.filter(|line| line.contains(ALIVE)).count();
        ensure!(alive == 0, "the host says {alive} times that it is alive while hyp dies");
        ensure!(!wiped.is_empty(), "hyp does not say what is wiped at the end");
        let found = ram.secrets()?;
        if self.left {
            ensure!(found >= 2 * WORDS, "{found} words of the secret: somebody has wiped them");
        } else {
            ensure!(found == 0, "{found} words of the secret are left in memory");
        }
        // Of the last boot: an earlier one may have had other memory.
        for &(start, end) in &wiped[wiped.len() - 2..] {
            let bytes = ram.left_in(start, end)?;
            ensure!(bytes == 0, "{bytes} bytes of hyp's are left in {start:#x}..{end:#x}");
        }
        Ok(())
    }
}

/// What hyp says that it wipes at the end.
fn wiped_ranges(line: &str) -> Vec<(u64, u64)> {
    let Some(rest) = line.strip_prefix("umbra: wiped at the end: ") else { return Vec::new() };
    let number = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
    rest.split(" and ")
        .filter_map(|range| {
            let (start, end) = range.split_once("..")?;
            Some((number(start)?, number(end)?))
        })
        .collect()
}

/// A machine's memory, as a file that is gone with this.
struct Ram(PathBuf);

impl Drop for Ram {
    fn drop(&mut self) {
        // It was never made, if no machine started.
        let _ = fs::remove_file(&self.0);
    }
}

impl Ram {
    fn new(name: &str) -> Result<Self> {
        let path = workspace::image_dir().join(format!("{name}.ram"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| path.display().to_string())
            }
            _ => Ok(Self(path)),
        }
    }

    /// Calls `f` with each page that holds something, and its address.
    fn pages(&self, mut f: impl FnMut(u64, &[u8; 4096])) -> Result<()> {
        const PAGES: usize = 256;
        let file = File::open(&self.0).with_context(|| self.0.display().to_string())?;
        let bytes = file.metadata()?.len();
        let mut buffer = vec![0; PAGES * 4096];
        let mut at = 0;
        // Most of it is a hole.
        while let Some(data) = next_data(&file, at)? {
            let count = (bytes - data).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..count], data)?;
            let (pages, _) = buffer[..count].as_chunks::<4096>();
            for (n, page) in pages.iter().enumerate().filter(|(_, page)| **page != [0; 4096]) {
                f(RAM + data + 4096 * n as u64, page);
            }
            at = data + count as u64;
        }
        Ok(())
    }

    /// Words of the secret in all of it.
    fn secrets(&self) -> Result<u64> {
        let mut words: Vec<_> = (0..WORDS).map(secret).collect();
        words.sort_unstable();
        let mut found = 0;
        self.pages(|_, page| {
            let (all, _) = page.as_chunks::<8>();
            let is_secret =
                |word: &&[u8; 8]| words.binary_search(&u64::from_le_bytes(**word)).is_ok();
            found += all.iter().filter(is_secret).count() as u64;
        })?;
        Ok(found)
    }

    /// Bytes that are not zero in a range of physical memory.
    fn left_in(&self, start: u64, end: u64) -> Result<usize> {
        let mut left = 0;
        self.pages(|address, page| {
            if (start..end).contains(&address) {
                left += page.iter().filter(|&&byte| byte != 0).count();
            }
        })?;
        Ok(left)
    }
}

/// Where the next data of a sparse file are, from `at` on: at a page's start.
fn next_data(file: &File, at: u64) -> Result<Option<u64>> {
    use rustix::fs::{SeekFrom, seek};
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data / 4096 * 4096)),
        // Behind the last.
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("seeking in a machine's memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyp_says_what_it_wipes() {
        let line = "umbra: wiped at the end: 0x7fa10000..0x80000000 and 0x40237000..0x40400000";
        let ranges = [(0x7fa1_0000, 0x8000_0000), (0x4023_7000, 0x4040_0000)];
        assert_eq!(wiped_ranges(line), ranges);
        assert_eq!(wiped_ranges("umbra: something else"), []);
    }

    #[test]
    fn what_is_left_is_found() {
        let ram = Ram::new("remains-test").unwrap();
        fs::create_dir_all(ram.0.parent().unwrap()).unwrap();
        let file = File::create(&ram.0).unwrap();
        file.set_len(64 << 20).unwrap();
        assert_eq!((ram.secrets().unwrap(), ram.left_in(RAM, u64::MAX).unwrap()), (0, 0));
        let place = (40 << 20) + 4096;
        for n in 0..WORDS {
            file.write_all_at(&secret(n).to_le_bytes(), place + 8 * n).unwrap();
        }
        assert_eq!(ram.secrets().unwrap(), WORDS);
        let here = RAM + place;
        assert!(ram.left_in(here, here + 4096).unwrap() > 7 * WORDS as usize);
        assert_eq!(ram.left_in(here + 4096, u64::MAX).unwrap(), 0);
        assert_eq!(ram.left_in(RAM, here).unwrap(), 0);
        file.write_all_at(&[0xff; 8], place - 16).unwrap();
        assert_eq!(ram.left_in(here - 4096, here).unwrap(), 8);
    }
}
