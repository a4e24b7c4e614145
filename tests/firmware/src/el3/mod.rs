//! EL3: what runs.
//!
//! The boot CPU reads the configuration and the device tree, sets the GIC up for everyone, puts the
//! edited tree where the old one was and enters the image at EL2 as a boot loader would. All other
//! CPUs park in WFI at EL3 with only Group 0 interrupts enabled, until a CPU_ON sends the SGI that is
//! EL3's own.

mod console;
mod counter;
mod gic;
mod sysreg;

use alloc::vec::Vec;
use buddy_system_allocator::LockedHeap;
use console::fatal;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use dtoolkit::fdt::Fdt;
use umbra_firmware::config::{AFFINITY, Config};
use umbra_firmware::features::{self, IdRegisters};
use umbra_firmware::odd::make_odd;
use umbra_firmware::psci::{Action, Cpu, Cpus, Entry, Machine};
use umbra_firmware::tree::{Facts, Pin, Power, hand_over};
use umbra_firmware::trng::Trng;
use umbra_firmware::trouble::{Counts, Kind, Trouble};
use umbra_shared::firmware::{
    FIRMWARE_CONFIG_OFFSET, FIRMWARE_CPUS, FIRMWARE_DTB_BYTES, FIRMWARE_NOWHERE,
    FIRMWARE_TABLES_BYTES, FirmwareConfig, FirmwareExtras, ODD_DTB, ODD_INITRD, ODD_RESERVED,
    odd_content,
};
use umbra_shared::vl::Vq;

const STACK_BYTES: usize = 16 << 10;
const HEAP_BYTES: usize = 8 << 20;

/// RES1 bits, MMU, D-cache, I-cache.
const SCTLR_EL3: u64 = 0x30c5_0830 | SCTLR_ENABLES;
const SCTLR_ENABLES: u64 = 1 | 1 << 2 | 1 << 12;
/// RES1 bits only: the reset value.
const SCTLR_EL2: u64 = 0x30c5_0830;
/// 39 bits of address from level 1 on, 4 KiB granule, write-back tables, 40 bits of output; RES1.
const TCR_EL3: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 23 | 1 << 31;

global_asm!(
    include_str!("boot.S"),
    CONFIG_OFFSET = const FIRMWARE_CONFIG_OFFSET,
    CONFIG_BYTES = const size_of::<FirmwareConfig>(),
    TABLES_BYTES = const FIRMWARE_TABLES_BYTES,
    SCTLR = const SCTLR_EL3,
    SCTLR_ENABLES = const SCTLR_ENABLES,
    TCR = const TCR_EL3,
    CPUS = const FIRMWARE_CPUS,
    STACK_BYTES = const STACK_BYTES,
    SGI = const gic::SGI,
    AFFINITIES_OFFSET = const FIRMWARE_CONFIG_OFFSET + offset_of!(FirmwareConfig, affinities),
    AFFINITY = const AFFINITY,
);
global_asm!(
    include_str!("scramble.S"),
    SVE = const features::SVE,
    SME = const features::SME,
    FGT = const features::FGT,
    FGT2 = const features::FGT2,
    HCX = const features::HCX,
    SME2 = const features::SME2,
    FPMR = const features::FPMR,
    FGT_AMU = const features::FGT_AMU,
    PAUTH = const features::PAUTH,
    RAS = const features::RAS,
    AARCH32 = const features::AARCH32,
    SCXT = const features::SCXT,
    VHE = const features::VHE,
    TRF = const features::TRF,
    PMU = const features::PMU,
    SCTLR_EL2 = const SCTLR_EL2,
    STACK_BYTES = const STACK_BYTES,
);

// SAFETY: symbols of boot.S and scramble.S, with these signatures; the static is part of the image and
// written by nobody.
unsafe extern "C" {
    safe static umbra_firmware_config: [u8; size_of::<FirmwareConfig>()];
    fn umbra_enter_el2(pc: u64, x0: u64) -> !;
    fn umbra_enter_el2_scrambled(pc: u64, x0: u64, present: u64, seed: u64) -> !;
}

