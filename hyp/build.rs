//! Hands the linker script to the bare-metal binary.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=image.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets the manifest directory");
        println!("cargo:rustc-link-arg-bins=-T{dir}/image.ld");
        println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
    }
}
