//! A VM's GIC: the host crate's, in memory of its own, where the VMM has put its frames
//! (Linux's `Documentation/virt/kvm/devices/arm-vgic-v3.rst`).

use crate::{
    abi::*,
    linux::{Once, try_push, with_room},
};
use alloc::{boxed::Box, vec::Vec};
use umbra_host::{
    vcpu::MmioAnswer,
    vgic::{Events, Frame, Line, Refused, SpiCell, VcpuCell, Vgic, registers},
};
use umbra_shared::exit::MmioAccess;

/// Bytes of the distributor's frames.
pub const DISTRIBUTOR_BYTES: u64 = registers::DISTRIBUTOR_BYTES as u64;
/// Bytes of a redistributor's frames.
pub const REDISTRIBUTOR_BYTES: u64 = registers::REDISTRIBUTOR_BYTES as u64;

/// What linux thinks of a refusal.
pub const fn errno(refused: Refused) -> Errno {
    match refused {
        Refused::NoRegister => Errno::ENXIO,
        Refused::Busy => Errno::EBUSY,
        _ => Errno::EINVAL,
    }
}

/// The affinity that KVM gives a vCPU: 16 to a cluster, as GICv3's SGIs reach (`kvm_vcpu_get_mpidr_aff`'s reset value).
pub const fn affinity(index: u32) -> u32 {
    (index >> 12 & 0xff) << 16 | (index >> 4 & 0xff) << 8 | index & 0xf
}

/// A run of redistributors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    base: u64,
    count: u64,
}

/// What a GIC is to be.
#[derive(Debug)]
pub struct Plan {
    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS: INTIDs, private ones counted.
    intids: u32,
    distributor: Option<u64>,
    redistributors: Vec<Region>,
}

impl Plan {
    /// None of it is said.
    pub const fn new() -> Self {
        Self { intids: 0, distributor: None, redistributors: Vec::new() }
    }

    /// Whether pages are free of frames.
    fn is_free(&self, base: u64, bytes: u64) -> bool {
        let apart = |other: u64, others: u64| base + bytes <= other || other + others <= base;
        self.distributor.is_none_or(|other| apart(other, DISTRIBUTOR_BYTES))
            && self.redistributors.iter().all(|region| {
                // One whose size follows from the vCPUs ends where it may.
                apart(region.base, region.count.max(1) * REDISTRIBUTOR_BYTES)
            })
    }

    /// KVM_DEV_ARM_VGIC_GRP_ADDR: a frame's address.
    pub fn set_address(&mut self, kind: u64, value: u64, ipa_end: u64) -> Result<(), Errno> {
        const FRAME: u64 = 0x1_0000;
        let (base, index, count, flags) = match kind {
            KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION => {
                (value & 0x000f_ffff_ffff_0000, value & 0xfff, value >> 52, value >> 12 & 0xf)
            }
            _ => (value, 0, 0, 0),
        };
        let bytes = match kind {
            KVM_VGIC_V3_ADDR_TYPE_DIST => DISTRIBUTOR_BYTES,
            _ => count.max(1) * REDISTRIBUTOR_BYTES,
        };
        if !base.is_multiple_of(FRAME) || flags != 0 {
            return Err(Errno::EINVAL);
        }
        if base.checked_add(bytes).is_none_or(|end| end > ipa_end) {
            return Err(Errno::E2BIG);
        }
        let one = self.redistributors.first().is_some_and(|region| region.count == 0);
        match kind {
            KVM_VGIC_V3_ADDR_TYPE_DIST if self.distributor.is_some() => return Err(Errno::EEXIST),
            KVM_VGIC_V3_ADDR_TYPE_REDIST if !self.redistributors.is_empty() => {
                return Err(if one { Errno::EEXIST } else { Errno::EINVAL });
            }
            KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION => {
                let next = self.redistributors.len() as u64;
                if one || count == 0 || index > next {
                    return Err(Errno::EINVAL);
                }
                if index < next {
                    return Err(Errno::EEXIST);
                }
            }
            KVM_VGIC_V3_ADDR_TYPE_DIST | KVM_VGIC_V3_ADDR_TYPE_REDIST => {}
            _ => return Err(Errno::ENODEV),
        }
        if !self.is_free(base, bytes) {
            return Err(Errno::EINVAL);
        }
        match kind {
            KVM_VGIC_V3_ADDR_TYPE_DIST => self.distributor = Some(base),
            _ => try_push(&mut self.redistributors, Region { base, count })?,
        }
        Ok(())
    }

    /// The same, as it is: `index` says which region.
    pub fn address(&self, kind: u64, index: u64) -> Result<u64, Errno> {
        const UNDEFINED: u64 = u64::MAX;
        let first = self.redistributors.first();
        Ok(match kind {
            KVM_VGIC_V3_ADDR_TYPE_DIST => self.distributor.unwrap_or(UNDEFINED),
            KVM_VGIC_V3_ADDR_TYPE_REDIST => first.map_or(UNDEFINED, |region| region.base),
            KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION => {
                let region = self.redistributors.get((index & 0xfff) as usize);
                let region = region.filter(|region| region.count != 0).ok_or(Errno::ENOENT)?;
                region.base | region.count << 52 | index & 0xfff
            }
            _ => return Err(Errno::ENODEV),
        })
    }

    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS, as it was said; 0: not yet.
    pub fn intids(&self) -> u32 {
        self.intids
    }

    /// Sets how many INTIDs there are.
    pub fn set_intids(&mut self, intids: u32) -> Result<(), Errno> {
        // As KVM: up to 1024, of which the last four are none.
        if !(64..=1024).contains(&intids) || !intids.is_multiple_of(32) {
            Err(Errno::EINVAL)
        } else if self.intids != 0 {
            Err(Errno::EBUSY)
        } else {
            self.intids = intids;
            Ok(())
        }
    }

