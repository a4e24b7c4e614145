//! Whatever vCPUs are run, refused and put around them, tasks and kernel-mode FP find their registers.

use super::os::{CPUS, Here, Machine, Outcome, TASKS};
use super::*;
use proptest::prelude::*;
use umbra_shared::call::Policy;

/// What the host does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Switch(usize, usize),
    User(usize),
    Softirq(usize),
    Kernel(usize),
    Suspend(usize),
    /// On the CPU that has a vCPU loaded.
    Run(Outcome),
}

/// What it does from a load to the end of it.
#[derive(Clone, Debug)]
struct Session {
    cpu: usize,
    vcpu: usize,
    steps: Vec<Step>,
    /// It ends on an error path, without a put.
    dropped: bool,
}

fn host_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..CPUS, 0..TASKS).prop_map(|(cpu, task)| Step::Switch(cpu, task)),
        3 => (0..CPUS).prop_map(Step::User),
        1 => (0..CPUS).prop_map(Step::Softirq),
        1 => (0..CPUS).prop_map(Step::Kernel),
        1 => (0..CPUS).prop_map(Step::Suspend),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        1 => Just(Outcome::Refused),
        3 => any::<bool>().prop_map(|fp| Outcome::Exit { fp }),
        1 => any::<bool>().prop_map(|fp| Outcome::Breaks { fp }),
    ];
    prop_oneof![1 => host_step(), 1 => outcome.prop_map(Step::Run)]
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Lazy), Just(Policy::Eager), Just(Policy::Scrub)]
}

fn session() -> impl Strategy<Value = (Vec<Step>, Session)> {
    let steps = prop::collection::vec(step(), 0..8);
    let session = (0..CPUS, 0..2usize, steps, any::<bool>())
        .prop_map(|(cpu, vcpu, steps, dropped)| Session { cpu, vcpu, steps, dropped });
    (prop::collection::vec(host_step(), 0..8), session)
}

/// A machine and its vCPUs.
struct World {
    machine: RefCell<Machine>,
    vcpus: Vec<Vcpu>,
}

impl World {
    fn new(policies: &[Policy]) -> Self {
        let machine = RefCell::new(Machine::new());
        let vcpus = policies.iter().map(|&p| Here { machine: &machine, cpu: 0 }.vcpu(p)).collect();
        Self { machine, vcpus }
    }

    fn host(&self, step: Step) {
        let mut machine = self.machine.borrow_mut();
        match step {
            Step::Switch(cpu, task) => machine.switch(cpu, task),
            Step::User(cpu) => machine.user(cpu),
            Step::Softirq(cpu) => machine.softirq(cpu),
            Step::Kernel(cpu) => machine.kernel(cpu),
            Step::Suspend(cpu) => machine.suspend(cpu),
            Step::Run(_) => panic!("no vCPU is loaded"),
        }
    }

    fn session(&mut self, session: &Session) {
        let mut vcpus = core::mem::take(&mut self.vcpus);
        let mut here = Here { machine: &self.machine, cpu: session.cpu };
        let hyp = here;
        let mut loaded = vcpus[session.vcpu].load(&hyp, &mut here).expect("nothing is loaded");
        for &step in &session.steps {
            match step {
                Step::Run(outcome) => here.run(&mut loaded, outcome),
                step => self.host(step),
            }
        }
        if session.dropped {
            drop(loaded);
        } else {
            // Refused if the CPU was suspended meanwhile.
            let _ = loaded.put(&mut here);
        }
        self.vcpus = vcpus;
    }

    /// A vCPU that is broken makes room for another.
    fn replace_broken(&mut self) {
        for n in 0..self.vcpus.len() {
            let guest = self.machine.borrow().guests[self.vcpus[n].index().0 as usize];
            if guest.broken {
                self.vcpus[n] = Here { machine: &self.machine, cpu: 0 }.vcpu(guest.policy);
            }
        }
    }

