//! The EL1 side of Umbra, for any operating system to embed.
//!
//! An OS that runs as Umbra's host brings vCPUs to life with five modules:
//!
//! - [`hypercall`]: the calls themselves, behind the [`Hypervisor`](hypercall::Hypervisor) trait;
//! - [`vm`]: VMs built from the OS's pages, and every page back at the end;
//! - [`vcpu`]: load, run, put, with exits dispatched to the OS's handlers and virtual interrupts;
//! - [`vgic`]: a guest's GICv3, which decides what interrupts a run carries;
//! - [`fp`]: what the OS says of its tasks' FP registers as it enters a guest, and what it is told of them.
//!
//! Guests' PSCI is hyp's: the OS learns by exits which vCPUs can be loaded, and that a machine is off.
//!
//! The library holds no FP code, keeps no global state, allocates nothing and needs no alloc crate.
//! What it needs of the OS comes through traits:
//!
//! ```
//! use core::ops::ControlFlow;
//! use umbra_host::{
//!     fp::{CpuRegisters, TaskFp},
//!     hypercall::Hypervisor,
//!     vcpu::{Answer, ExitHandler, HostCpu, MmioAnswer, Supplied},
//!     vgic::{Events, Interface, SpiCell, VcpuCell, Vgic},
//!     vm::{Line, PageSupplier, VcpuSettings, Vm},
//! };
//! use umbra_shared::{
//!     call::{Start, UntrustedAffinity, VcpuIndex, VmConfig},
//!     error::Error,
//!     exit::{MmioAccess, SystemEvent},
//!     vcpu::VcpuFeatures,
//! };
//!
//! /// The OS's view of the CPU it runs on and of the task that is its VMM.
//! struct Os {
//!     /// TIF_FOREIGN_FPSTATE of the current task.
//!     foreign: bool,
//!     /// The task whose registers the CPU holds, current or not.
//!     fpsimd_last_state: Option<u32>,
//! }
//!
//! impl TaskFp for Os {
//!     fn registers(&self) -> CpuRegisters {
//!         // LiveFpsimd where in_syscall(regs) && !test_thread_flag(TIF_SME)
//!         if self.foreign { CpuRegisters::Saved } else { CpuRegisters::Live }
//!     }
//!     fn flush_cpu_state(&mut self) {
//!         self.fpsimd_last_state = None;
//!         self.foreign = true;
//!     }
//! }
//!
//! impl HostCpu for Os {
//!     fn mask_interrupts(&mut self) { /* local_irq_disable() */ }
//!     fn unmask_interrupts(&mut self) { /* local_irq_enable() */ }
//!     fn mask_virtual_timer(&mut self, _masked: bool) { /* GICR_I{C,S}ENABLER0 */ }
//!     fn must_leave(&self) -> bool { false /* need_resched() || signal_pending(current) */ }
//! }
//!
//! /// Who is told of interrupts: here the only vCPU is where they come from.
//! struct Told;
//!
//! impl Events for Told {
//!     fn kick(&mut self, _vcpu: usize) { /* smp_send_reschedule(), wake_up() */ }
//!     fn resample(&mut self, _vcpu: usize, _intid: u16) { /* eventfd_signal() */ }
//! }
//!
//! /// The devices of the VM. Its GIC's frames are among them (`Vgic::read_distributor` and its like).
//! struct Machine {
//!     counter: u64,
//! }
//!
//! impl ExitHandler for Machine {
//!     type Stop = &'static str;
//!
//!     fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Self::Stop, Answer> {
//!         if x[0] == 1 { ControlFlow::Break("guest is done") } else { ControlFlow::Continue([0; 4]) }
//!     }
//!     fn mmio(
//!         &mut self,
//!         _address: u64,
//!         access: MmioAccess,
//!         data: u64,
//!     ) -> ControlFlow<Self::Stop, MmioAnswer> {
//!         if access.write {
//!             self.counter += data;
//!             ControlFlow::Continue(MmioAnswer::Written)
//!         } else {
//!             ControlFlow::Continue(MmioAnswer::Read(self.counter))
//!         }
//!     }
//!     fn broken(&mut self, _esr: u64) -> Self::Stop {
//!         "guest is broken"
//!     }
//!     fn fault(&mut self, _address: u64) -> ControlFlow<Self::Stop, Supplied> {
//!         ControlFlow::Continue(Supplied::Abort)
//!     }
//!     fn tables(&mut self) -> ControlFlow<Self::Stop, Supplied> {
//!         // Broken off: `Vm::topup`, and run again.
//!         ControlFlow::Break("more tables")
//!     }
//!     fn cpu_off(&mut self) -> Self::Stop {
//!         "vCPU is off"
//!     }
//!     fn system(&mut self, _event: SystemEvent, _kind: u64, _cookie: u64) -> Self::Stop {
//!         "guest is off"
//!     }
//! }
//!
//! /// Builds a VM whose memory is `pages` pages at `memory`, runs it, and takes it down again.
//! fn run_guest<H: Hypervisor, S: PageSupplier>(
//!     hyp: &H,
//!     supplier: &mut S,
//!     memory: u64,
//!     pages: u64,
//! ) -> Result<&'static str, umbra_host::vm::BuildError> {
//!     let config = VmConfig::protected();
//!     let mut vm = Vm::create([Line::FREE; 16], hyp, supplier, config)?;
//!     let (vcpus, spis) = ([VcpuCell::new(0)], [const { SpiCell::new() }; 32]);
//!     let vgic = Vgic::new(&vcpus, &spis, 5).expect("a GIC for one vCPU");
//!     let mut os = Os { foreign: false, fpsimd_last_state: Some(1) };
//!     let outcome = (|| {
//!         vm.map(hyp, supplier, memory, pages, 0x8000_0000)?;
//!         let features = VcpuFeatures::FPSIMD;
//!         let start = Start::At { entry: 0x8000_0000, argument: 0 };
//!         let (index, affinity) = (VcpuIndex(0), UntrustedAffinity(0));
//!         let settings = VcpuSettings { index, affinity, features, start };
//!         vm.create_vcpu(hyp, supplier, settings)
//!     })();
//!     let (vcpu, outcome) = match outcome {
//!         Err(error) => (None, Err(error)),
//!         Ok(mut vcpu) => {
//!             let stop = (|| {
//!                 // A protected VM is built no more, and can run.
//!                 vm.seal(hyp)?;
//!                 let mut loaded = vcpu.load(hyp, &mut os)?;
//!                 // As many list registers as VL_INFO tells of.
//!                 let mut gic = Interface::new(&vgic, 0, 4, Told).expect("its vCPU");
//!                 let stop = loaded.run(&mut os, &mut gic, &mut Machine { counter: 0 })?;
//!                 loaded.put(&mut os)?;
//!                 Ok::<_, umbra_host::vm::BuildError>(stop)
//!             })();
//!             (Some(vcpu), stop)
//!         }
//!     };
//!     // Whatever went wrong, the pages come back.
//!     vm.destroy(hyp, supplier, vcpu).map_err(|failure| failure.error)?;
//!     outcome
//! }
//! ```

#![cfg_attr(not(test), no_std)]

pub mod fp;
pub mod hypercall;
#[cfg(all(feature = "kernel", target_arch = "aarch64"))]
pub mod kernel;
pub mod vcpu;
pub mod vgic;
pub mod vm;
