//! Every call of a guest's: what it must answer, what its host is told, and what it changes.

use umbra_shared::PAGE_SIZE;
use umbra_shared::call::UntrustedIpa;
use umbra_shared::exit::Reason;
use umbra_shared::guest::{GuestFunction, UID};
use umbra_shared::record::PageState;

use crate::Spec;
use crate::memory::{Changes, Owner};
use crate::vm::{Interface, Power};

const SUCCESS: i64 = 0;
pub(crate) const NOT_SUPPORTED: i64 = -1;
/// PSCI's.
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INTERNAL_FAILURE: i64 = -6;
const INVALID_ADDRESS: i64 = -9;
/// That of vendor-specific calls.
const INVALID_PARAMETER: i64 = -3;

const SMC64: u32 = 1 << 30;

/// A call of the guest that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestCall {
    /// Its function, without the hint.
    pub function: u32,
    /// As much of x1-x3 as the caller's registers hold.
    pub args: [u64; 3],
    /// The guest was to make a call again, and this is it: it has not left in between.
    pub again: bool,
    /// What hyp has answered in x1, where there is a choice.
    pub x1: u64,
}

/// What must come of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// x0; `None`: not hyp's to choose.
    pub x0: Option<i64>,
    /// x1-x3, where the call has results there.
    pub words: Option<[u64; 3]>,
    /// What the host is told.
    pub exit: Option<Reason>,
    /// The call is made again.
    pub again: bool,
    /// Pages whose states it changes.
    pub changes: Changes,
}

impl Answer {
    pub(crate) fn x0(x0: i64) -> Self {
        Self { x0: Some(x0), ..Self::default() }
    }

    fn told(x0: i64, exit: Reason) -> Self {
        Self { exit: Some(exit), ..Self::x0(x0) }
    }

    pub(crate) fn again(exit: Reason) -> Self {
        Self { exit: Some(exit), again: true, ..Self::default() }
    }

    fn words([w0, rest @ ..]: [u32; 4]) -> Self {
        Self { words: Some(rest.map(u64::from)), ..Self::x0(w0.into()) }
    }
}

impl Spec {
    /// A call of the guest that is loaded on a CPU.
    pub fn guest_call(&mut self, cpu: usize, call: GuestCall) -> Answer {
        let Some((slot, index)) = self.cpus[cpu].loaded else { return Answer::default() };
        let vm = &self.vms[usize::from(slot)];
        let aarch32 = vm.vcpus[&index].features.aarch32;
        // Whatever it calls for, what its host was told counts for this one call, or for none.
        let vcpu = self.vms[usize::from(slot)].vcpus.entry(index).or_default();
        let told = vcpu.told.take().filter(|_| call.again);
        let vm = &self.vms[usize::from(slot)];
        let answer = match call.function {
            0x8000_0000 => Answer::x0(0x1_0002),
            0x8000_0001 => match call.args[0] as u32 {
                0x8000_0000 | 0x8000_0001 => Answer::x0(SUCCESS),
                0x8000_8000 | 0x8000_7fff | 0x8000_3fff => Answer::default(),
                _ => Answer::x0(NOT_SUPPORTED),
            },
            0x8000_8000 | 0x8000_3fff => Answer::default(),
            0x8400_0000..=0x8400_001f => self.psci(slot, index, call),
            0xc400_0000..=0xc400_001f if aarch32 => Answer::x0(NOT_SUPPORTED),
            0xc400_0000..=0xc400_001f => self.psci(slot, index, call),
            // Random numbers.
            0x8400_0050..=0x8400_005f | 0xc400_0050..=0xc400_005f => Answer::default(),
            0xc400_0190..=0xc400_01af => self.rsi((slot, index), call, told),
            function if vm.protected && function & 0xbf00_0000 == 0x8600_0000 => {
                let known = if aarch32 {
                    GuestFunction::from_id32(function)
                } else {
                    GuestFunction::from_id(function)
                };
                match known {
                    Some(known) => self.vendor((slot, index), known, call, told),
                    None => Answer::x0(NOT_SUPPORTED),
                }
            }
            _ => Answer::x0(NOT_SUPPORTED),
        };
        self.memory.apply(&answer.changes);
        answer
    }

