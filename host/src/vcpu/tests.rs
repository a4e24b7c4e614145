//! The run loop against a scripted hyp.

mod kicks;
mod os;
mod tasks;

use super::*;
use crate::{
    fp::CpuRegisters,
    hypercall::Results,
    vgic::{
        Line, SpiCell, VcpuCell, Vgic,
        tests::{Told, edge, running},
    },
};
use std::{cell::RefCell, collections::VecDeque, vec::Vec};
use umbra_shared::{
    call::Call,
    flags::{FlagShadowPage, HostFlags, HypFlags},
    interrupt::{Signalled, State},
};

/// What VCPU_RUN was given, beside what the host looked like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entered {
    flags: RunFlags,
    answer: [u64; 4],
    hint: HostFlags,
    offered: Vec<(u16, State)>,
}

struct Script {
    page: &'static FlagShadowPage,
    exits: RefCell<VecDeque<Result<Exit, Error>>>,
    word: HypFlags,
    entries: RefCell<Vec<Entered>>,
    loaded: RefCell<bool>,
}

impl Hypervisor for Script {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        let loaded = &mut *self.loaded.borrow_mut();
        match call {
            Call::VcpuLoad { .. } => {
                *loaded = true;
                self.page.publish(HypFlags::HOST_FP_PRESERVED);
            }
            Call::VcpuPut => {
                *loaded = false;
                self.page.publish(self.word.difference(HypFlags::GUEST_FP_LOADED));
            }
            Call::ShareFlagPage { .. } => {}
            other => panic!("{other:?}"),
        }
        Ok([0; 8])
    }

    fn vcpu_run(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
        assert!(*self.loaded.borrow());
        let hint = self.page.snapshot_hint().decode();
        self.entries.borrow_mut().push(Entered { flags, answer, hint, offered: Vec::new() });
        let exit = self.exits.borrow_mut().pop_front().expect("the script has an exit")?;
        self.page.publish(self.word);
        Ok(exit)
    }

    /// What becomes of the interrupts is in x7 of the exit.
    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        entries: &[Entry],
    ) -> Result<(Exit, States), Error> {
        let exit = self.vcpu_run(flags, answer);
        assert!(!entries.is_empty(), "that is another way in");
        if let Some(run) = self.entries.borrow_mut().last_mut() {
            run.offered = entries.iter().map(|entry| (entry.intid(), entry.state())).collect();
        }
        exit.map(|exit| (exit, States::from_register(exit.data[5])))
    }
}

#[derive(Default)]
struct Host {
    foreign: bool,
    masked: bool,
    timer_masked: bool,
    /// For each change of the mask: whether interrupts were masked.
    timer_masks: Vec<(bool, bool)>,
}

impl TaskFp for Host {
    fn registers(&self) -> CpuRegisters {
        assert!(self.masked || !self.timer_masked);
        if self.foreign { CpuRegisters::Saved } else { CpuRegisters::Live }
    }
    fn flush_cpu_state(&mut self) {
        assert!(self.masked);
        self.foreign = true;
    }
}

impl HostCpu for Host {
    fn mask_interrupts(&mut self) {
        assert!(!self.masked);
        self.masked = true;
    }
    fn unmask_interrupts(&mut self) {
        assert!(self.masked && !self.timer_masked);
        self.masked = false;
    }
    fn mask_virtual_timer(&mut self, masked: bool) {
        assert!(self.masked);
        self.timer_masked = masked;
        self.timer_masks.push((masked, self.masked));
    }
    fn must_leave(&self) -> bool {
        assert!(self.masked);
        false
    }
}

/// Counts, answers, and stops at HVC 99.
#[derive(Default)]
struct Vmm {
    log: Vec<&'static str>,
    wait: Option<Wait>,
}

