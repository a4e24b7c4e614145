//! Boot: from the first Rust instruction to the final page tables.
//!
//! On the boot CPU, on the boot page tables: read the device tree, place hyp's pool, build the final
//! page tables and the host's stage 2. What comes then, on those, is in [`crate::boot::arrival`].

use crate::arch::console;
use crate::arch::end;
use crate::arch::exception::read_dbgauthstatus;
use crate::arch::fatal::refuse;
use crate::arch::layout::{DTB_WINDOW_L2, IMAGE_BASE, LINEAR_BASE, STACK_BYTES, stack_top};
use crate::arch::reset::{
    self, BOOT_PARAMS, BootParams, boot_params_address, image_begins, image_is_at,
};
use crate::arch::sysreg::sys;
use crate::arch::{Lock, layout};
use crate::boot::arrival::{self, Finish};
use crate::boot::bring_up::{MPIDR_AFFINITY, read_id_registers};
use crate::boot::devices;
use crate::boot::early::{self, BLOCK, BOOT_TABLES, map_block_for_boot, map_pool_for_boot};
use crate::boot::host_memory::{HOST_TABLES, HostMemory, host_tables, worst_case_tables};
use crate::boot::options::Options;
use crate::boot::platform::{
    HostBoot, MAX_RESERVED, Platform, Range, conduit, console as find_console, external_debug,
    hand_over,
};
use crate::boot::pool::Pool;
use crate::boot::ranges::{MAX_TAKEN, without};
use crate::cpu::Cpu;
use crate::irq;
use crate::machine::SHARED;
use crate::memory::frames::{FrameList, Tables, linear};
use crate::memory::hw::{self, Memory, clean_invalidate_range};
use crate::memory::junk::{self, Junk};
use crate::memory::pages::{Pages, State, count};
use crate::memory::tables::{HypTables, Stage2Shape, Stage2Tables, Use};
use crate::power::psci::HostEntry;
use crate::world::features::id::{IdRegister, IdRegisters};
use crate::world::features::{Features, Name};
use arrayvec::ArrayVec;
use core::mem::ManuallyDrop;
use core::sync::atomic::Ordering;
use dtoolkit::fdt::Fdt;
use umbra_shared::PAGE_SIZE;
use umbra_shared::package::{PACKAGE_MAGIC, PAYLOAD_ALIGN, PackageHeader};
use umbra_shared::sme::Storage;
use umbra_shared::vl::Vq;
use zerocopy::FromBytes;

core::arch::global_asm!(
    include_str!("boot.S"),
    PACKAGE_HEADER_BYTES = const size_of::<PackageHeader>(),
    PA_LIMIT_SHIFT = const layout::PA_LIMIT_SHIFT,
    BLOCK_FLAGS_EL1 = const layout::BLOCK_FLAGS_EL1,
    BLOCK_FLAGS_EL2 = const layout::BLOCK_FLAGS_EL2,
    IMAGE_BASE_L0 = const layout::IMAGE_BASE_L0,
    DTB_WINDOW_L2 = const DTB_WINDOW_L2,
    MAIR = const layout::MAIR,
    TCR_EL1 = const layout::TCR_EL1,
    TCR_EL2 = const layout::TCR_EL2,
    SCTLR_EL1_BOOT = const layout::SCTLR_EL1_BOOT,
    SCTLR_EL2_BOOT = const layout::SCTLR_EL2_BOOT,
    SCTLR_EL2 = const layout::SCTLR_EL2,
    PARAMS_TTBR = const core::mem::offset_of!(BootParams, ttbr),
    PARAMS_STACK = const core::mem::offset_of!(BootParams, stack_top),
    BOOT_TABLES = const BOOT_TABLES,
);

// SAFETY: symbols of boot.S and image.ld; the statics are addresses only.
unsafe extern "C" {
    static umbra_image_begin: u8;
    static umbra_idmap_begin: u8;
    static umbra_idmap_end: u8;
    static umbra_text_begin: u8;
    static umbra_text_end: u8;
    static umbra_rodata_end: u8;
    static umbra_image_end: u8;
    static umbra_package_header: [u8; size_of::<PackageHeader>()];
    static umbra_switch_tables: u8;
}

