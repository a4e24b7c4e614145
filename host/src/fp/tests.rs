//! Each rule by itself. What they are good for together is tried with the run loop (`vcpu/tests`).

use super::*;

struct Task {
    registers: CpuRegisters,
    /// How often it was told that they are gone.
    flushes: usize,
}

impl Task {
    fn with(registers: CpuRegisters) -> Self {
        Self { registers, flushes: 0 }
    }
}

impl TaskFp for Task {
    fn registers(&self) -> CpuRegisters {
        self.registers
    }
    fn flush_cpu_state(&mut self) {
        self.registers = CpuRegisters::Saved;
        self.flushes += 1;
    }
}

fn shared() -> VcpuFp {
    VcpuFp { page: Box::leak(Box::new(FlagShadowPage::new())), pa: 0x1000 }
}

const ALL: [CpuRegisters; 3] = [CpuRegisters::Live, CpuRegisters::LiveFpsimd, CpuRegisters::Saved];

#[test]
fn the_word_follows_the_registers() {
    let fp = shared();
    let words = [HostFlags::empty(), HostFlags::SVE_DISCARDED, HostFlags::FOREIGN_FPSTATE];
    for (registers, word) in ALL.into_iter().zip(words) {
        fp.vcpu_ctxflush_fp(&Task::with(registers));
        assert_eq!(fp.page.snapshot_hint().decode(), word);
        fp.page.flush(HostFlags::all());
        fp.vcpu_load_fp(&Task::with(registers));
        assert_eq!(fp.page.snapshot_hint().decode(), word);
    }
}

/// Whatever the current task's flag is: that it was set says nothing of another's registers.
#[test]
fn r33_every_value_of_hyps_word() {
    let fp = shared();
    for loaded in [HypFlags::empty(), HypFlags::GUEST_FP_LOADED] {
        for preserved in [HypFlags::empty(), HypFlags::HOST_FP_PRESERVED] {
            for registers in ALL {
                let word = loaded | preserved;
                fp.page.publish(word);
                let mut task = Task::with(registers);
                assert_eq!(fp.vcpu_ctxsync_fp(&Ok(()), &mut task), Some(word));
                assert_eq!(task.flushes, usize::from(preserved.is_empty()));
                let mut task = Task::with(registers);
                assert_eq!(fp.vcpu_put_fp(&Ok(()), &mut task), Some(word));
                assert_eq!(task.flushes, usize::from(preserved.is_empty()));
            }
        }
    }
}

#[test]
fn r34_the_word_behind_a_refusal_is_not_looked_at() {
    let fp = shared();
    fp.page.publish(HypFlags::empty());
    for registers in ALL {
        let mut task = Task::with(registers);
        assert_eq!(fp.vcpu_ctxsync_fp(&Err::<(), _>(Error::Busy), &mut task), None);
        assert_eq!(fp.vcpu_put_fp(&Err(Error::NotLoaded), &mut task), None);
        assert_eq!((task.registers, task.flushes), (registers, 0));
    }
}

impl KernelModeFp for Task {
    fn kernel_neon_begin(&mut self) {}
    fn kernel_neon_end(&mut self) {}
}

#[test]
fn kernel_neon_with_the_registers_saved() {
    assert_eq!(with_kernel_neon(&mut Task::with(CpuRegisters::Saved), || 5), 5);
}

#[test]
#[should_panic(expected = "kernel_neon_begin saves the task's registers")]
fn kernel_neon_with_the_registers_live() {
    with_kernel_neon(&mut Task::with(CpuRegisters::Live), || 5);
}
