//! What a guest says of its memory by RSI ([`umbra_shared::rsi`]): RAM or EMPTY, and what becomes of a page then.
//!
//! EMPTY is what a page is that is shared at its alias ([`super::calls`]): its own address is marked, and what the guest
//! does there is an external abort. So to make a page EMPTY is to share it at its alias, and to make it RAM again is to take it back,
//! in two steps as there. What differs is its content: neither what was private nor what the host has put
//! there goes over.
//!
//! Where there is no memory nothing is written into the stage 2. An address is RAM if the guest has said so
//! ([`super::ripas`]), and EMPTY else; the host gives memory to RAM only. What it gave while the guest had not
//! decided between RSI and KVM's interface is RAM by being there.

#![forbid(unsafe_code)]

use super::calls::{Caller, Parting, private_address};
use super::hardware::{Machine, Memory as _, There};
use super::life::{Interface, Life, Vm, ipa_width};
use crate::memory::handover::{self, Passing};
use core::ops::Range;
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::UntrustedIpa;
use umbra_shared::error::Error;
use umbra_shared::flags::CALL_REGISTERS;
use umbra_shared::measurement::Value;
use umbra_shared::rsi::{HOST_CALL_BYTES, PAGES_AT_A_TIME, PAGES_LOOKED_AT, RealmConfig, Ripas};

const PAGE: u64 = PAGE_SIZE as u64;

/// What comes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is done as far as this address.
    Done(u64),
    /// It can't be done, and nothing has changed.
    Rejected,
    /// The host is to bring memory for this address first.
    Missing(u64),
    /// It is to bring tables.
    Tables,
    /// It is to be told that it is about to lose a page.
    Tell {
        /// where the guest has it
        alias: u64,
        /// where it is
        pa: u64,
    },
}

/// What a guest says to its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCall {
    /// 16 bits.
    pub immediate: u64,
    /// Its registers.
    pub registers: [u64; CALL_REGISTERS],
}

/// RIPAS from an address on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which.
    pub ripas: Ripas,
    /// As far as it was looked at, and is the same.
    pub top: u64,
}

/// Where the block around an address ends.
fn block_end<M: Machine>(m: &M, address: u64) -> u64 {
    let bytes = m.block_pages() * PAGE;
    address - address % bytes + bytes
}

/// A range of the lower half, as a guest names it.
fn region<M: Machine>(m: &M, base: u64, top: u64) -> Result<Range<u64>, Error> {
    if !(base | top).is_multiple_of(PAGE) {
        return Err(Error::Unaligned);
    }
    if base >= top || top > m.alias_bit() {
        return Err(Error::BadIpa);
    }
    Ok(base..top)
}

impl<T, V> Vm<T, V> {
    /// A guest uses this interface from now on, unless it has used the other one. Whether it may.
    pub fn uses(&mut self, interface: Interface) -> bool {
        *self.interface.get_or_insert(interface) == interface
    }

    /// MEASUREMENT_READ: the initial one is number 0. `None`: there is no such measurement.
    pub fn measurement(&self, index: u64) -> Option<Value> {
        self.measurements.read(index)
    }

    /// MEASUREMENT_EXTEND. False: there is no such measurement of the guest's own, or it is too much at once.
    #[must_use]
    pub fn extend_measurement(&mut self, index: u64, extension: &[u8]) -> bool {
        self.measurements.extend(index, extension)
    }

    /// The one that a guest uses; `None`: it has not decided.
    pub const fn interface(&self) -> Option<Interface> {
        self.interface
    }

    /// What is at an address of the guest's.
    pub fn lookup<M: Machine<Tables = T, Vcpu = V>>(&self, m: &M, ipa: u64) -> There {
        let Life::Alive(tables) = &self.life else { return There::Nothing };
        match m.lookup(tables, ipa) {
            There::Nothing if self.is_empty(m, ipa) => There::Empty,
            there => there,
        }
    }

