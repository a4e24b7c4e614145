//! The virtual machine: what it has, how it is set up, and how it ends.
//!
//! vCPUs with PSCI, of which the first is on; all of SVE's vector lengths up to one; pointer authentication, if both
//! halves of it are there; a GICv3 and the generic timer; memory; a serial port; virtio's devices. Addresses are in
//! [`layout`].

use crate::arguments::{Console, Run};
use crate::boot::{self, Start};
use crate::bus::Bus;
use crate::control::{Server, Signals};
use crate::devices;
use crate::events::{EventLoop, Subscriber};
use crate::gate::Gate;
use crate::gic;
use crate::layout;
use crate::ram;
use crate::report::{self, Counters, Decided, DeviceCounters, End, Report};
use crate::serial::Uart;
use crate::signals;
use crate::stats::Stats;
use crate::supervisor::Supervisor;
use crate::terminal::{self, Output, Raw};
use crate::vcpu::{self, Surroundings};
use crate::virtio::memory::DeviceMemory;
use crate::virtio::mmio::{NOTIFY, Transport};
use crate::virtio::worker::{Shared, Worker};
use anyhow::{Context, Result, ensure};
use kvm_bindings::*;
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use vmm_sys_util::eventfd::EventFd;

/// MPIDR_EL1.
const MPIDR: u64 = 0x6030_0000_0013_c005;
/// KVM_REG_ARM64_SVE_VLS.
const VECTOR_LENGTHS: u64 = 0x6060_0000_0015_ffff;
/// x0 and PC.
const X0: u64 = 0x6030_0000_0010_0000;
const PC: u64 = 0x6030_0000_0010_0040;
/// The affinity fields of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Boots it, waits for its end, and writes the report.
///
/// # Errors
///
/// It can't be set up.
pub fn run(arguments: &Run) -> Result<End> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    ensure!(kvm.get_api_version() == 12, "/dev/kvm speaks API {}", kvm.get_api_version());
    let (vm, alias) = ram::virtual_machine(&kvm, arguments)?;
    let memory = ram::memory(&vm, arguments)?;
    let vcpus = vcpus(&vm, arguments)?;
    let count = vcpus.len();
    // As long as the machine.
    let _gic = gic::make(&vm, count)?;

    let counters = Arc::new(Counters::default());
    let gate = Arc::new(Gate::new(count));
    let output = || Output::new(counters.clone(), gate.clone()).context("standard output");
    let mut machine =
        Machine { vm: &vm, bus: Bus::default(), devices: Vec::new(), loops: Vec::new() };
    let (terminal, input) = UnixStream::pair().context("a pair of sockets")?;
    let mut input = Some(input);
    machine.add_serial(output()?, input.take_if(|_| arguments.console == Some(Console::Serial)))?;
    let made = devices::make(arguments, input, output()?)?;
    let shared = made
        .into_iter()
        .map(|(device, counters)| {
            let memory = DeviceMemory::new(memory.clone(), alias);
            machine.add_virtio(|irq| Worker::new(device, memory, irq, counters.clone()), &counters)
        })
        .collect::<Result<Vec<_>>>()?;

    let affinities = vcpus.iter().map(affinity).collect::<Result<Vec<_>>>()?;
    let Start { entry, tree } = boot::load(arguments, &memory, &affinities, alias)?;
    let first = vcpus.first().context("no vCPU")?;
    first.set_one_reg(PC, &entry.to_le_bytes()).context("PC")?;
    first.set_one_reg(X0, &tree.to_le_bytes()).context("x0")?;

    let Machine { bus, devices, loops, .. } = machine;
    // Not every hypervisor tells.
    let stats = vcpus.iter().filter_map(|vcpu| Stats::of(vcpu).ok()).collect();
    let decided = arguments.protected.then(|| decided(first, alias));
    let report =
        Report { vcpus: count, protected: decided, counters: counters.clone(), stats, devices };
    let (sender, notices) = mpsc::channel();
    signals::on_kick(vcpu::kicked)?;
    let mut controls: Vec<Subscriber> =
        vec![Box::new(Signals::new(signals::catch()?, sender.clone()))];
    if let Some(path) = &arguments.control {
        controls.push(Box::new(Server::new(path, sender.clone())?));
    }
    let raw = arguments.console.map(|_| Raw::enter()).transpose()?;
    let device_loop = EventLoop::start("devices", loops, sender.clone())?;
    let control_loop = EventLoop::start("control", controls, sender.clone())?;
    if arguments.console.is_some() {
        terminal::listen(terminal, sender.clone())?;
    }
    let surroundings = Arc::new(Surroundings { bus, gate: gate.clone(), counters });
    let mut threads = vcpus
        .into_iter()
        .map(|vcpu| vcpu::start(vcpu, surroundings.clone(), sender.clone()))
        .collect::<Result<Vec<_>>>()?;

    let kick = || threads.iter().for_each(signals::kick);
    let (mut end, waits) = Supervisor::new(&gate, &report).supervise(&notices, kick);
    gate.stop();
    // A vCPU may wait for a device, and a device for the terminal.
    threads.push(device_loop.end());
    signals::join(threads);
    for device in shared {
        if let Err(error) = device.lock().finish() {
            end = End::Failed(format!("what was written may be lost: {error}"));
        }
    }
    if let Some(client) = waits {
        client.stopped();
    }
    signals::join(vec![control_loop.end()]);
    drop(raw);
    report::say(report.line(&end));
    Ok(end)
}

