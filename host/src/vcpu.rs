//! vCPUs: load, run, put.
//!
//! A [`Vcpu`] can go anywhere; a [`LoadedVcpu`] is bound to the CPU that loaded it and can't leave it
//! (it is not `Send`). That is the order hyp asks for: at most one vCPU is loaded on a CPU, and a vCPU
//! on at most one.
//!
//! # Exits
//! [`LoadedVcpu::run`] enters the guest again and again, and hands what the guest wants to an
//! [`ExitHandler`], with interrupts unmasked: a physical interrupt that stopped the guest is taken by
//! the host right after the exit, before the handler is asked anything.
//!
//! # Virtual interrupts
//! Which interrupts a run carries is its VM's GIC to say ([`vgic`](crate::vgic)): before an entry it fills the list
//! registers, after it it is told what became of each. An entry for which it has nothing takes no part in that. SGIs are
//! sent here, too.
//!
//! The guest's virtual timer is the machine's own. Its interrupt (PPI 27) is level-triggered and
//! physical: it stops the guest, hyp says so ([`ExitInfo::vtimer`]), and the vCPU makes a virtual line of it.
//! Until the guest has seen to its timer the physical line stays up, and would stop the guest at once,
//! forever, whatever interrupt it is handling: so until an exit says that the line is down the physical PPI is
//! masked at the redistributor around each run ([`HostCpu::mask_virtual_timer`]). If the guest sets its timer
//! anew meanwhile, that is seen at the next exit, which comes when it completes the interrupt. The
//! host's own deadline is hyp's to watch meanwhile (CNTHP).

use crate::{
    fp::{TaskFp, VcpuFp},
    hypercall::{Exit, Hypervisor},
    vgic::{Events, Flushed, Interface, SgiRegister},
};
use core::{marker::PhantomData, ops::ControlFlow};
use umbra_shared::{
    call::{Start, VcpuIndex, VmHandle},
    error::Error,
    exit::{ExitInfo, MmioAccess, NO_DEADLINE, Reason, RunFlags, SystemEvent},
    flags::{CALL_REGISTERS, FlagShadowPage},
    interrupt::{Entry, MAX_ENTRIES, Signalled, States},
    vcpu::VcpuFeatures,
};

/// The virtual timer's interrupt, for the host as for guests.
pub const VTIMER_INTID: u16 = 27;

/// The CPU, as the OS's run loop sees it.
pub trait HostCpu: TaskFp {
    /// Masks physical interrupts.
    fn mask_interrupts(&mut self);
    /// Unmasks them: pending ones are taken now.
    fn unmask_interrupts(&mut self);
    /// Disables or enables PPI 27 at this CPU's redistributor. When it returns, it is so.
    fn mask_virtual_timer(&mut self, masked: bool);
    /// Asked with interrupts masked, right before each entry: whether the vCPU's thread has to do something else first, of
    /// which it was told by an interrupt that may have been taken already. Then the guest isn't entered, and
    /// [`ExitHandler::interrupt`] is asked next, who is to break off. (KVM: `kvm_vcpu_exit_request`.)
    fn must_leave(&self) -> bool;
}

/// As if an interrupt had come at once: what is open stays so, and its answer is kept.
const NOT_ENTERED: Exit = Exit { info: ExitInfo::new(Reason::Irq, 0), data: [0; 6] };

/// The guest's x0-x3 after its HVC.
pub type Answer = [u64; 4];

/// What becomes of an MMIO access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioAnswer {
    /// A read has this value.
    Read(u64),
    /// A write has been done.
    Written,
    /// There is memory now: execute the instruction again.
    Retry,
    /// There is nothing: a synchronous external abort for the guest.
    Abort,
}

impl MmioAnswer {
    /// It is done, and a load finds this.
    pub const fn done(access: MmioAccess, loaded: u64) -> Self {
        if access.write { Self::Written } else { Self::Read(loaded) }
    }
}

/// What becomes of an access to nothing, of a call that takes more tables, of one that takes a page back, or of one for the
/// host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplied {
    /// It is there now, or nothing stands in the way: try again.
    Retry,
    /// It won't be: a synchronous external abort for the guest, or its call fails.
    Abort,
}

