//! What a protected guest does to its own memory: sharing, enrolling, giving back.
//!
//! A page that is shared is taken from the host in two steps. The first changes nothing: the host is told, which may
//! have mapped the page into a process, pinned it, or be copying from it, and would oops over an abort in the
//! middle. When it runs the vCPU again the guest makes the call again, which is the second step. That looks at everything
//! anew, since siblings go on in between, and goes through without asking: the host can put it off by not running
//! the vCPU, which it can do anyway.
//!
//! What was told is one address for each vCPU. It counts for a call that is made again ([`Caller::again`]), of the same
//! page, unless somebody has shared the page meanwhile: then the host may have begun to use it anew.

#![forbid(unsafe_code)]

use super::hardware::{Machine, Memory as _, There};
use super::life::{Life, NOT_TOLD, Vm, check_ipa};
use crate::memory::handover;
use crate::memory::pages::{State, VmId};
use umbra_shared::call::UntrustedIpa;
use umbra_shared::error::Error;

/// Who makes a call.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Its VM's number.
    pub vm: VmId,
    /// Its number there.
    pub index: usize,
    /// It has been to the host with a call, and makes that again: nothing else has come in between.
    pub again: bool,
}

/// How far a page is on its way from the host, or to it. Its address is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Nothing has changed: the host is to be told that it is about to lose it.
    Tell(u64),
    /// It has changed hands.
    Done(u64),
}

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

    /// Whether the host has been told by this call's first step that it is about to lose the page at `ipa`. Afterwards
    /// it has not.
    fn take_told(&mut self, caller: Caller, ipa: u64) -> bool {
        let Some(told) = self.told.get_mut(caller.index) else { return false };
        core::mem::replace(told, NOT_TOLD) == ipa && caller.again
    }

    /// It is told now, and may have been when the call is made again.
    fn tell(&mut self, caller: Caller, ipa: u64) {
        if let Some(told) = self.told.get_mut(caller.index) {
            *told = ipa;
        }
    }

    /// MEM_SHARE by a guest.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, NOT_MAPPED, SHARED.
    pub fn guest_share<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        let _ = self.take_told(caller, ipa.0);
        let pa = self.guests_page(m, ipa)?;
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            memory.pages().share_by_guest(page, caller.vm)?;
            handover::share_with_host(memory, page);
            Ok(())
        })?;
        // Whoever was about to take it back is told anew: what the host does with it from now on it was not asked about.
        for told in self.told.iter_mut().filter(|told| **told == ipa.0) {
            *told = NOT_TOLD;
        }
        Ok(())
    }

    /// MEM_UNSHARE by a guest.
    ///
    /// # Errors
    ///
    /// As [`Self::guest_share`], with NOT_SHARED for SHARED.
    pub fn guest_unshare<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<Parting, Error> {
        let told = self.take_told(caller, ipa.0);
        let pa = self.guests_page(m, ipa)?;
        let parting = m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            if !told && memory.pages().state(page) == State::SharedByGuest(caller.vm) {
                return Ok(Parting::Tell(pa));
            }
            memory.pages().unshare_by_guest(page, caller.vm)?;
            handover::unshare_with_host(memory, page);
            Ok(Parting::Done(pa))
        })?;
        if let Parting::Tell(_) = parting {
            self.tell(caller, ipa.0);
        }
        Ok(parting)
    }

    /// MEM_RELINQUISH by a guest: the page is the host's again, without what a protected guest had in
    /// it.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, NOT_MAPPED; NO_TABLES if it is a part of a block and there
    /// is no table for the rest: then the host is to bring some, which the guest never hears of.
    pub fn guest_relinquish<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<Parting, Error> {
        let told = self.take_told(caller, ipa.0);
        let pa = self.guests_page(m, ipa)?;
        let Life::Alive(tables) = &mut self.life else { return Err(Error::Dying) };
        if m.tables_left(caller.vm) < m.tables_to_unmap(tables, ipa.0, 1) {
            if told {
                // A sibling has used them up since. The host still knows.
                self.tell(caller, ipa.0);
            }
            return Err(Error::NoTables);
        }
        let parting = m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            if !told && memory.pages().state(page) == State::SharedByGuest(caller.vm) {
                return Ok(Parting::Tell(pa));
            }
            let was = memory.pages().relinquish(page, caller.vm)?;
            m.unmap(tables, ipa.0, 1);
            handover::give_back(memory, page, was);
            Ok(Parting::Done(pa))
        })?;
        match parting {
            Parting::Tell(_) => self.tell(caller, ipa.0),
            Parting::Done(_) => self.pages_out -= 1,
        }
        Ok(parting)
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
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        let _ = self.take_told(caller, ipa.0);
        match self.guests_page(m, ipa) {
            Err(Error::NotMapped) => {}
            Ok(_) => return Err(Error::IpaInUse),
            // Enrolled already.
            Err(Error::IpaInUse) => return Ok(()),
            Err(error) => return Err(error),
        }
        let Life::Alive(tables) = &mut self.life else { return Err(Error::Dying) };
        if m.tables_left(caller.vm) < m.tables_for_one() {
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
