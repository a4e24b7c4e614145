//! Owners of registers whose streaming mode and ZA come and go: the host of each CPU, and puppets.
//!
//! A [`Model`] says what must be in their registers, so that a test only says what happens: it fills,
//! changes modes and lengths, lets others run, and looks.

use crate::{
    context::{context, effective_streaming},
    host::OWNER,
    ledger,
    puppet::{self, Machine, Puppet, Routine},
};
use umbra_host::kernel::{MAX_CPUS, smp, sync::Lock};
use umbra_patterns::{
    model::{Has, Model, SM, ZA},
    pattern::{self, Mismatch},
    regs::{self, Registers, sme},
    tag::Tag,
};
use umbra_shared::{
    call::{Policy, VmConfig},
    sme::{ZT0_BYTES, za_bytes},
    sve::{FPSIMD_BYTES, Layout},
    vcpu::VcpuFeatures,
    vl::Vq,
};

/// Every combination of PSTATE.SM and PSTATE.ZA.
pub const MODES: [u64; 4] = [0, SM, ZA, SM | ZA];

static HOSTS: [Lock<Registers>; MAX_CPUS] =
    [const { Lock::new(Registers::new(0, None)) }; MAX_CPUS];

/// What the CPUs have beside V, Z and P registers.
pub fn has() -> Has {
    Has { fpmr: sme::has_fpmr(), fa64: sme::has_fa64(), zt0: sme::has_zt0() }
}

/// The host of this CPU, from a known state on: in this mode, at the largest vector lengths, everything
/// filled.
pub fn host(svcr: u64) {
    host_at(svcr, Vq::MAX, Vq::MAX);
}

/// The same at these vector lengths, or what they come to.
pub fn host_at(svcr: u64, vq: Vq, svq: Vq) {
    let mut registers = HOSTS[smp::cpu()].lock();
    if sme::has_sme() {
        // Into streaming mode and out of it: nothing of an earlier test is left at any length.
        sme::set_svcr(SM);
        sme::set_svcr(0);
        sme::set_svl(svq);
    }
    let vq = context().sve().then(|| regs::set_vl(vq));
    registers.model().set_owner(OWNER + smp::cpu() as u16);
    registers.model().reset(vq, None);
    registers.discover();
    // Each mode has registers of its own, which are filled before they are left.
    registers.fill();
    drop(registers);
    if sme::has_sme() {
        host_switches(svcr);
        host_fills();
    }
}

/// The host of this CPU, out of reset: everything is zero, in every mode.
#[track_caller]
pub fn check_fresh() {
    with_host(|registers| {
        let vq = context().sve().then(regs::rdvl);
        registers.model().reset(vq, None);
        registers.discover();
        // FFR of streaming mode is closed after reset.
        registers.set_svq(Vq::MAX);
    });
    for svcr in MODES {
        host_switches(svcr);
        host_finds();
    }
    host_switches(0);
}

/// The host's registers and what must be in them.
pub fn with_host<R>(f: impl FnOnce(&mut Registers) -> R) -> R {
    f(&mut HOSTS[smp::cpu()].lock())
}

/// The host fills what it has in its mode.
pub fn host_fills() {
    with_host(|registers| {
        registers.fill();
        if registers.model().svcr() & ZA != 0 {
            registers.fill_za();
        }
    });
}

/// What is not as it must be.
pub fn find() -> Result<(), Mismatch> {
    with_host(Registers::check)
}

/// The host finds everything as it left it.
#[track_caller]
pub fn host_finds() {
    if let Err(mismatch) = find() {
        panic!("host: {mismatch}");
    }
}

/// The host changes its mode.
#[track_caller]
pub fn host_switches(svcr: u64) {
    if let Err(mismatch) = with_host(|registers| registers.set_svcr(svcr)) {
        panic!("host: {mismatch}");
    }
}

/// After a test, on each CPU: not in streaming mode, ZA off, everything zero, all lengths.
pub fn settle() {
    let cpu = smp::cpu();
    if HOSTS[cpu].is_locked() {
        // SAFETY: the test that held it is over.
        unsafe { HOSTS[cpu].force_unlock() };
    }
    if sme::has_sme() {
        sme::set_svcr(0);
        sme::set_svl(Vq::MAX);
        sme::set_tpidr2(0);
    }
    if sme::has_fpmr() {
        sme::set_fpmr(0);
    }
}

