//! eventfds that are interrupts or that stores signal, and which interrupt a GSI is (KVM_IRQFD, KVM_IOEVENTFD,
//! KVM_SET_GSI_ROUTING).

use super::{Devices, Machine};
use crate::{
    abi::*,
    gic,
    linux::{EventFd, IrqFd, NoPreemption, Shared, User, try_push, with_room},
};
use alloc::vec::Vec;
use core::{ffi::c_void, sync::atomic::Ordering::SeqCst};
use umbra_host::vgic::Line;
use umbra_shared::exit::MmioAccess;

/// GSIs that can have a route: as many as there are SPIs.
const GSIS: u32 = 988;
/// Routes, and GSIs that have one.
pub const MAX_ROUTES: u32 = 4096;
/// ioeventfds of a VM.
const MAX_IOEVENTFDS: usize = 1000;
/// irqfds of a VM.
const MAX_INJECTORS: usize = 1000;

/// An eventfd that a store signals.
#[derive(Debug)]
pub struct IoEvent {
    address: u64,
    /// 0: any.
    bytes: u32,
    /// Only a store of this.
    data: Option<u64>,
    /// It.
    pub event: Shared<EventFd>,
}

impl IoEvent {
    pub fn is_for(&self, address: u64, access: MmioAccess, data: u64) -> bool {
        let bytes = u32::from(access.bytes);
        address == self.address
            && (self.bytes == 0 || self.bytes == bytes)
            && self.data.is_none_or(|wanted| wanted == data)
    }

    fn copy(&self) -> Self {
        Self { event: self.event.clone(), ..*self }
    }

    /// Whether a store could be for both.
    fn collides(&self, other: &Self) -> bool {
        self.address == other.address
            && (self.bytes == other.bytes || self.bytes == 0 || other.bytes == 0)
            && (self.data.is_none() || other.data.is_none() || self.data == other.data)
    }
}

/// An eventfd that says when a level has been ended.
#[derive(Debug)]
pub struct Resampler {
    /// Which.
    pub intid: u16,
    /// It.
    pub event: Shared<EventFd>,
}

/// An eventfd that is an interrupt.
#[derive(Debug)]
pub struct Injector {
    irqfd: IrqFd,
    gsi: u32,
    resample: Option<Shared<EventFd>>,
}

impl Machine {
    /// The INTID of a GSI.
    fn intid(&self, gsi: u32, no_preemption: &NoPreemption) -> Option<u16> {
        if self.is_routed.load(SeqCst) {
            let routes = self.routes.read(no_preemption);
            routes.iter().find(|route| route.0 == gsi).map(|route| route.1)
        } else {
            (gsi < GSIS).then(|| gsi as u16 + 32)
        }
    }

    /// An irqfd has been signalled, in any context.
    pub fn signalled(&self, gsi: u32, resample: bool, no_preemption: &NoPreemption) {
        let (Some(gic), Some(intid)) = (self.gic(), self.intid(gsi, no_preemption)) else { return };
        let (line, vgic, told) = (Line::Spi(intid), gic.vgic(), &mut self.told());
        // There is no such SPI, perhaps: then it is nobody's.
        let _ = match resample {
            true => vgic.set_line(line, true, told),
            false => vgic.pulse(line, told),
        };
    }

    pub(super) fn irqfd(&self, irqfd: Irqfd, address: *mut c_void) -> Result<i64, Errno> {
        if irqfd.flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut devices = self.devices.lock();
        if irqfd.flags & KVM_IRQFD_FLAG_DEASSIGN != 0 {
            let event = EventFd::new(irqfd.fd as i32)?;
            let gone = |one: &Injector| one.gsi == irqfd.gsi && one.irqfd.is(&event);
            let is_level = devices.injectors.iter().any(|one| gone(one) && one.resample.is_some());
            devices.injectors.retain(|one| !gone(one));
            return if is_level { self.publish_resamplers(&devices).map(|()| 0) } else { Ok(0) };
        }
        // As KVM: without an irqchip there is nothing to inject into.
        let gic = self.gic().ok_or(Errno::EAGAIN)?;
        let event = EventFd::new(irqfd.fd as i32)?;
        if devices.injectors.iter().any(|one| one.irqfd.is(&event)) {
            return Err(Errno::EBUSY);
        }
        let resample = match irqfd.flags & KVM_IRQFD_FLAG_RESAMPLE != 0 {
            true => Some(Shared::new(EventFd::new(irqfd.resamplefd as i32)?)?),
            false => None,
        };
        if devices.injectors.len() == MAX_INJECTORS {
            return Err(Errno::ENOSPC);
        }
        devices.injectors.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        if resample.is_some() {
            // There must be such an SPI.
            let intid = self.intid(irqfd.gsi, &NoPreemption::begin()).ok_or(Errno::EINVAL)?;
            gic.vgic().set_resample(Line::Spi(intid), true).map_err(gic::errno)?;
        }
        let is_level = resample.is_some();
        // SAFETY: the machine outlives its injectors, which are the first thing to go with it.
        let one = unsafe { IrqFd::new(irqfd.fd as i32, address, irqfd.gsi, is_level)? };
        devices.injectors.push(Injector { irqfd: one, gsi: irqfd.gsi, resample });
        let published = if is_level { self.publish_resamplers(&devices) } else { Ok(()) };
        if published.is_err() {
            devices.injectors.pop();
        }
        published.map(|()| 0)
    }

