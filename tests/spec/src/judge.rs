//! Records of a machine against the specification.

use std::collections::BTreeMap;

use thiserror::Error as ThisError;
use umbra_shared::call::{BLOCK_PAGES, Call, Function, Policy};
use umbra_shared::error::{Error, SUCCESS, check};
use umbra_shared::exit::{ExitInfo, Reason, RunFlags};
use umbra_shared::flags::HostFlags;
use umbra_shared::guest::{GuestFunction, function_id};
use umbra_shared::record::{Change, DeviceNote, FpState, Kind, PageState, Record, TOUCHED};
use umbra_shared::rsi::RsiFunction;
use umbra_shared::vl::VqSet;

use crate::calls::{Choice, Outcome};
use crate::fp::{Fp, Held};
use crate::guest::GuestCall;
use crate::memory::{Changes, Memory, Owner};
use crate::offer::Offer;
use crate::vm::{self, Power};
use crate::{Platform, Spec};

/// Pages that hyp wipes and cleans before it looks whether an interrupt waits.
const STRETCH: u64 = 64;

/// The first thing that is not as specified.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("transition {number} on CPU {cpu}, {what}: {difference}")]
pub struct Difference {
    /// Number of the record.
    pub number: u64,
    /// On which CPU.
    pub cpu: usize,
    /// What it was.
    pub what: String,
    /// What is wrong with it.
    pub difference: String,
}

/// What was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Transitions.
    pub transitions: u64,
    /// Calls of the host's other than VCPU_RUN, and how many of them did what they were asked.
    pub calls: u64,
    /// See there.
    pub accepted: u64,
    /// How often each call met each answer: name, error or "ok".
    pub answers: BTreeMap<(String, String), u64>,
}

/// Judges the records of a machine. Those of the boot come first, whatever their number.
///
/// # Errors
///
/// The first [`Difference`].
pub fn judge(mut records: Vec<Record>) -> Result<Report, Difference> {
    records.sort_by_key(|record| record.number);
    let mut memory = Memory::default();
    let mut platform = None;
    for record in &records {
        match kind(record) {
            Some(Kind::Pages) => {
                let [count, pa, state, ..] = record.args;
                if let Some(change) = Change::decode(state) {
                    let owner = Owner::of(change.state, change.vm);
                    if change.devices != owner.host_has_access() {
                        return Err(Difference {
                            number: 0,
                            cpu: 0,
                            what: "boot".to_owned(),
                            difference: format!(
                                "devices do not reach what the host does: {change:?}"
                            ),
                        });
                    }
                    memory.add(pa / 4096, count, owner);
                }
            }
            Some(Kind::Machine) => {
                let [cpus, vqs, bits, root, svqs, aarch32, protection] = record.args;
                let policy = protection & 0xff;
                platform = Some(Platform {
                    cpus: cpus as usize,
                    guest_vqs: VqSet::from_bits(vqs as u16),
                    ipa_bits: bits as u32,
                    alias_bit: 1 << (protection >> 16 & 0x3f),
                    root_level: root as u32,
                    block_pages: BLOCK_PAGES,
                    stretch: STRETCH,
                    guest_svqs: VqSet::from_bits(svqs as u16),
                    aarch32: aarch32 != 0,
                    protects: protection >> 8 & 1 != 0,
                    protected_policy: if policy == Policy::Lazy as u64 {
                        Policy::Lazy
                    } else {
                        Policy::Scrub
                    },
                });
            }
            _ => {}
        }
    }
    let Some(platform) = platform else {
        return Err(Difference {
            number: 0,
            cpu: 0,
            what: "boot".to_owned(),
            difference: "the log does not say what machine it is".to_owned(),
        });
    };
    let mut spec = Spec::new(platform, memory);
    let mut report = Report::default();
    for record in &records {
        spec.step(record, &mut report)?;
    }
    Ok(report)
}

impl Report {
    /// Adds another machine's.
    pub fn add(&mut self, other: &Self) {
        self.transitions += other.transitions;
        self.calls += other.calls;
        self.accepted += other.accepted;
        for (answer, count) in &other.answers {
            *self.answers.entry(answer.clone()).or_default() += count;
        }
    }
}

fn kind(record: &Record) -> Option<Kind> {
    Kind::from_number(record.what as u8)
}