impl ExitHandler for Vmm {
    type Stop = u64;
    fn interrupt(&mut self) -> ControlFlow<u64> {
        self.log.push("irq");
        ControlFlow::Continue(())
    }
    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<u64, Answer> {
        self.log.push("hvc");
        if x[0] == 99 {
            return ControlFlow::Break(99);
        }
        ControlFlow::Continue([x[0] + 1, x[1], x[2], x[3]])
    }
    fn mmio(&mut self, address: u64, a: MmioAccess, data: u64) -> ControlFlow<u64, MmioAnswer> {
        self.log.push("mmio");
        ControlFlow::Continue(match address {
            0 => MmioAnswer::Abort,
            1 => MmioAnswer::Retry,
            _ if a.write => {
                assert_eq!(data, 5);
                MmioAnswer::Written
            }
            _ => MmioAnswer::Read(address * 2),
        })
    }
    fn virtual_timer(&mut self) {
        self.log.push("timer");
    }
    fn wfi(&mut self, wait: Wait) -> ControlFlow<u64> {
        self.log.push("wfi");
        self.wait = Some(wait);
        ControlFlow::Continue(())
    }
    fn fault(&mut self, address: u64) -> ControlFlow<u64, Supplied> {
        self.log.push("fault");
        match address {
            0 => ControlFlow::Continue(Supplied::Abort),
            1 => ControlFlow::Continue(Supplied::Retry),
            _ => ControlFlow::Break(address),
        }
    }
    fn tables(&mut self) -> ControlFlow<u64, Supplied> {
        self.log.push("tables");
        ControlFlow::Continue(Supplied::Retry)
    }
    fn unshare(&mut self, address: u64, page: u64) -> ControlFlow<u64, Supplied> {
        assert_eq!(page, 0x4000_0000);
        self.log.push("unshare");
        match address {
            0 => ControlFlow::Continue(Supplied::Abort),
            1 => ControlFlow::Continue(Supplied::Retry),
            _ => ControlFlow::Break(address),
        }
    }
    fn host_call(
        &mut self,
        immediate: u16,
        registers: &mut [u64; 31],
    ) -> ControlFlow<u64, Supplied> {
        self.log.push("host call");
        registers.iter_mut().for_each(|register| *register += u64::from(immediate));
        ControlFlow::Continue(if immediate == 0 { Supplied::Abort } else { Supplied::Retry })
    }
    fn cpu_on(&mut self, index: VcpuIndex) -> ControlFlow<u64> {
        assert_eq!(index, VcpuIndex(3));
        self.log.push("on");
        ControlFlow::Continue(())
    }
    fn cpu_off(&mut self) -> u64 {
        0x0ff
    }
    fn system(&mut self, event: SystemEvent, kind: u64, cookie: u64) -> u64 {
        (event as u64) << 32 | kind << 16 | cookie
    }
    fn broken(&mut self, esr: u64) -> u64 {
        esr
    }
}

fn exit(reason: Reason, flags: u64, data: [u64; 2]) -> Result<Exit, Error> {
    let info = ExitInfo::new(reason, flags);
    Ok(Exit { info, data: [data[0], data[1], 0, 0, 0, 0] })
}

/// The same, of a run whose interrupts are in these states after it.
fn left(states: &[State], reason: Reason, flags: u64) -> Result<Exit, Error> {
    let all = states.iter().enumerate();
    let states = all.fold(States::default(), |states, (n, &state)| states.with(n, state));
    Ok(Exit { info: ExitInfo::new(reason, flags), data: [0, 0, 0, 0, 0, states.register()] })
}

/// A GIC for one vCPU, with SPIs 32 to 63 that are edge-triggered.
fn gic() -> &'static Vgic<'static> {
    let vcpus = Box::leak(Box::new([VcpuCell::new(0)]));
    let spis = Box::leak(Box::new([const { SpiCell::new() }; 32]));
    let vgic = Box::leak(Box::new(running(vcpus, spis)));
    (32..64).for_each(|intid| edge(vgic, intid));
    vgic
}

/// Its vCPU's part, on a CPU with four list registers.
fn interface(vgic: &'static Vgic<'static>) -> Interface<'static, Told> {
    Interface::new(vgic, 0, 4, Told::default()).unwrap()
}

fn done() -> Result<Exit, Error> {
    exit(Reason::Hvc, 0, [99, 0])
}

/// A hyp that says this, and a vCPU of its.
fn script(word: HypFlags, exits: &[Result<Exit, Error>]) -> (Script, Vcpu) {
    let page: &'static FlagShadowPage = Box::leak(Box::new(FlagShadowPage::new()));
    let hyp = Script {
        page,
        exits: RefCell::new(exits.iter().copied().collect()),
        word,
        entries: RefCell::default(),
        loaded: RefCell::default(),
    };
    let fp = VcpuFp::vcpu_run_map_fp(&hyp, page, 0x1000).unwrap();
    (hyp, Vcpu::new(VmHandle(1), VcpuIndex(0), fp, VcpuFeatures::FPSIMD))
}

