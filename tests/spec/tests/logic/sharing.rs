//! How pages go between a protected guest and its host, story by story: the random one in `main.rs` has them all, but in
//! no order that a reader would look for.

use super::*;
use umbra_shared::exit::{ExitInfo, RunFlags};
use umbra_shared::record::{Kind, Record, TOUCHED};
use umbra_spec::judge::Report;

/// A protected VM with three vCPUs, the first two of which are loaded, and two pages.
pub fn with_three_vcpus() -> World {
    let mut world = World::new(Policy::Scrub, true);
    let page = |n: u64| UntrustedPa(BASE + n * PAGE);
    let pages = |first: u64, count: u64| UntrustedPages { start: page(first), count };
    let config = VmConfig { policy: Policy::Lazy, protected: true, ..VmConfig::normal() };
    world.call(0, Call::VmCreate { pages: pages(0, 6), config });
    let vm = world.handles[1];
    world.call(0, Call::VmMap { vm, pages: pages(10, 2), ipa: UntrustedIpa(0x8000_0000) });
    let count = VcpuFeatures::FPSIMD.pages();
    for n in 0..3 {
        let flag_page = page(12 + n);
        world.call(0, Call::ShareFlagPage { page: flag_page });
        let start = if n == 0 { Start::At { entry: 0x8000_0000, argument: 0 } } else { Start::Off };
        world.call(
            0,
            Call::VcpuCreate(VcpuConfig {
                vm,
                index: VcpuIndex(n),
                affinity: UntrustedAffinity(n),
                pages: pages(20 + n * count, count),
                flag_page,
                features: VcpuFeatures::FPSIMD.into(),
                start,
            }),
        );
    }
    world.call(0, Call::VmSeal { vm });
    world.call(0, Call::VcpuLoad { vm, vcpu: VcpuIndex(0) });
    for n in 1..3 {
        world.guest_call(0, 0xc400_0003, [n, 0x8000_0000, 0], false);
    }
    world.call(1, Call::VcpuLoad { vm, vcpu: VcpuIndex(1) });
    world.check();
    world
}

/// On which CPU the guest calls for what, whether it is a call that is made again, and whether the two pages are shared then.
type Step = (usize, GuestFunction, u64, bool, [bool; 2]);

/// What the host is told counts for the call that is made again: of that page, if nobody has shared it meanwhile.
#[test]
fn the_host_is_told_of_every_page_that_it_is_about_to_lose() {
    const X: u64 = 0x8000_0000;
    const Y: u64 = X + PAGE;
    const NOWHERE: u64 = 0x9000_0000;
    use GuestFunction::{MemRelinquish, MemShare, MemUnshare};
    let shared = |world: &World, page: u64| {
        world.spec.memory.get(BASE / PAGE + page).unwrap().state == PageState::SharedByGuest
    };
    let stories: &[&[Step]] = &[
        &[(0, MemUnshare, X, false, [true, true]), (0, MemUnshare, X, true, [false, true])],
        // Not made again, but a call of its own.
        &[
            (0, MemUnshare, X, false, [true, true]),
            (0, MemUnshare, X, false, [true, true]),
            (0, MemUnshare, X, true, [false, true]),
        ],
        // Another page.
        &[
            (0, MemUnshare, X, false, [true, true]),
            (0, MemUnshare, Y, true, [true, true]),
            (0, MemUnshare, X, true, [true, true]),
            (0, MemUnshare, X, true, [false, true]),
        ],
        // Another call in between that is to be made again.
        &[
            (0, MemUnshare, X, false, [true, true]),
            (0, MemShare, NOWHERE, true, [true, true]),
            (0, MemUnshare, X, true, [true, true]),
        ],
        // Both at once: the second finds nothing to take.
        &[
            (0, MemUnshare, X, false, [true, true]),
            (1, MemUnshare, X, false, [true, true]),
            (0, MemUnshare, X, true, [false, true]),
            (1, MemUnshare, X, true, [false, true]),
        ],
        // Taken, and shared anew, by the other: the host is told again.
        &[
            (0, MemUnshare, X, false, [true, true]),
            (1, MemUnshare, X, false, [true, true]),
            (1, MemUnshare, X, true, [false, true]),
            (1, MemShare, X, false, [true, true]),
            (0, MemUnshare, X, true, [true, true]),
            (0, MemUnshare, X, true, [false, true]),
        ],
        // Given up: there is nothing any more.
        &[
            (0, MemUnshare, X, false, [true, true]),
            (1, MemRelinquish, X, false, [true, true]),
            (1, MemRelinquish, X, true, [false, true]),
            (0, MemUnshare, X, true, [false, true]),
        ],
    ];
    for story in stories {
        let mut world = with_three_vcpus();
        for ipa in [X, Y] {
            world.guest_call(0, MemShare as u32, [ipa, 0, 0], false);
        }
        for &(cpu, function, ipa, again, then) in *story {
            world.guest_call(cpu, function as u32, [ipa, 0, 0], !again);
            assert_eq!([10, 11].map(|n| shared(&world, n)), then, "{function:?} {ipa:#x}");
            world.check();
        }
    }
}

