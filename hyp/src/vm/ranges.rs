//! What a host does to the memory of its VMs: ranges of pages put in place, looked up, taken back, reclaimed
//! ([`umbra_shared::call`]).

#![forbid(unsafe_code)]

use super::calls::private_address;
use super::hardware::{Machine, Memory as _, There};
use super::life::{Life, Vm, check_ipa, slot};
use crate::memory::handover::{self, Arrival};
use crate::memory::pages::Page;
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{UntrustedIpa, UntrustedPages, VmHandle};
use umbra_shared::error::Error;
use umbra_shared::measurement::Record;

const PAGE: u64 = PAGE_SIZE as u64;

/// As many of `count` pages from an address on as are in the same block.
fn in_block<M: Machine>(m: &M, address: u64, count: u64) -> Result<u64, Error> {
    let block = m.block_pages();
    match count {
        0 => Err(Error::InvalidArgument),
        _ => Ok(count.min(block - address / PAGE % block)),
    }
}

/// Whether memory can be at a guest-physical address for its own sake: in a protected guest's upper half it is at an alias.
fn check_own_ipa<M: Machine>(m: &M, ipa: UntrustedIpa, protected: bool) -> Result<(), Error> {
    check_ipa(m, ipa)?;
    let upper = protected && private_address(m.alias_bit(), ipa.0).is_some();
    if upper { Err(Error::BadIpa) } else { Ok(()) }
}

impl<T, V> Vm<T, V> {
    /// VM_MAP. Returns how many pages are in place.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, UNALIGNED, BAD_IPA, in a protected guest's upper half as well; INVALID_ARGUMENT for no pages, IPA_IN_USE
    /// if any is mapped or at its alias, or the guest has enrolled it as a device's, or the first is EMPTY, NO_TABLES, and what is wrong with the pages.
    pub fn map<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        pages: UntrustedPages,
        ipa: UntrustedIpa,
    ) -> Result<u64, Error> {
        let vm = slot(handle)?;
        self.check(handle)?;
        let protected = self.config.protected;
        let arrival = match (protected, self.sealed) {
            (false, _) => Arrival::Shared,
            (true, false) => Arrival::Kept,
            (true, true) => Arrival::Zeroed,
        };
        let tables = self.tables()?;
        // A block lies on one side of the alias bit.
        check_own_ipa(m, ipa, protected)?;
        let count = in_block(m, ipa.0, pages.count)?;
        let free = m.is_free(tables, ipa.0, count);
        if !free || self.is_empty(m, ipa.0) {
            return Err(Error::IpaInUse);
        }
        // As far as it is RAM.
        let count = match self.ram.until(ipa.0) {
            Some(end) => count.min((end - ipa.0) / PAGE),
            None => count,
        };
        // They are in one block, so there is one table for each level at the most.
        if m.tables_left(vm) < m.tables_for_one() {
            return Err(Error::NoTables);
        }
        let measurements = &mut self.measurements;
        let ready = m.memory(|memory| {
            let range = memory.pages().lookup_range(pages.start.0, count)?;
            memory.pages().check_donation(range)?;
            let own = |memory: &mut M::Memory, part| {
                let given = memory.pages().give_to_guest(part, vm, protected);
                debug_assert_eq!(given, Ok(()), "checked, under the same lock");
            };
            let measured = |page: Page, content| {
                let ipa = ipa.0 + (page.pa() - range.start());
                measurements.enter(&Record::Page { ipa, content });
            };
            Ok(handover::prepare_for_guest(memory, range, arrival, own, measured))
        })?;
        let tables = self.tables()?;
        let done = ready.pages().count() as u64;
        m.map(tables, ipa.0, ready);
        self.pages_out += done;
        Ok(done)
    }

    /// VM_UNMAP: the host takes pages of a normal VM back. Returns the first one's address, and how many.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, UNALIGNED, BAD_IPA, INVALID_ARGUMENT for no pages, NOT_MAPPED if the first is not, NOT_OWNED
    /// if the VM is protected, NO_TABLES if they are a part of a block and there is no table for the rest.
    pub fn unmap<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        ipa: UntrustedIpa,
        count: u64,
    ) -> Result<(u64, u64), Error> {
        let vm = slot(handle)?;
        self.check(handle)?;
        let protected = self.config.protected;
        let tables = self.tables()?;
        check_ipa(m, ipa)?;
        let count = in_block(m, ipa.0, count)?;
        let (pa, done) = m.run(tables, ipa.0, count).ok_or(Error::NotMapped)?;
        if protected {
            return Err(Error::NotOwned);
        }
        if m.tables_left(vm) < m.tables_to_unmap(tables, ipa.0, done) {
            return Err(Error::NoTables);
        }
        m.memory(|memory| {
            let range = memory.pages().lookup_range(pa, done)?;
            memory.pages().unshare_with_guest(range, vm)?;
            // The host has had the pages all along: it is told when the guest has them no more.
            m.unmap(tables, ipa.0, done);
            Ok(())
        })?;
        self.pages_out -= done;
        Ok((pa, done))
    }

    /// VM_LOOKUP. Returns the page, and whether the host has access to it.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, UNALIGNED, BAD_IPA, in a protected guest's upper half as well; NOT_MAPPED.
    pub fn find<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        ipa: UntrustedIpa,
    ) -> Result<(u64, bool), Error> {
        self.check(handle)?;
        let protected = self.config.protected;
        let tables = self.tables()?;
        check_own_ipa(m, ipa, protected)?;
        let there = match m.lookup(tables, ipa.0) {
            There::Aliased => m.lookup(tables, ipa.0 | m.alias_bit()),
            there => there,
        };
        let There::Memory(pa) = there else { return Err(Error::NotMapped) };
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            Ok((pa, memory.pages().state(page).host_has_access()))
        })
    }

    /// VM_RECLAIM. Returns how many pages are still out, and how many came back.
    ///
    /// # Errors
    ///
    /// BAD_VM, NOT_DYING, INVALID_ARGUMENT for no pages, NOT_OWNED if the first is not the VM's, and what is wrong
    /// with the address.
    pub fn reclaim<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        pages: UntrustedPages,
    ) -> Result<(u64, u64), Error> {
        let vm = slot(handle)?;
        self.check(handle)?;
        if !matches!(self.life, Life::Dying) {
            return Err(Error::NotDying);
        }
        let count = in_block(m, pages.start.0, pages.count)?;
        let done = m.memory(|memory| {
            let range = memory.pages().lookup_range(pages.start.0, count)?;
            let back = handover::reclaim(memory, range, |memory, part| {
                memory.pages().reclaim(part, vm).ok()
            });
            if back == 0 { Err(Error::NotOwned) } else { Ok(back as u64) }
        })?;
        self.pages_out -= done;
        if self.pages_out == 0 {
            self.life = Life::Free;
        }
        Ok((self.pages_out, done))
    }
}
