//! What the first vCPU does for its machine: it finds out whether it is protected, says where its device is, and
//! turns the other vCPUs on.

use crate::{fail, hvc, hvc2};
use umbra_patterns::protocol::{ARGUMENT, DEVICE, Failure, MAX_VCPUS};
use umbra_shared::guest::{GuestFunction, UID};

/// PSCI CPU_ON, and that the CPU is on already.
const CPU_ON: u64 = 0xc400_0003;
const ALREADY_ON: u64 = -4i64 as u64;

pub fn begin() {
    // Of a normal VM it is the host that answers, and not with this.
    if hvc([GuestFunction::Uid.id(), 0, 0, 0, 0, 0]) == u64::from(UID[0]) {
        let enrolled = hvc([GuestFunction::MmioGuard.id(), DEVICE, 0, 0, 0, 0]);
        if enrolled != 0 {
            fail(Failure::Garbled(enrolled));
        }
    }
    for vcpu in 1..MAX_VCPUS as u64 {
        let [argument, entry] = hvc2([ARGUMENT, vcpu, 0, 0, 0, 0]);
        if argument == 0 {
            break;
        }
        let answer = hvc([CPU_ON, vcpu, entry, argument, 0, 0]);
        if answer != 0 && answer != ALREADY_ON {
            fail(Failure::Garbled(answer));
        }
    }
}
