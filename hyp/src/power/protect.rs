//! PSCI MEM_PROTECT: firmware overwrites memory whenever the machine is reset, before any other software
//! has it.
//!
//! What firmware does is better than what hyp can do: it also sees resets that hyp isn't told of, a
//! watchdog's or its own. But it may cover less than all of RAM, or not be there at all. Once it is on, the
//! host never gets to call it off: the function is on no list of what hyp lets through.

#![forbid(unsafe_code)]

/// MEM_PROTECT (Arm DEN0022, MEM_PROTECT): 1 turns it on; the answer is what it was before, 0 or 1.
pub const MEM_PROTECT: u32 = 0x8400_0013;
/// MEM_PROTECT_CHECK_RANGE, SMC32 and SMC64: SUCCESS if all of a range is covered.
pub const MEM_PROTECT_CHECK_RANGE: [u32; 2] = [0x8400_0014, 0xc400_0014];
/// PSCI_FEATURES.
const PSCI_FEATURES: u32 = 0x8400_000a;

/// What firmware does for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// It has no MEM_PROTECT, or would not turn it on.
    None,
    /// It is on, and doesn't cover all of RAM.
    InPart,
    /// It is on for all of RAM.
    On {
        /// it was on already: what was in memory before this boot is gone
        before: bool,
    },
}

/// Turns it on, and asks whether it covers `banks` (start and end). `call` calls firmware with x0-x3.
pub fn protect(mut call: impl FnMut([u64; 4]) -> i64, banks: &[(u64, u64)]) -> Protection {
    let mut has = |function: u32| call([PSCI_FEATURES.into(), function.into(), 0, 0]) >= 0;
    if !has(MEM_PROTECT) {
        return Protection::None;
    }
    let [check32, check64] = MEM_PROTECT_CHECK_RANGE;
    let (has32, has64) = (has(check32), has(check64));
    let before = match call([MEM_PROTECT.into(), 1, 0, 0]) {
        0 => false,
        1 => true,
        _ => return Protection::None,
    };
    let covered = banks.iter().all(|&(start, end)| {
        let small = end <= 1 << 32;
        let check = if has64 {
            check64
        } else if has32 && small {
            check32
        } else {
            return false;
        };
        call([check.into(), start, end - start, 0]) == 0
    });
    if covered { Protection::On { before } } else { Protection::InPart }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANKS: [(u64, u64); 2] = [(0x4000_0000, 0x8000_0000), (0x8_0000_0000, 0x8_4000_0000)];

    /// Firmware that has these functions and covers memory up to `limit`.
    #[derive(Debug)]
    struct Firmware {
        has: Vec<u32>,
        limit: u64,
        on: i64,
    }

    impl Firmware {
        fn new() -> Self {
            let [check32, check64] = MEM_PROTECT_CHECK_RANGE;
            Self { has: vec![MEM_PROTECT, check32, check64], limit: u64::MAX, on: 0 }
        }

        fn call(&mut self, x: [u64; 4]) -> i64 {
            let function = x[0] as u32;
            if function == PSCI_FEATURES {
                return if self.has.contains(&(x[1] as u32)) { 0 } else { -1 };
            }
            assert!(self.has.contains(&function), "{function:#x} is called and not there");
            if function == MEM_PROTECT {
                assert_eq!(x[1], 1, "nobody calls it off");
                let before = self.on;
                self.on = if before < 0 { before } else { 1 };
                return before;
            }
            let small = function == MEM_PROTECT_CHECK_RANGE[0];
            assert!(!small || (x[1] | x[2]) >> 32 == 0, "an SMC32's arguments");
            if x[1] + x[2] <= self.limit { 0 } else { -3 }
        }

        fn protect(&mut self, banks: &[(u64, u64)]) -> Protection {
            protect(|x| self.call(x), banks)
        }
    }

    #[test]
    fn it_is_turned_on_and_stays_on() {
        let mut firmware = Firmware::new();
        assert_eq!(firmware.protect(&BANKS), Protection::On { before: false });
        assert_eq!(firmware.on, 1);
        assert_eq!(firmware.protect(&BANKS), Protection::On { before: true });
    }

    #[test]
    fn none_is_none() {
        let mut firmware = Firmware::new();
        firmware.has.clear();
        assert_eq!(firmware.protect(&BANKS), Protection::None);
        // It has it, and will not (TF-A: a board without the storage for it).
        let mut firmware = Firmware { on: -1, ..Firmware::new() };
        assert_eq!(firmware.protect(&BANKS), Protection::None);
        firmware.on = -8;
        assert_eq!(firmware.protect(&BANKS), Protection::None);
    }

    #[test]
    fn what_is_not_covered_is_ours_to_wipe() {
        let mut firmware = Firmware { limit: 0x8_0000_0000, ..Firmware::new() };
        assert_eq!(firmware.protect(&BANKS), Protection::InPart);
        assert_eq!(firmware.on, 1, "all the same");
        assert_eq!(firmware.protect(&BANKS[..1]), Protection::On { before: true });
        // It can't be asked.
        let mut firmware = Firmware::new();
        firmware.has.truncate(1);
        assert_eq!(firmware.protect(&BANKS), Protection::InPart);
        // Or of low memory only.
        let mut firmware = Firmware::new();
        firmware.has.truncate(2);
        assert_eq!(firmware.protect(&BANKS), Protection::InPart);
        assert_eq!(firmware.protect(&BANKS[..1]), Protection::On { before: true });
    }
}
