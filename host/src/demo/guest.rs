//! What the host does for the guests: devices and calls.

use super::stopped;
use core::ops::ControlFlow;
use umbra_host::{
    kernel::timer::Patience,
    psci,
    vcpu::{Answer, ExitHandler, MmioAnswer, Vcpu},
};
use umbra_patterns::protocol::{
    CONTINUE, DEVICE, DEVICE_BYTES, ECHO, FAIL, Failure, REPORT, STOP, counter,
};
use umbra_shared::exit::MmioAccess;

/// Owners of guests' tags begin here: + 16 * VM + vCPU.
pub const OWNER: u16 = 0x200;

/// Host timer interrupts per second.
pub const HZ: u64 = 500;

/// How long a guest may take for what it is run for, in seconds.
const PATIENCE: u64 = 60;

/// Timer interrupts of the host between two looks at its registers.
const LOOK: u32 = 3;

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
    Stuck,
    /// Another CPU is in trouble.
    Stopped,
}

/// A vCPU's exits during one slice.
pub struct Exits<'s> {
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
    pub fn new(index: u64, slot: &'s mut Slot, left: u64, last: bool) -> Self {
        let patience = Patience::new(PATIENCE, HZ / 2);
        Self { index, slot, left, last, interrupts: 0, patience }
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
            ECHO => return ControlFlow::Continue([x[1] + 1, 0, 0, 0]),
            REPORT => return self.report(x[1]),
            FAIL => {
                let failure = Failure::decode([x[1], x[2], x[3], x[4], x[5]]);
                return ControlFlow::Break(Pause::Failed(failure));
            }
            _ => {}
        }
        match psci::decode(&[x[0], x[1], x[2], x[3]]) {
            Some(psci::Request::CpuOff) if self.last => {
                self.slot.off = true;
                ControlFlow::Break(Pause::Off)
            }
            Some(psci::Request::Answer(x0)) => ControlFlow::Continue([x0, 0, 0, 0]),
            _ => ControlFlow::Break(Pause::Failed(Failure::Garbled(x[0]))),
        }
    }

    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Pause, MmioAnswer> {
        self.slot.mmio += 1;
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
            _ => MmioAnswer::Abort,
        })
    }

    fn virtual_timer(&mut self) {
        self.slot.timer += 1;
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Pause> {
        ControlFlow::Break(Pause::Nothing(address))
    }

    fn broken(&mut self, esr: u64) -> Pause {
        Pause::Broken(esr)
    }
}
