//! A guest's GIC below somebody else's driver for one: the test guest (`tests/guest`) has arm-gic's.

use super::vgic_smp::wait_until;
use crate::{
    context::{context, need_cpus},
    gic_guest::{self, Board, Cells},
    ledger::{self, PAGE},
    own_gic,
    runner::Skip,
    task::Task,
    tests, workers,
};
use core::{
    array,
    ops::ControlFlow,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};
use umbra_host::{
    hypercall::Hvc,
    kernel::{initrd, mmu, sync::Lock},
    vcpu::{Answer, ExitHandler, MmioAnswer, Supplied, Vcpu},
    vm::{Line, VcpuSettings, Vm},
};
use umbra_patterns::protocol::{
    ARGUMENT, Argument, BASE, CONTINUE, DEVICE_SPI, ECHO, FAIL, Failure, LOWER, Mode, RAISE,
    REPORT, STOP, counter,
};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex, VmConfig},
    exit::{MmioAccess, SystemEvent},
    flags::HostFlags,
    guest::NOT_SUPPORTED,
    vcpu::VcpuFeatures,
};

tests![vgic_a_driver_finds_a_gic_that_it_knows];

/// vCPUs, each on the CPU of its number.
const VCPUS: usize = 2;
/// What each does at least. Every sixth time the guest waits for its timer, sends SGIs, and has the device raise its line.
const ROUNDS: u64 = 60;

/// What the vCPUs' hosts tell each other.
struct Progress {
    verified: [AtomicU64; VCPUS],
    /// Those that the guest has turned on.
    on: AtomicUsize,
}

/// The host of one of them.
struct Vmm<'b> {
    board: &'b Board<'b>,
    progress: &'b Progress,
    vcpu: usize,
    raised: u64,
    lowered: u64,
    timers: u64,
    sgis: u64,
    sums: (u64, u32),
}

fn argument(vcpu: usize) -> u64 {
    let owner = 0x300 + vcpu as u16;
    Argument { vcpu: vcpu as u8, owner, vq: None, svq: None, mode: Mode::Verify }.encode()
}

impl ExitHandler for Vmm<'_> {
    /// It is off.
    type Stop = ();

    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<(), Answer> {
        ControlFlow::Continue(match x[0] {
            ECHO => [x[1] + 1, 0, 0, 0],
            REPORT => {
                let verified = &self.progress.verified;
                assert_eq!(x[1], verified[self.vcpu].fetch_add(1, SeqCst) + 1);
                self.sgis = x[2];
                // Not before the other one has sent what it is to send.
                let all = verified.iter().all(|verified| verified.load(SeqCst) >= ROUNDS);
                [if all && self.sgis != 0 { STOP } else { CONTINUE }, 0, 0, 0]
            }
            FAIL => {
                panic!("vCPU {}: {}", self.vcpu, Failure::decode([x[1], x[2], x[3], x[4], x[5]]))
            }
            ARGUMENT if x[1] < VCPUS as u64 => [argument(x[1] as usize), BASE, 0, 0],
            ARGUMENT => [0; 4],
            _ => [NOT_SUPPORTED as u64, 0, 0, 0],
        })
    }

    fn mmio(&mut self, address: u64, access: MmioAccess, data: u64) -> ControlFlow<(), MmioAnswer> {
        let board = self.board;
        if let Some(answer) = own_gic::access(&board.vgic, address, access, data, &mut board.told())
        {
            return ControlFlow::Continue(answer);
        }
        let (wide, narrow) = (counter(self.vcpu as u64, 8), counter(self.vcpu as u64, 4));
        if !access.write {
            let sum = if address == wide { self.sums.0 } else { self.sums.1.into() };
            return ControlFlow::Continue(MmioAnswer::Read(sum));
        }
        match address {
            RAISE => {
                self.raised += 1;
                board.line(DEVICE_SPI, true);
            }
            LOWER => {
                self.lowered += 1;
                board.line(DEVICE_SPI, false);
            }
            _ if address == wide => self.sums.0 = self.sums.0.wrapping_add(data),
            _ if address == narrow => self.sums.1 = self.sums.1.wrapping_add(data as u32),
            _ => panic!("the guest accessed {address:#x}"),
        }
        ControlFlow::Continue(MmioAnswer::Written)
    }

    fn virtual_timer(&mut self) {
        self.timers += 1;
    }

    fn fault(&mut self, address: u64) -> ControlFlow<(), Supplied> {
        panic!("the guest accessed {address:#x}")
    }

    fn tables(&mut self) -> ControlFlow<(), Supplied> {
        panic!("a normal guest takes no tables")
    }

    fn cpu_on(&mut self, _: VcpuIndex) -> ControlFlow<()> {
        self.progress.on.fetch_add(1, SeqCst);
        ControlFlow::Continue(())
    }

    fn cpu_off(&mut self) {}

    fn system(&mut self, event: SystemEvent, _: u64, _: u64) {
        panic!("the guest has ended: {event:?}")
    }

    fn broken(&mut self, esr: u64) {
        panic!("the guest broke, ESR {esr:#x}")
    }
}

