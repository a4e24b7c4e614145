mod accesses;
mod lines;
mod machine;
mod model;
mod property;
mod runs;
mod threads;

use super::*;
use registers::Width;
use umbra_shared::interrupt::{Entry, MAX_ENTRIES, Signalled, State, States};

/// What the embedder was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    kicks: Vec<usize>,
    resampled: Vec<(usize, u16)>,
}

impl Events for Told {
    fn kick(&mut self, vcpu: usize) {
        self.kicks.push(vcpu);
    }
    fn resample(&mut self, vcpu: usize, intid: u16) {
        self.resampled.push((vcpu, intid));
    }
}

impl Told {
    /// The vCPUs that were kicked since the last time, once each.
    fn kicked(&mut self) -> Vec<usize> {
        let mut kicks = core::mem::take(&mut self.kicks);
        kicks.sort_unstable();
        kicks.dedup();
        kicks
    }
}

/// Unlike the vCPUs' numbers; one is beyond the reach of a TargetList without RS.
const AFFINITIES: [u32; 4] = [0x00_00_01, 0x00_00_00, 0x00_01_00, 0x02_00_13];

fn vcpus() -> [VcpuCell; 4] {
    AFFINITIES.map(VcpuCell::new)
}

fn spis() -> [SpiCell; 32] {
    [const { SpiCell::new() }; 32]
}

/// A GIC whose SPIs and PPIs are enabled, of group 1, routed to the first vCPU, with a priority of 0x80.
pub(crate) fn running<'a>(vcpus: &'a [VcpuCell], spis: &'a [SpiCell]) -> Vgic<'a> {
    let vgic = Vgic::new(vcpus, spis, 5).unwrap();
    let told = &mut Told::default();
    vgic.write_distributor(0, Width::Word, 2, told);
    vgic.write_distributor(0x104, Width::Word, 0xffff_ffff, told);
    for at in (0x420..0x440).step_by(4) {
        vgic.write_distributor(at, Width::Word, 0x8080_8080, told);
    }
    for v in 0..vcpus.len() {
        vgic.write_redistributor(v, 0x1_0100, Width::Word, 0xffff_ffff, told);
        for at in (0x1_0400..0x1_0420).step_by(4) {
            vgic.write_redistributor(v, at, Width::Word, 0x8080_8080, told);
        }
    }
    vgic
}

/// One of four vCPUs that is [running], and who is told by it.
fn four() -> (Vgic<'static>, &'static mut Told) {
    let (vcpus, spis) = (Box::leak(Box::new(vcpus())), Box::leak(Box::new(spis())));
    (running(vcpus, spis), Box::leak(Box::default()))
}

/// Edge-triggered instead of level-sensitive.
pub(crate) fn edge(vgic: &Vgic<'_>, intid: u16) {
    let at = 0xc00 + u64::from(intid) / 16 * 4;
    let old = vgic.read_distributor(at, Width::Word);
    let new = old | 2 << (intid % 16 * 2);
    vgic.write_distributor(at, Width::Word, new, &mut Told::default());
}

/// The vCPU's list registers, of which it has so many.
fn flush(vgic: &Vgic<'_>, vcpu: usize, lrs: usize) -> (Vec<(u16, State)>, bool, Vec<Entry>) {
    let mut entries = [Entry::default(); MAX_ENTRIES];
    let flushed = vgic.flush(vcpu, &mut entries[..lrs], &mut Told::default()).unwrap().unwrap();
    let entries = entries[..flushed.count].to_vec();
    let shown = entries.iter().map(|entry| (entry.intid(), entry.state())).collect();
    (shown, flushed.underflow, entries)
}

/// What would be in them.
fn peek(vgic: &Vgic<'_>, vcpu: usize, lrs: usize) -> Vec<(u16, State)> {
    let (shown, _, entries) = flush(vgic, vcpu, lrs);
    vgic.cancel(vcpu, &entries, &mut Told::default()).unwrap();
    shown
}

fn states(all: &[State]) -> States {
    all.iter().enumerate().fold(States::default(), |states, (n, &state)| states.with(n, state))
}