struct Run {
    entries: Vec<Entered>,
    log: Vec<&'static str>,
    wait: Option<Wait>,
    host: Host,
    result: Result<u64, Error>,
    vcpu: Vcpu,
    gic: Interface<'static, Told>,
}

fn run(inject: &[u16], word: HypFlags, exits: &[Result<Exit, Error>]) -> Run {
    let (hyp, mut vcpu) = script(word, exits);
    let vgic = gic();
    for &intid in inject {
        vgic.pulse(Line::Spi(intid), &mut Told::default()).unwrap();
    }
    let mut gic = interface(vgic);
    let mut host = Host::default();
    let mut vmm = Vmm::default();
    let mut loaded = vcpu.load(&hyp, &mut host).unwrap();
    let result = loaded.run(&mut host, &mut gic, &mut vmm);
    loaded.put(&mut host).unwrap();
    assert!(!*hyp.loaded.borrow() && !host.masked && !host.timer_masked);
    assert!(hyp.exits.borrow().is_empty(), "exits left");
    let (log, wait) = (vmm.log, vmm.wait);
    Run { entries: hyp.entries.take(), log, wait, host, result, vcpu, gic }
}

const OURS: HypFlags = HypFlags::HOST_FP_PRESERVED;

#[test]
fn answers_finish_what_the_exit_left_open_once() {
    let read = Ok(Exit { info: ExitInfo::mmio(2, false, 0), data: [40, 0, 0, 0, 0, 0] });
    let write = Ok(Exit { info: ExitInfo::mmio(2, true, 0), data: [40, 5, 0, 0, 0, 0] });
    let exits = [exit(Reason::Hvc, 0, [3, 7]), read, write, exit(Reason::Irq, 0, [0; 2]), done()];
    let run = run(&[], OURS, &exits);
    assert_eq!(run.result, Ok(99));
    let answers: Vec<_> = run.entries.iter().map(|e| e.answer).collect();
    assert_eq!(answers, [[0; 4], [4, 7, 0, 0], [80, 0, 0, 0], [0; 4], [0; 4]]);
    assert!(run.entries.iter().all(|e| e.flags.is_empty()));
    assert_eq!(run.log, ["hvc", "mmio", "mmio", "irq", "hvc"]);
}

#[test]
fn aborts_and_retries_are_said_once() {
    let at =
        |address| Ok(Exit { info: ExitInfo::mmio(3, false, 0), data: [address, 0, 0, 0, 0, 0] });
    let run = run(&[], OURS, &[at(0), at(1), done()]);
    let flags: Vec<_> = run.entries.iter().map(|e| e.flags).collect();
    assert_eq!(flags, [RunFlags::empty(), RunFlags::ABORT, RunFlags::RETRY]);
}

fn offered(run: &Run) -> Vec<Vec<(u16, State)>> {
    run.entries.iter().map(|entry| entry.offered.clone()).collect()
}

use State::{Active, Done, Pending};

#[test]
fn all_that_fit_go_in_and_what_is_left_goes_in_again() {
    let exits = [
        left(&[Active, Pending], Reason::Irq, 0),
        left(&[Done, Active], Reason::Irq, 0),
        left(&[Done], Reason::Irq, 0),
        done(),
    ];
    let run = run(&[60, 33], OURS, &exits);
    let (a, b) = (33, 60);
    let expected = [
        vec![(a, Pending), (b, Pending)],
        vec![(a, Active), (b, Pending)],
        vec![(b, Active)],
        vec![],
    ];
    assert_eq!(offered(&run), expected);
    assert!(run.host.timer_masks.is_empty());
    assert!(!run.gic.has_interrupt(Signalled::ALL));
}

/// More than there are list registers for.
#[test]
fn underflow_is_asked_for_while_others_wait() {
    let exits = [left(&[Done; 4], Reason::Irq, 0), left(&[Done], Reason::Irq, 0), done()];
    let run = run(&[40, 41, 42, 43, 44], OURS, &exits);
    let flags: Vec<_> = run.entries.iter().map(|entry| entry.flags).collect();
    assert_eq!(flags, [RunFlags::UNDERFLOW, RunFlags::empty(), RunFlags::empty()]);
    assert_eq!(offered(&run)[1], [(44, Pending)]);
}

