//! The FP/SIMD/SVE/SME engine: whose registers are live on a CPU, and when they move.
//!
//! # The model
//!
//! A CPU has one FP register file and, under a hypervisor, several parties that believe it to be
//! theirs: the tasks of the host, and guests. Linux settles this with per-task flags
//! (TIF_FOREIGN_FPSTATE: "the registers hold somebody else's state") and per-CPU pointers
//! (`fpsimd_last_state`, KVM's `fp_owner`), all of them writable by the kernel that the hypervisor is
//! to protect guests from. Here the question is answered at EL2 alone, by values per CPU that only hyp
//! can reach:
//!
//! * `live`: whose file (V, Z, P, FFR, FPSR, FPCR, FPMR) is in the registers: the host's, the loaded
//!   vCPU's, or nobody's;
//! * `za`: the same of the matrix (ZA, ZT0) and of SMCR, which says how large it is;
//! * `host_image`, `host_za`: what of the host is in hyp's memory: nothing, V0-V31 only, or all of
//!   the file; ZA or none.
//!
//! To hyp the host is one party, whatever tasks it runs: the host's own kernel switches its tasks'
//! registers as it always did, and need not know that in between a guest had them.
//!
//! The switch is lazy in both directions. Entering or leaving a guest moves no register file; it only
//! closes FP to whoever finds another's state there. Closed means TFP, TZ and TSM together, for the
//! host as for guests, so that displaced state can't be touched at all: with TSM open, an SMSTART at
//! EL1 would wipe it without ever trapping. A guest that uses FP thus costs the host nothing until the
//! host itself uses FP, and a guest that doesn't use FP costs nobody anything.
//!
//! The matrix, up to 64 KiB of it, moves even less: it stays where it is, with PSTATE.ZA, until
//! somebody else uses SME itself. TSM is open to the owner of both only.
//!
//! Streaming mode is different: PSTATE.SM is 1 if and only if who runs has set it. No guest runs in the
//! host's, and hyp never takes an SVL for a VL. But neither can somebody in streaming mode run without it
//! until its first trap: EL1's own traps come first, and they are SMEN's in streaming mode and ZEN's
//! outside (Arm ARM, CheckStreamingSVEEnabled). So a file in streaming mode is moved at entries and
//! exits: saved and the mode left when its owner stops running, loaded when it runs again.
//!
//! # State table
//!
//! | event | what happens |
//! |---|---|
//! | [`enter`](CpuFp::enter) vCPU v | the hint is kept for this run; FOREIGN drops what is held of the host; a host in streaming mode is saved; a v in streaming mode is loaded. FP is closed unless v is live. Nothing else moves |
//! | [`guest_trap`](CpuFp::guest_trap) | open; if the host is live save it (not at all if FOREIGN, V only if SVE_DISCARDED, else all; ZCR_EL1 always). If v uses SME: the host's ZA, if it has any, and SMCR_EL1; v's SVL, checked with RDSVL; v's ZA; `za = Guest`. v's VL, checked with RDVL; load v; `live = Guest` |
//! | v uses what it doesn't have | UNDEFINED for its EL1; nothing changes |
//! | [`exit`](CpuFp::exit) | lazy: nothing moves, but a v in streaming mode is saved, and a host in streaming mode is loaded; FP is closed to the host unless it is live |
//! | [`host_trap`](CpuFp::host_trap) | open; if v is live save it; if the host uses SME: v's ZA, then the host's SVL and ZA; `za = Host`. Host's VL; load the host image, or the reset state if there is none; `live = Host`, the image is consumed |
//! | [`put`](CpuFp::put) | save what of v is live, file and matrix: `Nobody` |
//! | [`displace_host`](CpuFp::displace_host) | tests only: if the host is live save it all, zeroes; `Nobody`, but for a host in streaming mode, which is loaded again |
//! | [`reset`](CpuFp::reset) | the CPU came out of reset: `Nobody`, no host image, SVCR zero, everything set whole |
//!
//! Two policies beside the lazy one share all of this and differ in `exit` alone: *eager* does what
//! `host_trap` would do if anything of the host is kept, and else what `put` would do; *scrub* does what `put` would do and zeroes the registers, so that not even
//! speculation past a closed trap (LazyFP, CVE-2018-3665 and its kin) finds a guest's values.
//!
//! # Vector lengths
//!
//! ZCR_EL2 belongs to the live file and SMCR_EL2 to the matrix, not to whoever runs: lowering them destroys
//! upper bits. Each is written only between the save of the old state and the load of the new
//! (`moves.rs`). A save runs at the outgoing owner's clamp and uses the layout of the VL that
//! RDVL (or RDSVL) reads back then, whatever the owner has done to its own ZCR_EL1 and SMCR_EL1, which
//! are themselves part of what is switched.
//!
//! # AArch32 guests
//!
//! TFP reaches EL2 only where the guest's own FPEXC enables FP. So FPEXC32_EL2.EN is 1 while FP is closed
//! to an AArch32 guest, and at no other time: its own value is loaded with its registers. (Linux once
//! forced it for too long, and lost VFP state: the fixes for v4.19.) The matrix stays where it is while such
//! a guest runs, as with any other: PSTATE.ZA, ZA and ZT0 do not change in AArch32 state (Arm ARM D1.10.1.6).
//! PSTATE.SM is clear then, so that the change of state resets nothing.
//!
//! # How it is tested
//!
//! The engine knows the hardware only as [`FpHw`]. The real one is assembly
//! (`fp/regs.S`, `fp/hw.rs`); the other is `fp::sim`, a machine that does everything
//! the architecture allows and software tends to forget.

