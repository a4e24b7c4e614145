//! The FP/SIMD/SVE engine: whose registers are live on a CPU, and when they move.
//!
//! # The model
//!
//! A CPU has one FP register file and, under a hypervisor, several parties that believe it to be
//! theirs: the tasks of the host, and guests. Linux settles this with per-task flags
//! (TIF_FOREIGN_FPSTATE: "the registers hold somebody else's state") and per-CPU pointers
//! (`fpsimd_last_state`, KVM's `fp_owner`), all of them writable by the kernel that the hypervisor is
//! to protect guests from. Here the question is answered at EL2 alone, by two values per CPU that
//! only hyp can reach:
//!
//! * `live`: whose state is in the registers: the host's, the loaded vCPU's, or nobody's;
//! * `host_image`: what of the host is in hyp's memory: nothing, V0-V31 only, or a whole SVE image.
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
//! # State table
//!
//! | event | what happens |
//! |---|---|
//! | [`enter`](CpuFp::enter) vCPU v | the hint is kept for this run; FOREIGN drops a held host image; FP is closed unless v is live. Nothing moves |
//! | [`guest_trap`](CpuFp::guest_trap) | open; if the host is live save it (not at all if FOREIGN, V only if SVE_DISCARDED, else all; ZCR_EL1 always); v's clamp, checked with RDVL; load v; `live = Guest` |
//! | v uses what it doesn't have | UNDEFINED for its EL1; nothing changes |
//! | [`exit`](CpuFp::exit) | lazy: nothing moves; FP is closed to the host unless it is live |
//! | [`host_trap`](CpuFp::host_trap) | open; if v is live save it; host's clamp; load the host image, or the reset state if there is none; `live = Host`, the image is consumed |
//! | [`put`](CpuFp::put) | if v is live save it, `live = Nobody` |
//! | [`displace_host`](CpuFp::displace_host) | tests only: if the host is live save it all, zeroes; `live = Nobody` |
//! | [`reset`](CpuFp::reset) | the CPU came out of reset: `live = Nobody`, no host image, everything set whole |
//!
//! Two policies beside the lazy one share all of this and differ in `exit` alone: *eager* does what
//! `host_trap` would do, *scrub* does what `put` would do and zeroes the registers, so that not even
//! speculation past a closed trap (LazyFP, CVE-2018-3665 and its kin) finds a guest's values.
//!
//! # Vector lengths
//!
//! ZCR_EL2 belongs to the live state, not to whoever runs: lowering it destroys upper bits. It is
//! written only between the save of the old state and the load of the new, in `displace`. A save runs
//! at the outgoing owner's ZCR_EL2 and uses the layout of the VL that RDVL reads back then, whatever
//! the owner has done to its own ZCR_EL1, which is itself part of what is switched.
//!
//! # How it is tested
//!
//! The engine knows the hardware only as [`FpHw`]. The real one is assembly
//! (`fp/regs.S`, `fp/hw.rs`); the other is `fp::sim`, a machine that does everything
//! the architecture allows and software tends to forget.

#![forbid(unsafe_code)]

use crate::stats::Stats;
use umbra_shared::call::{Counter, Policy};
use umbra_shared::error::Error;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::sve::FPSIMD_BYTES;
use umbra_shared::vl::{Vq, VqSet};

/// To whom FP, SVE and SME are open on this CPU (CPTR_EL2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nobody: TFP, TZ and TSM trap.
    Closed,
    /// V registers only: TZ and TSM trap.
    Fpsimd,
    /// V and SVE registers: TSM traps.
    Sve,
    /// All that the machine has: the host, and hyp itself while it moves registers.
    Full,
}

/// What the engine asks of the hardware.
///
/// Two implementations exist: the CPU, and the simulated machine of the tests. `Image` is the
/// memory of one saved register file, FPSR and FPCR included.
pub trait FpHw {
    /// Storage of one register file.
    type Image;

    /// Whether the machine has SVE.
    fn has_sve(&self) -> bool;

    /// Whether the machine has SME.
    fn has_sme(&self) -> bool;

    /// Sets CPTR_EL2. Takes effect for hyp's own accesses after [`Self::sync`], for a lower EL at the
    /// next ERET.
    fn set_access(&mut self, access: Access);

    /// ISB.
    fn sync(&mut self);

    /// Sets ZCR_EL2.LEN, and everything else in that register to zero, and synchronises it.
    fn set_clamp(&mut self, clamp: Vq);

    /// The VL in force at EL2, read back with RDVL.
    fn vq(&mut self) -> Vq;

    /// Reads ZCR_EL1.
    fn zcr_el1(&mut self) -> u64;

    /// Writes ZCR_EL1.
    fn set_zcr_el1(&mut self, value: u64);