#[test]
fn the_timer_goes_in_once_and_its_line_is_masked_while_it_is_up() {
    let timer = ExitInfo::VTIMER;
    let exits = [
        exit(Reason::Irq, timer, [0; 2]),
        left(&[Active], Reason::Hvc, timer),
        left(&[Active], Reason::Hvc, 0),
        left(&[Done], Reason::Hvc, 0),
        done(),
    ];
    let run = run(&[], OURS, &exits);
    let (waits, runs) = (vec![(27, Pending)], vec![(27, Active)]);
    assert_eq!(offered(&run), [vec![], waits, runs.clone(), runs, vec![]]);
    // Around the entries 1 and 2, and no others.
    let masks: Vec<_> = run.host.timer_masks.iter().map(|m| m.0).collect();
    assert_eq!(masks, [true, false, true, false]);
    assert_eq!(run.log.iter().filter(|&&event| event == "timer").count(), 1);
}

#[test]
fn a_timer_that_fires_while_another_interrupt_is_handled_stops_the_guest_once() {
    let timer = ExitInfo::VTIMER;
    let exits = [
        left(&[Active], Reason::Irq, timer),
        left(&[Active, Pending], Reason::Hvc, timer),
        left(&[Done, Active], Reason::Irq, timer),
        left(&[Active], Reason::Hvc, 0),
        left(&[Done], Reason::Hvc, 0),
        done(),
    ];
    let run = run(&[33], OURS, &exits);
    let expected = [
        vec![(33, Pending)],
        vec![(33, Active), (27, Pending)],
        vec![(33, Active), (27, Pending)],
        vec![(27, Active)],
        vec![(27, Active)],
        vec![],
    ];
    assert_eq!(offered(&run), expected);
    // With 33 in flight, too, as long as the line is up; and no longer: around the entries 1, 2 and 3.
    let masks: Vec<_> = run.host.timer_masks.iter().map(|m| m.0).collect();
    assert_eq!(masks, [true, false, true, false, true, false]);
    assert_eq!(run.log, ["timer", "irq", "hvc", "irq", "hvc", "hvc", "hvc"]);
}

#[test]
fn a_level_that_is_still_up_after_completion_goes_in_again() {
    let timer = ExitInfo::VTIMER;
    let exits = [
        exit(Reason::Irq, timer, [0; 2]),
        left(&[Done], Reason::Irq, timer),
        left(&[Done], Reason::Hvc, 0),
        done(),
    ];
    let run = run(&[], OURS, &exits);
    let waits = vec![(27, Pending)];
    assert_eq!(offered(&run), [vec![], waits.clone(), waits, vec![]]);
    assert_eq!(run.log, ["timer", "irq", "irq", "hvc", "hvc"]);
}

#[test]
fn an_sgi_goes_where_its_register_says() {
    let sgi = |value, which| exit(Reason::Sgi, 0, [value, which]);
    // 7 to Aff0 0, by each register: of group 1, which ICC_SGI1R_EL1 alone reaches; then by none.
    let exits = [
        sgi(7 << 24 | 1, 1),
        sgi(7 << 24 | 1, 2),
        sgi(7 << 24 | 1, 3),
        sgi(7 << 24 | 1, 0),
        left(&[Done], Reason::Irq, 0),
        done(),
    ];
    let run = run(&[], OURS, &exits);
    assert_eq!(offered(&run)[..4], [vec![], vec![], vec![], vec![]]);
    assert_eq!(offered(&run)[4], [(7, Pending)]);
}

#[test]
fn a_vcpu_that_goes_off_takes_its_timer_with_it() {
    let off = Ok(Exit { info: ExitInfo::new(Reason::CpuOff, ExitInfo::VTIMER), data: [0; 6] });
    let run = run(&[], OURS, &[off]);
    assert_eq!(run.result, Ok(0x0ff));
    assert!(!run.gic.has_interrupt(Signalled::ALL), "its line is down");
}

