//! What a guest has of interrupts: its virtual timer, and the GIC's virtual CPU interface.
//!
//! The host has the physical interface and the physical timer. While a guest runs, the host's CNTV
//! deadline is armed in CNTHP, so that its tick is not lost.

use crate::arch::sysreg::*;
use crate::world::entries::{self, ListRegisters};
use umbra_shared::error::Error;
use umbra_shared::exit::{NO_DEADLINE, RunFlags};
use umbra_shared::interrupt::{Interface, MAX_ENTRIES, Signalled, States};

/// A guest's virtual timer.
#[derive(Clone, Debug, Default)]
pub struct Timer {
    ctl: u64,
    cval: u64,
    /// CNTVOFF_EL2: the physical counter when the VM was created.
    offset: u64,
}

impl Timer {
    /// A timer that is off, in a VM whose clock began at `offset`.
    pub const fn with_offset(offset: u64) -> Self {
        Self { ctl: 0, cval: 0, offset }
    }

    /// CNTV_CTL_EL0, without ISTATUS, CNTV_CVAL_EL0 and CNTVOFF_EL2, while it is in no CPU's registers.
    pub fn registers(&mut self) -> [&mut u64; 3] {
        [&mut self.ctl, &mut self.cval, &mut self.offset]
    }

    /// The timer is off; the clock goes on.
    pub fn reset(&mut self) {
        *self = Self::with_offset(self.offset);
    }
}

/// A guest's view of the GIC's CPU interface.
#[derive(Clone, Debug, Default)]
pub struct VirtualGic {
    vmcr: u64,
    ap0r0: u64,
    ap1r0: u64,
    /// What this run carries. The host offers what is left anew each time.
    lists: ListRegisters,
}

/// CNTx_CTL bits.
const TIMER_ENABLE: u64 = 1;
const TIMER_IMASK: u64 = 1 << 1;
const TIMER_ISTATUS: u64 = 1 << 2;

/// ICH_HCR_EL2: En, UIE, LRENPIE, EOIcount (31:27).
const ICH_HCR_EN: u64 = 1;
const ICH_HCR_UIE: u64 = 1 << 1;
const ICH_HCR_LRENPIE: u64 = 1 << 2;
const ICH_HCR_EOI_COUNT_SHIFT: u32 = 27;

/// The host's timer makes way for a guest's; the host's deadline moves to CNTHP. Returns the host's
/// CTL and CVAL.
#[inline]
pub fn enter_timer(guest: &Timer) -> [u64; 2] {
    let host = [read_cntv_ctl_el0(), read_cntv_cval_el0()];
    if host[0] & (TIMER_ENABLE | TIMER_IMASK) == TIMER_ENABLE {
        // The host's CNTVOFF is zero, so its virtual deadline is a physical one.
        write_cnthp_cval_el2(host[1]);
        write_cnthp_ctl_el2(TIMER_ENABLE);
    }
    write_cntvoff_el2(guest.offset);
    write_cntv_cval_el0(guest.cval);
    write_cntv_ctl_el0(guest.ctl);
    host
}

/// The reverse. Returns whether the guest's timer asserts its interrupt.
#[inline]
pub fn leave_timer(guest: &mut Timer, host: [u64; 2]) -> bool {
    let ctl = read_cntv_ctl_el0();
    guest.ctl = ctl & (TIMER_ENABLE | TIMER_IMASK);
    guest.cval = read_cntv_cval_el0();
    clear_cntvoff_el2();
    write_cntv_cval_el0(host[1]);
    write_cntv_ctl_el0(host[0] & (TIMER_ENABLE | TIMER_IMASK));
    if host[0] & (TIMER_ENABLE | TIMER_IMASK) == TIMER_ENABLE {
        clear_cnthp_ctl_el2();
    }
    ctl & (TIMER_ENABLE | TIMER_IMASK | TIMER_ISTATUS) == TIMER_ENABLE | TIMER_ISTATUS
}

/// What the interface of the guest whose registers this CPU has signals to it.
pub fn signalled() -> Signalled {
    Signalled::of(read_ich_vmcr_el2())
}

/// When the virtual timer of the guest whose registers this CPU has asserts its interrupt, in ticks of the physical
/// counter; [`NO_DEADLINE`]: not as it is set.
pub fn deadline() -> u64 {
    deadline_of(read_cntv_ctl_el0(), read_cntv_cval_el0(), read_cntvoff_el2())
}

/// Of a timer with these registers. Beyond the counter's end is never, whatever an addition makes of it.
const fn deadline_of(ctl: u64, cval: u64, offset: u64) -> u64 {
    if ctl & (TIMER_ENABLE | TIMER_IMASK) == TIMER_ENABLE {
        cval.saturating_add(offset)
    } else {
        NO_DEADLINE
    }
}

impl VirtualGic {
    /// ICH_VMCR_EL2, ICH_AP0R0_EL2 and ICH_AP1R0_EL2, while it is in no CPU's registers.
    pub fn registers(&mut self) -> [&mut u64; 3] {
        [&mut self.vmcr, &mut self.ap0r0, &mut self.ap1r0]
    }

    /// Takes the interrupts of the next run from the host's x6 to x13.
    ///
    /// # Errors
    ///
    /// Those of [`entries::check`]; then it carries none.
    #[cold]
    #[inline(never)]
    pub fn offer(&mut self, flags: RunFlags, words: &[u64; MAX_ENTRIES / 2]) -> Result<(), Error> {
        self.lists = entries::check(flags, words, interface())?;
        Ok(())
    }

