//! The EL3 test firmware's binary: what acts on the machine. What decides is in the library.

#![no_std]
#![no_main]

extern crate alloc;

mod el3;