fn describe(record: &Record) -> String {
    let args: Vec<_> = record.args.iter().map(|arg| format!("{arg:#x}")).collect();
    let args = args.join(", ");
    match kind(record) {
        Some(Kind::Call) => match Function::from_id(record.function) {
            Some(function) => format!("{function:?}({args})"),
            None => format!("call {:#x}", record.function),
        },
        Some(Kind::GuestCall) => format!("guest's {}({args})", guests(record.function as u32)),
        Some(kind) => format!("{kind:?}({args})"),
        None => format!("record of kind {}", record.what as u8),
    }
}

/// What a guest's function is called.
fn guests(function: u32) -> String {
    GuestFunction::from_id(function)
        .or_else(|| GuestFunction::from_id32(function))
        .map(|function| format!("{function:?}"))
        .or_else(|| RsiFunction::from_id(function).map(|function| format!("{function:?}")))
        .unwrap_or_else(|| format!("{function:#x}"))
}

/// What the test kernel says by a call of VERSION.
fn device_note(record: &Record) -> Option<DeviceNote> {
    let is_version = kind(record) == Some(Kind::Call) && Function::Version.is_in(record.function);
    let [x1, x2, x3, ..] = record.args;
    DeviceNote::decode([x1, x2, x3]).filter(|_| is_version)
}

fn answer(result: u64) -> String {
    match check(result) {
        Ok(()) => "ok".to_owned(),
        Err(error) if error.code() as u64 == result => format!("{error:?}"),
        Err(_) => format!("{result:#x}"),
    }
}

impl Spec {
    /// Takes the next transition, and compares.
    ///
    /// # Errors
    ///
    /// What is not as specified.
    pub fn step(&mut self, record: &Record, report: &mut Report) -> Result<(), Difference> {
        let cpu = (record.what >> 8) as usize;
        let differ = |difference: String| Difference {
            number: record.number,
            cpu,
            what: describe(record),
            difference,
        };
        if cpu >= self.cpus.len() {
            return Err(differ("there is no such CPU".to_owned()));
        }
        report.transitions += 1;
        self.time_passes();
        if let Some(note) = device_note(record) {
            if matches!(note, DeviceNote::Reached | DeviceNote::Refused) {
                let told = format!("{note:?}").to_lowercase();
                *report.answers.entry(("device".to_owned(), told)).or_default() += 1;
            }
            self.device_note(cpu, note).map_err(differ)?;
        }
        let outcome = match kind(record) {
            None => return Err(differ("unknown kind".to_owned())),
            Some(Kind::Machine | Kind::Pages) => return Ok(()),
            Some(Kind::Call) => {
                report.calls += 1;
                report.accepted += u64::from(record.result == SUCCESS as u64);
                let name = Function::from_id(record.function)
                    .map_or_else(|| "unknown".to_owned(), |function| format!("{function:?}"));
                *report.answers.entry((name, answer(record.result))).or_default() += 1;
                self.judged_call(cpu, record)
            }
            Some(Kind::Run) => {
                *report
                    .answers
                    .entry(("VcpuRun".to_owned(), answer(record.result)))
                    .or_default() += 1;
                self.judged_run(cpu, record).map_err(differ)?
            }
            Some(Kind::GuestCall) => {
                let answer = match record.args[4] {
                    0 => format!("{}", record.result as i64),
                    _ => "again".to_owned(),
                };
                let key = (format!("guest {}", guests(record.function as u32)), answer);
                *report.answers.entry(key).or_default() += 1;
                return self.judged_guest_call(cpu, record).map_err(differ);
            }
            Some(Kind::HostFp) => {
                let fp = self.cpus[cpu].fp;
                let (sme, held) = (record.args[0] != 0, self.cpus[cpu].held);
                if fp.is_some_and(|fp| !fp.host_may_trap(sme)) {
                    return Err(differ("the host is live and traps all the same".to_owned()));
                }
                self.cpus[cpu].fp = fp.map(|fp| fp.host_trap(sme, held));
                Outcome::ok()
            }
            Some(Kind::HostFault) => {
                self.judged_fault(record).map_err(differ)?;
                return Ok(());
            }
            Some(Kind::Gic) => {
                self.judged_pinning(record).map_err(differ)?;
                return Ok(());
            }
            Some(Kind::Offer) => {
                self.cpus[cpu].offer = Some(Offer::read(record));
                return Ok(());
            }
            Some(Kind::ImplicitPut) => {
                self.put(cpu);
                Outcome::ok()
            }
            Some(Kind::Reset) => {
                let [vqs, vq, svqs, svq, ..] = record.args;
                self.put(cpu);
                let this = &mut self.cpus[cpu];
                this.vqs = VqSet::from_bits(vqs as u16);
                this.svqs = VqSet::from_bits(svqs as u16);
                this.held = Held { vq: vq as u8, svq: svq as u8 };
                this.fp = Some(Fp::RESET);
                Outcome::ok()
            }
        };
        self.compare(cpu, record, &outcome).map_err(differ)
    }

