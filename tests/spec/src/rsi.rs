//! Every RSI call of a guest's, and RIPAS.

use umbra_shared::PAGE_SIZE;
use umbra_shared::exit::Reason;
use umbra_shared::record::PageState;
use umbra_shared::rsi::{PAGES_AT_A_TIME, PAGES_LOOKED_AT, RAM_RANGES, RsiFunction};

use crate::Spec;
use crate::guest::{Answer, GuestCall, NOT_SUPPORTED};
use crate::memory::{Changes, Owner};
use crate::vm::{Interface, Vm};

const PAGE: u64 = PAGE_SIZE as u64;

const SUCCESS: i64 = 0;
const ERROR_INPUT: i64 = 1;
const ERROR_STATE: i64 = 2;
const ERROR_UNKNOWN: i64 = 4;
const HOST_CALL_BYTES: u64 = 256;
const VERSION: u64 = 0x1_0000;
const EMPTY: u64 = 0;
const RAM: u64 = 1;
const ACCEPT: u64 = 0;
const REJECT: u64 = 1;

impl Vm {
    /// As far as an address is in what the guest has said is RAM.
    pub fn said_until(&self, ipa: u64) -> Option<u64> {
        self.ram.iter().find(|(from, to)| (*from..*to).contains(&ipa)).map(|&(_, to)| to)
    }

    /// Whether a page of the lower half is RAM.
    fn is_ram(&self, ipa: u64) -> bool {
        self.maps.contains_key(&ipa)
            || self.said_until(ipa).is_some() && !self.aliased.contains(&ipa)
    }

    /// As far as an address's RIPAS is the same, below `top`.
    fn same_until(&self, base: u64, top: u64) -> u64 {
        let ram = self.is_ram(base);
        let mut at = base;
        while at < top && self.is_ram(at) == ram {
            // Where anything may change.
            let page = at + PAGE;
            let ends = self.ram.iter().flat_map(|&(from, to)| [from, to]).filter(|&end| end > at);
            let marks = self.aliased.range(at..).next().map(|&mark| mark.max(page));
            let pages = self.maps.range(at..).next().map(|(&page_at, _)| page_at.max(page));
            at = ends.chain(marks).chain(pages).min().unwrap_or(top).min(top);
        }
        at
    }

    /// The guest says that a range is RAM. False: that is one range too many.
    fn say_ram(&mut self, from: u64, to: u64) -> bool {
        let touches = |&(a, b): &(u64, u64)| a <= to && from <= b;
        let (touched, mut others): (Vec<_>, Vec<_>) = self.ram.iter().partition(|r| touches(r));
        let from = touched.iter().map(|r: &(u64, u64)| r.0).fold(from, u64::min);
        let to = touched.iter().map(|r| r.1).fold(to, u64::max);
        others.push((from, to));
        others.sort_unstable();
        let fits = others.len() <= RAM_RANGES;
        if fits {
            self.ram = others;
        }
        fits
    }
}

fn words(x0: i64, words: [u64; 3]) -> Answer {
    Answer { words: Some(words), ..Answer::x0(x0) }
}

