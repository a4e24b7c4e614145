//! RSI calls of a guest's, as `guest::rsi` makes them; and stories of pages that become EMPTY and RAM.

use super::sharing::with_three_vcpus;
use super::*;
use umbra_hyp::vm::rsi::{HostCall, Step};
use umbra_shared::rsi::{RAM_RANGES, RealmConfig, Ripas, VERSION};

/// What a call comes to: x0, what the host is told, whether it is made again; and x1-x3.
type Found = ((Option<i64>, Option<Reason>, bool), [u64; 3]);

pub fn rsi_call(
    vm: &mut Vm<Tables, VcpuCell>,
    target: &Target,
    caller: Caller,
    protected: bool,
    function: u32,
    args: [u64; 3],
) -> Found {
    let plain = |x0: i64, words| ((Some(x0), None, false), words);
    let again = |exit| ((None, Some(exit), true), args);
    let Some(function) = RsiFunction::from_id(function).filter(|_| protected) else {
        return plain(-1, args);
    };
    let may = if function.decides() {
        vm.uses(Interface::Rsi)
    } else {
        vm.interface() != Some(Interface::Kvm)
    };
    let [x1, x2, x3] = args;
    let step = match function {
        _ if !may => return plain(-1, args),
        RsiFunction::Version => {
            return plain(i64::from(x1 != VERSION), [VERSION, VERSION, x3]);
        }
        RsiFunction::Features => return plain(0, [0, x2, x3]),
        RsiFunction::AttestationTokenInit => return plain(4, args),
        RsiFunction::AttestationTokenContinue => {
            let good = x1 % PAGE == 0 && x1 < ALIAS_BIT && x2 < PAGE && x2 + x3 <= PAGE;
            return plain(if good { 2 } else { 1 }, args);
        }
        RsiFunction::HostCall => {
            let mut call = HostCall::default();
            let step = vm.host_call(target, caller, x1, &mut call);
            if let Ok(Step::Done(_)) = step {
                let There::Memory(pa) = vm.lookup(target, x1 & !(PAGE - 1)) else {
                    panic!("read from nowhere");
                };
                let at = pa + x1 % PAGE;
                assert_eq!(call, HostCall { immediate: at & 0xffff, registers: [at; 31] });
                // Its answer is behind the immediate, wherever the page is by then.
                vm.answer_host_call(target, x1, &[7; 31]);
                let written = target.memory.borrow_mut().written.take();
                assert_eq!(written, Some((at + 8, vec![7; 31])));
                return ((None, Some(Reason::HostCall), false), args);
            }
            step
        }
        RsiFunction::MeasurementRead => {
            return plain(i64::from(vm.measurement(x1).is_none()), args);
        }
        RsiFunction::MeasurementExtend => {
            let bytes = [0; 128];
            let extension = bytes.get(..x2 as usize).unwrap_or(&bytes);
            return plain(i64::from(!vm.extend_measurement(x1, extension)), args);
        }
        RsiFunction::IpaStateGet => {
            return match vm.ipa_state_get(target, caller, (x1, x2)) {
                Ok(extent) => plain(0, [extent.top, extent.ripas as u64, x3]),
                Err(_) => plain(1, args),
            };
        }
        RsiFunction::IpaStateSet => match Ripas::from_register(x3) {
            Some(ripas) => vm.ipa_state_set(target, caller, (x1, x2), ripas),
            None => return plain(1, args),
        },
        RsiFunction::RealmConfig => {
            let step = vm.realm_config(target, caller, x1);
            if let Ok(Step::Done(_)) = step {
                let There::Memory(pa) = vm.lookup(target, x1) else { panic!("written nowhere") };
                let mut words = RealmConfig { ipa_width: 40 }.words().to_vec();
                words.resize(512, 0);
                assert_eq!(target.memory.borrow_mut().written.take(), Some((pa, words)));
            }
            step
        }
    };
    assert_eq!(target.memory.borrow_mut().written.take(), None, "written where it may not be");
    match step {
        Ok(Step::Missing(_)) => again(Reason::Fault),
        Ok(Step::Tables) => again(Reason::Tables),
        Ok(Step::Tell { .. }) => again(Reason::Unshare),
        Ok(Step::Done(top)) if function == RsiFunction::IpaStateSet => plain(0, [top, 0, x3]),
        Ok(Step::Rejected) => plain(0, [x1, 1, x3]),
        Ok(Step::Done(_)) => plain(0, args),
        Err(_) => plain(1, args),
    }
}