    /// The GIC, for these vCPUs.
    pub fn build(&self, indices: Vec<u32>, priority_bits: u8) -> Result<Gic, Errno> {
        const UNSAID: u32 = 256;
        let intids = if self.intids == 0 { UNSAID } else { self.intids };
        let mut vcpus = with_room(indices.len())?;
        vcpus.extend(indices.iter().map(|&index| VcpuCell::new(affinity(index))));
        // INTIDs end at 1019.
        let count = intids.min(1020) as usize - 32;
        let mut spis = with_room(count)?;
        spis.extend((0..count).map(|_| SpiCell::new()));
        Gic::new(vcpus, spis, priority_bits, indices)
    }

    /// Where the frames of so many vCPUs are. ENXIO: not all are anywhere. EINVAL: those of a region whose size was not
    /// said lie over the distributor, or reach beyond the end of addresses.
    pub fn frames(&self, vcpus: usize, ipa_end: u64) -> Result<Frames, Errno> {
        let distributor = self.distributor.ok_or(Errno::ENXIO)?;
        let mut redistributors = with_room(self.redistributors.len())?;
        let mut left = vcpus as u64;
        for region in &self.redistributors {
            let count = if region.count == 0 { left } else { region.count.min(left) };
            redistributors.push(Region { base: region.base, count });
            left -= count;
        }
        if left != 0 {
            return Err(Errno::ENXIO);
        }
        let is_good = |&Region { base, count }: &Region| {
            let end = base + count * REDISTRIBUTOR_BYTES;
            end <= ipa_end && (end <= distributor || distributor + DISTRIBUTOR_BYTES <= base)
        };
        match redistributors.iter().all(is_good) {
            true => Ok(Frames { distributor, redistributors }),
            false => Err(Errno::EINVAL),
        }
    }
}

/// Where a GIC's frames are.
#[derive(Debug)]
pub struct Frames {
    distributor: u64,
    redistributors: Vec<Region>,
}

/// A GIC in its own memory.
#[derive(Debug)]
pub struct Gic {
    vgic: Vgic<'static>,
    vcpus: *mut [VcpuCell],
    spis: *mut [SpiCell],
    /// Known before a guest runs, and nowhere if the GIC is nobody's.
    frames: Once<Frames>,
    /// The vCPUs' indices, by their numbers.
    indices: Vec<u32>,
}

// SAFETY: the cells are for all CPUs at once; the pointers to them are for the end only.
unsafe impl Send for Gic {}
// SAFETY: as above.
unsafe impl Sync for Gic {}

impl Gic {
    fn new(
        vcpus: Vec<VcpuCell>,
        spis: Vec<SpiCell>,
        priority_bits: u8,
        indices: Vec<u32>,
    ) -> Result<Self, Errno> {
        let (vcpus, spis) =
            (Box::into_raw(vcpus.into_boxed_slice()), Box::into_raw(spis.into_boxed_slice()));
        // SAFETY: they stay until `drop`, behind which nobody has the Vgic.
        let vgic = Vgic::new(unsafe { &*vcpus }, unsafe { &*spis }, priority_bits);
        match vgic {
            Ok(vgic) => Ok(Self { vgic, vcpus, spis, frames: Once::default(), indices }),
            Err(refused) => {
                // SAFETY: nobody has them.
                drop(unsafe { (Box::from_raw(vcpus), Box::from_raw(spis)) });
                Err(errno(refused))
            }
        }
    }

    /// The GIC itself.
    pub fn vgic(&self) -> &Vgic<'_> {
        &self.vgic
    }

    /// Says where its frames are, once.
    pub fn set_frames(&self, frames: Frames) -> Result<(), Errno> {
        self.frames.set(frames)
    }

    /// The number of a vCPU.
    pub fn number(&self, index: u32) -> Option<usize> {
        self.indices.iter().position(|&other| other == index)
    }

    /// The vCPU of this number.
    pub fn index(&self, number: usize) -> Option<u32> {
        self.indices.get(number).copied()
    }

    /// A guest's access, if it is one to a frame.
    pub fn access(
        &self,
        address: u64,
        access: MmioAccess,
        data: u64,
        told: &mut impl Events,
    ) -> Option<MmioAnswer> {
        let Frames { distributor, redistributors } = self.frames.get()?;
        let regions = redistributors.iter().map(|region| (region.base, region.count as usize));
        let (frame, offset) = Frame::at(address, Some(*distributor), regions)?;
        let loaded = self.vgic.access(frame, offset, access, data, told);
        Some(loaded.map_or(MmioAnswer::Abort, |loaded| MmioAnswer::done(access, loaded)))
    }
}

impl Drop for Gic {
    fn drop(&mut self) {
        // SAFETY: `new` leaked them, and the Vgic that uses them goes with this.
        drop(unsafe { (Box::from_raw(self.vcpus), Box::from_raw(self.spis)) });
    }
}

/// An interrupt by the number that KVM_IRQ_LINE has: the line, or EINVAL.
pub fn line_of(gic: &Gic, irq: u32) -> Result<Line, Errno> {
    let intid = (irq & 0xffff) as u16;
    match irq >> 24 & 0xf {
        KVM_ARM_IRQ_TYPE_SPI if irq >> 28 == 0 => Ok(Line::Spi(intid)),
        KVM_ARM_IRQ_TYPE_PPI => {
            let index = (irq >> 28) * 256 + (irq >> 16 & 0xff);
            let vcpu = gic.number(index).ok_or(Errno::EINVAL)?;
            Ok(Line::Ppi { vcpu, intid })
        }
        _ => Err(Errno::EINVAL),
    }
}