    fn publish_resamplers(&self, devices: &Devices) -> Result<(), Errno> {
        let mut all = Vec::new();
        for one in &devices.injectors {
            let intid = self.intid(one.gsi, &NoPreemption::begin());
            if let (Some(event), Some(intid)) = (&one.resample, intid) {
                try_push(&mut all, Resampler { intid, event: event.clone() })?;
            }
        }
        if let Some(gic) = self.gic() {
            for intid in 32..GSIS as u16 + 32 {
                let wanted = all.iter().any(|one| one.intid == intid);
                // An SPI that there is not is nobody's.
                let _ = gic.vgic().set_resample(Line::Spi(intid), wanted);
            }
        }
        self.resamplers.replace(all).map(drop)
    }

    pub(super) fn ioeventfd(&self, wanted: &Ioeventfd) -> Result<(), Errno> {
        let flags = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN;
        let has = |flag| wanted.flags & flag != 0;
        let matches = has(KVM_IOEVENTFD_FLAG_DATAMATCH);
        let wraps = wanted.addr.checked_add(wanted.len.into()).is_none();
        if wanted.flags & !flags != 0
            || !matches!(wanted.len, 0 | 1 | 2 | 4 | 8)
            || wraps
            || wanted.len == 0 && matches
        {
            return Err(Errno::EINVAL);
        }
        let event = Shared::new(EventFd::new(wanted.fd)?)?;
        let new = IoEvent {
            address: wanted.addr,
            bytes: wanted.len,
            data: matches.then_some(wanted.datamatch),
            event,
        };
        let _devices = self.devices.lock();
        let mut all = Vec::new();
        {
            // Nobody replaces them while this has the lock.
            // SAFETY: so nobody frees what is read here, preempted or not.
            let now = unsafe { NoPreemption::in_atomic_context() };
            let now = self.ioevents.read(&now);
            all.try_reserve(now.len() + 1).map_err(|_| Errno::ENOMEM)?;
            all.extend(now.iter().map(IoEvent::copy));
        }
        if has(KVM_IOEVENTFD_FLAG_DEASSIGN) {
            let is = |one: &IoEvent| {
                (one.address, one.bytes, one.data) == (new.address, new.bytes, new.data)
                    && one.event.is(&new.event)
            };
            let at = all.iter().position(is).ok_or(Errno::ENOENT)?;
            all.remove(at);
        } else if all.len() == MAX_IOEVENTFDS {
            return Err(Errno::ENOSPC);
        } else if all.iter().any(|one| one.collides(&new)) {
            return Err(Errno::EEXIST);
        } else {
            all.push(new);
        }
        self.ioevents.replace(all).map(drop)
    }

    pub(super) fn set_routes(&self, user: User) -> Result<(), Errno> {
        let routing: IrqRouting = user.read()?;
        if routing.nr > MAX_ROUTES || routing.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut routes = with_room(routing.nr as usize)?;
        for n in 0..routing.nr as usize {
            let entry: IrqRoutingEntry =
                user.at(size_of::<IrqRouting>() + n * size_of::<IrqRoutingEntry>()).read()?;
            let is_pin = entry.kind == KVM_IRQ_ROUTING_IRQCHIP && entry.irqchip == 0;
            let is_new = routes.iter().all(|&(gsi, _)| gsi != entry.gsi);
            if !is_pin
                || entry.flags != 0
                || entry.pin >= GSIS
                || entry.gsi >= MAX_ROUTES
                || !is_new
            {
                return Err(Errno::EINVAL);
            }
            routes.push((entry.gsi, entry.pin as u16 + 32));
        }
        let devices = self.devices.lock();
        self.routes.replace(routes)?;
        self.is_routed.store(true, SeqCst);
        self.publish_resamplers(&devices)
    }
}