/// What ends a guest's WFI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// An interrupt that its interface signals ([`Interface::has_interrupt`]).
    pub signalled: Signalled,
    /// Its timer, when the physical counter (the host's CNTVCT_EL0) says so: run it again then. `None`: not that.
    pub deadline: Option<u64>,
}

/// What the VMM does about exits. `Break` ends [`LoadedVcpu::run`]; what the exit left open is kept,
/// see [`LoadedVcpu::answer`].
pub trait ExitHandler {
    /// Why the loop ended.
    type Stop;

    /// A physical interrupt stopped the guest, and has been taken; or it was not entered ([`HostCpu::must_leave`]).
    fn interrupt(&mut self) -> ControlFlow<Self::Stop> {
        ControlFlow::Continue(())
    }
    /// The guest's virtual timer has fired; its interrupt goes in with the next entry.
    fn virtual_timer(&mut self) {}
    /// The guest executed HVC with these x0-x5.
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Self::Stop, Answer>;
    /// The guest accessed a device; `data` is that of a write.
    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Self::Stop, MmioAnswer>;
    /// The guest waits for an interrupt, and its GIC has none that its interface signals.
    fn wfi(&mut self, _wait: Wait) -> ControlFlow<Self::Stop> {
        ControlFlow::Continue(())
    }
    /// The guest accessed nothing in a way that can't be emulated, or a protected guest its own memory that is not
    /// there. Map it and try again.
    fn fault(&mut self, address: u64) -> ControlFlow<Self::Stop, Supplied>;
    /// A protected guest's call takes more tables ([`Vm::topup`](crate::vm::Vm::topup)).
    fn tables(&mut self) -> ControlFlow<Self::Stop, Supplied>;
    /// The guest has turned this vCPU of its VM on: it can be loaded from now on. Whoever keeps the VM schedules it.
    fn cpu_on(&mut self, _index: VcpuIndex) -> ControlFlow<Self::Stop> {
        ControlFlow::Continue(())
    }
    /// The guest has turned this vCPU off: until the guest turns it on again it can't be loaded. Its GIC is to know
    /// ([`Vgic::set_power`](crate::vgic::Vgic::set_power)).
    fn cpu_off(&mut self) -> Self::Stop;
    /// The guest turns its machine off or resets it; of SYSTEM_RESET2 these are the type and the cookie. A
    /// protected VM runs no more; a normal one's vCPUs can be [reset](Vcpu::reset).
    fn system(&mut self, event: SystemEvent, kind: u64, cookie: u64) -> Self::Stop;
    /// A protected guest is about to take `page` back, or to give it up, which it shares with the host at `address`. The host has
    /// access until this returns and the vCPU runs again: mappings into processes, pins and whatever copies from there
    /// are gone by then, or meet an abort. A host that doesn't touch guests' memory but through what takes aborts has
    /// nothing to do.
    fn unshare(&mut self, _address: u64, _page: u64) -> ControlFlow<Self::Stop, Supplied> {
        ControlFlow::Continue(Supplied::Retry)
    }
    /// A protected guest calls by RSI, with an immediate and these registers, which take the answer.
    fn host_call(
        &mut self,
        _immediate: u16,
        _registers: &mut [u64; CALL_REGISTERS],
    ) -> ControlFlow<Self::Stop, Supplied> {
        ControlFlow::Continue(Supplied::Abort)
    }
    /// The guest has given its memory at `address` back: `page` is the host's again. Whoever keeps the
    /// VM tells it so ([`Vm::returned`](crate::vm::Vm::returned)).
    fn relinquished(&mut self, _address: u64, _page: u64) -> ControlFlow<Self::Stop> {
        ControlFlow::Continue(())
    }
    /// The guest can't continue.
    fn broken(&mut self, esr: u64) -> Self::Stop;
}

/// What the last exit left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Hvc,
    Mmio {
        write: bool,
    },
    /// An access to nothing, or a call that takes more tables or a page.
    Supply,
}

/// A vCPU that is loaded nowhere.
#[derive(Debug)]
pub struct Vcpu {
    vm: VmHandle,
    index: VcpuIndex,
    fp: VcpuFp,
    features: VcpuFeatures,
    /// Its timer's line was up at the last exit.
    vtimer: bool,
    open: Open,
    flags: RunFlags,
    answer: [u64; 4],
}