    fn psci(&mut self, slot: u8, caller: usize, call: GuestCall) -> Answer {
        let smc64 = call.function & SMC64 != 0;
        let [x1, x2, _] = if smc64 { call.args } else { call.args.map(|x| x & 0xffff_ffff) };
        let bits = self.platform.ipa_bits;
        let vm = &mut self.vms[usize::from(slot)];
        let target = vm.vcpus.iter().find(|(_, vcpu)| vcpu.affinity == x1).map(|(&n, _)| n);
        match (call.function & 0x1f, smc64) {
            (0, false) => Answer::x0(0x1_0001),
            (1, _) if x1 >> 32 != 0 || x1 & 0xfcfe_0000 != 0 => Answer::x0(INVALID_PARAMETERS),
            (1, _) => Answer::told(SUCCESS, Reason::Wfi),
            (2, false) => {
                let vcpu = vm.vcpus.entry(caller).or_default();
                vcpu.power = Power::Off;
                vcpu.leaves = true;
                Answer::told(SUCCESS, Reason::CpuOff)
            }
            (3, _) => {
                let Some(target) = target else { return Answer::x0(INVALID_PARAMETERS) };
                let vcpu = vm.vcpus.entry(target).or_default();
                let loaded = vcpu.loaded_on.is_some();
                let bits = if vcpu.features.aarch32 { 32 } else { bits };
                // T32 begins at odd addresses.
                let unaligned = x2 & 3 != 0 && !(vcpu.features.aarch32 && x2 & 1 != 0);
                match vcpu.power {
                    Power::On => Answer::x0(ALREADY_ON),
                    Power::Off if loaded => Answer::x0(ALREADY_ON),
                    Power::Pending => Answer::x0(ON_PENDING),
                    Power::Off if unaligned || x2 >> bits != 0 => Answer::x0(INVALID_ADDRESS),
                    Power::Off => {
                        vcpu.power = Power::Pending;
                        Answer::told(SUCCESS, Reason::CpuOn)
                    }
                }
            }
            (4, _) => match target.filter(|_| x2 == 0) {
                None => Answer::x0(INVALID_PARAMETERS),
                Some(target) => Answer::x0(match &vm.vcpus[&target] {
                    vcpu if vcpu.power == Power::Pending => 2,
                    vcpu if vcpu.power == Power::Off && vcpu.loaded_on.is_none() => 1,
                    _ => 0,
                }),
            },
            (6, false) => Answer::x0(2),
            (8 | 9, false) => self.end(slot, caller),
            (0x12, _) if (1..1 << 31).contains(&(x1 as u32)) => Answer::x0(INVALID_PARAMETERS),
            (0x12, _) => self.end(slot, caller),
            (0xa, false) => {
                let aarch32 = vm.vcpus[&caller].features.aarch32;
                let there = match x1 as u32 {
                    0x8000_0000 => true,
                    asked @ 0x8400_0000..=0x8400_001f => {
                        matches!(asked & 0x1f, 0..=4 | 6 | 8 | 9 | 0xa | 0x12)
                    }
                    asked @ 0xc400_0000..=0xc400_001f => {
                        !aarch32 && matches!(asked & 0x1f, 1 | 3 | 4 | 0x12)
                    }
                    _ => false,
                };
                Answer::x0(if there { SUCCESS } else { NOT_SUPPORTED })
            }
            _ => Answer::x0(NOT_SUPPORTED),
        }
    }

    /// The guest turns its machine off.
    fn end(&mut self, slot: u8, caller: usize) -> Answer {
        let vm = &mut self.vms[usize::from(slot)];
        if vm.protected {
            vm.ended = true;
            // Whoever is inside the guest now comes out of it once more.
            for (&n, vcpu) in &mut vm.vcpus {
                vcpu.last_runs = if n == caller || vcpu.loaded_on.is_some() { 2 } else { 0 };
            }
        }
        Answer::told(INTERNAL_FAILURE, Reason::System)
    }

