//! One CPU of the host: its own registers, and the vCPUs it runs.
//!
//! The host's task keeps patterns in the registers that the guests use too, and touches them rarely, so
//! that the lazy switch is what is exercised. From round to round it is a different kind of task: one
//! whose whole SVE state is live, at a VL of its own choosing; one in a system call, of which only
//! V0-V31 matter; one whose state is in memory anyway (TIF_FOREIGN_FPSTATE). In none of these may it ever
//! find a byte that is neither its own nor zero.

use super::{
    PLAN, Plan, Trouble, VMS,
    gics::Running,
    guest::{self, Exits, HZ, OWNER, Pause, Slot},
    report, stopped,
};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use spin::relax::RelaxStrategy;
use umbra_host::{
    emit,
    fp::{CpuRegisters, TaskFp},
    hypercall::{Exit, Hvc, Hypervisor, Results},
    kernel::{MAX_CPUS, gic, smp, sync, sysreg, timer},
    vcpu::HostCpu,
};
use umbra_patterns::{
    pattern::Kept,
    regs::{self, Bench, Width},
    tag::Tag,
};
use umbra_shared::interrupt::{Entry, States};
use umbra_shared::{
    call::Call,
    error::Error,
    exit::RunFlags,
    vl::{Vq, VqSet},
};

/// Owners of the host's tags: + CPU.
const HOST: u16 = 0x100;
/// Rounds: in each, a CPU runs one vCPU of each VM.
const ROUNDS: usize = 16;
/// Iterations of a guest that a round waits for.
const ITERATIONS: u64 = 12;

static BENCHES: [sync::Lock<Bench>; MAX_CPUS] = [const { sync::Lock::new(Bench::new()) }; MAX_CPUS];
static SLICES: AtomicUsize = AtomicUsize::new(0);

/// Each CPU's entries into guests, as the host counts them: hyp's count must be the same.
static RUNS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// How often a CPU has entered a guest.
pub fn runs(cpu: usize) -> u64 {
    RUNS[cpu].load(Ordering::Relaxed)
}

/// [`Hvc`], with its entries counted.
struct Counted;

impl Hypervisor for Counted {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        Hvc.call(call)
    }

    fn vcpu_run(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
        let exit = Hvc.vcpu_run(flags, answer)?;
        RUNS[smp::cpu()].fetch_add(1, Ordering::Relaxed);
        Ok(exit)
    }

    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        entries: &[Entry],
    ) -> Result<(Exit, States), Error> {
        let run = Hvc.vcpu_run_with(flags, answer, entries)?;
        RUNS[smp::cpu()].fetch_add(1, Ordering::Relaxed);
        Ok(run)
    }
}

/// Every owner there is, so that a stray lane can be named.
const KNOWN: [Tag; MAX_CPUS + VMS * MAX_CPUS] = {
    let mut known = [Tag { owner: 0, generation: 0 }; MAX_CPUS + VMS * MAX_CPUS];
    let mut n = 0;
    while n < known.len() {
        known[n].owner = if n < MAX_CPUS {
            HOST + n as u16
        } else {
            OWNER + ((n / MAX_CPUS - 1) * 16 + n % MAX_CPUS) as u16
        };
        n += 1;
    }
    known
};

/// What is live of the host's task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Live {
    Everything,
    Fpsimd,
    Nothing,
}

struct Host<'b> {
    cpu: usize,
    bench: &'b mut Bench,
    width: Width,
    tag: Tag,
    live: Live,
    /// TIF_FOREIGN_FPSTATE.
    foreign: bool,
    /// The VL it chose.
    vq: Vq,
}

impl TaskFp for Host<'_> {
    fn registers(&self) -> CpuRegisters {
        match self.live {
            _ if self.foreign => CpuRegisters::Saved,
            Live::Fpsimd => CpuRegisters::LiveFpsimd,
            Live::Everything | Live::Nothing => CpuRegisters::Live,
        }
    }

    fn flush_cpu_state(&mut self) {
        if !self.foreign {
            // Hyp dropped what it should have kept.
            report(Trouble::Dropped(self.cpu));
        }
        self.foreign = true;
    }
}

impl HostCpu for Host<'_> {
    fn mask_interrupts(&mut self) {
        sysreg::mask_interrupts();
    }

    fn unmask_interrupts(&mut self) {
        sysreg::unmask_interrupts();
    }

    fn mask_virtual_timer(&mut self, masked: bool) {
        gic::enable(gic::VIRTUAL_TIMER, !masked);
    }

    // It has nothing else to do than what its guests want.
    fn must_leave(&self) -> bool {
        false
    }
}