#[global_allocator]
static HEAP: LockedHeap<32> = LockedHeap::empty();

struct HeapMemory(UnsafeCell<[u8; HEAP_BYTES]>);

// SAFETY: only its address is used, once, to give it to the allocator.
unsafe impl Sync for HeapMemory {}

static HEAP_MEMORY: HeapMemory = HeapMemory(UnsafeCell::new([0; HEAP_BYTES]));

static CPUS: Cpus = [const { Cpu::new() }; FIRMWARE_CPUS];

/// Numbers that nobody could guess who didn't know how they are made.
static TRNG: Trng = Trng::new();

/// Memory is wiped at a reset.
static PROTECTED: AtomicBool = AtomicBool::new(false);
/// The machine ends, and how many CPUs are kept until it does ([`FirmwareExtras::RETURNS_LATE`]).
static ENDS: AtomicBool = AtomicBool::new(false);
static ASLEEP: AtomicUsize = AtomicUsize::new(0);

/// PSCI's function of that name.
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;

/// Calls that may meet trouble.
static CALLS: Counts = Counts::new();
/// How much later a CPU that is turned on comes, in microseconds.
static LATE: [AtomicU32; FIRMWARE_CPUS] = [const { AtomicU32::new(0) }; FIRMWARE_CPUS];

/// What is known once the boot CPU has looked.
struct Known {
    config: Config,
    facts: Facts,
    /// For CNTFRQ_EL0, where EL3 has to set it: hertz.
    counter: Option<u64>,
}

struct Once {
    set: AtomicBool,
    value: UnsafeCell<Option<Known>>,
}

// SAFETY: written by the boot CPU alone before `set`, read by others only after it.
unsafe impl Sync for Once {}

static KNOWN: Once = Once { set: AtomicBool::new(false), value: UnsafeCell::new(None) };

fn known() -> &'static Known {
    if KNOWN.set.load(Ordering::Acquire) {
        // SAFETY: `set`: nobody writes it any more.
        if let Some(known) = unsafe { &*KNOWN.value.get() } {
            return known;
        }
    }
    fatal(format_args!("called before boot"))
}

// Called by boot.S on the boot CPU, once.
#[unsafe(no_mangle)]
extern "C" fn firmware_boot() -> ! {
    // SAFETY: nobody else has this memory; the allocator gets it once.
    unsafe { HEAP.lock().init(HEAP_MEMORY.0.get() as usize, HEAP_BYTES) };
    let config = match Config::read(&umbra_firmware_config) {
        Ok(config) => config,
        Err(error) => fatal(format_args!("{error}")),
    };
    let (facts, edited) = read_tree(&config);
    if config.cpus() != facts.affinities.len() {
        let (asked, there) = (config.cpus(), facts.affinities.len());
        fatal(format_args!("configured for {asked} CPUs; the machine has {there}"));
    }
    for (n, &affinity) in facts.affinities.iter().enumerate() {
        if affinity != config.affinities()[n] {
            fatal(format_args!("CPU {n} has affinity {affinity:#x}"));
        }
        CPUS[n].refuse(config.refusals(n));
    }
    let room = (config.boot_address() - config.ram()) as usize;
    if edited.len() > room {
        fatal(format_args!("no room for the device tree"));
    }
    let dtb = if config.has_odd_tree() { ODD_DTB } else { config.ram() };
    // SAFETY: RAM, by the configuration, apart from the image; the old tree, which may lie there, is not
    // looked at any more, and nobody else runs.
    let place = unsafe { core::slice::from_raw_parts_mut(dtb as *mut u8, edited.len()) };
    place.copy_from_slice(&edited);
    clean_to_poc(dtb as usize, edited.len());
    gic::init(&facts);
    let boot_address = config.boot_address();
    let counter = config.counter().map(counter::start);
    let others = facts.affinities.len();
    // SAFETY: the boot CPU, once; others look only after `set`.
    unsafe { *KNOWN.value.get() = Some(Known { config, facts, counter }) };
    KNOWN.set.store(true, Ordering::Release);
    CPUS[0].set_on();
    init_cpu(0);
    for n in 1..others {
        gic::wake(known().facts.affinities[n]);
    }
    sysreg::write_sctlr_el2(SCTLR_EL2);
    sysreg::write_cntvoff_el2(0);
    sysreg::isb();
    // SAFETY: the image that the emulator's loader put there, entered as Linux's boot protocol says.
    unsafe { umbra_enter_el2(boot_address, dtb) }
}

