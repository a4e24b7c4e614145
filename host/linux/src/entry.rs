//! What Linux calls.

use crate::{
    abi::*,
    linux::{self, Fault, Kind, Mutex, NewFile, NoPreemption, Shared, User},
    machine::{self, End, GicFile, Machine, MemoryFileFile, StatsFile, VcpuFile},
};
use core::ffi::{c_int, c_long, c_ulong, c_void};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::call::{INTERFACE_VERSION, VENDOR_UID, VENDOR_UID_FUNCTION};

/// Whether Umbra is below, by the one way to ask that harms nobody where it isn't.
#[unsafe(no_mangle)]
extern "C" fn umbra_init() -> c_int {
    if linux::vendor_uid(VENDOR_UID_FUNCTION as u32) != VENDOR_UID {
        log!("no Umbra below this kernel");
        return -Errno::ENODEV.0;
    }
    match Hvc.version() {
        Ok(version) if version.interface >> 16 == INTERFACE_VERSION >> 16 => {
            let cpus = Hvc.vl_info(None).map_or(0, |info| info.cpus);
            log!("interface {:#x}, {} CPUs, {:?}", version.interface, cpus, version.features);
            machine::begin().map_or_else(|error| -error.0, |()| 0)
        }
        Ok(version) => {
            log!("Umbra speaks interface {:#x}, not {INTERFACE_VERSION:#x}", version.interface);
            -Errno::ENODEV.0
        }
        Err(error) => {
            log!("Umbra doesn't answer: {error}");
            -Errno::ENODEV.0
        }
    }
}

/// The module goes: it has no VMs any more.
#[unsafe(no_mangle)]
extern "C" fn umbra_exit() {
    machine::forget();
    #[cfg(feature = "hunt")]
    crate::hunt::tell();
    match linux::pages_out() {
        0 => log!("all pages are back"),
        count => log!("{count} pages are lost"),
    }
}

/// Pages that VMs have now.
#[unsafe(no_mangle)]
extern "C" fn umbra_pages() -> u64 {
    linux::pages_out()
}

/// The kernel ends, or another one takes its place.
#[unsafe(no_mangle)]
extern "C" fn umbra_shutdown() {
    machine::shutdown();
}

/// The kernel hibernates, or reads an image of one that has; or it is over.
#[unsafe(no_mangle)]
extern "C" fn umbra_hibernate(begins: bool) -> c_int {
    machine::hibernate(begins).map_or_else(|error| -error.0, |()| 0)
}

fn kind_of(kind: u32) -> Option<Kind> {
    let all = [Kind::System, Kind::Vm, Kind::Vcpu, Kind::Gic, Kind::Stats, Kind::Memory];
    all.into_iter().find(|&it| it as u32 == kind)
}

/// An ioctl of one of our files.
///
/// # Safety
///
/// `object` is the file's, which lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_ioctl(
    kind: u32,
    object: *mut c_void,
    command: u32,
    argument: c_ulong,
) -> c_long {
    let argument = argument as usize;
    let result = match kind_of(kind) {
        Some(Kind::System) => system(command, argument),
        Some(Kind::Vm) => {
            // SAFETY: the file is an owner, and keeps being one: the copy here is not dropped.
            let machine = unsafe { Shared::<Machine>::from_raw(object) };
            let machine = core::mem::ManuallyDrop::new(machine);
            match &*machine {
                Some(machine) => of_mine(machine, || Machine::ioctl(machine, command, argument)),
                None => Err(Errno::EBADF),
            }
        }
        Some(Kind::Vcpu) => {
            // SAFETY: the file is an owner.
            let file = unsafe { Shared::<VcpuFile>::borrow(object) };
            of_mine(&file.machine, || {
                let vcpu = file.machine.vcpu(file.index).ok_or(Errno::EBADF)?;
                match command {
                    // While it runs, too.
                    KVM_GET_STATS_FD => StatsFile::open(&file.machine, Some(file.index)),
                    _ => vcpu.ioctl(&file.machine, command, argument),
                }
            })
        }
        Some(Kind::Gic) => {
            // SAFETY: as above.
            let file = unsafe { Shared::<GicFile>::borrow(object) };
            of_mine(&file.machine, || {
                let attribute = match command {
                    KVM_SET_DEVICE_ATTR | KVM_GET_DEVICE_ATTR | KVM_HAS_DEVICE_ATTR => {
                        User(argument).read()?
                    }
                    _ => return Err(Errno::ENOTTY),
                };
                machine::attribute(&file.machine, command, &attribute).map(|()| 0)
            })
        }
        Some(Kind::Stats | Kind::Memory) | None => Err(Errno::ENOTTY),
    };
    result.unwrap_or_else(|error| -i64::from(error.0))
}

