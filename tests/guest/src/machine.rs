//! What the first vCPU does for its machine: it finds out whether it is protected, says where its device is, and
//! turns the other vCPUs on.

use crate::{fail, gic, hvc, hvc2};
use umbra_patterns::protocol::{
    ARGUMENT, DEVICE, DEVICE_BYTES, Failure, GICD, GICD_BYTES, GICR, GICR_BYTES, MAX_VCPUS, Mode,
};
use umbra_shared::guest::{GuestFunction, UID};

/// PSCI CPU_ON, and that the CPU is on already.
const CPU_ON: u64 = 0xc400_0003;
const ALREADY_ON: u64 = -4i64 as u64;

pub fn begin(mode: Mode) {
    // Of a normal VM it is the host that answers, and not with this.
    let protected = hvc([GuestFunction::Uid.id(), 0, 0, 0, 0, 0]) == u64::from(UID[0]);
    let enrol = |first: u64, bytes: u64| {
        for page in (first..first + bytes).step_by(4096).filter(|_| protected) {
            let enrolled = hvc([GuestFunction::MmioGuard.id(), page, 0, 0, 0, 0]);
            if enrolled != 0 {
                fail(Failure::Garbled(enrolled));
            }
        }
    };
    enrol(DEVICE, DEVICE_BYTES);
    if mode == Mode::Verify {
        enrol(GICD, GICD_BYTES);
        // Before anybody else is on: each of them finds its own in place.
        let others = (1..MAX_VCPUS as u64).take_while(|&vcpu| {
            let [argument, _] = hvc2([ARGUMENT, vcpu, 0, 0, 0, 0]);
            argument != 0
        });
        enrol(GICR, GICR_BYTES * (1 + others.count() as u64));
        gic::begin();
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
