//! What the host does for the guests: devices and calls.

use super::{Plan, VMS, gics, stopped};
use core::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};
use umbra_host::{
    kernel::MAX_CPUS,
    kernel::timer::Patience,
    vcpu::{Answer, ExitHandler, MmioAnswer, Supplied, Vcpu},
};
use umbra_patterns::protocol::{
    ARGUMENT, BASE, CONTINUE, DEVICE, DEVICE_BYTES, ECHO, FAIL, Failure, LOWER, RAISE, REPORT,
    STOP, counter,
};
use umbra_shared::{
    call::VcpuIndex,
    exit::{MmioAccess, SystemEvent},
    guest::{NOT_SUPPORTED, is_hosts},
};

/// Owners of guests' tags begin here: + 16 * VM + vCPU.
pub const OWNER: u16 = 0x200;

/// Host timer interrupts per second.
pub const HZ: u64 = 500;

/// How long a guest may take for what it is run for, in seconds.
const PATIENCE: u64 = 60;

/// Timer interrupts of the host between two looks at its registers.
const LOOK: u32 = 3;

/// What each vCPU is to be told as it starts: the guest asks for it, and turns the vCPU on.
static ARGUMENTS: [[AtomicU64; MAX_CPUS]; VMS] =
    [const { [const { AtomicU64::new(0) }; MAX_CPUS] }; VMS];

/// Whether its guest has turned it on.
static ON: [[AtomicBool; MAX_CPUS]; VMS] =
    [const { [const { AtomicBool::new(false) }; MAX_CPUS] }; VMS];

pub fn set_argument(vm: usize, vcpu: usize, argument: u64) {
    ARGUMENTS[vm][vcpu].store(argument, Ordering::Relaxed);
}

pub fn set_on(vm: usize, vcpu: usize, on: bool) {
    ON[vm][vcpu].store(on, Ordering::Release);
}

pub fn is_on(vm: usize, vcpu: usize) -> bool {
    ON[vm][vcpu].load(Ordering::Acquire)
}

/// A vCPU, and what was seen of it.
pub struct Slot {
    pub vcpu: Option<Vcpu>,
    /// The CPU it ran on last.
    pub cpu: Option<usize>,
    pub migrations: u64,
    pub verified: u64,
    pub hvc: u64,
    pub mmio: u64,
    pub timer: u64,
    /// Interrupts of its device.
    pub spis: u64,
    /// SGIs that it has had from its siblings, as it says.
    pub sgis: u64,
    /// Rounds it has been run in.
    pub rounds: usize,
    /// It has turned itself off.
    pub off: bool,
    /// The counter device: what it holds for this vCPU.
    sums: (u64, u32),
}

impl Slot {
    pub fn new(vcpu: Option<Vcpu>) -> Self {
        Self {
            vcpu,
            cpu: None,
            migrations: 0,
            verified: 0,
            hvc: 0,
            mmio: 0,
            timer: 0,
            spis: 0,
            sgis: 0,
            rounds: 0,
            off: false,
            sums: (0, 0),
        }
    }

    pub fn vl_bytes(&self) -> usize {
        self.vcpu.as_ref().and_then(|vcpu| vcpu.features().vq).map_or(0, |vq| vq.vl_bytes())
    }
}

/// Why the host has the CPU for longer.
pub enum Pause {
    /// The iterations of this slice are done.
    Slice,
    /// Time to look at the host's own registers.
    Look,
    /// The vCPU has turned itself off.
    Off,
    Failed(Failure),
    Broken(u64),
    Nothing(u64),
    /// The VM takes more pages for tables.
    Tables,
    Stuck,
    /// Another CPU is in trouble.
    Stopped,
}

/// A vCPU's exits during one slice.
pub struct Exits<'s> {
    plan: &'static Plan,
    pub vm: usize,
    pub index: u64,
    pub slot: &'s mut Slot,
    /// Iterations still to be seen.
    pub left: u64,
    /// Tell the guest to turn itself off.
    pub last: bool,
    interrupts: u32,
    patience: Patience,
}

impl<'s> Exits<'s> {
    pub fn new(
        plan: &'static Plan,
        vm: usize,
        index: u64,
        slot: &'s mut Slot,
        left: u64,
        last: bool,
    ) -> Self {
        let patience = Patience::new(PATIENCE, HZ / 2);
        Self { plan, vm, index, slot, left, last, interrupts: 0, patience }
    }

