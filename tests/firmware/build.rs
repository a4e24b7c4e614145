//! Links the firmware at the reset vector.

fn main() {
    println!("cargo:rerun-if-changed=firmware.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
        println!("cargo:rustc-link-arg-bins=-T{dir}/firmware.ld");
        println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
    }
}
