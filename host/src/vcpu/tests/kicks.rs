//! Interrupts that come at the worst moment.

use super::*;

/// A host that is kicked as late as it can be without the kick stopping a guest: right before it masks interrupts.
struct Late {
    host: Host,
    vgic: &'static Vgic<'static>,
    /// INTIDs still to come, the last first; each before another entry.
    comes: Vec<u16>,
    /// Entries until its thread has to do something else, of which an IPI has told it.
    leaves: Option<usize>,
}

impl TaskFp for Late {
    fn registers(&self) -> CpuRegisters {
        self.host.registers()
    }
    fn flush_cpu_state(&mut self) {
        self.host.flush_cpu_state();
    }
}

impl HostCpu for Late {
    fn mask_interrupts(&mut self) {
        if let Some(intid) = self.comes.pop() {
            self.vgic.pulse(Line::Spi(intid), &mut Told::default()).unwrap();
        }
        self.leaves = self.leaves.map(|entries| entries.saturating_sub(1));
        self.host.mask_interrupts();
    }
    fn unmask_interrupts(&mut self) {
        self.host.unmask_interrupts();
    }
    fn mask_virtual_timer(&mut self, masked: bool) {
        self.host.mask_virtual_timer(masked);
    }
    fn must_leave(&self) -> bool {
        assert!(self.host.masked, "an IPI could still be taken");
        self.leaves == Some(0)
    }
}

#[test]
fn what_comes_before_interrupts_are_masked_is_in_the_next_entry() {
    let exits = [
        left(&[Active], Reason::Irq, 0),
        left(&[Done, Done], Reason::Irq, 0),
        exit(Reason::Irq, 0, [0; 2]),
        done(),
    ];
    let (hyp, mut vcpu) = script(OURS, &exits);
    let vgic = gic();
    let mut host = Late { host: Host::default(), vgic, comes: Vec::new(), leaves: None };
    let mut loaded = vcpu.load(&hyp, &mut host).unwrap();
    host.comes = vec![40, 50];
    let (mut gic, mut vmm) = (interface(vgic), Vmm::default());
    assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(99));
    loaded.put(&mut host).unwrap();
    let offered: Vec<_> = hyp.entries.take().into_iter().map(|entry| entry.offered).collect();
    let expected = [vec![(50, Pending)], vec![(50, Active), (40, Pending)], vec![], vec![]];
    assert_eq!(offered, expected);
}

/// Leaves as often as it is asked to, and answers MMIO.
struct Leaver(u32);

impl ExitHandler for Leaver {
    type Stop = u32;
    fn interrupt(&mut self) -> ControlFlow<u32> {
        self.0 += 1;
        ControlFlow::Break(self.0)
    }
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<u32, Answer> {
        if x[0] == 99 { ControlFlow::Break(99) } else { ControlFlow::Continue([x[0] + 1, 0, 0, 0]) }
    }
    fn mmio(&mut self, address: u64, _: MmioAccess, _: u64) -> ControlFlow<u32, MmioAnswer> {
        ControlFlow::Continue(MmioAnswer::Read(address * 2))
    }
    fn fault(&mut self, _: u64) -> ControlFlow<u32, Supplied> {
        ControlFlow::Continue(Supplied::Abort)
    }
    fn tables(&mut self) -> ControlFlow<u32, Supplied> {
        ControlFlow::Continue(Supplied::Retry)
    }
    fn cpu_off(&mut self) -> u32 {
        0
    }
    fn system(&mut self, _: SystemEvent, _: u64, _: u64) -> u32 {
        0
    }
    fn broken(&mut self, _: u64) -> u32 {
        0
    }
}

/// What has to be done first is done first, and the answer to what was open is given at the next entry, or without one.
#[test]
fn what_comes_before_interrupts_are_masked_keeps_a_guest_out() {
    let read = Ok(Exit { info: ExitInfo::mmio(2, false, 0), data: [40, 0, 0, 0, 0, 0] });
    for finishes in [false, true] {
        let irq = exit(Reason::Irq, 0, [0; 2]);
        let mut exits = vec![read, done()];
        if finishes {
            exits.insert(1, irq);
        }
        let (hyp, mut vcpu) = script(OURS, &exits);
        let vgic = gic();
        let mut host = Late { host: Host::default(), vgic, comes: Vec::new(), leaves: Some(2) };
        let (mut gic, mut vmm) = (interface(vgic), Leaver(0));
        let mut loaded = vcpu.load(&hyp, &mut host).unwrap();
        assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(1));
        assert_eq!(hyp.entries.borrow().len(), 1, "it came in the second round");
        assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(2));
        assert_eq!((hyp.entries.borrow().len(), loaded.vcpu.is_open()), (1, true));
        loaded.put(&mut host).unwrap();
        let mut loaded = vcpu.load(&hyp, &mut host).unwrap();
        if finishes {
            loaded.finish().unwrap();
            assert!(!loaded.vcpu.is_open());
        }
        host.leaves = None;
        assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(99));
        loaded.put(&mut host).unwrap();
        let entries = hyp.entries.take();
        let said: Vec<_> = entries.iter().map(|entry| (entry.flags, entry.answer)).collect();
        let none = RunFlags::empty();
        let expected: &[_] = match finishes {
            false => &[(none, [0; 4]), (none, [80, 0, 0, 0])],
            true => &[(none, [0; 4]), (RunFlags::FINISH_ONLY, [80, 0, 0, 0]), (none, [0; 4])],
        };
        assert_eq!(said, expected);
    }
}
