//! What a protected guest does to its own memory: sharing, enrolling, giving back.
//!
//! A page that is shared is taken from the host in two steps. The first changes nothing: the host is told, which may
//! have mapped the page into a process, pinned it, or be copying from it, and would oops over an abort in the
//! middle. When it runs the vCPU again the guest makes the call again, which is the second step. That looks at everything
//! anew, since siblings go on in between, and goes through without asking: the host can put it off by not running
//! the vCPU, which it can do anyway.
//!
//! A guest's upper half ([`Machine::alias_bit`]) is what it shares with its host and what its host emulates. A page is
//! at its own address, private or shared, or shared at its alias; its own address is marked then, so that nothing comes there,
//! and what the guest does there is an external abort. The rest of the upper half is a device without being asked for.
//! Sharing at an alias takes the page from its own address first, as a block is broken: no TLB holds it where it was private
//! when the host gets it.
//!
//! What was told is one address for each vCPU. It counts for a call that is made again ([`Caller::again`]), of the same
//! page, unless somebody has shared the page meanwhile: then the host may have begun to use it anew.

#![forbid(unsafe_code)]

use super::hardware::{Machine, Memory as _, There};
use super::life::{Life, NOT_TOLD, Vm, check_ipa};
use crate::memory::handover::{self, Passing};
use crate::memory::pages::{State, VmId};
use umbra_shared::call::UntrustedIpa;
use umbra_shared::error::Error;

