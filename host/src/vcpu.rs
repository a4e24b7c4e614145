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
//! One interrupt is offered to hyp at a time; the others wait here ([`Vcpu::inject`]). While it is in flight,
//! that is pending or active in the guest, it is offered again with each entry; when the guest completes it, the
//! maintenance interrupt stops the guest and the next goes in.
//!
//! The guest's virtual timer is the machine's own. Its interrupt (PPI 27) is level-triggered and
//! physical: it stops the guest, hyp says so ([`ExitInfo::vtimer`]), and the vCPU makes a virtual INTID
//! 27 of it. Until the guest has seen to its timer the line stays up, and would stop the guest at once,
//! forever, whatever interrupt it is handling: so until an exit says that the line is down the physical PPI is
//! masked at the redistributor around each run ([`HostCpu::mask_virtual_timer`]). If the guest sets its timer
//! anew meanwhile, that is seen at the next exit, which comes when it completes what is in flight. The
//! host's own deadline is hyp's to watch meanwhile (CNTHP).

use crate::{
    fp::{TaskFp, VcpuFp},
    hypercall::{Exit, Hypervisor},
};
use core::{marker::PhantomData, ops::ControlFlow};
use umbra_shared::{
    call::{Start, VcpuIndex, VmHandle},
    error::Error,
    exit::{ExitInfo, MmioAccess, Reason, RunFlags, SystemEvent},
    interrupt::{Entry, INTIDS, State, States},
    vcpu::VcpuFeatures,
};

/// The virtual timer's interrupt, for the host as for guests.
pub const VTIMER_INTID: u16 = 27;

/// The priority of all of them.
const PRIORITY: u8 = 0xa0;

/// The CPU, as the OS's run loop sees it.
pub trait HostCpu: TaskFp {
    /// Masks physical interrupts.
    fn mask_interrupts(&mut self);
    /// Unmasks them: pending ones are taken now.
    fn unmask_interrupts(&mut self);
    /// Disables or enables PPI 27 at this CPU's redistributor. When it returns, it is so.
    fn mask_virtual_timer(&mut self, masked: bool);
}

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

/// What becomes of an access to nothing, or of a call that takes more tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplied {
    /// It is there now: try again.
    Retry,
    /// It won't be: a synchronous external abort for the guest, or its call fails.
    Abort,
}

/// What the VMM does about exits. `Break` ends [`LoadedVcpu::run`]; what the exit left open is kept,
/// see [`LoadedVcpu::answer`].
pub trait ExitHandler {
    /// Why the loop ended.
    type Stop;

    /// A physical interrupt stopped the guest, and has been taken.
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
    /// The guest waits for an interrupt, and none is pending here.
    fn wfi(&mut self) -> ControlFlow<Self::Stop> {
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
    /// The guest has turned this vCPU off: until the guest turns it on again it can't be loaded.
    fn cpu_off(&mut self) -> Self::Stop;
    /// The guest turns its machine off or resets it; of SYSTEM_RESET2 these are the type and the cookie. A
    /// protected VM runs no more; a normal one's vCPUs can be [reset](Vcpu::reset).
    fn system(&mut self, event: SystemEvent, kind: u64, cookie: u64) -> Self::Stop;
    /// The guest wrote ICC_SGI1R_EL1.
    fn sgi(&mut self, _value: u64) -> ControlFlow<Self::Stop> {
        ControlFlow::Continue(())
    }
    /// The guest has given its memory at `address` back: `page` is the host's again. Whoever keeps the
    /// VM tells it so ([`Vm::returned`](crate::vm::Vm::returned)).
    fn relinquished(&mut self, _address: u64, _page: u64) -> ControlFlow<Self::Stop> {
        ControlFlow::Continue(())
    }
    /// The guest can't continue.
    fn broken(&mut self, esr: u64) -> Self::Stop;
}

/// Interrupts that wait to go in.
#[derive(Clone, Debug)]
struct Pending {
    bits: [u64; INTIDS.div_ceil(64) as usize],
    count: u16,
}

impl Pending {
    const fn new() -> Self {
        Self { bits: [0; INTIDS.div_ceil(64) as usize], count: 0 }
    }

