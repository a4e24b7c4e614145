//! eventfds that are interrupts or that stores signal, and which interrupt a GSI is (KVM_IRQFD, KVM_IOEVENTFD,
//! KVM_SET_GSI_ROUTING).

use crate::{
    abi::*,
    gic::{self, Gic},
    linux::{EventFd, IrqFd, Mutex, NoPreemption, Published, Shared, User, try_push, with_room},
};
use alloc::vec::Vec;
use core::{
    ffi::c_void,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};
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
struct IoEvent {
    address: u64,
    /// 0: any.
    bytes: u32,
    /// Only a store of this.
    data: Option<u64>,
    event: Shared<EventFd>,
}

impl IoEvent {
    fn is_for(&self, address: u64, access: MmioAccess, data: u64) -> bool {
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
struct Resampler {
    intid: u16,
    event: Shared<EventFd>,
}

/// An eventfd that is an interrupt.
#[derive(Debug)]
struct Injector {
    irqfd: IrqFd,
    gsi: u32,
    resample: Option<Shared<EventFd>>,
}

/// The eventfds and routes of a VM.
#[derive(Debug)]
pub struct Wires {
    /// Who has them changes what follows, one at a time.
    injectors: Mutex<Vec<Injector>>,
    ioevents: Published<IoEvent>,
    resamplers: Published<Resampler>,
    /// Pairs of a GSI and an INTID.
    routes: Published<(u32, u16)>,
    is_routed: AtomicBool,
}

impl Wires {
    /// None.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            injectors: Mutex::new(Vec::new())?,
            ioevents: Published::default(),
            resamplers: Published::default(),
            routes: Published::default(),
            is_routed: AtomicBool::new(false),
        })
    }

    /// No irqfd is one any more, and none is being told of.
    pub fn cut(&mut self) {
        self.injectors.get_mut().clear();
    }

    /// The INTID of a GSI.
    pub fn intid(&self, gsi: u32, no_preemption: &NoPreemption) -> Option<u16> {
        if self.is_routed.load(SeqCst) {
            let routes = self.routes.read(no_preemption);
            routes.iter().find(|route| route.0 == gsi).map(|route| route.1)
        } else {
            (gsi < GSIS).then(|| gsi as u16 + 32)
        }
    }

    /// A store by a guest signals an ioeventfd, if there is one for it; whether there is.
    pub fn stored(
        &self,
        address: u64,
        access: MmioAccess,
        data: u64,
        no_preemption: &NoPreemption,
    ) -> bool {
        let all = self.ioevents.read(no_preemption);
        let event = all.iter().find(|event| access.write && event.is_for(address, access, data));
        event.map(|event| event.event.signal()).is_some()
    }

    /// A guest has ended a level.
    pub fn ended(&self, intid: u16) {
        let no_preemption = NoPreemption::begin();
        let all = self.resamplers.read(&no_preemption);
        all.iter().filter(|one| one.intid == intid).for_each(|one| one.event.signal());
    }

    /// KVM_IRQFD of a VM with this GIC, if it has one: it is asked when nothing changes any more.
    ///
    /// # Safety
    ///
    /// `vm` is something that `umbra_irqfd` may use until [`Self::cut`].
    pub unsafe fn irqfd<'a>(
        &self,
        irqfd: Irqfd,
        gic: impl Fn() -> Option<&'a Gic>,
        vm: *mut c_void,
    ) -> Result<(), Errno> {
        if irqfd.flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut injectors = self.injectors.lock();
        if irqfd.flags & KVM_IRQFD_FLAG_DEASSIGN != 0 {
            let event = EventFd::new(irqfd.fd as i32)?;
            let gone = |one: &Injector| one.gsi == irqfd.gsi && one.irqfd.is(&event);
            let is_level = injectors.iter().any(|one| gone(one) && one.resample.is_some());
            injectors.retain(|one| !gone(one));
            return if is_level { self.publish_resamplers(&injectors, gic()) } else { Ok(()) };
        }
        // As KVM: without an irqchip there is nothing to inject into.
        let gic = gic().ok_or(Errno::EAGAIN)?;
        let event = EventFd::new(irqfd.fd as i32)?;
        if injectors.iter().any(|one| one.irqfd.is(&event)) {
            return Err(Errno::EBUSY);
        }
        let resample = match irqfd.flags & KVM_IRQFD_FLAG_RESAMPLE != 0 {
            true => Some(Shared::new(EventFd::new(irqfd.resamplefd as i32)?)?),
            false => None,
        };
        if injectors.len() == MAX_INJECTORS {
            return Err(Errno::ENOSPC);
        }
        injectors.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        if resample.is_some() {
            // There must be such an SPI.
            let intid = self.intid(irqfd.gsi, &NoPreemption::begin()).ok_or(Errno::EINVAL)?;
            gic.vgic().set_resample(Line::Spi(intid), true).map_err(gic::errno)?;
        }
        let is_level = resample.is_some();
        // SAFETY: as the caller promises.
        let one = match unsafe { IrqFd::new(irqfd.fd as i32, vm, irqfd.gsi, is_level) } {
            Ok(one) => one,
            Err(error) => {
                self.flag_resampled(gic);
                return Err(error);
            }
        };
        injectors.push(Injector { irqfd: one, gsi: irqfd.gsi, resample });
        let published =
            if is_level { self.publish_resamplers(&injectors, Some(gic)) } else { Ok(()) };
        if published.is_err() {
            injectors.pop();
            // It may have failed before it looked at them.
            self.flag_resampled(gic);
        }
        published
    }

    /// Says of every SPI whether somebody is told of its levels' ends. The caller has the injectors' lock.
    fn flag_resampled(&self, gic: &Gic) {
        // SAFETY: nobody replaces, and so frees, what is read here without that lock, preempted or not.
        let now = unsafe { NoPreemption::in_atomic_context() };
        let all = self.resamplers.read(&now);
        for intid in 32..GSIS as u16 + 32 {
            let wanted = all.iter().any(|one| one.intid == intid);
            // An SPI that there is not is nobody's.
            let _ = gic.vgic().set_resample(Line::Spi(intid), wanted);
        }
    }

    fn publish_resamplers(&self, injectors: &[Injector], gic: Option<&Gic>) -> Result<(), Errno> {
        let mut all = Vec::new();
        for one in injectors {
            let intid = self.intid(one.gsi, &NoPreemption::begin());
            if let (Some(event), Some(intid)) = (&one.resample, intid) {
                try_push(&mut all, Resampler { intid, event: event.clone() })?;
            }
        }
        if let Some(gic) = gic {
            // Before they are told of any end.
            for one in &all {
                let _ = gic.vgic().set_resample(Line::Spi(one.intid), true);
            }
        }
        let replaced = self.resamplers.replace(all).map(drop);
        // Those that are there now, whether that has gone well or not, and no others.
        if let Some(gic) = gic {
            self.flag_resampled(gic);
        }
        replaced
    }

    /// KVM_IOEVENTFD.
    pub fn ioeventfd(&self, wanted: &Ioeventfd) -> Result<(), Errno> {
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
        let _injectors = self.injectors.lock();
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

    /// KVM_SET_GSI_ROUTING; `gic` as in [`Self::irqfd`].
    pub fn set_routes<'a>(
        &self,
        user: User,
        gic: impl Fn() -> Option<&'a Gic>,
    ) -> Result<(), Errno> {
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
        let injectors = self.injectors.lock();
        self.routes.replace(routes)?;
        self.is_routed.store(true, SeqCst);
        self.publish_resamplers(&injectors, gic())
    }
}
