//! The AArch32 puppet: a guest that executes one routine or instruction at a time, as the host's tests
//! tell it. All of it is assembly, which tells VFP and Advanced SIMD from the rest; what each routine
//! does is said where it is (`puppet.S`), and the host's side of it is
//! `tests/payload/src/puppet32.rs`. With it comes a guest for random programs (`driven.S`; the host's side:
//! `tests/payload/src/fuzz/guest32.rs`).

#![no_std]
#![no_main]

core::arch::global_asm!(include_str!("puppet.S"), include_str!("driven.S"));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
