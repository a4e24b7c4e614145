//! What the files of a VM stand for.

use super::Machine;
use crate::{
    abi::{CreateGuestMemfd, Errno},
    linux::{Fault, Kind, NewFile, Object, OpenFile, Shared},
    memory::Faults,
    memory_file::MemoryFile,
    stats,
};
use alloc::vec::Vec;

/// A vCPU's file.
#[derive(Debug)]
pub struct VcpuFile {
    /// Its VM.
    pub machine: Shared<Machine>,
    /// Which.
    pub index: u32,
}

/// A GIC's file.
#[derive(Debug)]
pub struct GicFile {
    /// Its VM.
    pub machine: Shared<Machine>,
}

/// A file of what a VM, or one of its vCPUs, counts.
#[derive(Debug)]
pub struct StatsFile {
    machine: Shared<Machine>,
    vcpu: Option<u32>,
}

impl StatsFile {
    /// KVM_GET_STATS_FD.
    pub fn open(machine: &Shared<Machine>, vcpu: Option<u32>) -> Result<i64, Errno> {
        let file = Shared::new(Self { machine: machine.clone(), vcpu })?;
        NewFile::new(file).map(|file| file.install().into())
    }

    /// What it holds now.
    pub fn image(&self) -> Result<Vec<u8>, Errno> {
        match self.vcpu {
            Some(index) => {
                let vcpu = self.machine.vcpu(index).ok_or(Errno::EBADF)?;
                stats::of_vcpu(index, vcpu.counts())
            }
            None => stats::of_vm(self.machine.memory(|memory| memory.pages())?),
        }
    }
}

/// A file of memory of a VM's.
#[derive(Debug)]
pub struct MemoryFileFile {
    machine: Shared<Machine>,
    memory: Shared<MemoryFile>,
}

impl MemoryFileFile {
    /// KVM_CREATE_GUEST_MEMFD.
    ///
    /// # Errors
    ///
    /// ENOTTY of a VM that is not protected, whose memory is user space's.
    pub fn open(machine: &Shared<Machine>, create: &CreateGuestMemfd) -> Result<i64, Errno> {
        if !machine.is_protected() {
            return Err(Errno::ENOTTY);
        }
        if create.reserved != [0; 6] {
            return Err(Errno::EINVAL);
        }
        let memory = Shared::new(MemoryFile::new(create, machine.ipa_end())?)?;
        let file = Shared::new(Self { machine: machine.clone(), memory: memory.clone() })?;
        let file = NewFile::new(file)?;
        memory.mappings().are_of(&file);
        Ok(file.install().into())
    }

    /// The one that the caller has a descriptor of, if it is this VM's.
    pub fn find(machine: &Machine, fd: i32) -> Result<Shared<MemoryFile>, Errno> {
        let (_open, object) = OpenFile::memory(fd)?;
        // SAFETY: the file is an owner, and open.
        let file = unsafe { Shared::<Self>::borrow(object) };
        let is_its = core::ptr::eq(&raw const *file.machine, machine);
        if is_its { Ok(file.memory.clone()) } else { Err(Errno::EINVAL) }
    }

    /// Whether it can be mapped.
    pub fn may_be_mapped(&self) -> bool {
        self.memory.may_be_mapped()
    }

    /// A page of it has been accessed by who has mapped it.
    pub fn fault(&self, page: u64, fault: Fault<'_>) -> u32 {
        self.memory.fault(page, fault)
    }
}

// SAFETY: entry.rs takes a VM's object for this.
unsafe impl Object for Machine {
    const KIND: Kind = Kind::Vm;
}

// SAFETY: it takes a vCPU's for this.
unsafe impl Object for VcpuFile {
    const KIND: Kind = Kind::Vcpu;
}

// SAFETY: and a GIC's for this.
unsafe impl Object for GicFile {
    const KIND: Kind = Kind::Gic;
}

// SAFETY: and what is counted for this.
unsafe impl Object for StatsFile {
    const KIND: Kind = Kind::Stats;
}

// SAFETY: and a memory file's for this.
unsafe impl Object for MemoryFileFile {
    const KIND: Kind = Kind::Memory;
}
