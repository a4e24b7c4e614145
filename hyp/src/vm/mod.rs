//! The life of VMs and vCPUs: what is decided about them ([`life`]), and what it is put into effect with
//! (`slots`).

pub mod life;
#[cfg(target_os = "none")]
pub mod slots;