/// The guest in memory of the test's; the first vCPU is on.
fn guest() -> [Lock<Vcpu>; VCPUS] {
    let image = initrd::file(context().machine, "guest").expect("the initrd has it");
    let bytes = image.get(8..16).and_then(|bytes| bytes.try_into().ok());
    let count = u64::from_le_bytes(bytes.expect("it says what it needs")).div_ceil(PAGE);
    assert!(image.len() as u64 <= count * PAGE);
    let memory = ledger::take(count);
    // SAFETY: the pages are this test's, and hold the image.
    unsafe { mmu::linear::<u8>(memory).copy_from_nonoverlapping(image.as_ptr(), image.len()) };
    let supplier = &mut gic_guest::Books;
    let mut vm =
        Vm::create([Line::FREE; 32], &Hvc, supplier, VmConfig::default()).expect("VM_CREATE");
    ledger::enter(vm.handle());
    vm.map(&Hvc, supplier, memory, count, BASE).expect("VM_MAP");
    array::from_fn(|n| {
        let start = match n {
            0 => Start::At { entry: BASE, argument: argument(0) },
            _ => Start::Off,
        };
        let settings = VcpuSettings {
            index: VcpuIndex(n as u64),
            affinity: UntrustedAffinity(n as u64),
            features: VcpuFeatures::FPSIMD,
            start,
        };
        Lock::new(vm.create_vcpu(&Hvc, supplier, settings).expect("VCPU_CREATE"))
    })
}

fn vgic_a_driver_finds_a_gic_that_it_knows() -> Result<(), Skip> {
    need_cpus(VCPUS)?;
    let cells = Cells::new();
    // Nothing of it is enabled.
    let (board, vcpus) = (Board::at_reset(&cells), guest());
    let progress =
        Progress { verified: [const { AtomicU64::new(0) }; VCPUS], on: AtomicUsize::new(0) };
    workers::on_all(|cpu| {
        let Some(vcpu) = vcpus.get(cpu) else { return };
        wait_until(|| cpu == 0 || progress.on.load(SeqCst) != 0);
        let mut vmm = Vmm {
            board: &board,
            progress: &progress,
            vcpu: cpu,
            raised: 0,
            lowered: 0,
            timers: 0,
            sgis: 0,
            sums: (0, 0),
        };
        let mut vcpu = vcpu.lock();
        board.here(cpu, |mut gic| {
            let mut task = Task::new(HostFlags::empty());
            let mut loaded = vcpu.load(&Hvc, &mut task).expect("VCPU_LOAD");
            loaded.run(&mut task, &mut gic, &mut vmm).expect("VCPU_RUN");
            loaded.put(&mut task).expect("VCPU_PUT");
        });
        let kind = progress.verified[cpu].load(SeqCst) / 6;
        // The guest itself waits for each of these; what it has not waited for are others' SGIs.
        assert!(vmm.timers >= kind, "{} of {kind} timers", vmm.timers);
        assert_eq!(vmm.raised, vmm.lowered, "its handler lowers the line, once for each time");
        assert_eq!(vmm.raised >= kind, cpu == 0, "the device's interrupt is the first vCPU's");
        assert!((1..=progress.verified[1 - cpu].load(SeqCst)).contains(&vmm.sgis));
    });
    assert_eq!(progress.on.load(SeqCst), 1);
    Ok(())
}
