//! A VM's file: what all vCPUs of a VM share, and who is told of their interrupts.
//!
//! A VM is there until its own file and those of its vCPUs and devices are closed; a vCPU until its VM goes. What hyp has
//! of it then comes back in the background.
//!
//! # Locks
//!
//! A vCPU's own, then a VM's `plan` or that of its `wires`, then its `memory`: in this order, and all of them may
//! sleep. A vCPU that is loaded, and whoever raises an interrupt, has none: what they read ([`Machine::gic`],
//! eventfds, routes) is replaced as a whole and goes when nobody can be reading it any more.

mod all;
mod device;
mod files;
mod offer;
mod wires;

pub use all::{begin, forget, hibernate, shutdown};
pub use device::attribute;
pub use files::{GicFile, MemoryFileFile, StatsFile, VcpuFile};
pub use offer::extension;

use crate::{
    abi::*,
    gic::{self, Gic, Plan},
    linux::{self, Mm, Mutex, NewFile, NoPreemption, Once, Shared, User, Work, with_room},
    memory::{Faults, Memory},
    vcpu::{Request, Vcpu},
};
use alloc::vec::Vec;
use core::{
    ptr,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};
use offer::Offer;
use umbra_host::{
    vcpu::{MmioAnswer, Vcpu as Inside},
    vgic::{Events, Interface, Line},
};
use umbra_shared::{
    PAGE_SIZE,
    call::{MAX_VCPUS, VmConfig},
    exit::MmioAccess,
    vl::VqSet,
};
use wires::Wires;

/// Guest-physical addresses of a VM whose VMM doesn't say: KVM's default.
const IPA_BITS: u32 = 40;
/// The fewest that KVM allows.
const LEAST_IPA_BITS: u32 = 32;

/// A VM.
#[derive(Debug)]
pub struct Machine {
    mm: Shared<Mm>,
    ipa_bits: u32,
    protected: bool,
    offer: Offer,
    memory: Mutex<Option<Memory>>,
    /// What KVM_CREATE_DEVICE has made, if it has. Who has it makes vCPUs and the GIC.
    plan: Mutex<Option<Plan>>,
    gic: Once<Gic>,
    /// A protected VM has begun to run, and its host has no say in it any more.
    sealed: AtomicBool,
    /// A vCPU may run: the GIC is there, and all its frames.
    is_ready: AtomicBool,
    clock: Mutex<Clock>,
    vcpus: [Once<Vcpu>; MAX_VCPUS],
    wires: Wires,
    /// It is taken down, though it has files.
    closed: AtomicBool,
    end: Option<(Shared<Mutex<End>>, Work)>,
}

/// What its guests' virtual counters are behind the physical one.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// `None`: what hyp has made of it, which is that they began with the VM.
    offset: Option<u64>,
    /// KVM_ARM_SET_COUNTER_OFFSET has said so.
    is_fixed: bool,
}

/// What is taken down in the background.
#[derive(Debug, Default)]
pub struct End {
    memory: Option<Memory>,
    vcpus: Vec<Inside>,
    /// Once it is under way.
    ending: Option<all::Ending>,
}

/// Whoever has to know of a VM's interrupts.
#[derive(Debug)]
pub struct Told<'a>(&'a Machine);

impl Events for Told<'_> {
    fn kick(&mut self, vcpu: usize) {
        let index = self.0.gic().and_then(|gic| gic.index(vcpu));
        if let Some(vcpu) = index.and_then(|index| self.0.vcpu(index)) {
            vcpu.kick();
        }
    }

    fn resample(&mut self, _: usize, intid: u16) {
        self.0.wires.ended(intid);
    }
}

impl Faults for Machine {
    fn memory<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> Result<R, Errno> {
        self.memory.lock().as_mut().map(f).ok_or(Errno::EIO)
    }

    fn mm(&self) -> &Mm {
        &self.mm
    }
}