    fn judged_call(&mut self, cpu: usize, record: &Record) -> Outcome {
        match Call::decode(record.function, &record.args) {
            Ok(call) => {
                let choice = Choice {
                    no_slot: record.result == Error::Limit.code() as u64,
                    x1: record.results[0],
                    register: [Error::BadRegister, Error::InvalidArgument]
                        .into_iter()
                        .find(|error| error.code() as u64 == record.result),
                    x2: record.results[1],
                };
                self.call(cpu, &call, choice)
            }
            Err(error) => Outcome::refused(error),
        }
    }

    fn compare(&self, cpu: usize, record: &Record, outcome: &Outcome) -> Result<(), String> {
        let expected = match outcome.result {
            Ok(()) => SUCCESS as u64,
            Err(error) => error.code() as u64,
        };
        if record.result != expected {
            let (is, should) = (answer(record.result), answer(expected));
            return Err(format!("answers {is}, should answer {should}"));
        }
        let x1 = record.results[0];
        if let Some(expected) = outcome.x1.filter(|&expected| expected != x1) {
            return Err(format!("x1 is {x1:#x}, should be {expected:#x}"));
        }
        let x2 = record.results[1];
        if let Some(expected) = outcome.x2.filter(|&expected| expected != x2) {
            return Err(format!("x2 is {x2:#x}, should be {expected:#x}"));
        }
        compare_changes(record, &outcome.changes)?;
        let loaded = self.cpus[cpu]
            .loaded
            .map_or(0, |(vm, index)| (u64::from(vm) + 1) | ((index as u64) << 8));
        if record.loaded != loaded {
            return Err(format!("loaded is {:#x}, should be {loaded:#x}", record.loaded));
        }
        let fp = FpState::decode(record.fp);
        if let Some(expected) = self.cpus[cpu].fp.map(Fp::record).filter(|&e| e != fp) {
            return Err(format!("FP state is {fp:?}, should be {expected:?}"));
        }
        Ok(())
    }

    fn judged_guest_call(&mut self, cpu: usize, record: &Record) -> Result<(), String> {
        let [x1, x2, x3, exit, again, made_again, _] = record.args;
        let again_now = made_again != 0;
        let call = GuestCall {
            function: record.function as u32,
            args: [x1, x2, x3],
            again: again_now,
            x1: record.results[0],
        };
        let Some((slot, index)) = self.cpus[cpu].loaded else {
            return Err("no guest is loaded".to_owned());
        };
        let vcpu = self.vms[usize::from(slot)].vcpus.entry(index).or_default();
        match (core::mem::take(&mut vcpu.open), again_now) {
            (false, true) => return Err("no call was to be made again".to_owned()),
            (true, false) => vcpu.must_have_failed = true,
            _ => {}
        }
        vcpu.put_off = again != 0;
        let expected = self.guest_call(cpu, call);
        if (again != 0) != expected.again {
            return Err(format!("is made again: {}, should: {}", again != 0, expected.again));
        }
        // r0 has 32 bits, and what is in it may be a number without a sign.
        let narrow = self.cpus[cpu].loaded.is_some_and(|(slot, index)| {
            self.vms[usize::from(slot)].vcpus[&index].features.aarch32
        });
        let width = |x: i64| if narrow { i64::from(x as i32) } else { x };
        let x0 = record.result as i64;
        if let Some(should) = expected.x0.filter(|&should| width(should) != width(x0)) {
            return Err(format!("answers {x0:#x}, should answer {should:#x}"));
        }
        if let Some(words) = expected.words.filter(|&words| words != record.results) {
            return Err(format!("answers {:x?}, should answer {words:x?}", record.results));
        }
        let told = exit.checked_sub(1).and_then(|info| ExitInfo::from_register(info).reason());
        if told != expected.exit {
            return Err(format!("tells the host {told:?}, should tell {:?}", expected.exit));
        }
        compare_changes(record, &expected.changes)
    }