    /// Reads SVCR: PSTATE.SM and PSTATE.ZA. Only while SME is open.
    fn svcr(&mut self) -> u64;

    /// Z0-Z31, P0-P15, FFR at the VL in force, FPSR and FPCR to `image`.
    fn save_sve(&mut self, image: &mut Self::Image);

    /// The reverse.
    fn load_sve(&mut self, image: &Self::Image);

    /// V0-V31, FPSR and FPCR to `image`.
    fn save_fpsimd(&mut self, image: &mut Self::Image);

    /// The reverse. With SVE open the rest of each Z register becomes zero; P and FFR stay.
    fn load_fpsimd(&mut self, image: &Self::Image);

    /// Zeroes the whole register file at the VL in force (V only without SVE), FPSR and FPCR.
    fn zero(&mut self);
}

/// Whose state is in the registers.
///
/// `Guest` names no vCPU because it can mean only one: the vCPU loaded on this CPU. A put makes it
/// `Nobody` before another can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Live {
    /// That of the vCPU loaded on this CPU.
    Guest,
    /// The host's.
    Host,
    /// Nobody's: whatever is there must not be seen, and need not be kept.
    Nobody,
}

/// What of the host is in hyp's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostImage {
    /// Nothing.
    None,
    /// V0-V31, FPSR, FPCR.
    Fpsimd,
    /// A whole SVE image, laid out for this VQ.
    Full(Vq),
}

/// The FP part of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VcpuFp<I> {
    image: I,
    /// The clamp; `None`: no SVE.
    vq: Option<Vq>,
    zcr_el1: u64,
    policy: Policy,
}

impl<I> VcpuFp<I> {
    /// A vCPU in its reset state. `image` must hold zeroes, and as many bytes as `vq` needs.
    pub const fn new(image: I, vq: Option<Vq>, policy: Policy) -> Self {
        Self { image, vq, zcr_el1: 0, policy }
    }

    /// The vCPU's largest VL; `None`: it has no SVE.
    pub const fn vq(&self) -> Option<Vq> {
        self.vq
    }

    /// When its registers move.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Bytes that a load or save of it moves.
    const fn bytes(&self) -> u64 {
        image_bytes(self.vq)
    }

    const fn open(&self) -> Access {
        if self.vq.is_some() { Access::Sve } else { Access::Fpsimd }
    }
}

