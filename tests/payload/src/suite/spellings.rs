//! Every function is called in every spelling that SMCCC allows: with 1.3's hint that no SVE state is live
//! (bit 16), with the upper half of x0 set, and with something in every register that the function has no
//! argument in. None of it selects another function, or changes what it does.

use super::fp_smp::{AFFINITY_INFO, CPU_ON, affinity};
use crate::{
    context::context,
    instruction as insn,
    ledger::{self, PAGE, each},
    puppet::{BASE, Event, Machine, Puppet},
    runner::Skip,
    tests,
};
use core::sync::atomic::{AtomicU64, Ordering};
use smccc::smc64;
use umbra_host::hypercall::{Exit, Hvc, Hypervisor, Results};
use umbra_shared::{
    call::{
        Call, Counter, Function, INTERFACE_VERSION, SVE_HINT, Start, UntrustedAffinity,
        UntrustedPa, UntrustedPages, VENDOR_UID, VENDOR_UID_FUNCTION, VM_PAGES, VcpuConfig,
        VcpuIndex, VmConfig,
    },
    error::{Error, check},
    exit::{ExitInfo, Reason, RunFlags},
    guest::{GuestFunction, INVALID_PARAMETER, NOT_SUPPORTED},
    interrupt::{Entry, States},
    register::Register,
    vcpu::VcpuFeatures,
};

tests![
    every_hypercall_in_every_spelling,
    every_refusal_in_every_spelling,
    the_vendors_name_in_every_spelling,
    every_guest_call_in_every_spelling,
    every_smc_in_every_spelling,
];

/// How a call is made.
#[derive(Clone, Copy, Debug)]
struct Spelling {
    /// ORed to x0.
    id: u64,
    /// In registers without an argument.
    junk: u64,
}

const SPELLINGS: [Spelling; 6] = [
    Spelling { id: 0, junk: 0 },
    Spelling { id: SVE_HINT, junk: 0 },
    Spelling { id: 0xdead_beef << 32, junk: 0 },
    Spelling { id: 0, junk: u64::MAX },
    Spelling { id: SVE_HINT | u64::MAX << 32, junk: 0x8000_0000_0000_0001 },
    Spelling { id: SVE_HINT | 1 << 63, junk: 0x5a5a_a5a5_c3c3_3c3c },
];

/// Registers from x1 on that hold arguments.
const fn arguments(function: Function) -> usize {
    match function {
        Function::Version | Function::VcpuPut => 0,
        Function::VlInfo
        | Function::NextSharedPage
        | Function::ShareFlagPage
        | Function::UnshareFlagPage
        | Function::VmSeal
        | Function::VmDestroy => 1,
        Function::Stats | Function::VcpuLoad | Function::VmLookup => 2,
        Function::VmCreate | Function::VmTopup | Function::VmReclaim | Function::VmUnmap => 3,
        Function::VcpuRead => 3,
        Function::VmMap => 4,
        Function::VcpuRun | Function::VcpuReset | Function::VcpuWrite => 5,
        Function::VcpuCreate => 7,
    }
}

/// Functions that were called since the last look, by their position in [`Function::ALL`].
static CALLED: AtomicU64 = AtomicU64::new(0);

impl Spelling {
    fn raw(self, function: Function, mut args: [u64; 7]) -> (u64, Results) {
        args[arguments(function)..].fill(self.junk);
        let n = Function::ALL.iter().position(|&one| one == function).expect("it is one of all");
        CALLED.fetch_or(1 << n, Ordering::Relaxed);
        Hvc::raw(function.id() | self.id, args)
    }
}

impl Hypervisor for Spelling {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        let (id, args) = call.encode();
        let function = Function::from_id(id).expect("an encoded call is a function's");
        let (x0, results) = self.raw(function, args);
        check(x0).map(|()| results)
    }

    fn vcpu_run(&self, flags: RunFlags, [a, b, c, d]: [u64; 4]) -> Result<Exit, Error> {
        let args = [flags.bits(), a, b, c, d, 0, 0];
        let (x0, r) = self.raw(Function::VcpuRun, args);
        let data = [r[1], r[2], r[3], r[4], r[5], r[6]];
        check(x0).map(|()| Exit { info: ExitInfo::from_register(r[0]), data })
    }

    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        entries: &[Entry],
    ) -> Result<(Exit, States), Error> {
        Hvc.vcpu_run_with(flags, answer, entries)
    }
}