#![forbid(unsafe_code)]

use super::hardware::{Access, FpHw, Svcr};
use super::vcpu::{FPEXC_EN, Live, VcpuFp};
use crate::arch::stats::Stats;
use umbra_shared::call::{Counter, Policy};
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::sme::Storage;
use umbra_shared::vl::{Vq, VqSet};

/// What of the host's file is in hyp's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostImage {
    /// Nothing.
    None,
    /// V0-V31, FPSR, FPCR.
    Fpsimd,
    /// Z, P and FFR, laid out for this VQ.
    Full(Vq),
    /// The same of streaming mode, laid out for this SVL's VQ.
    Streaming(Vq),
}

/// Memory for the host's registers on a machine whose CPUs have these VLs and SVLs: any CPU saves at the
/// largest that it has, whatever it has in common with others.
pub fn host_storage(
    vqs: impl Iterator<Item = VqSet>,
    svqs: impl Iterator<Item = VqSet>,
) -> Storage {
    Storage::new(vqs.filter_map(VqSet::max).max(), svqs.filter_map(VqSet::max).max())
}

/// What an FP trap of a guest led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestTrap {
    /// Its state is live; let it execute the instruction again.
    Opened,
    /// It has no such instruction: UNDEFINED at its EL1.
    Undefined,
}

/// Which trap it was (ESR_EL2.EC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapClass {
    /// EC 0x07: Advanced SIMD or floating-point.
    Fpsimd,
    /// EC 0x19: SVE.
    Sve,
    /// EC 0x1d: SME.
    Sme,
}

/// The FP state of one CPU, private to hyp.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CpuFp<I> {
    pub(super) live: Live,
    pub(super) za: Live,
    pub(super) host_image: HostImage,
    /// ZA and ZT0 of the host are in memory, laid out for this SVL's VQ.
    pub(super) host_za: Option<Vq>,
    /// Where the host's registers go: sized for the largest VL and SVL of any CPU.
    pub(super) buffer: I,
    /// What the host may use on this CPU; `None`: the machine has no SVE.
    pub(super) host_vq: Option<Vq>,
    /// The same of SME.
    pub(super) host_svq: Option<Vq>,
    /// The host's ZCR_EL1 while it is not live. Kept whatever a hint says.
    pub(super) host_zcr_el1: u64,
    /// The same of SMCR_EL1.
    pub(super) host_smcr_el1: u64,
    /// The hint of the entry now running.
    pub(super) hint: HostFlags,
    /// What FPEXC32_EL2 holds: EN. Read only where there is AArch32.
    fpexc_enabled: bool,
}

impl<I> CpuFp<I> {
    /// A CPU that has not been brought up: see [`CpuFp::reset`].
    pub const fn new(buffer: I) -> Self {
        Self {
            live: Live::Nobody,
            za: Live::Nobody,
            host_image: HostImage::None,
            host_za: None,
            buffer,
            host_vq: None,
            host_svq: None,
            host_zcr_el1: 0,
            host_smcr_el1: 0,
            hint: HostFlags::empty(),
            fpexc_enabled: false,
        }
    }