/// Stacks: two per CPU, one for work and one for the message about the first.
const STACKS_PER_CPU: usize = 2;

/// Tables of the translation of all RAM, which is in force only while RAM is wiped (`arch::end`).
static RAM_TABLES: Lock<FrameList> = Lock::new(FrameList::new());
static HYP_TABLES: Lock<FrameList> = Lock::new(FrameList::new());

/// The device tree, through its window.
fn device_tree(dtb_pa: u64) -> Option<&'static [u8]> {
    let offset = (dtb_pa % BLOCK) as usize;
    let start = (IMAGE_BASE + DTB_WINDOW_L2 * BLOCK as usize + offset) as *const u8;
    // SAFETY: the window maps the two blocks from the one the tree begins in; nobody writes it.
    let window = unsafe { core::slice::from_raw_parts(start, 2 * BLOCK as usize - offset) };
    let size = u32::from_be_bytes(window.get(4..8)?.try_into().ok()?) as usize;
    window.get(..size)
}

// Called by boot.S on the boot stack: `why` is 0 at EL2, 1 at EL1, 2 at EL2 with E2H stuck.
#[unsafe(no_mangle)]
extern "C" fn umbra_boot_main(dtb_pa: u64, image: u64, why: u64) -> ! {
    image_is_at(image);
    let dtb = device_tree(dtb_pa);
    let fdt = dtb.and_then(|dtb| Fdt::new(dtb).ok());
    if let Some(fdt) = &fdt {
        early_console(fdt, why);
        if conduit(fdt) == Some(crate::boot::platform::Conduit::Hvc) {
            crate::arch::fatal::reset_through_hvc();
        }
    }
    // Without a device tree there is no console to say so on, but a debugger finds us here.
    let (Some(dtb), Some(fdt)) = (dtb, fdt) else {
        refuse(format_args!("no device tree at {dtb_pa:#x}"))
    };
    match why {
        0 => {}
        1 => {
            refuse(format_args!("entered at EL1; hyp needs EL2 (QEMU: -M virt,virtualization=on)"))
        }
        _ => refuse(format_args!("HCR_EL2.E2H is fixed to 1; hyp needs nVHE (FEAT_E2H0)")),
    }
    let platform = match Platform::read(&fdt) {
        Ok(platform) => platform,
        Err(error) => refuse(format_args!("{error}")),
    };
    boot(dtb, dtb_pa, &fdt, &platform)
}

fn early_console(fdt: &Fdt<'_>, why: u64) {
    let Some(uart) = find_console(fdt) else { return };
    let address = early::console_window(uart, why == 0);
    // SAFETY: just mapped, as Device.
    unsafe { console::init(address) };
}

fn package() -> PackageHeader {
    // SAFETY: part of the image, written by nobody once it is loaded.
    let bytes: &[u8] = unsafe { &umbra_package_header };
    let Ok(header) = PackageHeader::read_from_bytes(bytes) else {
        refuse(format_args!("damaged package header"))
    };
    if header.magic != PACKAGE_MAGIC {
        refuse(format_args!("this hyp was not packed with a host (cargo xtask image)"));
    }
    header
}