/// What the machine's tree says, and the tree for EL2. The console works as soon as it is known.
fn read_tree(config: &Config) -> (Facts, Vec<u8>) {
    let address = config.dtb() as *const u8;
    // SAFETY: RAM, by the configuration; nobody writes it before EL2 runs.
    let header = unsafe { core::slice::from_raw_parts(address, 8) };
    let size = u64::from(u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
    // SAFETY: as above; no tree is larger.
    let tree =
        unsafe { core::slice::from_raw_parts(address, size.clamp(8, FIRMWARE_DTB_BYTES) as usize) };
    let Ok(fdt) = Fdt::new(tree) else { fatal(format_args!("no device tree at {address:p}")) };
    let facts = Facts::read(&fdt, config.ram());
    if let Ok(Facts { uart: Some(uart), .. }) = &facts {
        console::init(*uart as usize);
    }
    match facts {
        Ok(facts) => {
            let mut edited = hand_over(&fdt, config.suspend, config.ram());
            if config.has_odd_tree() {
                edited = make_odd(&edited);
                fill_reserved(&facts);
            }
            (facts, edited)
        }
        Err(error) => fatal(format_args!("{error}")),
    }
}

/// What the odd tree reserves is somebody's, and so is an initrd: it holds something.
fn fill_reserved(facts: &Facts) {
    for (start, end) in ODD_RESERVED.into_iter().chain([ODD_INITRD]) {
        if !facts.banks.iter().any(|bank| bank.0 <= start && end <= bank.1) {
            fatal(format_args!("no memory to reserve at {start:#x}"));
        }
        for address in (start..end).step_by(8) {
            // SAFETY: memory, mapped, above the image and the tree; nobody else runs yet.
            unsafe { (address as *mut u64).write_volatile(odd_content(address)) };
        }
        clean_to_poc(start as usize, (end - start) as usize);
    }
}

// Called by boot.S on every other CPU, once.
#[unsafe(no_mangle)]
extern "C" fn firmware_cpu(index: usize) -> ! {
    init_cpu(index);
    park(index)
}

/// Makes EL3 on this CPU what lower ELs need, and its vector length what the configuration says.
fn init_cpu(index: usize) {
    let id = sysreg::id_registers();
    if let Some(hertz) = known().counter {
        sysreg::write_cntfrq_el0(hertz);
    }
    sysreg::write_scr_el3(id.scr_el3());
    sysreg::write_cptr_el3(id.cptr_el3());
    sysreg::write_mdcr_el3(id.mdcr_el3());
    sysreg::isb();
    let config = &known().config;
    limit("SVE", config.vq(index), id.has_sve(), |len| {
        sysreg::write_zcr_el3(len);
        sysreg::isb();
        sysreg::rdvl()
    });
    limit("SME", config.svq(index), id.has_sme(), |len| {
        sysreg::write_smcr_el3(id.smcr_el3() | len);
        sysreg::isb();
        sysreg::rdsvl()
    });
    gic::init_cpu();
}

/// Gives this CPU the vector length that the configuration wants: `set` writes LEN and reads back what
/// came of it, in bytes.
fn limit(extension: &str, wanted: Option<Vq>, there: bool, set: impl FnOnce(u64) -> u64) {
    let got = there.then(|| set(wanted.map_or(0xf, Vq::len_field)));
    let Some(wanted) = wanted.map(|wanted| wanted.vl_bytes() as u64) else { return };
    match got {
        Some(got) if got == wanted => {}
        Some(got) => {
            fatal(format_args!("a CPU can't have {extension} vectors of {wanted} bytes, but {got}"))
        }
        None => fatal(format_args!("a CPU has no {extension} to limit to {wanted} bytes")),
    }
}

/// Waits to be turned on; then goes.
fn park(index: usize) -> ! {
    gic::only_ours();
    loop {
        if CPUS[index].is_pending() {
            counter::wait(LATE[index].swap(0, Ordering::Relaxed));
        }
        if let Some(entry) = CPUS[index].take() {
            gic::forget();
            enter(entry);
        }
        wait_for_interrupt();
        gic::take_ours();
    }
}

fn enter(entry: Entry) -> ! {
    let present = sysreg::id_registers().present();
    // SAFETY: an entry point that EL2 gave, in memory of its own.
    unsafe { umbra_enter_el2_scrambled(entry.pc, entry.context, present, known().config.trouble()) }
}

// Called by boot.S with the caller's x0-x30 for an SMC from a lower EL.
#[unsafe(no_mangle)]
extern "C" fn firmware_smc(frame: &mut [u64; 31], index: usize) {
    let known = known();
    let machine = Machine {
        cpus: &CPUS[..known.facts.affinities.len()],
        affinities: &known.facts.affinities,
        banks: &known.facts.banks,
        suspend: known.config.suspend,
        protected: known
            .config
            .extras()
            .contains(FirmwareExtras::MEM_PROTECT)
            .then_some(&PROTECTED),
    };
    let seed = known.config.trng();
    if seed != 0
        && let Some(answer) = TRNG.call(seed, [frame[0], frame[1]])
    {
        frame[..4].copy_from_slice(&answer);
        return;
    }
    let late = match trouble(known, frame, index) {
        Trouble::None => 0,
        Trouble::Late(microseconds) => microseconds,
        Trouble::Refused(code) => {
            frame[0] = code as i32 as u64;
            return;
        }
    };
    let answer = match machine.call([frame[0], frame[1], frame[2], frame[3]]) {
        Action::Answer(answer) => {
            counter::wait(late);
            answer
        }
        Action::Wake(target) => {
            LATE[target].store(late, Ordering::Relaxed);
            gic::wake(known.facts.affinities[target]);
            0
        }
        Action::Off => {
            counter::wait(late);
            gic::only_ours();
            CPUS[index].set_off();
            park(index)
        }
        Action::Standby => {
            counter::wait(late);
            if returns_late(known) {
                ASLEEP.fetch_add(1, Ordering::SeqCst);
                while !ENDS.load(Ordering::SeqCst) {
                    core::hint::spin_loop();
                }
                ASLEEP.fetch_sub(1, Ordering::SeqCst);
            } else {
                wait_for_interrupt();
            }
            0
        }
        Action::PowerDown(entry) => {
            counter::wait(late);
            gic::everything();
            while !gic::wake_up_pending() {
                wait_for_interrupt();
                gic::take_ours();
            }
            gic::forget();
            enter(entry)
        }
        Action::SystemOff => {
            wait_for_the_late(known);
            protect_memory(&known.facts);
            power_off(&known.facts);
            hang()
        }
        Action::SystemReset => {
            wait_for_the_late(known);
            protect_memory(&known.facts);
            reset(&known.facts);
            hang()
        }
    };
    if frame[0] as u32 == MIGRATE_INFO_TYPE
        && known.config.extras().contains(FirmwareExtras::RETURNS_NOWHERE)
    {
        sysreg::write_elr_el3(FIRMWARE_NOWHERE);
    }
    frame[0] = answer as u64;
}

fn returns_late(known: &Known) -> bool {
    known.config.extras().contains(FirmwareExtras::RETURNS_LATE)
}

/// The machine ends; CPUs that [`FirmwareExtras::RETURNS_LATE`] has kept go back to EL2, and do there what they do.
fn wait_for_the_late(known: &Known) {
    /// Turns of a loop of a few instructions: enough for any way out of EL2.
    const TURNS: u32 = 50_000_000;
    if returns_late(known) {
        ENDS.store(true, Ordering::SeqCst);
        while ASLEEP.load(Ordering::SeqCst) != 0 {
            core::hint::spin_loop();
        }
        for _ in 0..TURNS {
            core::hint::spin_loop();
        }
    }
}

/// MEM_PROTECT has been turned on: nothing is left in memory of EL2 and below.
fn protect_memory(facts: &Facts) {
    if !PROTECTED.load(Ordering::SeqCst) {
        return;
    }
    for &(start, end) in &facts.banks {
        // SAFETY: memory, mapped, none of EL3's. Whoever still runs there has called for the end.
        unsafe { core::ptr::write_bytes(start as *mut u8, 0, (end - start) as usize) };
        clean_to_poc(start as usize, (end - start) as usize);
    }
}

/// What becomes of a call.
fn trouble(known: &Known, frame: &[u64; 31], index: usize) -> Trouble {
    let Some(kind) = Kind::new(frame[0] as u32) else { return Trouble::None };
    let named = known.facts.affinities.iter().position(|&affinity| affinity == frame[1]);
    let about = if kind.names_a_cpu() { named } else { Some(index) };
    about.map_or(Trouble::None, |cpu| CALLS.next(known.config.trouble(), kind, cpu))
}

// Called by boot.S for a Group 0 interrupt while a lower EL ran: a wake-up that came after this CPU
// had seen for itself that it was turned on.
#[unsafe(no_mangle)]
extern "C" fn firmware_fiq() {
    gic::take_ours();
}

// Called by boot.S for everything that should not happen.
#[unsafe(no_mangle)]
extern "C" fn firmware_exception(esr: u64, elr: u64, far: u64, spsr: u64) -> ! {
    let el = spsr >> 2 & 3;
    fatal(format_args!(
        "exception from EL{el} at {elr:#x}: ESR_EL3 {esr:#x} (EC {:#x}), FAR_EL3 {far:#x}",
        esr >> 26 & 0x3f
    ))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fatal(format_args!("{info}"))
}

fn power_off(facts: &Facts) {
    match facts.power {
        Power::Pins { off, .. } => raise(off),
        Power::SystemRegisters(registers) => ask_board(registers, SHUTDOWN),
    }
}

fn reset(facts: &Facts) {
    match facts.power {
        Power::Pins { off, reset } => raise(reset.unwrap_or(off)),
        Power::SystemRegisters(registers) => ask_board(registers, REBOOT),
    }
}

/// Functions of SYS_CFGCTRL (Linux, vexpress-config.txt).
const SHUTDOWN: u32 = 8;
const REBOOT: u32 = 9;

/// Has a Versatile Express's system registers carry a function out.
fn ask_board(registers: u64, function: u32) {
    const SYS_CFGCTRL: u64 = 0xa4;
    const START: u32 = 1 << 31;
    const WRITE: u32 = 1 << 30;
    // SAFETY: the device tree's system registers, mapped as Device.
    unsafe {
        let control = (registers + SYS_CFGCTRL) as *mut u32;
        control.write_volatile(START | WRITE | function << 20);
    }
}

/// Drives a pin of a PL061 high: an output, low first, because the board looks at the edge.
fn raise(pin: Pin) {
    const DIRECTION: u64 = 0x400;
    let data = pin.pl061 + (4 << pin.number);
    // SAFETY: the device tree's secure PL061, which is EL3's own; any value of these registers is
    // valid.
    unsafe {
        let direction = (pin.pl061 + DIRECTION) as *mut u32;
        let data = data as *mut u32;
        direction.write_volatile(direction.read_volatile() | 1 << pin.number);
        data.write_volatile(0);
        data.write_volatile(1 << pin.number);
    }
}

fn hang() -> ! {
    loop {
        wait_for_interrupt();
    }
}

fn wait_for_interrupt() {
    // SAFETY: interrupts are masked at EL3; it goes on behind the WFI. Not `nomem`: other CPUs act
    // meanwhile.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Cleans to the point of coherency what EL2 reads with its caches off.
fn clean_to_poc(start: usize, bytes: usize) {
    let line = 4 << (sysreg::read_ctr_el0() >> 16 & 0xf);
    for address in (start / line * line..start + bytes).step_by(line) {
        // SAFETY: cleaning changes nothing that a program sees.
        unsafe { asm!("dc civac, {}", in(reg) address, options(nostack)) };
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
