//! The engine's moves between registers and memory, and the changes of ZCR_EL2 and SMCR_EL2 in between.
//!
//! All of them need FP, SVE and SME open to EL2. Two things move, each by itself: the *file* (Z, P, FFR,
//! V, FPSR, FPCR, FPMR, with ZCR_EL2, ZCR_EL1 and PSTATE.SM), whose owner is `live`, and the *matrix* (ZA,
//! ZT0, with SMCR_EL2, SMCR_EL1 and PSTATE.ZA), whose owner is `za`. In streaming mode the file has the
//! length that the matrix's owner set: a file is saved before its owner loses the matrix, and loaded
//! after its owner has got it.

#![forbid(unsafe_code)]

use super::engine::{CpuFp, HostImage};
use super::hardware::{FpHw, Svcr};
use super::vcpu::Live;
use super::vcpu::{VcpuFp, file_bytes};
use crate::arch::stats::Stats;
use umbra_shared::call::{Counter, Policy};
use umbra_shared::flags::HostFlags;
use umbra_shared::sme::{ZT0_BYTES, za_bytes};
use umbra_shared::vl::Vq;

impl<I> CpuFp<I> {
    /// PSTATE.SM of a file that is in the registers. Without the matrix its owner can't have set it:
    /// SMSTART traps.
    fn streaming<H: FpHw<Image = I>>(&self, hw: &mut H) -> bool {
        hw.has_sme() && self.za == self.live && hw.svcr().contains(Svcr::SM)
    }

