//! What a protected guest does to its own memory: sharing, enrolling, giving back.

#![forbid(unsafe_code)]

use super::hardware::{Machine, Memory as _, There};
use super::life::{Life, Vm, check_ipa};
use crate::memory::handover;
use crate::memory::pages::VmId;
use umbra_shared::call::UntrustedIpa;
use umbra_shared::error::Error;

impl<T, V> Vm<T, V> {
    /// The page at a guest's address, for a call of the guest's own.
    fn guests_page<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        ipa: UntrustedIpa,
    ) -> Result<u64, Error> {
        check_ipa(m, ipa)?;
        // A guest goes on as it was while its VM is closing.
        let Life::Alive(tables) = &self.life else { return Err(Error::Dying) };
        match m.lookup(tables, ipa.0) {
            There::Memory(pa) => Ok(pa),
            There::Device => Err(Error::IpaInUse),
            There::Nothing => Err(Error::NotMapped),
        }
    }

    /// MEM_SHARE by a guest of this VM, whose number is `vm`.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, NOT_MAPPED, SHARED.
    pub fn guest_share<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        vm: VmId,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        let pa = self.guests_page(m, ipa)?;
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            memory.pages().share_by_guest(page, vm)?;
            handover::share_with_host(memory, page);
            Ok(())
        })
    }

    /// MEM_UNSHARE by a guest.
    ///
    /// # Errors
    ///
    /// As [`Self::guest_share`], with NOT_SHARED for SHARED.
    pub fn guest_unshare<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        vm: VmId,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        let pa = self.guests_page(m, ipa)?;
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            memory.pages().unshare_by_guest(page, vm)?;
            handover::unshare_with_host(memory, page);
            Ok(())
        })
    }

    /// MEM_RELINQUISH by a guest: the page is the host's again, without what a protected guest had in
    /// it. Returns its address.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, NOT_MAPPED; NO_TABLES if it is a part of a block and there
    /// is no table for the rest: then the host is to bring some, which the guest never hears of.
    pub fn guest_relinquish<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        vm: VmId,
        ipa: UntrustedIpa,
    ) -> Result<u64, Error> {
        let pa = self.guests_page(m, ipa)?;
        let Life::Alive(tables) = &mut self.life else { return Err(Error::Dying) };
        if m.tables_left(vm) < m.tables_to_unmap(tables, ipa.0, 1) {
            return Err(Error::NoTables);
        }
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            let was = memory.pages().relinquish(page, vm)?;
            m.unmap(tables, ipa.0, 1);
            handover::give_back(memory, page, was);
            Ok(())
        })?;
        self.pages_out -= 1;
        Ok(pa)
    }

    /// MMIO_GUARD by a guest: what it accesses there is a device of the host's. Once is enough.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE where it has memory, NO_TABLES: then the host is to bring some, which the
    /// guest never hears of.
    pub fn guest_enrol<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        vm: VmId,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        match self.guests_page(m, ipa) {
            Err(Error::NotMapped) => {}
            Ok(_) => return Err(Error::IpaInUse),
            // Enrolled already.
            Err(Error::IpaInUse) => return Ok(()),
            Err(error) => return Err(error),
        }
        let Life::Alive(tables) = &mut self.life else { return Err(Error::Dying) };
        if m.tables_left(vm) < m.tables_for_one() {
            return Err(Error::NoTables);
        }
        m.enrol(tables, ipa.0);
        Ok(())
    }

    /// What is at an address of the guest's.
    pub fn lookup<M: Machine<Tables = T, Vcpu = V>>(&self, m: &M, ipa: u64) -> There {
        match &self.life {
            Life::Alive(tables) => m.lookup(tables, ipa),
            Life::Dying | Life::Free => There::Nothing,
        }
    }
}