    fn judged_run(&mut self, cpu: usize, record: &Record) -> Result<Outcome, String> {
        let [flags, hint, opened, word, states, ..] = record.args;
        let refused = |error| Ok(Outcome::refused(error));
        let Some((slot, index)) = self.cpus[cpu].loaded else { return refused(Error::NotLoaded) };
        let vm::Vm { policy, ended, protected, .. } = self.vms[usize::from(slot)];
        let alias_bit = self.platform.alias_bit;
        let enrolled = self.vms[usize::from(slot)].enrolled.clone();
        let Some(vcpu) = self.vms[usize::from(slot)].vcpus.get_mut(&index) else {
            return Err("a vCPU runs that does not exist".to_owned());
        };
        let Some(flags) = RunFlags::from_bits(flags) else {
            return refused(Error::InvalidArgument);
        };
        let info = ExitInfo::from_register(record.results[0]);
        if vcpu.broken {
            return match info.reason() {
                Some(Reason::Broken) => Ok(Outcome::ok()),
                _ => Err("a vCPU runs that can't go on".to_owned()),
            };
        }
        // One that is off has turned itself off in the run before, whose end is still to be judged.
        let leaves = core::mem::take(&mut vcpu.leaves);
        let stopped = record.result == Error::PoweredOff.code() as u64;
        let may_end = vcpu.last_runs != 0 && !stopped;
        vcpu.last_runs = if stopped { 0 } else { vcpu.last_runs.saturating_sub(1) };
        let over = vcpu.power == Power::Off && !leaves || ended && !may_end;
        if over {
            return refused(Error::PoweredOff);
        }
        let offer = self.cpus[cpu].offer.take();
        let offers = RunFlags::ENTRIES.union(RunFlags::UNDERFLOW);
        if flags.contains(RunFlags::FINISH_ONLY) {
            if flags.intersects(offers) {
                return refused(Error::InvalidArgument);
            }
            // It runs nothing: a call that is to be made again is made later, unless it has failed now.
            if vcpu.fails && flags.contains(RunFlags::ABORT) {
                (vcpu.open, vcpu.fails) = (false, false);
            }
            return match info.reason() {
                Some(Reason::Irq) => Ok(Outcome::ok()),
                other => Err(format!("a run that only finishes ends with {other:?}")),
            };
        }
        if flags.intersects(offers) {
            let Some(offer) = offer else {
                return Err("nothing says what it was offered".to_owned());
            };
            if !offer.is_good(flags) {
                return refused(Error::InvalidArgument);
            }
            offer.can_become(flags, states)?;
        }
        let aarch32 = vcpu.features.aarch32;
        let failed = core::mem::take(&mut vcpu.fails) && flags.contains(RunFlags::ABORT);
        if core::mem::take(&mut vcpu.must_have_failed) && !failed {
            return Err("a call that was to be made again has been forgotten".to_owned());
        }
        vcpu.open &= !failed;
        let reason = info.reason().filter(|_| record.result == SUCCESS as u64);
        if core::mem::take(&mut vcpu.put_off) {
            (vcpu.open, vcpu.fails) = (true, true);
        } else if reason.is_some() {
            // It has left without: what its host makes of what it was told nobody knows.
            vcpu.open = false;
        }
        let x2 = record.results[1];
        match info.reason().filter(|_| record.result == SUCCESS as u64) {
            Some(Reason::Hvc) if is_hyps(x2, protected, aarch32) => {
                return Err(format!("the host is asked for {x2:#x}, which is hyp's to answer"));
            }
            Some(Reason::Mmio)
                if protected && !enrolled.contains(&(x2 / 4096 * 4096)) && x2 / alias_bit != 1 =>
            {
                return Err(format!("data of an access to {x2:#x}, which is no device"));
            }
            Some(Reason::Fault) if protected && !x2.is_multiple_of(4096) => {
                return Err(format!("a fault tells that it was at {x2:#x}"));
            }
            Some(Reason::CpuOff) if !leaves => {
                return Err("the host is told that a vCPU is off which is not".to_owned());
            }
            _ => {}
        }
        let Some(fp) = self.cpus[cpu].fp else { return Ok(Outcome::ok()) };
        vcpu.broken = info.reason() == Some(Reason::Broken);
        let hint = HostFlags::from_bits_truncate(hint);
        let possible = fp.run(hint, opened, vcpu.features, policy, self.cpus[cpu].held);
        let found = FpState::decode(record.fp);
        let Some(&fp) = possible.iter().find(|fp| fp.record() == found) else {
            return Err(format!("FP state is {found:?}, should be one of {possible:?}"));
        };
        self.cpus[cpu].fp = Some(fp);
        let expected = fp.word().bits();
        if record.result == SUCCESS as u64 && word != expected {
            return Err(format!("hyp's word is {word:#x}, should be {expected:#x}"));
        }
        Ok(Outcome::ok())
    }

