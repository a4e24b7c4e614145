//! The guests' GICs.

use super::{PLAN, VMS};
use core::sync::atomic::{AtomicUsize, Ordering};
use umbra_host::{
    kernel::{MAX_CPUS, gic, smp},
    vgic::{Events, Frame, Interface, Line, SpiCell, VcpuCell, Vgic},
};
use umbra_patterns::protocol::{DEVICE_SPI, GICD, GICR};
use umbra_shared::exit::MmioAccess;

/// SPIs of each.
const SPIS: usize = 32;

static VCPUS: [[VcpuCell; MAX_CPUS]; VMS] = [const { cells() }; VMS];
static SPI_CELLS: [[SpiCell; SPIS]; VMS] = [const { [const { SpiCell::new() }; SPIS] }; VMS];

/// Where each vCPU runs: CPU plus one; 0: nowhere.
static RUNNING: [[AtomicUsize; MAX_CPUS]; VMS] =
    [const { [const { AtomicUsize::new(0) }; MAX_CPUS] }; VMS];

/// A vCPU's affinity is its number.
const fn cells() -> [VcpuCell; MAX_CPUS] {
    let mut cells = [const { VcpuCell::new(0) }; MAX_CPUS];
    let mut n = 0;
    while n < MAX_CPUS {
        cells[n] = VcpuCell::new(n as u32);
        n += 1;
    }
    cells
}

/// That of a VM with so many vCPUs, whose smallest CPU has priorities of so many bits.
pub fn new(vm: usize, vcpus: usize, priority_bits: u8) -> Option<Vgic<'static>> {
    Vgic::new(&VCPUS[vm][..vcpus], &SPI_CELLS[vm], priority_bits).ok()
}

/// Whoever has to know of a VM's interrupts.
pub struct Kicks {
    vm: usize,
}

impl Events for Kicks {
    /// Where it runs, that stops it; where it doesn't, it looks when it does.
    fn kick(&mut self, vcpu: usize) {
        let running = RUNNING[self.vm][vcpu].load(Ordering::SeqCst);
        if let (Some(cpu), Some(plan)) = (running.checked_sub(1), PLAN.get())
            && cpu != smp::cpu()
        {
            gic::send_sgi(plan.affinities[cpu], gic::KICK);
        }
    }

    fn resample(&mut self, _: usize, _: u16) {}
}

/// A vCPU's part, and that it runs here until this is dropped.
pub struct Running<'g> {
    pub interface: Interface<'g, Kicks>,
    place: &'static AtomicUsize,
}

impl<'g> Running<'g> {
    pub fn here(
        vgic: &'g Vgic<'g>,
        vm: usize,
        vcpu: usize,
        cpu: usize,
        registers: u8,
    ) -> Option<Self> {
        let interface = Interface::new(vgic, vcpu, registers, Kicks { vm }).ok()?;
        let place = &RUNNING[vm][vcpu];
        // Before its interrupts are looked at: who sends one later finds it here.
        place.store(cpu + 1, Ordering::SeqCst);
        Some(Self { interface, place })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.place.store(0, Ordering::SeqCst);
    }
}

/// A guest's access to its GIC, if it is one: what it loads.
pub fn access(
    vgic: &Vgic<'_>,
    vm: usize,
    address: u64,
    access: MmioAccess,
    data: u64,
) -> Option<u64> {
    let (frame, offset) = Frame::at(address, Some(GICD), [(GICR, vgic.vcpus())])?;
    vgic.access(frame, offset, access, data, &mut Kicks { vm })
}

/// The device's line goes up or down.
pub fn device(vgic: &Vgic<'_>, vm: usize, up: bool) {
    // There are 32 SPIs, of which this is one.
    let _ = vgic.set_line(Line::Spi(DEVICE_SPI), up, &mut Kicks { vm });
}
