//! Sets of flags, none of whose bits is in two flags.
//!
//! Two optional features of hyp once shared a bit: on a CPU with one of them, a register of the other was written
//! that wasn't there. No machine under test had such a CPU. So every set of flags is made by [`flag_set!`](crate::flag_set), which
//! doesn't compile if two flags overlap; `cargo xtask check` sees that none is made otherwise.

/// Whether no bit is in two of these.
pub const fn disjoint(flags: &[u64]) -> bool {
    let (mut seen, mut i) = (0, 0);
    while i < flags.len() {
        if seen & flags[i] != 0 {
            return false;
        }
        seen |= flags[i];
        i += 1;
    }
    true
}

/// [`bitflags::bitflags!`] of one set whose flags are disjoint.
#[macro_export]
macro_rules! flag_set {
    (
        $(#[$outer:meta])*
        $visibility:vis struct $Name:ident: $Bits:ty {
            $($(#[$inner:ident $($arguments:tt)*])* const $Flag:ident = $value:expr;)*
        }
    ) => {
        $crate::bitflags::bitflags! {
            $(#[$outer])*
            $visibility struct $Name: $Bits {
                $($(#[$inner $($arguments)*])* const $Flag = $value;)*
            }
        }

        const _: () = assert!(
            $crate::bits::disjoint(&[$($Name::$Flag.bits() as u64),*]),
            concat!("two flags of ", stringify!($Name), " share a bit")
        );
    };
}

#[cfg(test)]
mod tests {
    use super::disjoint;

    #[test]
    fn a_bit_in_two_flags_is_seen() {
        assert!(disjoint(&[]) && disjoint(&[0, 0, 1, 2, 0xff00]));
        assert!(!disjoint(&[1 << 10, 1, 1 << 10]) && !disjoint(&[0xffff << 32, 1 << 40]));
    }
}
