//! FP/SIMD/SVE: the engine ([`engine`], where the model is explained), the CPU as its hardware (`hw`,
//! with the assembly in `regs.S`), and a simulated machine as its hardware for tests (`sim`). Who may use
//! which vector lengths is decided in [`lengths`].

pub mod engine;
#[cfg(test)]
mod exhaustive;
#[cfg(target_os = "none")]
pub mod hw;
pub mod lengths;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use engine::{
    Access, CpuFp, FpHw, GuestTrap, HostImage, Live, TrapClass, VcpuFp, host_image_bytes,
};
