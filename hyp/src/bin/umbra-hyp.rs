//! The bootable EL2 image: everything is in the library.

#![forbid(unsafe_code)]
#![no_std]
#![no_main]

use core::panic::PanicInfo;
use umbra_hyp as _;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    umbra_hyp::arch::fatal::panic(info)
}
