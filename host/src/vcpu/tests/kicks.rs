//! Interrupts that come at the worst moment.

use super::*;

/// A host that is kicked as late as it can be without the kick stopping a guest: right before it masks interrupts.
struct Late {
    host: Host,
    vgic: &'static Vgic<'static>,
    /// INTIDs still to come, the last first; each before another entry.
    comes: Vec<u16>,
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
        self.host.mask_interrupts();
    }
    fn unmask_interrupts(&mut self) {
        self.host.unmask_interrupts();
    }
    fn mask_virtual_timer(&mut self, masked: bool) {
        self.host.mask_virtual_timer(masked);
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
    let mut host = Late { host: Host::default(), vgic, comes: Vec::new() };
    let mut loaded = vcpu.load(&hyp, &mut host).unwrap();
    host.comes = vec![40, 50];
    let (mut gic, mut vmm) = (interface(vgic), Vmm::default());
    assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(99));
    loaded.put(&mut host).unwrap();
    let offered: Vec<_> = hyp.entries.take().into_iter().map(|entry| entry.offered).collect();
    let expected = [vec![(50, Pending)], vec![(50, Active), (40, Pending)], vec![], vec![]];
    assert_eq!(offered, expected);
}
