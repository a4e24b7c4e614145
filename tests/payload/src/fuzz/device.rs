//! A device of the host's that reads and writes the program's pages, where the machine has one.
//!
//! Whether it may have is for the specification to say: it is told when an access begins and how it ended
//! ([`DeviceNote`]), in the log where hyp's transitions are.

use super::calls::{TAGS, is_mine, page};
use crate::dma::edu::{self, Edu};
use core::sync::atomic::{AtomicU64, Ordering};
use umbra_host::{
    hypercall::Hvc,
    kernel::{exception::probe_read, sync::Lock},
};
use umbra_shared::{call::Function, record::DeviceNote};

/// Where it writes in a page: neither where tags are nor where a guest's agent stores.
const TARGET: u64 = 0xa00;

/// No page is at this address or above.
const BEHIND_ALL: u64 = !0xfff;

/// Ways that an access ends, as its step's result.
const NO_DEVICE: u64 = 3;
const BUSY: u64 = 4;

/// It, and the word in its buffer.
static DEVICE: Lock<Option<(Edu, u64)>> = Lock::new(None);
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Before a program: looks for it.
pub fn begin() {
    let device = edu::all().ok().and_then(|all| all.first().copied());
    *DEVICE.lock() = device.map(|device| {
        device.hold(0);
        (device, 0)
    });
}

fn note(note: DeviceNote) {
    let [x1, x2, x3] = note.encode();
    Hvc::raw(Function::Version.id(), [x1, x2, x3, 0, 0, 0, 0]);
}

/// An access begins: whatever is numbered before has been done when this returns. (A page that changes hands is
/// numbered when its lock is taken, and this waits for the lock.)
fn begins(pa: u64) {
    note(DeviceNote::Begins { pa });
    Hvc::raw(Function::NextSharedPage.id(), [BEHIND_ALL, 0, 0, 0, 0, 0, 0]);
}

/// The device reads a page, or writes it if that is this CPU's business.
pub fn access(cpu: usize, n: u8, write: bool) -> u64 {
    if write && !is_mine(cpu, n) {
        return 2;
    }
    let Some(mut device) = DEVICE.try_lock() else { return BUSY };
    let Some((device, held)) = &mut *device else { return NO_DEVICE };
    note(if write { writes(device, held, n) } else { reads(device, held, n) });
    0
}

fn writes(device: &Edu, held: &mut u64, n: u8) -> DeviceNote {
    let at = page(n) + TARGET;
    *held = 0xde71_ce00_0000_0000 | WRITES.fetch_add(1, Ordering::SeqCst);
    device.hold(*held);
    begins(page(n));
    device.deliver(at, 0, 8);
    match probe_read(at) {
        Ok(found) if found == *held => DeviceNote::Reached,
        Ok(_) => DeviceNote::Refused,
        Err(_) => DeviceNote::Unknown,
    }
}

fn reads(device: &Edu, held: &mut u64, n: u8) -> DeviceNote {
    let at = page(n) + TAGS;
    let there = probe_read(at);
    begins(page(n));
    device.fetch(at, 0, 8);
    let found = device.held();
    // One that was refused leaves what was there, or nothing.
    let nothing = found == *held || found == 0;
    let tells = there.is_ok_and(|word| word != *held && word != 0);
    *held = found;
    match (nothing, tells) {
        (false, _) => DeviceNote::Reached,
        (true, true) => DeviceNote::Refused,
        (true, false) => DeviceNote::Unknown,
    }
}