/// A read of what is counted: as many bytes as there are from `offset` on, up to `bytes`.
///
/// # Safety
///
/// `object` is the file's, which lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_read(
    kind: u32,
    object: *mut c_void,
    offset: u64,
    to: c_ulong,
    bytes: usize,
) -> c_long {
    if kind != Kind::Stats as u32 {
        return -c_long::from(Errno::EINVAL.0);
    }
    // SAFETY: the file is an owner.
    let file = unsafe { Shared::<StatsFile>::borrow(object) };
    let read = || {
        let image = file.image()?;
        let rest = usize::try_from(offset).ok().and_then(|at| image.get(at..)).unwrap_or_default();
        let some = &rest[..rest.len().min(bytes)];
        User(to as usize).write_bytes(some).map(|()| some.len() as c_long)
    };
    read().unwrap_or_else(|error| -c_long::from(error.0))
}

/// As KVM: a VM is of the process that made it.
fn of_mine(machine: &Machine, f: impl FnOnce() -> Result<i64, Errno>) -> Result<i64, Errno> {
    use crate::memory::Faults as _;
    if machine.mm().is_mine() { f() } else { Err(Errno::EIO) }
}

fn system(command: u32, argument: usize) -> Result<i64, Errno> {
    match command {
        KVM_GET_API_VERSION if argument == 0 => Ok(KVM_API_VERSION),
        KVM_GET_VCPU_MMAP_SIZE if argument == 0 => Ok(umbra_shared::PAGE_SIZE as i64),
        KVM_GET_API_VERSION | KVM_GET_VCPU_MMAP_SIZE => Err(Errno::EINVAL),
        KVM_CHECK_EXTENSION => Ok(machine::extension(argument as u64, None)),
        KVM_CREATE_VM => {
            let machine = Machine::create(argument as u64)?;
            NewFile::new(machine).map(|file| file.install().into())
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// One of our files is closed.
///
/// # Safety
///
/// `object` was the file's.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_release(kind: u32, object: *mut c_void) {
    // SAFETY: the file was an owner of this kind, and is no longer.
    unsafe {
        match kind_of(kind) {
            Some(Kind::Vm) => drop(Shared::<Machine>::from_raw(object)),
            Some(Kind::Vcpu) => drop(Shared::<VcpuFile>::from_raw(object)),
            Some(Kind::Gic) => drop(Shared::<GicFile>::from_raw(object)),
            Some(Kind::Stats) => drop(Shared::<StatsFile>::from_raw(object)),
            Some(Kind::Memory) => drop(Shared::<MemoryFileFile>::from_raw(object)),
            Some(Kind::System) | None => {}
        }
    }
}

/// The kvm_run page of a vCPU's file.
///
/// # Safety
///
/// `object` is the file's, which lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_run_page(kind: u32, object: *mut c_void) -> u64 {
    if kind != Kind::Vcpu as u32 {
        return 0;
    }
    // SAFETY: the file is an owner.
    let file = unsafe { Shared::<VcpuFile>::borrow(object) };
    file.machine.vcpu(file.index).map_or(0, |vcpu| vcpu.page().pa())
}

/// Whether a memory file can be mapped.
///
/// # Safety
///
/// `object` is the file's, which lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_may_map(object: *mut c_void) -> bool {
    // SAFETY: the file is an owner.
    unsafe { Shared::<MemoryFileFile>::borrow(object) }.may_be_mapped()
}

/// A process has accessed a page of a memory file that it has mapped, and found none: what Linux's fault handler
/// returns; 0: there is none for it.
///
/// # Safety
///
/// `object` is the file's, which lives, and `fault` what its handler was called with.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_fault(object: *mut c_void, page: u64, fault: *mut c_void) -> u32 {
    // SAFETY: the file is an owner; and as the caller promises.
    let (file, fault) = unsafe { (Shared::<MemoryFileFile>::borrow(object), Fault::new(fault)) };
    fault.map_or(0, |fault| file.fault(page, fault))
}

/// An irqfd has been signalled, in atomic context.
///
/// # Safety
///
/// `vm` is what its [`linux::IrqFd`] was made with, and nobody is preempted here.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_irqfd(vm: *mut c_void, gsi: u32, resample: bool) {
    // SAFETY: a machine outlives its irqfds; and it is atomic context, as the caller promises.
    let (machine, here) = unsafe { (&*vm.cast::<Machine>(), NoPreemption::in_atomic_context()) };
    machine.signalled(gsi, resample, &here);
}

/// The end of a VM, in the background.
///
/// # Safety
///
/// `object` is what its [`linux::Work`] was made with.
#[unsafe(no_mangle)]
unsafe extern "C" fn umbra_work(object: *mut c_void) {
    // SAFETY: the machine gave it away when it queued the work.
    if let Some(end) = unsafe { Shared::<Mutex<End>>::from_raw(object) } {
        machine::end(&end);
    }
}
