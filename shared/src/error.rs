//! What a hypercall answers in x0.

use thiserror::Error;

/// The value of x0 after a hypercall that did what it was asked.
pub const SUCCESS: i64 = 0;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why hyp refused a call. A refused call has changed nothing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
        #[repr(i64)]
        pub enum Error {
            $($(#[$doc])* #[error($text)] $name = $code,)*
        }

        impl Error {
            /// Every error, for tests and tables.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The error with this code, if there is one.
            pub const fn from_code(code: i64) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

errors! {
    /// SMCCC's NOT_SUPPORTED: no such function.
    NotSupported = -1, "no such function";
    /// A reserved bit is set, or a value lies outside what its field allows.
    InvalidArgument = -16, "invalid argument";
    /// An address is not aligned to its granule.
    Unaligned = -17, "address not page-aligned";
    /// An address or range is not RAM that this machine has.
    NotMemory = -18, "not memory";
    /// The page is not the host's to give (hyp's, a guest's, or given already).
    NotOwned = -19, "page not owned by the caller";
    /// The page is shared, and only an exclusively owned one can be given or shared again.
    Shared = -20, "page is shared";
    /// The page is not shared, or not in this way.
    NotShared = -21, "page is not shared";
    /// In use: a loaded vCPU, a flag-shadow page of a live vCPU, a CPU with another vCPU loaded.
    Busy = -22, "busy";
    /// No such VM.
    BadVm = -23, "no such VM";
    /// No such vCPU.
    BadVcpu = -24, "no such vCPU";
    /// The VM is being torn down.
    Dying = -25, "the VM is being torn down";
    /// The VM is not being torn down, so nothing of it can be reclaimed.
    NotDying = -26, "the VM is not being torn down";
    /// A table is full: VMs, shared pages.
    Limit = -27, "limit reached";
    /// The donated pages are fewer than this needs; x1 says how many it needs.
    TooFewPages = -28, "too few pages donated";
    /// The VM's stage-2 pool can't hold the tables of this mapping: top it up.
    NoTables = -29, "stage-2 page pool exhausted";
    /// The guest address lies outside the guest's address space.
    BadIpa = -30, "guest address out of range";
    /// Something is mapped at the guest address already.
    IpaInUse = -31, "guest address in use";
    /// Not a vector length (streaming or not), or one that guests can't have on this machine.
    BadVl = -32, "vector length not available to guests";
    /// This CPU can't provide exactly the vCPU's vector length (streaming or not), or came late and lacks
    /// what the vCPU was shown: ZT0, FA64, FPMR, pointer authentication, MOPS.
    VlMismatch = -33, "this CPU lacks the vCPU's vector length";
    /// The machine has no SVE.
    NoSve = -34, "no SVE";
    /// No vCPU is loaded on this CPU.
    NotLoaded = -35, "no vCPU loaded on this CPU";
    /// No such CPU, or it is not online at hyp.
    BadCpu = -37, "no such CPU";
    /// Nothing is mapped at the guest address.
    NotMapped = -38, "nothing is mapped at the guest address";
    /// The machine has no SME.
    NoSme = -39, "no SME";
    /// The machine's EL1 can't be AArch32.
    NoAarch32 = -40, "no AArch32 at EL1";
    /// The protected VM is sealed: no vCPU is made in it any more, and it is sealed once.
    Sealed = -41, "the VM is sealed";
    /// The protected VM is still being built: it runs once it is sealed.
    NotSealed = -42, "the VM is not sealed";
    /// The VM is a normal one, which knows no seal.
    NotProtected = -43, "the VM is not protected";
    /// The vCPU is off, or its protected VM has turned itself off: it runs once another vCPU, or the host of a
    /// normal VM, turns it on.
    PoweredOff = -44, "the vCPU is off";
    /// The VM is a protected one, whose vCPUs its host doesn't reset.
    Protected = -45, "the VM is protected";
    /// A device of the host's reaches all of memory, so that there can be no protected VM on this machine
    /// (`umbra.dma`).
    NotIsolated = -46, "a device reaches all of memory";
    /// The index, or the affinity, is that of another vCPU of the VM.
    VcpuInUse = -47, "another vCPU has this index or affinity";
    /// The vCPU has no such register.
    BadRegister = -48, "no such register";
}

impl Error {
    /// The value of x0.
    pub const fn code(self) -> i64 {
        self as i64
    }
}

/// Reads x0 of a finished call.
pub const fn check(x0: u64) -> Result<(), Error> {
    match x0 as i64 {
        SUCCESS => Ok(()),
        code => match Error::from_code(code) {
            Some(error) => Err(error),
            None => Err(Error::NotSupported),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_differ_from_success() {
        for &e in Error::ALL {
            assert_eq!(Error::from_code(e.code()), Some(e));
            assert_eq!(check(e.code() as u64), Err(e));
            assert!(e.code() < 0);
        }
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(77), Err(Error::NotSupported));
    }
}