/// For the exhaustive check, which fills memory that must not matter with what would be noticed.
#[cfg(test)]
impl<I> VcpuFp<I> {
    pub(super) fn image_mut(&mut self) -> &mut I {
        &mut self.image
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

const fn image_bytes(vq: Option<Vq>) -> u64 {
    match vq {
        Some(vq) => umbra_shared::sve::Layout::new(vq).image_bytes() as u64,
        None => FPSIMD_BYTES as u64,
    }
}

/// Bytes of a host image on a machine whose CPUs have these vector lengths: any CPU saves at the
/// largest VL that it has, whatever VL it has in common with others.
pub fn host_image_bytes(sets: impl Iterator<Item = VqSet>) -> usize {
    image_bytes(sets.filter_map(VqSet::max).max()) as usize
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
    live: Live,
    host_image: HostImage,
    /// Where the host's registers go: sized for the largest VL of any CPU.
    buffer: I,
    /// What the host may use on this CPU; `None`: the machine has no SVE.
    host_vq: Option<Vq>,
    /// The host's ZCR_EL1 while it is not live. Kept whatever a hint says.
    host_zcr_el1: u64,
    /// The hint of the entry now running.
    hint: HostFlags,
}

impl<I> CpuFp<I> {
    /// A CPU that has not been brought up: see [`CpuFp::reset`].
    pub const fn new(buffer: I) -> Self {
        Self {
            live: Live::Nobody,
            host_image: HostImage::None,
            buffer,
            host_vq: None,
            host_zcr_el1: 0,
            hint: HostFlags::empty(),
        }
    }

    /// Whose state is in the registers.
    pub const fn live(&self) -> Live {
        self.live
    }

    /// What of the host is in memory.
    pub const fn host_image(&self) -> HostImage {
        self.host_image
    }

    /// What the host may use on this CPU; `None`: no SVE.
    pub const fn host_vq(&self) -> Option<Vq> {
        self.host_vq
    }

    /// The CPU came out of reset (boot, CPU_ON, power-down suspend): the registers hold nothing of
    /// anybody, and nothing hyp set before is still set. The host finds the reset state at its first
    /// access. `host_vq` is the host's clamp here, which an image in `buffer` must be able to hold.
    pub fn reset<H: FpHw<Image = I>>(&mut self, hw: &mut H, host_vq: Option<Vq>) {
        self.live = Live::Nobody;
        self.host_image = HostImage::None;
        self.host_vq = host_vq;
        self.host_zcr_el1 = 0;
        self.hint = HostFlags::empty();
        hw.set_access(Access::Full);
        hw.sync();
        if let Some(vq) = host_vq {
            hw.set_clamp(vq);
            hw.set_zcr_el1(0);
        }
        hw.set_access(Access::Closed);
    }

    /// Whether this CPU can provide exactly the vCPU's vector length.
    ///
    /// # Errors
    ///
    /// [`Error::VlMismatch`] if not: a vCPU is never silently narrowed.
    pub fn check_load(vcpu: &VcpuFp<I>, cpu_vqs: VqSet) -> Result<(), Error> {
        match vcpu.vq {
            Some(vq) if !cpu_vqs.contains(vq) => Err(Error::VlMismatch),
            _ => Ok(()),
        }
    }

    /// Before an entry into the loaded vCPU. `hint` is the one snapshot of the host's word that
    /// this run uses.
    ///
    /// # Errors
    ///
    /// [`Error::SvcrLive`] if the host has PSTATE.SM or PSTATE.ZA set, which hyp does not preserve;
    /// nothing has changed then.
    #[inline]
    pub fn enter<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &VcpuFp<I>,
        hint: HostFlags,
        stats: &Stats,
    ) -> Result<(), Error> {
        self.hint = hint;
        match self.live {
            Live::Guest => {
                if hint.contains(HostFlags::FOREIGN_FPSTATE) {
                    self.host_image = HostImage::None;
                }
                stats.add(Counter::GuestLoadsAvoided, 1);
                hw.set_access(vcpu.open());
            }
            Live::Nobody => {
                if hint.contains(HostFlags::FOREIGN_FPSTATE) {
                    self.host_image = HostImage::None;
                }
                hw.set_access(Access::Closed);
            }
            Live::Host => {
                // SVCR may be read here because SME is open while the host is live.
                if hw.has_sme() && hw.svcr() != 0 {
                    return Err(Error::SvcrLive);
                }
                hw.set_access(Access::Closed);
            }
        }
        Ok(())
    }

    /// Whether a trap of the loaded vCPU's makes its state live, rather than being UNDEFINED: it has what
    /// it used, and was kept from it because another's state is live.
    #[inline]
    pub fn guest_opens(&self, vcpu: &VcpuFp<I>, class: TrapClass) -> bool {
        let has_it = match class {
            TrapClass::Fpsimd => true,
            TrapClass::Sve => vcpu.vq.is_some(),
            TrapClass::Sme => false,
        };
        // A trap with the vCPU live is for something that stays closed to it.
        has_it && self.live != Live::Guest
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
        if self.live == Live::Host {
            self.save_host(hw, stats);
        }
        self.live = Live::Nobody;
        if hw.has_sve() {
            // A vCPU without SVE observes V registers only: the smallest VL serves it.
            self.displace(hw, vcpu.vq.unwrap_or(Vq::MIN));
            hw.set_zcr_el1(vcpu.zcr_el1);
        }
        if vcpu.vq.is_some() {
            hw.load_sve(&vcpu.image);
        } else {
            hw.load_fpsimd(&vcpu.image);
        }
        stats.add(Counter::GuestLoads, 1);
        stats.add(Counter::BytesMoved, vcpu.bytes());
        self.live = Live::Guest;
        hw.set_access(vcpu.open());
        GuestTrap::Opened
    }

    /// The loaded vCPU exits to the host. Returns what to publish in hyp's word.
    #[inline]
    pub fn exit<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) -> HypFlags {
        if self.live == Live::Guest && vcpu.policy != Policy::Lazy {
            self.leave_eagerly(hw, vcpu, stats);
        } else {
            stats.add(Counter::HostLoadsAvoided, 1);
            hw.set_access(self.host_access());
        }
        self.flags()
    }

