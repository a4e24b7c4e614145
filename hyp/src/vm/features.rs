//! Whether a vCPU can have what is asked for.

#![forbid(unsafe_code)]

use super::hardware::Machine;
use umbra_shared::call::Start;
use umbra_shared::error::Error;
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};
use umbra_shared::vl::{Vq, VqSet};

/// What a vCPU has of which this was asked.
///
/// # Errors
///
/// INVALID_ARGUMENT for reserved bits, and for AArch32 with SVE or SME; BAD_VL for a length that guests
/// can't have; NO_SVE, NO_SME, NO_AARCH32.
pub fn check_features<M: Machine>(m: &M, asked: UntrustedFeatures) -> Result<VcpuFeatures, Error> {
    if asked.has_reserved() {
        return Err(Error::InvalidArgument);
    }
    let vq = clamp(asked.vl_bytes(), m.guest_vqs(), Error::NoSve)?;
    let svq = clamp(asked.svl_bytes(), m.guest_svqs(), Error::NoSme)?;
    let aarch32 = asked.aarch32();
    if aarch32 && (vq.is_some() || svq.is_some()) {
        return Err(Error::InvalidArgument);
    }
    if aarch32 && !m.aarch32() {
        return Err(Error::NoAarch32);
    }
    Ok(VcpuFeatures { vq, svq, aarch32 })
}

/// Whether a vCPU with these features can start there.
///
/// # Errors
///
/// INVALID_ARGUMENT for an entry that is no multiple of 4, or for an entry or an argument that an AArch32 vCPU's
/// registers can't hold.
pub fn check_start(features: VcpuFeatures, start: Start) -> Result<(), Error> {
    let Start::At { entry, argument } = start else { return Ok(()) };
    // In AArch32 neither PC nor r0 holds more than 32 bits.
    let fits = !features.aarch32 || (entry | argument) >> 32 == 0;
    if entry.is_multiple_of(4) && fits { Ok(()) } else { Err(Error::InvalidArgument) }
}

/// The clamp for a guest that asks for a VL or SVL of so many bytes.
fn clamp(bytes: u64, available: VqSet, none: Error) -> Result<Option<Vq>, Error> {
    if bytes == 0 {
        return Ok(None);
    }
    if available.is_empty() {
        return Err(none);
    }
    match Vq::from_vl(bytes) {
        Some(vq) if available.contains(vq) => Ok(Some(vq)),
        _ => Err(Error::BadVl),
    }
}
