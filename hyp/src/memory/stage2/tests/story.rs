//! A host, its VMs, and what is asked of them.

use super::super::machine::{ALIAS_BIT, BLOCK_BYTES, CPUS, HOST, SimTable};
use super::super::*;
use super::sim::{Sim, VMS, ipa, pa};
use crate::memory::pages::VmId;
use crate::vm::calls::{Caller, Parting};
use crate::vm::life::Vm;
use crate::vm::rsi::Step;
use proptest::prelude::*;
use umbra_shared::call::{UntrustedIpa, UntrustedPa, UntrustedPages, VM_PAGES, VmConfig, VmHandle};
use umbra_shared::error::Error;
use umbra_shared::rsi::Ripas;

/// The host, its VMs, and what they may ask for.
pub(super) struct Story {
    pub(super) sim: Sim,
    pub(super) vms: [Vm<Stage2<SimTable>, ()>; VMS],
    pub(super) handles: [VmHandle; VMS],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    Create {
        page: u64,
        protected: bool,
    },
    /// Of a protected VM, in place of whose pages the host's kernel finds junk.
    CreateJunk {
        page: u64,
    },
    /// The host's kernel, on a CPU, or one of its users.
    Touch {
        page: u64,
        kernel_on: Option<usize>,
    },
    Topup {
        page: u64,
    },
    Map {
        page: u64,
        at: u64,
        count: u64,
    },
    Unmap {
        at: u64,
        count: u64,
    },
    Share {
        at: u64,
        alias: bool,
    },
    Unshare {
        at: u64,
        alias: bool,
    },
    Relinquish {
        at: u64,
        alias: bool,
    },
    /// By RSI: RAM, or EMPTY.
    Say {
        at: u64,
        count: u64,
        ripas: Ripas,
    },
    Destroy,
    Reclaim {
        page: u64,
        count: u64,
    },
    /// An interrupt waits, from now on, when it is asked about so often.
    Patience(usize),
    /// Whether guests see what is in caches.
    Coherent(bool),
}

pub(super) fn asks() -> impl Strategy<Value = (usize, Ask)> {
    const BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;
    // Often where blocks begin.
    let page = prop_oneof![2 => 0..5 * BLOCK, 1 => (0..5u64).prop_map(|n| n * BLOCK)].boxed();
    let at = prop_oneof![2 => 0..2 * BLOCK + 2, 1 => (0..3u64).prop_map(|n| n * BLOCK)].boxed();
    let count = prop_oneof![1 => Just(1), 1 => 1..BLOCK, 2 => BLOCK..2 * BLOCK].boxed();
    let ask = prop_oneof![
        4 => (page.clone(), any::<bool>()).prop_map(|(page, protected)| Ask::Create { page, protected }),
        2 => page.clone().prop_map(|page| Ask::CreateJunk { page }),
        2 => page.clone().prop_map(|page| Ask::Topup { page }),
        8 => (page.clone(), prop::option::weighted(0.9, 0..CPUS))
            .prop_map(|(page, kernel_on)| Ask::Touch { page, kernel_on }),
        12 => (page.clone(), at.clone(), count.clone())
            .prop_map(|(page, at, count)| Ask::Map { page, at, count }),
        6 => (at.clone(), count.clone()).prop_map(|(at, count)| Ask::Unmap { at, count }),
        6 => (at.clone(), any::<bool>()).prop_map(|(at, alias)| Ask::Share { at, alias }),
        6 => (at.clone(), any::<bool>()).prop_map(|(at, alias)| Ask::Unshare { at, alias }),
        4 => (at.clone(), any::<bool>()).prop_map(|(at, alias)| Ask::Relinquish { at, alias }),
        8 => (at, count.clone(), any::<bool>()).prop_map(|(at, count, ram)| {
            Ask::Say { at, count, ripas: if ram { Ripas::Ram } else { Ripas::Empty } }
        }),
        1 => Just(Ask::Destroy),
        8 => (page, count).prop_map(|(page, count)| Ask::Reclaim { page, count }),
        1 => (0usize..4).prop_map(Ask::Patience),
        1 => any::<bool>().prop_map(Ask::Coherent),
    ];
    (0..VMS, ask)
}

impl Story {
    pub(super) fn new() -> Self {
        Self { sim: Sim::new(), vms: [Vm::new(), Vm::new()], handles: [VmHandle(0); VMS] }
    }