    /// The vCPU is bound to this CPU: its interface goes into the registers, off for now. The host,
    /// whose own interface is the physical one, can't reach them.
    pub fn load(&self) {
        write_ich_vmcr_el2(self.vmcr);
        write_ich_ap0r0_el2(self.ap0r0);
        write_ich_ap1r0_el2(self.ap1r0);
    }

    /// It is unbound.
    pub fn put(&mut self) {
        self.vmcr = read_ich_vmcr_el2();
        self.ap0r0 = read_ich_ap0r0_el2();
        self.ap1r0 = read_ich_ap1r0_el2();
    }

    /// Turns the guest's CPU interface on, with what the run carries.
    #[inline]
    pub fn enter(&self, flags: RunFlags) {
        if self.lists.is_empty() {
            write_ich_hcr_el2(ICH_HCR_EN);
        } else {
            self.enter_with_lists(flags.contains(RunFlags::UNDERFLOW));
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_with_lists(&self, underflow: bool) {
        for (n, list) in self.lists.iter().enumerate() {
            write_list_register(n, list.bits());
        }
        write_ich_hcr_el2(ICH_HCR_EN | if underflow { ICH_HCR_UIE | ICH_HCR_LRENPIE } else { 0 });
    }

    /// Turns it off, which also drops the maintenance interrupt. Returns what became of the interrupts of the run, if
    /// it had any: the list registers are empty again.
    #[inline]
    pub fn leave(&mut self) -> Option<States> {
        if self.lists.is_empty() {
            clear_ich_hcr_el2();
            None
        } else {
            Some(self.leave_with_lists())
        }
    }

    #[cold]
    #[inline(never)]
    fn leave_with_lists(&mut self) -> States {
        let eois = read_ich_hcr_el2() >> ICH_HCR_EOI_COUNT_SHIFT;
        clear_ich_hcr_el2();
        let mut states = States::default().with_eoi_count(eois);
        for n in 0..self.lists.len() {
            states = states.with(n, entries::state(read_list_register(n)));
            write_list_register(n, 0);
        }
        self.lists.clear();
        states
    }
}

macro_rules! list_registers {
    ($($n:literal $register:literal)*) => {
        /// `ICH_LR<n>_EL2`, which the CPU has.
        fn write_list_register(n: usize, value: u64) {
            match n {
                // SAFETY: an implemented list register; it is looked at while a guest runs, and what is in it then is
                // zero or has been checked.
                $($n => unsafe {
                    core::arch::asm!(concat!("msr ", $register, ", {}"), in(reg) value, options(nostack));
                },)*
                _ => {}
            }
        }

        /// `ICH_LR<n>_EL2`, which the CPU has.
        fn read_list_register(n: usize) -> u64 {
            let mut value = 0;
            match n {
                // SAFETY: reading an implemented list register has no effect but to give its value.
                $($n => unsafe {
                    core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack));
                },)*
                _ => {}
            }
            value
        }
    };
}

list_registers! {
    0 "s3_4_c12_c12_0" 1 "s3_4_c12_c12_1" 2 "s3_4_c12_c12_2" 3 "s3_4_c12_c12_3"
    4 "s3_4_c12_c12_4" 5 "s3_4_c12_c12_5" 6 "s3_4_c12_c12_6" 7 "s3_4_c12_c12_7"
    8 "s3_4_c12_c13_0" 9 "s3_4_c12_c13_1" 10 "s3_4_c12_c13_2" 11 "s3_4_c12_c13_3"
    12 "s3_4_c12_c13_4" 13 "s3_4_c12_c13_5" 14 "s3_4_c12_c13_6" 15 "s3_4_c12_c13_7"
}

/// This CPU's list registers.
pub fn interface() -> Interface {
    Interface::of(read_ich_vtr_el2())
}

/// The most priority bits with which all active priorities fit AP0R0 and AP1R0, which are switched.
const MAX_PREBITS: u64 = 5;

/// Whether the GIC's virtual CPU interface has no more state than hyp switches.
pub fn virtual_interface_fits() -> bool {
    (read_ich_vtr_el2() >> 26 & 7) < MAX_PREBITS
}

/// What the virtual CPU interface holds after reset is anything: a list register left over would
/// interrupt a guest.
pub fn clear_virtual_interface() {
    for n in 0..interface().registers {
        write_list_register(n.into(), 0);
    }
    write_ich_ap0r0_el2(0);
    write_ich_ap1r0_el2(0);
    write_ich_vmcr_el2(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_when_the_physical_counter_says_so() {
        for (ctl, cval, offset, due) in [
            (1, 1000, 0, 1000),
            (5, 1000, 7, 1007),
            (1, u64::MAX - 7, 7, NO_DEADLINE),
            // To the guest that is 580 years away, and not long ago.
            (1, u64::MAX - 1, 1000, NO_DEADLINE),
            (1, u64::MAX, 1, NO_DEADLINE),
            (0, 1000, 0, NO_DEADLINE),
            (3, 1000, 0, NO_DEADLINE),
            (2, 1000, 0, NO_DEADLINE),
        ] {
            assert_eq!(deadline_of(ctl, cval, offset), due, "{ctl} {cval:#x} {offset}");
        }
    }
}