impl Host<'_> {
    /// A new round, a new task: chooses a VL and fills the registers.
    fn begin(&mut self, round: usize, vqs: VqSet) {
        if self.width == Width::Sve {
            // On a CPU wider than the host images, the host does not get all that the CPU has.
            let widest = regs::set_vl(Vq::MAX);
            let allowed = || vqs.iter().filter(|&vq| vq <= widest);
            let vq = allowed().nth(round % allowed().count().max(1)).unwrap_or(widest);
            self.vq = vq;
            let found = regs::set_vl(vq);
            if found != vq {
                self.lost_vl(found);
            }
        }
        self.live = match round % 4 {
            1 => Live::Fpsimd,
            3 => Live::Nothing,
            _ => Live::Everything,
        };
        self.refill();
        self.foreign = self.live == Live::Nothing;
    }

    fn refill(&mut self) {
        self.tag.generation += 1;
        self.bench.fill(self.tag, self.width);
        self.foreign = false;
    }

    fn lost_vl(&self, found: Vq) {
        let (expected, found) = (self.vq.vl_bytes(), found.vl_bytes());
        report(Trouble::HostVl { cpu: self.cpu, expected, found });
    }

    /// Looks at the registers. What was given up is filled again, as an OS reloads a task's registers.
    fn look(&mut self) {
        if self.width == Width::Sve {
            let found = regs::rdvl();
            if found != self.vq {
                self.lost_vl(found);
            }
        }
        let kept = match self.live {
            _ if self.foreign => Kept::Nothing,
            Live::Everything => Kept::All,
            Live::Fpsimd => Kept::Fpsimd,
            Live::Nothing => Kept::Nothing,
        };
        let mut known = KNOWN;
        known[self.cpu] = self.tag;
        if let Err(mismatch) = self.bench.check(self.tag, self.width, kept, &known) {
            report(Trouble::Host { cpu: self.cpu, mismatch });
        }
        if kept != Kept::All {
            self.refill();
            self.foreign = self.live == Live::Nothing;
        }
    }
}

/// What every CPU does.
pub fn work(cpu: usize) {
    let plan = PLAN.wait();
    timer::set_tick(timer::frequency() / HZ);
    regs::enable();
    let width = if plan.sve { Width::Sve } else { Width::Fpsimd };
    let mut bench = BENCHES[cpu].lock();
    let mut host = Host {
        cpu,
        bench: &mut bench,
        width,
        tag: Tag { owner: HOST + cpu as u16, generation: 0 },
        live: Live::Everything,
        foreign: false,
        vq: Vq::MIN,
    };
    for round in 0..ROUNDS {
        host.begin(round, plan.at_hyp[cpu].1);
        for vm in 0..VMS {
            // Both VMs' vCPUs wander, in opposite directions.
            let step = if vm == 0 { round } else { plan.cpus - round % plan.cpus };
            let vcpu = (cpu + step) % plan.cpus;
            if !slice(plan, &mut host, vm, vcpu, round) {
                return;
            }
            progress(plan);
        }
        host.look();
    }
    timer::set_tick(0);
}

fn progress(plan: &Plan) {
    let total = ROUNDS * VMS * plan.cpus;
    let done = SLICES.fetch_add(1, Ordering::Relaxed) + 1;
    if done.is_multiple_of(plan.cpus * 2) {
        emit!("@progress {done} {total}");
    }
}

/// Runs a vCPU for its share of iterations. False: stop.
fn slice(plan: &Plan, host: &mut Host, vm: usize, vcpu: usize, round: usize) -> bool {
    // It may still be on the CPU where it was in the last round, or not even there yet.
    let mut slot = loop {
        // Nor may it be on.
        if guest::is_on(vm, vcpu) {
            let slot = plan.slots[vm][vcpu].lock();
            if slot.rounds == round {
                break slot;
            }
        }
        if stopped() {
            return false;
        }
        sync::Yield::relax();
    };
    let Some(mut this) = slot.vcpu.take() else { return false };
    slot.rounds += 1;
    if slot.cpu.is_some_and(|cpu| cpu != host.cpu) {
        slot.migrations += 1;
    }
    slot.cpu = Some(host.cpu);
    let last = round + 1 == ROUNDS;
    let result = run(host, &mut slot, &mut this, vm, vcpu, last);
    slot.vcpu = Some(this);
    if let Err(trouble) = result {
        report(trouble);
    }
    !stopped()
}

fn run(
    host: &mut Host,
    slot: &mut Slot,
    this: &mut umbra_host::vcpu::Vcpu,
    vm: usize,
    vcpu: usize,
    last: bool,
) -> Result<(), Trouble> {
    let plan = PLAN.wait();
    let mut loaded = super::hyp("VCPU_LOAD", this.load(&Counted, host))?;
    let registers = plan.list_registers;
    let mut gic =
        Running::here(&plan.gics[vm], vm, vcpu, host.cpu, registers).ok_or(Trouble::Gic)?;
    let mut exits = Exits::new(plan, vm, vcpu as u64, slot, ITERATIONS, last);
    let result = loop {
        match super::hyp("VCPU_RUN", loaded.run(host, &mut gic.interface, &mut exits)) {
            Err(trouble) => break Err(trouble),
            Ok(Pause::Look) => host.look(),
            Ok(Pause::Slice | Pause::Off | Pause::Stopped) => break Ok(()),
            Ok(Pause::Failed(failure)) => break Err(Trouble::Guest { vm, vcpu, failure }),
            Ok(Pause::Broken(esr)) => break Err(Trouble::Broken { vm, vcpu, esr }),
            Ok(Pause::Nothing(address)) => break Err(Trouble::Nothing { vm, vcpu, address }),
            Ok(Pause::Tables) => super::vms::topup(plan, vm)?,
            Ok(Pause::Stuck) => break Err(Trouble::Stuck { vm, vcpu }),
        }
    };
    super::hyp("VCPU_PUT", loaded.put(host))?;
    result
}