const X: u64 = 0x8000_0000;
const EMPTY: u64 = Ripas::Empty as u64;
const RAM: u64 = Ripas::Ram as u64;

struct Story {
    world: World,
}

impl Story {
    /// A VM with pages 10 and 11 from X on, tables for more, and more memory of the host's from page 40 on.
    fn new() -> Self {
        let mut world = with_three_vcpus();
        let pages = UntrustedPages { start: UntrustedPa(BASE + 48 * PAGE), count: 8 };
        world.call(0, Call::VmTopup { vm: world.handles[1], pages });
        Self { world }
    }

    fn set(&mut self, cpu: usize, range: (u64, u64), ripas: u64, again: bool) {
        let set = RsiFunction::IpaStateSet as u32;
        self.world.guest_call(cpu, set, [range.0, range.1, ripas], !again);
        self.world.check();
    }

    fn get(&mut self, range: (u64, u64)) {
        let get = RsiFunction::IpaStateGet as u32;
        self.world.guest_call(0, get, [range.0, range.1, 0], false);
    }

    fn map(&mut self, page: u64, ipa: u64, count: u64) {
        let vm = self.world.handles[1];
        let pages = UntrustedPages { start: UntrustedPa(BASE + page * PAGE), count };
        self.world.call(0, Call::VmMap { vm, pages, ipa: UntrustedIpa(ipa) });
        self.world.check();
    }

    fn at(&self, ipa: u64) -> There {
        self.world.vms[0].lookup(&self.world.target, ipa)
    }

    fn is_shared(&self, page: u64) -> bool {
        self.world.spec.memory.get(BASE / PAGE + page).unwrap().state == PageState::SharedByGuest
    }

    fn content(&self, page: u64) -> Content {
        self.world.target.memory.borrow().content[&(BASE + page * PAGE)]
    }
}

/// Private, EMPTY, RAM again: what is where, and what the host is told.
#[test]
fn a_page_becomes_empty_and_ram() {
    let mut story = Story::new();
    let one = (X, X + PAGE);
    story.get((X, X + 8 * PAGE));
    for _ in 0..2 {
        story.set(0, one, EMPTY, false);
        assert_eq!((story.at(X), story.is_shared(10)), (There::Aliased, true));
        assert_eq!(story.at(X | ALIAS_BIT), There::Memory(BASE + 10 * PAGE));
        story.set(0, one, EMPTY, false);
        story.get((X, X + 8 * PAGE));
        // Another vCPU in between: each has been told for itself.
        story.set(0, one, RAM, false);
        story.set(1, one, RAM, false);
        assert!(story.is_shared(10), "before the host goes on");
        story.set(1, one, RAM, true);
        assert_eq!((story.at(X), story.is_shared(10)), (There::Memory(BASE + 10 * PAGE), false));
        story.set(0, one, RAM, true);
    }
    // Both, as far as they are there.
    story.set(0, (X, X + 4 * PAGE), EMPTY, false);
    assert!(story.is_shared(10) && story.is_shared(11));
    assert_eq!(story.at(X + 2 * PAGE), There::Empty);
    story.map(40, X + 2 * PAGE, 1);
    assert_eq!(story.at(X + 2 * PAGE), There::Empty, "the host gives memory to RAM only");
    story.set(0, (X, X + 4 * PAGE), RAM, false);
    story.set(0, (X, X + 4 * PAGE), RAM, true);
    story.set(0, (X + PAGE, X + 4 * PAGE), RAM, false);
    story.set(0, (X + PAGE, X + 4 * PAGE), RAM, true);
    story.set(0, (X + 2 * PAGE, X + 4 * PAGE), RAM, false);
    story.map(40, X + 2 * PAGE, 3);
    assert_eq!(story.at(X + 3 * PAGE), There::Memory(BASE + 41 * PAGE));
    assert_eq!(story.at(X + 4 * PAGE), There::Empty, "as far as it is RAM");
}