/// A puppet and what must be in its registers.
pub struct Guest {
    pub puppet: Puppet,
    pub model: Model,
}

/// A VM with room for ZA.
pub fn machine(policy: Policy) -> Machine {
    Machine::with_za(VmConfig { policy, protected: false, ..VmConfig::normal() })
}

impl Guest {
    /// The next vCPU of a VM, loaded on this CPU and in its loop, at its largest lengths.
    #[track_caller]
    pub fn started(machine: &Machine, features: VcpuFeatures) -> Self {
        let puppet = machine.vcpu_with(features);
        puppet.load();
        puppet.start();
        Self::of(puppet)
    }

    /// A vCPU in its loop, from the reset state on, at its largest lengths.
    #[track_caller]
    pub fn of(puppet: Puppet) -> Self {
        let has = match puppet.svq {
            Some(_) => has(),
            None => Has { fpmr: has().fpmr, ..Has::default() },
        };
        let model = Model::new(puppet.owner(), puppet.vq).having(puppet.svq, has);
        let mut guest = Self { puppet, model };
        if puppet.vq.is_some() {
            guest.set_vq(Vq::MAX);
        }
        if puppet.svq.is_some() {
            guest.set_svq(Vq::MAX);
        }
        guest
    }

    /// A lazy one with all that there is, alone in its VM.
    #[track_caller]
    pub fn new(policy: Policy) -> Self {
        Self::started(&machine(policy), context().everything())
    }

    /// Asks for a VL.
    #[track_caller]
    pub fn set_vq(&mut self, vq: Vq) {
        // RDVL says the SVL in streaming mode.
        self.puppet.write(crate::instruction::sysreg::ZCR, vq.len_field());
        let clamp = self.puppet.vq.expect("SVE");
        let set = context().guests;
        self.model.set_vq(set.effective(vq.min(clamp)).expect("a vector length"));
    }

    /// Asks for an SVL, and sees that it is what it must be.
    #[track_caller]
    pub fn set_svq(&mut self, svq: Vq) {
        let (ezt0, fa64) = (u64::from(has().zt0) << 30, u64::from(has().fa64) << 31);
        let got = self.puppet.call(Routine::SetSmcr, [svq.len_field() | ezt0 | fa64, 0, 0])[0];
        let clamp = self.puppet.svq.expect("SME");
        let expected = effective_streaming(context().guests_streaming, svq.min(clamp));
        assert_eq!(Vq::from_vl(got), expected, "SVL for {svq}, clamp {clamp}");
        self.model.set_svq(expected.expect("an SVL"));
    }

    /// Writes SVCR.
    #[track_caller]
    pub fn switch(&mut self, svcr: u64) {
        self.puppet.call(Routine::SetSvcr, [svcr, 0, 0]);
        self.model.set_svcr(svcr);
    }

    /// Fills what it has in its mode.
    #[track_caller]
    pub fn fill(&mut self) {
        let tag = self.model.fill();
        let at = self.puppet.area() + puppet::IMAGE;
        let (routine, count) = self.routine(true);
        let image = self.puppet.memory(at, count);
        match self.model.vq() {
            Some(vq) => pattern::expected(tag, Layout::new(vq), image),
            None => pattern::expected_fpsimd(tag, image.first_chunk_mut().expect("as large")),
        }
        self.puppet.memory(at, count);
        self.puppet.call(routine, [at, 0, 0]);
        self.set_status(tag);
        if self.model.svcr() & ZA != 0 {
            self.fill_za();
        }
    }

    /// The routine that moves its Z and P registers as they are now, and the bytes.
    fn routine(&self, fill: bool) -> (Routine, usize) {
        use Routine::{DumpFpsimd, DumpStreaming, DumpSve, FillFpsimd, FillStreaming, FillSve};
        let Some(vq) = self.model.vq() else {
            return (if fill { FillFpsimd } else { DumpFpsimd }, FPSIMD_BYTES);
        };
        let routine = match (fill, self.model.ffr()) {
            (true, true) => FillSve,
            (true, false) => FillStreaming,
            (false, true) => DumpSve,
            (false, false) => DumpStreaming,
        };
        (routine, Layout::new(vq).image_bytes())
    }

