//! Changes of page states, for the log of a test build.

#![forbid(unsafe_code)]

use super::state::State;
use umbra_shared::PAGE_SIZE;
use umbra_shared::record::{Change, PageState};

/// As many as one transition can make: a VM's flag-shadow pages and a few more.
const CHANGES: usize = 24;

/// Changes that nobody has asked for yet. Those that don't fit are dropped: only boot makes so many.
#[derive(Debug, Default)]
pub struct Changes(arrayvec::ArrayVec<Change, CHANGES>);

impl Changes {
    /// A page is in this state now.
    pub fn note(&mut self, pa: u64, state: State) {
        let new = change(pa, state);
        if let Some(last) = self.0.last_mut()
            && last.page + u64::from(last.count) == new.page
            && (last.state, last.vm) == (new.state, new.vm)
            && last.count < u8::MAX
        {
            last.count += 1;
            return;
        }
        let _ = self.0.try_push(new);
    }

    /// Hands them out.
    pub fn take(&mut self) -> impl Iterator<Item = Change> {
        core::mem::take(&mut self.0).into_iter()
    }
}

/// A page in this state. Whether devices reach it is not asked here.
pub fn change(pa: u64, state: State) -> Change {
    let (state, vm) = match state {
        State::Host => (PageState::Host, 0),
        State::FlagPage { used: false } => (PageState::FlagPage, 0),
        State::FlagPage { used: true } => (PageState::FlagPageUsed, 0),
        State::Reserved => (PageState::Reserved, 0),
        State::Hyp => (PageState::Hyp, 0),
        State::Vm(vm) => (PageState::Vm, vm),
        State::Guest(vm) => (PageState::Guest, vm),
        State::SharedWithGuest(vm) => (PageState::SharedWithGuest, vm),
        State::SharedByGuest(vm) => (PageState::SharedByGuest, vm),
    };
    Change { page: pa / PAGE_SIZE as u64, count: 1, state, vm, devices: false }
}