#[test]
fn a_refused_run_loses_no_interrupt_and_no_answer() {
    let exits = [exit(Reason::Hvc, 0, [3, 7]), Err(Error::Busy)];
    let run = run(&[], OURS, &exits);
    assert_eq!(run.result, Err(Error::Busy));
    assert_eq!(run.vcpu.answer, [4, 7, 0, 0]);
    let exits = [Err(Error::Busy)];
    let refused = self::run(&[40], OURS, &exits);
    assert_eq!(offered(&refused), [[(40, Pending)]]);
    assert!(refused.gic.has_interrupt(Signalled::ALL), "it waits as before");
}

#[test]
fn wfi_with_an_interrupt_waiting_does_not_wait() {
    let all = [Signalled::ALL.bits(), 0];
    let exits = [exit(Reason::Wfi, 0, all), exit(Reason::Wfi, ExitInfo::VTIMER, all), done()];
    let run = run(&[], OURS, &exits);
    assert_eq!(run.log, ["wfi", "timer", "hvc"]);
}

#[test]
fn wfi_waits_for_what_the_guests_interface_signals() {
    const GROUP1: u64 = Signalled::GROUP1.bits();
    let mask = |priority: u64| priority << 24;
    // One of group 1 waits with priority 0x80.
    for (signalled, waits) in [
        (mask(0xf8) | GROUP1, false),
        (mask(0x88) | GROUP1, false),
        (mask(0x80) | GROUP1, true),
        (GROUP1, true),
        (mask(0xf8) | Signalled::GROUP0.bits(), true),
        (0, true),
    ] {
        let pending = States::default().with(0, State::Pending).register();
        let info = ExitInfo::new(Reason::Wfi, 0);
        let exits = [Ok(Exit { info, data: [signalled, 0, 0, 0, 0, pending] }), done()];
        let run = run(&[40], OURS, &exits);
        assert_eq!(run.log.contains(&"wfi"), waits, "{signalled:#x}");
    }
}

#[test]
fn who_waits_learns_for_what() {
    for (x3, deadline) in [(NO_DEADLINE, None), (0, Some(0)), (5, Some(5))] {
        let run = run(&[], OURS, &[exit(Reason::Wfi, 0, [Signalled::GROUP1.bits(), x3]), done()]);
        assert_eq!(run.wait, Some(Wait { signalled: Signalled::GROUP1, deadline }));
    }
}

#[test]
fn a_task_whose_registers_are_gone_learns_it() {
    let run = run(&[], HypFlags::GUEST_FP_LOADED, &[exit(Reason::Irq, 0, [0; 2]), done()]);
    assert!(run.host.foreign);
    assert_eq!(run.entries[0].hint, HostFlags::empty());
    assert_eq!(run.entries[1].hint, HostFlags::FOREIGN_FPSTATE);
}

#[test]
fn broken_and_unknown_reasons_stop() {
    assert_eq!(run(&[], OURS, &[exit(Reason::Broken, 0, [0x42, 0])]).result, Ok(0x42));
    let unknown = Ok(Exit { info: ExitInfo::from_register(0xff), data: [7, 0, 0, 0, 0, 0] });
    assert_eq!(run(&[], OURS, &[unknown]).result, Ok(7));
    assert_eq!(run(&[], OURS, &[exit(Reason::Fault, 0, [0x1000, 0])]).result, Ok(0x1000));
}

#[test]
fn what_is_not_supplied_is_aborted() {
    let at = |address| exit(Reason::Fault, 0, [address, 0]);
    let exits = [at(0), at(1), exit(Reason::Tables, 0, [0; 2]), done()];
    let run = run(&[], OURS, &exits);
    let flags: Vec<_> = run.entries.iter().map(|e| e.flags).collect();
    let none = RunFlags::empty();
    assert_eq!(flags, [none, RunFlags::ABORT, none, none]);
    assert_eq!(run.log, ["fault", "fault", "tables", "hvc"]);
}

#[test]
fn the_host_says_whether_a_page_is_taken_from_it() {
    let of = |address| exit(Reason::Unshare, 0, [address, 0x4000_0000]);
    let run = run(&[], OURS, &[of(0), of(1), done()]);
    let flags: Vec<_> = run.entries.iter().map(|e| e.flags).collect();
    assert_eq!(flags, [RunFlags::empty(), RunFlags::ABORT, RunFlags::empty()]);
    assert_eq!(run.log, ["unshare", "unshare", "hvc"]);
    // And from outside.
    let left = self::run(&[], OURS, &[of(7)]);
    assert_eq!((left.result, left.log), (Ok(7), vec!["unshare"]));
    assert_eq!(left.vcpu.open, Open::Supply);
}

