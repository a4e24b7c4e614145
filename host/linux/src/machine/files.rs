//! What the files of a VM stand for.

use super::Machine;
use crate::{
    abi::Errno,
    linux::{Kind, NewFile, Object, Shared},
    memory::Faults,
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
