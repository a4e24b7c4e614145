//! Umbra's EL2 hypervisor.
//!
//! All logic is in this library, and all of it that has no hardware in it builds and is tested on
//! any machine; what has some is compiled for the bare-metal target alone.
//!
//! # Rooms
//!
//! One for each concern: decisions, which forbid `unsafe`, what puts them into effect (mostly `hw.rs`),
//! assembly and tests together. Arrows run down this list and never up.
//!
//! - [`boot`]: image, device tree, options, every CPU out of reset;
//! - `host`: what the host traps on: hypercalls, aborts, its counters;
//! - [`guest`]: what a guest traps on: running it, syndromes, device accesses, AArch32;
//! - [`power`]: PSCI between the host and firmware, and as guests have it;
//! - `cpu`: per-CPU data: what a CPU keeps to itself, and the vCPU loaded there;
//! - [`vm`]: the life of VMs and vCPUs;
//! - `machine`: facts of the machine, and what CPUs show each other;
//! - [`fp`]: the FP/SVE/SME engine;
//! - [`irq`]: the GIC as a master: ITSs, LPIs and their tables;
//! - [`memory`]: owners, hand-over, stage 2, devices' too;
//! - [`dma`]: the SMMUs that devices' accesses go through;
//! - [`world`]: what EL1 and EL2 hold per world, feature by feature, and the switch;
//! - [`arch`]: the ground: system registers, console, layout, vectors, the fatal end.
//!
//! # What it needs of a machine
//!
//! The packed image ([`umbra_shared::package`]) is entered as a Linux `Image` is, at EL2: MMU off, at a 2
//! MiB boundary, x0 the DTB's address; U-Boot's `booti` does that. Everything else is in the DTB
//! ([`boot::platform`]): CPUs, RAM and what of it is reserved, a GICv3, PSCI by SMC, a PL011 for messages if
//! there is one. HCR_EL2.E2H must be clearable, and EL3 must leave EL2 what the CPU has (SVE, SME,
//! pointer authentication, the GIC's system registers), on every CPU.
//!
//! # What the host sees
//!
//! An unmodified Linux finds a machine without EL2: it is started at EL1, its /memory has no hyp in it,
//! its PSCI calls are SMCs that [`power::psci`] interposes. Its page tables are below an identity map of RAM
//! without hyp's memory and of the devices in its tree: an access elsewhere is a synchronous external abort. SMMUs
//! are hyp's, and disabled in its tree; devices behind one reach the RAM that the host does ([`dma`]). All CPU features are its own but for
//! EL2 and what implementers define beside the architecture, and its FP registers move only when a guest has displaced them ([`fp`]), or when
//! [`boot::options`] ask for that.
//!
//! # Where it is unsafe
//!
//! Decisions are in modules that forbid `unsafe`; it is left to those that hardware or raw memory force
//! it on. These are all: `unsafe` blocks, and other uses (functions, traits, foreign functions, symbols).
//! `cargo xtask check` compares the table with the sources.
//!
//! | module | blocks | other | for |
//! |---|---|---|---|
//! | `arch/console.rs` | 1 | 1 | the UART's registers |
//! | `arch/end.rs` | 5 | 2 | the routines that stop CPUs and wipe memory (end.S), with another translation in force |
//! | `arch/exception.rs` | 4 | 3 | the vectors; a register, and a device, that may not be there; entry to a host that starts; an SError taken at EL2 |
//! | `arch/fatal.rs` | 2 | 2 | the stack as a list of frames, when something has gone wrong |
//! | `arch/lock.rs` | 4 | 0 | YIELD, WFE, WFI, SEV |
//! | `arch/log.rs` | 1 | 3 | records in a static that every CPU writes (test builds only) |
//! | `arch/percpu.rs` | 2 | 2 | per-CPU data behind TPIDR_EL2 |
//! | `arch/reset.rs` | 0 | 1 | an address that boot.S defines |
//! | `arch/sysreg.rs` | 9 | 0 | MRS and MSR of registers that the sysreg crate lacks; barriers |
//! | `boot/arrival.rs` | 6 | 1 | this CPU's data and host image, which boot made; the function that boot.S comes back to; YIELD |
//! | `boot/bring_up.rs` | 4 | 0 | EL2's translation for the host, and entry to it |
//! | `boot/devices.rs` | 4 | 0 | registers of SMMUs; memory from the pool for their tables and queues |
//! | `boot/early.rs` | 1 | 1 | the boot page tables, which boot.S defines |
//! | `boot/pool.rs` | 1 | 0 | memory taken from the pool for the first time |
//! | `boot/start.rs` | 7 | 2 | addresses that the linker script and boot.S define; the device tree and the package where the loader put them; the jump to the final tables |
//! | `cpu.rs` | 2 | 1 | per-CPU data, whole |
//! | `dma/hw.rs` | 4 | 2 | registers of an SMMU; tables and queues that it reads and writes, as atomics |
//! | `fp/hw.rs` | 22 | 3 | the routines that move FP registers (regs.S); images in donated memory |
//! | `guest/entropy.rs` | 1 | 0 | RNDRRS |
//! | `guest/run.rs` | 3 | 1 | entry to a guest (enter.S); the return state of an ERET, into the guest and back to the host |
//! | `guest/traps.rs` | 1 | 1 | the return state of a guest whose trap ends without a switch; the function that enter.S calls |
//! | `host/traps.rs` | 5 | 3 | this CPU's data at an exception; the host's return state |
//! | `irq/hw.rs` | 6 | 0 | the GIC's registers; its tables in hyp's pool; a command in a page of the host's |
//! | `memory/frames.rs` | 3 | 2 | lists of free pages, threaded through the pages |
//! | `memory/hw.rs` | 10 | 2 | pages that hyp has mapped: wiped, cleaned, measured, read and written for their guest, and flag-shadow pages as atomics |
//! | `memory/tables.rs` | 6 | 4 | TLB maintenance; functions that aarch64-paging wants and nobody calls |
//! | `vm/slots.rs` | 8 | 2 | a vCPU in its donated pages, which its slot or its CPU has to itself |
//! | `world/interrupts.rs` | 2 | 0 | list registers, by number |
//! | `world/switch.rs` | 3 | 1 | the world switch; HCR_EL2 |
//!
//! # The end
//!
//! The machine ends when the host asks for it (SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2) or when something is wrong
//! with hyp. One CPU claims the end; every stage 2 is emptied and every TLB with it, so that no CPU at EL1 or
//! EL0 gets further than its next fetch, which is hyp's to see, whatever is masked there; those that wait
//! are woken; those in firmware come back through hyp's entry ([`arch::stop`], `arch::end`). Then a panic is
//! told, memory that is not the host's is zeroed and cleaned to the point of coherency, and firmware is
//! called. No lock is taken on that way, and nothing is waited for but by count. Where firmware wipes by
//! itself (MEM_PROTECT, [`power::protect`]) hyp only stops the CPUs. Resets that nobody announces are
//! dealt with at the next boot, when what is neither reserved nor the loader's is wiped ([`boot::ranges`]).
//!
//! # Locks
//!
//! A CPU takes them in this order and holds at most one of each kind:
//!
//! 1. a VM's slot (`vm::slots`), which guards the VM, its vCPUs' places and its stage 2;
//! 2. an ITS, or the redistributors (`irq::hw`), which guards what the GIC has of hyp's memory; with it held memory is
//!    asked about a page of the host's, and no VM about anything;
//! 3. memory (`memory::hw`): owners, hyp's stage 1, the host's stage 2 and the devices', the SMMUs;
//! 4. a list of pages for tables (`memory::frames`): hyp's, the host's or a VM's. With one of these held
//!    nothing is done but to take a page or to put one.
//!
//! Which frames of the GIC are whose (`irq::hw`) is looked up under a lock that is held for nothing else. The console's is taken by messages alone, which are for boot, for the end, and for no transition.
//! No lock is held while a guest or the host runs: an entry and an exit take none, a loaded vCPU being its CPU's
//! own; a guest's call about its memory or its vCPUs, and a protected guest's access to what is not there, unless it is in its
//! upper half or a device that it has accessed before, take its VM's and let it go before anybody goes on. What a
//! CPU does with a lock held is bounded by [`umbra_shared::call::MAX_PAGES_PER_CALL`],
//! [`umbra_shared::call::MASKED_INSTRUCTIONS`] and [`irq::its::COMMANDS_A_TRAP`], and measured (`tests/bench`,
//! `masked_*`). Locks go to whoever has waited longest (`arch::lock`), so that a wait is bounded, too: by the
//! other CPUs' turns.
//!
//! Nothing fails for want of memory once a transition has begun. A VM brings its tables: [`vm::ranges`] and
//! [`vm::calls`] ask whether the worst case is there before a page changes hands, with the slot locked from then on, so
//! that nobody else can use them up. Hyp and the host have enough from boot for all of RAM in single
//! pages. vCPUs and slots are counted before anything is donated.

#![cfg_attr(not(test), no_std)]

pub mod arch;
pub mod boot;
#[cfg(target_os = "none")]
pub mod cpu;
pub mod dma;
pub mod fp;
pub mod guest;
#[cfg(target_os = "none")]
pub mod host;
pub mod irq;
#[cfg(target_os = "none")]
pub mod machine;
pub mod memory;
pub mod power;
pub mod vm;
pub mod world;
