//! What the engine asks of the hardware.

#![forbid(unsafe_code)]

use umbra_shared::flag_set;
use umbra_shared::vl::Vq;

/// To whom FP, SVE and SME are open on this CPU (CPTR_EL2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Access {
    /// Nobody: TFP, TZ and TSM trap.
    Closed,
    /// V registers only: TZ and TSM trap.
    Fpsimd,
    /// V and, where there is SVE, SVE registers: TSM traps.
    Sve,
    /// V and SME: TZ traps, which is for SVE outside streaming mode.
    Sme,
    /// All that the machine has.
    Full,
}

flag_set! {
    /// SVCR: the two bits of PSTATE that SME adds.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Svcr: u64 {
        /// Streaming mode: Z, P and FFR have the SVL. A change zeroes them and FPMR, and sets FPSR.
        const SM = 1 << 0;
        /// ZA and ZT0 are there. They are zero when this becomes 1.
        const ZA = 1 << 1;
    }
}

/// What the engine asks of the hardware.
///
/// Two implementations exist: the CPU, and the simulated machine of the tests. `Image` is the memory of one
/// context's registers ([`umbra_shared::sme::Storage`]), FPSR, FPCR and FPMR included.
pub trait FpHw {
    /// Storage of one context's registers.
    type Image;

    /// Whether the machine has SVE.
    fn has_sve(&self) -> bool;

    /// Whether the machine has SME.
    fn has_sme(&self) -> bool;

    /// Whether the machine has ZT0.
    fn has_zt0(&self) -> bool;

    /// Sets CPTR_EL2. Takes effect for hyp's own accesses after [`Self::sync`], for a lower EL at the
    /// next ERET.
    fn set_access(&mut self, access: Access);

    /// ISB.
    fn sync(&mut self);

    /// Sets ZCR_EL2.LEN, and everything else in that register to zero, and synchronises it.
    fn set_clamp(&mut self, clamp: Vq);

    /// The VL in force at EL2 outside streaming mode, read back with RDVL.
    fn vq(&mut self) -> Vq;

    /// Reads ZCR_EL1.
    fn zcr_el1(&mut self) -> u64;

    /// Writes ZCR_EL1.
    fn set_zcr_el1(&mut self, value: u64);

    /// Sets SMCR_EL2 whole: this LEN, FA64 and EZT0 where the machine has them; and synchronises it.
    fn set_streaming_clamp(&mut self, clamp: Vq);

    /// The SVL in force at EL2, read back with RDSVL.
    fn svq(&mut self) -> Vq;

    /// Reads SMCR_EL1.
    fn smcr_el1(&mut self) -> u64;

    /// Writes SMCR_EL1.
    fn set_smcr_el1(&mut self, value: u64);

    /// Reads SVCR. Only while SME is open.
    fn svcr(&mut self) -> Svcr;

    /// SMSTART: sets these bits of SVCR.
    fn start(&mut self, bits: Svcr);

    /// SMSTOP: clears these bits of SVCR.
    fn stop(&mut self, bits: Svcr);

    /// Z0-Z31, P0-P15, FFR at the VL in force, FPSR, FPCR and FPMR to `image`. Returns the VL.
    fn save_sve(&mut self, image: &mut Self::Image) -> Vq;

    /// The reverse. `vq` is the VL in force, as [`Self::vq`] gave it.
    fn load_sve(&mut self, image: &Self::Image, vq: Vq);

    /// The same in streaming mode, at the SVL in force; FFR only with FEAT_SME_FA64: without it nobody
    /// can see it there, and it is zero when streaming mode is left. Returns the SVL.
    fn save_streaming(&mut self, image: &mut Self::Image) -> Vq;

    /// The reverse, in streaming mode. `svq` is the SVL in force, as [`Self::svq`] gave it.
    fn load_streaming(&mut self, image: &Self::Image, svq: Vq);

    /// V0-V31, FPSR, FPCR and FPMR to `image`.
    fn save_fpsimd(&mut self, image: &mut Self::Image);

    /// The reverse. With SVE open the rest of each Z register becomes zero; P and FFR stay.
    fn load_fpsimd(&mut self, image: &Self::Image);

    /// Zeroes Z, P and FFR at the VL in force (V only without SVE), FPSR, FPCR and FPMR.
    fn zero(&mut self);

    /// ZA at the SVL in force, and ZT0, to `image`. PSTATE.ZA is 1.
    fn save_za(&mut self, image: &mut Self::Image);

    /// The reverse.
    fn load_za(&mut self, image: &Self::Image);

    /// Zeroes ZA and ZT0. PSTATE.ZA is 1.
    fn zero_za(&mut self);

    /// Reads FPEXC32_EL2. Only on a CPU with AArch32, while FP is open.
    fn fpexc(&mut self) -> u64;

    /// Writes FPEXC32_EL2, likewise.
    fn set_fpexc(&mut self, value: u64);
}