fn boot(dtb: &'static [u8], dtb_pa: u64, fdt: &Fdt<'_>, platform: &Platform) -> ! {
    let package = package();
    let image_pa = image_begins();
    let id = read_id_registers();
    let features = Features::read(&id);
    if !features.has(Name::Gic) {
        refuse(format_args!("the CPU has no GIC system registers (GICv3)"));
    }
    log::info!(
        "{} at {image_pa:#x}, package {} KiB",
        env!("CARGO_PKG_VERSION"),
        package.package_bytes >> 10
    );

    log::info!("external debug: {}", external_debug(read_dbgauthstatus()));
    let command_line = command_line(&package, platform);
    let (options, unknown) = Options::parse(command_line);
    if let Some(word) = unknown {
        refuse(format_args!("unknown option {word}"));
    }
    let smmus = devices::examine(platform, id.pa_bits());
    let owned = devices::owned(&smmus);
    let isolation = devices::decide(fdt, platform, &smmus, options.dma);
    let cpus = platform.cpus.len();
    let fixed = 16 + cpus + devices::hyp_tables(&owned) + irq::hw::TABLES;
    let hyp_tables = worst_case_tables(&platform.banks, fixed);
    let host_tables = host_tables(&platform.banks, &platform.gic);
    let gic_bytes = irq::hw::bytes(&platform.gic, cpus);
    let ram_tables = ram_tables(platform);
    let pages = count(&platform.banks);
    let per_cpu = PAGE_SIZE.max(size_of::<Cpu>().next_multiple_of(PAGE_SIZE))
        + STACK_BYTES
        + PAGE_SIZE
        + Storage::new(Some(Vq::MAX), Some(Vq::MAX)).pages() * PAGE_SIZE;
    let bytes = (hyp_tables + host_tables + ram_tables) * PAGE_SIZE
        + (pages * size_of::<State>()).next_multiple_of(PAGE_SIZE)
        + cpus * (per_cpu + junk::PER_CPU * PAGE_SIZE)
        + devices::pool_bytes(&platform.banks, &owned)
        + gic_bytes as usize;
    let bytes = (bytes as u64).next_multiple_of(BLOCK);
    let dtb_room = (image_pa + package.dtb_offset, image_pa + package.dtb_offset + PAYLOAD_ALIGN);
    let image = [(image_pa, image_pa + package.package_bytes), dtb_room];
    let loaded = platform.loaded(&image, (dtb_pa, dtb_pa + dtb.len() as u64));
    let Some(pool_range) = platform.place(image_pa, bytes, BLOCK, &loaded) else {
        refuse(format_args!("no {} KiB of memory for hyp beside the host", bytes >> 10))
    };
    map_pool_for_boot(pool_range);
    let mut pool = Pool::new(pool_range.0, pool_range.1);
    // First, because they are in use while the rest of the pool is wiped.
    pool.fill(&RAM_TABLES, ram_tables);
    let secrets = pool.rest();
    let gic_area = pool.take(gic_bytes as usize);
    let entries = pool.take(pages * size_of::<State>());
    pool.fill(&HYP_TABLES, hyp_tables);
    pool.fill(&HOST_TABLES, host_tables);

    let mut tables = HypTables::new(Tables(&HYP_TABLES));
    map_image(&mut tables, image_pa);
    devices::prepare(&mut tables, &mut pool, &platform.banks, owned);
    tables.map(
        linear(pool_range.0),
        pool_range.0,
        (pool_range.1 - pool_range.0) as usize,
        Use::ReadWrite,
    );
    if let Some(uart) = platform.uart {
        tables.map(
            console::FINAL_ADDRESS,
            uart / PAGE_SIZE as u64 * PAGE_SIZE as u64,
            PAGE_SIZE,
            Use::Device,
        );
    }
    // The host's device tree is copied and edited through the linear map, then unmapped again.
    tables.map(linear(dtb_room.0), dtb_room.0, PAYLOAD_ALIGN as usize, Use::ReadWrite);

    let here = sys::read_mpidr_el1().bits() & MPIDR_AFFINITY;
    let Some(boot_index) = platform.cpus.iter().position(|&mpidr| mpidr == here) else {
        refuse(format_args!("the device tree does not list this CPU ({here:#x})"))
    };
    for (index, &mpidr) in platform.cpus.iter().enumerate() {
        SHARED[index].mpidr.store(mpidr, Ordering::Relaxed);
        make_cpu(&mut tables, &mut pool, index, &id);
    }
    // The tree's copy is made while its window is still mapped.
    // SAFETY: the range belongs to the package and to nobody yet; mapped by both sets of tables below.
    let room = unsafe {
        core::slice::from_raw_parts_mut(linear(dtb_room.0) as *mut u8, PAYLOAD_ALIGN as usize)
    };
    map_block_for_boot(dtb_room.0);
    let hyp_ranges = [(image_pa, image_pa + package.hyp_bytes), pool_range];
    let initrd = (package.initrd_bytes != 0).then(|| {
        let start = image_pa + package.initrd_offset;
        (start, start + package.initrd_bytes)
    });
    let host_boot = HostBoot {
        hyp: &hyp_ranges,
        initrd,
        command_line,
        smmus: &smmus,
        isolate: isolation.isolate,
    };
    let dtb_bytes = match hand_over(dtb, room, &host_boot) {
        Ok(bytes) => bytes,
        Err(error) => refuse(format_args!("{error}")),
    };
    clean_invalidate_range(linear(dtb_room.0), dtb_bytes);

    tables.mark_active();
    tables.unmap(linear(dtb_room.0), PAYLOAD_ALIGN as usize);

    // SAFETY: fresh from the pool, mapped, aligned to a page, large enough for one entry per page; zeroed
    // bytes are a valid `State` (its first variant), and `Pages::new` writes every entry.
    let entries = unsafe {
        let start = linear(entries) as *mut State;
        start.cast::<u8>().write_bytes(0, pages * size_of::<State>());
        core::slice::from_raw_parts_mut(start, pages)
    };
    let mut owners = Pages::new(&platform.banks, entries);
    for (start, end) in hyp_ranges {
        if owners.take_for_hyp(start, (end - start) / PAGE_SIZE as u64).is_err() {
            refuse(format_args!("the image is not in the memory that the device tree lists"));
        }
    }
    for &(start, end) in &platform.reserved {
        owners.reserve(start, end);
    }
    let data = {
        let at = |symbol: *const u8| reset::image_pa(symbol);
        let end = at(&raw const umbra_image_end);
        // A test build's log is read when the machine has ended.
        let begin =
            if cfg!(feature = "transition-log") { end } else { at(&raw const umbra_rodata_end) };
        (begin, end)
    };
    end::plan(&platform.banks, owners.entries_address() - LINEAR_BASE as u64, [secrets, data]);
    let ram_ttbr = ram_translation(platform, &hyp_ranges, image_pa);
    let taken: ArrayVec<Range, MAX_TAKEN> =
        loaded.iter().copied().chain([hyp_ranges[1]]).take(MAX_TAKEN).collect();
    let everything: ArrayVec<Range, { MAX_TAKEN + MAX_RESERVED }> =
        taken.iter().chain(&platform.reserved).copied().collect();
    let Some(free) = without(&platform.banks, &everything) else {
        refuse(format_args!("memory is in too many pieces"))
    };
    log::info!(
        "wiped at the end: {:#x}..{:#x} and {:#x}..{:#x}",
        secrets.0,
        secrets.1,
        data.0,
        data.1
    );
    // Nobody walks it before all CPUs are known.
    let shape = Stage2Shape::new(id.pa_bits());
    let host = Stage2Tables::new(Tables(&HOST_TABLES), shape).with_vmid(0);
    let junk = Junk::new((0..cpus * junk::PER_CPU).map(|_| pool.take(PAGE_SIZE)));
    hw::init(Memory {
        pages: owners,
        hyp: tables,
        host,
        junk,
        devices: None,
        guests_see_caches: false,
    });
    arrival::finish_with(Finish {
        cpus,
        options,
        protects: isolation.protects,
        id,
        host_memory: HostMemory { banks: platform.banks.clone(), hyp: hyp_ranges },
        images: pool,
        gic: platform.gic.clone(),
        gic_area: (gic_area, gic_area + gic_bytes),
        banks: platform.banks.clone(),
        free,
        ram_ttbr,
        uart: platform.uart,
        host: HostEntry { pc: image_pa + package.host_offset, context: dtb_room.0 },
    });
    switch_tables(boot_index)
}