    #[track_caller]
    fn set_status(&self, tag: Tag) {
        let (fpsr, fpcr) = (pattern::fpsr(tag), pattern::fpcr(tag));
        self.puppet.call(Routine::SetStatus, [fpsr.into(), fpcr.into(), 0]);
        if self.model.has().fpmr {
            self.puppet.write(crate::instruction::sysreg::FPMR, pattern::fpmr(tag));
        }
    }

    /// Fills ZA and ZT0.
    #[track_caller]
    pub fn fill_za(&mut self) {
        let tag = self.model.fill_za();
        let svq = self.model.svq().expect("SME");
        let (at, rows) = (self.puppet.za(false), za_bytes(svq));
        puppet::write_za(tag, svq, self.puppet.memory(at, rows + ZT0_BYTES));
        self.puppet.memory(at, rows + ZT0_BYTES);
        self.puppet.call(Routine::FillZa, [at, 0, 0]);
        if self.model.has().zt0 {
            self.puppet.call(Routine::FillZt0, [at + rows as u64, 0, 0]);
        }
    }

    /// It finds everything as it left it.
    #[track_caller]
    pub fn check(&mut self) {
        if let Err(mismatch) = self.find() {
            panic!("guest: {mismatch}");
        }
    }

    #[track_caller]
    fn find(&mut self) -> Result<(), Mismatch> {
        if self.model.svq().is_some() {
            self.model.check_svcr(self.puppet.call(Routine::Svcr, [0; 3])[0])?;
            let svl = self.puppet.call(Routine::Rdsvl, [0; 3])[0];
            assert_eq!(Vq::from_vl(svl), self.model.svq(), "guest: the SVL in force");
        }
        let [fpsr, fpcr, ..] = self.puppet.call(Routine::Status, [0; 3]);
        self.model.check_status((fpsr as u32, fpcr as u32))?;
        if self.model.has().fpmr {
            self.model.check_fpmr(self.puppet.read(crate::instruction::sysreg::FPMR))?;
        }
        self.find_file()?;
        if self.model.svcr() & ZA != 0 { self.find_za() } else { Ok(()) }
    }

    fn find_file(&self) -> Result<(), Mismatch> {
        let at = self.puppet.area() + puppet::OTHER_IMAGE;
        let (routine, count) = self.routine(false);
        if let Some(vq) = self.model.vq() {
            assert_eq!(self.puppet.rdvl(), vq, "guest: the VL in force");
        }
        self.puppet.memory(at, count);
        self.puppet.call(routine, [at, 0, 0]);
        let found = self.puppet.memory(at, count);
        match self.model.vq() {
            Some(vq) => self.model.check(Layout::new(vq), found),
            None => self.model.check_fpsimd(found.first_chunk().expect("as large")),
        }
    }

    fn find_za(&self) -> Result<(), Mismatch> {
        let svq = self.model.svq().expect("SME");
        let (at, rows) = (self.puppet.za(true), za_bytes(svq));
        self.puppet.memory(at, rows + ZT0_BYTES);
        self.puppet.call(Routine::DumpZa, [at, 0, 0]);
        if self.model.has().zt0 {
            self.puppet.call(Routine::DumpZt0, [at + rows as u64, 0, 0]);
        }
        let found = self.puppet.memory(at, rows + ZT0_BYTES);
        for (n, row) in found[..rows].chunks(svq.vl_bytes()).enumerate() {
            self.model.check_za(n, row)?;
        }
        match found[rows..].first_chunk() {
            Some(zt0) if self.model.has().zt0 => self.model.check_zt0(zt0),
            _ => Ok(()),
        }
    }

    /// Loads it, does something, and puts it.
    #[track_caller]
    pub fn loaded<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        self.puppet.load();
        let result = f(self);
        self.puppet.put();
        result
    }

    /// The end of its VM.
    #[track_caller]
    pub fn destroy(self) {
        assert_eq!(ledger::destroy(self.puppet.machine.vm), 0, "pages still out");
    }
}
