//! The interrupts that a run is to carry: from what the host says to what list registers hold.

#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use umbra_shared::error::Error;
use umbra_shared::exit::RunFlags;
use umbra_shared::interrupt::{Entry, INTIDS, Interface, MAX_ENTRIES, State};

/// `ICH_LR<n>_EL2`: Group (60), EOI (41) and Priority (55:48) where an [`Entry`] has them elsewhere; State (63:62) and vINTID
/// (31:0). HW (61) is zero: no physical interrupt is a guest's.
const GROUP1: u64 = 1 << 60;
const EOI: u64 = 1 << 41;
const PRIORITY_SHIFT: u32 = 48;
const STATE_SHIFT: u32 = 62;

/// What a list register holds: an interrupt that has been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListRegister(u64);

impl ListRegister {
    fn new(entry: Entry) -> Self {
        let mut bits = (entry.state() as u64) << STATE_SHIFT
            | u64::from(entry.priority()) << PRIORITY_SHIFT
            | u64::from(entry.intid());
        if entry.contains(Entry::GROUP1) {
            bits |= GROUP1;
        }
        if entry.contains(Entry::EOI) {
            bits |= EOI;
        }
        Self(bits)
    }

    /// The register form.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// What the guest has left in a list register.
pub const fn state(bits: u64) -> State {
    State::from_field(bits >> STATE_SHIFT)
}

/// The interrupts of a run.
pub type ListRegisters = ArrayVec<ListRegister, MAX_ENTRIES>;

/// Takes what the host offers: `words` are its x6 to x13. What list registers do with an INTID that two of them have, or
/// that is none of theirs, is UNPREDICTABLE (IHI 0069, 12.4.8), so nothing of it gets there.
///
/// # Errors
///
/// INVALID_ARGUMENT, as [`umbra_shared::interrupt`] has it; and for UNDERFLOW with fewer than two.
pub fn check(
    flags: RunFlags,
    words: &[u64; MAX_ENTRIES / 2],
    interface: Interface,
) -> Result<ListRegisters, Error> {
    let count = flags.entries();
    let enough = count >= 2 || !flags.contains(RunFlags::UNDERFLOW);
    if count > interface.registers.into() || count > MAX_ENTRIES || !enough {
        return Err(Error::InvalidArgument);
    }
    let mut seen = [0_u64; (INTIDS as usize).div_ceil(64)];
    let mut lists = ListRegisters::new();
    let halves = words.iter().flat_map(|word| [word & 0xffff_ffff, word >> 32]);
    for half in halves.take(count) {
        let entry = Entry::from_bits(half).ok_or(Error::InvalidArgument)?;
        let (intid, bit) = (entry.intid(), 1 << (entry.intid() % 64));
        let word = seen.get_mut(usize::from(intid / 64)).ok_or(Error::InvalidArgument)?;
        let is_new = *word & bit == 0;
        *word |= bit;
        let fits = entry.priority() & !interface.priorities == 0;
        if intid >= INTIDS || !is_new || !fits || entry.state() == State::Done {
            return Err(Error::InvalidArgument);
        }
        lists.push(ListRegister::new(entry));
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: Interface = Interface { registers: 4, priorities: 0xf8 };

    fn words(entries: &[Entry]) -> [u64; 8] {
        let mut words = [u64::MAX; 8];
        for (n, entry) in entries.iter().enumerate() {
            let shift = 32 * (n % 2);
            words[n / 2] = words[n / 2] & !(0xffff_ffff << shift) | entry.bits() << shift;
        }
        words
    }

    fn checked(entries: &[Entry], flags: RunFlags) -> Result<Vec<u64>, Error> {
        let lists = check(flags.with_entries(entries.len()), &words(entries), FOUR)?;
        Ok(lists.iter().map(|list| list.bits()).collect())
    }

    #[test]
    fn list_registers_hold_what_was_said() {
        let edge = Entry::new(40, 0xa0, State::Pending);
        let level = Entry::new(1019, 0xf8, State::PendingActive) | Entry::EOI;
        let group0 = Entry::new(0, 0, State::Active) - Entry::GROUP1;
        let expected = [
            1 << 62 | 1 << 60 | 0xa0 << 48 | 40,
            3 << 62 | 1 << 60 | 1 << 41 | 0xf8 << 48 | 1019,
            2 << 62,
        ];
        assert_eq!(checked(&[edge, level, group0], RunFlags::UNDERFLOW), Ok(expected.to_vec()));
        assert_eq!(checked(&[], RunFlags::empty()), Ok(vec![]), "what is beyond isn't looked at");
        assert_eq!(state(expected[1]), State::PendingActive);
    }

    #[test]
    fn what_no_list_register_may_hold_is_refused() {
        let good = Entry::new(40, 0xa0, State::Pending);
        let refused = Err(Error::InvalidArgument);
        let bad = [
            ("an INTID beyond SPIs", Entry::new(1020, 0, State::Pending)),
            ("the spurious INTID", Entry::new(1023, 0, State::Pending)),
            ("neither pending nor active", Entry::new(41, 0xa0, State::Done)),
            ("a priority too fine", Entry::new(41, 0xa4, State::Pending)),
            ("the same INTID", Entry::new(40, 0x80, State::Active)),
            ("a reserved bit", Entry::from_bits_retain((good.bits() + 1) | (1 << 10))),
            ("another", Entry::from_bits_retain((good.bits() + 1) | (1 << 29))),
        ];
        for (what, entry) in bad {
            for entries in [&[good, entry][..], &[good, Entry::new(7, 0, State::Active), entry]] {
                assert_eq!(checked(entries, RunFlags::empty()), refused, "{what}");
            }
        }
        let five: Vec<_> = (0..5).map(|n| Entry::new(n, 0, State::Pending)).collect();
        assert_eq!(checked(&five, RunFlags::empty()), refused, "one more than there are");
        assert_eq!(checked(&five[..4], RunFlags::empty()).map(|lists| lists.len()), Ok(4));
        assert_eq!(checked(&[good], RunFlags::UNDERFLOW), refused, "it would be left at once");
        assert_eq!(checked(&[], RunFlags::UNDERFLOW), refused);
        let all = Interface { registers: 16, priorities: 0xff };
        let flags = RunFlags::empty().with_entries(17);
        assert_eq!(
            check(flags, &[0; 8], all),
            Err(Error::InvalidArgument),
            "more than x6 to x13 hold"
        );
    }
}