/// A whole life of a VM: every function does what it is for.
fn life(hyp: Spelling) {
    let version = hyp.version().expect("VERSION");
    assert_eq!(version.interface, INTERFACE_VERSION);
    assert_eq!(version.features, context().version.features);
    for cpu in 0..context().cpus {
        let info = hyp.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
        assert_eq!(info.affinity, context().machine.cpus[cpu], "VL_INFO");
        hyp.stats(context().at_hyp(cpu)).expect("STATS");
    }
    assert_eq!(hyp.vl_info(None).expect("VL_INFO").vqs, context().guests);
    let flags = ledger::take(1);
    hyp.share_flag_page(flags).expect("SHARE_FLAG_PAGE");
    assert_eq!(hyp.next_shared_page(0), Ok(Some(flags)));
    hyp.unshare_flag_page(flags).expect("UNSHARE_FLAG_PAGE");
    assert_eq!(hyp.next_shared_page(0), Ok(None));
    hyp.share_flag_page(flags).expect("SHARE_FLAG_PAGE");
    let (pool, more, memory) = (ledger::take(VM_PAGES), ledger::take(4), ledger::take(2));
    let vm = hyp.vm_create(pool, VM_PAGES, VmConfig::normal()).expect("VM_CREATE");
    ledger::enter(vm);
    hyp.vm_topup(vm, more, 4).expect("VM_TOPUP");
    // LDR x0, [x1]: at once an exit. x1 is 0, where nothing is.
    let words = umbra_host::kernel::mmu::linear::<u32>(memory);
    // SAFETY: a page of the test's.
    unsafe { words.write(insn::LDR64) };
    umbra_host::kernel::sysreg::clean_to_poc(words as usize, 4);
    for (n, page) in each(memory, 2).enumerate() {
        hyp.vm_map(vm, page, BASE + n as u64 * PAGE).expect("VM_MAP");
    }
    assert_eq!(hyp.vm_lookup(vm, BASE), Ok((memory, true)), "VM_LOOKUP");
    assert_eq!(hyp.vm_unmap(vm, BASE + PAGE), Ok(memory + PAGE), "VM_UNMAP");
    let features = VcpuFeatures::sve(context().largest());
    let pages = ledger::take(features.pages());
    let config = VcpuConfig {
        vm,
        index: VcpuIndex(0),
        affinity: UntrustedAffinity(0),
        pages: UntrustedPages { start: UntrustedPa(pages), count: features.pages() },
        flag_page: UntrustedPa(flags),
        features: features.into(),
        start: Start::At { entry: BASE, argument: 0 },
    };
    hyp.vcpu_create(config).expect("VCPU_CREATE");
    let vcpu = config.index;
    assert_eq!(hyp.vm_seal(vm), Err(Error::NotProtected), "VM_SEAL");
    hyp.vcpu_load(vm, vcpu).expect("VCPU_LOAD");
    let daif = umbra_host::kernel::sysreg::mask_interrupts();
    let before = Hvc.stats(context().at_hyp(umbra_host::kernel::smp::cpu())).expect("STATS");
    let exit = hyp.vcpu_run(RunFlags::empty(), [0; 4]).expect("VCPU_RUN");
    assert_eq!((exit.info.reason(), exit.data[0]), (Some(Reason::Mmio), 0), "VCPU_RUN");
    // The answer arrives, and nothing beside it: the next instruction is no instruction.
    hyp.vcpu_run(RunFlags::ABORT, [7; 4]).expect("VCPU_RUN");
    let after = Hvc.stats(context().at_hyp(umbra_host::kernel::smp::cpu())).expect("STATS");
    let runs = Counter::Runs as usize;
    assert_eq!(after[runs] - before[runs], 2, "VCPU_RUN ran the guest");
    umbra_host::kernel::sysreg::restore_interrupts(daif);
    hyp.vcpu_put().expect("VCPU_PUT");
    hyp.vcpu_write(vm, vcpu, Register::X(7).encode(), [0x77, 0]).expect("VCPU_WRITE");
    assert_eq!(hyp.vcpu_read(vm, vcpu, Register::X(7).encode()), Ok([0x77, 0]), "VCPU_READ");
    hyp.vcpu_reset(vm, vcpu, Start::Off).expect("VCPU_RESET");
    assert_eq!(hyp.vcpu_load(vm, vcpu), Err(Error::PoweredOff), "VCPU_RESET");
    hyp.vm_destroy(vm).expect("VM_DESTROY");
    let mut out = u64::MAX;
    let all = [(pool, VM_PAGES), (more, 4), (memory, 1), (pages, features.pages())];
    for page in all.into_iter().flat_map(|(first, count)| each(first, count)) {
        out = hyp.vm_reclaim(vm, page).expect("VM_RECLAIM");
    }
    assert_eq!(out, 0, "VM_RECLAIM");
    hyp.unshare_flag_page(flags).expect("UNSHARE_FLAG_PAGE");
}

