//! What the machine offers: to all CPUs' hosts and to guests.

use super::Vls;
use core::{arch::asm, fmt};
use umbra_host::{emit, hypercall::VlInfo};
use umbra_shared::call::Features;

/// The `@offers` lines. `common`: what all CPUs have.
pub fn show(features: Features, common: &VlInfo) {
    let line = |what: &str, is: &dyn fmt::Display| emit!("@offers what={what} is={is}");
    line("SVE", &Vls(common.vqs));
    line("SME", &Vls(common.svqs));
    let has = |feature| if features.contains(feature) { "yes" } else { "no" };
    if features.contains(Features::SME) {
        line("FA64", if has_fa64() { &"yes" } else { &"no" });
        line("SME2", &has(Features::SME2));
    }
    line("FPMR", &has(Features::FPMR));
    line("PAuth", &has(Features::PAUTH));
    line("AArch32", &has(Features::AARCH32));
    // Whether a protected guest's registers leave the CPU before its host runs.
    let lazy = features.contains(Features::PROTECTED_FP_LAZY);
    line("protected-FP", if lazy { &"lazy" } else { &"scrub" });
}

/// Whether streaming mode has all of A64 (ID_AA64SMFR0_EL1.FA64).
fn has_fa64() -> bool {
    let value: u64;
    // SAFETY: reading an ID register.
    unsafe { asm!("mrs {}, s3_0_c0_c4_5", out(reg) value, options(nomem, nostack)) };
    value >> 63 != 0
}