    /// Whether no memory may come to an address where there is none, by the guest's own word.
    pub(super) fn is_empty<M: Machine<Tables = T, Vcpu = V>>(&self, m: &M, ipa: u64) -> bool {
        let rsi = self.interface == Some(Interface::Rsi);
        rsi && private_address(m.alias_bit(), ipa).is_none() && self.ram.until(ipa).is_none()
    }

    /// IPA_STATE_SET.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA for a range that is none or leaves the lower half; NOT_OWNED and others for what can't be
    /// in a VM that uses RSI.
    pub fn ipa_state_set<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        (base, top): (u64, u64),
        ripas: Ripas,
    ) -> Result<Step, Error> {
        let range = region(m, base, top)?;
        match ripas {
            Ripas::Empty => {
                let _ = self.take_told(caller, base);
                self.make_empty(m, caller, range)
            }
            Ripas::Ram => self.make_ram(m, caller, range),
        }
    }

    fn make_empty<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        Range { start: base, end: top }: Range<u64>,
    ) -> Result<Step, Error> {
        let end = top.min(block_end(m, base));
        let Life::Alive(tables) = &self.life else { return Err(Error::Dying) };
        let none = self.ram.until(base).is_none() && self.ram.next(base).is_none_or(|at| at >= end);
        if none && m.is_free(tables, base, (end - base) / PAGE) {
            return Ok(Step::Done(end));
        }
        let end = end.min(base + PAGES_LOOKED_AT * PAGE);
        let (mut at, mut changed) = (base, 0);
        while at < end && changed < PAGES_AT_A_TIME {
            let missing = match self.lookup(m, at) {
                There::Empty | There::Aliased => None,
                There::Nothing => Some(Step::Missing(at)),
                There::Device => return Err(Error::IpaInUse),
                There::Memory(_) => {
                    let alias = at | m.alias_bit();
                    match self.share_at_alias(m, caller.vm, at, alias, Passing::Wiped) {
                        Ok(()) => {
                            self.forget_told(alias);
                            changed += 1;
                            None
                        }
                        Err(Error::NoTables) => Some(Step::Tables),
                        Err(error) => return Err(error),
                    }
                }
            };
            // What is done is answered first: the guest comes again for the rest.
            match missing {
                Some(step) if at == base => return Ok(step),
                Some(_) => break,
                None => at += PAGE,
            }
        }
        Ok(Step::Done(at))
    }

    fn make_ram<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        Range { start: base, end: top }: Range<u64>,
    ) -> Result<Step, Error> {
        let Life::Alive(tables) = &self.life else { return Err(Error::Dying) };
        // What nothing of is EMPTY with memory is RAM by being said to be.
        let (said, at_alias) = if self.at_aliases == 0 {
            (top, None)
        } else {
            let end = top.min(block_end(m, base));
            let found = m.next_hidden(tables, base, (end - base) / PAGE);
            (found.unwrap_or(end), found)
        };
        if at_alias == Some(base) {
            let alias = base | m.alias_bit();
            let parting = self.take_back(m, caller, UntrustedIpa(alias), Passing::Wiped)?;
            return Ok(match parting {
                Parting::Tell(pa) => Step::Tell { alias, pa },
                Parting::Done(_) => {
                    // It is RAM by being there; this is for a range that is whole.
                    let _ = self.ram.add(base..base + PAGE);
                    Step::Done(base + PAGE)
                }
            });
        }
        let _ = self.take_told(caller, base);
        Ok(if self.ram.add(base..said) { Step::Done(said) } else { Step::Rejected })
    }

    /// IPA_STATE_GET.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA for a range that is none or leaves the lower half.
    pub fn ipa_state_get<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        (base, top): (u64, u64),
    ) -> Result<Extent, Error> {
        let Range { start: base, end: top } = region(m, base, top)?;
        let _ = self.take_told(caller, base);
        let Life::Alive(tables) = &self.life else { return Err(Error::Dying) };
        let end = top.min(block_end(m, base));
        let count = (end - base) / PAGE;
        let said = self.ram.until(base);
        Ok(match (m.lookup(tables, base), said) {
            (There::Aliased | There::Device, _) => Extent { ripas: Ripas::Empty, top: base + PAGE },
            (There::Memory(_) | There::Nothing, Some(said)) => {
                let same = if self.at_aliases == 0 {
                    said.min(top)
                } else {
                    m.next_hidden(tables, base, count).unwrap_or(end).min(said)
                };
                Extent { ripas: Ripas::Ram, top: same }
            }
            (There::Memory(_), None) => {
                let pages = m.run(tables, base, count).map_or(1, |(_, pages)| pages);
                Extent { ripas: Ripas::Ram, top: base + pages * PAGE }
            }
            (There::Nothing | There::Empty, _) => {
                let end = self.ram.next(base).map_or(end, |next| next.min(end));
                let free = m.is_free(tables, base, (end - base) / PAGE);
                Extent { ripas: Ripas::Empty, top: if free { end } else { base + PAGE } }
            }
        })
    }

    /// Where a page of the guest's private memory is that a call names; `None`: it may not have come yet.
    fn private_memory<M: Machine<Tables = T, Vcpu = V>>(
        &self,
        m: &M,
        page: u64,
    ) -> Result<Option<u64>, Error> {
        region(m, page, page.wrapping_add(PAGE))?;
        match self.lookup(m, page) {
            There::Memory(pa) => Ok(Some(pa)),
            There::Nothing => Ok(None),
            There::Empty | There::Aliased | There::Device => Err(Error::BadIpa),
        }
    }

    /// REALM_CONFIG: writes it into a page of the guest's.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA for what is not private memory or to become some.
    pub fn realm_config<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: u64,
    ) -> Result<Step, Error> {
        let _ = self.take_told(caller, ipa);
        let Some(pa) = self.private_memory(m, ipa)? else { return Ok(Step::Missing(ipa)) };
        m.memory(|memory| {
            let page = memory.pages().lookup(pa)?;
            let config = RealmConfig { ipa_width: ipa_width(m) };
            let zeroes = core::iter::repeat(0);
            let words = config.words().into_iter().chain(zeroes).take(PAGE_SIZE / 8);
            handover::write(memory, page, 0, words);
            Ok(Step::Done(ipa))
        })
    }

    /// HOST_CALL: what the guest says, immediate and registers.
    ///
    /// # Errors
    ///
    /// UNALIGNED, BAD_IPA for what is not private memory or to become some.
    pub fn host_call<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        caller: Caller,
        ipa: u64,
        call: &mut HostCall,
    ) -> Result<Step, Error> {
        let _ = self.take_told(caller, ipa);
        if !ipa.is_multiple_of(HOST_CALL_BYTES) {
            return Err(Error::Unaligned);
        }
        let page = ipa & !(PAGE - 1);
        let Some(pa) = self.private_memory(m, page)? else { return Ok(Step::Missing(page)) };
        m.memory(|memory| {
            let at = memory.pages().lookup(pa)?;
            let mut words = [0; CALL_REGISTERS + 1];
            handover::read(memory, at, (ipa - page) as usize, &mut words);
            let [immediate, registers @ ..] = words;
            *call = HostCall { immediate: immediate & 0xffff, registers };
            Ok(Step::Done(ipa))
        })
    }

    /// What the host has answered to that. Where the guest has no private memory any more it gets nothing.
    pub fn answer_host_call<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        ipa: u64,
        registers: &[u64; CALL_REGISTERS],
    ) {
        let page = ipa & !(PAGE - 1);
        if let There::Memory(pa) = self.lookup(m, page) {
            m.memory(|memory| {
                let Ok(at) = memory.pages().lookup(pa) else { return };
                let behind = (ipa - page) as usize + size_of::<u64>();
                handover::write(memory, at, behind, registers.iter().copied());
            });
        }
    }
}
