//! Hyp's own words on the command line: those that begin with `umbra.`.

#![forbid(unsafe_code)]

use umbra_shared::call::Policy;

/// What becomes of masters that no SMMU of hyp's covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dma {
    /// `umbra.dma=auto`: the host keeps them, and if there is one, no protected VM is made: a machine whose disk is
    /// behind no SMMU can still boot.
    #[default]
    Auto,
    /// `umbra.dma=isolate`: they are withheld from the host.
    Isolate,
    /// `umbra.dma=unsafe`: the host keeps them, and protected VMs are made all the same: whoever can program
    /// one of them reads and writes all of memory.
    Unsafe,
}

/// What the command line asks of hyp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `umbra.host-vl=common`: the host is held to the vector lengths that all CPUs have, instead of
    /// all that its CPU has (`full`, the default).
    pub host_vl_common: bool,
    /// `umbra.protected-fp=lazy`: a protected guest's FP registers stay on the CPU, closed to its host,
    /// while that runs, instead of leaving it at every exit (`scrub`, the default). It is the machine's
    /// loader that may say so, and nobody behind it: what is closed has been read by speculation before.
    pub protected_fp_lazy: bool,
    /// `umbra.boot-wipe=off`: hyp does not wipe memory when it boots. Then what a protected VM had in
    /// memory when a reset came that hyp was not told of (a watchdog's, firmware's) is the next host's
    /// to read. For machines whose firmware wipes, or that boot often and have no secrets.
    pub boot_wipe_off: bool,
    /// `umbra.dma`: what becomes of masters that no SMMU covers.
    pub dma: Dma,
    /// `umbra.stats`: the CPUs' counters on the console when the host turns the machine off or resets
    /// it, for hosts that never ask.
    pub stats: bool,
    /// `umbra.displace`: at every WFI, and at DC ZVA (which programs may execute too), the host's
    /// registers go to memory and are closed to it, as when a guest uses FP. For tests of a host that
    /// runs no guest: its registers would never move.
    pub displace: bool,
}

impl Options {
    /// When the FP registers of protected VMs move.
    pub const fn protected_policy(&self) -> Policy {
        if self.protected_fp_lazy { Policy::Lazy } else { Policy::Scrub }
    }

