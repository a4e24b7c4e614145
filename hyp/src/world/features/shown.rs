//! What a CPU needs in order to run guests at all, beside the features that have files of their own: that it does all
//! that the ID registers tell a guest of (the machine's, which all CPUs at boot have in common:
//! [`super::id::IdRegisters::common`]), that its GIC has no more state than is switched, and that none of its
//! errata lets a guest stop the host ([`crate::world::errata`]). A CPU that comes late and lacks that is the host's
//! alone, or of those guests that don't see it.
//!
//! By its ID registers alone each CPU has all of these; [`super::Features::less`] takes them away where it
//! comes up.

#![forbid(unsafe_code)]

use super::{Feature, Name, Relied};

pub(super) const AARCH64: Feature = Feature {
    relied_on: Relied::InAarch64,
    ..Feature::new(Name::Shown64, "what AArch64 guests are shown")
};

pub(super) const AARCH32: Feature = Feature {
    relied_on: Relied::InAarch32,
    ..Feature::new(Name::Shown32, "what AArch32 guests are shown")
};

pub(super) const SVE: Feature = Feature {
    relied_on: Relied::WithSve,
    ..Feature::new(Name::ShownSve, "what guests with SVE are shown")
};

pub(super) const SME: Feature = Feature {
    relied_on: Relied::WithSme,
    ..Feature::new(Name::ShownSme, "what guests with SME are shown")
};
