//! The demonstration.
#![no_std]
#![no_main]
use umbra_host::kernel::{machine::Machine, power, smp, timer};
umbra_host::kernel_main!(main);
fn main(machine: &'static Machine) -> ! {
    log::info!("{machine:x?}");
    timer::set_tick(timer::frequency() / 100);
    let n = smp::start(machine, |cpu| log::info!("hello {cpu}"));
    log::info!("{n:?}, {} ticks", timer::ticks(0));
    power::off()
}
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    umbra_host::kernel::die(info)
}