    fn insert(&mut self, intid: u16) {
        let (word, bit) = (&mut self.bits[intid as usize / 64], 1 << (intid % 64));
        if *word & bit == 0 {
            *word |= bit;
            self.count += 1;
        }
    }

    fn remove(&mut self, intid: u16) {
        let (word, bit) = (&mut self.bits[intid as usize / 64], 1 << (intid % 64));
        if *word & bit != 0 {
            *word &= !bit;
            self.count -= 1;
        }
    }

    /// The lowest. Usually there is none, and every entry asks.
    #[inline]
    fn first(&self) -> Option<u16> {
        if self.count == 0 { None } else { self.search() }
    }

    #[cold]
    fn search(&self) -> Option<u16> {
        let word = self.bits.iter().position(|&w| w != 0)?;
        Some(word as u16 * 64 + self.bits[word].trailing_zeros() as u16)
    }
}

/// What the last exit left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Hvc,
    Mmio {
        write: bool,
    },
    /// An access to nothing, or a call that takes more tables.
    Supply,
}

/// A vCPU that is loaded nowhere.
#[derive(Debug)]
pub struct Vcpu {
    vm: VmHandle,
    index: VcpuIndex,
    fp: VcpuFp,
    features: VcpuFeatures,
    pending: Pending,
    in_flight: Option<Entry>,
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
            pending: Pending::new(),
            in_flight: None,
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

    /// Makes an interrupt pending; it goes in as soon as none is in flight. False: no such INTID
    /// (they end at 1019).
    pub fn inject(&mut self, intid: u16) -> bool {
        let exists = intid < INTIDS;
        if exists {
            self.pending.insert(intid);
        }
        exists
    }

    /// Whether it would find an interrupt if it ran: it need not wait in WFI.
    pub fn has_interrupt(&self) -> bool {
        self.in_flight.is_some() || self.vtimer || self.pending.count != 0
    }