impl Vcpu {
    pub(crate) fn new(vm: VmHandle, index: VcpuIndex, fp: VcpuFp, features: VcpuFeatures) -> Self {
        Self {
            vm,
            index,
            fp,
            features,
            vtimer: false,
            open: Open::Nothing,
            flags: RunFlags::empty(),
            answer: [0; 4],
        }
    }

    pub(crate) fn into_fp(self) -> VcpuFp {
        self.fp
    }

    /// Its VM.
    pub fn vm(&self) -> VmHandle {
        self.vm
    }

    /// Its index in the VM.
    pub fn index(&self) -> VcpuIndex {
        self.index
    }

    /// What it has.
    pub fn features(&self) -> VcpuFeatures {
        self.features
    }

    /// Puts a normal VM's vCPU into its reset state: off, or about to begin there. Its timer is off then; its GIC is
    /// not reset.
    pub fn reset<H: Hypervisor, E: Events>(
        &mut self,
        hyp: &H,
        gic: &mut Interface<'_, E>,
        start: Start,
    ) -> Result<(), Error> {
        hyp.vcpu_reset(self.vm, self.index, start)?;
        self.timer_is_off(gic);
        self.is_finished();
        Ok(())
    }

    /// Whether the last exit left something open that [`LoadedVcpu::finish`] would finish, or another run.
    pub fn is_open(&self) -> bool {
        self.open != Open::Nothing
    }

    /// Its flag-shadow page.
    pub const fn flag_page(&self) -> &'static FlagShadowPage {
        self.fp.page()
    }

    fn is_finished(&mut self) {
        self.open = Open::Nothing;
        self.flags = RunFlags::empty();
        self.answer = [0; 4];
    }

    /// Binds it to this CPU. One that is off is refused (POWERED_OFF).
    pub fn load<'v, H: Hypervisor>(
        &'v mut self,
        hyp: &'v H,
        task: &mut impl TaskFp,
    ) -> Result<LoadedVcpu<'v, H>, Error> {
        hyp.vcpu_load(self.vm, self.index)?;
        self.fp.vcpu_load_fp(task);
        Ok(LoadedVcpu { vcpu: self, hyp, loaded: true, this_cpu: PhantomData })
    }

    fn timer_is_off<E: Events>(&mut self, gic: &mut Interface<'_, E>) {
        if core::mem::take(&mut self.vtimer) {
            gic.timer(false);
        }
    }
}

/// A vCPU that is loaded on this CPU.
#[derive(Debug)]
pub struct LoadedVcpu<'v, H: Hypervisor> {
    vcpu: &'v mut Vcpu,
    hyp: &'v H,
    loaded: bool,
    /// Neither `Send` nor `Sync`.
    this_cpu: PhantomData<*mut ()>,
}

