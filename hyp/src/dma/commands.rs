//! Commands of an SMMU's queue: two doublewords each (IHI 0070, chapter 4).

#![forbid(unsafe_code)]

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `CMD_CFGI_ALL`: everything kept of stream tables and STEs is forgotten.
    ForgetStreams,
    /// `CMD_TLBI_NSNH_ALL`: everything kept of translations that are not EL2's.
    ForgetTranslations,
    /// `CMD_TLBI_S2_IPA`, of a leaf: what is kept of one page of a stage 2.
    ForgetPage {
        /// the stage 2's VMID
        vmid: u16,
        /// the page's address
        ipa: u64,
    },
    /// `CMD_SYNC`: consumed when all commands before it have been done, and every transaction that used what
    /// they dropped has ended. It tells nobody; `SMMU_CMDQ_CONS` is looked at.
    Sync,
}

impl Command {
    /// As the queue has it.
    pub const fn encode(self) -> [u64; 2] {
        match self {
            // CFGI_STE_RANGE with the largest range, which is how CFGI_ALL is spelled.
            Self::ForgetStreams => [0x04, 31],
            Self::ForgetTranslations => [0x30, 0],
            Self::ForgetPage { vmid, ipa } => {
                [0x2a | (vmid as u64) << 32, ipa & 0x000f_ffff_ffff_f000 | 1]
            }
            Self::Sync => [0x46, 0],
        }
    }
}

/// What `SMMU_CMDQ_CONS.ERR` says of the command that the SMMU has stopped at.
pub const fn error(consumed: u32) -> &'static str {
    match consumed >> 24 & 0x7f {
        0 => "none",
        1 => "CERROR_ILL",
        2 => "CERROR_ABT",
        3 => "CERROR_ATC_INV_SYNC",
        _ => "reserved",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_the_architecture_says() {
        assert_eq!(Command::ForgetStreams.encode(), [0x4, 0x1f]);
        assert_eq!(Command::ForgetTranslations.encode(), [0x30, 0]);
        let page = Command::ForgetPage { vmid: 0x41, ipa: 0x12_3456_7000 };
        assert_eq!(page.encode(), [0x41_0000_002a, 0x12_3456_7001]);
        assert_eq!(Command::Sync.encode(), [0x46, 0]);
    }

    #[test]
    fn errors_have_names() {
        let names: Vec<_> = (0..5).map(|n| error(n << 24 | 17)).collect();
        let expected = ["none", "CERROR_ILL", "CERROR_ABT", "CERROR_ATC_INV_SYNC", "reserved"];
        assert_eq!(names, expected);
    }
}
