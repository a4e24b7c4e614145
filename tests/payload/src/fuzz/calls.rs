//! Single hypercalls, named by the program, with pages whose content tells whose it is.
//!
//! Whether an answer is right is for the specification to say, which has hyp's own log
//! (`tools/src/fuzz/oracle.rs`). Here it is seen that no answer is insane, and what is found in memory:
//! a page that comes back from where the host could not reach it is wiped, and a page of the host's
//! holds what the host or a guest of the program put there, never anything of hyp's.
//!
//! A page's content is one CPU's business ([`cpu_of_page`]); whose the page is is everybody's.

use super::{JUNK_PAGES, cpu, ticks};
use crate::{
    context::context,
    host, ledger,
    ledger::PAGE,
    suite::pages::{MMIO, hyp_page},
};
use arrayvec::ArrayVec;
use core::{
    arch::global_asm,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use umbra_fuzz::program::{Arg, BLOCK, Call, ENTRY_NANOSECONDS, HANDLES, PAGES, cpu_of_page};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{
        MAX_CPUS,
        exception::{probe_read, probe_write},
        smp, sysreg, timer,
    },
};
use umbra_patterns::tag::{Register, Tag, lane, origin};
use umbra_shared::{
    call::{Counter, Function, VmHandle},
    error::{Error, SUCCESS},
    exit::RunFlags,
    interrupt::{Entry, MAX_ENTRIES},
};

/// Where a guest's agent stores what it is told to.
const STORED: u64 = 0x900;
/// Where the host's tags are.
pub const TAGS: u64 = 0x800;
/// How many there are.
const WORDS: u64 = 8;
/// Owners of the pages' tags: + number of the page.
const OWNER: u16 = 0x1f00;
/// Upper half of whatever an agent stores.
pub const AGENTS: u64 = 0xa6e7_0000_0000_0000;

global_asm!(include_str!("agent.S"), STORED = const STORED);

unsafe extern "C" {
    static umbra_fuzz_agent: u8;
    static umbra_fuzz_agent_end: u8;
}

static REGION: AtomicU64 = AtomicU64::new(0);
static BLOCK_AT: AtomicU64 = AtomicU64::new(0);
static HYP: AtomicU64 = AtomicU64::new(0);
static KEPT: [AtomicU64; HANDLES] = [const { AtomicU64::new(0) }; HANDLES];
static GENERATIONS: [AtomicU32; PAGES] = [const { AtomicU32::new(0) }; PAGES];

/// Before a program: these are its pages, and its block.
pub fn begin(region: u64, block: u64) {
    REGION.store(region, Ordering::SeqCst);
    BLOCK_AT.store(block, Ordering::SeqCst);
    if HYP.load(Ordering::SeqCst) == 0 {
        HYP.store(hyp_page(), Ordering::SeqCst);
    }
    KEPT.iter().for_each(|handle| handle.store(0, Ordering::SeqCst));
}

/// A page's address.
pub fn page(n: u8) -> u64 {
    REGION.load(Ordering::SeqCst) + u64::from(n) * PAGE
}

fn resolve(arg: Arg) -> u64 {
    match arg {
        Arg::Number(n) => n,
        Arg::Page(n, offset) => page(n) + u64::from(offset),
        Arg::Block(n) => BLOCK_AT.load(Ordering::SeqCst) + u64::from(n) * PAGE,
        Arg::Vm(n) => KEPT[usize::from(n)].load(Ordering::SeqCst),
        Arg::Hyp => HYP.load(Ordering::SeqCst),
        Arg::Mmio => MMIO,
    }
}

/// Whether a page's content is this CPU's business.
pub fn is_mine(cpu: usize, n: u8) -> bool {
    cpu_of_page(n, context().cpus) == cpu
}

/// Makes a call. Returns x0.
pub fn call(cpu: usize, call: &Call) -> u64 {
    let mut args = call.args.map(resolve);
    // A range that begins in the region may leave it, for what the kernel needs.
    let end = REGION.load(Ordering::SeqCst) + JUNK_PAGES * PAGE;
    if call.function == Function::VmMap && (page(0)..end).contains(&args[1]) {
        args[3] = args[3].min((end - args[1]).div_ceil(PAGE));
    }
    let block = BLOCK_AT.load(Ordering::SeqCst);
    let end = block + u64::from(BLOCK) * PAGE;
    if call.function == Function::VmMap && (block..end).contains(&args[1]) {
        args[3] = args[3].min((end - args[1]).div_ceil(PAGE));
    }
    // Pages that the host has not, and this CPU alone would write if it had.
    let mut hidden = [false; PAGES];
    if let (Function::VmReclaim, Arg::Page(first, 0)) = (call.function, call.args[1]) {
        let from = usize::from(first);
        let count = usize::try_from(args[2]).unwrap_or(PAGES).min(PAGES - from.min(PAGES));
        for (n, hidden) in hidden.iter_mut().enumerate().skip(from).take(count) {
            *hidden = is_mine(cpu, n as u8) && probe_read(page(n as u8)).is_err();
        }
    }
    let daif = sysreg::mask_interrupts();
    let (x0, results) = Hvc::raw(call.function.id(), args);
    sysreg::restore_interrupts(daif);
    let code = x0 as i64;
    assert!(
        code == SUCCESS || Error::from_code(code).is_some(),
        "{:?} {args:x?} answers {x0:#x}",
        call.function
    );
    if code != SUCCESS {
        return x0;
    }
    if call.function == Function::VmCreate {
        ledger::enter_if_room(VmHandle(results[0]));
    }
    if let Some(n) = call.keep {
        KEPT[usize::from(n)].store(results[0], Ordering::SeqCst);
    }
    if let (Function::VmReclaim, Arg::Page(first, 0)) = (call.function, call.args[1]) {
        let back = usize::from(first)..usize::from(first) + results[1] as usize;
        for n in back.filter(|&n| hidden.get(n) == Some(&true)) {
            assert_wiped(n as u8);
        }
    }
    // Nobody writes there but a guest's agent.
    if let (Function::VmReclaim, Arg::Block(_)) = (call.function, call.args[1]) {
        for page in ledger::each(args[1], results[1]) {
            for at in [page, page + STORED, page + PAGE - 8] {
                let Ok(found) = probe_read(at) else { break };
                let agents = at == page + STORED && found >> 48 == AGENTS >> 48;
                assert!(found == 0 || agents, "{at:#x} in the block came back as {found:#x}");
            }
        }
    }
    x0
}