    /// The exit of a policy other than lazy, with the vCPU live.
    fn leave_eagerly<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) {
        hw.set_access(Access::Full);
        hw.sync();
        self.save_guest(hw, vcpu, stats);
        match vcpu.policy {
            Policy::Scrub => {
                // At the vCPU's clamp, which is still in force: every bit it could have set.
                hw.zero();
            }
            Policy::Eager | Policy::Lazy => self.load_host(hw, stats),
        }
        hw.set_access(self.host_access());
    }

    /// The host trapped on FP, SVE or SME. `loaded` is the vCPU loaded on this CPU. Returns what to
    /// publish in its hyp word.
    pub fn host_trap<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        loaded: Option<&mut VcpuFp<I>>,
        stats: &Stats,
    ) -> HypFlags {
        stats.add(Counter::HostFpTraps, 1);
        hw.set_access(Access::Full);
        hw.sync();
        if let (Live::Guest, Some(vcpu)) = (self.live, loaded) {
            self.save_guest(hw, vcpu, stats);
        }
        if self.live != Live::Host {
            self.load_host(hw, stats);
        }
        hw.set_access(Access::Full);
        self.flags()
    }

    /// The vCPU is unbound from this CPU. Returns what to publish in its hyp word.
    pub fn put<H: FpHw<Image = I>>(
        &mut self,
        hw: &mut H,
        vcpu: &mut VcpuFp<I>,
        stats: &Stats,
    ) -> HypFlags {
        if self.live == Live::Guest {
            hw.set_access(Access::Full);
            hw.sync();
            self.save_guest(hw, vcpu, stats);
            hw.set_access(Access::Closed);
        }
        self.flags()
    }

    /// Takes the host's registers away as a guest would that uses FP, and leaves zeroes behind: its next
    /// access traps and brings them back. Nothing happens while the host has PSTATE.SM or PSTATE.ZA set,
    /// which hyp does not preserve.
    pub fn displace_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        // SVCR may be read here because SME is open while the host is live.
        if self.live != Live::Host || (hw.has_sme() && hw.svcr() != 0) {
            return;
        }
        self.hint = HostFlags::empty();
        hw.set_access(Access::Full);
        hw.sync();
        self.save_host(hw, stats);
        hw.zero();
        self.live = Live::Nobody;
        hw.set_access(Access::Closed);
    }

    const fn host_access(&self) -> Access {
        match self.live {
            Live::Host => Access::Full,
            Live::Guest | Live::Nobody => Access::Closed,
        }
    }

    fn flags(&self) -> HypFlags {
        let mut flags = HypFlags::empty();
        flags.set(HypFlags::GUEST_FP_LOADED, self.live == Live::Guest);
        flags.set(
            HypFlags::HOST_FP_PRESERVED,
            self.live == Live::Host || self.host_image != HostImage::None,
        );
        flags
    }

    /// Host live, FP open: as much of it to memory as the hint asks for.
    #[inline(always)]
    fn save_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        if hw.has_sve() {
            self.host_zcr_el1 = hw.zcr_el1();
        }
        self.host_image = if self.hint.contains(HostFlags::FOREIGN_FPSTATE) {
            stats.add(Counter::HostSavesAvoided, 1);
            HostImage::None
        } else if !hw.has_sve() || self.hint.contains(HostFlags::SVE_DISCARDED) {
            hw.save_fpsimd(&mut self.buffer);
            stats.add(Counter::HostSavesFpsimd, 1);
            stats.add(Counter::BytesMoved, image_bytes(None));
            HostImage::Fpsimd
        } else {
            let vq = hw.vq();
            hw.save_sve(&mut self.buffer);
            stats.add(Counter::HostSavesFull, 1);
            stats.add(Counter::BytesMoved, image_bytes(Some(vq)));
            HostImage::Full(vq)
        };
    }

    /// FP open, nobody live: the host's state, or the reset state, into the registers.
    fn load_host<H: FpHw<Image = I>>(&mut self, hw: &mut H, stats: &Stats) {
        if let Some(vq) = self.host_vq {
            self.displace(hw, vq);
            hw.set_zcr_el1(self.host_zcr_el1);
        }
        let moved = match self.host_image {
            HostImage::Full(vq) => {
                assert_eq!(Some(vq), self.host_vq, "host image of another VL");
                hw.load_sve(&self.buffer);
                image_bytes(Some(vq))
            }
            HostImage::Fpsimd => {
                // What the image does not hold is zeroed, at the full VL.
                if hw.has_sve() {
                    hw.zero();
                }
                hw.load_fpsimd(&self.buffer);
                image_bytes(None)
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

    /// FP open, the vCPU live: its state to its image.
    fn save_guest<H: FpHw<Image = I>>(&mut self, hw: &mut H, vcpu: &mut VcpuFp<I>, stats: &Stats) {
        if hw.has_sve() {
            vcpu.zcr_el1 = hw.zcr_el1();
        }
        if vcpu.vq.is_some() {
            hw.save_sve(&mut vcpu.image);
        } else {
            hw.save_fpsimd(&mut vcpu.image);
        }
        stats.add(Counter::GuestSaves, 1);
        stats.add(Counter::BytesMoved, vcpu.bytes());
        self.live = Live::Nobody;
    }

    /// The one place where ZCR_EL2 changes: the old state is saved, the new not yet loaded.
    fn displace<H: FpHw<Image = I>>(&mut self, hw: &mut H, clamp: Vq) {
        debug_assert_eq!(self.live, Live::Nobody);
        hw.set_clamp(clamp);
        let got = hw.vq();
        assert_eq!(got, clamp, "ZCR_EL2 did not give the clamp");
    }
}