fn every_hypercall_in_every_spelling() -> Result<(), Skip> {
    for spelling in SPELLINGS {
        CALLED.store(0, Ordering::Relaxed);
        life(spelling);
        let called = CALLED.load(Ordering::Relaxed);
        let left_out = (0..Function::ALL.len()).find(|n| called >> n & 1 == 0);
        assert_eq!(left_out.map(|n| Function::ALL[n]), None, "a function that was not tried");
    }
    Ok(())
}

/// What a function refuses it refuses in every spelling with the same error.
fn every_refusal_in_every_spelling() -> Result<(), Skip> {
    for &function in Function::ALL {
        // No CPU, no page, no VM, nothing loaded.
        let args = [u64::MAX - 1; 7];
        let plain = Hvc::raw(function.id(), args);
        for spelling in SPELLINGS {
            let (x0, results) = spelling.raw(function, args);
            assert_eq!(x0, plain.0, "{} as {spelling:x?}", function.name());
            let reads_nothing = arguments(function) == 7 || check(x0).is_ok();
            // x8 is none of its registers.
            assert!(
                !reads_nothing || results[..7] == plain.1[..7],
                "{} as {spelling:x?}",
                function.name()
            );
        }
    }
    Ok(())
}

fn the_vendors_name_in_every_spelling() -> Result<(), Skip> {
    for Spelling { id, junk } in SPELLINGS {
        let (x0, r) = Hvc::raw(VENDOR_UID_FUNCTION | id, [junk; 7]);
        assert_eq!([x0, r[0], r[1], r[2]], VENDOR_UID.map(u64::from), "x0 | {id:#x}");
        // The way that the tree names; the upper half of x0 is smccc's to fill in.
        let by_smc = smc64((VENDOR_UID_FUNCTION | id) as u32, [junk; 17]);
        assert_eq!(by_smc[..4], VENDOR_UID.map(u64::from), "SMC, x0 | {id:#x}");
        assert_eq!(by_smc[4..], [junk; 14], "nothing else");
    }
    Ok(())
}

/// One of a guest's calls, by its own HVC, and what the guest finds in x0.
fn guest_call(guest: &Puppet, function: u64, ipa: u64) -> Result<u64, Exit> {
    guest.at(ipa);
    match guest.attempt(insn::HVC, function) {
        Event::Done(x) => Ok(x[0]),
        Event::Exit(exit) => Err(exit),
        event => panic!("guest's HVC {function:#x}: {event:x?}"),
    }
}

