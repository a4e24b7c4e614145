//! A vCPU's thread.

use crate::console::Console;
use crate::layout;
use crate::report::{Counters, End};
use anyhow::{Context, Result};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::{Arc, mpsc::Sender};

/// Starts it. Whatever ends the machine goes to `ends`.
pub fn start(
    mut vcpu: VcpuFd,
    console: Console,
    counters: Arc<Counters>,
    ends: Sender<End>,
) -> Result<()> {
    let run = move || {
        let end = loop {
            match step(&mut vcpu, &console, &counters) {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(why) => break End::Failed(why),
            }
        };
        // If nobody listens the machine has ended already.
        let _ = ends.send(end);
    };
    std::thread::Builder::new().name("vcpu".to_owned()).spawn(run).context("a thread")?;
    Ok(())
}

/// Runs it up to what is to be done here.
fn step(vcpu: &mut VcpuFd, console: &Console, counters: &Counters) -> Result<Option<End>, String> {
    let serial = layout::SERIAL..layout::SERIAL + layout::SERIAL_BYTES;
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            Counters::count(&counters.reads);
            if serial.contains(&address) {
                console.read(address - layout::SERIAL, data);
            } else {
                data.fill(0);
            }
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            Counters::count(&counters.writes);
            if serial.contains(&address) {
                console.write(address - layout::SERIAL, data);
            }
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Ok(Some(End::Off)),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ok(Some(End::Reset)),
        Ok(VcpuExit::Intr) => Counters::count(&counters.interrupted),
        Ok(other) => return Ok(Some(End::Broken(format!("{other:?}")))),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            Counters::count(&counters.interrupted);
        }
        Err(error) => return Err(format!("KVM_RUN: {error}")),
    }
    Ok(None)
}