    fn vendor(
        &mut self,
        (slot, index): (u8, usize),
        function: GuestFunction,
        call: GuestCall,
        told: Option<u64>,
    ) -> Answer {
        let interface = &mut self.vms[usize::from(slot)].interface;
        let reserved = match function {
            GuestFunction::Uid | GuestFunction::Features => &call.args[3..],
            _ if *interface.get_or_insert(Interface::Kvm) == Interface::Rsi => {
                return Answer::x0(NOT_SUPPORTED);
            }
            GuestFunction::HypMeminfo => &call.args[..],
            _ => &call.args[1..],
        };
        if reserved.iter().any(|&x| x != 0) {
            return Answer::x0(INVALID_PARAMETER);
        }
        match function {
            GuestFunction::Uid => return Answer::words(UID),
            GuestFunction::Features if *interface == Some(Interface::Rsi) => {
                return Answer::words([1, 0, 0, 0]);
            }
            GuestFunction::Features => return Answer::words([0x29d, 0, 0, 0]),
            GuestFunction::HypMeminfo => return Answer::x0(PAGE_SIZE as i64),
            _ => {}
        }
        let ipa = call.args[0];
        let refused = Answer::x0(INVALID_PARAMETER);
        if self.check_ipa(UntrustedIpa(ipa)).is_err() {
            return refused;
        }
        let private = self.private_address(ipa);
        let vm = &mut self.vms[usize::from(slot)];
        // Where nothing comes.
        let device = vm.enrolled.contains(&ipa);
        let aliased = vm.aliased.contains(&ipa);
        let page = vm.maps.get(&ipa).copied();
        let now = page.and_then(|page| self.memory.get(page));
        let own = Owner::of(PageState::Guest, slot);
        let shared = Owner::of(PageState::SharedByGuest, slot);
        let becomes =
            |page, owner| Answer { changes: Changes::from([(page, owner)]), ..Answer::x0(SUCCESS) };
        match (function, page) {
            // All of the upper half is a device, but for what is shared there.
            (GuestFunction::MmioGuard, _) if private.is_some() || aliased => refused,
            (GuestFunction::MmioGuard, None) if device => Answer::x0(SUCCESS),
            (GuestFunction::MmioGuard, None) if !vm.has_tables() => Answer::again(Reason::Tables),
            (GuestFunction::MmioGuard, None) => {
                vm.enrol(&self.platform, ipa);
                Answer::x0(SUCCESS)
            }
            (GuestFunction::MemShare, None) if private.is_some() => {
                let lower = ipa - self.platform.alias_bit;
                match vm.maps.get(&lower).copied() {
                    None if !vm.enrolled.contains(&lower) => Answer::again(Reason::Fault),
                    Some(page) if self.memory.get(page) == Some(own) => {
                        if !vm.has_tables_for_an_alias(&self.platform, lower) {
                            return Answer::again(Reason::Tables);
                        }
                        vm.move_page(&self.platform, lower, ipa);
                        vm.aliased.insert(lower);
                        vm.forget_told(ipa);
                        becomes(page, shared)
                    }
                    _ => refused,
                }
            }
            (GuestFunction::MemShare, None) if !device && !aliased => Answer::again(Reason::Fault),
            (GuestFunction::MemShare, Some(page)) if now == Some(own) => {
                vm.forget_told(ipa);
                becomes(page, shared)
            }
            (GuestFunction::MemRelinquish, Some(_))
                if !vm.has_tables_to_unmap(&self.platform, ipa, 1) =>
            {
                Answer::again(Reason::Tables)
            }
            // The host is told of what it is about to lose before it does.
            (GuestFunction::MemUnshare | GuestFunction::MemRelinquish, Some(_))
                if now == Some(shared) && told != Some(ipa) =>
            {
                if let Some(vcpu) = vm.vcpus.get_mut(&index) {
                    vcpu.told = Some(ipa);
                }
                Answer::again(Reason::Unshare)
            }
            (GuestFunction::MemUnshare, Some(page)) if now == Some(shared) => {
                if let Some(lower) = private {
                    vm.move_page(&self.platform, ipa, lower);
                    vm.aliased.remove(&lower);
                }
                becomes(page, own)
            }
            (GuestFunction::MemRelinquish, Some(page)) => {
                vm.unmap(&self.platform, ipa, 1);
                if let Some(lower) = private {
                    vm.aliased.remove(&lower);
                }
                Answer { exit: Some(Reason::Relinquished), ..becomes(page, Owner::HOST) }
            }
            _ => refused,
        }
    }
}
