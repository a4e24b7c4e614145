//! A vCPU's thread.

use crate::bus::Bus;
use crate::gate::{Gate, Live};
use crate::report::{Counters, End};
use crate::supervisor::{Alarm, Notice};
use anyhow::{Context, Result};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};
use std::sync::{Arc, mpsc::Sender};
use std::thread::JoinHandle;

/// What all vCPUs have around them.
pub struct Surroundings {
    /// What they reach by loads and stores.
    pub bus: Bus,
    /// What they pass before they enter the guest.
    pub gate: Arc<Gate>,
    /// What they count.
    pub counters: Arc<Counters>,
}

thread_local! {
    /// `immediate_exit` of the thread's vCPU, as long as there is one.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// As long as it is there, a kick reaches the vCPU.
struct Kickable;

impl Kickable {
    /// This vCPU, which must be there for longer.
    fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// The handler of a kick. If it comes before KVM_RUN, that returns at once; if during it, the signal itself ends it.
pub extern "C" fn kicked(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: it points into the `kvm_run` that this thread's VcpuFd has mapped, which is there until the pointer is
        // cleared. Only this thread and the kernel access the byte.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Relaxed);
    }
}

/// Starts it. Whatever ends the machine goes to `notices`.
///
/// # Errors
///
/// No thread.
pub fn start(
    mut vcpu: VcpuFd,
    surroundings: Arc<Surroundings>,
    notices: Sender<Notice>,
) -> Result<JoinHandle<()>> {
    let run = move || {
        // Also if it panics: the machine ends, nobody waits for this thread, and no kick looks for its vCPU.
        let _live = Live::new(surroundings.gate.clone());
        let _alarm = Alarm::new(notices.clone());
        let _kickable = Kickable::new(&mut vcpu);
        surroundings.counters.begin();
        if let Some(end) = go_on(&mut vcpu, &surroundings) {
            // If nobody listens the machine has ended already.
            let _ = notices.send(Notice::End(end));
        }
    };
    std::thread::Builder::new().name("vcpu".to_owned()).spawn(run).context("a thread")
}

/// Runs it until the machine ends. Returns why, if that is because of it.
fn go_on(vcpu: &mut VcpuFd, surroundings: &Surroundings) -> Option<End> {
    loop {
        // In this order: a kick from here on makes KVM_RUN return, and one before is seen at the gate.
        vcpu.set_kvm_immediate_exit(0);
        compiler_fence(SeqCst);
        if !surroundings.gate.pass() {
            return None;
        }
        if let Some(end) = step(vcpu, surroundings) {
            return Some(end);
        }
    }
}

/// Runs it up to what is to be done here.
fn step(vcpu: &mut VcpuFd, Surroundings { bus, counters, .. }: &Surroundings) -> Option<End> {
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            Counters::count(&counters.reads);
            bus.read(address, data);
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            Counters::count(&counters.writes);
            bus.write(address, data);
        }
        Ok(VcpuExit::SystemEvent(
            event @ (KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET),
            _,
        )) => {
            Counters::count(&counters.system_events);
            return Some(if event == KVM_SYSTEM_EVENT_SHUTDOWN { End::Off } else { End::Reset });
        }
        Ok(VcpuExit::Intr) => Counters::count(&counters.interrupted),
        Ok(other) => {
            Counters::count(&counters.others);
            return Some(End::Broken(format!("{other:?}")));
        }
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            Counters::count(&counters.interrupted);
        }
        Err(error) => {
            Counters::count(&counters.others);
            return Some(End::Failed(format!("KVM_RUN: {error}")));
        }
    }
    None
}