    /// Puts a normal VM's vCPU into its reset state: off, or about to begin there.
    pub fn reset<H: Hypervisor>(&mut self, hyp: &H, start: Start) -> Result<(), Error> {
        hyp.vcpu_reset(self.vm, self.index, start)?;
        self.pending = Pending::new();
        self.in_flight = None;
        self.vtimer = false;
        self.open = Open::Nothing;
        self.flags = RunFlags::empty();
        self.answer = [0; 4];
        Ok(())
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

    /// What the next entry carries.
    #[inline]
    fn choose(&self) -> Option<Entry> {
        let new = |intid| Entry::new(intid, PRIORITY, State::Pending) | Entry::EOI;
        if self.in_flight.is_some() {
            self.in_flight
        } else if self.vtimer {
            Some(new(VTIMER_INTID))
        } else {
            self.pending.first().map(new)
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
    /// The vCPU, for injecting interrupts.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        self.vcpu
    }

    /// Answers the HVC at which the handler broke off; without, it is answered with zeroes.
    pub fn answer(&mut self, x: Answer) {
        if self.vcpu.open == Open::Hvc {
            self.vcpu.answer = x;
        }
    }

    /// One entry. Most carry no interrupt.
    #[inline]
    fn enter(&mut self, host: &mut impl HostCpu) -> Result<Exit, Error> {
        match self.vcpu.choose() {
            None => self.enter_by(host, |hyp, flags, answer| hyp.vcpu_run(flags, answer)),
            Some(entry) => self.enter_with(host, entry),
        }
    }

    /// One that does.
    #[cold]
    #[inline(never)]
    fn enter_with(&mut self, host: &mut impl HostCpu, entry: Entry) -> Result<Exit, Error> {
        let mut states = States::default();
        let exit = self.enter_by(host, |hyp, flags, answer| {
            let (exit, after) = hyp.vcpu_run_with(flags, answer, &[entry])?;
            states = after;
            Ok(exit)
        })?;
        let vcpu = &mut *self.vcpu;
        if vcpu.in_flight.is_none() {
            vcpu.pending.remove(entry.intid());
        }
        vcpu.in_flight = entry.left(states.get(0));
        Ok(exit)
    }

    /// Flush, VCPU_RUN, sync, with interrupts masked over all three.
    #[inline(always)]
    fn enter_by(
        &mut self,
        host: &mut impl HostCpu,
        run: impl FnOnce(&H, RunFlags, [u64; 4]) -> Result<Exit, Error>,
    ) -> Result<Exit, Error> {
        let vcpu = &mut *self.vcpu;
        let mask_timer = vcpu.vtimer;
        host.mask_interrupts();
        if mask_timer {
            host.mask_virtual_timer(true);
        }
        vcpu.fp.vcpu_ctxflush_fp(host);
        let result = run(self.hyp, vcpu.flags, vcpu.answer);
        vcpu.fp.vcpu_ctxsync_fp(&result, host);
        if mask_timer {
            host.mask_virtual_timer(false);
        }
        if let Ok(exit) = &result {
            vcpu.vtimer = exit.info.vtimer();
            vcpu.flags = RunFlags::empty();
            vcpu.answer = [0; 4];
            vcpu.open = match exit.info.reason() {
                Some(Reason::Hvc) => Open::Hvc,
                Some(Reason::Mmio) => Open::Mmio { write: exit.info.mmio_access().write },
                Some(Reason::Fault | Reason::Tables) => Open::Supply,
                _ => Open::Nothing,
            };
        }
        host.unmask_interrupts();
        result
    }

    /// Runs the guest until the handler breaks off, or hyp refuses.
    pub fn run<E: ExitHandler>(
        &mut self,
        host: &mut impl HostCpu,
        handler: &mut E,
    ) -> Result<E::Stop, Error> {
        loop {
            let exit = self.enter(host)?;
            if let ControlFlow::Break(stop) = self.dispatch(&exit, handler) {
                return Ok(stop);
            }
        }
    }

    #[inline(always)]
    fn dispatch<E: ExitHandler>(&mut self, exit: &Exit, handler: &mut E) -> ControlFlow<E::Stop> {
        let [a, b, c, ..] = exit.data;
        if self.vcpu.vtimer && self.vcpu.in_flight.is_none() {
            handler.virtual_timer();
        }
        match exit.info.reason() {
            Some(Reason::Hvc) => self.vcpu.answer = handler.hvc(&exit.data)?,
            Some(Reason::Irq) => handler.interrupt()?,
            Some(Reason::Mmio) => {
                let answer = handler.mmio(a, exit.info.mmio_access(), b)?;
                self.finish_mmio(exit.info, answer);
            }
            reason => return self.rare(reason, [a, b, c], handler),
        }
        ControlFlow::Continue(())
    }

    /// What is no part of a guest's daily work, and WFI, which waits anyway.
    #[cold]
    #[inline(never)]
    fn rare<E: ExitHandler>(
        &mut self,
        reason: Option<Reason>,
        [a, b, c]: [u64; 3],
        handler: &mut E,
    ) -> ControlFlow<E::Stop> {
        match reason {
            Some(Reason::Wfi) => {
                if !self.vcpu.has_interrupt() {
                    handler.wfi()?;
                }
            }
            Some(Reason::Fault) => {
                if handler.fault(a)? == Supplied::Abort {
                    self.vcpu.flags |= RunFlags::ABORT;
                }
            }
            Some(Reason::Tables) => {
                if handler.tables()? == Supplied::Abort {
                    self.vcpu.flags |= RunFlags::ABORT;
                }
            }
            Some(Reason::CpuOn) => handler.cpu_on(VcpuIndex(a))?,
            Some(Reason::CpuOff) => return ControlFlow::Break(handler.cpu_off()),
            Some(Reason::System) => {
                return ControlFlow::Break(match SystemEvent::from_register(a) {
                    Some(event) => handler.system(event, b, c),
                    None => handler.broken(0),
                });
            }
            Some(Reason::Sgi) => handler.sgi(a)?,
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

    /// Answers the fault, or the call for tables, at which the handler broke off; without, it is tried again.
    pub fn answer_supply(&mut self, supplied: Supplied) {
        if self.vcpu.open == Open::Supply && supplied == Supplied::Abort {
            self.vcpu.flags |= RunFlags::ABORT;
        }
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
