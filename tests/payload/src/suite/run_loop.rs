//! The library's run loop, with guests that it must get through.

use crate::{
    own_gic::{self, Nobody},
    runner::Skip,
    task::Task,
    tests,
};
use core::{arch::global_asm, ops::ControlFlow};
use umbra_host::{
    hypercall::Hvc,
    kernel::supply::{self, Pages},
    vcpu::{Answer, ExitHandler, MmioAnswer, Supplied},
    vgic::{self, SpiCell, VcpuCell},
    vm::{Line, VcpuSettings, Vm},
};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex, VmConfig},
    exit::{MmioAccess, SystemEvent},
    flags::HostFlags,
    vcpu::VcpuFeatures,
};

tests![a_timer_that_fires_in_a_handler_does_not_stop_the_guest_for_ever];

global_asm!(
    ".pushsection .rodata",
    ".balign 8",
    "umbra_handler_start:",
    "    b       0f",
    "    nop",
    "    .quad   4096",
    "0:  mov     x1, #0xf8",
    "    msr     s3_0_c4_c6_0, x1", // ICC_PMR_EL1
    "    mov     x1, #1",
    "    msr     s3_0_c12_c12_7, x1", // ICC_IGRPEN1_EL1
    "    isb",
    "1:  mrs     x2, s3_0_c12_c12_0", // ICC_IAR1_EL1
    "    cmp     x2, #33",
    "    b.ne    1b",
    // The handler of 33: its timer is due from its first instruction on.
    "    msr     cntv_cval_el0, xzr",
    "    msr     cntv_ctl_el0, x1",
    "    isb",
    "    mov     x3, #1000",
    "2:  subs    x3, x3, #1",
    "    b.ne    2b",
    "    msr     s3_0_c12_c12_1, x2", // ICC_EOIR1_EL1
    "    isb",
    "3:  mrs     x4, s3_0_c12_c12_0",
    "    cmp     x4, #27",
    "    b.ne    3b",
    "    msr     cntv_ctl_el0, xzr",
    "    isb",
    "    msr     s3_0_c12_c12_1, x4",
    "    movz    x0, #0x8600, lsl #16",
    "    hvc     #0",
    "4:  b       4b",
    "umbra_handler_end:",
    ".popsection",
);

unsafe extern "C" {
    static umbra_handler_start: u8;
    static umbra_handler_end: u8;
}

/// A run loop's host, which counts the physical interrupts that stop the guest, and loses patience.
struct Patience(u32);

/// As many exits as the handler below can't need: each interrupt of the guest's is worth one or two, and a
/// tick or a kick of the host's may come between.
const PATIENCE: u32 = 200;

impl ExitHandler for Patience {
    /// Whether the guest got through.
    type Stop = bool;

    fn interrupt(&mut self) -> ControlFlow<bool> {
        self.0 += 1;
        if self.0 < PATIENCE { ControlFlow::Continue(()) } else { ControlFlow::Break(false) }
    }
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<bool, Answer> {
        ControlFlow::Break(x[0] == 0x8600_0000)
    }
    fn mmio(&mut self, _: u64, _: MmioAccess, _: u64) -> ControlFlow<bool, MmioAnswer> {
        ControlFlow::Break(false)
    }
    fn fault(&mut self, _: u64) -> ControlFlow<bool, Supplied> {
        ControlFlow::Break(false)
    }
    fn tables(&mut self) -> ControlFlow<bool, Supplied> {
        ControlFlow::Break(false)
    }
    fn cpu_off(&mut self) -> bool {
        false
    }
    fn system(&mut self, _: SystemEvent, _: u64, _: u64) -> bool {
        false
    }
    fn broken(&mut self, _: u64) -> bool {
        false
    }
}

/// A guest whose timer fires while it handles another interrupt.
fn a_timer_that_fires_in_a_handler_does_not_stop_the_guest_for_ever() -> Result<(), Skip> {
    let start = &raw const umbra_handler_start;
    let length = &raw const umbra_handler_end as usize - start as usize;
    // SAFETY: the code between the two symbols, which nobody writes.
    let code = unsafe { core::slice::from_raw_parts(start, length) };
    let (first, count) = supply::image(code).expect("a page for the guest");
    let mut vm =
        Vm::create([Line::FREE; 4], &Hvc, &mut Pages, VmConfig::default()).expect("VM_CREATE");
    vm.map(&Hvc, &mut Pages, first, count, 0x4000_0000).expect("VM_MAP");
    let settings = VcpuSettings {
        index: VcpuIndex(0),
        affinity: UntrustedAffinity(0),
        features: VcpuFeatures::FPSIMD,
        start: Start::At { entry: 0x4000_0000, argument: 0 },
    };
    let mut vcpu = vm.create_vcpu(&Hvc, &mut Pages, settings).expect("VCPU_CREATE");
    let (cells, spis) = ([VcpuCell::new(0)], [const { SpiCell::new() }; 32]);
    let vgic = own_gic::enabled(&cells, &spis);
    // Level-sensitive, and up once.
    vgic.set_line(vgic::Line::Spi(33), true, &mut Nobody).expect("an SPI");
    let (mut task, mut patience) = (Task::new(HostFlags::empty()), Patience(0));
    let mut loaded = vcpu.load(&Hvc, &mut task).expect("VCPU_LOAD");
    let mut gic = own_gic::first(&vgic);
    let through = loaded.run(&mut task, &mut gic, &mut patience).expect("VCPU_RUN");
    loaded.put(&mut task).expect("VCPU_PUT");
    if let Err(failure) = vm.destroy(&Hvc, &mut Pages, [vcpu]) {
        panic!("VM_DESTROY: {}", failure.error);
    }
    assert!(through, "stopped {} times, and the handler is not through", patience.0);
    Ok(())
}