impl<H: Hypervisor> LoadedVcpu<'_, H> {
    /// Answers the HVC at which the handler broke off; without, it is answered with zeroes.
    pub fn answer(&mut self, x: Answer) {
        if self.vcpu.open == Open::Hvc {
            self.vcpu.answer = x;
        }
    }

    /// One entry, if nothing else is to be done first, with interrupts masked over flush, VCPU_RUN and sync: whatever kicks the vCPU from then on stops the
    /// guest at once. Most carry no interrupt, and begin and end with the timer's line down.
    #[inline]
    fn enter<E: Events>(
        &mut self,
        host: &mut impl HostCpu,
        gic: &mut Interface<'_, E>,
    ) -> Result<Exit, Error> {
        host.mask_interrupts();
        let result = if host.must_leave() {
            Ok(NOT_ENTERED)
        } else if self.vcpu.vtimer || gic.is_due() {
            self.enter_with_interrupts(host, gic)
        } else {
            let result = self.enter_by(host, |hyp, flags, answer| hyp.vcpu_run(flags, answer));
            if let Ok(exit) = &result
                && exit.info.vtimer()
            {
                self.line(true, gic);
            }
            result
        };
        host.unmask_interrupts();
        result
    }

    /// One that may carry some.
    #[cold]
    #[inline(never)]
    fn enter_with_interrupts<E: Events>(
        &mut self,
        host: &mut impl HostCpu,
        gic: &mut Interface<'_, E>,
    ) -> Result<Exit, Error> {
        let mask_timer = self.vcpu.vtimer;
        if mask_timer {
            host.mask_virtual_timer(true);
        }
        let mut entries = [Entry::empty(); MAX_ENTRIES];
        let Some(Flushed { count, underflow }) = gic.flush(&mut entries) else {
            if mask_timer {
                host.mask_virtual_timer(false);
            }
            return Ok(NOT_ENTERED);
        };
        let entries = &entries[..count];
        let mut states = States::default();
        let result = self.enter_by(host, |hyp, flags, answer| {
            if entries.is_empty() {
                return hyp.vcpu_run(flags, answer);
            }
            let underflow = if underflow { RunFlags::UNDERFLOW } else { RunFlags::empty() };
            let (exit, after) = hyp.vcpu_run_with(flags | underflow, answer, entries)?;
            states = after;
            Ok(exit)
        });
        if mask_timer {
            host.mask_virtual_timer(false);
        }
        match &result {
            Ok(exit) => {
                // A level that was ended is pending again if its line is up: as it is now.
                self.line(exit.info.vtimer(), gic);
                gic.sync(entries, states);
            }
            Err(_) => gic.cancel(entries),
        }
        result
    }

    /// The timer's line is that.
    #[cold]
    fn line<E: Events>(&mut self, up: bool, gic: &mut Interface<'_, E>) {
        if self.vcpu.vtimer != up {
            self.vcpu.vtimer = up;
            gic.timer(up);
        }
    }

    #[inline(always)]
    fn enter_by(
        &mut self,
        host: &mut impl HostCpu,
        run: impl FnOnce(&H, RunFlags, [u64; 4]) -> Result<Exit, Error>,
    ) -> Result<Exit, Error> {
        let vcpu = &mut *self.vcpu;
        vcpu.fp.vcpu_ctxflush_fp(host);
        let result = run(self.hyp, vcpu.flags, vcpu.answer);
        vcpu.fp.vcpu_ctxsync_fp(&result, host);
        if result.is_ok() {
            vcpu.flags = RunFlags::empty();
            vcpu.answer = [0; 4];
            // Or what `dispatch` says.
            vcpu.open = Open::Nothing;
        }
        result
    }

    /// Runs the guest until the handler breaks off, or hyp refuses.
    pub fn run<X: ExitHandler, E: Events>(
        &mut self,
        host: &mut impl HostCpu,
        gic: &mut Interface<'_, E>,
        handler: &mut X,
    ) -> Result<X::Stop, Error> {
        loop {
            let timer = self.vcpu.vtimer;
            let exit = self.enter(host, gic)?;
            if self.vcpu.vtimer && !timer {
                handler.virtual_timer();
            }
            if let ControlFlow::Break(stop) = self.dispatch(&exit, gic, handler) {
                return Ok(stop);
            }
        }
    }

    #[inline(always)]
    fn dispatch<X: ExitHandler, E: Events>(
        &mut self,
        exit: &Exit,
        gic: &mut Interface<'_, E>,
        handler: &mut X,
    ) -> ControlFlow<X::Stop> {
        let [a, b, c, ..] = exit.data;
        match exit.info.reason() {
            Some(Reason::Hvc) => {
                self.vcpu.open = Open::Hvc;
                self.vcpu.answer = handler.hvc(&exit.data)?;
            }
            Some(Reason::Irq) => handler.interrupt()?,
            Some(Reason::Mmio) => {
                self.vcpu.open = Open::Mmio { write: exit.info.mmio_access().write };
                let answer = handler.mmio(a, exit.info.mmio_access(), b)?;
                self.finish_mmio(exit.info, answer);
            }
            reason => return self.rare(reason, [a, b, c], gic, handler),
        }
        ControlFlow::Continue(())
    }

    /// What is no part of a guest's daily work, and WFI, which waits anyway.
    #[cold]
    #[inline(never)]
    fn rare<X: ExitHandler, E: Events>(
        &mut self,
        reason: Option<Reason>,
        [a, b, c]: [u64; 3],
        gic: &mut Interface<'_, E>,
        handler: &mut X,
    ) -> ControlFlow<X::Stop> {
        if let Some(Reason::Fault | Reason::Tables | Reason::Unshare | Reason::HostCall) = reason {
            self.vcpu.open = Open::Supply;
        }
        match reason {
            Some(Reason::Wfi) => {
                let signalled = Signalled::of(a);
                if !gic.has_interrupt(signalled) {
                    let deadline = (b != NO_DEADLINE).then_some(b);
                    handler.wfi(Wait { signalled, deadline })?;
                }
            }
            Some(Reason::Fault) => self.answer_supply(handler.fault(a)?),
            Some(Reason::Tables) => self.answer_supply(handler.tables()?),
            Some(Reason::Unshare) => self.answer_supply(handler.unshare(a, b)?),
            Some(Reason::HostCall) => {
                let page = self.vcpu.fp.page();
                let mut registers = page.registers();
                let answer = handler.host_call(a as u16, &mut registers)?;
                page.set_registers(&registers);
                self.answer_supply(answer);
            }
            Some(Reason::CpuOn) => handler.cpu_on(VcpuIndex(a))?,
            Some(Reason::CpuOff) => {
                // When it is on again its timer is not.
                self.vcpu.timer_is_off(gic);
                return ControlFlow::Break(handler.cpu_off());
            }
            Some(Reason::System) => {
                return ControlFlow::Break(match SystemEvent::from_register(a) {
                    Some(event) => handler.system(event, b, c),
                    None => handler.broken(0),
                });
            }
            Some(Reason::Sgi) => {
                if let Some(register) = SgiRegister::from_exit(b) {
                    gic.send_sgi(register, a);
                }
            }
            Some(Reason::Relinquished) => handler.relinquished(a, b)?,
            // A reason this version doesn't know can't be continued either.
            Some(Reason::Broken | Reason::Hvc | Reason::Irq | Reason::Mmio) | None => {
                return ControlFlow::Break(handler.broken(a));
            }
        }
        ControlFlow::Continue(())
    }

    fn finish_mmio(&mut self, info: ExitInfo, answer: MmioAnswer) {
        match answer {
            MmioAnswer::Read(data) if !info.mmio_access().write => self.vcpu.answer[0] = data,
            MmioAnswer::Read(_) | MmioAnswer::Written => {}
            MmioAnswer::Retry => self.vcpu.flags |= RunFlags::RETRY,
            MmioAnswer::Abort => self.vcpu.flags |= RunFlags::ABORT,
        }
    }

    /// Answers the MMIO access at which the handler broke off.
    pub fn answer_mmio(&mut self, answer: MmioAnswer) {
        if let Open::Mmio { write } = self.vcpu.open {
            self.finish_mmio(ExitInfo::mmio(0, write, 0), answer);
        }
    }

    /// Answers the fault, or the call for tables or for a page, at which the handler broke off; without, it is tried
    /// again.
    pub fn answer_supply(&mut self, supplied: Supplied) {
        if self.vcpu.open == Open::Supply && supplied == Supplied::Abort {
            self.vcpu.flags |= RunFlags::ABORT;
        }
    }

    /// Finishes what the last exit left open, with the answer to it, and enters no guest: the guest's registers are behind it
    /// then. Without an answer a load finds zero; see [`Self::answer`] and its like.
    ///
    /// # Errors
    ///
    /// Hyp's; then it is still open.
    pub fn finish(&mut self) -> Result<(), Error> {
        // Hyp looks at no hint, and the host's registers stay where they are.
        self.hyp.vcpu_run(self.vcpu.flags | RunFlags::FINISH_ONLY, self.vcpu.answer)?;
        self.vcpu.is_finished();
        Ok(())
    }

    /// Unbinds it.
    pub fn put(mut self, task: &mut impl HostCpu) -> Result<(), Error> {
        self.loaded = false;
        task.mask_interrupts();
        let result = self.hyp.vcpu_put();
        self.vcpu.fp.vcpu_put_fp(&result, task);
        task.unmask_interrupts();
        result
    }
}

impl<H: Hypervisor> Drop for LoadedVcpu<'_, H> {
    fn drop(&mut self) {
        if self.loaded {
            // The one who drops it on an error path has nobody to tell; a vCPU that stays loaded
            // would block its VM and this CPU. Of the host's registers there is nothing to tell: what hyp
            // has not kept was said after the run that lost it.
            let _ = self.hyp.vcpu_put();
        }
    }
}

#[cfg(test)]
mod tests;