/// A page that the host could not reach has come back: it holds nothing. Another CPU may have given it
/// away again already, to a normal VM even, whose agent may have stored something.
fn assert_wiped(n: u8) {
    for word in 0..PAGE / 8 {
        let Ok(found) = probe_read(page(n) + 8 * word) else { return };
        let agents = 8 * word == STORED && found >> 48 == AGENTS >> 48;
        assert!(found == 0 || agents, "word {word} of page {n} came back as {found:#x}");
    }
}

/// Interrupts to offer, by chance: mostly such as can be, and now and then one that can't.
fn interrupts(count: usize) -> ArrayVec<Entry, MAX_ENTRIES> {
    static OFFERS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
    let cpu = smp::cpu();
    let offer = OFFERS[cpu].fetch_add(1, Ordering::Relaxed) << 8 | cpu as u64;
    let one = |n: usize| {
        // SplitMix64's finaliser.
        let z = (offer * 16 + n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let chance = z ^ z >> 31;
        let (state, priority) = (1 + chance % 3, chance >> 8 & 0xf8);
        let (intid, flags) = ((chance >> 16 & 0x3f) * 16 % 1008 + n as u64, chance >> 24 & 3);
        let good = intid | priority << 16 | flags << 24 | state << 30;
        match chance >> 32 & 0x7f {
            0 => Entry::from_bits_retain(chance >> 40),
            1 => Entry::from_bits_retain(good | 1 << (10 + (chance >> 40) % 6)),
            2 => Entry::from_bits_retain(good & !(3 << 30)),
            3 => Entry::from_bits_retain(good & !0x3ff | 32),
            _ => Entry::from_bits_retain(good),
        }
    };
    (0..count).map(one).collect()
}

/// Enters whatever vCPU is loaded, once. Returns x0.
pub fn enter(args: &[Arg; 4]) -> u64 {
    let [flags, x0, x1, x2] = args.map(resolve);
    cpu::give_up();
    let daif = sysreg::mask_interrupts();
    // Whatever it executes, it does not do so for ever.
    host::set_timer(timer::now() + ticks(ENTRY_NANOSECONDS), 1);
    let (flags, answer) = (RunFlags::from_bits_retain(flags), [x0, x1, x2, 0]);
    let result = match flags.entries() {
        // Of what is in x6 to x13 then hyp's record tells.
        0 | 17.. => Hvc.vcpu_run(flags, answer),
        count => Hvc.vcpu_run_with(flags, answer, &interrupts(count)).map(|(exit, _)| exit),
    };
    host::release_interrupt(daif);
    // There is no flag-shadow page here that would say whose registers are live. Every load of a guest's
    // is followed by one save.
    if let Ok(counters) = Hvc.stats(context().at_hyp(smp::cpu())) {
        let of = |counter: Counter| counters[counter as usize];
        let live = of(Counter::GuestLoads) != of(Counter::GuestSaves);
        cpu::guest_is_live(live);
    }
    match result {
        Ok(exit) => exit.info.reason().map_or(0xff, |reason| reason as u64),
        Err(error) => error.code() as u64,
    }
}

/// Looks at a page, and writes it anew, if the host has it and it is this CPU's business.
pub fn write(cpu: usize, n: u8) -> u64 {
    if !is_mine(cpu, n) {
        return 2;
    }
    let at = page(n);
    let owner = OWNER + u16::from(n);
    for word in 0..WORDS {
        for offset in [TAGS, STORED] {
            let Ok(found) = probe_read(at + offset + 8 * word) else { return 1 };
            let own = origin(found).is_some_and(|origin| origin.tag.owner == owner);
            let agents = found >> 48 == AGENTS >> 48;
            assert!(
                found == 0 || own || agents,
                "page {n} of the host's holds {found:#x} at {offset:#x}+8*{word}"
            );
        }
    }
    let generation = GENERATIONS[usize::from(n)].fetch_add(1, Ordering::SeqCst);
    let tag = Tag { owner, generation };
    let code = &raw const umbra_fuzz_agent;
    let bytes = &raw const umbra_fuzz_agent_end as u64 - code as u64;
    let instruction = |n: u64| {
        // SAFETY: within the agent, which is a multiple of 8 bytes long up to padding behind it.
        unsafe { code.cast::<u64>().add(n as usize).read_unaligned() }
    };
    let agent = (0..bytes.div_ceil(8)).map(|n| (8 * n, instruction(n)));
    let tags = (0..WORDS).map(|n| (TAGS + 8 * n, lane(tag, Register::Z(0), n as u8)));
    for (offset, value) in agent.chain(tags) {
        // SAFETY: a page of the program's, or it faults: another CPU may give it away meanwhile.
        if unsafe { probe_write(at + offset, value) }.is_err() {
            return 1;
        }
    }
    0
}