    /// Whose file is in the registers.
    pub const fn live(&self) -> Live {
        self.live
    }

    /// Whose matrix is in the registers, or would be if it had one.
    pub const fn za(&self) -> Live {
        self.za
    }

    /// What of the host's file is in memory.
    pub const fn host_image(&self) -> HostImage {
        self.host_image
    }

    /// Whether ZA of the host is in memory, and for which SVL.
    pub const fn host_za(&self) -> Option<Vq> {
        self.host_za
    }

    /// What the host may use on this CPU; `None`: no SVE.
    pub const fn host_vq(&self) -> Option<Vq> {
        self.host_vq
    }

    /// What the host may use of SME on this CPU; `None`: no SME.
    pub const fn host_svq(&self) -> Option<Vq> {
        self.host_svq
    }

    /// The CPU came out of reset (boot, CPU_ON, power-down suspend): the registers hold nothing of
    /// anybody, and nothing hyp set before is still set. The host finds the reset state at its first
    /// access. `host` is its clamps here, which an image in `buffer` must be able to hold.
    pub fn reset<H: FpHw<Image = I>>(&mut self, hw: &mut H, host: Storage) {
        self.live = Live::Nobody;
        self.za = Live::Nobody;
        self.host_image = HostImage::None;
        self.host_za = None;
        self.host_vq = host.vq;
        self.host_svq = host.svq;
        self.host_zcr_el1 = 0;
        self.host_smcr_el1 = 0;
        self.hint = HostFlags::empty();
        self.fpexc_enabled = false;
        hw.set_access(Access::Full);
        hw.sync();
        if hw.has_sme() {
            hw.stop(Svcr::all());
        }
        if let Some(svq) = host.svq {
            hw.set_streaming_clamp(svq);
            hw.set_smcr_el1(0);
        }
        if let Some(vq) = host.vq {
            hw.set_clamp(vq);
            hw.set_zcr_el1(0);
        }
        hw.set_access(Access::Closed);
    }