fn every_guest_call_in_every_spelling() -> Result<(), Skip> {
    let guest = Machine::new(VmConfig { protected: true, ..VmConfig::default() }).started(None);
    let ipa = guest.scratch();
    for Spelling { id, .. } in SPELLINGS {
        let call = guest_call(&guest, GuestFunction::MemShare.id() | id, ipa);
        assert_eq!(call, Ok(0), "MemShare | {id:#x}");
        let call = guest_call(&guest, GuestFunction::MemUnshare.id() | id, ipa);
        let exit = call.expect_err("the host is told first");
        assert_eq!(exit.info.reason(), Some(Reason::Unshare), "MemUnshare | {id:#x}");
        let done = guest.resume(RunFlags::empty(), [0; 4]);
        assert!(matches!(done, Event::Done([0, ..])), "MemUnshare | {id:#x}: {done:x?}");
        // And back at once: it was not shared any more.
        let call = guest_call(&guest, GuestFunction::MemUnshare.id() | id, ipa);
        assert_eq!(call, Ok(INVALID_PARAMETER as u64), "MemUnshare | {id:#x}");
        // The reserved bits above the hint do select: there is no such function.
        let call = guest_call(&guest, GuestFunction::MemShare.id() | 1 << 17 | id, ipa);
        assert_eq!(call, Ok(NOT_SUPPORTED as u64), "reserved bit | {id:#x}");
        // Nor do they make a call of the host's own one of hyp's.
        let other = 0xc300_0055 | id;
        let exit = guest_call(&guest, other, ipa).expect_err("the host's");
        assert_eq!((exit.info.reason(), exit.data[0]), (Some(Reason::Hvc), other));
        guest.resume(RunFlags::empty(), [0; 4]);
    }
    let spare = BASE + 7 * PAGE + 4 * PAGE;
    for (n, Spelling { id, .. }) in SPELLINGS.into_iter().enumerate() {
        let ipa = spare + n as u64 * PAGE;
        let function = GuestFunction::MemRelinquish.id() | id;
        let exit = guest_call(&guest, function, ipa).expect_err("the host learns of it");
        assert_eq!(exit.info.reason(), Some(Reason::Relinquished), "| {id:#x}");
        assert_eq!(exit.data[..2], [ipa, guest.physical(ipa)], "| {id:#x}");
        guest.resume(RunFlags::empty(), [0; 4]);
    }
    Ok(())
}

/// SMC with all of x0 to x7.
fn smc(x0: u64, args: [u64; 7]) -> u64 {
    let result: u64;
    // SAFETY: SMCCC: x0-x17 are clobbered. The functions that the tests call write no memory and don't
    // turn anything off.
    unsafe {
        core::arch::asm!(
            "smc #0",
            inout("x0") x0 => result,
            inout("x1") args[0] => _, inout("x2") args[1] => _, inout("x3") args[2] => _,
            inout("x4") args[3] => _, inout("x5") args[4] => _, inout("x6") args[5] => _,
            inout("x7") args[6] => _,
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    result
}

fn every_smc_in_every_spelling() -> Result<(), Skip> {
    let here = affinity(0);
    let (on, info) = (u64::from(CPU_ON), u64::from(AFFINITY_INFO));
    let (on32, info32) = (on & !(1 << 30), info & !(1 << 30));
    // Function, arguments, how many those are, answer in w0.
    let calls: &[(u64, [u64; 3], usize, i32)] = &[
        (0x8400_000a, [0x8400_0000, 0, 0], 1, 0),
        (0x8400_000a, [on, 0, 0], 1, 0),
        // A function of PSCI's that doesn't exist.
        (0x8400_000a, [0x8400_001f, 0, 0], 1, -1),
        (info, [here, 0, 0], 2, 0),
        (info32, [here, 0, 0], 2, 0),
        (info, [0xff_0000, 0, 0], 2, -2),
        (on, [here, 0x4020_0000, 0], 3, -4),
        (on32, [here, 0x4020_0000, 0], 3, -4),
        (on, [0xff_0000, 0x4020_0000, 0], 3, -2),
        (0x8000_0000, [0; 3], 0, 0x1_0002),
        (0x8000_0001, [0x8000_0000, 0, 0], 1, 0),
        (0x8000_0001, [0x8000_ffff, 0, 0], 1, -1),
        (0x8400_0005, [0; 3], 1, -1),
        (0x8200_0000, [0; 3], 0, -1),
    ];
    for &(function, args, count, answer) in calls {
        for Spelling { id, junk } in SPELLINGS {
            let mut all = [junk; 7];
            all[..count].copy_from_slice(&args[..count]);
            if function >> 30 & 1 == 0 {
                // SMC32's arguments are w registers.
                all[..count].iter_mut().for_each(|arg| *arg |= junk << 32);
            }
            let found = smc(function | id, all) as i32;
            assert_eq!(found, answer, "SMC {:#x} with {all:x?}", function | id);
        }
    }
    let versions = SPELLINGS.map(|Spelling { id, junk }| smc(0x8400_0000 | id, [junk; 7]) as i32);
    assert!(versions[0] >= 0x1_0000 && versions.iter().all(|&v| v == versions[0]), "{versions:x?}");
    Ok(())
}