impl Spec {
    pub(crate) fn rsi(
        &mut self,
        (slot, index): (u8, usize),
        call: GuestCall,
        told: Option<u64>,
    ) -> Answer {
        let vm = &mut self.vms[usize::from(slot)];
        let there = vm.protected && !vm.vcpus[&index].features.aarch32;
        let Some(function) = RsiFunction::from_id(call.function).filter(|_| there) else {
            return Answer::x0(NOT_SUPPORTED);
        };
        let looks = matches!(
            function,
            RsiFunction::Version
                | RsiFunction::Features
                | RsiFunction::MeasurementRead
                | RsiFunction::RealmConfig
        );
        if !looks {
            vm.interface.get_or_insert(Interface::Rsi);
        }
        if vm.interface == Some(Interface::Kvm) {
            return Answer::x0(NOT_SUPPORTED);
        }
        let [x1, x2, x3] = call.args;
        let refused = words(ERROR_INPUT, call.args);
        let top = self.platform.alias_bit;
        let is_range = (x1 | x2).is_multiple_of(PAGE) && x1 < x2 && x2 <= top;
        match function {
            RsiFunction::Version => {
                let x0 = if x1 == VERSION { SUCCESS } else { ERROR_INPUT };
                words(x0, [VERSION, VERSION, x3])
            }
            RsiFunction::Features => words(SUCCESS, [0, x2, x3]),
            RsiFunction::RealmConfig => {
                let vm = &self.vms[usize::from(slot)];
                let undecided = vm.interface.is_none() && !vm.aliased.contains(&x1);
                match vm.maps.contains_key(&x1) {
                    _ if x1 % PAGE != 0 || x1 >= top => refused,
                    true => words(SUCCESS, call.args),
                    false if undecided || vm.is_ram(x1) => Answer::again(Reason::Fault),
                    false => refused,
                }
            }
            // What they are is for others to judge: there is no content here.
            RsiFunction::MeasurementRead if x1 <= 4 => Answer::x0(SUCCESS),
            RsiFunction::MeasurementExtend if (1..=4).contains(&x1) && x2 <= 64 => {
                words(SUCCESS, call.args)
            }
            RsiFunction::MeasurementRead | RsiFunction::MeasurementExtend => refused,
            RsiFunction::AttestationTokenInit => words(ERROR_UNKNOWN, call.args),
            RsiFunction::AttestationTokenContinue => {
                let inside = x2 < PAGE && x3 <= PAGE - x2;
                let good = x1.is_multiple_of(PAGE) && x1 < top && inside;
                words(if good { ERROR_STATE } else { ERROR_INPUT }, call.args)
            }
            RsiFunction::HostCall => {
                let vm = &self.vms[usize::from(slot)];
                let page = x1 / PAGE * PAGE;
                match vm.maps.contains_key(&page) {
                    _ if x1 % HOST_CALL_BYTES != 0 || x1 >= top => refused,
                    // Its x0 comes with the host's answer.
                    true => Answer {
                        exit: Some(Reason::HostCall),
                        words: Some(call.args),
                        ..Answer::default()
                    },
                    false if vm.is_ram(page) => Answer::again(Reason::Fault),
                    false => refused,
                }
            }
            _ if !is_range => refused,
            RsiFunction::IpaStateGet => {
                let vm = &self.vms[usize::from(slot)];
                // How far hyp looks is its choice.
                let most = vm.same_until(x1, x2);
                let may = call.x1.is_multiple_of(PAGE) && (x1 + PAGE..=most).contains(&call.x1);
                let to = if may { call.x1 } else { most };
                words(SUCCESS, [to, if vm.is_ram(x1) { RAM } else { EMPTY }, x3])
            }
            RsiFunction::IpaStateSet => match x3 {
                EMPTY => self.make_empty(slot, x1, x2),
                RAM => self.make_ram((slot, index), x1, x2, told),
                _ => refused,
            },
        }
    }

    fn block_end(&self, ipa: u64) -> u64 {
        let bytes = self.platform.block_pages * PAGE;
        (ipa / bytes + 1) * bytes
    }

    /// What was private is nobody's to see, and the page is shared at its alias, empty.
    fn make_empty(&mut self, slot: u8, base: u64, top: u64) -> Answer {
        let end = top.min(self.block_end(base));
        let vm = &mut self.vms[usize::from(slot)];
        let empty = !vm.is_ram(base) && vm.same_until(base, end) == end;
        if empty && vm.aliased.range(base..end).next().is_none() {
            return words(SUCCESS, [end, ACCEPT, EMPTY]);
        }
        let mut changes = Changes::new();
        let mut at = base;
        while at < end.min(base + PAGES_LOOKED_AT * PAGE)
            && (changes.len() as u64) < PAGES_AT_A_TIME
        {
            let needs = match vm.maps.get(&at).copied() {
                None if vm.is_ram(at) => Some(Reason::Fault),
                None => None,
                Some(_) if !vm.has_tables_for_an_alias(&self.platform, at) => Some(Reason::Tables),
                Some(page) => {
                    vm.move_page(&self.platform, at, at + self.platform.alias_bit);
                    vm.aliased.insert(at);
                    vm.forget_told(at + self.platform.alias_bit);
                    changes.insert(page, Owner::of(PageState::SharedByGuest, slot));
                    None
                }
            };
            match needs {
                Some(exit) if at == base => return Answer::again(exit),
                Some(_) => break,
                None => at += PAGE,
            }
        }
        Answer { changes, ..words(SUCCESS, [at, ACCEPT, EMPTY]) }
    }

    /// What is shared at its alias comes back, empty, once the host knows of it.
    fn make_ram(
        &mut self,
        (slot, index): (u8, usize),
        base: u64,
        top: u64,
        told: Option<u64>,
    ) -> Answer {
        let end = if self.vms[usize::from(slot)].aliased.is_empty() {
            top
        } else {
            top.min(self.block_end(base))
        };
        let vm = &mut self.vms[usize::from(slot)];
        let end = vm.aliased.range(base..end).next().copied().unwrap_or(end);
        if end != base {
            return if vm.say_ram(base, end) {
                words(SUCCESS, [end, ACCEPT, RAM])
            } else {
                words(SUCCESS, [base, REJECT, RAM])
            };
        }
        let alias = base + self.platform.alias_bit;
        if told != Some(alias) {
            if let Some(vcpu) = vm.vcpus.get_mut(&index) {
                vcpu.told = Some(alias);
            }
            return Answer::again(Reason::Unshare);
        }
        let page = vm.maps[&alias];
        vm.move_page(&self.platform, alias, base);
        vm.aliased.remove(&base);
        vm.say_ram(base, base + PAGE);
        let changes = Changes::from([(page, Owner::of(PageState::Guest, slot))]);
        Answer { changes, ..words(SUCCESS, [base + PAGE, ACCEPT, RAM]) }
    }
}