    /// Before an entry into the loaded vCPU. `hint` is the one snapshot of the host's word that
    /// this run uses.
    #[inline(always)]
    pub fn enter<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &VcpuFp<I>,
        hint: HostFlags,
        stats: &Stats,
    ) {
        self.hint = hint;
        if self.live == Live::Host {
            // SVCR may be read here because SME is open while the host is live and has the matrix.
            if hw.has_sme() && self.za == Live::Host && hw.svcr().contains(Svcr::SM) {
                self.leave_streaming(hw, stats);
            }
        } else if hint.contains(HostFlags::FOREIGN_FPSTATE) {
            self.host_image = HostImage::None;
            self.host_za = None;
        }
        if self.live == Live::Guest {
            stats.add(Counter::GuestLoadsAvoided, 1);
            hw.set_access(vcpu.open(self.za));
        } else if vcpu.svcr.contains(Svcr::SM) {
            self.enter_streaming(hw, vcpu, stats);
        } else {
            if vcpu.aarch32() {
                self.close_to_aarch32(hw);
            }
            hw.set_access(Access::Closed);
        }
    }

    /// The host is in streaming mode, and a guest is about to run.
    #[cold]
    fn leave_streaming<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        hw.set_access(Access::Full);
        hw.sync();
        self.save_host(hw, stats);
    }

    /// A vCPU in streaming mode is about to run, and is not live.
    #[cold]
    fn enter_streaming<H: FpHw<Image = I>>(&mut self, hw: &mut H, vcpu: &VcpuFp<I>, stats: &Stats) {
        hw.set_access(Access::Full);
        hw.sync();
        self.bring_guest(hw, vcpu, true, stats);
        hw.set_access(vcpu.open(self.za));
    }

    /// An AArch32 vCPU is about to run with FP closed.
    #[cold]
    fn close_to_aarch32<H: FpHw<Image = I>>(&mut self, hw: &mut H) {
        if self.fpexc_enabled {
            return;
        }
        // TFP is for EL2's own accesses to FPEXC32_EL2, too.
        hw.set_access(Access::Full);
        hw.sync();
        hw.set_fpexc(FPEXC_EN);
        self.fpexc_enabled = true;
    }

    /// Whether a trap of the loaded vCPU's makes its state live, rather than being UNDEFINED: it has what
    /// it used, and was kept from it because another's state is live.
    #[inline]
    pub fn guest_opens(&self, vcpu: &VcpuFp<I>, class: TrapClass) -> bool {
        // A trap with the vCPU live is for something that stays closed to it.
        match class {
            TrapClass::Fpsimd => self.live != Live::Guest,
            TrapClass::Sve => self.live != Live::Guest && vcpu.vq().is_some(),
            TrapClass::Sme => {
                vcpu.svq().is_some() && (self.live != Live::Guest || self.za != Live::Guest)
            }
        }
    }

    /// The loaded vCPU trapped on FP, SVE or SME.
    pub fn guest_trap<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        class: TrapClass,
        stats: &Stats,
    ) -> GuestTrap {
        if !self.guest_opens(vcpu, class) {
            return GuestTrap::Undefined;
        }
        stats.add(Counter::GuestFpTraps, 1);
        hw.set_access(Access::Full);
        hw.sync();
        self.bring_guest(hw, vcpu, class == TrapClass::Sme || vcpu.uses_sme(), stats);
        hw.set_access(vcpu.open(self.za));
        GuestTrap::Opened
    }

    /// The vCPU's file becomes live, and its matrix if it is to.
    #[inline(always)]
    fn bring_guest<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &VcpuFp<I>,
        matrix: bool,
        stats: &Stats,
    ) {
        if self.live == Live::Host {
            self.save_host(hw, stats);
        }
        if matrix && self.za != Live::Guest {
            if self.za == Live::Host {
                self.save_host_matrix(hw, stats);
            }
            self.load_guest_matrix(hw, vcpu, stats);
        }
        if self.live != Live::Guest {
            self.load_guest(hw, vcpu, stats);
            self.fpexc_enabled = false;
        }
    }

    /// The loaded vCPU exits to the host. Returns what to publish in hyp's word.
    #[inline]
    pub fn exit<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) -> HypFlags {
        let moves = self.live == Live::Guest && vcpu.policy() != Policy::Lazy;
        if !moves && self.za != Live::Guest && !self.host_streams() {
            stats.add(Counter::HostLoadsAvoided, 1);
            hw.set_access(self.host_access());
        } else {
            self.leave(hw, vcpu, stats);
        }
        self.flags()
    }

    /// Whether the host is in streaming mode and its file in memory.
    const fn host_streams(&self) -> bool {
        matches!(self.host_image, HostImage::Streaming(_))
    }

    /// An exit that may have to move something: of a policy other than lazy, with SME the vCPU's, or
    /// to a host in streaming mode.
    fn leave<H: FpHw<Image = I>>(&mut self, hw: &mut H, vcpu: &mut VcpuFp<I>, stats: &Stats) {
        hw.set_access(Access::Full);
        hw.sync();
        let streams = self.host_streams();
        let matrix = self.za == Live::Guest || streams;
        match vcpu.policy() {
            Policy::Lazy if !streams => {
                // The matrix stays where it is; streaming mode does not.
                if self.live == Live::Guest
                    && self.za == Live::Guest
                    && hw.svcr().contains(Svcr::SM)
                {
                    self.save_guest(hw, vcpu, stats);
                }
                stats.add(Counter::HostLoadsAvoided, 1);
            }
            Policy::Lazy => {
                self.take_out(hw, vcpu, stats);
                self.bring_host(hw, true, stats);
            }
            Policy::Eager => {
                self.take_out(hw, vcpu, stats);
                // If nothing is kept there is nothing to bring back: with the reset state in the registers
                // hyp's word would say that they hold what the host left there.
                if self.preserved() {
                    self.bring_host(hw, matrix, stats);
                }
            }
            Policy::Scrub => {
                self.take_out(hw, vcpu, stats);
                if self.live == Live::Nobody {
                    // At the vCPU's clamp, which is still in force: every bit it could have set.
                    hw.zero();
                }
                if streams {
                    self.bring_host(hw, true, stats);
                }
            }
        }
        hw.set_access(self.host_access());
    }

    /// Whether a trap of the host's makes its state live. Otherwise all that it has was open to it.
    pub fn host_opens(&self, class: TrapClass) -> bool {
        let matrix = class == TrapClass::Sme && self.host_svq.is_some() && self.za != Live::Host;
        self.live != Live::Host || matrix
    }

    /// The host trapped on FP, SVE or SME. `loaded` is the vCPU loaded on this CPU. Returns what to
    /// publish in its hyp word.
    pub fn host_trap<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        loaded: Option<&mut VcpuFp<I>>,
        class: TrapClass,
        stats: &Stats,
    ) -> HypFlags {
        stats.add(Counter::HostFpTraps, 1);
        hw.set_access(Access::Full);
        hw.sync();
        let matrix = class == TrapClass::Sme;
        if let Some(vcpu) = loaded {
            if self.live == Live::Guest {
                self.save_guest(hw, vcpu, stats);
            }
            if matrix && self.za == Live::Guest {
                self.save_guest_matrix(hw, vcpu, stats);
            }
        }
        self.bring_host(hw, matrix, stats);
        hw.set_access(self.host_access());
        self.flags()
    }

    /// The vCPU is unbound from this CPU. Returns what to publish in its hyp word.
    pub fn put<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) -> HypFlags {
        if self.live == Live::Guest || self.za == Live::Guest {
            hw.set_access(Access::Full);
            hw.sync();
            self.take_out(hw, vcpu, stats);
            hw.set_access(self.host_access());
        }
        self.flags()
    }

    /// Takes the host's registers away as a guest would that uses all there is, and leaves zeroes behind:
    /// its next access traps and brings them back. A host in streaming mode gets them back at once.
    pub fn displace_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        if self.live != Live::Host {
            return;
        }
        self.hint = HostFlags::empty();
        hw.set_access(Access::Full);
        hw.sync();
        self.save_host(hw, stats);
        if self.za == Live::Host {
            self.save_host_matrix(hw, stats);
        }
        hw.zero();
        if self.host_streams() {
            self.bring_host(hw, true, stats);
        }
        hw.set_access(self.host_access());
    }

    /// All of the vCPU's that is in registers goes to memory.
    fn take_out<H: FpHw<Image = I>>(&mut self, hw: &mut H, vcpu: &mut VcpuFp<I>, stats: &Stats) {
        if self.live == Live::Guest {
            self.save_guest(hw, vcpu, stats);
        }
        if self.za == Live::Guest {
            self.save_guest_matrix(hw, vcpu, stats);
        }
    }

    /// Nothing of a vCPU's is in the way: the host's file becomes live, and its matrix if it is to.
    fn bring_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, matrix: bool, stats: &Stats) {
        if matrix && self.za != Live::Host {
            self.load_host_matrix(hw, stats);
        }
        if self.live != Live::Host {
            self.load_host(hw, stats);
        }
    }

    /// SME is open to a host that has both: with the matrix alone, SMSTART would zero a file that is
    /// another's; with the file alone, the SVL would be.
    fn host_access(&self) -> Access {
        match (self.live, self.za) {
            (Live::Host, Live::Host) => Access::Full,
            (Live::Host, _) => Access::Sve,
            _ => Access::Closed,
        }
    }

    /// Whether the host's file is in the registers or in memory.
    fn preserved(&self) -> bool {
        self.live == Live::Host || self.host_image != HostImage::None
    }

    /// What hyp's word says of this: published in the page of the loaded vCPU when it is loaded, and after
    /// each of [`exit`](Self::exit), [`host_trap`](Self::host_trap) and [`put`](Self::put). Nothing else
    /// changes it while the host runs, so that the word of a loaded vCPU is true at any time.
    pub fn flags(&self) -> HypFlags {
        let mut flags = HypFlags::empty();
        flags.set(HypFlags::GUEST_FP_LOADED, self.live == Live::Guest);
        flags.set(HypFlags::HOST_FP_PRESERVED, self.preserved());
        flags
    }
}

#[cfg(test)]
impl<I> CpuFp<I> {
    pub(super) fn buffer_mut(&mut self) -> &mut I {
        &mut self.buffer
    }

    pub(super) fn hint_mut(&mut self) -> &mut HostFlags {
        &mut self.hint
    }
}