/// Tables that the translation of all RAM takes: a level 2 for each GiB, a level 3 at each end of a piece.
fn ram_tables(platform: &Platform) -> usize {
    let levels = |shift: u32| -> usize {
        platform.banks.iter().map(|(start, end)| ((end - start) >> shift) as usize + 2).sum()
    };
    let pieces = platform.banks.len() + platform.reserved.len() + 4;
    levels(30) + levels(39) + 2 * pieces + 1
}

/// A translation of all RAM, one to one, but for what is reserved: firmware may have that, and it may not even
/// be looked at by speculation. Returns its TTBR0_EL2.
fn ram_translation(platform: &Platform, hyp: &[Range; 2], image_pa: u64) -> u64 {
    let mut tables = HypTables::new(Tables(&RAM_TABLES));
    let at = |symbol: *const u8| image_pa + (symbol.addr() - IMAGE_BASE) as u64;
    let idmap = (at(&raw const umbra_idmap_begin), at(&raw const umbra_idmap_end));
    let mut map = |(start, end): Range, how| {
        tables.map(start as usize, start, (end - start) as usize, how);
    };
    // Hyp's own is mapped whether it is reserved or not.
    let taken: ArrayVec<Range, { MAX_RESERVED + 2 }> =
        platform.reserved.iter().chain(hyp).copied().collect();
    let pieces = without(&platform.banks, &taken);
    let own = without(hyp, &[idmap]);
    let (Some(pieces), Some(own)) = (pieces, own) else {
        refuse(format_args!("memory is in too many pieces"))
    };
    for piece in pieces.into_iter().chain(own) {
        map(piece, Use::ReadWrite);
    }
    map(idmap, Use::Text);
    // For good: dropped, its tables would go back to the list.
    ManuallyDrop::new(tables).root()
}

