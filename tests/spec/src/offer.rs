//! The interrupts of a run: which can be offered, and what can become of them.

use umbra_shared::exit::RunFlags;
use umbra_shared::interrupt::Interface;
use umbra_shared::record::Record;

/// What a run is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    words: [u64; 8],
    interface: Interface,
}

impl Offer {
    /// As a record has it.
    pub fn read(record: &Record) -> Self {
        let [a, b, c, d, e, f, g] = record.args;
        let interface = Interface::from_register(record.result);
        Self { words: [a, b, c, d, e, f, g, record.function], interface }
    }

    fn entry(&self, n: usize) -> u64 {
        self.words[n / 2] >> (32 * (n % 2)) & 0xffff_ffff
    }

    /// Whether a run with these flags can have it.
    pub fn is_good(&self, flags: RunFlags) -> bool {
        let count = entries(flags);
        if count > usize::from(self.interface.registers).min(16) {
            return false;
        }
        if flags.contains(RunFlags::UNDERFLOW) && count < 2 {
            return false;
        }
        let entries: Vec<_> = (0..count).map(|n| self.entry(n)).collect();
        let good = |entry: u64| {
            let (intid, priority, state) = (entry & 0x3ff, entry >> 16 & 0xff, entry >> 30);
            let reserved = entry & 0x3c00_fc00;
            reserved == 0
                && intid <= 1019
                && state != 0
                && priority & !u64::from(self.interface.priorities) == 0
        };
        let alone = |n: usize| entries[..n].iter().all(|other| (other ^ entries[n]) & 0x3ff != 0);
        entries.iter().all(|&entry| good(entry)) && (0..count).all(alone)
    }

    /// Whether this can have become of it in one run: x8. The guest takes what is pending, and ends what is active; what is
    /// active doesn't become pending of itself.
    ///
    /// # Errors
    ///
    /// What can't have.
    pub fn can_become(&self, flags: RunFlags, x8: u64) -> Result<(), String> {
        let count = entries(flags);
        if x8 >> 37 != 0 || (x8 & 0xffff_ffff) >> (2 * count) != 0 {
            return Err(format!("{count} interrupts become {x8:#x}"));
        }
        for n in 0..count {
            let (before, after) = (self.entry(n) >> 30 & 3, x8 >> (2 * n) & 3);
            // Pending and active ends as pending, and that as active.
            let possible = match before {
                1 => after != 3,
                2 => after == 2 || after == 0,
                _ => true,
            };
            if !possible {
                return Err(format!("interrupt {n} was {before:#b} and becomes {after:#b}"));
            }
        }
        Ok(())
    }
}

/// How many entries these flags say there are.
fn entries(flags: RunFlags) -> usize {
    flags.bits() as usize >> 8 & 0x1f
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(entries: &[u64]) -> Offer {
        let mut words = [0; 8];
        for (n, entry) in entries.iter().enumerate() {
            words[n / 2] |= entry << (32 * (n % 2));
        }
        Offer { words, interface: Interface { registers: 4, priorities: 0xf8 } }
    }

    #[test]
    fn what_can_be_offered() {
        let flags = |count: u64, rest| RunFlags::from_bits_retain(count << 8) | rest;
        let none = RunFlags::empty();
        let good = 1 << 30 | 0xa0 << 16 | 1 << 24 | 40;
        assert!(offer(&[good, good + 1]).is_good(flags(2, RunFlags::UNDERFLOW)));
        assert!(!offer(&[good]).is_good(flags(1, RunFlags::UNDERFLOW)));
        assert!(offer(&[good]).is_good(flags(1, none)));
        for bad in [good, 1 << 30 | 1020, 41, good + 1 + (1 << 16), good + 1 + (1 << 26)] {
            assert!(!offer(&[good, bad]).is_good(flags(2, none)), "{bad:#x}");
            assert!(offer(&[good, bad]).is_good(flags(1, none)));
        }
        assert!(!offer(&[]).is_good(flags(5, none)));
    }

    #[test]
    fn what_can_become_of_it() {
        let flags = RunFlags::from_bits_retain(3 << 8);
        let all = offer(&[1 << 30, 2 << 30 | 1, 3 << 30 | 2]);
        for (x8, possible) in [
            (0b11_10_01, true),
            (0b01_00_10, true),
            (0, true),
            (1 << 32, true),
            (0b11, false),
            (0b01_00, false),
            (0b11_00, false),
            (1 << 6, false),
            (1 << 37, false),
        ] {
            assert_eq!(all.can_become(flags, x8).is_ok(), possible, "{x8:#b}");
        }
    }
}