/// Where an address of the upper half has its page while that is private: the same, without the alias bit. `None`: it
/// is of the lower half, or of neither.
#[inline]
pub fn private_address(alias_bit: u64, ipa: u64) -> Option<u64> {
    (ipa & !(alias_bit - 1) == alias_bit).then_some(ipa ^ alias_bit)
}

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
            There::Aliased | There::Empty => Err(Error::Shared),
            There::Nothing => Err(Error::NotMapped),
        }
    }

    /// Whether the host has been told by this call's first step that it is about to lose the page at `ipa`. Afterwards
    /// it has not.
    pub(super) fn take_told(&mut self, caller: Caller, ipa: u64) -> bool {
        let Some(told) = self.told.get_mut(caller.index) else { return false };
        core::mem::replace(told, NOT_TOLD) == ipa && caller.again
    }

    /// It is told now, and may have been when the call is made again.
    fn tell(&mut self, caller: Caller, ipa: u64) {
        if let Some(told) = self.told.get_mut(caller.index) {
            *told = ipa;
        }
    }

    /// MEM_SHARE by a guest: at the page's own address, or at its alias.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, SHARED, wherever; NOT_MAPPED, for an alias of the private address, and
    /// NO_TABLES for an alias: then the host is to bring what there is not, which the guest never hears of.
    pub fn guest_share<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        let _ = self.take_told(caller, ipa.0);
        match private_address(m.alias_bit(), ipa.0) {
            None => {
                let pa = self.guests_page(m, ipa)?;
                m.memory(|memory| {
                    let page = memory.pages().lookup(pa)?;
                    memory.pages().share_by_guest(page, caller.vm)?;
                    let _ = handover::share_with_host(memory, page, Passing::Kept);
                    Ok(())
                })?;
            }
            Some(lower) => self.share_at_alias(m, caller.vm, lower, ipa.0, Passing::Kept)?,
        }
        self.forget_told(ipa.0);
        Ok(())
    }

    /// A page is shared. Whoever was about to take it back is told anew: what the host does with it from now on it was
    /// not asked about.
    pub(super) fn forget_told(&mut self, ipa: u64) {
        for told in self.told.iter_mut().filter(|told| **told == ipa) {
            *told = NOT_TOLD;
        }
    }

    /// A page that is private at `lower` moves to `upper`, and is shared.
    pub(super) fn share_at_alias<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        vm: VmId,
        lower: u64,
        upper: u64,
        passing: Passing,
    ) -> Result<(), Error> {
        let pa = self.guests_page(m, UntrustedIpa(lower))?;
        let Life::Alive(tables) = &mut self.life else { return Err(Error::Dying) };
        // What can be refused comes before what the host is asked for.
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            let private = memory.pages().state(page) == State::Guest(vm);
            if private { Ok(()) } else { Err(Error::Shared) }
        })?;
        let needed = m.tables_to_unmap(tables, lower, 1) + m.tables_for_one();
        if m.tables_left(vm) < needed {
            return Err(Error::NoTables);
        }
        let ready = m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            memory.pages().share_by_guest(page, vm)?;
            m.unmap(tables, lower, 1);
            m.hide(tables, lower);
            Ok(handover::share_with_host(memory, page, passing))
        })?;
        m.map(tables, upper, ready);
        self.at_aliases += 1;
        Ok(())
    }

    /// MEM_UNSHARE by a guest, at the address where the page is shared: its alias, if it is that.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, NOT_MAPPED, NOT_SHARED, SHARED if it is at its alias.
    pub fn guest_unshare<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<Parting, Error> {
        self.take_back(m, caller, ipa, Passing::Kept)
    }

    /// A page that is shared is private again: the first step, or the second.
    pub(super) fn take_back<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
        passing: Passing,
    ) -> Result<Parting, Error> {
        let told = self.take_told(caller, ipa.0);
        let pa = self.guests_page(m, ipa)?;
        let Life::Alive(tables) = &mut self.life else { return Err(Error::Dying) };
        let private = private_address(m.alias_bit(), ipa.0);
        let ready = m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            if !told && memory.pages().state(page) == State::SharedByGuest(caller.vm) {
                return Ok(None);
            }
            memory.pages().unshare_by_guest(page, caller.vm)?;
            if private.is_some() {
                m.unmap(tables, ipa.0, 1);
            }
            Ok(Some(handover::unshare_with_host(memory, page, passing)))
        })?;
        let Some(ready) = ready else {
            self.tell(caller, ipa.0);
            return Ok(Parting::Tell(pa));
        };
        if let Some(lower) = private {
            // The table that its mark is in is there for it.
            m.unhide(tables, lower);
            m.map(tables, lower, ready);
            self.at_aliases -= 1;
        }
        Ok(Parting::Done(pa))
    }

    /// MEM_RELINQUISH by a guest, at the address where the page is: it is the host's again, without what a protected guest
    /// had in it. If it was at its alias, both addresses are free.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, IPA_IN_USE for a device's page, NOT_MAPPED, SHARED if it is at its alias; NO_TABLES if it is a part of a block and there
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
            // If the host knew, it was a sibling who has used them up since: it is told again.
            return Err(Error::NoTables);
        }
        let parting = m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            if !told && memory.pages().state(page) == State::SharedByGuest(caller.vm) {
                return Ok(Parting::Tell(pa));
            }
            let was = memory.pages().relinquish(page, caller.vm)?;
            m.unmap(tables, ipa.0, 1);
            if let Some(lower) = private_address(m.alias_bit(), ipa.0) {
                m.unhide(tables, lower);
            }
            handover::give_back(memory, page, was);
            Ok(Parting::Done(pa))
        })?;
        match parting {
            Parting::Tell(_) => self.tell(caller, ipa.0),
            Parting::Done(_) => {
                self.pages_out -= 1;
                let aliased = private_address(m.alias_bit(), ipa.0).is_some();
                self.at_aliases -= u64::from(aliased);
            }
        }
        Ok(parting)
    }

    /// MMIO_GUARD by a guest: what it accesses there is a device of the host's. Once is enough.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA, in the upper half as well, where all that is not there is a device; IPA_IN_USE where it has
    /// memory, NO_TABLES: then the host is to bring some, which the
    /// guest never hears of.
    pub fn guest_enrol<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: UntrustedIpa,
    ) -> Result<(), Error> {
        let _ = self.take_told(caller, ipa.0);
        if private_address(m.alias_bit(), ipa.0).is_some() {
            return Err(Error::BadIpa);
        }
        match self.guests_page(m, ipa) {
            Err(Error::NotMapped) => {}
            Ok(_) | Err(Error::Shared) => return Err(Error::IpaInUse),
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
}
