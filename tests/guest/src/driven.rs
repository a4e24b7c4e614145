//! A vCPU that does what the host tells it, one command after the other, and knows by itself what its
//! registers must hold. The host can't: if the VM is protected, it sees nothing of it.

use crate::{
    fail, hvc2,
    work::{arm_timer, count8},
};
use core::{arch::asm, cell::UnsafeCell};
use umbra_patterns::{
    protocol::{Argument, Command, Failure, MAX_VCPUS, NEXT},
    regs::{self, Registers, rdvl, sme},
};
use umbra_shared::vl::Vq;

struct AllRegisters([UnsafeCell<Registers>; MAX_VCPUS]);

// SAFETY: each vCPU uses its own element only.
unsafe impl Sync for AllRegisters {}

static REGISTERS: AllRegisters =
    AllRegisters([const { UnsafeCell::new(Registers::new(0, None)) }; MAX_VCPUS]);

struct Driven {
    registers: &'static mut Registers,
    clamp: Option<Vq>,
    streaming_clamp: Option<Vq>,
    /// SVE is closed at EL1 while in streaming mode.
    closes_sve: bool,
    vcpu: u64,
    /// What the counter device holds.
    sum: u64,
}

pub fn run(argument: &Argument) -> ! {
    let vcpu = usize::from(argument.vcpu);
    // SAFETY: this runs once per vCPU.
    let registers = unsafe { &mut *REGISTERS.0[vcpu].get() };
    // ZCR_EL1 is zero after reset.
    *registers.model() =
        umbra_patterns::model::Model::new(argument.owner, argument.vq.map(|_| rdvl()));
    registers.discover();
    if registers.model().svq().is_some() != argument.svq.is_some() {
        fail(Failure::VectorLength { asked: 0, given: 0 });
    }
    let (clamp, streaming_clamp) = (argument.vq, argument.svq);
    let vcpu = vcpu as u64;
    let mut driven = Driven { registers, clamp, streaming_clamp, closes_sve: false, vcpu, sum: 0 };
    driven.select_streaming(Vq::MIN.vl_bytes() as u16);
    let mut done = 0;
    loop {
        let words = hvc2([NEXT, done, 0, 0, 0, 0]);
        match Command::decode(words) {
            Some(command) => driven.obey(command, done),
            None => fail(Failure::Garbled(words[0])),
        }
        done += 1;
    }
}

impl Driven {
    fn obey(&mut self, command: Command, done: u64) {
        match command {
            Command::Nop => {}
            Command::Fill(vl) => {
                self.select(vl);
                self.registers.fill();
            }
            Command::FillFpsimd => self.registers.fill_fpsimd(),
            Command::Check => self.check(),
            Command::SetVl(vl) => self.select(vl),
            Command::Churn(times) => {
                for _ in 0..times {
                    self.registers.fill_fpsimd();
                    self.check();
                }
            }
            Command::Spin(times) => {
                for _ in 0..times {
                    // SAFETY: a hint.
                    unsafe { asm!("yield", options(nomem, nostack)) };
                }
            }
            // SAFETY: a hint: the host wakes us.
            Command::Wfi => unsafe { asm!("wfi", options(nomem, nostack)) },
            Command::Mmio => count8(self.vcpu, done << 33 | (done + 1), &mut self.sum),
            Command::Timer(ticks) => arm_timer(ticks.into()),
            Command::Mode(svcr) => {
                if self.streaming_clamp.is_some()
                    && let Err(mismatch) = self.registers.set_svcr(svcr.into())
                {
                    fail(Failure::from(mismatch));
                }
                self.open();
            }
            Command::SetSvl(svl) => self.select_streaming(svl),
            Command::FillZa => {
                if self.streaming_clamp.is_some() {
                    self.registers.fill_za();
                }
            }
            Command::CloseSve(close) => {
                self.closes_sve = close != 0;
                self.open();
            }
        }
    }

    /// CPACR_EL1 for the mode that it is in.
    fn open(&mut self) {
        if self.closes_sve && self.registers.streaming() {
            regs::enable_all_but_sve();
        } else {
            regs::enable();
        }
    }

    fn check(&mut self) {
        if let Err(mismatch) = self.registers.check() {
            let mut failure = Failure::from(mismatch);
            if let (Failure::Register { vl, .. }, Some(vq)) =
                (&mut failure, self.registers.model().vq())
            {
                *vl = vq.vl_bytes() as u64;
            }
            fail(failure);
        }
    }

    /// Selects a VL and sees that the clamp holds: never more than asked for, never more than the
    /// clamp, and no less than the clamp if that was asked for.
    fn select(&mut self, vl: u16) {
        let (Some(clamp), Some(asked)) = (self.clamp, Vq::from_vl(vl.into())) else { return };
        if self.registers.streaming() {
            return;
        }
        let given = self.registers.set_vq(asked);
        if given > asked || given > clamp || (asked >= clamp && given != clamp) {
            let (asked, given) = (asked.vl_bytes() as u64, given.vl_bytes() as u64);
            fail(Failure::VectorLength { asked, given });
        }
    }

    /// The same of an SVL, of which the smallest may be more than was asked for.
    fn select_streaming(&mut self, svl: u16) {
        let (Some(clamp), Some(asked)) = (self.streaming_clamp, Vq::from_vl(svl.into())) else {
            return;
        };
        let given = self.registers.set_svq(asked);
        if given > clamp || (asked >= clamp && given != clamp) || sme::rdsvl() != given {
            let (asked, given) = (asked.vl_bytes() as u64, given.vl_bytes() as u64);
            fail(Failure::VectorLength { asked, given });
        }
    }
}