/// A page goes to its alias and back: what is refused on the way, and what takes tables.
#[test]
fn a_page_is_private_or_at_its_alias() {
    const X: u64 = 0x8000_0000;
    use GuestFunction::{MemRelinquish, MemShare, MemUnshare, MmioGuard};
    let mut world = with_three_vcpus();
    let vm = world.handles[1];
    let at = |world: &World, ipa: u64| world.vms[0].lookup(&world.target, ipa);
    let page = |n: u64| There::Memory(BASE + n * PAGE);
    let map = |first: u64, ipa| {
        let pages = UntrustedPages { start: UntrustedPa(BASE + first * PAGE), count: 1 };
        Call::VmMap { vm, pages, ipa: UntrustedIpa(ipa) }
    };
    let guest = |world: &mut World, function: GuestFunction, ipa: u64, again: bool| {
        world.guest_call(0, function as u32, [ipa, 0, 0], !again);
        world.check();
        // What its host is told of it, by either address.
        for ipa in [ipa & !ALIAS_BIT, ipa | ALIAS_BIT] {
            world.call(0, Call::VmLookup { vm, ipa: UntrustedIpa(ipa) });
        }
    };
    // No memory of the host's choosing in the upper half, and no enrolling.
    world.call(0, map(40, X | ALIAS_BIT));
    guest(&mut world, MmioGuard, X | ALIAS_BIT, false);
    assert_eq!(at(&world, X | ALIAS_BIT), There::Nothing);
    // Nothing to share, nothing to take back.
    guest(&mut world, MemShare, (X + 7 * PAGE) | ALIAS_BIT, false);
    guest(&mut world, MemUnshare, X | ALIAS_BIT, false);
    guest(&mut world, MemRelinquish, X | ALIAS_BIT, false);
    // It takes tables, of which there are too few: the host brings some.
    guest(&mut world, MemShare, X | ALIAS_BIT, false);
    assert_eq!((at(&world, X), at(&world, X | ALIAS_BIT)), (page(10), There::Nothing));
    let pages = UntrustedPages { start: UntrustedPa(BASE + 48 * PAGE), count: 4 };
    world.call(0, Call::VmTopup { vm, pages });
    guest(&mut world, MemShare, X | ALIAS_BIT, true);
    assert_eq!((at(&world, X), at(&world, X | ALIAS_BIT)), (There::Aliased, page(10)));
    // It is where it is, once, and nothing comes in its place.
    for ipa in [X, X | ALIAS_BIT] {
        guest(&mut world, MemShare, ipa, false);
        guest(&mut world, MmioGuard, ipa, false);
        world.call(0, map(40, ipa));
    }
    guest(&mut world, MemUnshare, X, false);
    guest(&mut world, MemRelinquish, X, false);
    assert_eq!((at(&world, X), at(&world, X | ALIAS_BIT)), (There::Aliased, page(10)));
    // Its neighbour is shared in place, and has no alias then.
    guest(&mut world, MemShare, X + PAGE, false);
    guest(&mut world, MemShare, (X + PAGE) | ALIAS_BIT, false);
    assert_eq!(at(&world, (X + PAGE) | ALIAS_BIT), There::Nothing);
    // Told of, and back.
    guest(&mut world, MemUnshare, X | ALIAS_BIT, false);
    assert_eq!((at(&world, X), at(&world, X | ALIAS_BIT)), (There::Aliased, page(10)));
    guest(&mut world, MemUnshare, X | ALIAS_BIT, true);
    assert_eq!((at(&world, X), at(&world, X | ALIAS_BIT)), (page(10), There::Nothing));
    // And given up: both addresses are free.
    guest(&mut world, MemShare, X | ALIAS_BIT, false);
    guest(&mut world, MemRelinquish, X | ALIAS_BIT, false);
    guest(&mut world, MemRelinquish, X | ALIAS_BIT, true);
    assert_eq!((at(&world, X), at(&world, X | ALIAS_BIT)), (There::Nothing, There::Nothing));
    world.call(0, map(40, X));
    assert_eq!(at(&world, X), page(40));
}