/// A machine while devices are added to it.
struct Machine<'a> {
    vm: &'a VmFd,
    bus: Bus,
    devices: Vec<Arc<DeviceCounters>>,
    loops: Vec<Subscriber>,
}

impl Machine<'_> {
    fn interrupt(&self, spi: u32) -> Result<EventFd> {
        let irq = EventFd::new(0).context("an eventfd")?;
        self.vm.register_irqfd(&irq, spi).context("KVM_IRQFD")?;
        Ok(irq)
    }

    fn add_serial(&mut self, output: Output, input: Option<UnixStream>) -> Result<()> {
        let uart = Uart::new(self.interrupt(layout::SERIAL_SPI)?, output).context("an eventfd")?;
        if let Some(input) = input {
            self.loops.push(Box::new(uart.listen(input).context("the serial port's input")?));
        }
        let counters = Arc::new(DeviceCounters::new("serial".to_owned()));
        let range = layout::SERIAL..layout::SERIAL + layout::SERIAL_BYTES;
        self.bus.add(range, Arc::new(uart), counters.clone());
        self.devices.push(counters);
        Ok(())
    }

    fn add_virtio(
        &mut self,
        make: impl FnOnce(EventFd) -> std::io::Result<Worker>,
        counters: &Arc<DeviceCounters>,
    ) -> Result<Shared> {
        // The serial port is the first of them.
        let (address, spi) = layout::virtio(self.devices.len() - 1);
        let worker = make(self.interrupt(spi)?).context("an eventfd")?;
        let notify = IoEventAddress::Mmio(address + NOTIFY);
        for (queue, kick) in (0u32..).zip(worker.kicks()) {
            self.vm.register_ioevent(kick, &notify, queue).context("KVM_IOEVENTFD")?;
        }
        let shared = Shared::new(worker);
        let range = address..address + layout::VIRTIO_BYTES;
        self.bus.add(range, Arc::new(Transport::new(shared.clone())), counters.clone());
        self.devices.push(counters.clone());
        self.loops.push(Box::new(shared.clone()));
        Ok(shared)
    }
}

fn vcpus(vm: &VmFd, arguments: &Run) -> Result<Vec<VcpuFd>> {
    let mut preferred = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut preferred).context("KVM_ARM_PREFERRED_TARGET")?;
    let has_sve = vm.check_extension(Cap::ArmSve);
    ensure!(has_sve || arguments.sve.is_none_or(|bytes| bytes == 0), "there is no SVE");
    let sve = has_sve && arguments.sve != Some(0);
    let pauth =
        vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric);
    let mut features = vec![KVM_ARM_VCPU_PSCI_0_2];
    if sve {
        features.push(KVM_ARM_VCPU_SVE);
    }
    if pauth {
        features.extend([KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC]);
    }
    let features = features.iter().fold(0, |all, bit| all | 1 << bit);
    let each = (0..arguments.cpus).map(|index| {
        let vcpu = vm.create_vcpu(index.into()).context("KVM_CREATE_VCPU")?;
        let off = if index == 0 { 0 } else { 1 << KVM_ARM_VCPU_POWER_OFF };
        let mut init = preferred;
        init.features[0] = features | off;
        vcpu.vcpu_init(&init).context("KVM_ARM_VCPU_INIT")?;
        if sve {
            if let Some(bytes) = arguments.sve {
                limit_vector_lengths(&vcpu, bytes)?;
            }
            let feature = KVM_ARM_VCPU_SVE as i32;
            vcpu.vcpu_finalize(&feature).context("KVM_ARM_VCPU_FINALIZE")?;
        }
        Ok(vcpu)
    });
    each.collect()
}

/// A vCPU's vector lengths, the bit of 16 bytes first.
fn lengths(vcpu: &VcpuFd) -> Result<u16> {
    let mut all = [0; 64];
    vcpu.get_one_reg(VECTOR_LENGTHS, &mut all).context("KVM_REG_ARM64_SVE_VLS")?;
    Ok(u16::from_le_bytes([all[0], all[1]]))
}

/// Leaves a vCPU the vector lengths up to this one, which must be one of them.
fn limit_vector_lengths(vcpu: &VcpuFd, bytes: u64) -> Result<()> {
    let set = lengths(vcpu)?;
    let bit = (bytes / 16).checked_sub(1).filter(|&bit| bytes.is_multiple_of(16) && bit < 16);
    let bit = bit.with_context(|| format!("{bytes} bytes are no vector length"))?;
    ensure!(set >> bit & 1 != 0, "vectors of {bytes} bytes can't be had here");
    let mut some = [0; 64];
    some[..2].copy_from_slice(&(set & (u16::MAX >> (15 - bit))).to_le_bytes());
    vcpu.set_one_reg(VECTOR_LENGTHS, &some).context("KVM_REG_ARM64_SVE_VLS")?;
    Ok(())
}

/// What a protected machine is measured by beside its arguments.
fn decided(vcpu: &VcpuFd, alias: u64) -> Decided {
    let address_bits = alias.trailing_zeros() + 1;
    // Without SVE there is no such register.
    let sve = lengths(vcpu).map_or(0, |set| 16 * u64::from(u16::BITS - set.leading_zeros()));
    Decided { address_bits, sve }
}

/// The affinity by which a vCPU is told from others.
fn affinity(vcpu: &VcpuFd) -> Result<u64> {
    let mut mpidr = [0; 8];
    vcpu.get_one_reg(MPIDR, &mut mpidr).context("MPIDR_EL1")?;
    Ok(u64::from_le_bytes(mpidr) & AFFINITY)
}
