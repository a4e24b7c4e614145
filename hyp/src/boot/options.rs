//! Hyp's own words on the command line: those that begin with `umbra.`.

#![forbid(unsafe_code)]

/// What the command line asks of hyp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `umbra.host-vl=common`: the host is held to the vector lengths that all CPUs have, instead of
    /// all that its CPU has (`full`, the default).
    pub host_vl_common: bool,
    /// `umbra.stats`: the CPUs' counters on the console when the host turns the machine off or resets
    /// it, for hosts that never ask.
    pub stats: bool,
    /// `umbra.displace`: at every WFI, and at DC ZVA (which programs may execute too), the host's
    /// registers go to memory and are closed to it, as when a guest uses FP. For tests of a host that
    /// runs no guest: its registers would never move.
    pub displace: bool,
}

impl Options {
    /// Reads a command line. Returns the options and the first word that begins with `umbra.` and
    /// means nothing, so that a typing error doesn't pass for an option.
    pub fn parse(command_line: &str) -> (Self, Option<&str>) {
        let mut options = Self::default();
        let mut unknown = None;
        for word in command_line.split_ascii_whitespace().filter(|w| w.starts_with("umbra.")) {
            match word {
                "umbra.host-vl=common" => options.host_vl_common = true,
                "umbra.host-vl=full" => options.host_vl_common = false,
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
}
