//! GICs for guests that have no driver for one: everything is enabled before they begin.

use umbra_host::{
    vcpu::MmioAnswer,
    vgic::{
        Events, Frame, Interface, SpiCell, VcpuCell, Vgic,
        registers::{
            CTLR_ENABLE_GRP1, GICD_CTLR, GICD_IPRIORITYR, GICD_ISENABLER, SGI_BASE, Width,
        },
    },
};
use umbra_patterns::protocol::{GICD, GICR};
use umbra_shared::exit::MmioAccess;

/// Who has nobody to tell: its vCPU is alone, and whoever wants something of it is on its CPU.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Events for Nobody {
    fn kick(&mut self, _: usize) {}
    fn resample(&mut self, _: usize, _: u16) {}
}

/// A vCPU's part of such a GIC.
pub type Own<'g> = Interface<'g, Nobody>;

/// The priority of everything.
const PRIORITY: u64 = 0xa0a0_a0a0;

/// A GIC of these cells, all of whose interrupts are enabled and level-sensitive (SGIs aside), of group 1.
pub fn enabled<'g>(vcpus: &'g [VcpuCell], spis: &'g [SpiCell]) -> Vgic<'g> {
    let vgic = Vgic::new(vcpus, spis, 5).expect("cells of a GIC");
    let told = &mut Nobody;
    vgic.write_distributor(GICD_CTLR.into(), Width::Word, CTLR_ENABLE_GRP1.into(), told);
    for n in 1..=spis.len() as u64 / 32 {
        let at = u64::from(GICD_ISENABLER) + 4 * n;
        vgic.write_distributor(at, Width::Word, 0xffff_ffff, told);
        for four in 0..8 {
            let at = u64::from(GICD_IPRIORITYR) + 32 * n + 4 * four;
            vgic.write_distributor(at, Width::Word, PRIORITY, told);
        }
    }
    for vcpu in 0..vcpus.len() {
        let base = u64::from(SGI_BASE);
        let at = base + u64::from(GICD_ISENABLER);
        vgic.write_redistributor(vcpu, at, Width::Word, 0xffff_ffff, told);
        for four in 0..8 {
            let at = base + u64::from(GICD_IPRIORITYR) + 4 * four;
            vgic.write_redistributor(vcpu, at, Width::Word, PRIORITY, told);
        }
    }
    vgic
}

/// The first vCPU's part, on a CPU with as many list registers as any has at least.
pub fn first<'g>(vgic: &'g Vgic<'g>) -> Own<'g> {
    Interface::new(vgic, 0, 1, Nobody).expect("it has a vCPU")
}

/// A guest's access to its GIC, if it is one.
pub fn access(
    vgic: &Vgic<'_>,
    address: u64,
    access: MmioAccess,
    data: u64,
    told: &mut impl Events,
) -> Option<MmioAnswer> {
    let (frame, offset) = Frame::at(address, Some(GICD), [(GICR, vgic.vcpus())])?;
    let loaded = vgic.access(frame, offset, access, data, told)?;
    Some(MmioAnswer::done(access, loaded))
}