    /// The host's file is live: as much of it to memory as the hint asks for, and streaming mode is left.
    #[inline(always)]
    pub(super) fn save_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        if hw.has_sve() {
            self.host_zcr_el1 = hw.zcr_el1();
        }
        let streaming = self.streaming(hw);
        self.host_image = if self.hint.contains(HostFlags::FOREIGN_FPSTATE) {
            stats.add(Counter::HostSavesAvoided, 1);
            if self.za != Live::Host {
                self.host_za = None;
            }
            HostImage::None
        } else if streaming {
            // A host in streaming mode has not come from a system call, whatever it says.
            let svq = hw.save_streaming(&mut self.buffer);
            stats.add(Counter::HostSavesFull, 1);
            stats.add(Counter::BytesMoved, file_bytes(Some(svq)));
            HostImage::Streaming(svq)
        } else if !hw.has_sve() || self.hint.contains(HostFlags::SVE_DISCARDED) {
            hw.save_fpsimd(&mut self.buffer);
            stats.add(Counter::HostSavesFpsimd, 1);
            stats.add(Counter::BytesMoved, file_bytes(None));
            HostImage::Fpsimd
        } else {
            let vq = hw.save_sve(&mut self.buffer);
            stats.add(Counter::HostSavesFull, 1);
            stats.add(Counter::BytesMoved, file_bytes(Some(vq)));
            HostImage::Full(vq)
        };
        if streaming {
            hw.stop(Svcr::SM);
        }
        self.live = Live::Nobody;
    }

    /// The host owns the matrix, and its file is not live: ZA to memory if there is any.
    #[cold]
    pub(super) fn save_host_matrix<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        self.host_smcr_el1 = hw.smcr_el1();
        self.host_za = None;
        if hw.svcr().contains(Svcr::ZA) {
            if !self.hint.contains(HostFlags::FOREIGN_FPSTATE) {
                let svq = hw.svq();
                hw.save_za(&mut self.buffer);
                stats.add(Counter::HostZaSaves, 1);
                stats.add(Counter::BytesMoved, matrix_bytes(hw, svq));
                self.host_za = Some(svq);
            }
            hw.stop(Svcr::ZA);
        }
        self.za = Live::Nobody;
    }

    /// Nobody's file is live: the host's, or the reset state, into the registers.
    pub(super) fn load_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        if let Some(vq) = self.host_vq {
            self.displace(hw, vq);
            hw.set_zcr_el1(self.host_zcr_el1);
        }
        let moved = match self.host_image {
            HostImage::Streaming(svq) => {
                assert_eq!((self.za, hw.svq()), (Live::Host, svq), "host image of another SVL");
                hw.start(Svcr::SM);
                hw.load_streaming(&self.buffer, svq);
                file_bytes(Some(svq))
            }
            HostImage::Full(vq) => {
                assert_eq!(Some(vq), self.host_vq, "host image of another VL");
                hw.load_sve(&self.buffer, vq);
                file_bytes(Some(vq))
            }
            HostImage::Fpsimd => {
                // What the image does not hold is zeroed, at the full VL.
                if hw.has_sve() {
                    hw.zero();
                }
                hw.load_fpsimd(&self.buffer);
                file_bytes(None)
            }
            HostImage::None => {
                hw.zero();
                0
            }
        };
        stats.add(Counter::HostLoads, 1);
        stats.add(Counter::BytesMoved, moved);
        self.host_image = HostImage::None;
        self.live = Live::Host;
    }

    /// Nobody owns the matrix: the host gets it, with what it left there.
    #[cold]
    pub(super) fn load_host_matrix<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        let Some(svq) = self.host_svq else { return };
        self.displace_matrix(hw, svq);
        hw.set_smcr_el1(self.host_smcr_el1);
        if let Some(held) = self.host_za.take() {
            assert_eq!(held, svq, "ZA of another SVL");
            hw.start(Svcr::ZA);
            hw.load_za(&self.buffer);
            stats.add(Counter::HostZaLoads, 1);
            stats.add(Counter::BytesMoved, matrix_bytes(hw, svq));
        }
        self.za = Live::Host;
    }

    /// The vCPU's file is live: to its image, and streaming mode is left.
    pub(super) fn save_guest<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) {
        if hw.has_sve() {
            vcpu.zcr_el1 = hw.zcr_el1();
        }
        if vcpu.aarch32() {
            vcpu.fpexc = hw.fpexc();
        }
        let streaming = self.streaming(hw);
        vcpu.svcr.set(Svcr::SM, streaming);
        if streaming {
            hw.save_streaming(&mut vcpu.image);
            hw.stop(Svcr::SM);
        } else if vcpu.vq().is_some() {
            hw.save_sve(&mut vcpu.image);
        } else {
            hw.save_fpsimd(&mut vcpu.image);
        }
        stats.add(Counter::GuestSaves, 1);
        stats.add(Counter::BytesMoved, guest_file_bytes(vcpu));
        self.live = Live::Nobody;
    }

    /// The vCPU owns the matrix, and its file is not live: ZA to its image if there is any.
    #[cold]
    pub(super) fn save_guest_matrix<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) {
        vcpu.smcr_el1 = hw.smcr_el1();
        let there = hw.svcr().contains(Svcr::ZA);
        vcpu.svcr.set(Svcr::ZA, there);
        if there {
            hw.save_za(&mut vcpu.image);
            let svq = hw.svq();
            stats.add(Counter::GuestZaSaves, 1);
            stats.add(Counter::BytesMoved, matrix_bytes(hw, svq));
        }
        if vcpu.policy() == Policy::Scrub {
            // The next owner can't see it, nor what the guest itself left behind at an SMSTOP: SMSTART
            // zeroes it. Speculation might.
            hw.start(Svcr::ZA);
            hw.zero_za();
        }
        hw.stop(Svcr::ZA);
        self.za = Live::Nobody;
    }

    /// Nobody's file is live: the vCPU's into the registers.
    #[inline(always)]
    pub(super) fn load_guest<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &VcpuFp<I>,
        stats: &Stats,
    ) {
        if hw.has_sve() {
            // A vCPU without SVE observes V registers only: the smallest VL serves it.
            self.displace(hw, vcpu.vq().unwrap_or(Vq::MIN));
            hw.set_zcr_el1(vcpu.zcr_el1);
        }
        if vcpu.svcr.contains(Svcr::SM) {
            let svq = hw.svq();
            assert_eq!((self.za, Some(svq)), (Live::Guest, vcpu.svq()), "another SVL");
            hw.start(Svcr::SM);
            hw.load_streaming(&vcpu.image, svq);
        } else if let Some(vq) = vcpu.vq() {
            hw.load_sve(&vcpu.image, vq);
        } else {
            hw.load_fpsimd(&vcpu.image);
        }
        if vcpu.aarch32() {
            hw.set_fpexc(vcpu.fpexc);
        }
        stats.add(Counter::GuestLoads, 1);
        stats.add(Counter::BytesMoved, guest_file_bytes(vcpu));
        self.live = Live::Guest;
    }

    /// Nobody owns the matrix: the vCPU gets it, with what it left there.
    #[cold]
    pub(super) fn load_guest_matrix<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &VcpuFp<I>,
        stats: &Stats,
    ) {
        let Some(svq) = vcpu.svq() else { return };
        self.displace_matrix(hw, svq);
        hw.set_smcr_el1(vcpu.smcr_el1);
        if vcpu.svcr.contains(Svcr::ZA) {
            hw.start(Svcr::ZA);
            hw.load_za(&vcpu.image);
            stats.add(Counter::GuestZaLoads, 1);
            stats.add(Counter::BytesMoved, matrix_bytes(hw, svq));
        }
        self.za = Live::Guest;
    }

    /// The one place where ZCR_EL2 changes: the old file is saved, the new not yet loaded.
    fn displace<H: FpHw<Image = I>>(&mut self, hw: &mut H, clamp: Vq) {
        debug_assert_eq!(self.live, Live::Nobody);
        hw.set_clamp(clamp);
        let got = hw.vq();
        assert_eq!(got, clamp, "ZCR_EL2 did not give the clamp");
    }

    /// The one place where SMCR_EL2 changes: no matrix is there, and nobody is in streaming mode.
    fn displace_matrix<H: FpHw<Image = I>>(&mut self, hw: &mut H, clamp: Vq) {
        debug_assert_eq!(self.za, Live::Nobody);
        hw.set_streaming_clamp(clamp);
        let got = hw.svq();
        assert_eq!(got, clamp, "SMCR_EL2 did not give the clamp");
    }
}

/// Bytes of a vCPU's file as it is in its image.
fn guest_file_bytes<I>(vcpu: &VcpuFp<I>) -> u64 {
    file_bytes(if vcpu.svcr.contains(Svcr::SM) { vcpu.svq() } else { vcpu.vq() })
}

fn matrix_bytes<H: FpHw>(hw: &H, svq: Vq) -> u64 {
    (za_bytes(svq) + if hw.has_zt0() { ZT0_BYTES } else { 0 }) as u64
}