impl Machine {
    /// KVM_CREATE_VM.
    pub fn create(kind: u64) -> Result<Shared<Self>, Errno> {
        let protected = kind & KVM_VM_TYPE_ARM_PROTECTED != 0;
        let bits = kind & !KVM_VM_TYPE_ARM_PROTECTED;
        let offer = Offer::ask()?;
        if bits & !KVM_VM_TYPE_ARM_IPA_SIZE_MASK != 0 || protected && !offer.protected {
            return Err(Errno::EINVAL);
        }
        let ipa_bits = match bits as u32 {
            0 => IPA_BITS.min(offer.ipa_bits),
            bits if (LEAST_IPA_BITS..=offer.ipa_bits).contains(&bits) => bits,
            _ => return Err(Errno::EINVAL),
        };
        let mm = Shared::new(Mm::mine()?)?;
        let end = Shared::new(Mutex::new(End::default())?)?;
        // SAFETY: a `Shared<Mutex<End>>`, whose owner gives it away when it queues this.
        let work = unsafe { Work::new(end.address())? };
        end.lock().vcpus = with_room(MAX_VCPUS)?;
        let (plan, wires, clock) =
            (Mutex::new(None)?, Wires::new()?, Mutex::new(Clock::default())?);
        // First what can fail: a VM that hyp has made must have an owner.
        let memory = Mutex::new(None)?;
        let machine = Shared::new(Self {
            mm,
            ipa_bits,
            protected,
            offer,
            memory,
            plan,
            gic: Once::default(),
            sealed: AtomicBool::new(false),
            is_ready: AtomicBool::new(false),
            clock,
            vcpus: core::array::from_fn(|_| Once::default()),
            wires,
            closed: AtomicBool::new(false),
            end: Some((end, work)),
        })?;
        all::enter(&machine, || {
            let config = VmConfig { protected, junk: protected, ..VmConfig::normal() };
            let memory = Memory::new(machine.mm.clone(), config, machine.ipa_end())?;
            *machine.memory.lock() = Some(memory);
            Ok(())
        })?;
        Ok(machine)
    }

    /// Whether nothing of it runs any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Takes it down, though it has files.
    fn close(&self) {
        /// For threads to come out of hyp and out of their ioctls: 5 s. One that waits for user space doesn't.
        const TRIES: u32 = 500;
        self.closed.store(true, SeqCst);
        let Ok(mut insides) = with_room(MAX_VCPUS) else { return };
        // No vCPU is made any more, or freed.
        let _plan = self.plan.lock();
        let Some(memory) = self.memory.lock().take() else { return };
        for vcpu in self.vcpus() {
            let mut tries = 0;
            let inside = loop {
                match vcpu.take_inside() {
                    Some(inside) => break inside,
                    None if tries == TRIES => {
                        log!("vCPU {} doesn't end: its VM is left as it is", vcpu.index());
                        *self.memory.lock() = Some(memory);
                        if let Some((end, _)) = &self.end {
                            end.lock().vcpus.extend(insides);
                        }
                        return;
                    }
                    None => tries += 1,
                }
                linux::sleep();
            };
            insides.extend(inside);
        }
        memory.destroy(insides);
    }

    /// Its vCPU, in any context.
    pub fn vcpu(&self, index: u32) -> Option<&Vcpu> {
        self.vcpus.get(index as usize)?.get()
    }

    fn vcpus(&self) -> impl Iterator<Item = &Vcpu> {
        (0..MAX_VCPUS as u32).filter_map(|index| self.vcpu(index))
    }

    /// Its GIC, once there is one, in any context.
    pub fn gic(&self) -> Option<&Gic> {
        self.gic.get()
    }