/// A call that is to be made again fails by an ABORT in the first run after its exit, even if that only finishes, and by none
/// later.
#[test]
fn in_the_first_run_a_call_is_made_again_or_fails() {
    const X: u64 = 0x8000_0000;
    const RUN: RunFlags = RunFlags::empty();
    const ABORT: RunFlags = RunFlags::ABORT;
    const FINISH: RunFlags = RunFlags::FINISH_ONLY;
    const FAIL: RunFlags = FINISH.union(ABORT);
    let told = ExitInfo::new(Reason::Unshare, 0).register();
    let irq = ExitInfo::new(Reason::Irq, 0).register();
    // Runs after the exit; that in which the guest calls next, whether it is the same call, and what is wrong with that.
    type Story = (&'static [RunFlags], RunFlags, bool, Option<&'static str>);
    const FORGOTTEN: Option<&str> = Some("a call that was to be made again has been forgotten");
    const NONE: Option<&str> = Some("no call was to be made again");
    let stories: &[Story] = &[
        (&[], RUN, true, None),
        (&[], RUN, false, FORGOTTEN),
        (&[], ABORT, false, None),
        (&[ABORT], RUN, false, None),
        (&[ABORT], RUN, true, NONE),
        (&[FINISH], RUN, true, None),
        (&[FINISH], RUN, false, FORGOTTEN),
        (&[FINISH], ABORT, false, None),
        (&[FAIL], RUN, false, None),
        (&[FAIL], RUN, true, NONE),
        (&[FINISH, FAIL], RUN, true, NONE),
        (&[FINISH, FAIL], RUN, false, None),
        // Once its guest has left without the call its host is told anew.
        (&[RUN], RUN, false, None),
        (&[RUN], RUN, true, NONE),
        (&[RUN, FAIL], RUN, true, NONE),
        (&[RUN, ABORT], RUN, false, None),
    ];
    for &(runs, last, again, wrong) in stories {
        let mut world = with_three_vcpus();
        for ipa in [X, X + PAGE] {
            world.guest_call(0, GuestFunction::MemShare as u32, [ipa, 0, 0], false);
        }
        let spec = &mut world.spec;
        // Of FP registers these records say nothing.
        spec.cpus[0].fp = None;
        let loaded = spec.cpus[0].loaded.map_or(0, |(vm, n)| (u64::from(vm) + 1) | (n as u64) << 8);
        let mut report = Report::default();
        let mut step = |kind: Kind, function, args, info| {
            let record = Record {
                number: 0,
                what: kind as u64,
                function,
                args,
                result: 0,
                results: [info, 0, 0],
                fp: 0,
                loaded,
                changes: 0,
                touched: [0; TOUCHED],
            };
            spec.step(&record, &mut report).map_err(|difference| difference.difference)
        };
        let call = |ipa, again: bool| [ipa, 0, 0, told + 1, 1, again.into(), 0];
        let run = |flags: RunFlags| [flags.bits(), 0, 0, 0, 0, 0, 0];
        let unshare = GuestFunction::MemUnshare as u64;
        step(Kind::GuestCall, unshare, call(X, false), 0).expect("it calls");
        step(Kind::Run, 0, run(RUN), told).expect("its host is told");
        for &flags in runs {
            step(Kind::Run, 0, run(flags), irq).expect("nothing comes of it");
        }
        // Another page: this one, too, is to be called for again.
        let called = step(Kind::GuestCall, unshare, call(X + PAGE, again), 0);
        let judged = called.and_then(|()| step(Kind::Run, 0, run(last), told));
        assert_eq!(judged.err().as_deref(), wrong, "{runs:?} {last:?} {again}");
    }
}
