//! Hypercalls with random arguments, such that whatever they do is done to pages and VMs of their own.

use crate::{
    ledger::{self, PAGE},
    suite::pages::MMIO,
};
use umbra_host::{hypercall::Hvc, kernel::sysreg};
use umbra_shared::{
    call::{Function, VmHandle},
    error::{Error, SUCCESS},
};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A source of such calls.
pub struct Junk {
    seed: u64,
    random: Random,
    /// Pages that the calls may do anything with: the first, and how many.
    region: u64,
    pages: u64,
    handles: [u64; 8],
    calls: u64,
}

impl Junk {
    /// Calls from this seed on `pages` pages at `region`.
    pub fn new(seed: u64, region: u64, pages: u64) -> Self {
        Self { seed, random: Random(seed), region, pages, handles: [0; 8], calls: 0 }
    }

    /// An argument: an address of ours, of hyp or of nothing; a count; a handle; junk. Never an address
    /// that the kernel needs: junk has a bit set that no RAM has.
    fn argument(&mut self) -> u64 {
        let random = &mut self.random;
        match random.below(12) {
            0..5 => self.region + random.below(self.pages) * PAGE,
            5 => self.region + random.below(self.pages * PAGE),
            6 => random.below(20),
            7 => self.handles[random.below(8) as usize],
            8 => MMIO + random.below(16) * PAGE,
            9 => (1 << random.below(64)) | 1 << 62,
            // Not 256, which is the handle of the first VM.
            10 => 16 * random.below(16),
            _ => random.next() | 1 << 63,
        }
    }

    fn within(&self, pa: u64) -> bool {
        (self.region..self.region + self.pages * PAGE).contains(&pa)
    }

    /// Makes one call, unless its function is not `wanted`. Hyp must give a sane answer; returns
    /// whether it did what it was asked.
    pub fn call(&mut self, wanted: impl Fn(Function) -> bool) -> bool {
        let functions = Function::ALL;
        let function = functions[self.random.below(functions.len() as u64) as usize];
        let upper = if self.random.below(16) == 0 { self.random.next() << 32 } else { 0 };
        let mut args: [u64; 7] = core::array::from_fn(|_| self.argument());
        // Now and then a call that could be meant.
        match function {
            Function::VmCreate if self.random.below(2) == 0 => {
                args[1] = 4 + self.random.below(5);
                args[2] = self.random.below(3) | self.random.below(2) << 4;
            }
            Function::VmUnmap | Function::VmReclaim if self.random.below(2) == 0 => {
                args[0] = self.handles[self.random.below(8) as usize];
                args[2] = self.random.below(9);
            }
            Function::VmLookup if self.random.below(2) == 0 => {
                args[0] = self.handles[self.random.below(8) as usize];
            }
            Function::VmMap if self.random.below(4) != 0 => {
                args[0] = self.handles[self.random.below(8) as usize];
                args[3] = self.random.below(9);
            }
            Function::VmTopup
            | Function::VcpuCreate
            | Function::VcpuLoad
            | Function::VmSeal
            | Function::VmDestroy
            | Function::VmReclaim
                if self.random.below(4) != 0 =>
            {
                args[0] = self.handles[self.random.below(8) as usize];
            }
            _ => {}
        }
        if function == Function::VcpuCreate && self.random.below(2) == 0 {
            args[4] = 16 * self.random.below(17);
            // With SME.
            if self.random.below(2) == 0 {
                args[4] |= (16 << self.random.below(6)) << 16;
            }
            // AArch32.
            if self.random.below(4) == 0 {
                args[4] = (1 << 32) | (args[4] * self.random.below(2));
            }
        }
        // A page that the kernel or somebody else needs is not among them: a range that begins in
        // the region may leave it.
        let end = self.region + self.pages * PAGE;
        if matches!(function, Function::VmCreate) && self.within(args[0]) {
            args[1] = args[1].min((end - args[0]) / PAGE).min(9);
        } else if matches!(function, Function::VmTopup | Function::VcpuCreate)
            && self.within(args[1])
        {
            let most = ((end - args[1]) / PAGE).min(9);
            args[2] = match function {
                // Beside the number of pages there are the vCPU's index and its affinity.
                Function::VcpuCreate if self.random.below(8) != 0 => {
                    let index = self.random.below(3);
                    (args[2] & 0xffff).min(most) | index << 16 | index << 32
                }
                Function::VcpuCreate => args[2] & !0xffff | (args[2] & 0xffff).min(most),
                _ => args[2].min(most),
            };
        } else if function == Function::VmMap && self.within(args[1]) {
            args[3] = args[3].min((end - args[1]) / PAGE);
        }
        self.calls += 1;
        if !wanted(function) {
            return false;
        }
        let daif = sysreg::mask_interrupts();
        let (x0, results) = Hvc::raw(function.id() ^ upper, args);
        sysreg::restore_interrupts(daif);
        let code = x0 as i64;
        let Self { seed, calls, .. } = self;
        assert!(
            code == SUCCESS || Error::from_code(code).is_some(),
            "call {calls} of seed {seed:#x}: {function:?} {args:x?} answers {x0:#x}"
        );
        if code == SUCCESS && function == Function::VmCreate {
            self.handles[self.random.below(8) as usize] = results[0];
            ledger::enter_if_room(VmHandle(results[0]));
        }
        code == SUCCESS
    }
}
