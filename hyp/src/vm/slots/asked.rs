//! What guests ask of their own VM's memory, on this machine: what [`crate::vm::calls`] and [`crate::vm::rsi`] decide.

#![forbid(unsafe_code)]

use super::{Target, lock};
use crate::memory::pages::VmId;
use crate::vm::calls::{Caller, Parting};
use crate::vm::life::Interface;
use crate::vm::rsi::{Extent, HostCall, Step};
use umbra_shared::call::UntrustedIpa;
use umbra_shared::error::Error;
use umbra_shared::flags::CALL_REGISTERS;
use umbra_shared::measurement::Value;
use umbra_shared::rsi::Ripas;

/// MEM_SHARE by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::guest_share`].
pub fn guest_share(caller: Caller, ipa: UntrustedIpa) -> Result<(), Error> {
    lock(caller.vm).guest_share(&Target, caller, ipa)
}

/// MEM_UNSHARE by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::guest_unshare`].
pub fn guest_unshare(caller: Caller, ipa: UntrustedIpa) -> Result<Parting, Error> {
    lock(caller.vm).guest_unshare(&Target, caller, ipa)
}

/// MEM_RELINQUISH by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::guest_relinquish`].
pub fn guest_relinquish(caller: Caller, ipa: UntrustedIpa) -> Result<Parting, Error> {
    lock(caller.vm).guest_relinquish(&Target, caller, ipa)
}

/// MMIO_GUARD by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::guest_enrol`].
pub fn guest_enrol(caller: Caller, ipa: UntrustedIpa) -> Result<(), Error> {
    lock(caller.vm).guest_enrol(&Target, caller, ipa)
}

/// Whether a guest may use this interface: it has used no other, and will use no other.
pub fn guest_uses(vm: VmId, interface: Interface) -> bool {
    lock(vm).uses(interface)
}

/// The interface that a guest uses, if it has decided.
pub fn guest_interface(vm: VmId) -> Option<Interface> {
    lock(vm).interface()
}

/// IPA_STATE_SET by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::ipa_state_set`].
pub fn ipa_state_set(caller: Caller, range: (u64, u64), ripas: Ripas) -> Result<Step, Error> {
    lock(caller.vm).ipa_state_set(&Target, caller, range, ripas)
}

/// IPA_STATE_GET by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::ipa_state_get`].
pub fn ipa_state_get(caller: Caller, range: (u64, u64)) -> Result<Extent, Error> {
    lock(caller.vm).ipa_state_get(&Target, caller, range)
}

/// REALM_CONFIG by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::realm_config`].
pub fn realm_config(caller: Caller, ipa: u64) -> Result<Step, Error> {
    lock(caller.vm).realm_config(&Target, caller, ipa)
}

/// HOST_CALL by a guest.
///
/// # Errors
///
/// Those of [`crate::vm::life::Vm::host_call`].
pub fn host_call(caller: Caller, ipa: u64, call: &mut HostCall) -> Result<Step, Error> {
    lock(caller.vm).host_call(&Target, caller, ipa, call)
}

/// What the host has answered to that.
pub fn answer_host_call(vm: VmId, ipa: u64, registers: &[u64; CALL_REGISTERS]) {
    lock(vm).answer_host_call(&Target, ipa, registers);
}

/// MEASUREMENT_READ by a guest.
pub fn measurement(vm: VmId, index: u64) -> Option<Value> {
    lock(vm).measurement(index)
}

/// MEASUREMENT_EXTEND by a guest.
#[must_use]
pub fn extend_measurement(vm: VmId, index: u64, extension: &[u8]) -> bool {
    lock(vm).extend_measurement(index, extension)
}