/// The host's command line: the package's, or the device tree's.
fn command_line<'a>(package: &'a PackageHeader, platform: &'a Platform) -> &'a str {
    let length = (package.command_line_bytes as usize).min(package.command_line.len());
    match core::str::from_utf8(&package.command_line[..length]) {
        Ok("") => platform.command_line.as_str(),
        Ok(line) => line,
        Err(_) => refuse(format_args!("the package's command line is not UTF-8")),
    }
}

fn map_image(tables: &mut HypTables, image_pa: u64) {
    let at = |symbol: *const u8| symbol.addr();
    let begin = at(&raw const umbra_image_begin);
    let idmap = (at(&raw const umbra_idmap_begin), at(&raw const umbra_idmap_end));
    let text = (at(&raw const umbra_text_begin), at(&raw const umbra_text_end));
    let rodata_end = at(&raw const umbra_rodata_end);
    let end = at(&raw const umbra_image_end);
    let mut map = |from: usize, to: usize, how| {
        if from < to {
            tables.map(from, image_pa + (from - begin) as u64, to - from, how);
        }
    };
    map(begin, idmap.0, Use::ReadOnly);
    map(text.0, text.1, Use::Text);
    map(text.1, rodata_end, Use::ReadOnly);
    map(rodata_end, end, Use::ReadWrite);
    // Only at its physical address: it runs nowhere else.
    let idmap_pa = image_pa + (idmap.0 - begin) as u64;
    tables.map(idmap_pa as usize, idmap_pa, idmap.1 - idmap.0, Use::Text);
}

/// A CPU's stacks and data.
fn make_cpu(tables: &mut HypTables, pool: &mut Pool, index: usize, id: &IdRegisters) {
    let stack = stack_top(STACKS_PER_CPU * index);
    let emergency = stack_top(STACKS_PER_CPU * index + 1);
    for (top, bytes) in [(stack, STACK_BYTES), (emergency, PAGE_SIZE)] {
        let pa = pool.take(bytes);
        tables.map(top - bytes, pa, bytes, Use::ReadWrite);
    }
    let cpu = linear(pool.take(size_of::<Cpu>())) as *mut Cpu;
    // SAFETY: fresh from the pool, mapped by the boot tables and the final ones, aligned to a page.
    unsafe { cpu.write(Cpu::new(index, stack as u64, emergency as u64)) };
    let params = &BOOT_PARAMS[index];
    let pa_size = id.field(IdRegister::Aa64Mmfr0, 0).min(5);
    params.ttbr.store(tables.root(), Ordering::Relaxed);
    params.tcr.store(layout::TCR_EL2 | pa_size << 16, Ordering::Relaxed);
    params.stack_top.store(stack as u64, Ordering::Relaxed);
    params.index.store(index as u64, Ordering::Relaxed);
    params.cpu.store(cpu as u64, Ordering::Relaxed);
    clean_invalidate_range((&raw const *params).addr(), size_of::<BootParams>());
}

fn switch_tables(index: usize) -> ! {
    let entry = reset::image_pa(&raw const umbra_switch_tables);
    let params = boot_params_address(index);
    // SAFETY: the code there is mapped one to one by both sets of tables; it comes back at
    // `umbra_cpu_reset_main` on this CPU's own stack.
    unsafe {
        core::arch::asm!(
            "dsb sy",
            "br {entry}",
            entry = in(reg) entry,
            in("x0") params,
            options(noreturn)
        );
    }
}