/// A guest's call by RSI: its registers are where hyp has put them, and the answer is.
#[test]
fn a_host_call_is_answered_in_its_registers() {
    let of = |immediate| exit(Reason::HostCall, 0, [immediate, 0]);
    let run = run(&[], OURS, &[of(7), of(0), of(2), done()]);
    let flags: Vec<_> = run.entries.iter().map(|e| e.flags).collect();
    let none = RunFlags::empty();
    assert_eq!(flags, [none, none, RunFlags::ABORT, none]);
    assert_eq!(run.log, ["host call", "host call", "host call", "hvc"]);
    assert_eq!(run.vcpu.fp.page().registers(), [9; 31]);
    // Who knows none won't have it.
    let nothing = os::Once.host_call(7, &mut [0; 31]);
    assert_eq!(nothing, ControlFlow::Continue(Supplied::Abort));
}

#[test]
fn a_host_that_has_nothing_to_take_away_goes_on() {
    assert_eq!(os::Once.unshare(0x8000_0000, 0x4000_0000), ControlFlow::Continue(Supplied::Retry));
}

#[test]
fn the_guests_power_is_told() {
    let on = exit(Reason::CpuOn, 0, [3, 0]);
    let first = run(&[], OURS, &[on, exit(Reason::CpuOff, 0, [0; 2])]);
    assert_eq!((first.result, first.log), (Ok(0x0ff), vec!["on"]));
    let data = [SystemEvent::Reset2 as u64, 0x8000, 5, 0, 0, 0];
    let reset = Ok(Exit { info: ExitInfo::new(Reason::System, 0), data });
    assert_eq!(run(&[], OURS, &[reset]).result, Ok(2 << 32 | 0x8000 << 16 | 5));
    assert_eq!(run(&[], OURS, &[Err(Error::PoweredOff)]).result, Err(Error::PoweredOff));
}

#[test]
fn a_reset_forgets_what_was_open() {
    let exits = [exit(Reason::Irq, ExitInfo::VTIMER, [0; 2]), Err(Error::Busy)];
    let Run { mut vcpu, mut gic, .. } = run(&[], OURS, &exits);
    assert!(gic.has_interrupt(Signalled::ALL));
    let hyp = Refusing;
    let start = Start::At { entry: 0x8000_0000, argument: 1 };
    assert_eq!(vcpu.reset(&hyp, &mut gic, start), Err(Error::Protected));
    assert!(gic.has_interrupt(Signalled::ALL), "a refused reset changes nothing");
    assert_eq!(vcpu.reset(&hyp, &mut gic, Start::Off), Ok(()));
    assert!(!gic.has_interrupt(Signalled::ALL) && vcpu.flags.is_empty());
}

/// Takes vCPUs that are off for normal ones.
struct Refusing;

impl Hypervisor for Refusing {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        match *call {
            Call::VcpuReset { vm: VmHandle(1), vcpu: VcpuIndex(0), start: Start::Off } => {
                Ok(Results::default())
            }
            _ => Err(Error::Protected),
        }
    }

    fn vcpu_run_with(
        &self,
        _: RunFlags,
        _: [u64; 4],
        _: &[Entry],
    ) -> Result<(Exit, States), Error> {
        unreachable!()
    }
}

#[test]
fn a_fault_can_be_answered_from_outside() {
    let exits = [exit(Reason::Fault, 0, [9, 0]), exit(Reason::Fault, 0, [9, 0]), done()];
    let (hyp, mut vcpu) = script(OURS, &exits);
    let (mut host, mut vmm) = (Host::default(), Vmm::default());
    let mut gic = interface(self::gic());
    let mut loaded = vcpu.load(&hyp, &mut host).unwrap();
    loaded.answer_supply(Supplied::Abort);
    assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(9));
    assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(9));
    loaded.answer_supply(Supplied::Abort);
    assert_eq!(loaded.run(&mut host, &mut gic, &mut vmm), Ok(99));
    loaded.put(&mut host).unwrap();
    let flags: Vec<_> = hyp.entries.take().iter().map(|entry| entry.flags).collect();
    assert_eq!(flags, [RunFlags::empty(), RunFlags::empty(), RunFlags::ABORT]);
}