    /// All that the GIC's registers do to pages: those of a table of the host's are nobody's to give away any more.
    fn judged_pinning(&mut self, record: &Record) -> Result<(), String> {
        let reserved = Owner::of(PageState::Reserved, 0);
        let mut pinned = Changes::new();
        let words = &record.touched[..TOUCHED.min(record.changes as usize)];
        for change in words.iter().filter_map(|&word| Change::decode(word)) {
            for page in change.page..change.page + u64::from(change.count) {
                if self.memory.get(page) != Some(Owner::HOST) {
                    return Err(format!("page {page:#x} is pinned and not the host's"));
                }
                pinned.insert(page, reserved);
            }
        }
        compare_changes(record, &pinned)?;
        self.memory.apply(&pinned);
        Ok(())
    }

    fn judged_fault(&self, record: &Record) -> Result<(), String> {
        let Some(owner) = self.memory.get(record.args[0] / 4096) else { return Ok(()) };
        let vm = &self.vms[usize::from(owner.vm)];
        let junk = owner.state == PageState::Guest && vm.junk && record.args[1] != 0;
        match (owner.host_has_access(), junk, record.result) {
            (true, _, 1) | (false, true, 2) | (false, false, 0) => Ok(()),
            (true, ..) => Err(format!("an abort for a page that the host has: {owner:?}")),
            (false, true, _) => Err(format!("no junk in place of a page: {owner:?}")),
            (false, false, _) => Err(format!("no abort for a page that it has not: {owner:?}")),
        }
    }
}

/// Whether a guest's call is never its host's.
fn is_hyps(x0: u64, protected: bool, aarch32: bool) -> bool {
    match function_id(x0) {
        0x8000_0000..=0x8000_ffff | 0xc000_0000..=0xc000_ffff => true,
        0x8400_0000..=0x8400_001f | 0x8400_0050..=0x8400_005f => true,
        0xc400_0000..=0xc400_001f | 0xc400_0050..=0xc400_005f => true,
        0xc400_0190..=0xc400_01af => true,
        0x8600_0000..=0x86ff_ffff => protected,
        0xc600_0000..=0xc6ff_ffff => protected && !aarch32,
        _ => false,
    }
}

fn compare_changes(record: &Record, expected: &Changes) -> Result<(), String> {
    let mut found = Changes::new();
    let words = &record.touched[..TOUCHED.min(record.changes as usize)];
    for &word in words {
        let Some(change) = Change::decode(word) else { return Err(format!("change {word:#x}")) };
        // Devices reach what the host does, and nothing else.
        let owner = Owner::of(change.state, change.vm);
        if change.devices != owner.host_has_access() {
            return Err(format!("page {:#x} becomes {owner:?}, devices: {change:?}", change.page));
        }
        for n in 0..u64::from(change.count) {
            found.insert(change.page + n, Owner::of(change.state, change.vm));
        }
    }
    let complete = record.changes as usize <= TOUCHED;
    for (page, owner) in &found {
        if expected.get(page) != Some(owner) {
            let expected = expected.get(page);
            return Err(format!("page {page:#x} becomes {owner:?}, should become {expected:?}"));
        }
    }
    match expected.iter().find(|(page, _)| complete && !found.contains_key(page)) {
        Some((page, owner)) => Err(format!("page {page:#x} should become {owner:?}")),
        None => Ok(()),
    }
}
