//! What the decisions of this room need of a machine.

#![forbid(unsafe_code)]

use super::command::Raw;
use super::registers::Width;

/// Whose registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The RD_base frame of the redistributor with this number.
    Redistributor(usize),
    /// The control frame of the ITS with this number.
    Its(usize),
}

/// The GIC's registers, and memory as the GIC sees it.
pub trait Machine {
    /// Loads a register.
    fn read(&mut self, place: Place, offset: u32, width: Width) -> u64;

    /// Stores to a register. What was stored to memory before is there before it takes effect.
    fn write(&mut self, place: Place, offset: u32, width: Width, value: u64);

    /// Zeroes memory of hyp's own, for the GIC to see.
    fn zero(&mut self, pa: u64, bytes: u64);

    /// Stores to memory of hyp's own, for the GIC to see.
    fn store(&mut self, pa: u64, words: &[u64]);

    /// Reads commands of the host's, once, all from the page of the first. `false`: the page is not the host's.
    fn fetch(&mut self, pa: u64, commands: &mut [Raw]) -> bool;

    /// From now on these pages are the host's for good. `false`: one of them is not the host's alone, and nothing
    /// has changed.
    fn pin(&mut self, pa: u64, pages: u64) -> bool;
}

/// 32 bits.
pub fn read32(machine: &mut impl Machine, place: Place, offset: u32) -> u32 {
    machine.read(place, offset, Width::Word) as u32
}

/// 64 bits.
pub fn read64(machine: &mut impl Machine, place: Place, offset: u32) -> u64 {
    machine.read(place, offset, Width::Doubleword)
}

/// 32 bits.
pub fn write32(machine: &mut impl Machine, place: Place, offset: u32, value: u32) {
    machine.write(place, offset, Width::Word, u64::from(value));
}

/// 64 bits.
pub fn write64(machine: &mut impl Machine, place: Place, offset: u32, value: u64) {
    machine.write(place, offset, Width::Doubleword, value);
}

/// How often a register is looked at before the GIC is given up: a number and no time, as for the end of the
/// machine. A look is a load from a device, at least 50 ns.
pub const LOOKS: u32 = 1 << 20;

/// Looks at a 32-bit register until `done` says so of it.
pub fn wait(
    machine: &mut impl Machine,
    place: Place,
    offset: u32,
    done: impl Fn(u32) -> bool,
) -> bool {
    (0..LOOKS).any(|_| done(read32(machine, place, offset)))
}
