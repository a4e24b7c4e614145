//! The host's word of the flag-shadow page.

use crate::Numbers;
use umbra_shared::flags::{FlagShadowPage, HostFlags, HypFlags, UntrustedHint};

/// Takes the word as hyp does.
pub fn hint(data: &[u8]) {
    let mut numbers = Numbers(data);
    let (word, answer) = (numbers.next(), numbers.next());
    let decoded = UntrustedHint::new(word).decode();
    assert_eq!(decoded.bits(), word & HostFlags::all().bits(), "defined bits, and only those");
    assert_eq!(decoded, UntrustedHint::new(word | !HostFlags::all().bits()).decode());

    let page = FlagShadowPage::new();
    page.flush(HostFlags::from_bits_retain(word));
    let hint = page.snapshot_hint();
    assert_eq!(hint, UntrustedHint::new(word), "nothing is lost on the way");
    assert_eq!(page.sync(), HypFlags::empty(), "the host's word is not hyp's");
    // Neither writer disturbs the other.
    page.publish(HypFlags::from_bits_retain(answer));
    assert_eq!(page.snapshot_hint(), hint);
    assert_eq!(page.sync().bits(), answer & HypFlags::all().bits());
    page.flush(HostFlags::from_bits_retain(!word));
    assert_eq!(page.sync().bits(), answer & HypFlags::all().bits());
    // A snapshot is a copy.
    assert_eq!(hint.decode(), decoded);
}