    /// What comes of it: of a range, how many pages were done.
    pub(super) fn ask(&mut self, n: usize, ask: Ask) -> Result<u64, Error> {
        let (sim, vm, handle) = (&self.sim, &mut self.vms[n], self.handles[n]);
        let host = Vttbr::new(HOST, 0);
        // A guest's own call comes to hyp with the guest's VTTBR_EL2.
        let guest = Vttbr::new(n as u8 + 1, 0x1000 * (n as u64 + 1));
        let place = |at, alias| UntrustedIpa(ipa(at) | if alias { ALIAS_BIT } else { 0 });
        let run = |page: u64, count| UntrustedPages { start: UntrustedPa(pa(page)), count };
        match ask {
            Ask::Create { page, .. } | Ask::CreateJunk { page } => {
                if !vm.is_free() {
                    return Err(Error::Limit);
                }
                let config = match ask {
                    Ask::Create { protected: false, .. } => VmConfig::normal(),
                    Ask::CreateJunk { .. } => VmConfig { junk: true, ..VmConfig::protected() },
                    _ => VmConfig::protected(),
                };
                let pages = run(page, VM_PAGES);
                self.handles[n] = sim.call(host, || vm.create(sim, n as VmId, pages, config))?;
                Ok(pages.count)
            }
            Ask::Touch { page, kernel_on } => {
                let fault = Fault { pa: pa(page) + 16, kernel_on };
                match sim.call(host, || sim.fault(fault)) {
                    HostFault::Abort => Err(Error::NotOwned),
                    HostFault::Retry | HostFault::Junk => Ok(1),
                }
            }
            Ask::Topup { page } => {
                sim.call(host, || vm.topup(sim, handle, run(page, 1))).map(|()| 1)
            }
            Ask::Map { page, at, count } => {
                sim.call(host, || vm.map(sim, handle, run(page, count), UntrustedIpa(ipa(at))))
            }
            Ask::Unmap { at, count } => sim
                .call(host, || vm.unmap(sim, handle, UntrustedIpa(ipa(at)), count))
                .map(|(_, done)| done),
            Ask::Share { at, alias } => sim
                .call(guest, || {
                    let caller = Caller { vm: n as VmId, index: 0, again: false };
                    vm.guest_share(sim, caller, place(at, alias))
                })
                .map(|()| 1),
            Ask::Unshare { at, alias } => {
                let call = |again| {
                    let caller = Caller { vm: n as VmId, index: 0, again };
                    sim.call(guest, || vm.guest_unshare(sim, caller, place(at, alias)))
                };
                Self::in_two_steps(call)
            }
            Ask::Relinquish { at, alias } => {
                let call = |again| {
                    let caller = Caller { vm: n as VmId, index: 0, again };
                    sim.call(guest, || vm.guest_relinquish(sim, caller, place(at, alias)))
                };
                Self::in_two_steps(call)
            }
            Ask::Say { at, count, ripas } => {
                let range = (ipa(at), ipa(at + count));
                let mut call = |again| {
                    let caller = Caller { vm: n as VmId, index: 0, again };
                    sim.call(guest, || vm.ipa_state_set(sim, caller, range, ripas))
                };
                let step = match call(false)? {
                    Step::Tell { .. } => call(true)?,
                    step => step,
                };
                match step {
                    Step::Done(top) => Ok((top - range.0) / PAGE_BYTES),
                    Step::Missing(_) => Err(Error::NotMapped),
                    Step::Tables => Err(Error::NoTables),
                    Step::Rejected => Err(Error::Limit),
                    Step::Tell { .. } => panic!("told twice"),
                }
            }
            Ask::Destroy => sim.call(host, || vm.destroy(sim, handle)).map(|()| 0),
            Ask::Reclaim { page, count } => {
                sim.call(host, || vm.reclaim(sim, handle, run(page, count))).map(|(_, done)| done)
            }
            Ask::Patience(patience) => {
                sim.memory.borrow().patience.set(if patience == 3 { usize::MAX } else { patience });
                Ok(0)
            }
            Ask::Coherent(coherent) => {
                sim.memory.borrow_mut().guests_see_caches = coherent;
                Ok(0)
            }
        }
    }

    /// The host is told, and the call is made again.
    pub(super) fn in_two_steps(
        mut call: impl FnMut(bool) -> Result<Parting, Error>,
    ) -> Result<u64, Error> {
        match call(false)? {
            Parting::Done(_) => Ok(1),
            Parting::Tell(page) => {
                assert_eq!(call(true), Ok(Parting::Done(page)));
                Ok(1)
            }
        }
    }

    pub(super) fn must(&mut self, n: usize, ask: Ask) -> u64 {
        self.ask(n, ask).unwrap_or_else(|error| panic!("{ask:?}: {error:?}"))
    }
}