    fn report(&mut self, verified: u64) -> ControlFlow<Pause, Answer> {
        if verified != self.slot.verified + 1 {
            return ControlFlow::Break(Pause::Failed(Failure::Echo(verified)));
        }
        self.slot.verified = verified;
        self.left = self.left.saturating_sub(1);
        if self.left != 0 {
            ControlFlow::Continue([CONTINUE, 0, 0, 0])
        } else if self.last {
            ControlFlow::Continue([STOP, 0, 0, 0])
        } else {
            ControlFlow::Break(Pause::Slice)
        }
    }
}

impl ExitHandler for Exits<'_> {
    type Stop = Pause;

    fn interrupt(&mut self) -> ControlFlow<Pause> {
        self.interrupts += 1;
        if stopped() {
            ControlFlow::Break(Pause::Stopped)
        } else if self.patience.is_over() {
            ControlFlow::Break(Pause::Stuck)
        } else if self.interrupts.is_multiple_of(LOOK) {
            ControlFlow::Break(Pause::Look)
        } else {
            ControlFlow::Continue(())
        }
    }

    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Pause, Answer> {
        self.slot.hvc += 1;
        match x[0] {
            ECHO => ControlFlow::Continue([x[1] + 1, 0, 0, 0]),
            REPORT => {
                self.slot.sgis = x[2];
                self.report(x[1])
            }
            FAIL => {
                let failure = Failure::decode([x[1], x[2], x[3], x[4], x[5]]);
                ControlFlow::Break(Pause::Failed(failure))
            }
            ARGUMENT => {
                let found = usize::try_from(x[1]).ok().and_then(|n| ARGUMENTS[self.vm].get(n));
                let argument = found.map_or(0, |argument| argument.load(Ordering::Relaxed));
                ControlFlow::Continue([argument, BASE, 0, 0])
            }
            // A normal guest asks for what only a protected one has.
            x0 if !is_hosts(x0) => ControlFlow::Continue([NOT_SUPPORTED as u64, 0, 0, 0]),
            x0 => ControlFlow::Break(Pause::Failed(Failure::Garbled(x0))),
        }
    }

    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Pause, MmioAnswer> {
        self.slot.mmio += 1;
        let vgic = &self.plan.gics[self.vm];
        if let Some(loaded) = gics::access(vgic, self.vm, address, access, data) {
            return ControlFlow::Continue(MmioAnswer::done(access, loaded));
        }
        if !(DEVICE..DEVICE + DEVICE_BYTES).contains(&address) {
            return ControlFlow::Break(Pause::Nothing(address));
        }
        let (wide, narrow) = &mut self.slot.sums;
        ControlFlow::Continue(match (access.bytes, access.write) {
            (8, true) if address == counter(self.index, 8) => {
                *wide = wide.wrapping_add(data);
                MmioAnswer::Written
            }
            (8, false) if address == counter(self.index, 8) => MmioAnswer::Read(*wide),
            (4, true) if address == counter(self.index, 4) => {
                *narrow = narrow.wrapping_add(data as u32);
                MmioAnswer::Written
            }
            (4, false) if address == counter(self.index, 4) => MmioAnswer::Read((*narrow).into()),
            (4, true) if address == RAISE => {
                self.slot.spis += 1;
                gics::device(vgic, self.vm, true);
                MmioAnswer::Written
            }
            (4, true) if address == LOWER => {
                gics::device(vgic, self.vm, false);
                MmioAnswer::Written
            }
            _ => MmioAnswer::Abort,
        })
    }

    fn virtual_timer(&mut self) {
        self.slot.timer += 1;
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Pause, Supplied> {
        ControlFlow::Break(Pause::Nothing(address))
    }

    fn tables(&mut self) -> ControlFlow<Pause, Supplied> {
        ControlFlow::Break(Pause::Tables)
    }

    fn cpu_on(&mut self, VcpuIndex(index): VcpuIndex) -> ControlFlow<Pause> {
        set_on(self.vm, index as usize, true);
        ControlFlow::Continue(())
    }

    fn cpu_off(&mut self) -> Pause {
        if self.last {
            self.slot.off = true;
            Pause::Off
        } else {
            Pause::Failed(Failure::Garbled(0))
        }
    }

    fn system(&mut self, event: SystemEvent, _: u64, _: u64) -> Pause {
        Pause::Failed(Failure::Garbled(event as u64))
    }

    fn broken(&mut self, esr: u64) -> Pause {
        Pause::Broken(esr)
    }
}
