//! FP/SIMD/SVE/SME: the engine ([`engine`], where the model is explained), its moves between registers and
//! memory (`moves`), a vCPU's part ([`vcpu`]), the hardware as the engine knows it ([`hardware`]), the CPU
//! as that hardware (`hw`, with the assembly in `regs.S`), and a simulated machine as that hardware for
//! tests (`sim`). Who may use which vector lengths is decided in [`lengths`].

pub mod engine;
#[cfg(test)]
mod exhaustive;
pub mod hardware;
#[cfg(target_os = "none")]
pub mod hw;
pub mod lengths;
mod moves;
mod record;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
pub mod vcpu;

pub use engine::{CpuFp, GuestTrap, HostImage, TrapClass, host_storage};
pub use hardware::{Access, FpHw, Svcr};
pub use vcpu::{Live, VcpuFp};