    /// Every task goes on once more on each CPU.
    fn end(&self) {
        for task in (0..TASKS).chain(0..TASKS) {
            for cpu in 0..CPUS {
                self.host(Step::Switch(cpu, task));
                self.host(Step::User(cpu));
                self.host(Step::Kernel(cpu));
                self.host(Step::User(cpu));
            }
        }
    }
}

fn play(policies: &[Policy], sessions: &[(Vec<Step>, Session)], replace: bool) {
    let mut world = World::new(policies);
    for (before, session) in sessions {
        before.iter().for_each(|&step| world.host(step));
        world.session(session);
        if replace {
            world.replace_broken();
        }
    }
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn r33_r34_everybody_finds_what_they_left(
        policies in prop::array::uniform2(policy()),
        sessions in prop::collection::vec(session(), 0..6),
        replace: bool,
    ) {
        play(&policies, &sessions, replace);
    }
}

const POLICIES: [Policy; 3] = [Policy::Lazy, Policy::Eager, Policy::Scrub];

/// Steps of the host's, a session on CPU 0, and what the host does then.
fn story(policy: Policy, before: &[Step], steps: &[Step], after: &[Step]) {
    let mut world = World::new(&[policy]);
    before.iter().for_each(|&step| world.host(step));
    world.session(&Session { cpu: 0, vcpu: 0, steps: steps.to_vec(), dropped: false });
    after.iter().for_each(|&step| world.host(step));
    world.end();
}

const FP: Step = Step::Run(Outcome::Exit { fp: true });
const NO_FP: Step = Step::Run(Outcome::Exit { fp: false });

/// Task 2 leaves its registers on the CPU and is preempted; task 3, which has never used FP, is the VMM.
#[test]
fn r33_a_third_task_finds_what_it_left_on_the_cpu() {
    let before = [Step::Switch(0, 2), Step::User(0), Step::Switch(0, 3)];
    let after = [Step::Switch(0, 2), Step::User(0)];
    for policy in POLICIES {
        for run in [FP, NO_FP] {
            story(policy, &before, &[run], &after);
            story(policy, &before, &[run, run], &after);
        }
    }
}

/// Task 2 is preempted amid kernel-mode FP, and does not load it again if nobody has used FP since.
#[test]
fn r33_kernel_mode_fp_that_elides_its_reload() {
    let before = [Step::Switch(0, 2), Step::User(0), Step::Kernel(0), Step::Switch(0, 3)];
    let after = [Step::Switch(0, 2), Step::Kernel(0), Step::User(0)];
    for policy in POLICIES {
        for run in [FP, NO_FP] {
            story(policy, &before, &[run], &after);
        }
    }
}

/// The word says that the registers are gone, the VMM task has loaded them again, and no run comes
/// between.
#[test]
fn r34_a_refused_run_takes_nothing_away() {
    let refused = Step::Run(Outcome::Refused);
    for policy in POLICIES {
        // A page of which nothing has been said.
        story(policy, &[Step::User(0)], &[refused], &[Step::User(0)]);
        let mut world = World::new(&[policy]);
        for steps in [[FP].as_slice(), &[refused], &[refused, NO_FP, refused]] {
            world.session(&Session { cpu: 0, vcpu: 0, steps: steps.to_vec(), dropped: false });
            world.host(Step::User(0));
        }
        world.end();
        // A CPU that was suspended has put the vCPU: its run is refused, and so is its put.
        let steps = [FP, Step::Suspend(0), Step::User(0), NO_FP, Step::User(0)];
        story(policy, &[], &steps, &[Step::User(0)]);
    }
}

/// A vCPU that can't go on answers without having run: the word is that of its load.
#[test]
fn r34_a_broken_vcpu_takes_nothing_away() {
    for policy in POLICIES {
        let mut world = World::new(&[policy]);
        let breaks = Step::Run(Outcome::Breaks { fp: true });
        for _ in 0..2 {
            world.session(&Session { cpu: 0, vcpu: 0, steps: [breaks].to_vec(), dropped: false });
            world.host(Step::User(0));
        }
        world.end();
    }
}