/// What is EMPTY without having had memory gets none of itself; what is RAM is asked for.
#[test]
fn the_host_brings_memory_for_what_becomes_empty() {
    let mut story = Story::new();
    let two = (X + 2 * PAGE, X + 4 * PAGE);
    story.set(0, two, EMPTY, false);
    story.set(0, two, RAM, false);
    story.set(0, two, EMPTY, false);
    assert_eq!(story.at(two.0), There::Nothing);
    story.map(40, two.0, 1);
    story.set(0, two, EMPTY, true);
    assert!(story.is_shared(40));
    assert_eq!(story.at(two.0 + PAGE), There::Nothing, "the next one is for another call");
    assert_ne!(story.content(40), Content::Hosts);
    for n in 0..RAM_RANGES as u64 + 2 {
        let at = (1 << 33) + 2 * n * PAGE;
        story.set(0, (at, at + PAGE), RAM, false);
    }
    story.get((0, ALIAS_BIT));
    story.set(0, (1 << 33, 1 << 34), RAM, false);
}

/// What is no range of the lower half, no page of RAM, and no place for a host call.
#[test]
fn calls_are_for_private_memory() {
    use RsiFunction::{HostCall, IpaStateGet, IpaStateSet, RealmConfig};
    let mut story = Story::new();
    story.set(0, (X + PAGE, X + 2 * PAGE), EMPTY, false);
    let ranges = [
        (X + 8, X + PAGE),
        (X, X + 8),
        (X, X),
        (X + PAGE, X),
        (X, ALIAS_BIT + PAGE),
        (ALIAS_BIT, ALIAS_BIT + PAGE),
        (X | ALIAS_BIT, (X | ALIAS_BIT) + PAGE),
        (X, !0xfff),
        (!0xfff, X),
        (ALIAS_BIT - PAGE, ALIAS_BIT),
    ];
    for (base, top) in ranges {
        for (function, ripas) in [(IpaStateGet, 0), (IpaStateSet, EMPTY), (IpaStateSet, RAM)] {
            story.world.guest_call(0, function as u32, [base, top, ripas], true);
            story.world.check();
        }
    }
    story.set(0, (X, X + PAGE), 2, false);
    let places = [
        X,
        X + 0x300,
        X + 0xf00,
        X + 8,
        X + PAGE,
        (X + PAGE) | ALIAS_BIT,
        X | ALIAS_BIT,
        X + 9 * PAGE,
        ALIAS_BIT - PAGE,
        1 << 47,
        !0xfff,
    ];
    for ipa in places {
        for function in [RealmConfig, HostCall] {
            story.world.guest_call(0, function as u32, [ipa, 0, 0], true);
            story.world.check();
        }
    }
}

/// Whichever interface comes first, the other is not there.
#[test]
fn one_interface_and_not_both() {
    use GuestFunction::{HypMeminfo, MemRelinquish, MemShare, MemUnshare, MmioGuard};
    for function in [HypMeminfo, MemShare, MemUnshare, MmioGuard, MemRelinquish] {
        for first in [false, true] {
            for rsi in RsiFunction::ALL.iter().filter(|rsi| rsi.decides()) {
                let mut story = Story::new();
                let kvms = (function as u32, [if function == HypMeminfo { 0 } else { X }, 0, 0]);
                let rsis = (*rsi as u32, [X, X + PAGE, EMPTY]);
                let config = (RsiFunction::RealmConfig as u32, [X, 0, 0]);
                let calls =
                    if first { [config, kvms, rsis, config] } else { [config, rsis, kvms, config] };
                for (function, args) in calls {
                    story.world.guest_call(0, function, args, true);
                    story.world.check();
                }
                let uses = story.world.vms[0].interface();
                assert_eq!(uses, Some(if first { Interface::Kvm } else { Interface::Rsi }));
            }
        }
    }
}
