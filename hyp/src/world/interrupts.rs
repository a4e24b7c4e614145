//! What a guest has of interrupts: its virtual timer, and the GIC's virtual CPU interface.
//!
//! The host has the physical interface and the physical timer. While a guest runs, the host's CNTV
//! deadline is armed in CNTHP, so that its tick is not lost.

use crate::arch::sysreg::*;

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
    lr0: u64,
}

/// CNTx_CTL bits.
const TIMER_ENABLE: u64 = 1;
const TIMER_IMASK: u64 = 1 << 1;
const TIMER_ISTATUS: u64 = 1 << 2;

/// ICH_LR<n>_EL2: state (63:62), group 1 (60), EOI maintenance interrupt (41), priority (55:48).
const LR_STATE: u64 = 3 << 62;
const LR_PENDING: u64 = 1 << 62;
const LR_GROUP1: u64 = 1 << 60;
const LR_EOI_MAINTENANCE: u64 = 1 << 41;
const LR_PRIORITY: u64 = 0xa0 << 48;

const ICH_HCR_EN: u64 = 1;

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

impl VirtualGic {
    /// Whether an injected interrupt is pending or active.
    pub const fn in_flight(&self) -> bool {
        self.lr0 & LR_STATE != 0
    }

    /// Makes `intid` pending, with an exit when the guest completes it. The vCPU is loaded here.
    pub fn inject(&mut self, intid: u16) {
        self.lr0 = LR_PENDING | LR_GROUP1 | LR_EOI_MAINTENANCE | LR_PRIORITY | u64::from(intid);
        write_ich_lr0_el2(self.lr0);
    }

    /// The vCPU is bound to this CPU: its interface goes into the registers, off for now. The host,
    /// whose own interface is the physical one, can't reach them.
    pub fn load(&self) {
        write_ich_vmcr_el2(self.vmcr);
        write_ich_ap0r0_el2(self.ap0r0);
        write_ich_ap1r0_el2(self.ap1r0);
        write_ich_lr0_el2(self.lr0);
    }

    /// It is unbound.
    pub fn put(&mut self) {
        self.vmcr = read_ich_vmcr_el2();
        self.ap0r0 = read_ich_ap0r0_el2();
        self.ap1r0 = read_ich_ap1r0_el2();
    }

    /// Turns the guest's CPU interface on.
    #[inline]
    pub fn enter(&self) {
        write_ich_hcr_el2(ICH_HCR_EN);
    }

    /// Turns it off, which also drops the maintenance interrupt. Returns whether an injected interrupt is
    /// still pending or active.
    #[inline]
    pub fn leave(&mut self) -> bool {
        let lr0 = read_ich_lr0_el2();
        clear_ich_hcr_el2();
        self.lr0 = lr0;
        lr0 != 0 && self.injected()
    }

    /// The list register holds something; once it is completed, no longer, lest it ask for maintenance
    /// again.
    #[cold]
    fn injected(&mut self) -> bool {
        if !self.in_flight() {
            self.lr0 = 0;
            write_ich_lr0_el2(0);
        }
        self.in_flight()
    }
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
    macro_rules! clear {
        ($count:expr; $($n:literal $register:literal)*) => {
            $(if $count > $n {
                // SAFETY: an implemented list register, with the interface off.
                unsafe { core::arch::asm!(concat!("msr ", $register, ", xzr"), options(nostack)) };
            })*
        };
    }
    let list_registers = (read_ich_vtr_el2() & 0x1f) + 1;
    clear!(list_registers;
        0 "s3_4_c12_c12_0" 1 "s3_4_c12_c12_1" 2 "s3_4_c12_c12_2" 3 "s3_4_c12_c12_3"
        4 "s3_4_c12_c12_4" 5 "s3_4_c12_c12_5" 6 "s3_4_c12_c12_6" 7 "s3_4_c12_c12_7"
        8 "s3_4_c12_c13_0" 9 "s3_4_c12_c13_1" 10 "s3_4_c12_c13_2" 11 "s3_4_c12_c13_3"
        12 "s3_4_c12_c13_4" 13 "s3_4_c12_c13_5" 14 "s3_4_c12_c13_6" 15 "s3_4_c12_c13_7"
    );
    write_ich_ap0r0_el2(0);
    write_ich_ap1r0_el2(0);
    write_ich_vmcr_el2(0);
}