    /// Who is told of its interrupts.
    pub fn told(&self) -> Told<'_> {
        Told(self)
    }

    /// Whether it is a protected one.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// EPERM for a protected one: what its host has no say in.
    pub fn refuse_protected(&self) -> Result<(), Errno> {
        if self.protected { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Whether it has begun to run, if it is one.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(SeqCst)
    }

    /// EPERM for one that has: its host has no say in it any more.
    pub fn refuse_sealed(&self) -> Result<(), Errno> {
        if self.is_sealed() { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// A protected one begins to run.
    pub fn seal(&self, scratch: &mut [u64]) -> Result<(), Errno> {
        self.memory(|memory| memory.seal(scratch))??;
        self.sealed.store(true, SeqCst);
        Ok(())
    }

    /// Whether any but this vCPU is on.
    pub fn are_others_on(&self, index: u32) -> bool {
        self.vcpus().any(|vcpu| vcpu.index() != index && vcpu.is_on())
    }

    /// Where guest-physical addresses end at which something can be: a protected guest has all of it in its lower half.
    pub fn ipa_end(&self) -> u64 {
        let end = 1 << self.ipa_bits;
        if self.protected { self.offer.alias_bit.min(end) } else { end }
    }

    /// A guest-physical address as the VMM knows it: that a protected guest accesses it in its upper half is between it and
    /// hyp.
    pub fn without_alias(&self, address: u64) -> u64 {
        if self.protected { address & !self.offer.alias_bit } else { address }
    }

    /// The vector lengths that guests can have.
    pub fn vector_lengths(&self) -> VqSet {
        self.offer.lengths
    }

    /// Whether guests have pointer authentication.
    pub fn has_pauth(&self) -> bool {
        self.offer.pauth
    }

    /// A vCPU's part of the GIC.
    pub fn interface(&self, index: u32) -> Option<Interface<'_, Told<'_>>> {
        let gic = self.gic()?;
        let number = gic.number(index)?;
        Interface::new(gic.vgic(), number, self.offer.registers, self.told()).ok()
    }

    /// Uses what the GIC is to be, and whether it is that already.
    fn planned<R>(&self, f: impl FnOnce(&mut Plan, bool) -> Result<R, Errno>) -> Result<R, Errno> {
        let mut plan = self.plan.lock();
        let built = self.gic().is_some();
        f(plan.as_mut().ok_or(Errno::ENODEV)?, built)
    }

    /// KVM_DEV_ARM_VGIC_CTRL_INIT: makes the GIC, for the vCPUs that there are. Where its frames are may be said later.
    pub fn init_gic(&self) -> Result<(), Errno> {
        let plan = self.plan.lock();
        self.build_gic(plan.as_ref().ok_or(Errno::ENODEV)?)
    }

    /// A vCPU is about to run: from here on the GIC is what it is. A VM without KVM_CREATE_DEVICE has one that nobody can
    /// reach, which keeps the timer's interrupt.
    ///
    /// # Errors
    ///
    /// As KVM's `vgic_v3_map_resources`: ENXIO without all frames, EINVAL if they can't be there, EBUSY without KVM_DEV_ARM_VGIC_CTRL_INIT.
    pub fn ready_gic(&self) -> Result<(), Errno> {
        if self.is_ready.load(SeqCst) {
            return Ok(());
        }
        let plan = self.plan.lock();
        match &*plan {
            // Two may come here at once.
            _ if self.is_ready.load(SeqCst) => {}
            Some(plan) => {
                let frames = plan.frames(self.vcpus().count(), self.ipa_end())?;
                self.gic().ok_or(Errno::EBUSY)?.set_frames(frames)?;
            }
            None => self.build_gic(&Plan::new())?,
        }
        self.is_ready.store(true, SeqCst);
        Ok(())
    }

    /// Makes the GIC, if it is not there. Its caller has the plan's lock.
    fn build_gic(&self, plan: &Plan) -> Result<(), Errno> {
        if self.gic().is_some() {
            return Ok(());
        }
        let mut indices = with_room(MAX_VCPUS)?;
        indices.extend(self.vcpus().map(Vcpu::index));
        if indices.is_empty() {
            return Err(Errno::ENODEV);
        }
        self.gic.set(plan.build(indices, self.offer.priority_bits)?)?;
        for vcpu in self.vcpus().filter(|vcpu| !vcpu.is_on()) {
            self.set_power(vcpu.index(), false);
        }
        Ok(())
    }

    /// SYSTEM_OFF, or SYSTEM_RESET: every vCPU is off, those that run as soon as they have left.
    pub fn power_off(&self) {
        self.vcpus().for_each(|vcpu| vcpu.request(Request::PowerOff));
    }

    /// CNTVOFF_EL2 of all vCPUs, if somebody has said what it is to be.
    pub fn clock_offset(&self) -> Option<u64> {
        self.clock.lock().offset
    }

    /// KVM_REG_ARM_TIMER_CNT: the clock of all vCPUs, unless it has been set for good.
    pub fn restore_clock(&self, offset: u64) {
        {
            let mut clock = self.clock.lock();
            if clock.is_fixed {
                return;
            }
            clock.offset = Some(offset);
        }
        self.vcpus().for_each(|vcpu| vcpu.request(Request::Clock));
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: for good, while no vCPU is in anybody's hands.
    fn set_clock(&self, offset: &CounterOffset) -> Result<(), Errno> {
        if offset.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        self.refuse_protected()?;
        // No other vCPU is made meanwhile.
        let _plan = self.plan.lock();
        let mut held = with_room(MAX_VCPUS)?;
        for vcpu in self.vcpus() {
            held.push(vcpu.state.try_lock().ok_or(Errno::EBUSY)?);
        }
        *self.clock.lock() = Clock { offset: Some(offset.counter_offset), is_fixed: true };
        self.vcpus().for_each(|vcpu| vcpu.request(Request::Clock));
        Ok(())
    }

    /// A vCPU is on or off: no interrupt of 1 of N goes to who is off.
    pub fn set_power(&self, index: u32, on: bool) {
        if let Some(gic) = self.gic()
            && let Some(number) = gic.number(index)
        {
            let _ = gic.vgic().set_power(number, on, &mut self.told());
        }
    }

    /// A guest has turned a vCPU on.
    pub fn turned_on(&self, index: u32) {
        self.set_power(index, true);
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.turn_on();
        }
    }

    /// An MMIO access, as far as nobody need sleep for it.
    pub fn access(
        &self,
        address: u64,
        access: MmioAccess,
        data: u64,
        no_preemption: &NoPreemption,
    ) -> Option<MmioAnswer> {
        if let Some(answer) =
            self.gic().and_then(|gic| gic.access(address, access, data, &mut self.told()))
        {
            return Some(answer);
        }
        let stored = self.wires.stored(address, access, data, no_preemption);
        stored.then_some(MmioAnswer::Written)
    }

    /// An irqfd has been signalled, in any context.
    pub fn signalled(&self, gsi: u32, resample: bool, no_preemption: &NoPreemption) {
        let intid = self.wires.intid(gsi, no_preemption);
        let (Some(gic), Some(intid)) = (self.gic(), intid) else { return };
        let (line, vgic, told) = (Line::Spi(intid), gic.vgic(), &mut self.told());
        // There is no such SPI, perhaps: then it is nobody's.
        let _ = match resample {
            true => vgic.set_line(line, true, told),
            false => vgic.pulse(line, told),
        };
    }

    /// An ioctl of its file.
    pub fn ioctl(this: &Shared<Self>, command: u32, argument: usize) -> Result<i64, Errno> {
        let user = User(argument);
        match command {
            KVM_CHECK_EXTENSION => Ok(extension(argument as u64, Some(this.protected))),
            KVM_CREATE_VCPU => Self::create_vcpu(this, argument),
            KVM_SET_USER_MEMORY_REGION => {
                let region = user.read()?;
                this.memory(|memory| memory.set_slot(region, None))?.map(|()| 0)
            }
            KVM_SET_USER_MEMORY_REGION2 => this.set_slot_of_file(&user.read()?).map(|()| 0),
            KVM_CREATE_GUEST_MEMFD => MemoryFileFile::open(this, &user.read()?),
            KVM_ARM_PREFERRED_TARGET => {
                let init = VcpuInit { target: KVM_ARM_TARGET_GENERIC_V8, features: [0; 7] };
                user.write(&init).map(|()| 0)
            }
            KVM_CREATE_DEVICE => Self::create_device(this, user),
            KVM_GET_STATS_FD => StatsFile::open(this, None),
            KVM_IRQ_LINE => {
                let level: IrqLevel = user.read()?;
                let gic = this.gic().ok_or(Errno::ENXIO)?;
                let line = gic::line_of(gic, level.irq)?;
                let set = gic.vgic().set_line(line, level.level != 0, &mut this.told());
                set.map_err(gic::errno).map(|()| 0)
            }
            KVM_IRQFD => {
                let (irqfd, address) = (user.read()?, ptr::from_ref(&**this).cast_mut().cast());
                // SAFETY: the machine cuts its wires before it goes.
                unsafe { this.wires.irqfd(irqfd, || this.gic(), address) }.map(|()| 0)
            }
            KVM_IOEVENTFD => this.wires.ioeventfd(&user.read()?).map(|()| 0),
            KVM_ARM_SET_COUNTER_OFFSET => this.set_clock(&user.read()?).map(|()| 0),
            KVM_SET_GSI_ROUTING => this.wires.set_routes(user, || this.gic()).map(|()| 0),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// KVM_SET_USER_MEMORY_REGION2.
    fn set_slot_of_file(&self, region: &MemoryRegion2) -> Result<(), Errno> {
        let MemoryRegion2 { region, guest_memfd_offset: offset, guest_memfd, pad1, pad2 } = *region;
        let has_file = region.flags & KVM_MEM_GUEST_MEMFD != 0;
        if pad1 != 0 || pad2 != [0; 14] || !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(Errno::EINVAL);
        }
        let region = MemoryRegion { flags: region.flags & !KVM_MEM_GUEST_MEMFD, ..region };
        // Of one that is deleted the rest doesn't matter.
        let file = match has_file && region.memory_size != 0 {
            true => {
                let file = MemoryFileFile::find(self, guest_memfd as i32)?;
                Some((file, offset / PAGE_SIZE as u64))
            }
            false => None,
        };
        self.memory(|memory| memory.set_slot(region, file))?
    }

    fn create_vcpu(this: &Shared<Self>, index: usize) -> Result<i64, Errno> {
        let slot = this.vcpus.get(index).ok_or(Errno::EINVAL)?;
        let _plan = this.plan.lock();
        if slot.get().is_some() {
            return Err(Errno::EEXIST);
        }
        if this.gic().is_some() {
            // Its redistributors have been counted.
            return Err(Errno::EBUSY);
        }
        let file = Shared::new(VcpuFile { machine: this.clone(), index: index as u32 })?;
        let file = NewFile::new(file)?;
        slot.set(Vcpu::new(index as u32)?)?;
        Ok(file.install().into())
    }

    fn create_device(this: &Shared<Self>, user: User) -> Result<i64, Errno> {
        let mut device: CreateDevice = user.read()?;
        if device.kind != KVM_DEV_TYPE_ARM_VGIC_V3 {
            return Err(Errno::ENODEV);
        }
        if device.flags & !KVM_CREATE_DEVICE_TEST != 0 {
            return Err(Errno::EINVAL);
        }
        if device.flags & KVM_CREATE_DEVICE_TEST != 0 {
            return Ok(0);
        }
        {
            let mut plan = this.plan.lock();
            if plan.is_some() {
                return Err(Errno::EEXIST);
            }
            if this.gic().is_some() {
                return Err(Errno::EBUSY);
            }
            *plan = Some(Plan::new());
        }
        let file = Shared::new(GicFile { machine: this.clone() });
        match file.and_then(NewFile::new) {
            Ok(file) => device.fd = file.install() as u32,
            Err(error) => {
                *this.plan.lock() = None;
                return Err(error);
            }
        }
        user.write(&device).map(|()| 0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ending = all::strike(self);
        // Nobody raises an interrupt from here on.
        self.wires.cut();
        let Some((end, work)) = self.end.take() else { return };
        {
            let mut end = end.lock();
            for slot in &mut self.vcpus {
                // Nobody has a file of it any more. There is room for all.
                let vcpu = core::mem::take(slot).into_inner();
                end.vcpus.extend(vcpu.and_then(Vcpu::into_inside));
            }
            end.memory = self.memory.get_mut().take();
            end.ending = Some(ending);
        }
        // The background owns it now.
        end.into_raw();
        work.queue();
    }
}

/// Takes a VM down, in the background.
pub fn end(end: &Mutex<End>) {
    let End { memory, vcpus, ending } = core::mem::take(&mut *end.lock());
    if let Some(memory) = memory {
        memory.destroy(vcpus);
    }
    drop(ending);
}