    /// Reads a command line. Returns the options and the first word that begins with `umbra.` and
    /// means nothing, so that a typing error doesn't pass for an option.
    pub fn parse(command_line: &str) -> (Self, Option<&str>) {
        let mut options = Self::default();
        let mut unknown = None;
        for word in command_line.split_ascii_whitespace().filter(|w| w.starts_with("umbra.")) {
            match word {
                "umbra.host-vl=common" => options.host_vl_common = true,
                "umbra.host-vl=full" => options.host_vl_common = false,
                "umbra.protected-fp=lazy" => options.protected_fp_lazy = true,
                "umbra.protected-fp=scrub" => options.protected_fp_lazy = false,
                "umbra.boot-wipe=off" => options.boot_wipe_off = true,
                "umbra.boot-wipe=on" => options.boot_wipe_off = false,
                "umbra.dma=auto" => options.dma = Dma::Auto,
                "umbra.dma=isolate" => options.dma = Dma::Isolate,
                "umbra.dma=unsafe" => options.dma = Dma::Unsafe,
                "umbra.stats" => options.stats = true,
                "umbra.displace" => options.displace = true,
                _ => {
                    unknown.get_or_insert(word);
                }
            }
        }
        (options, unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let (o, unknown) = Options::parse("console=ttyAMA0 umbra.host-vl=common quiet");
        assert!(o.host_vl_common && unknown.is_none());
        let (o, unknown) = Options::parse("umbra.stats");
        assert!(o.stats && !o.displace && unknown.is_none());
        let (o, unknown) = Options::parse("umbra.displace x");
        assert!(!o.stats && o.displace && unknown.is_none());
        let (o, unknown) = Options::parse("umbra.host-vl=comon umbra.x");
        assert!(!o.host_vl_common);
        assert_eq!(unknown, Some("umbra.host-vl=comon"));
        assert_eq!(Options::parse(""), (Options::default(), None));
    }

    #[test]
    fn a_word_is_its_own_and_no_neighbours() {
        let words = [
            "umbra.host-vl=common",
            "umbra.host-vl=full",
            "umbra.protected-fp=lazy",
            "umbra.protected-fp=scrub",
            "umbra.boot-wipe=off",
            "umbra.boot-wipe=on",
            "umbra.dma=auto",
            "umbra.dma=isolate",
            "umbra.dma=unsafe",
            "umbra.stats",
            "umbra.displace",
        ];
        for word in words {
            let alone = Options::parse(word);
            assert_eq!(alone.1, None, "{word}");
            // Wherever it stands, and twice.
            for line in [
                format!("a {word} b=c"),
                format!("\t{word}\n"),
                format!("{word}  {word}"),
                format!("xumbra.y {word}"),
            ] {
                assert_eq!(Options::parse(&line), alone, "{line:?}");
            }
            // Hyp's words begin with its name; these are typing errors, and nothing else.
            let typing = [
                format!("{word}x"),
                format!("{word}=1"),
                format!("{word}="),
                format!("{word},{word}"),
                format!("{word}.x"),
                word[..word.len() - 1].to_owned(),
                format!("umbra.{word}"),
                format!("umbra.x{}", &word["umbra.".len()..]),
            ];
            for typing in &typing {
                assert_eq!(Options::parse(typing), (Options::default(), Some(typing.as_str())));
            }
            // And these are somebody else's.
            for other in [
                format!("x{word}"),
                word[1..].to_owned(),
                word.to_uppercase(),
                word.replace("umbra.", "umbra-"),
                word["umbra.".len()..].to_owned(),
                format!("umbra{}", &word["umbra.".len()..]),
            ] {
                assert_eq!(Options::parse(&other), (Options::default(), None), "{other}");
            }
        }
        assert_eq!(Options::parse("umbra."), (Options::default(), Some("umbra.")));
        assert_eq!(Options::parse("umbra"), (Options::default(), None));
    }

    #[test]
    fn of_two_words_both_count_and_the_last_wins() {
        let vl = |line| Options::parse(line).0.host_vl_common;
        assert!(!vl("umbra.host-vl=common umbra.host-vl=full"));
        assert!(vl("umbra.host-vl=full umbra.host-vl=common"));
        let policy = |line| Options::parse(line).0.protected_policy();
        assert_eq!(policy(""), Policy::Scrub, "without a word");
        assert_eq!(policy("umbra.protected-fp=lazy"), Policy::Lazy);
        assert_eq!(policy("umbra.protected-fp=lazy umbra.protected-fp=scrub"), Policy::Scrub);
        assert_eq!(policy("umbra.protected-fp=scrub umbra.protected-fp=lazy"), Policy::Lazy);
        let dma = |line| Options::parse(line).0.dma;
        assert_eq!(dma(""), Dma::Auto, "without a word");
        assert_eq!(dma("umbra.dma=isolate"), Dma::Isolate);
        assert_eq!(dma("umbra.dma=isolate umbra.dma=unsafe"), Dma::Unsafe);
        assert_eq!(dma("umbra.dma=unsafe umbra.dma=auto"), Dma::Auto);
        let (all, unknown) = Options::parse("umbra.displace umbra.host-vl=common umbra.stats");
        assert!(all.host_vl_common && all.stats && all.displace && unknown.is_none());
        // The first that means nothing is told, and what means something counts beside it.
        let (some, unknown) = Options::parse("umbra.stats umbra.b umbra.a umbra.displace");
        assert!(some.stats && some.displace && !some.host_vl_common);
        assert_eq!(unknown, Some("umbra.b"));
    }
}
