//! The command line: hyp's words among the host's.

use umbra_hyp::boot::options::Options;

/// Reads a command line.
pub fn command_line(data: &[u8]) {
    let Ok(line) = core::str::from_utf8(data) else { return };
    let (options, unknown) = Options::parse(line);
    assert_eq!((options, unknown), Options::parse(line), "the same twice");
    let words = || line.split_ascii_whitespace().filter(|word| word.starts_with("umbra."));
    let vl = |word: &str| word == "umbra.host-vl=common" || word == "umbra.host-vl=full";
    let known = |word: &str| vl(word) || word == "umbra.stats" || word == "umbra.displace";
    assert_eq!(unknown, words().find(|word| !known(word)), "the first word that means nothing");
    // The last one of an option counts.
    let last = words().rfind(|word| vl(word));
    assert_eq!(options.host_vl_common, last.is_some_and(|word| word.ends_with("=common")));
    assert_eq!(options.stats, words().any(|word| word == "umbra.stats"));
    assert_eq!(options.displace, words().any(|word| word == "umbra.displace"));
    // What is not hyp's changes nothing.
    let ours = words().collect::<Vec<_>>().join(" ");
    assert_eq!(Options::parse(&ours).0, options);
}
